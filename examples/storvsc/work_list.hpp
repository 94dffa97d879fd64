// SPDX-License-Identifier: MIT
//
// storvsc/work_list.hpp - what remains to be done about the devices, remembered
// rather than begun.
//
// Work issues commands of its own. So before commands are turned away, what was
// begun is ended, and what comes later waits for the resume: otherwise the work
// would wait for commands that wait for the resume that waits for the work.
//
// Counterpart: handle_error_wq and host_scan_work.
#ifndef STORVSC_WORK_LIST_HPP
#define STORVSC_WORK_LIST_HPP

#include <array>
#include <cstddef>

#include <pmgate/platform.hpp>

#include "storvsc/adapter_config.hpp"

namespace storvsc {

/// Work, each item once. When there is too much of it, a rescan of the host stands
/// for the rest: it finds out everything anew.
///
/// Threads: any; silence() to release() by one at a time.  Blocking: silence().
class work_list {
public:
  explicit work_list(const work_callbacks& worker) noexcept : worker_(worker) {}

  void add(const work_item& item) noexcept {
    bool tell = false;
    {
      const lock guard(mutex_);
      tell = count_ == 0 && !silent_;
      for (std::size_t i = 0; i < count_; ++i) {
        if (items_[i] == item) return;
      }
      // The last place is kept for the rescan that stands for all others.
      if (count_ == capacity) return;
      items_[count_] = count_ == capacity - 1 ? work_item{} : item;
      ++count_;
      if (!silent_) takeable_ = count_;
    }
    if (tell) notify();
  }

  /// Returns: false if there is nothing to do now.
  [[nodiscard]] bool take(work_item& out) noexcept {
    const lock guard(mutex_);
    if (takeable_ == 0) return false;
    out = items_[0];
    for (std::size_t i = 1; i < count_; ++i) items_[i - 1] = items_[i];
    --count_;
    --takeable_;
    return true;
  }

  /// From now on work is only remembered; what was there before is brought to its end.
  void silence() noexcept {
    {
      const lock guard(mutex_);
      silent_ = true;
    }
    if (worker_.flush != nullptr) worker_.flush(worker_.context);
    const lock guard(mutex_);
    takeable_ = 0;
  }

  /// Work may be done again.
  void release() noexcept {
    bool tell = false;
    {
      const lock guard(mutex_);
      silent_ = false;
      takeable_ = count_;
      tell = count_ != 0;
    }
    if (tell) notify();
  }

private:
  using lock = pmgate::scoped_lock<pmgate::default_platform::mutex>;
  static constexpr std::size_t capacity = 64;

  void notify() noexcept {
    if (worker_.pending != nullptr) worker_.pending(worker_.context);
  }

  const work_callbacks worker_;
  pmgate::default_platform::mutex mutex_;
  std::array<work_item, capacity> items_{};
  std::size_t count_ = 0;
  std::size_t takeable_ = 0;  // the first ones may be taken
  bool silent_ = true;        // until the first connection
};

}  // namespace storvsc

#endif  // STORVSC_WORK_LIST_HPP
