// SPDX-License-Identifier: MIT
//
// request_queue_test.cpp - requests on their way to a driver; the numbers are those
// of the scenarios in the specification of queue freezing.
//
// What happens in order is tested on the single-threaded platform, whose clock and
// whose asynchronous runs are the test's; what blocks and what races, on threads.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/request_queue.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_queue_ops;
using pmgate::basic_request;
using pmgate::basic_request_queue;
using pmgate::dispatch_status;
using pmgate::enter_flags;
using pmgate::gate_start;
using pmgate::portable_platform;
using pmgate::request_kind;
using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_work_queue;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;
using default_platform = pmgate::default_platform;

static_assert(!std::is_copy_constructible_v<pmgate::request_queue>);
static_assert(!std::is_move_constructible_v<pmgate::request_queue>);
static_assert(!std::is_copy_constructible_v<pmgate::request>);
static_assert(!std::is_move_constructible_v<pmgate::request>);
static_assert(std::is_nothrow_default_constructible_v<pmgate::request>);
static_assert(std::is_nothrow_destructible_v<pmgate::request_queue>);
static_assert(
    noexcept(std::declval<pmgate::request_queue&>().submit(std::declval<pmgate::request&>())));
static_assert(
    noexcept(std::declval<pmgate::request_queue&>().complete(std::declval<pmgate::request&>())));
static_assert(sizeof(pmgate::request) <= 64);

namespace {

constexpr enter_flags nowait = enter_flags::nowait;

#define THREADED_PLATFORMS default_platform, portable_platform

/// What happened, in order.
using log_type = std::vector<std::string>;

/// A driver that takes what it is offered, unless it was told what to answer.
template <class P>
struct bench {
  struct io : basic_request<P> {
    io(bench& its_bench, std::string its_name)
        : basic_request<P>(&on_end), owner(its_bench), name(std::move(its_name)) {}
    bench& owner;
    std::string name;
    int ends = 0;
  };

  explicit bench(unsigned depth = 8, gate_start start = gate_start::percpu)
      : q({&queue_rq, this}, works, depth, start) {}

  static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
    auto& self = *static_cast<bench*>(queue.context());
    auto& its = static_cast<io&>(rq);
    if (self.answers.empty()) {
      self.log.push_back("takes " + its.name);
      self.taken.fetch_add(1, std::memory_order_release);
      return dispatch_status::ok;
    }
    const dispatch_status answer = self.answers.front();
    self.answers.pop_front();
    self.log.push_back((answer == dispatch_status::ok ? "takes " : "refuses ") + its.name);
    return answer;
  }
  static void on_end(basic_request<P>& rq) noexcept {
    auto& its = static_cast<io&>(rq);
    ++its.ends;
    its.owner.log.push_back("ends " + its.name);
  }
  log_type take_log() { return std::exchange(log, {}); }

  log_type log;
  std::atomic<int> taken{0};
  std::deque<dispatch_status> answers;
  basic_work_queue<P> works{"runs"};
  basic_request_queue<P> q;
};

std::int64_t clock_now = 0;

/// One thread: nothing happens by itself.
struct sequential {
  sequential() {
    clock_now = 1;
    single_platform::installed().clock = [](void) noexcept { return clock_now; };
  }
  ~sequential() { single_platform::installed().clock = nullptr; }
  sequential(const sequential&) = delete;
  sequential& operator=(const sequential&) = delete;

  void pass(std::int64_t milliseconds) { clock_now += single_platform::milliseconds(milliseconds); }

  using io = bench<single_platform>::io;
  misuse_log misuse;
  bench<single_platform> b;
  basic_request_queue<single_platform>& q = b.q;
  io a{b, "a"};
  io c{b, "c"};
  io d{b, "d"};
};

dispatch_status takes_all(basic_request_queue<single_platform>&,
                          basic_request<single_platform>&) noexcept {
  return dispatch_status::ok;
}

/// A work queue with a thread of its own, for as long as it lives.
template <class P>
struct served {
  explicit served(basic_work_queue<P>& queue) : works(queue), thread([&queue] { queue.run(); }) {}
  ~served() {
    works.stop();
    thread.join();
  }
  served(const served&) = delete;
  served& operator=(const served&) = delete;
  basic_work_queue<P>& works;
  std::thread thread;
};

}  // namespace

