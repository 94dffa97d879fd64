// SPDX-License-Identifier: MIT
//
// pmgate/pm/suspend.hpp - one suspend of a kernel, from the notifiers to the moment it
// sleeps, and back.
//
// The way up mirrors the way down, from wherever the way down came to. The one rule to
// know: tasks and queues are stopped before the first device is, and go on after the last.
//
// Counterpart: pm_suspend() and kernel/power/suspend.c of Linux (semantics only).
#ifndef PMGATE_PM_SUSPEND_HPP
#define PMGATE_PM_SUSPEND_HPP

#include <cstdint>

#include <pmgate/detail/pm/suspend_steps.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/kernel.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// Suspends the kernel, and returns when it is awake again.
///
/// Returns: ok if it slept; busy on a wakeup on the way down, on a task or queue that
/// could not be stopped, or if a transition goes on; else what refused, see last_refusal().
/// Everything is up again in any case; errors on the way up change nothing: see failures()
/// of the devices. A wakeup that is pending when it would become idle is busy, too (Linux:
/// ok, its loop does not begin).
/// Blocks: yes.  Kernel: pm_suspend().
template <platform Platform>
[[nodiscard]] status suspend(basic_kernel<Platform>& system,
                             sleep_mode mode = sleep_mode::memory) noexcept;

/// The part of it that hibernation shares: devices down, sleep, devices up.
///
/// Kernel: suspend_devices_and_enter().
template <platform Platform>
[[nodiscard]] status suspend_devices_and_enter(basic_kernel<Platform>& system,
                                               sleep_mode mode) noexcept;

template <platform Platform>
status suspend_devices_and_enter(basic_kernel<Platform>& system, sleep_mode mode) noexcept {
  static constexpr step before[] = {step::platform, step::console};
  status result = system.take_all(before);
  if (result != status::ok) return result;
  result = system.noted_phase(system.devices.suspend_start(event::suspend));
  if (result == status::ok) {
    result = system.take(step::platform_prepare);
    if (result == status::ok) {
      result = detail::sleep_below_late(system, mode);
      system.undo(step::platform_prepare);
    }
  }
  system.devices.resume_end(event::resume);
  system.undo_all(before);
  return result;
}

template <platform Platform>
status suspend(basic_kernel<Platform>& system, sleep_mode mode) noexcept {
  if (!system.begin_transition()) return status::busy;
  (void)system.take(step::sync_filesystems);
  status result = detail::ask_notifiers(system, notice::suspend_prepare, notice::post_suspend);
  if (result == status::ok) {
    result = detail::freeze_all(system);
    if (result == status::ok) {
      result = suspend_devices_and_enter(system, mode);
      system.freezer.thaw_processes();
    }
    system.notifiers.tell(notice::post_suspend);
  }
  system.end_transition();
  return result;
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_SUSPEND_HPP
