// SPDX-License-Identifier: MIT
//
// pmgate/scsi/eh.hpp - the error handler of a host, and the commands it sends.
//
// A command that failed begins a recovery; when the driver has nothing else any more
// the handler's strategy deals with what failed, and the host goes on. The one rule
// to know: the handler's own commands pass by entry, quiesce and the table of states.
// Only BLOCK holds them, and only for the time they have.
//
// Counterpart: drivers/scsi/scsi_error.c of Linux (semantics only).
#ifndef PMGATE_SCSI_EH_HPP
#define PMGATE_SCSI_EH_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

/// What a driver brings for its error handler.
template <platform Platform>
struct basic_eh_ops {
  /// Takes a command of the handler's own back from the driver; not null. If it is completed
  /// meanwhile, that holds. When it returns, no complete() of the command runs or comes:
  /// the command may be gone. Gated by nothing, whatever the device's state.
  void (*abort)(basic_host<Platform>& host, basic_command<Platform>& item) noexcept;
  /// Deals with the failed commands, each by retry(), finish() or give_up(); null, or
  /// for those it leaves: give_up().  Kernel: eh_strategy_handler
  void (*recover)(basic_error_handler<Platform>& handler) noexcept = nullptr;
  /// The command that locks a device's door again, or null if that is not to be done. Sent
  /// with nowait after a recovery, and forgotten if it is refused.  Kernel: scsi_eh_lock_door()
  basic_command<Platform>* (*door_lock)(basic_device<Platform>& which) noexcept = nullptr;
  /// Has a host that sleeps at run time awake for a recovery, and lets it sleep again; null,
  /// both of them: it is not asked to. Unless ok the round does not take place: the host
  /// stays in recovery till the next add() or schedule().
  /// Kernel: scsi_autopm_get_host() and put, unless eh_noresume.
  status (*get_awake)(basic_host<Platform>& host) noexcept = nullptr;
  void (*put_awake)(basic_host<Platform>& host) noexcept = nullptr;
  void* context = nullptr;
};

