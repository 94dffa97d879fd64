// SPDX-License-Identifier: MIT
//
// pmgate/detail/ref_core.hpp - how a percpu_ref works: the mechanism below the
// interface, for objects that are a reference count themselves.
//
// A switch to the shared word closes the counter, takes a grace period, and
// folds the sum into the word. Its grace period is asked for at once, or later
// together with those of others; until it is over, whoever needs the switch to
// be over waits, asks for the grace period himself, or, if the switch is not
// wanted any more, takes it back.
#ifndef PMGATE_DETAIL_REF_CORE_HPP
#define PMGATE_DETAIL_REF_CORE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/grace_batch.hpp>
#include <pmgate/detail/ref_word.hpp>
#include <pmgate/percpu_ref_types.hpp>
#include <pmgate/platform/concept.hpp>

namespace pmgate::detail {

/// What percpu_ref.hpp documents, for an Owner that derives from it.
///
/// The Owner has a member `void on_zero() noexcept`: the release callback. The
/// core holds no pointer that another process could not follow, except while
/// one of its own members runs.
template <platform Platform, class Owner>
class ref_core : private grace_callback {
 public:
  using confirm_fn = void (*)(Owner&) noexcept;

  explicit ref_core(ref_init flags) noexcept;
  ~ref_core();
  ref_core(const ref_core&) = delete;
  ref_core& operator=(const ref_core&) = delete;

  void get(std::intptr_t n = 1) noexcept;
  [[nodiscard]] bool try_get(std::intptr_t n = 1) noexcept;
  [[nodiscard]] bool try_get_live() noexcept;
  void put(std::intptr_t n = 1) noexcept;

  bool kill(confirm_fn confirm = nullptr) noexcept;
  bool resurrect() noexcept;
  void reinit() noexcept;
  bool switch_to_atomic(confirm_fn confirm = nullptr) noexcept;
  bool switch_to_atomic_sync() noexcept;
  void keep_atomic() noexcept;
  void switch_to_percpu() noexcept;
  void exit() noexcept;

  [[nodiscard]] bool is_dying() const noexcept { return word_.is_dying(); }
  [[nodiscard]] bool is_zero() const noexcept { return word_.is_zero(); }
  [[nodiscard]] percpu_ref_snapshot snapshot() const noexcept;

  // -- one grace period for many

  /// kill() that leaves the initial reference to the caller, to be put once he has left
  /// his locks, and, if in_batch, asking for the grace period to collect().
  ///
  /// Precondition: not dying.
  /// Returns: as kill(); the caller has the reference also if it was refused.
  bool kill_held(bool in_batch) noexcept;

  /// Puts that reference. One that an exit too many has put is reported, and not missed.
  void put_held() noexcept;

  /// Adds the request of a kill_held() to the batch.
  ///
  /// Returns: false if there is none, or somebody has asked for the grace period since.
  bool collect(grace_batch& batch) noexcept;

  /// To be called when the platform has refused a batch; it is used up by that.
  static void refuse(grace_batch& batch) noexcept;

  /// Asks for a grace period that nobody has asked for, or that was refused, if the switch
  /// is still wanted.
  ///
  /// Returns: references that the caller has to put.
  [[nodiscard]] std::intptr_t ask_in_place() noexcept;

  /// True if a switch waits for a grace period that was refused.
  [[nodiscard]] bool is_refused() const noexcept;

 private:
  /// Where a switch to the shared word is.
  enum class stage : std::uint8_t {
    none,     ///< there is none
    begun,    ///< the counter is closed, nobody has asked for the grace period
    pending,  ///< the platform has been asked for it
    refused,  ///< the platform said no
  };

  [[gnu::noinline]] void put_shared(std::intptr_t n) noexcept;
  [[gnu::noinline]] bool try_get_shared(std::intptr_t n, bool live) noexcept;
  Owner& owner() noexcept { return static_cast<Owner&>(*this); }
  bool wants_atomic() const noexcept;
  bool choose_mode(confirm_fn confirm, std::intptr_t given, stage first) noexcept;
  bool wait_for_switch(std::intptr_t& held) noexcept;
  bool request_grace_period() noexcept;
  bool ask_again() noexcept;
  void note_refusal() noexcept;
  void begin_switch(confirm_fn confirm, stage first, std::intptr_t given) noexcept;
  void wake_waiters() noexcept;
  void cancel_switch() noexcept;
  void finish_switch() noexcept;
  static void grace_over(grace_callback& done) noexcept;

