// SPDX-License-Identifier: MIT
//
// queue_gate_test.cpp - the end of disks and queues; the numbers are those of the
// scenarios in the specification of queue freezing.
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/queue_gate.hpp>
#include <pmgate/block/request_queue.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_gate_waiter;
using pmgate::basic_request;
using pmgate::basic_request_queue;
using pmgate::basic_tag_set;
using pmgate::dispatch_status;
using pmgate::enter_flags;
using pmgate::gate_start;
using pmgate::portable_platform;
using pmgate::queue_fate;
using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_work_queue;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;
using default_platform = pmgate::default_platform;

namespace {

constexpr enter_flags nowait = enter_flags::nowait;

#define THREADED_PLATFORMS default_platform, portable_platform
#define ALL_PLATFORMS default_platform, portable_platform, single_platform

/// A queue whose driver takes everything, or refuses when told to.
template <class P>
struct bench {
  static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>&) noexcept {
    auto& self = *static_cast<bench*>(queue.context());
    ++self.offered;
    return self.refuses ? dispatch_status::dev_resource : dispatch_status::ok;
  }
  misuse_log misuse;
  std::atomic<int> offered{0};
  bool refuses = false;
  basic_work_queue<P> works{"runs"};
  basic_request_queue<P> q{{&queue_rq, this}, works, 4};
  basic_request<P> a;
  basic_request<P> b;
};

}  // namespace

