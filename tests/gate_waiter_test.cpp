// SPDX-License-Identifier: MIT
//
// gate_waiter_test.cpp - waiting at a gate without a thread that sleeps.
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"
#include "support/probe_waiter.hpp"

using pmgate::basic_freeze_gate;
using pmgate::basic_gate_waiter;
using pmgate::basic_quiesce_gate;
using pmgate::enter_flags;
using pmgate::gate_start;
using pmgate::portable_platform;
using pmgate::single_platform;
using pmgate::status;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::probe_waiter;
using testing::worker;
using default_platform = pmgate::default_platform;

static_assert(!std::is_copy_constructible_v<basic_gate_waiter<default_platform>>);
static_assert(!std::is_move_constructible_v<basic_gate_waiter<default_platform>>);
static_assert(!std::is_copy_assignable_v<basic_gate_waiter<default_platform>>);
static_assert(std::is_nothrow_destructible_v<basic_gate_waiter<default_platform>>);
static_assert(sizeof(basic_freeze_gate<default_platform>) <= 256);
static_assert(sizeof(basic_gate_waiter<default_platform>) <= 128);

namespace {

constexpr enter_flags nowait = enter_flags::nowait;
constexpr enter_flags pm = enter_flags::pm;

/// What a user has whose request is a waiter and something else.
struct task {
  void run() noexcept { ++ran; }
  task* next = nullptr;
  int ran = 0;
};
template <class P>
struct waiting_task : task, basic_gate_waiter<P> {
  waiting_task() : basic_gate_waiter<P>(&resume) {}
  static void resume(basic_gate_waiter<P>& self, status) noexcept {
    static_cast<waiting_task&>(self).run();
  }
};

}  // namespace

#define ALL_PLATFORMS default_platform, portable_platform, single_platform
#define EVERY_PLATFORM default_platform, portable_platform, single_platform, deferred_platform
#define THREADED_PLATFORMS default_platform, portable_platform

