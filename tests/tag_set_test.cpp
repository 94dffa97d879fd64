// SPDX-License-Identifier: MIT
//
// tag_set_test.cpp - tags shared by several queues, and what is done to all of these at
// once; the numbers are those of the scenarios in the specification of queue freezing.
#include <array>
#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/request_queue.hpp>
#include <pmgate/block/tag_set.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_request;
using pmgate::basic_request_queue;
using pmgate::basic_tag_set;
using pmgate::dispatch_status;
using pmgate::driver_kind;
using pmgate::enter_flags;
using pmgate::gate_start;
using pmgate::portable_platform;
using pmgate::single_platform;
using pmgate::status;
using pmgate::tagset_quiesce;
using pmgate::pm::basic_work_queue;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;
using default_platform = pmgate::default_platform;

static_assert(!std::is_copy_constructible_v<pmgate::tag_set>);
static_assert(!std::is_move_constructible_v<pmgate::tag_set>);
static_assert(std::is_nothrow_constructible_v<pmgate::tag_set, unsigned>);
static_assert(std::is_nothrow_destructible_v<pmgate::tag_set>);

namespace {

constexpr enter_flags nowait = enter_flags::nowait;

#define THREADED_PLATFORMS default_platform, portable_platform

/// What the driver was offered, in order.
using log_type = std::vector<std::string>;

/// A queue of an adapter, and requests for it.
template <class P>
struct port {
  using rig_queue = basic_request_queue<P>;

  struct io : basic_request<P> {
    explicit io(std::string its_name) : name(std::move(its_name)) {}
    std::string name;
  };

  port(std::string its_name, log_type& its_log, basic_work_queue<P>& works, basic_tag_set<P>& set,
       tagset_quiesce part = tagset_quiesce::included, gate_start start = gate_start::percpu)
      : name(std::move(its_name)), log(its_log), q({&queue_rq, this}, works, set, start, part) {
    for (int i = 0; i < 16; ++i) rqs.emplace_back(name + std::to_string(i));
  }
  static dispatch_status queue_rq(rig_queue& queue, basic_request<P>& rq) noexcept {
    auto& self = *static_cast<port*>(queue.context());
    if (self.is_full) return dispatch_status::dev_resource;
    self.log.push_back(static_cast<io&>(rq).name);
    return dispatch_status::ok;
  }
  /// How many of n it gets without waiting.
  int alloc(int n) {
    int got = 0;
    while (got < n && q.alloc(rqs[held], nowait) == status::ok) {
      ++got;
      ++held;
    }
    return got;
  }
  void free_all() {
    while (held > 0) q.free(rqs[--held]);
  }

  std::string name;
  log_type& log;
  std::deque<io> rqs;
  std::size_t held = 0;
  bool is_full = false;
  rig_queue q;
};

/// An adapter with one thread: nothing happens by itself.
struct adapter {
  using P = single_platform;

  explicit adapter(unsigned depth = 8, driver_kind driver = driver_kind::nonblocking)
      : set(depth, driver) {}
  log_type take_log() { return std::exchange(log, {}); }

  misuse_log misuse;
  log_type log;
  basic_work_queue<P> works{"runs"};
  basic_tag_set<P> set;
};

}  // namespace

