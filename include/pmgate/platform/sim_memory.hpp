// SPDX-License-Identifier: MIT
//
// pmgate/platform/sim_memory.hpp - what threads of a simulation share: atomics, plain
// data, mutexes, words to sleep on.
//
// Each operation is a point where the schedule may turn to another thread. Outside
// of an exploration's threads, and while its state is made, they act at once.
//
// Counterpart: std::atomic, std::mutex, the futex; CDSChecker's and loom's types.
#ifndef PMGATE_PLATFORM_SIM_MEMORY_HPP
#define PMGATE_PLATFORM_SIM_MEMORY_HPP

#include <atomic>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <pmgate/detail/sim_engine.hpp>
#include <pmgate/detail/sim_operations.hpp>
#include <pmgate/detail/sim_schedule.hpp>

namespace pmgate::sim {

/// An atomic object of an exploration; the members of std::atomic, every order spelled out.
///
/// Threads:  any, while it exists: an access before or after fails the schedule, and so
///           does a destructor that is not ordered behind every access.
/// Blocking: no; every member is a scheduling point.
template <class T>
class atomic {
  static_assert(std::is_integral_v<T> || std::is_enum_v<T>,
                "the simulator keeps values as 64 bits");
  using engine = detail::sim_engine;

public:
  atomic(T value = T{}) noexcept : cell_(bits(value)) {}  // NOLINT: as std::atomic
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;

  [[nodiscard]] T load(std::memory_order order) const noexcept {
    engine* const e = engine::running();
    return static_cast<T>(e == nullptr ? cell_.value : e->load(cell_, order));
  }
  void store(T value, std::memory_order order) noexcept {
    if (engine* const e = engine::running()) {
      e->store(cell_, bits(value), order);
    } else {
      cell_.value = bits(value);
    }
  }
  T exchange(T value, std::memory_order order) noexcept {
    return update(order, "exchange", [value](T) { return value; });
  }
  T fetch_add(T n, std::memory_order order) noexcept {
    return update(order, "fetch_add", [n](T old) { return static_cast<T>(bits(old) + bits(n)); });
  }
  T fetch_sub(T n, std::memory_order order) noexcept {
    return update(order, "fetch_sub", [n](T old) { return static_cast<T>(bits(old) - bits(n)); });
  }
  T fetch_or(T n, std::memory_order order) noexcept {
    return update(order, "fetch_or", [n](T old) { return static_cast<T>(bits(old) | bits(n)); });
  }
  T fetch_and(T n, std::memory_order order) noexcept {
    return update(order, "fetch_and", [n](T old) { return static_cast<T>(bits(old) & bits(n)); });
  }
  bool compare_exchange_strong(T& expected, T value, std::memory_order success,
                               std::memory_order failure) noexcept {
    const T wanted = expected;
    const auto change = [wanted, value](std::uint64_t old, std::uint64_t& fresh) {
      if (static_cast<T>(old) != wanted) return false;
      fresh = bits(value);
      return true;
    };
    engine* const e = engine::running();
    expected = static_cast<T>(e == nullptr ? direct(change)
                                           : e->update(cell_, success, failure, "compare", change));
    return expected == wanted;
  }
  bool compare_exchange_weak(T& expected, T value, std::memory_order success,
                             std::memory_order failure) noexcept {
    engine* const e = engine::running();
    if (e == nullptr || !e->weak_exchange_fails()) {
      return compare_exchange_strong(expected, value, success, failure);
    }
    expected = load(failure);
    return false;
  }

private:
  static constexpr std::uint64_t bits(T value) noexcept {
    return static_cast<std::uint64_t>(value);
  }

  template <class Change>
  std::uint64_t direct(Change change) noexcept {
    const std::uint64_t old = cell_.value;
    (void)change(old, cell_.value);
    return old;
  }
  template <class Make>
  T update(std::memory_order order, const char* what, Make make) noexcept {
    const auto change = [make](std::uint64_t old, std::uint64_t& fresh) {
      fresh = bits(make(static_cast<T>(old)));
      return true;
    };
    engine* const e = engine::running();
    return static_cast<T>(e == nullptr ? direct(change)
                                       : e->update(cell_, order, order, what, change));
  }

