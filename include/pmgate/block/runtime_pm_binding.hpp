// SPDX-License-Identifier: MIT
//
// pmgate/block/runtime_pm_binding.hpp - runtime power management that system sleep holds.
//
//     pmgate::runtime_pm_binding both(scope.device(), runtime);
//
// From prepare to complete the device is not put to sleep by runtime PM, from its late to
// its early phase it is not woken either. The one rule to know: a refused step is not an
// error. Whoever wants it is heard again: a resume by enable(), a suspend by release().
//
// Counterpart: what drivers/base/power/main.c tells the PM core of Linux (semantics only).
#ifndef PMGATE_BLOCK_RUNTIME_PM_BINDING_HPP
#define PMGATE_BLOCK_RUNTIME_PM_BINDING_HPP

#include <pmgate/block/runtime_pm.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>

namespace pmgate {

/// Binds the runtime PM of a device to the device in the tree.
///
/// The tree asks, too: whether the device sleeps, and a suspend may leave it alone, is what
/// runtime_status() says.
/// Lifetime: neither copyable nor movable; made and destroyed outside transitions; outlived
///           by both.
/// Blocking: prepare waits for a runtime suspend under way, suspend_late for any step.
/// Misuse:   goes to Platform::misuse(), from both.
template <platform Platform>
class basic_runtime_pm_binding {
 public:
  basic_runtime_pm_binding(pm::basic_device<Platform>& device,
                           basic_runtime_pm<Platform>& runtime) noexcept
      : device_(device) {
    device_.set_runtime_hooks(&hooks, &runtime);
  }
  ~basic_runtime_pm_binding() { device_.set_runtime_hooks(nullptr, nullptr); }
  basic_runtime_pm_binding(const basic_runtime_pm_binding&) = delete;
  basic_runtime_pm_binding& operator=(const basic_runtime_pm_binding&) = delete;

 private:
  using runtime_type = basic_runtime_pm<Platform>;

  static runtime_type& of(void* it) noexcept { return *static_cast<runtime_type*>(it); }
  static constexpr pm::runtime_hooks hooks = {
      .hold = [](void* it) noexcept { of(it).hold(); },
      .release = [](void* it) noexcept { of(it).release(); },
      .disable = [](void* it) noexcept { of(it).disable(); },
      .enable = [](void* it) noexcept { of(it).enable(); },
      .is_suspended =
          [](void* it) noexcept { return of(it).runtime_status() == rpm_status::suspended; },
  };

  pm::basic_device<Platform>& device_;
};

using runtime_pm_binding = basic_runtime_pm_binding<default_platform>;

}  // namespace pmgate

#endif  // PMGATE_BLOCK_RUNTIME_PM_BINDING_HPP
