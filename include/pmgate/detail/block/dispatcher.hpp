// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/dispatcher.hpp - the part of a request queue that offers
// requests to the driver: lists, runs, quiesce.
//
// The one rule to know: whoever adds a request looks, under the lock of the
// lists, whether the queue may dispatch; whoever lets it dispatch looks, under
// the same lock, for requests. So none is left behind.
//
// Counterpart: struct blk_mq_hw_ctx without a scheduler (semantics only).
#ifndef PMGATE_DETAIL_BLOCK_DISPATCHER_HPP
#define PMGATE_DETAIL_BLOCK_DISPATCHER_HPP

#include <atomic>
#include <cstdint>
#include <utility>

#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/pm/work_queue.hpp>

namespace pmgate::detail {

/// Requests in order, linked through themselves.
template <class Request>
class request_list {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }

  void push_back(Request& rq) noexcept {
    rq.next_ = nullptr;
    (last_ != nullptr ? last_->next_ : first_) = &rq;
    last_ = &rq;
  }
  void push_front(Request& rq) noexcept {
    rq.next_ = first_;
    first_ = &rq;
    if (last_ == nullptr) last_ = &rq;
  }
  /// Precondition: not empty.
  [[nodiscard]] Request& pop_front() noexcept {
    Request& rq = *first_;
    first_ = rq.next_;
    if (first_ == nullptr) last_ = nullptr;
    return rq;
  }
  /// Moves all of `other` to the end.
  void append(request_list& other) noexcept {
    if (other.empty()) return;
    (last_ != nullptr ? last_->next_ : first_) = other.first_;
    last_ = other.last_;
    other.first_ = other.last_ = nullptr;
  }
  /// Returns: the whole list; this one is empty afterwards.
  [[nodiscard]] request_list take() noexcept { return std::exchange(*this, request_list()); }

 private:
  Request* first_ = nullptr;
  Request* last_ = nullptr;
};

/// What is queued, and who offers it to the driver when.
///
/// Lifetime: the queue's. Threads: every member from any thread.
/// Locks:    a member named _unlock is called with mutex() held and releases it; one
///           named _locked is called with it held. The driver is called without it.
///           Outside a section the unlock is the last touch of a submitter: what he
///           submitted may be over by then, and the queue gone.
template <platform Platform>
class dispatcher {
 public:
  using request_type = basic_request<Platform>;
  using queue_type = basic_request_queue<Platform>;
  using quiesce_type = basic_quiesce_gate<Platform>;

  /// mutex: of the lists, and of more that the owner has under it, to lock once per
  /// request. blocking: the driver may sleep.
  dispatcher(queue_type& queue, pm::basic_work_queue<Platform>& works,
             typename Platform::mutex& mutex, bool blocking) noexcept
      : queue_(queue), works_(works), lock_(mutex), blocking_(blocking) {}
  /// Waits for sections and asynchronous runs: a dispatcher may still be on its way
  /// out after the last request has been freed.
  ~dispatcher();
  dispatcher(const dispatcher&) = delete;
  dispatcher& operator=(const dispatcher&) = delete;

  [[nodiscard]] typename Platform::mutex& mutex() noexcept { return lock_; }
  [[nodiscard]] quiesce_type& sections() noexcept { return sections_; }
  [[nodiscard]] const quiesce_type& sections() const noexcept { return sections_; }

  /// Puts a request where its kind is kept.
  void park_locked(request_type& rq, bool at_head) noexcept;
  /// Parks a request and has it offered, here or, if the driver may sleep, later: a
  /// submitter does not sleep for the driver.
  void insert_unlock(request_type& rq, bool at_head) noexcept;
  /// Offers what is queued, unless quiesced or stopped.
  void run_unlock() noexcept;
  /// The same, later if the driver may sleep.
  void offer_unlock() noexcept { blocking_ ? run_async_unlock() : run_unlock(); }
  /// Offers a bio directly, and keeps it only if it cannot go out.
  void issue_unlock(request_type& rq) noexcept;
  /// A request is being freed. Returns: true if run_soon() is to be called for that.
  [[nodiscard]] bool note_freed_locked() noexcept {
    return std::exchange(restart_, false) && wants_run_locked();
  }

