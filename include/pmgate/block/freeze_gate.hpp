// SPDX-License-Identifier: MIT
//
// pmgate/block/freeze_gate.hpp - who may ENTER: a door that can be closed, and
// tells when everybody who was inside has left.
//
// Whoever enters holds a reference until exit(), on whatever thread that is.
// freeze() closes the door and waits until the last reference is gone;
// unfreeze() opens it again. Freezes nest, from any number of threads. While
// pm_only is raised the door lets only power-management requests in.
//
// Counterpart: q_usage_counter, blk_mq_freeze_queue() and pm_only of Linux'
// block layer (semantics only).
#ifndef PMGATE_BLOCK_FREEZE_GATE_HPP
#define PMGATE_BLOCK_FREEZE_GATE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/enter_flags.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/ticket.hpp>
#include <pmgate/detail/block/waiter_chain.hpp>
#include <pmgate/detail/ref_core.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

namespace detail {
struct many_gates;  // in block/many_gates.hpp
}

/// Where a gate counts at first.
enum class gate_start : std::uint8_t {
  percpu,  ///< entering is a CPU-local add, a freeze takes a grace period
  atomic,  ///< one shared word; cheap to freeze, for objects that may never be used
};

// What co_await takes; in block/awaitable.hpp.
template <platform Platform>
class basic_entered;
template <platform Platform>
class basic_frozen;

