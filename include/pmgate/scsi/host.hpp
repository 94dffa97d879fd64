// SPDX-License-Identifier: MIT
//
// pmgate/scsi/host.hpp - a SCSI host: the driver, and every device behind it.
//
// block() holds all commands of all devices before the driver. The one rule to know:
// it stops at the first device that cannot be blocked, waits for nothing then and rolls
// nothing back; and it never waits for commands that the driver has taken.
//
// Counterpart: struct Scsi_Host, scsi_host_block(), scsi_block_requests(),
// scsi_target_block() and their like in Linux (semantics only).
#ifndef PMGATE_SCSI_HOST_HPP
#define PMGATE_SCSI_HOST_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/tag_set.hpp>
#include <pmgate/detail/scsi/busy_countdown.hpp>
#include <pmgate/detail/scsi/device_list.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/scsi/device.hpp>
#include <pmgate/scsi/state.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

/// The driver of a host.
template <platform Platform>
struct basic_host_template {
  /// Offers a command. 0: taken; the driver completes it once, here or later, from any
  /// thread. host_busy, device_busy, target_busy: refused and forgotten, to be offered
  /// again; any other value means host_busy.
  ///
  /// Runs in a dispatch section of the device, outside every lock, also on several
  /// threads at once. Must not block the host or quiesce a device. For a command that an
  /// error handler sends it runs under the mutex of the device's state instead, and in no
  /// section: it must not call then what changes the state, or quiesced_by().
  int (*queuecommand)(basic_host<Platform>& host, basic_command<Platform>& item) noexcept;
  void* context = nullptr;  ///< for queuecommand: host.context()
  /// Whose rules hold: which commands are privileged, which changes of state legal.
  scsi_generation generation = scsi_generation::v6_12;
  int can_queue = 0;                ///< commands the host takes at a time; 0: no limit
  int max_blocked = 7;              ///< where the countdown after "host busy" begins
  unsigned max_command_size = 260;  ///< bytes; longer ones are not sent
  /// Asks a device for its size and the like, if not null; see basic_device::check_rescan().
  void (*rescan)(basic_device<Platform>& which) noexcept = nullptr;
  /// Whether queuecommand may sleep: then the work queue calls it, not who submits.
  driver_kind kind = driver_kind::nonblocking;
};

/// What try_block() or try_unblock() did.
template <platform Platform>
struct basic_block_report {
  status result = status::ok;
  /// Who refused, or null; for a report, it may be gone by now.
  const basic_device<Platform>* refused = nullptr;
};

