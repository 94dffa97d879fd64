// SPDX-License-Identifier: MIT
//
// pmgate/block/ticket.hpp - a place inside a gate, as an object.
//
// Whoever holds a ticket is inside; when it goes he has left. The raw pairs of
// the gates (enter/exit, try_dispatch/end_dispatch) are for completion paths,
// where one thread enters and another leaves.
#ifndef PMGATE_BLOCK_TICKET_HPP
#define PMGATE_BLOCK_TICKET_HPP

#include <utility>

namespace pmgate {

/// An entry of a gate that leaves it when it is destroyed.
///
/// Lifetime: move-only; must not outlive its gate.
/// Threads:  as a plain object; may be destroyed on another thread.
/// Blocking: never.
template <class Gate>
class [[nodiscard]] basic_ticket {
 public:
  /// Holds nothing.
  basic_ticket() noexcept = default;
  /// Holds an entry that the caller has, from enter(), get() or a resumed waiter.
  [[nodiscard]] static basic_ticket adopt(Gate& entered) noexcept { return basic_ticket(&entered); }
  basic_ticket(basic_ticket&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
  basic_ticket& operator=(basic_ticket&& other) noexcept {
    if (this != &other) {
      leave();
      gate_ = std::exchange(other.gate_, nullptr);
    }
    return *this;
  }
  ~basic_ticket() { leave(); }

  /// True if it holds an entry.
  [[nodiscard]] explicit operator bool() const noexcept { return gate_ != nullptr; }

  /// Leaves now; a second call does nothing.
  void leave() noexcept {
    if (gate_ != nullptr) std::exchange(gate_, nullptr)->leave_ticket();
  }

  /// Gives the entry away: from now on somebody else has to leave.
  void release() noexcept { gate_ = nullptr; }

 private:
  friend Gate;
  explicit basic_ticket(Gate* gate) noexcept : gate_(gate) {}

  Gate* gate_ = nullptr;
};

}  // namespace pmgate

#endif  // PMGATE_BLOCK_TICKET_HPP
