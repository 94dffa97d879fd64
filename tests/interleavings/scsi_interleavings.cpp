// SPDX-License-Identifier: MIT
//
// scsi_interleavings.cpp - no command reaches a driver that has been silenced, and none
// is lost, in every order.
#include <cstddef>
#include <optional>

#include <doctest/doctest.h>

#include <pmgate/scsi/bus_pm.hpp>
#include <pmgate/scsi/eh.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/scsi/pause.hpp>
#include <pmgate/scsi/sysfs.hpp>

#include "explore_models.hpp"

namespace {

using namespace interleavings;
using pmgate::status;
namespace pm = pmgate::pm;
namespace scsi = pmgate::scsi;
using enum scsi::device_state;

/// A host with hardware that queuecommand reads, and that whoever silenced the host writes.
template <class P, std::size_t Devices, int HostQueue = 0, std::size_t Commands = Devices>
struct host_with {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<host_with*>(host.context());
    (void)self.hardware.read();
    host.complete(item);
    return 0;
  }
  struct sent : scsi::basic_command<P> {
    sent() : scsi::basic_command<P>(&done, this) {}
    static void done(scsi::basic_command<P>& item) noexcept {
      ++static_cast<sent*>(item.context())->ends;
    }
    int ends = 0;
    bool refused = false;
  };

  using driver_fn = int (*)(scsi::basic_host<P>&, scsi::basic_command<P>&) noexcept;
  explicit host_with(driver_fn driver = &queuecommand)
      : host({.queuecommand = driver, .context = this, .can_queue = HostQueue}) {
    for (auto& each : devices) each.emplace(host, target, works, scsi::device_limits{2, 2});
    for (auto& each : devices) (void)each->set_state(running);
  }
  void submit(std::size_t n) {
    if (devices[n % Devices]->submit(commands[n]) != status::ok) commands[n].refused = true;
  }
  /// What waits for the clock is offered now; what waits for nothing is lost.
  void check() {
    typename P::time_point when{};
    for (;;) {
      while (works.run_pending()) {
      }
      if (!works.next_timer(when)) break;
      for (auto& each : devices) each->queue().run();
      if (ended() == wanted()) break;
    }
    sim::expect(ended() == wanted(), "a command is lost, or ended twice");
    sim::expect(host.busy() == 0, "the host is busy at the end");
    for (auto& each : devices) sim::expect(each->busy() == 0, "a device is busy at the end");
    while (works.run_pending()) {
    }
  }
  int ended() const {
    int total = 0;
    for (const auto& each : commands) total += each.ends;
    return total;
  }
  int wanted() const {
    int total = 0;
    for (const auto& each : commands) total += each.refused ? 0 : 1;
    return total;
  }

  sim::guarded<int> hardware;
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host;
  scsi::basic_target<P> target;
  sent commands[Commands];
  std::optional<scsi::basic_device<P>> devices[Devices];
};
template <class P>
using one_device = host_with<P, 1>;
template <class P>
using two_devices = host_with<P, 2>;
template <class P>
using two_devices_one_command = host_with<P, 2, 1>;

template <class P>
using two_commands = host_with<P, 1, 0, 2>;
/// Somebody may leave it blocked.
template <class P>
struct left_blocked : host_with<P, 1> {
  void check() {
    (void)this->host.try_unblock(running);
    host_with<P, 1>::check();
  }
};
/// The second device cannot be blocked.
template <class P>
struct one_refusing : host_with<P, 2> {
  one_refusing() {
    this->devices[1]->force_state(transport_offline);
    this->commands[1].refused = true;
  }
};
/// The same; the first device is quiesced.
template <class P>
struct quiesced_and_refusing : one_refusing<P> {
  quiesced_and_refusing() { (void)this->devices[0]->quiesce(); }
  void check() {
    sim::expect(this->devices[0]->state() == running, "the device is not running");
    one_refusing<P>::check();
  }
};
/// The same; the first device is still being scanned.
template <class P>
struct scanned_and_refusing : one_refusing<P> {
  scanned_and_refusing() { this->devices[0]->force_state(created); }
  void check() {
    sim::expect(this->devices[0]->state() == running, "the device is not running");
    one_refusing<P>::check();
  }
};
/// The same; somebody else blocks the first device, and it stays so.
template <class P>
struct blocked_and_refusing : one_refusing<P> {
  void check() {
    sim::expect(this->devices[0]->state() == block && this->devices[0]->is_stopped(),
                "the device is not blocked");
    sim::expect(this->devices[0]->unblock(running) == status::ok, "unblock() was refused");
    one_refusing<P>::check();
  }
};

