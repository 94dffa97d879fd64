// SPDX-License-Identifier: MIT
//
// scsi_interleavings.cpp - no command reaches a driver that has been silenced, and none
// is lost, in every order.
#include <cstddef>
#include <optional>

#include <doctest/doctest.h>

#include <pmgate/scsi/eh.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/scsi/pause.hpp>

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
      "submit x try_block, refused", {.preemptions = 3}, submit_first, [](auto& s) {
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
      "submit x try_block, refused x block_nowait", {.preemptions = 2}, submit_first,
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

// -- the error handler

/// The first command of a host fails; the strategy has the hardware for itself.
template <class P>
struct failing {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<failing*>(host.context());
    (void)self.hardware.read();
    if (&item == &self.bad) {
      sim::expect(self.handler.add(item) == status::ok, "add() was refused");
    } else {
      host.complete(item);
    }
    return 0;
  }
  static void recover(scsi::basic_error_handler<P>& handler) noexcept {
    auto& self = *static_cast<failing*>(handler.context());
    self.hardware.write(1);
    while (auto* const item = handler.next_failed()) handler.finish(*item, scsi::did_error);
  }
  static void abort(scsi::basic_host<P>&, scsi::basic_command<P>&) noexcept {}
  static void done(scsi::basic_command<P>& item) noexcept {
    ++static_cast<failing*>(item.context())->ends;
  }

  failing() {
    (void)dev.set_state(running);
    (void)second.set_state(running);
  }
  void check() {
    typename P::time_point when{};
    while (handler.run_pending()) {
    }
    for (;;) {
      while (works.run_pending()) {
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
  scsi::basic_host<P> host{{.queuecommand = &queuecommand, .context = this}};
  scsi::basic_target<P> target;
  scsi::basic_error_handler<P> handler{host, {&abort, &recover, nullptr, this}};
  scsi::basic_command<P> bad{&done, this};
  scsi::basic_command<P> good{&done, this};
  scsi::basic_device<P> dev{host, target, works, {2, 2}};
  scsi::basic_device<P> second{host, target, works, {2, 2}};
};

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

TEST_CASE("a stopped handler's thread ends") {
  hold_on_all_models<failing>(
      "handler's thread x fail and stop", {.preemptions = 2}, [](auto& s) { s.handler.run(); },
      [](auto& s) {
        (void)s.second.submit(s.good);
        (void)s.dev.submit(s.bad);
        s.handler.stop();
      });
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
