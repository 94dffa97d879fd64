// SPDX-License-Identifier: MIT
//
// runtime_pm_test.cpp - the check before a runtime suspend and the way back; the
// numbers are those of the scenarios in the specification of queue freezing.
#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <pmgate/block/request_queue.hpp>
#include <pmgate/block/runtime_pm.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_freeze_gate;
using pmgate::basic_request;
using pmgate::basic_request_queue;
using pmgate::basic_runtime_pm;
using pmgate::dispatch_status;
using pmgate::enter_flags;
using pmgate::portable_platform;
using pmgate::rpm_status;
using pmgate::runtime_pm_ops;
using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_work_queue;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;
using default_platform = pmgate::default_platform;

static_assert(!std::is_copy_constructible_v<pmgate::runtime_pm>);
static_assert(!std::is_move_constructible_v<pmgate::runtime_pm>);
static_assert(std::is_nothrow_constructible_v<pmgate::runtime_pm, pmgate::freeze_gate&>);
static_assert(std::is_nothrow_constructible_v<pmgate::runtime_pm, pmgate::request_queue&>);
static_assert(noexcept(std::declval<pmgate::runtime_pm&>().pre_runtime_suspend()));
static_assert(noexcept(std::declval<pmgate::runtime_pm&>().post_runtime_resume()));

namespace {

constexpr enter_flags nowait = enter_flags::nowait;
constexpr enter_flags for_pm = enter_flags::pm;

#define THREADED_PLATFORMS default_platform, portable_platform
#define ALL_PLATFORMS default_platform, portable_platform, single_platform

/// What a PM core was told.
struct told {
  runtime_pm_ops ops() {
    return {[](void* self) noexcept { ++static_cast<told*>(self)->resumes; },
            [](void* self) noexcept { ++static_cast<told*>(self)->marks; },
            [](void* self) noexcept { ++static_cast<told*>(self)->autosuspends; }, this};
  }
  std::atomic<int> resumes{0};
  std::atomic<int> marks{0};
  std::atomic<int> autosuspends{0};
};

/// A gate, and the power management of what is behind it. On the heap: where the stack
/// has one gate after another, ThreadSanitizer takes them for one.
template <class P>
struct device {
  /// What a normal or PM request is told that does not want to wait.
  status ask(enter_flags flags = {}) {
    const status answer = gate.enter(flags | nowait);
    if (answer == status::ok) gate.exit();
    return answer;
  }
  void suspend() {
    REQUIRE(pm.pre_runtime_suspend() == status::ok);
    pm.post_runtime_suspend(status::ok);
  }

  struct parts {
    told core;
    basic_freeze_gate<P> gate;
    basic_runtime_pm<P> pm{gate, core.ops()};
  };
  misuse_log misuse;
  std::unique_ptr<parts> owned = std::make_unique<parts>();
  told& core = owned->core;
  basic_freeze_gate<P>& gate = owned->gate;
  basic_runtime_pm<P>& pm = owned->pm;
};

/// Somebody who enters and leaves, and what he was told.
template <class P>
struct enterer {
  explicit enterer(basic_freeze_gate<P>& gate, enter_flags flags = {})
      : thread([&gate, flags, this] {
          answer = gate.enter(flags);
          if (answer == status::ok) gate.exit();
        }) {}
  status answer = status::invalid;
  worker thread;
};

template <class Count>
void await(const Count& count, int value) {
  while (count < value) std::this_thread::yield();
}

}  // namespace

