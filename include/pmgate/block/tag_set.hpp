// SPDX-License-Identifier: MIT
//
// pmgate/block/tag_set.hpp - tags that several request queues share, as the queues of
// one host adapter do, and what is done to all these queues at once.
//
// The one rule to know: gates and depths belong to each queue. What is done to the set
// is done to each queue in it, and to those that join later, so that undoing it is the
// same for all.
//
// Counterpart: struct blk_mq_tag_set, blk_mq_quiesce_tagset() (semantics only); nvme's
// loops that freeze all its namespaces.
#ifndef PMGATE_BLOCK_TAG_SET_HPP
#define PMGATE_BLOCK_TAG_SET_HPP

#include <atomic>
#include <cstdint>
#include <utility>

#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/detail/block/tag_allocator.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// Whether a driver's queue_rq may sleep.
enum class driver_kind : std::uint8_t {
  nonblocking,
  blocking,  ///< submitters do not run it, but for bios: the work queue does
};

/// Whether a queue takes part when its tag set is quiesced.
enum class tagset_quiesce : std::uint8_t {
  included,
  skipped,  ///< goes on dispatching, as an admin queue has to
};

/// Tag set: tags for one queue or several.
///
/// Lifetime: neither copyable nor movable; outlives its queues. A queue is not destroyed
///           while somebody waits in a member of its set, nor by a waiter that a member
///           of the set resumes.
/// Threads:  every member from any thread, beside anything that is done to one queue.
/// Blocking: as each member says.
/// Fairness: while a set has several queues, none holds more than an equal part of the
///           tags, of four at least, for each queue that holds any (Kernel: freezes a queue
///           that is no longer, or again, the only one; here nothing has to stand still).
/// Misuse:   goes to Platform::misuse(); undoing too much is reported by each queue.
/// Limits:   1 to 1024 tags; one lock for the tags and for the lists of all its queues.
template <platform Platform>
class basic_tag_set {
 public:
  using queue_type = basic_request_queue<Platform>;
  using time_point = typename Platform::time_point;

  explicit basic_tag_set(unsigned depth, driver_kind driver = driver_kind::nonblocking) noexcept;
  ~basic_tag_set();
  basic_tag_set(const basic_tag_set&) = delete;
  basic_tag_set& operator=(const basic_tag_set&) = delete;

  [[nodiscard]] bool is_blocking() const noexcept { return driver_ == driver_kind::blocking; }

  // -- dispatch; see basic_quiesce_gate

  /// quiesce_nowait() and wait_quiesced(): one grace period, however many queues.
  ///
  /// Kernel: blk_mq_quiesce_tagset().
  status quiesce() noexcept;
  /// Quiesces every queue that is not skipped; a queue that joins is born quiesced.
  ///
  /// Blocks: no.
  void quiesce_nowait() noexcept;
  /// Waits until none of these queues dispatches.
  ///
  /// Precondition: this quiesce stays in force until it returns.
  /// Returns: as basic_quiesce_gate::wait_quiesced().
  status wait_quiesced() noexcept;
  /// Undoes one quiesce of each of these queues.
  ///
  /// Blocks: no.  Kernel: blk_mq_unquiesce_tagset().
  void unquiesce() noexcept;

  // -- entry; see basic_freeze_gate

  /// freeze_start() and freeze_wait(): one grace period, and drains overlap.
  status freeze() noexcept;
  /// Closes the gate of every queue and has it dispatch what it holds, asynchronously; a
  /// queue that joins is born frozen.
  ///
  /// Returns: ok; not_permitted if the platform refused a grace period: then nothing is
  /// frozen.  Blocks: for switches under way.
  status freeze_start() noexcept;
  /// Waits until nobody is inside any of the queues.
  ///
  /// Returns: as basic_freeze_gate::freeze_wait().
  status freeze_wait() noexcept;
  /// freeze_wait() with a deadline; the freeze stays in force either way.
  ///
  /// Returns: true if all have drained.
  [[nodiscard]] bool freeze_wait_until(time_point deadline) noexcept;
  /// freeze() with a deadline: at the deadline the freeze is undone again.
  ///
  /// Returns: ok: frozen; timed_out or not_permitted: not frozen by this call.
  [[nodiscard]] status freeze_until(time_point deadline) noexcept;
  /// Undoes one freeze of each queue.
  ///
  /// Blocks: as basic_freeze_gate::unfreeze().
  void unfreeze() noexcept;

  // -- the end, of all its queues

  /// The gate of every queue is dying, for good; a queue that joins is born so.
  ///
  /// Blocks: no.
  void mark_dying() noexcept;
  /// basic_freeze_gate::start_drain() of the gates of the queues that are there: whoever
  /// waits at one looks whether it is dying. Nothing is dispatched, and nothing undoes it.
  ///
  /// Returns: ok; not_permitted if the platform refused a grace period for one of them, which
  /// stays as it was.  Blocks: as freeze_start().
  status start_drain() noexcept;

