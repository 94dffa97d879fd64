// SPDX-License-Identifier: MIT
//
// pmgate/pm/disk_events.hpp - looks now and then whether a medium was changed.
//
// The poller of the crash this library comes from: delayed work on a freezable queue
// that sends commands to the disk. Nothing in a suspend stops it but the queue being
// frozen. The one rule to know: whoever blocks it may wait for a check that runs.
//
// Counterpart: struct disk_events and disk_events_workfn() of Linux (semantics only).
#ifndef PMGATE_PM_DISK_EVENTS_HPP
#define PMGATE_PM_DISK_EVENTS_HPP

#include <pmgate/platform.hpp>
#include <pmgate/pm/work.hpp>
#include <pmgate/pm/work_queue.hpp>

namespace pmgate::pm {

/// Disk events: a check that is repeated, and can be blocked.
///
/// Lifetime: neither copyable nor movable. Starts blocked; the first unblock() has it
///           check at once. To be blocked before it is destroyed.
/// Threads:  every member from any thread; not from the check itself.
/// Blocking: block() and clear_events(), while a check runs.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_disk_events {
 public:
  using queue = basic_work_queue<Platform>;
  using duration = typename Platform::duration;
  /// Asks the device. `clearing`: events somebody wants to be told of anew.
  ///
  /// Beside itself: each clear_events() calls it on its own thread.
  /// Returns: the events there are, a bit each.  Kernel: ->check_events().
  using check_fn = unsigned (*)(void* context, unsigned clearing) noexcept;
  /// Tells of events that were not known.  Kernel: uevents.
  using notify_fn = void (*)(void* context, unsigned events) noexcept;

  /// The queue is a freezable one, if checks are not to meet a device that sleeps.
  basic_disk_events(queue& where, check_fn ask, notify_fn tell, void* context) noexcept
      : queue_(where), check_(ask), notify_(tell), context_(context) {}
  ~basic_disk_events() {
    if (depth() == 0) Platform::misuse("disk_events destroyed while not blocked");
  }
  basic_disk_events(const basic_disk_events&) = delete;
  basic_disk_events& operator=(const basic_disk_events&) = delete;

  /// The time between two checks; none at first: checks on request only. Unless blocked
  /// a check comes at once, and the next one after the new time.
  ///
  /// Blocks: no.  Kernel: /sys/block/<disk>/events_poll_msecs.
  void set_poll_interval(duration interval) noexcept;

  /// No check from now on, until as many unblock() calls. The first one cancels what is
  /// pending and waits for what runs; others wait until that is done.
  ///
  /// Kernel: disk_block_events().
  void block() noexcept;
  /// The last one has checks go on after the interval; the first of all at once.
  ///
  /// Blocks: no.  Kernel: disk_unblock_events().
  void unblock() noexcept;

  /// Has a check come soon, about these events, unless blocked.
  ///
  /// Blocks: no.  Kernel: disk_flush_events().
  void flush(unsigned events) noexcept;
  /// Checks now, on this thread, blocked or not.
  ///
  /// Returns: those of `events` that were found, and forgets them.
  /// Kernel: disk_clear_events().
  unsigned clear_events(unsigned events) noexcept;

  [[nodiscard]] unsigned depth() noexcept;

 private:
  static void run(basic_work<Platform>& item) noexcept {
    static_cast<basic_disk_events*>(item.context())->check();
  }
  void check() noexcept;
  void unblock(bool after_clear) noexcept;

  queue& queue_;
  check_fn check_;
  notify_fn notify_;
  void* context_;
  typename Platform::mutex block_lock_;  // held while the first blocker cancels
  typename Platform::mutex lock_;        // taken before the queue's; guards what follows
  duration interval_{};
  unsigned depth_ = 1;
  bool ever_unblocked_ = false;
  unsigned known_ = 0;
  unsigned clearing_ = 0;
  basic_work<Platform> work_{&run, this};
};

using disk_events = basic_disk_events<default_platform>;

template <platform Platform>
void basic_disk_events<Platform>::set_poll_interval(duration interval) noexcept {
  const scoped_lock guard(lock_);
  interval_ = interval;
  if (depth_ == 0) (void)queue_.modify_delayed(work_, duration{});
}

template <platform Platform>
void basic_disk_events<Platform>::block() noexcept {
  const scoped_lock first(block_lock_);
  bool cancels = false;
  {
    const scoped_lock guard(lock_);
    cancels = depth_++ == 0;
  }
  if (cancels) (void)queue_.cancel_sync(work_);
}

template <platform Platform>
void basic_disk_events<Platform>::unblock() noexcept {
  unblock(false);
}

/// After a clear_events() a flush() that came meanwhile, and queued nothing, has its check.
template <platform Platform>
void basic_disk_events<Platform>::unblock(bool after_clear) noexcept {
  const scoped_lock guard(lock_);
  if (depth_ == 0) {
    Platform::misuse("unblock() without block()");
    return;
  }
  if (--depth_ != 0) return;
  const bool now = (after_clear && clearing_ != 0) || !ever_unblocked_;
  ever_unblocked_ = true;
  if (now || duration{} < interval_) {
    (void)queue_.queue_delayed(work_, now ? duration{} : interval_);
  }
}

template <platform Platform>
void basic_disk_events<Platform>::flush(unsigned events) noexcept {
  const scoped_lock guard(lock_);
  clearing_ |= events;
  if (depth_ == 0) (void)queue_.modify_delayed(work_, duration{});
}

template <platform Platform>
unsigned basic_disk_events<Platform>::clear_events(unsigned events) noexcept {
  {
    const scoped_lock guard(lock_);
    clearing_ |= events;
  }
  block();
  check();
  {
    const scoped_lock guard(lock_);
    events &= known_;
    known_ &= ~events;
  }
  unblock(true);
  return events;
}

template <platform Platform>
unsigned basic_disk_events<Platform>::depth() noexcept {
  const scoped_lock guard(lock_);
  return depth_;
}

/// The next check is on its way before anybody is told: telling may take its time.
template <platform Platform>
void basic_disk_events<Platform>::check() noexcept {
  unsigned clearing = 0;
  {
    const scoped_lock guard(lock_);
    clearing = clearing_;
  }
  unsigned found = check_(context_, clearing);
  {
    const scoped_lock guard(lock_);
    found &= ~known_;
    known_ |= found;
    clearing_ &= ~clearing;
    if (depth_ == 0 && duration{} < interval_) (void)queue_.queue_delayed(work_, interval_);
  }
  if (found != 0 && notify_ != nullptr) notify_(context_, found);
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_DISK_EVENTS_HPP