TEST_SUITE("runtime_pm") {

// -- the steps, one after the other

TEST_CASE_TEMPLATE("scenario 23: an idle device goes through suspend and resume", P,
                   ALL_PLATFORMS) {
  device<P> d;
  CHECK(d.pm.runtime_status() == rpm_status::active);

  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  CHECK(d.pm.runtime_status() == rpm_status::suspending);
  CHECK(d.gate.pm_only() == 1);
  CHECK(d.gate.depth() == 0);
  CHECK(d.ask(for_pm) == status::ok);
  CHECK(d.ask() == status::again);

  d.pm.post_runtime_suspend(status::ok);
  CHECK(d.pm.runtime_status() == rpm_status::suspended);
  CHECK(d.ask(for_pm) == status::again);
  CHECK(d.ask() == status::again);

  d.pm.pre_runtime_resume();
  CHECK(d.pm.runtime_status() == rpm_status::resuming);
  CHECK(d.gate.pm_only() == 1);
  CHECK(d.ask(for_pm) == status::ok);
  CHECK(d.ask() == status::again);
  CHECK(d.core.autosuspends == 0);

  d.pm.post_runtime_resume();
  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.gate.pm_only() == 0);
  CHECK(d.ask() == status::ok);
  CHECK(d.core.autosuspends == 1);
  CHECK(d.core.marks == 1);
  CHECK(d.core.resumes == 0);  // who does not wait does not ask
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("scenario 24: a device in use is not suspended, and nobody is waited for", P,
                   ALL_PLATFORMS) {
  device<P> d;
  REQUIRE(d.gate.enter() == status::ok);

  CHECK(d.pm.pre_runtime_suspend() == status::busy);
  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.gate.pm_only() == 0);
  CHECK(d.gate.depth() == 0);
  CHECK(d.core.marks == 1);
  CHECK(d.core.autosuspends == 0);
  CHECK(d.ask() == status::ok);

  d.gate.exit();
  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  d.pm.post_runtime_suspend(status::busy);
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("a PM request inside keeps the device awake as well", P, ALL_PLATFORMS) {
  device<P> d;
  REQUIRE(d.gate.enter(for_pm) == status::ok);

  CHECK(d.pm.pre_runtime_suspend() == status::busy);
  d.gate.exit();
}

TEST_CASE_TEMPLATE("a device whose suspend failed is active, and marked busy", P, ALL_PLATFORMS) {
  device<P> d;
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);

  d.pm.post_runtime_suspend(status::io_error);
  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.gate.pm_only() == 0);
  CHECK(d.ask() == status::ok);
  CHECK(d.core.marks == 1);
  CHECK(d.core.autosuspends == 0);
}

TEST_CASE_TEMPLATE("scenario 28: telling an active device that it is awake leaves pm_only alone", P,
                   ALL_PLATFORMS) {
  device<P> d;
  d.gate.set_pm_only();

  d.pm.post_runtime_resume();
  d.pm.post_runtime_resume();
  CHECK(d.gate.pm_only() == 1);
  CHECK(d.core.autosuspends == 2);
  CHECK(d.misuse.count() == 0);

  d.gate.clear_pm_only();
  CHECK(d.ask() == status::ok);
}

TEST_CASE_TEMPLATE("a resume may skip its first step, also before the suspend is over", P,
                   ALL_PLATFORMS) {
  device<P> d;
  d.suspend();

  d.pm.post_runtime_resume();
  CHECK(d.ask() == status::ok);
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);
  CHECK(d.ask(for_pm) == status::ok);
  d.pm.post_runtime_resume();
  CHECK(d.ask() == status::ok);
  CHECK(d.gate.pm_only() == 0);
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("what pm_only others have raised outlasts suspend and resume", P,
                   ALL_PLATFORMS) {
  device<P> d;
  d.gate.set_pm_only();
  d.suspend();
  CHECK(d.gate.pm_only() == 2);

  d.pm.pre_runtime_resume();
  d.pm.post_runtime_resume();
  CHECK(d.gate.pm_only() == 1);
  CHECK(d.ask() == status::again);
  CHECK(d.ask(for_pm) == status::ok);
  d.gate.clear_pm_only();
}