TEST_SUITE("queue_gate") {

// -- disks

TEST_CASE_TEMPLATE("a disk that is removed takes its queue with it", P, ALL_PLATFORMS) {
  bench<P> t;
  CHECK(t.q.del_gendisk() == status::ok);

  CHECK(t.q.is_disk_dead());
  CHECK(t.q.gate().is_dying());
  CHECK(t.q.gate().is_frozen());
  CHECK(t.q.gate().depth() == 1);
  CHECK(t.q.quiesce_depth() == 0);
  CHECK(t.q.alloc(t.a) == status::no_device);
  CHECK(t.q.alloc(t.a, nowait) == status::again);
  CHECK(t.q.submit_bio(t.a) == status::io_error);
  CHECK(t.q.submit_bio(t.a, nowait) == status::io_error);
  CHECK(t.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("scenario 16: a queue that survives its disk serves its driver, but no bios", P,
                   ALL_PLATFORMS) {
  bench<P> t;
  CHECK(t.q.del_gendisk(queue_fate::survives) == status::ok);

  CHECK_FALSE(t.q.gate().is_dying());
  CHECK(t.q.gate().depth() == 0);
  CHECK_FALSE(t.q.gate().usage().snapshot().percpu);
  CHECK(t.q.submit_bio(t.a) == status::io_error);
  CHECK(t.q.submit(t.a) == status::ok);
  t.q.complete(t.a);
  CHECK(t.q.destroy() == status::ok);
  CHECK(t.misuse.count() == 0);
}

TEST_CASE("scenario 16: and its own end takes no grace period") {
  bench<deferred_platform> t;
  grace().serve_at_once(true);
  CHECK(t.q.del_gendisk(queue_fate::survives) == status::ok);
  const int before = grace().requested();
  CHECK(t.q.destroy() == status::ok);
  CHECK(grace().requested() == before);
}

TEST_CASE_TEMPLATE("a disk that was dead before is drained once", P, ALL_PLATFORMS) {
  bench<P> t;
  CHECK(t.q.mark_disk_dead() == status::ok);
  CHECK(t.q.del_gendisk() == status::ok);
  CHECK(t.q.mark_disk_dead() == status::ok);
  CHECK(t.q.gate().depth() == 1);
}

TEST_CASE_TEMPLATE("a surviving queue whose disk had died is dying all the same, and open", P,
                   ALL_PLATFORMS) {
  bench<P> t;
  CHECK(t.q.mark_disk_dead() == status::ok);
  CHECK(t.q.del_gendisk(queue_fate::survives) == status::ok);

  CHECK(t.q.gate().is_dying());
  CHECK(t.q.submit(t.a) == status::ok);
  t.q.complete(t.a);
}

TEST_CASE("a death that is refused its grace period is tried again") {
  bench<deferred_platform> t;
  grace().serve_at_once(true);
  grace().refuse(1);
  CHECK(t.q.mark_disk_dead() == status::not_permitted);
  CHECK(t.q.is_disk_dead());
  CHECK(t.q.gate().depth() == 0);
  CHECK(t.q.submit_bio(t.a) == status::io_error);

  CHECK(t.q.del_gendisk() == status::ok);
  CHECK(t.q.gate().is_frozen());
  CHECK(t.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("a freeze with a deadline is undone when it is not drained by then", P,
                   ALL_PLATFORMS) {
  bench<P> t;
  REQUIRE(t.q.submit(t.a) == status::ok);
  CHECK(t.q.freeze_until(P::now()) == status::timed_out);
  CHECK(t.q.gate().depth() == 0);
  t.q.complete(t.a);
  CHECK(t.q.freeze_until(P::now()) == status::ok);
  CHECK(t.q.gate().is_frozen());
  t.q.unfreeze();
  CHECK(t.misuse.count() == 0);
}

TEST_CASE("who must not sleep is told of the drain, to which the queue has contributed") {
  using P = single_platform;
  struct told : basic_gate_waiter<P> {
    told() : basic_gate_waiter<P>(&resume) {}
    static void resume(basic_gate_waiter<P>& self, status result) noexcept {
      ++static_cast<told&>(self).times;
      static_cast<told&>(self).answer = result;
    }
    int times = 0;
    status answer = status::invalid;
  };
  bench<P> t;
  told waiter;
  t.refuses = true;
  REQUIRE(t.q.submit(t.a) == status::ok);
  t.refuses = false;

  CHECK(t.q.freeze_or_wait(waiter) == status::in_progress);
  CHECK(t.offered == 2);
  CHECK(waiter.times == 0);
  CHECK(t.q.freeze_or_wait(waiter) == status::busy);  // reported, and no second freeze is left
  CHECK(t.misuse.take() == 1);
  CHECK(t.q.gate().depth() == 1);
  t.q.complete(t.a);
  CHECK(waiter.times == 1);
  CHECK(waiter.answer == status::ok);
  t.q.unfreeze();
  CHECK(t.misuse.count() == 0);
}

TEST_CASE_TEMPLATE("removing a disk waits for its requests, those who wait are told", P,
                   THREADED_PLATFORMS) {
  bench<P> t;
  REQUIRE(t.q.submit(t.a) == status::ok);
  REQUIRE(t.q.enter() == status::ok);
  worker remover([&] { CHECK(t.q.del_gendisk() == status::ok); });
  const auto closed = [&t] {
    const auto count = t.q.gate().usage().snapshot();
    return count.dying && !count.switching;
  };
  while (!closed()) std::this_thread::yield();
  CHECK(t.q.enter() == status::no_device);
  CHECK(t.q.enter(nowait) == status::again);

  t.q.complete(t.a);
  CHECK(remover.is_blocked());
  t.q.exit();
  remover.join();
  CHECK(t.misuse.count() == 0);
}

TEST_CASE("what a queue holds is dispatched when its disk dies") {
  bench<single_platform> t;
  t.refuses = true;
  REQUIRE(t.q.submit(t.a) == status::ok);
  t.refuses = false;
  CHECK(t.q.mark_disk_dead() == status::ok);
  CHECK(t.offered == 2);
  t.q.complete(t.a);
  CHECK(t.q.del_gendisk() == status::ok);
}

TEST_CASE_TEMPLATE("removing a disk waits for a driver that has not returned yet", P,
                   THREADED_PLATFORMS) {
  struct slow {
    std::atomic<bool> completed{false};
    std::atomic<bool> let_go{false};
    std::atomic<bool> inside{true};
    static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
      auto& self = *static_cast<slow*>(queue.context());
      queue.complete(rq);
      self.completed = true;
      while (!self.let_go) std::this_thread::yield();
      self.inside = false;
      return dispatch_status::ok;
    }
  };
  const misuse_log misuse;
  slow driver;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&slow::queue_rq, &driver}, works, 4);
  basic_request<P> rq;
  worker submitter([&] { CHECK(q.submit(rq) == status::ok); });
  while (!driver.completed) std::this_thread::yield();

  CHECK(q.freeze() == status::ok);  // there is no request any more
  q.unfreeze();
  worker remover([&] { CHECK(q.del_gendisk() == status::ok); });
  CHECK(remover.is_blocked());
  driver.let_go = true;
  remover.join();
  CHECK_FALSE(driver.inside);
  submitter.join();
  CHECK(misuse.count() == 0);
}

// -- queues

TEST_CASE_TEMPLATE("scenario 13: destroying a queue tells who waits at its frozen gate", P,
                   THREADED_PLATFORMS) {
  bench<P> t;
  REQUIRE(t.q.freeze() == status::ok);
  status got = status::ok;
  worker enterer([&] { got = t.q.enter(); });
  CHECK(enterer.is_blocked());

  CHECK(t.q.destroy() == status::ok);
  enterer.join();
  CHECK(got == status::no_device);
  CHECK(t.q.gate().depth() == 2);
  t.q.unfreeze();  // that of who froze
  CHECK(t.q.gate().is_frozen());
  CHECK(t.q.enter() == status::no_device);
  CHECK(t.misuse.count() == 0);
}

TEST_CASE("a quiesced queue with requests is destroyed once it is unquiesced") {
  bench<deferred_platform> t;
  grace().serve_at_once(true);
  REQUIRE(t.q.quiesce() == status::ok);
  REQUIRE(t.q.submit(t.a) == status::ok);
  worker destroyer([&] { CHECK(t.q.destroy() == status::ok); });
  CHECK(destroyer.is_blocked());

  t.q.unquiesce();
  t.works.run_pending();
  CHECK(t.offered == 1);
  t.q.complete(t.a);
  destroyer.join();
  CHECK(t.misuse.count() == 0);
}

TEST_CASE("a queue that was destroyed has left its tag set") {
  using P = single_platform;
  const misuse_log misuse;
  basic_work_queue<P> works("runs");
  basic_tag_set<P> set(8);
  int unused = 0;
  const auto takes = [](basic_request_queue<P>&, basic_request<P>&) noexcept {
    return dispatch_status::ok;
  };
  basic_request_queue<P> x({takes, &unused}, works, set);
  basic_request_queue<P> y({takes, &unused}, works, set);

  CHECK(y.destroy() == status::ok);
  set.quiesce();
  CHECK(x.quiesce_depth() == 1);
  CHECK(y.quiesce_depth() == 0);
  set.unquiesce();
  CHECK(set.freeze() == status::ok);
  CHECK(y.gate().depth() == 1);
  set.unfreeze();
  CHECK(y.gate().is_frozen());
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("scenario 49: a queue may be destroyed under load, and nobody is left waiting",
                   P, THREADED_PLATFORMS) {
  struct immediate {
    static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
      queue.complete(rq);
      return dispatch_status::ok;
    }
  };
  const misuse_log misuse;
  basic_work_queue<P> works("runs");
  worker kblockd([&] { works.run(); });
  std::atomic<int> wrong{0};
  int rounds = 0;
  for (const time_limit limit(300); limit; ++rounds) {
    auto q = std::make_unique<basic_request_queue<P>>(
        pmgate::basic_queue_ops<P>{&immediate::queue_rq, nullptr}, works, 2);
    std::atomic<bool> over{false};
    {
      std::array<std::unique_ptr<worker>, 8> enterers;
      for (auto& each : enterers) {
        each = std::make_unique<worker>([&] {
          for (;;) {
            const bool late = over;
            basic_request<P> rq;
            const status got = q->alloc(rq);
            if (got == status::no_device) return;
            if (got != status::ok || late) ++wrong;
            if (got == status::ok && q->execute(rq) != status::ok) ++wrong;
          }
        });
      }
      if (q->destroy() != status::ok) ++wrong;
      over = true;
    }
    q.reset();
  }
  works.stop();
  kblockd.join();
  CHECK(rounds > 0);
  CHECK(wrong == 0);
  CHECK(misuse.count() == 0);
}

}  // TEST_SUITE
