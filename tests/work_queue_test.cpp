// SPDX-License-Identifier: MIT
//
// work_queue_test.cpp - items that are run later, and queues that are frozen; the
// numbers are those of the scenarios in the specification of system sleep.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/single.hpp>
#include <pmgate/pm/work_queue.hpp>

#include "support/deferred_platform.hpp"
#include "support/virtual_platform.hpp"

using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_work;
using pmgate::pm::basic_work_queue;
using pmgate::pm::work_queue_flags;
using testing::misuse_log;
using testing::time_limit;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using default_queue = pmgate::pm::work_queue;
using default_work = pmgate::pm::work;

static_assert(!std::is_copy_constructible_v<default_work>);
static_assert(!std::is_move_constructible_v<default_work>);
static_assert(!std::is_copy_constructible_v<default_queue>);
static_assert(!std::is_move_constructible_v<default_queue>);
static_assert(std::is_nothrow_constructible_v<default_work, default_work::work_fn, void*>);
static_assert(noexcept(std::declval<default_queue&>().queue(std::declval<default_work&>())));
static_assert(noexcept(std::declval<default_queue&>().run()));
static_assert(sizeof(default_work) <= 96);

namespace {

constexpr auto freezable = work_queue_flags::freezable;

auto ms(int n) { return std::chrono::milliseconds(n); }

/// An item that writes its name into a log, and then does, once, what the test wants.
template <class P>
struct named_item {
  named_item(std::string its_name, std::vector<std::string>& its_log)
      : name(std::move(its_name)), log(&its_log) {}
  static void run(basic_work<P>& item) noexcept {
    auto& self = *static_cast<named_item*>(item.context());
    self.log->push_back(self.name);
    if (const auto action = std::exchange(self.then, nullptr)) action();
  }
  std::string name;
  std::vector<std::string>* log;
  std::function<void()> then;
  basic_work<P> work{&run, this};
};

using log_type = std::vector<std::string>;

/// A queue with the test's clock, run by hand.
struct sequential {
  explicit sequential(work_queue_flags flags = freezable, unsigned max_active = 1)
      : queue("tested", flags, max_active) {}
  misuse_log misuse;
  log_type log;
  struct reset {
    reset() { virtual_clock::reset(); }
  } reset_clock;
  basic_work_queue<virtual_platform> queue;
  using item = named_item<virtual_platform>;
};

/// A queue of the real platform with threads that work for it.
struct threaded {
  explicit threaded(unsigned threads, work_queue_flags flags = freezable, unsigned max_active = 1)
      : queue("tested", flags, max_active) {
    for (unsigned n = 0; n < threads; ++n) workers.emplace_back([this] { queue.run(); });
  }
  ~threaded() {
    queue.stop();
    for (std::thread& thread : workers) thread.join();
  }
  misuse_log misuse;
  default_queue queue;
  std::vector<std::thread> workers;
};

/// An item of the real platform that stays in its function until it is let go.
struct gated_item {
  static void run(default_work& item) noexcept {
    auto& self = *static_cast<gated_item*>(item.context());
    ++self.entered;
    while (!self.open) std::this_thread::yield();
    ++self.left;
  }
  void await_entered(int n = 1) const {
    while (entered < n) std::this_thread::yield();
  }
  std::atomic<int> entered{0};
  std::atomic<int> left{0};
  std::atomic<bool> open{false};
  default_work work{&run, this};
};

}  // namespace

