# SPDX-License-Identifier: MIT
"""Faults that --self-test plants in the models, to see them found and shrunk."""
from contextlib import contextmanager

from models.percpu_ref import PercpuRef
from models.queue_gate import EAGAIN, ENODEV, Queue
from models.scsi import EINVAL, OK, Device, DeviceQueue, Host


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


def quiesce_of_blocked(self, state, right=Device.set_state):
    if (self.state, state) == ("BLOCK", "QUIESCE"):
        self.state = state
    return right(self, state)


def resume_keeps_pm_only(self):
    if self.state == "QUIESCE":
        self.state = "RUNNING"
    self.quiesced_by = None


def resume_restores_nothing(self):
    if self.quiesced_by:
        self.quiesced_by = None
        self.queue.clear_pm_only()


def blocks_are_counted(self):
    self.queue_stopped = 1
    self.queue.quiesce_depth += 1


def unblock_asks_the_table(self, new):
    if new not in ("RUNNING", "TRANSPORT_OFFLINE") or self.set_state(new):
        return EINVAL
    self.start_queue()
    return 0


def offline_passes(self, command, right=Device.state_check):
    return OK if self.state == "OFFLINE" else right(self, command)


def recovery_holds_nothing(self, command):
    return OK


def host_block_goes_on(self):
    result = 0
    for device in self.devices:
        if device.gettable():
            result = device.block_nowait() or result
    yield from self.sim.rcu.synchronize()
    return result


def held_go_in_order(self, command):
    self.held.append(command)
    self.run()


def removal_leaves_stopped(self):
    if self.state != "DEL":
        self.state = "DEL"
        yield from self.queue.destroy()


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
    Fault("a blocked device may be quiesced", "scsi_state", 5, Device, "set_state",
          quiesce_of_blocked),
    Fault("resume forgets pm_only", "scsi_state", 3, Device, "resume", resume_keeps_pm_only),
    Fault("resume leaves the state", "scsi_state", 3, Device, "resume", resume_restores_nothing),
    Fault("blocks of a device are counted", "scsi_state", 3, Device, "stop_queue",
          blocks_are_counted),
    Fault("unblock obeys the table of states", "scsi_state", 3, Device, "unblock_nowait",
          unblock_asks_the_table),
    Fault("an offline device takes commands", "scsi_state", 3, Device, "state_check",
          offline_passes),
    Fault("a removal leaves the queue stopped", "scsi_state", 5, Device, "remove",
          removal_leaves_stopped),
    Fault("held commands go out in order", "scsi_state", 6, DeviceQueue, "insert_at_head",
          held_go_in_order),
    Fault("a host in recovery takes commands", "scsi_host", 3, Host, "recovery_check",
          recovery_holds_nothing),
    Fault("a host is blocked beyond a device that refuses", "scsi_host", 5, Host, "block",
          host_block_goes_on),
]
