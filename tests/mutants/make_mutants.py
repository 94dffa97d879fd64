#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# make_mutants.py - a copy of the headers in which one thing at a time can be broken.
#
#   make_mutants.py <include folder> <output folder>
#
# Writes <output>/include, the headers with every order, wake-up, second look and grace
# period of the rooms below made to depend on `pmgate_mutants::active`, and
# <output>/mutants.inc, a line for each of them. One compilation serves all mutants: number
# 0 is the library as it is, any other number breaks one thing.
#
# What is broken:
#   order       one half of acq_rel, or the only half of acquire or release, is taken away
#   torn        a read-modify-write becomes a load and a store
#   removed     a store or read-modify-write whose value nobody looks at is left out
#   once        a loop that waits looks once, and trusts its waking
#   never       a condition on an atomic value, or a loop of one, is taken for false
#   always      such a condition is taken for true
#   lost wake, not settled, touched, woken first    in what wakes somebody
#   no grace period, refusal unheeded, refusal taken for granted    a membarrier that says EPERM
#   unlocked    a lock is not taken; then what the locks guard is watched
#
# Relaxed has nothing to weaken. acq_rel to relaxed is left out: whoever finds one half
# missing finds both missing.
#
# A mutant is named by the label of its operation. What has no label of its own (wake-ups,
# waits, grace periods) is named by the function it stands in: [reopen:settle].
import pathlib
import re
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lint"))
import check_ordering  # noqa: E402  (the reader of labels)

# Headers under pmgate/ whose operations are broken, and those taken out again.
ROOMS = ["percpu_ref*.hpp", "block/*gate*.hpp", "detail/ref_*.hpp", "detail/*gate*.hpp",
         "detail/block/*gate*.hpp", "detail/block/*door*.hpp", "detail/block/*waiter*.hpp",
         "platform/sharded_counter.hpp", "platform/sim_counter.hpp",
         "scsi/bus_pm.hpp", "scsi/eh.hpp", "scsi/pause.hpp"]
# Not here: the disk's state is no part of what the gates promise; of the checked gates
# checked_interleavings.cpp plants the bugs.
ELSEWHERE = ["block/checked_gates.hpp", "block/queue_gate.hpp",
             "detail/block/checked_freeze_gate.hpp", "detail/block/checked_quiesce_gate.hpp"]

# Operations that are no part of what is tested, and why.
SPARED = {"alone.state": "outside of an exploration",
          "enter.again": "where a platform cannot block; the simulated one can",
          "embed.shard": "for counters that processes share; no scenario does"}

# Mutants that are slower, not wrong, and are not made.
SLOWER = {
    ("block/quiesce_gate.hpp", "quiesce.read", "always"): "closes what is closed",
    ("detail/block/freeze_gate_impl.hpp", "pm.guess", "always 2"): "wakes who looks again",
    ("platform/sim_counter.hpp", "sequence.state", "always"): "counts in the fallback",
    ("platform/sim_counter.hpp", "reopen.state", "removed"): "counts in the fallback",
    ("platform/sim_counter.hpp", "open.state", "removed"): "counts in the fallback",
}

WEAKER = {"acquire": ["relaxed"], "consume": ["relaxed"], "release": ["relaxed"],
          "acq_rel": ["acquire", "release"], "seq_cst": ["acq_rel"]}
VALUE_USED = re.compile(r"fetch_|exchange|compare_exchange")

