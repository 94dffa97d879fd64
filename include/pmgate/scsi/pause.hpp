// SPDX-License-Identifier: MIT
//
// pmgate/scsi/pause.hpp - a driver that gates by itself: under its lock it counts who is
// inside, and answers "host busy" while paused.
//
// The one rule to know: suspend() waits for those inside, not for what the hardware has;
// resume() ends that with DID_RESET. The pause ends with connected(), not with resume().
//
// Counterpart: xen-scsifront's pause, callers and waiting_pause (semantics only). The
// price is the lock on the way of every command.
#ifndef PMGATE_SCSI_PAUSE_HPP
#define PMGATE_SCSI_PAUSE_HPP

#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/scsi/policies.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

/// Suspend policy: pause.
///
/// Threads:  every member from any thread; suspend() from one at a time.
/// Blocking: suspend(), for callers; all others for the lock, which a submitter holds from
///           admit() to leave().
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_pause {
 public:
  static constexpr const char* name = "pause";

  basic_pause(basic_host<Platform>&, const adapter_ops& ops) noexcept : ops_(ops) {}
  basic_pause(const basic_pause&) = delete;
  basic_pause& operator=(const basic_pause&) = delete;

  /// 0, and the lock is held until leave(); host_busy: paused or in error, do not leave().
  [[nodiscard]] int admit(basic_command<Platform>&) noexcept;
  void leave() noexcept;

  /// For error handlers, which let go of the lock while they wait for the other side.
  ///
  /// Returns: false while paused: the handler fails.  Blocks: for the lock.
  [[nodiscard]] bool enter_handler() noexcept;
  void leave_handler() noexcept;
  /// Sleeps until there may be room in the ring, or the pause has begun.
  ///
  /// Precondition: inside, and `seen` was room_count() before the ring was found full.
  /// Returns: false if paused: the handler leaves, and fails.
  [[nodiscard]] bool await_room(std::uint32_t seen) noexcept;
  [[nodiscard]] std::uint32_t room_count() const noexcept {
    // [room.count] acquire: pairs with publish_add() in note_room().
    return room_.load(std::memory_order_acquire);
  }
  /// The other side has taken something out of the ring.
  void note_room() noexcept { room_.publish_add(1); }

  /// Bounces commands from now on, waits for those inside and shuts the hardware down.
  ///
  /// Returns: ok; again if interrupt() came first: paused all the same, the hardware up.
  /// Blocks: for callers.  Kernel: scsifront_suspend().
  status suspend() noexcept;
  /// Ends a wait of suspend(), as a signal does.
  void interrupt() noexcept;
  /// Ends what the hardware had with DID_RESET, and brings it up; still paused.
  ///
  /// Kernel: scsifront_resume().
  status resume() noexcept;
  /// The suspend is called off before it came to anything: the kernel does nothing then, and
  /// stays paused.
  void thaw() noexcept {}
  /// The other side is there: the pause is over.  Kernel: XenbusStateConnected
  void connected() noexcept;
  /// While set every command bounces, paused or not.
  void set_error(bool error) noexcept;

  [[nodiscard]] bool is_paused() noexcept;
  /// Who is inside.
  [[nodiscard]] unsigned callers() noexcept;

 private:
  void leave_locked() noexcept;

  const adapter_ops ops_;
  typename Platform::mutex lock_;  // of all that follows.  Kernel: host_lock
  bool pause_ = false;
  bool waiting_pause_ = false;
  bool interrupted_ = false;
  bool error_ = false;
  unsigned callers_ = 0;
  typename Platform::wait_word left_{0};  // counts changes suspend() waits for
  typename Platform::wait_word room_{0};  // counts changes await_room() waits for
};

using pause = basic_pause<default_platform>;

static_assert(suspend_policy<pause, default_platform>);

template <platform Platform>
int basic_pause<Platform>::admit(basic_command<Platform>&) noexcept {
  lock_.lock();
  if (pause_ || error_) {
    lock_.unlock();
    return host_busy;
  }
  ++callers_;
  return 0;
}

template <platform Platform>
void basic_pause<Platform>::leave() noexcept {
  leave_locked();
  lock_.unlock();
}

template <platform Platform>
void basic_pause<Platform>::leave_locked() noexcept {
  if (callers_ == 0) {
    Platform::misuse("leave() of a pause by nobody who was admitted");
    return;
  }
  if (--callers_ != 0 || !waiting_pause_) return;
  waiting_pause_ = false;
  left_.publish_add(1);
}

template <platform Platform>
bool basic_pause<Platform>::enter_handler() noexcept {
  const scoped_lock guard(lock_);
  if (pause_) return false;
  ++callers_;
  return true;
}

template <platform Platform>
void basic_pause<Platform>::leave_handler() noexcept {
  const scoped_lock guard(lock_);
  leave_locked();
}

template <platform Platform>
bool basic_pause<Platform>::await_room(std::uint32_t seen) noexcept {
  if (is_paused()) return false;
  if constexpr (Platform::can_block) {
    room_.wait(seen);
  } else {
    Platform::misuse("await_room() would wait for ever: there is one thread only");
  }
  return !is_paused();
}

/// An interruption that comes before the wait counts for it.
template <platform Platform>
status basic_pause<Platform>::suspend() noexcept {
  lock_.lock();
  pause_ = true;
  while (callers_ != 0 && !interrupted_) {
    waiting_pause_ = true;
    // [left.seen] relaxed: the lock orders it; leave_locked() and interrupt() need it as well.
    const std::uint32_t seen = left_.load(std::memory_order_relaxed);
    lock_.unlock();
    note_room();
    if constexpr (Platform::can_block) {
      left_.wait(seen);
      lock_.lock();
    } else {
      Platform::misuse("suspend() would wait for ever: there is one thread only");
      return status::again;
    }
  }
  const bool stopped = callers_ != 0;
  interrupted_ = false;
  waiting_pause_ = false;
  lock_.unlock();
  if (stopped) return status::again;
  detail::shut_down(ops_);
  return status::ok;
}

template <platform Platform>
void basic_pause<Platform>::interrupt() noexcept {
  const scoped_lock guard(lock_);
  interrupted_ = true;
  left_.publish_add(1);
}

template <platform Platform>
status basic_pause<Platform>::resume() noexcept {
  detail::complete_all(ops_, did_reset);
  return detail::bring_up(ops_);
}

template <platform Platform>
void basic_pause<Platform>::connected() noexcept {
  const scoped_lock guard(lock_);
  pause_ = false;
}

template <platform Platform>
void basic_pause<Platform>::set_error(bool error) noexcept {
  const scoped_lock guard(lock_);
  error_ = error;
}

template <platform Platform>
bool basic_pause<Platform>::is_paused() noexcept {
  const scoped_lock guard(lock_);
  return pause_;
}

template <platform Platform>
unsigned basic_pause<Platform>::callers() noexcept {
  const scoped_lock guard(lock_);
  return callers_;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_PAUSE_HPP
