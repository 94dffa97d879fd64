// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/hibernation_steps.hpp - the steps of a hibernation, in two kernels.
//
// H1 to H9, R1 to R7 and F in comments are those of the table in the specification.
//
// Counterpart: create_image(), hibernation_snapshot(), power_down() and
// hibernation_restore() of Linux (semantics only).
#ifndef PMGATE_DETAIL_PM_HIBERNATION_STEPS_HPP
#define PMGATE_DETAIL_PM_HIBERNATION_STEPS_HPP

#include <cstdint>

#include <pmgate/detail/pm/suspend_steps.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/pm/kernel.hpp>
#include <pmgate/pm/suspend.hpp>
#include <pmgate/status.hpp>

namespace pmgate {
namespace pm {

/// How a kernel goes off once its image is written.
enum class power_off_mode : std::uint8_t {
  platform,  ///< devices go down with HIBERNATE
  shutdown,  ///< no callbacks: the ordinary way down of the machine
  suspend,   ///< it sleeps instead, and needs the image only if the power fails; if it
             ///< cannot sleep it goes off, unless it is for a wakeup
};

/// What the boot kernel stops before it takes its devices down.
enum class restore_freeze : std::uint8_t {
  everything,  ///< user tasks, kernel tasks, work queues
  user_only,   ///< the way before Linux 5.7-rc4, and still that of its snapshot device
};

}  // namespace pm

namespace detail {

/// How a snapshot came out.
struct snapshot_result {
  status result = status::ok;
  bool reached = false;  ///< the moment of copying; Kernel: in_suspend
};

/// The event that brings the devices up after a snapshot, or after none.
constexpr pm::event after_snapshot(const snapshot_result& made) noexcept {
  if (!made.reached) return pm::event::restore;
  return made.result == status::ok ? pm::event::thaw : pm::event::recover;
}

inline constexpr pm::step snapshot_core[] = {pm::step::platform_snapshot, pm::step::secondary_cpus,
                                             pm::step::local_interrupts, pm::step::syscore};
inline constexpr pm::step restore_core[] = {pm::step::platform_restore, pm::step::secondary_cpus,
                                            pm::step::local_interrupts, pm::step::syscore};
inline constexpr pm::step power_off_core[] = {pm::step::platform_noirq, pm::step::secondary_cpus,
                                              pm::step::local_interrupts, pm::step::syscore};

/// H5 to the early half of H7.  Kernel: create_image().
template <platform Platform>
snapshot_result create_image(pm::basic_kernel<Platform>& system) noexcept {
  using pm::event;
  snapshot_result made;
  made.result = system.noted_phase(system.devices.suspend_end(event::freeze));  // H5
  if (made.result != status::ok) return made;
  made.result = system.take_all(snapshot_core);  // H6
  if (made.result == status::ok) {
    if (system.look_for_wakeup(status::busy) == status::ok) {
      made.reached = true;
      made.result = system.take(pm::step::snapshot);
      if (made.result == status::ok) system.save_image();
    }
    system.undo_all(snapshot_core);
  }
  system.devices.resume_start(after_snapshot(made));  // H7
  return made;
}

/// H4 to H7, with the tasks frozen.
template <platform Platform>
snapshot_result snapshot_devices(pm::basic_kernel<Platform>& system) noexcept {
  using pm::event;
  snapshot_result made;
  made.result = system.noted_phase(system.devices.prepare(event::freeze));  // H4
  if (made.result != status::ok) {
    system.devices.complete(event::recover);
    system.freezer.thaw_kernel_threads();
    return made;
  }
  made.result = system.take(pm::step::console);
  if (made.result == status::ok) {
    made.result = system.noted_phase(system.devices.suspend(event::freeze));
    if (made.result == status::ok) made = create_image(system);
    system.devices.resume(after_snapshot(made));  // H7
    system.undo(pm::step::console);
  }
  system.devices.complete(after_snapshot(made));
  return made;
}

/// H2 to H7.  Kernel: hibernation_snapshot().
template <platform Platform>
snapshot_result make_snapshot(pm::basic_kernel<Platform>& system) noexcept {
  static constexpr pm::step before[] = {pm::step::platform, pm::step::image_memory};
  snapshot_result made;
  made.result = system.take_all(before);  // H2
  if (made.result != status::ok) return made;
  made.result = freeze_kernel_threads(system);  // H3
  if (made.result == status::ok) made = snapshot_devices(system);
  const bool keeps = made.reached && made.result == status::ok;
  if (!keeps) system.undo(pm::step::image_memory);
  system.undo(pm::step::platform);
  return made;
}

/// The devices of H9, in platform mode. Returns only if the machine stays on.
/// Kernel: hibernation_platform_enter().
template <platform Platform>
status power_off_devices(pm::basic_kernel<Platform>& system) noexcept {
  using pm::event;
  static constexpr pm::step before[] = {pm::step::platform, pm::step::console};
  status result = system.take_all(before);
  if (result != status::ok) return result;
  result = system.noted_phase(system.devices.suspend_start(event::hibernate));
  if (result == status::ok) {
    result = system.noted_phase(system.devices.suspend_end(event::hibernate));
    if (result == status::ok) {
      result = system.take_all(power_off_core);
      if (result == status::ok) {
        result = system.look_for_wakeup(status::again);
        if (result == status::ok) result = system.take(pm::step::platform_enter);
        if (result == status::ok) return result;
        system.undo_all(power_off_core);
      }
      system.devices.resume_start(event::restore);
    }
  }
  system.devices.resume_end(event::restore);
  system.undo_all(before);
  return result;
}

/// What is said on account of a wakeup; also if a device says it for reasons of its own.
constexpr bool is_wakeup(status said) noexcept {
  return said == status::again || said == status::busy;
}

/// H9. A wakeup on the way removes the image's signature, and the kernel goes on. So it does
/// in suspend mode: a counted event is told once, platform mode would not see it. (Linux
/// powers off then.)
/// off: whether it is; told to nobody yet, for whoever knows may wake the image at once.
template <platform Platform>
status power_down(pm::basic_kernel<Platform>& system, pm::power_off_mode mode, bool& off) noexcept {
  status result = status::not_supported;
  if (mode == pm::power_off_mode::suspend) {
    result = pm::suspend_devices_and_enter(system, pm::sleep_mode::memory);
    if (result == status::ok || is_wakeup(result)) return result;
    mode = pm::power_off_mode::platform;  // the image is written: nothing is lost
  }
  if (mode == pm::power_off_mode::platform) {
    result = power_off_devices(system);
    if (is_wakeup(result)) return result;
  }
  if (result != status::ok) result = system.take(pm::step::power_off);
  off = result == status::ok;
  return result;
}

/// H8 and H9. Afterwards the kernel is off, see power_down(), or there is no image any more.
template <platform Platform>
status write_image_and_go_off(pm::basic_kernel<Platform>& system, pm::power_off_mode mode,
                              bool& off) noexcept {
  status result = system.take(pm::step::write_image);
  if (result == status::ok) {
    result = power_down(system, mode, off);
    if (off) return result;
    system.undo(pm::step::write_image);
  }
  system.undo(pm::step::image_memory);
  return result;
}

/// R7, or the end of a hibernation that came to nothing.
template <platform Platform>
void go_on(pm::basic_kernel<Platform>& system, pm::notice over) noexcept {
  system.devices.discard_image();
  system.freezer.thaw_processes();
  system.notifiers.tell(over);
  system.end_transition();
}

/// R6, R7: in the image kernel, from within its H6.
template <platform Platform>
void wake_image(pm::basic_kernel<Platform>& system) noexcept {
  system.set_off(false);
  system.put_back_image();
  system.undo_all(snapshot_core);
  system.devices.resume_start(pm::event::restore);
  system.undo(pm::step::image_memory);
  system.devices.resume(pm::event::restore);
  system.undo(pm::step::console);
  system.devices.complete(pm::event::restore);
  system.undo(pm::step::platform);
  go_on(system, pm::notice::post_hibernation);
}

/// R3 to R5 and F. Returns ok with the devices down and the jump done.
/// Kernel: hibernation_restore().
template <platform Platform>
status quiesce_and_jump(pm::basic_kernel<Platform>& boot) noexcept {
  using pm::event;
  status result = boot.take(pm::step::console);
  if (result != status::ok) return result;
  result = boot.noted_phase(boot.devices.suspend_start(event::quiesce));  // R3
  if (result == status::ok) {
    result = boot.noted_phase(boot.devices.suspend_end(event::quiesce));  // R4
    if (result == status::ok) {
      result = boot.take_all(restore_core);  // R5
      if (result == status::ok) {
        result = boot.take(pm::step::jump);
        if (result == status::ok) return result;
        boot.undo_all(restore_core);
      }
      boot.devices.resume_start(event::recover);  // F
    }
  }
  boot.devices.resume_end(event::recover);  // F
  boot.undo(pm::step::console);
  return result;
}

/// R1, but for the image.
template <platform Platform>
status freeze_boot_kernel(pm::basic_kernel<Platform>& boot, pm::restore_freeze stops) noexcept {
  if (stops == pm::restore_freeze::everything) return freeze_all(boot);
  return freeze_user_tasks(boot);
}

/// R1 to R5 and F. Returns ok with the boot kernel gone.
template <platform Platform>
status load_and_jump(pm::basic_kernel<Platform>& boot, pm::restore_freeze stops) noexcept {
  if (!boot.begin_transition()) return status::busy;
  status result = boot.take(pm::step::open_image);
  if (result == status::ok) {
    result = ask_notifiers(boot, pm::notice::restore_prepare, pm::notice::post_restore);
    if (result != status::ok) boot.undo(pm::step::open_image);
  }
  if (result != status::ok) {
    boot.end_transition();
    return result;
  }
  result = freeze_boot_kernel(boot, stops);                            // R1
  if (result == status::ok) result = boot.take(pm::step::read_image);  // R2
  boot.undo(pm::step::open_image);  // it is in memory, or will not be
  if (result == status::ok) result = quiesce_and_jump(boot);
  if (result == status::ok) {
    boot.vanish();
    boot.end_transition();
  } else {
    go_on(boot, pm::notice::post_restore);
  }
  return result;
}

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_DETAIL_PM_HIBERNATION_STEPS_HPP