 private:
  friend class basic_request_queue<Platform>;
  friend class detail::dispatcher<Platform>;

  void join(queue_type& queue) noexcept;
  void leave(queue_type& queue) noexcept;
  queue_type* next(const queue_type* queue) noexcept;
  queue_type* next_included(queue_type* queue) noexcept;

  /// The queues that were there at one moment, as a range of their gates. Each step takes
  /// the lock; whoever is resumed by what is done to a gate may come back to the set.
  /// From change() to end_change() no queue leaves.
  class members_then {
   public:
    members_then(basic_tag_set& set, queue_type* first, queue_type* last) noexcept
        : set_(set), at_(first), last_(last) {}
    members_then begin() const noexcept { return *this; }
    members_then end() const noexcept { return members_then(set_, nullptr, nullptr); }
    auto& operator*() const noexcept { return at_->gate(); }
    void operator++() noexcept { at_ = at_ != last_ ? set_.next(at_) : nullptr; }
    bool operator!=(const members_then& other) const noexcept { return at_ != other.at_; }
    queue_type& queue() const noexcept { return *at_; }

   private:
    basic_tag_set& set_;
    queue_type* at_;
    queue_type* last_;
  };
  members_then change(int& in_force, int by) noexcept;
  void end_change() noexcept;
  /// The dispatch sections of the queues that take part, as a range. Each step takes the
  /// lock: queues may join meanwhile.
  class sections {
   public:
    sections(basic_tag_set& set, queue_type* at) noexcept : set_(set), at_(at) {}
    sections begin() const noexcept { return sections(set_, set_.next_included(nullptr)); }
    sections end() const noexcept { return sections(set_, nullptr); }
    auto& operator*() const noexcept { return at_->dispatch_.sections(); }
    void operator++() noexcept { at_ = set_.next_included(at_); }
    bool operator!=(const sections& other) const noexcept { return at_ != other.at_; }

   private:
    basic_tag_set& set_;
    queue_type* at_;
  };

  const driver_kind driver_;
  typename Platform::mutex lock_;  // tags_, and the lists of the queues
  detail::tag_allocator<Platform> tags_;

  typename Platform::mutex members_lock_;  // of all that follows; taken before lock_
  queue_type* first_ = nullptr;            // in the order in which they joined
  queue_type* last_ = nullptr;
  int quiesces_ = 0;  // in force on the whole set
  int freezes_ = 0;
  int changes_ = 0;  // under way
  bool dying_ = false;
  typename Platform::wait_word changes_ended_{0};
};

using tag_set = basic_tag_set<default_platform>;

template <platform Platform>
basic_tag_set<Platform>::basic_tag_set(unsigned depth, driver_kind driver) noexcept
    : driver_(driver), tags_(depth) {
  if (depth == 0 || depth > detail::tag_pool::max_depth) {
    Platform::misuse("a tag_set has 1 to 1024 tags");
  }
}

template <platform Platform>
basic_tag_set<Platform>::~basic_tag_set() {
  if (first_ != nullptr) Platform::misuse("tag_set destroyed before its queues");
}

// -- members

/// What is in force on the set becomes in force on the queue. Its gate still counts in the
/// shared word: freezing it takes no grace period, and cannot be refused.
template <platform Platform>
void basic_tag_set<Platform>::join(queue_type& queue) noexcept {
  const scoped_lock members(members_lock_);
  if (dying_) queue.gate().mark_dying();
  for (int i = 0; i < quiesces_ && queue.in_tagset_quiesce(); ++i) queue.quiesce_nowait();
  for (int i = 0; i < freezes_; ++i) (void)queue.gate().freeze_start_non_owner();
  (last_ != nullptr ? last_->next_in_set_ : first_) = &queue;
  last_ = &queue;
}

template <platform Platform>
void basic_tag_set<Platform>::leave(queue_type& queue) noexcept {
  members_lock_.lock();
  while (changes_ != 0) {
    if constexpr (!Platform::can_block) {
      Platform::misuse("a queue leaves a tag_set that is at it");
      break;
    }
    // [leave.count] relaxed: the lock orders it; the word is only slept on.
    const std::uint32_t seen = changes_ended_.load(std::memory_order_relaxed);
    members_lock_.unlock();
    changes_ended_.wait(seen);
    members_lock_.lock();
  }
  queue_type* before = nullptr;
  queue_type* each = first_;
  while (each != nullptr && each != &queue) before = std::exchange(each, each->next_in_set_);
  if (each != nullptr) {  // else it has left already
    (before != nullptr ? before->next_in_set_ : first_) = queue.next_in_set_;
    if (last_ == &queue) last_ = before;
  }
  members_lock_.unlock();
}