/// Freeze gate: nested and timed freezes, NOWAIT, PM requests, death.
///
/// Lifetime: neither copyable nor movable. May be destroyed with nobody inside and
///           no waiter queued, also right after freeze_wait(), or the resumption
///           of freeze_or_wait(): the last exit() has let go of it.
/// Threads:  every member from any thread. A freeze has no owner: any thread
///           may undo it (so the _non_owner twins of the kernel are the same).
/// Blocking: enter() without nowait, freeze_wait() and what contains it;
///           freeze_start() and unfreeze() only for a switch under way. Each has a
///           form with a deadline, and one that queues a waiter instead.
/// Fairness: queued waiters are let in in the order in which they came, PM requests
///           first. Threads that sleep in enter() try again in any order.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Orders:   everything before an exit() happens-before freeze_wait() returns;
///           everything before unfreeze() happens-before a later entry.
/// Limits:   at most 2^30 nested set_pm_only(). A thread that enters a gate
///           it froze itself waits for ever.
template <platform Platform>
class basic_freeze_gate
    : private detail::ref_core<Platform, basic_freeze_gate<Platform>> {
 public:
  static_assert(!is_checked<Platform>, "include pmgate/block/checked_gates.hpp");
  /// The count of entries: what a basic_percpu_ref is made of.
  using count_type = detail::ref_core<Platform, basic_freeze_gate>;
  using waiter = basic_gate_waiter<Platform>;
  using time_point = typename Platform::time_point;
  /// Asked for whenever pm_only keeps out somebody who is willing to wait.
  using resume_fn = void (*)(void* context) noexcept;

  /// An entry that leaves the gate when it is destroyed.
  using ticket = basic_ticket<basic_freeze_gate>;

  explicit basic_freeze_gate(gate_start start = gate_start::percpu) noexcept;
  ~basic_freeze_gate();
  basic_freeze_gate(const basic_freeze_gate&) = delete;
  basic_freeze_gate& operator=(const basic_freeze_gate&) = delete;

  // -- entering and leaving

  /// Enters, waiting while the gate is closed to this caller.
  ///
  /// Returns: ok; again if nowait and closed, whatever the reason; no_device
  /// if the gate is dying and closed (a dying gate that is open lets one in).
  /// Blocks: unless nowait, without limit.  Cost: one CPU-local add when open.
  /// Kernel: blk_queue_enter(), without its busy loop at a pm_only queue
  /// that has no PM device.
  [[nodiscard]] status enter(enter_flags flags = {}) noexcept;

  /// enter() that gives up at the deadline with timed_out.
  [[nodiscard]] status enter_until(time_point deadline, enter_flags flags = {}) noexcept;

  /// enter() that is refused with no_device also when `gone()` says so, which is asked
  /// before each sleep: whoever makes it say so calls start_drain() afterwards.
  ///
  /// Kernel: bio_queue_enter(), whose waiters look for the death of their disk.
  template <class Gone>
  [[nodiscard]] status enter_unless(Gone gone, enter_flags flags = {}) noexcept;
  /// The same with a deadline.
  template <class Gone>
  [[nodiscard]] status enter_unless_until(Gone gone, time_point deadline,
                                          enter_flags flags = {}) noexcept;

  /// Enters if that is possible now.  Blocks: no.  Kernel: blk_try_enter_queue().
  [[nodiscard]] bool try_enter(enter_flags flags = {}) noexcept;

  /// Leaves; n: that many entries at once.  Kernel: blk_queue_exit().
  ///
  /// Precondition: they were entered, by whatever thread.
  /// Blocks: no; from any context, signal handlers too where the platform says so.
  void exit(std::intptr_t n = 1) noexcept { count_type::put(n); }

  /// enter() as an object that leaves when it goes; false if refused.
  [[nodiscard]] ticket hold(enter_flags flags = {}) noexcept;

  /// Adds n entries to one the caller has; never refused, also while frozen.
  ///
  /// For a batch, and for work that goes on behind an entered request.
  void get(std::intptr_t n = 1) noexcept { count_type::get(n); }

  /// Enters unless drained: succeeds while a freeze still waits for somebody.
  ///
  /// For timeouts and walks over requests, which a freeze must not lock out.
  [[nodiscard]] bool try_get() noexcept { return count_type::try_get(); }

  /// enter() that queues a waiter instead of sleeping; resumed, he is inside.
  ///
  /// Returns: as enter(), and then the waiter was not needed; in_progress: he is
  /// queued and will be resumed with ok or no_device, unless cancel() comes first.
  /// Blocks: no.
  [[nodiscard]] status enter_or_wait(waiter& queued, enter_flags flags = {}) noexcept
    requires(!is_process_shared<Platform>);

  /// Takes a waiter of this gate out of its queue; what he waited for goes on.
  ///
  /// Returns: true if he will not be resumed any more; false if he has been, or is
  /// about to be.  Blocks: no.
  [[nodiscard]] bool cancel(waiter& queued) noexcept
    requires(!is_process_shared<Platform>);

  /// `co_await gate.entered(flags)` is enter() for coroutines; needs awaitable.hpp.
  [[nodiscard]] basic_entered<Platform> entered(enter_flags flags = {}) noexcept
    requires(!is_process_shared<Platform>);

  // -- closing and opening

  /// freeze_start() and freeze_wait().  Kernel: blk_mq_freeze_queue().
  status freeze() noexcept;

  /// Closes the gate to everybody, PM requests included; to be undone by unfreeze().
  ///
  /// Returns: ok; not_permitted if the platform refused the grace period, and
  /// then nothing has changed.
  /// Blocks: for another caller's switch.  Cost: O(CPUs) if it is the first.
  /// Kernel: blk_freeze_queue_start().
  status freeze_start() noexcept {
    bool ignored;
    return freeze_start(ignored);
  }
  /// freeze_start() that tells whether it was the one that closed the gate.
  status freeze_start(bool& closed_it) noexcept { return start_freeze(closed_it, false); }

  /// Waits until nobody is inside.
  ///
  /// Without a freeze it waits for the next one to drain; so does a waiter whose freeze is
  /// undone before he has seen it drained.
  /// Returns: ok; again only where the platform cannot block: the freeze stays in force.
  /// Kernel: blk_mq_freeze_queue_wait().
  status freeze_wait() noexcept;

  /// freeze_wait() with a deadline; the freeze stays in force either way.
  ///
  /// Returns: true if drained.  Kernel: blk_mq_freeze_queue_wait_timeout().
  [[nodiscard]] bool freeze_wait_until(time_point deadline) noexcept;

  /// freeze() with a deadline: at the deadline the freeze is undone again.
  ///
  /// Returns: ok: frozen; timed_out or not_permitted: not frozen by this call.
  [[nodiscard]] status freeze_until(time_point deadline) noexcept;

  /// freeze_start(), and queues a waiter for the drain instead of sleeping.
  ///
  /// Returns: ok: drained already; in_progress: the waiter will be resumed with ok;
  /// not_permitted: as freeze_start(). The freeze stays in force when the waiter is
  /// cancelled: unfreeze() undoes it.  Blocks: as freeze_start().
  [[nodiscard]] status freeze_or_wait(waiter& queued) noexcept
    requires(!is_process_shared<Platform>);

  /// freeze_wait() that queues a waiter: freeze_or_wait() without the freeze.
  [[nodiscard]] status drained_or_wait(waiter& queued) noexcept
    requires(!is_process_shared<Platform>);

  /// `co_await gate.frozen()` is freeze() for coroutines; needs awaitable.hpp.
  [[nodiscard]] basic_frozen<Platform> frozen() noexcept
    requires(!is_process_shared<Platform>);

  /// Undoes one freeze; the last one opens the gate and wakes who waits.
  ///
  /// Legal while somebody is inside. One too many is reported and changes nothing
  /// (Kernel: leaves a depth of -1, and the next freeze hangs).
  /// Blocks: while the freeze's own grace period is not over, and for an exit() that is
  /// about to tell of the drain.  Kernel: blk_mq_unfreeze_queue().
  void unfreeze() noexcept { undo_freeze(false); }

  /// unfreeze() that leaves the count in the shared word, so that the next freeze
  /// takes no grace period.  Kernel: __blk_mq_unfreeze_queue(q, true).
  void unfreeze_to_atomic() noexcept { undo_freeze(true); }

  /// The twins for freezes that another thread undoes; the same, see Threads.
  status freeze_start_non_owner() noexcept { return freeze_start(); }
  void unfreeze_non_owner() noexcept { unfreeze(); }

  // -- power management and death

  /// From now on only PM requests may enter; nests. Evicts nobody and waits for nobody:
  /// whoever was about to enter may still do so until a freeze() and unfreeze() after it
  /// have returned.  Blocks: no.  Kernel: blk_set_pm_only().
  void set_pm_only() noexcept;

  /// Undoes one set_pm_only(); the last one wakes who waits.
  ///
  /// One too many is reported and leaves 0 (Kernel: blk_clear_pm_only(), -1 for ever).
  void clear_pm_only() noexcept;

  /// While set, pm_only refuses PM requests as well, unless although_suspended; every change
  /// wakes who waits
  /// (Kernel: RPM_SUSPENDED, whose changes wake nobody).
  void set_runtime_suspended(bool suspended) noexcept;

  /// Wakes whoever waits: he looks again, and if pm_only keeps him out asks for a resume
  /// again.  Blocks: no.  Kernel: wake_up_all() of mq_freeze_wq.
  void wake_waiters() noexcept { wake_door(); }

  /// Called by each waiter that pm_only keeps out, once before it sleeps and at each
  /// wake-up, outside every lock; null: nobody is asked. To be set before the gate
  /// is used.  Kernel: pm_request_resume() in blk_pm_resume_queue().
  void set_resume_request(resume_fn ask, void* context) noexcept
    requires(!is_process_shared<Platform>);

  /// Marks the gate dying, for good. By itself it neither stops nor wakes anybody.
  /// Kernel: blk_queue_flag_set(QUEUE_FLAG_DYING).
  void mark_dying() noexcept;

  /// freeze_start() that wakes who waits, to look for death.  Kernel: blk_queue_start_drain().
  status start_drain() noexcept {
    bool ignored;
    return start_drain(ignored);
  }
  status start_drain(bool& closed_it) noexcept;

  /// Where the count lives; see percpu_ref. Blocks: for a switch under way.
  void switch_to_percpu() noexcept { count_type::switch_to_percpu(); }
  bool switch_to_atomic_sync() noexcept { return count_type::switch_to_atomic_sync(); }

  // -- queries; what they say may be over when they return

  /// Freezes in force.
  [[nodiscard]] int depth() const noexcept;
  /// set_pm_only() calls in force.
  [[nodiscard]] int pm_only() const noexcept;
  /// True if a freeze is in force and nobody is inside: the gate may be destroyed.
  [[nodiscard]] bool is_frozen() const noexcept;
  [[nodiscard]] bool is_dying() const noexcept;
  /// The count itself, for diagnostics.
  [[nodiscard]] const count_type& usage() const noexcept { return *this; }

 private:
  friend ticket;
  friend count_type;
  friend detail::many_gates;
  void leave_ticket() noexcept { exit(); }

  template <class T>
  using atomic = typename Platform::template atomic<T>;

  // pm_ is the number of set_pm_only() in force, and whether PM is refused too.
  static constexpr std::uint32_t suspended_bit = std::uint32_t{1} << 31;
  static constexpr std::uint32_t no_drain = 0;
  static constexpr std::uint32_t drained = 1;

  static bool passes(std::uint32_t pm, enter_flags flags) noexcept {
    if ((pm & ~suspended_bit) == 0) return true;
    if (!has(flags, enter_flags::pm)) return false;
    return (pm & suspended_bit) == 0 || has(flags, enter_flags::although_suspended);
  }

  /// What is left to do once every lock has been left.
  struct aftermath {
    detail::waiter_chain<Platform> ready;
    std::intptr_t refused = 0;  // entries of waiters that pm_only keeps out
  };

  count_type& count() noexcept { return *this; }
  detail::waiter_chain<Platform>& line_of(const waiter& queued) noexcept {
    return enterers_[has(queued.flags_, enter_flags::pm) ? 0 : 1];
  }
  void on_zero() noexcept;
  template <class Sleep>
  [[gnu::noinline]] status enter_slow(enter_flags flags, Sleep sleep) noexcept;
  [[gnu::noinline]] bool refuse() noexcept;
  bool is_open_to(enter_flags flags) noexcept;
  status sleep_at_door(std::uint32_t seen) noexcept;
  status start_freeze(bool& closed_it, bool in_batch) noexcept;
  void let_drain(bool refused) noexcept;
  void undo_freeze(bool stay_atomic) noexcept;
  void reopen(aftermath& after) noexcept;
  void await_drain() noexcept;
  void open_door(aftermath& after) noexcept;
  void wake_door() noexcept;
  status admit(aftermath& after, waiter* newcomer) noexcept;
  status admission(enter_flags flags, aftermath& after) noexcept;
  void finish(aftermath& after) noexcept;
  status queue_for_drain(waiter& queued) noexcept;

  atomic<std::uint32_t> pm_{0};
  atomic<bool> dying_{false};
  atomic<int> depth_{0};                          // written under freeze_lock_
  typename Platform::mutex freeze_lock_;          // depth and kill or resurrect: one step
  typename Platform::thread_id closer_{};         // whose batch closed it, and has a reference
  typename Platform::wait_word door_{0};          // counts what may let enterers in
  typename Platform::wait_word drain_{no_drain};  // whether the count reached zero
  typename Platform::mutex waiters_lock_;         // of what follows; taken inside freeze_lock_
  detail::waiter_chain<Platform> enterers_[2];  // PM requests, and others
  detail::drain_waiters<Platform> freezers_;
  resume_fn resume_ = nullptr;
  void* resume_context_ = nullptr;
};

