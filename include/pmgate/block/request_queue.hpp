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

#include <pmgate/block/gate_hints.hpp>
#include <pmgate/block/queue_gate.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/block/request_waiter.hpp>
#include <pmgate/block/tag_set.hpp>
#include <pmgate/detail/block/dispatcher.hpp>
#include <pmgate/pm/work_queue.hpp>

namespace pmgate {

/// Request queue: gate (see the base), tags, dispatch.
///
/// Lifetime: neither copyable nor movable. May be destroyed with nobody inside, also
///           right after freeze_wait() of a freeze in force: whoever completed the
///           last request has let go of it. Waits for sections and asynchronous runs.
/// Threads:  every member from any thread; the driver's callback and the requests'
///           end callbacks run outside every lock and may call any member that
///           does not wait for them.
/// Blocking: as each member says; nothing else blocks but for the lock of the lists.
///           A driver that sleeps in its callback says so (driver_kind::blocking): then
///           the work queue calls it, and a submitter does not sleep for it. Who sends a
///           bio, waits for a tag, closes the gate or calls run() may.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Orders:   everything before a request is submitted happens-before queue_rq; all
///           before complete() happens-before the end callback or execute() returns.
/// Stack:    a driver that completes inside queue_rq, and an end callback that submits again,
///           nest once for each tag, as tag and entry go back after the callback. Waiters
///           that are given tags do not nest.
/// Cost:     see each member; the destructor takes a grace period.
/// Limits:   one hardware queue. quiesce() waits for the sections of this queue alone, and
///           for a grace period of the platform (Kernel: for those of the whole tag set if
///           its drivers may block, otherwise for all in the machine).
template <platform Platform>
class basic_request_queue : public basic_queue_gate<Platform> {
  using base = basic_queue_gate<Platform>;

 public:
  using base::gate;
  using request_type = basic_request<Platform>;
  using ops_type = basic_queue_ops<Platform>;
  using tag_set_type = basic_tag_set<Platform>;
  using works_type = pm::basic_work_queue<Platform>;
  using waiter = basic_request_waiter<Platform>;
  using time_point = typename Platform::time_point;

  /// With tags of its own, 1 to 1024. The work queue does the asynchronous runs (the
  /// kernel's kblockd) and outlives this.  Kernel: blk_mq_alloc_queue().
  basic_request_queue(const ops_type& ops, works_type& works, unsigned depth,
                      gate_start start = gate_start::percpu,
                      driver_kind driver = driver_kind::nonblocking) noexcept
      : basic_request_queue(ops, works, nullptr, depth, driver, start, tagset_quiesce::included) {}

  /// With the tags of a set; born quiesced and frozen as often as the set is.
  basic_request_queue(const ops_type& ops, works_type& works, tag_set_type& tags,
                      gate_start start = gate_start::percpu,
                      tagset_quiesce part = tagset_quiesce::included) noexcept
      : basic_request_queue(ops, works, &tags, 1, driver_kind::nonblocking, start, part) {}

  ~basic_request_queue() { set_.leave(*this); }
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

  /// alloc() that gives up at the deadline with timed_out; later only if a driver that it
  /// runs sleeps longer.
  [[nodiscard]] status alloc_until(request_type& rq, time_point deadline,
                                   enter_flags flags = {}) noexcept;

  /// alloc() that queues a waiter instead of sleeping; resumed with ok, he has the request.
  ///
  /// Returns: as alloc(), and then the waiter was not needed; in_progress: he is queued, and
  /// the request is the queue's, until he is resumed or a cancel() returns true; busy: he is
  /// queued already; canceled, if a cancel() came before he was in a line.  Blocks: no, unless the driver does; not for one that says so.
  [[nodiscard]] status alloc_or_wait(waiter& queued, request_type& rq,
                                     enter_flags flags = {}) noexcept
    requires(!is_process_shared<Platform>);

  /// Takes a waiter of this queue out of its line.
  ///
  /// Returns: true if he will not be resumed any more; false if he has been, or is about to
  /// be, with canceled perhaps.  Blocks: no.
  [[nodiscard]] bool cancel(waiter& queued) noexcept
    requires(!is_process_shared<Platform>);

  /// Allocates up to n requests, with one look at the gate and one lock for all of them.
  ///
  /// Takes the tags that are free; waits for one only if there is none.
  /// got: how many it has allocated, the first ones; 0 unless ok is returned.
  /// Returns, Blocks: as alloc().  Kernel: blk_mq_alloc_request() with a plug.
  [[nodiscard]] status alloc_batch(request_type* const* rqs, unsigned n, unsigned& got,
                                   enter_flags flags = {}) noexcept;

  /// Gives back a request that was not executed.
  ///
  /// Blocks: no.  Kernel: blk_mq_free_request().
  void free(request_type& rq) noexcept;

  /// free() of n requests at once.
  void free_batch(request_type* const* rqs, unsigned n) noexcept;

  /// Queues an allocated request, at the end or the front of what is passed through,
  /// and offers the driver what is queued. The end callback tells the rest.
  ///
  /// Works in a frozen queue. Quiesced or stopped: the request is kept.
  /// Blocks: no, unless the driver does; not for one that says so.
  /// Kernel: blk_execute_rq_nowait().
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

