// SPDX-License-Identifier: MIT
//
// pmgate/block/gate_waiter.hpp - waiting without a thread that sleeps: a waiter
// is queued at a gate, and called when its turn has come.
//
// For reactors and simulators, whose threads must never block. The waiter lives
// in its owner (a request, a connection, a coroutine); queueing allocates nothing.
//
// Counterpart: a wait-queue entry with a function of its own.
#ifndef PMGATE_BLOCK_GATE_WAITER_HPP
#define PMGATE_BLOCK_GATE_WAITER_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/enter_flags.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

namespace detail {
template <platform Platform>
class waiter_chain;
template <platform Platform>
class drain_waiters;
}  // namespace detail
template <platform Platform>
class basic_freeze_gate;
template <platform Platform>
class basic_quiesce_gate;

/// A place in the queue of a gate.
///
/// Each time it is queued, exactly one of two things happens: it is resumed, or a
/// cancel() of it returns true.
///
/// Lifetime: neither copyable nor movable; not to be destroyed while queued. May be
///           destroyed or queued again by its own callback.
/// Threads:  at one gate at a time; cancel() may race with the resumption, not with
///           queueing it again.
/// Callbacks: run once, outside every lock of the library, in whichever call ended
///           the wait. They must not block, so not unfreeze() another gate whose grace
///           period may not be over. They may destroy the gate if no other thread may be
///           in a call of it; a cancel() that comes too late is such a call.
/// Misuse:   goes to Platform::misuse().
template <platform Platform>
class basic_gate_waiter {
 public:
  /// result: what the call that queued the waiter would have returned in the end.
  using resume_fn = void (*)(basic_gate_waiter& self, status result) noexcept;

  /// Precondition: callback is not null.
  explicit basic_gate_waiter(resume_fn callback) noexcept : resume_(callback) {}
  ~basic_gate_waiter() {
    if (is_queued()) Platform::misuse("gate_waiter destroyed while queued");
  }
  basic_gate_waiter(const basic_gate_waiter&) = delete;
  basic_gate_waiter& operator=(const basic_gate_waiter&) = delete;

  /// True from queueing to the resumption or cancellation; a hint to others than the owner.
  [[nodiscard]] bool is_queued() const noexcept {
    // [queued.read] acquire: pairs with [queued.clear].
    return queued_.load(std::memory_order_acquire) != 0;
  }

 private:
  friend basic_freeze_gate<Platform>;
  friend basic_quiesce_gate<Platform>;
  friend detail::waiter_chain<Platform>;
  friend detail::drain_waiters<Platform>;

  /// Not a base: whoever derives from the waiter may have a run() and a next of his own.
  struct grace_request : grace_callback {
    basic_gate_waiter* waiter = nullptr;
  };

  /// False, and reported, if it is queued already.
  bool claim() noexcept {
    // [queued.set] acquire: pairs with [queued.clear]; the last use is over.
    if (queued_.exchange(1, std::memory_order_acquire) == 0) return true;
    Platform::misuse("a gate_waiter was queued twice");
    return false;
  }
  void release() noexcept {
    // [queued.clear] release: pairs with [queued.read] and [queued.set].
    queued_.store(0, std::memory_order_release);
  }
  void resume() noexcept {
    const status result = result_;
    release();
    resume_(*this, result);  // the waiter may be gone
  }

  resume_fn resume_;
  basic_gate_waiter* next_ = nullptr;
  basic_gate_waiter* previous_ = nullptr;
  typename Platform::template atomic<std::uint32_t> queued_{0};
  status result_ = status::ok;

  // At a freeze gate: how it wants to enter, and whether it is queued for that.
  enter_flags flags_ = enter_flags::none;
  bool at_door_ = false;

  // At a quiesce gate: which one, and how far its grace period is.
  grace_request grace_;
  basic_quiesce_gate<Platform>* gate_ = nullptr;
  std::uint32_t opens_ = 0;
  bool closed_ = false;
  bool asking_ = false;
  bool graced_ = false;
  bool cancelled_ = false;
};

using gate_waiter = basic_gate_waiter<default_platform>;

}  // namespace pmgate

#endif  // PMGATE_BLOCK_GATE_WAITER_HPP