using freeze_gate = basic_freeze_gate<default_platform>;

template <platform Platform>
basic_freeze_gate<Platform>::basic_freeze_gate(gate_start start) noexcept
    : count_type(start == gate_start::atomic ? ref_init::atomic : ref_init::allow_reinit) {}

template <platform Platform>
basic_freeze_gate<Platform>::~basic_freeze_gate() {
  drain_.settle();  // who told of the drain has left the word
  const percpu_ref_snapshot last = count_type::snapshot();  // exact: nobody is here now
  // A switch that was refused still has a reference of its own.
  const std::int64_t own = last.switching ? 1 : 0;
  const std::int64_t inside = last.shared - own + (last.biased ? last.per_cpu : 0);
  if (inside != (last.dying ? 0 : 1)) Platform::misuse("freeze_gate destroyed while entered");
  if (!enterers_[0].empty() || !enterers_[1].empty() || !freezers_.empty()) {
    Platform::misuse("freeze_gate destroyed with waiters queued");
  }
  count_type::exit();
}

template <platform Platform>
inline bool basic_freeze_gate<Platform>::try_enter(enter_flags flags) noexcept {
  if (!count().try_get_live()) return false;
  // [enter.pm] acquire: pairs with [pm.clear] and [pm.resumed]. Read after the reference
  // was taken: either the freeze that follows a set_pm_only() waits for this reference, or
  // the reference was taken after that freeze was undone and the value is seen.
  const std::uint32_t pm = pm_.load(std::memory_order_acquire);
  if (passes(pm, flags)) [[likely]] return true;
  return refuse();
}