/// Error handler of one host.
///
/// Lifetime: neither copyable nor movable; between the host's and its devices' last
///           command. Destroy it with no failed command left, after run() has returned
///           and after stop_timeouts().
/// Threads:  add() and schedule() from any thread; one thread runs it, and the strategy
///           is called there. That thread is not to be frozen.
/// Blocking: run(), and what the strategy calls as it says.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_error_handler {
 public:
  using host_type = basic_host<Platform>;
  using device_type = basic_device<Platform>;
  using command_type = basic_command<Platform>;
  using ops_type = basic_eh_ops<Platform>;
  using time_point = typename Platform::time_point;
  using duration = typename Platform::duration;

  basic_error_handler(host_type& adapter, const ops_type& ops) noexcept
      : host_(adapter), ops_(ops) {}
  ~basic_error_handler();
  basic_error_handler(const basic_error_handler&) = delete;
  basic_error_handler& operator=(const basic_error_handler&) = delete;

  // -- what begins a recovery

  /// A command that the driver has taken failed, or took too long.
  ///
  /// It stays in flight. Everything the host is sent from now on waits.
  /// Precondition: it is not over; a complete() that comes later is reported. Where the
  /// device tracks what was started it may be completed at the same time, as long as it is
  /// not sent again: either the handler has it, and complete() is without effect, or it is over.
  /// Returns: ok: it is the handler's; canceled: it is over; invalid: the host is in CREATED or
  /// DEL, and nothing was done: it is the driver's, whose complete() ends it, or over.
  /// Blocks: no.  Kernel: scsi_eh_scmd_add(), where a grace period makes sure that every
  /// dispatch is counted; here the dispatch looks twice.
  status add(command_type& item) noexcept;
  /// A recovery without a failed command.  Returns, Blocks: as add().
  /// Kernel: scsi_schedule_eh().
  status schedule() noexcept;

  /// Adds what takes too long, of the devices that track what was started, from now on.
  ///
  /// Looks at them three times in that time, so that it may be exceeded by a third. What the
  /// driver completes when it was added already is without effect: take it back first.
  /// Misuse: a second clock.
  /// Blocks: no.  Kernel: blk_mq_timeout_work(), scsi_timeout().
  /// Limits: one time for all commands of a host; a command is not aborted before the
  /// host recovers, as the kernel tries to; no driver extends the time of what is blocked.
  void start_timeouts(pm::basic_work_queue<Platform>& works, std::int64_t milliseconds) noexcept;
  /// Blocks: for a look under way.
  void stop_timeouts() noexcept;
  /// One such look, for who has a clock; one at a time. The fourth look at a command adds it.
  void check_timeouts() noexcept;

  // -- the thread

  /// Waits for recoveries and runs them, until stop().
  void run() noexcept;
  /// One recovery, if there is cause and the driver has nothing but what failed.
  ///
  /// Returns: false if there is nothing to do yet.
  bool run_pending() noexcept;
  void stop() noexcept;

  // -- for the strategy

  /// The failed command that is to be dealt with next; null: that was all.
  [[nodiscard]] command_type* next_failed() noexcept;
  /// Sends it again, behind what is held.
  void retry(command_type& item) noexcept { finish(item, status_busy); }
  /// It is over, with this result.
  void finish(command_type& item, int result_word) noexcept {
    item.with_handler_ = false;
    item.device().end(item, result_word);
  }
  /// The device is lost: OFFLINE, if the table allows it; its command ends with an error.
  void give_up(command_type& item) noexcept;

  /// Sends a command of the handler's own, and waits for its end.
  ///
  /// Calls the driver directly. Only BLOCK holds it, and is looked at every 100 ms; a
  /// driver that refuses is asked again as often. Who blocks the device waits for the
  /// driver's call: so in the call the driver must not change the device's state, or ask
  /// for more of it than state().
  /// Returns: ok: it is over, result_word() tells how; timed_out: it was not sent, or was
  /// aborted.
  /// Blocks: up to `timeout`, and for the abort.  Kernel: scsi_send_eh_cmnd().
  [[nodiscard]] status send(device_type& which, command_type& item, duration timeout) noexcept;

  // -- queries

  [[nodiscard]] host_type& host() const noexcept { return host_; }
  [[nodiscard]] void* context() const noexcept { return ops_.context; }
  /// Failed commands that nobody has dealt with yet.  Kernel: host_failed.
  [[nodiscard]] int failed() noexcept;

 private:
  bool is_due_locked() const noexcept;
  bool begin_locked() noexcept;
  void append_locked(command_type& item) noexcept;
  static void on_clock(pm::basic_work<Platform>& clock) noexcept;
  void lock_doors() noexcept;
  bool hand_over(device_type& which, command_type& item, time_point deadline) noexcept;
  static time_point next_look(time_point deadline) noexcept {
    const time_point next = Platform::now() + Platform::milliseconds(100);
    return next < deadline ? next : deadline;
  }

  host_type& host_;
  const ops_type ops_;
  typename Platform::template atomic<bool> stopped_{false};
  typename Platform::mutex lock_;  // of all that follows; taken before the host's
  command_type* first_ = nullptr;
  command_type* last_ = nullptr;
  int failed_ = 0;
  bool scheduled_ = false;
  pm::basic_work<Platform> clock_{&on_clock, this};  // this and the next: start_timeouts()'s
  pm::basic_work_queue<Platform>* works_ = nullptr;
  duration period_{};
};

using eh_ops = basic_eh_ops<default_platform>;
using error_handler = basic_error_handler<default_platform>;

template <platform Platform>
basic_error_handler<Platform>::~basic_error_handler() {
  if (failed_ != 0) Platform::misuse("scsi error handler destroyed with failed commands");
}

// -- what begins a recovery

/// A reset that is under way is none of the handler's recoveries: it would not know how to end
/// it.
template <platform Platform>
bool basic_error_handler<Platform>::begin_locked() noexcept {
  return host_.begin_recovery_for([]() noexcept { return true; }) == status::ok;
}

