# SPDX-License-Identifier: MIT
"""The table of operations: how often a script has each, with which arguments, and when it
is legal. To add an operation, add a row here, and what it does to a table of models/world.py.
Those on SCSI hosts and devices are in scsi_operations.py."""


class Row:
    """One operation.

    template  words; {X} is a field, filled in by FIELDS. Its first field names the object.
    weight    how often it is proposed
    legal     legal(script, account, words, actor), asked before it is issued
    begin     begin(script, account, words, actor), when it is issued: what it gives up
    end       end(script, account, words, result), when it has returned: what it has got
    enters    it asks the gate of its queue, and may block there
    creates   it makes the object that it names
    kinds     of the objects that it may name: R a ref, Q a queue, N a request
    plain     a simpler operation that often does in its place
    """

    def __init__(self, template, weight, legal=None, begin=None, end=None, enters=False,
                 creates=False, kinds=None, plain=None):
        words = template.split()
        self.name, self.weight = words[0], weight
        self.legal = legal or (lambda s, a, w, who: True)
        self.begin, self.end, self.enters, self.creates = begin, end, enters, creates
        self.plain = plain
        self.parts = [self._part(word) for word in words[1:]]
        first = self.parts[0][1] if self.parts else None
        self.kinds = kinds or KINDS.get(first, "")

    @staticmethod
    def _part(word):
        """What stands before the field, and its name."""
        before, brace, rest = word.partition("{")
        return before, rest[:-1] if brace else None

    def propose(self, script, random):
        """A text, or None where there is nothing to choose from."""
        words = [self.name]
        for before, field in self.parts:
            value = FIELDS[field](script, random) if field else ""
            if value is None:
                return None
            if before or value:
                words.append(before + value)
        return " ".join(words)

    def simpler(self, words):
        """The same operation with one argument simpler, for each that could be."""
        for at, word in enumerate(words[1:], 1):
            if at - 1 >= len(self.parts):
                return
            before, field = self.parts[at - 1]
            for plain in SIMPLEST.get(field, ()):
                if word == before + plain:
                    break
                if plain:
                    yield words[:at] + [before + plain] + words[at + 1:]
                else:
                    yield words[:at] + words[at + 1:]

    def cost(self, words):
        """How far the arguments are from the simplest."""
        total = 1 if self.plain else 0
        for (before, field), word in zip(self.parts, words[1:]):
            values = SIMPLEST.get(field)
            if values:
                plain = [before + value for value in values]
                total += 1 + (plain.index(word) if word in plain else len(plain))
        return total


# --- arguments -------------------------------------------------------------------------------

def chosen(*values):
    count = len(values)
    return lambda s, random: values[int(random() * count)]


def name_of(kind):
    def choose(s, random):
        known = s.by_kind[kind]
        return known[int(random() * len(known))].name if known else None
    return choose


def request_that_is(state):
    def choose(s, random):
        known = s.requests[state]
        return known[int(random() * len(known))] if known else None
    return choose


KINDS = {"R": "R", "Q": "Q", "allocated": "N", "dispatched": "N"}
FIELDS = {
    "R": name_of("R"),
    "Q": name_of("Q"),
    "new_ref": chosen("a", "b"),
    "new_queue": chosen("q", "p"),
    "new": lambda s, random: f"r{s.made + 1}",
    "allocated": request_that_is("allocated"),
    "dispatched": request_that_is("dispatched"),
    "init_flags": chosen("0", "ALLOW_REINIT", "ALLOW_REINIT", "ALLOW_REINIT", "ATOMIC", "DEAD",
                         "ATOMIC|DEAD", "ATOMIC|ALLOW_REINIT", "DEAD|ALLOW_REINIT",
                         "ATOMIC|DEAD|ALLOW_REINIT"),
    "on_release": chosen("", "", "", "", "", "", "on_release=exit"),
    "count": chosen("1", "2", "3", "5"),
    "confirm": chosen("", "confirm"),
    "flags": chosen("0", "0", "0", "NOWAIT", "PM", "PM", "NOWAIT|PM"),
    "bio_flags": chosen("0", "0", "NOWAIT"),
    "bool": chosen("0", "1"),
    "kind": chosen("disk", "mq"),
    "has_pm": chosen("1", "1", "1", "1", "0"),
    "error": chosen("0", "0", "0", "-16"),
    "blocking": chosen("", "", "", "", "blocking=1"),
    "share": lambda s, random: "share=q" if "q" in s.accounts and random() < 0.5 else "",
    "depth": chosen("1", "2", "3", "8"),
    "ms": chosen("10", "50", "50", "100000000"),
    "refusals": chosen("1", "2", "3"),
    "refusal": chosen("RESOURCE", "DEV_RESOURCE"),
    "status": chosen("OK", "OK", "IOERR", "TIMEOUT", "AGAIN"),
}
# The simplest value first; shrinking replaces what stands behind it. "" leaves it out.
SIMPLEST = {
    "init_flags": ("ALLOW_REINIT",),
    "on_release": ("",),
    "count": ("1", "2"),
    "confirm": ("",),
    "flags": ("0", "NOWAIT", "PM"),
    "bio_flags": ("0",),
    "bool": ("0",),
    "kind": ("mq",),
    "has_pm": ("0",),
    "error": ("0",),
    "blocking": ("",),
    "share": ("",),
    "depth": ("8", "1"),
    "ms": ("10",),
    "refusals": ("1",),
    "refusal": ("RESOURCE",),
    "status": ("OK",),
}


