// SPDX-License-Identifier: MIT
//
// pmgate/block/runtime_pm.hpp - may the device sleep? The check before a runtime
// suspend, and what a gate or queue has to be told until the device is awake again.
//
// The user is the PM core: he decides when to suspend, moves the device, and calls
//
//     if (pm.pre_runtime_suspend() == status::ok) pm.post_runtime_suspend(sleep(device));
//     if (pm.pre_runtime_resume() == status::ok) wake(device), pm.post_runtime_resume();
//
// The one rule to know: the check refuses, it never waits for a request. Once it has
// said ok, nobody is inside and only PM requests get in, until the device is awake.
// System sleep holds all this: see block/runtime_pm_binding.hpp.
//
// Counterpart: block/blk-pm.c of Linux, rpm_status of a request queue, and of the PM core
// usage_count and disable_depth (semantics only).
#ifndef PMGATE_BLOCK_RUNTIME_PM_HPP
#define PMGATE_BLOCK_RUNTIME_PM_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// Where a device is between awake and asleep.  Kernel: enum rpm_status.
enum class rpm_status : std::uint8_t {
  active = 0,
  resuming,    ///< PM requests pass, others wait
  suspended,   ///< nobody passes; who waits asks for a resume
  suspending,  ///< PM requests pass once the check is over, others wait
};

/// The kernel's name of it: "ACTIVE".
[[nodiscard]] constexpr const char* to_string(rpm_status value) noexcept {
  switch (value) {
    case rpm_status::active: return "ACTIVE";
    case rpm_status::resuming: return "RESUMING";
    case rpm_status::suspended: return "SUSPENDED";
    case rpm_status::suspending: return "SUSPENDING";
  }
  return "unknown";
}

/// What the PM core is told; each may be null. They run on whatever thread, several at
/// once, outside every lock, and must not wait. A resume may be carried out right there.
struct runtime_pm_ops {
  /// Somebody waits for the device to be resumed. Called by each waiter that pm_only keeps
  /// out, before it sleeps and at each wake-up, in every status.
  ///
  /// A call while suspending may be forgotten: who still waits when the device is
  /// suspended asks again (Kernel: nobody is woken then, the PM core has to remember).
  void (*request_resume)(void* context) noexcept = nullptr;
  /// The device was in use just now.  Kernel: pm_runtime_mark_last_busy().
  void (*mark_last_busy)(void* context) noexcept = nullptr;
  /// The device is awake: to be suspended again when it has been idle long enough.
  /// Kernel: pm_request_autosuspend().
  void (*request_autosuspend)(void* context) noexcept = nullptr;
  void* context = nullptr;
};

/// Runtime power management of what is behind one gate or queue.
///
/// Lifetime: made before the gate or queue is used, which outlives it and goes on calling
///           what is in the ops; not destroyed before a call of a step has returned. Neither
///           copyable nor movable.
/// Threads:  the four steps one at a time, on any thread, as a PM core runs the callbacks
///           of a device; the members for system sleep beside them; everybody else uses
///           the gate meanwhile as he likes.
/// Blocking: pre_runtime_suspend() for a grace period, never for a request; hold() and
///           disable() for a step under way; nothing else.
/// Misuse:   a step that does not follow from the status goes to Platform::misuse() and has
///           no effect (Kernel: pm_only goes wrong, for good).
/// Orders:   everything before an exit() happens-before pre_runtime_suspend() returns ok;
///           everything before post_runtime_resume() happens-before a later normal entry.
/// Limits:   the first suspend check leaves the count in its shared word, as in Linux: later
///           checks take no grace period, entering costs more. To go back, when awake:
///           gate.switch_to_percpu().
template <platform Platform>
class basic_runtime_pm {
 public:
  using gate_type = basic_freeze_gate<Platform>;

  /// Over a gate of its own right.  Kernel: blk_pm_runtime_init().
  explicit basic_runtime_pm(gate_type& gate, const runtime_pm_ops& ops = {}) noexcept
      : basic_runtime_pm(gate, ops, &start_freeze<gate_type>, &gate) {}

  /// Over a request queue: a freeze dispatches what is queued, and every request that is
  /// freed, but for PM requests, marks the device busy.
  template <class Queue>
  requires requires(Queue& queue) { queue.set_busy_mark(nullptr, nullptr); }
  explicit basic_runtime_pm(Queue& queue, const runtime_pm_ops& ops = {}) noexcept
      : basic_runtime_pm(queue.gate(), ops, &start_freeze<Queue>, &queue) {
    queue.set_busy_mark(ops.mark_last_busy, ops.context);
  }

  ~basic_runtime_pm() = default;
  basic_runtime_pm(const basic_runtime_pm&) = delete;
  basic_runtime_pm& operator=(const basic_runtime_pm&) = delete;

  // -- suspend