constexpr auto submit_first = [](auto& s) { s.submit(0); };
constexpr auto submit_second = [](auto& s) { s.submit(1); };
constexpr auto block_and_unblock = [](auto& s) {
  sim::expect(s.host.block() == status::ok, "block() was refused");
  s.hardware.write(1);
  sim::expect(s.host.unblock(running) == status::ok, "unblock() was refused");
};
constexpr auto try_block_and_unblock = [](auto& s) {
  sim::expect(s.host.try_block().result == status::ok, "try_block() was refused");
  s.hardware.write(1);
  sim::expect(s.host.try_unblock(running).result == status::ok, "try_unblock() was refused");
};
constexpr auto try_block_in_vain = [](auto& s) {
  sim::expect(s.host.try_block().result == status::invalid, "try_block() was not refused");
};
constexpr auto remove_first = [](auto& s) {
  sim::expect(s.devices[0]->remove() == status::ok, "remove() was refused");
  sim::expect(s.devices[0]->busy() == 0, "the driver has a command of a removed device");
  sim::expect(s.devices[0]->queue().gate().is_frozen(), "a removed device is not drained");
};
constexpr auto quiesce_and_resume = [](auto& s) {
  sim::expect(s.devices[0]->quiesce() == status::ok, "quiesce() was refused");
  s.hardware.write(1);
  s.devices[0]->resume();
};

