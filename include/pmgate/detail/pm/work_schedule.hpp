// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/work_schedule.hpp - which item of a work queue is next.
//
// Lists and counts without a lock of their own: everything here runs under the
// lock of the queue, except the functions of the items. The one rule to know: an
// item that runs is known by its address only, since it may be gone by then.
//
// Counterpart: pool_workqueue and its inactive list (semantics only).
#ifndef PMGATE_DETAIL_PM_WORK_SCHEDULE_HPP
#define PMGATE_DETAIL_PM_WORK_SCHEDULE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/pm/work.hpp>

namespace pmgate::detail {

/// Timers, parked and ready items, those that run, and who waits for them.
///
/// Threads:  as a plain object; the lock of the queue guards it and its items.
/// Blocking: no.
template <platform Platform>
class work_schedule {
 public:
  using item_type = pm::basic_work<Platform>;
  using time_point = typename Platform::time_point;
  using duration = typename Platform::duration;

  /// An item that runs, on the stack of its worker.
  struct runner {
    const item_type* item = nullptr;
    std::uint64_t ticket = 0;
    typename Platform::thread_id thread = Platform::this_thread();
    runner* next = nullptr;
  };
  /// Somebody who waits for the queueings numbered first to last.
  struct waiter {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    std::uint64_t remaining = 1;
    waiter* next = nullptr;
    typename Platform::wait_word done{0};
  };

  explicit work_schedule(unsigned max_active) noexcept : max_active_(max_active) {}

  /// Makes the item pending here, unless it is pending somewhere.
  bool claim(item_type& item) noexcept;
  /// True if it is pending here.
  bool owns(const item_type& item) const noexcept;
  /// Numbers the item and makes it active, or parks it behind those parked already.
  void place(item_type& item) noexcept;
  /// The same when the delay is over.
  void place_after(item_type& item, duration delay) noexcept;
  /// Takes the item off its list; who waits for it goes on, its place stays free.
  void unlink(item_type& item) noexcept;
  /// The item is not pending any more, and may be gone or elsewhere afterwards.
  void release(item_type& item) noexcept;
  /// Gives free places to parked items.
  void activate_parked() noexcept;
  /// Timers expire when somebody looks. Everybody who adds an item looks first, so
  /// the order is that of timers that expire by themselves.
  void expire_timers() noexcept;
  /// Ends the delay of an item of this queue, if it has one.
  void cut_timer_short(item_type& item) noexcept;

  /// Starts the first item that is ready, does not run already, and is old enough.
  item_type* start(runner& self, std::uint64_t last_ticket) noexcept;
  void finish(runner& self) noexcept;
  const runner* runner_of(const item_type& item) const noexcept;
  bool runs_on_this_thread() const noexcept;

  std::uint64_t ticket_of(const item_type& item) const noexcept { return item.ticket_; }
  std::uint64_t tickets() const noexcept { return tickets_; }
  /// Items parked, ready or running.
  std::uint64_t outstanding() const noexcept { return outstanding_; }
  /// Items ready or running.
  std::uint64_t active() const noexcept { return active_; }
  bool next_timer(time_point& when) const noexcept;

  /// While it is disabled an item cannot be queued; nests.
  void disable(item_type& item) noexcept { ++item.disabled_; }
  void enable(item_type& item) noexcept { --item.disabled_; }

  /// From now on items count as queued after one image more. Returns: that number.
  std::uint32_t begin_image() noexcept { return ++images_; }
  /// Takes back what is pending and was queued since that image; 0: everything.
  void forget_since(std::uint32_t image) noexcept;

  /// True if something is parked that who waits would wait for until a thaw.
  bool has_parked() const noexcept { return !parked_.is_empty(); }
  bool is_ready(const item_type& item) const noexcept { return item.place_ == state::ready; }

  void set_frozen(bool frozen) noexcept { frozen_ = frozen; }
  bool is_frozen() const noexcept { return frozen_; }
  void wake_workers() noexcept;
  void add_waiter(waiter& entry) noexcept;

  typename Platform::wait_word wake{0};  ///< counts reasons for a worker to look

 private:
  using state = typename item_type::place;
  using item_list = hooked_list<item_type, &item_type::entry_>;

  std::uintptr_t own_mark() const noexcept { return reinterpret_cast<std::uintptr_t>(this); }
  bool has_room() const noexcept { return !frozen_ && (max_active_ == 0 || active_ < max_active_); }
  void make_ready(item_type& item) noexcept;
  void retire(std::uint64_t ticket) noexcept;

