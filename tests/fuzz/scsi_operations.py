# SPDX-License-Identifier: MIT
"""The operations on SCSI hosts and devices; see operations.py. A script has one host, h, whose
devices are d0, d1, ...; commands are c1, c2, ..."""
from operations import (FIELDS, KINDS, Row, SIMPLEST, chosen, entered, less, name_of, owns,
                        request_leaves, waits)
from models.scsi import STATUS_BUSY, STATUS_TASK_SET_FULL

DEVICE_STATES = ("CREATED", "RUNNING", "CANCEL", "DEL", "QUIESCE", "OFFLINE", "TRANSPORT_OFFLINE",
                 "BLOCK", "CREATED_BLOCK")
HOST_STATES = ("CREATED", "RUNNING", "CANCEL", "DEL", "RECOVERY", "CANCEL_RECOVERY",
               "DEL_RECOVERY")

KINDS.update({"D": "D", "H": "H", "host_or_target": "HD"})
FIELDS.update({
    "D": name_of("D"),
    "H": name_of("H"),
    "host_or_target": lambda s, random: name_of("H" if random() < 0.5 else "D")(s, random),
    "new_command": lambda s, random: f"c{s.made + 1}",
    "devs": chosen("1", "2", "2", "3", "3", "4"),
    "luns": chosen("1", "1", "2"),
    "device_depth": chosen("1", "2", "8"),
    "device_state": chosen(*DEVICE_STATES, "RUNNING", "RUNNING", "BLOCK"),
    "forced_state": chosen(*DEVICE_STATES, "RUNNING", "RUNNING", "RUNNING", "QUIESCE"),
    "new_state": chosen("RUNNING", "RUNNING", "RUNNING", "TRANSPORT_OFFLINE", "OFFLINE"),
    "host_state": chosen(*HOST_STATES, "RUNNING", "RUNNING", "RECOVERY"),
    "forced_host_state": chosen(*HOST_STATES, "RUNNING", "RUNNING", "RUNNING", "RUNNING"),
    "command_flags": chosen("0", "0", "0", "PM", "PM", "NOWAIT", "NOWAIT|PM", "FAIL_IF_RECOVERING",
                            "PM|FAIL_IF_RECOVERING"),
    "result": chosen("0", "0", "0", "0x70000", "0x10000", "0x2", "0x8", "0x18", "0x28"),
    "busy": chosen("1", "2", "3", "8"),
})
SIMPLEST.update({
    "devs": ("1", "2", "3"),
    "luns": ("1",),
    "device_depth": ("8", "1"),
    "device_state": ("RUNNING",),
    "forced_state": ("RUNNING",),
    "new_state": ("RUNNING",),
    "host_state": ("RUNNING",),
    "forced_host_state": ("RUNNING",),
    "command_flags": ("0", "PM", "NOWAIT"),
    "result": ("0",),
    "busy": ("1",),
})


# --- legality and accounts -------------------------------------------------------------------

def host_may_be_made(s, a, w, who):
    return not s.by_kind["H"]


def host_made(s, a, w, result):
    s.add_account("H", "h", s.world.host)
    for device in s.world.host.devices:
        s.add_account("D", device.name, device)


def gate_may_be_asked(s, a, w, who):
    """Without a PM device the kernel spins where somebody waits at a pm_only queue."""
    queue = a.model.queue
    privileged = any("PM" in word for word in w if word.startswith("flags="))
    return queue.has_pm or queue.pm_only == 0 or privileged or not waits(w)


def command_may_be_sent(s, a, w, who):
    return (w[2] not in s.accounts and gate_may_be_asked(s, a, w, who)
            and refuses_one_device(s, a.model))


def refuses_one_device(s, device):
    """May a command of the device begin to wait? Which device of a host goes on first is specified
    nowhere; and a host that refuses tells them apart by more than the order."""
    host = device.host
    return not (host.refusals or host.blocked) or waiting_devices(s) <= {device.name}


def waiting_devices(s):
    """Whose commands are on their way to the driver."""
    return {words[1] for _, _, words in s.pending.values()
            if words[0] == "scsi_execute_cmd" and s.accounts[words[2]].state != "dispatched"}


def host_may_refuse(s, a, w, who):
    return len(waiting_devices(s)) < 2


def command_may_end(s, a, w, who):
    """In recovery the kernel leaves a command that is to be sent again where it is until queues
    are run; the library has the recovery hold it like any other."""
    if a.state != "dispatched":
        return False
    again = int(w[2], 0) & 0xff in (STATUS_BUSY, STATUS_TASK_SET_FULL)
    return not again or (refuses_one_device(s, a.model) and not a.model.host.in_recovery())


def command_sent(s, a, w, who):
    s.made += 1
    s.add_account("N", w[2], a.model)


def may_be_removed(s, a, w, who):
    """One at a time: what a removal does while another one waits was not recorded."""
    return not any(words[0] == "scsi_remove_device" for _, _, words in s.pending.values())


def may_block_devices(s, a, w, who):
    """The kernel waits for a grace period also where nothing is stopped, and so there is nothing
    to wait for; the library does not. Only readers make that visible."""
    return not s.readers or any(
        d.queue_stopped or d.state not in ("TRANSPORT_OFFLINE", "CANCEL", "DEL")
        for d in a.model.devices)


# --- the rooms -------------------------------------------------------------------------------

SCSI_DEVICE = [
    Row("force_state {D} {forced_state}", 3),
    Row("scsi_device_set_state {D} {device_state}", 5),
    Row("scsi_device_quiesce {D}", 5),
    Row("scsi_device_resume {D}", 5),
    Row("scsi_internal_device_block_nowait {D}", 4),
    Row("scsi_internal_device_unblock_nowait {D} {new_state}", 6),
    Row("scsi_device_online {D}", 0.5),
    Row("scsi_device_blocked {D}", 0.5),
    Row("scsi_device_created {D}", 0.5),
    Row("scsi_remove_device {D}", 0.5, may_be_removed),
    # commands, and entries without one
    Row("scsi_execute_cmd {D} {new_command} flags={command_flags}", 14, command_may_be_sent,
        command_sent, enters=True),
    Row("complete {dispatched} {result}", 12, command_may_end, request_leaves),
    Row("set_busy {H} {busy}", 2, host_may_refuse),
    Row("blk_mq_run_hw_queues {D}", 2),
    Row("blk_queue_enter {D} flags={flags}", 3, gate_may_be_asked, end=entered("0"),
        enters=True),
    Row("blk_queue_exit {D}", 4, owns("users"), less("users")),
]

SCSI_HOST = [
    Row("new_host h devs={devs} luns={luns} pm={has_pm} depth={device_depth}", 0, host_may_be_made,
        end=host_made, creates=True),
    Row("scsi_host_block {H}", 5, may_block_devices),
    Row("scsi_host_unblock {H} {new_state}", 6),
    Row("scsi_block_targets {H}", 2, may_block_devices, plain="scsi_host_block"),
    Row("scsi_target_unblock {host_or_target} {new_state}", 3),
    Row("scsi_target_quiesce {D}", 2, plain="scsi_device_quiesce"),
    Row("scsi_target_resume {D}", 2, plain="scsi_device_resume"),
    Row("scsi_block_requests {H}", 3),
    Row("scsi_unblock_requests {H}", 4),
    Row("force_host_state {H} {forced_host_state}", 4),
    Row("scsi_host_set_state {H} {host_state}", 6),
    Row("scsi_host_in_recovery {H}", 0.5),
    Row("scsi_host_scan_allowed {H}", 0.5),
]
