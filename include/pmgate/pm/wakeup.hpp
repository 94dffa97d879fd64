// SPDX-License-Identifier: MIT
//
// pmgate/pm/wakeup.hpp - a reason to stay awake, or to wake up again.
//
// The one rule to know: the counting kind is told once. pending() that says yes
// because of an event disarms it, so whoever asks has to remember the answer.
//
// Counterpart: pm_system_wakeup(), pm_wakeup_pending(), pm_save_wakeup_count() and
// wakeup sources of Linux (semantics only).
#ifndef PMGATE_PM_WAKEUP_HPP
#define PMGATE_PM_WAKEUP_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>

namespace pmgate::pm {

/// Wakeup: explicit aborts, and events that are counted once somebody asked for it.
///
/// Lifetime: neither copyable nor movable; outlives who asks it.
/// Threads:  every member from any thread.
/// Blocking: no.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_wakeup {
 public:
  basic_wakeup() noexcept = default;
  basic_wakeup(const basic_wakeup&) = delete;
  basic_wakeup& operator=(const basic_wakeup&) = delete;

  /// Aborts the transition under way; in force until clear() or cancel_abort().
  ///
  /// Kernel: pm_system_wakeup().
  void abort() noexcept;
  /// Takes back one abort(), if any is in force.  Kernel: pm_system_cancel_wakeup().
  void cancel_abort() noexcept;
  /// Forgets every abort(); the freezer does so when it starts with user tasks.
  ///
  /// Kernel: pm_wakeup_clear().
  void clear() noexcept;

  /// An event that is over at once.  Kernel: pm_wakeup_event().
  void signal() noexcept;
  /// An event goes on until end_event().  Kernel: pm_stay_awake(), pm_relax().
  void begin_event() noexcept;
  void end_event() noexcept;

  /// Events so far, those under way not included.  Kernel: /sys/power/wakeup_count.
  [[nodiscard]] std::uint64_t count() noexcept;
  /// From now on an event more than `known` is a reason to wake up.
  ///
  /// Returns: false, and arms nothing, if there was one already or one goes on.
  /// Kernel: pm_save_wakeup_count().
  [[nodiscard]] bool arm(std::uint64_t known) noexcept;

  /// Is there a reason to wake up? An abort() is told again and again; events, while
  /// armed, once: the answer disarms.
  ///
  /// Kernel: pm_wakeup_pending().
  [[nodiscard]] bool pending() noexcept;

 private:
  std::uint64_t counted_ = 0;  // this and what follows: under lock_
  std::uint64_t known_ = 0;
  std::uint32_t in_progress_ = 0;
  bool armed_ = false;
  typename Platform::template atomic<std::uint32_t> aborts_{0};
  typename Platform::mutex lock_;
};

using wakeup = basic_wakeup<default_platform>;

template <platform Platform>
void basic_wakeup<Platform>::abort() noexcept {
  // [abort.add] release: pairs with [pending.read]; who sees it sees why.
  (void)aborts_.fetch_add(1, std::memory_order_release);
}

template <platform Platform>
void basic_wakeup<Platform>::cancel_abort() noexcept {
  // [cancel.guess] relaxed: a guess; [cancel.take] decides.
  std::uint32_t seen = aborts_.load(std::memory_order_relaxed);
  // [cancel.take] relaxed: gives nobody anything to see.
  while (seen != 0 && !aborts_.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed,
                                                     std::memory_order_relaxed)) {
  }
}

template <platform Platform>
void basic_wakeup<Platform>::clear() noexcept {
  // [clear.store] relaxed: an abort() from before is forgotten, one from now on is not.
  aborts_.store(0, std::memory_order_relaxed);
}

template <platform Platform>
void basic_wakeup<Platform>::signal() noexcept {
  const scoped_lock guard(lock_);
  ++counted_;
}

template <platform Platform>
void basic_wakeup<Platform>::begin_event() noexcept {
  const scoped_lock guard(lock_);
  ++in_progress_;
}

template <platform Platform>
void basic_wakeup<Platform>::end_event() noexcept {
  const scoped_lock guard(lock_);
  if (in_progress_ == 0) {
    Platform::misuse("end_event() without begin_event()");
    return;
  }
  --in_progress_;
  ++counted_;
}

template <platform Platform>
std::uint64_t basic_wakeup<Platform>::count() noexcept {
  const scoped_lock guard(lock_);
  return counted_;
}

template <platform Platform>
bool basic_wakeup<Platform>::arm(std::uint64_t known) noexcept {
  const scoped_lock guard(lock_);
  armed_ = known == counted_ && in_progress_ == 0;
  if (armed_) known_ = known;
  return armed_;
}

template <platform Platform>
bool basic_wakeup<Platform>::pending() noexcept {
  {
    const scoped_lock guard(lock_);
    if (armed_ && (counted_ != known_ || in_progress_ != 0)) {
      armed_ = false;
      return true;
    }
  }
  // [pending.read] acquire: pairs with [abort.add].
  return aborts_.load(std::memory_order_acquire) != 0;
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_WAKEUP_HPP