  /// Takes a request back from the driver, to be offered again in front of others by an
  /// asynchronous run; without `kick` not before the next kick_requeued().
  ///
  /// It keeps its tag and its entry: a freeze waits for it. While quiesced it is kept.
  /// Precondition: as complete().  Blocks: no.  Kernel: blk_mq_requeue_request().
  void requeue(request_type& rq, bool kick = true) noexcept;
  /// Has what was requeued offered again.  Kernel: blk_mq_kick_requeue_list().
  void kick_requeued() noexcept { dispatch_.kick_requeued(); }
  /// kick_requeued(), but nothing at all if there is nothing requeued.
  void kick_if_requeued() noexcept { dispatch_.kick_if_requeued(); }

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
  [[nodiscard]] status wait_quiesced_until(typename Platform::time_point deadline) noexcept {
    return dispatch_.sections().wait_quiesced_until(deadline);
  }
  /// Undoes one quiesce; after the last one what was kept goes out asynchronously.
  ///
  /// Blocks: no.  Kernel: blk_mq_unquiesce_queue().
  void unquiesce() noexcept {
    if (dispatch_.sections().unquiesce()) dispatch_.run_async();
  }

  // -- the end

  /// Ends a queue without a disk: the gate is dying and stays frozen, asynchronous runs are
  /// over, and the queue has left its tag set. Whoever waits at the gate is told.
  ///
  /// A driver that has completed its last request inside queue_rq may not have returned: the
  /// destructor waits for that, or quiesce() before this.
  /// Precondition: not from inside the queue or its driver.
  /// Returns, Blocks: as freeze().  Kernel: blk_mq_destroy_queue().
  status destroy() noexcept;

  // -- queries

  /// Quiesces in force.
  [[nodiscard]] int quiesce_depth() const noexcept { return dispatch_.sections().depth(); }
  /// The gate of dispatch, for what is done to many queues. Unquiesces go through the queue.
  [[nodiscard]] basic_quiesce_gate<Platform>& sections() noexcept { return dispatch_.sections(); }
  /// The driver's context.
  [[nodiscard]] void* context() const noexcept { return ops_.context; }
  /// Where its tags come from; a set of its own if it was not given one.
  [[nodiscard]] tag_set_type& tags() noexcept { return set_; }

 private:
  friend class basic_tag_set<Platform>;
  friend class detail::dispatcher<Platform>;
  friend waiter;
  using place = typename request_type::place;
  using allocator = detail::tag_allocator<Platform>;

  basic_request_queue(const ops_type& ops, works_type& works, tag_set_type* shared, unsigned depth,
                      driver_kind driver, gate_start start, tagset_quiesce part) noexcept;

  static constexpr const char* in_use = "alloc() of a request that is in use";
  static constexpr const char* not_allocated =
      "free() or execute() of a request that is not just allocated";
  static bool expect(const request_type& rq, place where, const char* text) noexcept;
  static void note_allocated(request_type& rq, request_kind kind, enter_flags flags) noexcept;
  status begin_lock(request_type& rq, request_kind kind, enter_flags flags,
                    const time_point* deadline = nullptr) noexcept;
  [[gnu::noinline]] status wait_for_tag(request_type& rq, const time_point* deadline) noexcept;
  status turn_away_unlock(status why) noexcept;
  status queue_for_tag(waiter& queued) noexcept;
  void on_entered(waiter& queued, status result) noexcept;
  static void on_tag(typename allocator::waiter& given) noexcept;
  void give_back(std::uint16_t tag, bool pm) noexcept;
  void leave_unlock(std::intptr_t n) noexcept;
  void call_all() noexcept;
  dispatch_status call_driver(request_type& rq) noexcept { return ops_.queue_rq(*this, rq); }
  bool in_tagset_quiesce() const noexcept { return part_ == tagset_quiesce::included; }

  ops_type ops_;
  const tagset_quiesce part_;
  tag_set_type own_set_;  // where none is shared
  tag_set_type& set_;
  basic_request_queue* next_in_set_ = nullptr;  // under the set's lock of its members
  detail::tag_share share_;                     // under the lock of the lists
  detail::dispatcher<Platform> dispatch_;       // destroyed first: it waits for who is left
};

using request_queue = basic_request_queue<default_platform>;

/// The gate is moved to CPU-local counting when all is in force that the set brings.
template <platform Platform>
basic_request_queue<Platform>::basic_request_queue(const ops_type& ops, works_type& works,
                                                   tag_set_type* shared, unsigned depth,
                                                   driver_kind driver, gate_start start,
                                                   tagset_quiesce part) noexcept
    : base(dispatch_),
      ops_(ops),
      part_(part),
      own_set_(depth, driver),
      set_(shared != nullptr ? *shared : own_set_),
      dispatch_(*this, works, set_.lock_, set_.is_blocking()) {
  set_.join(*this);
  if (start == gate_start::percpu) gate().switch_to_percpu();
}

template <platform Platform>
bool basic_request_queue<Platform>::expect(const request_type& rq, place where,
                                           const char* text) noexcept {
  if (rq.place_ == where) [[likely]] return true;
  Platform::misuse(text);
  return false;
}

}  // namespace pmgate

#include <pmgate/detail/block/request_queue_impl.hpp>

#endif  // PMGATE_BLOCK_REQUEST_QUEUE_HPP
