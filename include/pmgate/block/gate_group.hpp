// SPDX-License-Identifier: MIT
//
// pmgate/block/gate_group.hpp - gates that are closed together, those that are made
// meanwhile included.
//
// A gate that joins a group while the group is frozen or quiesced is born frozen or
// quiesced: there is no instant at which it could be entered behind the back of
// whoever closed the group.
//
// Counterpart: the queues of a tag set.
#ifndef PMGATE_BLOCK_GATE_GROUP_HPP
#define PMGATE_BLOCK_GATE_GROUP_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// A set of gates with one grace period for each closing.
///
/// Lifetime: neither copyable nor movable; outlives its members.
/// Threads:  every member from any thread.
/// Blocking: what waits for a drain or for sections; the rest as it says.
/// Order:    everybody who closes the group also opens it again, by the group; what is
///           done to the gates directly adds to it.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_gate_group {
 public:
  using time_point = typename Platform::time_point;

  /// The place of a freeze gate, a quiesce gate, or both, in a group.
  ///
  /// Lifetime: between its gates and its group; neither copyable nor movable.
  class member {
   public:
    /// Joins: the gates are closed as often as the group is.
    ///
    /// Either gate may be null.
    /// Precondition: nobody can use the gates yet.
    member(basic_gate_group& group, basic_freeze_gate<Platform>* door,
           basic_quiesce_gate<Platform>* dispatch = nullptr) noexcept
        : group_(group), door_(door), dispatch_(dispatch), joined_(group.join(*this)) {}
    /// Leaves; the closings of the group are undone.
    ///
    /// Precondition: not called by a waiter that a call of the group itself resumes.
    /// Blocks: while a call of the group is at these gates.
    ~member() { group_.leave(*this); }
    member(const member&) = delete;
    member& operator=(const member&) = delete;

    /// ok, or not_permitted: the gate is open although the group is frozen.
    [[nodiscard]] status joined() const noexcept { return joined_; }

   private:
    friend basic_gate_group;
    basic_gate_group& group_;
    basic_freeze_gate<Platform>* const door_;
    basic_quiesce_gate<Platform>* const dispatch_;
    member* next_ = nullptr;
    member* previous_ = nullptr;
    int frozen_ = 0;    // freezes and
    int quiesced_ = 0;  // quiesces of the group that were applied to it
    int pins_ = 0;      // calls of the group that are at one of its gates now
    status joined_;
  };

  basic_gate_group() noexcept = default;
  ~basic_gate_group() {
    if (first_ != nullptr) Platform::misuse("gate_group destroyed with members");
  }
  basic_gate_group(const basic_gate_group&) = delete;
  basic_gate_group& operator=(const basic_gate_group&) = delete;

  /// freeze_start_all() of the members, present and future.
  ///
  /// Returns: as freeze_start_all().
  status freeze_start() noexcept;
  /// Waits until nobody is inside any member.  Returns: as freeze_wait() of a gate.
  status freeze_wait() noexcept;
  /// freeze_start() and freeze_wait().
  status freeze() noexcept;
  /// Undoes one freeze_start(); members that have joined since are opened with the rest.
  void unfreeze() noexcept;

  /// quiesce_nowait_all() of the members, present and future.
  void quiesce_nowait() noexcept;
  /// Waits until no section runs, with one grace period.  Returns: as wait_quiesced().
  status wait_quiesced() noexcept;
  /// quiesce_nowait() and wait_quiesced().
  status quiesce() noexcept;
  /// Undoes one quiesce_nowait().
  ///
  /// opened(quiesce gate): called for each whose last quiesce this was.
  template <class Opened>
  void unquiesce(Opened opened) noexcept;
  void unquiesce() noexcept {
    unquiesce([](auto&) noexcept {});
  }

  /// Every freeze gate is dying, for good; one that joins is born so.  Blocks: no.
  void mark_dying() noexcept;
  /// start_drain() of the freeze gates that are there: whoever waits at one looks whether it
  /// is dying. Nothing undoes it.
  ///
  /// Returns: ok; not_permitted if the platform refused a grace period for one of them, which
  /// stays as it was.
  status start_drain() noexcept;

  /// Freezes and quiesces of the group in force.
  [[nodiscard]] int freeze_depth() const noexcept;
  [[nodiscard]] int quiesce_depth() const noexcept;

 private:
  status join(member& newcomer) noexcept;
  void leave(member& leaver) noexcept;
  template <class Due, class Visit>
  status visit_all(Due due, Visit visit) noexcept;
  void note_end() noexcept;

  mutable typename Platform::mutex lock_;  // of everything
  typename Platform::wait_word ended_{0};  // counts pins and starts that ended
  member* first_ = nullptr;
  int freezes_ = 0;
  int quiesces_ = 0;
  int starts_ = 0;  // freeze_start() calls under way
  bool dying_ = false;
};

