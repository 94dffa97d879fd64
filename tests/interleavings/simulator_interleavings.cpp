// SPDX-License-Identifier: MIT
//
// simulator_interleavings.cpp - the simulator itself: it tries what there is to try, on
// the memory it claims to have, and says what it found.
#include <atomic>
#include <cstdlib>
#include <optional>
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/platform/sim.hpp>

#include "explore_models.hpp"

namespace {

using namespace interleavings;
using std::memory_order_acq_rel;
using std::memory_order;
using std::memory_order_acquire;
using std::memory_order_relaxed;
using std::memory_order_release;
using std::memory_order_seq_cst;

static_assert(!std::is_copy_constructible_v<sim::atomic<int>>);
static_assert(!std::is_copy_constructible_v<sim::guarded<int>>);
static_assert(noexcept(sim::wait_word{}.wake_all()));

constexpr sim::options everything{.preemptions = sim::unbounded};
constexpr sim::options buffers{.memory = sim::memory_model::store_buffers,
                               .preemptions = sim::unbounded,
                               .delayed_stores = sim::unbounded};

struct two_words {
  sim::atomic<int> x{0};
  sim::atomic<int> y{0};
  int seen_x = -1;
  int seen_y = -1;
};

/// Stores here, loads there.
struct store_load : two_words {
  void check() { sim::expect(seen_x == 1 || seen_y == 1, "neither saw the other"); }
};
template <std::memory_order Fence>
constexpr auto store_x_load_y = [](auto& s) {
  s.x.store(1, memory_order_release);
  if (Fence != memory_order_relaxed) sim::fence(Fence);
  s.seen_y = s.y.load(memory_order_acquire);
};
template <std::memory_order Fence>
constexpr auto store_y_load_x = [](auto& s) {
  s.y.store(1, memory_order_release);
  if (Fence != memory_order_relaxed) sim::fence(Fence);
  s.seen_x = s.x.load(memory_order_acquire);
};

/// A message behind a flag.
struct message {
  sim::atomic<int> ready{0};
  sim::guarded<int> text{0};
};
template <std::memory_order Order>
constexpr auto send = [](message& s) {
  s.text.write(7);
  s.ready.store(1, Order);
};
template <std::memory_order Order>
constexpr auto receive = [](message& s) {
  if (s.ready.load(Order) == 1) sim::expect(s.text.read() == 7, "the message is not there");
};

struct two_mutexes {
  sim::mutex a;
  sim::mutex b;
};
constexpr auto lock_a_b = [](two_mutexes& s) {
  s.a.lock();
  s.b.lock();
  s.b.unlock();
  s.a.unlock();
};
constexpr auto lock_b_a = [](two_mutexes& s) {
  s.b.lock();
  s.a.lock();
  s.a.unlock();
  s.b.unlock();
};

struct one_word {
  sim::wait_word word{0};
  int early = 0;
  int late = 0;
};

sim::options named(const char* name, sim::options how) {
  how.name = name;
  return how;
}

TEST_SUITE("simulator") {

TEST_CASE("all interleavings of two threads with two operations each: six") {
  const auto twice = [](two_words& s) {
    (void)s.x.fetch_add(1, memory_order_relaxed);
    (void)s.x.fetch_add(1, memory_order_relaxed);
  };
  const auto found = sim::explore<two_words>(everything, twice, twice);

  CHECK(found);
  CHECK(found.complete);
  CHECK(found.schedules == 6);
}

TEST_CASE("without preemptions: one schedule for each order of the threads") {
  const auto once = [](two_words& s) { (void)s.x.fetch_add(1, memory_order_relaxed); };
  const auto found = sim::explore<two_words>({.preemptions = 0}, once, once, once);

  CHECK(found.complete);
  CHECK(found.schedules == 6);
}

TEST_CASE("store buffers let two threads miss each other, sequential memory does not") {
  const auto& first = store_x_load_y<memory_order_relaxed>;
  const auto& second = store_y_load_x<memory_order_relaxed>;

  CHECK(sim::explore<store_load>(everything, first, second));
  CHECK(sim::explore<store_load>(buffers, first, second).failure == "neither saw the other");
}

TEST_CASE("a full fence in both threads is enough, a weaker one is not") {
  CHECK(sim::explore<store_load>(buffers, store_x_load_y<memory_order_seq_cst>,
                                 store_y_load_x<memory_order_seq_cst>));
  CHECK_FALSE(sim::explore<store_load>(buffers, store_x_load_y<memory_order_acq_rel>,
                                       store_y_load_x<memory_order_acq_rel>));
  CHECK_FALSE(sim::explore<store_load>(buffers, store_x_load_y<memory_order_seq_cst>,
                                       store_y_load_x<memory_order_relaxed>));
}

TEST_CASE("one heavy fence does for both threads, unless it is refused behind one's back") {
  const auto heavy = [](store_load& s) {
    s.x.store(1, memory_order_relaxed);
    (void)pmgate::sim_platform::heavy_fence();
    s.seen_y = s.y.load(memory_order_relaxed);
  };
  const auto& light = store_y_load_x<memory_order_relaxed>;
  sim::options how = buffers;
  CHECK(sim::explore<store_load>(how, heavy, light));

  how.fence = sim::fence_model::per_thread;
  CHECK(sim::explore<store_load>(how, heavy, light));

  how.fence = sim::fence_model::silently_refused;
  CHECK_FALSE(sim::explore<store_load>(how, heavy, light));
}

TEST_CASE("stores leave their buffer in order") {
  CHECK(sim::explore<message>(buffers, send<memory_order_release>, receive<memory_order_acquire>));
}

TEST_CASE("a missing release or acquire is a data race, although the values are right") {
  CHECK(sim::explore<message>(everything, send<memory_order_relaxed>, receive<memory_order_acquire>)
            .failure.starts_with("data race"));
  CHECK(sim::explore<message>(everything, send<memory_order_release>, receive<memory_order_relaxed>)
            .failure.starts_with("data race"));
}

TEST_CASE("a load may be late, but not behind what its thread knows of") {
  sim::options late = everything;
  late.stale_loads = 2;
  const auto give = [](memory_order order) {
    return [order](two_words& s) {
      s.x.store(1, memory_order_relaxed);
      s.x.store(2, memory_order_relaxed);
      s.y.store(1, order);
    };
  };
  const auto take = [](memory_order order, int wanted) {
    return [order, wanted](two_words& s) {
      if (s.y.load(order) == 0) return;
      const int seen = s.x.load(memory_order_relaxed);
      sim::expect(seen != wanted, "seen");
      sim::expect(s.x.load(memory_order_relaxed) >= seen, "back in time");
    };
  };
  const auto release = give(memory_order_release);
  const auto relaxed = give(memory_order_relaxed);
  for (const int wanted : {0, 1}) {
    const auto acquires = take(memory_order_acquire, wanted);
    const auto looks = take(memory_order_relaxed, wanted);

    CHECK(sim::explore<two_words>(late, release, acquires));
    CHECK(sim::explore<two_words>(everything, relaxed, looks));
    CHECK(sim::explore<two_words>(late, relaxed, acquires).failure == "seen");
    CHECK(sim::explore<two_words>(late, release, looks).failure == "seen");
  }
}

TEST_CASE("a barrier in each thread is enough against late loads, too") {
  sim::options late = everything;
  late.stale_loads = 2;

  CHECK(sim::explore<store_load>(late, store_x_load_y<memory_order_seq_cst>,
                                 store_y_load_x<memory_order_seq_cst>));
  CHECK(sim::explore<store_load>(late, store_x_load_y<memory_order_relaxed>,
                                 store_y_load_x<memory_order_relaxed>)
            .failure == "neither saw the other");
}

TEST_CASE("a delayed store is seen by its own thread at once") {
  const auto own = [](two_words& s) {
    s.x.store(1, memory_order_relaxed);
    sim::expect(s.x.load(memory_order_relaxed) == 1, "a thread misses its own store");
  };
  CHECK(sim::explore<two_words>(buffers, own, own));
}

TEST_CASE("mutexes locked in two orders are a deadlock that names the holders") {
  const auto found = sim::explore<two_mutexes>({}, lock_a_b, lock_b_a);

  CHECK(found.failure ==
        "deadlock: T0 waits for mutex #2 held by T1, T1 waits for mutex #1 held by T0");
}

TEST_CASE("a wake-up before the sleep is lost unless the value has changed") {
  const auto sleep = [](one_word& s) {
    if (s.word.load(memory_order_acquire) == 0) s.word.wait(0);
  };
  const auto change = [](one_word& s) {
    s.word.store(1, memory_order_release);
    s.word.wake_all();
  };
  const auto only_wake = [](one_word& s) { s.word.wake_all(); };

  CHECK(sim::explore<one_word>(everything, sleep, change));
  CHECK(sim::explore<one_word>(everything, sleep, only_wake)
            .failure.starts_with("deadlock: T0 sleeps on"));
}

TEST_CASE("a wait may end for no reason, if that is asked for") {
  const auto trusting = [](one_word& s) {
    s.word.wait(0);
    sim::expect(s.word.load(memory_order_acquire) == 1, "woken too early");
  };
  const auto change = [](one_word& s) { s.word.publish_add(1); };
  sim::options how = everything;
  CHECK(sim::explore<one_word>(how, trusting, change));

  how.spurious = 1;
  CHECK(sim::explore<one_word>(how, trusting, change).failure == "woken too early");
}

TEST_CASE("a timed wait ends both ways, and the clock then shows the deadline") {
  static int woken, timed_out;
  woken = timed_out = 0;
  const auto timed = [](one_word& s) {
    const auto deadline = pmgate::sim_platform::now() + 50;
    const bool in_time = s.word.wait_until(0, deadline);
    sim::expect(in_time || pmgate::sim_platform::now() == deadline, "a wrong time");
    ++(in_time ? woken : timed_out);
  };
  const auto change = [](one_word& s) { s.word.publish_add(1); };

  CHECK(sim::explore<one_word>(everything, timed, change));
  CHECK(woken > 0);
  CHECK(timed_out > 0);
  CHECK(sim::explore<one_word>(everything, timed));  // nobody else: the deadline passes
}

TEST_CASE("a destroyed object that is touched, or may be, fails the schedule") {
  struct mortal {
    std::optional<sim::atomic<int>> word{std::in_place, 0};
  };
  const auto touch = [](mortal& s) { (void)s.word->load(memory_order_relaxed); };
  const auto destroy = [](mortal& s) { s.word.reset(); };

  const auto before = sim::explore<mortal>({.preemptions = 0}, touch, destroy);
  CHECK(before.failure == "T1 destroys #1, unordered with an access of T0");
}

TEST_CASE("a failed schedule is told again by its string") {
  const auto broken = [](store_load& s) { store_x_load_y<memory_order_relaxed>(s); };
  const auto other = [](store_load& s) { store_y_load_x<memory_order_relaxed>(s); };
  const auto found = sim::explore<store_load>(named("told again", buffers), broken, other);
  REQUIRE_FALSE(found);
  REQUIRE(found.schedules > 1);

  ::setenv("PMGATE_SCHEDULE", found.schedule.c_str(), 1);
  const auto again = sim::explore<store_load>(named("told again", buffers), broken, other);
  const auto another = sim::explore<store_load>(named("another", everything), broken, other);
  ::unsetenv("PMGATE_SCHEDULE");

  CHECK(again.schedules == 1);
  CHECK(again.failure == found.failure);
  CHECK(again.schedule == found.schedule);
  CHECK(another.complete);
}

TEST_CASE("chance finds the same failure, and the same one for the same seed") {
  for (const auto how : {sim::search::random, sim::search::priorities}) {
    sim::options by_chance = named("by chance", buffers);
    by_chance.how = how;
    by_chance.seed = 3;
    const auto one = sim::explore<store_load>(by_chance, store_x_load_y<memory_order_relaxed>,
                                              store_y_load_x<memory_order_relaxed>);
    const auto two = sim::explore<store_load>(by_chance, store_x_load_y<memory_order_relaxed>,
                                              store_y_load_x<memory_order_relaxed>);
    CHECK_FALSE(one);
    CHECK(one.schedule == two.schedule);
    CHECK(one.schedules == two.schedules);
  }
}

TEST_CASE("misuse fails the schedule unless it was announced") {
  const auto misuse = [](one_word&) { pmgate::sim_platform::misuse("a text"); };
  CHECK(sim::explore<one_word>({}, misuse).failure == "misuse: a text");

  const auto announced = [](one_word&) {
    sim::expect_misuse();
    pmgate::sim_platform::misuse("a text");
    sim::expect(sim::misuses() == 1, "not counted");
  };
  CHECK(sim::explore<one_word>({}, announced));
}

TEST_CASE("a thread that never ends is a livelock") {
  const auto spin = [](one_word& s) {
    while (s.word.load(memory_order_acquire) == 0) {
    }
  };
  CHECK(sim::explore<one_word>({.steps = 100}, spin).failure == "100 steps: a livelock?");
}

TEST_CASE("a sequence counts on one CPU at a time, wherever its thread goes") {
  struct counted {
    sim::rseq_engine counter{true};
    void check() {
      counter.begin_close();
      sim::expect(counter.finish_close() == 3, "a count was lost");
    }
  };
  const auto add = [](counted& s) { (void)s.counter.try_add(1); };
  const auto found = sim::explore<counted>(
      {.memory = sim::memory_model::store_buffers, .preemptions = 3, .migrations = 2, .cpus = 2},
      add, add, add);
  CHECK(found);
  CHECK(found.complete);
}

TEST_CASE("outside of an exploration the types work at once") {
  sim::atomic<int> number{1};
  sim::wait_word word{0};
  word.publish_add(2);

  CHECK(number.fetch_add(2, memory_order_relaxed) == 1);
  CHECK(number.load(memory_order_relaxed) == 3);
  CHECK(word.load(memory_order_relaxed) == 2);
}

}  // TEST_SUITE

}  // namespace
