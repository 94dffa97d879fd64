// SPDX-License-Identifier: MIT
//
// gate_group_test.cpp - gates closed together, those that are made meanwhile included.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/gate_group.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"
#include "support/probe_waiter.hpp"

using pmgate::basic_freeze_gate;
using pmgate::basic_gate_group;
using pmgate::basic_quiesce_gate;
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

static_assert(!std::is_copy_constructible_v<pmgate::gate_group>);
static_assert(!std::is_move_constructible_v<pmgate::gate_group>);
static_assert(!std::is_copy_constructible_v<pmgate::gate_group::member>);
static_assert(!std::is_move_constructible_v<pmgate::gate_group::member>);
static_assert(std::is_nothrow_default_constructible_v<pmgate::gate_group>);

namespace {

/// A queue, as a group sees it. Those of the tests are on the heap: ThreadSanitizer takes a
/// mutex of one test for that of another at the same place of the stack.
template <class P>
struct queue {
  explicit queue(basic_gate_group<P>& group, gate_start start = gate_start::percpu)
      : door(start), place(group, &door, &dispatch) {}
  basic_freeze_gate<P> door;
  basic_quiesce_gate<P> dispatch;
  typename basic_gate_group<P>::member place;

  [[nodiscard]] bool enterable() {
    if (!door.try_enter()) return false;
    door.exit();
    return true;
  }
  [[nodiscard]] bool dispatchable() {
    if (!dispatch.try_dispatch()) return false;
    dispatch.end_dispatch();
    return true;
  }
};

}  // namespace

#define ALL_PLATFORMS default_platform, portable_platform, single_platform
#define THREADED_PLATFORMS default_platform, portable_platform

