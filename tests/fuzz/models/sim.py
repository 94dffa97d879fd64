# SPDX-License-Identifier: MIT
"""Cooperative threads, wait queues, mutexes, grace periods and virtual time.

An operation is a generator; it yields while it sleeps.  One task runs at a time and
is never interrupted: a task that it wakes runs after it has slept or finished.
"""
from collections import deque
import heapq
import itertools


class Task:
    """`part`: what it belongs to, if its order among tasks of other parts is nobody's business."""

    def __init__(self, name, gen, part=None):
        self.name, self.gen, self.part = name, gen, part
        self.finished, self.result = False, None
        self.queued = False             # in the ready list


class Sim:
    SETTLE_MS = 400                     # virtual time that passes after each operation

    def __init__(self):
        self.ready = deque()
        self.timers = []
        self.now = 0
        self.steps = 0                  # how often a task was let run
        self.seq = itertools.count()
        self.cur = None
        self.events = []                # of the current window
        self.once = set()               # events of this window emitted at most once
        self.warned = set()             # WARN_ONCE, per scenario
        self.contended = False          # several tasks could run at a time in this window
        self.polls = 0                  # how often somebody polled
        self.idle_polls = 0             # in a row, by those who go on
        self.domains = []
        self.rcu = GracePeriods(self)

    # -- reporting
    def begin_window(self):
        self.events, self.once, self.contended = [], set(), False
        self.moves()

    def emit(self, text):
        self.events.append(text)
        self.moves()

    def emit_once_per_actor(self, text):
        key = (self.cur.name, text)
        if key not in self.once:
            self.once.add(key)
            self.emit(text)

    def warn_once(self, what):
        if what not in self.warned:
            self.warned.add(what)
            self.emit("WARN " + what)

    # -- tasks
    def spawn(self, name, gen, part=None):
        task = Task(name, gen, part)
        self.wake(task)
        return task

    def wake(self, task):
        if not task.finished and not task.queued:
            task.queued = True
            if any(None in (task.part, other.part) or task.part == other.part
                   for other in self.ready):
                self.contended = True
            self.ready.append(task)
            self.moves()

    def after(self, ms, fn, every=0):
        entry = [self.now + ms, next(self.seq), fn, every]
        heapq.heappush(self.timers, entry)
        return entry

    def poll(self, ms, fn):
        """As after(), for who looks after `ms` and if it is in vain does the same once more."""
        self.polls += 1
        return self.after(ms, fn, ms)

    def moves(self):
        """To be told of all that may end what a poll finds."""
        self.idle_polls = 0

    def _step(self):
        task = self.ready.popleft()
        task.queued = False
        self.cur = task
        self.steps += 1
        try:
            next(task.gen)
        except StopIteration as stop:
            task.finished, task.result = True, stop.value
        self.cur = None

    def settle(self):
        """Run until nothing moves: threads first, then grace periods, then timers."""
        horizon = self.now + self.SETTLE_MS
        while True:
            if self.ready:
                self._step()
            elif any(d.advance() for d in self.domains):
                pass
            elif self.timers and self.timers[0][0] <= horizon:
                self._fire(horizon)
            else:
                break
        self.now = horizon

    def _fire(self, horizon):
        if self.idle_polls > len(self.timers) and all(entry[3] for entry in self.timers):
            # Each was in vain: so would be all until then. Who has had his turn keeps it.
            for entry in sorted(self.timers, key=lambda entry: (-entry[0], entry[1])):
                entry[0] += max(0, (horizon - entry[0]) // entry[3] + 1) * entry[3]
                entry[1] = next(self.seq)
            heapq.heapify(self.timers)
            return
        when, _, fn, every = heapq.heappop(self.timers)
        self.now = max(self.now, when)
        before, self.idle_polls = self.polls, self.idle_polls + 1
        if fn:
            fn()
        if not every or self.polls == before:
            self.moves()                # a timer of another kind, or somebody gave it up


class WaitQueue:
    def __init__(self, sim):
        self.sim, self.sleepers = sim, []

    def wait(self, cond, ms=None):
        """Sleep until cond() (True) or ms have passed (False).  cond() is evaluated
        once before sleeping and then at each wake-up only."""
        me, expired = self.sim.cur, []
        timer = None
        if ms is not None:
            timer = self.sim.after(ms, lambda: (expired.append(1), self.sim.wake(me)))
        while True:
            self.sleepers.append(me)
            ok = cond()
            if ok or expired:
                self.sleepers.remove(me)
                if timer:
                    timer[2] = None
                return bool(ok)
            yield
            if me in self.sleepers:     # woken by the timer
                self.sleepers.remove(me)

    def wake_all(self):
        woken, self.sleepers = self.sleepers, []
        for task in woken:
            self.sim.wake(task)

    def wake_one(self):
        if self.sleepers:
            self.sim.wake(self.sleepers.pop(0))


class Mutex:
    def __init__(self, sim):
        self.held, self.wq = False, WaitQueue(sim)

    def lock(self):
        yield from self.wq.wait(lambda: not self.held)
        self.held = True

    def unlock(self):
        self.held = False
        self.wq.wake_one()


class GracePeriods:
    """One grace period at a time.  It waits for the readers inside when it begins;
    callbacks queued meanwhile belong to the next one."""

    def __init__(self, sim):
        self.sim = sim
        self.readers = []
        self.current = None             # (blocking readers, callbacks)
        self.queued = []
        sim.domains.append(self)

    def lock(self, who):
        self.readers.append(who)

    def unlock(self, who):
        self.readers.remove(who)
        if self.current and who not in self.readers:
            self.current[0].discard(who)

    def call(self, fn):
        self.queued.append(fn)

    def advance(self):
        if self.current:
            blockers, callbacks = self.current
            if blockers:
                return False
            self.current = None
            for fn in callbacks:
                fn()
            return True
        if self.queued:
            self.current = (set(self.readers), self.queued)
            self.queued = []
            return True
        return False

    def synchronize(self):
        done, wq = [], WaitQueue(self.sim)
        self.call(lambda: (done.append(1), wq.wake_all()))
        yield from wq.wait(lambda: done)
