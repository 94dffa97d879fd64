// SPDX-License-Identifier: MIT
//
// pmgate/scsi/target.hpp - what the devices behind one address share.
//
// A limit on what is under way, a rest after "target busy", and, for targets that
// need it, that only one of the devices is busy at a time. Walks over the devices
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
  /// busy" delays nothing either. single_lun: one of its devices at a time. max_blocked: where
  /// the countdown after "target busy" begins. parent: what it hangs on, a remote port for
  /// one; see basic_host::block_targets().
  explicit basic_target(int can_queue = 0, bool single_lun = false, int max_blocked = 3,
                        const void* parent = nullptr) noexcept
      : limited_(can_queue > 0),
        single_lun_(single_lun),
        parent_(parent),
        count_(can_queue, max_blocked) {}
  basic_target(const basic_target&) = delete;
  basic_target& operator=(const basic_target&) = delete;

  /// The countdown after "target busy".  Kernel: target_blocked.
  [[nodiscard]] int blocked() const noexcept { return count_.blocked(); }
  [[nodiscard]] const void* parent() const noexcept { return parent_; }

 private:
  friend class basic_device<Platform>;
  using device_type = basic_device<Platform>;
  using answer = typename detail::busy_countdown<Platform>::answer;

  answer take(const device_type& by) noexcept;
  void give() noexcept;
  bool take_alone(const device_type& by) noexcept;
  void give_alone() noexcept;

  const bool limited_;
  const bool single_lun_;
  const void* const parent_;
  detail::busy_countdown<Platform> count_;
  typename Platform::mutex lock_;      // with single_lun: of all that follows
  const device_type* user_ = nullptr;  // whose turn it is.  Kernel: starget_sdev_user
  int under_way_ = 0;
};

using target = basic_target<default_platform>;

template <platform Platform>
typename basic_target<Platform>::answer basic_target<Platform>::take(
    const device_type& by) noexcept {
  if (single_lun_ && !take_alone(by)) return answer::wait;
  if (!limited_) return answer::taken;
  const answer got = count_.try_take();
  if (got != answer::taken && single_lun_) give_alone();
  return got;
}

template <platform Platform>
void basic_target<Platform>::give() noexcept {
  if (limited_) count_.give();
  if (single_lun_) give_alone();
}

template <platform Platform>
bool basic_target<Platform>::take_alone(const device_type& by) noexcept {
  const scoped_lock guard(lock_);
  if (under_way_ != 0 && user_ != &by) return false;
  user_ = &by;
  ++under_way_;
  return true;
}

template <platform Platform>
void basic_target<Platform>::give_alone() noexcept {
  const scoped_lock guard(lock_);
  --under_way_;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_TARGET_HPP
