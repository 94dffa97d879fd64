# SPDX-License-Identifier: MIT
"""Makes scripts: the same seed, room and number give the same script."""
from random import Random

from operations import COMMON, PERCPU_REF, QUEUE, READERS, TIDIER, WORKERS
from script import Script
from scsi_operations import SCSI_DEVICE, SCSI_HOST
from table import SCSI_TABLE, TABLE

ATTEMPTS = 12                           # proposals until one is legal
MOST_TIDYING = 90                       # operations
NEXT_OF_RPM = {"suspending": "blk_post_runtime_suspend {} 0",
               "suspended": "blk_pre_runtime_resume {}",
               "resuming": "blk_post_runtime_resume {}"}


class Room:
    """What scripts of one kind are made of."""

    def __init__(self, rows, begin, steps):
        self.begin, self.steps = begin, steps
        self.rows = [(row, max(1, round(4 * row.weight))) for row in rows if row.weight]

    def bag(self, random):
        """Rows to draw from. Scripts without some of the operations get further with the others."""
        omitted = random() * 0.3
        bag = []
        for row, count in self.rows:
            if random() >= omitted:
                bag += [row] * count
        return bag


def begin_percpu_ref(s, random):
    issue_one(s, WORKERS[0], TABLE["percpu_ref_init"], random)
    if random() < 0.4:
        issue_one(s, WORKERS[0], TABLE["percpu_ref_init"], random)


def begin_queue(s, random):
    issue_one(s, WORKERS[0], TABLE["new_queue"], random)
    if random() < 0.15:
        if random() < 0.2:
            issue_one(s, WORKERS[0], TABLE["blk_mq_quiesce_tagset"], random)
        issue_one(s, WORKERS[0], TABLE["new_queue"], random)


def begin_scsi_state(s, random):
    words = SCSI_TABLE["new_host"].propose(s, random).split()
    s.issue(WORKERS[0], " ".join(words[:2] + ["devs=1", "luns=1"] + words[4:]))


def begin_scsi_host(s, random):
    issue_one(s, WORKERS[0], SCSI_TABLE["new_host"], random)


ROOMS = {
    "percpu_ref": Room(PERCPU_REF + COMMON, begin_percpu_ref, (12, 48)),
    "queue": Room(QUEUE + COMMON, begin_queue, (12, 48)),
    "scsi_state": Room(SCSI_DEVICE + COMMON, begin_scsi_state, (12, 48)),
    "scsi_host": Room(SCSI_HOST + SCSI_DEVICE + COMMON, begin_scsi_host, (12, 48)),
}


def issue_one(s, actor, row, random):
    """Returns: False if the operation that was proposed is not legal."""
    text = row.propose(s, random)
    if text is None or not s.legal(actor, text.split()):
        return False
    s.issue(actor, text)
    return True


def generate(room_name, seed, number, statistics=None):
    room = ROOMS[room_name]
    random = Random(f"{seed} {room_name} {number}").random
    s = Script(statistics)
    room.begin(s, random)
    bag = room.bag(random)
    actors = WORKERS[:1 + int(random() * len(WORKERS))]
    reading = random() * 0.2
    least, most = room.steps
    for _ in range(least + int(random() * (most - least))):
        if random() < reading:
            toggle_reader(s, READERS[int(random() * len(READERS))])
            continue
        free = [actor for actor in actors if actor not in s.pending]
        if not free and s.readers:
            toggle_reader(s, s.readers[0])
            continue
        if not free or s.failure:
            break
        actor = free[int(random() * len(free))]
        for _ in range(ATTEMPTS):
            if issue_one(s, actor, bag[int(random() * len(bag))], random):
                break
    tidy_up(s)
    return s


def toggle_reader(s, reader):
    s.issue(reader, "rcu_read_unlock" if reader in s.readers else "rcu_read_lock")


# --- the end of a script: everybody returns, everything is given back --------------------------

def tidy_up(s):
    while s.readers and not s.failure:
        toggle_reader(s, s.readers[0])
    for _ in range(MOST_TIDYING):
        text = next_to_give_back(s)
        if text is None or not s.legal(TIDIER, text.split()):
            break
        s.issue(TIDIER, text)


def next_to_give_back(s):
    if s.requests["dispatched"]:
        return f"complete {s.requests['dispatched'][0]} {'0' if s.by_kind['H'] else 'OK'}"
    if s.requests["allocated"]:
        return f"blk_mq_free_request {s.requests['allocated'][0]}"
    for account in s.by_kind["Q"]:
        text = next_of_queue(account, account.model)
        if text:
            return text
    for account in s.by_kind["H"]:
        text = next_of_host(account.model)
        if text:
            return text
    for account in s.by_kind["D"]:
        text = next_of_device(account, account.model)
        if text:
            return text
    for account in s.by_kind["R"]:
        text = next_of_ref(account, account.model)
        if text:
            return text
    return None


def next_of_queue(account, queue):
    name = account.name
    if account.gone:
        return None
    if queue.hold:
        return f"release_dispatch {name}"
    if account.users:
        return f"blk_queue_exit {name}"
    if queue.stopped:
        return f"blk_mq_start_stopped_hw_queues {name}"
    if account.quiesces:
        return f"blk_mq_unquiesce_queue {name}"
    if account.rpm in NEXT_OF_RPM:
        return NEXT_OF_RPM[account.rpm].format(name)
    if account.pm:
        return f"blk_clear_pm_only {name}"
    if account.freezes:
        return f"blk_mq_unfreeze_queue {name}"
    if queue.dispatch_list or queue.sw_list:
        return f"blk_mq_run_hw_queues {name} async=0"
    if account.busy:                    # a wait for a freeze that was undone
        return f"blk_freeze_queue_start {name}"
    return None


def next_of_host(host):
    if host.refusals:
        return "set_busy h 0"
    if host.state != "RUNNING":
        return "force_host_state h RUNNING"
    if host.self_blocked or any(device.queue.requeued for device in host.devices):
        return "scsi_unblock_requests h"
    return None


def next_of_device(account, device):
    name, queue = account.name, device.queue
    if account.users:
        return f"blk_queue_exit {name}"
    if device.queue_stopped:
        if device.state == "BLOCK":
            return f"scsi_internal_device_unblock_nowait {name} RUNNING"
        return f"force_state {name} BLOCK"
    if queue.held:
        if device.state == "RUNNING":
            return f"blk_mq_run_hw_queues {name}"
        return f"force_state {name} RUNNING"
    if device.quiesced_by:
        return f"scsi_device_resume {name}"
    if account.busy and queue.pm_only and device.state != "DEL":    # left by a second quiesce
        return f"scsi_remove_device {name}"
    return None


def next_of_ref(account, ref):
    name = account.name
    if ref.exited:
        return None
    if account.users:
        return f"percpu_ref_put_many {name} {account.users}"
    if not ref.dead:
        return f"percpu_ref_kill {name}"
    return f"percpu_ref_exit {name}"
