// SPDX-License-Identifier: MIT
//
// pmgate/percpu_ref.hpp - a reference count that is per-CPU while alive and one
// shared word once it is being shut down.
//
// The owner holds one initial reference. kill() gives it up, moves the count to
// the shared word and so allows it to reach zero. Nobody looks for zero before
// kill(), which is why get and put touch only this CPU's counter.
//
// The move takes a grace period. Until it is over the shared word carries a
// bias, so that it cannot look like zero while part of the count is elsewhere.
//
// Counterpart: Linux percpu_ref (semantics only).
#ifndef PMGATE_PERCPU_REF_HPP
#define PMGATE_PERCPU_REF_HPP

#include <cstdint>

#include <pmgate/detail/ref_core.hpp>
#include <pmgate/percpu_ref_types.hpp>
#include <pmgate/platform.hpp>

namespace pmgate {

/// Killable reference count with a per-CPU fast path.
///
/// Lifetime: neither copyable nor movable; at zero, or exit()ed, when destroyed.
/// Threads:  any member may race with any other, except where a member says.
///           kill() and resurrect() are to be serialised by their callers.
/// Blocking: kill(), the switches, resurrect() and exit() wait for a switch
///           that is under way; nothing else blocks.
/// Callbacks: run outside every lock of the ref. `confirm` always comes before
///           `release`. A confirm callback must not wait for the switch that it
///           confirms: kill(), resurrect() and the switches would never return.
/// Misuse:   goes to Platform::misuse() and has no effect, except an extra put()
///           while per-CPU: that surfaces in the sum taken by kill().
/// Range:    2^61 references.
template <platform Platform>
class basic_percpu_ref : private detail::ref_core<Platform, basic_percpu_ref<Platform>> {
  using core = detail::ref_core<Platform, basic_percpu_ref>;

 public:
  /// Runs once per time the count reaches zero, inside whichever call got it there.
  using release_fn = void (*)(basic_percpu_ref&) noexcept;
  /// Runs when nobody can take a reference by the old rules any more.
  using confirm_fn = void (*)(basic_percpu_ref&) noexcept;

  /// Starts with the initial reference held by the caller, unless `dead`.
  ///
  /// Precondition: release is not null.  Kernel: percpu_ref_init().
  explicit basic_percpu_ref(release_fn release, ref_init flags = {}) noexcept
      : core(flags), release_(release) {}

  /// Takes n references; never fails and never looks at anything.
  ///
  /// Precondition: the caller knows that the count is not zero.
  /// Blocks: no.  Cost: one CPU-local add while alive.  Kernel: percpu_ref_get_many().
  void get(std::intptr_t n = 1) noexcept { core::get(n); }

  /// Takes n references unless the count is zero; a dying ref says yes.
  ///
  /// For timeouts and walks over what is still inside while it drains.
  /// Blocks: no.  Cost: as get().  Kernel: percpu_ref_tryget_many().
  [[nodiscard]] bool try_get(std::intptr_t n = 1) noexcept { return core::try_get(n); }

  /// Takes a reference, unless the ref is dying or at zero.
  ///
  /// May still succeed while a kill() from per-CPU mode is unconfirmed.
  /// Blocks: no.  Cost: one CPU-local add while alive.
  /// Orders: success happens-after the resurrect() that revived the ref.
  /// Kernel: percpu_ref_tryget_live(); in atomic mode the answer here is exact.
  [[nodiscard]] bool try_get_live() noexcept { return core::try_get_live(); }

  /// Gives n references back; runs the release callback if they were the last.
  ///
  /// Precondition: the caller owns them. Nothing of the ref is touched after the
  /// callback, or after the count was lowered if others remain.
  /// Blocks: no, unless the callback does.  Cost: as get().
  /// Orders: everything before put() happens-before the release callback.
  /// Kernel: percpu_ref_put_many().
  void put(std::intptr_t n = 1) noexcept { core::put(n); }

