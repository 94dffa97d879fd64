// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/work_queue_impl.hpp - queueing, cancelling and waiting, the workers,
// and what the freezer does to a work queue.
//
// Included by pmgate/pm/work_queue.hpp, whose members these are.
#ifndef PMGATE_DETAIL_PM_WORK_QUEUE_IMPL_HPP
#define PMGATE_DETAIL_PM_WORK_QUEUE_IMPL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/pm/work_queue.hpp>

namespace pmgate::pm {

template <platform Platform>
bool basic_work_queue<Platform>::queue(work_type& item) noexcept {
  const scoped_lock guard(lock_);
  if (!items_.claim(item)) return false;
  items_.expire_timers();
  items_.place(item);
  return true;
}

template <platform Platform>
bool basic_work_queue<Platform>::queue_delayed(work_type& item, duration delay) noexcept {
  const scoped_lock guard(lock_);
  if (!items_.claim(item)) return false;
  items_.expire_timers();
  items_.place_after(item, delay);
  return true;
}

template <platform Platform>
bool basic_work_queue<Platform>::modify_delayed(work_type& item, duration delay) noexcept {
  const scoped_lock guard(lock_);
  const bool was_pending = items_.owns(item);
  if (was_pending) {
    items_.unlink(item);
  } else if (!items_.claim(item)) {
    return false;
  }
  items_.expire_timers();
  items_.place_after(item, delay);
  items_.activate_parked();
  return was_pending;
}

template <platform Platform>
bool basic_work_queue<Platform>::cancel(work_type& item) noexcept {
  const scoped_lock guard(lock_);
  return take_back(item);
}

/// Under the lock.
template <platform Platform>
bool basic_work_queue<Platform>::take_back(work_type& item) noexcept {
  if (!items_.owns(item)) return false;
  items_.unlink(item);
  items_.release(item);
  items_.activate_parked();
  return true;
}

template <platform Platform>
bool basic_work_queue<Platform>::cancel_sync(work_type& item) noexcept {
  typename schedule::waiter entry;
  bool was_pending = false;
  {
    const scoped_lock guard(lock_);
    was_pending = take_back(item);
    const auto* running = items_.runner_of(item);
    if (running == nullptr) return was_pending;
    if (!Platform::can_block || running->thread == Platform::this_thread()) {
      Platform::misuse("cancel_sync() from the work's own function");
      return was_pending;
    }
    items_.disable(item);
    entry.first = entry.last = running->ticket;
    items_.add_waiter(entry);
  }
  (void)wait_for(entry);
  const scoped_lock guard(lock_);
  items_.enable(item);
  return was_pending;
}

template <platform Platform>
status basic_work_queue<Platform>::wait_for(typename schedule::waiter& entry) noexcept {
  // [wait.done] acquire: pairs with publish_add() when the queueing is retired.
  while (entry.done.load(std::memory_order_acquire) == 0) entry.done.wait(0);
  entry.done.settle();
  return status::ok;
}

template <platform Platform>
status basic_work_queue<Platform>::flush(work_type& item) noexcept {
  typename schedule::waiter entry;
  {
    const scoped_lock guard(lock_);
    const auto* running = items_.runner_of(item);
    if (running != nullptr && running->thread == Platform::this_thread()) {
      Platform::misuse("flush() of a work from its own function");
      return status::deadlock;
    }
    const bool pending = items_.owns(item);
    if (!pending && running == nullptr) return status::ok;
    if constexpr (!Platform::can_block) {
      Platform::misuse("flush() would wait for ever: there is one thread only");
      return status::again;
    }
    if (pending && !items_.is_ready(item) && is_frozen_by_caller()) {
      Platform::misuse("flush() of a parked work by the thread that froze its queue");
      return status::deadlock;
    }
    if (pending) items_.cut_timer_short(item);
    entry.first = entry.last = pending ? items_.ticket_of(item) : running->ticket;
    items_.add_waiter(entry);
  }
  return wait_for(entry);
}

template <platform Platform>
status basic_work_queue<Platform>::flush() noexcept {
  typename schedule::waiter entry;
  {
    const scoped_lock guard(lock_);
    if (items_.runs_on_this_thread()) {
      Platform::misuse("flush() of a queue from one of its works");
      return status::deadlock;
    }
    items_.expire_timers();
    if (items_.outstanding() == 0) return status::ok;
    if constexpr (!Platform::can_block) {
      Platform::misuse("flush() would wait for ever: there is one thread only");
      return status::again;
    }
    if (items_.has_parked() && is_frozen_by_caller()) {
      Platform::misuse("flush() of parked works by the thread that froze the queue");
      return status::deadlock;
    }
    entry.last = items_.tickets();
    entry.remaining = items_.outstanding();
    items_.add_waiter(entry);
  }
  return wait_for(entry);
}

/// Nobody else is going to thaw it.
template <platform Platform>
bool basic_work_queue<Platform>::is_frozen_by_caller() noexcept {
  return items_.is_frozen() && frozen_by_ == Platform::this_thread();
}

template <platform Platform>
status basic_work_queue<Platform>::drain() noexcept {
  for (;;) {
    const status flushed = flush();
    if (flushed != status::ok) return flushed;
    const scoped_lock guard(lock_);
    if (items_.outstanding() == 0) return status::ok;
  }
}

template <platform Platform>
bool basic_work_queue<Platform>::run_one(std::uint64_t last_ticket) noexcept {
  typename schedule::runner self;
  work_type* item = nullptr;
  {
    const scoped_lock guard(lock_);
    item = items_.start(self, last_ticket);
  }
  if (item == nullptr) return false;
  item->call();
  const scoped_lock guard(lock_);
  items_.finish(self);
  return true;
}

template <platform Platform>
void basic_work_queue<Platform>::run() noexcept {
  for (;;) {
    // [run.seen] acquire: pairs with the release in wake_workers(); read before looking.
    const std::uint32_t seen = items_.wake.load(std::memory_order_acquire);
    time_point next{};
    bool timed = false;
    {
      const scoped_lock guard(lock_);
      if (stopped_) return;
      timed = items_.next_timer(next);
    }
    if (run_one(no_limit)) continue;
    if constexpr (!Platform::can_block) {
      Platform::misuse("run() would wait for ever: there is one thread only");
      return;
    }
    if (timed) {
      (void)items_.wake.wait_until(seen, next);
    } else {
      items_.wake.wait(seen);
    }
  }
}

template <platform Platform>
bool basic_work_queue<Platform>::run_pending() noexcept {
  std::uint64_t last_ticket = 0;
  {
    const scoped_lock guard(lock_);
    items_.expire_timers();
    last_ticket = items_.tickets();
  }
  bool ran = false;
  while (run_one(last_ticket)) ran = true;
  return ran;
}

template <platform Platform>
bool basic_work_queue<Platform>::next_timer(time_point& when) noexcept {
  const scoped_lock guard(lock_);
  return items_.next_timer(when);
}

template <platform Platform>
void basic_work_queue<Platform>::stop() noexcept {
  const scoped_lock guard(lock_);
  stopped_ = true;
  items_.wake_workers();
}

template <platform Platform>
void basic_work_queue<Platform>::freeze_begin() noexcept {
  freeze_for(Platform::this_thread());
}

template <platform Platform>
void basic_work_queue<Platform>::freeze_for(typename Platform::thread_id whoever_thaws) noexcept {
  const scoped_lock guard(lock_);
  if (!freezable_) return;
  if (items_.is_frozen()) {
    Platform::misuse("freeze_begin() of a work_queue that is frozen");
    return;
  }
  items_.expire_timers();
  items_.set_frozen(true);
  frozen_by_ = whoever_thaws;
}

template <platform Platform>
bool basic_work_queue<Platform>::is_busy() noexcept {
  const scoped_lock guard(lock_);
  return items_.is_frozen() && items_.active() != 0;
}

template <platform Platform>
void basic_work_queue<Platform>::thaw() noexcept {
  const scoped_lock guard(lock_);
  items_.expire_timers();
  items_.set_frozen(false);
  items_.activate_parked();
}

template <platform Platform>
bool basic_work_queue<Platform>::is_frozen() noexcept {
  const scoped_lock guard(lock_);
  return items_.is_frozen();
}

template <platform Platform>
void basic_work_queue<Platform>::save_image() noexcept {
  const scoped_lock guard(lock_);
  image_ = items_.begin_image();
}

template <platform Platform>
void basic_work_queue<Platform>::put_back_image() noexcept {
  const scoped_lock guard(lock_);
  if (image_ != 0) items_.forget_since(image_);
  if (items_.is_frozen()) frozen_by_ = Platform::this_thread();
}

template <platform Platform>
void basic_work_queue<Platform>::vanish() noexcept {
  const scoped_lock guard(lock_);
  items_.forget_since(0);
  items_.set_frozen(false);
  image_ = 0;
}

}  // namespace pmgate::pm

#endif  // PMGATE_DETAIL_PM_WORK_QUEUE_IMPL_HPP