TEST_CASE_TEMPLATE("scenario 31: under the freeze of somebody else, drained means idle", P,
                   ALL_PLATFORMS) {
  device<P> d;
  REQUIRE(d.gate.freeze() == status::ok);

  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  CHECK(d.gate.depth() == 1);
  CHECK(d.gate.is_frozen());
  d.pm.post_runtime_suspend(status::again);
  d.gate.unfreeze();
  CHECK(d.ask() == status::ok);

  REQUIRE(d.gate.enter() == status::ok);
  REQUIRE(d.gate.freeze_start() == status::ok);
  CHECK(d.pm.pre_runtime_suspend() == status::busy);
  CHECK(d.gate.depth() == 1);
  CHECK(d.gate.pm_only() == 0);
  d.gate.exit();
  CHECK(d.gate.freeze_wait() == status::ok);
  d.gate.unfreeze();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("steps that do not follow from the status are reported and change nothing", P,
                   ALL_PLATFORMS) {
  device<P> d;
  d.pm.post_runtime_suspend(status::ok);
  d.pm.post_runtime_suspend(status::busy);
  d.pm.pre_runtime_resume();
  CHECK(d.misuse.take() == 3);
  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.ask() == status::ok);

  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);
  CHECK(d.pm.pre_runtime_suspend() == status::invalid);
  CHECK(d.misuse.take() == 1);
  CHECK(d.gate.pm_only() == 1);
  d.pm.post_runtime_suspend(status::ok);
  CHECK(d.pm.pre_runtime_suspend() == status::invalid);
  d.pm.post_runtime_suspend(status::busy);
  CHECK(d.misuse.take() == 2);
  CHECK(d.pm.runtime_status() == rpm_status::suspended);
  CHECK(d.gate.pm_only() == 1);
  d.pm.post_runtime_resume();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE("every status has the kernel's name") {
  CHECK(to_string(rpm_status::active) == std::string("ACTIVE"));
  CHECK(to_string(rpm_status::resuming) == std::string("RESUMING"));
  CHECK(to_string(rpm_status::suspended) == std::string("SUSPENDED"));
  CHECK(to_string(rpm_status::suspending) == std::string("SUSPENDING"));
}

TEST_CASE("scenario 30: the first check leaves the count in its shared word, the next is cheap") {
  device<deferred_platform> d;
  grace().serve_at_once(true);
  REQUIRE(d.gate.enter() == status::ok);

  CHECK(d.pm.pre_runtime_suspend() == status::busy);
  CHECK(d.gate.usage().snapshot().force_atomic);
  d.gate.exit();
  const int before = grace().begun();
  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  CHECK(grace().begun() == before);
  d.pm.post_runtime_suspend(status::ok);
  d.pm.pre_runtime_resume();
  d.pm.post_runtime_resume();
  CHECK_FALSE(d.gate.usage().snapshot().percpu);

  d.gate.switch_to_percpu();
  CHECK(d.gate.usage().snapshot().percpu);
  CHECK(grace().broken_contracts() == 0);
}

TEST_CASE("without a grace period there is no suspend, and the gate is as before") {
  device<deferred_platform> d;
  grace().serve_at_once(true);
  grace().refuse(1);

  CHECK(d.pm.pre_runtime_suspend() == status::not_permitted);
  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.gate.pm_only() == 0);
  CHECK(d.gate.depth() == 0);
  CHECK(d.ask() == status::ok);

  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  d.pm.post_runtime_resume();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE("during the check nobody gets in, PM requests included, and it may be for nothing") {
  device<deferred_platform> d;
  grace().serve_at_once(false);
  REQUIRE(d.gate.enter() == status::ok);
  status checked = status::invalid;

  worker suspender([&] { checked = d.pm.pre_runtime_suspend(); });
  grace().await_pending(1);
  CHECK(d.ask(for_pm) == status::again);
  CHECK(d.ask() == status::again);
  CHECK(d.gate.try_get());  // a timeout handler
  d.gate.exit();
  while (!suspender.done()) (void)grace().run();

  CHECK(checked == status::busy);
  CHECK(d.ask() == status::ok);
  d.gate.exit();
}

// -- who waits

TEST_CASE_TEMPLATE("scenario 18: who is kept out by pm_only asks for a resume, PM requests do not",
                   P, THREADED_PLATFORMS) {
  device<P> d;
  d.gate.set_pm_only();
  CHECK(d.ask() == status::again);
  CHECK(d.ask(for_pm) == status::ok);
  CHECK(d.core.resumes == 0);

  enterer<P> e(d.gate);
  await(d.core.resumes, 1);
  CHECK(e.thread.is_blocked());
  d.gate.clear_pm_only();
  e.thread.join();
  CHECK(e.answer == status::ok);
}

