// SPDX-License-Identifier: MIT
//
// quiesce_gate_test.cpp - who may dispatch; the numbers are those of the scenarios
// in the specification of queue freezing.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_quiesce_gate;
using pmgate::portable_platform;
using pmgate::single_platform;
using pmgate::status;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;
using default_platform = pmgate::default_platform;
using default_gate = pmgate::quiesce_gate;

static_assert(!std::is_copy_constructible_v<default_gate>);
static_assert(!std::is_move_constructible_v<default_gate>);
static_assert(std::is_nothrow_default_constructible_v<default_gate>);
static_assert(!std::is_copy_constructible_v<default_gate::ticket>);
static_assert(std::is_nothrow_move_constructible_v<default_gate::ticket>);
static_assert(noexcept(std::declval<default_gate&>().try_dispatch()));
static_assert(noexcept(std::declval<default_gate&>().quiesce()));
static_assert(noexcept(std::declval<default_gate&>().unquiesce()));
static_assert(sizeof(default_gate) <= 256);

#define ALL_PLATFORMS default_platform, portable_platform, single_platform
#define THREADED_PLATFORMS default_platform, portable_platform

TEST_SUITE("quiesce_gate") {

TEST_CASE_TEMPLATE("a fresh gate lets sections run", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;

  REQUIRE(g.try_dispatch());
  REQUIRE(g.try_dispatch());
  g.end_dispatch();
  g.end_dispatch();

  CHECK(g.depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("32: a quiesced gate refuses sections until it is unquiesced", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;

  REQUIRE(g.quiesce() == status::ok);
  CHECK_FALSE(g.try_dispatch());
  CHECK(g.depth() == 1);
  CHECK(g.unquiesce());

  REQUIRE(g.try_dispatch());
  g.end_dispatch();
  CHECK(g.depth() == 0);
}

TEST_CASE_TEMPLATE("33: quiesces nest; one unquiesce too many is reported and harmless", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  basic_quiesce_gate<P> g;
  REQUIRE(g.quiesce() == status::ok);
  REQUIRE(g.quiesce() == status::ok);
  CHECK(g.depth() == 2);

  CHECK_FALSE(g.unquiesce());
  CHECK_FALSE(g.try_dispatch());
  CHECK(g.unquiesce());
  REQUIRE(g.try_dispatch());
  CHECK(log.count() == 0);
  CHECK_FALSE(g.unquiesce());

  CHECK(log.take() == 1);
  CHECK(g.depth() == 0);
  g.end_dispatch();
  REQUIRE(g.quiesce() == status::ok);
  CHECK_FALSE(g.try_dispatch());
  CHECK(g.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("34: quiesce waits for the running section, quiesce_nowait does not", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  int written = 0;
  int seen = 0;
  REQUIRE(g.try_dispatch());

  g.quiesce_nowait();
  CHECK_FALSE(g.try_dispatch());
  worker quiescer([&] {
    if (g.quiesce() == status::ok) seen = written;
  });
  CHECK(quiescer.is_blocked());
  written = 7;
  g.end_dispatch();
  quiescer.join();

  CHECK(seen == 7);
  CHECK(g.depth() == 2);
  CHECK_FALSE(g.unquiesce());
  CHECK(g.unquiesce());
}

TEST_CASE_TEMPLATE("a wait with a deadline gives up there, and the quiesce stays in force", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  REQUIRE(g.try_dispatch());
  g.quiesce_nowait();

  CHECK(g.wait_quiesced_until(P::now() + P::milliseconds(1)) == status::timed_out);
  CHECK(g.depth() == 1);
  CHECK_FALSE(g.try_dispatch());

  g.end_dispatch();
  CHECK(g.wait_quiesced_until(P::now()) == status::ok);
  CHECK(g.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("35: two who quiesce at a time both wait for the section", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  REQUIRE(g.try_dispatch());

  worker first([&] { (void)g.quiesce(); });
  worker second([&] { (void)g.quiesce(); });
  CHECK(first.is_blocked());
  CHECK(second.is_blocked());
  g.end_dispatch();
  first.join();
  second.join();

  CHECK(g.depth() == 2);
  (void)g.unquiesce();
  CHECK(g.unquiesce());
}

TEST_CASE("each who quiesces takes a grace period of his own, also when quiesced already") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> g;
  grace().serve_at_once(true);

  REQUIRE(g.quiesce() == status::ok);
  REQUIRE(g.quiesce() == status::ok);
  REQUIRE(g.wait_quiesced() == status::ok);

  CHECK(grace().synchronized() == 3);
  (void)g.unquiesce();
  (void)g.unquiesce();
}

TEST_CASE("quiesce waits for the grace period, and for who was under way when it began") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> g;

  worker quiescer([&] { (void)g.quiesce(); });
  while (grace().synchronized() == 0) std::this_thread::yield();
  CHECK(quiescer.is_blocked());
  testing::straggling() = true;
  REQUIRE(g.try_dispatch());
  testing::straggling() = false;
  grace().run();
  CHECK(quiescer.is_blocked());
  g.end_dispatch();
  quiescer.join();

  CHECK_FALSE(g.try_dispatch());
  CHECK(g.unquiesce());
}

TEST_CASE("wait_quiesced without a quiesce takes a grace period and waits for nobody") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> g;
  grace().serve_at_once(true);
  REQUIRE(g.try_dispatch());

  CHECK(g.wait_quiesced() == status::ok);

  CHECK(grace().synchronized() == 1);
  g.end_dispatch();
  CHECK(log.count() == 0);
}

TEST_CASE("a refused grace period is told, and the quiesce stays in force") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> g;
  grace().serve_at_once(true);
  grace().refuse(1);

  CHECK(g.quiesce() == status::not_permitted);
  CHECK(g.depth() == 1);
  CHECK_FALSE(g.try_dispatch());
  CHECK(g.wait_quiesced() == status::ok);
  CHECK(g.unquiesce());

  REQUIRE(g.try_dispatch());
  g.end_dispatch();
  CHECK(log.count() == 0);
}

TEST_CASE("a quiesce that is seen in force can be waited for") {
  const misuse_log log;
  basic_quiesce_gate<deferred_platform> g;
  grace().serve_at_once(true);
  bool got_in = false;
  testing::before_close() = [&] {  // in the middle of quiesce_nowait()
    if (g.depth() == 0 || g.wait_quiesced() != status::ok) return;
    got_in = g.try_dispatch();
    if (got_in) g.end_dispatch();
  };

  g.quiesce_nowait();

  CHECK_FALSE(got_in);
  CHECK(g.unquiesce());
}

TEST_CASE_TEMPLATE("who waits returns when the last quiesce is undone meanwhile", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  REQUIRE(g.try_dispatch());
  worker quiescer([&] { (void)g.quiesce(); });
  CHECK(quiescer.is_blocked());

  CHECK(g.unquiesce());
  quiescer.join();

  REQUIRE(g.try_dispatch());
  g.end_dispatch();
  g.end_dispatch();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a section may begin before, end during, or outlive several quiesces", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  REQUIRE(g.try_dispatch());  // outlives the first
  REQUIRE(g.try_dispatch());  // ends in it
  g.quiesce_nowait();
  g.end_dispatch();
  CHECK(g.unquiesce());
  REQUIRE(g.try_dispatch());
  g.end_dispatch();

  g.quiesce_nowait();
  g.end_dispatch();
  CHECK(g.wait_quiesced() == status::ok);
  CHECK(g.unquiesce());
  g.quiesce_nowait();
  CHECK(g.wait_quiesced() == status::ok);
  CHECK(g.unquiesce());

  CHECK(log.count() == 0);
}

TEST_CASE("where nobody else runs, waiting for a section is reported") {
  misuse_log log;
  basic_quiesce_gate<single_platform> g;
  REQUIRE(g.try_dispatch());

  CHECK(g.quiesce() == status::again);
  CHECK(log.take() == 1);
  CHECK(g.depth() == 1);
  g.end_dispatch();
  CHECK(g.wait_quiesced() == status::ok);

  CHECK(g.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("another thread may end a section", P, THREADED_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  std::thread([&] { (void)g.try_dispatch(); }).join();
  g.quiesce_nowait();

  worker completion([&] { g.end_dispatch(); });

  CHECK(g.wait_quiesced() == status::ok);
  CHECK(g.unquiesce());
}

TEST_CASE_TEMPLATE("a ticket ends its section once", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  {
    auto first = g.dispatch();
    REQUIRE(first);
    auto second = std::move(first);
    second = g.dispatch();
    second.leave();
    second.leave();
    CHECK_FALSE(second);
  }

  REQUIRE(g.quiesce() == status::ok);
  CHECK_FALSE(g.dispatch());

  CHECK(g.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("destroying a gate with a section running is reported, open or quiesced", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  {
    basic_quiesce_gate<P> g;
    REQUIRE(g.try_dispatch());
  }
  CHECK(log.take() == 1);
  {
    basic_quiesce_gate<P> g;
    REQUIRE(g.try_dispatch());
    g.quiesce_nowait();
  }
  CHECK(log.take() == 1);
  {
    basic_quiesce_gate<P> g;
    REQUIRE(g.try_dispatch());
    g.quiesce_nowait();
    g.end_dispatch();
  }

  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("right after wait_quiesced the memory may be used for something else", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  using tested = basic_quiesce_gate<P>;
  struct space {
    alignas(tested) std::array<std::byte, sizeof(tested)> bytes;
  };
  const auto room = std::make_unique<space>();
  std::atomic<tested*> inside{nullptr};
  std::atomic<bool> stop{false};
  std::thread leaver([&] {
    while (!stop) {
      if (auto* const mine = inside.exchange(nullptr)) mine->end_dispatch();
      std::this_thread::yield();
    }
  });

  int rounds = 0;
  int wrong = 0;
  for (time_limit limit(300); limit; ++rounds) {
    auto* const g = ::new (room->bytes.data()) tested;
    if (!g->try_dispatch()) ++wrong;
    inside = g;
    if (g->quiesce() != status::ok) ++wrong;
    g->~tested();
    room->bytes.fill(std::byte{0xa5});
    if (std::any_of(room->bytes.begin(), room->bytes.end(),
                    [](std::byte b) { return b != std::byte{0xa5}; })) {
      ++wrong;
    }
  }
  stop = true;
  leaver.join();

  CHECK(rounds > 0);
  CHECK(wrong == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("36: no section runs between quiesce and unquiesce, whoever quiesces", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  std::atomic<bool> stop{false};
  std::atomic<int> inside{0};
  std::atomic<int> wrong{0};
  std::atomic<long> sections{0};
  std::vector<std::thread> dispatchers;
  for (int i = 0; i < 3; ++i) {
    dispatchers.emplace_back([&] {
      while (!stop) {
        if (!g.try_dispatch()) continue;
        inside.fetch_add(1);
        inside.fetch_sub(1);
        sections.fetch_add(1, std::memory_order_relaxed);
        g.end_dispatch();
      }
    });
  }

  std::atomic<int> rounds{0};
  const auto quiescer = [&] {
    for (time_limit limit(400); limit; rounds.fetch_add(1)) {
      if (g.quiesce() != status::ok || inside != 0) wrong.fetch_add(1);
      (void)g.unquiesce();
    }
  };
  std::thread second(quiescer);
  quiescer();
  second.join();
  stop = true;
  for (auto& dispatcher : dispatchers) dispatcher.join();

  CHECK(rounds > 0);
  CHECK(wrong == 0);
  CHECK(g.depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a wait during which the gate opens and closes again still ends", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  basic_quiesce_gate<P> g;
  std::atomic<bool> stop{false};
  std::thread waiter([&] {
    while (!stop) (void)g.wait_quiesced();
  });
  std::thread dispatcher([&] {
    while (!stop) {
      if (const auto section = g.dispatch()) std::this_thread::yield();
    }
  });

  int rounds = 0;
  for (time_limit limit(300); limit; ++rounds) {
    g.quiesce_nowait();
    (void)g.unquiesce();
  }
  stop = true;
  waiter.join();
  dispatcher.join();

  CHECK(rounds > 0);
  CHECK(g.quiesce() == status::ok);
  CHECK(g.unquiesce());
  CHECK(log.count() == 0);
}

}  // TEST_SUITE("quiesce_gate")
