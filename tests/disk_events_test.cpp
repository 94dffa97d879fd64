// SPDX-License-Identifier: MIT
//
// disk_events_test.cpp - checks that are repeated, and blocked; the number is that of
// the scenario in the specification of system sleep.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/pm/disk_events.hpp>
#include <pmgate/pm/freezer.hpp>

#include "support/deferred_platform.hpp"
#include "support/virtual_platform.hpp"

using pmgate::status;
using pmgate::pm::basic_disk_events;
using pmgate::pm::basic_freezer;
using pmgate::pm::basic_work_queue;
using pmgate::pm::work_queue_flags;
using testing::misuse_log;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using default_events = pmgate::pm::disk_events;
using default_queue = pmgate::pm::work_queue;

static_assert(!std::is_copy_constructible_v<default_events>);
static_assert(!std::is_move_constructible_v<default_events>);

namespace {

auto ms(int n) { return std::chrono::milliseconds(n); }

/// A disk whose medium the test changes, on the test's clock.
struct sequential {
  sequential() { virtual_clock::reset(); }
  ~sequential() {
    while (events.depth() == 0) events.block();
    virtual_clock::reset();
  }
  static unsigned check(void* context, unsigned clearing) noexcept {
    auto& self = *static_cast<sequential*>(context);
    ++self.checks;
    self.asked_for = clearing;
    return self.medium;
  }
  static void notify(void* context, unsigned found) noexcept {
    static_cast<sequential*>(context)->told.push_back(found);
  }
  void run() {
    while (queue.run_pending()) {
    }
  }
  misuse_log misuse;
  int checks = 0;
  unsigned asked_for = 0;
  unsigned medium = 0;
  std::vector<unsigned> told;
  basic_work_queue<virtual_platform> queue{"events", work_queue_flags::freezable};
  basic_disk_events<virtual_platform> events{queue, &check, &notify, this};
};

/// A disk whose checks stay where they are until they are let go.
struct threaded {
  threaded() {
    thread = std::thread([this] { queue.run(); });
  }
  ~threaded() {
    open = true;
    if (events.depth() == 0) events.block();
    queue.stop();
    thread.join();
  }
  static unsigned check(void* context, unsigned) noexcept {
    auto& self = *static_cast<threaded*>(context);
    ++self.entered;
    while (!self.open) std::this_thread::yield();
    ++self.left;
    return 0;
  }
  void await_check() const {
    while (entered == 0) std::this_thread::yield();
  }
  std::atomic<int> entered{0};
  std::atomic<int> left{0};
  std::atomic<bool> open{false};
  default_queue queue{"events", work_queue_flags::freezable};
  default_events events{queue, &check, nullptr, this};
  std::thread thread;
};

}  // namespace