TEST_SUITE("tag_set") {

// -- tags

TEST_CASE("no two queues of a set have the same tag at a time") {
  adapter a(8);
  port<single_platform> x("x", a.log, a.works, a.set);
  port<single_platform> y("y", a.log, a.works, a.set);
  std::array<bool, 8> seen{};

  CHECK(x.alloc(4) == 4);
  CHECK(y.alloc(4) == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK_FALSE(std::exchange(seen[x.rqs[i].tag()], true));
    CHECK_FALSE(std::exchange(seen[y.rqs[i].tag()], true));
  }
  CHECK(x.alloc(1) == 0);
  x.free_all();
  y.free_all();
  CHECK(a.misuse.count() == 0);
}

TEST_CASE("a queue alone in its set, or alone with requests, may have all tags") {
  adapter a(8);
  port<single_platform> x("x", a.log, a.works, a.set);
  CHECK(x.alloc(9) == 8);
  x.free_all();

  port<single_platform> y("y", a.log, a.works, a.set);
  CHECK(x.alloc(9) == 8);
  CHECK(y.alloc(1) == 0);
  x.free_all();
}

TEST_CASE("queues that use their tags get equal parts, but four at least") {
  adapter a(12);
  std::deque<port<single_platform>> ports;
  for (const char* name : {"x", "y", "z", "w"}) ports.emplace_back(name, a.log, a.works, a.set);

  CHECK(ports[0].alloc(1) == 1);
  CHECK(ports[1].alloc(12) == 6);  // half of it
  CHECK(ports[2].alloc(12) == 4);  // a third
  CHECK(ports[0].alloc(12) == 1);  // what is left
  CHECK(ports[3].alloc(12) == 0);
  ports[1].free_all();
  CHECK(ports[0].alloc(12) == 4);  // half of it
  CHECK(ports[3].alloc(12) == 2);  // what is left of at least four
  for (auto& each : ports) each.free_all();
}

TEST_CASE("a part is rounded up, and is four at least") {
  for (const unsigned depth : {9U, 6U}) {
    adapter a(depth);
    port<single_platform> x("x", a.log, a.works, a.set);
    port<single_platform> y("y", a.log, a.works, a.set);
    CHECK(y.alloc(1) == 1);
    CHECK(x.alloc(9) == (depth == 9 ? 5 : 4));
    x.free_all();
    y.free_all();
  }
}

TEST_CASE("one tag is not divided") {
  adapter a(1);
  port<single_platform> x("x", a.log, a.works, a.set);
  port<single_platform> y("y", a.log, a.works, a.set);
  CHECK(x.alloc(2) == 1);
  CHECK(y.alloc(1) == 0);
  x.free_all();
  CHECK(y.alloc(1) == 1);
  y.free_all();
}

TEST_CASE_TEMPLATE("a tag that one queue frees goes to who has waited longest, in any queue", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<P> works("runs");
  basic_tag_set<P> set(1);
  port<P> x("x", log, works, set);
  port<P> y("y", log, works, set);
  REQUIRE(x.alloc(1) == 1);
  basic_request<P> first;
  basic_request<P> second;
  worker in_y([&] { CHECK(y.q.alloc(first) == status::ok); });
  CHECK(in_y.is_blocked());
  worker in_x([&] { CHECK(x.q.alloc(second) == status::ok); });
  CHECK(in_x.is_blocked());

  x.free_all();
  in_y.join();
  CHECK(in_x.is_blocked());
  y.q.free(first);
  in_x.join();
  x.q.free(second);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("who waits beyond his queue's part is passed over, and served when it grows", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<P> works("runs");
  basic_tag_set<P> set(10);
  port<P> x("x", log, works, set);
  port<P> y("y", log, works, set);
  REQUIRE(y.alloc(1) == 1);
  REQUIRE(x.alloc(9) == 5);
  basic_request<P> sixth;
  worker in_x([&] { CHECK(x.q.alloc(sixth) == status::ok); });
  CHECK(in_x.is_blocked());

  CHECK(y.alloc(1) == 1);  // there are free tags, for others
  x.q.free(x.rqs[--x.held]);
  in_x.join();
  x.q.free(sixth);
  REQUIRE(x.alloc(1) == 1);
  worker again([&] { CHECK(x.q.alloc(sixth) == status::ok); });
  CHECK(again.is_blocked());
  y.free_all();  // x is alone now
  again.join();

  x.q.free(sixth);
  x.free_all();
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("a queue without requests leaves its part to the others", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<P> works("runs");
  basic_tag_set<P> set(10);
  port<P> x("x", log, works, set);
  port<P> y("y", log, works, set);
  REQUIRE(y.alloc(1) == 1);
  REQUIRE(x.alloc(9) == 5);
  basic_request<P> sixth;
  worker in_x([&] { CHECK(x.q.alloc(sixth) == status::ok); });
  CHECK(in_x.is_blocked());

  y.free_all();
  in_x.join();
  CHECK(x.alloc(9) == 4);
  x.q.free(sixth);
  x.free_all();
  CHECK(misuse.count() == 0);
}

// -- quiesce

TEST_CASE("scenario 37: quiescing a set parks what is submitted to any queue but those skipped") {
  adapter a;
  std::deque<port<single_platform>> ports;
  ports.emplace_back("a", a.log, a.works, a.set);
  ports.emplace_back("b", a.log, a.works, a.set, tagset_quiesce::skipped);
  ports.emplace_back("c", a.log, a.works, a.set);
  ports.emplace_back("d", a.log, a.works, a.set);

  CHECK(a.set.quiesce() == status::ok);
  for (auto& each : ports) REQUIRE(each.q.submit(each.rqs[0]) == status::ok);
  CHECK(a.take_log() == log_type{"b0"});
  CHECK(ports[1].q.quiesce_depth() == 0);

  a.set.unquiesce();
  CHECK(a.log.empty());  // asynchronously
  a.works.run_pending();
  CHECK(a.take_log() == log_type{"a0", "c0", "d0"});
  for (auto& each : ports) each.q.complete(each.rqs[0]);
  CHECK(a.misuse.count() == 0);
}

TEST_CASE("scenario 37: and takes one grace period for all of them; so does freezing a set") {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<deferred_platform> works("runs");
  basic_tag_set<deferred_platform> set(4);
  std::deque<port<deferred_platform>> ports;
  for (const char* name : {"a", "b", "c", "d"}) {
    ports.emplace_back(name, log, works, set,
                       *name == 'b' ? tagset_quiesce::skipped : tagset_quiesce::included);
  }
  grace().serve_at_once(true);
  int before = grace().begun();
  CHECK(set.quiesce() == status::ok);
  CHECK(grace().begun() == before + 1);
  set.unquiesce();

  basic_tag_set<deferred_platform> nobody(4);
  before = grace().begun();
  CHECK(nobody.quiesce() == status::ok);  // waits all the same
  CHECK(grace().begun() == before + 1);
  nobody.unquiesce();

  before = grace().begun();
  CHECK(set.freeze() == status::ok);
  CHECK(grace().begun() == before + 1);
  for (auto& each : ports) CHECK(each.q.gate().is_frozen());
  set.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE("quiesces of the set and of a queue add up") {
  adapter a;
  port<single_platform> x("x", a.log, a.works, a.set);
  port<single_platform> y("y", a.log, a.works, a.set);
  a.set.quiesce_nowait();
  CHECK(a.set.wait_quiesced() == status::ok);
  CHECK(x.q.quiesce() == status::ok);
  REQUIRE(x.q.submit(x.rqs[0]) == status::ok);
  REQUIRE(y.q.submit(y.rqs[0]) == status::ok);

  a.set.unquiesce();
  a.works.run_pending();
  CHECK(a.take_log() == log_type{"y0"});
  x.q.unquiesce();
  a.works.run_pending();
  CHECK(a.take_log() == log_type{"x0"});
  x.q.complete(x.rqs[0]);
  y.q.complete(y.rqs[0]);

  CHECK(a.misuse.count() == 0);
  a.set.unquiesce();
  CHECK(a.misuse.take() == 2);
  CHECK(x.q.quiesce_depth() == 0);
}

TEST_CASE("a queue that joins a quiesced set is born quiesced, as often as it is undone") {
  adapter a;
  port<single_platform> x("x", a.log, a.works, a.set);
  a.set.quiesce();
  a.set.quiesce();
  port<single_platform> y("y", a.log, a.works, a.set);
  port<single_platform> z("z", a.log, a.works, a.set, tagset_quiesce::skipped);
  CHECK(y.q.quiesce_depth() == 2);
  CHECK(z.q.quiesce_depth() == 0);
  REQUIRE(y.q.submit(y.rqs[0]) == status::ok);

  a.set.unquiesce();
  a.works.run_pending();
  CHECK(a.log.empty());
  a.set.unquiesce();
  a.works.run_pending();
  CHECK(a.take_log() == log_type{"y0"});
  y.q.complete(y.rqs[0]);
  port<single_platform> w("w", a.log, a.works, a.set);
  CHECK(w.q.quiesce_depth() == 0);
  CHECK(a.misuse.count() == 0);
}

TEST_CASE("a queue that leaves a quiesced set takes nothing with it") {
  adapter a;
  port<single_platform> x("x", a.log, a.works, a.set);
  {
    port<single_platform> y("y", a.log, a.works, a.set);
    port<single_platform> z("z", a.log, a.works, a.set);
    a.set.quiesce();
  }
  port<single_platform> w("w", a.log, a.works, a.set);
  a.set.unquiesce();
  CHECK(x.q.quiesce_depth() == 0);
  CHECK(w.q.quiesce_depth() == 0);
  CHECK(a.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("quiescing a set waits for the drivers of all its queues", P,
                   THREADED_PLATFORMS) {
  struct sleeper {
    std::atomic<bool> inside{false};
    std::atomic<bool> let_go{false};
    static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
      auto& self = *static_cast<sleeper*>(queue.context());
      self.inside = true;
      while (!self.let_go) std::this_thread::yield();
      self.inside = false;
      queue.complete(rq);
      return dispatch_status::ok;
    }
  };
  const misuse_log misuse;
  basic_work_queue<P> works("runs");
  basic_tag_set<P> set(4);
  std::array<sleeper, 2> drivers;
  basic_request_queue<P> x({&sleeper::queue_rq, &drivers[0]}, works, set);
  basic_request_queue<P> y({&sleeper::queue_rq, &drivers[1]}, works, set);
  basic_request<P> in_x;
  basic_request<P> in_y;
  worker first([&] { CHECK(x.submit(in_x) == status::ok); });
  worker second([&] { CHECK(y.submit(in_y) == status::ok); });
  while (!drivers[0].inside || !drivers[1].inside) std::this_thread::yield();

  worker quiescer([&] { CHECK(set.quiesce() == status::ok); });
  CHECK(quiescer.is_blocked());
  drivers[0].let_go = true;
  CHECK(quiescer.is_blocked());
  drivers[1].let_go = true;
  quiescer.join();
  CHECK_FALSE(drivers[1].inside);
  first.join();
  second.join();
  set.unquiesce();
  CHECK(misuse.count() == 0);
}

// -- freeze

TEST_CASE("freezing a set closes every queue and has it dispatch what it holds") {
  adapter a;
  port<single_platform> x("x", a.log, a.works, a.set);
  port<single_platform> y("y", a.log, a.works, a.set);
  y.is_full = true;
  REQUIRE(y.q.submit(y.rqs[0]) == status::ok);  // refused, and nothing will run the queue
  y.is_full = false;
  a.works.run_pending();
  REQUIRE(a.log.empty());

  CHECK(a.set.freeze_start() == status::ok);
  CHECK(x.q.gate().is_frozen());
  CHECK_FALSE(y.q.gate().is_frozen());
  CHECK(x.q.submit(x.rqs[0], nowait) == status::again);
  a.works.run_pending();
  CHECK(a.take_log() == log_type{"y0"});
  y.q.complete(y.rqs[0]);
  CHECK(a.set.freeze_wait() == status::ok);

  a.set.unfreeze();
  CHECK(x.alloc(1) == 1);
  CHECK(y.alloc(1) == 1);
  x.free_all();
  y.free_all();
  CHECK(a.misuse.count() == 0);
}

TEST_CASE("a set that does not drain by a deadline is open again") {
  adapter host;
  port<single_platform> a("a", host.log, host.works, host.set);
  port<single_platform> b("b", host.log, host.works, host.set);
  REQUIRE(b.alloc(1) == 1);
  CHECK(host.set.freeze_until(single_platform::now()) == status::timed_out);
  CHECK(a.q.gate().depth() == 0);
  CHECK(b.q.gate().depth() == 0);

  REQUIRE(host.set.freeze_start() == status::ok);
  CHECK_FALSE(host.set.freeze_wait_until(single_platform::now()));
  b.free_all();
  CHECK(host.set.freeze_wait_until(single_platform::now()));
  CHECK(a.q.gate().depth() == 1);
  CHECK(host.set.freeze_until(single_platform::now()) == status::ok);
  host.set.unfreeze();
  host.set.unfreeze();
  CHECK(host.misuse.count() == 0);
}

TEST_CASE("freezing one queue of a set leaves the others alone") {
  adapter a;
  port<single_platform> x("x", a.log, a.works, a.set);
  port<single_platform> y("y", a.log, a.works, a.set);
  CHECK(x.q.freeze() == status::ok);
  CHECK(y.q.submit(y.rqs[0]) == status::ok);
  CHECK(a.take_log() == log_type{"y0"});
  y.q.complete(y.rqs[0]);
  x.q.unfreeze();
}

TEST_CASE("a queue that joins a frozen set is born frozen, without a grace period") {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<deferred_platform> works("runs");
  basic_tag_set<deferred_platform> set(4);
  REQUIRE(set.freeze() == status::ok);
  REQUIRE(set.freeze() == status::ok);
  grace().refuse(100);
  port<deferred_platform> x("x", log, works, set);
  grace().refuse(0);
  CHECK(x.q.gate().depth() == 2);
  CHECK(x.q.gate().is_frozen());
  CHECK(x.alloc(1) == 0);

  set.unfreeze();
  CHECK(x.alloc(1) == 0);
  set.unfreeze();
  CHECK(x.q.gate().usage().snapshot().percpu);
  CHECK(x.alloc(1) == 1);
  x.free_all();
  grace().serve_at_once(true);  // for the destructor
  CHECK(misuse.count() == 0);
  CHECK(grace().broken_contracts() == 0);
}

TEST_CASE_TEMPLATE("at the queues of a set that dies nobody waits, nor at one that joins", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<P> works("runs");
  basic_tag_set<P> set(4);
  port<P> x("x", log, works, set);
  port<P> y("y", log, works, set);
  REQUIRE(set.freeze() == status::ok);
  status told[2] = {};
  worker one([&] { told[0] = x.q.alloc(x.rqs[0]); });
  worker two([&] { told[1] = y.q.alloc(y.rqs[0]); });
  CHECK(one.is_blocked());
  CHECK(two.is_blocked());

  set.mark_dying();
  CHECK(set.start_drain() == status::ok);
  one.join();
  two.join();

  CHECK(told[0] == status::no_device);
  CHECK(told[1] == status::no_device);
  CHECK_FALSE(works.run_pending());  // nothing is offered to anybody
  port<P> late("late", log, works, set);
  CHECK(late.q.alloc(late.rqs[0]) == status::no_device);
  CHECK(misuse.count() == 0);
}

TEST_CASE("a drain of which one queue's part is refused goes on, and says so") {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<deferred_platform> works("runs");
  basic_tag_set<deferred_platform> set(4);
  grace().serve_at_once(true);
  port<deferred_platform> x("x", log, works, set);
  port<deferred_platform> y("y", log, works, set);
  grace().refuse(1);

  set.mark_dying();
  CHECK(set.start_drain() == status::not_permitted);

  CHECK(x.q.gate().depth() == 0);
  CHECK(y.q.gate().depth() == 1);
  CHECK(set.start_drain() == status::ok);
  CHECK(x.q.gate().depth() == 1);
  CHECK(misuse.count() == 0);
}

TEST_CASE("a freeze of which one queue's part is refused freezes none") {
  const misuse_log misuse;
  log_type log;
  basic_work_queue<deferred_platform> works("runs");
  basic_tag_set<deferred_platform> set(4);
  grace().serve_at_once(true);
  port<deferred_platform> x("x", log, works, set, tagset_quiesce::included, gate_start::atomic);
  port<deferred_platform> y("y", log, works, set);

  grace().refuse(1);
  CHECK(set.freeze() == status::not_permitted);
  CHECK(x.q.gate().depth() == 0);
  CHECK(y.q.gate().depth() == 0);
  CHECK(x.alloc(1) == 1);
  CHECK(y.alloc(1) == 1);
  x.free_all();
  y.free_all();

  CHECK(set.freeze() == status::ok);
  set.unfreeze();
  CHECK(misuse.count() == 0);
}

// -- drivers that sleep

TEST_CASE("a driver that may sleep is run by the work queue, not by who submits") {
  adapter a(8, driver_kind::blocking);
  CHECK(a.set.is_blocking());
  port<single_platform> x("x", a.log, a.works, a.set);
  REQUIRE(x.q.submit(x.rqs[0]) == status::ok);
  REQUIRE(x.q.alloc(x.rqs[1]) == status::ok);
  x.q.execute_nowait(x.rqs[1]);
  CHECK(a.log.empty());
  REQUIRE(x.q.submit_bio(x.rqs[2]) == status::ok);  // offered at once, by who issues it
  CHECK(a.take_log() == log_type{"x2"});

  a.works.run_pending();
  CHECK(a.take_log() == log_type{"x0", "x1"});
  for (std::size_t i = 0; i < 3; ++i) x.q.complete(x.rqs[i]);
  CHECK(a.misuse.count() == 0);
}

TEST_CASE_TEMPLATE(
    "a run of a driver that sleeps goes on with what is submitted, and quiesce waits for it", P,
    THREADED_PLATFORMS) {
  struct sleeper {
    std::atomic<int> offered{0};
    std::atomic<bool> let_go{false};
    static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>&) noexcept {
      auto& self = *static_cast<sleeper*>(queue.context());
      ++self.offered;
      while (!self.let_go) std::this_thread::yield();
      return dispatch_status::ok;
    }
  };
  const misuse_log misuse;
  basic_work_queue<P> works("runs");
  sleeper driver;
  basic_request_queue<P> q({&sleeper::queue_rq, &driver}, works, 4, gate_start::percpu,
                           driver_kind::blocking);
  worker kblockd([&] { works.run(); });
  basic_request<P> first;
  basic_request<P> second;
  REQUIRE(q.submit(first) == status::ok);  // does not sleep
  while (driver.offered == 0) std::this_thread::yield();
  worker quiescer([&] { CHECK(q.quiesce() == status::ok); });
  while (q.quiesce_depth() == 0) std::this_thread::yield();
  REQUIRE(q.submit(second) == status::ok);
  CHECK(quiescer.is_blocked());

  q.complete(first);  // the device is done while queue_rq has not returned
  driver.let_go = true;
  quiescer.join();
  CHECK(driver.offered == 2);
  q.complete(second);
  q.unquiesce();
  CHECK(q.freeze() == status::ok);
  works.stop();
  kblockd.join();
  CHECK(misuse.count() == 0);
}

// -- the rest

TEST_CASE("a set without tags, or with too many, is reported") {
  const misuse_log misuse;
  { const basic_tag_set<single_platform> none(0); }
  { const basic_tag_set<single_platform> many(1025); }
  CHECK(misuse.count() == 2);
}

TEST_CASE_TEMPLATE("queues of one set under load, quiesced, frozen, joined and left", P,
                   THREADED_PLATFORMS) {
  struct counter {
    std::atomic<bool> silent{false};
    std::atomic<int> intruders{0};
    std::atomic<int> failures{0};
    static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
      auto& self = *static_cast<counter*>(queue.context());
      if (self.silent) ++self.intruders;
      queue.complete(rq);
      return dispatch_status::ok;
    }
    void expect(bool condition) {
      if (!condition) ++failures;
    }
  };
  const misuse_log misuse;
  counter driver;  // of the queues that stay
  counter other;
  basic_work_queue<P> works("runs");
  worker kblockd([&] { works.run(); });
  {
    basic_tag_set<P> set(3);
    basic_request_queue<P> x({&counter::queue_rq, &driver}, works, set);
    basic_request_queue<P> y({&counter::queue_rq, &driver}, works, set);
    std::atomic<bool> stop{false};
    {
      std::array<std::unique_ptr<worker>, 4> submitters;
      for (std::size_t i = 0; i < submitters.size(); ++i) {
        submitters[i] = std::make_unique<worker>([&, i] {
          auto& q = i % 2 == 0 ? x : y;
          basic_request<P> rq;
          while (!stop) {
            driver.expect(q.alloc(rq) == status::ok);
            driver.expect(q.execute(rq) == status::ok);
          }
        });
      }
      worker comer([&] {
        while (!stop) {
          basic_request_queue<P> z({&counter::queue_rq, &other}, works, set);
          basic_request<P> rq;
          if (z.alloc(rq) == status::ok) driver.expect(z.execute(rq) == status::ok);
          driver.expect(z.destroy() == status::ok);
          std::this_thread::yield();
        }
      });
      int rounds = 0;
      for (const time_limit limit(300); limit; ++rounds) {
        if (rounds % 2 == 0) {
          set.quiesce_nowait();
          driver.expect(x.wait_quiesced() == status::ok);
          driver.expect(y.wait_quiesced() == status::ok);
          driver.silent = true;
          std::this_thread::yield();
          driver.silent = false;
          set.unquiesce();
        } else {
          driver.expect(set.freeze_start() == status::ok);
          driver.expect(x.freeze_wait() == status::ok);
          driver.expect(y.freeze_wait() == status::ok);
          driver.silent = true;
          std::this_thread::yield();
          driver.silent = false;
          set.unfreeze();
        }
      }
      stop = true;
      CHECK(rounds > 0);
    }
  }
  works.stop();
  kblockd.join();
  CHECK(driver.intruders == 0);
  CHECK(driver.failures == 0);
  CHECK(misuse.count() == 0);
}

}  // TEST_SUITE
