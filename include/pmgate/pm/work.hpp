// SPDX-License-Identifier: MIT
//
// pmgate/pm/work.hpp - a function to be called later.
//
// The item lies in its owner and is linked through itself: queueing allocates
// nothing and cannot fail. The one rule to know: an item is pending from being
// queued until its function is about to be called, and pending at most once.
//
// Counterpart: struct work_struct and struct delayed_work of Linux (semantics only).
#ifndef PMGATE_PM_WORK_HPP
#define PMGATE_PM_WORK_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/platform.hpp>

namespace pmgate {
namespace detail {

template <platform Platform>
class work_schedule;

}  // namespace detail

namespace pm {

/// A function and the place it takes in a queue; also the delayed kind.
///
/// Lifetime: neither copyable nor movable; lives in its owner. May be destroyed
///           when it is not pending, also by its own function: the queue does not
///           touch it once the function has been called.
/// Threads:  see basic_work_queue; between two queues the caller orders their calls.
/// Misuse:   goes to Platform::misuse(); a pending item that is destroyed is lost.
template <platform Platform>
class basic_work {
 public:
  /// What is called; on a worker, outside every lock.
  using work_fn = void (*)(basic_work&) noexcept;

  explicit basic_work(work_fn run, void* context = nullptr) noexcept
      : run_(run), context_(context) {}
  ~basic_work() {
    if (is_pending()) Platform::misuse("work destroyed while pending");
  }
  basic_work(const basic_work&) = delete;
  basic_work& operator=(const basic_work&) = delete;

  [[nodiscard]] void* context() const noexcept { return context_; }

  /// True from being queued until its function is about to be called.
  ///
  /// Kernel: work_pending(), delayed_work_pending().
  [[nodiscard]] bool is_pending() const noexcept {
    // [pending.read] acquire: pairs with the store that ends it; a hint unless nobody queues it.
    return owner_.load(std::memory_order_acquire) != nobody;
  }

  /// Calls the function here and now; for whoever runs items.
  void call() noexcept { run_(*this); }

 private:
  friend class detail::work_schedule<Platform>;

  enum class place : std::uint8_t { nowhere, timer, parked, ready };
  static constexpr std::uintptr_t nobody = 0;

  work_fn run_;
  void* context_;
  typename Platform::template atomic<std::uintptr_t> owner_{nobody};  // a schedule's address
  // The rest belongs to the lock of the queue.
  detail::list_hook<basic_work> entry_;
  typename Platform::time_point due_{};
  std::uint64_t ticket_ = 0;    // which queueing this is
  std::uint32_t disabled_ = 0;  // cancel_sync() calls under way: no queueing
  std::uint32_t image_ = 0;     // images of the queue that were taken before
  place place_ = place::nowhere;
};

using work = basic_work<default_platform>;

}  // namespace pm
}  // namespace pmgate

#endif  // PMGATE_PM_WORK_HPP
