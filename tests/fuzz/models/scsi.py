# SPDX-License-Identifier: MIT
"""Linux SCSI devices and hosts: states, quiesce and block, the dispatch of commands.

Not modelled: error handling, tags, runtime suspend, the log flag `offline_already`.
Operations that may sleep are generators.
"""
from .sim import WaitQueue

EINVAL, EAGAIN, ENODEV = "-EINVAL", "-EAGAIN", "-ENODEV"
OK, RESOURCE, DEV_RESOURCE, IOERR, OFFLINE_STATUS = \
    "OK", "RESOURCE", "DEV_RESOURCE", "IOERR", "OFFLINE"
DID_NO_CONNECT, DID_ERROR = 0x10000, 0x70000
RERUN_DELAY_MS = 3
MAX_DEVICE_BLOCKED, MAX_TARGET_BLOCKED, MAX_HOST_BLOCKED = 3, 3, 7
STATUS_BUSY, STATUS_RESERVATION_CONFLICT, STATUS_TASK_SET_FULL = 0x08, 0x18, 0x28


def _matrix(text):
    return {(row.split()[0], to) for row in text.strip().splitlines() for to in row.split()[1:]}


# Legal changes: from, then every state it may change to.
DEVICE_CHANGES = _matrix("""
CREATED            RUNNING CANCEL DEL OFFLINE TRANSPORT_OFFLINE CREATED_BLOCK
RUNNING            CANCEL DEL QUIESCE OFFLINE TRANSPORT_OFFLINE BLOCK
CANCEL             DEL
QUIESCE            RUNNING CANCEL OFFLINE TRANSPORT_OFFLINE BLOCK
OFFLINE            RUNNING CANCEL DEL QUIESCE BLOCK
TRANSPORT_OFFLINE  RUNNING CANCEL DEL QUIESCE
BLOCK              RUNNING DEL OFFLINE TRANSPORT_OFFLINE
CREATED_BLOCK      CREATED DEL BLOCK
""")
HOST_CHANGES = _matrix("""
CREATED          RUNNING CANCEL
RUNNING          CANCEL RECOVERY
CANCEL           DEL CANCEL_RECOVERY
RECOVERY         RUNNING CANCEL_RECOVERY
CANCEL_RECOVERY  CANCEL DEL_RECOVERY
DEL_RECOVERY     DEL
""")


class DeviceQueue:
    """The gates of the request queue of a device, in atomic mode all the time."""

    def __init__(self, sim, name, has_pm, dispatch_one):
        self.sim, self.name = sim, name
        self.has_pm = has_pm            # q->dev is set
        self.dispatch_one = dispatch_one    # command -> OK, RESOURCE, DEV_RESOURCE
        self.usage = 0                  # references besides the initial one
        self.freeze_depth = self.pm_only = self.quiesce_depth = 0
        self.dying = False
        self.waiters = WaitQueue(sim)
        self.held, self.requeued = [], []   # entered, not dispatched; sent again
        self.run_timer = None
        self.run_pending = False

    # -- entry
    def try_enter(self, pm):
        if self.freeze_depth or (self.pm_only and not pm):
            return False
        self.usage += 1
        return True

    def pm_may_pass(self, pm):
        if not self.has_pm or not self.pm_only or pm:
            return True
        self.sim.emit_once_per_actor(f"pm_request_resume {self.name}")
        return False

    def enter(self, pm, nowait):
        while not self.try_enter(pm):
            if nowait:
                return EAGAIN
            before = self.sim.steps
            yield from self.waiters.wait(
                lambda: (self.freeze_depth == 0 and self.pm_may_pass(pm)) or self.dying)
            if self.dying:
                return ENODEV
            if before == self.sim.steps:        # so does the kernel
                raise RuntimeError("enter spins: it neither gets in nor sleeps")
        return 0

    def exit(self):
        self.usage -= 1
        if self.usage == 0 and self.freeze_depth:
            self.waiters.wake_all()

    # -- freeze, pm_only, quiesce
    def freeze_start(self):
        self.freeze_depth += 1
        if self.freeze_depth == 1:
            self.run()

    def freeze_wait(self):
        yield from self.waiters.wait(lambda: self.freeze_depth and not self.usage)

    def unfreeze(self):
        self.freeze_depth -= 1
        if self.freeze_depth == 0:
            self.waiters.wake_all()

    def destroy(self):
        self.dying = True
        self.freeze_start()
        self.waiters.wake_all()
        yield from self.freeze_wait()

    def clear_pm_only(self):
        self.pm_only -= 1
        if self.pm_only == 0:
            self.waiters.wake_all()

    def unquiesce(self):
        self.quiesce_depth -= 1
        if self.quiesce_depth == 0:
            self.run_async()

    # -- dispatch
    def run(self):
        """Dispatches from the head of the list until a command is put back."""
        while self.held and not self.quiesce_depth:
            command = self.held.pop(0)
            status = self.dispatch_one(command)
            if status != OK:
                self.held.insert(0, command)
                if status == RESOURCE:
                    self.run_later()
                return

    def insert_at_head(self, command):
        self.held.insert(0, command)
        self.run()

    def run_async(self):
        if not self.run_pending:
            self.run_pending = True
            self.sim.spawn(f"run {self.name}", self._run_work(), self.name)

    def _run_work(self):
        self.run_pending = False
        self.run()
        yield from ()

    def run_later(self):
        if self.run_timer is None:
            self.run_timer = self.sim.poll(RERUN_DELAY_MS, self._run_timer_fired)

    def _run_timer_fired(self):
        self.run_timer = None
        self.run()

    def requeue(self, command, kick):
        """`kick`: not while the host recovers."""
        self.requeued.append(command)
        if kick:
            self.sim.spawn(f"requeue {self.name}", self._requeue_work(), self.name)

    def kick_requeued_and_run(self):
        self.held.extend(self.requeued)
        self.requeued = []
        self.run()

    def _requeue_work(self):
        self.kick_requeued_and_run()
        yield from ()


