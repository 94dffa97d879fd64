// SPDX-License-Identifier: MIT
//
// pmgate/pm/hibernation.hpp - a kernel saves itself and powers off; another one loads
// the image, and is overwritten by it.
//
// hibernate() runs in the image kernel, restore() in the boot kernel; what is memory of
// the image kernel is put back to the moment of the snapshot, and it goes on from there.
// The one rule to know: the boot kernel stops its tasks and its queues before it takes
// devices down. One that is forgotten reaches a driver that was torn down.
//
// Counterpart: kernel/power/hibernate.c of Linux (semantics only). H1 to H9, R1 to R7
// and F in comments are the steps of its table in the specification.
#ifndef PMGATE_PM_HIBERNATION_HPP
#define PMGATE_PM_HIBERNATION_HPP

#include <pmgate/detail/pm/hibernation_steps.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/kernel.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// Saves the kernel and powers it off.
///
/// Returns: ok with the kernel off, see is_off(): it goes on in restore(), or never, see
/// abandon_image(). Ok and not off after power_off_mode::suspend, and when a wakeup came
/// right before the snapshot (as in Linux; there is no image then). Else what refused, with
/// everything up again; see last_refusal().
/// A freeze that fails before the snapshot is reached goes up with RESTORE in the
/// main phase, as in Linux, and not with RECOVER.
/// Blocks: yes.  Kernel: hibernate().
template <platform Platform>
[[nodiscard]] status hibernate(basic_kernel<Platform>& system,
                               power_off_mode mode = power_off_mode::platform) noexcept;

/// Loads an image into a machine that `boot` runs on, and jumps into it.
///
/// Returns: ok once the image kernel is up again, on this thread; `boot` has vanished then:
/// none of its devices is told, what its queues held is gone. Else what failed, and `boot`
/// runs on; busy also if somebody else restores that image, or gives it up. An image kernel
/// of null is not looked at (its end is elsewhere).
/// Misuse: an image kernel that is not off is reported; invalid is returned.
/// Blocks: yes.  Kernel: software_resume().
template <platform Platform>
[[nodiscard]] status restore(basic_kernel<Platform>& boot, basic_kernel<Platform>* image,
                             restore_freeze stops = restore_freeze::everything) noexcept;

template <platform Platform>
status hibernate(basic_kernel<Platform>& system, power_off_mode mode) noexcept {
  if (!system.begin_transition()) return status::busy;
  status result =
      detail::ask_notifiers(system, notice::hibernation_prepare, notice::post_hibernation);
  if (result != status::ok) {
    system.end_transition();
    return result;
  }
  (void)system.take(step::sync_filesystems);
  result = detail::freeze_user_tasks(system);  // H1
  if (result == status::ok) {
    const detail::snapshot_result made = detail::make_snapshot(system);
    result = made.result;
    if (result == status::ok && made.reached) {
      bool off = false;
      result = detail::write_image_and_go_off(system, mode, off);
      if (off) {
        system.set_off(true);  // the last touch: it goes on in restore(), at once maybe
        return result;
      }
    }
  }
  detail::go_on(system, notice::post_hibernation);
  return result;
}

template <platform Platform>
status restore(basic_kernel<Platform>& boot, basic_kernel<Platform>* image,
               restore_freeze stops) noexcept {
  if (image != nullptr) {
    const status claimed = image->claim_image();
    if (claimed == status::invalid) Platform::misuse("restore() of a kernel that is not off");
    if (claimed != status::ok) return claimed;
  }
  const status result = detail::load_and_jump(boot, stops);
  if (image == nullptr) return result;
  if (result == status::ok) {
    detail::wake_image(*image);
  } else {
    image->set_off(true);  // and is there for the next one
  }
  return result;
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_HIBERNATION_HPP
