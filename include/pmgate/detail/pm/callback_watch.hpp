// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/callback_watch.hpp - which callbacks run, and which of them for too
// long.
//
// It reports and does nothing else. The one rule to know: a callback that never
// returns is found only by somebody who looks.
//
// Counterpart: the DPM watchdog of Linux (semantics only; it panics).
#ifndef PMGATE_DETAIL_PM_CALLBACK_WATCH_HPP
#define PMGATE_DETAIL_PM_CALLBACK_WATCH_HPP

#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/pm/event.hpp>

namespace pmgate {
namespace pm {

/// A callback that takes, or took, too long.
template <platform Platform>
struct basic_overdue {
  const char* name = nullptr;  ///< of the device
  event during = event::suspend;
  phase at = phase::prepare;
  typename Platform::duration elapsed{};
  bool returned = false;  ///< it has come back by now
};

}  // namespace pm

namespace detail {

/// Callbacks under way, each with the time it began.
///
/// Threads: watched and look() from any thread; set() before all of them.
/// Blocking: no. Reports are made outside the lock.
template <platform Platform>
class callback_watch {
 public:
  using device = pm::basic_device<Platform>;
  using overdue = pm::basic_overdue<Platform>;
  using report_fn = void (*)(void* context, const overdue& what) noexcept;
  using list = hooked_list<device, &device::overdue_>;

  void set(typename Platform::duration limit, report_fn report, void* context) noexcept {
    limit_ = limit;
    report_ = report;
    context_ = context;
  }
  /// Has a callback watched for a scope.
  class [[nodiscard]] watched {
   public:
    watched(callback_watch& by, device& item, pm::event what, pm::phase at,
            typename Platform::mutex& lock) noexcept
        : by_(by), item_(item), lock_(lock) {
      if (by_.report_ != nullptr) by_.begin(item, what, at, lock);
    }
    ~watched() {
      if (by_.report_ != nullptr) by_.end(item_, lock_);
    }
    watched(const watched&) = delete;
    watched& operator=(const watched&) = delete;

   private:
    callback_watch& by_;
    device& item_;
    typename Platform::mutex& lock_;
  };

  /// Reports each callback under way that is overdue and was not reported yet.
  void look(typename Platform::mutex& lock) noexcept {
    overdue found;
    while (find_one(found, lock)) report_(context_, found);
  }

 private:
  void begin(device& item, pm::event what, pm::phase at, typename Platform::mutex& lock) noexcept {
    const scoped_lock guard(lock);
    item.began_ = Platform::now();
    item.in_event_ = what;
    item.in_phase_ = at;
    item.reported_ = false;
    running_.push_back(item);
  }
  void end(device& item, typename Platform::mutex& lock) noexcept {
    overdue found;
    {
      const scoped_lock guard(lock);
      running_.remove(item);
      if (!is_overdue(item, found)) return;
    }
    found.returned = true;
    report_(context_, found);
  }
  bool find_one(overdue& found, typename Platform::mutex& lock) noexcept {
    const scoped_lock guard(lock);
    for (device* item = running_.first(); item != nullptr; item = list::next(*item)) {
      if (!is_overdue(*item, found)) continue;
      item->reported_ = true;
      return true;
    }
    return false;
  }
  bool is_overdue(const device& item, overdue& found) const noexcept {
    const auto elapsed = Platform::now() - item.began_;
    if (item.reported_ || !(limit_ < elapsed)) return false;
    found = overdue{item.name_, item.in_event_, item.in_phase_, elapsed, false};
    return true;
  }

  typename Platform::duration limit_{};
  report_fn report_ = nullptr;
  void* context_ = nullptr;
  list running_;
};

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_DETAIL_PM_CALLBACK_WATCH_HPP
