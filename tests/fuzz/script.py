# SPDX-License-Identifier: MIT
"""A script: operations that actors issue one after another, and what the model
says that each of them does."""
from models.world import World, text_of
from table import row_of


class Account:
    """What the script owns of an object, so that it gives back no more than that."""

    def __init__(self, kind, name):
        self.kind, self.name = kind, name
        self.model = None
        self.state = None               # of a request
        self.users = 0                  # references, entries
        self.freezes = self.pm = self.quiesces = 0
        self.busy = 0                   # operations on it that have not returned
        self.entering = 0               # those of them that ask the gate
        self.rpm = "active"             # what runtime PM may call next
        self.removed = self.gone = False  # the removal of a queue has begun, has ended
        self.exits = False              # on_release=exit
        self.options = ()               # with which it was made


class Script:
    """Issues legal operations to the model, and keeps its answers as a trace."""

    def __init__(self, statistics=None):
        self.world = World()
        self.sim = self.world.sim
        self.accounts = {}              # by the name of the object
        self.by_kind = {"R": [], "Q": [], "D": [], "H": []}
        self.requests = {"allocated": [], "dispatched": []}
        self.made = 0                   # requests
        self.making = False             # a queue, which may take its time
        self.readers = []               # actors in a read section
        self.pending = {}               # actor -> (task, row, words), while it is blocked
        self.ops = []                   # (actor, text)
        self.lines = []                 # of the trace
        self.issue_lines = []           # numbers, one for each operation
        self.unordered = []             # numbers of those whose events have no order
        self.failure = None             # the model failed
        self.statistics = statistics

    # -- what generators and the table of operations ask
    def account_of(self, words):
        return self.accounts.get(words[1]) if len(words) > 1 else None

    def legal(self, actor, words):
        row = row_of(words)
        if row is None or actor in self.pending or self.failure:
            return False
        if row.creates:
            return row.legal(self, None, words, actor)
        if row.kinds:
            account = self.account_of(words)
            if account is None or account.kind not in row.kinds or account.gone:
                return False
            return row.legal(self, account, words, actor)
        return row.legal(self, None, words, actor)

    # -- operations
    def issue(self, actor, text):
        """Performs a legal operation."""
        words = text.split()
        row = row_of(words)
        account = self.account_of(words)
        if self.statistics is not None:
            self.statistics.before(self, account, words)
        self.ops.append((actor, text))
        self.lines.append(f"{actor}> {text}")
        self.issue_lines.append(len(self.lines))
        if row.begin:
            row.begin(self, account, words, actor)
        if account is not None:
            account.busy += 1
            account.entering += row.enters

        sim = self.sim
        sim.begin_window()
        try:
            task = sim.spawn(actor, self.world.perform(actor, words))
            self.pending[actor] = task, row, words
            sim.settle()
        except Exception as error:
            self.failure = f"the model failed: {error!r}"
            self.lines.pop()
            self.ops.pop()
            self.issue_lines.pop()
            return
        self._collect(actor)

    def _collect(self, issuer):
        for event in self.sim.events:
            self.lines.append("! " + event)
            words = event.split()
            if words[0] in ("queue_rq", "queuecommand") and len(words) == 3:
                self.move_request(words[2], "dispatched")
        if self.sim.contended:
            self.unordered.append(self.issue_lines[-1])
        returned = 0
        for name in sorted(self.pending):
            task, row, words = self.pending[name]
            if task.finished:
                returned += 1
                result = text_of(task.result)
                self.lines.append(f"{name}= {result}")
                del self.pending[name]
                self._returned(row, words, result)
            elif name == issuer:
                self.lines.append(f"{name}= blocked")
                if self.statistics is not None:
                    self.statistics.result(words[0], "blocked")
        self.lines += self.world.new_states()
        if self.statistics is not None:
            self.statistics.after(self, returned)

    def _returned(self, row, words, result):
        account = self.account_of(words)
        if row.end:
            row.end(self, account, words, result)
        if account is not None and not row.creates:
            account.busy -= 1
            account.entering -= row.enters
        if self.statistics is not None:
            self.statistics.result(words[0], result)

    # -- accounts
    def add_account(self, kind, name, model):
        account = Account(kind, name)
        account.model = model
        if name not in self.accounts and kind in self.by_kind:
            self.by_kind[kind].append(account)
        elif kind in self.by_kind:
            self.by_kind[kind] = [account if a.name == name else a for a in self.by_kind[kind]]
        self.accounts[name] = account
        return account

    def move_request(self, name, state):
        account = self.accounts.get(name)
        if account is None:
            account = self.add_account("N", name, None)
        if account.state in self.requests:
            self.requests[account.state].remove(name)
        account.state = state
        if state in self.requests:
            self.requests[state].append(name)

    # -- texts
    def trace(self, title):
        return f"# {title}\n" + "\n".join(self.lines) + "\n"

    def window_of(self, line):
        """The numbers of the first line of the window of a line, and of the one behind it."""
        behind = [n for n in self.issue_lines if n > line] + [len(self.lines) + 1]
        first = max([n for n in self.issue_lines if n <= line], default=1)
        return first, behind[0]


def predict(ops):
    """The legal operations among `ops`, in their order, with what the model says."""
    script = Script()
    for actor, text in ops:
        words = text.split()
        if script.legal(actor, words):
            script.issue(actor, text)
        if script.failure:
            break
    return script
