// SPDX-License-Identifier: MIT
//
// pmgate/pm/user_step.hpp - what is stopped with the user tasks, and is no task.
//
// The one rule to know: one that was not stopped does not go on. So whoever refuses is
// left as it was.
//
// Counterpart: usermodehelper_disable(), oom_killer_disable() of Linux (semantics only).
// To be used with pm/freezer.hpp.
#ifndef PMGATE_PM_USER_STEP_HPP
#define PMGATE_PM_USER_STEP_HPP

#include <pmgate/platform.hpp>

namespace pmgate {
namespace pm {

/// Two functions of the caller's; none: nothing to stop.
template <platform Platform>
struct basic_user_step {
  /// Returns: false if it could not within the time given.
  bool (*stop)(void* context, typename Platform::duration limit) noexcept = nullptr;
  void (*go_on)(void* context) noexcept = nullptr;
  void* context = nullptr;
};

using user_step = basic_user_step<default_platform>;

}  // namespace pm

namespace detail {

/// A step, and whether it is stopped.
///
/// Threads:  one at a time: the one that freezes.
template <platform Platform>
class taken_step {
 public:
  void set(const pm::basic_user_step<Platform>& step) noexcept { step_ = step; }
  /// Returns: true if it is stopped now, or there is nothing to stop.
  [[nodiscard]] bool stop(typename Platform::duration limit) noexcept {
    if (step_.stop == nullptr || stopped_) return true;
    stopped_ = step_.stop(step_.context, limit);
    return stopped_;
  }
  void go_on() noexcept {
    if (stopped_ && step_.go_on != nullptr) step_.go_on(step_.context);
    stopped_ = false;
  }

 private:
  pm::basic_user_step<Platform> step_{};
  bool stopped_ = false;
};

}  // namespace detail
}  // namespace pmgate

#endif  // PMGATE_PM_USER_STEP_HPP
