// SPDX-License-Identifier: MIT
//
// pmgate/block/awaitable.hpp - the waiters of gate_waiter.hpp for coroutines.
//
//   auto entry = co_await gate.entered();     // inside until `entry` goes
//   if (!entry) co_return entry.result;       // no_device, or again
//   co_await gate.frozen();                   // in force, and nobody is inside
//   co_await gate.quiesced();                 // in force, and no section runs
//
// No allocation: the waiter lies in the coroutine. A coroutine goes on in whichever call
// ended the wait, as a waiter's callback does, and like one must not block there. Whoever
// wants it elsewhere has his own awaitable next: `co_await reactor.next_turn()`.
//
// Hosted: <coroutine>
#ifndef PMGATE_BLOCK_AWAITABLE_HPP
#define PMGATE_BLOCK_AWAITABLE_HPP

#include <coroutine>

#include <pmgate/block/enter_flags.hpp>
#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/block/ticket.hpp>
#include <pmgate/platform/concept.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// What `co_await gate.entered()` gives: an entry, or why there is none.
template <platform Platform>
struct [[nodiscard]] basic_entry {
  status result;
  typename basic_freeze_gate<Platform>::ticket inside;

  /// True if inside.
  [[nodiscard]] explicit operator bool() const noexcept { return result == status::ok; }
};
using entry = basic_entry<default_platform>;

namespace detail {

/// A waiter that resumes a coroutine.
///
/// Lifetime: that of the co_await expression, in the coroutine.
template <platform Platform, class Gate>
class suspended_waiter : private basic_gate_waiter<Platform> {
 public:
  explicit suspended_waiter(Gate& gate) noexcept
      : basic_gate_waiter<Platform>(&go_on), gate_(gate) {}
  ~suspended_waiter() {
    if (!asleep_ || gate_.cancel(*this)) return;
    Platform::misuse("a coroutine was destroyed while a gate was about to resume it");
  }
  suspended_waiter(const suspended_waiter&) = delete;
  suspended_waiter& operator=(const suspended_waiter&) = delete;

 protected:
  Gate& gate() noexcept { return gate_; }
  [[nodiscard]] status result() const noexcept { return result_; }

  /// Queues the waiter by queue(waiter). Once it is queued the coroutine may go on, on
  /// another thread, and be gone: nothing of it is touched then.
  template <class Queue>
  bool suspend(std::coroutine_handle<> sleeper, Queue queue) noexcept {
    sleeper_ = sleeper;
    asleep_ = true;
    const status answer = queue(static_cast<basic_gate_waiter<Platform>&>(*this));
    if (answer == status::in_progress) return true;
    asleep_ = false;
    result_ = answer;
    return false;
  }

 private:
  static void go_on(basic_gate_waiter<Platform>& self, status result) noexcept {
    auto& woken = static_cast<suspended_waiter&>(self);
    woken.asleep_ = false;
    woken.result_ = result;
    woken.sleeper_.resume();
  }

  Gate& gate_;
  std::coroutine_handle<> sleeper_;
  bool asleep_ = false;
  status result_ = status::ok;
};

}  // namespace detail

/// What gate.entered() returns, to be awaited at once.
///
/// Gives: a basic_entry, as enter().
/// Lifetime: a coroutine that is suspended here may be destroyed: its waiter is cancelled.
///           The gate must still be there, and nobody may be resuming the coroutine at that
///           moment: to be destroyed by the thread that opens the gate, or while the gate
///           stays closed. If it is too late, that goes to Platform::misuse(), and
///           the behaviour is undefined, as whenever a running coroutine is destroyed.
template <platform Platform>
class [[nodiscard]] basic_entered
    : private detail::suspended_waiter<Platform, basic_freeze_gate<Platform>> {
 public:
  basic_entered(basic_freeze_gate<Platform>& gate, enter_flags flags) noexcept
      : basic_entered::suspended_waiter(gate), flags_(flags) {}

  [[nodiscard]] bool await_ready() noexcept { return this->gate().try_enter(flags_); }
  [[nodiscard]] bool await_suspend(std::coroutine_handle<> sleeper) noexcept {
    return this->suspend(sleeper, [this](basic_gate_waiter<Platform>& self) {
      return this->gate().enter_or_wait(self, flags_);
    });
  }
  basic_entry<Platform> await_resume() noexcept {
    using ticket = typename basic_freeze_gate<Platform>::ticket;
    const status result = this->result();
    return {result, result == status::ok ? ticket::adopt(this->gate()) : ticket()};
  }

 private:
  enter_flags flags_;
};

/// What gate.frozen() returns, to be awaited at once.
///
/// Gives: ok: frozen, to be undone by unfreeze(); not_permitted: as freeze().
/// Lifetime: as basic_entered. The freeze of a coroutine that is destroyed here stays in
///           force: whoever destroys it undoes it.
template <platform Platform>
class [[nodiscard]] basic_frozen
    : private detail::suspended_waiter<Platform, basic_freeze_gate<Platform>> {
 public:
  explicit basic_frozen(basic_freeze_gate<Platform>& gate) noexcept
      : basic_frozen::suspended_waiter(gate) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  [[nodiscard]] bool await_suspend(std::coroutine_handle<> sleeper) noexcept {
    return this->suspend(sleeper, [this](basic_gate_waiter<Platform>& self) {
      return this->gate().freeze_or_wait(self);
    });
  }
  [[nodiscard]] status await_resume() const noexcept { return this->result(); }
};

/// What gate.quiesced() returns, to be awaited at once.
///
/// Gives: ok: quiesced, to be undone by unquiesce(); not_permitted: as quiesce().
/// Lifetime: as basic_frozen. Where grace periods are deferred the coroutine must not be
///           destroyed before its grace period is over.
template <platform Platform>
class [[nodiscard]] basic_quiesced
    : private detail::suspended_waiter<Platform, basic_quiesce_gate<Platform>> {
 public:
  explicit basic_quiesced(basic_quiesce_gate<Platform>& gate) noexcept
      : basic_quiesced::suspended_waiter(gate) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  [[nodiscard]] bool await_suspend(std::coroutine_handle<> sleeper) noexcept {
    return this->suspend(sleeper, [this](basic_gate_waiter<Platform>& self) {
      return this->gate().quiesce_or_wait(self);
    });
  }
  [[nodiscard]] status await_resume() const noexcept { return this->result(); }
};

template <platform Platform>
basic_entered<Platform> basic_freeze_gate<Platform>::entered(enter_flags flags) noexcept
  requires(!is_process_shared<Platform>)
{
  return {*this, flags};
}

template <platform Platform>
basic_frozen<Platform> basic_freeze_gate<Platform>::frozen() noexcept
  requires(!is_process_shared<Platform>)
{
  return basic_frozen<Platform>(*this);
}

template <platform Platform>
basic_quiesced<Platform> basic_quiesce_gate<Platform>::quiesced() noexcept
  requires(!is_process_shared<Platform>)
{
  return basic_quiesced<Platform>(*this);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_AWAITABLE_HPP
