// SPDX-License-Identifier: MIT
//
// pmgate/block/many_gates.hpp - a range of gates closed together: every gate, one
// grace period.
//
// A grace period is by far the largest cost of a freeze or quiesce. Closing all
// gates first and then taking one for all of them makes a thousand gates cost
// little more than one.
//
// A range is whatever a range-based for accepts, of gates or of pointers to gates, all
// of one platform; it is walked more than once. The order of a range does not matter,
// except to those who stack gates: see freeze_all().
//
// Counterpart: freezing the queues of a tag set with overlapping grace periods, and
// blk_mq_quiesce_tagset() (semantics only).
#ifndef PMGATE_BLOCK_MANY_GATES_HPP
#define PMGATE_BLOCK_MANY_GATES_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

namespace detail {

/// What the gates show to the functions below and to nobody else.
struct many_gates {
  template <class Element>
  static auto& gate_of(Element& element) noexcept {
    if constexpr (std::is_pointer_v<std::remove_cv_t<Element>>) {
      return *element;
    } else {
      return element;
    }
  }
  template <platform Platform>
  static status begin_freeze(basic_freeze_gate<Platform>& gate, bool& closed_it) noexcept {
    return gate.start_freeze(closed_it, true);
  }
  /// To follow begin_freeze() and what undoes it, with no lock held: from now on the gate
  /// may tell that it has drained.
  template <platform Platform>
  static void let_drain(basic_freeze_gate<Platform>& gate, bool refused) noexcept {
    gate.let_drain(refused);
  }
  template <platform Platform>
  static bool collect(basic_freeze_gate<Platform>& gate, grace_batch& batch) noexcept {
    return gate.count().collect(batch);
  }
  /// One grace period for the batch, if there is anything in it.
  template <platform Platform>
  static bool ask(grace_batch& batch) noexcept {
    if (batch.first() == nullptr || Platform::after_grace_period(*batch.first())) return true;
    basic_freeze_gate<Platform>::count_type::refuse(batch);
    return false;
  }
  template <platform Platform>
  static bool ask_like(basic_freeze_gate<Platform>&, grace_batch& batch) noexcept {
    return ask<Platform>(batch);
  }
  template <platform Platform>
  static bool is_refused(basic_freeze_gate<Platform>& gate) noexcept {
    return gate.count().is_refused();
  }
  template <platform Platform>
  static bool synchronize_like(basic_quiesce_gate<Platform>&) noexcept {
    return Platform::synchronize();
  }
  /// After a grace period: whether there is nobody to wait for.
  template <platform Platform>
  static bool is_quiet(basic_quiesce_gate<Platform>& gate) noexcept {
    if constexpr (is_checked<Platform>) {
      return gate.is_quiet();
    } else {
      // [all.ended] acquire: pairs with [end.count].
      const std::uint32_t ended = gate.ended_.load(std::memory_order_acquire);
      return gate.depth() == 0 || gate.nobody_inside(ended);
    }
  }
  /// After a grace period for many gates. One that is not quiet then has somebody inside, or
  /// was opened and closed again meanwhile: there are sections then that end without telling,
  /// and its sum is exact after a new grace period only. So it is waited for by itself.
  template <platform Platform>
  static status wait_for_sections(basic_quiesce_gate<Platform>& gate) noexcept {
    return is_quiet(gate) ? status::ok : gate.wait_quiesced();
  }
  template <platform Platform, class TimePoint>
  static status wait_for_sections_until(basic_quiesce_gate<Platform>& gate,
                                        TimePoint deadline) noexcept {
    return is_quiet(gate) ? status::ok : gate.wait_quiesced_until(deadline);
  }

  /// One grace period for all switches that begin_freeze() left, of the `frozen` gates.
  template <class Range>
  static bool take_grace_period(Range& gates, std::size_t frozen) noexcept {
    grace_batch batch;
    for (auto&& element : gates) {
      if (collect(gate_of(element), batch)) --frozen;
    }
    if (!ask_for(gates, batch)) return false;
    if (frozen == 0) return true;
    for (auto&& element : gates) {  // somebody else asked for some, maybe in our place
      if (is_refused(gate_of(element))) return false;
    }
    return true;
  }
  template <class Range>
  static bool ask_for(Range& gates, grace_batch& batch) noexcept {
    for (auto&& element : gates) return ask_like(gate_of(element), batch);
    return true;
  }
  template <class Range>
  static bool synchronize_for(Range& gates) noexcept {
    for (auto&& element : gates) return synchronize_like(gate_of(element));
    return true;
  }
};

}  // namespace detail

// -- freeze gates