TEST_CASE_TEMPLATE("scenario 25: a suspend that fails lets in who waits", P, THREADED_PLATFORMS) {
  device<P> d;
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);
  enterer<P> e(d.gate);
  await(d.core.resumes, 1);
  CHECK(e.thread.is_blocked());

  d.pm.post_runtime_suspend(status::io_error);
  e.thread.join();
  CHECK(e.answer == status::ok);
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE(
    "scenario 26: a normal request wakes the device, whose PM requests pass before it", P,
    THREADED_PLATFORMS) {
  device<P> d;
  d.suspend();
  enterer<P> e(d.gate);
  await(d.core.resumes, 1);

  d.pm.pre_runtime_resume();
  CHECK(d.ask(for_pm) == status::ok);
  CHECK(e.thread.is_blocked());
  d.pm.post_runtime_resume();
  e.thread.join();
  CHECK(e.answer == status::ok);
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("scenario 27: a PM request that waits asks, and enters when the resume begins",
                   P, THREADED_PLATFORMS) {
  device<P> d;
  d.suspend();
  enterer<P> e(d.gate, for_pm);
  await(d.core.resumes, 1);
  CHECK(e.thread.is_blocked());

  d.pm.pre_runtime_resume();
  e.thread.join();
  CHECK(e.answer == status::ok);
  CHECK(d.pm.runtime_status() == rpm_status::resuming);
  d.pm.post_runtime_resume();
}

TEST_CASE_TEMPLATE("who asked while suspending asks again when suspended", P, THREADED_PLATFORMS) {
  device<P> d;
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);
  enterer<P> e(d.gate);
  await(d.core.resumes, 1);
  CHECK(e.thread.is_blocked());
  const int before = d.core.resumes;

  d.pm.post_runtime_suspend(status::ok);
  await(d.core.resumes, before + 1);
  d.pm.post_runtime_resume();
  e.thread.join();
  CHECK(e.answer == status::ok);
}

TEST_CASE_TEMPLATE("under a freeze nobody asks for a resume", P, THREADED_PLATFORMS) {
  device<P> d;
  d.suspend();
  REQUIRE(d.gate.freeze() == status::ok);
  enterer<P> e(d.gate);
  CHECK(e.thread.is_blocked());
  CHECK(d.core.resumes == 0);

  d.gate.unfreeze();
  await(d.core.resumes, 1);
  d.pm.post_runtime_resume();
  e.thread.join();
}

TEST_CASE_TEMPLATE("a resume may be carried out by who asks for it", P, THREADED_PLATFORMS) {
  struct eager {
    basic_freeze_gate<P> gate;
    basic_runtime_pm<P> pm{gate, {&resume, nullptr, nullptr, this}};
    int resumed = 0;
    static void resume(void* self) noexcept {
      auto& mine = *static_cast<eager*>(self);
      ++mine.resumed;
      mine.pm.pre_runtime_resume();
      mine.pm.post_runtime_resume();
    }
  };
  const misuse_log misuse;
  eager d;
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);
  d.pm.post_runtime_suspend(status::ok);

  CHECK(d.gate.enter() == status::ok);
  CHECK(d.resumed == 1);
  d.gate.exit();
  CHECK(misuse.count() == 0);
}

TEST_CASE("a resume that is asked for in the middle of a suspend waits until it is suspended") {
  using P = single_platform;
  struct eager : pmgate::basic_gate_waiter<P> {
    eager() : basic_gate_waiter<P>(&on_enter) {}
    basic_freeze_gate<P> gate;
    basic_runtime_pm<P> pm{gate, {&resume, nullptr, nullptr, this}};
    status entered = status::in_progress;
    int refused = 0;
    static void resume(void* self) noexcept {
      auto& mine = *static_cast<eager*>(self);
      if (mine.pm.pre_runtime_resume() == status::ok) {
        mine.pm.post_runtime_resume();
      } else {
        ++mine.refused;
      }
    }
    static void on_enter(basic_gate_waiter<P>& self, status result) noexcept {
      static_cast<eager&>(self).entered = result;
    }
  };
  const misuse_log misuse;
  eager d;
  REQUIRE(d.gate.freeze() == status::ok);
  REQUIRE(d.gate.enter_or_wait(d) == status::in_progress);
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);

  d.gate.unfreeze();  // he may be looked at again, and asks
  CHECK(d.refused > 0);
  CHECK(d.entered == status::in_progress);
  CHECK(d.pm.runtime_status() == rpm_status::suspending);
  CHECK(d.gate.pm_only() == 1);

  d.pm.post_runtime_suspend(status::ok);  // and once more
  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.gate.pm_only() == 0);
  CHECK(d.entered == status::ok);
  d.gate.exit();
  CHECK(misuse.count() == 0);
}

// -- over a request queue

namespace {

template <class P>
dispatch_status refuse_once(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
  int& refusals = *static_cast<int*>(queue.context());
  if (refusals-- > 0) return dispatch_status::dev_resource;
  queue.complete(rq);
  return dispatch_status::ok;
}

}  // namespace

