// SPDX-License-Identifier: MIT
//
// pmgate/pm/kernel.hpp - everything of one kernel that takes part in system sleep, and
// the machine below it.
//
// A hibernation has two: the image kernel, which saved itself and wakes up again, and
// the boot kernel, which loads the image and is overwritten by it. The one rule to know:
// state that is in memory comes back with the image, state of the hardware does not.
//
// Counterpart: system_transition_mutex, struct platform_suspend_ops and
// platform_hibernation_ops, syscore of Linux (semantics only).
#ifndef PMGATE_PM_KERNEL_HPP
#define PMGATE_PM_KERNEL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/pm/device_tree.hpp>
#include <pmgate/pm/freezer.hpp>
#include <pmgate/pm/notifier.hpp>
#include <pmgate/pm/wakeup.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// What the machine does between the phases of the devices. Those that are undone are
/// undone on the way up, in the opposite order.
enum class step : std::uint8_t {
  sync_filesystems,       ///< not undone
  platform,               ///< begin, end
  console,                ///< suspend, resume
  platform_prepare,       ///< before the late phase; finish
  platform_prepare_late,  ///< before the noirq phase; wake early
  platform_noirq,         ///< after the noirq phase; wake
  platform_snapshot,      ///< the same for a snapshot; finish
  platform_restore,       ///< the same before a jump; cleanup
  secondary_cpus,         ///< off, on
  local_interrupts,       ///< off, on
  syscore,                ///< suspend, resume
  enter,                  ///< sleeps, returns when woken; not undone
  image_memory,           ///< allocated, freed
  snapshot,               ///< copies the memory; not undone
  write_image,            ///< undone: the signature is removed
  platform_enter,         ///< the firmware's way off; returns if it could not; not undone
  power_off,              ///< the ordinary way off; returns if it could not; not undone
  open_image,             ///< undone: it is closed
  read_image,             ///< into memory; not undone
  jump,                   ///< overwrites the boot kernel; not undone
};

/// Who may refuse.
enum class refused_by : std::uint8_t {
  nobody,
  notifiers,
  user_tasks,      ///< see freezer.last_report()
  kernel_threads,  ///< the same
  machine,         ///< in a step
  devices,         ///< one of them: see devices.last_failure()
  wakeups,         ///< between two devices, or before the machine was to sleep or to go off
};

/// What a transition came to.  Kernel: suspend_stats, last_failed_step.
struct refusal {
  refused_by whom = refused_by::nobody;
  step what{};  ///< if it was a step
  status said = status::ok;
};

