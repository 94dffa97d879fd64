// SPDX-License-Identifier: MIT
//
// pmgate/platform/linux.hpp - Linux: rseq, membarrier, futex.
//
// Entering and leaving a gate is an add to a word of this CPU; the grace period
// is one membarrier and runs its callbacks before it returns, so a kill is
// confirmed when it returns. Where rseq or membarrier is missing or refused,
// the sharded engine takes over at run time, behind the same types.
//
// Counterpart: RCU and percpu memory, as far as percpu_ref uses them.
#ifndef PMGATE_PLATFORM_LINUX_HPP
#define PMGATE_PLATFORM_LINUX_HPP

#if !defined(__linux__)
#error "pmgate/platform/linux.hpp is for Linux only"
#endif

#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <pmgate/detail/hosted_misuse.hpp>
#include <pmgate/detail/hosted_thread.hpp>
#include <pmgate/platform/concept.hpp>
#include <pmgate/platform/rseq_counter.hpp>

namespace pmgate {
namespace detail {

/// What this process may use, found out once.
struct linux_support {
  bool restartable;     ///< rseq of glibc and the membarrier that goes with it
  std::uint32_t cpus;   ///< CPU numbers are below it, as far as is known

  static const linux_support& get() noexcept {
    static const linux_support found{probe(), count_cpus()};
    return found;
  }

 private:
  static bool probe() noexcept {
#if PMGATE_DETAIL_RSEQ
    if (__rseq_size == 0) return false;  // refused, or GLIBC_TUNABLES says so
    constexpr int wanted = MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ;
    const long offered = ::syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    if (offered < 0 || (offered & wanted) == 0) return false;
    if (::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) != 0) {
      return false;
    }
    return ::syscall(SYS_membarrier, wanted, 0, 0) == 0;
#else
    return false;
#endif
  }
  static std::uint32_t count_cpus() noexcept {
    const long configured = ::sysconf(_SC_NPROCESSORS_CONF);
    return configured < 1 ? 1 : static_cast<std::uint32_t>(configured);
  }
};

/// What the counter engines ask of Linux.
struct linux_machine {
  template <class T>
  using atomic = std::atomic<T>;
  static bool restartable() noexcept { return linux_support::get().restartable; }
  static std::uint32_t cpu_limit() noexcept { return linux_support::get().cpus; }
  static std::size_t shard_count() noexcept {
    return std::bit_ceil(std::size_t{linux_support::get().cpus});
  }
  static std::size_t shard_hint() noexcept { return own_thread_number(); }
};

/// A 31-bit futex word; the top bit says that somebody sleeps.
///
/// Changes keep the bit, so the last change before wake_all() tells whether a
/// system call is needed: waking nobody costs one atomic operation. `Scope` is
/// FUTEX_PRIVATE_FLAG, or 0 if sleepers and wakers may be of different processes.
template <int Scope>
class basic_futex_word {
 public:
  explicit constexpr basic_futex_word(std::uint32_t value = 0) noexcept : word_(value & values) {}

  [[nodiscard]] std::uint32_t load(std::memory_order order) const noexcept {
    // [futex.load] the caller's order.
    return word_.load(order) & values;
  }
  void store(std::uint32_t value, std::memory_order order) noexcept { (void)exchange(value, order); }
  std::uint32_t exchange(std::uint32_t value, std::memory_order order) noexcept {
    return update(order, [value](std::uint32_t) { return value; });
  }
  std::uint32_t fetch_add(std::uint32_t n, std::memory_order order) noexcept {
    return update(order, [n](std::uint32_t old) { return old + n; });
  }
  std::uint32_t fetch_sub(std::uint32_t n, std::memory_order order) noexcept {
    return update(order, [n](std::uint32_t old) { return old - n; });
  }

  void wait(std::uint32_t old) noexcept { (void)sleep(old, nullptr); }
  bool wait_until(std::uint32_t old, std::chrono::steady_clock::time_point deadline) noexcept {
    const auto since = deadline.time_since_epoch();
    if (since.count() <= 0) return load(std::memory_order_relaxed) != old;
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
    const timespec until{static_cast<time_t>(seconds.count()),
                         static_cast<long>(std::chrono::nanoseconds(since - seconds).count())};
    return sleep(old, &until);
  }
  void wake_all() noexcept {
    // [futex.wake] relaxed: the change that is announced carries the order; the bit
    // was set by [futex.bit] on the same word, so it cannot be missed.
    if ((word_.fetch_and(values, std::memory_order_relaxed) & sleeping) != 0) wake(&word_);
  }
  /// Does not touch the word after the change: waking needs its address only.
  void publish_add(std::uint32_t n) noexcept {
    // [futex.look] relaxed: a guess; [futex.publish] decides.
    std::uint32_t seen = word_.load(std::memory_order_relaxed);
    // [futex.publish] acq_rel: release pairs with the load of whoever acts on the sum;
    // acquire chains earlier publishers. Clears the bit of the sleepers it wakes.
    while (!word_.compare_exchange_weak(seen, (seen + n) & values, std::memory_order_acq_rel,
                                        std::memory_order_relaxed)) {
    }
    if ((seen & sleeping) != 0) wake(&word_);
  }
  void settle() noexcept {}

