// SPDX-License-Identifier: MIT
//
// trace_platform.hpp - the pmgate platform whose threads are the actors of a trace.
//
// One task runs at a time and is never interrupted, so atomics and counters are
// plain values. Sleeping and waking go through the scheduler, in order; a grace
// period lasts while an actor is in a read section; time is virtual.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_TRACE_PLATFORM_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_TRACE_PLATFORM_HPP

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <utility>

#include <pmgate/platform/concept.hpp>

#include "scheduler.hpp"

namespace replay {

/// While one exists, the present task's grace periods are over at once; see departure
/// one-grace-period.
class grace_without_readers {
 public:
  explicit grace_without_readers(bool wanted) : wanted_(wanted) {
    if (wanted_) tasks().insert(scheduler::get().current());
  }
  ~grace_without_readers() {
    if (wanted_) tasks().erase(scheduler::get().current());
  }
  grace_without_readers(const grace_without_readers&) = delete;
  grace_without_readers& operator=(const grace_without_readers&) = delete;
  static bool holds() { return tasks().contains(scheduler::get().current()); }

 private:
  static std::set<const task*>& tasks() {
    static std::set<const task*> those;
    return those;
  }
  bool wanted_;
};

/// Tasks that sleep, oldest first.
class sleepers {
 public:
  void sleep() {
    auto& world = scheduler::get();
    queue_.push_back(world.current());
    world.sleep();
  }
  /// Returns: false if the deadline passed.
  bool sleep_until(std::int64_t deadline) {
    auto& world = scheduler::get();
    if (deadline <= world.now()) return false;
    task* const self = world.current();
    bool expired = false;
    const auto timer = world.after(deadline, [this, &world, &expired, self] {
      expired = true;
      std::erase(queue_, self);
      world.wake(*self);
    });
    queue_.push_back(self);
    world.sleep();
    world.cancel(timer);
    return !expired;
  }
  void wake_all() {
    for (task* sleeper : std::exchange(queue_, {})) scheduler::get().wake(*sleeper);
  }
  void wake_one() {
    if (queue_.empty()) return;
    scheduler::get().wake(*queue_.front());
    queue_.pop_front();
  }

 private:
  std::deque<task*> queue_;
};

/// A plain value with the interface of an atomic.
template <class T>
class trace_atomic {
 public:
  trace_atomic(T value = T{}) noexcept : value_(value) {}  // NOLINT: as std::atomic
  trace_atomic(const trace_atomic&) = delete;
  trace_atomic& operator=(const trace_atomic&) = delete;

  [[nodiscard]] T load(std::memory_order) const noexcept {
    scheduler::get().count_step();
    return value_;
  }
  void store(T value, std::memory_order) noexcept { (void)set(value); }
  T exchange(T value, std::memory_order) noexcept { return set(value); }
  T fetch_add(T n, std::memory_order) noexcept { return set(static_cast<T>(value_ + n)); }
  T fetch_sub(T n, std::memory_order) noexcept { return set(static_cast<T>(value_ - n)); }
  T fetch_or(T n, std::memory_order) noexcept { return set(static_cast<T>(value_ | n)); }
  T fetch_and(T n, std::memory_order) noexcept { return set(static_cast<T>(value_ & n)); }
  bool compare_exchange_strong(T& expected, T value, std::memory_order,
                               std::memory_order) noexcept {
    if (value_ == expected) {
      (void)set(value);
      return true;
    }
    expected = load(std::memory_order_relaxed);
    return false;
  }
  bool compare_exchange_weak(T& expected, T value, std::memory_order success,
                             std::memory_order failure) noexcept {
    return compare_exchange_strong(expected, value, success, failure);
  }

 protected:
  T set(T value) noexcept {
    scheduler::get().count_step();
    return std::exchange(value_, value);
  }
  T value_;
};

/// A sum and a flag; on one CPU nobody is between the two.
class trace_counter {
 public:
  explicit trace_counter(bool starts_open) noexcept : open_(starts_open) {}
  trace_counter(const trace_counter&) = delete;
  trace_counter& operator=(const trace_counter&) = delete;

  [[nodiscard]] bool try_add(std::intptr_t n) noexcept {
    scheduler::get().count_step();
    if (open_) sum_ += static_cast<std::uintptr_t>(n);
    return open_;
  }
  void begin_close() noexcept { open_ = false; }
  [[nodiscard]] std::intptr_t finish_close() noexcept { return peek(); }
  void open() noexcept {
    sum_ = 0;
    open_ = true;
  }
  void reopen() noexcept { open_ = true; }
  [[nodiscard]] std::intptr_t peek() const noexcept { return static_cast<std::intptr_t>(sum_); }

