// SPDX-License-Identifier: MIT
//
// pmgate/scsi/policies.hpp - what drivers do about commands that come while they are
// suspended: one type for each answer, the bad ones included.
//
// A driver asks admit() first thing in queuecommand and calls leave() when the hardware
// has the command, and it has its suspend and resume done by the policy. The one rule to
// know: two of these answers let commands reach hardware that is gone, and say "ok".
//
// Counterpart: nsp32 and 3w-9xxx (nothing), aacraid (host block), the patch that was
// proposed for storvsc (host block, heeded) and xen-scsifront (pause; see
// pmgate/scsi/pause.hpp), as of 6.12 (semantics only).
#ifndef PMGATE_SCSI_POLICIES_HPP
#define PMGATE_SCSI_POLICIES_HPP

#include <atomic>
#include <concepts>

#include <pmgate/platform.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

/// The hardware, as far as a policy deals with it. Those left null do nothing.
struct adapter_ops {
  /// The hardware goes: from its return on nothing may be sent to it.
  void (*shut_down)(void* context) noexcept = nullptr;
  /// It comes back, empty.
  status (*bring_up)(void* context) noexcept = nullptr;
  status (*reset)(void* context) noexcept = nullptr;
  /// Completes every command that the hardware has or had with this result word.
  void (*complete_all)(void* context, int result_word) noexcept = nullptr;
  void* context = nullptr;
};

/// What a driver may take for granted of a policy.
template <class T, class Platform>
concept suspend_policy = requires(T& policy, basic_command<Platform>& item) {
  { policy.admit(item) }
  noexcept->std::same_as<int>;
  { policy.leave() }
  noexcept;
  { policy.suspend() }
  noexcept->std::same_as<status>;
  { policy.resume() }
  noexcept->std::same_as<status>;
  { T::name } -> std::convertible_to<const char*>;
};

namespace detail {

inline void shut_down(const adapter_ops& ops) noexcept {
  if (ops.shut_down != nullptr) ops.shut_down(ops.context);
}
inline status bring_up(const adapter_ops& ops) noexcept {
  return ops.bring_up != nullptr ? ops.bring_up(ops.context) : status::ok;
}
inline void complete_all(const adapter_ops& ops, int result_word) noexcept {
  if (ops.complete_all != nullptr) ops.complete_all(ops.context, result_word);
}

}  // namespace detail

/// Nothing: suspend takes the hardware down, and trusts those above.
///
/// Limits: what these drivers do of their own when they do not come back (one removes its
/// host, one says "ok") is left to the caller, and to adapter_ops::bring_up.
/// Kernel: nsp32_suspend(), twa_suspend().
template <platform Platform>
class basic_no_gating {
 public:
  static constexpr const char* name = "none";

  basic_no_gating(basic_host<Platform>&, const adapter_ops& ops) noexcept : ops_(ops) {}

  [[nodiscard]] int admit(basic_command<Platform>&) noexcept { return 0; }
  void leave() noexcept {}
  status suspend() noexcept {
    detail::shut_down(ops_);
    return status::ok;
  }
  status resume() noexcept { return detail::bring_up(ops_); }

 private:
  const adapter_ops ops_;
};

/// Host block whose result nobody looks at, in suspend, reset and PCI errors.
///
/// Threads:  reset() from any thread, one at a time; the others are the system's, which
///           calls one at a time.
/// Blocking: for the driver's calls under way.
/// Kernel: aac_suspend(), aac_resume(), aac_reset_adapter(), aac_pci_error_detected().
/// Limits:   whether the firmware is shut down before a reset is left to adapter_ops::reset,
///           and the scan that follows pci_resume() to its caller.
template <platform Platform>
class basic_unheeded_block {
 public:
  static constexpr const char* name = "host block, unheeded";

  basic_unheeded_block(basic_host<Platform>& adapter, const adapter_ops& ops) noexcept
      : host_(adapter), ops_(ops) {}

  [[nodiscard]] int admit(basic_command<Platform>&) noexcept { return 0; }
  void leave() noexcept {}