  typename Platform::cpu_counter counter_;
  ref_word<Platform> word_;

  mutable typename Platform::mutex lock_;     // of all that follows, and of the dying bit
  typename Platform::wait_word switches_{0};  // counts switches that ended while awaited
  confirm_fn confirm_ = nullptr;              // of the switch under way
  stage switch_ = stage::none;
  bool awaited_ = false;  // somebody sleeps until switches_ changes
  bool percpu_;           // counter_ is open
  bool force_atomic_;
  bool allow_reinit_;
  bool exited_ = false;
};

template <platform Platform, class Owner>
ref_core<Platform, Owner>::ref_core(ref_init flags) noexcept
    : counter_(!has(flags, ref_init::atomic | ref_init::dead)),
      word_(has(flags, ref_init::dead) ? 0 : 1, !has(flags, ref_init::atomic | ref_init::dead),
            has(flags, ref_init::dead)),
      percpu_(!has(flags, ref_init::atomic | ref_init::dead)),
      force_atomic_(has(flags, ref_init::atomic)),
      allow_reinit_(flags != ref_init::none) {}

template <platform Platform, class Owner>
ref_core<Platform, Owner>::~ref_core() {
  const scoped_lock guard(lock_);  // finish_switch() has left the lock
  if (switch_ == stage::begun || switch_ == stage::pending) {
    Platform::misuse("percpu_ref destroyed during a mode switch");
  }
  if (!exited_ && !is_zero()) Platform::misuse("percpu_ref destroyed while referenced");
}

template <platform Platform, class Owner>
inline void ref_core<Platform, Owner>::get(std::intptr_t n) noexcept {
  if (counter_.try_add(n)) [[likely]] return;
  word_.get(n);
}

template <platform Platform, class Owner>
inline bool ref_core<Platform, Owner>::try_get(std::intptr_t n) noexcept {
  if (counter_.try_add(n)) [[likely]] return true;
  return try_get_shared(n, false);
}

template <platform Platform, class Owner>
inline bool ref_core<Platform, Owner>::try_get_live() noexcept {
  if (counter_.try_add(1)) [[likely]] return true;
  return try_get_shared(1, true);
}

template <platform Platform, class Owner>
inline void ref_core<Platform, Owner>::put(std::intptr_t n) noexcept {
  if (counter_.try_add(-n)) [[likely]] return;
  put_shared(n);
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::try_get_shared(std::intptr_t n, bool live) noexcept {
  return word_.try_get(n, live);
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::put_shared(std::intptr_t n) noexcept {
  if (word_.put(n)) owner().on_zero();  // the ref may be gone either way
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::wants_atomic() const noexcept {
  return force_atomic_ || is_dying();
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::kill(confirm_fn confirm) noexcept {
  lock_.lock();
  if (is_dying()) {
    // A refused one is tried again; its own confirm is still waiting.
    if (switch_ == stage::refused) return choose_mode(nullptr, 0, stage::pending);
    lock_.unlock();
    Platform::misuse("kill() of a percpu_ref that is dying already");
    return true;
  }
  word_.mark_dying();
  return choose_mode(confirm, 1, stage::pending);
}

/// With one reference more, the caller's, there is again one to give away.
template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::kill_held(bool in_batch) noexcept {
  lock_.lock();
  word_.mark_dying_and_get();
  return choose_mode(nullptr, 1, in_batch ? stage::begun : stage::pending);
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::put_held() noexcept {
  if (counter_.try_add(-1)) return;
  bool last = false;
  if (!word_.try_put(last)) Platform::misuse("percpu_ref: more references were put than taken");
  if (last) owner().on_zero();
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::resurrect() noexcept {
  lock_.lock();
  const bool legal = is_dying() && !exited_ && (allow_reinit_ || force_atomic_);
  if (!legal) {
    lock_.unlock();
    Platform::misuse("resurrect() of a percpu_ref that is live, exited or made without allow_reinit");
    return false;
  }
  const bool was_zero = word_.revive();
  (void)choose_mode(nullptr, 0, stage::pending);
  return was_zero;
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::reinit() noexcept {
  if (!is_zero()) Platform::misuse("reinit() of a percpu_ref that is not at zero");
  (void)resurrect();
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::switch_to_atomic(confirm_fn confirm) noexcept {
  lock_.lock();
  if (!allow_reinit_) {
    lock_.unlock();
    Platform::misuse("switch_to_atomic() of a percpu_ref made without allow_reinit");
    return true;
  }
  force_atomic_ = true;
  return choose_mode(confirm, 0, stage::pending);
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::keep_atomic() noexcept {
  lock_.lock();
  if (allow_reinit_) force_atomic_ = true;
  lock_.unlock();
  if (!allow_reinit_) Platform::misuse("keep_atomic() of a percpu_ref made without allow_reinit");
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::switch_to_atomic_sync() noexcept {
  if (!switch_to_atomic()) return false;
  lock_.lock();
  std::intptr_t held = 0;
  const bool over = wait_for_switch(held);
  if (over) lock_.unlock();
  if (held != 0) put_shared(held);
  return over;
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::switch_to_percpu() noexcept {
  lock_.lock();
  force_atomic_ = false;
  (void)choose_mode(nullptr, 0, stage::pending);
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::collect(grace_batch& batch) noexcept {
  const scoped_lock guard(lock_);
  if (switch_ != stage::begun) return false;
  switch_ = stage::pending;
  run = &grace_over;  // as in request_grace_period()
  batch.add(*this);
  return true;
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::refuse(grace_batch& batch) noexcept {
  for (grace_callback* next = batch.first(); next != nullptr;) {
    ref_core& refused = static_cast<ref_core&>(*next);
    next = next->next;
    const scoped_lock guard(refused.lock_);
    refused.note_refusal();
  }
}

template <platform Platform, class Owner>
std::intptr_t ref_core<Platform, Owner>::ask_in_place() noexcept {
  lock_.lock();
  if (switch_ == stage::none || switch_ == stage::pending || !wants_atomic()) {
    lock_.unlock();
    return 0;
  }
  word_.get(1);  // biased now; as in wait_for_switch()
  if (ask_again()) lock_.unlock();
  return 1;
}

template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::is_refused() const noexcept {
  const scoped_lock guard(lock_);
  return switch_ == stage::refused;
}

/// Common tail of kill(), resurrect() and the switches: waits for the switch under
/// way, then acts on what is wanted *then*, not on what the caller wanted. Puts the
/// references that are given to it.
/// Called with the lock held; releases it. Returns: false if refused.
template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::choose_mode(confirm_fn confirm, std::intptr_t given,
                                            stage first) noexcept {
  if (!wait_for_switch(given)) {
    if (given != 0) put_shared(given);  // biased, so not the last
    return false;
  }
  if (wants_atomic() && percpu_) {
    begin_switch(confirm, first, given);
    lock_.unlock();
    // From here the ref may be gone: the callback may run, and release.
    if (first == stage::begun || request_grace_period()) return true;
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
  if (confirm_now && confirm != nullptr) confirm(owner());
  if (given != 0) put(given);  // else the ref may be gone
  return true;
}

/// Called with the lock held; returns true with it held, false without it. References
/// that it takes are added to `held`: a grace period asked for here may bring about
/// the release, and until they are put the ref is not freed by it.
template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::wait_for_switch(std::intptr_t& held) noexcept {
  while (switch_ != stage::none) {
    if (switch_ != stage::pending) {
      if (!wants_atomic()) {
        cancel_switch();
      } else {
        word_.get(1);  // biased now; see above
        ++held;
        if (!ask_again()) return false;
      }
      continue;
    }
    if constexpr (!Platform::can_block) {
      lock_.unlock();
      Platform::misuse("a percpu_ref's confirm callback waits for its own switch");
      return false;
    }
    awaited_ = true;
    // [wait.count] relaxed: the lock orders it; the word is only slept on.
    const std::uint32_t ended = switches_.load(std::memory_order_relaxed);
    lock_.unlock();
    switches_.wait(ended);
    lock_.lock();
  }
  return true;
}

/// Who asks says what to run: another process, with other addresses, may have begun the switch.
template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::request_grace_period() noexcept {
  run = &grace_over;
  next = nullptr;  // alone, whatever batch it was in before
  return Platform::after_grace_period(*this);
}

/// Asks for the grace period in place of whoever has not, or was refused it.
/// Lock: as wait_for_switch().
template <platform Platform, class Owner>
bool ref_core<Platform, Owner>::ask_again() noexcept {
  switch_ = stage::pending;  // others wait for us meanwhile
  lock_.unlock();
  const bool granted = request_grace_period();
  lock_.lock();
  if (granted) return true;
  note_refusal();
  lock_.unlock();
  return false;
}

/// Called with the lock held.
template <platform Platform, class Owner>
void ref_core<Platform, Owner>::note_refusal() noexcept {
  switch_ = stage::refused;
  wake_waiters();
}

/// Lets those who wait for the switch look again. Called with the lock held: whoever
/// found the switch under way has said that he waits, and read the count, before.
template <platform Platform, class Owner>
void ref_core<Platform, Owner>::wake_waiters() noexcept {
  if (!awaited_) return;
  awaited_ = false;
  // [switch.count] relaxed: the lock orders it.
  (void)switches_.fetch_add(1, std::memory_order_relaxed);
  switches_.wake_all();
}

/// Puts the references that are given; one of them, or one more, is the switch's own
/// until it ends. Called with the lock held.
template <platform Platform, class Owner>
void ref_core<Platform, Owner>::begin_switch(confirm_fn confirm, stage first,
                                             std::intptr_t given) noexcept {
  percpu_ = false;
  switch_ = first;
  confirm_ = confirm;
  // Most kills give one: nothing to do to the word.
  if (given == 0) word_.get(1);
  if (given > 1) (void)word_.put(given - 1);  // biased, so not the last
  counter_.begin_close();
}

/// Undoes begin_switch() of a switch that got no grace period: what is in the word
/// and what is in the counter add up, whichever of them is used.
template <platform Platform, class Owner>
void ref_core<Platform, Owner>::cancel_switch() noexcept {
  percpu_ = true;
  switch_ = stage::none;
  (void)word_.put(1);  // biased, so not the last
  counter_.reopen();
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::grace_over(grace_callback& done) noexcept {
  static_cast<ref_core&>(done).finish_switch();
}

/// The bias goes, the sum comes in and the switch's own reference is put in one step: the
/// word is biased until then, so the ref does not reach zero before its confirm callback
/// has returned, nor before anybody can see that the switch is over.
template <platform Platform, class Owner>
void ref_core<Platform, Owner>::finish_switch() noexcept {
  const std::intptr_t elsewhere = counter_.finish_close();
  if (word_.count(true) + elsewhere <= 0) {
    Platform::misuse("percpu_ref: more references were put than taken");
  }
  if (confirm_ != nullptr) confirm_(owner());  // stable while the switch is under way
  lock_.lock();
  switch_ = stage::none;
  // Under the lock: so is_zero() after switch_to_atomic_sync() is exact.
  const bool last = word_.fold(elsewhere - 1) == 0;
  wake_waiters();
  lock_.unlock();
  if (last) owner().on_zero();  // else the ref may be gone: the destructor takes the lock
}

template <platform Platform, class Owner>
void ref_core<Platform, Owner>::exit() noexcept {
  std::intptr_t held = 0;
  bool over = true;
  lock_.lock();
  if (switch_ == stage::begun || switch_ == stage::pending) {
    Platform::misuse("exit() of a percpu_ref during a mode switch");
    over = wait_for_switch(held);
  }
  if (over) {
    if (!exited_) {
      exited_ = true;
      if (percpu_) counter_.begin_close();
      percpu_ = false;
      word_.mark_dying();
    }
    lock_.unlock();
  }
  if (held != 0) put_shared(held);
}

template <platform Platform, class Owner>
percpu_ref_snapshot ref_core<Platform, Owner>::snapshot() const noexcept {
  const scoped_lock guard(lock_);
  const bool switching = switch_ != stage::none;
  const bool biased = percpu_ || switching;
  return {.percpu = percpu_,
          .dying = word_.is_dying(),
          .zero = word_.is_zero(),
          .switching = switching,
          .force_atomic = force_atomic_,
          .allow_reinit = allow_reinit_,
          .biased = biased,
          .shared = word_.count(biased),
          .per_cpu = counter_.peek()};
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_REF_CORE_HPP