template <platform Platform>
void basic_error_handler<Platform>::append_locked(command_type& item) noexcept {
  item.with_handler_ = true;
  item.next_failed_ = nullptr;
  (last_ != nullptr ? last_->next_failed_ : first_) = &item;
  last_ = &item;
  ++failed_;
}

/// The host's state does not change between the question whether it can recover and the answer
/// of the slot: what is taken out is the handler's, what is not stays the driver's.
template <platform Platform>
status basic_error_handler<Platform>::add(command_type& item) noexcept {
  {
    const scoped_lock guard(lock_);
    bool is_ours = false;
    const status begun = host_.begin_recovery_for([&item, &is_ours]() noexcept {
      if (!item.device().take_started(item, item.tag())) return false;
      is_ours = item.with_handler_;
      return !is_ours;
    });
    if (is_ours) Platform::misuse("add() of a command that the error handler has");
    if (begun != status::ok) return begun;
    append_locked(item);
  }
  host_.tell_handler();
  return status::ok;
}

template <platform Platform>
status basic_error_handler<Platform>::schedule() noexcept {
  {
    const scoped_lock guard(lock_);
    if (!begin_locked()) return status::invalid;
    scheduled_ = true;
  }
  host_.tell_handler();
  return status::ok;
}

template <platform Platform>
void basic_error_handler<Platform>::start_timeouts(pm::basic_work_queue<Platform>& works,
                                                   std::int64_t milliseconds) noexcept {
  if (works_ != nullptr) {
    Platform::misuse("scsi error handler has a clock already");
    return;
  }
  works_ = &works;
  period_ = Platform::milliseconds((milliseconds + 2) / 3);
  (void)works.queue_delayed(clock_, period_);
}

template <platform Platform>
void basic_error_handler<Platform>::stop_timeouts() noexcept {
  if (works_ == nullptr) return;
  (void)works_->cancel_sync(clock_);
  works_ = nullptr;
}

template <platform Platform>
void basic_error_handler<Platform>::on_clock(pm::basic_work<Platform>& clock) noexcept {
  auto& self = *static_cast<basic_error_handler*>(clock.context());
  self.check_timeouts();
  (void)self.works_->queue_delayed(clock, self.period_);
}

/// Taken out of its slot it cannot be put back: the driver may have been turned away by then.
template <platform Platform>
void basic_error_handler<Platform>::check_timeouts() noexcept {
  bool found = false;
  (void)host_.devices_.for_each(&detail::device_list<Platform>::is_any, [&](device_type& entry) {
    entry.take_overdue([&](command_type& item) {
      const scoped_lock guard(lock_);
      if (!begin_locked()) {
        Platform::misuse("a command took too long at a host that cannot recover");
      }
      append_locked(item);
      found = true;
    });
    return status::ok;
  });
  if (found) host_.tell_handler();
}

// -- the thread

template <platform Platform>
void basic_error_handler<Platform>::run() noexcept {
  for (;;) {
    // [handler.seen] acquire: pairs with [tell.add]; read before looking, slept on after.
    const std::uint32_t seen = host_.recovery_.load(std::memory_order_acquire);
    // [stop.read] acquire: pairs with [stop.set].
    if (stopped_.load(std::memory_order_acquire)) return;
    if (run_pending()) continue;
    if constexpr (!Platform::can_block) return;
    host_.recovery_.wait(seen);
  }
}

template <platform Platform>
void basic_error_handler<Platform>::stop() noexcept {
  // [stop.set] release: pairs with [stop.read].
  stopped_.store(true, std::memory_order_release);
  host_.tell_handler();
}

template <platform Platform>
bool basic_error_handler<Platform>::is_due_locked() const noexcept {
  return (scheduled_ || failed_ != 0) && host_.busy() == failed_;
}

