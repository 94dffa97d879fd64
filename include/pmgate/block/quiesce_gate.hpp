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

#include <pmgate/block/ticket.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// Quiesce gate: dispatch sections, nested quiesce.
///
/// Lifetime: neither copyable nor movable. May be destroyed with no section
///           running, also right after wait_quiesced() of a quiesce in force.
/// Threads:  every member from any thread; any thread may end any section and
///           undo any quiesce.
/// Blocking: wait_quiesced() and quiesce() only. Not from inside a section: it
///           would wait for itself.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Orders:   everything in a section happens-before the wait for it returns;
///           everything before the last unquiesce() happens-before a later section.
/// Limits:   2^30 sections at a time.
template <platform Platform>
class basic_quiesce_gate {
 public:
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
  void leave_ticket() noexcept { end_dispatch(); }

  /// Sections started and ended locally, less those ended in the shared word.
  bool nobody_inside(std::uint32_t ended) const noexcept {
    return ((static_cast<std::uint32_t>(counter_.peek()) - ended) << 1) == 0;  // modulo 2^31
  }
  [[gnu::noinline]] void end_shared() noexcept;

  typename Platform::cpu_counter counter_{true};
  typename Platform::wait_word ended_{0};  // sections that ended while the counter was closed
  typename Platform::template atomic<std::uint32_t> opens_{0};  // how often it was opened again
  typename Platform::template atomic<int> depth_{0};  // written under lock_
  typename Platform::mutex lock_;                     // depth and closing: one step
};

using quiesce_gate = basic_quiesce_gate<default_platform>;

template <platform Platform>
basic_quiesce_gate<Platform>::~basic_quiesce_gate() {
  ended_.settle();
  // [destroy.read] acquire: pairs with publish_add() in end_shared().
  if (!nobody_inside(ended_.load(std::memory_order_acquire))) {
    Platform::misuse("quiesce_gate destroyed while dispatching");
  }
}

template <platform Platform>
inline void basic_quiesce_gate<Platform>::end_dispatch() noexcept {
  if (counter_.try_add(-1)) [[likely]] return;
  end_shared();
}

template <platform Platform>
void basic_quiesce_gate<Platform>::end_shared() noexcept {
  ended_.publish_add(1);  // the last touch: the gate may be destroyed now
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

/// Between the two reads of opens_ the counter was closed all the time, and for a
/// grace period before the first look at it: so the sum is exact. Had it been
/// opened, a section that enters on one CPU behind our back and leaves on
/// another ahead of us could make a sum of zero with somebody inside.
template <platform Platform>
status basic_quiesce_gate<Platform>::wait_quiesced() noexcept {
  // [wait.opens] acquire: pairs with [open.count].
  const std::uint32_t opens = opens_.load(std::memory_order_acquire);
  const bool closed = depth() > 0;
  if (!Platform::synchronize()) return status::not_permitted;
  while (closed) {
    // [wait.ended] acquire: pairs with publish_add() in end_shared().
    const std::uint32_t ended = ended_.load(std::memory_order_acquire);
    if (nobody_inside(ended)) break;
    // [wait.again] acquire: pairs with [open.count]; comes after the sum was taken.
    if (opens_.load(std::memory_order_acquire) != opens) break;
    if constexpr (!Platform::can_block) {
      Platform::misuse("wait_quiesced() would wait for ever: there is one thread only");
      return status::again;
    }
    ended_.wait(ended);
  }
  ended_.settle();
  return status::ok;
}

template <platform Platform>
status basic_quiesce_gate<Platform>::quiesce() noexcept {
  quiesce_nowait();
  return wait_quiesced();
}

template <platform Platform>
bool basic_quiesce_gate<Platform>::unquiesce() noexcept {
  const scoped_lock guard(lock_);
  // [unquiesce.read] relaxed: the lock orders it.
  const int before = depth_.load(std::memory_order_relaxed);
  if (before == 0) {
    Platform::misuse("unquiesce() of a gate that is not quiesced");
    return false;
  }
  // [unquiesce.depth] release: pairs with [depth.read].
  depth_.store(before - 1, std::memory_order_release);
  if (before != 1) return false;
  // [open.count] release: pairs with [wait.opens] and [wait.again]; before reopen().
  (void)opens_.fetch_add(1, std::memory_order_release);
  counter_.reopen();
  // An empty section, ended in the shared word: the sum stays, the word changes,
  // and who sleeps on it looks again.
  if (counter_.try_add(1)) ended_.publish_add(1);
  return true;
}

template <platform Platform>
int basic_quiesce_gate<Platform>::depth() const noexcept {
  // [depth.read] acquire: pairs with [quiesce.depth] and [unquiesce.depth].
  return depth_.load(std::memory_order_acquire);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_QUIESCE_GATE_HPP