SELECTOR = """// SPDX-License-Identifier: MIT
//
// pmgate_mutants.hpp - which mutant is alive, and what some of them do. Generated.
#ifndef PMGATE_MUTANTS_HPP
#define PMGATE_MUTANTS_HPP

#include <atomic>

namespace pmgate_mutants {

inline int active = 0;
inline bool watching = false;  // what the locks guard

constexpr std::memory_order load_part(std::memory_order order) noexcept {
  return order == std::memory_order_acquire || order == std::memory_order_acq_rel
             ? std::memory_order_acquire : std::memory_order_relaxed;
}
constexpr std::memory_order store_part(std::memory_order order) noexcept {
  return order == std::memory_order_release || order == std::memory_order_acq_rel
             ? std::memory_order_release : std::memory_order_relaxed;
}

/// Read-modify-writes that fall apart into a load and a store while `number` is active.
template <class Atomic>
struct torn {
  Atomic& word;
  int number;

  template <class T>
  auto fetch_add(T n, std::memory_order order) const noexcept {
    if (active != number) return word.fetch_add(n, order);
    return apart(order, [n](auto old) { return old + n; });
  }
  template <class T>
  auto fetch_sub(T n, std::memory_order order) const noexcept {
    if (active != number) return word.fetch_sub(n, order);
    return apart(order, [n](auto old) { return old - n; });
  }
  template <class T>
  auto fetch_or(T n, std::memory_order order) const noexcept {
    if (active != number) return word.fetch_or(n, order);
    return apart(order, [n](auto old) { return old | n; });
  }
  template <class T>
  auto fetch_and(T n, std::memory_order order) const noexcept {
    if (active != number) return word.fetch_and(n, order);
    return apart(order, [n](auto old) { return old & n; });
  }
  template <class T>
  auto exchange(T n, std::memory_order order) const noexcept {
    if (active != number) return word.exchange(n, order);
    return apart(order, [n](auto) { return n; });
  }
  template <class T, class U>
  bool compare_exchange_strong(T& expected, U value, std::memory_order success,
                               std::memory_order failure) const noexcept {
    if (active != number) return word.compare_exchange_strong(expected, value, success, failure);
    return apart(expected, value, success);
  }
  template <class T, class U>
  bool compare_exchange_weak(T& expected, U value, std::memory_order success,
                             std::memory_order failure) const noexcept {
    if (active != number) return word.compare_exchange_weak(expected, value, success, failure);
    return apart(expected, value, success);
  }

private:
  template <class Change>
  auto apart(std::memory_order order, Change change) const noexcept {
    const auto old = word.load(load_part(order));
    word.store(static_cast<decltype(word.load(order))>(change(old)), store_part(order));
    return old;
  }
  template <class T, class U>
  bool apart(T& expected, U value, std::memory_order order) const noexcept {
    const T old = word.load(load_part(order));
    const bool same = old == expected;
    expected = old;
    if (same) word.store(value, store_part(order));
    return same;
  }
};
template <class Atomic>
torn<Atomic> rmw(Atomic& word, int number) noexcept {
  return {word, number};
}

/// publish_add() that wakes nobody, touches the word after its change, or wakes too early.
template <class Word>
struct publisher {
  Word& word;
  int lost;

  template <class T>
  void publish_add(T n) const noexcept {
    const int which = active - lost;
    if (which < 0 || which > 2) {
      word.publish_add(n);
      return;
    }
    if (which == 2) word.wake_all();
    (void)word.fetch_add(n, std::memory_order_acq_rel);
    if (which == 1) word.wake_all();
  }
};
template <class Word>
publisher<Word> publishing(Word& word, int lost) noexcept {
  return {word, lost};
}

/// The callbacks of a grace period that never was.
template <class Callback>
bool run_now(Callback& first) noexcept {
  auto* next = first.next;
  first.run(first);
  while (next != nullptr) {
    auto& current = *next;
    next = current.next;
    current.run(current);
  }
  return true;
}

template <class Mutex>
class lock_unless {
public:
  lock_unless(Mutex& mutex, int number) noexcept : mutex_(active != number ? &mutex : nullptr) {
    if (mutex_ != nullptr) {
      mutex_->lock();
    } else if constexpr (requires { mutex.touch(); }) {
      mutex.touch();
    }
  }
  ~lock_unless() {
    if (mutex_ != nullptr) mutex_->unlock();
  }
  lock_unless(const lock_unless&) = delete;
  lock_unless& operator=(const lock_unless&) = delete;

private:
  Mutex* mutex_;
};

}  // namespace pmgate_mutants

#endif  // PMGATE_MUTANTS_HPP
"""


class Fault(Exception):
    pass


