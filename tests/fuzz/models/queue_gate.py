# SPDX-License-Identifier: MIT
"""The gate and the dispatch of a Linux request queue.

One hardware queue, no I/O scheduler.  Operations that may sleep are generators.
"""
from .percpu_ref import PercpuRef
from .sim import Mutex, WaitQueue, GracePeriods

EAGAIN, EBUSY, EIO, ENODEV, ETIMEDOUT = "-EAGAIN", "-EBUSY", "-EIO", "-ENODEV", "-ETIMEDOUT"
ERRNO = {"OK": 0, "IOERR": EIO, "TIMEOUT": ETIMEDOUT, "AGAIN": EAGAIN}
RESOURCE_DELAY_MS = 3
MIN_SHARE = 4                           # tags of one queue in a shared tag set, at least


class TagSet:
    def __init__(self, sim, depth, blocking):
        self.depth, self.blocking = depth, blocking
        self.free = depth
        self.queues = []
        self.wq = WaitQueue(sim)
        self.dispatch_sections = GracePeriods(sim) if blocking else sim.rcu

    def may_have(self, queue, held):
        """May a queue have one more tag, where queues hold so many (by queue)?"""
        if len(self.queues) < 2 or self.depth < 2:
            return True
        users = sum(count > 0 or member is queue for member, count in held.items())
        return held[queue] < max(-(-self.depth // users), MIN_SHARE)


class Request:
    def __init__(self, queue, name, bio):
        self.queue, self.name, self.bio = queue, name, bio
        self.tag = False
        self.waiter = None              # of blk_execute_rq
        self.done = None                # its status


class Work:
    """A work item: queued at most once, never running twice at a time."""

    def __init__(self, sim, name, fn):
        self.sim, self.name, self.fn = sim, name, fn
        self.timer, self.pending, self.running = None, False, False

    def queue(self, ms=0):
        if self.pending:
            return
        self.pending = True
        if ms:
            self.timer = self.sim.after(ms, self._start)
        else:
            self._start()

    def requeue(self, ms):
        """As queue(), but moves the time of a pending run."""
        self.cancel()
        self.queue(ms)

    def cancel(self):
        if self.timer:
            self.timer[2] = None
            self.timer, self.pending = None, False

    def _start(self):
        self.timer = None
        if not self.running:
            self.running = True
            self.sim.spawn(self.name, self._loop())

    def _loop(self):
        while self.pending and not self.timer:
            self.pending = False
            yield from self.fn()
        self.running = False


class Queue:
    def __init__(self, sim, name, tagset, pm):
        self.sim, self.name, self.tagset, self.dev = sim, name, tagset, pm
        self.freeze_wq = WaitQueue(sim)
        self.usage = PercpuRef(sim, self.freeze_wq.wake_all, atomic=True)
        self.freeze_lock = Mutex(sim)
        self.freeze_depth = self.pm_only = self.quiesce_depth = 0
        self.rpm = "ACTIVE"
        self.dying = self.disk_dead = False
        self.stopped = False
        # dispatch
        self.dispatch_list, self.sw_list, self.requeue_list = [], [], []
        self.restart = False            # run again when a request is freed
        self.run_work = Work(sim, f"run {name}", self.dispatch)
        self.requeue_work = Work(sim, f"requeue {name}", self.run_requeues)
        self.active = 0                 # requests that hold a tag
        self.busy_left, self.busy_status = 0, None
        self.hold, self.hold_wq = False, WaitQueue(sim)

    # ------------------------------------------------------------ the gate
    def try_enter(self, pm):
        if not self.usage.tryget_live():
            return False
        if self.pm_only != 0 and (not pm or self.rpm == "SUSPENDED"):
            self.usage.put()
            return False
        return True

    def pm_may_pass(self, pm):
        if not self.dev or self.pm_only == 0:
            return True
        if pm and self.rpm != "SUSPENDED":
            return True
        self.sim.emit_once_per_actor(f"pm_request_resume {self.name}")
        return False

    def _wait_open(self, pm, dead):
        before = self.sim.steps
        yield from self.freeze_wq.wait(
            lambda: (self.freeze_depth == 0 and self.pm_may_pass(pm)) or dead())
        if before == self.sim.steps and not dead():     # so does the kernel
            raise RuntimeError("enter spins: it neither gets in nor sleeps")

    def enter(self, nowait=False, pm=False):
        while not self.try_enter(pm):
            if nowait:
                return EAGAIN
            yield from self._wait_open(pm, lambda: self.dying)
            if self.dying:
                return ENODEV
        return 0

    def bio_enter(self, nowait):
        while not self.try_enter(False):
            if nowait:
                return ENODEV if self.disk_dead else EAGAIN
            yield from self._wait_open(False, lambda: self.disk_dead)
            if self.disk_dead:
                return ENODEV
        return 0

    def exit(self):
        self.usage.put()

    # ------------------------------------------------------------ freeze
    def freeze_start(self):
        yield from self.freeze_lock.lock()
        self.freeze_depth += 1
        first = self.freeze_depth == 1
        if first:
            yield from self.usage.kill()
        self.freeze_lock.unlock()
        if first:
            yield from self.run_hw_queues(False)

    def freeze_wait(self):
        yield from self.freeze_wq.wait(self.usage.is_zero)

    def freeze_wait_timeout(self, ms):
        ok = yield from self.freeze_wq.wait(self.usage.is_zero, ms)
        return ">0" if ok else 0

    def freeze(self):
        yield from self.freeze_start()
        yield from self.freeze_wait()

    def unfreeze(self, force_atomic=False):
        yield from self.freeze_lock.lock()
        if force_atomic:
            self.usage.force_atomic = True
        self.freeze_depth -= 1
        if self.freeze_depth < 0:
            self.sim.warn_once("unfreeze_negative")
        if self.freeze_depth == 0:
            yield from self.usage.resurrect()
            self.freeze_wq.wake_all()
        self.freeze_lock.unlock()

    def start_drain(self):
        yield from self.freeze_start()
        self.tagset.wq.wake_all()
        self.freeze_wq.wake_all()

    def mark_disk_dead(self):
        self.dying = True
        if not self.disk_dead:
            self.disk_dead = True
            yield from self.start_drain()

    def del_gendisk(self):
        yield from self.mark_disk_dead()
        yield from self.freeze_wait()
        yield from self.quiesce()
        yield from self.unquiesce()

    def destroy(self):
        self.dying = True
        yield from self.start_drain()
        yield from self.freeze_wait()
        yield from self.leave_tagset()

    # ------------------------------------------------------------ pm
    def set_pm_only(self):
        self.pm_only += 1

    def clear_pm_only(self):
        self.pm_only -= 1
        if self.pm_only < 0:
            self.sim.warn_once("pm_only_negative")
        if self.pm_only == 0:
            self.freeze_wq.wake_all()

    def pre_runtime_suspend(self):
        if not self.dev:
            return 0
        if self.rpm != "ACTIVE":
            self.sim.warn_once("suspend_not_active")
        self.rpm = "SUSPENDING"
        self.set_pm_only()
        yield from self.freeze_start()
        yield from self.usage.switch_to_atomic_sync()
        idle = self.usage.is_zero()
        yield from self.unfreeze()
        if idle:
            return 0
        self.rpm = "ACTIVE"
        self.clear_pm_only()
        return EBUSY

    def post_runtime_suspend(self, err):
        if self.dev:
            if err:
                self.rpm = "ACTIVE"
                self.clear_pm_only()
            else:
                self.rpm = "SUSPENDED"

    def pre_runtime_resume(self):
        if self.dev:
            self.rpm = "RESUMING"

    def post_runtime_resume(self):
        if self.dev:
            old, self.rpm = self.rpm, "ACTIVE"
            if old != "ACTIVE":
                self.clear_pm_only()

    # ------------------------------------------------------------ quiesce
    def quiesce_nowait(self):
        self.quiesce_depth += 1

    def wait_quiesce_done(self):
        yield from self.tagset.dispatch_sections.synchronize()

    def quiesce(self):
        self.quiesce_nowait()
        yield from self.wait_quiesce_done()

    def unquiesce(self):
        if self.quiesce_depth <= 0:
            self.sim.warn_once("unquiesce_not_quiesced")
            return
        self.quiesce_depth -= 1
        if self.quiesce_depth == 0:
            yield from self.run_hw_queues(True)

    # ------------------------------------------------------------ tags
    def _take_tag(self):
        tagset = self.tagset
        if not tagset.free or not tagset.may_have(self, {q: q.active for q in tagset.queues}):
            return False
        self.tagset.free -= 1
        self.active += 1
        return True

    def get_tag(self, nowait):
        while not self._take_tag():
            if nowait:
                return False
            yield from self.run_hw_queue(False)
            took = []
            yield from self.tagset.wq.wait(lambda: took or self._try(took))
            return True
        return True

    def _try(self, took):
        if self._take_tag():
            took.append(1)
        return bool(took)

    def alloc(self, name, nowait, pm, bio=False):
        """-> Request, or an errno"""
        err = yield from (self.bio_enter(nowait) if bio else self.enter(nowait, pm))
        if err:
            return err
        if not (yield from self.get_tag(nowait)):
            self.exit()
            return EAGAIN
        return Request(self, name, bio)

    def free_request(self, rq):
        self.active -= 1
        self.tagset.free += 1
        self.tagset.wq.wake_one()
        if self.restart:
            self.restart = False
            self.kick()
        self.exit()

    # ------------------------------------------------------------ dispatch
    def insert(self, rq, at_head):
        if rq.bio:
            where = self.sw_list
        else:
            where = self.dispatch_list
        where.insert(0 if at_head else len(where), rq)

    def execute_nowait(self, rq, at_head):
        self.insert(rq, at_head)
        yield from self.run_hw_queue(self.tagset.blocking)

    def _need_run(self):
        return not self.quiesce_depth and (self.dispatch_list or self.sw_list)

    def kick(self, ms=0):
        """Run the hardware queue later, from its work item."""
        if self._need_run() and not self.stopped:
            self.run_work.requeue(ms)

    def run_hw_queue(self, asynchronous):
        if not self._need_run():
            return
        if asynchronous:
            self.kick()
        else:
            yield from self.dispatch()

    def run_hw_queues(self, asynchronous):
        if not self.stopped:
            yield from self.run_hw_queue(asynchronous)

    def stop_hw_queues(self):
        self.run_work.cancel()
        self.stopped = True

    def start_stopped_hw_queues(self):
        if self.stopped:
            self.stopped = False
            yield from self.run_hw_queue(True)

    def dispatch(self):
        section = object()
        self.tagset.dispatch_sections.lock(section)
        if not self.stopped and not self.quiesce_depth:
            again = yield from self._dispatch_once()
            if again:
                again = yield from self._dispatch_once()
                if again:
                    self.kick()
        self.tagset.dispatch_sections.unlock(section)

    def _dispatch_once(self):
        """True: requests came onto the dispatch list meanwhile."""
        if self.dispatch_list:
            batch, self.dispatch_list = self.dispatch_list, []
            self.restart = True
            if not (yield from self._dispatch_batch(batch)):
                return False
            while True:
                if self.dispatch_list:
                    return True
                if not self.sw_list:
                    return False
                if not (yield from self._dispatch_batch([self.sw_list.pop(0)])):
                    return False
        batch, self.sw_list = self.sw_list, []
        yield from self._dispatch_batch(batch)
        return False

    def _dispatch_batch(self, batch):
        """False: the driver refused one; it and what is behind it are put back."""
        status = "OK"
        while batch:
            status = yield from self.queue_rq(batch[0])
            if status != "OK":
                break
            batch.pop(0)
        if not batch:
            return True
        self.dispatch_list += batch
        if not self.restart:
            self.kick()
        elif status == "RESOURCE":
            self.kick(RESOURCE_DELAY_MS)
        return False

    def queue_rq(self, rq):
        if self.busy_left:
            self.busy_left -= 1
            self.sim.emit(f"queue_rq {self.name} {rq.name} {self.busy_status}")
            return self.busy_status
        self.sim.emit(f"queue_rq {self.name} {rq.name}")
        if self.hold:
            yield from self.hold_wq.wait(lambda: not self.hold)
            self.sim.emit(f"queue_rq_return {self.name} {rq.name}")
        return "OK"

    def complete(self, rq, status):
        if rq.waiter:
            rq.done = status
            rq.waiter.wake_all()
            return
        self.sim.emit(f"{'bi_' if rq.bio else ''}end_io {rq.name} {status}")
        self.free_request(rq)

    def execute(self, rq, at_head):
        rq.waiter = WaitQueue(self.sim)
        yield from self.execute_nowait(rq, at_head)
        yield from rq.waiter.wait(lambda: rq.done)
        self.free_request(rq)
        return ERRNO[rq.done]

    def requeue(self, rq):
        self.requeue_list.append(rq)
        self.requeue_work.queue()

    def run_requeues(self):
        batch, self.requeue_list = self.requeue_list, []
        for rq in batch:
            self.insert(rq, True)
        yield from self.run_hw_queues(False)

    def submit_bio(self, name, nowait, register):
        if self.disk_dead:              # capacity 0: refused before it asks the gate
            rq = ENODEV
        else:
            rq = yield from self.alloc(name, nowait, False, bio=True)
        if not isinstance(rq, Request):
            self.sim.emit(f"bi_end_io {name} {'AGAIN' if rq == EAGAIN else 'IOERR'}")
            return
        register(rq)
        yield from self.issue_bio(rq)

    def issue_bio(self, rq):
        if self.stopped or self.quiesce_depth:
            self.insert(rq, False)
            yield from self.run_hw_queue(False)
            return
        section = object()
        self.tagset.dispatch_sections.lock(section)
        status = yield from self.queue_rq(rq)
        if status != "OK":
            self.dispatch_list.append(rq)
            yield from self.run_hw_queue(False)
        self.tagset.dispatch_sections.unlock(section)

    # ------------------------------------------------------------ tag sets
    def join_tagset(self):
        others = self.tagset.queues
        if len(others) == 1:
            yield from self._refreeze(others)
        self.tagset.queues = others + [self]

    def leave_tagset(self):
        self.tagset.queues = [q for q in self.tagset.queues if q is not self]
        if len(self.tagset.queues) == 1:
            yield from self._refreeze(self.tagset.queues)

    @staticmethod
    def _refreeze(queues):
        for q in queues:
            yield from q.freeze()
            yield from q.unfreeze()

    def state(self):
        return (f"freeze_depth={self.freeze_depth} pm_only={self.pm_only} "
                f"quiesce_depth={self.quiesce_depth} dying={'true' if self.dying else 'false'} "
                f"rpm={self.rpm} usage: {self.usage.state()}")