TEST_SUITE("gate_waiter at the door") {

TEST_CASE_TEMPLATE("at an open gate the waiter is not needed", P, EVERY_PLATFORM) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;

  CHECK(g.enter_or_wait(w) == status::ok);

  CHECK_FALSE(w.is_queued());
  CHECK(w.resumed() == 0);
  CHECK_FALSE(g.cancel(w));
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("who waits at a frozen gate is resumed inside by the last unfreeze", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.freeze() == status::ok);

  CHECK(g.enter_or_wait(w) == status::in_progress);
  CHECK(w.is_queued());
  g.unfreeze();
  CHECK(w.resumed() == 0);
  g.unfreeze();

  CHECK(w.resumed() == 1);
  CHECK(w.result() == status::ok);
  CHECK_FALSE(w.is_queued());
  REQUIRE(g.freeze_start() == status::ok);
  CHECK_FALSE(g.is_frozen());  // he is inside
  g.exit();
  CHECK(g.is_frozen());
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a request may be a waiter and something with a run() and a next", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  waiting_task<P> mine;
  REQUIRE(g.try_dispatch());
  REQUIRE(g.quiesce_or_wait(mine) == status::in_progress);

  g.end_dispatch();

  CHECK(mine.ran == 1);
  CHECK(mine.next == nullptr);
  (void)g.unquiesce();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("nowait never queues", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  REQUIRE(g.freeze() == status::ok);

  CHECK(g.enter_or_wait(w, nowait) == status::again);
  CHECK_FALSE(w.is_queued());
  g.unfreeze();

  g.set_pm_only();
  CHECK(g.enter_or_wait(w, nowait) == status::again);
  g.clear_pm_only();
  CHECK(w.resumed() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a waiter cancelled in time is not resumed, and may be used again", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(w) == status::in_progress);

  CHECK(g.cancel(w));
  CHECK_FALSE(w.is_queued());
  CHECK_FALSE(g.cancel(w));
  REQUIRE(g.enter_or_wait(w) == status::in_progress);
  g.unfreeze();

  CHECK(w.resumed() == 1);
  CHECK_FALSE(g.cancel(w));
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("waiters are resumed in the order in which they came", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  std::string order;
  probe_waiter<P> a([&] { order += 'a'; });
  probe_waiter<P> b([&] { order += 'b'; });
  probe_waiter<P> c([&] { order += 'c'; });
  probe_waiter<P> d([&] { order += 'd'; });
  REQUIRE(g.freeze() == status::ok);
  for (auto* const w : {&a, &b, &c, &d}) REQUIRE(g.enter_or_wait(*w) == status::in_progress);

  REQUIRE(g.cancel(b));
  REQUIRE(g.enter_or_wait(b) == status::in_progress);
  g.unfreeze();

  CHECK(order == "acdb");
  g.exit(4);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("first, middle and last of a queue can be cancelled", P, ALL_PLATFORMS) {
  basic_freeze_gate<P> g;
  std::string order;
  probe_waiter<P> a([&] { order += 'a'; });
  probe_waiter<P> b([&] { order += 'b'; });
  probe_waiter<P> c([&] { order += 'c'; });
  probe_waiter<P> d([&] { order += 'd'; });
  probe_waiter<P> e([&] { order += 'e'; });
  REQUIRE(g.freeze() == status::ok);
  for (auto* const w : {&a, &b, &c, &d, &e}) REQUIRE(g.enter_or_wait(*w) == status::in_progress);

  CHECK(g.cancel(a));
  CHECK(g.cancel(c));
  CHECK(g.cancel(e));
  g.unfreeze();

  CHECK(order == "bd");
  g.exit(2);
}

TEST_CASE_TEMPLATE("pm_only keeps a waiter, and the last clear_pm_only resumes him", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  g.set_pm_only();
  g.set_pm_only();

  REQUIRE(g.enter_or_wait(w) == status::in_progress);
  g.clear_pm_only();
  CHECK(w.resumed() == 0);
  g.clear_pm_only();

  CHECK(w.resumed() == 1);
  CHECK(w.result() == status::ok);
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("PM requests that wait pass normal ones that wait", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  std::string order;
  probe_waiter<P> normal([&] { order += 'n'; });
  probe_waiter<P> power([&] { order += 'p'; });
  g.set_pm_only();
  g.set_runtime_suspended(true);
  REQUIRE(g.enter_or_wait(normal) == status::in_progress);
  REQUIRE(g.enter_or_wait(power, pm) == status::in_progress);

  g.set_runtime_suspended(false);
  CHECK(order == "p");
  g.clear_pm_only();

  CHECK(order == "pn");
  g.exit(2);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a PM waiter enters a gate that unfreezes into pm_only, a normal one stays", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> normal;
  probe_waiter<P> power;
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(normal) == status::in_progress);
  REQUIRE(g.enter_or_wait(power, pm) == status::in_progress);
  g.set_pm_only();

  g.unfreeze();
  CHECK(power.resumed() == 1);
  CHECK(normal.resumed() == 0);
  REQUIRE(g.freeze_start() == status::ok);
  CHECK_FALSE(g.is_frozen());
  g.exit();
  CHECK(g.is_frozen());  // the one who was kept out holds nothing

  g.unfreeze();
  g.clear_pm_only();
  CHECK(normal.resumed() == 1);
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a waiter that pm_only keeps out asks for a resume, outside every lock", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  struct device {
    basic_freeze_gate<P> gate;
    int asked = 0;
    static void resume(void* self) noexcept {
      auto& d = *static_cast<device*>(self);
      if (++d.asked == 1) d.gate.clear_pm_only();  // at once, from within
    }
  } d;
  d.gate.set_resume_request(&device::resume, &d);
  d.gate.set_pm_only();
  probe_waiter<P> w;

  CHECK(d.gate.enter_or_wait(w) == status::in_progress);

  CHECK(d.asked == 1);
  CHECK(w.resumed() == 1);
  d.gate.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a frozen gate asks for no resume", P, ALL_PLATFORMS) {
  basic_freeze_gate<P> g;
  int asked = 0;
  g.set_resume_request([](void* n) noexcept { ++*static_cast<int*>(n); }, &asked);
  probe_waiter<P> w;
  g.set_pm_only();
  REQUIRE(g.freeze() == status::ok);

  REQUIRE(g.enter_or_wait(w) == status::in_progress);
  CHECK(asked == 0);
  g.unfreeze();
  CHECK(asked == 1);
  g.clear_pm_only();
  CHECK(w.resumed() == 1);
  g.exit();
}

TEST_CASE_TEMPLATE("death resumes who waits with no_device, when the drain is started", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> a;
  probe_waiter<P> power;
  probe_waiter<P> late;
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(a) == status::in_progress);
  REQUIRE(g.enter_or_wait(power, pm) == status::in_progress);

  g.mark_dying();
  CHECK(a.resumed() == 0);
  REQUIRE(g.start_drain() == status::ok);

  CHECK(a.result() == status::no_device);
  CHECK(power.result() == status::no_device);
  CHECK(a.resumed() == 1);
  CHECK(g.enter_or_wait(late) == status::no_device);
  CHECK_FALSE(late.is_queued());
  g.unfreeze();
  g.unfreeze();
  CHECK(late.resumed() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a waiter queued twice is busy, reported, and still resumed once", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  basic_freeze_gate<P> g;
  basic_quiesce_gate<P> q;
  probe_waiter<P> w;
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(w) == status::in_progress);

  CHECK(g.enter_or_wait(w) == status::busy);
  CHECK(log.take() == 1);
  CHECK(g.freeze_or_wait(w) == status::busy);
  CHECK(g.depth() == 1);
  CHECK(log.take() == 1);
  CHECK(g.drained_or_wait(w) == status::busy);
  CHECK(log.take() == 1);
  CHECK(q.quiesce_or_wait(w) == status::busy);
  CHECK(q.depth() == 0);
  CHECK(log.take() == 1);
  g.unfreeze();

  CHECK(w.resumed() == 1);
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("destroying a waiter that is queued, or its gate, is reported", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  {
    std::optional<basic_freeze_gate<P>> g(std::in_place);
    std::optional<probe_waiter<P>> w(std::in_place);
    REQUIRE(g->freeze() == status::ok);
    REQUIRE(g->enter_or_wait(*w) == status::in_progress);
    g.reset();
    CHECK(log.take() == 1);
    CHECK(log.last() == "freeze_gate destroyed with waiters queued");
    w.reset();
    CHECK(log.take() == 1);
    CHECK(log.last() == "gate_waiter destroyed while queued");
  }
  {
    std::optional<basic_freeze_gate<P>> g(std::in_place);
    std::optional<probe_waiter<P>> w(std::in_place);
    REQUIRE(g->drained_or_wait(*w) == status::in_progress);
    g.reset();
    CHECK(log.take() == 1);
    w.reset();
    CHECK(log.take() == 1);
  }
}

TEST_CASE_TEMPLATE("a callback may leave, enter again, and queue itself again", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  status again = status::ok;
  w.on_resume = [&] {
    g.exit();
    if (w.resumed() > 1) return;
    (void)g.freeze_start();
    again = g.enter_or_wait(w);
  };
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(w) == status::in_progress);

  g.unfreeze();
  CHECK(again == status::in_progress);
  CHECK(w.resumed() == 1);
  CHECK(g.is_frozen());
  g.unfreeze();

  CHECK(w.resumed() == 2);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE(
    "a callback may cancel a waiter behind it; one that is resumed with it is not "
    "cancelled any more",
    P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> a;
  probe_waiter<P> b;
  probe_waiter<P> behind;
  bool too_late = true;
  bool in_time = false;
  g.set_pm_only();
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(a, pm) == status::in_progress);
  REQUIRE(g.enter_or_wait(b, pm) == status::in_progress);
  REQUIRE(g.enter_or_wait(behind) == status::in_progress);
  a.on_resume = [&] {
    too_late = g.cancel(b);
    in_time = g.cancel(behind);
  };

  g.unfreeze();

  CHECK_FALSE(too_late);
  CHECK(in_time);
  CHECK(b.resumed() == 1);
  g.clear_pm_only();
  CHECK(behind.resumed() == 0);
  g.exit(2);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a callback may destroy its waiter", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  auto w = std::make_unique<probe_waiter<P>>();
  w->on_resume = [&] { w.reset(); };
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(*w) == status::in_progress);

  g.unfreeze();

  CHECK(w == nullptr);
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("the last to be resumed may freeze the gate and destroy it", P, ALL_PLATFORMS) {
  const misuse_log log;
  auto g = std::make_unique<basic_freeze_gate<P>>();
  probe_waiter<P> a([&] { g->exit(); });
  probe_waiter<P> b([&] {
    g->exit();
    CHECK(g->freeze() == status::ok);
    g.reset();
  });
  REQUIRE(g->freeze() == status::ok);
  REQUIRE(g->enter_or_wait(a) == status::in_progress);
  REQUIRE(g->enter_or_wait(b) == status::in_progress);

  g->unfreeze();

  CHECK(g == nullptr);
  CHECK(a.resumed() == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("a refused freeze lets in who queued while it was tried") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> g;
  probe_waiter<deferred_platform> w;
  status queued = status::ok;
  grace().refuse(1);
  // Closed, and not refused yet: the first lock that is left is the count's.
  testing::after_unlock() = {1, [&] { queued = g.enter_or_wait(w); }};

  CHECK(g.freeze() == status::not_permitted);

  CHECK(queued == status::in_progress);
  CHECK(w.resumed() == 1);
  CHECK(w.result() == status::ok);
  g.exit();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("many threads wait by queueing, many freeze: everybody gets in once", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  std::atomic<int> inside{0};
  std::atomic<int> frozen_with_somebody{0};
  std::atomic<long> entered{0};
  std::atomic<long> cancelled{0};
  std::atomic<long> asked{0};
  const auto enterer = [&] {
    std::atomic<bool> turn{false};
    probe_waiter<P> w([&] { turn.store(true, std::memory_order_release); });
    for (int i = 0; i < 2000; ++i) {
      asked.fetch_add(1, std::memory_order_relaxed);
      turn.store(false, std::memory_order_relaxed);
      if (g.enter_or_wait(w) == status::in_progress) {
        if (i % 7 == 0 && g.cancel(w)) {
          cancelled.fetch_add(1, std::memory_order_relaxed);
          continue;
        }
        while (!turn.load(std::memory_order_acquire)) std::this_thread::yield();
      }
      inside.fetch_add(1, std::memory_order_relaxed);
      inside.fetch_sub(1, std::memory_order_relaxed);
      entered.fetch_add(1, std::memory_order_relaxed);
      g.exit();
    }
  };
  const auto freezer = [&] {
    std::atomic<bool> drained{false};
    probe_waiter<P> w([&] { drained.store(true, std::memory_order_release); });
    for (int i = 0; i < 500; ++i) {
      drained.store(false, std::memory_order_relaxed);
      if (g.freeze_or_wait(w) == status::in_progress) {
        while (!drained.load(std::memory_order_acquire)) std::this_thread::yield();
      }
      if (inside.load(std::memory_order_relaxed) != 0) frozen_with_somebody.fetch_add(1);
      g.unfreeze();
    }
  };
  {
    const worker a(enterer);
    const worker b(enterer);
    const worker c(freezer);
    const worker d(freezer);
  }

  CHECK(asked == entered + cancelled);
  CHECK(frozen_with_somebody == 0);
  CHECK(g.depth() == 0);
  REQUIRE(g.freeze() == status::ok);
  g.unfreeze();
  CHECK(log.count() == 0);
}

}  // TEST_SUITE

TEST_SUITE("gate_waiter for the drain") {

TEST_CASE_TEMPLATE("at an idle gate freeze_or_wait is done at once", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;

  CHECK(g.freeze_or_wait(w) == status::ok);

  CHECK(g.is_frozen());
  CHECK_FALSE(w.is_queued());
  CHECK_FALSE(g.cancel(w));
  g.unfreeze();
  CHECK(w.resumed() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("the last exit resumes every freezer", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> a;
  probe_waiter<P> b;
  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.enter() == status::ok);

  CHECK(g.freeze_or_wait(a) == status::in_progress);
  CHECK(g.freeze_or_wait(b) == status::in_progress);
  CHECK(g.depth() == 2);
  g.exit();
  CHECK(a.resumed() + b.resumed() == 0);
  g.exit();

  CHECK(a.resumed() == 1);
  CHECK(b.resumed() == 1);
  CHECK(a.result() == status::ok);
  g.unfreeze();
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a freezer cancelled in time leaves his freeze in force", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> a;
  probe_waiter<P> b;
  probe_waiter<P> c;
  REQUIRE(g.enter() == status::ok);
  for (auto* const w : {&a, &b, &c}) REQUIRE(g.freeze_or_wait(*w) == status::in_progress);

  CHECK(g.cancel(b));
  CHECK_FALSE(g.cancel(b));
  CHECK(g.depth() == 3);
  g.unfreeze();
  g.exit();

  CHECK(a.resumed() == 1);
  CHECK(b.resumed() == 0);
  CHECK(c.resumed() == 1);
  CHECK_FALSE(g.cancel(a));
  g.unfreeze();
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a callback of the drain may open the gate, freeze it, and wait again", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  status again = status::ok;
  w.on_resume = [&] {
    g.unfreeze();
    if (w.resumed() > 1) return;
    CHECK(g.enter() == status::ok);
    again = g.freeze_or_wait(w);
  };
  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.freeze_or_wait(w) == status::in_progress);

  g.exit();
  CHECK(w.resumed() == 1);
  CHECK(again == status::in_progress);
  g.exit();

  CHECK(w.resumed() == 2);
  CHECK(g.depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a callback of the drain may destroy the gate and its waiter", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  auto g = std::make_unique<basic_freeze_gate<P>>();
  auto w = std::make_unique<probe_waiter<P>>();
  w->on_resume = [&] {
    g.reset();
    w.reset();
  };
  REQUIRE(g->enter() == status::ok);
  REQUIRE(g->freeze_or_wait(*w) == status::in_progress);

  g->exit();

  CHECK(g == nullptr);
  CHECK(w == nullptr);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE(
    "who waits for the drain before anybody freezes is told by the freeze, with no "
    "lock held",
    P, EVERY_PLATFORM) {
  const misuse_log log;
  grace().serve_at_once(true);
  for (const gate_start start : {gate_start::percpu, gate_start::atomic}) {
    auto g = std::make_unique<basic_freeze_gate<P>>(start);
    probe_waiter<P> w;
    probe_waiter<P> last([&] { g.reset(); });
    w.on_resume = [&] {
      CHECK(g->is_frozen());
      g->unfreeze();
    };
    REQUIRE(g->drained_or_wait(w) == status::in_progress);

    CHECK(g->freeze_start() == status::ok);
    CHECK(w.resumed() == 1);
    CHECK(g->depth() == 0);

    REQUIRE(g->drained_or_wait(last) == status::in_progress);
    CHECK(g->freeze_start() == status::ok);
    CHECK(g == nullptr);
  }
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a freezer whose freeze is undone waits for the next drain", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  probe_waiter<P> w;
  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.freeze_or_wait(w) == status::in_progress);

  g.unfreeze();
  g.exit();
  CHECK(w.resumed() == 0);
  REQUIRE(g.freeze_start() == status::ok);

  CHECK(w.resumed() == 1);
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("at a live gate that was left too often nobody waits for a drain", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  basic_freeze_gate<P> g(gate_start::atomic);
  probe_waiter<P> late;
  g.exit();  // of nobody; as in Linux the count is at zero now

  CHECK(g.freeze_wait() == status::ok);
  CHECK(g.drained_or_wait(late) == status::ok);

  CHECK_FALSE(late.is_queued());
  CHECK(late.resumed() == 0);
  g.get();
}

TEST_CASE("a freeze that is refused queues nobody") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> g;
  probe_waiter<deferred_platform> w;
  grace().refuse(1);

  CHECK(g.freeze_or_wait(w) == status::not_permitted);

  CHECK_FALSE(w.is_queued());
  CHECK(g.depth() == 0);
  REQUIRE(g.enter() == status::ok);
  g.exit();
  grace().serve_at_once(true);
  CHECK(g.freeze_or_wait(w) == status::ok);
  g.unfreeze();
  CHECK(w.resumed() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("a deferred grace period resumes the freezer of an idle gate") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> g;
  probe_waiter<deferred_platform> w;

  CHECK(g.freeze_or_wait(w) == status::in_progress);
  CHECK(w.resumed() == 0);
  CHECK(grace().run() == 1);

  CHECK(w.resumed() == 1);
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE("a cancel between the drain and the word of it is too late") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> g(gate_start::atomic);
  probe_waiter<deferred_platform> w;
  bool cancelled = true;
  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.freeze_or_wait(w) == status::in_progress);
  // The drain is decided, and the freezers are being told of it.
  testing::before_publish() = [&] { cancelled = g.cancel(w); };

  g.exit();

  CHECK_FALSE(cancelled);
  CHECK(w.resumed() == 1);
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE("freeze_until undoes its own freeze at the deadline and says so") {
  const misuse_log log;
  basic_freeze_gate<portable_platform> g;
  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.freeze_start() == status::ok);

  CHECK(g.freeze_until(portable_platform::now()) == status::timed_out);
  CHECK(g.depth() == 1);
  g.exit();
  CHECK(g.freeze_until(portable_platform::now()) == status::ok);
  CHECK(g.depth() == 2);
  g.unfreeze();
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE("freeze_until that is refused changes nothing") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> g;
  grace().refuse(1);

  CHECK(g.freeze_until(deferred_platform::now()) == status::not_permitted);

  CHECK(g.depth() == 0);
  CHECK(g.try_enter());
  g.exit();
  CHECK(log.count() == 0);
}

}  // TEST_SUITE

TEST_SUITE("gate_waiter for the end of sections") {

TEST_CASE_TEMPLATE("with no section running quiesce_or_wait is done at once", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> q;
  probe_waiter<P> w;

  CHECK(q.quiesce_or_wait(w) == status::ok);

  CHECK_FALSE(w.is_queued());
  CHECK_FALSE(q.try_dispatch());
  CHECK(q.unquiesce());
  CHECK(w.resumed() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("the end of the last section resumes who waits", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> q;
  probe_waiter<P> a;
  probe_waiter<P> b;
  REQUIRE(q.try_dispatch());
  REQUIRE(q.try_dispatch());

  CHECK(q.quiesce_or_wait(a) == status::in_progress);
  CHECK(q.quiesced_or_wait(b) == status::in_progress);
  q.end_dispatch();
  CHECK(a.resumed() + b.resumed() == 0);
  q.end_dispatch();

  CHECK(a.resumed() == 1);
  CHECK(b.resumed() == 1);
  CHECK(a.result() == status::ok);
  CHECK(q.depth() == 1);
  CHECK(q.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("cancel and unquiesce end the wait as well", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> q;
  probe_waiter<P> a;
  probe_waiter<P> b;
  REQUIRE(q.try_dispatch());
  REQUIRE(q.quiesce_or_wait(a) == status::in_progress);
  REQUIRE(q.quiesced_or_wait(b) == status::in_progress);

  CHECK(q.cancel(a));
  CHECK_FALSE(q.cancel(a));
  CHECK_FALSE(a.is_queued());
  CHECK(q.unquiesce());

  CHECK(a.resumed() == 0);
  CHECK(b.resumed() == 1);
  CHECK(b.result() == status::ok);
  q.end_dispatch();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a callback may undo the quiesce, do it again and wait again", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> q;
  probe_waiter<P> w;
  status again = status::ok;
  w.on_resume = [&] {
    CHECK(q.unquiesce());
    if (w.resumed() > 1) return;
    CHECK(q.try_dispatch());
    again = q.quiesce_or_wait(w);
  };
  REQUIRE(q.try_dispatch());
  REQUIRE(q.quiesce_or_wait(w) == status::in_progress);

  q.end_dispatch();
  CHECK(again == status::in_progress);
  q.end_dispatch();

  CHECK(w.resumed() == 2);
  CHECK(q.depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a callback may destroy the quiesced gate and its waiter", P, ALL_PLATFORMS) {
  const misuse_log log;
  auto q = std::make_unique<basic_quiesce_gate<P>>();
  auto w = std::make_unique<probe_waiter<P>>();
  w->on_resume = [&] {
    q.reset();
    w.reset();
  };
  REQUIRE(q->try_dispatch());
  REQUIRE(q->quiesce_or_wait(*w) == status::in_progress);

  q->end_dispatch();

  CHECK(q == nullptr);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("destroying a quiesce gate with waiters is reported", P, ALL_PLATFORMS) {
  misuse_log log;
  std::optional<basic_quiesce_gate<P>> q(std::in_place);
  std::optional<probe_waiter<P>> w(std::in_place);
  REQUIRE(q->try_dispatch());
  REQUIRE(q->quiesce_or_wait(*w) == status::in_progress);

  q.reset();
  CHECK(log.last() == "quiesce_gate destroyed with waiters queued");
  CHECK(log.take() == 2);  // that, and the section
  w.reset();
  CHECK(log.take() == 1);
}

TEST_CASE("a section that ends before the grace period is over is not the end of the wait") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> q;
  probe_waiter<deferred_platform> w;
  REQUIRE(q.try_dispatch());

  REQUIRE(q.quiesce_or_wait(w) == status::in_progress);
  q.end_dispatch();
  CHECK(w.resumed() == 0);
  CHECK(grace().run() == 1);

  CHECK(w.resumed() == 1);
  CHECK(q.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE("cancelled within its grace period a waiter is resumed with canceled at its end") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> q;
  probe_waiter<deferred_platform> w;
  REQUIRE(q.try_dispatch());
  REQUIRE(q.quiesce_or_wait(w) == status::in_progress);

  CHECK_FALSE(q.cancel(w));
  CHECK(w.is_queued());
  CHECK(grace().run() == 1);

  CHECK(w.resumed() == 1);
  CHECK(w.result() == status::canceled);
  CHECK(q.depth() == 1);
  q.end_dispatch();
  CHECK(w.resumed() == 1);
  CHECK(q.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE("a grace period that is refused is told and leaves the quiesce in force") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> q;
  probe_waiter<deferred_platform> w;
  grace().refuse(1);

  CHECK(q.quiesce_or_wait(w) == status::not_permitted);

  CHECK_FALSE(w.is_queued());
  CHECK(q.depth() == 1);
  CHECK(q.unquiesce());
  CHECK(w.resumed() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("without a quiesce the wait is one grace period long") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> q;
  probe_waiter<deferred_platform> w;
  REQUIRE(q.try_dispatch());

  CHECK(q.quiesced_or_wait(w) == status::in_progress);
  CHECK(grace().run() == 1);

  CHECK(w.resumed() == 1);
  q.end_dispatch();
  CHECK(log.count() == 0);
}

}  // TEST_SUITE