# --- legality and accounts: refs -------------------------------------------------------------

def ref_is_usable(s, a, w, who):
    return not a.model.exited


def ref_is_held(s, a, w, who):
    """Who has no reference may still lean on the initial one."""
    return not a.model.exited and (a.users > 0 or (not a.model.dead and a.busy == 0))


def ref_has(count):
    return lambda s, a, w, who: not a.model.exited and 0 < count(w) <= a.users


def ref_may_switch(s, a, w, who):
    return not a.model.exited and (not a.exits or (a.busy == 0 and not a.model.dead))


def ref_may_switch_to_atomic(s, a, w, who):
    return ref_may_switch(s, a, w, who) and a.model.allow_reinit


def ref_may_be_killed(s, a, w, who):
    return ref_may_switch(s, a, w, who) and not a.model.dead


def ref_may_come_back(s, a, w, who):
    return ref_may_switch_to_atomic(s, a, w, who) and a.model.dead


def ref_may_be_reinited(s, a, w, who):
    return ref_may_come_back(s, a, w, who) and a.model.is_zero()


def ref_may_exit(s, a, w, who):
    m = a.model
    return (not m.exited and m.dead and m.is_zero() and a.users == 0 and a.busy == 0
            and m.confirm_switch is None)


def ref_may_be_made(s, a, w, who):
    old = s.accounts.get(w[1])
    return old is None or (old.model.exited and old.busy == 0)


def ref_made(s, a, w, result):
    account = s.add_account("R", w[1], s.world.refs[w[1]])
    account.exits = "on_release=exit" in w


def one(w):
    return 1


def many(w):
    return int(w[2])


def users_less(count):
    def begin(s, a, w, who):
        a.users -= count(w)
    return begin


def users_more(count, on):
    def end(s, a, w, result):
        if result == on:
            a.users += count(w)
    return end


# --- legality and accounts: queues -----------------------------------------------------------

def gate_may_be_asked(waits):
    """Without a PM device the kernel spins where somebody waits at a pm_only queue."""
    def legal(s, a, w, who):
        return a.model.dev or a.model.pm_only == 0 or not waits(w)
    return legal


def waits(w):
    return not any("NOWAIT" in word for word in w)


def may_close_by_pm(s, a, w, who):
    return a.model.dev or a.entering == 0


def new_request_may_be_asked(s, a, w, who):
    return w[2] not in s.accounts and gate_may_be_asked(waits)(s, a, w, who)


def bio_may_be_submitted(s, a, w, who):
    """Bios come by a disk, and look whether that is dead."""
    return "kind=disk" in a.options and new_request_may_be_asked(s, a, w, who)


def queue_may_be_made(s, a, w, who):
    """Queues of drivers that sleep do not share: in the kernel a quiesce of one waits for the
    dispatches of all, in the library for its own."""
    shared = next((word[len("share="):] for word in w if word.startswith("share=")), None)
    return w[1] not in s.accounts and not s.making and (
        shared is None or (shared in s.accounts and not s.accounts[shared].removed
                           and not s.accounts[shared].model.tagset.blocking))


def queue_reserved(s, a, w, who):
    s.making = True


def queue_made(s, a, w, result):
    s.making = False
    s.add_account("Q", w[1], s.world.queues[w[1]]).options = w[2:]


def may_wait_for_quiesce(s, a, w, who):
    """A queue whose driver may sleep counts its dispatches only while it is quiesced."""
    return not a.model.tagset.blocking or a.model.quiesce_depth > 0


def may_hold(s, a, w, who):
    """Nobody recorded a removal that waits for a driver that sleeps over a completed request."""
    return a.model.tagset.blocking and not a.model.hold and not a.removed


