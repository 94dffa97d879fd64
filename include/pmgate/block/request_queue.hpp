// SPDX-License-Identifier: MIT
//
// pmgate/block/request_queue.hpp - requests on their way to a driver.
//
// Two doors stand in their way. The freeze gate decides who gets a request at
// all; the quiesce gate decides whether requests are offered to the driver. In
// between they lie in lists: what is submitted while quiesced is kept, and goes
// out afterwards. A frozen queue goes on dispatching: that is how it drains.
//
// The one rule to know: a request holds its entry and its tag until it is freed,
// not until the driver is done with it; freeze_wait() waits for that.
//
// Counterpart: struct request_queue of blk-mq with one hardware queue and without
// a scheduler (semantics only).
#ifndef PMGATE_BLOCK_REQUEST_QUEUE_HPP
#define PMGATE_BLOCK_REQUEST_QUEUE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/detail/block/dispatcher.hpp>
#include <pmgate/pm/work_queue.hpp>

namespace pmgate {

/// The driver of a request queue.
template <platform Platform>
struct basic_queue_ops {
  using queue_type = basic_request_queue<Platform>;
  using request_type = basic_request<Platform>;

  /// Offers a request: the driver takes it (ok), and completes or requeues it once,
  /// here or later, from any thread; or it refuses and forgets it.
  ///
  /// Runs in a dispatch section, outside every lock, also on several threads at
  /// once. Must not quiesce the queue, wait for a freeze, or wait for a tag.
  dispatch_status (*queue_rq)(queue_type& queue, request_type& rq) noexcept;
  void* context = nullptr;  ///< for queue_rq: queue.context()
};

/// Request queue: gate, tags, dispatch.
///
/// Lifetime: neither copyable nor movable. May be destroyed with nobody inside, also
///           right after freeze_wait() of a freeze in force: whoever completed the
///           last request has let go of it. Waits for sections and asynchronous runs.
/// Threads:  every member from any thread; the driver's callback and the requests'
///           end callbacks run outside every lock and may call any member that
///           does not wait for them.
/// Blocking: as each member says; nothing else blocks but for the lock of the lists.
///           A driver that blocks in its callback blocks whoever submits.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Orders:   everything before a request is submitted happens-before queue_rq; all
///           before complete() happens-before the end callback or execute() returns.
/// Limits:   one hardware queue, tags of its own, at most 1024.
template <platform Platform>
class basic_request_queue {
 public:
  using request_type = basic_request<Platform>;
  using ops_type = basic_queue_ops<Platform>;
  using time_point = typename Platform::time_point;

  /// The work queue does the asynchronous runs (the kernel's kblockd) and outlives
  /// this. depth: tags, 1 to 1024.  Kernel: blk_mq_alloc_queue().
  basic_request_queue(const ops_type& ops, pm::basic_work_queue<Platform>& works, unsigned depth,
                      gate_start start = gate_start::percpu) noexcept;
  ~basic_request_queue() = default;
  basic_request_queue(const basic_request_queue&) = delete;
  basic_request_queue& operator=(const basic_request_queue&) = delete;

  // -- requests

  /// Enters the gate and takes a tag; the request is then to be executed or freed.
  ///
  /// Whoever waits for a tag is inside already: a freeze waits for him, and he gets
  /// his tag although the queue is frozen or quiesced. Tags go to the longest waiter.
  /// Returns: as basic_freeze_gate::enter(); again also if nowait and no tag is free.
  /// Blocks: unless nowait, for the gate and for a tag.
  /// Cost: a gate entry and a short lock.  Kernel: blk_mq_alloc_request().
  [[nodiscard]] status alloc(request_type& rq, enter_flags flags = {}) noexcept;

  /// Gives back a request that was not executed.
  ///
  /// Blocks: no.  Kernel: blk_mq_free_request().
  void free(request_type& rq) noexcept;

  /// Queues an allocated request, at the end or the front of what is passed through,
  /// and offers the driver what is queued. The end callback tells the rest.
  ///
  /// Works in a frozen queue. Quiesced or stopped: the request is kept.
  /// Blocks: no, unless the driver does.  Kernel: blk_execute_rq_nowait().
  void execute_nowait(request_type& rq, bool at_head = false) noexcept;

  /// execute_nowait(), waits for the completion and frees the request. The end
  /// callback is not called.
  ///
  /// Returns: what it was completed with; again only where the platform cannot block
  /// and the driver was not done at once: then the end callback comes after all.
  /// Blocks: until completed.  Kernel: blk_execute_rq().
  status execute(request_type& rq, bool at_head = false) noexcept;

  /// alloc() and execute_nowait().
  ///
  /// Returns: as alloc(); if refused, the end callback is not called.
  [[nodiscard]] status submit(request_type& rq, enter_flags flags = {},
                              bool at_head = false) noexcept;

