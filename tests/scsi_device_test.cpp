// SPDX-License-Identifier: MIT
//
// scsi_device_test.cpp - one device: quiesce, block, the state check, busy answers; the
// numbers are those of the scenarios in the specifications of SCSI and system sleep.
#include <array>
#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/single.hpp>
#include <pmgate/pm/freezer.hpp>
#include <pmgate/scsi/host.hpp>

#include "support/scsi_rig.hpp"

using pmgate::single_platform;
using pmgate::status;
using pmgate::scsi::can_transition;
using pmgate::scsi::command_flags;
using pmgate::scsi::did_error;
using pmgate::scsi::did_no_connect;
using testing::bring_to;
using testing::command;
using testing::device;
using testing::device_state;
using testing::issuer;
using testing::scsi_generation;
using testing::scsi_rig;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using nobody = virtual_platform::thread_id;

static_assert(!std::is_copy_constructible_v<device>);
static_assert(!std::is_move_constructible_v<device>);
static_assert(!std::is_copy_constructible_v<command>);
static_assert(noexcept(std::declval<device&>().quiesce()));
static_assert(noexcept(std::declval<device&>().execute(std::declval<command&>())));

namespace {

constexpr auto pm = command_flags::pm;
constexpr auto nowait = command_flags::nowait;
constexpr auto special = command_flags::special;

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

TEST_SUITE("scsi_device") {

// -- state

TEST_CASE("scenario 1: of 81 pairs exactly the legal ones change the state") {
  for (unsigned from = 1; from <= 9; ++from) {
    for (unsigned to = 1; to <= 9; ++to) {
      const auto start = static_cast<device_state>(from);
      const auto end = static_cast<device_state>(to);
      scsi_rig rig({start});
      const bool legal = can_transition(start, end);

      CHECK(rig.dev().set_state(end) == (legal ? status::ok : status::invalid));

      CHECK(rig.dev().state() == (legal ? end : start));
    }
  }
}

TEST_CASE(
    "scenario 1: setting the state a device has keeps the offline report, a change clears it") {
  scsi_rig rig({device_state::offline});
  counted_command failing;
  CHECK(rig.dev().submit(failing.item) == status::ok);
  REQUIRE(rig.dev().offline_reported());

  CHECK(rig.dev().set_state(device_state::offline) == status::ok);
  CHECK(rig.dev().offline_reported());
  CHECK(rig.dev().set_state(device_state::transport_offline) == status::invalid);
  CHECK(rig.dev().offline_reported());

  CHECK(rig.dev().set_state(device_state::running) == status::ok);
  CHECK_FALSE(rig.dev().offline_reported());
  CHECK(failing.ends == 1);
  CHECK(failing.result() == did_no_connect);
}

TEST_CASE("the offline report outlasts a forced state and an unblock") {
  scsi_rig rig({device_state::offline, device_state::transport_offline});
  std::array<counted_command, 2> failing;
  for (std::size_t n = 0; n < 2; ++n) {
    REQUIRE(rig.dev(n).submit(failing[n].item) == status::ok);
    REQUIRE(rig.dev(n).offline_reported());
    CHECK(rig.dev(n).unblock(device_state::running) == status::ok);
    CHECK(rig.dev(n).offline_reported());
  }
  CHECK(rig.states() == std::vector<device_state>{device_state::offline, device_state::running});

  rig.dev().force_state(device_state::running);
  CHECK(rig.dev().offline_reported());
}

// -- quiesce and resume

TEST_CASE("scenario 3: quiesce drains and closes the entry to normal commands, resume opens it") {
  scsi_rig rig;
  counted_command first;
  REQUIRE(rig.dev().submit(first.item) == status::ok);
  status quiesced = status::again;
  worker t1([&] { quiesced = rig.dev().quiesce(); });
  CHECK(t1.is_blocked());
  issuer t2(rig.dev());
  CHECK(t2.is_blocked());
  CHECK(rig.lld.calls() == 1);

  rig.lld.complete_one();
  t1.join();
  CHECK(quiesced == status::ok);
  CHECK(rig.dev().state() == device_state::quiesce);
  CHECK(rig.dev().queue().gate().pm_only() == 1);
  CHECK(t2.is_blocked());

  rig.dev().resume();
  rig.lld.await_taken(1);
  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.lld.calls() == 2);
  rig.lld.complete_one();
  CHECK(t2.join() == status::ok);
}

TEST_CASE(
    "scenario 4: while quiesce drains PM commands wait as well, afterwards they get through") {
  scsi_rig rig;
  counted_command first;
  REQUIRE(rig.dev().submit(first.item) == status::ok);
  worker t1([&] { CHECK(rig.dev().quiesce() == status::ok); });
  CHECK(t1.is_blocked());
  issuer t3(rig.dev(), pm);
  CHECK(t3.is_blocked());
  CHECK(rig.lld.calls() == 1);

  rig.lld.complete_one();
  t1.join();
  rig.lld.await_taken(1);

  CHECK(rig.dev().state() == device_state::quiesce);
  CHECK(rig.lld.has(t3.item));
  rig.lld.complete_one();
  CHECK(t3.join() == status::ok);
  CHECK(t3.item.result_word() == 0);
  rig.dev().resume();
}

TEST_CASE("scenario 5: a quiesced device refuses a normal NOWAIT command and takes a PM one") {
  scsi_rig rig;
  counted_command normal, privileged;
  REQUIRE(rig.dev().quiesce() == status::ok);

  CHECK(rig.dev().submit(normal.item, nowait) == status::again);
  CHECK(rig.dev().submit(privileged.item, nowait | pm) == status::ok);

  CHECK(normal.ends == 0);
  CHECK(rig.lld.has(privileged.item));
  rig.lld.complete_all();
  rig.dev().resume();
}

TEST_CASE("scenario 5: who must not sleep is told that his command goes out, when it does") {
  struct waiter : pmgate::scsi::basic_command_waiter<virtual_platform> {
    waiter() : pmgate::scsi::basic_command_waiter<virtual_platform>(&on_resume) {}
    static void on_resume(pmgate::scsi::basic_command_waiter<virtual_platform>& self,
                          status result) noexcept {
      ++static_cast<waiter&>(self).times;
      static_cast<waiter&>(self).answer = result;
    }
    int times = 0;
    status answer = status::invalid;
  };
  scsi_rig rig({device_state::running});
  waiter queued;
  counted_command normal;
  counted_command other;
  REQUIRE(rig.dev().quiesce() == status::ok);
  CHECK(rig.dev().submit_until(other.item, virtual_platform::now()) == status::timed_out);
  CHECK(rig.dev().submit_or_wait(queued, normal.item) == status::in_progress);
  CHECK(rig.dev().submit_or_wait(queued, other.item) == status::busy);
  CHECK(rig.lld.taken() == 0);

  rig.dev().resume();
  CHECK(queued.times == 1);
  CHECK(queued.answer == status::ok);
  CHECK(rig.lld.has(normal.item));
  CHECK(rig.dev().submit_or_wait(queued, other.item) == status::ok);
  rig.lld.complete_all();
  CHECK(normal.ends == 1);
  CHECK(other.ends == 1);

  REQUIRE(rig.dev().quiesce() == status::ok);
  CHECK(rig.dev().submit_or_wait(queued, normal.item) == status::in_progress);
  CHECK(rig.dev().cancel(queued));
  rig.dev().resume();
  CHECK(queued.times == 1);
  CHECK(rig.lld.taken() == 0);
  CHECK(rig.misuse.take() == 1);  // queued twice
}

TEST_CASE("scenario 6: one resume undoes two quiesces of one thread, a second does nothing") {
  scsi_rig rig;

  CHECK(rig.dev().quiesce() == status::ok);
  CHECK(rig.dev().quiesce() == status::ok);
  CHECK(rig.dev().queue().gate().pm_only() == 1);

  rig.dev().resume();
  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  rig.dev().resume();
  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.misuse.count() == 0);
}