def may_release(s, a, w, who):
    return a.model.hold


def owns(what):
    return lambda s, a, w, who: getattr(a, what) > 0


def less(what):
    def begin(s, a, w, who):
        setattr(a, what, getattr(a, what) - 1)
    return begin


def more(what):
    """Counted when issued: whoever undoes it waits for it."""
    def begin(s, a, w, who):
        setattr(a, what, getattr(a, what) + 1)
    return begin


def sharers(s, a):
    return [other for other in s.by_kind["Q"] if other.model.tagset is a.model.tagset]


def of_tagset(begin):
    def begin_all(s, a, w, who):
        for member in sharers(s, a):
            begin(s, member, w, who)
    return begin_all


def nobody_waits_for_quiesce(s, a):
    """Where drivers may sleep the library lets who waits go when the queue is unquiesced,
    the kernel when the driver is done."""
    return not a.model.tagset.blocking or not any(
        "quiesce" in words[0] for _, _, words in s.pending.values())


def may_unquiesce(s, a, w, who):
    return a.quiesces > 0 and nobody_waits_for_quiesce(s, a)


def may_unquiesce_tagset(s, a, w, who):
    return (all(member.quiesces > 0 for member in sharers(s, a))
            and nobody_waits_for_quiesce(s, a))


def more_at_return(what):
    def end(s, a, w, result):
        setattr(a, what, getattr(a, what) + 1)
    return end


def entered(on):
    def end(s, a, w, result):
        if result == on:
            a.users += 1
    return end


def ask_for_lock(s, a, names):
    """Does one of these operations wait until another one is done with the freeze depth?"""
    sleepers = a.model.freeze_lock.wq.sleepers
    return any(task in sleepers and words[0] in names for task, _, words in s.pending.values())


def may_wait_for_drain(s, a, w, who):
    """See may_unfreeze()."""
    return not (ask_for_lock(s, a, FREEZES) and ask_for_lock(s, a, UNFREEZES))


def may_unfreeze(s, a, w, who):
    """Where a freeze and an unfreeze come one right after the other, it depends on the schedule
    whether somebody who waits for the drain sees it, or sleeps on as it was undone."""
    waits_for_drain = any(words[0] in DRAIN_WAITS and words[1] == a.name
                          for _, _, words in s.pending.values() if len(words) > 1)
    return a.freezes > 0 and not (waits_for_drain and ask_for_lock(s, a, FREEZES))


def may_drain(s, a, w, who):
    """The first freeze of a queue dispatches what is there. Where the driver sleeps over that, who
    waits at the gate is woken in the kernel when it is done, in the library before; it was not
    recorded."""
    m = a.model
    return (not m.hold or m.freeze_depth > 0 or m.stopped or m.quiesce_depth > 0
            or not (m.dispatch_list or m.sw_list))


def may_be_marked_dead(s, a, w, who):
    return "kind=disk" in a.options and may_drain(s, a, w, who)


def may_be_removed(kind):
    """Once. Nobody recorded what the removal of a queue that shares its tag set waits for."""
    return lambda s, a, w, who: (kind in a.options and not a.removed
                                 and len(a.model.tagset.queues) == 1 and not a.model.hold)


def removal_begins(s, a, w, who):
    a.removed = True


def removal_ends(s, a, w, result):
    a.gone = True


def rpm_is(state):
    return lambda s, a, w, who: a.rpm == state


def rpm_becomes(state):
    def begin(s, a, w, who):
        a.rpm = state
    return begin


def suspend_checked(s, a, w, result):
    a.rpm = "suspending" if result == "0" else "active"


def suspended(s, a, w, who):
    a.rpm = "suspended" if w[2] == "0" else "active"


# --- requests --------------------------------------------------------------------------------

def request_asked(s, a, w, who):
    s.made += 1
    s.add_account("N", w[2], a.model)


def request_allocated(s, a, w, result):
    if result == "0":
        s.move_request(w[2], "allocated")


def request_is(state):
    return lambda s, a, w, who: a.state == state


def may_free(state):
    return lambda s, a, w, who: a.state == state and frees_for_the_oldest(s, a.model)


