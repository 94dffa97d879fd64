// SPDX-License-Identifier: MIT
//
// pmgate/block/quiesce_gate.hpp - who may DISPATCH: sections of code that can be
// kept from starting, and waited for.
//
// A dispatcher asks before it calls the driver and says when it is done.
// quiesce() stops new sections and waits for those that run; it does not wait
// for the requests they started. Quiesces nest; unquiesce() never blocks.
//
// Counterpart: QUEUE_FLAG_QUIESCED, blk_mq_quiesce_queue() and the RCU sections of
// dispatch in Linux' block layer (semantics only). The sections are counted
// here, so that nobody else's sections are waited for.
#ifndef PMGATE_BLOCK_QUIESCE_GATE_HPP
#define PMGATE_BLOCK_QUIESCE_GATE_HPP

#include <atomic>
#include <cstdint>
#include <utility>

#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/ticket.hpp>
#include <pmgate/detail/block/waiter_chain.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

namespace detail {
struct many_gates;  // in block/many_gates.hpp
}
// What co_await takes; in block/awaitable.hpp.
template <platform Platform>
class basic_quiesced;

/// Quiesce gate: dispatch sections, nested quiesce.
///
/// Lifetime: neither copyable nor movable. May be destroyed with no section
///           running and no waiter queued, also right after wait_quiesced() of a
///           quiesce in force, or the resumption of quiesce_or_wait().
/// Threads:  every member from any thread; any thread may end any section and
///           undo any quiesce.
/// Blocking: quiesce() and wait_quiesced(), with or without a deadline, only. Not from
///           inside a section: it would wait for itself. Sections end without blocking, but not in a
///           signal handler: while quiesced they take a lock of the gate.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Orders:   everything in a section happens-before the wait for it returns;
///           everything before the last unquiesce() happens-before a later section.
/// Limits:   2^30 sections at a time.
template <platform Platform>
class basic_quiesce_gate {
 public:
  static_assert(!is_checked<Platform>, "include pmgate/block/checked_gates.hpp");
  using waiter = basic_gate_waiter<Platform>;
  using time_point = typename Platform::time_point;
  /// A section that ends when it is destroyed.
  using ticket = basic_ticket<basic_quiesce_gate>;

  basic_quiesce_gate() noexcept = default;
  ~basic_quiesce_gate();
  basic_quiesce_gate(const basic_quiesce_gate&) = delete;
  basic_quiesce_gate& operator=(const basic_quiesce_gate&) = delete;

  /// Starts a section unless quiesced.
  ///
  /// Who is refused leaves his work where the next section finds it, and looks
  /// once more under the lock of that place: unquiesce() may just have passed.
  /// Blocks: no.  Cost: one CPU-local add.  Kernel: rcu_read_lock(), blk_queue_quiesced().
  [[nodiscard]] bool try_dispatch() noexcept { return counter_.try_add(1); }

  /// Ends a section.  Precondition: it was started, by whatever thread.
  ///
  /// Nothing of the gate is touched once the section counts as ended.
  /// Blocks: no.
  void end_dispatch() noexcept;

  /// try_dispatch() as an object that ends the section when it goes.
  [[nodiscard]] ticket dispatch() noexcept;

  /// quiesce_nowait() and wait_quiesced().  Kernel: blk_mq_quiesce_queue().
  status quiesce() noexcept;

  /// From now on no section starts, except those under way; to be undone.
  ///
  /// Blocks: no.  Kernel: blk_mq_quiesce_queue_nowait().
  void quiesce_nowait() noexcept;

  /// Waits until no section runs, for a full grace period in any case.
  ///
  /// Precondition: a quiesce is in force. Without one it waits for a grace period
  /// and no more; if the last one is undone meanwhile, it returns.
  /// Returns: ok; not_permitted if the platform refused the grace period: the
  /// quiesce stays in force, and sections may still run; again only where the
  /// platform cannot block.
  /// Kernel: blk_mq_wait_quiesce_done().
  status wait_quiesced() noexcept;