class Command:
    def __init__(self, name, device, pm=False, fail_if_recovering=False):
        self.name, self.device = name, device
        self.pm, self.fail_if_recovering = pm, fail_if_recovering
        self.done, self.result = False, None
        self.waiters = WaitQueue(device.sim)


class Target:
    def __init__(self, sim, can_queue=0):   # 0: no limit, `blocked` is ignored
        self.sim = sim
        self.can_queue, self.busy, self.blocked = can_queue, 0, 0


def count_down(thing):
    """May an idle device, target or host be asked again?"""
    if thing.blocked:
        if thing.busy:
            return False
        thing.blocked -= 1
        thing.sim.moves()
    return thing.blocked == 0


class Device:
    def __init__(self, host, name, target, depth, has_pm):
        self.host, self.name, self.target, self.depth = host, name, target, depth
        self.sim = host.sim
        self.state, self.quiesced_by, self.queue_stopped = "RUNNING", None, 0
        self.busy = 0                   # budget tokens taken
        self.blocked = 0                # device_blocked
        self.queue = DeviceQueue(self.sim, name, has_pm, self.dispatch)

    # -- state
    def online(self):
        return self.state not in ("OFFLINE", "TRANSPORT_OFFLINE", "DEL")

    def state_blocked(self):
        return self.state in ("BLOCK", "CREATED_BLOCK")

    def created(self):
        return self.state in ("CREATED", "CREATED_BLOCK")

    def gettable(self):
        return self.state not in ("CANCEL", "DEL")

    def set_state(self, state):
        if state != self.state and (self.state, state) not in DEVICE_CHANGES:
            return EINVAL
        self.state = state
        return 0

    def force_state(self, state):
        self.state = state

    # -- quiesce, resume
    def quiesce(self):
        me = self.sim.cur.name
        if self.quiesced_by and self.quiesced_by != me:
            self.sim.warn_once("drivers/scsi/scsi_lib.c:2776")
        if self.quiesced_by == me:
            return 0
        q = self.queue
        q.pm_only += 1
        q.freeze_start()
        yield from q.freeze_wait()
        yield from self.sim.rcu.synchronize()
        q.unfreeze()
        error = self.set_state("QUIESCE")
        if error:
            q.clear_pm_only()
        else:
            self.quiesced_by = me
        return error

    def resume(self):
        if self.state == "QUIESCE":
            self.state = "RUNNING"
        if self.quiesced_by:
            self.quiesced_by = None
            self.queue.clear_pm_only()

    # -- block, unblock
    def block_nowait(self):
        error = self.set_state("BLOCK")
        if error:
            error = self.set_state("CREATED_BLOCK")
        if not error:
            self.stop_queue()
        return error

    def stop_queue(self):
        if not self.queue_stopped:
            self.queue_stopped = 1
            self.queue.quiesce_depth += 1

    def unblock_nowait(self, new):
        if new not in ("RUNNING", "TRANSPORT_OFFLINE"):
            return EINVAL
        if self.state in ("BLOCK", "TRANSPORT_OFFLINE"):
            self.state = new
        elif self.state == "CREATED_BLOCK":
            self.state = "CREATED" if new == "RUNNING" else new
        elif self.state not in ("CANCEL", "OFFLINE"):
            return EINVAL
        self.start_queue()
        return 0

    def start_queue(self):
        if self.queue_stopped:
            self.queue_stopped = 0
            self.queue.unquiesce()

    # -- removal
    def remove(self):
        if self.state == "DEL":
            return
        if self.set_state("CANCEL"):
            self.state = "DEL"
            self.start_queue()
        self.state = "DEL"
        yield from self.queue.destroy()

    # -- commands
    def execute(self, name, pm, nowait, fail_if_recovering):
        q = self.queue
        error = yield from q.enter(pm, nowait)
        if error:
            return error
        command = Command(name, self, pm, fail_if_recovering)
        q.insert_at_head(command)
        yield from command.waiters.wait(lambda: command.done)
        q.exit()
        return hex(command.result) if command.result else 0

    def finish(self, command, result):
        """The command is done: its issuer frees it."""
        command.done, command.result = True, result
        command.waiters.wake_all()
        self.queue.run_async()

    # -- dispatch
    def dispatch(self, command):
        if not self.take_budget():
            return DEV_RESOURCE         # the clock is set already
        status = self.state_check(command)
        if status == OK and not self.target_ready():
            status = RESOURCE
        if status == OK:
            status = self.host.recovery_check(command)
        if status == OK and not self.host.ready(self):
            status = RESOURCE
        if status == OK:
            self.target.busy += 1
            self.host.busy += 1
            status = self.dispatch_command(command)
            if status == OK:
                return OK
            self.target.busy -= 1
            self.host.busy -= 1
        self.busy -= 1
        if status in (RESOURCE, DEV_RESOURCE):
            return DEV_RESOURCE if self.state_blocked() else RESOURCE
        self.finish(command, DID_ERROR if self.online() else DID_NO_CONNECT)
        return OK

    def take_budget(self):
        if self.busy < self.depth and count_down(self):
            self.busy += 1
            return True
        if not self.busy and not self.state_blocked():
            self.queue.run_later()
        return False

    def target_ready(self):
        t = self.target
        return t.can_queue <= 0 or count_down(t) and t.busy < t.can_queue

    def state_check(self, command):
        if self.state in ("RUNNING", "CREATED"):
            return OK
        if self.state == "QUIESCE":
            if command.pm:
                return OK
            self.sim.warn_once("drivers/scsi/scsi_lib.c:1361")
            return RESOURCE
        if self.state_blocked():
            return DEV_RESOURCE
        if self.state == "CANCEL":
            return OK if command.pm else OFFLINE_STATUS
        return IOERR

    def dispatch_command(self, command):
        if self.state_blocked():
            self.blocked = MAX_DEVICE_BLOCKED
            return RESOURCE
        if "DEL" in (self.state, self.host.state):
            self.release(command)
            self.finish(command, DID_NO_CONNECT)
            return OK
        refusal = self.host.queuecommand(command)
        if not refusal:
            return OK
        if refusal == "SCSI_MLQUEUE_DEVICE_BUSY":
            self.blocked = MAX_DEVICE_BLOCKED
        elif refusal == "SCSI_MLQUEUE_TARGET_BUSY":
            self.target.blocked = MAX_TARGET_BLOCKED
        else:
            self.host.blocked = MAX_HOST_BLOCKED
        return RESOURCE

    def release(self, command):
        self.busy -= 1
        self.target.busy -= 1
        self.host.busy -= 1

    def complete(self, command, result):
        """The low level driver completes a command."""
        self.release(command)
        self.host.run_starved()
        status = result & 0xff
        if status in (STATUS_BUSY, STATUS_TASK_SET_FULL):       # send again
            self.blocked = MAX_DEVICE_BLOCKED
            self.queue.requeue(command, kick=not self.host.in_recovery())
            return
        self.blocked = self.target.blocked = self.host.blocked = 0
        if status == STATUS_RESERVATION_CONFLICT:
            result |= 0x100
        self.finish(command, result)

    # -- as the traces print it
    def describe(self):
        q = self.queue
        return (f"state={self.state} quiesced_by={self.quiesced_by or '-'} "
                f"queue_stopped={self.queue_stopped} freeze_depth={q.freeze_depth} "
                f"pm_only={q.pm_only} quiesce_depth={q.quiesce_depth} "
                f"dying={'true' if q.dying else 'false'}")


