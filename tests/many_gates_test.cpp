// SPDX-License-Identifier: MIT
//
// many_gates_test.cpp - every gate of a range closed, one grace period.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <deque>
#include <list>
#include <memory>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"
#include "support/probe_waiter.hpp"

using pmgate::basic_freeze_gate;
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

namespace {

std::atomic<int> graces{0};

/// A platform that counts its grace periods.
template <class P>
struct counting : P {
  [[nodiscard]] static bool after_grace_period(pmgate::grace_callback& first) noexcept {
    ++graces;
    return P::after_grace_period(first);
  }
  [[nodiscard]] static bool synchronize() noexcept {
    ++graces;
    return P::synchronize();
  }
};

template <class P>
struct pair_of_gates {
  basic_freeze_gate<P> a;
  basic_freeze_gate<P> b;
  std::array<basic_freeze_gate<P>*, 2> both{&a, &b};
};

template <class P>
bool is_open(basic_freeze_gate<P>& g) {
  if (!g.try_enter()) return false;
  g.exit();
  return g.depth() == 0;
}

}  // namespace

#define ALL_PLATFORMS default_platform, portable_platform, single_platform
#define THREADED_PLATFORMS default_platform, portable_platform

TEST_SUITE("many freeze gates") {

TEST_CASE_TEMPLATE("a thousand gates are frozen by one grace period", P, counting<default_platform>,
                   counting<portable_platform>, counting<single_platform>,
                   counting<deferred_platform>) {
  const misuse_log log;
  grace().serve_at_once(true);
  std::deque<basic_freeze_gate<P>> gates(1000);
  graces = 0;

  REQUIRE(pmgate::freeze_all(gates) == status::ok);

  CHECK(graces == 1);
  int frozen = 0;
  for (auto& g : gates) frozen += g.is_frozen() && !g.try_enter() ? 1 : 0;
  CHECK(frozen == 1000);
  pmgate::unfreeze_all(gates);
  CHECK(graces == 1);
  int open = 0;
  for (auto& g : gates) open += is_open(g) ? 1 : 0;
  CHECK(open == 1000);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a range may be a container or pointers, and empty", P, ALL_PLATFORMS) {
  const misuse_log log;
  std::list<basic_freeze_gate<P>> gates(3);
  std::vector<basic_freeze_gate<P>*> pointers;
  for (auto& g : gates) pointers.push_back(&g);
  const std::vector<basic_freeze_gate<P>*> none;
  std::array<basic_quiesce_gate<P>, 2> sections;

  CHECK(pmgate::freeze_all(pointers) == status::ok);
  CHECK(pmgate::freeze_all(none) == status::ok);
  pmgate::unfreeze_all(gates);
  pmgate::unfreeze_all(none);
  CHECK(pmgate::quiesce_all(sections) == status::ok);
  pmgate::unquiesce_all(sections);

  for (auto& g : gates) CHECK(is_open(g));
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("freeze_all waits for who is inside any of them", P, THREADED_PLATFORMS) {
  const misuse_log log;
  pair_of_gates<P> g;
  int written = 0;
  REQUIRE(g.b.enter() == status::ok);
  worker freezer([&] {
    CHECK(pmgate::freeze_all(g.both) == status::ok);
    CHECK(written == 1);
    pmgate::unfreeze_all(g.both);
  });

  CHECK(freezer.is_blocked());
  written = 1;
  g.b.exit();
  freezer.join();

  CHECK(is_open(g.a));
  CHECK(is_open(g.b));
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("freezes of a range nest with each other and with those of one gate", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  pair_of_gates<P> g;

  REQUIRE(pmgate::freeze_all(g.both) == status::ok);
  REQUIRE(g.a.freeze() == status::ok);
  REQUIRE(pmgate::freeze_all(g.both) == status::ok);
  pmgate::unfreeze_all(g.both);
  CHECK(g.a.depth() == 2);
  CHECK(g.b.depth() == 1);
  pmgate::unfreeze_all(g.both);

  CHECK(g.a.is_frozen());
  CHECK(is_open(g.b));
  g.a.unfreeze();
  CHECK(is_open(g.a));
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a gate that stands in a range twice is frozen twice", P, ALL_PLATFORMS) {
  const misuse_log log;
  basic_freeze_gate<P> g;
  const std::array<basic_freeze_gate<P>*, 2> twice{&g, &g};

  REQUIRE(pmgate::freeze_all(twice) == status::ok);
  CHECK(g.depth() == 2);
  pmgate::unfreeze_all(twice);

  CHECK(is_open(g));
  CHECK(log.count() == 0);
}

TEST_CASE("gates that are frozen or in atomic mode already need no grace period") {
  const misuse_log log;
  basic_freeze_gate<deferred_platform> atomic(gate_start::atomic);
  basic_freeze_gate<deferred_platform> frozen;
  std::array<basic_freeze_gate<deferred_platform>*, 2> both{&atomic, &frozen};
  grace().serve_at_once(true);
  REQUIRE(frozen.freeze() == status::ok);
  REQUIRE(grace().requested() == 1);

  CHECK(pmgate::freeze_all(both) == status::ok);

  CHECK(grace().requested() == 1);
  pmgate::unfreeze_all(both);
  frozen.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("after freeze_all a gate is frozen alone as ever", P, counting<default_platform>,
                   counting<portable_platform>, counting<deferred_platform>) {
  const misuse_log log;
  grace().serve_at_once(true);
  auto a = std::make_unique<basic_freeze_gate<P>>();
  auto b = std::make_unique<basic_freeze_gate<P>>();
  const std::array<basic_freeze_gate<P>*, 2> both{a.get(), b.get()};
  REQUIRE(pmgate::freeze_all(both) == status::ok);
  pmgate::unfreeze_all(both);
  b.reset();  // what the batch was linked to is gone
  graces = 0;

  CHECK(a->freeze() == status::ok);

  CHECK(graces == 1);
  CHECK(a->is_frozen());
  a->unfreeze();
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("a refused grace period leaves nothing changed") {
  const misuse_log log;
  pair_of_gates<deferred_platform> g;
  basic_freeze_gate<deferred_platform> atomic(gate_start::atomic);
  probe_waiter<deferred_platform> drained;
  const std::array<basic_freeze_gate<deferred_platform>*, 4> gates{&atomic, &g.a, &g.b, &g.a};
  REQUIRE(g.a.enter() == status::ok);
  REQUIRE(atomic.drained_or_wait(drained) == status::in_progress);
  grace().refuse(1);

  CHECK(pmgate::freeze_start_all(gates) == status::not_permitted);

  CHECK(grace().requested() == 1);
  CHECK(is_open(g.a));
  CHECK(is_open(g.b));
  CHECK(is_open(atomic));
  CHECK(drained.resumed() == 0);  // nobody was told of a drain that did not last
  g.a.exit();
  grace().serve_at_once(true);
  CHECK(pmgate::freeze_all(gates) == status::ok);
  CHECK(drained.resumed() == 1);
  pmgate::unfreeze_all(gates);
  CHECK(is_open(g.a));
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("a freeze of another that nests on a batch that is refused gets its own grace period") {
  const misuse_log log;
  pair_of_gates<deferred_platform> g;
  probe_waiter<deferred_platform> other;
  status nested = status::ok;
  grace().refuse(1);
  testing::before_close() = [&] {
    testing::before_close() = [&] { nested = g.a.freeze_or_wait(other); };  // when b closes
  };

  CHECK(pmgate::freeze_start_all(g.both) == status::not_permitted);

  CHECK(nested == status::in_progress);
  CHECK(g.a.depth() == 1);
  CHECK(is_open(g.b));
  CHECK(grace().run() == 1);
  CHECK(other.resumed() == 1);
  g.a.unfreeze();
  CHECK(is_open(g.a));
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a batch of another thread does not let a gate drain within this one's", P,
                   THREADED_PLATFORMS) {
  using pmgate::detail::many_gates;
  const misuse_log log;
  pair_of_gates<P> g;
  probe_waiter<P> drained;
  REQUIRE(g.a.drained_or_wait(drained) == status::in_progress);
  pmgate::detail::grace_batch batch;
  bool closed_it = false;
  for (auto* gate : g.both) REQUIRE(many_gates::begin_freeze(*gate, closed_it) == status::ok);
  for (auto* gate : g.both) CHECK(many_gates::collect(*gate, batch));

  std::thread([&] {
    CHECK(pmgate::freeze_start_all(g.both) == status::ok);
    pmgate::unfreeze_all(g.both);
  }).join();

  CHECK(many_gates::template ask<P>(batch));
  CHECK(drained.resumed() == 0);  // he may open the others: not before all is asked for
  for (auto* gate : g.both) many_gates::let_drain(*gate, false);
  CHECK(drained.resumed() == 1);
  for (auto* gate : g.both) CHECK(gate->is_frozen());
  pmgate::unfreeze_all(g.both);
  for (auto* gate : g.both) CHECK(is_open(*gate));
  CHECK(log.count() == 0);
}

TEST_CASE("a switch of a batch that was refused to somebody else is not taken for granted") {
  const misuse_log log;
  pair_of_gates<deferred_platform> g;
  basic_freeze_gate<deferred_platform> others;
  const std::array<basic_freeze_gate<deferred_platform>*, 3> gates{&g.a, &others, &g.b};
  bool closed_it = false;
  REQUIRE(pmgate::detail::many_gates::begin_freeze(others, closed_it) == status::ok);
  bool refused = false;
  testing::before_close() = [&] {
    testing::before_close() = [&] {  // when b closes
      grace().refuse(1);
      g.a.switch_to_percpu();  // asks in place of the batch
      refused = g.a.usage().snapshot().switching && grace().pending() == 0;
      grace().serve_at_once(true);
    };
  };

  CHECK(pmgate::freeze_start_all(gates) == status::not_permitted);

  CHECK(refused);
  CHECK(others.depth() == 1);
  CHECK(g.a.depth() == 0);
  CHECK(g.b.depth() == 0);
  others.unfreeze();
  for (auto* gate : gates) CHECK(is_open(*gate));
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("another may open a gate of a batch that has not been asked for yet") {
  const misuse_log log;
  pair_of_gates<deferred_platform> g;
  grace().serve_at_once(true);
  // When b closes, a's switch has begun and nobody has asked for its grace period.
  testing::before_close() = [&] {
    testing::before_close() = [&] {
      g.a.unfreeze();
      CHECK(is_open(g.a));
    };
  };

  CHECK(pmgate::freeze_start_all(g.both) == status::ok);

  CHECK(grace().requested() == 1);
  CHECK(g.b.is_frozen());
  CHECK(is_open(g.a));
  g.b.unfreeze();
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("another may open and freeze a gate of a batch that has not been asked for yet") {
  const misuse_log log;
  pair_of_gates<deferred_platform> g;
  grace().serve_at_once(true);
  testing::before_close() = [&] {
    testing::before_close() = [&] {
      g.a.unfreeze();
      CHECK(g.a.freeze_start() == status::ok);
    };
  };

  CHECK(pmgate::freeze_all(g.both) == status::ok);

  CHECK(grace().requested() == 2);  // his, and the batch's
  CHECK(g.a.is_frozen());
  CHECK(g.a.depth() == 1);
  pmgate::unfreeze_all(g.both);
  CHECK(is_open(g.a));
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("unfreeze_all within the grace period returns when it is over") {
  const misuse_log log;
  pair_of_gates<deferred_platform> g;
  REQUIRE(pmgate::freeze_start_all(g.both) == status::ok);
  CHECK(grace().pending() == 1);
  worker thaw([&] { pmgate::unfreeze_all(g.both); });

  CHECK(thaw.is_blocked());
  CHECK(grace().run() == 1);
  thaw.join();

  CHECK(is_open(g.a));
  CHECK(is_open(g.b));
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("waiters are told when every gate is closed, and may open them all", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  pair_of_gates<P> g;
  probe_waiter<P> a;
  probe_waiter<P> b;
  int told = 0;
  const auto when_both = [&] {
    CHECK_FALSE(g.b.try_enter());
    if (++told == 2) pmgate::unfreeze_all(g.both);
  };
  a.on_resume = b.on_resume = when_both;
  REQUIRE(g.a.drained_or_wait(a) == status::in_progress);
  REQUIRE(g.b.drained_or_wait(b) == status::in_progress);

  CHECK(pmgate::freeze_start_all(g.both) == status::ok);

  CHECK(told == 2);
  CHECK(is_open(g.a));
  CHECK(is_open(g.b));
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("freeze_all_until undoes every freeze at the deadline", P, ALL_PLATFORMS) {
  const misuse_log log;
  pair_of_gates<P> g;
  REQUIRE(g.b.enter() == status::ok);

  CHECK(pmgate::freeze_all_until(g.both, P::now()) == status::timed_out);
  CHECK(is_open(g.a));
  CHECK(is_open(g.b));
  g.b.exit();
  CHECK(pmgate::freeze_all_until(g.both, P::now() + P::milliseconds(10000)) == status::ok);
  CHECK(g.a.depth() + g.b.depth() == 2);
  pmgate::unfreeze_all(g.both);
  CHECK(log.count() == 0);
}

TEST_CASE("where nobody else runs freeze_all of an entered gate says again") {
  misuse_log log;
  pair_of_gates<single_platform> g;
  REQUIRE(g.b.enter() == status::ok);

  CHECK(pmgate::freeze_all(g.both) == status::again);
  CHECK(log.take() == 1);
  CHECK(g.a.depth() + g.b.depth() == 2);
  g.b.exit();
  CHECK(pmgate::freeze_all(g.both) == status::ok);
  pmgate::unfreeze_all(g.both);
  pmgate::unfreeze_all(g.both);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("threads freeze overlapping ranges in opposite orders while others enter", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  std::array<basic_freeze_gate<P>, 3> gates;
  std::array<std::atomic<int>, 3> inside{};
  std::atomic<int> overlaps{0};
  const auto freezer = [&](std::array<std::size_t, 2> which) {
    const std::array<basic_freeze_gate<P>*, 2> mine{&gates[which[0]], &gates[which[1]]};
    for (int i = 0; i < 500; ++i) {
      if (pmgate::freeze_all(mine) != status::ok) std::abort();
      for (const std::size_t n : which) overlaps += inside[n].load(std::memory_order_relaxed);
      pmgate::unfreeze_all(mine);
    }
  };
  const auto enterer = [&] {
    for (std::size_t i = 0; i < 3000; ++i) {
      if (gates[i % 3].enter() != status::ok) std::abort();
      inside[i % 3].fetch_add(1, std::memory_order_relaxed);
      inside[i % 3].fetch_sub(1, std::memory_order_relaxed);
      gates[i % 3].exit();
    }
  };
  {
    const worker a([&] { freezer({0, 1}); });
    const worker b([&] { freezer({2, 0}); });
    const worker c([&] { freezer({1, 2}); });
    const worker d(enterer);
    const worker e(enterer);
  }

  CHECK(overlaps == 0);
  for (auto& g : gates) CHECK(is_open(g));
  CHECK(log.count() == 0);
}

}  // TEST_SUITE

TEST_SUITE("many quiesce gates") {

TEST_CASE_TEMPLATE("a thousand gates are quiesced by one grace period", P,
                   counting<default_platform>, counting<portable_platform>,
                   counting<single_platform>, counting<deferred_platform>) {
  const misuse_log log;
  grace().serve_at_once(true);
  std::deque<basic_quiesce_gate<P>> gates(1000);
  graces = 0;

  REQUIRE(pmgate::quiesce_all(gates) == status::ok);

  CHECK(graces == 1);
  int closed = 0;
  for (auto& q : gates) closed += q.try_dispatch() ? 0 : 1;
  CHECK(closed == 1000);
  REQUIRE(gates[5].quiesce() == status::ok);
  int opened = 0;
  pmgate::unquiesce_all(gates, [&](basic_quiesce_gate<P>& q) {
    CHECK(q.depth() == 0);
    ++opened;
  });
  CHECK(opened == 999);  // all but the one that was quiesced once more
  CHECK(gates[5].unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("quiesce_all waits for the sections of each", P, THREADED_PLATFORMS) {
  const misuse_log log;
  std::array<basic_quiesce_gate<P>, 2> gates;
  int written = 0;
  REQUIRE(gates[1].try_dispatch());
  worker quiescer([&] {
    CHECK(pmgate::quiesce_all(gates) == status::ok);
    CHECK(written == 1);
  });

  CHECK(quiescer.is_blocked());
  written = 1;
  gates[1].end_dispatch();
  quiescer.join();

  pmgate::unquiesce_all(gates);
  CHECK(gates[0].try_dispatch());
  gates[0].end_dispatch();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("wait_quiesced_all_until gives up at the deadline", P, ALL_PLATFORMS) {
  const misuse_log log;
  std::array<basic_quiesce_gate<P>, 2> gates;
  REQUIRE(gates[1].try_dispatch());
  pmgate::quiesce_nowait_all(gates);

  CHECK(pmgate::wait_quiesced_all_until(gates, P::now() + P::milliseconds(1)) ==
        status::timed_out);
  gates[1].end_dispatch();
  CHECK(pmgate::wait_quiesced_all_until(gates, P::now()) == status::ok);

  pmgate::unquiesce_all(gates);
  CHECK(log.count() == 0);
}

TEST_CASE("a refused grace period is told and leaves the quiesces in force") {
  const misuse_log log;
  std::array<basic_quiesce_gate<deferred_platform>, 2> gates;
  grace().refuse(1);

  CHECK(pmgate::quiesce_all(gates) == status::not_permitted);

  CHECK(gates[0].depth() == 1);
  CHECK(gates[1].depth() == 1);
  grace().serve_at_once(true);
  CHECK(pmgate::wait_quiesced_all(gates) == status::ok);
  pmgate::unquiesce_all(gates);
  CHECK(log.count() == 0);
}

}  // TEST_SUITE
