// SPDX-License-Identifier: MIT
//
// pmgate/scsi/device.hpp - a SCSI device: two gates and a state in front of a driver.
//
// quiesce() closes the entry to ordinary commands and drains the device; block_nowait()
// holds every command before the driver and drains nothing. The one rule to know: they
// are different gates. Neither is counted: one resume() undoes every quiesce(), one
// unblock() every block_nowait().
//
// Counterpart: struct scsi_device, scsi_device_quiesce(), scsi_internal_device_block*(),
// scsi_queue_rq() of Linux (semantics only).
#ifndef PMGATE_SCSI_DEVICE_HPP
#define PMGATE_SCSI_DEVICE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/request_queue.hpp>
#include <pmgate/detail/scsi/busy_countdown.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/command.hpp>
#include <pmgate/scsi/state.hpp>
#include <pmgate/scsi/target.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

template <platform Platform>
class basic_host;
template <platform Platform>
class basic_error_handler;
namespace detail {
template <platform Platform>
class device_list;
}  // namespace detail

/// How much a device takes.
struct device_limits {
  int depth = 32;       ///< commands the driver has at a time; 0: no limit but the tags
  unsigned tags = 64;   ///< commands that have entered; who comes later waits inside
  int max_blocked = 3;  ///< where the countdown after "device busy" begins
};

/// SCSI device: states, quiesce and block, dispatch in the midlayer's order.
///
/// Lifetime: neither copyable nor movable; known to the host while it lives, and outlived
///           by it. Destroy it with no command inside; waits for walks of the host.
/// Threads:  every member from any thread. Changes of the state and of what belongs to it
///           are one step, under a mutex of the device.
/// Blocking: quiesce(), wait_blocked(), remove(), execute() and, without nowait, submit();
///           the first two have a form with a deadline.
/// Misuse:   goes to Platform::misuse() and has no effect, quiesce() excepted.
template <platform Platform>
class basic_device {
 public:
  using command_type = basic_command<Platform>;
  using host_type = basic_host<Platform>;
  using target_type = basic_target<Platform>;
  using queue_type = basic_request_queue<Platform>;
  using time_point = typename Platform::time_point;
  /// Has the upper driver let go of a device that is being removed.
  using unbind_fn = void (*)(basic_device& which, void* context) noexcept;

  /// Starts in state created, at the end of the host's list. The work queue does the
  /// asynchronous runs; it must not be one that is frozen while the device is used.
  basic_device(host_type& adapter, target_type& behind, pm::basic_work_queue<Platform>& works,
               device_limits limits = {}, gate_start start = gate_start::percpu) noexcept;
  ~basic_device();
  basic_device(const basic_device&) = delete;
  basic_device& operator=(const basic_device&) = delete;

  // -- commands

  /// Sends a command ahead of what is held, and waits for its end.
  ///
  /// Returns: ok: it is over, result_word() tells how; again: nowait, and the entry is
  /// closed to it; no_device: the device is removed. Then it was never sent.
  /// Blocks: for entry unless nowait, and until over.  Kernel: scsi_execute_cmd().
  [[nodiscard]] status execute(command_type& item, command_flags flags = {}) noexcept;

  /// Sends a command behind what is held; its done callback tells of the end.
  ///
  /// Returns: as execute(), without its end; refused, the callback is not called.
  /// Blocks: for entry unless nowait. Not for a driver that may sleep, which the work queue
  /// calls.
  [[nodiscard]] status submit(command_type& item, command_flags flags = {}) noexcept;

  /// submit() that queues a waiter instead of sleeping.
  ///
  /// Returns: as submit(), and then the waiter was not needed; in_progress: he is queued,
  /// and the command is the device's, until he is resumed or a cancel() returns true; busy:
  /// he is queued already.  Blocks: no, unless the driver does.
  [[nodiscard]] status submit_or_wait(basic_command_waiter<Platform>& queued, command_type& item,
                                      command_flags flags = {}) noexcept;
  /// submit() that gives up at the deadline with timed_out.
  [[nodiscard]] status submit_until(command_type& item, typename Platform::time_point deadline,
                                    command_flags flags = {}) noexcept;
  /// Takes a waiter out of his line; see basic_request_queue::cancel().
  [[nodiscard]] bool cancel(basic_command_waiter<Platform>& queued) noexcept {
    return queue_.cancel(queued);
  }

