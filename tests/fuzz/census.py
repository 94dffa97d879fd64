# SPDX-License-Identifier: MIT
"""Counts what scripts contain: operations, results, and situations of interest."""
from collections import Counter


def ops(*names):
    return frozenset(names)


KILL = ops("percpu_ref_kill", "percpu_ref_kill_and_confirm")
BACK = ops("percpu_ref_resurrect", "percpu_ref_reinit")
GET = ops("percpu_ref_get", "percpu_ref_get_many", "percpu_ref_tryget", "percpu_ref_tryget_many")
PUT = ops("percpu_ref_put", "percpu_ref_put_many")
TO_ATOMIC = ops("percpu_ref_switch_to_atomic", "percpu_ref_switch_to_atomic_sync")
TO_PERCPU = ops("percpu_ref_switch_to_percpu")
ENTER = ops("blk_queue_enter", "blk_mq_alloc_request", "submit", "submit_bio")
FREEZE = ops("blk_freeze_queue_start", "blk_freeze_queue_start_non_owner", "blk_mq_freeze_queue",
             "blk_queue_start_drain")
UNFREEZE = ops("blk_mq_unfreeze_queue", "blk_mq_unfreeze_queue_non_owner",
               "__blk_mq_unfreeze_queue")
WAIT = ops("blk_mq_freeze_queue", "blk_mq_freeze_queue_wait", "blk_mq_freeze_queue_wait_timeout")
QUIESCE = ops("blk_mq_quiesce_queue", "blk_mq_quiesce_queue_nowait", "blk_mq_quiesce_tagset")
UNQUIESCE = ops("blk_mq_unquiesce_queue", "blk_mq_unquiesce_tagset")
DRAIN = ops("blk_queue_start_drain", "blk_mark_disk_dead")
PM_ON = ops("blk_set_pm_only")
PM_OFF = ops("blk_clear_pm_only")
SUSPEND = ops("blk_pre_runtime_suspend")
RESUMED = ops("blk_post_runtime_resume")
REMOVE = ops("del_gendisk", "blk_mq_destroy_queue")


def switching(m):
    return m.confirm_switch is not None


def entrants_blocked(s):
    return sum(row.enters for _, row, _ in s.pending.values())