def frees_for_the_oldest(s, queue):
    """For a freed tag the kernel wakes the oldest waiter and nobody else. Where the queue of that
    one has its share already he sleeps again, behind the others; where shares have grown, as a
    queue holds no tag any more, the others sleep on. The library gives tags to all who may have
    one, oldest first, and keeps the order of those who wait on."""
    tagset = queue.tagset
    sleepers = tagset.wq.sleepers
    if len(tagset.queues) < 2 or not sleepers:
        return True
    asked = {task: words[1] for task, _, words in s.pending.values() if len(words) > 1}
    held = {member: member.active for member in tagset.queues}
    held[queue] -= 1
    free, served = tagset.free + 1, []
    for task in sleepers:
        member = s.accounts[asked[task]].model
        if len(served) < free and tagset.may_have(member, held):
            held[member] += 1
            served.append(task)
    return served == sleepers[:1] or (not served and len(sleepers) == 1)


def request_leaves(s, a, w, who):
    s.move_request(w[1], "gone")


def may_read(s, a, w, who):
    return who in READERS and who not in s.readers


FREEZES = ("blk_freeze_queue_start", "blk_freeze_queue_start_non_owner", "blk_mq_freeze_queue",
           "blk_queue_start_drain", "blk_mark_disk_dead", "blk_pre_runtime_suspend")
UNFREEZES = ("blk_mq_unfreeze_queue", "blk_mq_unfreeze_queue_non_owner",
             "__blk_mq_unfreeze_queue")
DRAIN_WAITS = ("blk_mq_freeze_queue", "blk_mq_freeze_queue_wait",
               "blk_mq_freeze_queue_wait_timeout", "del_gendisk", "blk_mq_destroy_queue")


# --- the rooms -------------------------------------------------------------------------------

READERS = ("t5", "t6")                  # they do nothing else
WORKERS = ("t0", "t1", "t2", "t3", "t4")
TIDIER = "t7"                           # gives everything back at the end

COMMON = [
    Row("rcu_read_lock", 0, may_read, lambda s, a, w, who: s.readers.append(who)),
    Row("rcu_read_unlock", 0, lambda s, a, w, who: who in s.readers,
        lambda s, a, w, who: s.readers.remove(who)),
    Row("synchronize_rcu", 1),
]

PERCPU_REF = [
    Row("percpu_ref_init {new_ref} flags={init_flags} {on_release}", 1, ref_may_be_made,
        end=ref_made, creates=True),
    Row("percpu_ref_exit {R}", 2, ref_may_exit),
    Row("percpu_ref_get {R}", 3, ref_is_held, end=users_more(one, "void")),
    Row("percpu_ref_get_many {R} {count}", 2, ref_is_held, end=users_more(many, "void"),
        plain="percpu_ref_get"),
    Row("percpu_ref_tryget {R}", 4, ref_is_usable, end=users_more(one, "true")),
    Row("percpu_ref_tryget_many {R} {count}", 2, ref_is_usable, end=users_more(many, "true"),
        plain="percpu_ref_tryget"),
    Row("percpu_ref_tryget_live {R}", 5, ref_is_usable, end=users_more(one, "true")),
    Row("percpu_ref_put {R}", 9, ref_has(one), users_less(one)),
    Row("percpu_ref_put_many {R} {count}", 6, ref_has(many), users_less(many),
        plain="percpu_ref_put"),
    Row("percpu_ref_kill {R}", 4, ref_may_be_killed),
    Row("percpu_ref_kill_and_confirm {R}", 4, ref_may_be_killed,
        plain="percpu_ref_kill"),
    Row("percpu_ref_switch_to_atomic {R} {confirm}", 3, ref_may_switch_to_atomic),
    Row("percpu_ref_switch_to_atomic_sync {R}", 2, ref_may_switch_to_atomic,
        plain="percpu_ref_switch_to_atomic"),
    Row("percpu_ref_switch_to_percpu {R}", 5, ref_may_switch),
    Row("percpu_ref_resurrect {R}", 5, ref_may_come_back),
    Row("percpu_ref_reinit {R}", 6, ref_may_be_reinited),
    Row("percpu_ref_is_dying {R}", 1, kinds="RQ"),
    Row("percpu_ref_is_zero {R}", 1, kinds="RQ"),
]