TEST_CASE("a queue marks its device busy with every request but PM requests") {
  using P = single_platform;
  const misuse_log misuse;
  told core;
  int refusals = 0;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&refuse_once<P>, &refusals}, works, 2);
  basic_runtime_pm<P> pm(q, core.ops());
  basic_request<P> rq;

  REQUIRE(q.submit(rq) == status::ok);
  CHECK(core.marks == 1);
  REQUIRE(q.submit(rq, for_pm) == status::ok);
  CHECK(core.marks == 1);
  REQUIRE(q.alloc(rq) == status::ok);
  q.free(rq);
  CHECK(core.marks == 2);

  REQUIRE(pm.pre_runtime_suspend() == status::ok);
  CHECK(q.submit(rq, nowait) == status::again);
  CHECK(q.submit(rq, for_pm) == status::ok);
  pm.post_runtime_suspend(status::ok);
  CHECK(q.submit(rq, for_pm | nowait) == status::again);
  pm.post_runtime_resume();
  CHECK(q.submit(rq) == status::ok);
  CHECK(misuse.count() == 0);
}

TEST_CASE("the suspend check of a queue dispatches what is queued, as every freeze does") {
  using P = single_platform;
  told core;
  int refusals = 1;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&refuse_once<P>, &refusals}, works, 2);
  basic_runtime_pm<P> pm(q, core.ops());
  basic_request<P> rq;
  REQUIRE(q.submit(rq) == status::ok);  // refused, and nothing runs the queue

  CHECK(pm.pre_runtime_suspend() == status::ok);
  CHECK(rq.result() == status::ok);
  CHECK(refusals == -1);
  pm.post_runtime_resume();
}

// -- races

