// SPDX-License-Identifier: MIT
//
// pmgate/pm/device_tree.hpp - takes devices down and up, phase by phase, and undoes
// exactly what was done when one of them refuses.
//
// prepare and the way up go parents first; the way down and complete go children
// first. The one rule to know: who refused has undone itself. Its counterpart on the
// way up is not called; those of all who succeeded are, and of nobody else.
//
// Counterpart: drivers/base/power/main.c and device links of Linux (semantics only).
#ifndef PMGATE_PM_DEVICE_TREE_HPP
#define PMGATE_PM_DEVICE_TREE_HPP

#include <pmgate/detail/pm/callback_watch.hpp>
#include <pmgate/detail/pm/device_walk.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/pm/device_registry.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/pm/wakeup.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// Device tree: the phases of system sleep over the devices of its base.
///
/// Lifetime: neither copyable nor movable; outlives its devices' stay in it.
/// Threads:  a transition, which is everything from prepare() to complete(), from one
///           thread; the members of the base, and queries, from any. One that goes on in
///           an image does so on the thread that put the image back.
/// Blocking: every phase, as long as its callbacks do. An asynchronous device goes to a
///           worker of the queue given; each phase waits for all of them. Without a
///           queue, or where the platform cannot block, all go one after another.
/// Order:    synchronous devices in the order of the list; an asynchronous one once its
///           children and consumers (down) or its parent and suppliers (up) are done.
/// Orders:   the callbacks of a device happen-after those it waits for, and happen-before
///           the return of the phase.
/// Misuse:   goes to Platform::misuse() and has no effect: there is nothing to undo. That
///           includes a phase out of order, from within a callback, with an event of the
///           other direction, down with another one than prepare() had, or in the transition
///           of another thread (Kernel: goes wrong).
/// Limits:   those of the base. Nobody is told here that devices go down before tasks and
///           queues are stopped: that order is the one of suspend() and restore(). A
///           callback is waited for without a limit: see set_watchdog().
template <platform Platform>
class basic_device_tree : public detail::device_walk<Platform> {
  using walk = detail::device_walk<Platform>;

 public:
  using typename walk::device;
  using typename walk::link;
  using typename walk::queue;
  using duration = typename Platform::duration;
  using overdue = basic_overdue<Platform>;
  using overdue_fn = typename detail::callback_watch<Platform>::report_fn;
  using interrupts_fn = void (*)(void* context, bool on) noexcept;

  basic_device_tree() noexcept = default;

  // -- settings, before a transition

  /// Where asynchronous devices go; null: nowhere. The queue must not be freezable, has
  /// at least one thread in run(), and is not stopped during a phase; once it is
  /// stopped, devices go one after another.
  void set_async_queue(queue* workers) noexcept;
  /// The global switch.  Kernel: /sys/power/pm_async.
  void set_async_enabled(bool on) noexcept { this->async_enabled_ = on; }
  /// Looked at before each device of suspend and suspend_late; null: never.
  void set_wakeup(basic_wakeup<Platform>* source) noexcept { this->wakeup_ = source; }
  /// Called before the noirq phase, and after the one on the way up.
  void set_interrupt_control(interrupts_fn control, void* context) noexcept;
  /// Has callbacks reported that take longer than `limit`; nothing else happens.
  ///
  /// By themselves they are reported when they return; see look_for_overdue().
  /// Kernel: DPM_WATCHDOG, 120 s in the main phases; it panics.
  void set_watchdog(duration limit, overdue_fn report, void* context) noexcept {
    this->watch_.set(limit, report, context);
  }
  /// Reports callbacks that run and are overdue, once each; for a timer, on any thread.
  void look_for_overdue() noexcept { this->watch_.look(this->lock_); }

  // -- one phase each: prepare, suspend, suspend_late, suspend_noirq, and back from
  // wherever that came to