 private:
  std::uintptr_t sum_ = 0;
  bool open_;
};

class trace_mutex {
 public:
  void lock() noexcept {
    while (held_) waiting_.sleep();
    held_ = true;
  }
  void unlock() noexcept {
    held_ = false;
    waiting_.wake_one();
  }

 private:
  bool held_ = false;
  sleepers waiting_;
};

/// While one exists, wake_all() wakes nobody; see departure status-wakes.
class withheld_wakes {
 public:
  withheld_wakes() { ++count_; }
  ~withheld_wakes() { --count_; }
  withheld_wakes(const withheld_wakes&) = delete;
  withheld_wakes& operator=(const withheld_wakes&) = delete;
  static bool any() { return count_ != 0; }

 private:
  static inline int count_ = 0;
};

class trace_wait_word : public trace_atomic<std::uint32_t> {
 public:
  explicit trace_wait_word(std::uint32_t value = 0) noexcept : trace_atomic(value & values) {}

  [[nodiscard]] std::uint32_t load(std::memory_order order) const noexcept {
    return trace_atomic::load(order) & values;
  }
  std::uint32_t exchange(std::uint32_t value, std::memory_order order) noexcept {
    return trace_atomic::exchange(value, order) & values;
  }
  std::uint32_t fetch_add(std::uint32_t n, std::memory_order order) noexcept {
    return trace_atomic::fetch_add(n, order) & values;
  }
  std::uint32_t fetch_sub(std::uint32_t n, std::memory_order order) noexcept {
    return trace_atomic::fetch_sub(n, order) & values;
  }
  void wait(std::uint32_t old) noexcept {
    if (load(std::memory_order_relaxed) == old) waiting_.sleep();
  }
  bool wait_until(std::uint32_t old, std::int64_t deadline) noexcept {
    return load(std::memory_order_relaxed) != old || waiting_.sleep_until(deadline);
  }
  void wake_all() noexcept {
    if (!withheld_wakes::any()) waiting_.wake_all();
  }
  void publish_add(std::uint32_t n) noexcept {
    (void)fetch_add(n, std::memory_order_acq_rel);
    wake_all();
  }
  void settle() noexcept {}

 private:
  static constexpr std::uint32_t values = (std::uint32_t{1} << 31) - 1;
  sleepers waiting_;
};

struct trace_platform {
  template <class T>
  using atomic = trace_atomic<T>;
  using cpu_counter = trace_counter;
  using mutex = trace_mutex;
  using wait_word = trace_wait_word;
  using thread_id = const task*;
  using time_point = std::int64_t;  // milliseconds
  using duration = std::int64_t;

  static constexpr bool can_block = true;

  /// Where misuse goes while a trace is replayed.
  static std::function<void(const char*)>& on_misuse() {
    static std::function<void(const char*)> target;
    return target;
  }

  /// Where events go meanwhile.
  static std::function<void(const char*)>& on_trace() {
    static std::function<void(const char*)> target;
    return target;
  }

  [[nodiscard]] static bool after_grace_period(pmgate::grace_callback& first) noexcept {
    scheduler::get().rcu.call(first);
    return true;
  }
  [[nodiscard]] static bool synchronize() noexcept {
    if (grace_without_readers::holds()) return true;
    struct request : pmgate::grace_callback {
      bool over = false;
      sleepers waiting;
    } self;
    self.run = [](pmgate::grace_callback& done) noexcept {
      auto& mine = static_cast<request&>(done);
      mine.over = true;
      mine.waiting.wake_all();
    };
    scheduler::get().rcu.call(self);
    while (!self.over) self.waiting.sleep();
    return true;
  }

  [[nodiscard]] static time_point now() noexcept { return scheduler::get().now(); }
  [[nodiscard]] static duration milliseconds(std::int64_t n) noexcept { return n; }
  [[nodiscard]] static thread_id this_thread() noexcept { return scheduler::get().current(); }
  static void misuse(const char* text) noexcept {
    if (on_misuse()) on_misuse()(text);
  }
  /// The kernel warns of some events, and of the others it says nothing.
  static void trace(const char* event, const void*) noexcept {
    if (on_trace()) on_trace()(event);
  }
};

static_assert(pmgate::platform<trace_platform>);

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_TRACE_PLATFORM_HPP
