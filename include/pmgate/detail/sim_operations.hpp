// SPDX-License-Identifier: MIT
//
// pmgate/detail/sim_operations.hpp - what the operations of the simulated platform do.
//
// Values follow the memory model of the machine: one memory, and a buffer of
// delayed stores for each thread, or loads that are late. Who may rely on a value follows the orders that
// were asked for: a relaxed operation hands on no clock, whatever value it reads.
#ifndef PMGATE_DETAIL_SIM_OPERATIONS_HPP
#define PMGATE_DETAIL_SIM_OPERATIONS_HPP

#include <atomic>
#include <bit>
#include <cstdint>

#include <pmgate/detail/sim_engine.hpp>

namespace pmgate::detail {

// --- store buffers ---------------------------------------------------------------

/// Whether a store is to wait in the buffer: a choice for the first one, then a must,
/// since stores leave in order.
inline bool sim_engine::delays(thread& me) noexcept {
  if (options_.memory == sim::memory_model::sequential) return false;
  if (me.buffered > 0) return true;
  const mask others = everybody() & ~finished_ & ~bit(current_);
  if (delayed_ >= options_.delayed_stores || others == 0 || decide(2) == 0) return false;
  ++delayed_;
  return true;
}

inline void sim_engine::put(thread& me, sim_cell& place, std::uint64_t value,
                            const sim_clock& released) noexcept {
  if (!delays(me)) {
    remember(place, current_);
    place.value = value;
    place.released = released;
    return;
  }
  if (me.buffered == buffer_size) flush(current_);
  me.buffer[static_cast<std::size_t>(me.buffered++)] = {&place, value, released};
  buffered_ |= bit(current_);
  if (logs()) say("T%d   ... stays in its store buffer", current_);
}

/// The oldest store of a thread becomes visible.
inline void sim_engine::flush(int index) noexcept {
  thread& owner = of(index);
  const delayed_store oldest = owner.buffer[0];
  for (int i = 1; i < owner.buffered; ++i) {
    owner.buffer[static_cast<std::size_t>(i - 1)] = owner.buffer[static_cast<std::size_t>(i)];
  }
  if (--owner.buffered == 0) buffered_ &= ~bit(index);
  if (oldest.place->alive != sim_cell::living) {
    fail("a delayed store of T%d reaches #%u after it was destroyed", index, oldest.place->number);
  }
  remember(*oldest.place, index);
  oldest.place->value = oldest.value;
  oldest.place->released = oldest.released;
  if (logs()) {
    say("T%d's store #%u = %lld becomes visible", index, oldest.place->number,
        static_cast<long long>(oldest.value));
  }
}

inline void sim_engine::drain(int index) noexcept {
  while (of(index).buffered > 0) flush(index);
}

inline auto sim_engine::own_store(const sim_cell& place) const noexcept -> const delayed_store* {
  const thread& me = self();
  for (int i = me.buffered; i-- > 0;) {
    const delayed_store& store = me.buffer[static_cast<std::size_t>(i)];
    if (store.place == &place) return &store;
  }
  return nullptr;
}

// --- late loads --------------------------------------------------------------------

/// Keeps the value that a store of `writer` is about to replace.
inline void sim_engine::remember(sim_cell& place, int writer) noexcept {
  if (options_.stale_loads == 0) return;
  for (int i = sim_cell::kept - 1; i > 0; --i) place.past[i] = place.past[i - 1];
  place.past[0] = {place.value, place.stamp, place.released, place.noticed};
  place.stamp = ++stores_;
  place.noticed = sim_clock{};
  place.noticed.of[writer] = of(writer).seen.of[writer];
}

/// The thread knows this value now; when it first did is what counts.
inline void sim_engine::notice(sim_clock& noticed) const noexcept {
  std::uint16_t& first = noticed.of[current_];
  if (first == 0) first = self().seen.of[current_];
}

/// Which of the former values a load gives, or null for the last one. A value is out of
/// question once a newer one happened before, was seen by somebody who happened before,
/// or was there at this thread's last barrier: what std::atomic promises, and no more.
inline auto sim_engine::late_version(const sim_cell& place, std::memory_order order) noexcept
    -> const sim_version* {
  if (stale_ >= options_.stale_loads || order == std::memory_order_seq_cst) return nullptr;
  const thread& me = self();
  int late = 0;
  const auto may_be_missed = [&me](std::uint32_t stamp, const sim_clock& noticed) {
    return stamp > me.up_to_date && !noticed.ordered_before(me.seen);
  };
  bool missed = may_be_missed(place.stamp, place.noticed);
  while (missed) {
    const sim_version& older = place.past[late++];
    missed = late < sim_cell::kept && may_be_missed(older.stamp, older.noticed);
  }
  const int choice = late == 0 ? 0 : decide(late + 1);
  if (choice == 0) return nullptr;
  ++stale_;
  return &place.past[choice - 1];
}

// --- atomics ---------------------------------------------------------------------

inline std::uint64_t sim_engine::load(const sim_cell& place, std::memory_order order) noexcept {
  point();
  access(place);
  std::uint64_t value = place.value;
  if (const delayed_store* const own = self().buffered > 0 ? own_store(place) : nullptr) {
    value = own->value;
  } else if (const sim_version* const late = late_version(place, order)) {
    value = late->value;
    (sim_acquires(order) ? self().seen : self().loaded).join(late->released);
    notice(late->noticed);
    if (logs()) say("T%d   ... is late", current_);
  } else {
    notice(place.noticed);
    (sim_acquires(order) ? self().seen : self().loaded).join(place.released);
  }
  if (logs()) {
    say("T%d #%u load(%s) -> %lld", current_, place.number, sim_order_name(order),
        static_cast<long long>(value));
  }
  return value;
}

inline void sim_engine::store(sim_cell& place, std::uint64_t value,
                              std::memory_order order) noexcept {
  point();
  access(place);
  if (logs()) {
    say("T%d #%u store(%s) %lld", current_, place.number, sim_order_name(order),
        static_cast<long long>(value));
  }
  thread& me = self();
  put(me, place, value, sim_releases(order) ? me.seen : me.fenced);
  if (order == std::memory_order_seq_cst) drain(current_);
  if (sim_releases(order)) ++me.seen.of[current_];
}

template <class Change>
std::uint64_t sim_engine::update(sim_cell& place, std::memory_order order,
                                 std::memory_order refused, const char* what,
                                 Change change) noexcept {
  point();
  access(place);
  drain(current_);  // a locked instruction
  thread& me = self();
  const std::uint64_t old = place.value;
  std::uint64_t value = old;
  const bool done = change(old, value);
  const std::memory_order used = done ? order : refused;
  (sim_acquires(used) ? me.seen : me.loaded).join(place.released);
  notice(place.noticed);
  if (done) {
    remember(place, current_);
    place.value = value;
    // A read-modify-write goes on with the release sequence it found.
    place.released.join(sim_releases(used) ? me.seen : me.fenced);
    if (sim_releases(used)) ++me.seen.of[current_];
  }
  if (logs()) {
    say("T%d #%u %s(%s) %lld -> %lld%s", current_, place.number, what, sim_order_name(used),
        static_cast<long long>(old), static_cast<long long>(value), done ? "" : " (no)");
  }
  return old;
}

inline void sim_engine::fence(std::memory_order order) noexcept {
  thread& me = self();
  if (order == std::memory_order_seq_cst) {
    point();
    drain(current_);
    me.up_to_date = stores_;
  }
  if (sim_acquires(order)) me.seen.join(me.loaded);
  if (sim_releases(order)) {
    me.fenced = me.seen;
    ++me.seen.of[current_];
  }
  if (logs()) say("T%d fence(%s)", current_, sim_order_name(order));
}

inline bool sim_engine::weak_exchange_fails() noexcept {
  if (spurious_ >= options_.spurious || decide(2) == 0) return false;
  ++spurious_;
  return true;
}

// --- waiting ---------------------------------------------------------------------

inline bool sim_engine::wait(const sim_cell& word, std::uint64_t old,
                             const std::int64_t* deadline) noexcept {
  point();
  drain(current_);  // a system call
  while (word.holder >= 0) block(&word, "waits for the mutex inside");
  access(word);
  if (logs()) {
    say("T%d #%u wait(%lld), the value is %lld", current_, word.number, static_cast<long long>(old),
        static_cast<long long>(word.value));
  }
  if (word.value != old) return true;
  if (deadline != nullptr && *deadline <= now_) return false;
  if (deadline != nullptr) {
    self().deadline = *deadline;
    timed_ |= bit(current_);
  } else {
    sleeping_ |= bit(current_);
  }
  block(&word, "sleeps on");
  fresh_ = true;
  if (options_.sleep == sim::sleep_model::condition) access(word);
  return !self().timed_out;
}

inline void sim_engine::wake_all(const sim_cell& word) noexcept {
  point();
  while (word.holder >= 0) block(&word, "waits for the mutex inside");
  access(word);
  drain(current_);
  wake_sleepers(word);
}

inline void sim_engine::wake_sleepers(const sim_cell& word) noexcept {
  if (logs()) say("T%d #%u wakes all", current_, word.number);
  for (mask rest = sleeping_ | timed_; rest != 0; rest &= rest - 1) {
    const int index = std::countr_zero(rest);
    if (of(index).waits_for == &word) unblock(index);
  }
}

/// Futex: the change, then a wake-up that needs the address only. Condition: the change
/// and the wake-up under a mutex, whose release is the last touch.
inline void sim_engine::publish_add(sim_cell& word, std::uint64_t n,
                                    std::uint64_t values) noexcept {
  const bool condition = options_.sleep == sim::sleep_model::condition;
  if (condition) {
    point();
    while (word.holder >= 0) block(&word, "waits for the mutex inside");
    access(word);
    word.holder = static_cast<std::int16_t>(current_);
    fresh_ = true;
  }
  (void)update(word, std::memory_order_acq_rel, std::memory_order_relaxed, "publish_add",
               [n, values](std::uint64_t old, std::uint64_t& value) {
                 value = (old + n) & values;
                 return true;
               });
  point();
  if (condition) {
    if (word.alive != sim_cell::living) fail_dead(word);
    word.holder = sim_cell::nobody;
  }
  wake_sleepers(word);
  if (condition) admit(word);
}

/// Lets those who wait for a mutex try again.
inline void sim_engine::admit(const sim_cell& mutex) noexcept {
  for (int t = 0; t < sim_fibers; ++t) {
    if (of(t).waits_for == &mutex) unblock(t);
  }
}

/// Passes through the mutex inside, if there is one.
inline void sim_engine::settle(const sim_cell& word) noexcept {
  if (options_.sleep == sim::sleep_model::futex) return;
  point();
  while (word.holder >= 0) block(&word, "settles");
  access(word);
}

inline void sim_engine::lock(sim_cell& mutex) noexcept {
  point();
  while (mutex.holder >= 0) block(&mutex, "waits for mutex");
  access(mutex);
  drain(current_);
  mutex.holder = static_cast<std::int16_t>(current_);
  self().seen.join(mutex.released);
  if (logs()) say("T%d #%u lock", current_, mutex.number);
}

/// No choice before it: what others could do between our last operation and this one
/// they can do after it as well.
inline void sim_engine::unlock(sim_cell& mutex) noexcept {
  access(mutex);
  if (mutex.holder != current_)
    fail("T%d unlocks #%u, held by T%d", current_, mutex.number, mutex.holder);
  drain(current_);
  mutex.holder = sim_cell::nobody;
  mutex.released = self().seen;
  ++self().seen.of[current_];
  if (logs()) say("T%d #%u unlock", current_, mutex.number);
  admit(mutex);
}

// --- plain data --------------------------------------------------------------------

inline void sim_engine::guarded_read(const sim_cell& place) noexcept {
  point();
  if (place.alive != sim_cell::living) fail_dead(place);
  if (logs()) say("T%d #%u read", current_, place.number);
  const int writer = self().seen.behind(place.released);
  if (writer >= 0) {
    fail("data race: T%d reads #%u, which T%d writes", current_, place.number, writer);
  }
  place.touched.of[current_] = self().seen.of[current_];
}

inline void sim_engine::guarded_write(sim_cell& place) noexcept {
  point();
  if (place.alive != sim_cell::living) fail_dead(place);
  if (logs()) say("T%d #%u write", current_, place.number);
  const int writer = self().seen.behind(place.released);
  const int reader = self().seen.behind(place.touched);
  if (writer >= 0 || reader >= 0) {
    fail("data race: T%d writes #%u, which T%d %s", current_, place.number,
         writer >= 0 ? writer : reader, writer >= 0 ? "writes" : "reads");
  }
  place.released.of[current_] = self().seen.of[current_];
}

/// Called by a destructor that runs in a fiber: everything others did here must have
/// happened before.
inline void sim_engine::destroyed(sim_cell& place) noexcept {
  thread& me = self();
  int kept = 0;
  for (int i = 0; i < me.buffered; ++i) {
    const delayed_store& store = me.buffer[static_cast<std::size_t>(i)];
    if (store.place != &place) me.buffer[static_cast<std::size_t>(kept++)] = store;
  }
  me.buffered = kept;
  if (kept == 0) buffered_ &= ~bit(current_);
  if (logs()) say("T%d #%u is destroyed", current_, place.number);
  if (place.holder >= 0) {
    fail("T%d destroys #%u, held by T%d", current_, place.number, place.holder);
  }
  for (int t = 0; t < sim_fibers; ++t) {
    if (of(t).waits_for == &place && (finished_ & bit(t)) == 0) {
      fail("T%d destroys #%u, on which T%d sleeps", current_, place.number, t);
    }
  }
  const int other = me.seen.behind(place.touched);
  if (other >= 0) {
    fail("T%d destroys #%u, unordered with an access of T%d", current_, place.number, other);
  }
}

// --- sequences and grace periods ----------------------------------------------------

inline bool sim_engine::begin_sequence() noexcept {
  if ((options_.without_rseq & bit(current_)) != 0) return false;
  thread& me = self();
  me.in_sequence = true;
  me.aborted = false;
  return true;
}

/// The last instruction of a sequence: a load, an add and a store, without a lock.
/// Returns: false if the sequence was aborted before it.
inline bool sim_engine::commit_add(sim_cell& slot, std::uint64_t n) noexcept {
  point();
  thread& me = self();
  me.in_sequence = false;
  if (me.aborted) return false;
  access(slot);
  const delayed_store* const own = me.buffered > 0 ? own_store(slot) : nullptr;
  const std::uint64_t old = own != nullptr ? own->value : slot.value;
  if (own == nullptr) me.seen.join(slot.released);  // x86: loads acquire, stores release
  if (logs()) {
    say("T%d #%u commits %lld -> %lld on CPU %d", current_, slot.number,
        static_cast<long long>(old), static_cast<long long>(old + n), me.cpu);
  }
  put(me, slot, old + n, me.seen);
  ++me.seen.of[current_];
  return true;
}

/// Returns: false if it was refused, and said so.
inline bool sim_engine::heavy_fence() noexcept {
  point();
  if (is_refused()) return false;
  fence_all();
  return true;
}

/// Whether the operating system says no this time.
inline bool sim_engine::is_refused() noexcept {
  if (refused_ >= options_.refused_graces || decide(2) == 0) return false;
  ++refused_;
  if (logs()) say("T%d is refused a grace period", current_);
  return true;
}

/// Empties the store buffers of all threads and aborts their sequences.
inline void sim_engine::fence_all() noexcept {
  drain(current_);
  if (options_.fence == sim::fence_model::silently_refused) return;
  self().up_to_date = stores_;
  if (logs()) say("T%d heavy fence", current_);
  for (mask done = finished_; done != 0; done &= done - 1) drain(std::countr_zero(done));
  mask left = everybody() & ~finished_ & ~bit(current_);
  const bool one_by_one = options_.fence == sim::fence_model::per_thread;
  for (bool first = true; left != 0; first = false) {
    int index = std::countr_zero(left);
    if (one_by_one) {
      mask candidates = left;
      for (int skip = decide(std::popcount(left)); skip > 0; --skip) candidates &= candidates - 1;
      index = std::countr_zero(candidates);
      if (!first) point();
    }
    left &= ~bit(index);
    interrupt(index);
    if (one_by_one && logs()) say("T%d heavy fence reaches T%d", current_, index);
  }
}

inline bool sim_engine::after_grace_period(grace_callback& first) noexcept {
  if (!defers() || finishing_ || current_ == grace_thread()) {
    if (!heavy_fence()) return false;
    for (grace_callback* next = &first; next != nullptr;) {
      grace_callback& callback = *next;
      next = callback.next;  // the callback may free its owner
      callback.run(callback);
    }
    return true;
  }
  point();
  if (is_refused()) return false;
  drain(current_);
  if (logs()) say("T%d asks for a grace period", current_);
  grace_callback* last = &first;
  while (last->next != nullptr) last = last->next;
  (grace_last_ != nullptr ? grace_last_->next : grace_first_) = &first;
  grace_last_ = last;
  unblock(grace_thread());
  return true;
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_SIM_OPERATIONS_HPP
