// SPDX-License-Identifier: MIT
//
// pmgate/pm/freezable_task.hpp - a flow of control that stops at freeze points.
//
// The one rule to know: nobody is stopped from outside. A task that reaches no
// freeze point, and does not sleep in a freezable sleep, makes the freeze fail.
//
// Counterpart: try_to_freeze(), set_freezable(), PF_NOFREEZE, TASK_FREEZABLE of
// Linux (semantics only). To be used with pm/freezer.hpp.
#ifndef PMGATE_PM_FREEZABLE_TASK_HPP
#define PMGATE_PM_FREEZABLE_TASK_HPP

#include <cstdint>

#include <pmgate/platform.hpp>

namespace pmgate::pm {

/// Which pass stops a task, and whether it starts exempt.
enum class task_kind : std::uint8_t {
  user,    ///< stopped by freeze_processes()
  kernel,  ///< stopped by freeze_kernel_threads(), once set_freezable() was called
};

template <platform Platform>
class basic_freezer;

/// A thread, or another flow of control, that stops at freeze points.
///
/// Lifetime: neither copyable nor movable; known to the freezer while it lives.
/// Threads:  freeze points and sleeps from the flow itself, the rest from any thread.
/// Blocking: freeze points and the end of a sleep, while frozen.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_freezable_task {
 public:
  class freezable_sleep;

  /// The name is for reports and is not copied. A kernel task starts exempt.
  basic_freezable_task(basic_freezer<Platform>& owner, const char* name, task_kind kind) noexcept;
  ~basic_freezable_task();
  basic_freezable_task(const basic_freezable_task&) = delete;
  basic_freezable_task& operator=(const basic_freezable_task&) = delete;

  /// The calling thread is the task: it is exempt if it does the freezing.
  void bind_to_this_thread() noexcept;

  /// No longer exempt; a freeze point.  Kernel: set_freezable().
  bool set_freezable() noexcept;
  /// Exempt from now on; one that is frozen goes on, say, to end and free its memory.
  ///
  /// Kernel: PF_NOFREEZE, mark_oom_victim().
  void set_nofreeze() noexcept;

  /// The freeze point: stays here while frozen.
  ///
  /// Returns: true if it was.  Blocks: until thawed.  Cost: one load if nobody freezes.
  /// Kernel: try_to_freeze().
  bool try_to_freeze() noexcept;

  /// A freeze point that one can be stopped in.
  ///
  /// Returns: true after request_stop(), also while everything else stays frozen.
  /// Kernel: kthread_freezable_should_stop().
  [[nodiscard]] bool freezable_should_stop() noexcept;
  /// Asks the task to end.  Kernel: kthread_stop(), without its wait.
  void request_stop() noexcept;

  /// True if the next freeze point would stop the task.  Kernel: freezing().
  [[nodiscard]] bool is_freezing() noexcept;
  /// True if it is in a freeze point, or sleeps and counts as frozen.  Kernel: frozen().
  [[nodiscard]] bool is_frozen() noexcept;

  [[nodiscard]] const char* name() const noexcept { return name_; }
  [[nodiscard]] task_kind kind() const noexcept { return kind_; }

 private:
  friend class basic_freezer<Platform>;
  enum class state : std::uint8_t { running, sleeping, frozen_asleep, frozen };

  basic_freezer<Platform>& freezer_;
  const char* name_;
  const task_kind kind_;
  // The rest belongs to the lock of the freezer.
  bool nofreeze_;
  bool stop_ = false;
  state state_ = state::running;
  typename Platform::thread_id thread_{};
  basic_freezable_task* next_ = nullptr;
};

using freezable_task = basic_freezable_task<default_platform>;

/// A stretch in which the task counts as frozen if frozen it must be.
///
/// For sleeps that the freezer need not end. The task touches nothing that a
/// transition takes away; the destructor is a freeze point.
/// Lifetime: neither copyable nor movable. Kernel: TASK_FREEZABLE.
template <platform Platform>
class [[nodiscard]] basic_freezable_task<Platform>::freezable_sleep {
 public:
  explicit freezable_sleep(basic_freezable_task& sleeper) noexcept : task_(sleeper) {
    const scoped_lock guard(task_.freezer_.lock_);
    task_.state_ = state::sleeping;
  }
  ~freezable_sleep() { (void)task_.freezer_.refrigerate(task_, false); }
  freezable_sleep(const freezable_sleep&) = delete;
  freezable_sleep& operator=(const freezable_sleep&) = delete;

 private:
  basic_freezable_task& task_;
};

template <platform Platform>
basic_freezable_task<Platform>::basic_freezable_task(basic_freezer<Platform>& owner,
                                                     const char* name, task_kind kind) noexcept
    : freezer_(owner), name_(name), kind_(kind), nofreeze_(kind == task_kind::kernel) {
  const scoped_lock guard(freezer_.lock_);
  next_ = freezer_.tasks_;
  freezer_.tasks_ = this;
}

template <platform Platform>
basic_freezable_task<Platform>::~basic_freezable_task() {
  const scoped_lock guard(freezer_.lock_);
  basic_freezable_task** link = &freezer_.tasks_;
  while (*link != this) link = &(*link)->next_;
  *link = next_;
}

template <platform Platform>
void basic_freezable_task<Platform>::bind_to_this_thread() noexcept {
  const scoped_lock guard(freezer_.lock_);
  thread_ = Platform::this_thread();
}

template <platform Platform>
bool basic_freezable_task<Platform>::set_freezable() noexcept {
  {
    const scoped_lock guard(freezer_.lock_);
    nofreeze_ = false;
  }
  return try_to_freeze();
}

template <platform Platform>
void basic_freezable_task<Platform>::set_nofreeze() noexcept {
  const scoped_lock guard(freezer_.lock_);
  nofreeze_ = true;
  freezer_.wake_tasks();
}

template <platform Platform>
bool basic_freezable_task<Platform>::try_to_freeze() noexcept {
  if (!freezer_.has_mode(freezer_.user_mode | freezer_.full_mode)) [[likely]]
    return false;
  return freezer_.refrigerate(*this, false);
}

template <platform Platform>
bool basic_freezable_task<Platform>::freezable_should_stop() noexcept {
  (void)freezer_.refrigerate(*this, true);
  const scoped_lock guard(freezer_.lock_);
  return stop_;
}

template <platform Platform>
void basic_freezable_task<Platform>::request_stop() noexcept {
  const scoped_lock guard(freezer_.lock_);
  stop_ = true;
  freezer_.wake_tasks();
}

template <platform Platform>
bool basic_freezable_task<Platform>::is_freezing() noexcept {
  const scoped_lock guard(freezer_.lock_);
  return freezer_.must_freeze(*this);
}

template <platform Platform>
bool basic_freezable_task<Platform>::is_frozen() noexcept {
  const scoped_lock guard(freezer_.lock_);
  return state_ == state::frozen || state_ == state::frozen_asleep;
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_FREEZABLE_TASK_HPP
