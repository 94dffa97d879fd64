// SPDX-License-Identifier: MIT
//
// awaitable_test.cpp - waiting at a gate in a coroutine.
#include <atomic>
#include <coroutine>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <pmgate/block/awaitable.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_entered;
using pmgate::basic_freeze_gate;
using pmgate::basic_quiesce_gate;
using pmgate::enter_flags;
using pmgate::portable_platform;
using pmgate::single_platform;
using pmgate::status;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::worker;
using default_platform = pmgate::default_platform;

static_assert(!std::is_copy_constructible_v<basic_entered<default_platform>>);
static_assert(noexcept(std::declval<basic_freeze_gate<default_platform>&>().entered()));
static_assert(std::is_nothrow_move_constructible_v<pmgate::entry>);

namespace {

/// A coroutine that begins at once and is destroyed with its handle.
class task {
 public:
  struct promise_type {
    task get_return_object() noexcept {
      return task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_always final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept {}
  };
  task(task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  task& operator=(task&&) = delete;
  ~task() { destroy(); }

  [[nodiscard]] bool done() const noexcept { return handle_.done(); }
  void destroy() noexcept {
    if (handle_) std::exchange(handle_, nullptr).destroy();
  }

 private:
  explicit task(std::coroutine_handle<promise_type> handle) noexcept : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

/// A coroutine that nobody waits for: it ends, and goes, in whatever thread resumes it.
struct detached {
  struct promise_type {
    detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept {}
  };
};

/// Enters, tells how it went, and stays inside until it is told to leave.
template <class P>
task visit(basic_freeze_gate<P>& gate, status& result, enter_flags flags = {}) {
  const auto entry = co_await gate.entered(flags);
  result = entry.result;
  CHECK(static_cast<bool>(entry) == (result == status::ok));
  CHECK(static_cast<bool>(entry.inside) == (result == status::ok));
  co_await std::suspend_always{};
}
template <class P>
task freeze(basic_freeze_gate<P>& gate, status& result) {
  result = co_await gate.frozen();
}
template <class P>
task quiesce(basic_quiesce_gate<P>& gate, status& result) {
  result = co_await gate.quiesced();
}

}  // namespace

#define ALL_PLATFORMS default_platform, portable_platform, single_platform
#define THREADED_PLATFORMS default_platform, portable_platform

TEST_SUITE("awaitable") {

TEST_CASE_TEMPLATE("at an open gate a coroutine goes on at once, and leaves with its entry", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  status result = status::in_progress;
  {
    const task t = visit(g, result);
    CHECK(result == status::ok);
    REQUIRE(g.freeze_start() == status::ok);
    CHECK_FALSE(g.is_frozen());
  }
  CHECK(g.is_frozen());
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("at a frozen gate it sleeps until the gate opens", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  status result = status::in_progress;
  REQUIRE(g.freeze() == status::ok);
  {
    const task t = visit(g, result);
    CHECK(result == status::in_progress);
    g.unfreeze();
    CHECK(result == status::ok);
    REQUIRE(g.freeze_start() == status::ok);
    CHECK_FALSE(g.is_frozen());
  }
  CHECK(g.is_frozen());
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a refusal is a result without an entry", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  status at_once = status::in_progress;
  status dead = status::in_progress;
  REQUIRE(g.freeze() == status::ok);

  const task a = visit(g, at_once, enter_flags::nowait);
  CHECK(at_once == status::again);
  const task b = visit(g, dead);
  CHECK(dead == status::in_progress);
  g.mark_dying();
  REQUIRE(g.start_drain() == status::ok);

  CHECK(dead == status::no_device);
  g.unfreeze();
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("coroutines are let in in the order in which they came", P, ALL_PLATFORMS) {
  basic_freeze_gate<P> g;
  std::string order;
  const auto come = [](basic_freeze_gate<P>& gate, std::string& out, char name) -> task {
    const auto entry = co_await gate.entered();
    out += name;
  };
  REQUIRE(g.freeze() == status::ok);
  const task a = come(g, order, 'a');
  const task b = come(g, order, 'b');
  const task c = come(g, order, 'c');

  g.unfreeze();

  CHECK(order == "abc");
  CHECK((a.done() && b.done() && c.done()));
}

TEST_CASE_TEMPLATE("a coroutine destroyed while it sleeps is not resumed", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  basic_quiesce_gate<P> q;
  status entered = status::in_progress;
  status frozen = status::in_progress;
  status quiesced = status::in_progress;
  REQUIRE(g.enter() == status::ok);
  REQUIRE(q.try_dispatch());
  {
    const task f = freeze(g, frozen);
    const task e = visit(g, entered);
    const task d = quiesce(q, quiesced);
  }

  CHECK(g.depth() == 1);  // whoever destroys undoes
  CHECK(q.depth() == 1);
  g.exit();
  q.end_dispatch();
  g.unfreeze();
  CHECK(q.unquiesce());

  CHECK(entered == status::in_progress);
  CHECK(frozen == status::in_progress);
  CHECK(quiesced == status::in_progress);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("frozen() goes on in the last exit", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  status result = status::in_progress;
  REQUIRE(g.enter() == status::ok);

  const task t = freeze(g, result);
  CHECK(result == status::in_progress);
  g.exit();

  CHECK(t.done());
  CHECK(result == status::ok);
  CHECK(g.is_frozen());
  g.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("quiesced() goes on with the end of the last section", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> q;
  status result = status::in_progress;
  REQUIRE(q.try_dispatch());

  const task t = quiesce(q, result);
  CHECK(result == status::in_progress);
  q.end_dispatch();

  CHECK(t.done());
  CHECK(result == status::ok);
  CHECK(q.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE("refused grace periods are told") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> g;
  basic_quiesce_gate<deferred_platform> q;
  status frozen = status::in_progress;
  status quiesced = status::in_progress;
  grace().refuse(2);

  const task f = freeze(g, frozen);
  const task d = quiesce(q, quiesced);

  CHECK(frozen == status::not_permitted);
  CHECK(g.depth() == 0);
  CHECK(quiesced == status::not_permitted);
  CHECK(q.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE("a coroutine destroyed when it is too late to cancel is reported") {
  misuse_log log;
  basic_quiesce_gate<deferred_platform> q;
  status result = status::in_progress;
  task t = quiesce(q, result);
  CHECK(result == status::in_progress);

  t.destroy();  // the platform has its request still

  CHECK(log.take() == 2);  // by the awaitable, and by the waiter in it
  CHECK(result == status::in_progress);
  grace().reset();  // never to be run
}

TEST_CASE_TEMPLATE("coroutines of several threads: everybody gets in once, freezers are alone", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  std::atomic<int> inside{0};
  std::atomic<int> overlaps{0};
  std::atomic<int> entered{0};
  std::atomic<int> frozen{0};
  const auto enter_once = [&](std::atomic<bool>& done) -> detached {
    {
      const auto entry = co_await g.entered();
      if (entry) entered.fetch_add(1);
      inside.fetch_add(1);
      inside.fetch_sub(1);
    }
    done.store(true, std::memory_order_release);  // the last touch of what it was given
  };
  const auto freeze_once = [&](std::atomic<bool>& done) -> detached {
    if (co_await g.frozen() == status::ok) frozen.fetch_add(1);
    if (inside.load() != 0) overlaps.fetch_add(1);
    g.unfreeze();
    done.store(true, std::memory_order_release);  // the last touch of what it was given
  };
  constexpr int rounds = 500;
  const auto repeat = [](const auto& once) {
    for (int i = 0; i < rounds; ++i) {
      std::atomic<bool> done{false};
      once(done);
      while (!done.load(std::memory_order_acquire)) std::this_thread::yield();
    }
  };
  {
    const worker a([&] { repeat(enter_once); });
    const worker b([&] { repeat(enter_once); });
    const worker c([&] { repeat(freeze_once); });
  }

  CHECK(entered == 2 * rounds);
  CHECK(frozen == rounds);
  CHECK(overlaps == 0);
  CHECK(log.count() == 0);
}

}  // TEST_SUITE
