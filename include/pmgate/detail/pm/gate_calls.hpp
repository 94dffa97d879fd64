// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/gate_calls.hpp - how the different kinds of gates are closed and opened.
//
// The gates live on floors above: here they are known by what can be called. Closing is
// waiting, too, and if the wait fails the gate is open again. The one rule to know: in an
// image a gate is closed again, without waiting; a driver is not called again.
#ifndef PMGATE_DETAIL_PM_GATE_CALLS_HPP
#define PMGATE_DETAIL_PM_GATE_CALLS_HPP

#include <concepts>

#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
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

/// Whoever waits at a gate that nobody will ever open is told no_device.
template <class Gate>
void abandon_gate([[maybe_unused]] Gate& gate) noexcept {
  if constexpr (requires { gate.mark_dying(); }) {
    gate.mark_dying();
    static_cast<void>(gate.start_drain());
  } else if constexpr (requires { gate.gate().mark_dying(); }) {
    abandon_gate(gate.gate());
  }
}

/// The kinds of gates. start() closes one and waits for nobody, drain() waits; what has
/// no such halves has close(). After a drain() that failed it is open() again.
template <class Gate, platform Platform>
struct gate_kind;

template <freezing_gate Gate, platform Platform>
struct gate_kind<Gate, Platform> {
  using type = Gate;
  static status start(Gate& gate) noexcept { return gate.freeze_start(); }
  static status drain(Gate& gate, const typename Platform::duration* limit) noexcept {
    return drain_gate<Gate, Platform>(gate, limit);
  }
  static void open(Gate& gate) noexcept { gate.unfreeze(); }
  static void abandon(Gate& gate) noexcept { abandon_gate(gate); }
};

template <class Gate, platform Platform>
struct dispatch_kind {
  using type = Gate;
  static status start(Gate& gate) noexcept { return gate.quiesce_nowait(), status::ok; }
  static status drain(Gate& gate,
                      [[maybe_unused]] const typename Platform::duration* limit) noexcept {
    if constexpr (requires { gate.wait_quiesced_until(Platform::now() + *limit); }) {
      if (limit != nullptr) return gate.wait_quiesced_until(Platform::now() + *limit);
    }
    return gate.wait_quiesced();
  }
  static void open(Gate& gate) noexcept { static_cast<void>(gate.unquiesce()); }
  static void abandon(Gate&) noexcept {}
};

template <class Gate, platform Platform>
  requires(quiescing_gate<Gate> && !freezing_gate<Gate>)
struct gate_kind<Gate, Platform> : dispatch_kind<Gate, Platform> {};

template <class Gate, platform Platform>
struct gate_kind<pm::pm_only<Gate>, Platform> {
  using type = Gate;
  static status start(Gate& gate) noexcept { return gate.set_pm_only(), status::ok; }
  static status drain(Gate& gate, const typename Platform::duration* limit) noexcept {
    status result = gate.freeze_start();
    if (result != status::ok) return result;
    result = drain_gate<Gate, Platform>(gate, limit);
    gate.unfreeze();
    return result;
  }
  static void open(Gate& gate) noexcept { gate.clear_pm_only(); }
  static void abandon(Gate& gate) noexcept { abandon_gate(gate); }
};

template <class Gate, platform Platform>
struct gate_kind<pm::dispatch_of<Gate>, Platform> : dispatch_kind<Gate, Platform> {};

/// A class device, or a driver: what resume() says is what is told.
template <class Gate, platform Platform>
  requires(!freezing_gate<Gate> && !quiescing_gate<Gate> && gate_like<Gate>)
struct gate_kind<Gate, Platform> {
  using type = Gate;
  static status close(Gate& gate,
                      [[maybe_unused]] const typename Platform::duration* limit) noexcept {
    if constexpr (!quiescing_device<Gate>) {
      return gate.suspend();
    } else {
      if constexpr (requires { gate.quiesce_until(Platform::now() + *limit); }) {
        if (limit != nullptr) return gate.quiesce_until(Platform::now() + *limit);
      }
      return gate.quiesce();
    }
  }
  static auto open(Gate& gate) noexcept { return gate.resume(); }
};

/// A gate of some kind, as its scope sees it.
template <platform Platform>
struct gate_calls {
  using duration = typename Platform::duration;

  status (*close)(void* behind, const duration* limit) noexcept;
  status (*open)(void* behind) noexcept;
  /// It is down or not, and is to be; waits for nobody. Returns: whether it is down then.
  bool (*keep_image)(void* behind, pm::image_move what, bool is_down, bool to_be) noexcept;
};

template <class Kind, platform Platform>
status close_gate(void* behind, const typename Platform::duration* limit) noexcept {
  auto& gate = *static_cast<typename Kind::type*>(behind);
  if constexpr (requires { Kind::close(gate, limit); }) {
    return Kind::close(gate, limit);
  } else {
    const status started = Kind::start(gate);
    if (started != status::ok) return started;
    const status drained = Kind::drain(gate, limit);
    if (drained != status::ok) Kind::open(gate);
    return drained;
  }
}

template <class Kind>
status open_gate(void* behind) noexcept {
  auto& gate = *static_cast<typename Kind::type*>(behind);
  if constexpr (std::same_as<decltype(Kind::open(gate)), status>) {
    return Kind::open(gate);
  } else {
    Kind::open(gate);
    return status::ok;
  }
}

/// Gates are memory: they are put back to how they were, and whoever is inside stays. What
/// is in the memory of a device or a driver only they know, if they have a keep_image().
template <class Kind>
bool keep_gate_image(void* behind, pm::image_move what, bool is_down, bool to_be) noexcept {
  auto& gate = *static_cast<typename Kind::type*>(behind);
  if constexpr (requires { Kind::start(gate); }) {
    if (what == pm::image_move::vanish) {
      if (is_down) Kind::abandon(gate);
    } else if (is_down && !to_be) {
      Kind::open(gate);
    } else if (to_be && !is_down) {
      to_be = Kind::start(gate) == status::ok;
    }
  }
  if constexpr (requires { gate.keep_image(what); }) gate.keep_image(what);
  return to_be;
}

template <class Gate, platform Platform>
inline constexpr gate_calls<Platform> gate_calls_of = {
    &close_gate<gate_kind<Gate, Platform>, Platform>, &open_gate<gate_kind<Gate, Platform>>,
    &keep_gate_image<gate_kind<Gate, Platform>>};

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_DETAIL_PM_GATE_CALLS_HPP