  /// Ends a command that the driver has taken.
  ///
  /// Status BUSY and TASK SET FULL, and DID_RESET if it asked for that, send it again
  /// instead; RESERVATION CONFLICT is reported as 0x118. Ends the countdowns of device,
  /// target and host. While the host recovers what is sent again is kept back.
  /// Precondition: queuecommand has taken it, or is being called for it.
  /// Blocks: no, unless the callback does.  Kernel: scsi_done().
  void complete(command_type& item, int result_word = 0) noexcept;

  /// Remembers from now on which commands the driver has, for complete_all() and for
  /// timeouts: whoever ends a command first ends it, and complete() is without effect then.
  ///
  /// Precondition: one slot for each tag; they outlive the device. No command yet.
  /// Limits: a command is known by its address. One that was ended while queuecommand was still
  /// called for it is not to be sent again, and no other in its place, before that call has
  /// returned: if it refuses, that is taken for an answer to the new one.
  void track_started(basic_started_slot<Platform>* slots, unsigned count) noexcept {
    slots_ = slots;
    slot_count_ = count;
  }

  /// Ends every command that the driver has, as complete().
  ///
  /// Precondition: track_started(); the driver is offered nothing and completes nothing.
  /// Returns: how many.  Kernel: scsi_host_complete_all_commands().
  unsigned complete_all(int result_word) noexcept;

  // -- state

  /// Sets the state if the table allows it; to the state it has: no effect.
  ///
  /// Neither stops, starts nor runs the queue.
  /// Returns: ok; invalid, and nothing changed.  Blocks: no.
  /// Kernel: scsi_device_set_state() under state_mutex.
  status set_state(device_state to) noexcept;
  /// set_state(), if the state is `from` or `to` already; else invalid.
  ///
  /// changed: whether it was `from`, and now is `to`.
  status set_state_from(device_state from, device_state to, bool& changed) noexcept;
  /// Assigns the state whatever the table says; touches nothing else.
  ///
  /// Kernel: an assignment to sdev_state under state_mutex.
  void force_state(device_state to) noexcept;

  /// Lets only privileged commands in, waits until nobody is inside, and sets QUIESCE.
  ///
  /// A second call of the same thread does nothing. One of another thread while
  /// quiesced is reported and, as in the kernel, raises pm_only for good.
  /// Returns: ok; invalid if the state is not RUNNING, OFFLINE, TRANSPORT_OFFLINE or
  /// QUIESCE by then, after the drain, and the entry is open again; not_permitted if
  /// the platform refused the grace period; again only where it cannot block.
  /// Blocks: without limit.  Kernel: scsi_device_quiesce().
  status quiesce() noexcept;

  /// quiesce() that gives up at the deadline with timed_out: the state is as it was, and the
  /// entry open again. Nobody gets in meanwhile.
  ///
  /// Blocks: until the deadline, and for a grace period.
  [[nodiscard]] status quiesce_until(time_point deadline) noexcept;

  /// Undoes every quiesce: QUIESCE becomes RUNNING, another state stays; the entry opens.
  ///
  /// From any thread; does not start a queue that block_nowait() stopped. Commands whose
  /// waiters are queued are sent from here.
  /// Blocks: no, unless the driver does.  Kernel: scsi_device_resume().
  void resume() noexcept;

  /// Sets BLOCK, or CREATED_BLOCK, and stops the queue; does not wait for the driver.
  ///
  /// Returns: ok; invalid in TRANSPORT_OFFLINE, CANCEL, DEL (and QUIESCE in v5_7_rc3).
  /// Blocks: no.  Kernel: scsi_internal_device_block_nowait() under state_mutex.
  status block_nowait() noexcept;

  /// Waits for the driver's calls that block_nowait() found under way.
  ///
  /// Returns, Blocks: as basic_quiesce_gate::wait_quiesced().
  status wait_blocked() noexcept { return queue_.wait_quiesced(); }
  /// wait_blocked() that gives up at the deadline with timed_out.
  [[nodiscard]] status wait_blocked_until(time_point deadline) noexcept {
    return queue_.wait_quiesced_until(deadline);
  }

