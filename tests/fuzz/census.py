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
BY_OPERATION = {}
for _name, _operations, _holds in SITUATIONS:
    for _operation in _operations:
        BY_OPERATION.setdefault(_operation, []).append((_name, _holds))


class Census:
    def __init__(self):
        self.operations, self.results, self.situations = Counter(), Counter(), Counter()
        self.events = Counter()

    # -- called by Script
    def before(self, script, account, words):
        self.operations[words[0]] += 1
        if account is None or account.model is None:
            return
        for name, holds in BY_OPERATION.get(words[0], ()):
            if holds(script, account.model):
                self.situations[name] += 1

    def result(self, operation, result):
        self.results[operation, result] += 1

    def after(self, script, returned):
        for event in script.sim.events:
            words = event.split()
            names = 2 if words[0] == "queue_rq" else 1
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
        for name in [s[0] for s in SITUATIONS] + ["several operations return together",
                                                  "several actors could run"]:
            lines.append(f"  {self.situations[name]:9}  {name}")
        return "\n".join(lines)