  const unsigned max_active_;
  bool frozen_ = false;
  std::uint32_t images_ = 0;
  std::uint64_t tickets_ = 0;
  std::uint64_t outstanding_ = 0;
  std::uint64_t active_ = 0;
  item_list timers_;  // by time
  item_list parked_;  // by ticket
  item_list ready_;   // by ticket, all lower than the parked ones'
  runner* runners_ = nullptr;
  waiter* waiters_ = nullptr;
};

template <platform Platform>
bool work_schedule<Platform>::claim(item_type& item) noexcept {
  std::uintptr_t free = item_type::nobody;
  // [claim.owner] acq_rel: acquire pairs with [release.owner], should the item come from
  // another queue; release pairs with [pending.read]. Two queues cannot both win.
  if (!item.owner_.compare_exchange_strong(free, own_mark(), std::memory_order_acq_rel,
                                           std::memory_order_relaxed)) {
    return false;
  }
  item.image_ = images_;
  if (item.disabled_ == 0) return true;
  release(item);
  return false;
}

template <platform Platform>
bool work_schedule<Platform>::owns(const item_type& item) const noexcept {
  // [owns.read] relaxed: our own mark is written under our lock only.
  return item.owner_.load(std::memory_order_relaxed) == own_mark();
}

template <platform Platform>
void work_schedule<Platform>::release(item_type& item) noexcept {
  item.place_ = state::nowhere;
  // [release.owner] release: pairs with [claim.owner] and [pending.read].
  item.owner_.store(item_type::nobody, std::memory_order_release);
}

template <platform Platform>
void work_schedule<Platform>::make_ready(item_type& item) noexcept {
  ++active_;
  item.place_ = state::ready;
  ready_.push_back(item);
}

template <platform Platform>
void work_schedule<Platform>::place(item_type& item) noexcept {
  item.ticket_ = ++tickets_;
  ++outstanding_;
  if (parked_.is_empty() && has_room()) {
    make_ready(item);
    wake_workers();
  } else {
    item.place_ = state::parked;
    parked_.push_back(item);
  }
}

template <platform Platform>
void work_schedule<Platform>::place_after(item_type& item, duration delay) noexcept {
  const time_point now = Platform::now();
  item.due_ = now + delay;
  if (!(now < item.due_)) {
    place(item);
    return;
  }
  item_type* where = timers_.first();
  while (where != nullptr && !(item.due_ < where->due_)) where = item_list::next(*where);
  item.place_ = state::timer;
  timers_.insert_before(where, item);
  if (timers_.first() == &item) wake_workers();
}

template <platform Platform>
void work_schedule<Platform>::unlink(item_type& item) noexcept {
  switch (item.place_) {
    case state::nowhere: return;
    case state::timer: timers_.remove(item); return;
    case state::parked: parked_.remove(item); break;
    case state::ready:
      ready_.remove(item);
      --active_;
      break;
  }
  --outstanding_;
  retire(item.ticket_);
}

template <platform Platform>
void work_schedule<Platform>::activate_parked() noexcept {
  while (!parked_.is_empty() && has_room()) {
    item_type& item = *parked_.first();
    parked_.remove(item);
    make_ready(item);
  }
  if (!ready_.is_empty()) wake_workers();
}

template <platform Platform>
void work_schedule<Platform>::expire_timers() noexcept {
  if (timers_.is_empty()) return;
  const time_point now = Platform::now();
  while (!timers_.is_empty() && !(now < timers_.first()->due_)) {
    item_type& item = *timers_.first();
    timers_.remove(item);
    place(item);
  }
}

template <platform Platform>
void work_schedule<Platform>::cut_timer_short(item_type& item) noexcept {
  expire_timers();
  if (item.place_ != state::timer) return;
  timers_.remove(item);
  place(item);
}

template <platform Platform>
void work_schedule<Platform>::forget_since(std::uint32_t image) noexcept {
  for (item_list* list : {&timers_, &parked_, &ready_}) {
    for (item_type* item = list->first(); item != nullptr;) {
      item_type& current = *item;
      item = item_list::next(current);
      if (current.image_ < image) continue;
      unlink(current);
      release(current);
    }
  }
}

template <platform Platform>
typename work_schedule<Platform>::item_type* work_schedule<Platform>::start(
    runner& self, std::uint64_t last_ticket) noexcept {
  expire_timers();
  item_type* item = ready_.first();
  while (item != nullptr && runner_of(*item) != nullptr) item = item_list::next(*item);
  if (item == nullptr || item->ticket_ > last_ticket) return nullptr;
  ready_.remove(*item);
  self.item = item;
  self.ticket = item->ticket_;
  self.next = runners_;
  runners_ = &self;
  release(*item);
  return item;
}

template <platform Platform>
void work_schedule<Platform>::finish(runner& self) noexcept {
  runner** link = &runners_;
  while (*link != &self) link = &(*link)->next;
  *link = self.next;
  --active_;
  --outstanding_;
  retire(self.ticket);
  activate_parked();
}

template <platform Platform>
const typename work_schedule<Platform>::runner* work_schedule<Platform>::runner_of(
    const item_type& item) const noexcept {
  const runner* entry = runners_;
  while (entry != nullptr && entry->item != &item) entry = entry->next;
  return entry;
}

template <platform Platform>
bool work_schedule<Platform>::runs_on_this_thread() const noexcept {
  const runner* entry = runners_;
  while (entry != nullptr && !(entry->thread == Platform::this_thread())) entry = entry->next;
  return entry != nullptr;
}

template <platform Platform>
bool work_schedule<Platform>::next_timer(time_point& when) const noexcept {
  if (timers_.is_empty()) return false;
  when = timers_.first()->due_;
  return true;
}

template <platform Platform>
void work_schedule<Platform>::wake_workers() noexcept {
  // [wake.count] release: pairs with the worker's [run.seen]; one that saw the old
  // value has yet to look under the lock that we hold.
  (void)wake.fetch_add(1, std::memory_order_release);
  wake.wake_all();
}

template <platform Platform>
void work_schedule<Platform>::add_waiter(waiter& entry) noexcept {
  entry.next = waiters_;
  waiters_ = &entry;
}

/// A queueing is over: run, taken back or replaced.
template <platform Platform>
void work_schedule<Platform>::retire(std::uint64_t ticket) noexcept {
  for (waiter** link = &waiters_; *link != nullptr;) {
    waiter& entry = **link;
    if (ticket < entry.first || ticket > entry.last || --entry.remaining != 0) {
      link = &entry.next;
    } else {
      *link = entry.next;
      entry.done.publish_add(1);  // the last touch: it is on the stack of who waits
    }
  }
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_PM_WORK_SCHEDULE_HPP
