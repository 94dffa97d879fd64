// SPDX-License-Identifier: MIT
//
// pmgate/platform/single.hpp - one thread of execution.
//
// For event-loop simulators, single-core kernels and microcontrollers: plain
// integers in place of atomics, nothing hosted. Nobody else runs, so a call
// that would have to wait can never succeed: it reports misuse and returns
// status::again. Use the forms that do not wait.
#ifndef PMGATE_PLATFORM_SINGLE_HPP
#define PMGATE_PLATFORM_SINGLE_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>

#include <pmgate/platform/concept.hpp>

namespace pmgate {
namespace detail {

/// A plain value with the interface of an atomic; the orders mean nothing.
template <class T>
class plain_atomic {
 public:
  constexpr plain_atomic(T value = T{}) noexcept : value_(value) {}  // NOLINT: as std::atomic
  plain_atomic(const plain_atomic&) = delete;
  plain_atomic& operator=(const plain_atomic&) = delete;

  [[nodiscard]] T load(std::memory_order) const noexcept { return value_; }
  void store(T value, std::memory_order) noexcept { value_ = value; }
  T exchange(T value, std::memory_order) noexcept {
    const T old = value_;
    value_ = value;
    return old;
  }
  T fetch_add(T n, std::memory_order o) noexcept { return exchange(static_cast<T>(value_ + n), o); }
  T fetch_sub(T n, std::memory_order o) noexcept { return exchange(static_cast<T>(value_ - n), o); }
  T fetch_or(T n, std::memory_order o) noexcept { return exchange(static_cast<T>(value_ | n), o); }
  T fetch_and(T n, std::memory_order o) noexcept { return exchange(static_cast<T>(value_ & n), o); }
  bool compare_exchange_strong(T& expected, T value, std::memory_order,
                               std::memory_order) noexcept {
    if (value_ == expected) {
      value_ = value;
      return true;
    }
    expected = value_;
    return false;
  }
  bool compare_exchange_weak(T& expected, T value, std::memory_order success,
                             std::memory_order failure) noexcept {
    return compare_exchange_strong(expected, value, success, failure);
  }

 private:
  T value_;
};

/// A sum and a flag.
class single_counter {
 public:
  explicit constexpr single_counter(bool starts_open) noexcept : open_(starts_open) {}
  single_counter(const single_counter&) = delete;
  single_counter& operator=(const single_counter&) = delete;

  [[nodiscard]] bool try_add(std::intptr_t n) noexcept {
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

/// There is nobody to keep out.
struct single_mutex {
  void lock() noexcept {}
  void unlock() noexcept {}
};

/// A word nobody can change while one sleeps on it: sleeping is not done.
class single_wait_word : public plain_atomic<std::uint32_t> {
 public:
  explicit constexpr single_wait_word(std::uint32_t value = 0) noexcept : plain_atomic(value) {}
  [[nodiscard]] std::uint32_t load(std::memory_order order) const noexcept {
    return plain_atomic::load(order) & 0x7fffffffU;
  }
  std::uint32_t exchange(std::uint32_t v, std::memory_order order) noexcept {
    return plain_atomic::exchange(v, order) & 0x7fffffffU;
  }
  std::uint32_t fetch_add(std::uint32_t n, std::memory_order order) noexcept {
    return plain_atomic::fetch_add(n, order) & 0x7fffffffU;
  }
  std::uint32_t fetch_sub(std::uint32_t n, std::memory_order order) noexcept {
    return plain_atomic::fetch_sub(n, order) & 0x7fffffffU;
  }
  void wait(std::uint32_t) noexcept {}
  bool wait_until(std::uint32_t old, std::int64_t) noexcept {
    return load(std::memory_order_relaxed) != old;
  }
  void wake_all() noexcept {}
  void publish_add(std::uint32_t n) noexcept { (void)fetch_add(n, std::memory_order_relaxed); }
  void settle() noexcept {}
};

}  // namespace detail

/// The single-threaded platform; freestanding.
///
/// Threads:  none. Interrupt handlers must not use what they interrupt.
/// Blocking: never; see above.
struct single_platform {
  template <class T>
  using atomic = detail::plain_atomic<T>;
  using cpu_counter = detail::single_counter;
  using mutex = detail::single_mutex;
  using wait_word = detail::single_wait_word;
  using thread_id = int;
  using time_point = std::int64_t;  ///< nanoseconds
  using duration = std::int64_t;    ///< nanoseconds

  static constexpr bool can_block = false;

  /// What the program may replace: where misuse goes and what time it is.
  struct hooks {
    void (*on_misuse)(const char* text) noexcept = nullptr;
    std::int64_t (*clock)() noexcept = nullptr;
  };
  static hooks& installed() noexcept {
    static constinit hooks value;
    return value;
  }

  [[nodiscard]] static bool after_grace_period(grace_callback& first) noexcept {
    run_grace_callbacks(first);
    return true;
  }
  [[nodiscard]] static bool synchronize() noexcept { return true; }

  [[nodiscard]] static time_point now() noexcept {
    return installed().clock != nullptr ? installed().clock() : 0;
  }
  [[nodiscard]] static duration milliseconds(std::int64_t n) noexcept { return n * 1000000; }
  [[nodiscard]] static thread_id this_thread() noexcept { return 1; }
  static void misuse(const char* text) noexcept {
    if (installed().on_misuse != nullptr) installed().on_misuse(text);
  }
};

static_assert(platform<single_platform>);

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_SINGLE_HPP
