# SPDX-License-Identifier: MIT
"""Faults that --self-test plants in the models, to see them found and shrunk."""
from contextlib import contextmanager

from models.percpu_ref import PercpuRef
from models.queue_gate import EAGAIN, ENODEV, Queue


class Fault:
    """`most`: operations that are left of a script that shows it, at most."""

    def __init__(self, name, room, most, owner, method, faulty):
        self.name, self.room, self.most = name, room, most
        self.owner, self.method, self.faulty = owner, method, faulty

    @contextmanager
    def planted(self):
        right = getattr(self.owner, self.method)
        setattr(self.owner, self.method, self.faulty)
        try:
            yield
        finally:
            setattr(self.owner, self.method, right)


def kill_keeps_initial(self, confirm=None):
    self.dead = True
    yield from self._choose_mode(confirm)


def tryget_live_of_dying(self):
    return self.tryget()


def resurrect_to_percpu(self):
    self.dead = False
    self.get()
    self.force_atomic = False
    yield from self._choose_mode()


def choose_mode_at_once(self, confirm=None):
    if self.force_atomic or self.dead:
        self._to_atomic(confirm)
    else:
        self._to_percpu()
    yield from ()


def confirm_is_kept(self, confirm=None):
    yield from self._wait_switch()
    if self.force_atomic or self.dead:
        self._to_atomic(confirm)
    else:
        self._to_percpu()
        if confirm:
            confirm()


def unfreeze_ignores_nesting(self, force_atomic=False):
    yield from self.freeze_lock.lock()
    if force_atomic:
        self.usage.force_atomic = True
    self.freeze_depth = 0
    if self.usage.dead:
        yield from self.usage.resurrect()
    self.freeze_wq.wake_all()
    self.freeze_lock.unlock()


def pm_is_refused(self, pm):
    if not self.usage.tryget_live():
        return False
    if self.pm_only != 0:
        self.usage.put()
        return False
    return True


def pm_only_wakes_nobody(self):
    self.pm_only -= 1


def unquiesce_ends_all(self):
    if self.quiesce_depth > 0:
        self.quiesce_depth = 0
        yield from self.run_hw_queues(True)


def death_is_not_told(self, nowait=False, pm=False):
    while not self.try_enter(pm):
        if nowait:
            return ENODEV if self.dying else EAGAIN
        yield from self._wait_open(pm, lambda: self.dying)
        if self.dying:
            return ENODEV
    return 0


def freed_tag_wakes_nobody(self, rq):
    self.active -= 1
    self.tagset.free += 1
    if self.restart:
        self.restart = False
        self.kick()
    self.exit()


def force_atomic_is_dropped(self, force_atomic=False):
    yield from self.freeze_lock.lock()
    self.freeze_depth -= 1
    if self.freeze_depth == 0:
        yield from self.usage.resurrect()
        self.freeze_wq.wake_all()
    self.freeze_lock.unlock()


FAULTS = [
    Fault("kill keeps the initial reference", "percpu_ref", 2, PercpuRef, "kill",
          kill_keeps_initial),
    Fault("tryget_live takes a dying ref", "percpu_ref", 4, PercpuRef, "tryget_live",
          tryget_live_of_dying),
    Fault("resurrect forgets the switch to atomic", "percpu_ref", 4, PercpuRef, "resurrect",
          resurrect_to_percpu),
    Fault("who changes the mode does not wait for a switch", "percpu_ref", 4, PercpuRef,
          "_choose_mode", choose_mode_at_once),
    Fault("the confirmation of an undone kill is called", "percpu_ref", 10, PercpuRef,
          "_choose_mode", confirm_is_kept),
    Fault("unfreeze ignores nesting", "queue", 6, Queue, "unfreeze", unfreeze_ignores_nesting),
    Fault("a PM enter is refused like any other", "queue", 3, Queue, "try_enter", pm_is_refused),
    Fault("clear_pm_only wakes nobody", "queue", 7, Queue, "clear_pm_only", pm_only_wakes_nobody),
    Fault("quiesces are not counted", "queue", 4, Queue, "unquiesce", unquiesce_ends_all),
    Fault("a NOWAIT enter of a dead disk tells of its death", "queue", 4, Queue, "enter",
          death_is_not_told),
    Fault("a freed tag wakes nobody", "queue", 8, Queue, "free_request", freed_tag_wakes_nobody),
    Fault("unfreeze drops the wish for atomic mode", "queue", 3, Queue, "unfreeze",
          force_atomic_is_dropped),
]
