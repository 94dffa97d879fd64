// SPDX-License-Identifier: MIT
//
// pmgate/pm/freezer.hpp - stops tasks and work queues for a system transition.
//
// The one rule to know: freeze_processes() stops user tasks only. Kernel tasks and
// work queues go on until freeze_kernel_threads(), and a poller on a queue that was
// forgotten reaches a driver that is already torn down. Freeze first, quiesce after.
//
// Counterpart: kernel/power/process.c, kernel/freezer.c, WQ_FREEZABLE (semantics
// only). Not modelled: the out-of-memory killer, helpers in user mode, signals.
#ifndef PMGATE_PM_FREEZER_HPP
#define PMGATE_PM_FREEZER_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/pm/freezable_task.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// Freezer: two passes over tasks and queues, and their undoing.
///
/// Lifetime: neither copyable nor movable; outlives its tasks and queues.
/// Threads:  every member from any thread; one transition at a time. Whoever calls
///           freeze_processes() is exempt himself, and is the one to thaw.
/// Blocking: the two freeze calls only, for the time budget at most. Where the platform
///           cannot block they look once.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_freezer {
 public:
  using task = basic_freezable_task<Platform>;
  using queue = basic_work_queue<Platform>;
  using duration = typename Platform::duration;
  using time_point = typename Platform::time_point;
  /// Asked in each round: is there a reason to stay awake?
  using wakeup_fn = bool (*)(void* context) noexcept;

  /// How a pass went.
  struct report {
    unsigned tasks_refusing = 0;        ///< tasks that reached no freeze point
    bool wq_busy = false;               ///< some freezable queue had active items
    bool aborted = false;               ///< ended by a wakeup, not by the deadline
    const char* first_task = nullptr;   ///< name of the first task refusing
    const char* first_queue = nullptr;  ///< name of the first queue busy
    duration elapsed{};
  };

  basic_freezer() noexcept = default;
  ~basic_freezer();
  basic_freezer(const basic_freezer&) = delete;
  basic_freezer& operator=(const basic_freezer&) = delete;

  // -- who takes part

  /// Makes the queue known; one that comes while everything is frozen starts frozen.
  ///
  /// Precondition: known to no freezer. A queue that is not freezable stays untouched.
  void add(queue& entry) noexcept;
  /// Forgets the queue; it stays as it is, frozen or not.
  void remove(queue& entry) noexcept;

  /// The time a pass may take, 20 s at first; each pass has its own.
  ///
  /// Kernel: /sys/power/pm_freeze_timeout.
  void set_timeout(duration timeout) noexcept;

  /// Has passes end when `pending` says so; null: abort() only.
  ///
  /// Precondition: set before the freezer is used. Called outside every lock.
  /// Kernel: pm_wakeup_pending().
  void set_wakeup(wakeup_fn pending, void* context) noexcept;

  /// Ends the pass under way, and those after it up to the next freeze_processes().
  ///
  /// Blocks: no.  Kernel: pm_system_wakeup().
  void abort() noexcept;

  // -- the transition

  /// Stops the user tasks. Forgets an earlier abort(). Queues go on.
  ///
  /// Returns: ok; busy if the budget ran out or on a wakeup: everything is thawed.
  /// That nothing is left wins over the deadline, and the deadline over a wakeup.
  /// Blocks: in rounds of 1 ms, doubling to 8 ms.  Kernel: freeze_processes().
  [[nodiscard]] status freeze_processes() noexcept;
  [[nodiscard]] status freeze_processes(report& result) noexcept;

  /// Stops the kernel tasks, and the work queues as freeze_begin() does.
  ///
  /// Returns: ok; busy as above, but then only kernel tasks and queues are
  /// thawed: user tasks stay frozen until thaw_processes().
  /// Blocks: as freeze_processes().  Kernel: freeze_kernel_threads().
  [[nodiscard]] status freeze_kernel_threads() noexcept;
  [[nodiscard]] status freeze_kernel_threads(report& result) noexcept;

  /// Undoes freeze_kernel_threads().  Blocks: no.  Kernel: thaw_kernel_threads().
  void thaw_kernel_threads() noexcept;

  /// Undoes everything; no effect if nothing is frozen.
  ///
  /// Precondition: the thread that froze. (Kernel: warns, and thaws all the same.)
  /// Blocks: no.  Kernel: thaw_processes().
  void thaw_processes() noexcept;

  // -- queries

  /// True from freeze_processes() to its undoing.  Kernel: pm_freezing.
  [[nodiscard]] bool freezes_user_tasks() const noexcept { return has_mode(user_mode); }
  /// True from freeze_kernel_threads() to its undoing.  Kernel: pm_nosig_freezing.
  [[nodiscard]] bool freezes_everything() const noexcept { return has_mode(full_mode); }

 private:
  friend class basic_freezable_task<Platform>;
  static constexpr std::uint32_t user_mode = 1;
  static constexpr std::uint32_t full_mode = 2;

  bool has_mode(std::uint32_t mode) const noexcept {
    // [mode.read] acquire: pairs with [mode.set]; who acts on it looks again under the lock.
    return (mode_.load(std::memory_order_acquire) & mode) != 0;
  }
  void set_mode(std::uint32_t set, std::uint32_t clear) noexcept;
  bool must_freeze(const task& entry) const noexcept;
  bool refrigerate(task& entry, bool until_stopped) noexcept;
  void wake_tasks() noexcept;
  void thaw_queues() noexcept;
  bool is_frozen_now(report& result, bool with_queues) noexcept;
  bool wakeup_pending() noexcept;
  bool poll(report& result, bool with_queues) noexcept;
  static void sleep_until(time_point when) noexcept;

  typename Platform::template atomic<std::uint32_t> mode_{0};     // written under lock_
  typename Platform::template atomic<std::uint32_t> aborted_{0};  // a flag
  duration timeout_ = Platform::milliseconds(20000);
  wakeup_fn wakeup_ = nullptr;
  void* wakeup_context_ = nullptr;
  typename Platform::thread_id freezing_thread_{};  // this and the lists: under lock_
  task* tasks_ = nullptr;
  queue* queues_ = nullptr;
  typename Platform::wait_word thaws_{0};  // counts reasons to leave the refrigerator
  typename Platform::mutex lock_;          // taken before a queue's
};