  /// wait_quiesced() that gives up at the deadline with timed_out; the quiesce stays in force.
  ///
  /// The grace period has no deadline.
  [[nodiscard]] status wait_quiesced_until(time_point deadline) noexcept;

  /// quiesce_nowait(), and queues a waiter for the end of the sections instead of sleeping.
  ///
  /// Returns: ok: quiesced already; in_progress: the waiter will be resumed with ok, or
  /// with canceled, see cancel(); not_permitted: as wait_quiesced(). The quiesce stays in
  /// force in any case.  Blocks: no.
  [[nodiscard]] status quiesce_or_wait(waiter& queued) noexcept
      requires(!is_process_shared<Platform>);

  /// wait_quiesced() that queues a waiter: quiesce_or_wait() without the quiesce.
  [[nodiscard]] status quiesced_or_wait(waiter& queued) noexcept
      requires(!is_process_shared<Platform>);

  /// Takes a waiter of this gate out of its queue; the quiesce stays in force.
  ///
  /// Returns: true if he will not be resumed any more; false if he has been, or is
  /// about to be. Where grace periods are deferred he is kept to the end of his, and
  /// then resumed with canceled.  Blocks: no.
  [[nodiscard]] bool cancel(waiter& queued) noexcept requires(!is_process_shared<Platform>);

  /// `co_await gate.quiesced()` is quiesce() for coroutines; needs awaitable.hpp.
  [[nodiscard]] basic_quiesced<Platform> quiesced() noexcept requires(!is_process_shared<Platform>);

  /// Undoes one quiesce; after the last one sections start again.
  ///
  /// One too many is reported and changes nothing.
  /// Returns: true if it was the last: the caller runs what has been waiting.
  /// Blocks: no.  Kernel: blk_mq_unquiesce_queue().
  bool unquiesce() noexcept;

  /// Quiesces in force.
  [[nodiscard]] int depth() const noexcept;

 private:
  friend ticket;
  friend detail::many_gates;
  using chain = detail::waiter_chain<Platform>;
  void leave_ticket() noexcept { end_dispatch(); }

  /// Sections started and ended locally, less those ended in the shared word.
  bool nobody_inside(std::uint32_t ended) const noexcept {
    return ((static_cast<std::uint32_t>(counter_.peek()) - ended) << 1) == 0;  // modulo 2^31
  }
  [[gnu::noinline]] void end_shared() noexcept;
  template <class Sleep>
  status wait_for_sections(Sleep sleep) noexcept;
  bool is_over(const waiter& queued) const noexcept;
  void take_ready(chain& ready) noexcept;
  static void grace_over(grace_callback& done) noexcept;
  void note_grace(waiter& queued) noexcept;
  status queue_for_sections(waiter& queued) noexcept;

  typename Platform::cpu_counter counter_{true};
  typename Platform::wait_word ended_{0};  // sections that ended while the counter was closed
  typename Platform::template atomic<std::uint32_t> opens_{0};  // how often it was opened again
  typename Platform::template atomic<int> depth_{0};            // written under lock_
  mutable typename Platform::mutex lock_;  // depth and closing: one step; ended_; the waiters
  chain waiters_;
};

using quiesce_gate = basic_quiesce_gate<default_platform>;

template <platform Platform>
basic_quiesce_gate<Platform>::~basic_quiesce_gate() {
  const scoped_lock guard(lock_);  // the last end_shared() has left it
  // [destroy.read] relaxed: the lock orders it.
  if (!nobody_inside(ended_.load(std::memory_order_relaxed))) {
    Platform::misuse("quiesce_gate destroyed while dispatching");
  }
  if (!waiters_.empty()) Platform::misuse("quiesce_gate destroyed with waiters queued");
}

template <platform Platform>
inline void basic_quiesce_gate<Platform>::end_dispatch() noexcept {
  if (counter_.try_add(-1)) [[likely]]
    return;
  end_shared();
}

