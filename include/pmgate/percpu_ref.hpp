// SPDX-License-Identifier: MIT
//
// pmgate/percpu_ref.hpp - a reference count that is per-CPU while alive and one
// shared word once it is being shut down.
//
// The owner holds one initial reference. kill() gives it up, moves the count to
// the shared word and so allows it to reach zero. Nobody looks for zero before
// kill(), which is why get and put touch only this CPU's counter.
//
// The move takes a grace period. Until it is over the shared word carries a
// bias, so that it cannot look like zero while part of the count is elsewhere.
//
// Counterpart: Linux percpu_ref (semantics only).
#ifndef PMGATE_PERCPU_REF_HPP
#define PMGATE_PERCPU_REF_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/ref_word.hpp>
#include <pmgate/percpu_ref_types.hpp>
#include <pmgate/platform.hpp>

namespace pmgate {

/// Killable reference count with a per-CPU fast path.
///
/// Lifetime: neither copyable nor movable; at zero, or exit()ed, when destroyed.
/// Threads:  any member may race with any other, except where a member says.
///           kill() and resurrect() are to be serialised by their callers.
/// Blocking: kill(), the switches, resurrect() and exit() wait for a switch
///           that is under way; nothing else blocks.
/// Callbacks: run outside every lock of the ref. `confirm` always comes before
///           `release`. A confirm callback must not wait for the switch that it
///           confirms: kill(), resurrect() and the switches would never return.
/// Misuse:   goes to Platform::misuse() and has no effect, except an extra put()
///           while per-CPU: that surfaces in the sum taken by kill().
/// Range:    2^61 references.
template <platform Platform>
class basic_percpu_ref {
 public:
  /// Runs once per time the count reaches zero, inside whichever call got it there.
  using release_fn = void (*)(basic_percpu_ref&) noexcept;
  /// Runs when nobody can take a reference by the old rules any more.
  using confirm_fn = void (*)(basic_percpu_ref&) noexcept;

  /// Starts with the initial reference held by the caller, unless `dead`.
  ///
  /// Precondition: release is not null.  Kernel: percpu_ref_init().
  explicit basic_percpu_ref(release_fn release, ref_init flags = {}) noexcept;
  ~basic_percpu_ref();
  basic_percpu_ref(const basic_percpu_ref&) = delete;
  basic_percpu_ref& operator=(const basic_percpu_ref&) = delete;

  /// Takes n references; never fails and never looks at anything.
  ///
  /// Precondition: the caller knows that the count is not zero.
  /// Blocks: no.  Cost: one CPU-local add while alive.  Kernel: percpu_ref_get_many().
  void get(std::intptr_t n = 1) noexcept;

  /// Takes n references unless the count is zero; a dying ref says yes.
  ///
  /// For timeouts and walks over what is still inside while it drains.
  /// Blocks: no.  Cost: as get().  Kernel: percpu_ref_tryget_many().
  [[nodiscard]] bool try_get(std::intptr_t n = 1) noexcept;

  /// Takes a reference, unless the ref is dying or at zero.
  ///
  /// May still succeed while a kill() from per-CPU mode is unconfirmed.
  /// Blocks: no.  Cost: one CPU-local add while alive.
  /// Orders: success happens-after the resurrect() that revived the ref.
  /// Kernel: percpu_ref_tryget_live(); in atomic mode the answer here is exact.
  [[nodiscard]] bool try_get_live() noexcept;

  /// Gives n references back; runs the release callback if they were the last.
  ///
  /// Precondition: the caller owns them. Nothing of the ref is touched after the
  /// callback, or after the count was lowered if others remain.
  /// Blocks: no, unless the callback does.  Cost: as get().
  /// Orders: everything before put() happens-before the release callback.
  /// Kernel: percpu_ref_put_many().
  void put(std::intptr_t n = 1) noexcept;