  /// The suspend check. While it lasts nobody gets in, PM requests included.
  ///
  /// Returns: ok if nobody is inside: the status is SUSPENDING and only PM requests get in;
  /// busy if somebody is, and for an instant everybody may have been refused; again while
  /// held or disabled; not_permitted if the platform refused the grace period; invalid if
  /// not ACTIVE. Unless ok, all is as before.
  /// Blocks: for a grace period, the first time; over a queue also as a driver does that it
  /// runs.  Kernel: blk_pre_runtime_suspend().
  [[nodiscard]] status pre_runtime_suspend() noexcept;

  /// Tells how suspending the device went.
  ///
  /// ok: SUSPENDED, and PM requests wait as well. Otherwise ACTIVE and open again.
  /// Precondition: pre_runtime_suspend() has returned ok.
  /// Blocks: no.  Kernel: blk_post_runtime_suspend().
  void post_runtime_suspend(status result) noexcept;

  // -- resume

  /// From now on PM requests get in, those who wait too: for the driver's own resume.
  ///
  /// Returns: ok if it was SUSPENDED; again while another step is under way, and while
  /// disabled: who still waits in the end asks again; invalid if ACTIVE. Unless ok, all is as
  /// before, and the device is not to be touched.
  /// Blocks: no.  Kernel: blk_pre_runtime_resume(), which wakes nobody.
  status pre_runtime_resume() noexcept;

  /// ACTIVE and open, whether the device came up or not; asks for an autosuspend.
  ///
  /// Legal in every status, also while disabled: system sleep, too, wakes devices up. When
  /// ACTIVE it leaves pm_only alone.
  /// Blocks: no.  Kernel: blk_post_runtime_resume(), and blk_set_runtime_active() of old.
  void post_runtime_resume() noexcept;

  // -- system sleep; hold() and disable() nest

  /// From now on no runtime suspend begins; one that is under way is waited for.
  ///
  /// A resume stays legal.
  /// Blocks: until post_runtime_suspend().  Kernel: pm_runtime_get_noresume() and
  /// pm_runtime_barrier().
  void hold() noexcept;
  /// Undoes one hold(); the last one asks for an autosuspend if the device is awake.
  ///
  /// Blocks: no.  Kernel: pm_runtime_put().
  void release() noexcept;
  /// From now on no step begins, neither suspend nor resume; one under way is waited for.
  ///
  /// Blocks: until its post step.  Kernel: __pm_runtime_disable().
  void disable() noexcept;
  /// Undoes one disable(); after the last one who waits asks for a resume again.
  ///
  /// Blocks: no.  Kernel: pm_runtime_enable(), which forgets who asked meanwhile.
  void enable() noexcept;

  // -- queries

  [[nodiscard]] rpm_status runtime_status() const noexcept;
  [[nodiscard]] gate_type& gate() noexcept { return gate_; }

 private:
  using freeze_fn = status (*)(void* door) noexcept;

  basic_runtime_pm(gate_type& gate, const runtime_pm_ops& ops, freeze_fn freeze,
                   void* door) noexcept;

  template <class Door>
  static status start_freeze(void* door) noexcept {
    return static_cast<Door*>(door)->freeze_start();
  }
  [[nodiscard]] status check_idle() noexcept;
  void set(rpm_status value) noexcept;
  void await_step(rpm_status one, rpm_status other) noexcept;
  void open_again() noexcept;
  void mark_last_busy() noexcept {
    if (ops_.mark_last_busy != nullptr) ops_.mark_last_busy(ops_.context);
  }

  gate_type& gate_;
  runtime_pm_ops ops_;
  freeze_fn freeze_start_;  // of the door, which is the gate or its queue
  void* door_;
  typename Platform::wait_word status_{0};  // an rpm_status
  unsigned holds_ = 0;                      // this and the next: under lock_, as is the
  unsigned disables_ = 0;                   // begin of a step, which looks at them
  typename Platform::mutex lock_;
};

using runtime_pm = basic_runtime_pm<default_platform>;

template <platform Platform>
basic_runtime_pm<Platform>::basic_runtime_pm(gate_type& gate, const runtime_pm_ops& ops,
                                             freeze_fn freeze, void* door) noexcept
    : gate_(gate), ops_(ops), freeze_start_(freeze), door_(door) {
  gate_.set_resume_request(ops.request_resume, ops.context);
}

template <platform Platform>
rpm_status basic_runtime_pm<Platform>::runtime_status() const noexcept {
  // [status.read] acquire: pairs with [status.set].
  return static_cast<rpm_status>(status_.load(std::memory_order_acquire));
}

template <platform Platform>
void basic_runtime_pm<Platform>::set(rpm_status value) noexcept {
  // [status.set] release: pairs with [status.read] and [step.wait]; who waited for a step
  // sees what it did. One step at a time: no exchange.
  status_.store(static_cast<std::uint32_t>(value), std::memory_order_release);
  status_.wake_all();
}