# Name, operations, and what holds when one of them is issued: of the script, and the
# model of the object.
SITUATIONS = [
    ("kill of a ref in percpu mode", KILL, lambda s, m: not m.atomic),
    ("kill of a ref in atomic mode", KILL, lambda s, m: m.atomic and not switching(m)),
    ("kill while a switch is under way", KILL, lambda s, m: switching(m)),
    ("kill while a resurrect waits", KILL, lambda s, m: switching(m) and s.pending),
    ("resurrect or reinit of a ref at zero", BACK, lambda s, m: m.is_zero()),
    ("resurrect of a ref in use", BACK, lambda s, m: not m.is_zero() and not switching(m)),
    ("resurrect of a ref whose kill is not confirmed", BACK, lambda s, m: switching(m)),
    ("resurrect of a ref that stays atomic", BACK, lambda s, m: m.force_atomic),
    ("switch to atomic of a dying ref", TO_ATOMIC, lambda s, m: m.dead),
    ("switch to atomic while another is under way", TO_ATOMIC, lambda s, m: switching(m)),
    ("switch to percpu while a switch is under way", TO_PERCPU, lambda s, m: switching(m)),
    ("switch to percpu of a dying ref", TO_PERCPU, lambda s, m: m.dead),
    ("switch to percpu of a live atomic ref", TO_PERCPU, lambda s, m: m.atomic and not m.dead),
    ("get while a switch is under way", GET, lambda s, m: switching(m)),
    ("put while a switch is under way", PUT, lambda s, m: switching(m)),
    ("put of the last reference", PUT, lambda s, m: m.dead and m.atomic and m.raw == 1),
    ("tryget of a ref at zero", GET, lambda s, m: m.is_zero()),
    ("exit of a ref", ops("percpu_ref_exit"), lambda s, m: True),
    ("enter of a frozen queue", ENTER, lambda s, m: m.freeze_depth > 0),
    ("enter of a pm_only queue", ENTER, lambda s, m: m.pm_only > 0 and m.freeze_depth == 0),
    ("enter of a queue both frozen and pm_only", ENTER,
     lambda s, m: m.pm_only > 0 and m.freeze_depth > 0),
    ("enter while an unfreeze waits for a switch", ENTER,
     lambda s, m: m.freeze_depth == 0 and switching(m.usage)),
    ("enter of a dead disk", ENTER, lambda s, m: m.dying),
    ("freeze nested in another", FREEZE, lambda s, m: m.freeze_depth > 0),
    ("freeze of a queue in use", FREEZE, lambda s, m: s.accounts[m.name].users > 0),
    ("freeze with requests in flight", FREEZE, lambda s, m: m.active > 0),
    ("freeze while a switch is under way", FREEZE, lambda s, m: switching(m.usage)),
    ("freeze while a reader holds grace periods", FREEZE, lambda s, m: s.readers),
    ("unfreeze that leaves the queue frozen", UNFREEZE, lambda s, m: m.freeze_depth > 1),
    ("unfreeze while a switch is under way", UNFREEZE, lambda s, m: switching(m.usage)),
    ("unfreeze with enterers asleep", UNFREEZE,
     lambda s, m: m.freeze_depth == 1 and entrants_blocked(s) > 0),
    ("unfreeze of a pm_only queue", UNFREEZE, lambda s, m: m.freeze_depth == 1 and m.pm_only),
    ("unfreeze with a freeze wait asleep", UNFREEZE,
     lambda s, m: any(words[0] in WAIT for _, _, words in s.pending.values())),
    ("wait for a drained queue", WAIT, lambda s, m: m.usage.is_zero()),
    ("wait for a queue in use", WAIT, lambda s, m: not m.usage.is_zero()),
    ("exit that drains a frozen queue", ops("blk_queue_exit"),
     lambda s, m: m.usage.dead and m.usage.atomic and m.usage.raw == 1),
    ("exit while a reader holds the freeze", ops("blk_queue_exit"),
     lambda s, m: switching(m.usage)),
    ("drain with enterers asleep", DRAIN, lambda s, m: entrants_blocked(s) > 0),
    ("death with enterers asleep", ops("blk_mark_disk_dead"),
     lambda s, m: entrants_blocked(s) > 0),
    ("death of a frozen queue", ops("blk_mark_disk_dead"), lambda s, m: m.freeze_depth > 0),
    ("pm_only set again", PM_ON, lambda s, m: m.pm_only > 0),
    ("pm_only set on a frozen queue", PM_ON, lambda s, m: m.freeze_depth > 0),
    ("last pm_only cleared with enterers asleep", PM_OFF,
     lambda s, m: m.pm_only == 1 and m.freeze_depth == 0 and entrants_blocked(s) > 0),
    ("suspend check of an idle queue", SUSPEND,
     lambda s, m: m.dev and s.accounts[m.name].users == 0 and m.active == 0),
    ("suspend check of a queue in use", SUSPEND,
     lambda s, m: m.dev and (s.accounts[m.name].users > 0 or m.active > 0)),
    ("suspend check of a frozen queue", SUSPEND, lambda s, m: m.dev and m.freeze_depth > 0),
    ("enter of a suspended queue", ENTER, lambda s, m: m.rpm == "SUSPENDED"),
    ("resume with enterers asleep", RESUMED, lambda s, m: m.dev and entrants_blocked(s) > 0),
    ("removal of a queue in use", REMOVE, lambda s, m: not m.usage.is_zero()),
    ("removal with enterers asleep", REMOVE, lambda s, m: entrants_blocked(s) > 0),
    ("request of a driver that sleeps", ENTER, lambda s, m: m.hold),
    ("request of a shared tag set", ENTER, lambda s, m: len(m.tagset.queues) > 1),
    ("quiesce nested in another", QUIESCE, lambda s, m: m.quiesce_depth > 0),
    ("quiesce while a reader holds grace periods", QUIESCE, lambda s, m: s.readers),
    ("unquiesce that leaves the queue quiesced", UNQUIESCE, lambda s, m: m.quiesce_depth > 1),
    ("unquiesce with requests to dispatch", UNQUIESCE,
     lambda s, m: m.quiesce_depth == 1 and (m.dispatch_list or m.sw_list)),
    ("start of a stopped queue with requests to dispatch", ops("blk_mq_start_stopped_hw_queues"),
     lambda s, m: m.stopped and (m.dispatch_list or m.sw_list)),
    ("request of a queue without free tags", ENTER, lambda s, m: m.tagset.free == 0),
    ("tag freed while several wait for one",
     ops("complete", "blk_mq_free_request"), lambda s, m: len(m.tagset.wq.sleepers) > 1),
    ("tag of a shared set freed while several wait",
     ops("complete", "blk_mq_free_request"),
     lambda s, m: len(m.tagset.queues) > 1 and len(m.tagset.wq.sleepers) > 1),
    ("request of a busy driver", ENTER, lambda s, m: m.busy_left > 0),
    ("request of a quiesced queue", ENTER, lambda s, m: m.quiesce_depth > 0),
    ("request of a stopped queue", ENTER, lambda s, m: m.stopped),
]