using gate_group = basic_gate_group<default_platform>;

template <platform Platform>
status basic_gate_group<Platform>::join(member& newcomer) noexcept {
  const scoped_lock guard(lock_);
  newcomer.next_ = first_;
  if (first_ != nullptr) first_->previous_ = &newcomer;
  first_ = &newcomer;
  if (newcomer.dispatch_ != nullptr) {
    for (; newcomer.quiesced_ < quiesces_; ++newcomer.quiesced_) {
      newcomer.dispatch_->quiesce_nowait();
    }
  }
  if (newcomer.door_ == nullptr) return status::ok;
  if (dying_) newcomer.door_->mark_dying();
  for (; newcomer.frozen_ < freezes_; ++newcomer.frozen_) {
    const status started = newcomer.door_->freeze_start_non_owner();
    if (started != status::ok) return started;
  }
  return status::ok;
}

template <platform Platform>
void basic_gate_group<Platform>::leave(member& leaver) noexcept {
  lock_.lock();
  while (leaver.pins_ != 0 || starts_ != 0) {
    if constexpr (!Platform::can_block) Platform::misuse("a gate leaves a group that is at it");
    // [leave.count] relaxed: the lock orders it; the word is only slept on.
    const std::uint32_t seen = ended_.load(std::memory_order_relaxed);
    lock_.unlock();
    ended_.wait(seen);
    lock_.lock();
  }
  (leaver.previous_ != nullptr ? leaver.previous_->next_ : first_) = leaver.next_;
  if (leaver.next_ != nullptr) leaver.next_->previous_ = leaver.previous_;
  lock_.unlock();
  for (; leaver.frozen_ > 0; --leaver.frozen_) leaver.door_->unfreeze();
  for (; leaver.quiesced_ > 0; --leaver.quiesced_) (void)leaver.dispatch_->unquiesce();
}

/// Visits, outside the lock, each member for which due(member) holds under it. A member
/// that is being visited does not leave. Stops at the first visit that is not ok.
template <platform Platform>
template <class Due, class Visit>
status basic_gate_group<Platform>::visit_all(Due due, Visit visit) noexcept {
  status result = status::ok;
  lock_.lock();
  for (member* at = first_; at != nullptr && result == status::ok; at = at->next_) {
    if (!due(*at)) continue;
    ++at->pins_;
    lock_.unlock();
    result = visit(*at);
    lock_.lock();
    --at->pins_;
    note_end();
  }
  lock_.unlock();
  return result;
}

/// Lets leavers look again. Called with the lock held.
template <platform Platform>
void basic_gate_group<Platform>::note_end() noexcept {
  // [end.count] relaxed: the lock orders it.
  (void)ended_.fetch_add(1, std::memory_order_relaxed);
  ended_.wake_all();
}