TEST_SUITE("request_queue") {

// -- one thread

TEST_CASE_FIXTURE(
    sequential, "a submitted request goes to the driver at once and holds the gate until it ends") {
  REQUIRE(q.submit(a) == status::ok);
  CHECK(b.take_log() == log_type{"takes a"});
  REQUIRE(q.freeze_start() == status::ok);
  CHECK_FALSE(q.gate().is_frozen());

  q.complete(a, status::timed_out);
  CHECK(b.take_log() == log_type{"ends a"});
  CHECK(a.result() == status::timed_out);
  CHECK(q.gate().is_frozen());
  q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "an allocated request holds tag and entry until it is freed") {
  REQUIRE(q.alloc(a) == status::ok);
  REQUIRE(q.alloc(c, enter_flags::pm) == status::ok);
  CHECK(a.tag() != c.tag());
  CHECK_FALSE(a.is_pm());
  CHECK(c.is_pm());
  REQUIRE(q.freeze_start() == status::ok);

  q.free(a);
  CHECK_FALSE(q.gate().is_frozen());
  q.free(c);
  CHECK(q.gate().is_frozen());
  CHECK(b.log.empty());
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "without a tag nowait is refused and leaves the gate") {
  bench<single_platform> one(1);
  io first{one, "first"};
  io second{one, "second"};
  REQUIRE(one.q.alloc(first) == status::ok);

  CHECK(one.q.alloc(second, nowait) == status::again);
  CHECK(one.q.submit_bio(second, nowait) == status::again);
  CHECK(second.ends == 1);

  one.q.free(first);
  REQUIRE(one.q.freeze() == status::ok);
  one.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "the front is for those who ask for it, last come first") {
  q.quiesce_nowait();
  REQUIRE(q.submit(a) == status::ok);
  REQUIRE(q.submit(c, {}, true) == status::ok);
  REQUIRE(q.submit(d, {}, true) == status::ok);

  q.unquiesce();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes d", "takes c", "takes a"});
  q.complete(a);
  q.complete(c);
  q.complete(d);
}

TEST_CASE_FIXTURE(sequential, "bios that had to wait go out behind what is passed through") {
  q.quiesce_nowait();
  REQUIRE(q.submit_bio(a) == status::ok);
  REQUIRE(q.submit(c) == status::ok);
  CHECK(a.kind() == request_kind::bio);
  CHECK(c.kind() == request_kind::passthrough);

  q.unquiesce();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes c", "takes a"});
  q.complete(a);
  q.complete(c);
}

TEST_CASE_FIXTURE(
    sequential,
    "32: what is submitted while quiesced is kept, and goes out afterwards, asynchronously") {
  REQUIRE(q.submit(a) == status::ok);
  q.quiesce();
  b.take_log();

  CHECK(q.submit(c) == status::ok);
  q.complete(a);
  CHECK(b.take_log() == log_type{"ends a"});
  q.unquiesce();
  CHECK(b.log.empty());

  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes c"});
  q.complete(c);
}

TEST_CASE_FIXTURE(sequential, "33: quiesces nest, and one unquiesce too many changes nothing") {
  q.quiesce();
  q.quiesce();
  REQUIRE(q.submit(a) == status::ok);

  q.unquiesce();
  b.works.run_pending();
  CHECK(b.log.empty());
  q.unquiesce();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a"});
  CHECK(misuse.count() == 0);

  q.unquiesce();
  CHECK(misuse.count() == 1);
  CHECK(q.quiesce_depth() == 0);
  REQUIRE(q.submit(c) == status::ok);
  CHECK(b.take_log() == log_type{"takes c"});
  q.complete(a);
  q.complete(c);
}

TEST_CASE_FIXTURE(sequential,
                  "38: a quiesced queue with requests does not drain, and drains once unquiesced") {
  q.quiesce();
  REQUIRE(q.submit(a) == status::ok);
  REQUIRE(q.freeze_start() == status::ok);
  CHECK_FALSE(q.freeze_wait_until(clock_now));

  q.unquiesce();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a"});
  q.complete(a);
  CHECK(q.freeze_wait_until(clock_now));
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential,
                  "40: the freeze that closes the gate offers the driver what is kept") {
  REQUIRE(q.submit(c) == status::ok);
  b.answers = {dispatch_status::dev_resource};
  REQUIRE(q.submit(a) == status::ok);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes c", "refuses a"});

  REQUIRE(q.freeze_start() == status::ok);
  CHECK(b.take_log() == log_type{"takes a"});
  q.complete(a);
  q.complete(c);
  CHECK(q.freeze_wait() == status::ok);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential,
                  "a frozen queue executes, dispatches and frees what was allocated before") {
  REQUIRE(q.alloc(a) == status::ok);
  REQUIRE(q.freeze_start() == status::ok);

  q.execute_nowait(a);
  q.complete(a);
  CHECK(b.take_log() == log_type{"takes a", "ends a"});
  CHECK(q.freeze_wait() == status::ok);
  CHECK(q.submit(c, nowait) == status::again);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "46: a batch of entries is one reference each") {
  REQUIRE(q.enter() == status::ok);
  q.gate().get(15);
  REQUIRE(q.freeze_start() == status::ok);

  q.exit(15);
  CHECK_FALSE(q.gate().is_frozen());
  q.exit();
  CHECK(q.freeze_wait() == status::ok);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "46: a batch of requests is one entry and as many references") {
  basic_request<single_platform>* const batch[] = {&a, &c, &d};
  unsigned got = 77;
  REQUIRE(q.alloc_batch(batch, 3, got) == status::ok);
  CHECK(got == 3);
  REQUIRE(q.freeze_start() == status::ok);

  q.execute_nowait(c);
  q.complete(c);
  CHECK_FALSE(q.gate().is_frozen());
  q.free_batch(batch, 1);
  CHECK_FALSE(q.gate().is_frozen());
  q.free_batch(batch + 2, 1);
  CHECK(q.gate().is_frozen());
  CHECK(q.alloc_batch(batch, 3, got, nowait) == status::again);
  CHECK(got == 0);
  q.unfreeze();
  CHECK(q.alloc_batch(batch, 0, got) == status::ok);
  CHECK(got == 0);
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "a batch takes the tags there are, and does not wait for more") {
  bench<single_platform> two(2);
  std::array<basic_request<single_platform>, 3> rqs;
  basic_request<single_platform>* const batch[] = {&rqs[0], &rqs[1], &rqs[2]};
  unsigned got = 0;
  REQUIRE(two.q.alloc_batch(batch, 3, got) == status::ok);
  CHECK(got == 2);
  CHECK(rqs[0].tag() != rqs[1].tag());
  CHECK(two.q.alloc_batch(batch + 2, 1, got, nowait) == status::again);
  CHECK(got == 0);

  two.q.free_batch(batch, 2);
  REQUIRE(two.q.freeze() == status::ok);
  two.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential,
                  "a batch ends before a request that is in use, and frees none twice") {
  basic_request<single_platform>* const batch[] = {&a, &c, &d};
  unsigned got = 0;
  REQUIRE(q.alloc(c) == status::ok);
  CHECK(q.alloc_batch(batch, 3, got) == status::ok);
  CHECK(got == 1);
  CHECK(misuse.take() == 1);

  q.free_batch(batch, 3);
  CHECK(misuse.take() == 1);  // d was never allocated
  q.free_batch(batch, 2);
  CHECK(misuse.take() == 2);
  REQUIRE(q.freeze() == status::ok);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "a batch that names a request twice gets it once") {
  basic_request<single_platform>* const batch[] = {&a, &a, &c};
  unsigned got = 0;
  CHECK(q.alloc_batch(batch, 3, got) == status::ok);
  CHECK(got == 1);
  CHECK(misuse.take() == 1);

  q.free_batch(batch, got);
  REQUIRE(q.freeze() == status::ok);
  q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "what is requeued without a kick waits for one") {
  REQUIRE(q.submit(a) == status::ok);
  REQUIRE(q.submit(c) == status::ok);
  q.requeue(a, false);
  b.works.run_pending();
  q.run();
  CHECK(b.take_log() == log_type{"takes a", "takes c"});
  CHECK_FALSE(q.freeze_wait_until(clock_now));

  q.kick_requeued();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a"});
  q.requeue(c, false);
  q.requeue(a);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a", "takes c"});  // each in front
  q.complete(a);
  q.complete(c);
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "a queue is born in the mode it is asked for") {
  CHECK(q.gate().usage().snapshot().percpu);
  CHECK_FALSE(q.gate().usage().snapshot().force_atomic);
  bench<single_platform> unregistered(1, gate_start::atomic);
  CHECK_FALSE(unregistered.q.gate().usage().snapshot().percpu);
  CHECK(unregistered.q.gate().usage().snapshot().force_atomic);
}

TEST_CASE_FIXTURE(sequential,
                  "a refusal for want of resources is repeated after a delay, in order") {
  b.answers = {dispatch_status::resource};
  q.quiesce();
  REQUIRE(q.submit(a) == status::ok);
  REQUIRE(q.submit(c) == status::ok);
  q.unquiesce();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"refuses a"});

  b.works.run_pending();
  CHECK(b.log.empty());
  pass(3);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a", "takes c"});
  q.complete(a);
  q.complete(c);
}