  detail::sim_cell cell_;
};

/// Plain data whose unordered use by two threads fails the schedule.
///
/// For what a gate protects: a missing acquire or release is found here, whatever
/// values the simulated memory gives.
/// Threads: any; that is what is checked. Blocking: no; both members are scheduling points.
template <class T>
class guarded {
public:
  guarded() noexcept : cell_(0), value_() {}
  explicit guarded(T value) noexcept : cell_(0), value_(std::move(value)) {}

  /// Precondition: every write by another thread happened before.
  [[nodiscard]] const T& read() const noexcept {
    if (auto* const e = detail::sim_engine::running()) e->guarded_read(cell_);
    return value_;
  }
  /// Precondition: every read and write by another thread happened before.
  void write(T value) noexcept {
    if (auto* const e = detail::sim_engine::running()) e->guarded_write(cell_);
    value_ = std::move(value);
  }

private:
  detail::sim_cell cell_;
  T value_;
};

/// A mutex without a mechanism: locking and unlocking happen at one instant.
///
/// A thread that waits for itself is a deadlock, and is reported as one.
class mutex {
public:
  mutex() noexcept : cell_(0) {}

  void lock() noexcept {
    if (auto* const e = detail::sim_engine::running()) e->lock(cell_);
  }
  void unlock() noexcept {
    if (auto* const e = detail::sim_engine::running()) e->unlock(cell_);
  }

private:
  detail::sim_cell cell_;
};

/// A 31-bit word to sleep on. Waiting and waking order nothing.
class wait_word {
  using engine = detail::sim_engine;
  static constexpr std::uint32_t values = (std::uint32_t{1} << 31) - 1;

public:
  using time_point = std::int64_t;

  explicit wait_word(std::uint32_t value = 0) noexcept : cell_(value & values) {}

  [[nodiscard]] std::uint32_t load(std::memory_order order) const noexcept {
    engine* const e = engine::running();
    return static_cast<std::uint32_t>(e == nullptr ? cell_.value : e->load(cell_, order));
  }
  void store(std::uint32_t value, std::memory_order order) noexcept {
    if (engine* const e = engine::running()) {
      e->store(cell_, value & values, order);
    } else {
      cell_.value = value & values;
    }
  }
  std::uint32_t exchange(std::uint32_t value, std::memory_order order) noexcept {
    return update(order, "exchange", [value](std::uint64_t) { return value; });
  }
  std::uint32_t fetch_add(std::uint32_t n, std::memory_order order) noexcept {
    return update(order, "fetch_add", [n](std::uint64_t old) { return old + n; });
  }
  std::uint32_t fetch_sub(std::uint32_t n, std::memory_order order) noexcept {
    return update(order, "fetch_sub", [n](std::uint64_t old) { return old - n; });
  }

  void wait(std::uint32_t old) noexcept {
    if (engine* const e = engine::running()) (void)e->wait(cell_, old, nullptr);
  }
  bool wait_until(std::uint32_t old, time_point deadline) noexcept {
    engine* const e = engine::running();
    return e == nullptr ? cell_.value != old : e->wait(cell_, old, &deadline);
  }
  void wake_all() noexcept {
    if (engine* const e = engine::running()) e->wake_all(cell_);
  }
  void publish_add(std::uint32_t n) noexcept {
    if (engine* const e = engine::running()) {
      e->publish_add(cell_, n, values);
    } else {
      cell_.value = (cell_.value + n) & values;
    }
  }
  void settle() noexcept {
    if (engine* const e = engine::running()) e->settle(cell_);
  }

private:
  template <class Make>
  std::uint32_t update(std::memory_order order, const char* what, Make make) noexcept {
    const auto change = [make](std::uint64_t old, std::uint64_t& fresh) {
      fresh = make(old) & values;
      return true;
    };
    const std::uint64_t before = cell_.value;
    engine* const e = engine::running();
    if (e != nullptr)
      return static_cast<std::uint32_t>(e->update(cell_, order, order, what, change));
    (void)change(before, cell_.value);
    return static_cast<std::uint32_t>(before);
  }

  detail::sim_cell cell_;
};

/// std::atomic_thread_fence() of the simulation.
inline void fence(std::memory_order order) noexcept {
  if (auto* const e = detail::sim_engine::running()) e->fence(order);
}

}  // namespace pmgate::sim

#endif  // PMGATE_PLATFORM_SIM_MEMORY_HPP