/// One kernel: its tasks, queues, devices, and who wants to know.
///
/// Lifetime: neither copyable nor movable; outlives everybody registered with it.
/// Threads:  the parts as they say; transitions from any thread, one at a time.
/// Blocking: take(), take_all(), undo() and undo_all(), as long as the steps do; some of these
///           sleep. No other member.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_kernel {
 public:
  /// Does a step, or undoes it; what it returns for undoing does not matter.
  using step_fn = status (*)(void* context, step what, bool undo) noexcept;

  basic_kernel() noexcept { devices.set_wakeup(&wakeup); }
  basic_kernel(const basic_kernel&) = delete;
  basic_kernel& operator=(const basic_kernel&) = delete;

  basic_wakeup<Platform> wakeup;
  basic_notifier_chain<Platform> notifiers;
  basic_freezer<Platform> freezer{&wakeup};
  basic_device_tree<Platform> devices;

  /// Null: every step succeeds.  Precondition: no transition goes on.
  void set_steps(step_fn function, void* context) noexcept {
    step_context_ = context;
    step_ = function;
  }

  /// True while it is off and only its image is left; see hibernate().
  [[nodiscard]] bool is_off() const noexcept {
    // [off.read] acquire: pairs with [off.set].
    return off_.load(std::memory_order_acquire) != on;
  }

  /// Who refused last in the last transition, also if that could go on without; for who
  /// has nothing but the status of suspend().  Blocks: no.
  [[nodiscard]] refusal last_refusal() noexcept {
    const scoped_lock guard(lock_);
    return refusal_;
  }

  /// Gives up the image of a kernel that is off: nobody is going to restore it.
  ///
  /// What its queues held is gone, as in a kernel that is overwritten; its tasks go on, its
  /// devices are not told, and can be removed. It may begin transitions again. One that is
  /// just being restored, or given up, is not off for this purpose.
  void abandon_image() noexcept;

  // -- for transitions

  /// False if one goes on.  Kernel: mutex_trylock(&system_transition_mutex).
  [[nodiscard]] bool begin_transition() noexcept {
    // [begin.take] acq_rel: pairs with [end.give].
    if (busy_.exchange(1, std::memory_order_acq_rel) != 0) return false;
    note({});
    return true;
  }
  void end_transition() noexcept {
    // [end.give] release: pairs with [begin.take].
    busy_.store(0, std::memory_order_release);
  }

  /// Notes who said so, unless it is ok. Returns: what was said.
  status noted(refused_by whom, status said) noexcept {
    if (said != status::ok) note({whom, {}, said});
    return said;
  }
  /// The same for what a phase of the devices said, if it was not on account of a wakeup.
  status noted_phase(status said) noexcept {
    return noted(devices.was_woken() ? refused_by::wakeups : refused_by::devices, said);
  }
  /// Looks for a wakeup. Returns: `if_so`, noted, if there is one; else ok.
  [[nodiscard]] status look_for_wakeup(status if_so) noexcept {
    return wakeup.pending() ? noted(refused_by::wakeups, if_so) : status::ok;
  }

  /// syscore looks for a wakeup first and returns busy if there is one.
  [[nodiscard]] status take(step what) noexcept;
  void undo(step what) noexcept;
  /// Takes steps in order; one that fails undoes those before it.
  template <unsigned Count>
  [[nodiscard]] status take_all(const step (&steps)[Count]) noexcept;
  template <unsigned Count>
  void undo_all(const step (&steps)[Count], unsigned taken = Count) noexcept;

  /// The state in memory, to and from the image; and what happens to the boot kernel.
  void save_image() noexcept;
  void put_back_image() noexcept;
  void vanish() noexcept;
  void set_off(bool down) noexcept {
    // [off.set] release: pairs with [off.read] and [off.claim].
    off_.store(down ? off : on, std::memory_order_release);
  }
  /// Makes the image the caller's, to be woken or given up, or put back by set_off(true).
  ///
  /// Returns: ok; busy if it is somebody else's; invalid if the kernel is not off.
  [[nodiscard]] status claim_image() noexcept {
    std::uint32_t seen = off;
    // [off.claim] acquire: pairs with [off.set]; of two who want the image one gets it.
    if (off_.compare_exchange_strong(seen, claimed, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
      return status::ok;
    }
    return seen == claimed ? status::busy : status::invalid;
  }

 private:
  // What off_ says: claimed is off, too, but the image belongs to somebody.
  static constexpr std::uint32_t on = 0, off = 1, claimed = 2;

  void note(const refusal& last) noexcept {
    const scoped_lock guard(lock_);
    refusal_ = last;
  }

  step_fn step_ = nullptr;
  void* step_context_ = nullptr;
  typename Platform::template atomic<std::uint32_t> busy_{0};
  typename Platform::template atomic<std::uint32_t> off_{on};
  refusal refusal_{};  // under lock_
  typename Platform::mutex lock_;
};

using kernel = basic_kernel<default_platform>;

template <platform Platform>
status basic_kernel<Platform>::take(step what) noexcept {
  if (what == step::syscore && look_for_wakeup(status::busy) != status::ok) return status::busy;
  const status said = step_ != nullptr ? step_(step_context_, what, false) : status::ok;
  if (said != status::ok) note({refused_by::machine, what, said});
  return said;
}

template <platform Platform>
void basic_kernel<Platform>::undo(step what) noexcept {
  if (step_ != nullptr) (void)step_(step_context_, what, true);
}

template <platform Platform>
template <unsigned Count>
status basic_kernel<Platform>::take_all(const step (&steps)[Count]) noexcept {
  for (unsigned n = 0; n < Count; ++n) {
    const status result = take(steps[n]);
    if (result == status::ok) continue;
    undo_all(steps, n);
    return result;
  }
  return status::ok;
}

template <platform Platform>
template <unsigned Count>
void basic_kernel<Platform>::undo_all(const step (&steps)[Count], unsigned taken) noexcept {
  while (taken > 0) undo(steps[--taken]);
}

template <platform Platform>
void basic_kernel<Platform>::save_image() noexcept {
  freezer.save_image();
  devices.save_image();
}

template <platform Platform>
void basic_kernel<Platform>::put_back_image() noexcept {
  freezer.put_back_image();
  (void)devices.put_back_image();
}

template <platform Platform>
void basic_kernel<Platform>::vanish() noexcept {
  devices.vanish();
  freezer.vanish();
  wakeup.clear();
}

template <platform Platform>
void basic_kernel<Platform>::abandon_image() noexcept {
  if (claim_image() != status::ok) {
    Platform::misuse("abandon_image() of a kernel that is not off, or is being restored");
    return;
  }
  vanish();
  set_off(false);
  end_transition();
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_KERNEL_HPP