/// What fails while the strategy runs keeps the host in recovery, for another round. One that
/// is in none, because it cannot or somebody has ended it, keeps its state.
template <platform Platform>
bool basic_error_handler<Platform>::run_pending() noexcept {
  {
    const scoped_lock guard(lock_);
    if (!is_due_locked()) return false;
  }
  if (ops_.get_awake != nullptr && ops_.get_awake(host_) != status::ok) {
    trace_event<Platform>("scsi: a host cannot be woken for its recovery", &host_);
    return false;
  }
  {
    const scoped_lock guard(lock_);
    scheduled_ = false;
  }
  if (ops_.recover != nullptr) ops_.recover(*this);
  while (command_type* const item = next_failed()) give_up(*item);
  lock_doors();
  bool over = false;
  {
    const scoped_lock guard(lock_);
    over = !scheduled_ && first_ == nullptr &&
           (!is_in_recovery(host_.state()) || host_.leave_recovery() == status::ok);
  }
  if (over) host_.run_queues();
  if (ops_.put_awake != nullptr) ops_.put_awake(host_);
  return true;
}

template <platform Platform>
void basic_error_handler<Platform>::lock_doors() noexcept {
  if (ops_.door_lock == nullptr) return;
  constexpr auto is_there = [](device_state state) noexcept {
    return is_gettable(state) && is_online(state);
  };
  (void)host_.devices_.for_each(is_there, [this](device_type& entry) {
    command_type* const item = ops_.door_lock(entry);
    if (item != nullptr) (void)entry.submit(*item, command_flags::nowait);
    return status::ok;
  });
}

// -- for the strategy

template <platform Platform>
typename basic_error_handler<Platform>::command_type*
basic_error_handler<Platform>::next_failed() noexcept {
  const scoped_lock guard(lock_);
  command_type* const item = first_;
  if (item == nullptr) return nullptr;
  first_ = item->next_failed_;
  if (first_ == nullptr) last_ = nullptr;
  --failed_;
  return item;
}

template <platform Platform>
void basic_error_handler<Platform>::give_up(command_type& item) noexcept {
  const status offlined = item.device().set_state(device_state::offline);
  if (offlined != status::ok) trace_event<Platform>("scsi: a device cannot go offline", &item);
  finish(item, did_error);
}

/// The lock is held while the driver is called: so whoever blocks the device waits.
template <platform Platform>
bool basic_error_handler<Platform>::hand_over(device_type& which, command_type& item,
                                              time_point deadline) noexcept {
  typename Platform::wait_word never{0};
  for (;;) {
    which.state_lock_.lock();
    const bool held = which.state() == device_state::block;
    const bool taken = !held && host_.queuecommand(item) == 0;
    which.state_lock_.unlock();
    if (taken) return true;
    if (!(Platform::now() < deadline) || !Platform::can_block) return false;
    (void)never.wait_until(0, next_look(deadline));
  }
}

template <platform Platform>
status basic_error_handler<Platform>::send(device_type& which, command_type& item,
                                           duration timeout) noexcept {
  typename Platform::wait_word done{0};
  const time_point deadline = Platform::now() + timeout;
  item.device_ = &which;
  item.result_word_ = 0;
  item.handled_ = &done;
  status result = status::ok;
  if (!hand_over(which, item, deadline)) {
    result = status::timed_out;
  } else {
    // [send.done] acquire: pairs with publish_add() in complete(): the result is there.
    while (done.load(std::memory_order_acquire) == 0) {
      if constexpr (Platform::can_block) {
        if (done.wait_until(0, deadline)) continue;
      }
      ops_.abort(host_, item);
      // [send.aborted] relaxed: completed or aborted, by now it is known; the abort has waited
      // for a complete() under way, which orders the result.
      if (done.load(std::memory_order_relaxed) == 0) result = status::timed_out;
      break;
    }
  }
  done.settle();
  item.handled_ = nullptr;
  return result;
}

template <platform Platform>
int basic_error_handler<Platform>::failed() noexcept {
  const scoped_lock guard(lock_);
  return failed_;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_EH_HPP