DEVICE_QUIESCE = ops("scsi_device_quiesce", "scsi_target_quiesce")
RESUME = ops("scsi_device_resume", "scsi_target_resume")
BLOCK = ops("scsi_internal_device_block_nowait")
UNBLOCK = ops("scsi_internal_device_unblock_nowait")
SEND = ops("scsi_execute_cmd")
COMPLETE = ops("complete")
HOST_BLOCK = ops("scsi_host_block", "scsi_block_targets")
HOST_UNBLOCK = ops("scsi_host_unblock")


def in_flight(d):
    return any(command.device is d for command in d.host.in_flight.values())


def states(host):
    return {d.state for d in host.devices}


# The same for hosts and devices; of a command, the model of its device.
SCSI_SITUATIONS = [
    ("command to a RUNNING device", SEND, lambda s, d: d.state == "RUNNING"),
    ("command to a CREATED device", SEND, lambda s, d: d.state == "CREATED"),
    ("command to a quiesced device", SEND, lambda s, d: d.quiesced_by),
    ("command to a device that is QUIESCE by state only", SEND,
     lambda s, d: d.state == "QUIESCE" and not d.quiesced_by),
    ("command to a stopped device", SEND, lambda s, d: d.queue_stopped),
    ("command to a device that is BLOCK by state only", SEND,
     lambda s, d: d.state_blocked() and not d.queue_stopped),
    ("command to a stopped device that is not BLOCK", SEND,
     lambda s, d: d.queue_stopped and not d.state_blocked()),
    ("command to a device that is offline", SEND,
     lambda s, d: d.state in ("OFFLINE", "TRANSPORT_OFFLINE")),
    ("command to a CANCEL device", SEND, lambda s, d: d.state == "CANCEL"),
    ("command to a DEL device", SEND, lambda s, d: d.state == "DEL"),
    ("command to a device that was removed", SEND, lambda s, d: d.queue.dying),
    ("command behind others that are held", SEND, lambda s, d: d.queue.held),
    ("command to a device with all it takes", SEND, lambda s, d: d.busy >= d.depth),
    ("command to a device in its countdown", SEND, lambda s, d: d.blocked),
    ("command to a host in recovery", SEND, lambda s, d: d.host.in_recovery()),
    ("command to a host that is self-blocked", SEND, lambda s, d: d.host.self_blocked),
    ("command to a host in its countdown", SEND, lambda s, d: d.host.blocked),
    ("command to a host that refuses", SEND, lambda s, d: d.host.refusals),
    ("command to a host in CREATED or CANCEL", SEND,
     lambda s, d: d.host.state in ("CREATED", "CANCEL")),
    ("command to a host in DEL", SEND, lambda s, d: d.host.state == "DEL"),
    ("completion in recovery", COMPLETE, lambda s, d: d.host.in_recovery()),
    ("completion at a stopped device", COMPLETE, lambda s, d: d.queue_stopped),
    ("completion that drains a device", COMPLETE,
     lambda s, d: d.queue.freeze_depth and d.queue.usage == 1),
    ("completion with commands held", COMPLETE, lambda s, d: d.queue.held),
    ("quiesce of a device in use", DEVICE_QUIESCE, lambda s, d: d.queue.usage),
    ("quiesce of a device with commands held", DEVICE_QUIESCE, lambda s, d: d.queue.held),
    ("quiesce of a device quiesced already", DEVICE_QUIESCE, lambda s, d: d.quiesced_by),
    ("quiesce while another one drains", DEVICE_QUIESCE, lambda s, d: d.queue.freeze_depth),
    ("quiesce of a stopped device", DEVICE_QUIESCE, lambda s, d: d.queue_stopped),
    ("quiesce from a state that forbids it", DEVICE_QUIESCE,
     lambda s, d: d.state in ("CREATED", "BLOCK", "CREATED_BLOCK", "CANCEL", "DEL")),
    ("quiesce of a device while a reader holds grace periods", DEVICE_QUIESCE,
     lambda s, d: s.readers),
    ("resume of a device with enterers asleep", RESUME, lambda s, d: d.queue.waiters.sleepers),
    ("resume while a quiesce drains", RESUME, lambda s, d: d.queue.freeze_depth),
    ("resume of a device that is not QUIESCE any more", RESUME,
     lambda s, d: d.quiesced_by and d.state != "QUIESCE"),
    ("block of a device with commands in flight", BLOCK, lambda s, d: in_flight(d)),
    ("block of a quiesced device", BLOCK, lambda s, d: d.quiesced_by),
    ("block again", BLOCK, lambda s, d: d.queue_stopped),
    ("block of a device that cannot be blocked", BLOCK,
     lambda s, d: d.state in ("TRANSPORT_OFFLINE", "CANCEL", "DEL")),
    ("block from CREATED or CREATED_BLOCK", BLOCK, lambda s, d: d.created()),
    ("unblock with commands held", UNBLOCK, lambda s, d: d.queue.held),
    ("unblock of a device that is not blocked", UNBLOCK, lambda s, d: not d.state_blocked()),
    ("unblock of a stopped device in RUNNING or QUIESCE", UNBLOCK,
     lambda s, d: d.queue_stopped and d.state in ("RUNNING", "QUIESCE")),
    ("unblock of CREATED_BLOCK", UNBLOCK, lambda s, d: d.state == "CREATED_BLOCK"),
    ("removal of a device in use", ops("scsi_remove_device"), lambda s, d: d.queue.usage),
    ("removal of a stopped device with commands held", ops("scsi_remove_device"),
     lambda s, d: d.queue_stopped and d.queue.held),
    ("removal of a device with enterers asleep", ops("scsi_remove_device"),
     lambda s, d: d.queue.waiters.sleepers),
    ("block of a host with devices in several states", HOST_BLOCK,
     lambda s, h: len(states(h)) > 1),
    ("block of a host that cannot be blocked", HOST_BLOCK,
     lambda s, h: "TRANSPORT_OFFLINE" in states(h)),
    ("block of a host with devices passed over", HOST_BLOCK,
     lambda s, h: states(h) & {"CANCEL", "DEL"}),
    ("block of a host while a reader holds grace periods", HOST_BLOCK, lambda s, h: s.readers),
    ("unblock of a host that stops half-way", HOST_UNBLOCK,
     lambda s, h: h.devices[0].state_blocked() and states(h) & {"RUNNING", "QUIESCE", "CREATED"}),
    ("requests unblocked with commands held", ops("scsi_unblock_requests"),
     lambda s, h: h.self_blocked and any(d.queue.held for d in h.devices)),
    ("requests unblocked with commands to send again", ops("scsi_unblock_requests"),
     lambda s, h: any(d.queue.requeued for d in h.devices)),
    ("host state set with commands held", ops("scsi_host_set_state", "force_host_state"),
     lambda s, h: any(d.queue.held for d in h.devices)),
    ("host recovers with commands in flight", ops("scsi_host_set_state", "force_host_state"),
     lambda s, h: h.in_flight and not h.in_recovery()),
]