  /// Drops the initial reference and starts the move to the shared word.
  ///
  /// Dying is visible at once. `confirm` runs after the grace period, or before
  /// kill() returns if the count was in the shared word already; it is dropped
  /// if a resurrect() overtakes a kill() that had to wait.
  /// Precondition: not dying; a second kill() is misuse and drops nothing
  /// (Kernel: warns, and drops a reference that it does not own).
  /// Returns: false if the platform refused the grace period. The ref is dying
  /// then and unconfirmed; resurrect() undoes it, another kill() tries again.
  /// Blocks: while a switch is under way.  Cost: O(CPUs).
  /// Kernel: percpu_ref_kill_and_confirm().
  bool kill(confirm_fn confirm = nullptr) noexcept;

  /// Undoes kill(): alive at once, initial reference held again; need not be at zero.
  ///
  /// Ends in per-CPU mode unless switch_to_atomic() is in force, or somebody
  /// killed again meanwhile.
  /// Precondition: dying, made with allow_reinit, atomic or dead.
  /// Returns: true if the count had reached zero, that is if the release
  /// callback has run or is running in another thread.
  /// Blocks: until an unconfirmed kill() is confirmed.  Cost: O(CPUs).
  /// Kernel: percpu_ref_resurrect().
  bool resurrect() noexcept;

  /// resurrect() of a ref at zero; elsewhere reported, and done all the same.
  ///
  /// Legal from the release callback.  Kernel: percpu_ref_reinit().
  void reinit() noexcept;

  /// Moves the count to the shared word and keeps it there, kills and
  /// resurrections included, until switch_to_percpu().
  ///
  /// Precondition: allow_reinit (Kernel: marks the ref dead behind one's back).
  /// Returns, Blocks, confirm: as kill().  Kernel: percpu_ref_switch_to_atomic().
  bool switch_to_atomic(confirm_fn confirm = nullptr) noexcept;

  /// switch_to_atomic(), and waits until the switch is over.
  ///
  /// is_zero() is exact afterwards (Kernel: may be false for an instant).
  /// Precondition: the release callback does not free the ref meanwhile.
  bool switch_to_atomic_sync() noexcept;

  /// Makes switch_to_atomic() be in force without switching now: a dying ref comes
  /// back in its shared word.  Precondition, as there: allow_reinit.
  void keep_atomic() noexcept;

  /// Ends switch_to_atomic(); a dying ref moves when it is resurrected.
  ///
  /// Blocks: while a switch is under way.  Kernel: percpu_ref_switch_to_percpu().
  void switch_to_percpu() noexcept;

  /// Gives the count up without waiting for zero: the last call but queries.
  ///
  /// Precondition: nobody uses the ref any more. During a switch it is reported
  /// and waits for the switch (Kernel: use after free).  Kernel: percpu_ref_exit().
  void exit() noexcept;

  /// True from kill() to resurrect(), and after exit(). Says nothing of the count.
  [[nodiscard]] bool is_dying() const noexcept { return word_.is_dying(); }

  /// True if nobody holds a reference; never while per-CPU or switching.
  ///
  /// Orders: true happens-after every put().  Kernel: percpu_ref_is_zero().
  [[nodiscard]] bool is_zero() const noexcept { return word_.is_zero(); }

  /// For diagnostics.  Blocks: on the lock of the slow paths.
  [[nodiscard]] percpu_ref_snapshot snapshot() const noexcept;

 private:
  [[gnu::noinline]] void put_shared(std::intptr_t n) noexcept;
  [[gnu::noinline]] bool try_get_shared(std::intptr_t n, bool live) noexcept;
  bool wants_atomic() const noexcept;
  bool choose_mode(confirm_fn confirm, bool drop_initial) noexcept;
  bool wait_for_switch(std::intptr_t& held) noexcept;
  bool retry_switch() noexcept;
  void note_refusal() noexcept;
  void begin_switch(confirm_fn confirm) noexcept;
  void cancel_switch() noexcept;
  void finish_switch() noexcept;
  static void grace_over(grace_callback& done) noexcept;