template <platform Platform>
status basic_gate_group<Platform>::freeze_start() noexcept {
  using detail::many_gates;
  status result = status::ok;
  detail::grace_batch batch;
  lock_.lock();
  ++freezes_;
  for (member* at = first_; at != nullptr && result == status::ok; at = at->next_) {
    if (at->door_ == nullptr) continue;
    bool ignored;
    result = many_gates::begin_freeze(*at->door_, ignored);
    if (result != status::ok) break;
    ++at->frozen_;
    (void)many_gates::collect(*at->door_, batch);
  }
  ++starts_;  // until the end each member has its batch's reference: it does not leave
  lock_.unlock();
  if (!many_gates::ask<Platform>(batch)) result = status::not_permitted;
  if (result != status::ok) unfreeze();
  (void)visit_all([](member& at) { return at.door_ != nullptr; },
                  [result](member& at) {
                    many_gates::let_drain(*at.door_, result != status::ok);
                    return status::ok;
                  });
  lock_.lock();
  --starts_;
  note_end();
  lock_.unlock();
  return result;
}

template <platform Platform>
status basic_gate_group<Platform>::freeze_wait() noexcept {
  return visit_all([](member& at) { return at.door_ != nullptr && at.frozen_ > 0; },
                   [](member& at) { return at.door_->freeze_wait(); });
}

template <platform Platform>
status basic_gate_group<Platform>::freeze() noexcept {
  const status started = freeze_start();
  return started == status::ok ? freeze_wait() : started;
}

template <platform Platform>
void basic_gate_group<Platform>::unfreeze() noexcept {
  lock_.lock();
  const bool legal = freezes_ > 0;
  if (legal) --freezes_;
  lock_.unlock();
  if (!legal) {
    Platform::misuse("unfreeze() of a gate_group that is not frozen");
    return;
  }
  (void)visit_all(
      [this](member& at) {
        const bool due = at.frozen_ > freezes_;
        if (due) --at.frozen_;
        return due;
      },
      [](member& at) {
        at.door_->unfreeze();
        return status::ok;
      });
}

template <platform Platform>
void basic_gate_group<Platform>::quiesce_nowait() noexcept {
  const scoped_lock guard(lock_);
  ++quiesces_;
  for (member* at = first_; at != nullptr; at = at->next_) {
    if (at->dispatch_ == nullptr) continue;
    at->dispatch_->quiesce_nowait();
    ++at->quiesced_;
  }
}

template <platform Platform>
status basic_gate_group<Platform>::wait_quiesced() noexcept {
  if (!Platform::synchronize()) return status::not_permitted;
  return visit_all([](member& at) { return at.quiesced_ > 0; },
                   [](member& at) { return detail::many_gates::wait_for_sections(*at.dispatch_); });
}

template <platform Platform>
status basic_gate_group<Platform>::quiesce() noexcept {
  quiesce_nowait();
  return wait_quiesced();
}

template <platform Platform>
template <class Opened>
void basic_gate_group<Platform>::unquiesce(Opened opened) noexcept {
  lock_.lock();
  const bool legal = quiesces_ > 0;
  if (legal) --quiesces_;
  lock_.unlock();
  if (!legal) {
    Platform::misuse("unquiesce() of a gate_group that is not quiesced");
    return;
  }
  (void)visit_all(
      [this](member& at) {
        const bool due = at.quiesced_ > quiesces_;
        if (due) --at.quiesced_;
        return due;
      },
      [&opened](member& at) {
        if (at.dispatch_->unquiesce()) opened(*at.dispatch_);
        return status::ok;
      });
}

template <platform Platform>
void basic_gate_group<Platform>::mark_dying() noexcept {
  const scoped_lock guard(lock_);
  dying_ = true;
  for (member* at = first_; at != nullptr; at = at->next_) {
    if (at->door_ != nullptr) at->door_->mark_dying();
  }
}

template <platform Platform>
status basic_gate_group<Platform>::start_drain() noexcept {
  status result = status::ok;
  (void)visit_all([](member& at) { return at.door_ != nullptr; },
                  [&result](member& at) {
                    const status started = at.door_->start_drain();
                    if (started != status::ok) result = started;
                    return status::ok;
                  });
  return result;
}

template <platform Platform>
int basic_gate_group<Platform>::freeze_depth() const noexcept {
  const scoped_lock guard(lock_);
  return freezes_;
}

template <platform Platform>
int basic_gate_group<Platform>::quiesce_depth() const noexcept {
  const scoped_lock guard(lock_);
  return quiesces_;
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_GATE_GROUP_HPP