/// freeze_start() of every gate, with one grace period for all.
///
/// Waiters are resumed when all gates are closed and all grace periods that are over at
/// once are over: one that is resumed may open the others.
/// Precondition: no gate of the range is destroyed before it returns.
/// Returns: ok; not_permitted if the platform refused the grace period, and then
/// nothing has changed.
/// Blocks: as freeze_start().  Cost: O(gates * CPUs), and at most one grace period.
/// Limits: who freezes one of the gates between the request and its refusal has been told
/// ok; a grace period is asked for once more on his behalf.
template <class Range>
status freeze_start_all(Range&& gates) noexcept {
  using detail::many_gates;
  status result = status::ok;
  std::size_t frozen = 0;  // by us
  // Until it is asked for, whoever needs one of these switches to be over asks himself or
  // takes the switch back: so nobody waits for us while we wait for a lock.
  for (auto&& element : gates) {
    bool ignored;
    result = many_gates::begin_freeze(many_gates::gate_of(element), ignored);
    if (result != status::ok) break;
    ++frozen;
  }
  if (result == status::ok && !many_gates::take_grace_period(gates, frozen)) {
    result = status::not_permitted;
  }
  if (result != status::ok) {
    for (auto&& element : gates) {
      if (frozen-- == 0) break;
      many_gates::gate_of(element).unfreeze();
    }
  }
  for (auto&& element : gates) {
    many_gates::let_drain(many_gates::gate_of(element), result != status::ok);
  }
  return result;
}

/// unfreeze() of every gate.
template <class Range>
void unfreeze_all(Range&& gates) noexcept {
  for (auto&& element : gates) detail::many_gates::gate_of(element).unfreeze();
}

/// freeze_start_all(), and waits until nobody is inside any of them.
///
/// Not for gates that stand on each other: what is inside the upper one may have to enter
/// the lower one to finish. Freeze the upper one, then the lower one.
/// Returns: as freeze_start_all(); again only where the platform cannot block: the
/// freezes stay in force.
template <class Range>
status freeze_all(Range&& gates) noexcept {
  const status started = freeze_start_all(gates);
  if (started != status::ok) return started;
  for (auto&& element : gates) {
    const status drained = detail::many_gates::gate_of(element).freeze_wait();
    if (drained != status::ok) return drained;
  }
  return status::ok;
}

/// freeze_all() with a deadline: at the deadline every freeze is undone again.
///
/// Returns: ok: all are frozen; timed_out or not_permitted: none is, by this call.
template <class Range, class TimePoint>
[[nodiscard]] status freeze_all_until(Range&& gates, TimePoint deadline) noexcept {
  const status started = freeze_start_all(gates);
  if (started != status::ok) return started;
  for (auto&& element : gates) {
    if (detail::many_gates::gate_of(element).freeze_wait_until(deadline)) continue;
    unfreeze_all(gates);
    return status::timed_out;
  }
  return status::ok;
}

// -- quiesce gates

/// quiesce_nowait() of every gate.  Blocks: no.
template <class Range>
void quiesce_nowait_all(Range&& gates) noexcept {
  for (auto&& element : gates) detail::many_gates::gate_of(element).quiesce_nowait();
}

/// wait_quiesced() of every gate, with one grace period for all.
///
/// Precondition: the quiesces stay in force until it returns. If one is undone
/// meanwhile, nothing is promised of that gate.
/// Returns: as wait_quiesced().
/// Cost: one grace period, and one more for each gate that somebody is inside still.
///
/// An empty range takes no grace period: nothing in it says of which platform.
template <class Range>
status wait_quiesced_all(Range&& gates) noexcept {
  using detail::many_gates;
  if (!many_gates::synchronize_for(gates)) return status::not_permitted;
  for (auto&& element : gates) {
    const status ended = many_gates::wait_for_sections(many_gates::gate_of(element));
    if (ended != status::ok) return ended;
  }
  return status::ok;
}

/// wait_quiesced_all() that gives up at the deadline with timed_out.
template <class Range, class TimePoint>
[[nodiscard]] status wait_quiesced_all_until(Range&& gates, TimePoint deadline) noexcept {
  using detail::many_gates;
  if (!many_gates::synchronize_for(gates)) return status::not_permitted;
  for (auto&& element : gates) {
    const status ended =
        many_gates::wait_for_sections_until(many_gates::gate_of(element), deadline);
    if (ended != status::ok) return ended;
  }
  return status::ok;
}

/// quiesce_nowait_all() and wait_quiesced_all().  Kernel: blk_mq_quiesce_tagset().
template <class Range>
status quiesce_all(Range&& gates) noexcept {
  quiesce_nowait_all(gates);
  return wait_quiesced_all(gates);
}

/// unquiesce() of every gate.
///
/// opened(element): called for each whose last quiesce this was, once it is open; the
/// place to run what has been waiting.
template <class Range, class Opened>
void unquiesce_all(Range&& gates, Opened opened) noexcept {
  for (auto&& element : gates) {
    if (detail::many_gates::gate_of(element).unquiesce()) opened(element);
  }
}
template <class Range>
void unquiesce_all(Range&& gates) noexcept {
  unquiesce_all(gates, [](auto&&) noexcept {});
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_MANY_GATES_HPP