/// Leaving the lock is the last touch: the destructor takes it once.
template <platform Platform>
void basic_quiesce_gate<Platform>::end_shared() noexcept {
  chain ready;
  {
    const scoped_lock guard(lock_);
    // [end.count] release: pairs with [wait.ended]; the lock orders it among its like.
    (void)ended_.fetch_add(1, std::memory_order_release);
    ended_.wake_all();
    take_ready(ready);
  }
  ready.resume_all();
}

template <platform Platform>
auto basic_quiesce_gate<Platform>::dispatch() noexcept -> ticket {
  return ticket(try_dispatch() ? this : nullptr);
}

template <platform Platform>
void basic_quiesce_gate<Platform>::quiesce_nowait() noexcept {
  const scoped_lock guard(lock_);
  // [quiesce.read] relaxed: the lock orders it.
  const int before = depth_.load(std::memory_order_relaxed);
  // Closed before the depth tells: who sees a quiesce in force may wait for it.
  if (before == 0) counter_.begin_close();
  // [quiesce.depth] release: pairs with [depth.read].
  depth_.store(before + 1, std::memory_order_release);
}

/// sleep(ended): sleeps while the word of the sections is `ended`. Returns: ok to look again.
///
/// Between the two reads of opens_ the counter was closed all the time, and for a
/// grace period before the first look at it: so the sum is exact. Had it been
/// opened, a section that enters on one CPU behind our back and leaves on
/// another ahead of us could make a sum of zero with somebody inside.
template <platform Platform>
template <class Sleep>
status basic_quiesce_gate<Platform>::wait_for_sections(Sleep sleep) noexcept {
  // [wait.opens] acquire: pairs with [open.count].
  const std::uint32_t opens = opens_.load(std::memory_order_acquire);
  const bool closed = depth() > 0;
  if (!Platform::synchronize()) return status::not_permitted;
  while (closed) {
    // [wait.ended] acquire: pairs with [end.count].
    const std::uint32_t ended = ended_.load(std::memory_order_acquire);
    if (nobody_inside(ended)) break;
    // [wait.again] relaxed: a late answer is made up for by [open.poke].
    if (opens_.load(std::memory_order_relaxed) != opens) break;
    const status slept = sleep(ended);
    if (slept != status::ok) return slept;
  }
  return status::ok;
}

template <platform Platform>
status basic_quiesce_gate<Platform>::wait_quiesced() noexcept {
  return wait_for_sections([this](std::uint32_t ended) noexcept {
    if constexpr (!Platform::can_block) {
      Platform::misuse("wait_quiesced() would wait for ever: there is one thread only");
      return status::again;
    }
    ended_.wait(ended);
    return status::ok;
  });
}

template <platform Platform>
status basic_quiesce_gate<Platform>::wait_quiesced_until(time_point deadline) noexcept {
  return wait_for_sections([this, deadline](std::uint32_t ended) noexcept {
    const bool in_time = Platform::can_block && ended_.wait_until(ended, deadline);
    return in_time ? status::ok : status::timed_out;
  });
}

template <platform Platform>
status basic_quiesce_gate<Platform>::quiesce() noexcept {
  quiesce_nowait();
  return wait_quiesced();
}

template <platform Platform>
bool basic_quiesce_gate<Platform>::unquiesce() noexcept {
  chain ready;
  {
    const scoped_lock guard(lock_);
    // [unquiesce.read] relaxed: the lock orders it.
    const int before = depth_.load(std::memory_order_relaxed);
    if (before == 0) {
      Platform::misuse("unquiesce() of a gate that is not quiesced");
      return false;
    }
    // [unquiesce.depth] relaxed: only a quiesce in force says something: [quiesce.depth].
    depth_.store(before - 1, std::memory_order_relaxed);
    if (before != 1) return false;
    // [open.count] release: pairs with [wait.opens]; the lock orders it. Before reopen().
    (void)opens_.fetch_add(1, std::memory_order_release);
    counter_.reopen();
    // An empty section, ended in the shared word: the sum stays, the word changes,
    // and who sleeps on it looks again.
    if (counter_.try_add(1)) {
      // [open.poke] relaxed: the lock orders it; nobody's end, so nothing to hand on.
      (void)ended_.fetch_add(1, std::memory_order_relaxed);
      ended_.wake_all();
    }
    take_ready(ready);
  }
  ready.resume_all();
  return true;
}