QUEUE = [
    Row("new_queue {new_queue} kind={kind} pm={has_pm} depth={depth} {blocking} {share}", 0,
        queue_may_be_made, queue_reserved, queue_made, creates=True),
    # the gate
    Row("blk_queue_enter {Q} flags={flags}", 7, gate_may_be_asked(waits), end=entered("0"),
        enters=True),
    Row("blk_try_enter_queue {Q} pm={bool}", 2, end=entered("true")),
    Row("blk_queue_exit {Q}", 9, owns("users"), less("users")),
    Row("blk_freeze_queue_start {Q}", 2, None, more("freezes")),
    Row("blk_freeze_queue_start_non_owner {Q}", 1, None, more("freezes"),
        plain="blk_freeze_queue_start"),
    Row("blk_mq_freeze_queue {Q}", 2, end=more_at_return("freezes"),
        plain="blk_freeze_queue_start"),
    Row("blk_mq_freeze_queue_wait {Q}", 1, may_wait_for_drain),
    Row("blk_mq_freeze_queue_wait_timeout {Q} {ms}", 1, may_wait_for_drain),
    Row("blk_mq_unfreeze_queue {Q}", 7, may_unfreeze, less("freezes")),
    Row("blk_mq_unfreeze_queue_non_owner {Q}", 2, may_unfreeze, less("freezes"),
        plain="blk_mq_unfreeze_queue"),
    Row("__blk_mq_unfreeze_queue {Q} force_atomic={bool}", 3, may_unfreeze, less("freezes"),
        plain="blk_mq_unfreeze_queue"),
    Row("blk_queue_start_drain {Q}", 1, may_drain, more("freezes"),
        plain="blk_freeze_queue_start"),
    Row("blk_mark_disk_dead {Q}", 0.8, may_be_marked_dead),
    Row("del_gendisk {Q}", 0.4, may_be_removed("kind=disk"), removal_begins, removal_ends),
    Row("blk_mq_destroy_queue {Q}", 0.4, may_be_removed("kind=mq"), removal_begins, removal_ends),
    Row("blk_set_pm_only {Q}", 3, may_close_by_pm, more("pm")),
    Row("blk_clear_pm_only {Q}", 6, owns("pm"), less("pm")),
    # runtime PM
    Row("blk_pre_runtime_suspend {Q}", 3, rpm_is("active"), rpm_becomes("checking"),
        suspend_checked),
    Row("blk_post_runtime_suspend {Q} {error}", 6, rpm_is("suspending"), suspended),
    Row("blk_pre_runtime_resume {Q}", 5, rpm_is("suspended"), rpm_becomes("resuming")),
    Row("blk_post_runtime_resume {Q}", 6, rpm_is("resuming"), rpm_becomes("active")),
    # queries
    Row("blk_queue_dying {Q}", 0.5),
    Row("blk_queue_quiesced {Q}", 0.5),
    Row("blk_queue_pm_only {Q}", 0.5),
    # quiesce, run, stop
    Row("blk_mq_quiesce_queue {Q}", 2, None, more("quiesces"),
        plain="blk_mq_quiesce_queue_nowait"),
    Row("blk_mq_quiesce_queue_nowait {Q}", 1, None, more("quiesces")),
    Row("blk_mq_quiesce_tagset {Q}", 0.5, None, of_tagset(more("quiesces")),
        plain="blk_mq_quiesce_queue_nowait"),
    Row("blk_mq_wait_quiesce_done {Q}", 0.5, may_wait_for_quiesce),
    Row("blk_mq_unquiesce_queue {Q}", 5, may_unquiesce, less("quiesces")),
    Row("blk_mq_unquiesce_tagset {Q}", 1, may_unquiesce_tagset, of_tagset(less("quiesces")),
        plain="blk_mq_unquiesce_queue"),
    Row("blk_mq_run_hw_queues {Q} async={bool}", 1),
    Row("blk_mq_stop_hw_queues {Q}", 1),
    Row("blk_mq_start_stopped_hw_queues {Q}", 3),
    Row("set_busy {Q} {refusals} {refusal}", 1),
    Row("hold_dispatch {Q}", 2, may_hold),
    Row("release_dispatch {Q}", 4, may_release),
    # requests
    Row("blk_mq_alloc_request {Q} {new} flags={flags}", 4, new_request_may_be_asked,
        request_asked, request_allocated, enters=True),
    Row("submit {Q} {new} flags={flags} at_head={bool}", 5, new_request_may_be_asked,
        request_asked, enters=True),
    Row("submit_bio {Q} {new} flags={bio_flags}", 6, bio_may_be_submitted, request_asked,
        enters=True),
    Row("blk_mq_free_request {allocated}", 2, may_free("allocated"), request_leaves),
    Row("blk_execute_rq_nowait {allocated} at_head={bool}", 3, request_is("allocated"),
        request_leaves),
    Row("blk_execute_rq {allocated} at_head={bool}", 2, request_is("allocated"), request_leaves),
    Row("complete {dispatched} {status}", 9, may_free("dispatched"), request_leaves),
    Row("blk_mq_requeue_request {dispatched}", 2, request_is("dispatched"), request_leaves),
    Row("percpu_ref_is_dying {Q}", 0.5, kinds="RQ"),
    Row("percpu_ref_is_zero {Q}", 0.5, kinds="RQ"),
]