template <platform Platform>
bool basic_freeze_gate<Platform>::refuse() noexcept {
  count().put();
  return false;
}

template <platform Platform>
inline status basic_freeze_gate<Platform>::enter(enter_flags flags) noexcept {
  if (try_enter(flags)) [[likely]] return status::ok;
  return enter_slow(flags, [this](std::uint32_t seen) { return sleep_at_door(seen); });
}

template <platform Platform>
template <class Gone>
inline status basic_freeze_gate<Platform>::enter_unless(Gone gone, enter_flags flags) noexcept {
  if (try_enter(flags)) [[likely]] return status::ok;
  return enter_slow(flags, [this, &gone](std::uint32_t seen) {
    return gone() ? status::no_device : sleep_at_door(seen);
  });
}

template <platform Platform>
template <class Gone>
inline status basic_freeze_gate<Platform>::enter_unless_until(Gone gone, time_point deadline,
                                                              enter_flags flags) noexcept {
  if (try_enter(flags)) [[likely]] return status::ok;
  return enter_slow(flags, [this, &gone, &deadline](std::uint32_t seen) {
    if (gone()) return status::no_device;
    return door_.wait_until(seen, deadline) ? status::ok : status::timed_out;
  });
}

template <platform Platform>
inline status basic_freeze_gate<Platform>::enter_until(time_point deadline,
                                                       enter_flags flags) noexcept {
  return enter_unless_until([] { return false; }, deadline, flags);
}