class Mutator:
    """One header: insertions and replacements, and the mutants they make."""

    spared = []  # of SLOWER

    def __init__(self, source, room, mutants):
        self.source = source
        self.code = source.code
        self.room = room
        self.mutants = mutants
        self.edits = []  # (offset, rank, end, text)
        self.functions = find_functions(self.code)
        self.names = {}

    def number(self, name, kind, offset):
        if (self.room, name, kind) in SLOWER:
            self.spared.append((self.room, name, kind))
            return -1
        line = self.source.line_of(offset)
        self.mutants.append((len(self.mutants) + 1, self.room, name, line, kind))
        return len(self.mutants)

    def before(self, offset, text):
        self.edits.append((offset, 1, len(self.edits), offset, text))

    def after(self, offset, text):
        self.edits.append((offset, 0, -len(self.edits), offset, text))

    def replace(self, begin, end, text):
        self.edits.append((begin, 2, len(self.edits), end, text))

    def function_at(self, offset):
        for name, begin, end in self.functions:
            if begin < offset < end:
                return name, begin, end
        return None

    def named(self, offset, what):
        """A name for what has no label: its function, and which one of them it is."""
        function = self.function_at(offset)
        name = f"{function[0] if function else 'class'}:{what}"
        self.names[name] = self.names.get(name, 0) + 1
        return name if self.names[name] == 1 else f"{name} {self.names[name]}"

    def run(self):
        labelled = [o for o in self.source.operations if o.orders]
        spared = [o for o in labelled if o.label is not None and o.label.name in SPARED]
        seen = {}
        for o in labelled:
            where = f"{self.room}:{o.line}"
            if o.label is None:
                raise Fault(f"{where}: {o.method}() has no label")
            if o.label.name in seen:
                raise Fault(f"{where}: label [{o.label.name}] is in line {seen[o.label.name]} too")
            seen[o.label.name] = o.line
        labelled = [o for o in labelled if o not in spared]
        self.break_waits()  # first: what it closes encloses what the next one closes
        self.break_conditions(labelled)
        for o in labelled:
            self.break_order(o)
            self.break_rmw(o)
            self.remove(o)
        self.break_calls()
        self.break_locks()
        return self.render()

    # --- orders and operations -------------------------------------------------------

    def break_order(self, o):
        for i, (begin, end, order) in enumerate(o.orders):
            full = self.code.rfind("std::", 0, begin)
            if self.code[full:begin] != "std::":
                raise Fault(f"{self.room}:{o.line}: an order without std::")
            text = f"std::memory_order_{order}"
            for weaker in WEAKER.get(order, []):
                kind = f"{order} -> {weaker}" if i == 0 else f"failure {order} -> {weaker}"
                number = self.number(o.label.name, kind, o.begin)
                text = f"(::pmgate_mutants::active == {number} ? std::memory_order_{weaker} : {text})"
            if order in WEAKER:
                self.replace(full, end, text)

    def break_rmw(self, o):
        # Under a lock there is nothing to tear.
        if not VALUE_USED.match(o.method) or "the lock orders it" in o.label.text:
            return
        begin = object_begin(self.code, o.begin)
        if self.code[o.begin:o.begin + 1] != ".":
            return
        number = self.number(o.label.name, "torn", o.begin)
        self.before(begin, "::pmgate_mutants::rmw(")
        self.after(o.begin, f", {number})")

    def remove(self, o):
        statement = self.statement_of(object_begin(self.code, o.begin), o.close + 1)
        if statement is None or not re.match(r"store|fetch_|exchange", o.method):
            return
        self.guard(statement, self.number(o.label.name, "removed", o.begin))

    def statement_of(self, begin, end):
        """(begin, end) if [(void)]expression; is all there is to the statement."""
        lead = re.search(r"(?:\(void\)\s*)?$", self.code[:begin])
        start = lead.start()
        previous = self.code[:start].rstrip()
        stop = re.match(r"\s*;", self.code[end:])
        if stop is None or not previous or previous[-1] not in ";{})":
            return None
        return start, end + stop.end()

    def guard(self, statement, number):
        self.before(statement[0], f"{{ if (::pmgate_mutants::active != {number}) ")
        self.after(statement[1], " }")

    # --- conditions and loops --------------------------------------------------------

    def break_conditions(self, labelled):
        """Conditions on a labelled operation, or on a variable that one of them gave."""
        for m in re.finditer(r"\b(if|while)\s*\(", self.code):
            open_ = m.end() - 1
            close = check_ordering.closing(self.code, open_)
            label = self.label_in(labelled, open_, close)
            if label is None:
                continue
            self.names[label] = self.names.get(label, 0) + 1
            which = "" if self.names[label] == 1 else f" {self.names[label]}"
            never = self.number(label.name, "never" + which, open_)
            text = f"(::pmgate_mutants::active != {never} && "
            end = ")"
            if m.group(1) == "if":
                always = self.number(label.name, "always" + which, open_)
                text = f"(::pmgate_mutants::active == {always} || {text}"
                end = "))"
            self.before(open_, text)
            self.after(close + 1, end)

    def label_in(self, labelled, open_, close):
        inside = [o for o in labelled if open_ < o.begin < close]
        if inside:
            return inside[0].label
        function = self.function_at(open_)
        if function is None:
            return None
        condition = self.code[open_:close]
        found = None
        for o in labelled:
            if not function[1] < o.begin < open_:
                continue
            variable = re.search(r"\b(\w+)\s*(?<![=!<>])=\s*$", self.code[:object_begin(self.code, o.begin)])
            if variable and re.search(r"\b" + variable.group(1) + r"\b", condition):
                found = o.label
        return found

    def break_waits(self):
        """Loops that wait in their body look once."""
        for m in re.finditer(r"\bwhile\s*\(", self.code):
            begin, open_ = m.start(), m.end() - 1
            close = check_ordering.closing(self.code, open_)
            if self.code[:begin].rstrip().endswith("}") and re.match(r"\s*;", self.code[close + 1:]):
                continue  # do ... while
            body = self.code[close + 1:statement_end(self.code, close + 1)]
            if not re.search(r"\b(?:wait|wait_until|sleep)\s*\(", body):
                continue
            number = self.number(self.named(begin, "wait"), "once", begin)
            self.replace(begin, begin + len("while"),
                         "for (bool pmgate_again = true; (pmgate_again || "
                         f"::pmgate_mutants::active != {number}) && ")
            self.after(close + 1, "; pmgate_again = false)")

    # --- calls without an order ------------------------------------------------------

    def break_calls(self):
        for m in re.finditer(r"(?:\.|->)\s*(wake_all|settle|publish_add)\s*\(", self.code):
            begin = object_begin(self.code, m.start())
            end = check_ordering.closing(self.code, m.end() - 1) + 1
            what = m.group(1)
            if what == "publish_add":
                name = self.named(m.start(), "publish")
                first = self.number(name, "lost wake", m.start())
                self.number(name, "touched", m.start())
                self.number(name, "woken first", m.start())
                if self.code.startswith("->", m.start()):
                    self.before(begin, "::pmgate_mutants::publishing(*")
                    self.replace(m.start(), m.start() + 2, f", {first}).")
                else:
                    self.before(begin, "::pmgate_mutants::publishing(")
                    self.after(m.start(), f", {first})")
                continue
            statement = self.statement_of(begin, end)
            if statement is None:
                raise Fault(f"{self.room}:{self.source.line_of(begin)}: {what}() is not a statement")
            kind = "lost wake" if what == "wake_all" else "not settled"
            self.guard(statement, self.number(self.named(m.start(), what), kind, m.start()))
        for m in re.finditer(r"\bPlatform::(after_grace_period|synchronize|heavy_fence|light_fence)\s*\(",
                             self.code):
            self.break_grace(m)

    def break_grace(self, m):
        end = check_ordering.closing(self.code, m.end() - 1) + 1
        argument = self.code[m.end():end - 1].strip()
        name = self.named(m.start(), "grace period")
        if m.group(1) == "light_fence":
            statement = self.statement_of(m.start(), end)
            self.guard(statement, self.number(name, "no fence", m.start()))
            return
        skipped = self.number(name, "no grace period", m.start())
        unheeded = self.number(name, "refusal unheeded", m.start())
        active = "::pmgate_mutants::active"
        run = (f"::pmgate_mutants::run_now(static_cast<grace_callback&>({argument}))") if argument else "true"
        granted = ""
        if argument:
            number = self.number(name, "refusal taken for granted", m.start())
            granted = f" || ({active} == {number} && {run})"
        self.before(m.start(), f"({active} == {skipped} ? {run} : (")
        self.after(end, f" || {active} == {unheeded}{granted}))")

    def break_locks(self):
        for m in re.finditer(r"const scoped_lock (\w+)\(([^;{}]*)\);", self.code):
            number = self.number(self.named(m.start(), "lock"), "unlocked", m.start())
            self.replace(m.start(), m.start() + len("const scoped_lock"), "const ::pmgate_mutants::lock_unless")
            self.after(m.end() - 2, f", {number}")

    def render(self):
        text, out, at = self.source.text, [], 0
        for offset, _, _, end, replacement in sorted(self.edits):
            if offset < at:
                raise Fault(f"{self.room}:{self.source.line_of(offset)}: two changes of one place")
            out += [text[at:offset], replacement]
            at = end
        out.append(text[at:])
        result = "".join(out)
        return re.sub(r"(#include <)", "#include <pmgate_mutants.hpp>\n\\1", result, count=1)


