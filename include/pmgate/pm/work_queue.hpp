// SPDX-License-Identifier: MIT
//
// pmgate/pm/work_queue.hpp - functions to be called later, by threads of the
// user's, on a queue that can be frozen.
//
// The one rule to know: freezing drops and refuses nothing. It sets the number of
// items that may be active to zero: what is active runs to its end, what comes
// later is accepted, and parked in order until thaw(). Timers go on firing.
//
// Counterpart: struct work_struct, struct delayed_work, alloc_workqueue() and
// WQ_FREEZABLE of Linux (semantics only). The workers are the caller's threads.
#ifndef PMGATE_PM_WORK_QUEUE_HPP
#define PMGATE_PM_WORK_QUEUE_HPP

#include <cstdint>

#include <pmgate/detail/pm/work_schedule.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/work.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// What kind of queue; combine with |.
enum class work_queue_flags : std::uint8_t {
  none = 0,
  freezable = 1,  ///< takes part in system sleep; see freeze_begin()
};

[[nodiscard]] constexpr work_queue_flags operator|(work_queue_flags a,
                                                   work_queue_flags b) noexcept {
  return static_cast<work_queue_flags>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// True if `flags` has `flag`.
[[nodiscard]] constexpr bool has(work_queue_flags flags, work_queue_flags flag) noexcept {
  return (static_cast<unsigned>(flags) & static_cast<unsigned>(flag)) != 0;
}

template <platform Platform>
class basic_freezer;

/// Queue of work items: limited activity, delays, flush, freeze.
///
/// Lifetime: neither copyable nor movable. Destroy it with nothing pending and
///           after every run() has returned.
/// Threads:  every member from any thread, items included. An item never runs
///           twice at a time on the same queue.
/// Blocking: run(), cancel_sync(), flush() and drain() only. Parked items do not run
///           before thaw(), so whoever freezes must not wait for one.
/// Order:    items become active in the order in which they were queued or their
///           timers expired; items with equal times in the order of the calls.
/// Orders:   everything before queue(), also one that returns false because the item
///           is pending, happens-before the function; the function happens-before a
///           flush() or cancel_sync() that waited for it.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_work_queue {
 public:
  using work_type = basic_work<Platform>;
  using time_point = typename Platform::time_point;
  using duration = typename Platform::duration;

  /// max_active: items that may be active at a time (started, or next to be); 0: no
  /// limit. The name is for reports and is not copied.
  explicit basic_work_queue(const char* name, work_queue_flags flags = work_queue_flags::none,
                            unsigned max_active = 1) noexcept
      : name_(name), freezable_(has(flags, work_queue_flags::freezable)), items_(max_active) {}
  ~basic_work_queue();
  basic_work_queue(const basic_work_queue&) = delete;
  basic_work_queue& operator=(const basic_work_queue&) = delete;

  // -- queueing

  /// Queues the item; one that runs just now will run once more.
  ///
  /// Returns: false if it is pending already, here or elsewhere, or is being
  /// cancelled by cancel_sync(); nothing is changed then.
  /// Blocks: no.  Kernel: queue_work().
  bool queue(work_type& item) noexcept;

  /// Queues the item when the delay is over; at once if there is none.
  ///
  /// Returns and blocks as queue(); an item whose timer runs is pending.
  /// Cost: O(items with a timer).  Kernel: queue_delayed_work().
  bool queue_delayed(work_type& item, duration delay) noexcept;

  /// Sets the time of the item, whether it is pending or not.
  ///
  /// A pending item gives up its place, parked and ready ones too.
  /// Returns: true if it was pending here; pending elsewhere it is left alone.
  /// Blocks: no.  Kernel: mod_delayed_work().
  bool modify_delayed(work_type& item, duration delay) noexcept;

  // -- taking back and waiting

  /// Takes the item back if it is pending here; parked ones too.
  ///
  /// Returns: true if it was. Says nothing about an earlier run under way.
  /// Blocks: no.  Kernel: cancel_work(), cancel_delayed_work().
  bool cancel(work_type& item) noexcept;

  /// cancel(), and waits while the item runs; meanwhile it cannot be queued.
  ///
  /// Misuse: from the item's own function it reports, and does not wait.
  /// Returns: as cancel().  Kernel: cancel_work_sync(), cancel_delayed_work_sync().
  bool cancel_sync(work_type& item) noexcept;

  /// Waits for the latest queueing of the item to be over; a timer is cut short.
  ///
  /// Returns: ok, also if there is nothing to wait for or the item is taken back;
  /// deadlock from the item's own function, and for a parked item from the thread that
  /// froze the queue (the kernel hangs); again where the platform cannot block.
  /// Kernel: flush_work(), flush_delayed_work().
  status flush(work_type& item) noexcept;

  /// Waits for everything queued before the call; not for timers.
  ///
  /// Returns: as flush(item); deadlock from any item of this queue, and, with items
  /// parked, from the thread that froze it.
  /// Kernel: flush_workqueue().
  status flush() noexcept;

  /// flush() until nothing is queued, what items queue meanwhile included.
  ///
  /// Kernel: drain_workqueue(), which refuses items from elsewhere meanwhile.
  status drain() noexcept;

  // -- running

  /// Is a worker of this queue until stop(): runs items, sleeps in between.
  ///
  /// Several threads may be workers at once.
  /// Blocks: yes. Where the platform cannot block it runs what is due and reports.
  void run() noexcept;

  /// Runs, once each, the items that are active or can be by now.
  ///
  /// Items queued meanwhile wait for the next call. For event loops.
  /// Returns: true if anything ran.  Blocks: no, unless an item does.
  bool run_pending() noexcept;

  /// When run_pending() has something to do next on account of a timer.
  ///
  /// Returns: false if no timer runs; `when` is unchanged then.
  [[nodiscard]] bool next_timer(time_point& when) noexcept;

  /// Has every run() return after its present item, for good; takes nothing back.
  void stop() noexcept;

  // -- freezing; for the freezer

  /// From now on nothing becomes active; what is active goes on.
  ///
  /// No effect on a queue that is not freezable. A second call is reported.
  /// Blocks: no.  Kernel: freeze_workqueues_begin().
  void freeze_begin() noexcept;

  /// True while a frozen queue has active items, started or not; parked ones do not
  /// count. Never true for a queue that is not freezable.
  ///
  /// Blocks: no.  Kernel: freeze_workqueues_busy().
  [[nodiscard]] bool is_busy() noexcept;

  /// Lets parked items become active, in order; no effect if not frozen.
  ///
  /// Blocks: no.  Kernel: thaw_workqueues().
  void thaw() noexcept;

  // -- hibernation; for the freezer

  /// What is queued from now on is not in the image that this kernel makes of itself.
  void save_image() noexcept;
  /// The memory is that of the image again: takes back what was queued since.
  ///
  /// What was pending then and has been taken back since does not come back. If the
  /// queue is frozen, the caller is the one to thaw from now on.
  void put_back_image() noexcept;
  /// This kernel's memory is overwritten: takes back everything, and thaws.
  void vanish() noexcept;

  // -- queries

  [[nodiscard]] const char* name() const noexcept { return name_; }
  [[nodiscard]] bool is_freezable() const noexcept { return freezable_; }
  [[nodiscard]] bool is_frozen() noexcept;
  [[nodiscard]] bool is_stopped() noexcept {
    const scoped_lock guard(lock_);
    return stopped_;
  }

 private:
  friend class basic_freezer<Platform>;
  using schedule = detail::work_schedule<Platform>;
  static constexpr std::uint64_t no_limit = ~std::uint64_t{0};

  bool take_back(work_type& item) noexcept;
  bool run_one(std::uint64_t last_ticket) noexcept;
  status wait_for(typename schedule::waiter& entry) noexcept;
  bool is_frozen_by_caller() noexcept;
  void freeze_for(typename Platform::thread_id whoever_thaws) noexcept;

  const char* name_;
  const bool freezable_;
  bool stopped_ = false;
  std::uint32_t image_ = 0;  // number of the last image; 0: none
  typename Platform::thread_id frozen_by_{};
  schedule items_;
  typename Platform::mutex lock_;               // all above, and what is in items_
  basic_freezer<Platform>* freezer_ = nullptr;  // this and the next: the freezer's
  basic_work_queue* next_registered_ = nullptr;
};

using work_queue = basic_work_queue<default_platform>;

template <platform Platform>
basic_work_queue<Platform>::~basic_work_queue() {
  if (freezer_ != nullptr) Platform::misuse("work_queue destroyed while known to a freezer");
  const scoped_lock guard(lock_);
  time_point ignored{};
  if (items_.outstanding() != 0 || items_.next_timer(ignored)) {
    Platform::misuse("work_queue destroyed with work pending or running");
  }
}

}  // namespace pmgate::pm

#include <pmgate/detail/pm/work_queue_impl.hpp>

#endif  // PMGATE_PM_WORK_QUEUE_HPP