/// Runs in the last exit(), or in whatever call dropped the last entry.
template <platform Platform>
void basic_freeze_gate<Platform>::on_zero() noexcept {
  // Before the drain is told of: the gate may be destroyed then.
  auto ready = freezers_.close();
  drain_.publish_add(drained);
  ready.resume_all();
}

template <platform Platform>
status basic_freeze_gate<Platform>::freeze_wait() noexcept {
  // [wait.drain] acquire: pairs with publish_add() in on_zero(), and through the count
  // with every exit().
  while (drain_.load(std::memory_order_acquire) == no_drain) {
    if constexpr (!Platform::can_block) {
      Platform::misuse("freeze_wait() would wait for ever: there is one thread only");
      return status::again;
    }
    drain_.wait(no_drain);
  }
  return status::ok;
}

template <platform Platform>
bool basic_freeze_gate<Platform>::freeze_wait_until(time_point deadline) noexcept {
  // [timed.drain] acquire: as [wait.drain].
  while (drain_.load(std::memory_order_acquire) == no_drain) {
    if (!drain_.wait_until(no_drain, deadline) &&
        // [timed.last] relaxed: the event may beat the deadline; then [timed.drain] sees it.
        drain_.load(std::memory_order_relaxed) == no_drain) {
      return false;
    }
  }
  return true;
}

template <platform Platform>
status basic_freeze_gate<Platform>::freeze() noexcept {
  const status started = freeze_start();
  return started == status::ok ? freeze_wait() : started;
}

template <platform Platform>
status basic_freeze_gate<Platform>::freeze_until(time_point deadline) noexcept {
  const status started = freeze_start();
  if (started != status::ok || freeze_wait_until(deadline)) return started;
  unfreeze();
  return status::timed_out;
}

template <platform Platform>
int basic_freeze_gate<Platform>::depth() const noexcept {
  // [depth.read] relaxed: a hint.
  return depth_.load(std::memory_order_relaxed);
}

template <platform Platform>
bool basic_freeze_gate<Platform>::is_frozen() const noexcept {
  // [frozen.drain] acquire: as [wait.drain]; the last exit() has let go by then.
  return depth() > 0 && drain_.load(std::memory_order_acquire) != no_drain;
}

}  // namespace pmgate

#include <pmgate/detail/block/freeze_gate_impl.hpp>

#endif  // PMGATE_BLOCK_FREEZE_GATE_HPP