TEST_SUITE("disk_events") {

TEST_CASE("checks begin with the first unblock, and are repeated after the interval") {
  sequential s;
  s.events.set_poll_interval(ms(10));
  s.run();
  CHECK(s.checks == 0);

  s.events.unblock();
  s.run();
  CHECK(s.checks == 1);
  virtual_clock::advance(9);
  s.run();
  CHECK(s.checks == 1);
  virtual_clock::advance(1);
  s.run();
  CHECK(s.checks == 2);

  s.events.set_poll_interval(ms(0));
  virtual_clock::advance(10);
  s.run();
  virtual_clock::advance(100);
  s.run();
  CHECK(s.checks == 3);
}

TEST_CASE("scenario 35: checks go on when as many have unblocked as have blocked") {
  sequential s;
  s.events.set_poll_interval(ms(10));
  s.events.unblock();
  s.run();
  s.events.block();
  s.events.block();
  CHECK(s.events.depth() == 2);

  s.events.unblock();
  virtual_clock::advance(50);
  s.run();
  CHECK(s.checks == 1);

  s.events.unblock();
  virtual_clock::advance(9);
  s.run();
  CHECK(s.checks == 1);
  virtual_clock::advance(1);
  s.run();
  CHECK(s.checks == 2);
}

TEST_CASE("scenario 35: who blocks while a check runs waits for it, and so do those after him") {
  threaded t;
  t.events.unblock();
  t.await_check();
  std::vector<std::unique_ptr<worker>> blockers;
  for (int n = 0; n < 3; ++n) {
    blockers.push_back(std::make_unique<worker>([&] {
      t.events.block();
      CHECK(t.left == 1);
    }));
  }
  for (auto& blocker : blockers) CHECK(blocker->is_blocked());

  t.open = true;
  for (auto& blocker : blockers) blocker->join();

  CHECK(t.events.depth() == 3);
  CHECK(t.entered == 1);
}

TEST_CASE("only events that were not known are told") {
  sequential s;
  s.events.unblock();
  s.medium = 1;
  s.run();
  s.medium = 3;
  s.events.flush(0);
  s.run();
  CHECK(s.told == std::vector<unsigned>{1, 2});
  CHECK(s.events.clear_events(2) == 2);

  s.events.flush(2);
  s.run();
  CHECK(s.asked_for == 2);
  CHECK(s.told.back() == 2);
}

TEST_CASE("clearing checks at once, blocked or not, and forgets what it found") {
  sequential s;
  s.medium = 5;
  CHECK(s.events.clear_events(4) == 4);
  CHECK(s.checks == 1);
  CHECK(s.asked_for == 4);
  CHECK(s.events.depth() == 1);
  CHECK(s.events.clear_events(2) == 0);

  s.events.unblock();
  s.medium = 0;
  CHECK(s.events.clear_events(1) == 1);
  CHECK(s.events.clear_events(1) == 0);
}

TEST_CASE("flushing has a check come at once, unless blocked") {
  sequential s;
  s.events.set_poll_interval(ms(1000));
  s.events.flush(1);
  s.run();
  CHECK(s.checks == 0);
  s.events.unblock();
  s.run();
  CHECK(s.asked_for == 1);

  s.events.flush(2);
  s.run();
  CHECK(s.checks == 2);
  CHECK(s.asked_for == 2);
}

TEST_CASE("a new interval has a check come at once, unless blocked; none takes one away") {
  sequential s;
  SUBCASE("after the first unblock") { s.events.unblock(); }
  SUBCASE("after a flush") {
    s.events.unblock();
    s.run();
    s.checks = 0;
    s.events.flush(1);
  }
  SUBCASE("while one is due in an hour") {
    s.events.set_poll_interval(ms(3600000));
    s.events.unblock();
    s.run();
    s.checks = 0;
  }
  s.events.set_poll_interval(ms(1000));
  s.run();
  CHECK(s.checks == 1);
  virtual_clock::advance(999);
  s.run();
  CHECK(s.checks == 1);
  virtual_clock::advance(1);
  s.run();
  CHECK(s.checks == 2);

  s.events.block();
  s.events.set_poll_interval(ms(10));
  virtual_clock::advance(100);
  s.run();
  CHECK(s.checks == 2);
}

TEST_CASE("whoever is told of an event finds the next check on its way") {
  virtual_clock::reset();
  struct disk {
    static unsigned check(void*, unsigned) noexcept { return 1; }
    static void notify(void* context, unsigned) noexcept {
      auto& self = *static_cast<disk*>(context);
      virtual_platform::time_point when{};
      self.was_armed = self.queue.next_timer(when);
    }
    bool was_armed = false;
    basic_work_queue<virtual_platform> queue{"events"};
    basic_disk_events<virtual_platform> events{queue, &check, &notify, this};
  } d;
  d.events.set_poll_interval(ms(10));
  d.events.unblock();

  CHECK(d.queue.run_pending());

  CHECK(d.was_armed);
  d.events.block();
}

TEST_CASE("a check whose time comes while the queue is frozen is parked, and runs after") {
  sequential s;
  basic_freezer<virtual_platform> freezer;
  freezer.add(s.queue);
  s.events.set_poll_interval(ms(10));
  s.events.unblock();
  s.run();
  REQUIRE(freezer.freeze_kernel_threads() == status::ok);

  virtual_clock::advance(100);
  s.run();
  CHECK(s.checks == 1);

  freezer.thaw_processes();
  s.run();
  CHECK(s.checks == 2);
  freezer.remove(s.queue);
}

TEST_CASE("one unblock too many, and being destroyed while not blocked, are reported") {
  misuse_log misuse;
  virtual_clock::reset();
  basic_work_queue<virtual_platform> queue("events");
  {
    basic_disk_events<virtual_platform> events(
        queue, [](void*, unsigned) noexcept { return 0U; }, nullptr, nullptr);
    events.unblock();
    events.unblock();
    CHECK(misuse.take() == 1);
    CHECK(events.depth() == 0);
    queue.run_pending();
  }
  CHECK(misuse.take() == 1);
}

}  // TEST_SUITE
