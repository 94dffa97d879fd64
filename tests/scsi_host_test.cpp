// SPDX-License-Identifier: MIT
//
// scsi_host_test.cpp - all devices of a host: block, unblock, targets, recovery; the
// numbers are those of the scenarios in the specification of SCSI.
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/scsi/host.hpp>

#include "support/scsi_rig.hpp"

using pmgate::status;
using pmgate::scsi::command_flags;
using pmgate::scsi::did_error;
using pmgate::scsi::did_no_connect;
using pmgate::scsi::host_state;
using testing::command;
using testing::device;
using testing::device_state;
using testing::host;
using testing::issuer;
using testing::scsi_generation;
using testing::scsi_rig;
using testing::target;
using testing::time_limit;
using testing::virtual_platform;
using testing::worker;

static_assert(!std::is_copy_constructible_v<host>);
static_assert(!std::is_move_constructible_v<host>);
static_assert(noexcept(std::declval<host&>().block()));
static_assert(noexcept(std::declval<host&>().unblock(device_state::running)));

namespace {

constexpr auto pm = command_flags::pm;
using states = std::vector<device_state>;
using enum device_state;

/// A command whose end is counted.
struct counted_command {
  static void on_done(command& item) noexcept {
    ++static_cast<counted_command*>(item.context())->ends;
  }
  int result() const { return item.result_word(); }
  std::atomic<int> ends{0};
  command item{&on_done, this};
};

}  // namespace

