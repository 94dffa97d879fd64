# SPDX-License-Identifier: MIT
"""The objects of one script, and the operations on them by the names of the traces."""
from types import GeneratorType

from .percpu_ref import PercpuRef
from .queue_gate import Queue, Request, TagSet
from .scsi import Host
from .sim import Sim


def text_of(value):
    if value is None:
        return "void"
    if value is True or value is False:
        return "true" if value else "false"
    return str(value)


class World:
    def __init__(self):
        self.sim = Sim()
        self.refs = {}
        self.queues = {}                # in the order in which they were made
        self.requests = {}
        self.devices = {}               # of the host; in this order
        self.host = None
        self.printed = {}

    def perform(self, actor, words):
        """The generator that performs one operation; its value is the result."""
        args, options = [], {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if equals:
                options[key] = value
            else:
                args.append(word)
        name = words[0]
        if name in WORLD_CALLS:
            result = WORLD_CALLS[name](self, actor, args, options)
        elif args[0] in self.devices:
            result = DEVICE_CALLS[name](self.devices[args[0]], args, options)
        elif self.host and args[0] == "h":
            result = HOST_CALLS[name](self.host, args)
        elif self.host:
            result = self.host.complete(args[0], int(args[1], 0))
        elif args[0] in self.refs:
            result = REF_CALLS[name](self, self.refs[args[0]], args, options)
        elif args[0] in self.queues:
            result = QUEUE_CALLS[name](self, self.queues[args[0]], args, options)
        else:
            rq = self.requests[args[0]]
            result = REQUEST_CALLS[name](rq.queue, rq, args, options)
        if isinstance(result, GeneratorType):
            result = yield from result
        return result

    def new_states(self):
        """Lines for the objects whose state is not the one last printed."""
        lines = []
        for objects in (sorted(self.refs.items()), self.queues.items()):
            for name, obj in objects:
                self._add_state(lines, name, obj.state())
        for name, device in self.devices.items():
            self._add_state(lines, name, device.describe())
        if self.host:
            self._add_state(lines, "h", self.host.describe())
        return lines

    def _add_state(self, lines, name, state):
        if self.printed.get(name) != state:
            self.printed[name] = state
            lines.append(f"~ {name} {state}")

    # -- objects
    def new_ref(self, name, options):
        flags = options["flags"].split("|")
        exits = options.get("on_release") == "exit"

        def release():
            self.sim.emit(f"release {name}")
            if exits:
                ref.exit()
        ref = PercpuRef(self.sim, release, "ATOMIC" in flags, "DEAD" in flags,
                        "ALLOW_REINIT" in flags)
        self.refs[name] = ref
        return 0

    def new_queue(self, name, options):
        if "share" in options:
            tagset = self.queues[options["share"]].tagset
        else:
            tagset = TagSet(self.sim, int(options.get("depth", 8)), options.get("blocking") == "1")
        queue = Queue(self.sim, name, tagset, options.get("pm") == "1")
        yield from queue.join_tagset()
        if options["kind"] == "disk":
            yield from queue.usage.switch_to_percpu()
        self.queues[name] = queue
        return 0

    def new_host(self, options):
        self.host = Host(self.sim, **{name: int(value) for name, value in options.items()})
        self.devices = {device.name: device for device in self.host.devices}
        return 0

    def confirm(self, name):
        return lambda: self.sim.emit(f"confirm {name}")

    # -- requests
    def alloc(self, queue, name, nowait, pm):
        rq = yield from queue.alloc(name, nowait, pm)
        if not isinstance(rq, Request):
            return rq
        self.requests[name] = rq
        return 0

    def submit(self, queue, name, nowait, pm, at_head):
        error = yield from self.alloc(queue, name, nowait, pm)
        if error:
            return error
        yield from queue.execute_nowait(self.requests[name], at_head)
        return 0

    def submit_bio(self, queue, name, nowait):
        return queue.submit_bio(name, nowait, lambda rq: self.requests.__setitem__(name, rq))


def nowait(options):
    return "NOWAIT" in options.get("flags", "")


def pm(options):
    return "PM" in options.get("flags", "")


def at_head(options):
    return options.get("at_head") == "1"


def set_busy(queue, args):
    queue.busy_left = int(args[1])
    queue.busy_status = args[2] if len(args) > 2 else "RESOURCE"


def set_hold(queue, hold):
    queue.hold = hold
    if not hold:
        queue.hold_wq.wake_all()


def quiesce_tagset(queue):
    for member in queue.tagset.queues:
        member.quiesce_nowait()
    yield from queue.wait_quiesce_done()


def unquiesce_tagset(queue):
    for member in queue.tagset.queues:
        yield from member.unquiesce()


# One line for each operation: what the model does.
WORLD_CALLS = {
    "rcu_read_lock": lambda w, who, a, o: w.sim.rcu.lock(who),
    "rcu_read_unlock": lambda w, who, a, o: w.sim.rcu.unlock(who),
    "synchronize_rcu": lambda w, who, a, o: w.sim.rcu.synchronize(),
    "percpu_ref_init": lambda w, who, a, o: w.new_ref(a[0], o),
    "new_queue": lambda w, who, a, o: w.new_queue(a[0], o),
    "new_host": lambda w, who, a, o: w.new_host(o),
}
REF_CALLS = {
    "percpu_ref_exit": lambda w, r, a, o: r.exit(),
    "percpu_ref_get": lambda w, r, a, o: r.get(),
    "percpu_ref_get_many": lambda w, r, a, o: r.get(int(a[1])),
    "percpu_ref_tryget": lambda w, r, a, o: r.tryget(),
    "percpu_ref_tryget_many": lambda w, r, a, o: r.tryget(int(a[1])),
    "percpu_ref_tryget_live": lambda w, r, a, o: r.tryget_live(),
    "percpu_ref_put": lambda w, r, a, o: r.put(),
    "percpu_ref_put_many": lambda w, r, a, o: r.put(int(a[1])),
    "percpu_ref_kill": lambda w, r, a, o: r.kill(),
    "percpu_ref_kill_and_confirm": lambda w, r, a, o: r.kill(w.confirm(a[0])),
    "percpu_ref_switch_to_atomic":
        lambda w, r, a, o: r.switch_to_atomic(w.confirm(a[0]) if "confirm" in a else None),
    "percpu_ref_switch_to_atomic_sync": lambda w, r, a, o: r.switch_to_atomic_sync(),
    "percpu_ref_switch_to_percpu": lambda w, r, a, o: r.switch_to_percpu(),
    "percpu_ref_resurrect": lambda w, r, a, o: r.resurrect(),
    "percpu_ref_reinit": lambda w, r, a, o: r.reinit(),
    "percpu_ref_is_dying": lambda w, r, a, o: r.is_dying(),
    "percpu_ref_is_zero": lambda w, r, a, o: r.is_zero(),
}
QUEUE_CALLS = {
    "percpu_ref_is_dying": lambda w, q, a, o: q.usage.is_dying(),
    "percpu_ref_is_zero": lambda w, q, a, o: q.usage.is_zero(),
    "blk_queue_enter": lambda w, q, a, o: q.enter(nowait(o), pm(o)),
    "blk_try_enter_queue": lambda w, q, a, o: q.try_enter(o["pm"] == "1"),
    "blk_queue_exit": lambda w, q, a, o: q.exit(),
    "blk_freeze_queue_start": lambda w, q, a, o: q.freeze_start(),
    "blk_freeze_queue_start_non_owner": lambda w, q, a, o: q.freeze_start(),
    "blk_mq_freeze_queue": lambda w, q, a, o: q.freeze(),
    "blk_mq_freeze_queue_wait": lambda w, q, a, o: q.freeze_wait(),
    "blk_mq_freeze_queue_wait_timeout": lambda w, q, a, o: q.freeze_wait_timeout(int(a[1])),
    "blk_mq_unfreeze_queue": lambda w, q, a, o: q.unfreeze(),
    "blk_mq_unfreeze_queue_non_owner": lambda w, q, a, o: q.unfreeze(),
    "__blk_mq_unfreeze_queue": lambda w, q, a, o: q.unfreeze(o["force_atomic"] == "1"),
    "blk_queue_start_drain": lambda w, q, a, o: q.start_drain(),
    "blk_mark_disk_dead": lambda w, q, a, o: q.mark_disk_dead(),
    "del_gendisk": lambda w, q, a, o: q.del_gendisk(),
    "blk_mq_destroy_queue": lambda w, q, a, o: q.destroy(),
    "blk_set_pm_only": lambda w, q, a, o: q.set_pm_only(),
    "blk_clear_pm_only": lambda w, q, a, o: q.clear_pm_only(),
    "blk_pre_runtime_suspend": lambda w, q, a, o: q.pre_runtime_suspend(),
    "blk_post_runtime_suspend": lambda w, q, a, o: q.post_runtime_suspend(int(a[1])),
    "blk_pre_runtime_resume": lambda w, q, a, o: q.pre_runtime_resume(),
    "blk_post_runtime_resume": lambda w, q, a, o: q.post_runtime_resume(),
    "blk_mq_quiesce_queue": lambda w, q, a, o: q.quiesce(),
    "blk_mq_quiesce_queue_nowait": lambda w, q, a, o: q.quiesce_nowait(),
    "blk_mq_wait_quiesce_done": lambda w, q, a, o: q.wait_quiesce_done(),
    "blk_mq_unquiesce_queue": lambda w, q, a, o: q.unquiesce(),
    "blk_mq_quiesce_tagset": lambda w, q, a, o: quiesce_tagset(q),
    "blk_mq_unquiesce_tagset": lambda w, q, a, o: unquiesce_tagset(q),
    "blk_mq_run_hw_queues": lambda w, q, a, o: q.run_hw_queues(o["async"] == "1"),
    "blk_mq_stop_hw_queues": lambda w, q, a, o: q.stop_hw_queues(),
    "blk_mq_start_stopped_hw_queues": lambda w, q, a, o: q.start_stopped_hw_queues(),
    "set_busy": lambda w, q, a, o: set_busy(q, a),
    "hold_dispatch": lambda w, q, a, o: set_hold(q, True),
    "release_dispatch": lambda w, q, a, o: set_hold(q, False),
    "blk_queue_dying": lambda w, q, a, o: q.dying,
    "blk_queue_quiesced": lambda w, q, a, o: q.quiesce_depth > 0,
    "blk_queue_pm_only": lambda w, q, a, o: q.pm_only != 0,
    "blk_mq_alloc_request": lambda w, q, a, o: w.alloc(q, a[1], nowait(o), pm(o)),
    "submit": lambda w, q, a, o: w.submit(q, a[1], nowait(o), pm(o), at_head(o)),
    "submit_bio": lambda w, q, a, o: w.submit_bio(q, a[1], nowait(o)),
}
REQUEST_CALLS = {
    "blk_mq_free_request": lambda q, rq, a, o: q.free_request(rq),
    "blk_execute_rq": lambda q, rq, a, o: q.execute(rq, at_head(o)),
    "blk_execute_rq_nowait": lambda q, rq, a, o: q.execute_nowait(rq, at_head(o)),
    "complete": lambda q, rq, a, o: q.complete(rq, a[1] if len(a) > 1 else "OK"),
    "blk_mq_requeue_request": lambda q, rq, a, o: q.requeue(rq),
}
DEVICE_CALLS = {
    "force_state": lambda d, a, o: d.force_state(a[1]),
    "scsi_device_set_state": lambda d, a, o: d.set_state(a[1]),
    "scsi_device_quiesce": lambda d, a, o: d.quiesce(),
    "scsi_device_resume": lambda d, a, o: d.resume(),
    "scsi_target_quiesce": lambda d, a, o: d.host.target_quiesce(d.target),
    "scsi_target_resume": lambda d, a, o: d.host.target_resume(d.target),
    "scsi_target_unblock": lambda d, a, o: d.host.target_unblock(d.target, a[1]),
    "scsi_internal_device_block_nowait": lambda d, a, o: d.block_nowait(),
    "scsi_internal_device_unblock_nowait": lambda d, a, o: d.unblock_nowait(a[1]),
    "scsi_remove_device": lambda d, a, o: d.remove(),
    "scsi_device_online": lambda d, a, o: d.online(),
    "scsi_device_blocked": lambda d, a, o: d.state_blocked(),
    "scsi_device_created": lambda d, a, o: d.created(),
    "blk_mq_run_hw_queues": lambda d, a, o: d.queue.run_async(),
    "blk_queue_enter": lambda d, a, o: d.queue.enter(pm(o), nowait(o)),
    "blk_queue_exit": lambda d, a, o: d.queue.exit(),
    "scsi_execute_cmd": lambda d, a, o: d.execute(a[1], pm(o), nowait(o),
                                                  "FAIL_IF_RECOVERING" in o.get("flags", "")),
}
HOST_CALLS = {
    "scsi_host_block": lambda h, a: h.block(),
    "scsi_host_unblock": lambda h, a: h.unblock(a[1]),
    "scsi_block_targets": lambda h, a: h.block_targets(),
    "scsi_target_unblock": lambda h, a: h.target_unblock(None, a[1]),
    "scsi_block_requests": lambda h, a: h.block_requests(),
    "scsi_unblock_requests": lambda h, a: h.unblock_requests(),
    "force_host_state": lambda h, a: h.force_state(a[1]),
    "scsi_host_set_state": lambda h, a: h.set_state(a[1]),
    "scsi_host_in_recovery": lambda h, a: h.in_recovery(),
    "scsi_host_scan_allowed": lambda h, a: h.scan_allowed(),
    "set_busy": lambda h, a: setattr(h, "refusals", int(a[1])),
}