/// The queue that joined next; the first one for null.
template <platform Platform>
auto basic_tag_set<Platform>::next(const queue_type* queue) noexcept -> queue_type* {
  const scoped_lock members(members_lock_);
  return queue != nullptr ? queue->next_in_set_ : first_;
}

template <platform Platform>
auto basic_tag_set<Platform>::next_included(queue_type* queue) noexcept -> queue_type* {
  do queue = next(queue);
  while (queue != nullptr && !queue->in_tagset_quiesce());
  return queue;
}

// -- dispatch

template <platform Platform>
status basic_tag_set<Platform>::quiesce() noexcept {
  quiesce_nowait();
  return wait_quiesced();
}

template <platform Platform>
void basic_tag_set<Platform>::quiesce_nowait() noexcept {
  const scoped_lock members(members_lock_);
  ++quiesces_;
  for (queue_type* each = first_; each != nullptr; each = each->next_in_set_) {
    if (each->in_tagset_quiesce()) each->quiesce_nowait();
  }
}

template <platform Platform>
status basic_tag_set<Platform>::wait_quiesced() noexcept {
  if (next_included(nullptr) == nullptr) {  // the kernel waits all the same
    return Platform::synchronize() ? status::ok : status::not_permitted;
  }
  return wait_quiesced_all(sections(*this, nullptr));
}

template <platform Platform>
void basic_tag_set<Platform>::unquiesce() noexcept {
  const members_then queues = change(quiesces_, -1);
  for (members_then each = queues.begin(); each != queues.end(); ++each) {
    if (each.queue().in_tagset_quiesce()) each.queue().unquiesce();
  }
  end_change();
}

// -- entry

template <platform Platform>
status basic_tag_set<Platform>::freeze() noexcept {
  const status started = freeze_start();
  return started == status::ok ? freeze_wait() : started;
}

/// Those who join from then on are born with what is in force, or without it.
/// Returns: the queues that were members at that moment.
template <platform Platform>
auto basic_tag_set<Platform>::change(int& in_force, int by) noexcept -> members_then {
  const scoped_lock members(members_lock_);
  if (in_force + by >= 0) in_force += by;
  ++changes_;
  return {*this, first_, last_};
}

/// Lets leavers look again.
template <platform Platform>
void basic_tag_set<Platform>::end_change() noexcept {
  const scoped_lock members(members_lock_);
  --changes_;
  // [change.count] relaxed: the lock orders it.
  (void)changes_ended_.fetch_add(1, std::memory_order_relaxed);
  changes_ended_.wake_all();
}

template <platform Platform>
status basic_tag_set<Platform>::freeze_start() noexcept {
  const members_then queues = change(freezes_, 1);
  const status started = freeze_start_all(queues);
  if (started == status::ok) {
    for (members_then each = queues.begin(); each != queues.end(); ++each) each.queue().run(true);
    end_change();
    return status::ok;
  }
  members_then since = change(freezes_, -1);  // of them: those who were born frozen since
  for (members_then each = queues.begin(); each != queues.end(); ++each) ++since;
  for (auto& gate : since) gate.unfreeze();
  end_change();
  end_change();
  return started;
}

template <platform Platform>
status basic_tag_set<Platform>::freeze_wait() noexcept {
  for (queue_type* each = next(nullptr); each != nullptr; each = next(each)) {
    const status waited = each->freeze_wait();
    if (waited != status::ok) return waited;
  }
  return status::ok;
}

template <platform Platform>
bool basic_tag_set<Platform>::freeze_wait_until(time_point deadline) noexcept {
  for (queue_type* each = next(nullptr); each != nullptr; each = next(each)) {
    if (!each->freeze_wait_until(deadline)) return false;
  }
  return true;
}

template <platform Platform>
status basic_tag_set<Platform>::freeze_until(time_point deadline) noexcept {
  const status started = freeze_start();
  if (started != status::ok || freeze_wait_until(deadline)) return started;
  unfreeze();
  return status::timed_out;
}

template <platform Platform>
void basic_tag_set<Platform>::unfreeze() noexcept {
  unfreeze_all(change(freezes_, -1));
  end_change();
}

// -- the end

template <platform Platform>
void basic_tag_set<Platform>::mark_dying() noexcept {
  const scoped_lock members(members_lock_);
  dying_ = true;
  for (queue_type* each = first_; each != nullptr; each = each->next_in_set_) {
    each->gate().mark_dying();
  }
}

template <platform Platform>
status basic_tag_set<Platform>::start_drain() noexcept {
  status result = status::ok;
  for (auto& gate : change(freezes_, 0)) {
    const status started = gate.start_drain();
    if (started != status::ok) result = started;
  }
  end_change();
  return result;
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_TAG_SET_HPP