  void run() noexcept {
    lock_.lock();
    run_unlock();
  }
  /// Runs on the work queue, if there is anything to do.
  void run_async() noexcept {
    lock_.lock();
    run_async_unlock();
  }
  void run_soon() noexcept { (void)works_.modify_delayed(run_work_, Platform::milliseconds(0)); }
  void stop() noexcept;
  void start_stopped() noexcept;
  void requeue(request_type& rq, bool kick) noexcept;
  void kick_requeued() noexcept { (void)works_.queue(requeue_work_); }
  /// The same, if anything was requeued; what was not does not run the queue.
  void kick_if_requeued() noexcept {
    const scoped_lock guard(lock_);
    if (!requeued_.empty()) kick_requeued();
  }
  /// Ends asynchronous runs, and waits for those under way.
  void cancel_runs() noexcept;

 private:
  using place = typename request_type::place;
  using list = request_list<request_type>;
  using work_type = pm::basic_work<Platform>;

  static constexpr std::int64_t retry_delay_ms = 3;
  static constexpr int rounds_per_run = 2;

  static bool is_taken(dispatch_status answer) noexcept {
    return answer == dispatch_status::ok || answer == dispatch_status::io_error;
  }
  void note_queued_locked() noexcept;
  bool wants_run_locked() const noexcept;
  void run_async_unlock() noexcept;
  void dispatch_unlock() noexcept;
  bool offer(list& batch, unsigned runs_seen) noexcept;
  dispatch_status offer(request_type& rq) noexcept;
  void put_back(list& refused, dispatch_status answer, unsigned runs_seen) noexcept;
  static void on_run(work_type& work) noexcept;
  static void on_requeue(work_type& work) noexcept;

  queue_type& queue_;
  pm::basic_work_queue<Platform>& works_;
  quiesce_type sections_;
  work_type run_work_{&on_run, this};
  work_type requeue_work_{&on_requeue, this};
  typename Platform::template atomic<bool> queued_{false};  // a list that is offered has requests

  typename Platform::mutex& lock_;  // of the lists and flags
  const bool blocking_;
  list passed_;  // passed through, or refused by the driver: goes out first
  list bios_;
  list requeued_;
  bool restart_ = false;  // a request that is freed runs the queue
  bool stopped_ = false;
  unsigned runs_in_vain_ = 0;  // how often nothing was queued
};

template <platform Platform>
dispatcher<Platform>::~dispatcher() {
  if (sections_.quiesce() != status::ok) {
    Platform::misuse("request queue destroyed where no grace period can be had");
  }
  cancel_runs();
  const scoped_lock guard(lock_);  // whoever was refused a section has left it
}

// -- lists

template <platform Platform>
void dispatcher<Platform>::park_locked(request_type& rq, bool at_head) noexcept {
  list& where = rq.kind_ == request_kind::bio ? bios_ : passed_;
  rq.place_ = place::queued;
  if (at_head) {
    where.push_front(rq);
  } else {
    where.push_back(rq);
  }
  note_queued_locked();
}

template <platform Platform>
void dispatcher<Platform>::note_queued_locked() noexcept {
  // [queued.note] relaxed: a hint for [queued.look]; the lists belong to the lock.
  queued_.store(!passed_.empty() || !bios_.empty(), std::memory_order_relaxed);
}

template <platform Platform>
void dispatcher<Platform>::insert_unlock(request_type& rq, bool at_head) noexcept {
  park_locked(rq, at_head);
  offer_unlock();
}

/// Whether a run would offer anything. Whoever changes the answer to yes does so
/// under the lock, or before he takes it to ask.
template <platform Platform>
bool dispatcher<Platform>::wants_run_locked() const noexcept {
  return !stopped_ && sections_.depth() == 0 && (!passed_.empty() || !bios_.empty());
}

// -- runs

/// The test and the lists belong together. Tested before the lock: somebody sees the
/// gate closed; unquiesce() opens it, finds the list empty and leaves; he puts his
/// request there, and nobody runs the queue. Who finds nothing says so: see put_back().
template <platform Platform>
inline void dispatcher<Platform>::run_unlock() noexcept {
  const bool nothing = passed_.empty() && bios_.empty();
  if (nothing) ++runs_in_vain_;
  if (nothing || stopped_ || !sections_.try_dispatch()) {
    lock_.unlock();
    return;
  }
  dispatch_unlock();
  sections_.end_dispatch();
}

/// A run: what is passed through goes out at once, then bios one at a time. What is
/// passed through meanwhile goes before the next bio, but once only, lest the run
/// never end. Bios alone go out at once, and that is all. Called in a section.
template <platform Platform>
void dispatcher<Platform>::dispatch_unlock() noexcept {
  for (int rounds = 0;;) {
    list batch;
    if (!passed_.empty()) {
      if (rounds++ == rounds_per_run) break;
      batch = passed_.take();
      restart_ = true;
    } else if (rounds == 0) {
      batch = bios_.take();
    } else if (!bios_.empty()) {
      batch.push_back(bios_.pop_front());
    } else {
      lock_.unlock();
      return;
    }
    const unsigned runs_seen = runs_in_vain_;
    note_queued_locked();
    lock_.unlock();
    if (!offer(batch, runs_seen) || rounds == 0) return;
    // [queued.look] relaxed: what this thread added is seen; others run what they add.
    if (!queued_.load(std::memory_order_relaxed)) return;
    lock_.lock();
  }
  lock_.unlock();
  run_soon();
}

