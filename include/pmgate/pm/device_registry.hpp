// SPDX-License-Identifier: MIT
//
// pmgate/pm/device_registry.hpp - which devices there are, who needs whom, and who is
// being probed.
//
// The part of a device tree that drivers use while the system is awake. The one rule
// to know: once a device is prepared nothing comes below it until it has resumed.
//
// Counterpart: device_pm_add(), device_link_add() and device_block_probing() of Linux
// (semantics only).
#ifndef PMGATE_PM_DEVICE_REGISTRY_HPP
#define PMGATE_PM_DEVICE_REGISTRY_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/pm/device_graph.hpp>
#include <pmgate/detail/pm/transition.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// Which callback failed.
struct callback_failure {
  const char* name = nullptr;  ///< of the device
  event during = event::suspend;
  phase at = phase::prepare;
  status result = status::ok;
};

/// Devices, links, probes, and the image of all that; the base of basic_device_tree.
///
/// Lifetime: neither copyable nor movable; outlives its devices' stay in it.
/// Threads:  every member from any thread, except where a member says.
/// Blocking: no.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Limits:   devices and links stay as they are while a transition goes on or an image is
///           kept; new devices may come during a transition without one. (Kernel: they may
///           also go.)
template <platform Platform>
class basic_device_registry {
 public:
  using device = basic_device<Platform>;
  using link = basic_device_link<Platform>;

  basic_device_registry(const basic_device_registry&) = delete;
  basic_device_registry& operator=(const basic_device_registry&) = delete;

  /// Registers the device behind everybody who is there.
  ///
  /// Returns: ok; invalid if its parent is not here or it is somewhere; busy if its
  /// parent is prepared, an image is kept, or the kernel is being overwritten.
  /// Kernel: device_pm_add(), which warns.
  status add(device& item) noexcept;
  /// Returns: ok; invalid if it is not here; busy during a transition, while an image is
  /// kept, or while it has children or links.  Kernel: device_pm_remove().
  status remove(device& item) noexcept;

  /// From now on the consumer sleeps before the supplier and wakes up after it.
  ///
  /// Moves the consumer, and all who depend on it, behind everybody else.
  /// Returns: ok; deadlock if the supplier depends on the consumer (the kernel's null),
  /// unless the link orders nothing; invalid if one of them is not here or the link is in
  /// use; busy as remove().
  /// Cost: the devices and links that depend on the consumer.  Kernel: device_link_add().
  status add_link(link& entry, device& consumer, device& supplier) noexcept;
  /// Returns: ok; invalid if it is not here; busy as remove().  Kernel: device_link_del().
  status remove_link(link& entry) noexcept;

  /// A driver may be bound to a device now, until end_probe(). False from prepare to
  /// complete: the caller tries again later.  Kernel: deferred probing.
  [[nodiscard]] bool begin_probe() noexcept;
  void end_probe() noexcept;

  // -- hibernation

  /// Remembers how far down everybody is, as the snapshot of this kernel does.
  ///
  /// Precondition of the four: no phase is under way.
  void save_image() noexcept;
  /// Puts that back, whatever has happened since; false if there is no image.
  ///
  /// Blocks: for a step of runtime PM under way.
  bool put_back_image() noexcept;
  /// Forgets it.
  void discard_image() noexcept;
  /// This kernel's memory is overwritten: nobody is down any more and no callback is
  /// told. For good: what the image functions took away does not come back, and runtime
  /// PM that was held stays so.
  void vanish() noexcept;

  // -- queries

  /// Callbacks that failed in the phase.  Kernel: suspend_stats.
  [[nodiscard]] unsigned failures(phase at) noexcept;
  [[nodiscard]] callback_failure last_failure() noexcept;
  /// True from prepare to complete.
  [[nodiscard]] bool in_transition() noexcept;
  /// Calls visit(device) for everybody in the order of registration and links; during a
  /// transition those who came meanwhile, and are not prepared, come first.
  ///
  /// No member may be called from there.
  template <class Visit>
  void for_each(Visit visit) noexcept;

 protected:
  using power_list = detail::power_list;

  basic_device_registry() noexcept = default;
  ~basic_device_registry();

  /// Is told of each phase before it runs; see detail::transition::begin().
  status begin_phase(phase next, event what) noexcept;
  void end_phase() noexcept;
  void end_phase(detail::progress reached) noexcept;
  void end_transition() noexcept;
  /// Lets nobody probe from now on, and waits for those who do.
  status block_probing() noexcept;
  void note_failure(const device& item, event what, phase at, status result) noexcept;

  detail::device_graph<Platform> graph_;  // under lock_, as everything here
  typename Platform::mutex lock_;

 private:
  using graph = detail::device_graph<Platform>;