TEST_SUITE("interleavings of SCSI") {

TEST_CASE("scenario 23: between block and unblock the driver is not called, and nothing is lost") {
  hold_on_all_models<one_device>("submit x block and unblock", {.preemptions = 3}, submit_first,
                                 block_and_unblock);
  hold_on_all_models<two_devices>("two submit x block and unblock", {.preemptions = 1},
                                  submit_first, submit_second, block_and_unblock);
}

TEST_CASE("scenario 23: the same by chance, with blocks that come again") {
  hold_by_chance<two_devices>("two submit x block and unblock twice", {.schedules = 1000},
                              submit_first, submit_second, [](auto& s) {
                                block_and_unblock(s);
                                block_and_unblock(s);
                              });
}

TEST_CASE("nobody is behind the back of a block that is all or nothing") {
  hold_on_all_models<one_device>("submit x try_block and try_unblock", {.preemptions = 2},
                                 submit_first, try_block_and_unblock);
}

TEST_CASE("a block that nobody waits for loses nothing either") {
  hold_on_all_models<one_device>("submit x block_nowait and unblock", {.preemptions = 3},
                                 submit_first, [](auto& s) {
                                   (void)s.devices[0]->block_nowait();
                                   (void)s.devices[0]->unblock(running);
                                 });
  hold_on_all_models<two_commands>("two submit x block_nowait and unblock", {.preemptions = 1},
                                   submit_first, submit_second, [](auto& s) {
                                     (void)s.devices[0]->block_nowait();
                                     (void)s.devices[0]->unblock(running);
                                   });
}

TEST_CASE("a try_block that is refused loses no command on the way back") {
  hold_on_all_models<one_refusing>(
      "submit x try_block, refused", {.preemptions = 2}, submit_first, [](auto& s) {
        const auto report = s.host.try_block();
        sim::expect(report.result == status::invalid && report.refused == &*s.devices[1],
                    "try_block() was not refused");
      });
}

TEST_CASE("what others do to a device while a try_block fails stays as they wanted it") {
  hold_on_all_models<quiesced_and_refusing>("submit x try_block, refused x resume",
                                            {.preemptions = 1}, submit_first, try_block_in_vain,
                                            [](auto& s) { s.devices[0]->resume(); });
  hold_on_all_models<blocked_and_refusing>(
      "submit x try_block, refused x block_nowait", {.preemptions = 1}, submit_first,
      try_block_in_vain, [](auto& s) {
        sim::expect(s.devices[0]->block_nowait() == status::ok, "block_nowait() was refused");
      });
  hold_on_all_models<scanned_and_refusing>(
      "try_block, refused x finish_scan x submit", {.preemptions = 2}, try_block_in_vain,
      [](auto& s) {
        sim::expect(s.devices[0]->finish_scan() == status::ok, "finish_scan() was refused");
      },
      submit_first);
}

TEST_CASE("two who block at once do not disturb each other's commands") {
  // One unblock undoes both blocks: so neither may rely on silence, and none writes.
  hold_on_all_models<one_device>(
      "submit x block x block", {.preemptions = 1}, submit_first,
      [](auto& s) {
        (void)s.host.block();
        (void)s.host.unblock(running);
      },
      [](auto& s) {
        (void)s.host.block();
        (void)s.host.unblock(running);
      });
}

/// Two who block, and nobody who sends.
template <class P>
struct two_blockers : one_refusing<P> {
  two_blockers() { this->commands[0].refused = true; }
  void check() {
    sim::expect(this->devices[0]->state() == running && !this->devices[0]->is_stopped(),
                "the first device is not as it was");
  }
};
template <class P>
struct two_blockers_of_one : host_with<P, 1> {
  void check() {
    sim::expect(this->devices[0]->state() == block && this->devices[0]->is_stopped(),
                "the device is not blocked");
    (void)this->host.try_unblock(running);
    while (this->works.run_pending()) {
    }
  }
};

TEST_CASE("one try_block at a time, and who waits for another one gets his turn") {
  constexpr auto try_it = [](auto& s) {
    const auto report = s.host.try_block();
    sim::expect(report.refused == &*s.devices[1], "it is not the second device that refused");
  };
  hold_on_all_models<two_blockers>("try_block, refused x try_block, refused", {.preemptions = 2},
                                   try_it, try_it);
}

TEST_CASE("a try_block that gives up waiting for another one leaves that one's work alone") {
  hold_on_all_models<two_blockers_of_one>(
      "try_block x try_block with a deadline", {.preemptions = 2},
      [](auto& s) {
        sim::expect(s.host.try_block().result == status::ok, "try_block() was refused");
      },
      [](auto& s) {
        const status got = s.host.try_block_until({}).result;
        sim::expect(got == status::ok || got == status::timed_out, "try_block() was refused");
      });
}

TEST_CASE(
    "a block that is undone and comes again while it is waited for is not waited for in vain") {
  hold_by_chance<left_blocked>(
      "submit x block x unblock and block_nowait", {.schedules = 20000}, submit_first,
      [](auto& s) { (void)s.host.block(); },
      [](auto& s) {
        if (s.devices[0]->unblock(running) == status::ok) (void)s.devices[0]->block_nowait();
      });
}

TEST_CASE("a quiesce drains the device, and what waited goes on after the resume") {
  hold_on_all_models<one_device>("submit x quiesce and resume", {.preemptions = 2}, submit_first,
                                 quiesce_and_resume);
}

TEST_CASE("a device that waits for room at the host is not forgotten") {
  hold_on_all_models<two_devices_one_command>("two submit, the host takes one", {.preemptions = 2},
                                              submit_first, submit_second);
}

TEST_CASE("a command to a device that is being removed ends once, or is refused") {
  hold_on_all_models<one_device>("submit x remove", {.preemptions = 2}, submit_first, remove_first);
}

TEST_CASE("of two removals neither is over before the device is drained") {
  hold_on_all_models<one_device>("submit x remove x remove", {.preemptions = 1}, submit_first,
                                 remove_first, remove_first);
}

TEST_CASE("a removal ends what a block holds, in whatever order they come") {
  hold_on_all_models<one_device>(
      "submit x block_nowait, kblockd x remove", {.preemptions = 1}, submit_first,
      [](auto& s) {
        (void)s.devices[0]->block_nowait();
        s.works.run();
      },
      [](auto& s) {
        remove_first(s);
        s.works.stop();
      });
}

/// The driver's first answer is BUSY: the command is sent again.
template <class P>
struct busy_once : host_with<P, 1> {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<busy_once*>(static_cast<host_with<P, 1>*>(host.context()));
    self.host.complete(item, ++self.calls == 1 ? scsi::status_busy : 0);
    return 0;
  }
  busy_once() : host_with<P, 1>(&queuecommand) {}
  int calls = 0;
};

