// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/freeze_gate_impl.hpp - the door of freeze_gate.hpp: how it is
// closed and opened, how those who find it closed wait, asleep or queued, and what
// lets them in.
//
// Whoever changes what may let enterers in wakes the sleepers and then walks the
// queue, under its lock; whoever queues walks it, too, after queueing. So of a
// change and a newcomer one sees the other. What runs user code, or may bring
// about the drain, is left for after the locks: the aftermath.
#ifndef PMGATE_DETAIL_BLOCK_FREEZE_GATE_IMPL_HPP
#define PMGATE_DETAIL_BLOCK_FREEZE_GATE_IMPL_HPP

#include <atomic>
#include <cstdint>
#include <utility>

#include <pmgate/block/freeze_gate.hpp>

namespace pmgate {

/// The door is looked at after its count was read, and slept on with that count: a
/// change in between is not missed. Being let through promises nothing: try again.
template <platform Platform>
template <class Sleep>
status basic_freeze_gate<Platform>::enter_slow(enter_flags flags, Sleep sleep) noexcept {
  while (!has(flags, enter_flags::nowait)) {
    // [enter.door] acquire: pairs with [door.open]; what opened the gate is visible.
    const std::uint32_t seen = door_.load(std::memory_order_acquire);
    const bool open = is_open_to(flags);
    if (is_dying()) return status::no_device;
    if (!open) {
      const status slept = sleep(seen);
      if (slept != status::ok) return slept;
    } else if (try_enter(flags)) {
      return status::ok;
    }
  }
  return status::again;
}

/// Returns: ok: look again, at a door that may have changed since it was `seen`.
template <platform Platform>
status basic_freeze_gate<Platform>::sleep_at_door(std::uint32_t seen) noexcept {
  if constexpr (!Platform::can_block) {
    // [enter.again] relaxed: one thread only. Whoever was asked for a resume may have
    // opened the gate: as one who goes to sleep does, look again.
    if (door_.load(std::memory_order_relaxed) != seen) return status::ok;
    Platform::misuse("enter() would wait for ever: there is one thread only");
    return status::again;
  }
  door_.wait(seen);
  return status::ok;
}

/// The wait condition of enter(), with its side effect: asking for a resume.
template <platform Platform>
bool basic_freeze_gate<Platform>::is_open_to(enter_flags flags) noexcept {
  if (count().is_dying() || count().is_zero()) return false;
  // [door.pm] relaxed: a guess; whoever takes it for an invitation meets [enter.pm].
  if (passes(pm_.load(std::memory_order_relaxed), flags)) return true;
  if (resume_ != nullptr) resume_(resume_context_);
  return false;
}

template <platform Platform>
auto basic_freeze_gate<Platform>::hold(enter_flags flags) noexcept -> ticket {
  return ticket(enter(flags) == status::ok ? this : nullptr);
}

// -- closing and opening

/// Whoever closes the gate keeps the count's initial reference meanwhile: the drain comes
/// about, and is told of, when the lock has been left.
template <platform Platform>
status basic_freeze_gate<Platform>::start_freeze(bool& closed_it, bool in_batch) noexcept {
  aftermath after;
  status result = status::ok;
  {
    const scoped_lock guard(freeze_lock_);
    // [freeze.read] relaxed: the lock orders it.
    const int before = depth_.load(std::memory_order_relaxed);
    closed_it = before == 0;
    // [freeze.depth] relaxed: for queries; the door is the count's dying bit.
    depth_.store(before + 1, std::memory_order_relaxed);
    if (before != 0) return status::ok;
    if (!count().kill_held(in_batch)) {
      closed_it = false;
      depth_.store(before, std::memory_order_relaxed);  // [freeze.undo] relaxed: as [freeze.depth]
      reopen(after);
      result = status::not_permitted;
    } else if (in_batch) {
      closer_ = Platform::this_thread();  // let_drain() puts it
      return status::ok;
    }
  }
  count().put_held();  // from here the gate may be gone
  finish(after);
  return result;
}

/// The end of what in_batch has begun: puts the reference, if this batch closed the gate.
/// Another batch's stays: it keeps the drain from coming about within that batch's grace
/// period. Of a batch that was refused and has undone its freezes those of others
/// may be left, who were told that all is well: they get a grace period of their own.
template <platform Platform>
void basic_freeze_gate<Platform>::let_drain(bool refused) noexcept {
  freeze_lock_.lock();
  const bool closer = closer_ == Platform::this_thread();
  if (closer) closer_ = {};
  const std::intptr_t held = refused ? count().ask_in_place() : 0;  // none if alive again
  freeze_lock_.unlock();
  if (held != 0) count().put(held);
  if (closer) count().put_held();
}

/// Depth and resurrect are one step: with the depth alone a kill and a resurrect of
/// two threads may come in the wrong order, and the gate stays closed for ever.
template <platform Platform>
void basic_freeze_gate<Platform>::undo_freeze(bool stay_atomic) noexcept {
  aftermath after;
  {
    const scoped_lock guard(freeze_lock_);
    // [thaw.read] relaxed: the lock orders it.
    const int before = depth_.load(std::memory_order_relaxed);
    if (before == 0) {
      Platform::misuse("unfreeze() of a gate that is not frozen");
      return;
    }
    if (stay_atomic) count().keep_atomic();
    // [thaw.depth] relaxed: as [freeze.depth].
    depth_.store(before - 1, std::memory_order_relaxed);
    if (before != 1) return;
    reopen(after);
    if (std::exchange(closer_, {}) != typename Platform::thread_id{}) {
      count().put();  // before let_drain(); alive, so not the last
    }
  }
  finish(after);  // touches the gate only while it holds entries of its own
}

/// Alive again. If the count was at zero, on_zero() has run or is about to: let it
/// finish, lest it tell of this drain when the next freeze is in force. Called with
/// freeze_lock_ held.
template <platform Platform>
void basic_freeze_gate<Platform>::reopen(aftermath& after) noexcept {
  if (count().resurrect()) {
    await_drain();  // then the word is ours
    const scoped_lock guard(waiters_lock_);  // one step for a cancel() that the drain overtook
    // [thaw.reset] relaxed: the next freeze_start() is ordered by the lock.
    drain_.store(no_drain, std::memory_order_relaxed);
    freezers_.reopen();
  }
  open_door(after);
}

/// Waits for the rest of on_zero(), which is under way.
template <platform Platform>
void basic_freeze_gate<Platform>::await_drain() noexcept {
  // [thaw.drain] acquire: pairs with publish_add().
  while (drain_.load(std::memory_order_acquire) == no_drain) drain_.wait(no_drain);
}

// -- what lets enterers in

template <platform Platform>
void basic_freeze_gate<Platform>::wake_door() noexcept {
  aftermath after;
  open_door(after);
  finish(after);
}

template <platform Platform>
void basic_freeze_gate<Platform>::open_door(aftermath& after) noexcept {
  // [door.open] release: pairs with [enter.door].
  (void)door_.fetch_add(1, std::memory_order_release);
  door_.wake_all();
  (void)admit(after, nullptr);
}

/// Lets in whoever may enter now, in order, and sends away whoever never can.
///
/// Behind somebody who has to go on waiting nobody of his line is tried: the door may
/// have opened between two looks, and he would be overtaken.
/// Returns: what became of the newcomer, who is not resumed by the aftermath.
template <platform Platform>
status basic_freeze_gate<Platform>::admit(aftermath& after, waiter* newcomer) noexcept {
  status his = status::in_progress;
  const scoped_lock guard(waiters_lock_);
  if (newcomer != nullptr) {
    newcomer->at_door_ = true;
    line_of(*newcomer).push_back(*newcomer);
  }
  for (detail::waiter_chain<Platform>& line : enterers_) {
    while (waiter* const first = line.first()) {
      const status result = admission(first->flags_, after);
      if (result == status::in_progress) break;
      first->at_door_ = false;
      if (first == newcomer) {
        his = result;
        line.remove(*first);
        first->release();
      } else {
        line.make_ready(*first, result, after.ready);
      }
    }
  }
  return his;
}

/// One turn of enter() on behalf of a waiter; in_progress if he has to go on waiting.
template <platform Platform>
status basic_freeze_gate<Platform>::admission(enter_flags flags, aftermath& after) noexcept {
  if (is_dying()) return status::no_device;
  if (!count().try_get_live()) return status::in_progress;
  // [admit.pm] acquire: as [enter.pm].
  if (passes(pm_.load(std::memory_order_acquire), flags)) return status::ok;
  ++after.refused;
  return status::in_progress;
}

/// To be called outside every lock. With nothing refused the gate is not touched: it may
/// be gone, unless one of those who are resumed is inside.
template <platform Platform>
void basic_freeze_gate<Platform>::finish(aftermath& after) noexcept {
  if (after.refused != 0) {
    const resume_fn ask = resume_;
    void* const context = resume_context_;
    count().put(after.refused);  // from here the gate may be gone
    if (ask != nullptr) ask(context);
  }
  after.ready.resume_all();
}

template <platform Platform>
void basic_freeze_gate<Platform>::set_pm_only() noexcept {
  // [pm.set] relaxed: says nothing but itself; a freeze and unfreeze after it make it known.
  (void)pm_.fetch_add(1, std::memory_order_relaxed);
}

template <platform Platform>
void basic_freeze_gate<Platform>::clear_pm_only() noexcept {
  // [pm.guess] relaxed: a guess; [pm.clear] decides.
  std::uint32_t seen = pm_.load(std::memory_order_relaxed);
  do {
    if ((seen & ~suspended_bit) == 0) {
      Platform::misuse("clear_pm_only() without set_pm_only()");
      return;
    }
    // [pm.clear] release: pairs with [enter.pm]; whoever gets in sees what came before.
  } while (!pm_.compare_exchange_weak(seen, seen - 1, std::memory_order_release,
                                      std::memory_order_relaxed));
  if ((seen & ~suspended_bit) == 1) wake_door();
}

template <platform Platform>
void basic_freeze_gate<Platform>::set_runtime_suspended(bool suspended) noexcept {
  // [pm.suspended] relaxed: as [pm.set].
  // [pm.resumed] release: pairs with [enter.pm]; as [pm.clear].
  const std::uint32_t before = suspended
                                   ? pm_.fetch_or(suspended_bit, std::memory_order_relaxed)
                                   : pm_.fetch_and(~suspended_bit, std::memory_order_release);
  if (((before & suspended_bit) != 0) != suspended) wake_door();
}

template <platform Platform>
void basic_freeze_gate<Platform>::set_resume_request(resume_fn ask, void* context) noexcept
  requires(!is_process_shared<Platform>)
{
  resume_context_ = context;
  resume_ = ask;
}

template <platform Platform>
void basic_freeze_gate<Platform>::mark_dying() noexcept {
  // [die.mark] release: pairs with [die.read].
  dying_.store(true, std::memory_order_release);
}

template <platform Platform>
status basic_freeze_gate<Platform>::start_drain(bool& closed_it) noexcept {
  const status started = freeze_start(closed_it);
  wake_door();
  return started;
}

template <platform Platform>
int basic_freeze_gate<Platform>::pm_only() const noexcept {
  // [pm.read] relaxed: a hint.
  return static_cast<int>(pm_.load(std::memory_order_relaxed) & ~suspended_bit);
}

template <platform Platform>
bool basic_freeze_gate<Platform>::is_dying() const noexcept {
  // [die.read] acquire: pairs with [die.mark].
  return dying_.load(std::memory_order_acquire);
}

// -- waiters

template <platform Platform>
status basic_freeze_gate<Platform>::enter_or_wait(waiter& queued, enter_flags flags) noexcept
  requires(!is_process_shared<Platform>)
{
  if (try_enter(flags)) return status::ok;
  if (has(flags, enter_flags::nowait)) return status::again;
  if (!queued.claim()) return status::busy;
  queued.flags_ = flags;
  aftermath after;
  const status result = admit(after, &queued);
  finish(after);
  return result;
}

template <platform Platform>
status basic_freeze_gate<Platform>::freeze_or_wait(waiter& queued) noexcept
  requires(!is_process_shared<Platform>)
{
  if (!queued.claim()) return status::busy;
  const status started = freeze_start();
  if (started == status::ok) return queue_for_drain(queued);
  queued.release();
  return started;
}

template <platform Platform>
status basic_freeze_gate<Platform>::drained_or_wait(waiter& queued) noexcept
  requires(!is_process_shared<Platform>)
{
  return queued.claim() ? queue_for_drain(queued) : status::busy;
}

/// Turned away by a drain that is told of or about to be: it cannot be undone while
/// freeze_lock_ is held.
template <platform Platform>
status basic_freeze_gate<Platform>::queue_for_drain(waiter& queued) noexcept {
  queued.result_ = status::ok;
  while (!freezers_.add(queued)) {
    const scoped_lock guard(freeze_lock_);
    if (!freezers_.is_closed()) continue;  // undone meanwhile
    await_drain();
    queued.release();
    return status::ok;
  }
  return status::in_progress;
}

template <platform Platform>
bool basic_freeze_gate<Platform>::cancel(waiter& queued) noexcept
  requires(!is_process_shared<Platform>)
{
  detail::waiter_chain<Platform> late;
  bool found = false;
  {
    const scoped_lock guard(waiters_lock_);
    found = std::exchange(queued.at_door_, false);
    if (found) {
      line_of(queued).remove(queued);
    } else {
      found = freezers_.cancel(queued, late);
      if (!late.empty()) await_drain();
    }
    if (found) queued.release();
  }
  late.resume_all();
  return found;
}

}  // namespace pmgate

#endif  // PMGATE_DETAIL_BLOCK_FREEZE_GATE_IMPL_HPP
