// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/checked_waiter.hpp - what the checked gates share: waiters and
// tickets that their gate's registry knows.
//
// Hosted: <mutex> <string>, by way of platform/checked.hpp
#ifndef PMGATE_DETAIL_BLOCK_CHECKED_WAITER_HPP
#define PMGATE_DETAIL_BLOCK_CHECKED_WAITER_HPP

#include <cstdint>
#include <utility>

#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/platform/checked.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// basic_gate_waiter of a checked gate; see there.
template <platform Base>
class basic_gate_waiter<checked_platform<Base>> {
  using core = detail::checked_core<Base>;
  using inner = basic_gate_waiter<core>;

 public:
  using resume_fn = void (*)(basic_gate_waiter& self, status result) noexcept;

  explicit basic_gate_waiter(resume_fn callback) noexcept : shell_(*this), resume_(callback) {}
  basic_gate_waiter(const basic_gate_waiter&) = delete;
  basic_gate_waiter& operator=(const basic_gate_waiter&) = delete;

  [[nodiscard]] bool is_queued() const noexcept { return shell_.is_queued(); }

 private:
  friend basic_freeze_gate<checked_platform<Base>>;
  friend basic_quiesce_gate<checked_platform<Base>>;

  struct shell : inner {
    explicit shell(basic_gate_waiter& of) noexcept : inner(&resumed), owner(of) {}
    basic_gate_waiter& owner;
  };

  /// Queues it by ask(); the registry knows it before it can be resumed.
  /// gate: of which it will have an entry; 0: of none.
  template <class Ask>
  status queue(detail::checked_id at, detail::checked_id gate, const char* what, call_site where,
               Ask ask) noexcept {
    if (is_queued()) return ask(shell_);  // which refuses it
    entering_ = gate;
    where_ = where;
    const std::uint64_t mine = core::registry().begin_wait(core::here(), at, what, where);
    wait_ = mine;
    const status result = ask(shell_);
    if (result != status::in_progress) core::registry().end_wait(mine);
    return result;
  }
  void forget() noexcept { core::registry().end_wait(wait_); }

  static void resumed(inner& self, status result) noexcept {
    basic_gate_waiter& owner = static_cast<shell&>(self).owner;
    owner.forget();
    if (owner.entering_ != 0 && result == status::ok) {
      (void)core::registry().hold(core::here(),
                                  {.node = {owner.entering_, detail::hold_class::entry},
                                   .where = owner.where_,
                                   .trust = detail::hold_trust::loose,
                                   .pending = {}});
    }
    owner.resume_(owner, result);  // and it may be gone
  }

  shell shell_;
  resume_fn resume_;
  detail::checked_id entering_ = 0;
  std::uint64_t wait_ = 0;
  call_site where_;
};

namespace detail {

/// basic_ticket of a checked gate; see there. Moved or released, it is not taken for one
/// that its thread will give back.
template <class Gate>
class [[nodiscard]] checked_ticket {
 public:
  checked_ticket() noexcept = default;
  checked_ticket(checked_ticket&& other) noexcept { adopt(other); }
  checked_ticket& operator=(checked_ticket&& other) noexcept {
    if (this != &other) {
      leave();
      adopt(other);
    }
    return *this;
  }
  ~checked_ticket() { leave(); }

  [[nodiscard]] explicit operator bool() const noexcept { return gate_ != nullptr; }
  void leave() noexcept {
    if (gate_ != nullptr) std::exchange(gate_, nullptr)->leave_ticket(serial_);
  }
  void release() noexcept {
    if (gate_ != nullptr) std::exchange(gate_, nullptr)->let_ticket_go(serial_, false);
  }

 private:
  friend Gate;
  explicit checked_ticket(Gate* gate, std::uint64_t serial) noexcept
      : gate_(gate), serial_(serial) {}
  void adopt(checked_ticket& other) noexcept {
    gate_ = std::exchange(other.gate_, nullptr);
    serial_ = other.serial_;
    if (gate_ != nullptr) gate_->let_ticket_go(serial_, true);
  }

  Gate* gate_ = nullptr;
  std::uint64_t serial_ = 0;
};

/// What the registry knows of a gate, from its construction to after its destruction.
template <platform Base>
class checked_life {
  using core = checked_core<Base>;

 public:
  checked_life(const char* kind, const void* gate, const char* name) noexcept
      : id(core::registry().add_object(kind, gate, name)) {}
  /// After the gate inside has been destroyed.
  ~checked_life() {
    core::registry().drop_object(core::here(), id);
    core::registry().end_call(core::here(), outer_);
  }
  checked_life(const checked_life&) = delete;
  checked_life& operator=(const checked_life&) = delete;

  /// To be called before the gate inside is destroyed.
  void end() noexcept {
    outer_ = core::registry().begin_call(core::here(), {.object = id, .where = {}, .ends = true});
  }

  const checked_id id;

 private:
  checked_registry::call outer_;
};

/// A call of a gate under way, for what the gate inside may report.
template <platform Base>
class [[nodiscard]] checked_call {
  using core = checked_core<Base>;

 public:
  checked_call(checked_id gate, const call_site& where) noexcept
      : outer_(core::registry().begin_call(core::here(), {.object = gate, .where = where})) {}
  ~checked_call() { core::registry().end_call(core::here(), outer_); }
  checked_call(const checked_call&) = delete;
  checked_call& operator=(const checked_call&) = delete;

 private:
  checked_registry::call outer_;
};

/// Waits in turns of the limit, and reports each that was in vain.
///
/// turn(deadline): false if the deadline passed; for_good(): the wait without one.
/// Returns: what for_good() returns, or ok.
template <platform Base, class Turn, class ForGood>
status checked_wait(checked_node what, const char* text, const call_site& where, Turn turn,
                    ForGood for_good) noexcept {
  using core = checked_core<Base>;
  const std::int64_t limit = core::registry().options().limit_ms;
  const std::uint64_t wait = core::registry().begin_wait(core::here(), what.object, text, where);
  status result = status::ok;
  if (!Base::can_block || limit <= 0) {
    result = for_good();
  } else {
    while (!turn(Base::now() + Base::milliseconds(limit), result)) {
      core::registry().long_wait(core::here(), what, wait, text);
    }
  }
  core::registry().end_wait(wait);
  return result;
}

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_DETAIL_BLOCK_CHECKED_WAITER_HPP
