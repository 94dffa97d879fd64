// SPDX-License-Identifier: MIT
//
// pmgate/detail/scsi/busy_countdown.hpp - how much is under way, and how long to leave
// somebody in peace who said "busy".
//
// After a refusal nothing more is sent while something is under way; then each
// attempt counts down, and the one that reaches zero goes through. Any completion
// ends the countdown.
//
// Counterpart: device_busy/device_blocked and their like for targets and hosts.
#ifndef PMGATE_DETAIL_SCSI_BUSY_COUNTDOWN_HPP
#define PMGATE_DETAIL_SCSI_BUSY_COUNTDOWN_HPP

#include <atomic>

#include <pmgate/platform/concept.hpp>

namespace pmgate::scsi::detail {

/// A count with a limit, and a countdown.
///
/// Threads:  every member from any thread. Two that try at once may both be
///           refused where one alone would not; whoever refuses tries again later.
/// Blocking: no.
template <platform Platform>
class busy_countdown {
 public:
  /// What try_take() says.
  enum class answer : unsigned char {
    taken,
    wait,   ///< something under way will end
    later,  ///< nothing is under way: ask again after a while
  };

  /// limit: of what may be under way; 0: none. after_busy: where the countdown begins.
  constexpr busy_countdown(int limit, int after_busy) noexcept
      : limit_(limit), after_busy_(after_busy) {}

  /// Counts one in, unless there is no room or the countdown is not over. Who is refused was
  /// counted for a moment: whoever saw that is to be told, as after give().
  [[nodiscard]] answer try_take() noexcept {
    // [take.count] seq_cst: store-load with [held.read]; either who begins a recovery counts
    // this one, or this one sees the recovery. What is counted the queue's lock orders.
    const int before = busy_.fetch_add(1, std::memory_order_seq_cst);
    if ((limit_ == 0 || before < limit_) && (blocked() == 0 || (before == 0 && count_down()))) {
      return answer::taken;
    }
    give();
    return before == 0 ? answer::later : answer::wait;
  }
  /// Counts one out.
  void give() noexcept {
    // [give.count] seq_cst: store-load with [held.read]; either who waits in a recovery to
    // have the host for itself sees this, or the host, which looks next, sees the recovery and
    // tells him.
    (void)busy_.fetch_sub(1, std::memory_order_seq_cst);
  }

  /// Somebody said "busy".
  void start_countdown() noexcept {
    // [down.start] relaxed: a hint; too early or too late is an attempt more or less.
    blocked_.store(after_busy_, std::memory_order_relaxed);
  }
  void end_countdown() noexcept {
    // [down.end] relaxed: as [down.start]. Looks first: this is on the fast path.
    if (blocked() != 0) blocked_.store(0, std::memory_order_relaxed);
  }

  [[nodiscard]] int busy() const noexcept {
    // [busy.read] seq_cst: either it sees what [take.count] and [give.count] have counted,
    // or those see the recovery; to others a hint.
    return busy_.load(std::memory_order_seq_cst);
  }
  [[nodiscard]] int blocked() const noexcept {
    // [down.read] relaxed: as [down.start].
    return blocked_.load(std::memory_order_relaxed);
  }

 private:
  /// One attempt; true if it was the last that is refused, or there is none left.
  bool count_down() noexcept {
    int seen = blocked();
    // [down.step] relaxed: as [down.start].
    while (seen > 0 && !blocked_.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed,
                                                       std::memory_order_relaxed)) {
    }
    return seen <= 1;
  }

  const int limit_;
  const int after_busy_;
  typename Platform::template atomic<int> busy_{0};
  typename Platform::template atomic<int> blocked_{0};
};

}  // namespace pmgate::scsi::detail

#endif  // PMGATE_DETAIL_SCSI_BUSY_COUNTDOWN_HPP