TEST_SUITE("gate_group") {

TEST_CASE_TEMPLATE("members are frozen and opened together", P, ALL_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  const auto a_made = std::make_unique<queue<P>>(group);
  queue<P>& a = *a_made;
  const auto b_made = std::make_unique<queue<P>>(group);
  queue<P>& b = *b_made;
  CHECK(a.place.joined() == status::ok);

  REQUIRE(group.freeze() == status::ok);
  CHECK(group.freeze_depth() == 1);
  CHECK(a.door.is_frozen());
  CHECK(b.door.is_frozen());
  CHECK(a.dispatchable());
  group.unfreeze();

  CHECK(a.enterable());
  CHECK(b.enterable());
  CHECK(group.freeze_depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("members are quiesced and opened together", P, ALL_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  const auto a_made = std::make_unique<queue<P>>(group);
  queue<P>& a = *a_made;
  const auto b_made = std::make_unique<queue<P>>(group);
  queue<P>& b = *b_made;

  REQUIRE(group.quiesce() == status::ok);
  CHECK(group.quiesce_depth() == 1);
  CHECK_FALSE(a.dispatchable());
  CHECK(b.enterable());
  REQUIRE(b.dispatch.quiesce() == status::ok);
  std::vector<basic_quiesce_gate<P>*> opened;
  group.unquiesce([&](basic_quiesce_gate<P>& q) { opened.push_back(&q); });

  CHECK(opened == std::vector{&a.dispatch});
  CHECK(a.dispatchable());
  CHECK(b.dispatch.unquiesce());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("who joins while the group is closed is born closed, as often", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  REQUIRE(group.freeze() == status::ok);
  REQUIRE(group.freeze() == status::ok);
  REQUIRE(group.quiesce() == status::ok);

  const auto late_made = std::make_unique<queue<P>>(group);
  queue<P>& late = *late_made;

  CHECK(late.place.joined() == status::ok);
  CHECK(late.door.is_frozen());
  CHECK(late.door.depth() == 2);
  CHECK(late.dispatch.depth() == 1);
  group.unfreeze();
  CHECK_FALSE(late.enterable());
  group.unfreeze();
  group.unquiesce();
  CHECK(late.enterable());
  CHECK(late.dispatchable());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("who leaves a closed group is open", P, ALL_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  basic_freeze_gate<P> door;
  basic_quiesce_gate<P> dispatch;
  const auto stays_made = std::make_unique<queue<P>>(group);
  queue<P>& stays = *stays_made;
  {
    const typename basic_gate_group<P>::member place(group, &door, &dispatch);
    const queue<P> last(group);
    REQUIRE(group.freeze() == status::ok);
    REQUIRE(group.quiesce() == status::ok);
    REQUIRE(door.freeze() == status::ok);
  }

  CHECK(door.depth() == 1);  // its own
  CHECK(dispatch.depth() == 0);
  door.unfreeze();
  CHECK(stays.door.is_frozen());
  group.unfreeze();
  group.unquiesce();
  CHECK(stays.enterable());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a member may have one gate only", P, ALL_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  basic_freeze_gate<P> door;
  basic_quiesce_gate<P> dispatch;
  const typename basic_gate_group<P>::member first(group, &door);
  const typename basic_gate_group<P>::member second(group, nullptr, &dispatch);

  REQUIRE(group.freeze() == status::ok);
  REQUIRE(group.quiesce() == status::ok);
  CHECK(door.depth() == 1);
  CHECK(dispatch.depth() == 1);
  group.unquiesce();
  group.unfreeze();

  CHECK(door.depth() + dispatch.depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("opening a group once too often is reported and changes nothing", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  const auto a_made = std::make_unique<queue<P>>(group);
  queue<P>& a = *a_made;

  group.unfreeze();
  CHECK(log.take() == 1);
  group.unquiesce();
  CHECK(log.take() == 1);

  CHECK(group.freeze_depth() + group.quiesce_depth() == 0);
  CHECK(a.enterable());
  CHECK(a.dispatchable());
}

TEST_CASE("a group destroyed with members is reported") {
  misuse_log log;
  alignas(basic_gate_group<single_platform>) unsigned char
      room[sizeof(basic_gate_group<single_platform>)];
  auto* const group = ::new (room) basic_gate_group<single_platform>;
  const queue<single_platform> a(*group);

  group->~basic_gate_group();
  CHECK(log.take() == 1);
  CHECK(log.last() == "gate_group destroyed with members");
  ::new (room) basic_gate_group<single_platform>;  // for the member to leave
}

TEST_CASE("a freeze of the group takes one grace period, a nested one none") {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<deferred_platform>>();
  basic_gate_group<deferred_platform>& group = *made;
  std::vector<std::unique_ptr<queue<deferred_platform>>> queues;
  for (int i = 0; i < 100; ++i) {
    queues.push_back(std::make_unique<queue<deferred_platform>>(group));
  }
  grace().serve_at_once(true);

  REQUIRE(group.freeze() == status::ok);
  CHECK(grace().requested() == 1);
  REQUIRE(group.freeze() == status::ok);
  CHECK(grace().requested() == 1);
  REQUIRE(group.quiesce() == status::ok);
  CHECK(grace().synchronized() == 1);

  group.unfreeze();
  group.unfreeze();
  group.unquiesce();
  for (auto& q : queues) CHECK(q->enterable());
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("a refused freeze of the group leaves nothing changed") {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<deferred_platform>>();
  basic_gate_group<deferred_platform>& group = *made;
  const auto atomic_made = std::make_unique<queue<deferred_platform>>(group, gate_start::atomic);
  queue<deferred_platform>& atomic = *atomic_made;
  const auto a_made = std::make_unique<queue<deferred_platform>>(group);
  queue<deferred_platform>& a = *a_made;
  const auto b_made = std::make_unique<queue<deferred_platform>>(group);
  queue<deferred_platform>& b = *b_made;
  probe_waiter<deferred_platform> drained;
  REQUIRE(atomic.door.drained_or_wait(drained) == status::in_progress);
  grace().refuse(1);

  CHECK(group.freeze() == status::not_permitted);

  CHECK(group.freeze_depth() == 0);
  CHECK(a.enterable());
  CHECK(b.enterable());
  CHECK(atomic.enterable());
  CHECK(drained.resumed() == 0);
  grace().serve_at_once(true);
  CHECK(group.freeze() == status::ok);
  CHECK(drained.resumed() == 1);
  group.unfreeze();
  CHECK(a.enterable());
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("who joins a frozen group and is refused a grace period is told, and stays open") {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<deferred_platform>>();
  basic_gate_group<deferred_platform>& group = *made;
  grace().serve_at_once(true);
  REQUIRE(group.freeze() == status::ok);
  grace().refuse(1);

  const auto late_made = std::make_unique<queue<deferred_platform>>(group);
  queue<deferred_platform>& late = *late_made;

  CHECK(late.place.joined() == status::not_permitted);
  CHECK(late.enterable());
  group.unfreeze();
  CHECK(late.enterable());
  CHECK(late.door.depth() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("waiters resumed by a freeze of the group may use the group", P, ALL_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  const auto a_made = std::make_unique<queue<P>>(group, gate_start::atomic);
  queue<P>& a = *a_made;
  const auto b_made = std::make_unique<queue<P>>(group);
  queue<P>& b = *b_made;
  probe_waiter<P> drained([&] { group.unfreeze(); });
  REQUIRE(a.door.drained_or_wait(drained) == status::in_progress);

  CHECK(group.freeze_start() == status::ok);

  CHECK(drained.resumed() == 1);
  CHECK(a.enterable());
  CHECK(b.enterable());
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("freeze and quiesce wait for the members", P, THREADED_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  const auto a_made = std::make_unique<queue<P>>(group);
  queue<P>& a = *a_made;
  const auto b_made = std::make_unique<queue<P>>(group);
  queue<P>& b = *b_made;
  int left = 0;
  int ended = 0;
  REQUIRE(b.door.enter() == status::ok);
  REQUIRE(a.dispatch.try_dispatch());
  worker closer([&] {
    CHECK(group.freeze() == status::ok);
    CHECK(left == 1);
    CHECK(group.quiesce() == status::ok);
    CHECK(ended == 1);
  });

  CHECK(closer.is_blocked());
  left = 1;
  b.door.exit();
  CHECK(closer.is_blocked());
  ended = 1;
  a.dispatch.end_dispatch();
  closer.join();

  group.unquiesce();
  group.unfreeze();
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("at the gates of a group that dies nobody waits, nor at one that joins", P,
                   default_platform, portable_platform) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  const auto first = std::make_unique<queue<P>>(group);
  const auto second = std::make_unique<queue<P>>(group);
  REQUIRE(group.freeze() == status::ok);
  status told[2] = {};
  worker one([&] { told[0] = first->door.enter(); });
  worker two([&] { told[1] = second->door.enter(); });
  CHECK(one.is_blocked());
  CHECK(two.is_blocked());

  group.mark_dying();
  CHECK(one.is_blocked());
  CHECK(group.start_drain() == status::ok);
  one.join();
  two.join();

  CHECK(told[0] == status::no_device);
  CHECK(told[1] == status::no_device);
  const auto late = std::make_unique<queue<P>>(group);
  CHECK(late->door.enter() == status::no_device);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("members come and go while the group is closed and opened", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  const auto made = std::make_unique<basic_gate_group<P>>();
  basic_gate_group<P>& group = *made;
  std::atomic<bool> closed{false};
  std::atomic<int> intruders{0};
  {
    const auto come_and_go = [&] {
      for (int i = 0; i < 400; ++i) {
        queue<P> q(group);
        if (!q.door.try_enter()) continue;
        // Inside: the group cannot be seen closed before this is over.
        if (closed.load(std::memory_order_relaxed)) intruders.fetch_add(1);
        q.door.exit();
      }
    };
    const worker a(come_and_go);
    const worker b(come_and_go);
    const worker c([&] {
      for (int i = 0; i < 300; ++i) {
        if (group.freeze() != status::ok) std::abort();
        closed.store(true, std::memory_order_relaxed);
        closed.store(false, std::memory_order_relaxed);
        group.unfreeze();
        if (group.quiesce() != status::ok) std::abort();
        group.unquiesce();
      }
    });
  }

  CHECK(intruders == 0);
  CHECK(group.freeze_depth() + group.quiesce_depth() == 0);
  CHECK(log.count() == 0);
}

}  // TEST_SUITE
