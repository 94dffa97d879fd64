// SPDX-License-Identifier: MIT
//
// pmgate/detail/scsi/host_impl.hpp - walks over the devices of a host, its states and
// its own gates.
//
// Included by pmgate/scsi/host.hpp, whose members these are.
//
// Counterpart: scsi_host_block(), scsi_run_host_queues() and their like of Linux
// (semantics only).
#ifndef PMGATE_DETAIL_SCSI_HOST_IMPL_HPP
#define PMGATE_DETAIL_SCSI_HOST_IMPL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/many_gates.hpp>
#include <pmgate/scsi/host.hpp>

namespace pmgate::scsi {

// -- holding everything

template <platform Platform>
status basic_host<Platform>::block_devices() noexcept {
  return devices_.for_each(&is_gettable, [](device_type& entry) { return entry.block_nowait(); });
}

template <platform Platform>
status basic_host<Platform>::block() noexcept {
  const status blocked = block_devices();
  return blocked == status::ok ? wait_blocked() : blocked;
}

template <platform Platform>
status basic_host<Platform>::block_until(time_point deadline) noexcept {
  const status blocked = block_devices();
  return blocked == status::ok ? wait_blocked_until(deadline) : blocked;
}

/// One grace period for all devices, and one if there is none, as in the kernel.
template <platform Platform>
template <class Wait>
status basic_host<Platform>::wait_for_gates(Wait wait) noexcept {
  typename devices::stopped_gates gates(devices_);
  if (gates.empty()) return Platform::synchronize() ? status::ok : status::not_permitted;
  return wait(gates);
}

template <platform Platform>
status basic_host<Platform>::wait_blocked() noexcept {
  return wait_for_gates([](auto& gates) noexcept { return wait_quiesced_all(gates); });
}

template <platform Platform>
status basic_host<Platform>::wait_blocked_until(time_point deadline) noexcept {
  return wait_for_gates(
      [deadline](auto& gates) noexcept { return wait_quiesced_all_until(gates, deadline); });
}

template <platform Platform>
status basic_host<Platform>::unblock(device_state new_state) noexcept {
  return devices_.for_each(&is_gettable,
                           [new_state](device_type& entry) { return entry.unblock(new_state); });
}

/// `sleep` waits while another try_block() is under way; false: in vain.
template <platform Platform>
template <class Sleep>
status basic_host<Platform>::take_turn(Sleep sleep) noexcept {
  // [turn.take] acquire: pairs with [turn.give]: what the last one undid is undone.
  while (turn_.exchange(1, std::memory_order_acquire) != 0) {
    if constexpr (!Platform::can_block) {
      Platform::misuse("try_block() from inside another one: there is one thread only");
      return status::again;
    }
    if (!sleep()) return status::timed_out;
  }
  return status::ok;
}

template <platform Platform>
auto basic_host<Platform>::try_block() noexcept -> block_report {
  const status turn = take_turn([this]() noexcept {
    turn_.wait(1);
    return true;
  });
  if (turn != status::ok) return {turn};
  return try_block_with([this]() noexcept { return wait_blocked(); });
}

template <platform Platform>
auto basic_host<Platform>::try_block_until(time_point deadline) noexcept -> block_report {
  const status turn =
      take_turn([this, deadline]() noexcept { return turn_.wait_until(1, deadline); });
  if (turn != status::ok) return {turn};
  return try_block_with([this, deadline]() noexcept { return wait_blocked_until(deadline); });
}

/// It is our turn, and the next one's afterwards.
template <platform Platform>
template <class Wait>
auto basic_host<Platform>::try_block_with(Wait wait) noexcept -> block_report {
  block_report report;
  report.result = devices_.for_each(&is_gettable, [&report](device_type& entry) {
    const status blocked = entry.block_undoably();
    if (blocked != status::ok) report.refused = &entry;
    return blocked;
  });
  if (report.result == status::ok) report.result = wait();
  const bool undo = report.result != status::ok;
  (void)devices_.for_each(&devices::is_any, [undo](device_type& entry) {
    entry.end_undoably(undo);
    return status::ok;
  });
  // [turn.give] release: pairs with [turn.take].
  turn_.store(0, std::memory_order_release);
  turn_.wake_all();
  return report;
}

template <platform Platform>
typename basic_host<Platform>::block_report basic_host<Platform>::try_unblock(
    device_state new_state) noexcept {
  if (new_state != device_state::running && new_state != device_state::transport_offline) {
    return {status::invalid};
  }
  (void)devices_.for_each(&devices::is_any, [new_state](device_type& entry) {
    entry.start_blocked(new_state);
    return status::ok;
  });
  return {};
}

template <platform Platform>
status basic_host<Platform>::block_targets(const void* parent) noexcept {
  const status no_target = devices_.for_each(&devices::is_any, [parent](device_type& entry) {
    return &entry.target() == parent ? status::invalid : status::ok;
  });
  if (no_target != status::ok) {
    Platform::misuse("block_targets() of what hangs on a target");
    return no_target;
  }
  return block_all_of([parent](const target_type& each) { return each.parent() == parent; });
}

template <platform Platform>
template <class Chosen>
status basic_host<Platform>::block_all_of(Chosen is_chosen) noexcept {
  status result = status::ok;
  (void)devices_.for_each(&is_gettable, [&is_chosen, &result](device_type& entry) {
    if (!is_chosen(entry.target())) return status::ok;
    const status blocked = entry.block_nowait();
    if (blocked != status::ok) {
      trace_event<Platform>("scsi: a device cannot be blocked", &entry);
      result = blocked;
    }
    return status::ok;
  });
  const status waited = wait_blocked();
  return waited == status::ok ? result : waited;
}

template <platform Platform>
template <class Chosen>
void basic_host<Platform>::unblock_all_of(Chosen is_chosen, device_state new_state) noexcept {
  (void)devices_.for_each(&is_gettable, [&is_chosen, new_state](device_type& entry) {
    if (is_chosen(entry.target())) (void)entry.unblock(new_state);
    return status::ok;
  });
}

template <platform Platform>
void basic_host<Platform>::target_quiesce(target_type& which) noexcept {
  (void)devices_.for_each(&is_gettable, [&which](device_type& entry) {
    if (&entry.target() == &which) (void)entry.quiesce();
    return status::ok;
  });
}

template <platform Platform>
void basic_host<Platform>::target_resume(target_type& which) noexcept {
  (void)devices_.for_each(&is_gettable, [&which](device_type& entry) {
    if (&entry.target() == &which) entry.resume();
    return status::ok;
  });
}

template <platform Platform>
void basic_host<Platform>::hold(std::uint32_t reason, bool on) noexcept {
  if (on) {
    // [held.set] seq_cst: store-load with [busy.read]; either [held.take] sees it, or
    // [busy.read] sees the command.
    (void)held_.fetch_or(reason, std::memory_order_seq_cst);
  } else {
    // [held.clear] release: pairs with [held.read].
    (void)held_.fetch_and(~reason, std::memory_order_release);
  }
}

template <platform Platform>
void basic_host<Platform>::block_requests() noexcept {
  hold(self_blocked, true);
}

template <platform Platform>
void basic_host<Platform>::unblock_requests() noexcept {
  hold(self_blocked, false);
  run_queues();
}

/// What was sent again during a recovery goes back to its queue.
template <platform Platform>
void basic_host<Platform>::kick_requeued() noexcept {
  if (is_in_recovery()) return;
  (void)devices_.for_each(&devices::is_any, [](device_type& entry) {
    entry.queue().kick_if_requeued();
    return status::ok;
  });
}

template <platform Platform>
void basic_host<Platform>::run_queues() noexcept {
  kick_requeued();
  (void)devices_.for_each(&devices::is_not_deleted, [this](device_type& entry) {
    devices_.forget_starved(entry);
    entry.queue().run();
    return status::ok;
  });
}

template <platform Platform>
unsigned basic_host<Platform>::complete_all(int result_word) noexcept {
  unsigned ended = 0;
  (void)devices_.for_each(&devices::is_any, [&ended, result_word](device_type& entry) {
    ended += entry.complete_all(result_word);
    return status::ok;
  });
  return ended;
}

/// Busy first, then whether the driver asked for rest. Counted before the second look at
/// the recovery: whoever waits to have the host for himself counts this one, also one that
/// is refused, for a moment. So that one tells him too.
template <platform Platform>
typename basic_host<Platform>::countdown::answer basic_host<Platform>::take() noexcept {
  const typename countdown::answer room = count_.try_take();
  if (room != countdown::answer::taken) {
    if (is_in_recovery()) [[unlikely]]
      tell_handler();
    return room;
  }
  // [held.take] seq_cst: store-load with [take.count]; either this sees the recovery, or
  // the recovery counts this one.
  if (held_.load(std::memory_order_seq_cst) == 0) [[likely]]
    return room;
  give();
  return countdown::answer::wait;
}

template <platform Platform>
inline void basic_host<Platform>::give() noexcept {
  count_.give();
  if (is_in_recovery()) [[unlikely]]
    tell_handler();
}

template <platform Platform>
void basic_host<Platform>::tell_handler() noexcept {
  // [tell.add] release: pairs with [handler.seen] and [await.seen].
  (void)recovery_.fetch_add(1, std::memory_order_release);
  recovery_.wake_all();
}

// -- state

/// Whoever sleeps until the recovery is over looks again.
template <platform Platform>
void basic_host<Platform>::assign_state(host_state to) noexcept {
  // [host.set] release: pairs with [host.state].
  state_.store(to, std::memory_order_release);
  hold(recovering, scsi::is_in_recovery(to));
  tell_handler();
}

template <platform Platform>
status basic_host<Platform>::change_state(host_state to) noexcept {
  if (!can_transition(state(), to)) return status::invalid;
  assign_state(to);
  return status::ok;
}

template <platform Platform>
status basic_host<Platform>::set_state(host_state to) noexcept {
  const scoped_lock guard(state_lock_);
  return change_state(to);
}

template <platform Platform>
void basic_host<Platform>::force_state(host_state to) noexcept {
  const scoped_lock guard(state_lock_);
  assign_state(to);
}

template <platform Platform>
status basic_host<Platform>::begin_recovery() noexcept {
  const scoped_lock guard(state_lock_);
  if (change_state(host_state::recovery) == status::ok) return status::ok;
  return change_state(host_state::cancel_recovery);
}

/// begin_recovery() of the error handler, for which a host that was removed while it recovers
/// goes on recovering. `taken` is asked last: after its yes nothing refuses any more.
///
/// Returns: invalid, and it was not asked; canceled if it says no: then nothing changed.
template <platform Platform>
template <class Taken>
status basic_host<Platform>::begin_recovery_for(Taken taken) noexcept {
  const scoped_lock guard(state_lock_);
  const host_state before = state();
  host_state next = before;
  if (can_transition(before, host_state::cancel_recovery)) next = host_state::cancel_recovery;
  if (can_transition(before, host_state::recovery)) next = host_state::recovery;
  if (!scsi::is_in_recovery(next)) return status::invalid;
  if (!taken()) return status::canceled;
  assign_state(next);
  return status::ok;
}

template <platform Platform>
status basic_host<Platform>::leave_recovery() noexcept {
  const scoped_lock guard(state_lock_);
  status left = change_state(host_state::running);
  if (left != status::ok) left = change_state(host_state::cancel);
  return left == status::ok ? left : change_state(host_state::del);
}

template <platform Platform>
status basic_host<Platform>::end_recovery() noexcept {
  const status left = leave_recovery();
  if (left == status::ok) run_queues();
  return left;
}

template <platform Platform>
bool basic_host<Platform>::await_recovery(const device_type& which) noexcept {
  for (;;) {
    // [await.seen] acquire: pairs with [tell.add]; read before looking, slept on after.
    const std::uint32_t seen = recovery_.load(std::memory_order_acquire);
    if (!is_in_recovery()) break;
    if constexpr (!Platform::can_block) {
      Platform::misuse("await_recovery() would wait for ever: there is one thread only");
      break;
    }
    recovery_.wait(seen);
  }
  return is_online(which.state());
}

/// One that recovers goes on recovering, although the table would let it leave.
template <platform Platform>
status basic_host<Platform>::remove(typename device_type::unbind_fn unbind,
                                    void* context) noexcept {
  {
    const scoped_lock guard(state_lock_);
    if (state() != host_state::cancel_recovery && change_state(host_state::cancel) != status::ok &&
        change_state(host_state::cancel_recovery) != status::ok) {
      return status::ok;
    }
  }
  status result = status::ok;
  (void)devices_.for_each(&devices::is_any, [unbind, context, &result](device_type& entry) {
    const status removed = entry.remove(unbind, context);
    if (removed != status::ok) result = removed;
    return status::ok;
  });
  if (result != status::ok) return result;
  const scoped_lock guard(state_lock_);
  if (change_state(host_state::del) != status::ok) (void)change_state(host_state::del_recovery);
  return result;
}

template <platform Platform>
void basic_host<Platform>::set_resetting(bool is_under_way) noexcept {
  hold(resetting, is_under_way);
  tell_handler();
  kick_requeued();
}

template <platform Platform>
inline bool basic_host<Platform>::is_in_recovery() const noexcept {
  // [held.read] seq_cst: store-load with [give.count]; either whoever has counted sees the
  // recovery, or the recovery sees the count.
  return (held_.load(std::memory_order_seq_cst) & (recovering | resetting)) != 0;
}

template <platform Platform>
bool basic_host<Platform>::is_self_blocked() const noexcept {
  // [self.read] acquire: pairs with [held.set] and [held.clear].
  return (held_.load(std::memory_order_acquire) & self_blocked) != 0;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_DETAIL_SCSI_HOST_IMPL_HPP