  /// Submits file system I/O: offered to the driver at once or, if the queue is quiesced
  /// or stopped, kept behind what is passed through.
  ///
  /// The end callback is called in any case, with again or io_error for a refusal: then
  /// before this returns. PM requests are not bios: `pm` is ignored.
  /// Returns: ok if it got in; again if nowait and it would have to wait; io_error if the
  /// disk is dead, nowait or not.
  /// Blocks: as alloc().  Kernel: submit_bio(); there a waiter looks for the death of the
  /// disk only, here for that of the queue as well.
  status submit_bio(request_type& rq, enter_flags flags = {}) noexcept;

  /// Ends a request the driver has: end callback first, then tag and entry go back.
  ///
  /// Precondition: the driver took it, or is being offered it.
  /// Blocks: no, unless the callback does.  Kernel: blk_mq_end_request().
  void complete(request_type& rq, status result = status::ok) noexcept;

  /// Takes a request back from the driver, to be offered again by an asynchronous run.
  ///
  /// It keeps its tag and its entry: a freeze waits for it. While quiesced it is kept.
  /// Precondition, Blocks: as complete(), no.  Kernel: blk_mq_requeue_request(rq, true).
  void requeue(request_type& rq) noexcept;

  // -- dispatch

  /// Offers the driver what is queued, here or on the work queue; nothing if quiesced,
  /// stopped or empty.
  ///
  /// Blocks: no, unless the driver does.  Kernel: blk_mq_run_hw_queues().
  void run(bool async = false) noexcept { async ? dispatch_.run_async() : dispatch_.run(); }

  /// Stops dispatch until start_stopped(), whatever quiesce says; does not wait.
  ///
  /// A run under way goes on. Not counted.  Kernel: blk_mq_stop_hw_queues().
  void stop() noexcept { dispatch_.stop(); }
  /// Ends stop() and runs asynchronously.  Kernel: blk_mq_start_stopped_hw_queues().
  void start_stopped() noexcept { dispatch_.start_stopped(); }

  /// quiesce_nowait() and wait_quiesced(): afterwards the driver is offered nothing.
  ///
  /// Does not wait for requests the driver has.
  /// Returns, Blocks: as basic_quiesce_gate; not from queue_rq.
  /// Kernel: blk_mq_quiesce_queue().
  status quiesce() noexcept { return dispatch_.sections().quiesce(); }
  void quiesce_nowait() noexcept { dispatch_.sections().quiesce_nowait(); }
  status wait_quiesced() noexcept { return dispatch_.sections().wait_quiesced(); }
  /// Undoes one quiesce; after the last one what was kept goes out asynchronously.
  ///
  /// Blocks: no.  Kernel: blk_mq_unquiesce_queue().
  void unquiesce() noexcept {
    if (dispatch_.sections().unquiesce()) dispatch_.run_async();
  }

  // -- the gate; closing and opening as basic_freeze_gate, which see

  /// Enters without a request; leave by exit().  Kernel: blk_queue_enter().
  [[nodiscard]] status enter(enter_flags flags = {}) noexcept { return gate_.enter(flags); }
  [[nodiscard]] bool try_enter(enter_flags flags = {}) noexcept { return gate_.try_enter(flags); }
  void exit(std::intptr_t n = 1) noexcept { gate_.exit(n); }

  /// freeze_start() and freeze_wait(): afterwards there are no requests.
  ///
  /// Does not imply that nobody is inside a dispatch section: see quiesce().
  /// Blocks: until every request has been freed.  Kernel: blk_mq_freeze_queue().
  status freeze() noexcept;
  /// Closes the gate; the one that closed it also offers the driver what is queued.
  ///
  /// Kernel: blk_freeze_queue_start().
  status freeze_start() noexcept;
  status freeze_wait() noexcept { return gate_.freeze_wait(); }
  [[nodiscard]] bool freeze_wait_until(time_point deadline) noexcept {
    return gate_.freeze_wait_until(deadline);
  }
  void unfreeze() noexcept { gate_.unfreeze(); }
  void unfreeze_to_atomic() noexcept { gate_.unfreeze_to_atomic(); }

  void set_pm_only() noexcept { gate_.set_pm_only(); }
  void clear_pm_only() noexcept { gate_.clear_pm_only(); }

  /// Called whenever a request is freed that is not for power management; for runtime_pm,
  /// before the queue is used.  Kernel: blk_pm_mark_last_busy().
  void set_busy_mark(void (*mark)(void* context) noexcept, void* context) noexcept {
    busy_mark_ = mark;
    busy_context_ = context;
  }

