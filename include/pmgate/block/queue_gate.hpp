// SPDX-License-Identifier: MIT
//
// pmgate/block/queue_gate.hpp - the entry side of a request queue: its freeze gate, and
// what ends it.
//
// The one rule to know: a freeze of a queue goes through the queue. Whoever closes the
// gate also has the queue offer its driver what it holds, for else it may never drain.
//
// Counterpart: blk_mq_freeze_queue(), blk_mark_disk_dead() and del_gendisk() of Linux'
// block layer (semantics only).
#ifndef PMGATE_BLOCK_QUEUE_GATE_HPP
#define PMGATE_BLOCK_QUEUE_GATE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/detail/block/dispatcher.hpp>

namespace pmgate {

/// What becomes of a queue when its disk is removed.
enum class queue_fate : std::uint8_t {
  dies,      ///< the disk owns the queue: it stays frozen for ever
  survives,  ///< it opens again, for requests of its driver; bios go on failing
};

/// The gate of a request queue; see basic_freeze_gate for what is not said here.
///
/// Lifetime, Threads, Blocking, Misuse: as basic_freeze_gate; a base of the queue.
template <platform Platform>
class basic_queue_gate {
 public:
  using gate_type = basic_freeze_gate<Platform>;
  using time_point = typename Platform::time_point;
  using mark_fn = void (*)(void* context) noexcept;

  basic_queue_gate(const basic_queue_gate&) = delete;
  basic_queue_gate& operator=(const basic_queue_gate&) = delete;

  /// Enters without a request; leave by exit().  Kernel: blk_queue_enter().
  [[nodiscard]] status enter(enter_flags flags = {}) noexcept { return gate_.enter(flags); }
  [[nodiscard]] bool try_enter(enter_flags flags = {}) noexcept { return gate_.try_enter(flags); }
  void exit(std::intptr_t n = 1) noexcept { gate_.exit(n); }

  /// freeze_start() and freeze_wait(): afterwards there are no requests.
  ///
  /// Does not imply that nobody is inside a dispatch section: see quiesce().
  /// Blocks: until every request has been freed.  Kernel: blk_mq_freeze_queue().
  status freeze() noexcept;
  /// Closes the gate; the one that closed it also offers the driver what is queued.
  ///
  /// Kernel: blk_freeze_queue_start().
  status freeze_start() noexcept;
  status freeze_wait() noexcept { return gate_.freeze_wait(); }
  [[nodiscard]] bool freeze_wait_until(time_point deadline) noexcept {
    return gate_.freeze_wait_until(deadline);
  }
  /// freeze() with a deadline: at the deadline the freeze is undone again.
  [[nodiscard]] status freeze_until(time_point deadline) noexcept;
  /// freeze_start(), and queues a waiter for the drain instead of sleeping.
  [[nodiscard]] status freeze_or_wait(basic_gate_waiter<Platform>& queued) noexcept;
  void unfreeze() noexcept { gate_.unfreeze(); }
  void unfreeze_to_atomic() noexcept { gate_.unfreeze_to_atomic(); }

  void set_pm_only() noexcept { gate_.set_pm_only(); }
  void clear_pm_only() noexcept { gate_.clear_pm_only(); }

  /// Called whenever a request is freed that is not for power management; for runtime_pm,
  /// before the queue is used.  Kernel: blk_pm_mark_last_busy().
  void set_busy_mark(mark_fn mark, void* context) noexcept {
    busy_mark_ = mark;
    busy_context_ = context;
  }

  // -- death

  /// freeze_start() for the death of the queue: whoever waits at the gate looks whether
  /// it is dying. Whoever waits for a tag is inside, and gets it.
  ///
  /// Kernel: blk_queue_start_drain(), which wakes those as well, to no effect.
  status start_drain() noexcept;

  /// The device is gone: the gate is dying, and the first call drains it. Bios fail from
  /// now on, even if the gate is opened again. Does not wait.
  ///
  /// Returns: as freeze_start(); refused, the next call tries again to drain.
  /// Kernel: blk_mark_disk_dead().
  status mark_disk_dead() noexcept;

  /// Removes the disk: bios fail, and when everybody has left and no dispatch is under
  /// way, the queue dies or opens again. A disk that is dead already is not drained twice.
  ///
  /// A survivor is not dying, unless mark_disk_dead() said so, and counts in its shared
  /// word, so that its own end takes no grace period.
  /// Precondition: not from inside the queue or its driver; with queue_fate::survives, once.
  /// Returns: as freeze() and quiesce().
  /// Blocks: until every request has been freed.  Kernel: del_gendisk().
  status del_gendisk(queue_fate fate = queue_fate::dies) noexcept;

  // -- queries

  /// The gate, for what is not above. Freezes go through the queue.
  [[nodiscard]] gate_type& gate() noexcept { return gate_; }
  [[nodiscard]] const gate_type& gate() const noexcept { return gate_; }
  [[nodiscard]] bool is_disk_dead() const noexcept;

 protected:
  explicit basic_queue_gate(detail::dispatcher<Platform>& dispatch) noexcept
      : dispatch_(dispatch) {}
  ~basic_queue_gate() = default;