/// Raised pm_only comes first and a look at the count last, with the gate closed for at
/// least a grace period in between: whoever enters is counted when we look, or enters after
/// the gate was opened again, and then sees pm_only.
template <platform Platform>
status basic_runtime_pm<Platform>::pre_runtime_suspend() noexcept {
  {
    const scoped_lock guard(lock_);
    if (runtime_status() != rpm_status::active) {
      Platform::misuse("pre_runtime_suspend() of a device that is not active");
      return status::invalid;
    }
    if (holds_ != 0 || disables_ != 0) return status::again;
    set(rpm_status::suspending);
  }
  gate_.set_pm_only();
  const status result = check_idle();
  if (result != status::ok) open_again();
  return result;
}

/// Under somebody else's freeze the count is at zero exactly if that has drained.
template <platform Platform>
status basic_runtime_pm<Platform>::check_idle() noexcept {
  const status started = freeze_start_(door_);
  if (started != status::ok) return started;
  const bool exact = gate_.switch_to_atomic_sync();
  const bool idle = gate_.usage().is_zero();
  gate_.unfreeze();
  if (!exact) return status::not_permitted;
  return idle ? status::ok : status::busy;
}

/// Awake, with one pm_only of ours to be given back.
template <platform Platform>
void basic_runtime_pm<Platform>::open_again() noexcept {
  mark_last_busy();
  gate_.clear_pm_only();
  set(rpm_status::active);
}

/// The status is the last thing that is written, by every step: whoever has waited for the
/// step goes on. Who waits at the gate of a device that sleeps is woken once more behind it,
/// as one who asks before is not heard.
template <platform Platform>
void basic_runtime_pm<Platform>::post_runtime_suspend(status result) noexcept {
  if (runtime_status() != rpm_status::suspending) {
    Platform::misuse("post_runtime_suspend() without pre_runtime_suspend()");
  } else if (result != status::ok) {
    open_again();
  } else {
    gate_.set_runtime_suspended(true);
    set(rpm_status::suspended);
    gate_.wake_waiters();
  }
}

/// One that came in the middle of a suspend would open what the suspend is about to report
/// closed: a request_resume may come from the very suspend check.
template <platform Platform>
status basic_runtime_pm<Platform>::pre_runtime_resume() noexcept {
  {
    const scoped_lock guard(lock_);
    const rpm_status before = runtime_status();
    if (before == rpm_status::active) {
      Platform::misuse("pre_runtime_resume() of a device that is active");
      return status::invalid;
    }
    if (disables_ != 0 || before != rpm_status::suspended) return status::again;
    set(rpm_status::resuming);
  }
  gate_.set_runtime_suspended(false);
  return status::ok;
}

template <platform Platform>
void basic_runtime_pm<Platform>::post_runtime_resume() noexcept {
  const rpm_status before = runtime_status();
  if (before == rpm_status::suspended) gate_.set_runtime_suspended(false);
  mark_last_busy();
  if (before != rpm_status::active) gate_.clear_pm_only();
  set(rpm_status::active);
  if (ops_.request_autosuspend != nullptr) ops_.request_autosuspend(ops_.context);
}

// -- system sleep

/// A step begins under the lock, so it has seen our count or we see its status.
template <platform Platform>
void basic_runtime_pm<Platform>::await_step(rpm_status one, rpm_status other) noexcept {
  for (;;) {
    // [step.wait] acquire: pairs with [status.set].
    const std::uint32_t seen = status_.load(std::memory_order_acquire);
    const auto at = static_cast<rpm_status>(seen);
    if (at != one && at != other) return;
    if constexpr (!Platform::can_block) {
      Platform::misuse("a step of runtime PM would be waited for: there is one thread only");
      return;
    }
    status_.wait(seen);
  }
}

template <platform Platform>
void basic_runtime_pm<Platform>::hold() noexcept {
  {
    const scoped_lock guard(lock_);
    ++holds_;
  }
  await_step(rpm_status::suspending, rpm_status::suspending);
}

template <platform Platform>
void basic_runtime_pm<Platform>::release() noexcept {
  bool may_sleep = false;
  {
    const scoped_lock guard(lock_);
    if (holds_ == 0) {
      Platform::misuse("release() without hold()");
      return;
    }
    may_sleep = --holds_ == 0 && disables_ == 0 && runtime_status() == rpm_status::active;
  }
  if (may_sleep && ops_.request_autosuspend != nullptr) ops_.request_autosuspend(ops_.context);
}

template <platform Platform>
void basic_runtime_pm<Platform>::disable() noexcept {
  {
    const scoped_lock guard(lock_);
    ++disables_;
  }
  await_step(rpm_status::suspending, rpm_status::resuming);
}

template <platform Platform>
void basic_runtime_pm<Platform>::enable() noexcept {
  bool asleep = false;
  {
    const scoped_lock guard(lock_);
    if (disables_ == 0) {
      Platform::misuse("enable() without disable()");
      return;
    }
    asleep = --disables_ == 0 && runtime_status() == rpm_status::suspended;
  }
  if (asleep) gate_.wake_waiters();  // who asked meanwhile was refused
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_RUNTIME_PM_HPP
