// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/device_walk.hpp - one phase over all devices, one after another or
// on the workers of a queue.
//
// Each device has a word that is 0 from when its turn is certain to come until its
// handler is done, also if that fails or has nothing to do. The one rule to know: who
// never gets its turn keeps a 1, or those above it would wait for ever.
//
// Counterpart: dpm_wait_for_subordinate(), dpm_wait_for_superior() and async_schedule()
// in drivers/base/power/main.c of Linux (semantics only).
#ifndef PMGATE_DETAIL_PM_DEVICE_WALK_HPP
#define PMGATE_DETAIL_PM_DEVICE_WALK_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/pm/callback_watch.hpp>
#include <pmgate/detail/pm/device_graph.hpp>
#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/pm/device_registry.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/pm/wakeup.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/status.hpp>

namespace pmgate::detail {

/// The handlers of a phase, their order and their errors.
///
/// Threads:  one phase at a time, from one thread; its handlers on any.
/// Blocking: until every handler of the phase is done.
template <platform Platform>
class device_walk : public pm::basic_device_registry<Platform> {
  using registry = pm::basic_device_registry<Platform>;

 public:
  using typename registry::device;
  using typename registry::link;
  using queue = pm::basic_work_queue<Platform>;

  /// True if the last phase on the way down ended for a wakeup: no device is to blame.
  ///
  /// Precondition: the thread that called it.
  [[nodiscard]] bool was_woken() const noexcept { return woken_; }

  /// The handler of a device, as an item of work.
  static void run_async(pm::basic_work<Platform>& item) noexcept;

 protected:
  using typename registry::power_list;
  using event = pm::event;
  using phase = pm::phase;
  using function = typename device::callbacks::function;

  device_walk() noexcept = default;
  ~device_walk() = default;

  /// The phase that what follows belongs to.
  void begin(event what, phase at) noexcept;
  status go_down(power_list from, power_list to) noexcept;
  void come_up(power_list from, power_list to) noexcept;
  template <class Callback>
  auto call(device& item, Callback callback) noexcept;

  queue* workers_ = nullptr;
  bool async_enabled_ = true;
  pm::basic_wakeup<Platform>* wakeup_ = nullptr;
  callback_watch<Platform> watch_;

 private:
  using graph = device_graph<Platform>;
  using siblings = hooked_list<device, &device::sibling_>;

  device* take_next(bool from_the_end, power_list from, power_list to) noexcept;
  bool start_async(device& item) noexcept;
  void await_async() noexcept;

  status take_down(device& item) noexcept;
  bool is_skipped(device& item) noexcept;
  bool stays_asleep(device& item) noexcept;
  status suspend_one(device& item) noexcept;
  void bring_up(device& item) noexcept;
  function find(const device& item) const noexcept;
  std::uint32_t phase_bit() const noexcept;
  static void wait_for(device& other) noexcept;
  static void signal(device& item) noexcept;

  void latch(status error) noexcept { latch_number(static_cast<int>(error)); }
  void latch_number(int error) noexcept {
    // [error.set] release: pairs with [error.read]; a later error replaces it.
    error_.store(error, std::memory_order_release);
  }
  int latched_number() const noexcept {
    // [error.read] acquire: pairs with [error.set]; who waited for the one who failed
    // sees it by [done.wait].
    return error_.load(std::memory_order_acquire);
  }
  status latched() const noexcept {
    const int error = latched_number();
    return error == a_wakeup ? status::busy : static_cast<status>(error);
  }

  static constexpr int a_wakeup = 1 << 16;  // latched among errors: no status has that number