/// SCSI host: its devices in order of their creation, its states, its own gates.
///
/// Lifetime: neither copyable nor movable; outlives its devices.
/// Threads:  every member from any thread. Walks over devices hold no lock while they
///           deal with one; a device that is being destroyed waits for them.
/// Blocking: as each member says.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_host {
 public:
  using device_type = basic_device<Platform>;
  using target_type = basic_target<Platform>;
  using command_type = basic_command<Platform>;
  using template_type = basic_host_template<Platform>;
  using block_report = basic_block_report<Platform>;
  using time_point = typename Platform::time_point;

  /// Without devices. Kernel: a host starts in CREATED, which holds nothing either, but does
  /// not recover.
  explicit basic_host(const template_type& driver, host_state start = host_state::running) noexcept
      : driver_(driver),
        state_(start),
        held_(scsi::is_in_recovery(start) ? recovering : 0),
        count_(driver.can_queue, driver.max_blocked) {}
  ~basic_host();
  basic_host(const basic_host&) = delete;
  basic_host& operator=(const basic_host&) = delete;

  // -- holding everything

  /// Blocks every device that is not in CANCEL or DEL, and then waits for the driver's
  /// calls under way.
  ///
  /// On ok no call of queuecommand for a device that was visited runs, and none starts
  /// until unblock(). Not counted: one unblock() undoes it.
  /// Returns: ok; invalid at the first device that cannot be blocked: earlier ones stay
  /// blocked, later ones untouched, nothing was waited for; not_permitted or again as
  /// wait_blocked() of a device, with everything blocked.
  /// Blocks: for calls of queuecommand.  Kernel: scsi_host_block().
  status block() noexcept;
  /// block() that waits for calls of queuecommand until the deadline at most, and then returns
  /// timed_out: everything is blocked, and the driver may still be in a call.
  ///
  /// Blocks: until the deadline, and for a grace period.
  [[nodiscard]] status block_until(time_point deadline) noexcept;

  /// Unblocks every device that is not in CANCEL or DEL; see unblock() there.
  ///
  /// Returns: ok, also without devices; invalid at the first device that is not
  /// blocked: later ones stay blocked. So a second call fails.
  /// Blocks: no.  Kernel: scsi_host_unblock().
  status unblock(device_state new_state) noexcept;

  /// block(), all or nothing: what it has done is undone if a device refuses, or if the
  /// platform refuses the grace period.
  ///
  /// Not counted either, but may be called again while blocked, which changes nothing: one that
  /// was not scanned yet stays CREATED_BLOCK. A device in CANCEL or DEL is passed over also if it
  /// got there meanwhile. Devices that were blocked before stay so in any case; what others
  /// change meanwhile stays as they wanted it.
  /// Returns: as block(), and who refused; again also from inside a try_block() where the
  /// platform cannot block.
  /// Blocks: as block(), and for another try_block().
  [[nodiscard]] block_report try_block() noexcept;
  /// try_block() that waits for another one and for calls of queuecommand until the deadline
  /// at most: with timed_out it has undone what it did.
  ///
  /// Blocks: until the deadline, and for a grace period.
  [[nodiscard]] block_report try_block_until(time_point deadline) noexcept;

  /// Unblocks what is blocked or TRANSPORT_OFFLINE, and starts every queue that was left
  /// stopped, in whatever state the device is, DEL too.
  ///
  /// May be called again: a device that is neither is left alone, and none refuses.
  /// Returns: ok; invalid for a new state that is neither RUNNING nor TRANSPORT_OFFLINE.
  /// Blocks: no.
  block_report try_unblock(device_state new_state) noexcept;

  /// Holds every command before the driver from now on, of every class.
  ///
  /// Not counted, waits for nothing, and whoever submits does enter.
  /// Blocks: no.  Kernel: scsi_block_requests().
  void block_requests() noexcept;
  /// Undoes block_requests() and runs the queues of all devices that are not in DEL.
  ///
  /// Blocks: if the driver does.  Kernel: scsi_unblock_requests().
  void unblock_requests() noexcept;

  // -- the devices of a target, those in CANCEL and DEL passed over

  /// Blocks the devices of all targets, and waits; one that cannot be blocked is passed
  /// over and makes the result invalid.  Kernel: scsi_block_targets().
  status block_targets() noexcept {
    return block_all_of([](const target_type&) { return true; });
  }
  /// The same for the targets that hang on `parent`.
  ///
  /// Misuse: parent is itself a target, on which none hangs.
  status block_targets(const void* parent) noexcept;
  /// The same for one target.  Kernel: scsi_target_block().
  status target_block(target_type& which) noexcept {
    return block_all_of([&which](const target_type& each) { return &each == &which; });
  }
  /// Unblocks the devices of the target, all of them, whatever each says.
  ///
  /// Blocks: no.  Kernel: scsi_target_unblock().
  void target_unblock(target_type& which, device_state new_state) noexcept {
    unblock_all_of([&which](const target_type& each) { return &each == &which; }, new_state);
  }
  /// The same for all targets.
  void targets_unblock(device_state new_state) noexcept {
    unblock_all_of([](const target_type&) { return true; }, new_state);
  }
  /// The same for the targets that hang on `parent`.
  void targets_unblock(const void* parent, device_state new_state) noexcept {
    unblock_all_of([parent](const target_type& each) { return each.parent() == parent; },
                   new_state);
  }
  /// Quiesces the devices of the target, one after another, whatever each says.
  ///
  /// Blocks: as basic_device::quiesce().  Kernel: scsi_target_quiesce().
  void target_quiesce(target_type& which) noexcept;
  /// Resumes the devices of the target.
  ///
  /// Blocks: as basic_device::resume().  Kernel: scsi_target_resume().
  void target_resume(target_type& which) noexcept;

  // -- state

  /// Sets the state if the table allows it; runs nothing.
  ///
  /// What was held because of a recovery goes out within 3 ms. What was sent again during
  /// it waits until somebody runs all queues: see end_recovery(), unblock_requests().
  /// Returns: ok; invalid, and nothing changed.  Blocks: no.
  /// Kernel: scsi_host_set_state().
  status set_state(host_state to) noexcept;
  /// Assigns the state whatever the table says.  Kernel: an assignment to shost_state.
  void force_state(host_state to) noexcept;

  /// Holds every command until end_recovery(): RECOVERY, else CANCEL_RECOVERY.
  ///
  /// Returns: ok; invalid in CREATED, DEL and DEL_RECOVERY; the last one holds commands by
  /// itself.  Blocks: no.  Kernel: scsi_eh_scmd_add(), the state part.
  status begin_recovery() noexcept;
  /// Sleeps while the host recovers.
  ///
  /// Returns: whether the device is online then.
  /// Blocks: unless the platform cannot.  Kernel: scsi_block_when_processing_errors().
  bool await_recovery(const device_type& which) noexcept;
  /// RUNNING, else CANCEL, else DEL; then runs the queues of all devices not in DEL.
  ///
  /// Returns: ok; invalid if none is legal.  Blocks: if the driver does.
  /// Kernel: scsi_restart_operations().
  status end_recovery() noexcept;
  /// Removes every device, as basic_device::remove(): CANCEL, and DEL in the end.
  ///
  /// A host that recovers is removed all the same. A second call waits for the first one's
  /// devices, and does nothing; nor does one for a host in DEL.
  /// Returns: ok; what a device refused with last: the others are removed, the host stays in
  /// CANCEL, and the next call goes on from there.
  /// Blocks: as that.  Kernel: scsi_remove_host().
  status remove(typename device_type::unbind_fn unbind = nullptr, void* context = nullptr) noexcept;
  /// While set the host counts as recovering: a reset is under way.
  ///
  /// Runs nothing but what was sent again meanwhile; what is held goes out within 3 ms.
  /// Kernel: tmf_in_progress.
  void set_resetting(bool is_under_way) noexcept;

  // -- the driver's side

  /// basic_device::complete() of the command's device.
  void complete(command_type& item, int result_word = 0) noexcept {
    item.device().complete(item, result_word);
  }

  /// Has the driver ask a device for its size and the like, if the device may be asked.
  ///
  /// Returns: as basic_device::check_rescan().  Kernel: scsi_rescan_device().
  status rescan(device_type& which) noexcept {
    const status may = which.check_rescan();
    if (may == status::ok && driver_.rescan != nullptr) driver_.rescan(which);
    return may;
  }

  /// basic_device::complete_all() of every device.  Returns: how many.
  unsigned complete_all(int result_word) noexcept;

  // -- queries

  /// Calls visit(device) for each device that is not in CANCEL or DEL, in order of their
  /// creation, up to the first for which it does not return ok.
  ///
  /// Holds no lock meanwhile: visit may block, and call any member. The device it is at is not
  /// destroyed before it has returned, so it must not wait for that.
  /// Returns: ok, or what stopped it.  Kernel: shost_for_each_device(), scsi_device_get().
  template <class Visit>
  status for_each_device(Visit visit) noexcept {
    return devices_.for_each(&is_gettable, visit);
  }

  [[nodiscard]] host_state state() const noexcept {
    // [host.state] acquire: pairs with [host.set].
    return state_.load(std::memory_order_acquire);
  }
  [[nodiscard]] bool is_in_recovery() const noexcept;
  [[nodiscard]] bool is_self_blocked() const noexcept;
  /// Commands the driver has, and those just being offered to it.  Kernel: scsi_host_busy().
  [[nodiscard]] int busy() const noexcept { return count_.busy(); }
  /// The countdown after "host busy".  Kernel: host_blocked.
  [[nodiscard]] int blocked() const noexcept { return count_.blocked(); }
  [[nodiscard]] unsigned max_command_size() const noexcept { return driver_.max_command_size; }
  [[nodiscard]] driver_kind kind() const noexcept { return driver_.kind; }
  [[nodiscard]] scsi_generation generation() const noexcept { return driver_.generation; }
  [[nodiscard]] void* context() const noexcept { return driver_.context; }

 private:
  friend class basic_device<Platform>;
  friend class basic_error_handler<Platform>;
  using countdown = detail::busy_countdown<Platform>;
  using devices = detail::device_list<Platform>;

  template <class Chosen>
  status block_all_of(Chosen is_chosen) noexcept;
  template <class Chosen>
  void unblock_all_of(Chosen is_chosen, device_state new_state) noexcept;
  template <class Sleep>
  status take_turn(Sleep sleep) noexcept;
  template <class Wait>
  block_report try_block_with(Wait wait) noexcept;
  status block_devices() noexcept;
  template <class Wait>
  status wait_for_gates(Wait wait) noexcept;
  status wait_blocked() noexcept;
  status wait_blocked_until(time_point deadline) noexcept;
  void kick_requeued() noexcept;
  void run_queues() noexcept;
  typename countdown::answer take() noexcept;
  void give() noexcept;
  void tell_handler() noexcept;
  int queuecommand(command_type& item) noexcept { return driver_.queuecommand(*this, item); }
  static constexpr std::uint32_t recovering = 1;  // the state says so
  static constexpr std::uint32_t resetting = 2;
  static constexpr std::uint32_t self_blocked = 4;
  void hold(std::uint32_t reason, bool on) noexcept;
  void assign_state(host_state to) noexcept;
  status change_state(host_state to) noexcept;
  template <class Taken>
  status begin_recovery_for(Taken taken) noexcept;
  status leave_recovery() noexcept;

  const template_type driver_;
  typename Platform::template atomic<host_state> state_;
  typename Platform::template atomic<std::uint32_t> held_;  // why commands wait, as bits
  countdown count_;
  devices devices_;
  typename Platform::mutex state_lock_;   // state_'s writers
  typename Platform::wait_word turn_{0};  // one try_block() at a time: 1 while there is one
  typename Platform::wait_word recovery_{
      0};  // counts ends of recoveries, and what handlers look at
};

using host = basic_host<default_platform>;
using host_template = basic_host_template<default_platform>;

template <platform Platform>
basic_host<Platform>::~basic_host() {
  if (!devices_.empty()) Platform::misuse("scsi host destroyed while it has devices");
}

}  // namespace pmgate::scsi

#include <pmgate/detail/scsi/host_impl.hpp>

#endif  // PMGATE_SCSI_HOST_HPP