  /// The same for suspend, freeze and poweroff.  Returns: ok, whatever block() said.
  status suspend() noexcept {
    (void)host_.block();
    detail::shut_down(ops_);
    return status::ok;
  }
  /// Returns: no_device if the hardware does not come back, and devices stay blocked; else
  /// what unblock() says.
  status resume() noexcept {
    if (detail::bring_up(ops_) != status::ok) return status::no_device;
    return host_.unblock(device_state::running);
  }
  /// Blocked for good.
  void shutdown() noexcept {
    (void)host_.block();
    detail::shut_down(ops_);
  }

  /// Resets the hardware; what it had ends with DID_RESET if it succeeds. Unblocks in any
  /// case.
  ///
  /// Returns: busy if one is under way; what the reset says, or else unblock().
  status reset() noexcept;

  /// The bus is frozen: what the hardware had ends with DID_NO_CONNECT.
  void pci_frozen() noexcept {
    (void)host_.block();
    detail::complete_all(ops_, did_no_connect);
    detail::shut_down(ops_);
  }
  /// The hardware is lost. Nothing is blocked here.
  void pci_permanent_failure() noexcept { detail::complete_all(ops_, did_no_connect); }
  /// As resume(); the kernel sleeps 10 s before.
  status pci_resume() noexcept { return resume(); }

 private:
  basic_host<Platform>& host_;
  const adapter_ops ops_;
  typename Platform::template atomic<bool> in_reset_{false};
};

/// Host block whose refusal ends the suspend; what was blocked by then stays so.
///
/// Kernel: the patch of the thread, storvsc_suspend() and storvsc_resume(); rejected.
template <platform Platform>
class basic_heeded_block {
 public:
  static constexpr const char* name = "host block, heeded";

  basic_heeded_block(basic_host<Platform>& adapter, const adapter_ops& ops) noexcept
      : host_(adapter), ops_(ops) {}

  [[nodiscard]] int admit(basic_command<Platform>&) noexcept { return 0; }
  void leave() noexcept {}
  /// Returns: what block() says; unless ok the hardware stays up.
  status suspend() noexcept {
    const status blocked = host_.block();
    if (blocked == status::ok) detail::shut_down(ops_);
    return blocked;
  }
  /// Returns: what bringing up says, and then devices stay blocked; else unblock().
  status resume() noexcept {
    const status up = detail::bring_up(ops_);
    return up == status::ok ? host_.unblock(device_state::running) : up;
  }

 private:
  basic_host<Platform>& host_;
  const adapter_ops ops_;
};

/// The library's own: block all or nothing, and unblock what is blocked.
template <platform Platform>
class basic_safe_block {
 public:
  static constexpr const char* name = "try_block";

  basic_safe_block(basic_host<Platform>& adapter, const adapter_ops& ops) noexcept
      : host_(adapter), ops_(ops) {}

  [[nodiscard]] int admit(basic_command<Platform>&) noexcept { return 0; }
  void leave() noexcept {}
  /// Returns: what try_block() says; unless ok nothing has changed.
  status suspend() noexcept {
    const status blocked = host_.try_block().result;
    if (blocked == status::ok) detail::shut_down(ops_);
    return blocked;
  }
  status resume() noexcept {
    const status up = detail::bring_up(ops_);
    return up == status::ok ? host_.try_unblock(device_state::running).result : up;
  }

 private:
  basic_host<Platform>& host_;
  const adapter_ops ops_;
};

using no_gating = basic_no_gating<default_platform>;
using unheeded_block = basic_unheeded_block<default_platform>;
using heeded_block = basic_heeded_block<default_platform>;
using safe_block = basic_safe_block<default_platform>;

static_assert(suspend_policy<no_gating, default_platform>);
static_assert(suspend_policy<unheeded_block, default_platform>);
static_assert(suspend_policy<heeded_block, default_platform>);
static_assert(suspend_policy<safe_block, default_platform>);

template <platform Platform>
status basic_unheeded_block<Platform>::reset() noexcept {
  // [reset.claim] acq_rel: pairs with [reset.free]; one reset after another.
  if (in_reset_.exchange(true, std::memory_order_acq_rel)) return status::busy;
  (void)host_.block();
  const status done = ops_.reset != nullptr ? ops_.reset(ops_.context) : status::ok;
  if (done == status::ok) detail::complete_all(ops_, did_reset);
  const status unblocked = host_.unblock(device_state::running);
  // [reset.free] release: pairs with [reset.claim].
  in_reset_.store(false, std::memory_order_release);
  return done != status::ok ? done : unblocked;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_POLICIES_HPP