TEST_CASE_FIXTURE(sequential,
                  "a refusal for want of the device's resources waits for a request to be freed") {
  REQUIRE(q.submit(a) == status::ok);
  b.answers = {dispatch_status::dev_resource};
  REQUIRE(q.submit(c) == status::ok);
  pass(1000);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a", "refuses c"});

  q.complete(a);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"ends a", "takes c"});
  q.complete(c);
}

TEST_CASE_FIXTURE(sequential,
                  "a run that found nothing changes nothing for what is refused later") {
  REQUIRE(q.submit(a) == status::ok);
  q.run(true);
  b.works.run_pending();
  q.quiesce_nowait();
  REQUIRE(q.submit_bio(c) == status::ok);
  b.answers = {dispatch_status::dev_resource};
  q.unquiesce();
  b.works.run_pending();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a", "refuses c"});

  q.complete(a);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"ends a", "takes c"});
  q.complete(c);
}

TEST_CASE_FIXTURE(sequential, "a bio that is refused waits at the end of what is passed through") {
  b.answers = {dispatch_status::resource, dispatch_status::resource};
  REQUIRE(q.submit_bio(a) == status::ok);
  CHECK(b.take_log() == log_type{"refuses a", "refuses a"});

  REQUIRE(q.submit(c) == status::ok);
  CHECK(b.take_log() == log_type{"takes a", "takes c"});
  pass(3);
  b.works.run_pending();
  q.complete(a);
  q.complete(c);
  CHECK(b.take_log() == log_type{"ends a", "ends c"});
}

TEST_CASE_FIXTURE(sequential, "a request the driver calls impossible ends with an I/O error") {
  b.answers = {dispatch_status::io_error};
  REQUIRE(q.submit(a) == status::ok);

  CHECK(b.take_log() == log_type{"refuses a", "ends a"});
  CHECK(a.result() == status::io_error);
  REQUIRE(q.freeze() == status::ok);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential,
                  "a requeued request goes out again, in front, and a freeze waits for it") {
  REQUIRE(q.submit(a) == status::ok);
  q.stop();
  REQUIRE(q.submit(c) == status::ok);
  q.requeue(a);
  REQUIRE(q.freeze_start() == status::ok);
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a"});
  CHECK_FALSE(q.gate().is_frozen());

  q.start_stopped();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a", "takes c"});
  q.complete(a);
  q.complete(c);
  CHECK(q.freeze_wait() == status::ok);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "stop is independent of quiesce: both have to be undone") {
  q.stop();
  REQUIRE(q.submit_bio(c) == status::ok);
  q.quiesce();
  REQUIRE(q.submit(a) == status::ok);

  q.unquiesce();
  b.works.run_pending();
  q.run();
  CHECK(b.log.empty());
  q.quiesce();
  q.start_stopped();
  b.works.run_pending();
  CHECK(b.log.empty());
  q.unquiesce();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"takes a", "takes c"});
  q.complete(a);
  q.complete(c);
}

