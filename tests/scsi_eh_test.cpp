// SPDX-License-Identifier: MIT
//
// scsi_eh_test.cpp - the error handler: when it runs, what it does, and its own commands;
// the numbers are those of the scenarios in the specification of SCSI.
#include <array>
#include <atomic>
#include <functional>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/scsi/eh.hpp>

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
using testing::scsi_rig;
using testing::time_limit;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using error_handler = pmgate::scsi::basic_error_handler<virtual_platform>;
using enum device_state;

static_assert(!std::is_copy_constructible_v<error_handler>);
static_assert(!std::is_move_constructible_v<error_handler>);

namespace {

constexpr auto one_second = std::chrono::seconds(1);

struct counted_command {
  static void on_done(command& item) noexcept {
    ++static_cast<counted_command*>(item.context())->ends;
  }
  int result() const { return item.result_word(); }
  std::atomic<int> ends{0};
  command item{&on_done, this};
};

/// A rig with a handler whose strategy is the test's.
struct eh_rig : scsi_rig {
  explicit eh_rig(std::vector<device_state> states = {running}) : scsi_rig(std::move(states)) {}
  static eh_rig& of(error_handler& handler) { return *static_cast<eh_rig*>(handler.context()); }

  static void abort(host& adapter, command& item) noexcept {
    auto& self = *static_cast<testing::driver*>(adapter.context());
    self.forget(item);
  }
  static void recover(error_handler& handler) noexcept {
    if (of(handler).strategy) of(handler).strategy(handler);
  }
  static command* door_lock(device&) noexcept {
    ++doors_asked;
    return lock_command;
  }

  /// Fails the command the driver took first.
  command& fail_one() {
    command& item = *lld.take_one();
    REQUIRE(handler.add(item) == status::ok);
    return item;
  }

  static inline command* lock_command = nullptr;
  static inline int doors_asked = 0;
  std::function<void(error_handler&)> strategy;
  error_handler handler{
      adapter, {.abort = &abort, .recover = &recover, .door_lock = &door_lock, .context = this}};
};

}  // namespace