template <platform Platform>
int basic_quiesce_gate<Platform>::depth() const noexcept {
  // [depth.read] acquire: pairs with [quiesce.depth].
  return depth_.load(std::memory_order_acquire);
}

// -- waiters

template <platform Platform>
status basic_quiesce_gate<Platform>::quiesce_or_wait(waiter& queued) noexcept
    requires(!is_process_shared<Platform>) {
  if (!queued.claim()) return status::busy;
  quiesce_nowait();
  return queue_for_sections(queued);
}

template <platform Platform>
status basic_quiesce_gate<Platform>::quiesced_or_wait(waiter& queued) noexcept
    requires(!is_process_shared<Platform>) {
  return queued.claim() ? queue_for_sections(queued) : status::busy;
}

/// While asking_, nobody resumes the waiter: what the grace period brings about before
/// the request returns is told by the return value.
template <platform Platform>
status basic_quiesce_gate<Platform>::queue_for_sections(waiter& queued) noexcept {
  queued.grace_.run = &grace_over;
  queued.grace_.next = nullptr;
  queued.grace_.waiter = &queued;
  queued.gate_ = this;
  queued.result_ = status::ok;
  queued.asking_ = true;
  queued.graced_ = queued.cancelled_ = false;
  {
    const scoped_lock guard(lock_);
    // [queue.opens] relaxed: the lock orders it, as it does all that changes opens_.
    queued.opens_ = opens_.load(std::memory_order_relaxed);
    queued.closed_ = depth() > 0;
    waiters_.push_back(queued);
  }
  const bool granted = Platform::after_grace_period(queued.grace_);
  const scoped_lock guard(lock_);
  queued.asking_ = false;
  if (granted && !(queued.graced_ && is_over(queued))) return status::in_progress;
  waiters_.remove(queued);
  queued.release();
  return granted ? status::ok : status::not_permitted;
}

template <platform Platform>
bool basic_quiesce_gate<Platform>::cancel(waiter& queued) noexcept
    requires(!is_process_shared<Platform>) {
  const scoped_lock guard(lock_);
  if (!waiters_.contains(queued)) return false;
  queued.cancelled_ = true;
  if (!queued.graced_) return false;  // the platform still has its request
  waiters_.remove(queued);
  queued.release();
  return true;
}

/// Called with the lock held, for a waiter whose grace period is over.
template <platform Platform>
bool basic_quiesce_gate<Platform>::is_over(const waiter& queued) const noexcept {
  // [over.opens] relaxed and [over.ended] relaxed: the lock orders them.
  return !queued.closed_ || opens_.load(std::memory_order_relaxed) != queued.opens_ ||
         nobody_inside(ended_.load(std::memory_order_relaxed));
}

/// Called with the lock held, whenever waiters may have become ready.
template <platform Platform>
void basic_quiesce_gate<Platform>::take_ready(chain& ready) noexcept {
  for (waiter* at = waiters_.first(); at != nullptr;) {
    waiter& next = *std::exchange(at, waiters_.next(*at));
    if (next.asking_ || !next.graced_) continue;
    if (next.cancelled_) {
      waiters_.make_ready(next, status::canceled, ready);
    } else if (is_over(next)) {
      waiters_.make_ready(next, status::ok, ready);
    }
  }
}

template <platform Platform>
void basic_quiesce_gate<Platform>::grace_over(grace_callback& done) noexcept {
  waiter& queued = *static_cast<typename waiter::grace_request&>(done).waiter;
  queued.gate_->note_grace(queued);
}

template <platform Platform>
void basic_quiesce_gate<Platform>::note_grace(waiter& queued) noexcept {
  chain ready;
  {
    const scoped_lock guard(lock_);
    queued.graced_ = true;
    take_ready(ready);
  }
  ready.resume_all();
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_QUIESCE_GATE_HPP