TEST_CASE_FIXTURE(sequential, "stop takes back the run that a refusal has asked for") {
  b.answers = {dispatch_status::resource};
  REQUIRE(q.submit(a) == status::ok);
  std::int64_t due = 0;
  REQUIRE(b.works.next_timer(due));

  q.stop();
  CHECK_FALSE(b.works.next_timer(due));
  q.start_stopped();
  b.works.run_pending();
  CHECK(b.take_log() == log_type{"refuses a", "takes a"});
  q.complete(a);
}

TEST_CASE("6a: what comes while bios go out goes first, but once in a run") {
  struct feeding {
    static dispatch_status queue_rq(basic_request_queue<single_platform>& queue,
                                    basic_request<single_platform>& rq) noexcept {
      auto& self = *static_cast<feeding*>(queue.context());
      ++self.offered;
      if (rq.kind() == request_kind::bio) (void)queue.submit(self.more[self.used++]);
      return dispatch_status::ok;
    }
    int offered = 0;
    std::size_t used = 0;
    std::array<basic_request<single_platform>, 4> more;
  };
  struct probe : pmgate::pm::basic_work<single_platform> {
    explicit probe(const feeding& whom)
        : pmgate::pm::basic_work<single_platform>(&look), driver(whom) {}
    static void look(pmgate::pm::basic_work<single_platform>& work) noexcept {
      auto& self = static_cast<probe&>(work);
      self.seen = self.driver.offered;
    }
    const feeding& driver;
    int seen = 0;
  };
  feeding driver;
  basic_work_queue<single_platform> works("runs");
  basic_request_queue<single_platform> q({&feeding::queue_rq, &driver}, works, 16,
                                         gate_start::percpu, pmgate::driver_kind::blocking);
  probe after_the_run(driver);
  std::array<basic_request<single_platform>, 4> bios;
  basic_request<single_platform> first;
  q.quiesce();
  REQUIRE(q.submit(first) == status::ok);
  for (auto& each : bios) REQUIRE(q.submit_bio(each) == status::ok);

  q.unquiesce();
  REQUIRE(works.queue(after_the_run));
  while (works.run_pending()) {
  }

  CHECK(after_the_run.seen == 4);  // first, a bio, what came with it, a bio
  CHECK(driver.offered == 9);
  q.complete(first);
  for (auto& each : bios) q.complete(each);
  for (auto& each : driver.more) q.complete(each);
}

TEST_CASE_FIXTURE(sequential,
                  "the end callback may reuse the request, and finds its tag still taken") {
  struct reuser : basic_request<single_platform> {
    explicit reuser(basic_request_queue<single_platform>& its_queue)
        : basic_request<single_platform>(&again), queue(its_queue) {}
    static void again(basic_request<single_platform>& rq) noexcept {
      auto& self = static_cast<reuser&>(rq);
      if (self.rounds++ == 0) self.second = self.queue.submit(self, nowait);
    }
    basic_request_queue<single_platform>& queue;
    int rounds = 0;
    status second = status::invalid;
  };
  basic_work_queue<single_platform> works("runs");
  basic_request_queue<single_platform> plain({&takes_all}, works, 2);
  reuser rq(plain);
  REQUIRE(plain.submit(rq) == status::ok);
  const unsigned tag = rq.tag();

  plain.complete(rq);
  CHECK(rq.second == status::ok);
  CHECK(rq.tag() != tag);
  plain.complete(rq);
  CHECK(rq.rounds == 2);
  REQUIRE(plain.freeze() == status::ok);
  plain.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "execute returns what the driver said, and calls no end callback") {
  struct immediate {
    static dispatch_status queue_rq(basic_request_queue<single_platform>& queue,
                                    basic_request<single_platform>& rq) noexcept {
      queue.complete(rq, status::timed_out);
      return dispatch_status::ok;
    }
  };
  basic_work_queue<single_platform> works("runs");
  basic_request_queue<single_platform> queue({&immediate::queue_rq}, works, 1);

  REQUIRE(queue.alloc(a) == status::ok);
  CHECK(queue.execute(a) == status::timed_out);
  CHECK(a.ends == 0);
  REQUIRE(queue.alloc(a, nowait) == status::ok);
  queue.free(a);
}

TEST_CASE_FIXTURE(sequential, "17: a nowait bio at a frozen queue ends once, with would block") {
  REQUIRE(q.freeze() == status::ok);

  CHECK(q.submit_bio(a, nowait) == status::again);
  CHECK(a.ends == 1);
  CHECK(a.result() == status::again);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential,
                  "15: bios at a dead disk fail, nowait or not, and it dies once only") {
  REQUIRE(q.mark_disk_dead() == status::ok);
  REQUIRE(q.mark_disk_dead() == status::ok);
  CHECK(q.gate().depth() == 1);
  CHECK(q.gate().is_dying());

  CHECK(q.submit_bio(a, nowait) == status::io_error);
  CHECK(q.submit_bio(a) == status::io_error);
  CHECK(a.ends == 2);
  CHECK(a.result() == status::io_error);
  CHECK(q.alloc(c) == status::no_device);
  CHECK(q.alloc(c, nowait) == status::again);
}