TEST_CASE("scenario 7: another thread may resume, and the first may quiesce again") {
  scsi_rig rig;
  REQUIRE(rig.dev().quiesce() == status::ok);

  std::thread([&] { rig.dev().resume(); }).join();
  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.dev().quiesced_by() == nobody{});

  CHECK(rig.dev().quiesce() == status::ok);
  CHECK(rig.dev().queue().gate().pm_only() == 1);
  rig.dev().resume();
}

TEST_CASE("scenario 8: a second quiesce by another thread is reported and outlasts the resume") {
  scsi_rig rig;
  REQUIRE(rig.dev().quiesce() == status::ok);
  worker t2([&] { CHECK(rig.dev().quiesce() == status::ok); });
  t2.join();
  CHECK(rig.misuse.take() == 1);
  CHECK(rig.dev().queue().gate().pm_only() == 2);
  CHECK_FALSE(rig.dev().quiesced_by() == virtual_platform::this_thread());

  rig.dev().resume();
  rig.dev().resume();

  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().queue().gate().pm_only() == 1);
  counted_command normal;
  CHECK(rig.dev().submit(normal.item, nowait) == status::again);
  rig.dev().queue().clear_pm_only();
}

TEST_CASE("scenario 9: an illegal quiesce drains first, and lets in who waited meanwhile") {
  scsi_rig rig({device_state::created});
  counted_command inside;
  REQUIRE(rig.dev().submit(inside.item) == status::ok);
  status quiesced = status::ok;
  worker t1([&] { quiesced = rig.dev().quiesce(); });
  CHECK(t1.is_blocked());
  issuer waiting(rig.dev());
  CHECK(waiting.is_blocked());

  rig.lld.complete_one();
  t1.join();
  rig.lld.await_taken(1);

  CHECK(quiesced == status::invalid);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.dev().quiesced_by() == nobody{});
  CHECK(rig.dev().state() == device_state::created);
  rig.lld.complete_one();
  CHECK(waiting.join() == status::ok);
}

TEST_CASE("scenario 10: quiescing a blocked device with a held command waits for the unblock") {
  scsi_rig rig;
  REQUIRE(rig.dev().block_nowait() == status::ok);
  counted_command held;
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  status quiesced = status::again;
  worker t1([&] { quiesced = rig.dev().quiesce(); });
  CHECK(t1.is_blocked());
  CHECK(rig.lld.calls() == 0);

  CHECK(rig.dev().unblock(device_state::running) == status::ok);
  rig.finish_all();
  t1.join();

  CHECK(held.ends == 1);
  CHECK(quiesced == status::ok);
  CHECK(rig.dev().state() == device_state::quiesce);
  rig.dev().resume();
}

TEST_CASE("scenario 10: quiescing a blocked device without commands fails promptly") {
  scsi_rig rig;
  REQUIRE(rig.dev().block_nowait() == status::ok);

  CHECK(rig.dev().quiesce() == status::invalid);

  CHECK(rig.dev().state() == device_state::block);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.dev().unblock(device_state::running) == status::ok);
}

TEST_CASE("scenario 11: an offline device comes back running from quiesce and resume") {
  scsi_rig rig({device_state::offline});

  CHECK(rig.dev().quiesce() == status::ok);
  CHECK(rig.dev().state() == device_state::quiesce);
  rig.dev().resume();

  CHECK(rig.dev().state() == device_state::running);
}

TEST_CASE("scenario 12: resume leaves a state somebody else has set, and opens the entry") {
  scsi_rig rig;
  counted_command normal, privileged;
  REQUIRE(rig.dev().quiesce() == status::ok);
  REQUIRE(rig.dev().set_state(device_state::cancel) == status::ok);

  rig.dev().resume();

  CHECK(rig.dev().state() == device_state::cancel);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.dev().quiesced_by() == nobody{});
  CHECK(rig.dev().submit(normal.item) == status::ok);
  CHECK(normal.result() == did_error);
  CHECK(rig.dev().submit(privileged.item, pm) == status::ok);
  CHECK(rig.lld.has(privileged.item));
  rig.lld.complete_all();
}

TEST_CASE("a resume while a quiesce drains changes nothing, and the quiesce succeeds") {
  scsi_rig rig;
  counted_command inside;
  REQUIRE(rig.dev().submit(inside.item) == status::ok);
  worker t1([&] { CHECK(rig.dev().quiesce() == status::ok); });
  CHECK(t1.is_blocked());

  rig.dev().resume();
  rig.lld.complete_one();
  t1.join();

  CHECK(rig.dev().state() == device_state::quiesce);
  CHECK(rig.dev().queue().gate().pm_only() == 1);
  rig.dev().resume();
}

TEST_CASE("a quiesce with a deadline that passes leaves the device as it was, and open") {
  scsi_rig rig;
  counted_command inside, next;
  REQUIRE(rig.dev().submit(inside.item) == status::ok);
  const auto soon = virtual_platform::now() + virtual_platform::milliseconds(50);

  CHECK(rig.dev().quiesce_until(soon) == status::timed_out);

  CHECK(virtual_clock::now() == 50);
  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().quiesced_by() == nobody{});
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.dev().queue().gate().depth() == 0);
  CHECK(rig.dev().submit(next.item, nowait) == status::ok);
  rig.lld.complete_all();

  CHECK(rig.dev().quiesce_until(soon) == status::ok);
  CHECK(rig.dev().state() == device_state::quiesce);
  CHECK(rig.dev().quiesced_by() == virtual_platform::this_thread());
  rig.dev().resume();
}