TEST_SUITE("scsi_host") {

// -- block and unblock

TEST_CASE("scenario 13: after quiesce, block and unblock normal commands wait for the resume") {
  scsi_rig rig;
  REQUIRE(rig.dev().quiesce() == status::ok);
  CHECK(rig.adapter.block() == status::ok);
  CHECK(rig.dev().state() == block);
  issuer waiting(rig.dev());
  CHECK(waiting.is_blocked());
  counted_command privileged;
  CHECK(rig.dev().submit(privileged.item, pm) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);

  CHECK(rig.adapter.unblock(running) == status::ok);
  rig.settle();
  CHECK(rig.dev().state() == running);
  CHECK(rig.lld.has(privileged.item));
  counted_command refused;
  CHECK(rig.dev().submit(refused.item, command_flags::nowait) == status::again);
  CHECK(rig.dev().queue().gate().pm_only() == 1);
  CHECK(waiting.is_blocked());

  rig.dev().resume();
  CHECK(rig.dev().state() == running);
  rig.lld.await_taken(2);
  CHECK(rig.lld.has(waiting.item));
  rig.lld.complete_all();
  CHECK(waiting.join() == status::ok);
}

TEST_CASE("scenario 14: before 5.7-rc4 a quiesced device is not blocked and not stopped") {
  scsi_rig rig({running}, scsi_generation::v5_7_rc3);
  REQUIRE(rig.dev().quiesce() == status::ok);

  CHECK(rig.adapter.block() == status::invalid);

  CHECK(rig.dev().state() == quiesce);
  CHECK_FALSE(rig.dev().is_stopped());
  rig.dev().resume();
}

TEST_CASE(
    "scenario 16: blocking a host blocks what can be blocked and passes over what is being "
    "removed") {
  scsi_rig rig({running, quiesce, created, offline, block, created_block, cancel, del});

  CHECK(rig.adapter.block() == status::ok);

  CHECK(rig.states() == states{block, block, created_block, block, block, block, cancel, del});
  for (std::size_t n = 0; n < 8; ++n) CHECK(rig.dev(n).is_stopped() == (n < 6));
}

TEST_CASE("scenario 17: a failing block stops there, waits for nothing and undoes nothing") {
  scsi_rig rig({running, transport_offline, running});
  counted_command third;
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  rig.lld.on_call = [&](command& item) {
    if (&item.device() != &rig.dev(0)) return;
    inside = true;
    while (!leave) std::this_thread::yield();
  };
  counted_command stuck;
  worker t1([&] { CHECK(rig.dev(0).submit(stuck.item) == status::ok); });
  while (!inside) std::this_thread::yield();

  CHECK(rig.adapter.block() == status::invalid);
  CHECK(rig.states() == states{block, transport_offline, running});
  CHECK(rig.dev(0).is_stopped());
  CHECK(rig.dev(2).submit(third.item) == status::ok);
  CHECK(rig.lld.has(third.item));
  leave = true;
  t1.join();

  CHECK(rig.adapter.unblock(running) == status::invalid);
  CHECK(rig.states() == states{running, running, running});
  rig.finish_all();
  CHECK(stuck.ends == 1);
}

TEST_CASE("scenario 18: unblocking stops at the first device that is not blocked") {
  scsi_rig rig({running, running, running});
  counted_command held;
  REQUIRE(rig.dev(0).block_nowait() == status::ok);
  REQUIRE(rig.dev(2).block_nowait() == status::ok);
  REQUIRE(rig.dev(2).submit(held.item) == status::ok);

  CHECK(rig.adapter.unblock(running) == status::invalid);
  rig.settle();

  CHECK(rig.states() == states{running, running, block});
  CHECK(rig.lld.calls() == 0);
  CHECK(rig.dev(2).unblock(running) == status::ok);
  rig.finish_all();
  CHECK(held.ends == 1);
}

TEST_CASE("scenario 19: a second unblock fails and changes nothing") {
  scsi_rig rig({running, running});
  REQUIRE(rig.adapter.block() == status::ok);

  CHECK(rig.adapter.unblock(running) == status::ok);
  CHECK(rig.adapter.unblock(running) == status::invalid);

  CHECK(rig.states() == states{running, running});
}

TEST_CASE(
    "scenario 20: an invalid new state fails at a host with devices, and at one without it does "
    "not") {
  scsi_rig rig;
  scsi_rig empty(states{});
  REQUIRE(rig.adapter.block() == status::ok);

  CHECK(rig.adapter.unblock(quiesce) == status::invalid);
  CHECK(empty.adapter.unblock(quiesce) == status::ok);
  CHECK(empty.adapter.block() == status::ok);

  CHECK(rig.adapter.unblock(running) == status::ok);
}

TEST_CASE("scenario 21: one unblock undoes two blocks") {
  scsi_rig rig;
  counted_command item;
  CHECK(rig.adapter.block() == status::ok);
  CHECK(rig.adapter.block() == status::ok);
  CHECK(rig.dev().queue().quiesce_depth() == 1);

  CHECK(rig.adapter.unblock(running) == status::ok);

  CHECK(rig.dev().state() == running);
  CHECK(rig.dev().queue().quiesce_depth() == 0);
  CHECK(rig.dev().submit(item.item) == status::ok);
  CHECK(rig.lld.has(item.item));
  rig.lld.complete_all();
}

TEST_CASE("scenario 23: blocking waits for the driver's calls under way") {
  scsi_rig rig({running, running});
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  rig.lld.on_call = [&](command&) {
    inside = true;
    while (!leave) std::this_thread::yield();
  };
  counted_command item;
  worker t1([&] { CHECK(rig.dev(1).submit(item.item) == status::ok); });
  while (!inside) std::this_thread::yield();
  worker t2([&] { CHECK(rig.adapter.block() == status::ok); });
  CHECK(t2.is_blocked());

  leave = true;

  t2.join();
  t1.join();
  CHECK(rig.adapter.unblock(running) == status::ok);
  rig.lld.complete_all();
}

TEST_CASE(
    "a block with a deadline that passes leaves everything blocked, or nothing if it is tried") {
  scsi_rig rig({running, running});
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  rig.lld.on_call = [&](command&) {
    inside = true;
    while (!leave) std::this_thread::yield();
  };
  counted_command item;
  worker t1([&] { CHECK(rig.dev(1).submit(item.item) == status::ok); });
  while (!inside) std::this_thread::yield();
  const auto soon = virtual_platform::now() + virtual_platform::milliseconds(50);

  CHECK(rig.adapter.try_block_until(soon).result == status::timed_out);
  CHECK(rig.states() == states{running, running});
  CHECK_FALSE(rig.dev(0).is_stopped());
  CHECK(rig.adapter.block_until(soon) == status::timed_out);
  CHECK(rig.states() == states{block, block});
  CHECK(rig.dev(1).wait_blocked_until(soon) == status::timed_out);

  leave = true;
  t1.join();
  CHECK(rig.dev(1).wait_blocked_until(soon) == status::ok);
  CHECK(rig.adapter.try_block_until(soon).result == status::ok);
  CHECK(rig.adapter.block_until(soon) == status::ok);
  CHECK(rig.states() == states{block, block});
  CHECK(rig.adapter.unblock(running) == status::ok);
  rig.lld.complete_all();
}

/// Eight threads send commands, at least so many, while the host is blocked and unblocked, at
/// least ten times.
void race_commands_against_blocks(pmgate::driver_kind kind, int commands_each) {
  struct shared {
    bool sleeps = false;
    std::atomic<bool> closed{false};
    std::atomic<int> intrusions{0};
    std::atomic<long> delivered{0};
  } seen;
  using real_host = pmgate::scsi::host;
  using real_device = pmgate::scsi::device;
  using real_command = pmgate::scsi::command;
  struct inline_driver {
    static int queuecommand(real_host& adapter, real_command& item) noexcept {
      auto& state = *static_cast<shared*>(adapter.context());
      if (state.sleeps) std::this_thread::sleep_for(std::chrono::microseconds(50));
      if (state.closed) ++state.intrusions;
      ++state.delivered;
      adapter.complete(item);
      return 0;
    }
  };
  pmgate::pm::work_queue works("kblockd", pmgate::pm::work_queue_flags::none, 0);
  std::thread runner([&] { works.run(); });
  std::atomic<long> tried{0};
  std::atomic<long> sent{0};
  {
    seen.sleeps = kind == pmgate::driver_kind::blocking;
    real_host adapter(
        {.queuecommand = &inline_driver::queuecommand, .context = &seen, .kind = kind});
    pmgate::scsi::target where;
    real_device first(adapter, where, works);
    real_device second(adapter, where, works);
    (void)first.set_state(running);
    (void)second.set_state(running);
    constexpr int threads = 8;
    std::atomic<int> at_work{threads};
    std::atomic<int> blocks{0};
    {
      std::vector<std::unique_ptr<worker>> submitters;
      for (int n = 0; n < threads; ++n) {
        real_device& where_to = n % 2 == 0 ? first : second;
        submitters.push_back(std::make_unique<worker>([&] {
          real_command item;
          for (int i = 0; i < commands_each || blocks < 10; ++i) {
            ++tried;
            if (where_to.execute(item) == status::ok && item.result_word() == 0) ++sent;
          }
          --at_work;
        }));
      }
      int refused = 0;
      while (at_work != 0) {
        if (adapter.block() != status::ok) ++refused;
        ++blocks;
        seen.closed = true;
        std::this_thread::yield();
        seen.closed = false;
        if (adapter.unblock(running) != status::ok) ++refused;
        std::this_thread::yield();
      }
      CHECK(refused == 0);
    }
    CHECK(sent == tried);
    CHECK(seen.intrusions == 0);
    CHECK(seen.delivered == sent);
    CHECK(adapter.busy() == 0);
  }
  works.stop();
  runner.join();
}

TEST_CASE(
    "scenario 23: stress: between block and unblock the driver is not called, and no command is "
    "lost") {
  race_commands_against_blocks(pmgate::driver_kind::nonblocking, 10000);
}

TEST_CASE("scenario 23: stress: nor is a driver that sleeps in its calls") {
  race_commands_against_blocks(pmgate::driver_kind::blocking, 25);
}

TEST_CASE("scenario 23: a driver that may sleep is called by the work queue, and waited for") {
  scsi_rig rig;
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  struct sleepy {
    std::atomic<bool>& inside;
    std::atomic<bool>& leave;
    static int queuecommand(host& adapter, command& item) noexcept {
      auto& self = *static_cast<sleepy*>(adapter.context());
      self.inside = true;
      while (!self.leave) std::this_thread::yield();
      adapter.complete(item);
      return 0;
    }
  } lld{inside, leave};
  host adapter({.queuecommand = &sleepy::queuecommand,
                .context = &lld,
                .kind = pmgate::driver_kind::blocking});
  device dev(adapter, rig.where, rig.works);
  counted_command item;
  REQUIRE(dev.set_state(running) == status::ok);

  CHECK(dev.submit(item.item) == status::ok);  // and does not sleep for the driver
  CHECK_FALSE(inside);
  worker kblockd([&] { rig.run_works(); });
  while (!inside) std::this_thread::yield();
  worker blocker([&] { CHECK(adapter.block() == status::ok); });
  CHECK(blocker.is_blocked());

  leave = true;
  blocker.join();
  kblockd.join();
  CHECK(item.ends == 1);
  CHECK(dev.is_stopped());
}

// -- all or nothing

TEST_CASE("a refused try_block names the device, and leaves everything as it was") {
  scsi_rig rig(
      {running, quiesce, created, offline, created_block, block, transport_offline, running});
  const states before = rig.states();

  const auto report = rig.adapter.try_block();

  CHECK(report.result == status::invalid);
  CHECK(report.refused == &rig.dev(6));
  CHECK(rig.states() == before);
  for (std::size_t n = 0; n < before.size(); ++n) CHECK_FALSE(rig.dev(n).is_stopped());
  counted_command item;
  CHECK(rig.dev(0).submit(item.item) == status::ok);
  CHECK(rig.lld.has(item.item));
  rig.lld.complete_all();
}

TEST_CASE("try_block may be called twice, and what was blocked before survives a refusal") {
  scsi_rig rig({running, running});
  REQUIRE(rig.dev(0).block_nowait() == status::ok);

  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK(rig.states() == states{block, block});
  CHECK(rig.dev(1).queue().quiesce_depth() == 1);

  rig.dev(1).force_state(transport_offline);
  CHECK(rig.adapter.try_block().refused == &rig.dev(1));
  CHECK(rig.dev(0).state() == block);
  CHECK(rig.dev(0).is_stopped());
  CHECK(rig.adapter.try_unblock(running).result == status::ok);
}

TEST_CASE("a device that is being scanned is so after two try_block and one try_unblock") {
  scsi_rig rig({created, running});

  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK(rig.states() == states{created_block, block});

  CHECK(rig.adapter.try_unblock(running).result == status::ok);
  CHECK(rig.states() == states{created, running});
}

TEST_CASE("a scan that ends after two try_block leaves the device blocked, and unblock() runs it") {
  scsi_rig rig({created});
  REQUIRE(rig.adapter.try_block().result == status::ok);
  REQUIRE(rig.adapter.try_block().result == status::ok);

  CHECK(rig.dev().finish_scan() == status::ok);
  CHECK(rig.dev().state() == block);
  CHECK(rig.dev().is_stopped());

  CHECK(rig.adapter.unblock(running) == status::ok);
  CHECK(rig.dev().state() == running);
  CHECK_FALSE(rig.dev().is_stopped());
}

TEST_CASE("a device that is blocked by its state only is stopped by a try_block") {
  scsi_rig rig({block, created_block});
  counted_command held;

  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK(rig.dev(0).is_stopped());
  CHECK(rig.dev(1).is_stopped());
  REQUIRE(rig.dev(0).submit(held.item) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);

  CHECK(rig.adapter.try_unblock(running).result == status::ok);
  rig.finish_all();
  CHECK(held.ends == 1);
}

TEST_CASE("try_block passes over devices that are being removed, and knows before 5.7-rc4") {
  scsi_rig rig({cancel, running, del});
  scsi_rig old({running, quiesce}, scsi_generation::v5_7_rc3);

  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK(rig.states() == states{cancel, block, del});
  CHECK(old.adapter.try_block().refused == &old.dev(1));
  CHECK(old.states() == states{running, quiesce});

  CHECK(rig.adapter.try_unblock(running).refused == nullptr);
}

TEST_CASE("a refused try_block does not have an offline device reported once more") {
  scsi_rig rig({offline, offline, transport_offline});
  counted_command failing;
  REQUIRE(rig.dev(0).submit(failing.item) == status::ok);
  REQUIRE(rig.dev(0).offline_reported());

  CHECK(rig.adapter.try_block().result == status::invalid);

  CHECK(rig.states() == states{offline, offline, transport_offline});
  CHECK(rig.dev(0).offline_reported());
  CHECK_FALSE(rig.dev(1).offline_reported());

  rig.dev(2).force_state(running);
  CHECK(rig.adapter.try_block().result == status::ok);
  CHECK_FALSE(rig.dev(0).offline_reported());
  CHECK(rig.adapter.try_unblock(running).result == status::ok);
}

TEST_CASE("many devices are blocked with one grace period, and none if it is refused") {
  using testing::deferred_platform;
  using slow_device = pmgate::scsi::basic_device<deferred_platform>;
  struct no_driver {
    static int queuecommand(pmgate::scsi::basic_host<deferred_platform>&,
                            pmgate::scsi::basic_command<deferred_platform>&) noexcept {
      return 0;
    }
  };
  testing::grace().reset();
  testing::grace().serve_at_once(true);
  pmgate::pm::basic_work_queue<deferred_platform> works("kblockd");
  pmgate::scsi::basic_host<deferred_platform> adapter({&no_driver::queuecommand});
  pmgate::scsi::basic_target<deferred_platform> where;
  std::vector<std::unique_ptr<slow_device>> devices;
  for (int n = 0; n < 64; ++n) {
    devices.push_back(std::make_unique<slow_device>(
        adapter, where, works, pmgate::scsi::device_limits{}, pmgate::gate_start::atomic));
    REQUIRE(devices.back()->set_state(running) == status::ok);
  }
  pmgate::scsi::basic_host<deferred_platform> nobody({&no_driver::queuecommand});
  const int start = testing::grace().synchronized() + testing::grace().requested();
  CHECK(nobody.block() == status::ok);  // waits all the same
  const int before = testing::grace().synchronized() + testing::grace().requested();
  CHECK(before == start + 1);

  CHECK(adapter.block() == status::ok);
  CHECK(testing::grace().synchronized() + testing::grace().requested() == before + 1);
  CHECK(adapter.unblock(running) == status::ok);
  CHECK(adapter.block_targets() == status::ok);
  CHECK(testing::grace().synchronized() + testing::grace().requested() == before + 2);
  adapter.targets_unblock(running);

  testing::grace().refuse(1);
  CHECK(adapter.try_block().result == status::not_permitted);
  for (const auto& each : devices) CHECK(each->state() == running);
  for (const auto& each : devices) CHECK_FALSE(each->is_stopped());
  testing::grace().refuse(1);
  CHECK(adapter.block() == status::not_permitted);
  CHECK(devices.back()->state() == block);
  CHECK(adapter.unblock(running) == status::ok);
}

/// Somebody does something while a platform that refuses grace periods is asked for one.
struct interrupted_platform : virtual_platform {
  static std::function<bool()>& on_synchronize() {
    static std::function<bool()> hook;
    return hook;
  }
  static bool synchronize() noexcept {
    if (!on_synchronize()) return virtual_platform::synchronize();
    return std::exchange(on_synchronize(), nullptr)();
  }
};

/// A host with one device whose try_block() is refused after `meanwhile`.
struct interrupted_rig {
  using platform = interrupted_platform;
  explicit interrupted_rig(device_state state) {
    if (state == created) return;
    (void)dev.set_state(running);
    (void)dev.set_state(state);
  }
  ~interrupted_rig() {
    dev.resume();
    (void)adapter.try_unblock(running);
    settle();
  }
  template <class Meanwhile>
  void try_block(Meanwhile meanwhile) {
    platform::on_synchronize() = [&] {
      meanwhile();
      return false;
    };
    CHECK(adapter.try_block().result == status::not_permitted);
  }
  bool delivers() {
    const int before = calls;
    if (dev.submit(item, command_flags::nowait) != status::ok) return false;
    settle();
    return calls == before + 1;
  }
  void settle() {
    for (int round = 0; round < 34; ++round) {
      while (works.run_pending()) {
      }
      testing::virtual_clock::advance(3);
    }
  }
  static int queuecommand(pmgate::scsi::basic_host<platform>& adapter,
                          pmgate::scsi::basic_command<platform>& item) noexcept {
    ++*static_cast<int*>(adapter.context());
    adapter.complete(item);
    return 0;
  }
  struct fresh_clock {
    fresh_clock() { testing::virtual_clock::reset(); }
  } clock;
  testing::misuse_log misuse;
  int calls = 0;
  pmgate::pm::basic_work_queue<platform> works{"kblockd", pmgate::pm::work_queue_flags::none, 0};
  pmgate::scsi::basic_host<platform> adapter{{&queuecommand, &calls}};
  pmgate::scsi::basic_target<platform> where;
  pmgate::scsi::basic_device<platform> dev{adapter, where, works};
  pmgate::scsi::basic_command<platform> item;
};

TEST_CASE("a device resumed while a try_block fails is running and takes commands afterwards") {
  interrupted_rig rig(running);
  REQUIRE(rig.dev.quiesce() == status::ok);

  rig.try_block([&] { rig.dev.resume(); });

  CHECK(rig.dev.state() == running);
  CHECK(rig.dev.queue().gate().pm_only() == 0);
  CHECK(rig.delivers());
}

TEST_CASE("a device that is quiesced is quiesced again after a try_block that fails") {
  interrupted_rig rig(running);
  REQUIRE(rig.dev.quiesce() == status::ok);

  rig.try_block([] {});

  CHECK(rig.dev.state() == quiesce);
  CHECK_FALSE(rig.dev.is_stopped());
  rig.dev.resume();
  CHECK(rig.dev.state() == running);
}

TEST_CASE("who blocks a device while a try_block fails has it blocked afterwards") {
  interrupted_rig rig(running);

  rig.try_block([&] { CHECK(rig.adapter.block() == status::ok); });

  CHECK(rig.dev.state() == block);
  CHECK(rig.dev.is_stopped());
  CHECK(rig.dev.unblock(running) == status::ok);
  CHECK(rig.delivers());
}

TEST_CASE("a scan that ends while a try_block fails leaves the device running") {
  interrupted_rig scanned(created);
  interrupted_rig rig(offline);

  scanned.try_block([&] { CHECK(scanned.dev.finish_scan() == status::ok); });
  rig.try_block([&] { CHECK(rig.dev.finish_scan() == status::ok); });

  CHECK(scanned.dev.state() == running);
  CHECK(scanned.delivers());
  CHECK(rig.dev.state() == running);
  CHECK(rig.delivers());
}

TEST_CASE("a state that is set while a try_block fails stays, and the queue is started again") {
  for (const device_state wanted : {running, offline, transport_offline, block, del}) {
    interrupted_rig rig(running);

    rig.try_block([&] { CHECK(rig.dev.set_state(wanted) == status::ok); });

    CHECK(rig.dev.state() == wanted);
    CHECK_FALSE(rig.dev.is_stopped());
  }
  interrupted_rig forced(created);
  forced.try_block([&] { forced.dev.force_state(cancel); });
  CHECK(forced.dev.state() == cancel);
  CHECK_FALSE(forced.dev.is_stopped());
}

TEST_CASE("a device unblocked and blocked again while a try_block fails stays blocked") {
  interrupted_rig rig(running);

  rig.try_block([&] {
    CHECK(rig.dev.unblock(running) == status::ok);
    CHECK(rig.dev.block_nowait() == status::ok);
  });

  CHECK(rig.dev.state() == block);
  CHECK(rig.dev.is_stopped());
  CHECK(rig.dev.queue().quiesce_depth() == 1);
}

TEST_CASE("one try_block at a time: the second waits until the first has undone what it did") {
  interrupted_rig rig(running);
  bool second_waited = false;
  std::optional<worker> second;

  rig.try_block([&] {
    second.emplace([&] { CHECK(rig.adapter.try_block().result == status::ok); });
    second_waited = second->is_blocked();
  });
  second->join();

  CHECK(second_waited);
  CHECK(rig.dev.state() == block);
  CHECK(rig.dev.is_stopped());
}

TEST_CASE("a try_block with a deadline does not wait for another one any longer than that") {
  interrupted_rig rig(running);
  status second = status::ok;
  bool in_time = false;
  std::optional<worker> waiting;

  rig.try_block([&] {
    waiting.emplace([&] {
      const auto soon = virtual_platform::now() + virtual_platform::milliseconds(50);
      second = rig.adapter.try_block_until(soon).result;
    });
    in_time = !waiting->is_blocked();
  });
  waiting->join();

  CHECK(in_time);
  CHECK(second == status::timed_out);
  CHECK(testing::virtual_clock::now() == 50);
  CHECK(rig.dev.state() == running);
  CHECK(rig.adapter.try_block_until(virtual_platform::now()).result == status::ok);
  CHECK(rig.dev.state() == block);
}

TEST_CASE("try_unblock may be called twice, and starts what was left stopped") {
  scsi_rig rig({running, running, created, transport_offline});
  counted_command first, second;
  for (std::size_t n = 0; n < 3; ++n) REQUIRE(rig.dev(n).block_nowait() == status::ok);
  REQUIRE(rig.dev(1).set_state(running) == status::ok);
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  REQUIRE(rig.dev(1).submit(second.item) == status::ok);

  CHECK(rig.adapter.try_unblock(offline).result == status::invalid);
  CHECK(rig.adapter.try_unblock(running).result == status::ok);
  CHECK(rig.adapter.try_unblock(running).result == status::ok);

  CHECK(rig.states() == states{running, running, created, running});
  rig.finish_all();
  CHECK(first.ends + second.ends == 2);
}

TEST_CASE("try_unblock brings back what it has made transport-offline") {
  scsi_rig rig({running, created});
  REQUIRE(rig.adapter.try_block().result == status::ok);

  CHECK(rig.adapter.try_unblock(transport_offline).result == status::ok);
  CHECK(rig.states() == states{transport_offline, transport_offline});
  CHECK(rig.adapter.try_unblock(running).result == status::ok);

  CHECK(rig.states() == states{running, running});
}

TEST_CASE("try_unblock ends what is held by a blocked device that was put into DEL") {
  scsi_rig rig;
  counted_command held;
  REQUIRE(rig.adapter.block() == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  REQUIRE(rig.dev().set_state(del) == status::ok);

  CHECK(rig.adapter.try_unblock(running).result == status::ok);
  rig.settle();

  CHECK(rig.dev().state() == del);
  CHECK_FALSE(rig.dev().is_stopped());
  CHECK(held.ends == 1);
  CHECK(held.result() == did_no_connect);
  CHECK(rig.lld.calls() == 0);
}

TEST_CASE("stress: a device may be destroyed while the host's devices are walked") {
  using real_host = pmgate::scsi::host;
  using real_device = pmgate::scsi::device;
  struct no_driver {
    static int queuecommand(real_host&, pmgate::scsi::command&) noexcept { return 0; }
  };
  pmgate::pm::work_queue works("kblockd", pmgate::pm::work_queue_flags::none, 0);
  std::thread runner([&] { works.run(); });
  {
    real_host adapter({&no_driver::queuecommand});
    pmgate::scsi::target where;
    real_device stays(adapter, where, works);
    (void)stays.set_state(running);
    std::atomic<bool> stop{false};
    worker walker([&] {
      while (!stop) {
        (void)adapter.block();
        adapter.target_unblock(where, running);
        adapter.block_requests();
        adapter.unblock_requests();
      }
    });
    for (time_limit limit(100); limit;) {
      real_device comes_and_goes(adapter, where, works);
      (void)comes_and_goes.set_state(running);
      std::this_thread::yield();
    }
    stop = true;
    walker.join();
    CHECK(adapter.block() == status::ok);
    CHECK(stays.state() == block);
    CHECK(adapter.unblock(running) == status::ok);
  }
  works.stop();
  runner.join();
}

// -- block_requests

TEST_CASE(
    "scenario 29: blocked requests are entered and held, PM ones too, and one unblock undoes two "
    "blocks") {
  scsi_rig rig;
  counted_command normal, privileged;
  rig.adapter.block_requests();
  rig.adapter.block_requests();
  CHECK(rig.dev().submit(normal.item) == status::ok);
  CHECK(rig.dev().submit(privileged.item, pm) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);

  rig.adapter.unblock_requests();

  CHECK(rig.lld.taken() == 2);
  rig.lld.complete_all();
  CHECK(normal.ends + privileged.ends == 2);
}

TEST_CASE("the end of blocked requests runs the queues of devices in CANCEL, not of those in DEL") {
  scsi_rig rig({running, running, running});
  counted_command leaving, gone, last;
  rig.adapter.block_requests();
  REQUIRE(rig.dev(0).submit(leaving.item, pm) == status::ok);
  REQUIRE(rig.dev(1).submit(gone.item) == status::ok);
  REQUIRE(rig.dev(2).submit(last.item) == status::ok);
  rig.dev(0).force_state(cancel);
  rig.dev(1).force_state(del);

  rig.adapter.unblock_requests();  // and no time passes

  CHECK(rig.lld.has(leaving.item));
  CHECK(gone.ends == 0);
  CHECK(rig.lld.has(last.item));
  rig.finish_all();
  CHECK(gone.result() == did_no_connect);
}

TEST_CASE("scenario 29: blocking requests does not wait for the driver") {
  scsi_rig rig;
  counted_command item;
  bool returned = false;
  rig.lld.on_call = [&](command&) {
    rig.adapter.block_requests();
    returned = true;
    rig.adapter.unblock_requests();
  };

  CHECK(rig.dev().submit(item.item) == status::ok);

  CHECK(returned);
  rig.lld.complete_all();
}

// -- who waits for others

TEST_CASE("a device that waits for room at the host is run by another one's completion") {
  scsi_rig rig({running, running}, scsi_generation::v6_12, 0, 1);
  counted_command first, second;
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  REQUIRE(rig.dev(1).submit(second.item) == status::ok);
  CHECK(rig.lld.taken() == 1);

  rig.lld.complete_one();
  rig.run_works();  // and no time passes

  CHECK(rig.lld.has(second.item));
  rig.lld.complete_all();
  CHECK(rig.adapter.busy() == 0);
}

TEST_CASE("of the devices of a single-LUN target one is busy at a time") {
  scsi_rig rig({running, running}, scsi_generation::v6_12, 0, 0, true);
  std::array<counted_command, 3> items;
  REQUIRE(rig.dev(0).submit(items[0].item) == status::ok);
  REQUIRE(rig.dev(1).submit(items[1].item) == status::ok);
  REQUIRE(rig.dev(0).submit(items[2].item) == status::ok);
  CHECK(rig.lld.taken() == 2);
  CHECK_FALSE(rig.lld.has(items[1].item));

  rig.lld.complete_one();
  rig.run_works();
  CHECK_FALSE(rig.lld.has(items[1].item));
  rig.lld.complete_one();
  rig.run_works();  // and no time passes

  CHECK(rig.lld.has(items[1].item));
  rig.lld.complete_all();
}

TEST_CASE("what the target has no room for leaves a single-LUN target to the other device") {
  scsi_rig rig({running, running}, scsi_generation::v6_12, 1, 0, true);
  counted_command first, second, other;
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  REQUIRE(rig.dev(0).submit(second.item) == status::ok);
  CHECK(rig.lld.taken() == 1);
  rig.finish_all();
  REQUIRE(first.ends + second.ends == 2);

  CHECK(rig.dev(1).submit(other.item) == status::ok);

  CHECK(rig.lld.has(other.item));
  rig.lld.complete_all();
}

TEST_CASE("section 10: a device that waits for its target is run by another one's completion") {
  scsi_rig rig({running, running}, scsi_generation::v6_12, 1);
  counted_command first, second;
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  REQUIRE(rig.dev(1).submit(second.item) == status::ok);
  CHECK(rig.lld.taken() == 1);

  rig.lld.complete_one();
  rig.run_works();  // and no time passes

  CHECK(rig.lld.has(second.item));
  rig.lld.complete_all();
}

TEST_CASE("section 9: a device held by blocked requests is run by another one's completion") {
  scsi_rig rig({running, running});
  counted_command first, second;
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  rig.adapter.block_requests();
  REQUIRE(rig.dev(1).submit(second.item) == status::ok);
  rig.dev(1).force_state(offline);  // whose commands fail when the queue is run
  CHECK(second.ends == 0);

  rig.lld.complete_one();
  rig.run_works();  // and no time passes

  CHECK(second.ends == 1);
  CHECK(second.result() == did_no_connect);
  rig.adapter.unblock_requests();
}

TEST_CASE("a device that waits may be destroyed with another one's command under way") {
  scsi_rig rig({running, running}, scsi_generation::v6_12, 0, 1);
  counted_command first, second;
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  REQUIRE(rig.dev(1).submit(second.item) == status::ok);
  rig.dev(1).force_state(del);
  rig.settle();
  CHECK(second.result() == did_no_connect);

  rig.devices.pop_back();
  rig.lld.complete_all();

  CHECK(first.ends == 1);
}

// -- what the driver had

TEST_CASE("everything the driver has is completed at once, and what was promised a retry is sent") {
  scsi_rig rig({running, running});
  std::array<std::array<pmgate::scsi::basic_started_slot<virtual_platform>, 16>, 2> slots;
  for (std::size_t n = 0; n < 2; ++n) rig.dev(n).track_started(slots[n].data(), 16);
  counted_command passed, written, held;
  REQUIRE(rig.dev(0).submit(passed.item) == status::ok);
  REQUIRE(rig.dev(1).submit(written.item, command_flags::retry_after_reset) == status::ok);
  REQUIRE(rig.adapter.block() == status::ok);
  REQUIRE(rig.dev(0).submit(held.item) == status::ok);
  rig.lld.forget_all();

  CHECK(rig.adapter.complete_all(pmgate::scsi::did_reset) == 2);
  CHECK(rig.adapter.complete_all(pmgate::scsi::did_reset) == 0);

  CHECK(passed.result() == pmgate::scsi::did_reset);
  CHECK(passed.ends == 1);
  CHECK(written.ends + held.ends == 0);
  CHECK(rig.adapter.unblock(running) == status::ok);
  rig.finish_all();
  CHECK(written.ends == 1);
  CHECK(written.result() == 0);
  CHECK(held.ends == 1);
}

TEST_CASE("what the driver has completed or refused is not completed with the rest") {
  scsi_rig rig;
  std::array<pmgate::scsi::basic_started_slot<virtual_platform>, 16> slots;
  rig.dev().track_started(slots.data(), 16);
  counted_command ended, refused;
  REQUIRE(rig.dev().submit(ended.item) == status::ok);
  rig.lld.complete_one();
  CHECK(rig.adapter.complete_all(pmgate::scsi::did_reset) == 0);
  rig.lld.refusals = {pmgate::scsi::host_busy};
  REQUIRE(rig.dev().submit(refused.item) == status::ok);
  CHECK(rig.adapter.complete_all(pmgate::scsi::did_reset) == 0);

  CHECK(ended.ends == 1);
  CHECK(refused.ends == 0);
  rig.finish_all();
  CHECK(refused.ends == 1);
}

TEST_CASE("a host that is in CANCEL already is removed all the same") {
  scsi_rig rig({running, block});
  REQUIRE(rig.adapter.set_state(host_state::cancel) == status::ok);

  CHECK(rig.adapter.remove() == status::ok);

  CHECK(rig.adapter.state() == host_state::del);
  CHECK(rig.states() == states{del, del});
}

TEST_CASE("the upper drivers of a host that is removed let go of its devices, each once") {
  scsi_rig rig({running, running});
  std::vector<device*> gone;
  const auto unbind = [](device& which, void* context) noexcept {
    static_cast<std::vector<device*>*>(context)->push_back(&which);
  };

  CHECK(rig.adapter.remove(unbind, &gone) == status::ok);
  CHECK(rig.adapter.remove(unbind, &gone) == status::ok);

  CHECK(gone == std::vector<device*>{&rig.dev(0), &rig.dev(1)});
}

TEST_CASE("a second removal of a host waits for the devices of the first") {
  scsi_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  worker first([&] { CHECK(rig.adapter.remove() == status::ok); });
  CHECK(first.is_blocked());
  worker second([&] { CHECK(rig.adapter.remove() == status::ok); });
  CHECK(second.is_blocked());
  CHECK(rig.adapter.state() == host_state::cancel);

  rig.lld.complete_one();
  first.join();
  second.join();

  CHECK(rig.adapter.state() == host_state::del);
  CHECK(rig.dev().queue().gate().depth() == 1);
}

TEST_CASE("a host removed while it recovers goes on recovering, also if it is removed twice") {
  scsi_rig rig;
  REQUIRE(rig.adapter.set_state(host_state::cancel) == status::ok);
  REQUIRE(rig.adapter.begin_recovery() == status::ok);
  REQUIRE(rig.adapter.state() == host_state::cancel_recovery);

  CHECK(rig.adapter.remove() == status::ok);

  CHECK(rig.adapter.state() == host_state::del_recovery);
  CHECK(rig.adapter.is_in_recovery());
}

TEST_CASE("a removal that is refused the grace period says so, and is made up for by the next") {
  using testing::deferred_platform;
  using slow_device = pmgate::scsi::basic_device<deferred_platform>;
  using slow_command = pmgate::scsi::basic_command<deferred_platform>;
  struct lld {
    static int queuecommand(pmgate::scsi::basic_host<deferred_platform>&, slow_command&) noexcept {
      return 0;
    }
  };
  testing::grace().reset();
  testing::grace().serve_at_once(true);
  pmgate::pm::basic_work_queue<deferred_platform> works("kblockd");
  pmgate::scsi::basic_host<deferred_platform> adapter({&lld::queuecommand});
  pmgate::scsi::basic_target<deferred_platform> where;
  slow_device dev(adapter, where, works);
  slow_command inside, late;
  int unbound = 0;
  const auto unbind = [](slow_device&, void* context) noexcept { ++*static_cast<int*>(context); };
  REQUIRE(dev.set_state(running) == status::ok);
  REQUIRE(dev.submit(inside) == status::ok);

  testing::grace().refuse(1);
  CHECK(adapter.remove(unbind, &unbound) == status::not_permitted);
  CHECK(dev.state() == del);
  CHECK(adapter.state() == host_state::cancel);
  CHECK(dev.submit(late) == status::ok);  // not closed, and it fails all the same
  CHECK(late.result_word() == did_no_connect);

  dev.complete(inside);
  CHECK(adapter.remove(unbind, &unbound) == status::ok);
  CHECK(unbound == 1);
  CHECK(dev.queue().gate().depth() == 1);
  CHECK(adapter.state() == host_state::del);
  CHECK(dev.submit(late) == status::no_device);
}

TEST_CASE("removing a host removes its devices, also while it recovers") {
  scsi_rig rig({running, block});
  scsi_rig recovering;
  REQUIRE(recovering.adapter.begin_recovery() == status::ok);

  rig.adapter.remove();
  recovering.adapter.remove();

  CHECK(rig.adapter.state() == host_state::del);
  CHECK(rig.states() == states{del, del});
  CHECK(recovering.adapter.state() == host_state::del_recovery);
  CHECK(recovering.dev().state() == del);
  CHECK(recovering.adapter.begin_recovery() == status::invalid);
  CHECK(recovering.adapter.is_in_recovery());
  rig.adapter.remove();
  CHECK(rig.adapter.state() == host_state::del);
}

// -- targets

TEST_CASE("blocking targets passes over a device that cannot be blocked") {
  scsi_rig rig({running, transport_offline, running});

  CHECK(rig.adapter.block_targets() == status::invalid);
  CHECK(rig.states() == states{block, transport_offline, block});

  rig.adapter.target_unblock(rig.where, running);
  CHECK(rig.states() == states{running, running, running});
}

TEST_CASE("a target is quiesced and unblocked although its first device refuses") {
  scsi_rig rig({created, running});
  rig.adapter.target_quiesce(rig.where);
  CHECK(rig.states() == states{created, quiesce});
  rig.adapter.target_resume(rig.where);
  CHECK(rig.states() == states{created, running});

  REQUIRE(rig.dev(1).block_nowait() == status::ok);
  rig.adapter.target_unblock(rig.where, running);
  CHECK(rig.states() == states{created, running});
  REQUIRE(rig.dev(1).block_nowait() == status::ok);
  rig.adapter.targets_unblock(running);
  CHECK(rig.states() == states{created, running});
}

TEST_CASE("what is done to a target leaves the devices of another alone") {
  scsi_rig rig({running});
  target elsewhere;
  std::optional<device> other;
  other.emplace(rig.adapter, elsewhere, rig.works);
  (void)other->set_state(running);

  CHECK(rig.adapter.target_block(elsewhere) == status::ok);
  CHECK(rig.dev().state() == running);
  CHECK(other->state() == block);
  rig.adapter.target_unblock(elsewhere, running);

  rig.adapter.target_quiesce(rig.where);
  CHECK(rig.dev().state() == quiesce);
  CHECK(other->state() == running);
  rig.adapter.target_resume(elsewhere);
  CHECK(rig.dev().state() == quiesce);
  rig.adapter.target_resume(rig.where);
  CHECK(rig.dev().state() == running);
}

// -- walks

TEST_CASE("a walk visits the devices that are not being removed, in order, up to the first no") {
  scsi_rig rig({running, cancel, block, del, created});
  std::vector<device*> seen;
  const auto note = [&seen](device& which) {
    seen.push_back(&which);
    return seen.size() == 2 ? status::busy : status::ok;
  };

  CHECK(rig.adapter.for_each_device(note) == status::busy);
  CHECK(seen == std::vector<device*>{&rig.dev(0), &rig.dev(2)});
  CHECK(rig.adapter.for_each_device(note) == status::ok);
  CHECK(seen.size() == 5);
}

TEST_CASE("a device that is visited is not destroyed, and may be quiesced there") {
  scsi_rig rig;
  std::unique_ptr<device> owned = std::move(rig.devices.front());
  rig.devices.clear();
  std::optional<worker> destroyer;

  const status walked = rig.adapter.for_each_device([&](device& which) {
    destroyer.emplace([&] { owned.reset(); });
    CHECK(destroyer->is_blocked());
    CHECK(which.quiesce() == status::ok);
    which.resume();
    return status::ok;
  });
  destroyer->join();

  CHECK(walked == status::ok);
}

// -- states of the host

TEST_CASE("a host may start in CREATED: it dispatches, and does not recover") {
  scsi_rig rig;
  host fresh({&testing::driver::queuecommand, &rig.lld}, host_state::created);
  device dev(fresh, rig.where, rig.works);
  counted_command item;
  REQUIRE(dev.set_state(running) == status::ok);

  CHECK(fresh.begin_recovery() == status::invalid);
  CHECK(dev.submit(item.item) == status::ok);
  CHECK(rig.lld.complete_one());
  CHECK(fresh.set_state(host_state::running) == status::ok);
  CHECK(fresh.begin_recovery() == status::ok);
}

TEST_CASE("a host that starts recovering holds commands until the recovery ends") {
  scsi_rig rig;
  host fresh({&testing::driver::queuecommand, &rig.lld}, host_state::recovery);
  device dev(fresh, rig.where, rig.works);
  counted_command item;
  REQUIRE(dev.set_state(running) == status::ok);

  CHECK(dev.submit(item.item) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);
  CHECK(fresh.end_recovery() == status::ok);
  CHECK(rig.lld.complete_one());
}

TEST_CASE("scenario 2: a host goes where its table lets it, and no further") {
  scsi_rig rig;

  CHECK(rig.adapter.set_state(host_state::del) == status::invalid);
  CHECK(rig.adapter.state() == host_state::running);
  CHECK(rig.adapter.set_state(host_state::running) == status::ok);
  CHECK(rig.adapter.set_state(host_state::cancel) == status::ok);
  CHECK(rig.adapter.set_state(host_state::running) == status::invalid);
  CHECK(rig.adapter.set_state(host_state::del) == status::ok);
  CHECK(rig.adapter.begin_recovery() == status::invalid);
}

TEST_CASE(
    "scenario 30: while the host recovers every class is held, but for commands that would rather "
    "fail") {
  scsi_rig rig;
  counted_command normal, privileged, impatient;
  REQUIRE(rig.adapter.begin_recovery() == status::ok);

  CHECK(rig.dev().submit(impatient.item, command_flags::fail_if_recovering) == status::ok);
  CHECK(rig.dev().submit(normal.item) == status::ok);
  CHECK(rig.dev().submit(privileged.item, pm) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);
  CHECK(impatient.ends == 1);
  CHECK(impatient.result() == did_error);
  CHECK(normal.ends + privileged.ends == 0);

  CHECK(rig.adapter.end_recovery() == status::ok);
  CHECK(rig.adapter.state() == host_state::running);
  CHECK(rig.lld.taken() == 2);
  rig.lld.complete_all();
}

TEST_CASE("scenario 30: what a recovery holds takes no room at the target, and goes out then") {
  scsi_rig rig({running}, scsi_generation::v6_12, 1);
  counted_command item;
  REQUIRE(rig.adapter.begin_recovery() == status::ok);
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.settle();

  CHECK(rig.adapter.end_recovery() == status::ok);  // and no time passes

  CHECK(rig.lld.has(item.item));
  rig.lld.complete_all();
}

TEST_CASE("what is sent again during a recovery goes out after it from every device") {
  scsi_rig rig({running, running});
  std::array<counted_command, 2> items;
  for (std::size_t n = 0; n < 2; ++n) REQUIRE(rig.dev(n).submit(items[n].item) == status::ok);
  REQUIRE(rig.adapter.begin_recovery() == status::ok);
  while (rig.lld.complete_one(pmgate::scsi::status_busy)) {
  }

  CHECK(rig.adapter.end_recovery() == status::ok);
  rig.settle();

  CHECK(rig.lld.has(items[0].item));
  CHECK(rig.lld.has(items[1].item));
  rig.lld.complete_all();
}

TEST_CASE("scenario 30: a reset under way holds commands, and they go out soon after it") {
  scsi_rig rig;
  counted_command normal, privileged, impatient;
  rig.adapter.set_resetting(true);
  CHECK(rig.dev().submit(impatient.item, command_flags::fail_if_recovering) == status::ok);
  CHECK(rig.dev().submit(normal.item) == status::ok);
  CHECK(rig.dev().submit(privileged.item, pm) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);
  CHECK(impatient.result() == did_error);

  rig.adapter.set_resetting(false);
  rig.settle();

  CHECK(rig.lld.has(normal.item));
  CHECK(rig.lld.has(privileged.item));
  rig.lld.complete_all();
}

TEST_CASE("who has got his room is not run by the completions of others any more") {
  scsi_rig rig({device_state::running, device_state::running});
  counted_command first, second;
  REQUIRE(rig.dev(0).submit(first.item) == status::ok);
  rig.adapter.block_requests();
  REQUIRE(rig.dev(1).submit(second.item) == status::ok);  // starved
  rig.dev(1).force_state(device_state::block);
  rig.adapter.unblock_requests();  // runs it: it is blocked now, and waits for a run of its own
  rig.settle();
  REQUIRE(rig.dev(1).set_state(device_state::running) == status::ok);
  rig.settle();

  rig.lld.complete_one();
  rig.settle();
  CHECK(first.ends == 1);
  CHECK(rig.lld.calls() == 1);
  rig.dev(1).queue().run();
  CHECK(rig.lld.has(second.item));
  rig.lld.complete_all();
}

TEST_CASE("what is sent again during a recovery stays where it is until the recovery ends") {
  using enum host_state;
  struct way {
    void (*begin)(host&);
    void (*end)(host&);
    bool bare = false;  // a mere change of the state, which runs nothing
  };
  const way ways[] = {
      {[](host& h) { (void)h.begin_recovery(); }, [](host& h) { (void)h.end_recovery(); }},
      {[](host& h) { (void)h.begin_recovery(); },
       [](host& h) { (void)h.set_state(host_state::running); }, true},
      {[](host& h) { h.force_state(recovery); }, [](host& h) { h.force_state(cancel); }, true},
      {[](host& h) { h.set_resetting(true); }, [](host& h) { h.set_resetting(false); }},
  };
  for (const way& each : ways) {
    scsi_rig rig;
    counted_command retried, waiting;
    REQUIRE(rig.dev().submit(retried.item) == status::ok);
    each.begin(rig.adapter);
    rig.lld.complete_one(pmgate::scsi::status_busy);
    REQUIRE(rig.dev().set_state(device_state::offline) == status::ok);
    CHECK(rig.dev().submit(waiting.item) == status::ok);
    rig.settle();
    CHECK(waiting.result() == did_no_connect);  // the state is looked at before the recovery
    CHECK(retried.ends == 0);

    each.end(rig.adapter);
    rig.settle();
    CHECK(retried.ends == (each.bare ? 0 : 1));
    rig.adapter.unblock_requests();  // runs all queues
    rig.settle();

    CHECK(retried.ends == 1);
    CHECK(retried.result() == did_no_connect);
    CHECK(rig.lld.calls() == 1);
  }
}

TEST_CASE("a host that is being removed recovers, and goes on being removed") {
  scsi_rig rig;
  REQUIRE(rig.adapter.set_state(host_state::cancel) == status::ok);

  CHECK(rig.adapter.begin_recovery() == status::ok);
  CHECK(rig.adapter.state() == host_state::cancel_recovery);
  CHECK(rig.adapter.is_in_recovery());
  CHECK(rig.adapter.end_recovery() == status::ok);
  CHECK(rig.adapter.state() == host_state::cancel);
}

TEST_CASE("a host in CANCEL dispatches, one in DEL fails commands without calling the driver") {
  scsi_rig rig;
  counted_command first, second;
  REQUIRE(rig.adapter.set_state(host_state::cancel) == status::ok);
  CHECK(rig.dev().submit(first.item) == status::ok);
  CHECK(rig.lld.has(first.item));
  rig.lld.complete_all();

  REQUIRE(rig.adapter.set_state(host_state::del) == status::ok);
  CHECK(rig.dev().submit(second.item) == status::ok);

  CHECK(second.ends == 1);
  CHECK(second.result() == did_no_connect);
  CHECK(rig.lld.calls() == 1);
  CHECK(rig.adapter.busy() == 0);
  CHECK(rig.dev().busy() == 0);
}

}  // TEST_SUITE