TEST_CASE_FIXTURE(sequential,
                  "16: a queue that outlives its disk lets requests in again, but no bios") {
  REQUIRE(q.mark_disk_dead() == status::ok);
  REQUIRE(q.freeze_wait() == status::ok);
  q.unfreeze_to_atomic();

  REQUIRE(q.submit(a, nowait) == status::ok);
  CHECK(q.submit_bio(c) == status::io_error);
  CHECK_FALSE(q.gate().usage().snapshot().percpu);
  q.complete(a);
}

TEST_CASE_FIXTURE(sequential,
                  "what is not in the state it has to be in is reported and left alone") {
  q.free(a);
  q.complete(a);
  q.requeue(a);
  q.execute_nowait(a);
  CHECK(q.execute(a) == status::invalid);
  CHECK(misuse.take() == 5);

  REQUIRE(q.alloc(a) == status::ok);
  CHECK(q.alloc(a) == status::invalid);
  CHECK(q.submit_bio(a) == status::invalid);
  q.complete(a);
  CHECK(misuse.take() == 3);
  CHECK(a.ends == 0);

  q.execute_nowait(a);
  q.free(a);
  CHECK(misuse.take() == 1);
  q.complete(a);
  q.complete(a);
  CHECK(misuse.take() == 1);
  CHECK(a.ends == 1);
  REQUIRE(q.freeze() == status::ok);
  q.unfreeze();
}

TEST_CASE_FIXTURE(sequential, "where nobody else runs, waiting for a tag or an end is reported") {
  bench<single_platform> one(1);
  io first{one, "first"};
  io second{one, "second"};
  REQUIRE(one.q.alloc(first) == status::ok);

  CHECK(one.q.alloc(second) == status::again);
  CHECK(misuse.take() == 1);
  CHECK(one.q.execute(first) == status::again);
  CHECK(misuse.take() == 1);

  one.q.complete(first);
  CHECK(first.ends == 1);
  REQUIRE(one.q.submit(second, nowait) == status::ok);
  one.q.complete(second);
  CHECK(misuse.count() == 0);
}

namespace {

/// Remembers what it was told.
template <class P>
struct told : pmgate::basic_request_waiter<P> {
  told() : pmgate::basic_request_waiter<P>(&on_resume) {}
  static void on_resume(pmgate::basic_request_waiter<P>& self, status result) noexcept {
    ++static_cast<told&>(self).times;
    static_cast<told&>(self).answer = result;
  }
  int times = 0;
  status answer = status::invalid;
};

}  // namespace