TEST_CASE("a command that is sent again while a recovery begins or ends is not lost") {
  hold_on_all_models<busy_once>("submit, sent again x recovery", {.preemptions = 3}, submit_first,
                                [](auto& s) {
                                  (void)s.host.begin_recovery();
                                  (void)s.host.end_recovery();
                                });
  hold_on_all_models<busy_once>("submit, sent again x reset", {.preemptions = 3}, submit_first,
                                [](auto& s) {
                                  s.host.set_resetting(true);
                                  s.host.set_resetting(false);
                                });
}

/// Two administrators at a device that is offline.
template <class P>
struct offline_device {
  static void rescan(scsi::basic_device<P>& which) noexcept {
    ++static_cast<offline_device*>(which.host().context())->scans;
  }
  offline_device() { dev.force_state(offline); }
  void set_running() {
    sim::expect(scsi::store_state(dev, "running") == status::ok, "running was refused");
  }
  void check() {
    sim::expect(dev.state() == running && scans == 1, "not once set running and scanned");
    while (works.run_pending()) {
    }
  }

  int scans = 0;
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{{.queuecommand = nullptr, .context = this, .rescan = &rescan}};
  scsi::basic_target<P> target;
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
};

TEST_CASE("of two who set a device running by hand both succeed, and one has it scanned") {
  hold_on_all_models<offline_device>(
      "running x running", {.preemptions = 2}, [](auto& s) { s.set_running(); },
      [](auto& s) { s.set_running(); });
}

/// Two scans under way, which write what the host has.
template <class P>
struct scanning {
  scanning() {
    scans.begin();
    scans.begin();
  }
  void check() { sim::expect(scans.under_way() == 0, "a scan is counted that is over"); }
  sim::guarded<int> found;
  typename P::mutex lock;
  scsi::basic_scans<P> scans;
  scsi::basic_host<P> host{{.queuecommand = nullptr}};
};

TEST_CASE("scans that begin at once are counted, both of them") {
  constexpr auto scan = [](auto& s) {
    s.scans.begin();
    s.scans.end();
  };
  hold_on_all_models<scanning>(
      "two more scans", {.preemptions = 2},
      [scan](auto& s) {
        scan(s);
        s.scans.end();
      },
      [scan](auto& s) {
        scan(s);
        s.scans.end();
        if (s.scans.under_way() == 0) (void)scsi::bus_prepare(s.host, s.scans);
      });
}

TEST_CASE("a host that was prepared for sleep has nobody who scans") {
  constexpr auto scan = [](auto& s) {
    {
      const pmgate::scoped_lock guard(s.lock);
      s.found.write(1);
    }
    s.scans.end();
  };
  hold_on_all_models<scanning>(
      "scan x scan x prepare", {.preemptions = 2}, scan, scan, [](auto& s) {
        sim::expect(scsi::bus_prepare(s.host, s.scans) == status::ok, "prepare was refused");
        s.found.write(2);
      });
}

// -- the error handler

