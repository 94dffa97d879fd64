// SPDX-License-Identifier: MIT
//
// pmgate/detail/scsi/device_list.hpp - the devices of a host: walks, and those that
// wait for something of another device.
//
// The one rule to know: a walk holds no lock while it deals with a device; the
// device stays in the list till the walk has left it.
//
// Counterpart: shost_for_each_device() and the starved list (semantics only).
#ifndef PMGATE_DETAIL_SCSI_DEVICE_LIST_HPP
#define PMGATE_DETAIL_SCSI_DEVICE_LIST_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform/concept.hpp>
#include <pmgate/scsi/state.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

template <platform Platform>
class basic_device;

namespace detail {

/// The devices of a host, in order of their creation.
///
/// Threads:  every member from any thread.
/// Blocking: detach() only, for walkers on that device.
template <platform Platform>
class device_list {
 public:
  using device_type = basic_device<Platform>;
  using filter_fn = bool (*)(device_state state) noexcept;

  device_list() noexcept = default;
  device_list(const device_list&) = delete;
  device_list& operator=(const device_list&) = delete;

  static bool is_any(device_state) noexcept { return true; }
  static bool is_not_deleted(device_state state) noexcept { return state != device_state::del; }

  void attach(device_type& entry) noexcept;
  /// Takes it out of both lists, when nobody walks over it any more.
  void detach(device_type& entry) noexcept;
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }

  /// Visits devices in order, up to the first that does not answer ok.
  template <class Visit>
  status for_each(filter_fn wanted, Visit visit) noexcept;

  /// The dispatch gates of the devices whose queue is stopped, as a range; it holds each
  /// device while it is visited.
  class stopped_gates;

  /// The device waits for a completion of another one.  Kernel: starved_list.
  void note_starved(device_type& entry) noexcept;
  /// The device has got what it waited for.
  void forget_starved(device_type& entry) noexcept {
    // [starved.guess] relaxed: as [starved.look]; who is missed is run once too often.
    if (starved_.load(std::memory_order_relaxed) != 0) [[unlikely]]
      forget(entry);
  }
  /// Runs the queues of those that wait, asynchronously.
  ///
  /// Who begins to wait just now may be missed: the clock asks him again.
  void run_starved() noexcept {
    // [starved.look] relaxed: a hint; whoever is missed is offered again after a while.
    if (starved_.load(std::memory_order_relaxed) != 0) [[unlikely]]
      run_all_starved();
  }

 private:
  device_type* next_device(device_type* previous, filter_fn wanted) noexcept;
  void leave(device_type& entry) noexcept;
  device_type* take_starved() noexcept;
  bool forget_starved_locked(device_type& entry) noexcept;
  [[gnu::noinline]] void run_all_starved() noexcept;
  [[gnu::noinline]] void forget(device_type& entry) noexcept;

  typename Platform::mutex lock_;  // of all that follows, and of the devices' links
  device_type* first_ = nullptr;
  device_type* first_starved_ = nullptr;
  typename Platform::template atomic<unsigned> starved_{0};  // how many
  typename Platform::wait_word departures_{0};  // counts walkers that left a dying device
};

template <platform Platform>
void device_list<Platform>::attach(device_type& entry) noexcept {
  const scoped_lock guard(lock_);
  device_type** link = &first_;
  while (*link != nullptr) link = &(*link)->next_;
  *link = &entry;
}

template <platform Platform>
void device_list<Platform>::detach(device_type& entry) noexcept {
  for (;;) {
    // [detach.seen] acquire: pairs with [leave.count]; read before looking, slept on after.
    const std::uint32_t seen = departures_.load(std::memory_order_acquire);
    {
      const scoped_lock guard(lock_);
      entry.leaving_ = true;
      if (entry.walkers_ == 0) {
        device_type** link = &first_;
        while (*link != &entry) link = &(*link)->next_;
        *link = entry.next_;
        if (entry.starved_) (void)forget_starved_locked(entry);
        return;
      }
    }
    departures_.wait(seen);
  }
}

template <platform Platform>
typename device_list<Platform>::device_type* device_list<Platform>::next_device(
    device_type* previous, filter_fn wanted) noexcept {
  device_type* next = nullptr;
  {
    const scoped_lock guard(lock_);
    next = previous != nullptr ? previous->next_ : first_;
    while (next != nullptr && (next->leaving_ || !wanted(next->state()))) next = next->next_;
    if (next != nullptr) ++next->walkers_;
  }
  if (previous != nullptr) leave(*previous);
  return next;
}

