// SPDX-License-Identifier: MIT
//
// request_queue_interleavings.cpp - requests, tags, runs and the end of a queue, in
// every order; and with steps exchanged, which must fail.
//
// What the work queue would do is done by a thread of the scenario, or at the end.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <optional>

#include <doctest/doctest.h>

#include <pmgate/block/request_queue.hpp>

#include "explore_models.hpp"

namespace interleavings {

using pmgate::dispatch_status;
using pmgate::status;

/// A queue whose driver ends what it is offered, and uses the device for it.
template <class P, int Depth = 2, pmgate::driver_kind Kind = pmgate::driver_kind::nonblocking>
struct rig {
  using queue_type = pmgate::basic_request_queue<P>;
  using request_type = pmgate::basic_request<P>;

  static dispatch_status queue_rq(queue_type& queue, request_type& rq) noexcept {
    auto& self = *static_cast<rig*>(queue.context());
    (void)self.device.read();
    if (self.refusals.load(std::memory_order_relaxed) > 0) {
      (void)self.refusals.fetch_sub(1, std::memory_order_relaxed);
      return dispatch_status::resource;
    }
    queue.complete(rq);
    return dispatch_status::ok;
  }
  static void on_end(request_type& rq) noexcept {
    (void)static_cast<rig*>(rq.context())->ended.fetch_add(1, std::memory_order_acq_rel);
  }
  void check() {
    while (works.run_pending()) {
    }
    std::int64_t later = 0;
    if (q && works.next_timer(later)) q->run();  // time stands still here
    sim::expect(ended.load(std::memory_order_acquire) == submitted.load(std::memory_order_acquire),
                "a request was lost");
    if (!q) return;
    sim::expect(q->freeze() == status::ok, "the queue does not drain");
    q->unfreeze();
  }
  void submit(request_type& rq, bool bio = false) {
    (void)submitted.fetch_add(1, std::memory_order_acq_rel);
    sim::expect((bio ? q->submit_bio(rq) : q->submit(rq)) == status::ok, "a wrong refusal");
  }

  sim::guarded<int> device;  // read by the driver, written by who has stopped it
  sim::atomic<int> refusals{0};
  sim::atomic<int> submitted{0};
  sim::atomic<int> ended{0};
  pmgate::pm::basic_work_queue<P> works{"runs"};
  request_type first{&on_end, this};
  request_type second{&on_end, this};
  std::optional<queue_type> q{std::in_place,
                              pmgate::basic_queue_ops<P>{&queue_rq, this},
                              works,
                              Depth,
                              pmgate::gate_start::percpu,
                              Kind};
};
template <class P>
using lone_rig = rig<P>;
template <class P>
using one_tag = rig<P, 1>;
template <class P>
using sleeping_driver = rig<P, 2, pmgate::driver_kind::blocking>;

/// Two queues of one set, which has one tag.
template <class P>
struct pair_of_queues {
  using queue_type = pmgate::basic_request_queue<P>;
  using request_type = pmgate::basic_request<P>;
  static dispatch_status queue_rq(queue_type& queue, request_type& rq) noexcept {
    (void)static_cast<pair_of_queues*>(queue.context())->device.read();
    queue.complete(rq);
    return dispatch_status::ok;
  }
  sim::guarded<int> device;
  sim::guarded<int> tag;  // belongs to who has the tag
  pmgate::pm::basic_work_queue<P> works{"runs"};
  pmgate::basic_tag_set<P> set{1};
  queue_type x{{&queue_rq, this}, works, set};
  queue_type y{{&queue_rq, this}, works, set};
  request_type in_x;
  request_type in_y;

  void use(queue_type& q, request_type& rq) {
    sim::expect(q.alloc(rq) == status::ok, "a wrong refusal");
    tag.write(1);
    q.free(rq);
  }
  void check() {
    while (works.run_pending()) {
    }
    sim::expect(set.freeze() == status::ok, "the set does not drain");
    set.unfreeze();
  }
};

/// A device that has room for one, tells of it when that one is done, and never else: a
/// request that is refused and forgotten shows.
template <class P>
struct one_slot {
  using queue_type = pmgate::basic_request_queue<P>;
  using request_type = pmgate::basic_request<P>;

