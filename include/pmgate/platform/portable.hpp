// SPDX-License-Identifier: MIT
//
// pmgate/platform/portable.hpp - any hosted C++20 implementation.
//
// Sharded counters, std::mutex, std::condition_variable. No grace period is
// needed, so it is over at once. Slower than linux.hpp and right everywhere:
// also under ThreadSanitizer and where membarrier is refused or too dear.
#ifndef PMGATE_PLATFORM_PORTABLE_HPP
#define PMGATE_PLATFORM_PORTABLE_HPP

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

#include <pmgate/detail/hosted_misuse.hpp>
#include <pmgate/detail/hosted_thread.hpp>
#include <pmgate/platform/concept.hpp>
#include <pmgate/platform/sharded_counter.hpp>

#if defined(__SANITIZE_THREAD__)
#define PMGATE_DETAIL_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PMGATE_DETAIL_TSAN 1
#endif
#endif
#if defined(PMGATE_DETAIL_TSAN)
extern "C" void __tsan_mutex_destroy(void* address, unsigned flags);
#endif

namespace pmgate {
namespace detail {

/// What the sharded counter asks of the standard library.
struct portable_machine {
  template <class T>
  using atomic = std::atomic<T>;
  static std::size_t shard_count() noexcept {
    static const std::size_t count =
        std::bit_ceil(std::size_t{(std::max)(1U, std::thread::hardware_concurrency())});
    return count;
  }
  static std::size_t shard_hint() noexcept { return own_thread_number(); }
};

/// A std::mutex whose end ThreadSanitizer is told of: it knows mutexes by their addresses,
/// and nobody else tells it that the next one there is another.
class told_mutex : public std::mutex {
 public:
  told_mutex() noexcept = default;
#if defined(PMGATE_DETAIL_TSAN)
  ~told_mutex() { __tsan_mutex_destroy(this, 0); }
#endif
  told_mutex(const told_mutex&) = delete;
  told_mutex& operator=(const told_mutex&) = delete;
};

/// std::mutex, noexcept: locking one's own unlocked mutex does not fail.
class portable_mutex {
 public:
  void lock() noexcept { mutex_.lock(); }
  void unlock() noexcept { mutex_.unlock(); }

 private:
  told_mutex mutex_;
};

/// An atomic word with the mutex and the condition its sleepers need.
///
/// A waker holds the mutex for as long as it touches the word, and settle()
/// passes through it: so the word may be destroyed after settle().
class portable_wait_word {
 public:
  explicit portable_wait_word(std::uint32_t value = 0) noexcept : word_(value & values) {}

  // [word.*] the caller's order; sleepers compare again under the mutex.
  [[nodiscard]] std::uint32_t load(std::memory_order order) const noexcept {
    return word_.load(order) & values;
  }
  // [word.store] the caller's order.
  void store(std::uint32_t v, std::memory_order order) noexcept { word_.store(v, order); }
  std::uint32_t exchange(std::uint32_t value, std::memory_order order) noexcept {
    // [word.exchange] the caller's order.
    return word_.exchange(value, order) & values;
  }
  std::uint32_t fetch_add(std::uint32_t n, std::memory_order order) noexcept {
    // [word.add] the caller's order.
    return word_.fetch_add(n, order) & values;
  }
  std::uint32_t fetch_sub(std::uint32_t n, std::memory_order order) noexcept {
    // [word.sub] the caller's order.
    return word_.fetch_sub(n, order) & values;
  }

  void wait(std::uint32_t old) noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    while (same(old)) changed_.wait(lock);
  }
  bool wait_until(std::uint32_t old, std::chrono::steady_clock::time_point deadline) noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    while (same(old)) {
      if (changed_.wait_until(lock, deadline) == std::cv_status::timeout) return !same(old);
    }
    return true;
  }
  void wake_all() noexcept {
    const std::scoped_lock<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
  void publish_add(std::uint32_t n) noexcept {
    const std::scoped_lock<std::mutex> lock(mutex_);
    // [word.publish] acq_rel: release pairs with the load of whoever acts on the sum;
    // acquire chains earlier publishers.
    (void)word_.fetch_add(n, std::memory_order_acq_rel);
    changed_.notify_all();
  }
  void settle() noexcept { const std::scoped_lock<std::mutex> lock(mutex_); }

 private:
  static constexpr std::uint32_t values = (std::uint32_t{1} << 31) - 1;

  bool same(std::uint32_t old) const noexcept {
    // [word.compare] relaxed: under the mutex that the waker takes after its change.
    return (word_.load(std::memory_order_relaxed) & values) == old;
  }

  std::atomic<std::uint32_t> word_;
  told_mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace detail

/// The portable platform: the standard library and nothing else.
///
/// Threads:  everything from any thread. Blocking: condition variables.
/// Limits:   the slow paths are not async-signal-safe (they lock a mutex).
struct portable_platform {
  template <class T>
  using atomic = std::atomic<T>;
  using cpu_counter = sharded_counter<detail::portable_machine>;
  using mutex = detail::portable_mutex;
  using wait_word = detail::portable_wait_word;
  using thread_id = detail::thread_identity;
  using time_point = std::chrono::steady_clock::time_point;
  using duration = std::chrono::steady_clock::duration;

  static constexpr bool can_block = true;

  [[nodiscard]] static bool after_grace_period(grace_callback& first) noexcept {
    run_grace_callbacks(first);
    return true;
  }
  [[nodiscard]] static bool synchronize() noexcept { return true; }

  [[nodiscard]] static time_point now() noexcept { return std::chrono::steady_clock::now(); }
  [[nodiscard]] static duration milliseconds(std::int64_t n) noexcept {
    return std::chrono::milliseconds(n);
  }
  [[nodiscard]] static thread_id this_thread() noexcept { return detail::this_thread(); }
  static void misuse(const char* text) noexcept { detail::report_misuse(text); }
};

static_assert(platform<portable_platform>);

}  // namespace pmgate

#undef PMGATE_DETAIL_TSAN

#endif  // PMGATE_PLATFORM_PORTABLE_HPP