  event event_ = event::suspend;  // of the phase under way; written between phases
  phase phase_ = phase::prepare;
  typename Platform::template atomic<int> error_{0};
  bool woken_ = false;                        // the last phase down was
  std::uint32_t started_ = 0;                 // asynchronous handlers of this phase
  typename Platform::wait_word finished_{0};  // those of them that are done
};

template <platform Platform>
void device_walk<Platform>::begin(event what, phase at) noexcept {
  event_ = what;
  phase_ = at;
  if (goes_down(at)) woken_ = false;
  latch(status::ok);
}

/// The next device changes lists before its handler runs. Its handler of the phase has
/// to run from then on: only those who do get their turn are waited for later.
template <platform Platform>
typename device_walk<Platform>::device* device_walk<Platform>::take_next(bool from_the_end,
                                                                         power_list from,
                                                                         power_list to) noexcept {
  const scoped_lock guard(this->lock_);
  device* const item = from_the_end ? this->graph_.last(from) : this->graph_.first(from);
  if (item == nullptr) return nullptr;
  if (from_the_end) {
    this->graph_.move_front(*item, to);
  } else {
    this->graph_.move_back(*item, to);
  }
  return item;
}

/// From the end of the list. An error stops the walk; who runs on a worker by then
/// is waited for, and goes no further than its look at the error.
template <platform Platform>
status device_walk<Platform>::go_down(power_list from, power_list to) noexcept {
  status result = status::ok;
  while (device* const item = take_next(true, from, to)) {
    // [down.arm] relaxed: read by handlers that start later, through the queue's lock.
    item->done_.store(0, std::memory_order_relaxed);
    if (start_async(*item)) continue;
    result = take_down(*item);
    if (result != status::ok || latched() != status::ok) break;
  }
  await_async();
  if (result != status::ok) return result;
  woken_ = latched_number() == a_wakeup;
  return latched();
}

/// From the beginning of the list, the asynchronous devices before all others: a device
/// may wait for a parent whose turn comes later.
template <platform Platform>
void device_walk<Platform>::come_up(power_list from, power_list to) noexcept {
  for (device* item = this->graph_.first(from); item != nullptr; item = graph::next(*item)) {
    // [up.arm] relaxed: as [down.arm].
    item->done_.store(0, std::memory_order_relaxed);
  }
  for (device* item = this->graph_.first(from); item != nullptr; item = graph::next(*item)) {
    item->set(device::started_bit, start_async(*item));
  }
  while (device* const item = take_next(false, from, to)) {
    if (!item->is(device::started_bit)) bring_up(*item);
  }
  await_async();
}

template <platform Platform>
bool device_walk<Platform>::start_async(device& item) noexcept {
  if constexpr (!Platform::can_block) return false;
  if (workers_ == nullptr || !async_enabled_ || !item.is_async()) return false;
  if (workers_->is_stopped()) return false;
  if (!workers_->queue(item.async_work_)) return false;
  ++started_;
  return true;
}

template <platform Platform>
void device_walk<Platform>::await_async() noexcept {
  if (started_ == 0) return;
  for (;;) {
    // [async.wait] acquire: pairs with publish_add() in run_async().
    const std::uint32_t seen = finished_.load(std::memory_order_acquire);
    if (seen == started_) break;
    finished_.wait(seen);
  }
  finished_.settle();
  // [async.reset] relaxed: nobody runs; the next handlers start through the queue's lock.
  finished_.store(0, std::memory_order_relaxed);
  started_ = 0;
}

template <platform Platform>
void device_walk<Platform>::run_async(pm::basic_work<Platform>& item) noexcept {
  auto& self = *static_cast<device*>(item.context());
  auto& tree = static_cast<device_walk&>(*self.registry_);
  if (goes_down(tree.phase_)) {
    (void)tree.take_down(self);
  } else {
    tree.bring_up(self);
  }
  tree.finished_.publish_add(1);  // the last touch: the devices and the tree may go
}

// -- one device

template <platform Platform>
void device_walk<Platform>::wait_for(device& other) noexcept {
  // [done.wait] acquire: pairs with [done.set].
  while (other.done_.load(std::memory_order_acquire) == 0) other.done_.wait(0);
}

template <platform Platform>
void device_walk<Platform>::signal(device& item) noexcept {
  // [done.set] release: pairs with [done.wait]; the callback, and its error, are visible.
  item.done_.store(1, std::memory_order_release);
  item.done_.wake_all();
}

/// Down: after children and consumers, whether they went down, failed or were skipped.
template <platform Platform>
status device_walk<Platform>::take_down(device& item) noexcept {
  if (phase_ == phase::suspend_late) item.disable_runtime(true);
  for (device* child = item.children_.first(); child != nullptr; child = siblings::next(*child)) {
    wait_for(*child);
  }
  for (link* entry = item.consumers_; entry != nullptr; entry = entry->next_consumer_) {
    if (entry->is_waited_for()) wait_for(*entry->consumer_);
  }
  const status result = is_skipped(item) ? status::ok : suspend_one(item);
  signal(item);
  return result;
}

/// True if this device does not go down: after an error, on a wakeup, or because it is
/// down already.
template <platform Platform>
bool device_walk<Platform>::is_skipped(device& item) noexcept {
  bool stop = latched() != status::ok;
  if (!stop && phase_ != phase::suspend_noirq && wakeup_ != nullptr && wakeup_->pending()) {
    latch_number(a_wakeup);  // a counted event is told once only
    stop = true;
  }
  if (phase_ == phase::suspend && item.is(device::direct_bit) && (stop || !stays_asleep(item))) {
    item.set(device::direct_bit, false);
  }
  // What stayed up in the main phase stays up: somebody below may clear its mark late.
  return stop ||
         (phase_ == phase::suspend ? item.is(device::direct_bit) : !item.is(device::suspended_bit));
}

/// Whoever is left alone must not wake up meanwhile, so it is off before we look.
template <platform Platform>
bool device_walk<Platform>::stays_asleep(device& item) noexcept {
  if (item.is(device::may_wakeup_bit)) return false;
  item.disable_runtime(true);
  if (item.is_runtime_suspended()) return true;
  item.disable_runtime(false);
  return false;
}

template <platform Platform>
status device_walk<Platform>::suspend_one(device& item) noexcept {
  const function callback = find(item);
  const status result = callback != nullptr ? call(item, callback) : status::ok;
  if (result != status::ok) {
    latch(result);
    this->note_failure(item, event_, phase_, result);
    return result;
  }
  item.set(phase_bit(), true);
  if (phase_ != phase::suspend) return result;
  if (item.parent_ != nullptr) item.parent_->set(device::direct_bit, false);
  for (link* entry = item.suppliers_; entry != nullptr; entry = entry->next_supplier_) {
    if (entry->orders()) entry->supplier_->set(device::direct_bit, false);
  }
  return result;
}

/// Up: after the parent and the suppliers; only what went down.
template <platform Platform>
void device_walk<Platform>::bring_up(device& item) noexcept {
  if (item.parent_ != nullptr) wait_for(*item.parent_);
  for (link* entry = item.suppliers_; entry != nullptr; entry = entry->next_supplier_) {
    if (entry->is_waited_for()) wait_for(*entry->supplier_);
  }
  if (phase_ == phase::resume) {
    item.disable_runtime(false);  // of one that was left alone
    const scoped_lock guard(this->lock_);
    item.set(device::prepared_bit, false);
  }
  if (item.is(phase_bit())) {
    const function callback = find(item);
    const status result = callback != nullptr ? call(item, callback) : status::ok;
    item.set(phase_bit(), false);
    if (result != status::ok) this->note_failure(item, event_, phase_, result);
  }
  if (phase_ == phase::resume_early && item.is(device::suspended_bit)) item.disable_runtime(false);
  signal(item);
}

template <platform Platform>
typename device_walk<Platform>::function device_walk<Platform>::find(
    const device& item) const noexcept {
  return item.sources_.find([this](const auto& table) { return table.find(event_, phase_); });
}

template <platform Platform>
template <class Callback>
auto device_walk<Platform>::call(device& item, Callback callback) noexcept {
  const typename callback_watch<Platform>::watched guard(watch_, item, event_, phase_, this->lock_);
  return callback(item);
}

/// The mark of who went down in this phase, or in its opposite.
template <platform Platform>
std::uint32_t device_walk<Platform>::phase_bit() const noexcept {
  switch (phase_) {
    case phase::suspend:
    case phase::resume: return device::suspended_bit;
    case phase::suspend_late:
    case phase::resume_early: return device::late_bit;
    default: return device::noirq_bit;
  }
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_PM_DEVICE_WALK_HPP