/// The first command of a host fails; the strategy has the hardware for itself. Where the
/// host has a limit the driver has that command already, and the handler has one round.
template <class P, int HostQueue = 0>
struct failing_at {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<failing_at*>(host.context());
    (void)self.hardware.read();
    if (&item != &self.bad) {
      host.complete(item);
    } else if (HostQueue == 0) {
      self.fail();
    }
    return 0;
  }
  void fail() { sim::expect(handler.add(bad) == status::ok, "add() was refused"); }
  static void recover(scsi::basic_error_handler<P>& handler) noexcept {
    auto& self = *static_cast<failing_at*>(handler.context());
    self.hardware.write(1);
    while (auto* const item = handler.next_failed()) handler.finish(*item, scsi::did_error);
    if (HostQueue != 0) handler.stop();
  }
  static void abort(scsi::basic_host<P>&, scsi::basic_command<P>&) noexcept {}
  static void done(scsi::basic_command<P>& item) noexcept {
    ++static_cast<failing_at*>(item.context())->ends;
  }

  failing_at() {
    (void)dev.set_state(running);
    (void)second.set_state(running);
    if (HostQueue != 0) (void)dev.submit(bad);
  }
  void check() {
    typename P::time_point when{};
    for (;;) {
      while (handler.run_pending() || works.run_pending()) {
      }
      if (ends == 2 || !works.next_timer(when)) break;
      dev.queue().run();
      second.queue().run();
    }
    sim::expect(ends == 2, "a command is lost, or ended twice");
    sim::expect(!host.is_in_recovery(), "the recovery does not end");
    sim::expect(handler.failed() == 0 && host.busy() == 0, "something is left");
  }

  sim::guarded<int> hardware;
  int ends = 0;
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{
      {.queuecommand = &queuecommand, .context = this, .can_queue = HostQueue}};
  scsi::basic_target<P> target;
  scsi::basic_error_handler<P> handler{host,
                                       {.abort = &abort, .recover = &recover, .context = this}};
  scsi::basic_command<P> bad{&done, this};
  scsi::basic_command<P> good{&done, this};
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
  scsi::basic_device<P> second{host, target, works, {2, 2}};
};
template <class P>
using failing = failing_at<P>;
template <class P>
using failing_with_one_place = failing_at<P, 1>;

TEST_CASE("the error handler has the driver for itself, and a command fails once") {
  hold_on_all_models<failing>(
      "submit x submit and fail x handler", {.preemptions = 1},
      [](auto& s) { (void)s.second.submit(s.good); }, [](auto& s) { (void)s.dev.submit(s.bad); },
      [](auto& s) { (void)s.handler.run_pending(); });
  hold_on_all_models<failing>(
      "submit x fail and handle", {.preemptions = 2},
      [](auto& s) { (void)s.second.submit(s.good); },
      [](auto& s) {
        (void)s.dev.submit(s.bad);
        (void)s.handler.run_pending();
      });
}

TEST_CASE("a handler that saw a command which there was no room for is told that it is gone") {
  hold_on_all_models<failing_with_one_place>(
      "submit, no room x fail x handler's thread", {.preemptions = 2},
      [](auto& s) { (void)s.second.submit(s.good); }, [](auto& s) { s.fail(); },
      [](auto& s) { s.handler.run(); });
}

/// A host that recovers without a failed command.
template <class P>
struct scheduled {
  static void recover(scsi::basic_error_handler<P>& handler) noexcept {
    auto& self = *static_cast<scheduled*>(handler.context());
    self.hardware.write(1);
    ++self.recoveries;
  }
  void schedule() { sim::expect(handler.schedule() == status::ok, "schedule() was refused"); }
  void check() {
    while (handler.run_pending()) {
    }
    sim::expect(recoveries != 0 && !host.is_in_recovery(), "the recovery does not end");
  }

  sim::guarded<int> hardware;
  int recoveries = 0;
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{{.queuecommand = nullptr, .context = this}};
  scsi::basic_target<P> target;
  scsi::basic_error_handler<P> handler{host,
                                       {.abort = nullptr, .recover = &recover, .context = this}};
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
};

TEST_CASE("cause for a recovery that comes during one is not forgotten, and all of them end") {
  hold_on_all_models<scheduled>(
      "schedule and handle x schedule", {.preemptions = 2},
      [](auto& s) {
        s.schedule();
        (void)s.handler.run_pending();
      },
      [](auto& s) {
        s.schedule();
        sim::expect(s.handler.failed() == 0, "a command failed that nobody sent");
      });
}

