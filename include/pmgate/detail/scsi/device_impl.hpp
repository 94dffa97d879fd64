// SPDX-License-Identifier: MIT
//
// pmgate/detail/scsi/device_impl.hpp - the way of a command through a device: entry,
// readiness and state in the midlayer's order, the driver, and back.
//
// Included by pmgate/scsi/device.hpp, whose members these are.
//
// Counterpart: scsi_execute_cmd(), scsi_queue_rq(), scsi_dispatch_cmd() and
// scsi_complete() of Linux (semantics only).
#ifndef PMGATE_DETAIL_SCSI_DEVICE_IMPL_HPP
#define PMGATE_DETAIL_SCSI_DEVICE_IMPL_HPP

#include <atomic>
#include <bit>
#include <cstdint>

#include <pmgate/scsi/device.hpp>

namespace pmgate::scsi {

// -- commands

/// Fills in the command.  Returns: how it enters. Before 5.11 what is special passes as PM
/// does now, and both although the queue is runtime-suspended.
template <platform Platform>
enter_flags basic_device<Platform>::prepare(command_type& item, command_flags flags) noexcept {
  const bool special_passes = host_.generation() != newest;
  const bool privileged =
      has(flags, command_flags::pm) || (special_passes && has(flags, command_flags::special));
  enter_flags entry = enter_flags::none;
  if (privileged) entry = entry | enter_flags::pm;
  if (privileged && special_passes) entry = entry | enter_flags::although_suspended;
  if (has(flags, command_flags::nowait)) entry = entry | enter_flags::nowait;
  if (!item.is_idle()) return entry;  // misuse, which the queue refuses
  item.device_ = this;
  item.result_word_ = 0;
  item.retry_after_reset_ = has(flags, command_flags::retry_after_reset);
  item.fail_if_recovering_ = has(flags, command_flags::fail_if_recovering);
  return entry;
}

template <platform Platform>
status basic_device<Platform>::execute(command_type& item, command_flags flags) noexcept {
  const status entered = queue_.alloc(item, prepare(item, flags));
  if (entered != status::ok) return entered;
  return queue_.execute(item, true) == status::again ? status::again : status::ok;
}

template <platform Platform>
status basic_device<Platform>::submit(command_type& item, command_flags flags) noexcept {
  return queue_.submit(item, prepare(item, flags));
}

template <platform Platform>
status basic_device<Platform>::submit_or_wait(basic_command_waiter<Platform>& queued,
                                              command_type& item, command_flags flags) noexcept {
  const enter_flags entry = prepare(item, flags);
  if (!queued.is_queued()) queued.item_ = &item;
  const status got = queue_.alloc_or_wait(queued, item, entry);
  if (got == status::ok) queue_.execute_nowait(item);
  return got;
}

template <platform Platform>
status basic_device<Platform>::submit_until(command_type& item,
                                            typename Platform::time_point deadline,
                                            command_flags flags) noexcept {
  const status got = queue_.alloc_until(item, deadline, prepare(item, flags));
  if (got == status::ok) queue_.execute_nowait(item);
  return got;
}

template <platform Platform>
void basic_device<Platform>::complete(command_type& item, int result_word) noexcept {
  if (item.handled_ != nullptr) {
    item.result_word_ = result_word;
    item.handled_->publish_add(1);  // the last touch: the error handler may have gone on
    return;
  }
  if (!item.is_with_driver()) [[unlikely]] {
    Platform::misuse("complete() of a command the driver does not have");
    return;
  }
  if (!take_started(item, item.tag())) return;  // too late: it took too long
  if (item.with_handler_) [[unlikely]] {
    Platform::misuse("complete() of a command that the error handler has");
    return;
  }
  end(item, result_word);
}

/// Who waits for room is told before the command ends: afterwards the host may be gone.
template <platform Platform>
void basic_device<Platform>::end(command_type& item, int result_word) noexcept {
  const int status_byte = result_word & 0xff;
  const bool again = status_byte == status_busy || status_byte == status_task_set_full ||
                     (item.retry_after_reset_ && (result_word & host_byte_mask) == did_reset);
  target_.give();
  count_.give();
  if (again) {
    count_.start_countdown();
  } else {
    count_.end_countdown();
    target_.count_.end_countdown();
    host_.count_.end_countdown();
  }
  host_.give();
  host_.devices_.run_starved();
  if (again) {
    send_again(item);
    return;
  }
  if (status_byte == status_reservation_conflict) result_word |= 0x100;
  finish(item, result_word);
}

/// While the host recovers the command waits where no run finds it, for kick_requeued() of
/// the host. The recovery may end before it is there: then it is for us to kick, and
/// an entry of our own keeps the device meanwhile.
template <platform Platform>
void basic_device<Platform>::send_again(command_type& item) noexcept {
  item.mark_prepared();
  if (!host_.is_in_recovery()) [[likely]] {
    queue_.requeue(item);
    return;
  }
  queue_.gate().get(1);
  queue_.requeue(item, false);
  if (!host_.is_in_recovery()) queue_.kick_requeued();
  queue_.exit();
}

template <platform Platform>
void basic_device<Platform>::finish(command_type& item, int result_word, status outcome) noexcept {
  item.result_word_ = result_word;
  queue_.complete(item, outcome != status::ok || result_word == 0 ? outcome : status::io_error);
}

// -- what the driver has

template <platform Platform>
inline void basic_device<Platform>::remember(command_type& item) noexcept {
  if (item.tag() >= slot_count_) return;
  // [slot.set] release: pairs with [slot.take] and [slot.overdue]; the last change before
  // the driver.
  slots_[item.tag()].item.store(std::bit_cast<std::uintptr_t>(&item), std::memory_order_release);
}

/// Returns: false if somebody else has taken it out and ends it; true also without slots.
/// The tag may be another command's by then: so its address is looked at, and not `item`.
template <platform Platform>
inline bool basic_device<Platform>::take_started(const command_type& item, unsigned tag) noexcept {
  if (tag >= slot_count_) [[likely]]
    return true;
  auto& slot = slots_[tag].item;
  // [slot.mine] relaxed: as [slot.out], which finds out.
  std::uintptr_t seen = slot.load(std::memory_order_relaxed);
  while ((seen & ~looks) == std::bit_cast<std::uintptr_t>(&item)) {
    // [slot.out] relaxed: one of those who take it out succeeds; who ends a command that he
    // was given need not be shown it. It fails for one more look, too.
    if (slot.compare_exchange_weak(seen, 0, std::memory_order_relaxed, std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

/// One look of a clock. What is there for the fourth time is taken out, and visited.
///
/// The numbers of looks are in the slots, and a command that comes begins with none: so
/// it cannot be taken for the one before, which had the same address.
template <platform Platform>
template <class Visit>
void basic_device<Platform>::take_overdue(Visit visit) noexcept {
  static_assert(alignof(command_type) > looks, "a command's address has no bits to spare");
  for (unsigned tag = 0; tag < slot_count_; ++tag) {
    auto& slot = slots_[tag].item;
    // [slot.look] relaxed: a guess; [slot.age] and [slot.overdue] find out.
    std::uintptr_t seen = slot.load(std::memory_order_relaxed);
    if (seen == 0) continue;
    if ((seen & looks) != looks) {
      // [slot.age] relaxed: a number; part of what [slot.set] published.
      (void)slot.compare_exchange_strong(seen, seen + 1, std::memory_order_relaxed,
                                         std::memory_order_relaxed);
      continue;
    }
    // [slot.overdue] acquire: pairs with [slot.set]; failing, the driver was faster.
    if (slot.compare_exchange_strong(seen, 0, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
      visit(*std::bit_cast<command_type*>(seen & ~looks));
    }
  }
}

template <platform Platform>
unsigned basic_device<Platform>::complete_all(int result_word) noexcept {
  unsigned ended = 0;
  for (unsigned tag = 0; tag < slot_count_; ++tag) {
    // [slot.take] acquire: pairs with [slot.set].
    const std::uintptr_t item = slots_[tag].item.exchange(0, std::memory_order_acquire);
    if (item == 0) continue;
    ++ended;
    end(*std::bit_cast<command_type*>(item & ~looks), result_word);
  }
  return ended;
}

// -- dispatch

template <platform Platform>
dispatch_status basic_device<Platform>::on_request(queue_type& queue,
                                                   request_type& request) noexcept {
  return static_cast<basic_device*>(queue.context())->dispatch(static_cast<command_type&>(request));
}

/// Device, state and beyond; a blocked device is not asked again by the clock.
template <platform Platform>
dispatch_status basic_device<Platform>::dispatch(command_type& item) noexcept {
  const typename countdown::answer room = count_.try_take();
  if (room == countdown::answer::wait) return dispatch_status::dev_resource;
  if (room == countdown::answer::later) {
    return is_blocked(state()) ? dispatch_status::dev_resource : dispatch_status::resource;
  }
  dispatch_status answer = check_state(item);
  if (answer == dispatch_status::ok) answer = send(item);
  if (answer == dispatch_status::ok) return answer;  // the item may be gone
  count_.give();
  if (answer == dispatch_status::io_error) {
    const device_state now = state();
    // A device that is being removed is told apart: its file system need not retry.
    const bool leaving = now == device_state::cancel && host_.generation() == newest;
    finish(item, is_online(now) ? did_error : did_no_connect,
           leaving ? status::no_device : status::io_error);
    return dispatch_status::ok;
  }
  return is_blocked(state()) ? dispatch_status::dev_resource : dispatch_status::resource;
}

/// The first of two looks at the state; hand_over() takes the second.
template <platform Platform>
dispatch_status basic_device<Platform>::check_state(const command_type& item) noexcept {
  using enum device_state;
  const device_state now = state();
  if (now == running) [[likely]]
    return dispatch_status::ok;
  switch (now) {
    case running: return dispatch_status::ok;
    case created:
      // Before 5.11 a device being scanned took special commands only.
      return host_.generation() == newest || item.is_pm() ? dispatch_status::ok
                                                          : dispatch_status::io_error;
    case cancel: return item.is_pm() ? dispatch_status::ok : dispatch_status::io_error;
    case quiesce:
      if (item.is_pm()) return dispatch_status::ok;
      if (host_.generation() == newest) {  // at each offer; the kernel warns once
        trace_event<Platform>("scsi: ordinary command in a quiesced device", this);
      }
      return dispatch_status::resource;
    case block:
    case created_block: return dispatch_status::dev_resource;
    case offline:
    case transport_offline:
      // [offline.once] relaxed: says only whether it was said before.
      if (!offline_reported_.exchange(true, std::memory_order_relaxed)) {
        trace_event<Platform>("scsi: command to an offline device", this);
      }
      return dispatch_status::io_error;
    case del:
      trace_event<Platform>("scsi: command to a device that was removed", this);
      return dispatch_status::io_error;
  }
  return dispatch_status::io_error;
}

/// Target, recovery, host, in this order; what was taken is given back on a refusal.
/// Who waits for something of other devices is run when that ends.
template <platform Platform>
dispatch_status basic_device<Platform>::send(command_type& item) noexcept {
  using answer = typename countdown::answer;
  const answer room = target_.take(*this);
  if (room != answer::taken) {
    if (room == answer::wait) host_.devices_.note_starved(*this);
    return dispatch_status::resource;
  }
  dispatch_status result = dispatch_status::resource;
  if (host_.is_in_recovery()) {
    if (item.fail_if_recovering_) result = dispatch_status::io_error;
  } else {
    const answer host_room = host_.take();
    if (host_room == answer::taken) {
      host_.devices_.forget_starved(*this);
      result = hand_over(item);
      if (result == dispatch_status::ok) return result;
      host_.give();
    } else if (host_room == answer::wait) {
      host_.devices_.note_starved(*this);
    }
  }
  target_.give();
  return result;
}

/// What the driver is not to see ends as if the driver had completed it.
template <platform Platform>
void basic_device<Platform>::end_unsent(command_type& item, bool gone) noexcept {
  end(item, gone ? did_no_connect : did_abort);
}

template <platform Platform>
dispatch_status basic_device<Platform>::hand_over(command_type& item) noexcept {
  // [sent.up] relaxed: as [sent.read]. Before the call: afterwards the device may be gone.
  (void)sent_.fetch_add(1, std::memory_order_relaxed);
  const device_state now = state();
  int refusal = device_busy;
  if (!is_blocked(now)) {
    const bool too_long = item.size_ > host_.max_command_size();
    if (now == device_state::del || too_long || host_.state() == host_state::del) [[unlikely]] {
      end_unsent(item, now == device_state::del || !too_long);
      return dispatch_status::ok;
    }
    const unsigned tag = item.tag();
    remember(item);
    refusal = host_.queuecommand(item);
    if (refusal == 0) [[likely]]
      return dispatch_status::ok;
    // Refused after its time was over: the error handler has it, or has ended it.
    if (!take_started(item, tag)) return dispatch_status::ok;
  }
  // [sent.down] relaxed: as [sent.read].
  (void)sent_.fetch_sub(1, std::memory_order_relaxed);
  switch (refusal) {
    case device_busy: count_.start_countdown(); break;
    case target_busy: target_.count_.start_countdown(); break;
    default: host_.count_.start_countdown(); break;
  }
  return dispatch_status::resource;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_DETAIL_SCSI_DEVICE_IMPL_HPP