  /// Parents first. Waits for probes under way, and refuses new ones.
  ///
  /// Returns: ok, or what a device said, who then is as if never asked; the caller
  /// undoes by complete(). One that says `again` is asked again. Nothing was begun, and
  /// nothing is undone, if misuse was reported: busy during a transition; invalid with an
  /// upward event; again where the platform cannot wait for a probe. So do the next three:
  /// busy from a callback, or in a transition of another thread; invalid out of order, or
  /// with another event than that of prepare().
  /// Kernel: dpm_prepare().
  [[nodiscard]] status prepare(event what) noexcept;
  /// Children first. Does not undo: the caller does, by resume() and complete().
  ///
  /// Returns: ok, what a device said, or busy on a wakeup.  Kernel: dpm_suspend().
  [[nodiscard]] status suspend(event what) noexcept;
  /// Undoes itself by resume_early().  Kernel: dpm_suspend_late().
  [[nodiscard]] status suspend_late(event what) noexcept;
  /// Undoes itself by resume_noirq(). Looks at no wakeup.  Kernel: dpm_suspend_noirq().
  [[nodiscard]] status suspend_noirq(event what) noexcept;

  /// Parents first, for those who went down in the opposite phase. Errors are counted
  /// and stop nothing.  Kernel: dpm_resume_noirq(), dpm_resume_early(), dpm_resume().
  void resume_noirq(event what) noexcept;
  void resume_early(event what) noexcept;
  void resume(event what) noexcept;
  /// Children first, for everybody who was prepared.  Kernel: dpm_complete().
  void complete(event what) noexcept;

  // -- several phases

  /// prepare, suspend. On failure the caller calls resume_end(undo_of(what)).
  ///
  /// Kernel: dpm_suspend_start().
  [[nodiscard]] status suspend_start(event what) noexcept;
  /// suspend_late, suspend_noirq; undoes itself.  Kernel: dpm_suspend_end().
  [[nodiscard]] status suspend_end(event what) noexcept;
  /// resume_noirq, resume_early.  Kernel: dpm_resume_start().
  void resume_start(event what) noexcept;
  /// resume, complete.  Kernel: dpm_resume_end().
  void resume_end(event what) noexcept;

 private:
  using typename walk::power_list;

  status begin(event what, phase at) noexcept;
  status prepare_all(event what) noexcept;
  status prepare_one(device& item, event what) noexcept;
  void complete_one(device& item) noexcept;

  interrupts_fn interrupts_ = nullptr;
  void* interrupts_context_ = nullptr;
};

using device_tree = basic_device_tree<default_platform>;

// -- settings

template <platform Platform>
void basic_device_tree<Platform>::set_async_queue(queue* workers) noexcept {
  if (workers != nullptr && workers->is_freezable()) {
    Platform::misuse("asynchronous devices on a freezable work_queue would never run");
    return;
  }
  this->workers_ = workers;
}

template <platform Platform>
void basic_device_tree<Platform>::set_interrupt_control(interrupts_fn control,
                                                        void* context) noexcept {
  interrupts_context_ = context;
  interrupts_ = control;
}

/// Every phase begins here: the direction has to be right, the event, the order, and the
/// thread. It is under way until its end_phase(), or end_transition().
template <platform Platform>
status basic_device_tree<Platform>::begin(event what, phase at) noexcept {
  if (goes_down(what) != goes_down(at)) {
    Platform::misuse(goes_down(at) ? "devices do not go down with an upward event"
                                   : "devices do not come up with a downward event");
    return status::invalid;
  }
  const status legal = this->begin_phase(at, what);
  if (legal == status::ok) walk::begin(what, at);
  return legal;
}

// -- prepare and complete: one device after another

template <platform Platform>
status basic_device_tree<Platform>::prepare(event what) noexcept {
  const status legal = begin(what, phase::prepare);
  if (legal != status::ok) return legal;
  const status unprobed = this->block_probing();
  if (unprobed != status::ok) {
    this->end_transition();
    return unprobed;
  }
  const status result = prepare_all(what);
  if (result == status::ok) {
    this->end_phase(detail::progress::prepared);
  } else {
    this->end_phase();
  }
  return result;
}

template <platform Platform>
status basic_device_tree<Platform>::prepare_all(event what) noexcept {
  for (;;) {
    device* item = nullptr;
    {
      const scoped_lock guard(this->lock_);
      item = this->graph_.first(power_list::active);
    }
    if (item == nullptr) return status::ok;
    const status result = prepare_one(*item, what);
    if (result == status::again) continue;
    if (result != status::ok) return result;
    const scoped_lock guard(this->lock_);  // with it, nobody comes below the device
    item->set(device::prepared_bit, true);
    this->graph_.move_back(*item, power_list::prepared);
  }
}