  /// Undoes every block: assigns new_state (RUNNING or TRANSPORT_OFFLINE), and starts
  /// the queue if it was stopped.
  ///
  /// CREATED_BLOCK with RUNNING becomes CREATED; CANCEL and OFFLINE stay, and start.
  /// Returns: ok; invalid for another new_state, or if the device is CREATED, RUNNING,
  /// QUIESCE or DEL: nothing changed.
  /// Blocks: no.  Kernel: scsi_internal_device_unblock().
  status unblock(device_state new_state) noexcept;

  /// Removes the device: what is held fails, nobody gets in any more.
  ///
  /// unbind, if there is one, is called once, while the device is in CANCEL and takes
  /// privileged commands still; a blocked device is in DEL by then, and started. One that is
  /// stopped in another state stays so: what it holds is waited for until
  /// basic_host::try_unblock() starts it. A second call waits for the first, and does nothing;
  /// nor does one for a device that is in DEL otherwise.
  /// Returns: ok: nobody is inside; not_permitted: the platform refused the grace period, the
  /// device is in DEL, and the next call goes on from there; again only where it cannot block;
  /// deadlock, and reported, from unbind.
  /// Blocks: until nobody is inside.  Kernel: scsi_remove_device().
  status remove(unbind_fn unbind = nullptr, void* context = nullptr) noexcept;

  /// Ends the scan of the device: RUNNING, else BLOCK.
  ///
  /// Returns: ok; invalid, and nothing changed.  Blocks: no.  Kernel: scsi_add_lun().
  status finish_scan() noexcept;

  /// Whether the device may be asked for its size and the like, or to wake up by itself.
  ///
  /// Returns: ok; again unless it is RUNNING and open to everybody: who resumes a system
  /// would wait for himself.
  /// Blocks: no.  Kernel: the look of scsi_rescan_device() and of scsi_resume_device().
  [[nodiscard]] status check_rescan() const noexcept;

  /// For hibernation: the state and who has closed what, to and from an image; for a scope.
  ///
  /// put_back undoes what has changed since, and waits for nobody: whoever is inside stays.
  /// If the thread that saved had quiesced, the one that puts back has now. A device that
  /// is being removed stays so. vanish has whoever waits at a device that is quiesced told
  /// no_device, for good.
  /// Blocks: no; vanish for switches of the gate under way.  Kernel: none, it is memory.
  void keep_image(pm::image_move what) noexcept;

  // -- queries; what they say may be over when they return

  [[nodiscard]] device_state state() const noexcept {
    // [state.read] acquire: pairs with [state.set].
    return state_.load(std::memory_order_acquire);
  }
  /// True if block_nowait() stopped the queue.  Kernel: queue_stopped.
  [[nodiscard]] bool is_stopped() const noexcept {
    // [stopped.read] acquire: pairs with [stopped.set] and [stopped.clear].
    return stopped_.load(std::memory_order_acquire);
  }
  /// The thread that quiesced, or nobody.  Kernel: quiesced_by.
  [[nodiscard]] typename Platform::thread_id quiesced_by() noexcept;
  /// True if a command failed because of OFFLINE since the last change of the state.
  [[nodiscard]] bool offline_reported() const noexcept;
  /// The countdown after "device busy".  Kernel: device_blocked.
  [[nodiscard]] int blocked() const noexcept { return count_.blocked(); }
  /// Commands the driver has, and those just being offered to it.
  [[nodiscard]] int busy() const noexcept { return count_.busy(); }
  /// Commands that got as far as the driver and were not put back, those included that it
  /// was not to see: too long, or the device or host gone.  Kernel: iorequest_cnt.
  [[nodiscard]] std::uint32_t sent() const noexcept {
    // [sent.read] relaxed: a number, not a message.
    return sent_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] host_type& host() const noexcept { return host_; }
  [[nodiscard]] target_type& target() const noexcept { return target_; }
  /// For its gates and its runs. A request that is submitted there is taken for a command
  /// of this device: those are sent by the members above.
  [[nodiscard]] queue_type& queue() noexcept { return queue_; }

 private:
  friend class basic_host<Platform>;
  friend class basic_error_handler<Platform>;
  friend class detail::device_list<Platform>;
  using request_type = basic_request<Platform>;
  using countdown = detail::busy_countdown<Platform>;