  bool is_fixed() const noexcept { return transition_.is_on() || has_image_; }
  void put_back_runtime() noexcept;
  void put_back_lists() noexcept;
  void call_image_functions(image_move what) noexcept;

  detail::transition<Platform> transition_;
  bool has_image_ = false;
  bool probing_blocked_ = false;
  std::uint32_t probes_ = 0;
  typename Platform::wait_word probe_ends_{0};
  unsigned failures_[phase_count] = {};
  callback_failure last_failure_{};
};

template <platform Platform>
basic_device_registry<Platform>::~basic_device_registry() {
  for (unsigned n = 0; n < detail::power_list_count; ++n) {
    if (graph_.first(static_cast<power_list>(n)) == nullptr) continue;
    Platform::misuse("device tree destroyed with devices in it");
    return;
  }
}

template <platform Platform>
status basic_device_registry<Platform>::add(device& item) noexcept {
  const scoped_lock guard(lock_);
  const device* const parent = item.parent_;
  if (item.registry_ != nullptr) return status::invalid;
  if (parent != nullptr && parent->registry_ != this) return status::invalid;
  if (has_image_ || (parent != nullptr && parent->is_prepared())) return status::busy;
  item.registry_ = this;
  graph_.insert(item);
  return status::ok;
}

template <platform Platform>
status basic_device_registry<Platform>::remove(device& item) noexcept {
  const scoped_lock guard(lock_);
  if (item.registry_ != this) return status::invalid;
  if (is_fixed() || !graph_.is_leaf(item)) return status::busy;
  graph_.erase(item);
  item.registry_ = nullptr;
  return status::ok;
}

template <platform Platform>
status basic_device_registry<Platform>::add_link(link& entry, device& consumer,
                                                 device& supplier) noexcept {
  const scoped_lock guard(lock_);
  if (entry.consumer_ != nullptr) return status::invalid;
  if (consumer.registry_ != this || supplier.registry_ != this) return status::invalid;
  if (is_fixed()) return status::busy;
  return graph_.connect(entry, consumer, supplier) ? status::ok : status::deadlock;
}

template <platform Platform>
status basic_device_registry<Platform>::remove_link(link& entry) noexcept {
  const scoped_lock guard(lock_);
  if (entry.consumer_ == nullptr || entry.consumer_->registry_ != this) return status::invalid;
  if (is_fixed()) return status::busy;
  graph_.disconnect(entry);
  return status::ok;
}

// -- probes

template <platform Platform>
bool basic_device_registry<Platform>::begin_probe() noexcept {
  const scoped_lock guard(lock_);
  if (!probing_blocked_) ++probes_;
  return !probing_blocked_;
}

template <platform Platform>
void basic_device_registry<Platform>::end_probe() noexcept {
  const scoped_lock guard(lock_);
  if (probes_ == 0) {
    Platform::misuse("end_probe() without begin_probe()");
    return;
  }
  if (--probes_ != 0) return;
  // [probe.end] relaxed: who waits looks again under the lock, which we hold.
  (void)probe_ends_.fetch_add(1, std::memory_order_relaxed);
  probe_ends_.wake_all();
}

template <platform Platform>
status basic_device_registry<Platform>::block_probing() noexcept {
  for (;;) {
    std::uint32_t seen = 0;
    {
      const scoped_lock guard(lock_);
      probing_blocked_ = true;
      if (probes_ == 0) return status::ok;
      // [probe.seen] relaxed: changes under the lock, which we hold.
      seen = probe_ends_.load(std::memory_order_relaxed);
    }
    if constexpr (!Platform::can_block) {
      Platform::misuse("prepare() would wait for ever: there is one thread only");
      return status::again;
    }
    probe_ends_.wait(seen);
  }
}

// -- transitions and images

template <platform Platform>
status basic_device_registry<Platform>::begin_phase(phase next, event what) noexcept {
  const scoped_lock guard(lock_);
  return transition_.begin(next, what);
}

template <platform Platform>
void basic_device_registry<Platform>::end_phase() noexcept {
  const scoped_lock guard(lock_);
  transition_.end_phase();
}

template <platform Platform>
void basic_device_registry<Platform>::end_phase(detail::progress reached) noexcept {
  const scoped_lock guard(lock_);
  transition_.end_phase(reached);
}

template <platform Platform>
void basic_device_registry<Platform>::end_transition() noexcept {
  const scoped_lock guard(lock_);
  transition_.end();
  probing_blocked_ = false;
}