TEST_SUITE("work_queue") {

// -- queueing

TEST_CASE("an item that is pending is not queued again, and runs once") {
  sequential s;
  sequential::item a("a", s.log);

  CHECK(s.queue.queue(a.work));
  CHECK(a.work.is_pending());
  CHECK_FALSE(s.queue.queue(a.work));

  CHECK(s.queue.run_pending());
  CHECK(s.log == log_type{"a"});
  CHECK_FALSE(a.work.is_pending());
  CHECK_FALSE(s.queue.run_pending());
}

TEST_CASE("items run in the order in which they were queued") {
  sequential s(work_queue_flags::none, 0);
  sequential::item a("a", s.log), b("b", s.log), c("c", s.log);
  s.queue.queue(b.work);
  s.queue.queue(c.work);
  s.queue.queue(a.work);

  s.queue.run_pending();

  CHECK(s.log == log_type{"b", "c", "a"});
}

TEST_CASE("an item that queues itself while it runs is run by the next call") {
  sequential s;
  sequential::item a("a", s.log);
  bool queued = false;
  a.then = [&] { queued = s.queue.queue(a.work); };
  s.queue.queue(a.work);

  CHECK(s.queue.run_pending());
  CHECK(queued);
  CHECK(s.log == log_type{"a"});

  CHECK(s.queue.run_pending());
  CHECK(s.log == log_type{"a", "a"});
}

TEST_CASE("an item pending on one queue is not taken by another") {
  sequential s;
  basic_work_queue<virtual_platform> other("other");
  sequential::item a("a", s.log);
  s.queue.queue(a.work);

  CHECK_FALSE(other.queue(a.work));
  CHECK_FALSE(other.cancel(a.work));
  CHECK_FALSE(other.modify_delayed(a.work, ms(0)));

  CHECK(s.queue.run_pending());
  CHECK(other.queue(a.work));
  CHECK(other.run_pending());
}

TEST_CASE("an item may free itself in its function") {
  sequential s;
  struct self_made {
    static void run(basic_work<virtual_platform>& item) noexcept {
      delete static_cast<self_made*>(item.context());
    }
    basic_work<virtual_platform> work{&run, this};
  };
  s.queue.queue((new self_made)->work);

  CHECK(s.queue.run_pending());
}

TEST_CASE("an item that runs is not run by a second worker at the same time") {
  sequential s(work_queue_flags::none, 0);
  sequential::item a("a", s.log), b("b", s.log);
  bool nested_ran = true;
  a.then = [&] {
    s.queue.queue(a.work);
    nested_ran = s.queue.run_pending();
  };
  s.queue.queue(a.work);

  s.queue.run_pending();

  CHECK_FALSE(nested_ran);
  CHECK(s.log == log_type{"a"});
  CHECK(s.queue.run_pending());
}

// -- delays

TEST_CASE("a delayed item is pending and runs when its time has come") {
  sequential s;
  sequential::item a("a", s.log);

  CHECK(s.queue.queue_delayed(a.work, ms(10)));
  CHECK(a.work.is_pending());
  CHECK_FALSE(s.queue.queue_delayed(a.work, ms(1)));
  CHECK_FALSE(s.queue.queue(a.work));
  virtual_clock::advance(9);
  CHECK_FALSE(s.queue.run_pending());

  virtual_clock::advance(1);
  CHECK(s.queue.run_pending());
  CHECK(s.log == log_type{"a"});
}

TEST_CASE("timers expire in the order of their times, equal ones in that of the calls") {
  sequential s(work_queue_flags::none, 0);
  sequential::item a("a", s.log), b("b", s.log), c("c", s.log), d("d", s.log);
  s.queue.queue_delayed(a.work, ms(20));
  s.queue.queue_delayed(b.work, ms(10));
  s.queue.queue_delayed(c.work, ms(10));
  s.queue.queue_delayed(d.work, ms(0));

  virtual_clock::advance(30);
  s.queue.run_pending();

  CHECK(s.log == log_type{"d", "b", "c", "a"});
}

TEST_CASE("an item queued after a timer is due runs after that timer's item") {
  sequential s(work_queue_flags::none, 0);
  sequential::item a("a", s.log), b("b", s.log);
  s.queue.queue_delayed(a.work, ms(10));
  virtual_clock::advance(15);
  s.queue.queue(b.work);

  s.queue.run_pending();

  CHECK(s.log == log_type{"a", "b"});
}

TEST_CASE("modifying moves the time of a pending item and queues one that is not") {
  sequential s;
  sequential::item a("a", s.log);

  CHECK_FALSE(s.queue.modify_delayed(a.work, ms(50)));
  CHECK(s.queue.modify_delayed(a.work, ms(5)));
  virtual_clock::advance(5);
  CHECK(s.queue.run_pending());

  s.queue.queue(a.work);
  CHECK(s.queue.modify_delayed(a.work, ms(5)));
  CHECK_FALSE(s.queue.run_pending());
  CHECK(s.queue.modify_delayed(a.work, ms(0)));
  CHECK(s.queue.run_pending());
  CHECK(s.log == log_type{"a", "a"});
}

TEST_CASE("an event loop learns when the next timer expires") {
  sequential s;
  sequential::item a("a", s.log);
  virtual_platform::time_point when{};
  CHECK_FALSE(s.queue.next_timer(when));

  s.queue.queue_delayed(a.work, ms(7));

  REQUIRE(s.queue.next_timer(when));
  CHECK(when == virtual_platform::now() + ms(7));
  CHECK(s.queue.cancel(a.work));
}

// -- taking back

TEST_CASE("cancel takes back a queued, a delayed and a waiting item, once") {
  sequential s;
  sequential::item a("a", s.log), b("b", s.log), c("c", s.log);
  s.queue.queue(a.work);
  s.queue.queue(b.work);
  s.queue.queue_delayed(c.work, ms(5));

  CHECK(s.queue.cancel(a.work));
  CHECK_FALSE(s.queue.cancel(a.work));
  CHECK(s.queue.cancel(c.work));
  virtual_clock::advance(10);

  s.queue.run_pending();
  CHECK(s.log == log_type{"b"});
  CHECK_FALSE(s.queue.cancel(b.work));
}

TEST_CASE("cancelling an item waits while it runs, and it cannot requeue itself meanwhile") {
  threaded t(1);
  gated_item a;
  t.queue.queue(a.work);
  a.await_entered();
  worker canceller([&] { CHECK_FALSE(t.queue.cancel_sync(a.work)); });

  CHECK(canceller.is_blocked());
  CHECK_FALSE(t.queue.queue(a.work));

  a.open = true;
  canceller.join();
  CHECK(a.left == 1);
  CHECK(t.queue.queue(a.work));
  CHECK(t.queue.flush(a.work) == status::ok);
  CHECK(a.left == 2);
}

TEST_CASE("cancelling or flushing an item from its own function is reported and does not wait") {
  sequential s;
  sequential::item a("a", s.log);
  status flushed = status::ok;
  status flushed_queue = status::ok;
  a.then = [&] {
    CHECK_FALSE(s.queue.cancel_sync(a.work));
    flushed = s.queue.flush(a.work);
    flushed_queue = s.queue.flush();
  };
  s.queue.queue(a.work);

  s.queue.run_pending();

  CHECK(s.misuse.count() == 3);
  CHECK(flushed == status::deadlock);
  CHECK(flushed_queue == status::deadlock);
}

// -- waiting

TEST_CASE("flushing an item waits for its last queueing, and returns at once for an idle one") {
  threaded t(1);
  gated_item a;
  CHECK(t.queue.flush(a.work) == status::ok);
  t.queue.queue(a.work);
  a.await_entered();
  t.queue.queue(a.work);
  worker flusher([&] { CHECK(t.queue.flush(a.work) == status::ok); });

  CHECK(flusher.is_blocked());

  a.open = true;
  flusher.join();
  CHECK(a.left == 2);
}

TEST_CASE("flushing a delayed item runs it now") {
  threaded t(1);
  gated_item a;
  a.open = true;
  t.queue.queue_delayed(a.work, std::chrono::hours(1));

  CHECK(t.queue.flush(a.work) == status::ok);

  CHECK(a.left == 1);
}

TEST_CASE("whoever flushes an item that is taken back goes on") {
  threaded t(1);
  gated_item a, b;
  t.queue.queue(a.work);
  a.await_entered();
  t.queue.queue(b.work);
  worker flusher([&] { CHECK(t.queue.flush(b.work) == status::ok); });
  CHECK(flusher.is_blocked());

  CHECK(t.queue.cancel(b.work));

  flusher.join();
  CHECK(b.entered == 0);
  a.open = true;
  CHECK(t.queue.flush(a.work) == status::ok);  // before it is gone
}

TEST_CASE("flushing a queue waits for what was queued before, not for what comes later") {
  threaded t(2, work_queue_flags::none, 0);
  gated_item a, late;
  t.queue.queue(a.work);
  a.await_entered();
  worker flusher([&] { CHECK(t.queue.flush() == status::ok); });
  CHECK(flusher.is_blocked());
  t.queue.queue(late.work);
  late.await_entered();

  a.open = true;

  flusher.join();
  CHECK(late.left == 0);
  late.open = true;
  CHECK(t.queue.drain() == status::ok);
  CHECK(late.left == 1);
}

TEST_CASE("draining waits for items that queue each other") {
  struct chain {
    static void run(default_work& item) noexcept {
      auto& self = *static_cast<chain*>(item.context());
      if (++self.runs < 5) self.queue->queue(item);
    }
    default_queue* queue = nullptr;
    std::atomic<int> runs{0};
    default_work work{&run, this};
  };
  threaded t(1);
  chain c;
  c.queue = &t.queue;
  t.queue.queue(c.work);

  CHECK(t.queue.drain() == status::ok);

  CHECK(c.runs == 5);
}

// -- freezing

TEST_CASE(
    "scenario 22: a freeze lets the running item end and parks the rest, a thaw runs each once") {
  sequential s;
  sequential::item w1("w1", s.log), w2("w2", s.log), w3("w3", s.log), w4("w4", s.log);
  w1.then = [&] {
    s.queue.queue(w2.work);
    s.queue.queue_delayed(w4.work, ms(50));
    s.queue.freeze_begin();
    CHECK(s.queue.is_busy());
    CHECK(s.queue.queue(w3.work));
    virtual_clock::advance(100);
    CHECK(s.queue.queue(w1.work));
    CHECK_FALSE(s.queue.queue(w1.work));
    CHECK(s.queue.is_busy());
  };
  s.queue.queue(w1.work);

  s.queue.run_pending();
  CHECK_FALSE(s.queue.is_busy());
  CHECK_FALSE(s.queue.run_pending());
  CHECK(s.log == log_type{"w1"});

  s.queue.thaw();
  s.queue.run_pending();
  CHECK(s.log == log_type{"w1", "w2", "w3", "w4", "w1"});
  CHECK_FALSE(s.queue.run_pending());
}

TEST_CASE(
    "scenario 23: an activated item that was not started still runs, and keeps the queue busy") {
  sequential s(freezable, 4);
  sequential::item a("a", s.log), b("b", s.log);
  a.then = [&] { s.queue.freeze_begin(); };
  b.then = [&] { CHECK(s.queue.is_busy()); };
  s.queue.queue(a.work);
  s.queue.queue(b.work);

  s.queue.run_pending();

  CHECK(s.log == log_type{"a", "b"});
  CHECK_FALSE(s.queue.is_busy());
}

TEST_CASE("scenario 24: a parked item is cancelled at once, and flushing one waits for the thaw") {
  threaded t(1);
  gated_item p, q;
  q.open = true;
  t.queue.freeze_begin();
  t.queue.queue(p.work);
  t.queue.queue(q.work);

  CHECK(t.queue.cancel_sync(p.work));
  worker flusher([&] { CHECK(t.queue.flush(q.work) == status::ok); });
  CHECK(flusher.is_blocked());
  CHECK(q.entered == 0);

  t.queue.thaw();
  flusher.join();
  CHECK(q.left == 1);
  CHECK(p.entered == 0);
}

TEST_CASE("flushing what is parked is a deadlock for the thread that froze, and reported") {
  threaded t(1, freezable, 2);
  gated_item parked, delayed, active;
  t.queue.queue(active.work);
  active.await_entered();
  t.queue.freeze_begin();
  t.queue.queue(parked.work);
  t.queue.queue_delayed(delayed.work, ms(100000));

  CHECK(t.queue.flush(parked.work) == status::deadlock);
  CHECK(t.queue.flush(delayed.work) == status::deadlock);
  CHECK(t.queue.flush() == status::deadlock);
  CHECK(t.queue.drain() == status::deadlock);
  CHECK(t.misuse.take() == 4);

  active.open = true;
  CHECK(t.queue.flush(active.work) == status::ok);
  CHECK(t.queue.cancel_sync(parked.work));
  CHECK(t.queue.cancel_sync(delayed.work));
  CHECK(t.queue.flush() == status::ok);
  t.queue.thaw();
  CHECK(t.misuse.count() == 0);
}

TEST_CASE("items that wait for their turn or are parked do not make a frozen queue busy") {
  sequential s;
  sequential::item a("a", s.log), b("b", s.log);
  s.queue.freeze_begin();
  s.queue.queue(a.work);
  s.queue.queue_delayed(b.work, ms(5));
  virtual_clock::advance(5);

  CHECK(s.queue.is_frozen());
  CHECK_FALSE(s.queue.is_busy());

  CHECK(s.queue.cancel(a.work));
  CHECK(s.queue.cancel(b.work));
}

TEST_CASE("a queue that is not freezable takes no notice of a freeze") {
  sequential s(work_queue_flags::none);
  sequential::item a("a", s.log);
  s.queue.freeze_begin();
  s.queue.queue(a.work);

  CHECK_FALSE(s.queue.is_frozen());
  CHECK_FALSE(s.queue.is_busy());
  CHECK(s.queue.run_pending());
}

TEST_CASE("a second freeze of a frozen queue is reported, and one thaw undoes both") {
  sequential s;
  s.queue.freeze_begin();
  s.queue.freeze_begin();
  CHECK(s.misuse.count() == 1);

  s.queue.thaw();

  CHECK_FALSE(s.queue.is_frozen());
}

TEST_CASE("a thaw does not exceed the limit of active items") {
  sequential s(freezable, 1);
  sequential::item a("a", s.log), b("b", s.log);
  s.queue.freeze_begin();
  s.queue.queue(a.work);
  s.queue.queue(b.work);
  s.queue.thaw();
  s.queue.freeze_begin();

  s.queue.run_pending();

  CHECK(s.log == log_type{"a"});
  s.queue.thaw();
  s.queue.run_pending();
  CHECK(s.log == log_type{"a", "b"});
}

// -- misuse, and one thread of execution

TEST_CASE("destroying a pending item or a queue with items is reported") {
  misuse_log misuse;
  log_type log;
  auto queue = std::make_unique<basic_work_queue<virtual_platform>>("tested");
  {
    named_item<virtual_platform> a("a", log);
    queue->queue(a.work);
    queue.reset();
    CHECK(misuse.take() == 1);
  }
  CHECK(misuse.take() == 1);
}

TEST_CASE("with one thread only, what would wait for ever is reported") {
  misuse_log misuse;
  log_type log;
  basic_work_queue<single_platform> queue("tested");
  named_item<single_platform> a("a", log);
  queue.queue(a.work);

  CHECK(queue.flush(a.work) == status::again);
  CHECK(queue.flush() == status::again);
  CHECK(misuse.take() == 2);

  queue.run();
  CHECK(misuse.take() == 1);
  CHECK(log == log_type{"a"});
  CHECK(queue.flush() == status::ok);
}

TEST_CASE("workers return after stop, with their present item done") {
  gated_item a;
  {
    threaded t(2);
    t.queue.queue(a.work);
    a.await_entered();
    t.queue.stop();
    a.open = true;
  }
  CHECK(a.left == 1);
}

// -- real threads

TEST_CASE("stress: items never run twice at a time, and none that was accepted is lost") {
  struct counted {
    static void run(default_work& item) noexcept {
      auto& self = *static_cast<counted*>(item.context());
      if (self.inside.fetch_add(1) != 0) ++self.overlaps;
      ++self.runs;
      self.inside.fetch_sub(1);
    }
    std::atomic<int> inside{0};
    std::atomic<int> overlaps{0};
    std::atomic<int> runs{0};
    std::atomic<int> accepted{0};
    default_work work{&run, this};
  };
  std::array<counted, 4> items;
  threaded t(2, freezable, 2);
  {
    worker freezer([&] {
      for (time_limit limit(150); limit;) {
        t.queue.freeze_begin();
        while (t.queue.is_busy()) std::this_thread::yield();
        const int before = items[0].runs + items[1].runs + items[2].runs + items[3].runs;
        std::this_thread::yield();
        CHECK(before == items[0].runs + items[1].runs + items[2].runs + items[3].runs);
        t.queue.thaw();
      }
    });
    const auto submit = [&] {
      unsigned turn = 0;
      for (time_limit limit(150); limit; ++turn) {
        counted& item = items[turn % items.size()];
        const bool taken =
            turn % 3 == 0 ? t.queue.queue_delayed(item.work, ms(0)) : t.queue.queue(item.work);
        if (taken) ++item.accepted;
        if (turn % 7 == 0 && t.queue.cancel(item.work)) --item.accepted;
        if (turn % 64 == 0) std::this_thread::yield();
      }
    };
    worker first(submit);
    worker second(submit);
  }
  CHECK(t.queue.drain() == status::ok);

  for (counted& item : items) {
    CHECK(item.overlaps == 0);
    CHECK(item.runs == item.accepted);
  }
}

}  // TEST_SUITE