  /// How far the removal is.
  enum class removal : std::uint8_t {
    none,  ///< not begun; or over, and the state is DEL
    under_way,
    open,    ///< in DEL, but the platform refused to close the entry
    closed,  ///< nobody gets in, and nobody waits until the last is out
    over,    ///< of begin_removal(): nothing to do
  };

  static constexpr scsi_generation newest = scsi_generation::v6_12;
  static constexpr std::uintptr_t looks = 3;  // the bits of a slot that count them
  static dispatch_status on_request(queue_type& queue, request_type& request) noexcept;
  dispatch_status dispatch(command_type& item) noexcept;
  dispatch_status check_state(const command_type& item) noexcept;
  dispatch_status send(command_type& item) noexcept;
  dispatch_status hand_over(command_type& item) noexcept;
  [[gnu::noinline]] void end_unsent(command_type& item, bool gone) noexcept;
  [[gnu::noinline]] void send_again(command_type& item) noexcept;
  void finish(command_type& item, int result_word, status outcome = status::ok) noexcept;
  enter_flags prepare(command_type& item, command_flags flags) noexcept;
  template <class Drain>
  status quiesce_after(Drain drain) noexcept;
  status change_state(device_state to) noexcept;
  void assign_state(device_state to) noexcept;
  [[nodiscard]] bool take_stop() noexcept;
  void stop_locked() noexcept;
  bool assign_unblocked_locked(device_state new_state) noexcept;
  status block_locked() noexcept;
  status block_undoably() noexcept;
  void end_undoably(bool undo) noexcept;
  void start_blocked(device_state new_state) noexcept;
  void end(command_type& item, int result_word) noexcept;
  void remember(command_type& item) noexcept;
  bool take_started(const command_type& item, unsigned tag) noexcept;
  template <class Visit>
  void take_overdue(Visit visit) noexcept;
  removal begin_removal() noexcept;
  void end_removal(removal end) noexcept;
  void leave_service() noexcept;
  void save_image() noexcept;
  void put_back_image() noexcept;

  /// What a block that may be undone gives back, as far as nobody else has changed it.
  struct undo {
    bool state = false;
    bool queue = false;
    bool reported = false;  // offline_reported(), with the state
    device_state before{};
  };

  /// What the image says.
  struct image {
    bool kept = false;
    bool by_caller = false;  // quiesced, by who saved it
    bool stopped = false;
    device_state state{};
    typename Platform::thread_id quiesced_by{};
  };

  host_type& host_;
  target_type& target_;
  typename Platform::template atomic<device_state> state_{device_state::created};
  typename Platform::template atomic<bool> offline_reported_{false};
  typename Platform::template atomic<std::uint32_t> sent_{0};
  basic_started_slot<Platform>* slots_ = nullptr;
  unsigned slot_count_ = 0;
  countdown count_;
  queue_type queue_;
  typename Platform::mutex state_lock_;  // state_'s writers and those of the next six
  typename Platform::thread_id quiesced_by_{};
  typename Platform::template atomic<bool> stopped_{false};
  undo undo_;
  image image_;
  removal removal_ = removal::none;
  typename Platform::thread_id remover_{};
  typename Platform::wait_word removals_{0};  // counts ends of removals
  basic_device* next_ = nullptr;  // this and the rest: under the lock of the host's list
  basic_device* next_starved_ = nullptr;
  bool starved_ = false;
  unsigned walkers_ = 0;
  bool leaving_ = false;
};

using device = basic_device<default_platform>;

template <platform Platform>
basic_device<Platform>::basic_device(host_type& adapter, target_type& behind,
                                     pm::basic_work_queue<Platform>& works, device_limits limits,
                                     gate_start start) noexcept
    : host_(adapter),
      target_(behind),
      count_(limits.depth, limits.max_blocked),
      queue_(typename queue_type::ops_type{&on_request, this}, works, limits.tags, start,
             adapter.kind()) {
  host_.devices_.attach(*this);
}

template <platform Platform>
basic_device<Platform>::~basic_device() {
  host_.devices_.detach(*this);
  const scoped_lock last(state_lock_);  // whoever removed it has left it
}

}  // namespace pmgate::scsi

#include <pmgate/detail/scsi/device_impl.hpp>
#include <pmgate/detail/scsi/device_state_impl.hpp>

#endif  // PMGATE_SCSI_DEVICE_HPP