def opening(code, at):
    """Offset of the bracket that the one at `at` closes."""
    pairs = {")": "(", "}": "{", "]": "["}
    depth, close, open_ = 0, code[at], pairs[code[at]]
    for i in range(at, -1, -1):
        if code[i] == close:
            depth += 1
        elif code[i] == open_:
            depth -= 1
            if depth == 0:
                return i
    return 0


def object_begin(code, at):
    """Where the object expression begins that ends at `at`."""
    i = at
    while True:
        j = len(code[:i].rstrip())
        if j and code[j - 1] in ")]":
            i = opening(code, j - 1)
        elif m := re.search(r"[\w:]+$", code[:j]):
            i = m.start()
            if re.fullmatch(r"return|if|while", m.group()):
                return m.end() + len(code[m.end():]) - len(code[m.end():].lstrip())
        else:
            return i
        j = len(code[:i].rstrip())
        if code[:j].endswith("->"):
            i = j - 2
        elif code[:j].endswith("."):
            i = j - 1
        elif not re.match(r"[(\[]", code[i:]):
            return i
        elif not re.search(r"[\w>]$", code[:j]):
            return i


def statement_end(code, at):
    at += len(code[at:]) - len(code[at:].lstrip())
    if code[at] == "{":
        return check_ordering.closing(code, at) + 1
    while code[at] != ";":
        at = check_ordering.closing(code, at) + 1 if code[at] in "({[" else at + 1
    return at + 1