  /// The grace-period request of this ref, able to find it again.
  struct switch_request : grace_callback {
    basic_percpu_ref* owner = nullptr;
  };

  typename Platform::cpu_counter counter_;
  detail::ref_word<Platform> word_;
  release_fn release_;

  mutable typename Platform::mutex lock_;     // of all that follows, and of the dying bit
  typename Platform::wait_word switches_{0};  // counts switches that ended
  switch_request grace_;
  confirm_fn confirm_ = nullptr;  // of the switch under way
  bool percpu_;                   // counter_ is open
  bool switching_ = false;        // closed, not yet folded into word_
  bool refused_ = false;          // ... and the platform has no grace period for it
  bool force_atomic_;
  bool allow_reinit_;
  bool exited_ = false;
};

using percpu_ref = basic_percpu_ref<default_platform>;

template <platform Platform>
basic_percpu_ref<Platform>::basic_percpu_ref(release_fn release, ref_init flags) noexcept
    : counter_(!has(flags, ref_init::atomic | ref_init::dead)),
      word_(has(flags, ref_init::dead) ? 0 : 1, !has(flags, ref_init::atomic | ref_init::dead),
            has(flags, ref_init::dead)),
      release_(release),
      percpu_(!has(flags, ref_init::atomic | ref_init::dead)),
      force_atomic_(has(flags, ref_init::atomic)),
      allow_reinit_(flags != ref_init::none) {
  grace_.run = &grace_over;
  grace_.owner = this;
}

template <platform Platform>
basic_percpu_ref<Platform>::~basic_percpu_ref() {
  const scoped_lock guard(lock_);  // finish_switch() has left the lock
  if (switching_ && !refused_) Platform::misuse("percpu_ref destroyed during a mode switch");
  if (!exited_ && !is_zero()) Platform::misuse("percpu_ref destroyed while referenced");
}

template <platform Platform>
inline void basic_percpu_ref<Platform>::get(std::intptr_t n) noexcept {
  if (counter_.try_add(n)) [[likely]] return;
  word_.get(n);
}

template <platform Platform>
inline bool basic_percpu_ref<Platform>::try_get(std::intptr_t n) noexcept {
  if (counter_.try_add(n)) [[likely]] return true;
  return try_get_shared(n, false);
}

template <platform Platform>
inline bool basic_percpu_ref<Platform>::try_get_live() noexcept {
  if (counter_.try_add(1)) [[likely]] return true;
  return try_get_shared(1, true);
}

template <platform Platform>
inline void basic_percpu_ref<Platform>::put(std::intptr_t n) noexcept {
  if (counter_.try_add(-n)) [[likely]] return;
  put_shared(n);
}

template <platform Platform>
bool basic_percpu_ref<Platform>::try_get_shared(std::intptr_t n, bool live) noexcept {
  return word_.try_get(n, live);
}

template <platform Platform>
void basic_percpu_ref<Platform>::put_shared(std::intptr_t n) noexcept {
  if (word_.put(n)) release_(*this);  // the ref may be gone either way
}

template <platform Platform>
bool basic_percpu_ref<Platform>::wants_atomic() const noexcept {
  return force_atomic_ || is_dying();
}

template <platform Platform>
bool basic_percpu_ref<Platform>::kill(confirm_fn confirm) noexcept {
  lock_.lock();
  if (is_dying()) {
    if (refused_) return choose_mode(nullptr, false);  // its own confirm is still waiting
    lock_.unlock();
    Platform::misuse("kill() of a percpu_ref that is dying already");
    return true;
  }
  word_.mark_dying();
  return choose_mode(confirm, true);
}

template <platform Platform>
bool basic_percpu_ref<Platform>::resurrect() noexcept {
  lock_.lock();
  const bool legal = is_dying() && !exited_ && (allow_reinit_ || force_atomic_);
  if (!legal) {
    lock_.unlock();
    Platform::misuse("resurrect() of a percpu_ref that is live, exited or made without allow_reinit");
    return false;
  }
  const bool was_zero = word_.revive();
  (void)choose_mode(nullptr, false);
  return was_zero;
}

template <platform Platform>
void basic_percpu_ref<Platform>::reinit() noexcept {
  if (!is_zero()) Platform::misuse("reinit() of a percpu_ref that is not at zero");
  (void)resurrect();
}

template <platform Platform>
bool basic_percpu_ref<Platform>::switch_to_atomic(confirm_fn confirm) noexcept {
  lock_.lock();
  if (!allow_reinit_) {
    lock_.unlock();
    Platform::misuse("switch_to_atomic() of a percpu_ref made without allow_reinit");
    return true;
  }
  force_atomic_ = true;
  return choose_mode(confirm, false);
}

template <platform Platform>
void basic_percpu_ref<Platform>::keep_atomic() noexcept {
  lock_.lock();
  if (allow_reinit_) force_atomic_ = true;
  const bool legal = allow_reinit_;
  lock_.unlock();
  if (!legal) Platform::misuse("keep_atomic() of a percpu_ref made without allow_reinit");
}

template <platform Platform>
bool basic_percpu_ref<Platform>::switch_to_atomic_sync() noexcept {
  if (!switch_to_atomic()) return false;
  lock_.lock();
  std::intptr_t held = 0;
  const bool over = wait_for_switch(held);
  if (over) lock_.unlock();
  if (held != 0) put_shared(held);
  return over;
}

template <platform Platform>
void basic_percpu_ref<Platform>::switch_to_percpu() noexcept {
  lock_.lock();
  if (!allow_reinit_) {
    const bool nothing_to_do = percpu_;
    lock_.unlock();
    if (!nothing_to_do) {
      Platform::misuse("switch_to_percpu() of a percpu_ref made without allow_reinit");
    }
    return;
  }
  force_atomic_ = false;
  (void)choose_mode(nullptr, false);
}

/// Common tail of kill(), resurrect() and the switches: waits for the switch under
/// way, then acts on what is wanted *then*, not on what the caller wanted.
/// Called with the lock held; releases it. Returns: false if refused.
template <platform Platform>
bool basic_percpu_ref<Platform>::choose_mode(confirm_fn confirm, bool drop_initial) noexcept {
  std::intptr_t drop = drop_initial ? 1 : 0;
  if (!wait_for_switch(drop)) {
    if (drop != 0) put_shared(drop);  // biased, so not the last
    return false;
  }
  if (wants_atomic() && percpu_) {
    begin_switch(confirm);
    lock_.unlock();
    // Not the last: there are the bias and the switch's reference.
    if (drop != 0) put_shared(drop);
    // From here the ref may be gone: the callback may run, and release.
    if (Platform::after_grace_period(grace_)) return true;
    const scoped_lock guard(lock_);
    note_refusal();
    return false;
  }
  const bool confirm_now = wants_atomic();
  if (!confirm_now && !percpu_) {
    word_.add_bias();
    percpu_ = true;
    counter_.open();
  }
  lock_.unlock();
  if (confirm_now && confirm != nullptr) confirm(*this);
  if (drop != 0) put_shared(drop);  // else the ref may be gone
  return true;
}

/// Called with the lock held; returns true with it held, false without it. References
/// that it takes are added to `held`: a second try may bring about the release, and
/// until they are put the ref is not freed by it.
template <platform Platform>
bool basic_percpu_ref<Platform>::wait_for_switch(std::intptr_t& held) noexcept {
  while (switching_) {
    if (refused_) {
      if (!wants_atomic()) {
        cancel_switch();
      } else {
        word_.get(1);  // biased now; see above
        ++held;
        if (!retry_switch()) return false;
      }
      continue;
    }
    if constexpr (!Platform::can_block) {
      lock_.unlock();
      Platform::misuse("a percpu_ref's confirm callback waits for its own switch");
      return false;
    }
    // [wait.count] relaxed: the lock orders it; the word is only slept on.
    const std::uint32_t ended = switches_.load(std::memory_order_relaxed);
    lock_.unlock();
    switches_.wait(ended);
    lock_.lock();
  }
  return true;
}

/// Asks for the grace period again. Lock: as wait_for_switch().
template <platform Platform>
bool basic_percpu_ref<Platform>::retry_switch() noexcept {
  refused_ = false;  // others wait for us meanwhile
  lock_.unlock();
  const bool granted = Platform::after_grace_period(grace_);
  lock_.lock();
  if (granted) return true;
  note_refusal();
  lock_.unlock();
  return false;
}

/// Lets those who wait for the switch look again. Called with the lock held.
template <platform Platform>
void basic_percpu_ref<Platform>::note_refusal() noexcept {
  refused_ = true;
  // [refuse.count] relaxed: the lock orders it.
  (void)switches_.fetch_add(1, std::memory_order_relaxed);
  switches_.wake_all();
}

template <platform Platform>
void basic_percpu_ref<Platform>::begin_switch(confirm_fn confirm) noexcept {
  percpu_ = false;
  switching_ = true;
  confirm_ = confirm;
  word_.get(1);  // the switch's own reference, given back when it ends
  counter_.begin_close();
}

/// Undoes begin_switch() of a switch that got no grace period: what is in the word
/// and what is in the counter add up, whichever of them is used.
template <platform Platform>
void basic_percpu_ref<Platform>::cancel_switch() noexcept {
  percpu_ = true;
  switching_ = refused_ = false;
  (void)word_.put(1);  // biased, so not the last
  counter_.reopen();
}

template <platform Platform>
void basic_percpu_ref<Platform>::grace_over(grace_callback& done) noexcept {
  static_cast<switch_request&>(done).owner->finish_switch();
}

template <platform Platform>
void basic_percpu_ref<Platform>::finish_switch() noexcept {
  if (word_.fold(counter_.finish_close()) <= 0) {
    Platform::misuse("percpu_ref: more references were put than taken");
  }
  if (confirm_ != nullptr) confirm_(*this);  // stable while switching_
  lock_.lock();
  switching_ = false;
  // Before anybody can see that the switch is over: so is_zero() after
  // switch_to_atomic_sync() is exact.
  const bool last = word_.put(1);
  // [switch.count] relaxed: the lock orders it.
  (void)switches_.fetch_add(1, std::memory_order_relaxed);
  switches_.wake_all();
  lock_.unlock();
  if (last) release_(*this);  // else the ref may be gone: the destructor takes the lock
}

template <platform Platform>
void basic_percpu_ref<Platform>::exit() noexcept {
  lock_.lock();
  if (switching_ && !refused_) {
    Platform::misuse("exit() of a percpu_ref during a mode switch");
    std::intptr_t none = 0;  // not refused, so no second try
    if (!wait_for_switch(none)) return;
  }
  if (!exited_) {
    exited_ = true;
    if (percpu_) counter_.begin_close();
    percpu_ = false;
    word_.mark_dying();
  }
  lock_.unlock();
}

template <platform Platform>
percpu_ref_snapshot basic_percpu_ref<Platform>::snapshot() const noexcept {
  const scoped_lock guard(lock_);
  const bool biased = percpu_ || switching_;
  return {.percpu = percpu_,
          .dying = word_.is_dying(),
          .zero = word_.is_zero(),
          .switching = switching_,
          .force_atomic = force_atomic_,
          .allow_reinit = allow_reinit_,
          .biased = biased,
          .shared = word_.count(biased),
          .per_cpu = counter_.peek()};
}

}  // namespace pmgate

#endif  // PMGATE_PERCPU_REF_HPP
