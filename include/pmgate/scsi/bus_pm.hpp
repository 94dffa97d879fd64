// SPDX-License-Identifier: MIT
//
// pmgate/scsi/bus_pm.hpp - what the SCSI bus does in system sleep: quiesce on the way
// down, resume on the way up.
//
// The one rule to know: on the way up the device is resumed whatever its upper driver
// said; and "bus quiesce" of a host or target means that nothing happened.
//
// Counterpart: drivers/scsi/scsi_pm.c of Linux (semantics only).
#ifndef PMGATE_SCSI_BUS_PM_HPP
#define PMGATE_SCSI_BUS_PM_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

/// Scans of hosts that somebody does asynchronously, counted: system sleep waits for them.
///
/// Lifetime: neither copyable nor movable; outlives the scans.
/// Threads:  every member from any thread.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_scans {
 public:
  basic_scans() noexcept = default;
  basic_scans(const basic_scans&) = delete;
  basic_scans& operator=(const basic_scans&) = delete;

  /// Blocks: no.
  void begin() noexcept {
    // [scan.begin] relaxed: who waits and has not seen it came first.
    (void)count_.fetch_add(1, std::memory_order_relaxed);
  }
  /// Precondition: one begin() for each.  Blocks: no.
  void end() noexcept {
    if (under_way() == 0) {
      Platform::misuse("end() of a scan that nobody began");
      return;
    }
    // [scan.end] release: pairs with [scan.count]; also for the ends before the last one.
    if (count_.fetch_sub(1, std::memory_order_release) == 1) count_.wake_all();
  }
  /// Sleeps until no scan is under way; those that begin meanwhile included.
  ///
  /// Returns: ok; again where the platform cannot block and one is under way.
  /// Orders: everything before an end() it waited for happens-before its return.
  /// Blocks: for scans.  Kernel: scsi_complete_async_scans().
  status wait() noexcept {
    for (std::uint32_t seen = under_way(); seen != 0; seen = under_way()) {
      if constexpr (!Platform::can_block) {
        Platform::misuse("a wait for scans would never end: there is one thread only");
        return status::again;
      }
      count_.wait(seen);
    }
    return status::ok;
  }
  [[nodiscard]] std::uint32_t under_way() const noexcept {
    // [scan.count] acquire: pairs with [scan.end]: what was found is there.
    return count_.load(std::memory_order_acquire);
  }

 private:
  typename Platform::wait_word count_{0};
};

using scans = basic_scans<default_platform>;

/// Before anything sleeps: a host waits for asynchronous scans, a device does nothing.
///
/// Returns, Blocks: as basic_scans::wait().  Kernel: scsi_bus_prepare().
template <platform Platform>
status bus_prepare(basic_host<Platform>&, basic_scans<Platform>& under_way) noexcept {
  return under_way.wait();
}
template <platform Platform>
status bus_prepare(basic_device<Platform>&, basic_scans<Platform>&) noexcept {
  return status::ok;
}

/// The upper driver of a device: what it does on one event. Those left null do nothing;
/// the driver of disks has no freeze and thaw, that of CD-ROMs has none of them.
template <platform Platform>
struct basic_upper_ops {
  using callback = status (*)(basic_device<Platform>& which, void* context) noexcept;
  callback suspend = nullptr;
  callback resume = nullptr;
  callback freeze = nullptr;
  callback thaw = nullptr;
  callback poweroff = nullptr;
  callback restore = nullptr;
  void* context = nullptr;
};

/// Which callback of basic_upper_ops.
template <platform Platform>
using upper_callback = typename basic_upper_ops<Platform>::callback basic_upper_ops<Platform>::*;

/// Quiesces a device and calls its upper driver; what fails undoes the quiesce.
///
/// `event`: suspend, freeze or poweroff of basic_upper_ops.
/// Returns: ok, and the device is in QUIESCE; else what quiesce() or the callback said.
/// Blocks: as basic_device::quiesce(), and if the callback does.
/// Kernel: scsi_dev_type_suspend().
template <platform Platform>
status bus_down(basic_device<Platform>& which, const basic_upper_ops<Platform>& upper,
                upper_callback<Platform> event) noexcept {
  status result = which.quiesce();
  if (result != status::ok) return result;
  if (upper.*event != nullptr) result = (upper.*event)(which, upper.context);
  if (result != status::ok) which.resume();
  return result;
}

/// Calls the upper driver while the device is still in QUIESCE, and resumes it in any case.
///
/// `event`: resume, thaw or restore of basic_upper_ops.
/// Returns: what the callback said.  Blocks: if the callback does, and as resume().
/// Kernel: scsi_dev_type_resume().
template <platform Platform>
status bus_up(basic_device<Platform>& which, const basic_upper_ops<Platform>& upper,
              upper_callback<Platform> event) noexcept {
  status result = status::ok;
  if (upper.*event != nullptr) result = (upper.*event)(which, upper.context);
  which.resume();
  return result;
}

/// Hosts and targets do nothing, down or up.
template <platform Platform>
status bus_down(basic_host<Platform>&, const basic_upper_ops<Platform>&,
                upper_callback<Platform>) noexcept {
  return status::ok;
}
template <platform Platform>
status bus_up(basic_host<Platform>&, const basic_upper_ops<Platform>&,
              upper_callback<Platform>) noexcept {
  return status::ok;
}
template <platform Platform>
status bus_down(basic_target<Platform>&, const basic_upper_ops<Platform>&,
                upper_callback<Platform>) noexcept {
  return status::ok;
}
template <platform Platform>
status bus_up(basic_target<Platform>&, const basic_upper_ops<Platform>&,
              upper_callback<Platform>) noexcept {
  return status::ok;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_BUS_PM_HPP
