#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# check_ordering.py - every atomic operation of the headers spells its order, and says why.
#
#   check_ordering.py <include folder>   prints file:line: what is wrong; status 1 if anything is
#   check_ordering.py --self-test        breaks each rule once and expects to be told
#
# The rules:
#   - an operation spells its order, and no operator touches an atomic object;
#   - directly above it, or behind it on its line, stands
#     `// [room.name] order: why`, with the order it has;
#   - labels are unique in a header, and stand above an operation;
#   - acquire and release name a partner, `pairs with [room.name]` or `pairs with call()`,
#     or the label whose argument holds for them too, `as [room.name]`;
#   - a label that is named exists, in the same header or in another one, and who pairs
#     with it has the other half: a release for an acquire, an acquire for a release;
#   - seq_cst is a store-load pair and says "either ... or ...".
#
# An operation whose order is handed through from a parameter has none of its own to explain.
import pathlib
import re
import sys

sys.dont_write_bytecode = True

ORDERS = ("relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst")
OPERATION = re.compile(
    r"(?:\.|->)\s*(load|store|exchange|compare_exchange_weak|compare_exchange_strong"
    r"|fetch_(?:add|sub|or|and|xor)|test_and_set|test)\s*\("
    r"|\b(atomic_thread_fence|atomic_signal_fence|(?:sim::)?\bfence)\s*\("
)
# What has no order, and may have a label all the same.
CALL = re.compile(
    r"(?:\.|->|::)\s*(wait|wait_until|wake_all|wake_one|publish_add|settle|light_fence|heavy_fence"
    r"|after_grace_period|synchronize|lock|unlock)\s*\("
)
LABEL = re.compile(r"\[([a-z0-9_]+\.[a-z0-9_]+)\]")
ORDER = re.compile(r"\bmemory_order(?:_|::)(" + "|".join(ORDERS) + r")\b")
ACQUIRES = {"consume", "acquire", "acq_rel", "seq_cst"}
RELEASES = {"release", "acq_rel", "seq_cst"}


class Label:
    def __init__(self, name, text, line, end):
        self.name = name  # room.name
        self.text = text  # what follows the brackets, on one line
        self.line = line
        self.end = end  # offset behind the comment
        self.operation = None


class Operation:
    def __init__(self, source, match):
        self.method = match.group(1) or match.group(2)
        self.is_order_free = False
        self.begin = match.start()
        self.open = match.end() - 1
        self.close = closing(source.code, self.open)
        self.line = source.line_of(self.begin)
        # Orders of calls inside the arguments are not ours.
        arguments = source.code[self.open + 1:self.close]
        inner = [m for m in OPERATION.finditer(arguments)]
        self.orders = []
        for m in ORDER.finditer(arguments):
            if not any(i.end() <= m.start() < closing(arguments, i.end() - 1) for i in inner):
                self.orders.append((self.open + 1 + m.start(), self.open + 1 + m.end(), m.group(1)))
        self.label = None

    @property
    def order(self):
        return self.orders[0][2] if self.orders else None