using freezer = basic_freezer<default_platform>;

template <platform Platform>
basic_freezer<Platform>::~basic_freezer() {
  if (tasks_ != nullptr || queues_ != nullptr) {
    Platform::misuse("freezer destroyed while it knows tasks or queues");
  }
}

// -- who takes part

template <platform Platform>
void basic_freezer<Platform>::add(queue& entry) noexcept {
  const scoped_lock guard(lock_);
  if (entry.freezer_ != nullptr) {
    Platform::misuse("work_queue added to a freezer twice");
    return;
  }
  entry.freezer_ = this;
  entry.next_registered_ = queues_;
  queues_ = &entry;
  if (has_mode(full_mode)) entry.freeze_begin();
}

template <platform Platform>
void basic_freezer<Platform>::remove(queue& entry) noexcept {
  const scoped_lock guard(lock_);
  if (entry.freezer_ != this) {
    Platform::misuse("work_queue removed from a freezer that does not know it");
    return;
  }
  queue** link = &queues_;
  while (*link != &entry) link = &(*link)->next_registered_;
  *link = entry.next_registered_;
  entry.freezer_ = nullptr;
}

template <platform Platform>
void basic_freezer<Platform>::set_timeout(duration timeout) noexcept {
  const scoped_lock guard(lock_);
  timeout_ = timeout;
}

template <platform Platform>
void basic_freezer<Platform>::set_wakeup(wakeup_fn pending, void* context) noexcept {
  wakeup_context_ = context;
  wakeup_ = pending;
}

template <platform Platform>
void basic_freezer<Platform>::abort() noexcept {
  // [abort.set] release: pairs with [abort.read].
  aborted_.store(1, std::memory_order_release);
}

template <platform Platform>
bool basic_freezer<Platform>::wakeup_pending() noexcept {
  // [abort.read] acquire: pairs with [abort.set].
  if (aborted_.load(std::memory_order_acquire) != 0) return true;
  return wakeup_ != nullptr && wakeup_(wakeup_context_);
}

// -- the transition

template <platform Platform>
void basic_freezer<Platform>::set_mode(std::uint32_t set, std::uint32_t clear) noexcept {
  // [mode.old] relaxed: the lock orders it.
  const std::uint32_t old = mode_.load(std::memory_order_relaxed);
  // [mode.set] release: pairs with [mode.read].
  mode_.store((old | set) & ~clear, std::memory_order_release);
}

template <platform Platform>
bool basic_freezer<Platform>::must_freeze(const task& entry) const noexcept {
  if (entry.nofreeze_) return false;
  const bool bound = !(entry.thread_ == typename Platform::thread_id{});
  if (bound && entry.thread_ == freezing_thread_) return false;
  return has_mode(full_mode) || (has_mode(user_mode) && entry.kind_ == task_kind::user);
}

template <platform Platform>
bool basic_freezer<Platform>::refrigerate(task& entry, bool until_stopped) noexcept {
  bool froze = false;
  for (;;) {
    std::uint32_t seen = 0;
    {
      const scoped_lock guard(lock_);
      entry.state_ = task::state::running;
      if (freezing_thread_ == Platform::this_thread()) return froze;
      if (!must_freeze(entry) || (until_stopped && entry.stop_)) return froze;
      if constexpr (!Platform::can_block) {
        Platform::misuse("a freeze point would wait for ever: there is one thread only");
        return froze;
      }
      entry.state_ = task::state::frozen;
      // [cold.seen] relaxed: changes under the lock, which we hold.
      seen = thaws_.load(std::memory_order_relaxed);
    }
    froze = true;
    thaws_.wait(seen);
  }
}