class Host:
    def __init__(self, sim, devs, luns=1, pm=1, depth=8):
        self.sim = sim
        self.state, self.self_blocked = "RUNNING", 0
        self.busy = self.blocked = 0
        self.refusals = 0               # of the next queuecommand calls
        self.in_flight = {}             # commands by name
        self.starved = []               # devices that the next completion runs
        targets = [Target(sim) for _ in range(0, devs, luns)]
        self.devices = [Device(self, f"d{i}", targets[i // luns], depth, pm == 1)
                        for i in range(devs)]

    def set_state(self, state):
        if state != self.state and (self.state, state) not in HOST_CHANGES:
            return EINVAL
        self.state = state
        return 0

    def force_state(self, state):
        self.state = state

    def in_recovery(self):
        return self.state in ("RECOVERY", "CANCEL_RECOVERY", "DEL_RECOVERY")

    def scan_allowed(self):
        return self.state in ("RUNNING", "RECOVERY")

    # -- many devices
    def of_target(self, target):
        return [d for d in self.devices if target is None or d.target is target]

    def block(self):
        for d in self.devices:
            if d.gettable():
                error = d.block_nowait()
                if error:
                    return error
        yield from self.sim.rcu.synchronize()
        return 0

    def unblock(self, new):
        for d in self.devices:
            if d.gettable():
                error = d.unblock_nowait(new)
                if error:
                    return error
        return 0

    def block_targets(self):
        for d in self.devices:
            if d.gettable() and d.block_nowait():
                self.sim.warn_once("drivers/scsi/scsi_lib.c:2945")
        yield from self.sim.rcu.synchronize()

    def target_unblock(self, target, new):
        for d in self.of_target(target):
            if d.gettable():
                d.unblock_nowait(new)

    def target_quiesce(self, target):
        for d in self.of_target(target):
            if d.gettable():
                yield from d.quiesce()

    def target_resume(self, target):
        for d in self.of_target(target):
            if d.gettable():
                d.resume()

    def block_requests(self):
        self.self_blocked = 1

    def unblock_requests(self):
        self.self_blocked = 0
        for d in self.devices:
            if d.state != "DEL":
                if d in self.starved:
                    self.starved.remove(d)
                d.queue.kick_requeued_and_run()

    # -- dispatch
    def recovery_check(self, command):
        if not self.in_recovery():
            return OK
        return OFFLINE_STATUS if command.fail_if_recovering else RESOURCE

    def ready(self, device):
        busy = self.blocked and self.busy
        if count_down(self) and not self.self_blocked:
            if device in self.starved:
                self.starved.remove(device)
            return True
        if (busy or not self.blocked) and device not in self.starved:
            self.starved.append(device)
        return False

    def run_starved(self):
        starved, self.starved = self.starved, []
        for device in starved:
            device.queue.run_async()

    def queuecommand(self, command):
        """The low level driver: takes the command (None) or says why not."""
        line = f"queuecommand {command.device.name} {command.name}"
        if self.refusals:
            self.refusals -= 1
            self.sim.emit(f"{line} SCSI_MLQUEUE_HOST_BUSY")
            return "SCSI_MLQUEUE_HOST_BUSY"
        self.sim.emit(line)
        self.in_flight[command.name] = command
        return None

    def complete(self, name, result):
        command = self.in_flight.pop(name)
        command.device.complete(command, result)

    def describe(self):
        return f"state={self.state} self_blocked={self.self_blocked}"