TEST_CASE_FIXTURE(sequential, "who must not sleep is called when he has his request") {
  bench<single_platform> one(1);
  told<single_platform> waiter;
  basic_request<single_platform> held;
  basic_request<single_platform> wanted;
  REQUIRE(one.q.alloc_or_wait(waiter, held) == status::ok);
  CHECK_FALSE(waiter.is_queued());
  REQUIRE(one.q.freeze_start() == status::ok);

  CHECK(one.q.alloc_or_wait(waiter, wanted) == status::in_progress);  // at the gate
  CHECK(waiter.is_queued());
  one.q.unfreeze();
  CHECK(waiter.times == 0);  // inside, and there is no tag
  REQUIRE(one.q.freeze_start() == status::ok);
  one.q.free(held);

  CHECK(waiter.times == 1);
  CHECK(waiter.answer == status::ok);
  CHECK_FALSE(waiter.is_queued());
  CHECK_FALSE(one.q.freeze_wait_until(clock_now));  // the freeze waits for him
  one.q.free(wanted);
  CHECK(one.q.freeze_wait() == status::ok);
  one.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE("those who are given tags are called one after the other") {
  using P = single_platform;
  /// Sends its request whenever it gets it, again and again, to a driver that ends it at once.
  struct sender : basic_request<P>, pmgate::basic_request_waiter<P> {
    sender(basic_request_queue<P>& queue, std::array<int, 3>& its_counts)
        : basic_request<P>(&on_end),
          basic_request_waiter<P>(&on_resume),
          q(queue),
          counts(its_counts) {}
    static dispatch_status complete(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
      queue.complete(rq);
      return dispatch_status::ok;
    }
    void go() {
      auto& [sent, depth, deepest] = counts;
      if (sent >= 1000) return;
      const status got = q.alloc_or_wait(*this, *this);
      CHECK(got == status::in_progress);  // the tag comes back behind on_end
    }
    static void on_end(basic_request<P>& rq) noexcept { static_cast<sender&>(rq).go(); }
    static void on_resume(basic_request_waiter<P>& self, status result) noexcept {
      auto& mine = static_cast<sender&>(self);
      auto& [sent, depth, deepest] = mine.counts;
      CHECK(result == status::ok);
      deepest = std::max(deepest, ++depth);
      ++sent;
      mine.q.execute_nowait(mine);
      --depth;
    }
    basic_request_queue<P>& q;
    std::array<int, 3>& counts;
  };
  const misuse_log misuse;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&sender::complete}, works, 1);
  basic_request<P> held;
  REQUIRE(q.alloc(held) == status::ok);
  std::array<int, 3> counts{};
  sender a(q, counts);
  sender b(q, counts);
  a.go();
  b.go();
  q.free(held);

  CHECK(counts[0] >= 1000);
  CHECK(counts[2] == 1);
  CHECK(q.freeze() == status::ok);
  q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "a wait for a request can be cancelled, and leaves nothing behind") {
  bench<single_platform> one(1);
  told<single_platform> waiter;
  basic_request<single_platform> held;
  basic_request<single_platform> wanted;
  REQUIRE(one.q.freeze() == status::ok);
  REQUIRE(one.q.alloc_or_wait(waiter, wanted) == status::in_progress);
  CHECK(one.q.cancel(waiter));  // at the gate
  CHECK_FALSE(one.q.cancel(waiter));
  one.q.unfreeze();
  REQUIRE(one.q.alloc(held) == status::ok);
  CHECK(one.q.alloc_or_wait(waiter, wanted, nowait) == status::again);
  REQUIRE(one.q.alloc_or_wait(waiter, wanted) == status::in_progress);
  CHECK(one.q.alloc_or_wait(waiter, wanted) == status::busy);
  CHECK(misuse.take() == 1);
  CHECK(one.q.cancel(waiter));  // in the line for a tag
  one.q.free(held);

  CHECK(waiter.times == 0);
  CHECK(one.q.freeze() == status::ok);
  REQUIRE(one.q.alloc_or_wait(waiter, wanted) == status::in_progress);
  one.q.gate().mark_dying();
  CHECK(one.q.start_drain() == status::ok);
  CHECK(waiter.answer == status::no_device);
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "a request with a deadline is had by then, or not at all") {
  bench<single_platform> one(1);
  basic_request<single_platform> held;
  basic_request<single_platform> wanted;
  REQUIRE(one.q.freeze() == status::ok);
  CHECK(one.q.alloc_until(wanted, clock_now) == status::timed_out);
  one.q.unfreeze();
  REQUIRE(one.q.alloc_until(held, clock_now) == status::ok);
  CHECK(one.q.alloc_until(wanted, clock_now) == status::timed_out);
  one.q.free(held);
  CHECK(one.q.freeze() == status::ok);
  one.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_FIXTURE(sequential, "every tag is given out once, and a thousand are enough") {
  constexpr unsigned depth = 1000;
  bench<single_platform> wide(depth);
  std::vector<bool> seen(depth);
  std::deque<basic_request<single_platform>> all(depth);

  for (auto& rq : all) {
    REQUIRE(wide.q.alloc(rq, nowait) == status::ok);
    REQUIRE(rq.tag() < depth);
    CHECK_FALSE(seen[rq.tag()]);
    seen[rq.tag()] = true;
  }
  CHECK(wide.q.alloc(a, nowait) == status::again);
  wide.q.free(all[777]);
  REQUIRE(wide.q.alloc(a, nowait) == status::ok);
  CHECK(a.tag() == all[777].tag());

  wide.q.free(a);
  for (std::size_t i = 0; i < depth; ++i) {
    if (i != 777) wide.q.free(all[i]);
  }
}

// -- threads

namespace {

/// A driver that holds what it is offered in its callback until it is let go.
template <class P>
struct holding {
  static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
    auto& self = *static_cast<holding*>(queue.context());
    self.inside.store(true, std::memory_order_release);
    while (!self.let_go.load(std::memory_order_acquire)) std::this_thread::yield();
    self.inside.store(false, std::memory_order_release);
    queue.complete(rq);
    return dispatch_status::ok;
  }
  void await_inside() const {
    while (!inside.load(std::memory_order_acquire)) std::this_thread::yield();
  }
  std::atomic<bool> inside{false};
  std::atomic<bool> let_go{false};
};

}  // namespace

