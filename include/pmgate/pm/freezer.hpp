// SPDX-License-Identifier: MIT
//
// pmgate/pm/freezer.hpp - stops tasks and work queues for a system transition.
//
// The one rule to know: freeze_processes() stops user tasks only. Kernel tasks and
// work queues go on until freeze_kernel_threads(), and a poller on a queue that was
// forgotten reaches a driver that is already torn down. Freeze first, quiesce after.
//
// Counterpart: kernel/power/process.c, kernel/freezer.c, WQ_FREEZABLE (semantics
// only). Not modelled: signals. The out-of-memory killer and the helpers in user mode
// are the caller's, as functions.
#ifndef PMGATE_PM_FREEZER_HPP
#define PMGATE_PM_FREEZER_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/pm/freezable_task.hpp>
#include <pmgate/pm/user_step.hpp>
#include <pmgate/pm/wakeup.hpp>
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
  using user_step = basic_user_step<Platform>;
  using duration = typename Platform::duration;
  using time_point = typename Platform::time_point;
  using wakeup = basic_wakeup<Platform>;

  /// How a pass went.
  struct report {
    static constexpr unsigned names = 8;  ///< how many stragglers are named

    bool aborted = false;             ///< ended by a wakeup, not by the deadline
    unsigned tasks_refusing = 0;      ///< tasks that reached no freeze point
    unsigned queues_busy = 0;         ///< freezable queues with active items
    const char* tasks[names] = {};    ///< the first of them
    const char* queues[names] = {};   ///< the first of them
    bool first_step_refused = false;  ///< set_first_step()
    bool last_step_refused = false;   ///< set_last_step()
    duration elapsed{};

    /// Kernel: wq_busy.
    [[nodiscard]] bool wq_busy() const noexcept { return queues_busy != 0; }
  };

  /// The wakeup is asked in each round of a pass; null: one of its own.
  explicit basic_freezer(wakeup* shared = nullptr) noexcept
      : wakeup_(shared != nullptr ? *shared : own_wakeup_) {}
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

  /// What is stopped before the first user task is asked, such as whatever starts
  /// new ones. Called outside every lock.
  ///
  /// Precondition: set before the freezer is used.  Kernel: usermodehelper_disable().
  void set_first_step(const user_step& step) noexcept { first_step_.set(step); }
  /// What is stopped when the last user task is, such as the killer of tasks when memory
  /// runs out; put on again before the first step is.
  ///
  /// Precondition: as set_first_step().  Kernel: oom_killer_disable().
  void set_last_step(const user_step& step) noexcept { last_step_.set(step); }

  /// Ends the pass under way, and those after it up to the next freeze_processes().
  ///
  /// Blocks: no.  Kernel: pm_system_wakeup().
  void abort() noexcept { wakeup_.abort(); }

  // -- the transition

  /// Stops the user tasks. Forgets an earlier abort(). Queues go on.
  ///
  /// Precondition: nothing is frozen, or by this thread. (Kernel: not looked at.)
  /// Returns: ok; busy if the budget ran out, a step refused, or on a wakeup: everything
  /// is thawed; busy, with no effect, if another thread has frozen or is about to.
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

  /// Undoes freeze_kernel_threads(); no effect without.
  ///
  /// Blocks: no.  Kernel: thaw_kernel_threads().
  void thaw_kernel_threads() noexcept;

  /// Undoes everything; no effect if nothing is frozen.
  ///
  /// Precondition: the thread that froze. (Kernel: warns, and thaws all the same.)
  /// Blocks: no.  Kernel: thaw_processes().
  void thaw_processes() noexcept;

  // -- hibernation

  /// The known queues as the snapshot of this kernel has them; tasks are where they are.
  void save_image() noexcept;
  /// As basic_work_queue::put_back_image(). The caller is the one to thaw.
  ///
  /// Precondition: everything is frozen.
  void put_back_image() noexcept;
  /// This kernel is overwritten: what its queues hold is gone. Its tasks go on, for there
  /// is no other way to end them: ask them to stop before.
  void vanish() noexcept;

  // -- queries

  /// True from freeze_processes() to its undoing.  Kernel: pm_freezing.
  [[nodiscard]] bool freezes_user_tasks() const noexcept { return has_mode(user_mode); }
  /// True from freeze_kernel_threads() to its undoing.  Kernel: pm_nosig_freezing.
  [[nodiscard]] bool freezes_everything() const noexcept { return has_mode(full_mode); }
  /// How the last pass over tasks of that kind went, whoever called it: suspend(), say. The
  /// names are those that the tasks and queues were given.
  [[nodiscard]] report last_report(task_kind pass) noexcept;

 private:
  friend class basic_freezable_task<Platform>;
  static constexpr std::uint32_t user_mode = 1;
  static constexpr std::uint32_t full_mode = 2;

  bool has_mode(std::uint32_t mode) const noexcept {
    // [mode.read] acquire: pairs with [mode.set]; who acts on it looks again under the lock.
    return (mode_.load(std::memory_order_acquire) & mode) != 0;
  }
  void set_mode(std::uint32_t set, std::uint32_t clear) noexcept;
  bool begin_to_freeze() noexcept;
  bool stop_user_tasks(report& result) noexcept;
  bool must_freeze(const task& entry) const noexcept;
  bool refrigerate(task& entry, bool until_stopped) noexcept;
  void wake_tasks() noexcept;
  void thaw_queues() noexcept;
  bool is_frozen_now(report& result, bool with_queues) noexcept;
  bool poll(report& result, bool with_queues) noexcept;
  void keep(const report& result, task_kind pass) noexcept;
  duration budget() noexcept;
  void thaw_all() noexcept;
  static void sleep_until(time_point when) noexcept;

  wakeup own_wakeup_;
  wakeup& wakeup_;
  detail::taken_step<Platform> first_step_;  // this and the next: the freezing thread's
  detail::taken_step<Platform> last_step_;
  typename Platform::template atomic<std::uint32_t> mode_{0};  // written under lock_
  // Under lock_:
  duration timeout_ = Platform::milliseconds(20000);
  report last_[2];
  typename Platform::thread_id freezing_thread_{};
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
  if (has_mode(full_mode)) entry.freeze_for(freezing_thread_);
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
  for (task* entry = tasks_; entry != nullptr; entry = entry->next_) {
    if (entry->state_ == task::state::frozen_asleep && !must_freeze(*entry)) {
      entry->state_ = task::state::sleeping;
    }
  }
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
  result = report{};
  for (task* entry = tasks_; entry != nullptr; entry = entry->next_) {
    if (!must_freeze(*entry)) continue;
    if (entry->state_ == task::state::sleeping) entry->state_ = task::state::frozen_asleep;
    if (entry->state_ != task::state::running) continue;
    if (result.tasks_refusing < report::names) result.tasks[result.tasks_refusing] = entry->name_;
    ++result.tasks_refusing;
  }
  for (queue* entry = with_queues ? queues_ : nullptr; entry != nullptr;
       entry = entry->next_registered_) {
    if (!entry->is_busy()) continue;
    if (result.queues_busy < report::names) result.queues[result.queues_busy] = entry->name_;
    ++result.queues_busy;
  }
  return result.tasks_refusing == 0 && result.queues_busy == 0;
}