  /// enter() of a bio: no_device also if its disk is dead.  Kernel: bio_queue_enter().
  [[nodiscard]] status enter_bio(enter_flags flags) noexcept {
    const auto gone = [this]() noexcept { return is_disk_dead(); };
    const status entered = gate_.enter_unless(gone, flags);
    if (entered != status::ok || !is_disk_dead()) [[likely]] return entered;
    gate_.exit();  // the disk died before, and the gate is open again
    return status::no_device;
  }

  /// A request is being freed.
  void note_use(bool pm) noexcept {
    if (!pm && busy_mark_ != nullptr) busy_mark_(busy_context_);
  }

 private:
  /// How far the drain of a dead disk has come.
  enum class drain : std::uint8_t { none, starting, started };

  status kill_disk() noexcept;
  status await_drain_start() noexcept;

  // Counts in the shared word until the queue is made: to freeze it is cheap.
  gate_type gate_{gate_start::atomic};
  detail::dispatcher<Platform>& dispatch_;
  mark_fn busy_mark_ = nullptr;
  void* busy_context_ = nullptr;
  typename Platform::template atomic<bool> disk_dead_{false};
  typename Platform::mutex drain_lock_;  // of the next
  drain drain_ = drain::none;
  typename Platform::wait_word drain_changes_{0};
};

template <platform Platform>
status basic_queue_gate<Platform>::freeze_start() noexcept {
  bool closed_it = false;
  const status started = gate_.freeze_start(closed_it);
  if (closed_it) dispatch_.run();
  return started;
}

template <platform Platform>
status basic_queue_gate<Platform>::freeze() noexcept {
  const status started = freeze_start();
  return started == status::ok ? freeze_wait() : started;
}

template <platform Platform>
status basic_queue_gate<Platform>::freeze_until(time_point deadline) noexcept {
  const status started = freeze_start();
  if (started != status::ok || freeze_wait_until(deadline)) return started;
  unfreeze();
  return status::timed_out;
}

template <platform Platform>
status basic_queue_gate<Platform>::freeze_or_wait(basic_gate_waiter<Platform>& queued) noexcept {
  const status started = freeze_start();
  if (started != status::ok) return started;
  const status answer = gate_.drained_or_wait(queued);
  if (answer == status::busy) unfreeze();  // misuse: queued already
  return answer;
}

template <platform Platform>
status basic_queue_gate<Platform>::start_drain() noexcept {
  bool closed_it = false;
  const status started = gate_.start_drain(closed_it);
  if (closed_it) dispatch_.run();
  return started;
}

template <platform Platform>
status basic_queue_gate<Platform>::mark_disk_dead() noexcept {
  gate_.mark_dying();
  return kill_disk();
}

/// One caller starts the drain, outside the lock: whoever waits at the gate is resumed
/// by it, and may come back here.
template <platform Platform>
status basic_queue_gate<Platform>::kill_disk() noexcept {
  // [disk.dead] release: pairs with [disk.read]. Before the drain, which has those at the
  // gate look.
  disk_dead_.store(true, std::memory_order_release);
  {
    const scoped_lock guard(drain_lock_);
    if (drain_ != drain::none) return status::ok;
    drain_ = drain::starting;
  }
  const status started = start_drain();
  const scoped_lock guard(drain_lock_);
  drain_ = started == status::ok ? drain::started : drain::none;
  // [drain.changed] release: pairs with [drain.seen].
  (void)drain_changes_.fetch_add(1, std::memory_order_release);
  drain_changes_.wake_all();
  return started;
}

/// kill_disk(), and the gate is frozen for it: another caller may be at it still, and may
/// be refused. Without that a freeze of somebody else would be waited for, and undone.
template <platform Platform>
status basic_queue_gate<Platform>::await_drain_start() noexcept {
  for (;;) {
    // [drain.seen] acquire: pairs with [drain.changed]; read before looking, slept on after.
    const std::uint32_t seen = drain_changes_.load(std::memory_order_acquire);
    const status killed = kill_disk();
    if (killed != status::ok) return killed;
    {
      const scoped_lock guard(drain_lock_);
      if (drain_ == drain::started) return status::ok;
    }
    if constexpr (!Platform::can_block) {
      Platform::misuse("del_gendisk() from inside mark_disk_dead() would wait for ever");
      return status::again;
    }
    drain_changes_.wait(seen);
  }
}

template <platform Platform>
status basic_queue_gate<Platform>::del_gendisk(queue_fate fate) noexcept {
  if (fate == queue_fate::dies) gate_.mark_dying();
  status result = await_drain_start();
  if (result == status::ok) result = freeze_wait();
  if (result != status::ok) return result;
  result = dispatch_.sections().quiesce();  // a dispatcher may be on its way out still
  dispatch_.cancel_runs();
  if (dispatch_.sections().unquiesce()) dispatch_.run_async();
  if (fate == queue_fate::survives) unfreeze_to_atomic();
  return result;
}

template <platform Platform>
bool basic_queue_gate<Platform>::is_disk_dead() const noexcept {
  // [disk.read] acquire: pairs with [disk.dead].
  return disk_dead_.load(std::memory_order_acquire);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_QUEUE_GATE_HPP
