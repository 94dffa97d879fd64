// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/request_queue_impl.hpp - the life of a request: entry and tag,
// asleep or queued for them, submission, completion, and the end of the queue.
//
// Included by pmgate/block/request_queue.hpp, whose members these are.
#ifndef PMGATE_DETAIL_BLOCK_REQUEST_QUEUE_IMPL_HPP
#define PMGATE_DETAIL_BLOCK_REQUEST_QUEUE_IMPL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/request_queue.hpp>

namespace pmgate {

// -- a request's entry and tag

/// Enters and takes a tag. Returns ok with the lock held, anything else without it.
template <platform Platform>
status basic_request_queue<Platform>::begin_lock(request_type& rq, request_kind kind,
                                                 enter_flags flags,
                                                 const time_point* deadline) noexcept {
  if (!expect(rq, place::user, in_use)) return status::invalid;
  const status entered = kind == request_kind::bio ? base::enter_bio(flags)
                         : deadline == nullptr     ? gate().enter(flags)
                                                   : gate().enter_until(*deadline, flags);
  if (entered != status::ok) return entered;
  dispatch_.mutex().lock();
  if (!set_.tags_.take(rq, share_)) [[unlikely]] {
    const status waited = has(flags, enter_flags::nowait) ? turn_away_unlock(status::again)
                                                          : wait_for_tag(rq, deadline);
    if (waited != status::ok) return waited;
  }
  note_allocated(rq, kind, flags);
  return status::ok;
}

/// Somebody who has entered gets no tag.
template <platform Platform>
status basic_request_queue<Platform>::turn_away_unlock(status why) noexcept {
  dispatch_.mutex().unlock();
  gate().exit();
  return why;
}

template <platform Platform>
void basic_request_queue<Platform>::note_allocated(request_type& rq, request_kind kind,
                                                   enter_flags flags) noexcept {
  rq.kind_ = kind;
  rq.result_ = status::ok;
  rq.prepared_ = false;
  rq.pm_ = has(flags, enter_flags::pm);
  rq.place_ = place::allocated;
}

/// Runs the queue first: what is kept may be what has the tags. Lock: as begin_lock().
template <platform Platform>
status basic_request_queue<Platform>::wait_for_tag(request_type& rq,
                                                   const time_point* deadline) noexcept {
  dispatch_.run_unlock();
  dispatch_.mutex().lock();
  if (set_.tags_.take(rq, share_)) return status::ok;
  if constexpr (!Platform::can_block) {
    if (deadline == nullptr) {
      Platform::misuse("alloc() would wait for a tag for ever: there is one thread only");
    }
    return turn_away_unlock(deadline == nullptr ? status::again : status::timed_out);
  }
  typename allocator::waiter self;
  self.rq = &rq;
  self.share = &share_;
  set_.tags_.wait(self);
  dispatch_.mutex().unlock();
  // [tag.given] acquire: pairs with publish_add() in wake(): the tag is there.
  while (self.given.load(std::memory_order_acquire) == 0) {
    if (deadline == nullptr) {
      self.given.wait(0);
    } else if (!self.given.wait_until(0, *deadline)) {
      dispatch_.mutex().lock();
      if (set_.tags_.remove(self)) return turn_away_unlock(status::timed_out);
      dispatch_.mutex().unlock();
      deadline = nullptr;  // the tag is his; he is about to be told
    }
  }
  self.given.settle();
  dispatch_.mutex().lock();
  return status::ok;
}

// -- the same for who must not sleep

template <platform Platform>
status basic_request_queue<Platform>::alloc_or_wait(waiter& queued, request_type& rq,
                                                    enter_flags flags) noexcept
  requires(!is_process_shared<Platform>)
{
  if (!expect(rq, place::user, in_use)) return status::invalid;
  if (!queued.claim()) return status::busy;
  queued.queue_ = this;
  queued.rq_ = &rq;
  queued.flags_ = flags;
  const status entered = gate().enter_or_wait(queued.gate_, flags);
  if (entered == status::in_progress) return entered;
  const status got = entered == status::ok ? queue_for_tag(queued) : entered;
  if (got != status::in_progress) queued.release();
  return got;
}

/// For a waiter who has entered.
template <platform Platform>
status basic_request_queue<Platform>::queue_for_tag(waiter& queued) noexcept {
  request_type& rq = *queued.rq_;
  dispatch_.mutex().lock();
  bool got = set_.tags_.take(rq, share_);
  if (!got && has(queued.flags_, enter_flags::nowait)) return turn_away_unlock(status::again);
  if (!got) {
    dispatch_.offer_unlock();  // what is kept may be what has the tags
    dispatch_.mutex().lock();
    got = set_.tags_.take(rq, share_);
  }
  if (got) {
    note_allocated(rq, request_kind::passthrough, queued.flags_);
    dispatch_.mutex().unlock();
    return status::ok;
  }
  if (queued.cancelled_) return turn_away_unlock(status::canceled);
  queued.tag_.rq = &rq;
  queued.tag_.share = &share_;
  queued.tag_.call = &on_tag;
  queued.tag_.context = &queued;
  set_.tags_.wait(queued.tag_);
  dispatch_.mutex().unlock();
  return status::in_progress;
}

template <platform Platform>
void basic_request_queue<Platform>::on_entered(waiter& queued, status result) noexcept {
  if (result == status::ok) result = queued.queue_->queue_for_tag(queued);
  if (result != status::in_progress) queued.resume(result);
}

template <platform Platform>
void basic_request_queue<Platform>::on_tag(typename allocator::waiter& given) noexcept {
  waiter& queued = *static_cast<waiter*>(given.context);
  note_allocated(*queued.rq_, request_kind::passthrough, queued.flags_);
  queued.resume(status::ok);
}

/// Who is on his way from the gate to the tags sees it when he gets there.
template <platform Platform>
bool basic_request_queue<Platform>::cancel(waiter& queued) noexcept
  requires(!is_process_shared<Platform>)
{
  if (gate().cancel(queued.gate_)) {
    queued.release();
    return true;
  }
  dispatch_.mutex().lock();
  queued.cancelled_ = true;
  if (!set_.tags_.remove(queued.tag_)) {
    dispatch_.mutex().unlock();
    return false;
  }
  (void)turn_away_unlock(status::canceled);
  queued.release();
  return true;
}

template <platform Platform>
void basic_request_queue<Platform>::give_back(std::uint16_t tag, bool pm) noexcept {
  base::note_use(pm);
  dispatch_.mutex().lock();
  set_.tags_.give(tag, share_);
  leave_unlock(1);
}

/// n requests have given their tags back: what waits for a tag or for room goes on. The
/// entries go last: the queue may be destroyed afterwards, and with it its tags.
template <platform Platform>
void basic_request_queue<Platform>::leave_unlock(std::intptr_t n) noexcept {
  typename allocator::line sleepers;
  set_.tags_.serve(sleepers);
  const bool call = set_.tags_.begin_calls();
  const bool run_again = dispatch_.note_freed_locked();
  dispatch_.mutex().unlock();
  allocator::wake(sleepers);
  if (run_again) dispatch_.run_soon();
  if (call) call_all();
  gate().exit(n);
}

/// Those who are given tags by what is called here are called here as well.
template <platform Platform>
void basic_request_queue<Platform>::call_all() noexcept {
  for (;;) {
    dispatch_.mutex().lock();
    auto* const next = set_.tags_.next_to_call();
    dispatch_.mutex().unlock();
    if (next == nullptr) return;
    next->call(*next);
  }
}

template <platform Platform>
inline status basic_request_queue<Platform>::alloc(request_type& rq, enter_flags flags) noexcept {
  const status got = begin_lock(rq, request_kind::passthrough, flags);
  if (got == status::ok) dispatch_.mutex().unlock();
  return got;
}

template <platform Platform>
status basic_request_queue<Platform>::alloc_until(request_type& rq, time_point deadline,
                                                  enter_flags flags) noexcept {
  const status got = begin_lock(rq, request_kind::passthrough, flags, &deadline);
  if (got == status::ok) dispatch_.mutex().unlock();
  return got;
}

template <platform Platform>
status basic_request_queue<Platform>::alloc_batch(request_type* const* rqs, unsigned n,
                                                  unsigned& got, enter_flags flags) noexcept {
  got = 0;
  if (n == 0) return status::ok;
  const status first = begin_lock(*rqs[0], request_kind::passthrough, flags);
  if (first != status::ok) return first;
  for (got = 1; got < n && rqs[got]->is_idle() && set_.tags_.take(*rqs[got], share_); ++got) {
    note_allocated(*rqs[got], request_kind::passthrough, flags);
  }
  const bool in_use_already = got < n && !rqs[got]->is_idle();
  dispatch_.mutex().unlock();
  if (got > 1) gate().get(static_cast<std::intptr_t>(got) - 1);
  if (in_use_already) Platform::misuse(in_use);
  return status::ok;
}

template <platform Platform>
void basic_request_queue<Platform>::free(request_type& rq) noexcept {
  if (!expect(rq, place::allocated, not_allocated)) return;
  rq.place_ = place::user;
  give_back(rq.tag_, rq.pm_);
}

template <platform Platform>
void basic_request_queue<Platform>::free_batch(request_type* const* rqs, unsigned n) noexcept {
  for (unsigned i = 0; i < n; ++i) {
    if (expect(*rqs[i], place::allocated, not_allocated)) base::note_use(rqs[i]->pm_);
  }
  std::intptr_t freed = 0;
  dispatch_.mutex().lock();
  for (unsigned i = 0; i < n; ++i) {
    request_type& rq = *rqs[i];
    if (rq.place_ != place::allocated) continue;
    rq.place_ = place::user;
    set_.tags_.give(rq.tag_, share_);
    ++freed;
  }
  leave_unlock(freed);
}

template <platform Platform>
void basic_request_queue<Platform>::complete(request_type& rq, status result) noexcept {
  if (!expect(rq, place::driver, "complete() of a request the driver does not have")) return;
  rq.result_ = result;
  if (rq.done_ != nullptr) {
    rq.place_ = place::allocated;
    rq.done_->publish_add(1);  // the last touch: execute() may have returned
    return;
  }
  const std::uint16_t tag = rq.tag_;
  const bool pm = rq.pm_;
  rq.place_ = place::user;
  if (rq.end_io_ != nullptr) rq.end_io_(rq);  // it may be gone
  give_back(tag, pm);
}

template <platform Platform>
void basic_request_queue<Platform>::requeue(request_type& rq, bool kick) noexcept {
  if (!expect(rq, place::driver, "requeue() of a request the driver does not have")) return;
  dispatch_.requeue(rq, kick);
}

// -- submission

template <platform Platform>
void basic_request_queue<Platform>::execute_nowait(request_type& rq, bool at_head) noexcept {
  if (!expect(rq, place::allocated, not_allocated)) return;
  hand_over(gate());  // whoever completes it leaves
  dispatch_.mutex().lock();
  dispatch_.insert_unlock(rq, at_head);
}

template <platform Platform>
status basic_request_queue<Platform>::submit(request_type& rq, enter_flags flags,
                                             bool at_head) noexcept {
  const status got = begin_lock(rq, request_kind::passthrough, flags);
  if (got != status::ok) return got;
  hand_over(gate());
  dispatch_.insert_unlock(rq, at_head);
  return status::ok;
}

template <platform Platform>
status basic_request_queue<Platform>::execute(request_type& rq, bool at_head) noexcept {
  if (!expect(rq, place::allocated, not_allocated)) {
    return status::invalid;
  }
  typename Platform::wait_word done{0};
  rq.done_ = &done;
  execute_nowait(rq, at_head);
  // [execute.done] acquire: pairs with publish_add() in complete(): the result is there.
  while (done.load(std::memory_order_acquire) == 0) {
    if constexpr (!Platform::can_block) {
      rq.done_ = nullptr;
      Platform::misuse("execute() would wait for ever: there is one thread only");
      return status::again;
    }
    done.wait(0);
  }
  done.settle();
  rq.done_ = nullptr;
  free(rq);
  return rq.result_;
}

template <platform Platform>
status basic_request_queue<Platform>::submit_bio(request_type& rq, enter_flags flags) noexcept {
  const bool nowait = has(flags, enter_flags::nowait);
  status got = status::io_error;
  if (!base::is_disk_dead()) {
    got = begin_lock(rq, request_kind::bio, nowait ? enter_flags::nowait : enter_flags::none);
    if (got == status::ok) {
      hand_over(gate());
      dispatch_.issue_unlock(rq);
      return got;
    }
    if (got == status::invalid) return got;
    if (got == status::no_device || base::is_disk_dead()) got = status::io_error;
  }
  rq.result_ = got;
  if (rq.end_io_ != nullptr) rq.end_io_(rq);  // it may be gone
  return got;
}

// -- the end

template <platform Platform>
status basic_request_queue<Platform>::destroy() noexcept {
  gate().mark_dying();
  status result = base::start_drain();
  if (result == status::ok) result = base::freeze_wait();
  if (result != status::ok) return result;
  dispatch_.cancel_runs();
  set_.leave(*this);
  return status::ok;
}

}  // namespace pmgate

#endif  // PMGATE_DETAIL_BLOCK_REQUEST_QUEUE_IMPL_HPP