template <platform Platform>
void basic_device_registry<Platform>::save_image() noexcept {
  {
    const scoped_lock guard(lock_);
    has_image_ = true;
    transition_.save_image();
    for (unsigned n = 0; n < detail::power_list_count; ++n) {
      for (device* item = graph_.first(static_cast<power_list>(n)); item != nullptr;
           item = graph::next(*item)) {
        // [image.save] relaxed: no phase is under way.
        item->image_power_ = item->power_.load(std::memory_order_relaxed);
        item->image_list_ = item->list_;
      }
    }
  }
  call_image_functions(image_move::save);
}

/// The lists one after another, those further up first, are the order of the tree, and
/// that has not changed while there is an image.
template <platform Platform>
void basic_device_registry<Platform>::put_back_lists() noexcept {
  constexpr auto all = static_cast<power_list>(detail::power_list_count - 1);
  for (unsigned n = detail::power_list_count - 1; n-- > 0;) {
    graph_.splice_front(static_cast<power_list>(n), all);
  }
  transition_.put_back_image();
  probing_blocked_ = transition_.is_on();
  device* const end = graph_.last(all);
  for (device* item = graph_.first(all); item != nullptr;) {
    device* const next = item != end ? graph::next(*item) : nullptr;
    graph_.move_back(*item, static_cast<power_list>(item->image_list_));
    // [image.restore] relaxed: no phase is under way.
    item->power_.store(item->image_power_, std::memory_order_relaxed);
    item = next;
  }
}

template <platform Platform>
bool basic_device_registry<Platform>::put_back_image() noexcept {
  {
    const scoped_lock guard(lock_);
    if (!has_image_) return false;
  }
  put_back_runtime();
  {
    const scoped_lock guard(lock_);
    put_back_lists();
  }
  call_image_functions(image_move::put_back);
  return true;
}

/// Whoever is held in the image is held again. Outside the lock: it may wait for a step.
template <platform Platform>
void basic_device_registry<Platform>::put_back_runtime() noexcept {
  for (unsigned n = detail::power_list_count; n-- > 0;) {
    for (device* item = graph_.last(static_cast<power_list>(n)); item != nullptr;
         item = graph::previous(*item)) {
      item->hold_runtime((item->image_power_ & device::runtime_held_bit) != 0);
      item->disable_runtime((item->image_power_ & device::runtime_off_bit) != 0);
    }
  }
}

/// Children first, as on the way down. Outside the lock: nobody comes or goes while there
/// is an image, or a transition goes on.
template <platform Platform>
void basic_device_registry<Platform>::call_image_functions(image_move what) noexcept {
  for (unsigned n = detail::power_list_count; n-- > 0;) {
    for (device* item = graph_.last(static_cast<power_list>(n)); item != nullptr;
         item = graph::previous(*item)) {
      if (item->image_ != nullptr) item->image_(*item, what);
    }
  }
}

template <platform Platform>
void basic_device_registry<Platform>::discard_image() noexcept {
  const scoped_lock guard(lock_);
  has_image_ = false;
}

template <platform Platform>
void basic_device_registry<Platform>::vanish() noexcept {
  {
    const scoped_lock guard(lock_);
    has_image_ = true;  // so that nobody comes meanwhile
  }
  call_image_functions(image_move::vanish);
  const scoped_lock guard(lock_);
  for (unsigned n = 1; n < detail::power_list_count; ++n) {
    while (device* const item = graph_.first(static_cast<power_list>(n))) {
      graph_.move_back(*item, power_list::active);
      item->set(~device::settings, false);
    }
  }
  transition_.end();
  probing_blocked_ = has_image_ = false;
}

// -- queries

template <platform Platform>
void basic_device_registry<Platform>::note_failure(const device& item, event what, phase at,
                                                   status result) noexcept {
  const scoped_lock guard(lock_);
  ++failures_[static_cast<unsigned>(at)];
  last_failure_ = callback_failure{item.name_, what, at, result};
}

template <platform Platform>
unsigned basic_device_registry<Platform>::failures(phase at) noexcept {
  const scoped_lock guard(lock_);
  return failures_[static_cast<unsigned>(at)];
}

template <platform Platform>
callback_failure basic_device_registry<Platform>::last_failure() noexcept {
  const scoped_lock guard(lock_);
  return last_failure_;
}

template <platform Platform>
bool basic_device_registry<Platform>::in_transition() noexcept {
  const scoped_lock guard(lock_);
  return transition_.is_on();
}

template <platform Platform>
template <class Visit>
void basic_device_registry<Platform>::for_each(Visit visit) noexcept {
  const scoped_lock guard(lock_);
  for (unsigned n = 0; n < detail::power_list_count; ++n) {
    for (device* item = graph_.first(static_cast<power_list>(n)); item != nullptr;
         item = graph::next(*item)) {
      visit(*item);
    }
  }
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_DEVICE_REGISTRY_HPP