/// Returns: false if the driver refused one; that and the rest have been put back.
template <platform Platform>
bool dispatcher<Platform>::offer(list& batch, unsigned runs_seen) noexcept {
  while (!batch.empty()) {
    request_type& rq = batch.pop_front();
    const dispatch_status answer = offer(rq);
    if (is_taken(answer)) continue;
    rq.place_ = place::queued;
    batch.push_front(rq);
    put_back(batch, answer, runs_seen);
    return false;
  }
  return true;
}

template <platform Platform>
inline dispatch_status dispatcher<Platform>::offer(request_type& rq) noexcept {
  rq.place_ = place::driver;
  const dispatch_status answer = queue_.call_driver(rq);  // if taken, it may be gone
  if (answer == dispatch_status::io_error) queue_.complete(rq, status::io_error);
  return answer;
}

/// A request that was freed since the batch was taken has cleared restart_, and may
/// have found the lists empty: then run at once. If none was, the next one will run
/// the queue; where the driver waits for something else there may be no next one. Somebody
/// may have run the queue since then and found nothing either: that is made up for.
template <platform Platform>
void dispatcher<Platform>::put_back(list& refused, dispatch_status answer,
                                    unsigned runs_seen) noexcept {
  lock_.lock();
  passed_.append(refused);
  note_queued_locked();
  const bool wanted = wants_run_locked();
  const bool at_once = !restart_ || runs_in_vain_ != runs_seen;
  lock_.unlock();
  if (!wanted) return;
  if (at_once) {
    run_soon();
  } else if (answer == dispatch_status::resource) {
    (void)works_.queue_delayed(run_work_, Platform::milliseconds(retry_delay_ms));
  }
}

template <platform Platform>
void dispatcher<Platform>::issue_unlock(request_type& rq) noexcept {
  if (stopped_ || !sections_.try_dispatch()) {
    park_locked(rq, false);
    lock_.unlock();
    return;
  }
  lock_.unlock();
  if (!is_taken(offer(rq))) {
    lock_.lock();
    rq.place_ = place::queued;
    passed_.push_back(rq);
    note_queued_locked();
    run_unlock();
  }
  sections_.end_dispatch();
}

template <platform Platform>
void dispatcher<Platform>::run_async_unlock() noexcept {
  if (wants_run_locked()) {
    run_soon();  // under the lock: afterwards all may be over
  } else if (passed_.empty() && bios_.empty()) {
    ++runs_in_vain_;
  }
  lock_.unlock();
}

template <platform Platform>
void dispatcher<Platform>::on_run(work_type& work) noexcept {
  static_cast<dispatcher*>(work.context())->run();
}

// -- from the driver, and against it

template <platform Platform>
void dispatcher<Platform>::requeue(request_type& rq, bool kick) noexcept {
  const scoped_lock guard(lock_);
  rq.place_ = place::queued;
  requeued_.push_back(rq);
  if (kick) kick_requeued();  // under the lock: afterwards the request may be over
}

template <platform Platform>
void dispatcher<Platform>::on_requeue(work_type& work) noexcept {
  auto& self = *static_cast<dispatcher*>(work.context());
  self.lock_.lock();
  for (list batch = self.requeued_.take(); !batch.empty();) {
    request_type& rq = batch.pop_front();
    self.park_locked(rq, !rq.prepared_);
  }
  self.run_unlock();
}

template <platform Platform>
void dispatcher<Platform>::stop() noexcept {
  const scoped_lock guard(lock_);
  stopped_ = true;
  // Under the lock: afterwards it may be the run of a start_stopped() that is cancelled.
  (void)works_.cancel(run_work_);
}

template <platform Platform>
void dispatcher<Platform>::start_stopped() noexcept {
  lock_.lock();
  if (std::exchange(stopped_, false)) {
    run_async_unlock();
  } else {
    lock_.unlock();
  }
}

template <platform Platform>
void dispatcher<Platform>::cancel_runs() noexcept {
  (void)works_.cancel_sync(requeue_work_);
  (void)works_.cancel_sync(run_work_);
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_BLOCK_DISPATCHER_HPP