TEST_CASE("section 6: the state is judged after the drain, whatever it was before") {
  using enum device_state;
  struct change {
    device_state to;
    status result;
  };
  for (const auto& [to, result] :
       {change{running, status::ok}, change{offline, status::ok}, change{block, status::invalid},
        change{cancel, status::invalid}, change{del, status::invalid}}) {
    scsi_rig rig;
    counted_command inside;
    REQUIRE(rig.dev().submit(inside.item) == status::ok);
    status quiesced = status::again;
    worker t1([&] { quiesced = rig.dev().quiesce(); });
    REQUIRE(t1.is_blocked());

    rig.dev().force_state(to);
    rig.lld.complete_one();
    t1.join();

    CHECK(quiesced == result);
    CHECK(rig.dev().state() == (result == status::ok ? quiesce : to));
    CHECK(rig.dev().queue().gate().pm_only() == (result == status::ok ? 1 : 0));
    rig.dev().resume();
  }
}

// -- block and unblock

TEST_CASE("scenario 15: a device blocked while quiesced holds commands until it is unblocked") {
  scsi_rig rig;
  REQUIRE(rig.dev().quiesce() == status::ok);
  REQUIRE(rig.adapter.block() == status::ok);

  rig.dev().resume();
  CHECK(rig.dev().state() == device_state::block);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  counted_command normal;
  CHECK(rig.dev().submit(normal.item) == status::ok);
  CHECK(rig.dev().queue().freeze_until(virtual_platform::now()) == status::timed_out);  // inside
  rig.settle();
  CHECK(rig.lld.calls() == 0);
  CHECK(normal.ends == 0);

  CHECK(rig.adapter.unblock(device_state::running) == status::ok);
  rig.settle();
  CHECK(rig.lld.has(normal.item));
  rig.lld.complete_all();
}

TEST_CASE("scenario 20: a device is unblocked to running or transport-offline only") {
  scsi_rig rig;
  counted_command held;
  REQUIRE(rig.dev().block_nowait() == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);

  CHECK(rig.dev().unblock(device_state::offline) == status::invalid);
  CHECK(rig.dev().unblock(device_state::created) == status::invalid);
  CHECK(rig.dev().unblock(device_state::quiesce) == status::invalid);
  CHECK(rig.dev().state() == device_state::block);
  CHECK(rig.dev().is_stopped());
  rig.settle();
  CHECK(held.ends == 0);

  CHECK(rig.dev().unblock(device_state::transport_offline) == status::ok);
  rig.settle();
  CHECK(rig.dev().state() == device_state::transport_offline);
  CHECK(held.ends == 1);
  CHECK(held.result() == did_no_connect);
  CHECK(rig.lld.calls() == 0);
}

TEST_CASE(
    "scenario 22: a device blocked while being scanned is created again, unless blocked twice") {
  scsi_rig rig({device_state::created});

  CHECK(rig.dev().block_nowait() == status::ok);
  CHECK(rig.dev().state() == device_state::created_block);
  CHECK(rig.dev().unblock(device_state::running) == status::ok);
  CHECK(rig.dev().state() == device_state::created);

  CHECK(rig.dev().block_nowait() == status::ok);
  CHECK(rig.dev().block_nowait() == status::ok);
  CHECK(rig.dev().state() == device_state::block);
  CHECK(rig.dev().unblock(device_state::running) == status::ok);
  CHECK(rig.dev().state() == device_state::running);
  CHECK(rig.dev().queue().quiesce_depth() == 0);
}

TEST_CASE("scenario 24: commands in flight survive a block, a retried one waits for the unblock") {
  scsi_rig rig;
  std::array<counted_command, 4> items;
  for (counted_command& each : items) REQUIRE(rig.dev().submit(each.item) == status::ok);
  REQUIRE(rig.lld.taken() == 4);

  CHECK(rig.adapter.block() == status::ok);
  rig.lld.complete_one();
  rig.lld.complete_one();
  rig.lld.complete_one();
  rig.lld.complete_one(pmgate::scsi::status_busy);
  rig.settle();
  CHECK(items[0].ends + items[1].ends + items[2].ends == 3);
  CHECK(items[3].ends == 0);
  CHECK(rig.lld.calls() == 4);

  CHECK(rig.adapter.unblock(device_state::running) == status::ok);
  rig.settle();
  CHECK(rig.lld.has(items[3].item));
  rig.lld.complete_one();
  CHECK(items[3].ends == 1);
  CHECK(items[3].result() == 0);
}