  static dispatch_status queue_rq(queue_type& queue, request_type& rq) noexcept {
    auto& self = *static_cast<one_slot*>(queue.context());
    int free = 0;
    if (!self.busy.compare_exchange_strong(free, 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
      return dispatch_status::dev_resource;
    }
    self.has.store(reinterpret_cast<std::uintptr_t>(&rq), std::memory_order_release);
    return dispatch_status::ok;
  }
  static void on_end(request_type& rq) noexcept {
    (void)static_cast<one_slot*>(rq.context())->ended.fetch_add(1, std::memory_order_acq_rel);
  }
  void submit(request_type& rq, bool bio = false) {
    (void)submitted.fetch_add(1, std::memory_order_acq_rel);
    sim::expect((bio ? q.submit_bio(rq) : q.submit(rq)) == status::ok, "a wrong refusal");
  }
  /// The device's interrupt.
  void interrupt() {
    auto* const rq = reinterpret_cast<request_type*>(has.exchange(0, std::memory_order_acq_rel));
    if (rq == nullptr) return;
    busy.store(0, std::memory_order_release);
    q.complete(*rq);
  }
  void check() {  // runs nothing that was not asked for
    for (int turn = 0; turn < 6; ++turn) {
      interrupt();
      while (works.run_pending()) {
      }
    }
    sim::expect(ended.load(std::memory_order_acquire) == submitted.load(std::memory_order_acquire),
                "a refused request was forgotten");
  }

  sim::atomic<int> busy{0};
  sim::atomic<std::uintptr_t> has{0};
  sim::atomic<int> submitted{0};
  sim::atomic<int> ended{0};
  pmgate::pm::basic_work_queue<P> works{"runs"};
  request_type first{&on_end, this};
  request_type second{&on_end, this};
  request_type third{&on_end, this};
  queue_type q{{&queue_rq, this}, works, 4};
};

/// The slot is in use for something else than a request.
template <class P>
struct one_slot_in_use : one_slot<P> {
  one_slot_in_use() { this->busy.store(1, std::memory_order_release); }
};

/// A queue with a request that the driver has, and one that waits behind a stop.
template <class P>
struct stopped_rig : rig<P> {
  stopped_rig() {
    this->q->stop();
    this->submit(this->first);
  }
  void check() {
    while (this->works.run_pending()) {
    }
    if (started.load(std::memory_order_acquire) > stopped.load(std::memory_order_acquire)) {
      sim::expect(this->ended.load(std::memory_order_acquire) == 1,
                  "the queue was started last, and dispatches nothing");
    }
    this->q->start_stopped();
    rig<P>::check();
  }
  sim::atomic<int> clock{0};
  sim::atomic<int> started{0};
  sim::atomic<int> stopped{0};
};

/// A driver that keeps what it is given; requeued, a request is offered again and ends.
template <class P>
struct keeping_rig {
  using queue_type = pmgate::basic_request_queue<P>;
  using request_type = pmgate::basic_request<P>;
  static dispatch_status queue_rq(queue_type& queue, request_type& rq) noexcept {
    auto& self = *static_cast<keeping_rig*>(queue.context());
    (void)self.device.read();
    if (self.offers.fetch_add(1, std::memory_order_acq_rel) > 0) queue.complete(rq);
    return dispatch_status::ok;
  }
  keeping_rig() { sim::expect(q.submit(item) == status::ok, "a wrong refusal"); }
  void check() {
    q.kick_requeued();
    while (works.run_pending()) {
    }
    sim::expect(offers.load(std::memory_order_acquire) == 2, "a requeued request was lost");
    sim::expect(q.freeze() == status::ok, "the queue does not drain");
    q.unfreeze();
  }

  sim::guarded<int> device;
  sim::atomic<int> offers{0};
  pmgate::pm::basic_work_queue<P> works{"runs"};
  request_type item;
  queue_type q{{&queue_rq, this}, works, 2};
};

/// One tag, which somebody has; a waiter that is queued for the next one.
template <class P>
struct waiting_rig : rig<P, 1> {
  struct waiter : pmgate::basic_request_waiter<P> {
    explicit waiter(waiting_rig& whose)
        : pmgate::basic_request_waiter<P>(&on_resume), owner(whose) {}
    static void on_resume(pmgate::basic_request_waiter<P>& self, status result) noexcept {
      static_cast<waiter&>(self).owner.told(result);
    }
    waiting_rig& owner;
  };

