// SPDX-License-Identifier: MIT
//
// pmgate/scsi/target.hpp - what the devices behind one address share.
//
// A limit on what is under way, and a rest after "target busy". Walks over the devices
// of a target are the host's.
//
// Counterpart: struct scsi_target (semantics only).
#ifndef PMGATE_SCSI_TARGET_HPP
#define PMGATE_SCSI_TARGET_HPP

#include <pmgate/detail/scsi/busy_countdown.hpp>
#include <pmgate/platform.hpp>

namespace pmgate::scsi {

template <platform Platform>
class basic_device;

/// What devices behind one address share.
///
/// Lifetime: neither copyable nor movable; outlives its devices.
template <platform Platform>
class basic_target {
 public:
  /// can_queue: commands the target takes at a time; 0: no limit, and then "target
  /// busy" delays nothing either.
  explicit basic_target(int can_queue = 0) noexcept
      : limited_(can_queue > 0), count_(can_queue, 3) {}
  basic_target(const basic_target&) = delete;
  basic_target& operator=(const basic_target&) = delete;

  /// The countdown after "target busy".  Kernel: target_blocked.
  [[nodiscard]] int blocked() const noexcept { return count_.blocked(); }

 private:
  friend class basic_device<Platform>;
  bool take() noexcept {
    return !limited_ || count_.try_take() == detail::busy_countdown<Platform>::answer::taken;
  }
  void give() noexcept {
    if (limited_) count_.give();
  }

  const bool limited_;
  detail::busy_countdown<Platform> count_;
};

using target = basic_target<default_platform>;

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_TARGET_HPP