template <platform Platform>
status basic_device_tree<Platform>::prepare_one(device& item, event what) noexcept {
  item.hold_runtime(true);
  const auto callback = item.sources_.find([](const auto& table) { return table.prepare; });
  const status said = callback != nullptr ? this->call(item, callback) : status::ok;
  if (static_cast<int>(said) < 0) {
    item.hold_runtime(false);
    if (said != status::again) this->note_failure(item, what, phase::prepare, said);
    return said;
  }
  item.set(device::direct_bit,
           what == event::suspend && (said != status::ok || item.sources_.is_empty()));
  return status::ok;
}

template <platform Platform>
void basic_device_tree<Platform>::complete(event what) noexcept {
  if (begin(what, phase::complete) != status::ok) return;
  for (;;) {
    device* item = nullptr;
    {
      const scoped_lock guard(this->lock_);
      item = this->graph_.last(power_list::prepared);
    }
    if (item == nullptr) break;
    complete_one(*item);
    item->hold_runtime(false);
    const scoped_lock guard(this->lock_);
    item->set(device::prepared_bit | device::direct_bit, false);
    this->graph_.move_front(*item, power_list::active);
  }
  this->end_transition();
}

template <platform Platform>
void basic_device_tree<Platform>::complete_one(device& item) noexcept {
  const auto callback = item.sources_.find([](const auto& table) { return table.complete; });
  if (callback != nullptr) this->call(item, callback);
}

// -- the other phases

template <platform Platform>
status basic_device_tree<Platform>::suspend(event what) noexcept {
  const status legal = begin(what, phase::suspend);
  if (legal != status::ok) return legal;
  const status result = this->go_down(power_list::prepared, power_list::suspended);
  if (result == status::ok) {
    this->end_phase(detail::progress::suspended);
  } else {
    this->end_phase();
  }
  return result;
}

template <platform Platform>
status basic_device_tree<Platform>::suspend_late(event what) noexcept {
  const status legal = begin(what, phase::suspend_late);
  if (legal != status::ok) return legal;
  const status result = this->go_down(power_list::suspended, power_list::late_early);
  this->end_phase();
  if (result != status::ok) resume_early(undo_of(what));
  return result;
}

template <platform Platform>
status basic_device_tree<Platform>::suspend_noirq(event what) noexcept {
  const status legal = begin(what, phase::suspend_noirq);
  if (legal != status::ok) return legal;
  if (interrupts_ != nullptr) interrupts_(interrupts_context_, false);
  const status result = this->go_down(power_list::late_early, power_list::noirq);
  this->end_phase();
  if (result != status::ok) resume_noirq(undo_of(what));
  return result;
}

template <platform Platform>
void basic_device_tree<Platform>::resume_noirq(event what) noexcept {
  if (begin(what, phase::resume_noirq) != status::ok) return;
  this->come_up(power_list::noirq, power_list::late_early);
  if (interrupts_ != nullptr) interrupts_(interrupts_context_, true);
  this->end_phase();
}

template <platform Platform>
void basic_device_tree<Platform>::resume_early(event what) noexcept {
  if (begin(what, phase::resume_early) != status::ok) return;
  this->come_up(power_list::late_early, power_list::suspended);
  this->end_phase();
}

template <platform Platform>
void basic_device_tree<Platform>::resume(event what) noexcept {
  if (begin(what, phase::resume) != status::ok) return;
  this->come_up(power_list::suspended, power_list::prepared);
  this->end_phase();
}

template <platform Platform>
status basic_device_tree<Platform>::suspend_start(event what) noexcept {
  const status prepared = prepare(what);
  return prepared == status::ok ? suspend(what) : prepared;
}

template <platform Platform>
status basic_device_tree<Platform>::suspend_end(event what) noexcept {
  const status late = suspend_late(what);
  if (late != status::ok) return late;
  const status noirq = suspend_noirq(what);
  if (noirq != status::ok) resume_early(undo_of(what));
  return noirq;
}

template <platform Platform>
void basic_device_tree<Platform>::resume_start(event what) noexcept {
  resume_noirq(what);
  resume_early(what);
}

template <platform Platform>
void basic_device_tree<Platform>::resume_end(event what) noexcept {
  resume(what);
  complete(what);
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_DEVICE_TREE_HPP