TEST_CASE("a stopped device that is set running by hand stays stopped until it is blocked again") {
  scsi_rig rig;
  counted_command held;
  REQUIRE(rig.dev().block_nowait() == status::ok);
  REQUIRE(rig.dev().set_state(device_state::running) == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  rig.settle();

  CHECK(rig.dev().unblock(device_state::running) == status::invalid);
  rig.settle();
  CHECK(rig.lld.calls() == 0);

  CHECK(rig.dev().block_nowait() == status::ok);
  CHECK(rig.dev().unblock(device_state::running) == status::ok);
  rig.settle();
  CHECK(rig.lld.has(held.item));
  rig.lld.complete_all();
}

TEST_CASE("a device blocked by its state only puts commands back until the queue is run") {
  scsi_rig rig;
  counted_command held;
  REQUIRE(rig.dev().set_state(device_state::block) == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  CHECK_FALSE(rig.dev().is_stopped());
  REQUIRE(rig.dev().set_state(device_state::running) == status::ok);
  rig.settle();
  CHECK(rig.lld.calls() == 0);

  rig.dev().queue().run();

  CHECK(rig.lld.has(held.item));
  rig.lld.complete_all();
}

// -- busy answers

TEST_CASE("section 10: a blocked device that was busy is not asked again by the clock") {
  for (const device_state each : {device_state::block, device_state::created_block}) {
    scsi_rig rig;
    counted_command item;
    rig.lld.refusals = {pmgate::scsi::device_busy};
    REQUIRE(rig.dev().submit(item.item) == status::ok);
    REQUIRE(rig.dev().blocked() == 3);
    rig.dev().force_state(each);

    rig.settle();
    CHECK(rig.dev().blocked() == 2);  // asked once, and then no more

    rig.dev().force_state(device_state::running);
    rig.dev().queue().run();
    rig.finish_all();
    CHECK(item.ends == 1);
  }
}

TEST_CASE("a state set while the driver is being called keeps the next command from it") {
  scsi_rig rig;
  counted_command first, second;
  bool blocks = true;
  rig.lld.on_call = [&](command&) {
    if (!std::exchange(blocks, false)) return;
    (void)rig.dev().set_state(device_state::block);
  };
  REQUIRE(rig.dev().submit(first.item) == status::ok);

  CHECK(rig.dev().submit(second.item) == status::ok);
  CHECK(rig.lld.calls() == 1);
  CHECK(second.ends == 0);

  REQUIRE(rig.dev().set_state(device_state::running) == status::ok);
  rig.finish_all();
  CHECK(second.ends == 1);
}

/// Calls back when somebody is about to lock a mutex, here to get between two looks.
struct hooked_platform : virtual_platform {
  static std::function<void()>& before_lock() {
    static std::function<void()> hook;
    return hook;
  }
  class mutex : public virtual_platform::mutex {
   public:
    void lock() noexcept {
      if (before_lock()) before_lock()();
      virtual_platform::mutex::lock();
    }
  };
};

TEST_CASE("scenario 25: a device blocked between the two looks at its state is not sent anything") {
  using pmgate::scsi::basic_command;
  using pmgate::scsi::basic_host;
  struct counting {
    static int queuecommand(basic_host<hooked_platform>& adapter,
                            basic_command<hooked_platform>& item) noexcept {
      ++*static_cast<int*>(adapter.context());
      adapter.complete(item);
      return 0;
    }
  };
  int calls = 0;
  virtual_clock::reset();
  pmgate::pm::basic_work_queue<hooked_platform> works("kblockd");
  basic_host<hooked_platform> adapter({&counting::queuecommand, &calls});
  pmgate::scsi::basic_target<hooked_platform> where(0, true);  // whose lock is in between
  pmgate::scsi::basic_device<hooked_platform> dev(adapter, where, works);
  basic_command<hooked_platform> item;
  REQUIRE(dev.set_state(device_state::running) == status::ok);
  bool armed = true;
  hooked_platform::before_lock() = [&] {
    if (dev.busy() == 1 && std::exchange(armed, false)) dev.force_state(device_state::block);
  };
  REQUIRE(dev.submit(item) == status::ok);
  hooked_platform::before_lock() = nullptr;
  const auto settle = [&] {
    for (int n = 0; n < 100; ++n) {
      while (works.run_pending()) {
      }
      virtual_clock::advance(3);
    }
  };
  settle();

  CHECK_FALSE(armed);
  CHECK(calls == 0);
  CHECK(dev.blocked() == 3);
  CHECK(dev.sent() == 0);
  CHECK(dev.busy() + adapter.busy() == 0);

  dev.force_state(device_state::running);
  settle();
  CHECK(calls == 0);  // nobody ran the queue: it is no matter of time
  dev.queue().run();
  CHECK(calls == 0);  // two attempts are refused
  dev.queue().run();
  CHECK(calls == 0);
  dev.queue().run();
  CHECK(calls == 1);
  CHECK(dev.sent() == 1);
}

TEST_CASE("a device removed between the two looks at its state fails the command, as if sent") {
  using pmgate::scsi::basic_command;
  using pmgate::scsi::basic_host;
  struct unwanted {
    static int queuecommand(basic_host<hooked_platform>& adapter,
                            basic_command<hooked_platform>& item) noexcept {
      ++*static_cast<int*>(adapter.context());
      adapter.complete(item);
      return 0;
    }
  };
  int calls = 0;
  virtual_clock::reset();
  pmgate::pm::basic_work_queue<hooked_platform> works("kblockd");
  basic_host<hooked_platform> adapter({&unwanted::queuecommand, &calls});
  pmgate::scsi::basic_target<hooked_platform> where(0, true);  // whose lock is in between
  pmgate::scsi::basic_device<hooked_platform> dev(adapter, where, works);
  basic_command<hooked_platform> item;
  REQUIRE(dev.set_state(device_state::running) == status::ok);
  bool armed = true;
  hooked_platform::before_lock() = [&] {
    if (dev.busy() == 1 && std::exchange(armed, false)) dev.force_state(device_state::del);
  };
  REQUIRE(dev.submit(item) == status::ok);
  hooked_platform::before_lock() = nullptr;

  CHECK_FALSE(armed);
  CHECK(calls == 0);
  CHECK(item.result_word() == did_no_connect);
  CHECK(dev.sent() == 1);
  CHECK(dev.busy() + adapter.busy() == 0);
}

TEST_CASE(
    "scenario 26: after device-busy the third attempt gets through, after host-busy the seventh") {
  scsi_rig rig;
  counted_command item;
  rig.lld.refusals = {pmgate::scsi::device_busy};
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  CHECK(rig.dev().blocked() == 3);
  rig.dev().queue().run();
  rig.dev().queue().run();
  CHECK(rig.lld.calls() == 1);
  rig.dev().queue().run();
  CHECK(rig.lld.calls() == 2);
  rig.lld.complete_one();

  counted_command other;
  rig.lld.refusals = {pmgate::scsi::host_busy};
  REQUIRE(rig.dev().submit(other.item) == status::ok);
  CHECK(rig.adapter.blocked() == 7);
  for (int attempt = 1; attempt <= 6; ++attempt) rig.dev().queue().run();
  CHECK(rig.lld.calls() == 3);
  rig.dev().queue().run();
  CHECK(rig.lld.calls() == 4);
  rig.finish_all();
  CHECK(other.ends == 1);
}

TEST_CASE("scenario 26: an outstanding command suspends the countdown, its completion ends it") {
  scsi_rig rig;
  counted_command outstanding, refused;
  REQUIRE(rig.dev().submit(outstanding.item) == status::ok);
  rig.lld.refusals = {pmgate::scsi::device_busy};
  REQUIRE(rig.dev().submit(refused.item) == status::ok);
  for (int attempt = 0; attempt < 5; ++attempt) rig.dev().queue().run();
  CHECK(rig.dev().blocked() == 3);
  CHECK(rig.lld.calls() == 2);

  rig.lld.complete_one();
  CHECK(rig.dev().blocked() == 0);
  rig.settle();

  CHECK(rig.lld.has(refused.item));
  rig.lld.complete_all();
}

TEST_CASE("scenario 26: the same for what the host and the target are busy with") {
  scsi_rig rig({device_state::running}, scsi_generation::v6_12, 4);
  for (const int answer : {pmgate::scsi::host_busy, pmgate::scsi::target_busy}) {
    const bool of_host = answer == pmgate::scsi::host_busy;
    const auto blocked = [&] { return of_host ? rig.adapter.blocked() : rig.where.blocked(); };
    counted_command outstanding, refused;
    REQUIRE(rig.dev().submit(outstanding.item) == status::ok);
    const int before = rig.lld.calls();
    rig.lld.refusals = {answer};
    REQUIRE(rig.dev().submit(refused.item) == status::ok);
    for (int attempt = 0; attempt < 8; ++attempt) rig.dev().queue().run();
    CHECK(blocked() == (of_host ? 7 : 3));
    CHECK(rig.lld.calls() == before + 1);

    rig.lld.complete_one();
    CHECK(blocked() == 0);
    rig.settle();

    CHECK(rig.lld.has(refused.item));
    rig.lld.complete_all();
  }
}

TEST_CASE("a command the device has no room for is sent again, and that counts as device-busy") {
  for (const int answer : {pmgate::scsi::status_busy, pmgate::scsi::status_task_set_full}) {
    scsi_rig rig;
    counted_command item;
    REQUIRE(rig.dev().submit(item.item) == status::ok);

    rig.lld.complete_one(answer);
    CHECK(item.ends == 0);
    CHECK(rig.dev().blocked() == 3);
    rig.run_works();
    CHECK(rig.lld.calls() == 1);
    rig.finish_all();

    CHECK(rig.lld.calls() == 2);
    CHECK(item.ends == 1);
    CHECK(item.result() == 0);
  }
}

TEST_CASE("scenario 27: target-busy delays nothing without a limit, and two attempts with one") {
  scsi_rig unlimited;
  counted_command first;
  unlimited.lld.refusals = {pmgate::scsi::target_busy};
  REQUIRE(unlimited.dev().submit(first.item) == status::ok);
  CHECK(unlimited.where.blocked() == 3);
  unlimited.dev().queue().run();
  CHECK(unlimited.lld.calls() == 2);
  unlimited.finish_all();

  scsi_rig limited({device_state::running}, scsi_generation::v6_12, 4);
  counted_command second;
  limited.lld.refusals = {pmgate::scsi::target_busy};
  REQUIRE(limited.dev().submit(second.item) == status::ok);
  limited.dev().queue().run();
  limited.dev().queue().run();
  CHECK(limited.lld.calls() == 1);
  limited.dev().queue().run();
  CHECK(limited.lld.calls() == 2);
  limited.finish_all();
}

TEST_CASE("where the countdown after target-busy begins is for the target to say") {
  scsi_rig rig;
  testing::target patient(4, false, 5);
  device dev(rig.adapter, patient, rig.works);
  counted_command item;
  REQUIRE(dev.set_state(device_state::running) == status::ok);
  rig.lld.refusals = {pmgate::scsi::target_busy};

  REQUIRE(dev.submit(item.item) == status::ok);

  CHECK(patient.blocked() == 5);
  rig.finish_all();
  CHECK(item.ends == 1);
}

TEST_CASE("scenario 28: an unknown answer means host-busy, and the command is sent again") {
  for (const int answer : {-5, 1, pmgate::scsi::eh_retry}) {
    scsi_rig rig;
    counted_command item;
    rig.lld.refusals = {answer};
    REQUIRE(rig.dev().submit(item.item) == status::ok);
    CHECK(rig.adapter.blocked() == 7);

    rig.finish_all();

    CHECK(item.ends == 1);
    CHECK(item.result() == 0);
  }
}

TEST_CASE("a reservation conflict is reported as 0x118, other results as they are") {
  scsi_rig rig;
  counted_command conflict, failed;
  REQUIRE(rig.dev().submit(conflict.item) == status::ok);
  REQUIRE(rig.dev().submit(failed.item) == status::ok);

  rig.lld.complete_one(pmgate::scsi::status_reservation_conflict);
  rig.lld.complete_one(did_no_connect);

  CHECK(conflict.result() == 0x118);
  CHECK(failed.result() == did_no_connect);
}

TEST_CASE("executed commands overtake what is held, submitted ones queue up behind") {
  scsi_rig rig;
  std::vector<command*> order;
  rig.lld.on_call = [&](command& item) { order.push_back(&item); };
  counted_command first, second;
  REQUIRE(rig.dev().block_nowait() == status::ok);
  REQUIRE(rig.dev().submit(first.item) == status::ok);
  REQUIRE(rig.dev().submit(second.item) == status::ok);
  issuer internal(rig.dev());
  CHECK(internal.is_blocked());

  REQUIRE(rig.dev().unblock(device_state::running) == status::ok);
  rig.finish_all();
  CHECK(internal.join() == status::ok);

  CHECK(order == std::vector<command*>{&internal.item, &first.item, &second.item});
}

TEST_CASE("a command that is sent again goes behind what is held") {
  scsi_rig rig;
  counted_command retried, held;
  REQUIRE(rig.dev().submit(retried.item) == status::ok);
  REQUIRE(rig.dev().block_nowait() == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  rig.lld.complete_one(pmgate::scsi::status_busy);
  rig.settle();
  std::vector<const command*> order;
  rig.lld.on_call = [&](command& item) { order.push_back(&item); };

  CHECK(rig.dev().unblock(device_state::running) == status::ok);
  rig.finish_all();

  CHECK(order == std::vector<const command*>{&held.item, &retried.item});
}

TEST_CASE("no more commands than the depth are with the driver at a time") {
  scsi_rig rig;
  std::array<counted_command, 12> items;
  for (counted_command& each : items) REQUIRE(rig.dev().submit(each.item) == status::ok);
  rig.settle();
  CHECK(rig.lld.taken() == 8);
  CHECK(rig.dev().busy() == 8);

  rig.lld.complete_one();
  rig.settle();
  CHECK(rig.lld.taken() == 8);

  rig.finish_all();
  for (counted_command& each : items) CHECK(each.ends == 1);
}

// -- removal

TEST_CASE(
    "scenario 32: removing a blocked device fails what it holds, and lets nobody in any more") {
  scsi_rig rig;
  std::array<counted_command, 3> held;
  REQUIRE(rig.dev().block_nowait() == status::ok);
  for (counted_command& each : held) REQUIRE(rig.dev().submit(each.item) == status::ok);
  worker remover([&] { rig.dev().remove(); });
  while (rig.dev().queue().gate().depth() == 0) std::this_thread::yield();
  rig.settle();
  remover.join();

  CHECK(rig.dev().state() == device_state::del);
  for (counted_command& each : held) {
    CHECK(each.ends == 1);
    CHECK(each.result() == did_no_connect);
  }
  CHECK(rig.lld.calls() == 0);
  CHECK(rig.dev().queue().gate().depth() == 1);
  counted_command late;
  CHECK(rig.dev().submit(late.item) == status::no_device);
  CHECK(rig.dev().submit(late.item, nowait) == status::again);
  rig.dev().remove();
  CHECK(rig.dev().queue().gate().depth() == 1);
}

TEST_CASE("the upper driver of a device that is removed gets its last commands through") {
  scsi_rig rig;
  struct upper {
    static void unbind(device& which, void* context) noexcept {
      auto& self = *static_cast<upper*>(context);
      self.seen = which.state();
      self.ordinary = which.submit(self.refused.item);
      self.privileged = which.submit(self.last.item, pm);
    }
    device_state seen{};
    status ordinary{}, privileged{};
    counted_command refused, last;
  } driver;
  worker remover([&] { rig.dev().remove(&upper::unbind, &driver); });
  rig.lld.await_taken(1);
  CHECK(remover.is_blocked());
  CHECK(rig.dev().state() == device_state::del);
  rig.lld.complete_one();
  remover.join();

  CHECK(driver.seen == device_state::cancel);
  CHECK(driver.refused.result() == did_error);
  CHECK(driver.refused.item.result() == status::no_device);
  CHECK(driver.last.result() == 0);
}

TEST_CASE("a removed device forgets its quiesce when it is resumed, and stays removed") {
  scsi_rig rig;
  REQUIRE(rig.dev().quiesce() == status::ok);
  rig.dev().remove();
  CHECK(rig.dev().queue().gate().pm_only() == 1);

  rig.dev().resume();

  CHECK(rig.dev().state() == device_state::del);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
  CHECK(rig.dev().quiesced_by() == nobody{});
}

TEST_CASE("a second removal waits for the first one's drain, and unbinds and freezes nothing") {
  scsi_rig rig;
  counted_command inside;
  std::atomic<int> unbound{0};
  const auto unbind = [](device&, void* context) noexcept {
    ++*static_cast<std::atomic<int>*>(context);
  };
  REQUIRE(rig.dev().submit(inside.item) == status::ok);
  worker first([&] { CHECK(rig.dev().remove(unbind, &unbound) == status::ok); });
  CHECK(first.is_blocked());
  worker second([&] { CHECK(rig.dev().remove(unbind, &unbound) == status::ok); });
  CHECK(second.is_blocked());

  rig.lld.complete_one();
  first.join();
  second.join();

  CHECK(unbound == 1);
  CHECK(rig.dev().queue().gate().depth() == 1);
}

TEST_CASE("an upper driver that removes its device again while it lets go of it is told") {
  scsi_rig rig;
  status again = status::ok;
  const auto unbind = [](device& which, void* context) noexcept {
    *static_cast<status*>(context) = which.remove();
  };

  CHECK(rig.dev().remove(unbind, &again) == status::ok);

  CHECK(again == status::deadlock);
  CHECK(rig.misuse.take() == 1);
  CHECK(rig.dev().state() == device_state::del);
  CHECK(rig.dev().queue().gate().depth() == 1);
}

TEST_CASE(
    "removal waits for what a device holds that is stopped and not blocked: try_unblock ends it") {
  scsi_rig rig;
  counted_command held;
  REQUIRE(rig.dev().block_nowait() == status::ok);
  REQUIRE(rig.dev().submit(held.item) == status::ok);
  REQUIRE(rig.dev().set_state(device_state::running) == status::ok);
  worker remover([&] { CHECK(rig.dev().remove() == status::ok); });
  while (rig.dev().queue().gate().depth() == 0) std::this_thread::yield();
  rig.settle();
  CHECK(remover.is_blocked());
  CHECK(rig.dev().state() == device_state::del);

  CHECK(rig.adapter.try_unblock(device_state::running).result == status::ok);
  rig.settle();
  remover.join();

  CHECK(held.ends == 1);
  CHECK(held.result() == did_no_connect);
  CHECK(rig.lld.calls() == 0);
}

TEST_CASE("a device that is put into DEL by hand is not drained by its removal") {
  scsi_rig rig({device_state::del});

  CHECK(rig.dev().remove() == status::ok);

  CHECK(rig.dev().queue().gate().depth() == 0);
}

TEST_CASE("who is let in by a resume may change the device's state") {
  scsi_rig rig;
  struct entrant : pmgate::basic_gate_waiter<virtual_platform> {
    using base = pmgate::basic_gate_waiter<virtual_platform>;
    explicit entrant(device& which) : base(&enter), where(which) {}
    static void enter(base& self, status) noexcept {
      auto& me = static_cast<entrant&>(self);
      me.changed = me.where.set_state(device_state::offline);
      me.where.queue().exit();
    }
    device& where;
    status changed = status::busy;
  } waiter(rig.dev());
  REQUIRE(rig.dev().quiesce() == status::ok);
  REQUIRE(rig.dev().queue().gate().enter_or_wait(waiter) == status::in_progress);

  rig.dev().resume();

  CHECK(waiter.changed == status::ok);
  CHECK(rig.dev().state() == device_state::offline);
}

TEST_CASE("who waits for a block that is undone may change the device's state") {
  scsi_rig rig;
  struct silence : pmgate::basic_gate_waiter<virtual_platform> {
    using base = pmgate::basic_gate_waiter<virtual_platform>;
    explicit silence(device& which) : base(&over), where(which) {}
    static void over(base& self, status) noexcept {
      auto& me = static_cast<silence&>(self);
      me.changed = me.where.set_state(device_state::offline);
    }
    device& where;
    status changed = status::busy;
  } waiter(rig.dev());
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  rig.lld.on_call = [&](command&) {
    inside = true;
    while (!leave) std::this_thread::yield();
  };
  counted_command item;
  worker t1([&] { CHECK(rig.dev().submit(item.item) == status::ok); });
  while (!inside) std::this_thread::yield();
  REQUIRE(rig.dev().block_nowait() == status::ok);
  REQUIRE(rig.dev().queue().sections().quiesced_or_wait(waiter) == status::in_progress);

  CHECK(rig.dev().unblock(device_state::running) == status::ok);

  CHECK(waiter.changed == status::ok);
  CHECK(rig.dev().state() == device_state::offline);
  leave = true;
  t1.join();
  rig.lld.complete_all();
}

TEST_CASE("a scan ends running, that of a blocked device blocked") {
  scsi_rig rig({device_state::created, device_state::created_block, device_state::cancel});

  CHECK(rig.dev(0).finish_scan() == status::ok);
  CHECK(rig.dev(1).finish_scan() == status::ok);
  CHECK(rig.dev(2).finish_scan() == status::invalid);

  CHECK(rig.dev(0).state() == device_state::running);
  CHECK(rig.dev(1).state() == device_state::block);
  CHECK(rig.dev(2).state() == device_state::cancel);
}

TEST_CASE("a command that is too long for the host ends with DID_ABORT, unsent") {
  scsi_rig rig;
  counted_command item;
  item.item.set_size(261);

  CHECK(rig.dev().submit(item.item) == status::ok);

  CHECK(item.result() == pmgate::scsi::did_abort);
  CHECK(rig.lld.calls() == 0);
  CHECK(rig.adapter.busy() + rig.dev().busy() == 0);
}

TEST_CASE("a command the driver was not to see is counted as sent, and ends every countdown") {
  scsi_rig rig({device_state::running, device_state::running});
  counted_command refused, too_long, late;
  rig.lld.refusals = {pmgate::scsi::target_busy};
  REQUIRE(rig.dev(0).submit(refused.item) == status::ok);
  REQUIRE(rig.where.blocked() == 3);
  CHECK(rig.dev(0).sent() == 0);

  too_long.item.set_size(261);
  CHECK(rig.dev(1).submit(too_long.item) == status::ok);
  CHECK(rig.where.blocked() == 0);
  CHECK(rig.dev(1).sent() == 1);

  rig.adapter.force_state(pmgate::scsi::host_state::del);
  CHECK(rig.dev(1).submit(late.item) == status::ok);
  CHECK(late.result() == did_no_connect);
  CHECK(rig.dev(1).sent() == 2);
  CHECK(rig.adapter.busy() + rig.dev(1).busy() == 0);
  rig.adapter.force_state(pmgate::scsi::host_state::running);
  rig.finish_all();
}

TEST_CASE("a command that is completed twice is reported, and nothing is counted out twice") {
  scsi_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  command* const taken = rig.lld.take_one();

  rig.adapter.complete(*taken);
  rig.adapter.complete(*taken);

  CHECK(rig.misuse.take() == 1);
  CHECK(item.ends == 1);
  CHECK(rig.adapter.busy() == 0);
  CHECK(rig.dev().busy() == 0);
}

TEST_CASE("a command that waits to be sent again is not the driver's to complete") {
  scsi_rig rig;
  counted_command item;
  REQUIRE(rig.dev().submit(item.item) == status::ok);
  command* const taken = rig.lld.take_one();

  rig.adapter.complete(*taken, pmgate::scsi::status_busy);
  rig.adapter.complete(*taken);

  CHECK(rig.misuse.take() == 1);
  CHECK(item.ends == 0);
  CHECK(rig.dev().busy() == 0);
  rig.finish_all();
  CHECK(item.ends == 1);
}

TEST_CASE("a device is asked for its size when it is running and open to everybody") {
  scsi_rig rig({device_state::running, device_state::block});
  CHECK(rig.adapter.rescan(rig.dev(0)) == status::ok);
  CHECK(rig.adapter.rescan(rig.dev(1)) == status::again);
  REQUIRE(rig.dev(0).quiesce() == status::ok);
  CHECK(rig.adapter.rescan(rig.dev(0)) == status::again);
  REQUIRE(rig.dev(0).set_state(device_state::running) == status::ok);
  CHECK(rig.adapter.rescan(rig.dev(0)) == status::again);  // running, but not for everybody
  rig.dev(0).resume();
  CHECK(rig.adapter.rescan(rig.dev(0)) == status::ok);
}

// -- generations

TEST_CASE(
    "scenario 34: before 5.11 a special command passes a quiesced device, since then it waits") {
  scsi_rig before({device_state::running}, scsi_generation::v5_7);
  scsi_rig since;
  counted_command old_poll, new_poll;
  REQUIRE(before.dev().quiesce() == status::ok);
  REQUIRE(since.dev().quiesce() == status::ok);

  CHECK(before.dev().submit(old_poll.item, special | nowait) == status::ok);
  CHECK(since.dev().submit(new_poll.item, special | nowait) == status::again);

  CHECK(before.lld.has(old_poll.item));
  before.lld.complete_all();
  before.dev().resume();
  since.dev().resume();
}

TEST_CASE("before 5.11 a special command passed whether the queue was runtime-suspended or not") {
  scsi_rig before({device_state::running}, scsi_generation::v5_7);
  scsi_rig since;
  counted_command old_poll, old_pm, new_pm;
  for (scsi_rig* const each : {&before, &since}) {
    REQUIRE(each->dev().quiesce() == status::ok);
    each->dev().queue().gate().set_runtime_suspended(true);
  }

  CHECK(before.dev().submit(old_poll.item, special | nowait) == status::ok);
  CHECK(before.dev().submit(old_pm.item, pm | nowait) == status::ok);
  CHECK(since.dev().submit(new_pm.item, pm | nowait) == status::again);

  before.lld.complete_all();
  CHECK(old_poll.ends + old_pm.ends == 2);
  for (scsi_rig* const each : {&before, &since}) {
    each->dev().queue().gate().set_runtime_suspended(false);
    each->dev().resume();
  }
}

TEST_CASE("before 5.11 a device that is being scanned took special commands only") {
  scsi_rig before({device_state::created}, scsi_generation::v5_7);
  counted_command normal, internal;

  CHECK(before.dev().submit(normal.item) == status::ok);
  CHECK(before.dev().submit(internal.item, special) == status::ok);

  CHECK(normal.result() == did_error);
  CHECK(before.lld.has(internal.item));
  before.lld.complete_all();
}

// -- system sleep

TEST_CASE("32 of system sleep: a poller held at a quiesced device keeps its queue from freezing") {
  scsi_rig rig;
  pmgate::pm::basic_freezer<virtual_platform> freezer;
  pmgate::pm::basic_freezer<virtual_platform>::report report;
  pmgate::pm::basic_work_queue<virtual_platform> polls("events",
                                                       pmgate::pm::work_queue_flags::freezable);
  freezer.add(polls);
  struct poller {
    static void poll(pmgate::pm::basic_work<virtual_platform>& item) noexcept {
      auto& self = *static_cast<poller*>(item.context());
      self.entered = self.where->execute(self.test_unit_ready);
    }
    device* where = nullptr;
    command test_unit_ready;
    std::atomic<status> entered{status::busy};
    pmgate::pm::basic_work<virtual_platform> work{&poll, this};
  } poller;
  poller.where = &rig.dev();
  REQUIRE(rig.dev().quiesce() == status::ok);
  polls.queue(poller.work);
  worker thread([&] { polls.run_pending(); });
  CHECK(thread.is_blocked());

  CHECK(freezer.freeze_kernel_threads(report) == status::busy);
  CHECK(report.wq_busy());
  CHECK(report.elapsed >= std::chrono::seconds(20));

  rig.dev().resume();
  rig.lld.await_taken(1);
  rig.lld.complete_one();
  thread.join();
  CHECK(poller.entered == status::ok);
  CHECK(freezer.freeze_kernel_threads(report) == status::ok);
  freezer.thaw_processes();
  freezer.remove(polls);
}

// -- images

TEST_CASE("with an image come back the state, who quiesced, and who stopped") {
  using pmgate::pm::image_move;
  scsi_rig rig(
      {device_state::running, device_state::running, device_state::running, device_state::running});
  device& quiesced = rig.dev(0);
  device& by_other = rig.dev(1);
  device& stopped = rig.dev(2);
  device& open = rig.dev(3);
  CHECK(quiesced.quiesce() == status::ok);
  nobody other{};
  std::thread([&] {
    other = virtual_platform::this_thread();
    CHECK(by_other.quiesce() == status::ok);
  }).join();
  CHECK(stopped.block_nowait() == status::ok);
  for (const auto& each : rig.devices) each->keep_image(image_move::save);

  quiesced.resume();
  by_other.resume();
  CHECK(stopped.unblock(device_state::running) == status::ok);
  CHECK(open.quiesce() == status::ok);
  CHECK(open.block_nowait() == status::ok);
  nobody restorer{};
  std::thread([&] {
    restorer = virtual_platform::this_thread();
    for (const auto& each : rig.devices) each->keep_image(image_move::put_back);
  }).join();

  CHECK(rig.states() == std::vector<device_state>{device_state::quiesce, device_state::quiesce,
                                                  device_state::block, device_state::running});
  CHECK(quiesced.quiesced_by() == restorer);
  CHECK(by_other.quiesced_by() == other);
  CHECK(open.quiesced_by() == nobody{});
  CHECK(quiesced.queue().gate().pm_only() == 1);
  CHECK(by_other.queue().gate().pm_only() == 1);
  CHECK(open.queue().gate().pm_only() == 0);
  CHECK(stopped.is_stopped());
  CHECK(stopped.queue().quiesce_depth() == 1);
  CHECK_FALSE(open.is_stopped());
  CHECK(open.queue().quiesce_depth() == 0);

  quiesced.resume();
  by_other.resume();
  CHECK(stopped.unblock(device_state::running) == status::ok);
  for (const auto& each : rig.devices) {
    CHECK(each->state() == device_state::running);
    CHECK(each->queue().gate().pm_only() + each->queue().quiesce_depth() == 0);
  }
  CHECK(rig.misuse.count() == 0);
}

TEST_CASE("what is as the image has it stays so, and nothing comes back that was not saved") {
  using pmgate::pm::image_move;
  scsi_rig rig({device_state::running, device_state::running});
  CHECK(rig.dev(0).quiesce() == status::ok);
  rig.dev(0).keep_image(image_move::save);
  rig.dev(0).keep_image(image_move::put_back);
  CHECK(rig.dev(0).state() == device_state::quiesce);
  CHECK(rig.dev(0).queue().gate().pm_only() == 1);
  rig.dev(0).resume();

  rig.dev(1).keep_image(image_move::put_back);
  CHECK(rig.dev(1).state() == device_state::running);
}

TEST_CASE("a device that was removed does not come back with an image") {
  using pmgate::pm::image_move;
  scsi_rig rig;
  CHECK(rig.dev().quiesce() == status::ok);
  rig.dev().keep_image(image_move::save);
  rig.dev().resume();
  CHECK(rig.dev().remove() == status::ok);

  rig.dev().keep_image(image_move::put_back);

  CHECK(rig.dev().state() == device_state::del);
  CHECK(rig.dev().quiesced_by() == nobody{});
  CHECK(rig.dev().queue().gate().pm_only() == 0);
}

TEST_CASE("who is inside when an image is put back stays there, and ends") {
  using pmgate::pm::image_move;
  scsi_rig rig;
  CHECK(rig.dev().quiesce() == status::ok);
  rig.dev().keep_image(image_move::save);
  rig.dev().resume();
  command inside, later;
  CHECK(rig.dev().submit(inside) == status::ok);

  rig.dev().keep_image(image_move::put_back);

  CHECK(rig.dev().submit(later, nowait) == status::again);
  CHECK(rig.lld.taken() == 1);
  CHECK(rig.lld.complete_one());
  CHECK(rig.dev().busy() == 0);
  rig.dev().resume();
}

TEST_CASE("what a device of a kernel that vanished holds does not go to its driver") {
  using pmgate::pm::image_move;
  scsi_rig rig;
  CHECK(rig.dev().quiesce() == status::ok);
  rig.dev().queue().quiesce_nowait();
  command held;
  CHECK(rig.dev().submit(held, pm) == status::ok);
  rig.dev().queue().sections().unquiesce();  // opened, but nobody runs it

  rig.dev().keep_image(image_move::vanish);

  rig.settle();
  CHECK(rig.lld.calls() == 0);
  command late;
  CHECK(rig.dev().submit(late, pm) == status::no_device);
  rig.dev().queue().run();
  CHECK(rig.lld.complete_one());
}

// -- misuse, and one thread of execution

TEST_CASE("with one thread only, what would wait for ever is refused and reported") {
  testing::misuse_log misuse;
  struct silent {
    static int queuecommand(pmgate::scsi::basic_host<single_platform>& adapter,
                            pmgate::scsi::basic_command<single_platform>& item) noexcept {
      *static_cast<pmgate::scsi::basic_command<single_platform>**>(adapter.context()) = &item;
      return 0;
    }
  };
  pmgate::scsi::basic_command<single_platform>* taken = nullptr;
  pmgate::pm::basic_work_queue<single_platform> works("kblockd");
  pmgate::scsi::basic_host<single_platform> adapter({&silent::queuecommand, &taken});
  pmgate::scsi::basic_target<single_platform> where;
  pmgate::scsi::basic_device<single_platform> dev(adapter, where, works);
  pmgate::scsi::basic_command<single_platform> item;
  (void)dev.set_state(device_state::running);

  CHECK(dev.execute(item) == status::again);
  CHECK(dev.quiesce() == status::again);
  CHECK(misuse.take() == 2);
  CHECK(dev.queue().gate().depth() == 0);
  CHECK(dev.queue().gate().pm_only() == 0);

  REQUIRE(taken != nullptr);
  dev.complete(*taken);
  CHECK(dev.quiesce() == status::ok);
  dev.resume();
}

}  // TEST_SUITE