  /// freeze_start() for the death of the queue: whoever waits at the gate looks whether
  /// it is dying. Whoever waits for a tag is inside, and gets it.
  ///
  /// Kernel: blk_queue_start_drain(), which wakes those as well, to no effect.
  status start_drain() noexcept;

  /// The device is gone: the gate is dying, and the first call drains it. Bios fail from
  /// now on, even if the gate is opened again. Does not wait.
  ///
  /// Kernel: blk_mark_disk_dead().
  status mark_disk_dead() noexcept;

  // -- queries

  /// The gate, for what is not above. Freezes go through the queue.
  [[nodiscard]] basic_freeze_gate<Platform>& gate() noexcept { return gate_; }
  [[nodiscard]] const basic_freeze_gate<Platform>& gate() const noexcept { return gate_; }
  /// Quiesces in force.
  [[nodiscard]] int quiesce_depth() const noexcept { return dispatch_.sections().depth(); }
  [[nodiscard]] bool is_disk_dead() const noexcept;
  /// The driver's context.
  [[nodiscard]] void* context() const noexcept { return ops_.context; }

 private:
  friend class detail::dispatcher<Platform>;
  using place = typename request_type::place;

  /// Somebody who waits for a tag, on his own stack.
  struct tag_waiter {
    request_type& rq;
    tag_waiter* next = nullptr;
    typename Platform::wait_word given{0};  // 1: rq has its tag
  };

  static bool expect(const request_type& rq, place where, const char* text) noexcept;
  status begin_lock(request_type& rq, request_kind kind, enter_flags flags) noexcept;
  bool take_tag(request_type& rq) noexcept;
  [[gnu::noinline]] status wait_for_tag(request_type& rq) noexcept;
  void give_back(std::uint16_t tag, bool pm) noexcept;
  dispatch_status call_driver(request_type& rq) noexcept { return ops_.queue_rq(*this, rq); }