def by_operation(situations):
    found = {}
    for name, operations, holds in situations:
        for operation in operations:
            found.setdefault(operation, []).append((name, holds))
    return found


BY_OPERATION, SCSI_BY_OPERATION = by_operation(SITUATIONS), by_operation(SCSI_SITUATIONS)


class Census:
    def __init__(self):
        self.operations, self.results, self.situations = Counter(), Counter(), Counter()
        self.events = Counter()

    # -- called by Script
    def before(self, script, account, words):
        self.operations[words[0]] += 1
        if account is None or account.model is None:
            return
        table = SCSI_BY_OPERATION if script.world.host else BY_OPERATION
        for name, holds in table.get(words[0], ()):
            if holds(script, account.model):
                self.situations[name] += 1

    def result(self, operation, result):
        self.results[operation, result] += 1

    def after(self, script, returned):
        for event in script.sim.events:
            words = event.split()
            names = 2 if words[0] in ("queue_rq", "queuecommand") else 1
            self.events[" ".join(words[:1] + words[1 + names:])] += 1
        if returned > 1:
            self.situations["several operations return together"] += 1
        if script.sim.contended:
            self.situations["several actors could run"] += 1

    # -- called by who prints
    def add(self, other):
        self.operations.update(other.operations)
        self.results.update(other.results)
        self.situations.update(other.situations)
        self.events.update(other.events)

    def text(self, scripts):
        lines = ["operations, and their results:"]
        for name, count in sorted(self.operations.items()):
            results = sorted((r, n) for (op, r), n in self.results.items() if op == name)
            lines.append(f"  {count:9}  {name}: " + ", ".join(f"{r} {n}" for r, n in results))
        lines.append("events:")
        lines += [f"  {count:9}  {name}" for name, count in sorted(self.events.items())]
        lines.append(f"situations in {scripts} scripts:")
        names = [situation[0] for situation in SITUATIONS + SCSI_SITUATIONS]
        for name in names + ["several operations return together", "several actors could run"]:
            lines.append(f"  {self.situations[name]:9}  {name}")
        return "\n".join(lines)