template <platform Platform>
void basic_freezer<Platform>::wake_tasks() noexcept {
  // [cold.leave] relaxed: sleepers look again under the lock, which we hold.
  (void)thaws_.fetch_add(1, std::memory_order_relaxed);
  thaws_.wake_all();
}

template <platform Platform>
void basic_freezer<Platform>::thaw_queues() noexcept {
  for (queue* entry = queues_; entry != nullptr; entry = entry->next_registered_) entry->thaw();
}

/// One round: counts who is not frozen yet, and takes sleepers as frozen.
template <platform Platform>
bool basic_freezer<Platform>::is_frozen_now(report& result, bool with_queues) noexcept {
  const scoped_lock guard(lock_);
  result.tasks_refusing = 0;
  result.first_task = nullptr;
  result.wq_busy = false;
  result.first_queue = nullptr;
  for (task* entry = tasks_; entry != nullptr; entry = entry->next_) {
    if (!must_freeze(*entry)) continue;
    if (entry->state_ == task::state::sleeping) entry->state_ = task::state::frozen;
    if (entry->state_ == task::state::frozen) continue;
    if (result.tasks_refusing++ == 0) result.first_task = entry->name_;
  }
  for (queue* entry = with_queues ? queues_ : nullptr; entry != nullptr;
       entry = entry->next_registered_) {
    if (!entry->is_busy()) continue;
    if (!result.wq_busy) result.first_queue = entry->name_;
    result.wq_busy = true;
  }
  return result.tasks_refusing == 0 && !result.wq_busy;
}

/// Nothing left, deadline, wakeup: in this order, so that a late success is one.
template <platform Platform>
bool basic_freezer<Platform>::poll(report& result, bool with_queues) noexcept {
  const time_point begin = Platform::now();
  const time_point deadline = begin + timeout_;
  const duration longest = Platform::milliseconds(8);
  duration pause = Platform::milliseconds(1);
  bool done = false;
  for (;;) {
    done = is_frozen_now(result, with_queues);
    if (done || !Platform::can_block || deadline < Platform::now()) break;
    result.aborted = wakeup_pending();
    if (result.aborted) break;
    sleep_until(Platform::now() + pause);
    if (pause < longest) pause = pause + pause;
  }
  result.elapsed = Platform::now() - begin;
  return done;
}

template <platform Platform>
void basic_freezer<Platform>::sleep_until(time_point when) noexcept {
  typename Platform::wait_word nobody_changes_it{0};
  while (Platform::now() < when) (void)nobody_changes_it.wait_until(0, when);
}

template <platform Platform>
status basic_freezer<Platform>::freeze_processes(report& result) noexcept {
  result = report{};
  // [abort.clear] relaxed: an abort() from before is forgotten, one from now on is not.
  aborted_.store(0, std::memory_order_relaxed);
  {
    const scoped_lock guard(lock_);
    freezing_thread_ = Platform::this_thread();
    set_mode(user_mode, 0);
  }
  if (poll(result, false)) return status::ok;
  thaw_processes();
  return status::busy;
}

template <platform Platform>
status basic_freezer<Platform>::freeze_processes() noexcept {
  report ignored;
  return freeze_processes(ignored);
}

template <platform Platform>
status basic_freezer<Platform>::freeze_kernel_threads(report& result) noexcept {
  result = report{};
  {
    const scoped_lock guard(lock_);
    freezing_thread_ = Platform::this_thread();
    set_mode(full_mode, 0);
    for (queue* entry = queues_; entry != nullptr; entry = entry->next_registered_) {
      entry->freeze_begin();
    }
  }
  if (poll(result, true)) return status::ok;
  thaw_kernel_threads();
  return status::busy;
}

template <platform Platform>
status basic_freezer<Platform>::freeze_kernel_threads() noexcept {
  report ignored;
  return freeze_kernel_threads(ignored);
}

template <platform Platform>
void basic_freezer<Platform>::thaw_kernel_threads() noexcept {
  const scoped_lock guard(lock_);
  set_mode(0, full_mode);
  if (!has_mode(user_mode)) freezing_thread_ = typename Platform::thread_id{};
  thaw_queues();
  wake_tasks();
}

template <platform Platform>
void basic_freezer<Platform>::thaw_processes() noexcept {
  const scoped_lock guard(lock_);
  if (!has_mode(user_mode | full_mode)) return;
  if (!(freezing_thread_ == Platform::this_thread())) {
    Platform::misuse("thaw_processes() by a thread that did not freeze");
    return;
  }
  set_mode(0, user_mode | full_mode);
  freezing_thread_ = typename Platform::thread_id{};
  thaw_queues();
  wake_tasks();
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_FREEZER_HPP
