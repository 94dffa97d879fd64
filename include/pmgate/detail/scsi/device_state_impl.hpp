// SPDX-License-Identifier: MIT
//
// pmgate/detail/scsi/device_state_impl.hpp - what changes the state of a device, and what
// closes and opens its gates.
//
// Included by pmgate/scsi/device.hpp, whose members these are. The one rule to know: the
// state, who quiesced and who stopped change under the mutex of the device; gates are
// closed under it too, but opened after it: whoever is let in may call back.
//
// Counterpart: scsi_device_set_state(), scsi_device_quiesce(),
// scsi_internal_device_block_nowait() and their like of Linux (semantics only).
#ifndef PMGATE_DETAIL_SCSI_DEVICE_STATE_IMPL_HPP
#define PMGATE_DETAIL_SCSI_DEVICE_STATE_IMPL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/scsi/device.hpp>

namespace pmgate::scsi {

// -- state; what changes it holds the mutex

/// Whoever sets the state has it his way: it is not given back.
template <platform Platform>
void basic_device<Platform>::assign_state(device_state to) noexcept {
  undo_.state = false;
  // [state.set] release: pairs with [state.read].
  state_.store(to, std::memory_order_release);
}

template <platform Platform>
status basic_device<Platform>::change_state(device_state to) noexcept {
  const device_state from = state();
  if (from == to) {
    undo_.state = false;  // as assign_state()
    return status::ok;
  }
  if (!can_transition(from, to, host_.generation())) return status::invalid;
  assign_state(to);
  // [offline.forget] relaxed: as [offline.once].
  offline_reported_.store(false, std::memory_order_relaxed);
  return status::ok;
}

template <platform Platform>
status basic_device<Platform>::set_state(device_state to) noexcept {
  const scoped_lock guard(state_lock_);
  return change_state(to);
}

template <platform Platform>
status basic_device<Platform>::set_state_from(device_state from, device_state to,
                                              bool& changed) noexcept {
  const scoped_lock guard(state_lock_);
  const device_state now = state();
  const status result = now == from || now == to ? change_state(to) : status::invalid;
  changed = result == status::ok && now != to;
  return result;
}

template <platform Platform>
void basic_device<Platform>::force_state(device_state to) noexcept {
  const scoped_lock guard(state_lock_);
  assign_state(to);
}

/// The state comes last: what is inside legitimately must not meet it. The grace
/// period is for a queue that somebody else keeps frozen.
template <platform Platform>
template <class Drain>
status basic_device<Platform>::quiesce_after(Drain drain) noexcept {
  {
    const scoped_lock guard(state_lock_);
    if (quiesced_by_ == Platform::this_thread()) return status::ok;
    if (!(quiesced_by_ == typename Platform::thread_id{})) {
      Platform::misuse("quiesce() of a device that another thread has quiesced");
    }
  }
  queue_.set_pm_only();
  status result = queue_.freeze_start();
  if (result == status::ok) {
    result = drain();
    if (result == status::ok && !Platform::synchronize()) result = status::not_permitted;
    queue_.unfreeze();
  }
  if (result == status::ok) {
    const scoped_lock guard(state_lock_);
    result = change_state(device_state::quiesce);
    if (result == status::ok) quiesced_by_ = Platform::this_thread();
  }
  if (result != status::ok) queue_.clear_pm_only();
  return result;
}

template <platform Platform>
status basic_device<Platform>::quiesce() noexcept {
  return quiesce_after([this]() noexcept { return queue_.freeze_wait(); });
}

template <platform Platform>
status basic_device<Platform>::quiesce_until(time_point deadline) noexcept {
  return quiesce_after([this, deadline]() noexcept {
    return queue_.freeze_wait_until(deadline) ? status::ok : status::timed_out;
  });
}

template <platform Platform>
void basic_device<Platform>::resume() noexcept {
  {
    const scoped_lock guard(state_lock_);
    if (state() == device_state::quiesce) {
      (void)change_state(device_state::running);
    } else if (undo_.before == device_state::quiesce) {
      undo_.before = device_state::running;
    }
    if (quiesced_by_ == typename Platform::thread_id{}) return;
    quiesced_by_ = typename Platform::thread_id{};
  }
  queue_.clear_pm_only();
}

/// Before the gate is closed: who takes the stop back under the mutex has a quiesce to undo
/// by then.
template <platform Platform>
void basic_device<Platform>::stop_locked() noexcept {
  // [stopped.set] release: pairs with [stopped.read].
  stopped_.store(true, std::memory_order_release);
  queue_.quiesce_nowait();
}

/// Stopping is part of the step: else an unblock might start the queue before it is
/// stopped, and leave the device RUNNING with a stopped queue.
template <platform Platform>
status basic_device<Platform>::block_locked() noexcept {
  status result = change_state(device_state::block);
  if (result != status::ok) result = change_state(device_state::created_block);
  if (result != status::ok) return result;
  undo_.queue = false;
  if (!is_stopped()) stop_locked();
  return result;
}

template <platform Platform>
status basic_device<Platform>::block_nowait() noexcept {
  const scoped_lock guard(state_lock_);
  return block_locked();
}

/// Whoever takes the stop from the device owns the one quiesce of the queue that goes with
/// it, and undoes it when he has left the mutex. Somebody may stop the queue meanwhile: that
/// is a quiesce of its own, and the queue does not start in between.
template <platform Platform>
bool basic_device<Platform>::take_stop() noexcept {
  undo_.queue = false;
  if (!is_stopped()) return false;
  // [stopped.clear] release: pairs with [stopped.read].
  stopped_.store(false, std::memory_order_release);
  return true;
}

/// Passes over a device whose removal has begun, and one that is blocked: block_nowait() would
/// make BLOCK of CREATED_BLOCK there, and forget that the device was not scanned yet.
template <platform Platform>
status basic_device<Platform>::block_undoably() noexcept {
  const scoped_lock guard(state_lock_);
  const device_state before = state();
  if (!is_gettable(before)) return status::ok;
  const bool stopped = is_stopped();
  if (stopped && is_blocked(before)) return status::ok;
  const bool reported = offline_reported();
  const status result = block_locked();
  if (result == status::ok) undo_ = {true, !stopped, reported, before};
  return result;
}

/// What somebody else has changed meanwhile stays as he wanted it.
template <platform Platform>
void basic_device<Platform>::end_undoably(bool wanted) noexcept {
  bool start = false;
  {
    const scoped_lock guard(state_lock_);
    if (wanted && undo_.state) {
      assign_state(undo_.before);
      // [offline.again] relaxed: as [offline.once].
      if (undo_.reported) offline_reported_.store(true, std::memory_order_relaxed);
    }
    if (wanted && undo_.queue) start = take_stop();
    undo_ = {};
  }
  if (start) queue_.unquiesce();
}

/// What an unblock makes of a device that is blocked, whatever the table says.
///
/// Returns: false in another state: nothing changed.
template <platform Platform>
bool basic_device<Platform>::assign_unblocked_locked(device_state new_state) noexcept {
  using enum device_state;
  const device_state now = state();
  if (!is_blocked(now) && now != transport_offline) return false;
  assign_state(now == created_block && new_state == running ? created : new_state);
  return true;
}

/// unblock() for what is blocked, and nothing for the rest; a queue that was left
/// stopped is started in any state.
template <platform Platform>
void basic_device<Platform>::start_blocked(device_state new_state) noexcept {
  bool start = false;
  {
    const scoped_lock guard(state_lock_);
    (void)assign_unblocked_locked(new_state);
    start = take_stop();
  }
  if (start) queue_.unquiesce();
}

template <platform Platform>
status basic_device<Platform>::unblock(device_state new_state) noexcept {
  using enum device_state;
  if (new_state != running && new_state != transport_offline) return status::invalid;
  bool start = false;
  {
    const scoped_lock guard(state_lock_);
    const device_state before = state();
    if (!assign_unblocked_locked(new_state) && before != cancel && before != offline) {
      return status::invalid;
    }
    start = take_stop();
  }
  if (start) queue_.unquiesce();
  return status::ok;
}

/// Waits for whoever removes it.  Returns: how far that is, for the caller to go on.
template <platform Platform>
auto basic_device<Platform>::begin_removal() noexcept -> removal {
  for (;;) {
    // [removal.seen] acquire: pairs with [removal.end]; read before looking, slept on after.
    const std::uint32_t seen = removals_.load(std::memory_order_acquire);
    {
      const scoped_lock guard(state_lock_);
      const removal found = removal_;
      if (found == removal::none && state() == device_state::del) return removal::over;
      if (found != removal::under_way) {
        removal_ = removal::under_way;
        remover_ = Platform::this_thread();
        return found;
      }
      if (remover_ == Platform::this_thread()) break;
    }
    removals_.wait(seen);
  }
  Platform::misuse("remove() of a device by its own upper driver");
  return removal::under_way;
}

/// Leaving the lock is the last touch: the destructor takes it once.
template <platform Platform>
void basic_device<Platform>::end_removal(removal end) noexcept {
  const scoped_lock guard(state_lock_);
  removal_ = end;
  // [removal.end] release: pairs with [removal.seen].
  (void)removals_.fetch_add(1, std::memory_order_release);
  removals_.wake_all();
}

/// CANCEL, or at once DEL if the table does not allow that: then what is held fails now,
/// and the upper driver finds the device gone.
template <platform Platform>
void basic_device<Platform>::leave_service() noexcept {
  bool start = false;
  {
    const scoped_lock guard(state_lock_);
    if (change_state(device_state::cancel) != status::ok) {
      assign_state(device_state::del);
      start = take_stop();
    }
  }
  if (start) queue_.unquiesce();
}

template <platform Platform>
status basic_device<Platform>::remove(unbind_fn unbind, void* context) noexcept {
  const removal found = begin_removal();
  if (found == removal::over) return status::ok;
  if (found == removal::under_way) return status::deadlock;
  if (found == removal::none) {
    leave_service();
    if (unbind != nullptr) unbind(*this, context);
    force_state(device_state::del);
    queue_.gate().mark_dying();
  }
  status result = status::ok;
  if (found != removal::closed) result = queue_.start_drain();
  removal end = result == status::ok ? removal::closed : removal::open;
  if (result == status::ok) result = queue_.freeze_wait();
  if (result == status::ok) end = removal::none;  // the state says that it is over
  end_removal(end);
  return result;
}

/// A device that is blocked for the time being is RUNNING when that is undone.
template <platform Platform>
status basic_device<Platform>::finish_scan() noexcept {
  const scoped_lock guard(state_lock_);
  const bool undoable = undo_.state;
  status result = change_state(device_state::running);
  if (result == status::ok) return result;
  result = change_state(device_state::block);
  if (result == status::ok && undoable) {
    undo_.state = true;
    undo_.before = device_state::running;
  }
  return result;
}

template <platform Platform>
status basic_device<Platform>::check_rescan() const noexcept {
  const bool open = state() == device_state::running && queue_.gate().pm_only() == 0;
  return open ? status::ok : status::again;
}

// -- images

template <platform Platform>
void basic_device<Platform>::save_image() noexcept {
  const scoped_lock guard(state_lock_);
  image_ = {true, quiesced_by_ == Platform::this_thread(), is_stopped(), state(), quiesced_by_};
}

/// Gates are closed under the mutex and opened after it, as everywhere here.
template <platform Platform>
void basic_device<Platform>::put_back_image() noexcept {
  bool open = false;
  bool start = false;
  {
    const scoped_lock guard(state_lock_);
    if (!image_.kept || !is_gettable(state())) return;
    assign_state(image_.state);
    const bool was_quiesced = !(quiesced_by_ == typename Platform::thread_id{});
    const bool to_be = !(image_.quiesced_by == typename Platform::thread_id{});
    quiesced_by_ = image_.by_caller ? Platform::this_thread() : image_.quiesced_by;
    if (to_be && !was_quiesced) queue_.set_pm_only();
    open = was_quiesced && !to_be;
    if (!image_.stopped) start = take_stop();
    if (image_.stopped && !is_stopped()) stop_locked();
  }
  if (open) queue_.clear_pm_only();
  if (start) queue_.unquiesce();
}

/// The gate alone, not the queue: that would offer what it holds to a driver that is down.
template <platform Platform>
void basic_device<Platform>::keep_image(pm::image_move what) noexcept {
  if (what == pm::image_move::save) save_image();
  if (what == pm::image_move::put_back) put_back_image();
  if (what != pm::image_move::vanish) return;
  if (quiesced_by() == typename Platform::thread_id{}) return;
  queue_.gate().mark_dying();
  (void)queue_.gate().start_drain();
}

// -- queries

template <platform Platform>
typename Platform::thread_id basic_device<Platform>::quiesced_by() noexcept {
  const scoped_lock guard(state_lock_);
  return quiesced_by_;
}

template <platform Platform>
bool basic_device<Platform>::offline_reported() const noexcept {
  // [offline.read] relaxed: as [offline.once].
  return offline_reported_.load(std::memory_order_relaxed);
}

}  // namespace pmgate::scsi

#endif  // PMGATE_DETAIL_SCSI_DEVICE_STATE_IMPL_HPP