TEST_CASE("the handler's thread recovers the host until it is stopped, and sees who stops it") {
  hold_on_all_models<scheduled>(
      "handler's thread x schedule and stop", {.preemptions = 2},
      [](auto& s) {
        s.handler.run();
        (void)s.hardware.read();
      },
      [](auto& s) {
        s.schedule();
        (void)s.host.await_recovery(s.dev);
        s.hardware.write(2);
        s.handler.stop();
      });
}

/// A driver with a command that the clock has seen three times: with the next its time is over.
template <class P>
struct overdue {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>&) noexcept {
    auto& self = *static_cast<overdue*>(host.context());
    const pmgate::scoped_lock guard(self.lock);
    self.has_it = true;
    return 0;
  }
  void complete() {
    const pmgate::scoped_lock guard(lock);
    if (has_it) host.complete(item);
    has_it = false;
  }
  static void recover(scsi::basic_error_handler<P>& handler) noexcept {
    auto& self = *static_cast<overdue*>(handler.context());
    while (auto* const failed = handler.next_failed()) {
      {
        const pmgate::scoped_lock guard(self.lock);
        self.has_it = false;
      }
      handler.finish(*failed, scsi::did_error);
    }
  }
  static void done(scsi::basic_command<P>& ended) noexcept {
    ++static_cast<overdue*>(ended.context())->ends;
  }
  overdue() {
    dev.track_started(slots, 2);
    (void)dev.set_state(running);
    (void)dev.submit(item);
    for (int n = 0; n < 3; ++n) handler.check_timeouts();
  }
  void check() {
    while (handler.run_pending()) {
    }
    sim::expect(ends == sent, "a command is lost, or ended twice");
    sim::expect(!host.is_in_recovery(), "the recovery does not end");
    sim::expect(handler.failed() == 0 && host.busy() == 0, "something is left");
    while (works.run_pending()) {
    }
  }

  bool has_it = false;
  int ends = 0;
  int sent = 1;
  typename P::mutex lock;  // of the driver
  scsi::basic_started_slot<P> slots[2];
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{{.queuecommand = &queuecommand, .context = this}};
  scsi::basic_target<P> target;
  scsi::basic_error_handler<P> handler{host,
                                       {.abort = nullptr, .recover = &recover, .context = this}};
  scsi::basic_command<P> item{&done, this};
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
};

TEST_CASE("a command that is completed when its time is over ends once") {
  hold_on_all_models<overdue>(
      "complete x timeout and handler", {.preemptions = 2}, [](auto& s) { s.complete(); },
      [](auto& s) {
        s.handler.check_timeouts();
        (void)s.handler.run_pending();
      });
}

TEST_CASE("a command whose time is over is the handler's once, who finds it when he looks") {
  hold_on_all_models<overdue>(
      "timeout x handler", {.preemptions = 2}, [](auto& s) { s.handler.check_timeouts(); },
      [](auto& s) {
        (void)s.handler.failed();
        (void)s.handler.run_pending();
      });
}

TEST_CASE("a command that is sent anew does not take over the time of the one before") {
  hold_on_all_models<overdue>(
      "complete and submit x timeout", {.preemptions = 2},
      [](auto& s) {
        s.complete();
        if (s.ends == 0) return;  // the handler has it
        s.sent = 2;
        sim::expect(s.dev.submit(s.item) == status::ok, "submit() was refused");
        s.complete();
        sim::expect(s.ends == 2, "a command that had its time was not ended");
      },
      [](auto& s) { s.handler.check_timeouts(); });
}

/// The same at a host that was removed, which does not recover.
template <class P>
struct failing_too_late : overdue<P> {
  failing_too_late() { this->host.force_state(scsi::host_state::del); }
};

TEST_CASE("a command that fails at a removed host is the driver's, and is completed by it") {
  hold_on_all_models<failing_too_late>(
      "complete x add, removed", {.preemptions = 3}, [](auto& s) { s.complete(); },
      [](auto& s) { sim::expect(s.handler.add(s.item) == status::invalid, "add() took it"); });
}

