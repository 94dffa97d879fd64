// SPDX-License-Identifier: MIT
//
// pmgate/block/request_waiter.hpp - waiting for a request without a thread that sleeps:
// in the line at the gate first, and then in the line for a tag.
//
// For reactors and simulators, whose threads must never block; see gate_waiter.hpp. The
// one rule to know: whoever waits for a tag is inside already, and a freeze waits for him.
//
// Counterpart: a wait-queue entry with a function of its own.
#ifndef PMGATE_BLOCK_REQUEST_WAITER_HPP
#define PMGATE_BLOCK_REQUEST_WAITER_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/enter_flags.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/detail/block/tag_allocator.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// A place in the lines of a request queue.
///
/// Each time it is queued, exactly one of two things happens: it is resumed, or a cancel()
/// of it returns true.
///
/// Lifetime: neither copyable nor movable; not to be destroyed while queued. May be
///           destroyed or queued again by its own callback.
/// Threads:  at one queue at a time; cancel() may race with the resumption, not with
///           queueing it again.
/// Callbacks: run once, outside every lock of the library, in whichever call opened the
///           gate or gave the tag back; one that waited for a tag perhaps in an earlier such
///           call that is still at it, as these do not nest. They must not block.
/// Misuse:   goes to Platform::misuse().
template <platform Platform>
class basic_request_waiter {
 public:
  /// result: ok: the request is allocated; no_device: the queue is dying; canceled.
  using resume_fn = void (*)(basic_request_waiter& self, status result) noexcept;

  /// Precondition: callback is not null.
  explicit basic_request_waiter(resume_fn callback) noexcept : resume_(callback) {}
  ~basic_request_waiter() {
    if (is_queued()) Platform::misuse("request_waiter destroyed while queued");
  }
  basic_request_waiter(const basic_request_waiter&) = delete;
  basic_request_waiter& operator=(const basic_request_waiter&) = delete;

  /// True from queueing to the resumption or cancellation; a hint to others than the owner.
  [[nodiscard]] bool is_queued() const noexcept {
    // [line.read] acquire: pairs with [line.clear].
    return queued_.load(std::memory_order_acquire) != 0;
  }

 private:
  friend basic_request_queue<Platform>;

  struct at_gate : basic_gate_waiter<Platform> {
    explicit at_gate(basic_request_waiter& whose) noexcept
        : basic_gate_waiter<Platform>(&on_entered), owner(whose) {}
    static void on_entered(basic_gate_waiter<Platform>& self, status result) noexcept {
      basic_request_waiter& owner = static_cast<at_gate&>(self).owner;
      owner.queue_->on_entered(owner, result);
    }
    basic_request_waiter& owner;
  };

  /// False, and reported, if it is queued already.
  bool claim() noexcept {
    // [line.set] acquire: pairs with [line.clear]; the last use is over.
    if (queued_.exchange(1, std::memory_order_acquire) == 0) {
      cancelled_ = false;
      return true;
    }
    Platform::misuse("a request_waiter was queued twice");
    return false;
  }
  void release() noexcept {
    // [line.clear] release: pairs with [line.read] and [line.set].
    queued_.store(0, std::memory_order_release);
  }
  void resume(status result) noexcept {
    release();
    resume_(*this, result);  // the waiter may be gone
  }

  resume_fn resume_;
  at_gate gate_{*this};
  typename detail::tag_allocator<Platform>::waiter tag_;
  basic_request_queue<Platform>* queue_ = nullptr;
  basic_request<Platform>* rq_ = nullptr;
  enter_flags flags_ = enter_flags::none;
  bool cancelled_ = false;  // under the lock of the tags
  typename Platform::template atomic<std::uint32_t> queued_{0};
};

using request_waiter = basic_request_waiter<default_platform>;

}  // namespace pmgate

#endif  // PMGATE_BLOCK_REQUEST_WAITER_HPP