template <platform Platform>
void device_list<Platform>::leave(device_type& entry) noexcept {
  const scoped_lock guard(lock_);
  if (--entry.walkers_ != 0 || !entry.leaving_) return;
  // [leave.count] release: pairs with [detach.seen].
  (void)departures_.fetch_add(1, std::memory_order_release);
  departures_.wake_all();
}

template <platform Platform>
template <class Visit>
status device_list<Platform>::for_each(filter_fn wanted, Visit visit) noexcept {
  device_type* entry = next_device(nullptr, wanted);
  while (entry != nullptr) {
    const status answer = visit(*entry);
    if (answer != status::ok) {
      leave(*entry);
      return answer;
    }
    entry = next_device(entry, wanted);
  }
  return status::ok;
}

template <platform Platform>
class device_list<Platform>::stopped_gates {
 public:
  struct sentinel {};
  class iterator {
   public:
    explicit iterator(device_list& list) noexcept : list_(list) { ++*this; }
    ~iterator() {
      if (at_ != nullptr) list_.leave(*at_);
    }
    iterator(const iterator&) = delete;
    iterator& operator=(const iterator&) = delete;

    auto& operator*() const noexcept { return at_->queue().sections(); }
    iterator& operator++() noexcept {
      do at_ = list_.next_device(at_, &is_any);
      while (at_ != nullptr && !at_->is_stopped());
      return *this;
    }
    friend bool operator!=(const iterator& self, sentinel) noexcept { return self.at_ != nullptr; }

   private:
    device_list& list_;
    device_type* at_ = nullptr;
  };

  explicit stopped_gates(device_list& list) noexcept : list_(list) {}
  iterator begin() noexcept { return iterator(list_); }
  sentinel end() const noexcept { return {}; }
  bool empty() noexcept { return !(begin() != end()); }

 private:
  device_list& list_;
};

// -- who waits for others

template <platform Platform>
void device_list<Platform>::note_starved(device_type& entry) noexcept {
  const scoped_lock guard(lock_);
  if (entry.starved_ || entry.leaving_) return;
  device_type** link = &first_starved_;
  while (*link != nullptr) link = &(*link)->next_starved_;
  *link = &entry;
  entry.next_starved_ = nullptr;
  entry.starved_ = true;
  // [starved.more] relaxed: the lock orders it.
  (void)starved_.fetch_add(1, std::memory_order_relaxed);
}

template <platform Platform>
bool device_list<Platform>::forget_starved_locked(device_type& entry) noexcept {
  device_type** link = &first_starved_;
  while (*link != &entry) link = &(*link)->next_starved_;
  *link = entry.next_starved_;
  entry.starved_ = false;
  // [starved.less] relaxed: the lock orders it.
  (void)starved_.fetch_sub(1, std::memory_order_relaxed);
  return !entry.leaving_;
}

/// The device that has waited longest, with a walker on it.
template <platform Platform>
typename device_list<Platform>::device_type* device_list<Platform>::take_starved() noexcept {
  const scoped_lock guard(lock_);
  while (first_starved_ != nullptr) {
    device_type& entry = *first_starved_;
    if (!forget_starved_locked(entry)) continue;
    ++entry.walkers_;
    return &entry;
  }
  return nullptr;
}

template <platform Platform>
void device_list<Platform>::forget(device_type& entry) noexcept {
  const scoped_lock guard(lock_);
  if (entry.starved_) (void)forget_starved_locked(entry);
}

/// As many as wait now; who waits again meanwhile has had his turn.
template <platform Platform>
void device_list<Platform>::run_all_starved() noexcept {
  // [starved.count] relaxed: as [starved.look].
  for (unsigned n = starved_.load(std::memory_order_relaxed); n != 0; --n) {
    device_type* const entry = take_starved();
    if (entry == nullptr) return;
    entry->queue().run(true);
    leave(*entry);
  }
}

}  // namespace detail
}  // namespace pmgate::scsi

#endif  // PMGATE_DETAIL_SCSI_DEVICE_LIST_HPP