TEST_SUITE("scsi_eh") {

// -- the handler's commands

TEST_CASE("scenario 31: a command of the handler waits for a blocked device, 100 ms at a time") {
  eh_rig rig;
  command item;
  std::int64_t sent_at = -1;
  rig.lld.on_call = [&](command&) { sent_at = virtual_clock::now(); };
  REQUIRE(rig.dev().block_nowait() == status::ok);
  virtual_clock::on_sleep() = [&] {
    if (virtual_clock::now() < 250) return;
    if (rig.dev().state() == block) (void)rig.dev().unblock(running);
    rig.lld.complete_all();
  };

  CHECK(rig.handler.send(rig.dev(), item, one_second) == status::ok);

  CHECK(sent_at >= 250);
  CHECK(sent_at <= 350);
  CHECK(item.result_word() == 0);
}

TEST_CASE("scenario 31: a device that stays blocked fails the command when its time is over") {
  eh_rig rig;
  command item;
  REQUIRE(rig.dev().block_nowait() == status::ok);

  CHECK(rig.handler.send(rig.dev(), item, one_second) == status::timed_out);

  CHECK(virtual_clock::now() == 1000);
  CHECK(rig.lld.calls() == 0);
}

TEST_CASE("scenario 31: the last look at a blocked device is when the time is over") {
  eh_rig rig;
  command item;
  REQUIRE(rig.dev().block_nowait() == status::ok);

  CHECK(rig.handler.send(rig.dev(), item, std::chrono::milliseconds(250)) == status::timed_out);

  CHECK(virtual_clock::now() == 250);
}

TEST_CASE("scenario 31: quiesce, created-blocked and a closed entry do not hold the handler") {
  eh_rig rig({quiesce, created_block, offline, running});
  for (std::size_t n = 0; n < 4; ++n) {
    rig.dev(n).queue().set_pm_only();
    rig.dev(n).queue().quiesce_nowait();
    command item;
    std::int64_t sent_at = -1;
    rig.lld.on_call = [&](command&) { sent_at = virtual_clock::now(); };
    virtual_clock::reset();
    virtual_clock::on_sleep() = [&] { rig.lld.complete_one(did_no_connect); };
    CHECK(rig.handler.send(rig.dev(n), item, one_second) == status::ok);
    CHECK(sent_at == 0);
    CHECK(item.result_word() == did_no_connect);
    rig.dev(n).queue().unquiesce();
    rig.dev(n).queue().clear_pm_only();
  }
  CHECK(rig.lld.calls() == 4);
}

TEST_CASE("scenario 31: blocking waits for the driver's call with a command of the handler") {
  eh_rig rig;
  command item;
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  rig.lld.on_call = [&](command& called) {
    inside = true;
    while (!leave) std::this_thread::yield();
    called.device().complete(called);
  };
  worker handler([&] { CHECK(rig.handler.send(rig.dev(), item, one_second) == status::ok); });
  while (!inside) std::this_thread::yield();
  worker blocker([&] { CHECK(rig.adapter.block() == status::ok); });
  CHECK(blocker.is_blocked());

  leave = true;

  handler.join();
  blocker.join();
  CHECK(rig.dev().state() == block);
}

TEST_CASE("a driver that refuses the handler's command is asked again every 100 ms") {
  eh_rig rig;
  command item;
  rig.lld.refusals = {pmgate::scsi::host_busy, pmgate::scsi::device_busy};
  std::vector<std::int64_t> calls;
  rig.lld.on_call = [&](command&) { calls.push_back(virtual_clock::now()); };
  virtual_clock::on_sleep() = [&] { rig.lld.complete_all(); };

  CHECK(rig.handler.send(rig.dev(), item, one_second) == status::ok);

  CHECK(calls == std::vector<std::int64_t>{0, 100, 200});
  CHECK(rig.adapter.blocked() == 0);
  CHECK(rig.dev().blocked() == 0);
}

TEST_CASE("a command of the handler that is not answered is aborted") {
  eh_rig rig;
  command item;

  CHECK(rig.handler.send(rig.dev(), item, one_second) == status::timed_out);

  CHECK(virtual_clock::now() == 1000);
  CHECK(rig.lld.calls() == 1);
  CHECK(rig.lld.taken() == 0);
}

// -- recoveries

TEST_CASE("a failed command holds the host, and the handler waits until the rest is done") {
  eh_rig rig({running, running});
  counted_command failing, slow, held;
  int recoveries = 0;
  rig.strategy = [&](error_handler& handler) {
    ++recoveries;
    handler.finish(*handler.next_failed(), did_error);
  };
  REQUIRE(rig.dev(0).submit(failing.item) == status::ok);
  REQUIRE(rig.dev(1).submit(slow.item) == status::ok);

  rig.fail_one();
  CHECK(rig.adapter.state() == host_state::recovery);
  REQUIRE(rig.dev(1).submit(held.item) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 2);
  CHECK_FALSE(rig.handler.run_pending());
  rig.lld.complete_one();
  CHECK(rig.handler.run_pending());

  CHECK(recoveries == 1);
  CHECK(rig.adapter.state() == host_state::running);
  CHECK(failing.ends == 1);
  CHECK(failing.result() == did_error);
  CHECK(rig.lld.has(held.item));  // and no time passes
  rig.lld.complete_all();
  CHECK_FALSE(rig.handler.run_pending());
}

TEST_CASE("a command that the handler retries goes out again after the recovery") {
  eh_rig rig;
  counted_command item;
  rig.strategy = [&](error_handler& handler) {
    handler.retry(*handler.next_failed());
    rig.settle();
    CHECK(rig.lld.calls() == 1);
  };
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.fail_one();

  CHECK(rig.handler.run_pending());
  rig.settle();

  CHECK(rig.lld.has(item.item));
  rig.lld.complete_all();
  CHECK(item.ends == 1);
  CHECK(item.result() == 0);
}

TEST_CASE("what the strategy leaves is given up: the device goes offline, from block as well") {
  eh_rig rig({running, running, running});
  std::vector<counted_command> items(3);
  for (std::size_t n = 0; n < 3; ++n) REQUIRE(rig.dev(n).submit(items[n].item) == status::ok);
  REQUIRE(rig.dev(1).block_nowait() == status::ok);
  REQUIRE(rig.dev(2).set_state(cancel) == status::ok);
  for (int n = 0; n < 3; ++n) rig.fail_one();
  CHECK(rig.handler.failed() == 3);

  CHECK(rig.handler.run_pending());

  CHECK(rig.states() == std::vector<device_state>{offline, offline, cancel});
  for (const counted_command& each : items) CHECK(each.result() == did_error);
  CHECK(rig.handler.failed() == 0);
  CHECK(rig.adapter.busy() == 0);
}

TEST_CASE("cause for a recovery that comes during one is another round of the same") {
  eh_rig rig;
  counted_command item, held;
  int rounds = 0;
  rig.strategy = [&](error_handler& handler) {
    if (++rounds == 1) REQUIRE(handler.schedule() == status::ok);
    if (command* const failed = handler.next_failed()) handler.finish(*failed, 0);
  };
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.fail_one();

  CHECK(rig.handler.run_pending());
  CHECK(item.ends == 1);
  CHECK(rig.adapter.is_in_recovery());
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  CHECK(rig.lld.calls() == 1);
  CHECK(rig.handler.run_pending());

  CHECK(rounds == 2);
  CHECK_FALSE(rig.adapter.is_in_recovery());
  CHECK(rig.lld.has(held.item));
  rig.lld.complete_all();
}

TEST_CASE("a recovery without a failed command runs when nothing is under way") {
  eh_rig rig;
  int recoveries = 0;
  rig.strategy = [&](error_handler&) { ++recoveries; };
  REQUIRE(rig.handler.schedule() == status::ok);
  CHECK(rig.adapter.is_in_recovery());

  CHECK(rig.handler.run_pending());

  CHECK(recoveries == 1);
  CHECK_FALSE(rig.adapter.is_in_recovery());
}

TEST_CASE("a removed host takes no failed commands") {
  eh_rig rig;
  rig.adapter.remove();

  CHECK(rig.handler.schedule() == status::invalid);
  CHECK_FALSE(rig.adapter.is_in_recovery());
}

TEST_CASE("after a recovery the door is locked again, unless the entry is closed") {
  eh_rig rig({running, running});
  counted_command lock;
  eh_rig::lock_command = &lock.item;
  REQUIRE(rig.dev(1).quiesce() == status::ok);  // whose lock command is refused
  rig.dev(0).remove();                          // and this one is not asked for one
  REQUIRE(rig.handler.schedule() == status::ok);
  CHECK(rig.handler.run_pending());
  CHECK(rig.lld.calls() == 0);

  rig.dev(1).resume();
  REQUIRE(rig.handler.schedule() == status::ok);
  CHECK(rig.handler.run_pending());

  CHECK(rig.lld.has(lock.item));
  rig.lld.complete_all();
  eh_rig::lock_command = nullptr;
}

TEST_CASE("a device that is being removed is not asked for its door") {
  eh_rig rig({cancel, offline, running});
  eh_rig::doors_asked = 0;
  REQUIRE(rig.handler.schedule() == status::ok);

  CHECK(rig.handler.run_pending());

  CHECK(eh_rig::doors_asked == 1);
}

TEST_CASE("a reset under way does not make a host recover that cannot: nothing is taken") {
  for (const host_state each : {host_state::created, host_state::del}) {
    eh_rig rig;
    counted_command item;
    REQUIRE(rig.dev().submit(item.item) == status::ok);
    rig.adapter.force_state(each);
    rig.adapter.set_resetting(true);

    CHECK(rig.handler.schedule() == status::invalid);
    CHECK(rig.handler.add(item.item) == status::invalid);  // and it may be completed

    CHECK(rig.handler.failed() == 0);
    CHECK_FALSE(rig.handler.run_pending());
    CHECK(rig.adapter.state() == each);
    rig.lld.complete_all();
  }
}

TEST_CASE("a host that was removed while it recovers takes what fails, and ends removed") {
  eh_rig rig(std::vector<device_state>{});
  REQUIRE(rig.adapter.begin_recovery() == status::ok);
  rig.adapter.remove();
  REQUIRE(rig.adapter.state() == host_state::del_recovery);

  CHECK(rig.handler.schedule() == status::ok);
  CHECK(rig.handler.run_pending());

  CHECK(rig.adapter.state() == host_state::del);
}

TEST_CASE(
    "scenario 30: a reset under way holds what is of power management, fails who cannot wait") {
  scsi_rig rig;
  counted_command held, pm, impatient;
  rig.adapter.set_resetting(true);

  REQUIRE(rig.dev().submit(pm.item, command_flags::pm) == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);
  rig.adapter.set_resetting(false);
  rig.finish_all();
  CHECK(held.ends + pm.ends == 2);

  rig.adapter.set_resetting(true);
  REQUIRE(rig.dev().submit(impatient.item, command_flags::fail_if_recovering) == status::ok);
  CHECK(impatient.ends == 1);
  CHECK(impatient.result() == did_error);
  CHECK(rig.lld.calls() == 2);
}

// -- commands that take too long

namespace {

/// A rig whose device tracks what was started, with a clock that looks every 10 ms.
struct timed_rig : eh_rig {
  timed_rig() {
    dev().track_started(slots.data(), 16);
    handler.start_timeouts(works, 30);
    strategy = [this](error_handler& each) {
      command* const item = each.next_failed();
      lld.forget(*item);
      each.finish(*item, did_error);
    };
  }
  ~timed_rig() { handler.stop_timeouts(); }
  void look() {
    virtual_clock::advance(10);
    run_works();
  }
  std::array<pmgate::scsi::basic_started_slot<virtual_platform>, 16> slots;
};

}  // namespace

TEST_CASE("a command that takes too long is the handler's, blocked or not") {
  for (const bool blocked : {false, true}) {
    timed_rig rig;
    counted_command item;
    REQUIRE(rig.dev().submit(item.item) == status::ok);
    if (blocked) REQUIRE(rig.dev().block_nowait() == status::ok);

    for (int n = 0; n < 3; ++n) rig.look();
    CHECK(rig.handler.failed() == 0);
    rig.look();
    CHECK(rig.handler.failed() == 1);
    CHECK(rig.adapter.is_in_recovery());
    CHECK(rig.handler.run_pending());

    CHECK(item.ends == 1);
    CHECK(item.result() == did_error);
    CHECK(rig.adapter.busy() == 0);
  }
}

TEST_CASE("a completion that comes when the time is over is without effect") {
  timed_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  for (int n = 0; n < 4; ++n) rig.look();

  rig.adapter.complete(item.item);
  CHECK(rig.misuse.take() == 0);
  CHECK(item.ends == 0);
  CHECK(rig.adapter.busy() == 1);
  CHECK(rig.handler.run_pending());

  CHECK(item.ends == 1);
  CHECK(item.result() == did_error);
  CHECK_FALSE(rig.adapter.is_in_recovery());
}

TEST_CASE("a command that was completed cannot fail any more where the device tracks it") {
  timed_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.lld.complete_all();

  CHECK(rig.handler.add(item.item) == status::canceled);

  CHECK(rig.handler.failed() == 0);
  CHECK_FALSE(rig.adapter.is_in_recovery());
}

TEST_CASE("a command that fails at a host which cannot recover stays the driver's") {
  timed_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.adapter.force_state(host_state::created);
  CHECK(rig.handler.add(item.item) == status::invalid);

  rig.lld.complete_all();

  CHECK(item.ends == 1);
  CHECK(rig.adapter.busy() == 0);
}

TEST_CASE("a command that takes too long at a host which cannot recover is reported, and ends") {
  timed_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.adapter.force_state(host_state::created);

  for (int n = 0; n < 4; ++n) rig.look();
  CHECK(rig.misuse.take() == 1);
  CHECK(rig.handler.run_pending());

  CHECK(item.ends == 1);
  CHECK(rig.adapter.busy() == 0);
  CHECK(rig.adapter.state() == host_state::created);
}

TEST_CASE("a recovery that somebody ends while the strategy runs is over after it all the same") {
  eh_rig rig;
  counted_command item;
  rig.strategy = [&](error_handler& handler) {
    handler.retry(*handler.next_failed());
    REQUIRE(rig.adapter.set_state(host_state::running) == status::ok);
  };
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  rig.fail_one();

  CHECK(rig.handler.run_pending());
  CHECK(rig.adapter.state() == host_state::running);
  rig.settle();

  CHECK(rig.lld.has(item.item));
  rig.lld.complete_all();
  CHECK(item.ends == 1);
}

TEST_CASE("a command that is sent again has its time anew") {
  timed_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  for (int n = 0; n < 3; ++n) rig.look();
  rig.lld.complete_one(pmgate::scsi::status_busy);
  while (rig.lld.taken() == 0) {
    virtual_clock::advance(1);
    rig.run_works();
  }

  for (int n = 0; n < 2; ++n) rig.look();
  CHECK(rig.handler.failed() == 0);
  rig.lld.complete_all();
  CHECK(item.ends == 1);
}

TEST_CASE("a command that the driver refuses when its time is over is the handler's alone") {
  timed_rig rig;
  counted_command item;
  rig.lld.refusals = {pmgate::scsi::host_busy};
  rig.lld.on_call = [&](command&) {
    for (int n = 0; n < 4; ++n) rig.handler.check_timeouts();
  };
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  CHECK(rig.handler.failed() == 1);
  CHECK(rig.adapter.busy() == 1);

  CHECK(rig.handler.run_pending());
  rig.settle();

  CHECK(rig.lld.calls() == 1);
  CHECK(item.ends == 1);
  CHECK(rig.adapter.busy() == 0);
}

TEST_CASE("a driver that refuses a command which is over by then leaves the next one alone") {
  timed_rig rig;
  counted_command late, next;
  rig.lld.refusals = {pmgate::scsi::host_busy};
  rig.lld.on_call = [&](command& called) {
    if (&called != &late.item) return;
    for (int n = 0; n < 4; ++n) rig.handler.check_timeouts();
    CHECK(rig.handler.run_pending());
    rig.lld.refusals.clear();
    REQUIRE(rig.dev().submit(next.item) == status::ok);
    CHECK(next.item.tag() == late.item.tag());
    rig.lld.refusals = {pmgate::scsi::host_busy};
  };
  REQUIRE(rig.dev().submit(late.item) == status::ok);

  CHECK(late.ends == 1);
  CHECK(late.result() == did_error);
  CHECK(rig.lld.calls() == 2);
  CHECK(rig.lld.has(next.item));
  CHECK(rig.adapter.busy() == 1);
  rig.lld.complete_all();
  CHECK(next.ends == 1);
  CHECK(rig.adapter.busy() == 0);
}

TEST_CASE("a host has one clock") {
  timed_rig rig;
  rig.handler.start_timeouts(rig.works, 30);
  CHECK(rig.misuse.take() == 1);
}

TEST_CASE("a completion of what the handler has is reported where nothing is tracked") {
  eh_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  command& failed = rig.fail_one();

  rig.adapter.complete(failed);
  CHECK(rig.misuse.take() == 1);
  CHECK(rig.handler.add(failed) == status::canceled);
  CHECK(rig.misuse.take() == 1);

  CHECK(item.ends == 0);
  CHECK(rig.handler.run_pending());
  CHECK(item.ends == 1);
  CHECK(rig.adapter.busy() == 0);
  CHECK_FALSE(rig.adapter.is_in_recovery());
}

// -- a host that sleeps at run time

namespace {

/// A host that is woken or cannot be.
struct sleeper {
  static status get_awake(host&) noexcept {
    if (answer == status::ok) ++awake;
    return answer;
  }
  static void put_awake(host& adapter) noexcept {
    CHECK_FALSE(adapter.is_in_recovery());
    --awake;
  }
  static void recover(error_handler&) noexcept {
    CHECK(awake == 1);
    ++recoveries;
  }
  sleeper() {
    answer = status::ok;
    awake = recoveries = 0;
  }

  static inline status answer = status::ok;
  static inline int awake = 0;
  static inline int recoveries = 0;
  scsi_rig rig;
  error_handler handler{rig.adapter,
                        {.abort = &eh_rig::abort,
                         .recover = &recover,
                         .get_awake = &get_awake,
                         .put_awake = &put_awake}};
};

}  // namespace

TEST_CASE("a host is awake while it recovers, and is let go after it") {
  sleeper host;
  REQUIRE(host.handler.schedule() == status::ok);

  CHECK(host.handler.run_pending());

  CHECK(sleeper::recoveries == 1);
  CHECK(sleeper::awake == 0);
}

TEST_CASE("a host that cannot be woken stays in recovery till there is cause again") {
  sleeper host;
  REQUIRE(host.handler.schedule() == status::ok);
  sleeper::answer = status::io_error;
  CHECK_FALSE(host.handler.run_pending());
  CHECK(sleeper::recoveries == 0);
  CHECK(host.rig.adapter.is_in_recovery());

  sleeper::answer = status::ok;
  REQUIRE(host.handler.schedule() == status::ok);
  CHECK(host.handler.run_pending());

  CHECK(sleeper::recoveries == 1);
  CHECK_FALSE(host.rig.adapter.is_in_recovery());
}

// -- the handler's thread, and who waits

TEST_CASE("the handler's thread runs recoveries until it is stopped") {
  eh_rig rig;
  counted_command item;
  rig.strategy = [](error_handler& handler) { handler.finish(*handler.next_failed(), 0); };
  worker thread([&] { rig.handler.run(); });
  REQUIRE(rig.dev().submit(item.item) == status::ok);

  rig.fail_one();
  CHECK(rig.adapter.await_recovery(rig.dev()));

  CHECK(item.ends == 1);
  rig.handler.stop();
  thread.join();
}

TEST_CASE("section 13: the last command that did not fail wakes the handler's thread") {
  eh_rig rig({running, running});
  counted_command failing, slow;
  REQUIRE(rig.dev(0).submit(failing.item) == status::ok);
  REQUIRE(rig.dev(1).submit(slow.item) == status::ok);
  rig.fail_one();
  worker thread([&] { rig.handler.run(); });
  CHECK(thread.is_blocked());
  CHECK(failing.ends == 0);

  rig.lld.complete_one();
  for (time_limit limit(5000); limit && failing.ends == 0;) std::this_thread::yield();

  CHECK(failing.ends == 1);
  rig.handler.stop();
  thread.join();
  CHECK_FALSE(rig.handler.run_pending());
}

TEST_CASE("who waits for the end of a reset is woken by it") {
  scsi_rig rig;
  rig.adapter.set_resetting(true);
  worker waiting([&] { CHECK(rig.adapter.await_recovery(rig.dev())); });
  CHECK(waiting.is_blocked());

  rig.adapter.set_resetting(false);
  for (time_limit limit(5000); limit && !waiting.done();) std::this_thread::yield();

  CHECK(waiting.done());
  (void)rig.adapter.set_state(host_state::running);  // wakes in any case
}

TEST_CASE("who waits for the end of a recovery is told whether the device is online") {
  scsi_rig rig({running, offline});
  REQUIRE(rig.adapter.begin_recovery() == status::ok);
  std::atomic<int> online{0};
  worker first([&] { online += rig.adapter.await_recovery(rig.dev(0)) ? 1 : 0; });
  worker second([&] { online += rig.adapter.await_recovery(rig.dev(1)) ? 10 : 0; });
  CHECK(first.is_blocked());
  CHECK(second.is_blocked());

  CHECK(rig.adapter.end_recovery() == status::ok);
  first.join();
  second.join();

  CHECK(online == 1);
}

TEST_CASE("an error handler that is destroyed with failed commands reports") {
  scsi_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  {
    error_handler handler(rig.adapter, {&eh_rig::abort});
    command& failed = *rig.lld.take_one();
    REQUIRE(handler.add(failed) == status::ok);
  }
  CHECK(rig.misuse.take() == 1);
  rig.adapter.complete(item.item);
}

}  // TEST_SUITE
