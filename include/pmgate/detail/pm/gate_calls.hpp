// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/gate_calls.hpp - how the different kinds of gates are closed and opened.
//
// The gates live on floors above: here they are known by what can be called. Closing is
// waiting, too, and if the wait fails the gate is open again.
#ifndef PMGATE_DETAIL_PM_GATE_CALLS_HPP
#define PMGATE_DETAIL_PM_GATE_CALLS_HPP

#include <concepts>
#include <type_traits>

#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {
namespace pm {

/// A gate that goes down by admitting power management only, instead of nobody.
///
/// Everybody inside is waited for once.  Kernel: scsi_device_quiesce(), the queue's part.
template <class Gate>
struct pm_only {
  Gate& gate;
  explicit pm_only(Gate& which) noexcept : gate(which) {}
};

/// The dispatch of something that has an entry as well, such as a request queue.
template <class Gate>
struct dispatch_of {
  Gate& gate;
  explicit dispatch_of(Gate& which) noexcept : gate(which) {}
};

}  // namespace pm

namespace detail {

/// Who may ENTER: freeze_gate, request_queue.
template <class G>
concept freezing_gate = requires(G& gate) {
  { gate.freeze_start() } -> std::same_as<status>;
  { gate.freeze_wait() } -> std::same_as<status>;
  gate.unfreeze();
};
/// Who may DISPATCH: quiesce_gate.
template <class G>
concept quiescing_gate = requires(G& gate) {
  gate.quiesce_nowait();
  { gate.wait_quiesced() } -> std::same_as<status>;
  gate.unquiesce();
};
/// A class device: scsi::device.
template <class G>
concept quiescing_device = requires(G& gate) {
  { gate.quiesce() } -> std::same_as<status>;
  gate.resume();
};
/// A driver.
template <class G>
concept suspending_driver = requires(G& gate) {
  { gate.suspend() } -> std::same_as<status>;
  gate.resume();
};
template <class G>
concept gate_like =
    freezing_gate<G> || quiescing_gate<G> || quiescing_device<G> || suspending_driver<G>;

/// What resume() says, or that it says nothing.
template <class Gate>
status resume_gate(Gate& gate) noexcept {
  if constexpr (std::same_as<decltype(gate.resume()), status>) {
    return gate.resume();
  } else {
    gate.resume();
    return status::ok;
  }
}

/// Waits for those inside, for the limit at most if there is one.
template <class Gate, platform Platform>
status drain_gate(Gate& gate, const typename Platform::duration* limit) noexcept {
  if constexpr (requires { gate.freeze_wait_until(Platform::now() + *limit); }) {
    if (limit != nullptr) {
      return gate.freeze_wait_until(Platform::now() + *limit) ? status::ok : status::timed_out;
    }
  }
  return gate.freeze_wait();
}

template <class Gate>
status quiesce_or_undo(Gate& gate) noexcept {
  gate.quiesce_nowait();
  const status quiesced = gate.wait_quiesced();
  if (quiesced != status::ok) static_cast<void>(gate.unquiesce());
  return quiesced;
}

/// Closing and opening, by what the gate offers.
template <class Gate, platform Platform>
struct gate_calls {
  using duration = typename Platform::duration;

  static status close(void* behind, [[maybe_unused]] const duration* limit) noexcept {
    Gate& gate = *static_cast<Gate*>(behind);
    if constexpr (freezing_gate<Gate>) {
      const status started = gate.freeze_start();
      if (started != status::ok) return started;
      const status drained = drain_gate<Gate, Platform>(gate, limit);
      if (drained != status::ok) gate.unfreeze();
      return drained;
    } else if constexpr (quiescing_gate<Gate>) {
      return quiesce_or_undo(gate);
    } else if constexpr (quiescing_device<Gate>) {
      return gate.quiesce();
    } else {
      return gate.suspend();
    }
  }
  static status open(void* behind) noexcept {
    Gate& gate = *static_cast<Gate*>(behind);
    if constexpr (freezing_gate<Gate>) {
      gate.unfreeze();
      return status::ok;
    } else if constexpr (quiescing_gate<Gate>) {
      static_cast<void>(gate.unquiesce());
      return status::ok;
    } else {
      return resume_gate(gate);
    }
  }
};

template <class Gate, platform Platform>
struct gate_calls<pm::pm_only<Gate>, Platform> {
  static status close(void* behind, const typename Platform::duration* limit) noexcept {
    Gate& gate = *static_cast<Gate*>(behind);
    gate.set_pm_only();
    status result = gate.freeze_start();
    if (result == status::ok) {
      result = drain_gate<Gate, Platform>(gate, limit);
      gate.unfreeze();
    }
    if (result != status::ok) gate.clear_pm_only();
    return result;
  }
  static status open(void* behind) noexcept {
    static_cast<Gate*>(behind)->clear_pm_only();
    return status::ok;
  }
};

template <class Gate, platform Platform>
struct gate_calls<pm::dispatch_of<Gate>, Platform> {
  static status close(void* behind, const typename Platform::duration*) noexcept {
    return quiesce_or_undo(*static_cast<Gate*>(behind));
  }
  static status open(void* behind) noexcept {
    static_cast<void>(static_cast<Gate*>(behind)->unquiesce());
    return status::ok;
  }
};

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_DETAIL_PM_GATE_CALLS_HPP