  waiting_rig() { sim::expect(this->q->alloc(this->first) == status::ok, "a wrong refusal"); }
  void told(status result) noexcept {
    (void)ends.fetch_add(1, std::memory_order_acq_rel);
    if (result == status::ok) this->q->free(this->second);
  }
  void ask() {
    const status got = this->q->alloc_or_wait(queued, this->second);
    if (got != status::in_progress) told(got);
  }
  void check() {
    sim::expect(ends.load(std::memory_order_acquire) == 1, "not resumed once, nor cancelled");
    rig<P, 1>::check();
  }

  waiter queued{*this};
  sim::atomic<int> ends{0};
};

/// The waiter is queued at the gate, which is closed.
template <class P>
struct queued_rig : waiting_rig<P> {
  queued_rig() {
    sim::expect(this->q->freeze_start() == status::ok, "freeze_start() was refused");
    this->ask();
  }
};

inline constexpr auto submit_first = [](auto& s) { s.submit(s.first); };
inline constexpr auto submit_second = [](auto& s) { s.submit(s.second); };
inline constexpr auto submit_bio = [](auto& s) { s.submit(s.second, true); };
inline constexpr auto quiesce_and_back = [](auto& s) {
  sim::expect(s.q->quiesce() == status::ok, "quiesce() was refused");
  s.device.write(1);
  s.q->unquiesce();
};
inline constexpr auto freeze_and_thaw = [](auto& s) {
  sim::expect(s.q->freeze() == status::ok, "freeze() was refused");
  sim::expect(
      s.ended.load(std::memory_order_acquire) <= s.submitted.load(std::memory_order_acquire),
      "more ended than were submitted");
  s.q->unfreeze();
};
inline constexpr auto work = [](auto& s) { (void)s.works.run_pending(); };

// --- the class with a step exchanged: explicit specialisations -------------------------

template <int Bug>
struct planted : pmgate::sim_platform {};
using looks_too_early = planted<0>;
using hoards_tags = planted<1>;
using kicks_too_late = planted<2>;

}  // namespace interleavings

namespace pmgate::detail {
using namespace interleavings;

/// Looks whether the queue may dispatch before the request is in its list.
template <>
void dispatcher<looks_too_early>::insert_unlock(request_type& rq, bool at_head) noexcept {
  lock_.unlock();
  const bool may = sections_.depth() == 0;
  lock_.lock();
  park_locked(rq, at_head);
  if (!may) return lock_.unlock();
  run_unlock();
}

/// Puts a tag back without a look at those who wait.
template <>
void tag_allocator<hoards_tags>::serve(line&) noexcept {}

/// Has the work queue run when everybody else may be gone.
template <>
void dispatcher<kicks_too_late>::run_async_unlock() noexcept {
  const bool wanted = wants_run_locked();
  lock_.unlock();
  if (wanted) run_soon();
}

}  // namespace pmgate::detail

namespace {

using namespace interleavings;

/// Explores until the bug shows.
template <class State, class... Threads>
void caught(const char* title, const Threads&... threads) {
  const sim::options how{.name = title, .preemptions = 2};
  const sim::result found = sim::explore<State>(how, threads...);
  std::printf("  %-58s %7llu schedules  %s\n", title,
              static_cast<unsigned long long>(found.schedules),
              found ? "NOT CAUGHT" : found.failure.c_str());
  ++tally::all().tests;
  tally::all().schedules += found.schedules;
  CHECK_FALSE_MESSAGE(found.failure.empty(), title);
}

TEST_SUITE("interleavings of request_queue") {

TEST_CASE("scenario 36: no request is lost between submission and unquiesce") {
  hold_on_all_models<lone_rig>("submit x quiesce, unquiesce", {.preemptions = 2}, submit_first,
                               quiesce_and_back);
}

TEST_CASE("scenario 36: with two who submit, one of them a bio") {
  hold_on_all_models<lone_rig>("submit x submit bio x quiesce, unquiesce", {.preemptions = 1},
                               submit_first, submit_bio, quiesce_and_back);
}

TEST_CASE("a request that the driver refuses goes out in the end") {
  hold_on_all_models<lone_rig>(
      "refused submit x submit x runs", {.preemptions = 1},
      [](auto& s) {
        (void)s.refusals.fetch_add(1, std::memory_order_relaxed);
        submit_first(s);
      },
      submit_second, [](auto& s) { s.q->run(true); });
}

TEST_CASE("who is queued for a request is called once or cancelled, and leaves nothing behind") {
  hold_on_all_models<waiting_rig>(
      "alloc_or_wait, cancel x free x freeze, unfreeze", {.preemptions = 1},
      [](auto& s) {
        s.ask();
        if (s.q->cancel(s.queued)) (void)s.ends.fetch_add(1, std::memory_order_acq_rel);
      },
      [](auto& s) { s.q->free(s.first); },
      [](auto& s) {
        sim::expect(s.q->freeze_start() == status::ok, "freeze_start() was refused");
        s.q->unfreeze();
      });
  hold_on_all_models<queued_rig>(
      "queued at the gate: cancel x unfreeze x free", {.preemptions = 2},
      [](auto& s) {
        if (s.q->cancel(s.queued)) (void)s.ends.fetch_add(1, std::memory_order_acq_rel);
      },
      [](auto& s) { s.q->unfreeze(); }, [](auto& s) { s.q->free(s.first); });
}

TEST_CASE("a request that is refused until another one ends goes out then, by no clock") {
  hold_on_all_models<one_slot>(
      "submit x submit x interrupt, one slot", {.preemptions = 2},
      [](auto& s) { s.submit(s.first); }, [](auto& s) { s.submit(s.second); },
      [](auto& s) {
        s.interrupt();
        (void)s.works.run_pending();
      });
  hold_on_all_models<one_slot>(
      "submit, submit x submit bio x interrupts, one slot", {.preemptions = 1},
      [](auto& s) {
        s.submit(s.first);
        s.submit(s.third);
      },
      [](auto& s) { s.submit(s.second, true); },
      [](auto& s) {
        s.interrupt();
        (void)s.works.run_pending();
        s.interrupt();
      });
}

TEST_CASE("a refused request goes out when somebody makes room and runs the queue, either way") {
  for (const bool async : {false, true}) {
    hold_on_all_models<one_slot_in_use>(
        async ? "submit x make room, run later" : "submit x make room, run", {.preemptions = 2},
        [](auto& s) { s.submit(s.first); },
        [async](auto& s) {
          s.busy.store(0, std::memory_order_release);
          s.q.run(async);
        });
  }
}

TEST_CASE("a refused request goes out although the queue was quiesced when one ended") {
  hold_on_all_models<one_slot>(
      "submit, submit x quiesce, unquiesce x interrupt, one slot", {.preemptions = 1},
      [](auto& s) {
        s.submit(s.first);
        s.submit(s.second);
      },
      [](auto& s) {
        s.q.quiesce_nowait();
        s.q.unquiesce();
      },
      [](auto& s) {
        s.interrupt();
        (void)s.works.run_pending();
      });
}

TEST_CASE("a queue that is started while somebody stops it dispatches, or is stopped") {
  hold_on_all_models<stopped_rig>(
      "start_stopped x stop x work", {.preemptions = 2},
      [](auto& s) {
        s.q->start_stopped();
        s.started.store(s.clock.fetch_add(1, std::memory_order_acq_rel) + 1,
                        std::memory_order_release);
        s.q->start_stopped();  // whoever stopped it before this is undone
      },
      [](auto& s) {
        s.q->stop();
        s.stopped.store(s.clock.fetch_add(1, std::memory_order_acq_rel) + 1,
                        std::memory_order_release);
      },
      work);
}

TEST_CASE("what is requeued is kept while quiesced, and goes out once") {
  hold_on_all_models<keeping_rig>(
      "requeue x quiesce, unquiesce x work", {.preemptions = 2},
      [](auto& s) { s.q.requeue(s.item); },
      [](auto& s) {
        sim::expect(s.q.quiesce() == status::ok, "quiesce() was refused");
        s.device.write(1);
        s.q.unquiesce();
      },
      work);
  hold_on_all_models<keeping_rig>(
      "requeue without a kick x kick x quiesce", {.preemptions = 1},
      [](auto& s) { s.q.requeue(s.item, false); },
      [](auto& s) {
        s.q.kick_requeued();
        (void)s.works.run_pending();
      },
      [](auto& s) {
        sim::expect(s.q.quiesce() == status::ok, "quiesce() was refused");
        s.device.write(1);
        s.q.unquiesce();
      });
}

TEST_CASE("scenario 15: no bio gets past the death of its disk, whatever opens the gate") {
  hold_on_all_models<lone_rig>(
      "submit bio x del_gendisk, survives x freeze, unfreeze", {.preemptions = 1},
      [](auto& s) {
        const status got = s.q->submit_bio(s.first);
        sim::expect(got == status::ok || got == status::io_error, "a wrong refusal");
        (void)s.submitted.fetch_add(1, std::memory_order_acq_rel);  // it ends in any case
      },
      [](auto& s) {
        sim::expect(s.q->del_gendisk(pmgate::queue_fate::survives) == status::ok,
                    "del_gendisk() was refused");
        s.device.write(1);  // the driver is offered no bio any more
      },
      [](auto& s) {
        sim::expect(s.q->freeze() == status::ok, "freeze() was refused");
        s.q->unfreeze();
      });
}

TEST_CASE("who removes a disk that another one marks dead undoes no freeze but its own") {
  hold_on_all_models<lone_rig>(
      "del_gendisk, survives x mark_disk_dead x freeze, unfreeze", {.preemptions = 1},
      [](auto& s) {
        sim::expect(s.q->del_gendisk(pmgate::queue_fate::survives) == status::ok,
                    "del_gendisk() was refused");
      },
      [](auto& s) { sim::expect(s.q->mark_disk_dead() == status::ok, "it was refused"); },
      [](auto& s) {
        sim::expect(s.q->freeze() == status::ok, "freeze() was refused");
        sim::expect(s.q->gate().is_frozen(), "a freeze was undone by somebody else");
        s.q->unfreeze();
      });
}

TEST_CASE("scenario 47: who waits for a tag gets the one that is freed, frozen or not") {
  hold_on_all_models<one_tag>("submit x submit x freeze, one tag", {.preemptions = 1}, submit_first,
                              submit_second, freeze_and_thaw);
}

TEST_CASE("a tag belongs to one at a time, whichever queue frees it") {
  hold_on_all_models<pair_of_queues>(
      "alloc, free x alloc, free in two queues", {.preemptions = 2},
      [](auto& s) { s.use(s.x, s.in_x); }, [](auto& s) { s.use(s.y, s.in_y); });
}

TEST_CASE("a set that is quiesced has no driver of its queues running") {
  hold_on_all_models<pair_of_queues>(
      "submit x quiesce of the set", {.preemptions = 2},
      [](auto& s) { sim::expect(s.x.submit(s.in_x) == status::ok, "a wrong refusal"); },
      [](auto& s) {
        sim::expect(s.set.quiesce() == status::ok, "quiesce() was refused");
        s.device.write(1);
        s.set.unquiesce();
      });
}

TEST_CASE("who submits to a sleeping driver has let go of the queue when it is destroyed") {
  hold_on_all_models<sleeping_driver>("submit x run x destroy, blocking", {.preemptions = 2},
                                      submit_first, work, [](auto& s) {
                                        if (s.ended.load(std::memory_order_acquire) == 0) return;
                                        s.q.reset();
                                      });
}

TEST_CASE("scenario 49: a queue may be destroyed when it has drained") {
  hold_on_all_models<lone_rig>(
      "submit unless dead x destroy", {.preemptions = 2},
      [](auto& s) {
        const status got = s.q->alloc(s.first);
        sim::expect(got == status::ok || got == status::no_device, "a wrong refusal");
        if (got != status::ok) return;
        (void)s.submitted.fetch_add(1, std::memory_order_acq_rel);
        s.q->execute_nowait(s.first);
      },
      [](auto& s) {
        sim::expect(s.q->destroy() == status::ok, "destroy() was refused");
        s.device.write(1);
        sim::expect(s.q->alloc(s.second) == status::no_device, "somebody entered a dead queue");
        s.q->unfreeze();  // for check()
      });
}

TEST_CASE("planted bugs are found") {
  caught<rig<looks_too_early>>("a look at the gate before the request is in its list", submit_first,
                               quiesce_and_back);
  caught<rig<hoards_tags, 1>>("a tag that is freed behind the back of who waits", submit_first,
                              submit_second);
  caught<rig<kicks_too_late, 2, pmgate::driver_kind::blocking>>(
      "a kick when the queue may be gone", submit_first, [](auto& s) {
        s.q->run();
        if (s.ended.load(std::memory_order_acquire) == 1) s.q.reset();
      });
}

}  // TEST_SUITE

}  // namespace