  /// Drops the initial reference and starts the move to the shared word.
  ///
  /// Dying is visible at once. `confirm` runs after the grace period, or before
  /// kill() returns if the count was in the shared word already; it is dropped
  /// if a resurrect() overtakes a kill() that had to wait.
  /// Precondition: not dying; a second kill() is misuse and drops nothing
  /// (Kernel: warns, and drops a reference that it does not own).
  /// Returns: false if the platform refused the grace period. The ref is dying
  /// then and unconfirmed; resurrect() undoes it, another kill() tries again.
  /// Blocks: while a switch is under way.  Cost: O(CPUs).
  /// Kernel: percpu_ref_kill_and_confirm().
  bool kill(confirm_fn confirm = nullptr) noexcept { return core::kill(confirm); }

  /// Undoes kill(): alive at once, initial reference held again; need not be at zero.
  ///
  /// Ends in per-CPU mode unless switch_to_atomic() is in force, or somebody
  /// killed again meanwhile.
  /// Precondition: dying, made with allow_reinit, atomic or dead.
  /// Returns: true if the count had reached zero, that is if the release
  /// callback has run or is running in another thread.
  /// Blocks: until an unconfirmed kill() is confirmed.  Cost: O(CPUs).
  /// Kernel: percpu_ref_resurrect().
  bool resurrect() noexcept { return core::resurrect(); }

  /// resurrect() of a ref at zero; elsewhere reported, and done all the same.
  ///
  /// Legal from the release callback.  Kernel: percpu_ref_reinit().
  void reinit() noexcept { core::reinit(); }

  /// Moves the count to the shared word and keeps it there, kills and
  /// resurrections included, until switch_to_percpu().
  ///
  /// Precondition: allow_reinit (Kernel: marks the ref dead behind one's back).
  /// Returns, Blocks, confirm: as kill().  Kernel: percpu_ref_switch_to_atomic().
  bool switch_to_atomic(confirm_fn confirm = nullptr) noexcept {
    return core::switch_to_atomic(confirm);
  }

  /// switch_to_atomic(), and waits until the switch is over.
  ///
  /// is_zero() is exact afterwards (Kernel: may be false for an instant).
  /// Precondition: the release callback does not free the ref meanwhile.
  bool switch_to_atomic_sync() noexcept { return core::switch_to_atomic_sync(); }

  /// Makes switch_to_atomic() be in force without switching now: a dying ref comes
  /// back in its shared word.  Precondition, as there: allow_reinit.
  void keep_atomic() noexcept { core::keep_atomic(); }

  /// Ends switch_to_atomic(); a dying ref moves when it is resurrected.
  ///
  /// Blocks: while a switch is under way.  Kernel: percpu_ref_switch_to_percpu().
  void switch_to_percpu() noexcept { core::switch_to_percpu(); }

  /// Gives the count up without waiting for zero: the last call but queries.
  ///
  /// Precondition: nobody uses the ref any more. During a switch it is reported
  /// and waits for the switch (Kernel: use after free).  Kernel: percpu_ref_exit().
  void exit() noexcept { core::exit(); }

  /// True from kill() to resurrect(), and after exit(). Says nothing of the count.
  [[nodiscard]] bool is_dying() const noexcept { return core::is_dying(); }

  /// True if nobody holds a reference; never while per-CPU or switching.
  ///
  /// Orders: true happens-after every put().  Kernel: percpu_ref_is_zero().
  [[nodiscard]] bool is_zero() const noexcept { return core::is_zero(); }

  /// For diagnostics.  Blocks: on the lock of the slow paths.
  [[nodiscard]] percpu_ref_snapshot snapshot() const noexcept { return core::snapshot(); }

 private:
  friend core;
  void on_zero() noexcept { release_(*this); }

  release_fn release_;
};

using percpu_ref = basic_percpu_ref<default_platform>;

}  // namespace pmgate

#endif  // PMGATE_PERCPU_REF_HPP