def closing(code, at):
    """Offset of the bracket that closes the one at `at`."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    depth, open_, close = 0, code[at], pairs[code[at]]
    for i in range(at, len(code)):
        if code[i] == open_:
            depth += 1
        elif code[i] == close:
            depth -= 1
            if depth == 0:
                return i
    return len(code) - 1


class Source:
    """A header: its code without comments and literals, its labels, its operations."""

    def __init__(self, name, text):
        self.name = name
        self.text = text
        self.code, self.comments = split(text)
        self.concepts = [(m.start(), end_of_concept(self.code, m.end()))
                         for m in re.finditer(r"\bconcept\s+\w+\s*=", self.code)]
        self.labels = self.find_labels()
        self.operations = [Operation(self, m) for m in OPERATION.finditer(self.code)
                           if self.is_operation(m)]
        self.assign()

    def line_of(self, offset):
        return self.text.count("\n", 0, offset) + 1

    def is_operation(self, match):
        """Not a declaration, and not a function of that name with nothing of an order in it."""
        if any(begin < match.start() < end for begin, end in self.concepts):
            return False  # what a concept asks for is not done
        arguments = self.code[match.end():closing(self.code, match.end() - 1)]
        return match.group(1) is not None or ORDER.search(arguments) is not None

    def find_labels(self):
        found = []
        for begin, end, text in self.comments:
            # The first one opens the comment; another one has its order behind it.
            starts = [m for m in LABEL.finditer(text)
                      if re.fullmatch(r"[ \t]*//[ \t]*", text[:m.start()])
                      or (re.search(r"\n[ \t]*//[ \t]*$", text[:m.start()])
                          and re.match(r" (?:" + "|".join(ORDERS) + r"):", text[m.end():]))]
            for i, m in enumerate(starts):
                stop = starts[i + 1].start() if i + 1 < len(starts) else len(text)
                words = re.sub(r"\n\s*//", "\n", text[m.end():stop])
                words = " ".join(words.replace("//", " ").split())
                # `[a.b] order and [c.d] order: why` is two labels of one statement.
                both = re.match(r"(\w+) and \[([a-z0-9_]+\.[a-z0-9_]+)\] (\w+): (.*)$", words)
                if both:
                    last = end if i + 1 == len(starts) else begin + stop
                    line = self.line_of(begin + m.start())
                    found.append(Label(m.group(1), f"{both.group(1)}: {both.group(4)}", line, last))
                    found.append(Label(both.group(2), f"{both.group(3)}: {both.group(4)}", line, last))
                    continue
                found.append(Label(m.group(1), words, self.line_of(begin + m.start()),
                                   end if i + 1 == len(starts) else begin + stop))
        return found

    def assign(self):
        """Each label to the operation below it, or before it on its line."""
        taken = set()
        for label in self.labels:
            line_begin = self.text.rfind("\n", 0, label.end - 1) + 1
            before = self.code[line_begin:label.end]
            if before.strip():  # behind code: the last operation of that line
                there = [o for o in self.operations if line_begin <= o.begin < label.end
                         and id(o) not in taken]
            else:
                there = [o for o in self.operations if o.begin >= label.end
                         and id(o) not in taken and self.is_near(label.end, o.begin)][:1]
            if there:
                label.operation = there[-1]
                there[-1].label = label
                taken.add(id(there[-1]))

    def is_near(self, end, begin):
        """Nothing but the beginning of one statement lies between."""
        if self.text.count("\n", end, begin) <= 1:
            return True  # the next line
        between = self.code[end:begin].strip()
        between = re.sub(r"^\}\s*while\b", "while", between)
        between = re.sub(r"^for\s*\([^;{}]*;?[^;{}]*", "", between)
        return not re.search(r"[;{}]", between)

    def has_call_below(self, label):
        """A wake-up, a fence, a wait: what has no order and may have a label."""
        line_begin = self.text.rfind("\n", 0, label.end - 1) + 1
        if self.code[line_begin:label.end].strip():
            return CALL.search(self.code, line_begin, label.end) is not None
        found = CALL.search(self.code, label.end)
        return found is not None and self.is_near(label.end, found.start())


    def is_in_assembly(self, label):
        """Its instruction is in an asm statement of the next function, which marks it
        `// [name]`; or it is such a mark."""
        begin = self.code.rfind("asm", 0, label.end)
        if begin >= 0 and not re.search(r"[;{}]", self.code[begin:label.end]):
            return True
        begin = self.code.find("asm", label.end)
        end = self.code.find("\n}\n", label.end)
        return 0 <= begin < end and f"// [{label.name}]\n" in self.text[begin:end]


def end_of_concept(code, at):
    while at < len(code) and code[at] != ";":
        at = closing(code, at) + 1 if code[at] in "({[" else at + 1
    return at


def split(text):
    """Code with comments and literals blanked, and the comments; `//` lines that follow
    each other with nothing between are one."""
    code = list(text)
    comments = []
    i = 0
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\'', re.S)
    while (m := token.search(text, i)) is not None:
        for k in range(m.start(), m.end()):
            if code[k] != "\n":
                code[k] = " "
        if m.group().startswith("//"):
            last = comments[-1] if comments else None
            own_line = text[text.rfind("\n", 0, m.start()) + 1:m.start()].strip() == ""
            if last and own_line and re.fullmatch(r"\n[ \t]*", text[last[1]:m.start()]):
                comments[-1] = (last[0], m.end(), text[last[0]:m.end()])
            else:
                comments.append((m.start(), m.end(), m.group()))
        i = m.end()
    return "".join(code), comments


def handed_through(source, operation):
    """The order is a parameter of the function around it."""
    arguments = source.code[operation.open + 1:operation.close].split(",")
    return any(re.fullmatch(r"[a-z_]+", last.strip()) and
               re.search(r"\bmemory_order\s+" + last.strip() + r"\b", source.code[:operation.begin])
               for last in arguments[-2:])


def partners_of(label):
    """[(half or None, name)] of `pairs with [a.b], [c.d] and [e.f]`; half: what we have of it."""
    found = []
    for m in re.finditer(r"(\b(?:acquire|release)\s+)?pairs with\b([^;:.]*(?:\.[a-z0-9_]+\][^;:.]*)*)",
                         label.text):
        half = m.group(1).strip() if m.group(1) else None
        named = re.split(r"\bas \[", m.group(2))[0]
        found += [(half, name) for name in LABEL.findall(named)]
    return found


def check(sources):
    """Complaints about the headers, as (file, line, text)."""
    complaints = []
    everywhere = {}
    for source in sources:
        for label in source.labels:
            everywhere.setdefault(label.name, []).append(label)

    for source in sources:
        def say(line, text, name=source.name):
            complaints.append((name, line, text))

        here = {}
        for label in source.labels:
            if label.name in here:
                say(label.line, f"[{label.name}] is a label twice, first in line {here[label.name].line}")
            here.setdefault(label.name, label)

        for operation in source.operations:
            if not operation.orders:
                if not handed_through(source, operation):
                    say(operation.line, f"{operation.method}() does not spell its order")
                continue
            if operation.label is None and not handed_through(source, operation):
                say(operation.line, f"{operation.method}() has no label directly above it")

        check_operators(source, say)
        for label in source.labels:
            check_label(source, label, here, everywhere, say)
    return complaints


def check_operators(source, say):
    names = set(re.findall(r"\batomic(?:_ref)?<[^;(){}]*>\s+(\w+)\s*(?:\{|;|\[|\()", source.code))
    names |= set(re.findall(r"\bwait_word\s+(\w+)\s*(?:\{|;|\()", source.code))
    for name in sorted(names):
        for m in re.finditer(r"(?:\+\+|--)\s*(?:this->)?" + name + r"\b(?!\s*(?:\.|->|\[))|(?<![\w.:])(?:this->)?"
                             + name + r"\s*(?:\+\+|--|[-+|&^]=|=(?![=]))", source.code):
            before = source.code[:m.start()].rstrip()
            if before.endswith((">", "wait_word")):  # a declaration
                continue
            say(source.line_of(m.start()), f"an operator touches the atomic object {name}")
    for m in re.finditer(r"\bstd::atomic_(?:load|store|exchange|fetch_\w+|compare_\w+)\s*\(", source.code):
        say(source.line_of(m.start()), "a free function, not a member, touches an atomic object")


def check_label(source, label, here, everywhere, say):
    m = re.match(r"(\w+): ?(.*)$", label.text)
    operation = label.operation
    if operation is None:
        if not source.has_call_below(label) and not source.is_in_assembly(label):
            say(label.line, f"[{label.name}] stands above no operation")
        check_names(label, here, everywhere, say)
        return
    if handed_through(source, operation):
        check_names(label, here, everywhere, say)
        return
    if m is None or m.group(1) not in ORDERS:
        say(label.line, f"[{label.name}] is not followed by `order: why`")
        return
    order, why = m.groups()
    if order != operation.order:
        say(label.line, f"[{label.name}] says {order}, the operation has {operation.order}")
    if not re.search(r"\w{2}", why):
        say(label.line, f"[{label.name}] has no reason")
        return
    if order == "seq_cst" and not re.search(r"\beither\b.*\bor\b|half of that pair\b"
                                              r"|half of a store-load pair, see \[", why, re.I):
        say(label.line, f"[{label.name}] is seq_cst and does not say \"either ... or ...\"")
    if order not in ("relaxed", "seq_cst") and operation.method != "atomic_signal_fence":
        if not re.search(r"pairs with\b[^;]*(?:\[|\w\(\)|\bthe\b|\bevery\b)|\bas (?:in|for|at|of )?\s*(?:\[|the engine)", why):
            say(label.line, f"[{label.name}] is {order} and names no partner")
    check_names(label, here, everywhere, say)
    check_partners(label, order, here, everywhere, say)


def check_names(label, here, everywhere, say):
    for name in LABEL.findall(label.text):
        if name == label.name:
            say(label.line, f"[{label.name}] names itself")
        elif name not in here and name not in everywhere:
            say(label.line, f"[{label.name}] names [{name}], which does not exist")


def check_partners(label, order, here, everywhere, say):
    for half, name in partners_of(label):
        candidates = [here[name]] if name in here else everywhere.get(name, [])
        orders = {c.operation.order for c in candidates
                  if c.operation is not None and c.operation.orders}
        if not orders:
            continue  # a call without an order, or told already
        need = set()
        if half == "release" or order == "release":
            need = ACQUIRES
        elif half == "acquire" or order in ("acquire", "consume"):
            need = RELEASES
        elif order == "acq_rel":
            need = ACQUIRES | RELEASES
        if half is not None and order not in (ACQUIRES if half == "acquire" else RELEASES):
            say(label.line, f"[{label.name}] is {order} and speaks of its {half}")
        elif need and not orders & need:
            what = "acquire" if need is ACQUIRES else "release" if need is RELEASES else "order"
            say(label.line, f"[{label.name}] pairs with [{name}], which is {'/'.join(sorted(orders))} "
                            f"and does not {what} anything")


def read(folder):
    root = pathlib.Path(folder)
    return [Source(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8"))
            for p in sorted(root.rglob("*.hpp"))]


# --- self-test --------------------------------------------------------------------

GOOD = """
std::atomic<int> word_{0};
int take() {
  // [take.word] acquire: pairs with [give.word]; what was given is visible.
  return word_.load(std::memory_order_acquire);
}
void give() {
  word_.store(1, std::memory_order_release);  // [give.word] release: pairs with [take.word]
  int seen = 0;
  do {
    // [give.commit] acq_rel: release pairs with [take.word]; acquire pairs with
    // [give.word], over two lines.
  } while (!word_.compare_exchange_weak(seen, 2, std::memory_order_acq_rel,
                                        std::memory_order_relaxed));
  // [give.wake] what has no order may have a label.
  word.wake_all();
}
int pass(std::memory_order order) { return word_.load(order); }
"""

SELF_TEST = [
    ("nothing", GOOD, GOOD, None),
    ("no order", "load(std::memory_order_acquire)", "load()", "does not spell its order"),
    ("no label", "  // [take.word] acquire: pairs with [give.word]; what was given is visible.\n", "",
     "has no label"),
    ("a label further away", "visible.\n", "visible.\n  int x = 0;\n", "has no label"),
    ("a label twice", "[give.word] release:", "[take.word] release:", "label twice"),
    ("a label above nothing", "int pass(", "// [lone.one] relaxed: why\nint x;\nint pass(", "above no operation"),
    ("another order than said", "[take.word] acquire", "[take.word] relaxed", "the operation has acquire"),
    ("no order in the label", "acquire: pairs", "pairs", "`order: why`"),
    ("no reason", "acquire: pairs with [give.word]; what was given is visible.", "acquire:", "has no reason"),
    ("no partner", "pairs with [give.word]; what was given", "what was given", "names no partner"),
    ("a partner that is missing", "[give.word]; what", "[give.word2]; what", "does not exist"),
    ("itself as partner", "pairs with [give.word]; what", "pairs with [take.word]; what", "names itself"),
    ("a relaxed partner", "store(1, std::memory_order_release);  // [give.word] release: pairs with [take.word]",
     "store(1, std::memory_order_relaxed);  // [give.word] relaxed: a hint", "does not release anything"),
    ("an acquire as partner of an acquire",
     "store(1, std::memory_order_release);  // [give.word] release: pairs with [take.word]",
     "load(std::memory_order_acquire);  // [give.word] acquire: pairs with [give.commit]",
     "does not release anything"),
    ("a half that is not there", "acquire: pairs with [give.word]", "acquire: release pairs with [give.word]",
     "speaks of its release"),
    ("a bare seq_cst", "[take.word] acquire: pairs with [give.word]; what was given is visible.\n"
     "  return word_.load(std::memory_order_acquire)",
     "[take.word] seq_cst: to be sure.\n  return word_.load(std::memory_order_seq_cst)", "either"),
    ("an operator", "int seen = 0;", "int seen = 0; ++word_;", "an operator touches"),
    ("an assignment", "int seen = 0;", "int seen = 0; word_ = 1;", "an operator touches"),
    ("a free function", "int seen = 0;", "int seen = std::atomic_load(&word_);", "a free function"),
    ("a fence without a label", "int seen = 0;",
     "int seen = 0; std::atomic_thread_fence(std::memory_order_seq_cst);", "has no label"),
]


def self_test():
    failures = 0
    for name, old, new, expected in SELF_TEST:
        if old not in GOOD:
            print(f"self-test: {name}: nothing to replace")
            failures += 1
            continue
        told = [text for _, _, text in check([Source("x.hpp", GOOD.replace(old, new, 1))])]
        good = not told if expected is None else any(expected in text for text in told)
        if not good:
            print(f"self-test: {name}: expected {expected!r}, was told {told}")
            failures += 1
    print(f"self-test: {len(SELF_TEST)} cases, {failures} failed")
    return failures == 0


def main(arguments):
    if arguments == ["--self-test"]:
        return 0 if self_test() else 1
    if len(arguments) != 1 or not pathlib.Path(arguments[0]).is_dir():
        print("usage: check_ordering.py <include folder> | --self-test", file=sys.stderr)
        return 2
    sources = read(arguments[0])
    complaints = check(sources)
    for name, line, text in complaints:
        print(f"{name}:{line}: {text}")
    operations = sum(1 for s in sources for o in s.operations if o.orders)
    print(f"{len(sources)} headers, {operations} operations, "
          f"{sum(len(s.labels) for s in sources)} labels, {len(complaints)} complaints")
    if operations == 0:
        print("no operation found: is this the include folder?")
        return 1
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