/// Nothing left, deadline, wakeup: in this order, so that a late success is one.
template <platform Platform>
bool basic_freezer<Platform>::poll(report& result, bool with_queues) noexcept {
  const time_point begin = Platform::now();
  const time_point deadline = begin + budget();
  const duration longest = Platform::milliseconds(8);
  duration pause = Platform::milliseconds(1);
  bool done = false;
  for (;;) {
    done = is_frozen_now(result, with_queues);
    if (done || !Platform::can_block || deadline < Platform::now()) break;
    result.aborted = wakeup_.pending();
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

/// Makes the caller the one to thaw, unless somebody else is.
template <platform Platform>
bool basic_freezer<Platform>::begin_to_freeze() noexcept {
  const scoped_lock guard(lock_);
  const bool nobody = freezing_thread_ == typename Platform::thread_id{};
  if (nobody) freezing_thread_ = Platform::this_thread();
  return freezing_thread_ == Platform::this_thread();
}

template <platform Platform>
status basic_freezer<Platform>::freeze_processes(report& result) noexcept {
  result = report{};
  if (!begin_to_freeze()) {
    Platform::misuse("freeze_processes() while another thread freezes");
    return status::busy;
  }
  const bool done = stop_user_tasks(result);
  keep(result, task_kind::user);
  if (done) return status::ok;
  thaw_all();
  return status::busy;
}

/// The first step, the tasks, the last step.
template <platform Platform>
bool basic_freezer<Platform>::stop_user_tasks(report& result) noexcept {
  result.first_step_refused = !first_step_.stop(budget());
  if (result.first_step_refused) return false;
  wakeup_.clear();
  {
    const scoped_lock guard(lock_);
    set_mode(user_mode, 0);
  }
  if (!poll(result, false)) return false;
  result.last_step_refused = !last_step_.stop(budget());
  return !result.last_step_refused;
}

template <platform Platform>
void basic_freezer<Platform>::keep(const report& result, task_kind pass) noexcept {
  const scoped_lock guard(lock_);
  last_[static_cast<unsigned>(pass)] = result;
}

template <platform Platform>
typename basic_freezer<Platform>::report basic_freezer<Platform>::last_report(
    task_kind pass) noexcept {
  const scoped_lock guard(lock_);
  return last_[static_cast<unsigned>(pass)];
}

template <platform Platform>
typename basic_freezer<Platform>::duration basic_freezer<Platform>::budget() noexcept {
  const scoped_lock guard(lock_);
  return timeout_;
}

template <platform Platform>
status basic_freezer<Platform>::freeze_processes() noexcept {
  report ignored;
  return freeze_processes(ignored);
}

template <platform Platform>
status basic_freezer<Platform>::freeze_kernel_threads(report& result) noexcept {
  (void)begin_to_freeze();  // whoever froze the user tasks stays the one to thaw
  {
    const scoped_lock guard(lock_);
    set_mode(full_mode, 0);
    for (queue* entry = queues_; entry != nullptr; entry = entry->next_registered_) {
      entry->freeze_for(freezing_thread_);
    }
  }
  const bool done = poll(result, true);
  keep(result, task_kind::kernel);
  if (done) return status::ok;
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
  if (!has_mode(full_mode)) return;
  set_mode(0, full_mode);
  if (!has_mode(user_mode)) freezing_thread_ = typename Platform::thread_id{};
  thaw_queues();
  wake_tasks();
}

template <platform Platform>
void basic_freezer<Platform>::thaw_processes() noexcept {
  {
    const scoped_lock guard(lock_);
    if (!has_mode(user_mode | full_mode)) return;
    if (!(freezing_thread_ == Platform::this_thread())) {
      Platform::misuse("thaw_processes() by a thread that did not freeze");
      return;
    }
  }
  thaw_all();
}

template <platform Platform>
void basic_freezer<Platform>::thaw_all() noexcept {
  {
    const scoped_lock guard(lock_);
    set_mode(0, user_mode | full_mode);
  }
  last_step_.go_on();
  first_step_.go_on();
  const scoped_lock guard(lock_);  // until here nobody else begins to freeze
  freezing_thread_ = typename Platform::thread_id{};
  thaw_queues();
  wake_tasks();
}

// -- hibernation

template <platform Platform>
void basic_freezer<Platform>::save_image() noexcept {
  const scoped_lock guard(lock_);
  for (queue* entry = queues_; entry != nullptr; entry = entry->next_registered_) {
    entry->save_image();
  }
}

template <platform Platform>
void basic_freezer<Platform>::put_back_image() noexcept {
  const scoped_lock guard(lock_);
  if (!has_mode(full_mode)) {
    Platform::misuse("put_back_image() of a kernel that is not frozen");
    return;
  }
  freezing_thread_ = Platform::this_thread();  // whoever goes on in the image
  for (queue* entry = queues_; entry != nullptr; entry = entry->next_registered_) {
    if (entry->is_freezable()) entry->put_back_image();
  }
}

template <platform Platform>
void basic_freezer<Platform>::vanish() noexcept {
  {
    const scoped_lock guard(lock_);
    for (queue* entry = queues_; entry != nullptr; entry = entry->next_registered_) {
      entry->vanish();
    }
  }
  thaw_all();
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_FREEZER_HPP