def find_functions(code):
    """[(name, begin, end)] of the bodies of functions, lambdas in them not counted."""
    found = []
    i = 0
    while (i := code.find("{", i)) != -1:
        head_begin = max(code.rfind(c, 0, i) for c in ";}{") + 1
        # A default member initialiser or a brace in an initialiser list ends no head.
        head = re.sub(r"^\s*(?:public|private|protected)\s*:", "", code[head_begin:i])
        head = re.sub(r"template\s*<[^{}]*?>\s*(?=\n|inline|\w)", "", head)
        head = re.sub(r"\[\[[^\]]*\]\]", "", head)
        m = re.search(r"(~?\w+)\s*\(", head)
        kind = re.search(r"\b(namespace|class|struct|enum|union|concept|requires)\b", head)
        if m and not (kind and kind.start() < m.start()) and m.group(1) not in ("if", "while", "for", "switch", "asm"):
            end = check_ordering.closing(code, i)
            found.append((m.group(1), i, end))
            i = end
        i += 1
    return found


def watch_locks(header):
    """What a lock guards is written by whoever takes it, or should have taken it."""
    text = header.read_text(encoding="utf-8")
    for old, new in (
            ("e->lock(cell_);\n  }\n",
             "e->lock(cell_);\n    if (::pmgate_mutants::watching) touch();\n  }\n"
             "  void touch() noexcept { kept_.write(0); }\n"),
            ("e->unlock(cell_);\n  }\n\nprivate:\n",
             "e->unlock(cell_);\n  }\n\nprivate:\n  guarded<int> kept_;\n"),
            ("#include <", "#include <pmgate_mutants.hpp>\n#include <")):
        if old not in text:
            raise Fault(f"{header}: not found: {old}")
        text = text.replace(old, new, 1)
    header.write_text(text, encoding="utf-8")


def chosen(root):
    names = set()
    for pattern in ROOMS:
        names |= {p.relative_to(root).as_posix() for p in root.glob(pattern)}
    return sorted(names - set(ELSEWHERE))


def main(arguments):
    if len(arguments) != 2:
        print("usage: make_mutants.py <include folder> <output folder>", file=sys.stderr)
        return 2
    include, output = map(pathlib.Path, arguments)
    rooms = chosen(include / "pmgate")
    for needed in ("percpu_ref.hpp", "block/freeze_gate.hpp", "block/quiesce_gate.hpp"):
        if needed not in rooms:
            raise Fault(f"{include}/pmgate/{needed} does not exist")
    copy = output / "include"
    mutants = []
    changed = {}
    for room in rooms:
        source = check_ordering.Source(room, (include / "pmgate" / room).read_text(encoding="utf-8"))
        changed[room] = Mutator(source, room, mutants).run()
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(include, copy)
    for room, text in changed.items():
        (copy / "pmgate" / room).write_text(text, encoding="utf-8")
    (copy / "pmgate_mutants.hpp").write_text(SELECTOR, encoding="utf-8")
    watch_locks(copy / "pmgate/platform/sim_memory.hpp")
    for entry in set(SLOWER) - set(Mutator.spared):
        raise Fault(f"{entry[0]}: [{entry[1]}] {entry[2]} of SLOWER is not made any more")
    names = [(room, name, kind) for _, room, name, _, kind in mutants]
    for name in names:
        if names.count(name) > 1:
            raise Fault(f"{name[0]}: [{name[1]}] {name[2]} is made twice")
    lines = ["// index, header, label, line, kind\n"]
    lines += [f'{{{n}, "{room}", "{name}", {line}, "{kind}"}},\n' for n, room, name, line, kind in mutants]
    (output / "mutants.inc").write_text("".join(lines), encoding="utf-8")
    print(f"{len(mutants)} mutants of {len(rooms)} headers")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Fault as fault:
        print(f"make_mutants: {fault}", file=sys.stderr)
        sys.exit(1)