TEST_CASE_TEMPLATE(
    "scenarios 29 and 30: ok means that no normal request is inside, busy that "
    "all is as before",
    P, THREADED_PLATFORMS) {
  device<P> d;
  std::atomic<bool> stop{false};
  std::atomic<int> inside{0};
  std::atomic<bool> asleep{false};
  std::atomic<int> wrong{0};
  int suspended = 0;
  int rounds = 0;
  {
    std::array<std::unique_ptr<worker>, 8> enterers;
    for (auto& each : enterers) {
      each = std::make_unique<worker>([&] {
        while (!stop.load(std::memory_order_relaxed)) {
          if (d.gate.enter(nowait) != status::ok) continue;
          inside.fetch_add(1);
          if (asleep) wrong.fetch_add(1);
          inside.fetch_sub(1);
          d.gate.exit();
          std::this_thread::yield();
        }
      });
    }
    for (const time_limit limit(400); limit; ++rounds) {
      if (rounds % 2 == 0) d.gate.switch_to_percpu();  // 30 otherwise
      if (d.pm.pre_runtime_suspend() == status::ok) {
        ++suspended;
        asleep = true;
        if (inside != 0) wrong.fetch_add(1);
        asleep = false;
        d.pm.post_runtime_suspend(status::ok);
        d.pm.post_runtime_resume();
      }
      if (d.gate.pm_only() != 0 || d.gate.depth() != 0) wrong.fetch_add(1);
      std::this_thread::yield();
    }
    stop = true;
  }
  CHECK(rounds > 0);
  MESSAGE("suspended in ", suspended, " of ", rounds, " rounds");
  CHECK(wrong == 0);
  CHECK(d.ask() == status::ok);
  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  d.pm.post_runtime_resume();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("a device that sleeps whenever it can loses no request", P, THREADED_PLATFORMS) {
  device<P> d;
  std::atomic<bool> stop{false};
  std::atomic<int> entered{0};
  worker core([&] {
    while (!stop) {
      if (d.pm.pre_runtime_suspend() != status::ok) continue;
      const int asked = d.core.resumes;
      d.pm.post_runtime_suspend(status::ok);  // who has asked asks again
      while (d.core.resumes == asked && !stop) std::this_thread::yield();  // sleeps until asked
      d.pm.pre_runtime_resume();
      d.pm.post_runtime_resume();
    }
  });
  {
    std::array<std::unique_ptr<worker>, 3> enterers;
    for (auto& each : enterers) {
      each = std::make_unique<worker>([&] {
        for (int i = 0; i < 200; ++i) {
          if (d.gate.enter() != status::ok) break;
          entered.fetch_add(1);
          d.gate.exit();
        }
      });
    }
  }  // hangs if a request is not let in
  stop = true;
  core.join();
  CHECK(entered == 600);
  CHECK(d.misuse.count() == 0);
}

// -- system sleep

TEST_CASE_TEMPLATE("while held no suspend begins, and a resume does", P, ALL_PLATFORMS) {
  device<P> d;
  d.pm.hold();
  d.pm.hold();
  CHECK(d.pm.pre_runtime_suspend() == status::again);
  d.pm.release();
  CHECK(d.pm.pre_runtime_suspend() == status::again);
  CHECK(d.core.autosuspends == 0);
  CHECK(d.gate.pm_only() == 0);
  d.pm.release();
  CHECK(d.core.autosuspends == 1);  // it may have been refused one

  d.suspend();
  d.pm.hold();
  CHECK(d.pm.pre_runtime_resume() == status::ok);
  d.pm.post_runtime_resume();
  CHECK(d.pm.runtime_status() == rpm_status::active);
  d.pm.release();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("while disabled no step begins, and nothing is asked for in the end", P,
                   ALL_PLATFORMS) {
  device<P> d;
  d.pm.disable();
  CHECK(d.pm.pre_runtime_suspend() == status::again);
  d.pm.enable();
  d.suspend();

  d.pm.disable();
  d.pm.disable();
  CHECK(d.pm.pre_runtime_resume() == status::again);
  d.pm.enable();
  CHECK(d.pm.pre_runtime_resume() == status::again);
  CHECK(d.pm.runtime_status() == rpm_status::suspended);
  CHECK(d.ask(for_pm) == status::again);
  d.pm.enable();
  CHECK(d.pm.pre_runtime_resume() == status::ok);
  d.pm.post_runtime_resume();
  CHECK(d.ask() == status::ok);
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("a driver that system sleep wakes up says so while disabled", P, ALL_PLATFORMS) {
  device<P> d;
  d.suspend();
  d.pm.hold();
  d.pm.disable();

  d.pm.post_runtime_resume();

  CHECK(d.pm.runtime_status() == rpm_status::active);
  CHECK(d.ask() == status::ok);
  d.pm.enable();
  d.pm.release();
  CHECK(d.pm.pre_runtime_suspend() == status::ok);
  d.pm.post_runtime_resume();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("hold waits for a suspend under way, disable for a resume as well", P,
                   THREADED_PLATFORMS) {
  device<P> d;
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);
  worker holder([&] { d.pm.hold(); });
  worker disabler([&] { d.pm.disable(); });
  CHECK(holder.is_blocked());
  CHECK(disabler.is_blocked());
  d.pm.post_runtime_suspend(status::ok);
  holder.join();
  disabler.join();
  d.pm.enable();

  REQUIRE(d.pm.pre_runtime_resume() == status::ok);
  d.pm.hold();  // does not wait
  worker again([&] { d.pm.disable(); });
  CHECK(again.is_blocked());
  d.pm.post_runtime_resume();
  again.join();

  d.pm.enable();
  d.pm.release();
  d.pm.release();
  CHECK(d.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("who waits while disabled asks again when enabled", P, THREADED_PLATFORMS) {
  device<P> d;
  d.suspend();
  d.pm.disable();
  enterer<P> waits(d.gate);
  await(d.core.resumes, 1);
  CHECK(d.pm.pre_runtime_resume() == status::again);
  CHECK(waits.thread.is_blocked());
  const int asked = d.core.resumes;

  d.pm.enable();
  await(d.core.resumes, asked + 1);

  REQUIRE(d.pm.pre_runtime_resume() == status::ok);
  d.pm.post_runtime_resume();
  waits.thread.join();
  CHECK(waits.answer == status::ok);
}

TEST_CASE("a release or an enable too many is reported; one thread does not wait for itself") {
  device<single_platform> d;
  d.pm.release();
  d.pm.enable();
  CHECK(d.misuse.take() == 2);
  REQUIRE(d.pm.pre_runtime_suspend() == status::ok);

  d.pm.hold();

  CHECK(d.misuse.take() == 1);
  d.pm.post_runtime_suspend(status::io_error);
  CHECK(d.pm.pre_runtime_suspend() == status::again);
  d.pm.release();
}

}  // TEST_SUITE