/// The same; the host is being removed.
template <class P>
struct failing_in_time : overdue<P> {
  failing_in_time() { this->host.force_state(scsi::host_state::cancel); }
  void check() {
    overdue<P>::check();
    sim::expect(this->host.state() == scsi::host_state::del, "the host is not removed");
  }
};

TEST_CASE("a command that fails while the host is removed is the handler's or the driver's") {
  hold_on_all_models<failing_in_time>(
      "complete x add x DEL", {.preemptions = 2}, [](auto& s) { s.complete(); },
      [](auto& s) {
        if (s.handler.add(s.item) == status::ok) (void)s.handler.run_pending();
      },
      [](auto& s) {
        while (s.host.set_state(scsi::host_state::del) != status::ok) {
          (void)s.host.await_recovery(s.dev);
        }
      });
}

TEST_CASE("a stopped handler's thread ends") {
  hold_on_all_models<failing>(
      "handler's thread x fail and stop", {.preemptions = 2}, [](auto& s) { s.handler.run(); },
      [](auto& s) {
        (void)s.second.submit(s.good);
        (void)s.dev.submit(s.bad);
        s.handler.stop();
      });
}

/// A host whose error handler sends a command of its own, past all gates but BLOCK.
template <class P>
struct handled : host_with<P, 1> {
  static void abort(scsi::basic_host<P>&, scsi::basic_command<P>&) noexcept {
    sim::expect(false, "a command that was answered is aborted");
  }
  handled() { this->commands[0].refused = true; }
  /// Its time may be over before the device is unblocked.
  void send() { (void)handler.send(*this->devices[0], own, P::milliseconds(1000)); }
  scsi::basic_error_handler<P> handler{this->host, {.abort = &abort}};
  scsi::basic_command<P> own;
};

/// The driver answers a command of the handler's own, or has it taken back.
template <class P>
struct answering {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<answering*>(host.context());
    const pmgate::scoped_lock guard(self.lock);
    self.taken = &item;
    return 0;
  }
  void answer() {
    const pmgate::scoped_lock guard(lock);
    if (taken == nullptr) return;
    answered.write(1);
    host.complete(*taken, scsi::did_error);
    taken = nullptr;
  }
  static void abort(scsi::basic_host<P>& host, scsi::basic_command<P>&) noexcept {
    auto& self = *static_cast<answering*>(host.context());
    const pmgate::scoped_lock guard(self.lock);
    self.taken = nullptr;
  }
  void send() {
    scsi::basic_command<P> own;
    if (handler.send(dev, own, P::milliseconds(1000)) == status::ok) {
      sim::expect(answered.read() == 1 && own.result_word() == scsi::did_error, "no answer");
    } else {
      sim::expect(own.result_word() == 0, "an answer is not heeded");
    }
  }
  void check() {}

  sim::guarded<int> answered;
  scsi::basic_command<P>* taken = nullptr;
  typename P::mutex lock;  // of the driver
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{{.queuecommand = &queuecommand, .context = this}};
  scsi::basic_target<P> target;
  scsi::basic_error_handler<P> handler{host, {.abort = &abort}};
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
};

TEST_CASE("a command of the error handler is answered or aborted, and the answer is seen") {
  hold_on_all_models<answering>(
      "send x answer", {.preemptions = 2}, [](auto& s) { s.send(); }, [](auto& s) { s.answer(); });
}

TEST_CASE("no command of the error handler is with the driver between block and unblock") {
  hold_on_all_models<handled>(
      "send x block and unblock", {.preemptions = 2}, [](auto& s) { s.send(); }, block_and_unblock);
}

// -- pause

