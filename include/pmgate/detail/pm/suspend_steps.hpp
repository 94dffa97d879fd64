// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/suspend_steps.hpp - the steps of a suspend, each around the next.
//
// Each function takes its step, calls the next one, and undoes its step: the way up
// mirrors the way down from wherever that came to, since it is the same functions.
//
// Counterpart: suspend_enter() and suspend_freeze_processes() of Linux (semantics only).
#ifndef PMGATE_DETAIL_PM_SUSPEND_STEPS_HPP
#define PMGATE_DETAIL_PM_SUSPEND_STEPS_HPP

#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/pm/kernel.hpp>
#include <pmgate/pm/notifier.hpp>
#include <pmgate/status.hpp>

namespace pmgate {
namespace pm {

/// How deep.
enum class sleep_mode : std::uint8_t {
  idle,    ///< all CPUs stay on  (Kernel: s2idle, a loop; here one step, which is to loop)
  memory,  ///< one CPU is left, without interrupts  (Kernel: standby, deep)
};

}  // namespace pm

namespace detail {

/// Asks the notifiers.
template <platform Platform>
status ask_notifiers(pm::basic_kernel<Platform>& system, pm::notice what,
                     pm::notice undone) noexcept {
  return system.noted(pm::refused_by::notifiers, system.notifiers.prepare(what, undone));
}

/// Everything below the devices: CPUs, interrupts, the core; then sleep.
template <platform Platform>
status enter_sleep(pm::basic_kernel<Platform>& system, pm::sleep_mode mode) noexcept {
  using pm::step;
  static constexpr step core[] = {step::secondary_cpus, step::local_interrupts, step::syscore};
  const bool idle = mode == pm::sleep_mode::idle;
  status result = idle ? status::ok : system.take_all(core);
  if (result != status::ok) return result;
  result = system.look_for_wakeup(status::busy);
  if (result == status::ok) result = system.take(step::enter);
  if (!idle) system.undo_all(core);
  return result;
}

/// The noirq phase and what is below it.
template <platform Platform>
status sleep_below_noirq(pm::basic_kernel<Platform>& system, pm::sleep_mode mode) noexcept {
  status result = system.noted_phase(system.devices.suspend_noirq(pm::event::suspend));
  if (result != status::ok) return result;
  result = system.take(pm::step::platform_noirq);
  if (result == status::ok) {
    result = enter_sleep(system, mode);
    system.undo(pm::step::platform_noirq);
  }
  system.devices.resume_noirq(pm::event::resume);
  return result;
}

/// The late phase and what is below it.
template <platform Platform>
status sleep_below_late(pm::basic_kernel<Platform>& system, pm::sleep_mode mode) noexcept {
  status result = system.noted_phase(system.devices.suspend_late(pm::event::suspend));
  if (result != status::ok) return result;
  result = system.take(pm::step::platform_prepare_late);
  if (result == status::ok) {
    result = sleep_below_noirq(system, mode);
    system.undo(pm::step::platform_prepare_late);
  }
  system.devices.resume_early(pm::event::resume);
  return result;
}

template <platform Platform>
status freeze_user_tasks(pm::basic_kernel<Platform>& system) noexcept {
  return system.noted(pm::refused_by::user_tasks, system.freezer.freeze_processes());
}
template <platform Platform>
status freeze_kernel_threads(pm::basic_kernel<Platform>& system) noexcept {
  return system.noted(pm::refused_by::kernel_threads, system.freezer.freeze_kernel_threads());
}

/// Both passes; nothing is frozen if it fails.
template <platform Platform>
status freeze_all(pm::basic_kernel<Platform>& system) noexcept {
  status result = freeze_user_tasks(system);
  if (result != status::ok) return result;
  result = freeze_kernel_threads(system);
  if (result != status::ok) system.freezer.thaw_processes();
  return result;
}

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_DETAIL_PM_SUSPEND_STEPS_HPP