  basic_freeze_gate<Platform> gate_;
  ops_type ops_;
  void (*busy_mark_)(void*) noexcept = nullptr;
  void* busy_context_ = nullptr;
  typename Platform::template atomic<bool> disk_dead_{false};
  detail::tag_pool tags_;  // this and the waiters: under the dispatcher's mutex
  tag_waiter* first_waiter_ = nullptr;
  tag_waiter* last_waiter_ = nullptr;
  detail::dispatcher<Platform> dispatch_;  // destroyed first: it waits for who is left
};

using queue_ops = basic_queue_ops<default_platform>;
using request_queue = basic_request_queue<default_platform>;

template <platform Platform>
basic_request_queue<Platform>::basic_request_queue(const ops_type& ops,
                                                   pm::basic_work_queue<Platform>& works,
                                                   unsigned depth, gate_start start) noexcept
    : gate_(start), ops_(ops), tags_(depth), dispatch_(*this, works) {
  if (depth == 0 || depth > detail::tag_pool::max_depth) {
    Platform::misuse("a request_queue has 1 to 1024 tags");
  }
}

template <platform Platform>
bool basic_request_queue<Platform>::expect(const request_type& rq, place where,
                                           const char* text) noexcept {
  if (rq.place_ == where) [[likely]]
    return true;
  Platform::misuse(text);
  return false;
}

// -- a request's entry and tag

/// Enters and takes a tag. Returns ok with the lock held, anything else without it.
template <platform Platform>
status basic_request_queue<Platform>::begin_lock(request_type& rq, request_kind kind,
                                                 enter_flags flags) noexcept {
  if (!expect(rq, place::user, "alloc() of a request that is in use")) return status::invalid;
  const status entered = gate_.enter(flags);
  if (entered != status::ok) return entered;
  rq.kind_ = kind;
  rq.pm_ = has(flags, enter_flags::pm);
  dispatch_.mutex().lock();
  if (take_tag(rq)) [[likely]]
    return status::ok;
  if (!has(flags, enter_flags::nowait)) return wait_for_tag(rq);
  dispatch_.mutex().unlock();
  gate_.exit();
  return status::again;
}

template <platform Platform>
bool basic_request_queue<Platform>::take_tag(request_type& rq) noexcept {
  if (!tags_.take(rq.tag_)) return false;
  rq.place_ = place::allocated;
  return true;
}

/// Runs the queue first: what is kept may be what has the tags. Lock: as begin_lock().
template <platform Platform>
status basic_request_queue<Platform>::wait_for_tag(request_type& rq) noexcept {
  dispatch_.run_unlock();
  dispatch_.mutex().lock();
  if (take_tag(rq)) return status::ok;
  if constexpr (!Platform::can_block) {
    dispatch_.mutex().unlock();
    gate_.exit();
    Platform::misuse("alloc() would wait for a tag for ever: there is one thread only");
    return status::again;
  }
  tag_waiter self{rq};
  (last_waiter_ != nullptr ? last_waiter_->next : first_waiter_) = &self;
  last_waiter_ = &self;
  dispatch_.mutex().unlock();
  // [tag.given] acquire: pairs with publish_add() in give_back(): the tag is there.
  while (self.given.load(std::memory_order_acquire) == 0) self.given.wait(0);
  self.given.settle();
  dispatch_.mutex().lock();
  rq.place_ = place::allocated;
  return status::ok;
}

/// Gives tag and entry back; what waits for either goes on. The entry goes last: the
/// queue may be destroyed afterwards.
template <platform Platform>
void basic_request_queue<Platform>::give_back(std::uint16_t tag, bool pm) noexcept {
  if (!pm && busy_mark_ != nullptr) busy_mark_(busy_context_);
  dispatch_.mutex().lock();
  tag_waiter* const heir = first_waiter_;
  if (heir != nullptr) {
    heir->rq.tag_ = tag;
    first_waiter_ = heir->next;
    if (first_waiter_ == nullptr) last_waiter_ = nullptr;
  } else {
    tags_.give(tag);
  }
  const bool run_again = dispatch_.note_freed_locked();
  dispatch_.mutex().unlock();
  if (heir != nullptr) heir->given.publish_add(1);  // the last touch: it may be gone
  if (run_again) dispatch_.run_soon();
  gate_.exit();
}

template <platform Platform>
inline status basic_request_queue<Platform>::alloc(request_type& rq, enter_flags flags) noexcept {
  const status got = begin_lock(rq, request_kind::passthrough, flags);
  if (got == status::ok) dispatch_.mutex().unlock();
  return got;
}

template <platform Platform>
void basic_request_queue<Platform>::free(request_type& rq) noexcept {
  if (!expect(rq, place::allocated, "free() of a request that is not just allocated")) return;
  rq.place_ = place::user;
  give_back(rq.tag_, rq.pm_);
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
void basic_request_queue<Platform>::requeue(request_type& rq) noexcept {
  if (!expect(rq, place::driver, "requeue() of a request the driver does not have")) return;
  dispatch_.requeue(rq);
}

// -- submission

template <platform Platform>
void basic_request_queue<Platform>::execute_nowait(request_type& rq, bool at_head) noexcept {
  if (!expect(rq, place::allocated, "execute() of a request that is not just allocated")) return;
  dispatch_.mutex().lock();
  dispatch_.park_locked(rq, at_head);
  dispatch_.run_unlock();
}

template <platform Platform>
status basic_request_queue<Platform>::submit(request_type& rq, enter_flags flags,
                                             bool at_head) noexcept {
  const status got = begin_lock(rq, request_kind::passthrough, flags);
  if (got != status::ok) return got;
  dispatch_.park_locked(rq, at_head);
  dispatch_.run_unlock();
  return status::ok;
}

template <platform Platform>
status basic_request_queue<Platform>::execute(request_type& rq, bool at_head) noexcept {
  if (!expect(rq, place::allocated, "execute() of a request that is not just allocated")) {
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
  if (!is_disk_dead()) {
    got = begin_lock(rq, request_kind::bio, nowait ? enter_flags::nowait : enter_flags::none);
    if (got == status::ok) {
      dispatch_.issue_unlock(rq);
      return got;
    }
    if (got == status::invalid) return got;
    if (got == status::no_device || is_disk_dead()) got = status::io_error;
  }
  rq.result_ = got;
  if (rq.end_io_ != nullptr) rq.end_io_(rq);  // it may be gone
  return got;
}

// -- the gate

template <platform Platform>
status basic_request_queue<Platform>::freeze_start() noexcept {
  bool closed_it = false;
  const status started = gate_.freeze_start(closed_it);
  if (closed_it) run();
  return started;
}

template <platform Platform>
status basic_request_queue<Platform>::freeze() noexcept {
  const status started = freeze_start();
  return started == status::ok ? freeze_wait() : started;
}

template <platform Platform>
status basic_request_queue<Platform>::start_drain() noexcept {
  bool closed_it = false;
  const status started = gate_.start_drain(closed_it);
  if (closed_it) run();
  return started;
}

template <platform Platform>
status basic_request_queue<Platform>::mark_disk_dead() noexcept {
  gate_.mark_dying();
  // [disk.dead] acq_rel: release pairs with [disk.read]; one caller drains.
  if (disk_dead_.exchange(true, std::memory_order_acq_rel)) return status::ok;
  return start_drain();
}

template <platform Platform>
bool basic_request_queue<Platform>::is_disk_dead() const noexcept {
  // [disk.read] acquire: pairs with [disk.dead].
  return disk_dead_.load(std::memory_order_acquire);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_REQUEST_QUEUE_HPP