 private:
  static constexpr std::uint32_t sleeping = std::uint32_t{1} << 31;
  static constexpr std::uint32_t values = sleeping - 1;

  template <class Change>
  std::uint32_t update(std::memory_order order, Change change) noexcept {
    // [futex.guess] relaxed: a guess; [futex.update] decides.
    std::uint32_t seen = word_.load(std::memory_order_relaxed);
    // [futex.update] the caller's order; keeps the bit of the sleepers.
    while (!word_.compare_exchange_weak(seen, (change(seen & values) & values) | (seen & sleeping),
                                        order, std::memory_order_relaxed)) {
    }
    return seen & values;
  }

  bool sleep(std::uint32_t old, const timespec* until) noexcept {
    std::uint32_t expected = old;
    // [futex.bit] relaxed: only the bit is told; whoever wakes up loads again. The
    // kernel compares the whole word, so a change in between is noticed.
    if (!word_.compare_exchange_strong(expected, old | sleeping, std::memory_order_relaxed,
                                       std::memory_order_relaxed) &&
        expected != (old | sleeping)) {
      return true;
    }
    const long slept = ::syscall(SYS_futex, &word_, FUTEX_WAIT_BITSET | Scope,
                                 old | sleeping, until, nullptr, FUTEX_BITSET_MATCH_ANY);
    return !(slept != 0 && errno == ETIMEDOUT);
  }
  static void wake(const void* address) noexcept {
    (void)::syscall(SYS_futex, address, FUTEX_WAKE | Scope, 0x7fffffff, nullptr,
                    nullptr, 0);
  }

  std::atomic<std::uint32_t> word_;
  static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t),
                "the kernel looks at the word itself");
};

/// A mutex of four bytes: free, held, or held with sleepers. `Scope` as above.
template <int Scope>
class basic_futex_mutex {
 public:
  void lock() noexcept {
    std::uint32_t seen = free;
    // [mutex.take] acquire: pairs with [mutex.release].
    if (word_.compare_exchange_strong(seen, held, std::memory_order_acquire,
                                      std::memory_order_relaxed)) [[likely]] {
      return;
    }
    // [mutex.contend] acquire: as [mutex.take]; says that somebody sleeps.
    while (word_.exchange(contended, std::memory_order_acquire) != free) {
      (void)::syscall(SYS_futex, &word_, FUTEX_WAIT | Scope, contended, nullptr,
                      nullptr, 0);
    }
  }
  void unlock() noexcept {
    // [mutex.release] release: pairs with [mutex.take] and [mutex.contend]. Nothing of
    // the mutex is touched afterwards: waking needs its address only.
    if (word_.exchange(free, std::memory_order_release) == contended) {
      (void)::syscall(SYS_futex, &word_, FUTEX_WAKE | Scope, 1, nullptr, nullptr, 0);
    }
  }

 private:
  static constexpr std::uint32_t free = 0;
  static constexpr std::uint32_t held = 1;
  static constexpr std::uint32_t contended = 2;
  std::atomic<std::uint32_t> word_{free};
};

using futex_word = basic_futex_word<FUTEX_PRIVATE_FLAG>;
using futex_mutex = basic_futex_mutex<FUTEX_PRIVATE_FLAG>;

}  // namespace detail

/// The Linux platform: CPU-local counters, one membarrier as grace period.
///
/// Threads:  everything from any thread; no registration of threads.
/// Blocking: futex sleeps; grace periods do not sleep.
/// Limits:   after fork() the child may go on using its copies of gates that
///           no other thread was using; gates in memory shared with another process
///           want linux_shared_platform (membarrier reaches one process only).
struct linux_platform {
  template <class T>
  using atomic = std::atomic<T>;
  using cpu_counter = rseq_counter<detail::linux_machine>;
  using mutex = detail::futex_mutex;
  using wait_word = detail::futex_word;
  using thread_id = detail::thread_identity;
  using time_point = std::chrono::steady_clock::time_point;
  using duration = std::chrono::steady_clock::duration;

  static constexpr bool can_block = true;

  /// Aborts the restartable sequences of all threads of this process, and makes
  /// their earlier stores visible. False: the kernel refused.
  [[nodiscard]] static bool heavy_fence() noexcept {
#if PMGATE_DETAIL_RSEQ
    if (!detail::linux_support::get().restartable) return true;  // nobody runs a sequence
    return ::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0;
#else
    return true;
#endif
  }
  [[nodiscard]] static bool after_grace_period(grace_callback& first) noexcept {
    if (!heavy_fence()) return false;
    run_grace_callbacks(first);
    return true;
  }
  [[nodiscard]] static bool synchronize() noexcept { return heavy_fence(); }

  [[nodiscard]] static time_point now() noexcept { return std::chrono::steady_clock::now(); }
  [[nodiscard]] static duration milliseconds(std::int64_t n) noexcept {
    return std::chrono::milliseconds(n);
  }
  [[nodiscard]] static thread_id this_thread() noexcept { return detail::this_thread(); }
  static void misuse(const char* text) noexcept { detail::report_misuse(text); }
};

static_assert(platform<linux_platform>);

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_LINUX_HPP
