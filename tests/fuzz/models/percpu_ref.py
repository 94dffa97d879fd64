# SPDX-License-Identifier: MIT
"""Linux percpu_ref.  The slots are kept as their (modular) sum."""
from .sim import WaitQueue

WORD = 1 << 64
BIAS = 1 << 63
TEXT = {False: "false", True: "true"}


def signed(raw):
    raw %= WORD
    return raw - WORD if raw >= BIAS else raw


class PercpuRef:
    def __init__(self, sim, release, atomic=False, dead=False, allow_reinit=False):
        self.sim, self.release = sim, release
        self.atomic = atomic or dead
        self.dead = dead
        self.allow_reinit = allow_reinit or self.atomic
        self.force_atomic = atomic
        self.slots = 0
        self.have_slots = True
        self.raw = 0 if dead else 1 if atomic else (BIAS + 1) % WORD
        self.confirm_switch = None      # not None: a switch to atomic is in flight
        self.exited = False
        self.final = None               # the count remembered by exit
        self.switch_wq = WaitQueue(sim)

    # -- references
    def _add(self, n):
        if self.atomic or self.dead:
            self.raw = (self.raw + n) % WORD
        else:
            self.slots = (self.slots + n) % WORD

    def get(self, n=1):
        self._add(n)

    def tryget(self, n=1):
        if (self.atomic or self.dead) and self.raw == 0:
            return False
        self._add(n)
        return True

    def tryget_live(self):
        return not self.dead and self.tryget()

    def put(self, n=1):
        self._add(-n)
        if (self.atomic or self.dead) and self.raw == 0:
            self.release()

    # -- mode
    def _wait_switch(self):
        yield from self.switch_wq.wait(lambda: self.confirm_switch is None)

    def _choose_mode(self, confirm=None):
        """The common tail of kill, switch_* and resurrect: what is asked for is decided
        after the wait, from what holds then."""
        yield from self._wait_switch()
        if self.force_atomic or self.dead:
            self._to_atomic(confirm)
        else:
            self._to_percpu()

    def _to_atomic(self, confirm):
        if self.atomic:
            if confirm:
                confirm()
            return
        self.atomic = True
        self.confirm_switch = confirm or (lambda: None)
        self.raw = (self.raw + 1) % WORD            # the switch reference
        self.sim.rcu.call(self._switched)

    def _switched(self):
        self.raw = (self.raw + self.slots - BIAS) % WORD    # the slots keep their values
        if signed(self.raw) <= 0:
            self.sim.warn_once("ref_underflow")
        self.confirm_switch()
        self.confirm_switch = None
        self.switch_wq.wake_all()
        if not self.allow_reinit:
            self.have_slots = False
            self.slots = 0
            self.atomic = self.dead = True
        self.put()

    def _to_percpu(self):
        if not self.atomic:
            return
        assert self.have_slots, "fatal: no slots"
        if not self.allow_reinit:
            self.sim.warn_once("ref_percpu_no_reinit")
            return
        self.raw = (self.raw + BIAS) % WORD
        self.slots = 0
        self.atomic = False

    def kill(self, confirm=None):
        if self.dead:
            self.sim.warn_once("ref_kill_twice")
        self.dead = True
        yield from self._choose_mode(confirm)
        self.put()

    def switch_to_atomic(self, confirm=None):
        self.force_atomic = True
        yield from self._choose_mode(confirm)

    def switch_to_atomic_sync(self):
        yield from self.switch_to_atomic()
        yield from self._wait_switch()

    def switch_to_percpu(self):
        self.force_atomic = False
        yield from self._choose_mode()

    def resurrect(self):
        if not self.dead:
            self.sim.warn_once("ref_resurrect_live")
        if not self.atomic:
            self.sim.warn_once("ref_resurrect_percpu")
        self.dead = False
        self.get()
        yield from self._choose_mode()

    def reinit(self):
        if not self.is_zero():
            self.sim.warn_once("ref_reinit_not_zero")
        yield from self.resurrect()

    def exit(self):
        if not self.exited:
            self.exited = True
            self.final = (self.raw << 2) % WORD
            self.atomic = self.dead = True

    def is_dying(self):
        return self.dead

    def is_zero(self):
        if self.exited:
            return self.final == 0
        return self.atomic and self.raw == 0

    # -- as the traces print it (the count of a misused ref, too)
    def state(self):
        if self.exited:
            return "exited"
        count = self.raw
        if count & BIAS:
            count = signed(count - BIAS + self.slots)
        return (f"mode={'atomic' if self.atomic else 'percpu'} dying={TEXT[self.dead]} "
                f"zero={TEXT[self.is_zero()]} switching={TEXT[self.confirm_switch is not None]} "
                f"force_atomic={int(self.force_atomic)} count={count}")
