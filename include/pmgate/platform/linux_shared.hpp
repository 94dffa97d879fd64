// SPDX-License-Identifier: MIT
//
// pmgate/platform/linux_shared.hpp - Linux, for gates in memory that processes share.
//
// Everything a gate consists of lies inside it and holds no address, so each process
// may map it where it likes. Counters are sharded over cache lines: a membarrier
// reaches one process only, and these need no grace period. Sleepers are found by the
// memory they sleep on, not by their process.
//
// One process constructs the gate; the others use the object they find there.
//
// Counterpart: none in the kernel, which has one address space.
#ifndef PMGATE_PLATFORM_LINUX_SHARED_HPP
#define PMGATE_PLATFORM_LINUX_SHARED_HPP

#if !defined(__linux__)
#error "pmgate/platform/linux_shared.hpp is for Linux only"
#endif

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include <sched.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <pmgate/platform/linux.hpp>

namespace pmgate {
namespace detail {

/// What the counters of a shared gate ask of Linux.
struct linux_shared_machine {
  template <class T>
  using atomic = std::atomic<T>;
  /// The CPU: numbers of threads are the same in every process.
  static std::size_t shard_hint() noexcept { return static_cast<std::size_t>(::sched_getcpu()); }
};

}  // namespace detail

/// The Linux platform for objects in memory that several processes map.
///
/// Threads:  everything from any thread of any process that maps the object.
/// Blocking: futex sleeps; grace periods do not sleep.
/// Limits:   a counter takes 512 bytes. A process that dies inside a gate, or under a lock
///           of one, is not noticed: a freeze waits for its exit, and who wants the lock
///           for its unlock, for ever. All processes are of one PID namespace, word size
///           and version of this library, and trust each other with the gate.
struct linux_shared_platform {
  template <class T>
  using atomic = std::atomic<T>;
  using cpu_counter =
      sharded_counter<detail::linux_shared_machine,
                      detail::embedded_shards<detail::linux_shared_machine, 8>>;
  using mutex = detail::basic_futex_mutex<0>;
  using wait_word = detail::basic_futex_word<0>;
  using thread_id = ::pid_t;  // of the thread; 0 is nobody
  using time_point = std::chrono::steady_clock::time_point;
  using duration = std::chrono::steady_clock::duration;

  static constexpr bool can_block = true;
  /// Objects hold no addresses, of data or of functions.
  static constexpr bool process_shared = true;

  /// Counters are exact as soon as they are closed: nothing to wait for.
  [[nodiscard]] static bool after_grace_period(grace_callback& first) noexcept {
    run_grace_callbacks(first);
    return true;
  }
  [[nodiscard]] static bool synchronize() noexcept { return true; }

  /// CLOCK_MONOTONIC, the same in every process.
  [[nodiscard]] static time_point now() noexcept { return std::chrono::steady_clock::now(); }
  [[nodiscard]] static duration milliseconds(std::int64_t n) noexcept {
    return std::chrono::milliseconds(n);
  }
  /// Asks the kernel each time: a number that was kept would be wrong after fork().
  [[nodiscard]] static thread_id this_thread() noexcept {
    return static_cast<thread_id>(::syscall(SYS_gettid));
  }
  static void misuse(const char* text) noexcept { detail::report_misuse(text); }

  static_assert(std::atomic<std::uint64_t>::is_always_lock_free &&
                    std::atomic<std::uintptr_t>::is_always_lock_free &&
                    std::atomic<std::uint32_t>::is_always_lock_free,
                "an atomic with a lock beside it works in one process only");
};

static_assert(platform<linux_shared_platform>);

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_LINUX_SHARED_HPP