TEST_CASE_TEMPLATE("34, 35: quiesce waits for the driver's callback, nowait does not", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  holding<P> driver;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&holding<P>::queue_rq, &driver}, works, 8);
  basic_request<P> a;
  worker submitter([&] { CHECK(q.submit(a) == status::ok); });
  driver.await_inside();

  q.quiesce_nowait();
  worker first([&] { q.quiesce(); });
  worker second([&] { q.quiesce(); });
  CHECK(first.is_blocked());
  CHECK(second.is_blocked());
  driver.let_go.store(true, std::memory_order_release);
  first.join();
  second.join();
  CHECK_FALSE(driver.inside.load());

  submitter.join();
  CHECK(q.quiesce_depth() == 3);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("47: who waits for a tag is inside: the freeze waits for him as well", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b(1);
  typename bench<P>::io r{b, "r"};
  typename bench<P>::io e{b, "e"};
  REQUIRE(b.q.submit(r) == status::ok);
  status got = status::invalid;
  worker enterer([&] { got = b.q.alloc(e); });
  while (b.q.gate().usage().snapshot().per_cpu != 2) std::this_thread::yield();
  worker freezer([&] { b.q.freeze(); });
  while (b.q.gate().depth() != 1) std::this_thread::yield();
  CHECK(enterer.is_blocked());

  b.q.complete(r);
  enterer.join();
  CHECK(got == status::ok);
  CHECK(freezer.is_blocked());
  b.q.execute_nowait(e);
  b.q.complete(e);
  freezer.join();

  b.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("tags go to who has waited longest, and a drain takes none away", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b(1);
  std::deque<typename bench<P>::io> rqs;
  for (int i = 0; i < 4; ++i) rqs.emplace_back(b, std::to_string(i));
  REQUIRE(b.q.alloc(rqs[0]) == status::ok);
  std::array<std::unique_ptr<worker>, 3> waiters;
  for (std::size_t i = 0; i < 3; ++i) {
    waiters[i] =
        std::make_unique<worker>([&b, &rqs, i] { CHECK(b.q.alloc(rqs[i + 1]) == status::ok); });
    CHECK(waiters[i]->is_blocked());
  }

  CHECK(b.q.start_drain() == status::ok);
  CHECK(waiters[0]->is_blocked());
  for (std::size_t i = 0; i < 3; ++i) {
    b.q.free(rqs[i]);
    waiters[i]->join();
    if (i < 2) CHECK(waiters[i + 1]->is_blocked());
  }

  b.q.free(rqs[3]);
  CHECK(b.q.freeze_wait() == status::ok);
  b.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("execute waits for the end and gives the request back", P, THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b(1);
  typename bench<P>::io a{b, "a"};
  REQUIRE(b.q.alloc(a) == status::ok);
  b.q.quiesce();
  b.q.execute_nowait(a);
  b.q.unquiesce();
  b.works.run_pending();
  b.q.complete(a);
  REQUIRE(b.q.alloc(a) == status::ok);

  status got = status::invalid;
  worker caller([&] { got = b.q.execute(a); });
  while (b.taken.load(std::memory_order_acquire) < 2) std::this_thread::yield();
  CHECK(caller.is_blocked());
  b.q.complete(a, status::io_error);
  caller.join();

  CHECK(got == status::io_error);
  CHECK(a.ends == 1);
  REQUIRE(b.q.alloc(a, nowait) == status::ok);
  b.q.free(a);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("15: a bio that waits at the gate fails when the disk dies", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b;
  typename bench<P>::io a{b, "a"};
  REQUIRE(b.q.freeze() == status::ok);
  status got = status::invalid;
  worker submitter([&] { got = b.q.submit_bio(a); });
  CHECK(submitter.is_blocked());

  CHECK(b.q.mark_disk_dead() == status::ok);
  submitter.join();

  CHECK(got == status::io_error);
  CHECK(a.ends == 1);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("15: the same at the removal of a disk that the queue survives", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b;
  typename bench<P>::io a{b, "a"};
  REQUIRE(b.q.freeze() == status::ok);
  status got = status::invalid;
  worker submitter([&] { got = b.q.submit_bio(a); });
  CHECK(submitter.is_blocked());

  CHECK(b.q.del_gendisk(pmgate::queue_fate::survives) == status::ok);
  submitter.join();  // the freeze of the others is in force still
  b.q.unfreeze();

  CHECK(got == status::io_error);
  CHECK(a.ends == 1);
  CHECK(b.taken.load() == 0);
  CHECK(b.q.gate().depth() == 0);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("who waits for a tag until a deadline has it, or has left", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b(1);
  typename bench<P>::io a{b, "a"};
  typename bench<P>::io c{b, "c"};
  REQUIRE(b.q.alloc(a) == status::ok);
  CHECK(b.q.alloc_until(c, P::now() + P::milliseconds(1)) == status::timed_out);

  status got = status::invalid;
  worker waiter([&] { got = b.q.alloc_until(c, P::now() + P::milliseconds(60'000)); });
  CHECK(waiter.is_blocked());
  b.q.free(a);
  waiter.join();

  CHECK(got == status::ok);
  b.q.free(c);
  CHECK(b.q.freeze() == status::ok);
  b.q.unfreeze();
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("who waits for a tag has the queue offer what is kept first", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  bench<P> b(1);
  typename bench<P>::io a{b, "a"};
  typename bench<P>::io c{b, "c"};
  b.answers = {dispatch_status::dev_resource};
  REQUIRE(b.q.submit(a) == status::ok);  // refused, and nothing will run the queue
  CHECK(b.taken.load() == 0);

  status got = status::invalid;
  worker waiter([&] { got = b.q.alloc(c); });
  while (b.taken.load(std::memory_order_acquire) == 0) std::this_thread::yield();
  b.q.complete(a);
  waiter.join();

  CHECK(got == status::ok);
  b.q.free(c);
  CHECK(misuse.count() == 0);
}

// -- races

namespace {

/// Ends what it is offered at once, and counts what comes when nothing may come.
template <class P>
struct counting {
  static dispatch_status queue_rq(basic_request_queue<P>& queue, basic_request<P>& rq) noexcept {
    auto& self = *static_cast<counting*>(queue.context());
    if (self.silent.load(std::memory_order_acquire)) self.intruders.fetch_add(1);
    self.dispatched.fetch_add(1, std::memory_order_relaxed);
    queue.complete(rq);
    return dispatch_status::ok;
  }
  void expect(bool condition) {
    if (!condition) failures.fetch_add(1);
  }
  std::atomic<int> failures{0};
  std::atomic<bool> silent{false};
  std::atomic<int> intruders{0};
  std::atomic<int> dispatched{0};
};

/// A request that says when it has ended.
template <class P>
struct round_trip : basic_request<P> {
  round_trip() : basic_request<P>(&on_end) {}
  static void on_end(basic_request<P>& rq) noexcept {
    static_cast<round_trip&>(rq).over.store(true, std::memory_order_release);
  }
  void await() {
    while (!over.load(std::memory_order_acquire)) std::this_thread::yield();
    over.store(false, std::memory_order_relaxed);
  }
  std::atomic<bool> over{false};
};

}  // namespace

TEST_CASE_TEMPLATE(
    "36: no request is lost between submission and unquiesce, none goes out while quiesced", P,
    THREADED_PLATFORMS) {
  const misuse_log misuse;
  counting<P> driver;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&counting<P>::queue_rq, &driver}, works, 4);
  const served<P> kblockd(works);
  std::atomic<bool> stop{false};
  std::atomic<int> submitted{0};

  {
    std::array<std::unique_ptr<worker>, 8> submitters;
    for (auto& submitter : submitters) {
      submitter = std::make_unique<worker>([&] {
        round_trip<P> rq;
        for (int i = 0; !stop.load(std::memory_order_relaxed); ++i) {
          if (i % 2 == 0) {
            driver.expect(q.submit(rq) == status::ok);
          } else {
            driver.expect(q.submit_bio(rq) == status::ok);
          }
          submitted.fetch_add(1, std::memory_order_relaxed);
          rq.await();  // hangs if it was lost
        }
      });
    }
    for (const time_limit limit(300); limit;) {
      q.quiesce();
      driver.silent.store(true, std::memory_order_release);
      std::this_thread::yield();
      driver.silent.store(false, std::memory_order_release);
      q.unquiesce();
    }
    stop.store(true, std::memory_order_relaxed);
  }

  CHECK(driver.intruders.load() == 0);
  CHECK(driver.dispatched.load() == submitted.load());
  CHECK(submitted.load() > 0);
  CHECK(driver.failures.load() == 0);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("39: freeze, then quiesce: nobody is inside and nothing is dispatched", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  counting<P> driver;
  basic_work_queue<P> works("runs");
  basic_request_queue<P> q({&counting<P>::queue_rq, &driver}, works, 4);
  const served<P> kblockd(works);
  std::atomic<bool> stop{false};
  std::atomic<int> inside{0};
  std::atomic<int> switches{0};

  {
    std::array<std::unique_ptr<worker>, 4> submitters;
    for (auto& submitter : submitters) {
      submitter = std::make_unique<worker>([&] {
        round_trip<P> rq;
        while (!stop.load(std::memory_order_relaxed)) {
          driver.expect(q.alloc(rq) == status::ok);
          inside.fetch_add(1, std::memory_order_relaxed);
          std::this_thread::yield();
          inside.fetch_sub(1, std::memory_order_relaxed);
          q.execute_nowait(rq);
          rq.await();
        }
      });
    }
    for (const time_limit limit(300); limit;) {
      driver.expect(q.freeze() == status::ok);
      driver.expect(q.quiesce() == status::ok);
      driver.silent.store(true, std::memory_order_release);
      driver.expect(inside.load(std::memory_order_relaxed) == 0);
      driver.expect(q.gate().is_frozen());
      std::this_thread::yield();
      driver.expect(inside.load(std::memory_order_relaxed) == 0);
      driver.silent.store(false, std::memory_order_release);
      q.unquiesce();
      q.unfreeze();
      switches.fetch_add(1);
    }
    stop.store(true, std::memory_order_relaxed);
  }

  CHECK(driver.intruders.load() == 0);
  CHECK(switches.load() > 0);
  CHECK(driver.failures.load() == 0);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE("49: at the teardown everybody who waits gets in and out, or is told", P,
                   THREADED_PLATFORMS) {
  const misuse_log misuse;
  counting<P> driver;
  basic_work_queue<P> works("runs");
  const served<P> kblockd(works);
  int rounds = 0;

  for (const time_limit limit(300); limit; ++rounds) {
    auto q = std::make_unique<basic_request_queue<P>>(
        basic_queue_ops<P>{&counting<P>::queue_rq, &driver}, works, 2);
    std::atomic<int> refused{0};
    std::atomic<bool> torn_down{false};
    std::atomic<int> late{0};
    {
      std::array<std::unique_ptr<worker>, 8> enterers;
      for (auto& enterer : enterers) {
        enterer = std::make_unique<worker>([&] {
          round_trip<P> rq;
          for (;;) {
            const bool before = torn_down.load(std::memory_order_acquire);
            const status got = q->submit(rq);
            if (got == status::no_device) break;
            driver.expect(got == status::ok);
            if (before) late.fetch_add(1);
            rq.await();
          }
          refused.fetch_add(1);
        });
      }
      q->gate().mark_dying();
      driver.expect(q->start_drain() == status::ok);
      driver.expect(q->freeze_wait() == status::ok);
      torn_down.store(true, std::memory_order_release);
    }
    driver.expect(refused.load() == 8);
    driver.expect(late.load() == 0);
    q.reset();
  }
  CHECK(rounds > 0);
  CHECK(driver.failures.load() == 0);
  CHECK(misuse.count() == 0);
}

TEST_CASE_TEMPLATE(
    "the queue may be destroyed right after the freeze has waited, whoever dispatched last", P,
    THREADED_PLATFORMS) {
  const misuse_log misuse;
  counting<P> driver;
  basic_work_queue<P> works("runs");
  const served<P> kblockd(works);
  int rounds = 0;

  for (const time_limit limit(200); limit; ++rounds) {
    auto q = std::make_unique<basic_request_queue<P>>(
        basic_queue_ops<P>{&counting<P>::queue_rq, &driver}, works, 1);
    round_trip<P> here;
    std::atomic<bool> parked{false};
    q->quiesce_nowait();
    worker submitter([&, raw = q.get()] {
      driver.expect(raw->submit(here) == status::ok);
      parked.store(true);
    });
    while (!parked.load()) std::this_thread::yield();
    q->unquiesce();  // the last word of another thread's is with the asynchronous run
    here.await();
    driver.expect(q->freeze() == status::ok);
    q.reset();
  }
  CHECK(rounds > 0);
  CHECK(driver.failures.load() == 0);
  CHECK(misuse.count() == 0);
}

}  // TEST_SUITE