/// xen-scsifront: the driver gates by itself.
template <class P>
struct pausing {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<pausing*>(host.context());
    const int refusal = self.policy.admit(item);
    if (refusal != 0) return refusal;
    (void)self.hardware.read();
    self.policy.leave();
    host.complete(item);
    return 0;
  }
  static void shut_down(void* context) noexcept {
    static_cast<pausing*>(context)->hardware.write(1);
  }
  static void done(scsi::basic_command<P>& item) noexcept {
    ++static_cast<pausing*>(item.context())->ends;
  }
  pausing() { (void)dev.set_state(running); }
  void check() {
    typename P::time_point when{};
    while (ends == 0 && works.next_timer(when)) dev.queue().run();
    sim::expect(ends == 1, "the command is lost, or ended twice");
    while (works.run_pending()) {
    }
  }

  sim::guarded<int> hardware;
  int ends = 0;
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{{.queuecommand = &queuecommand, .context = this}};
  scsi::basic_target<P> target;
  scsi::basic_pause<P> policy{host, {.shut_down = &shut_down, .context = this}};
  scsi::basic_command<P> item{&done, this};
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
};

TEST_CASE("nobody is inside the driver when a pause shuts the hardware down") {
  hold_on_all_models<pausing>(
      "submit x suspend x handler", {.preemptions = 2}, [](auto& s) { (void)s.dev.submit(s.item); },
      [](auto& s) {
        sim::expect(s.policy.suspend() == status::ok, "suspend() was refused");
        s.policy.connected();
      },
      [](auto& s) {
        if (!s.policy.enter_handler()) return;
        (void)s.hardware.read();
        s.policy.leave_handler();
      });
}

/// A handler inside a driver that is paused, or for which there is no room.
template <class P>
struct handler_inside {
  handler_inside() { sim::expect(policy.enter_handler(), "a handler was refused"); }
  void check() {}
  sim::guarded<int> ring;
  scsi::basic_host<P> host{{.queuecommand = nullptr}};
  scsi::basic_pause<P> policy{host, {}};
};

TEST_CASE("a suspend that is interrupted ends, with a handler inside") {
  hold_on_all_models<handler_inside>(
      "suspend x interrupt", {.preemptions = 2},
      [](auto& s) {
        sim::expect(s.policy.suspend() == status::again, "somebody has left");
        sim::expect(s.policy.callers() == 1 && s.policy.is_paused(), "the pause is over");
      },
      [](auto& s) {
        s.policy.interrupt();
        (void)s.policy.is_paused();
        (void)s.policy.callers();
        s.policy.set_error(true);
      });
}

TEST_CASE("who waits for room in the ring is woken when there is some, and finds it") {
  hold_on_all_models<handler_inside>(
      "handler waits x room", {.preemptions = 2},
      [](auto& s) {
        while (s.policy.room_count() == 0) {
          sim::expect(s.policy.await_room(0), "there is no pause");
        }
        (void)s.ring.read();
        s.policy.leave_handler();
      },
      [](auto& s) {
        s.ring.write(1);
        s.policy.note_room();
      });
}

TEST_CASE("who waits for room in the ring is woken by a suspend, and leaves") {
  hold_on_all_models<handler_inside>(
      "handler waits x suspend", {.preemptions = 2},
      [](auto& s) {
        while (s.policy.await_room(s.policy.room_count())) {
        }
        (void)s.ring.read();
        s.policy.leave_handler();
      },
      [](auto& s) {
        sim::expect(s.policy.suspend() == status::ok, "the suspend was interrupted");
        s.ring.write(1);
      });
}

// -- what the explorations are worth

TEST_CASE("a block that does not wait is caught with the driver inside") {
  const sim::result found = explore_one<one_device<pmgate::sim_platform>>(
      "submit x block_nowait", {.preemptions = 2}, submit_first, [](auto& s) {
        (void)s.devices[0]->block_nowait();
        s.hardware.write(1);
        (void)s.devices[0]->unblock(running);
      });
  CHECK_FALSE(found.failure.empty());
}

TEST_CASE("a pause of the entry alone is caught with the driver inside") {
  const sim::result found = explore_one<one_device<pmgate::sim_platform>>(
      "submit x pm_only", {.preemptions = 2}, submit_first, [](auto& s) {
        s.devices[0]->queue().set_pm_only();
        s.hardware.write(1);
        s.devices[0]->queue().clear_pm_only();
      });
  CHECK_FALSE(found.failure.empty());
}

}  // TEST_SUITE
}  // namespace
