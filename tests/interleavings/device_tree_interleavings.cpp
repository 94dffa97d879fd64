// SPDX-License-Identifier: MIT
//
// device_tree_interleavings.cpp - asynchronous devices on workers, in every order: who
// waits for whom, what an error stops, and that nobody waits for ever.
//
// Each device has guarded data that its callbacks write; on the way down a parent reads
// that of its children, on the way up a child that of its parent. A callback that comes too
// early, or an order that nothing guarantees, is a data race and fails the schedule.
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/pm/device_tree.hpp>
#include <pmgate/pm/freezer.hpp>
#include <pmgate/pm/scope.hpp>
#include <pmgate/pm/suspend.hpp>

#include "explore_models.hpp"

namespace {

using namespace interleavings;
using pmgate::status;
using pmgate::pm::basic_callbacks;
using pmgate::pm::basic_device;
using pmgate::pm::basic_device_link;
using pmgate::pm::basic_device_tree;
using pmgate::pm::basic_work_queue;
using pmgate::pm::event;
using pmgate::pm::phase;
using pmgate::pm::work_queue_flags;

/// A device that reads its neighbours and writes itself.
template <class P>
struct node {
  explicit node(const char* name, node* above = nullptr, const basic_callbacks<P>& calls = table)
      : parent(above),
        self(name, above != nullptr ? &above->self : nullptr, {.driver = &calls}, this) {}
  static node& of(basic_device<P>& it) { return *static_cast<node*>(it.context()); }
  static status down(basic_device<P>& it) noexcept {
    node& n = of(it);
    for (node* each : n.below) {
      if (each == nullptr) continue;
      sim::expect(each->data.read() == 1, "a device went down before one that needs it");
    }
    if (n.wakes != nullptr) n.wakes->abort();
    if (n.fails) return status::io_error;
    n.data.write(1);
    ++n.downs;
    return status::ok;
  }
  static status up(basic_device<P>& it) noexcept {
    node& n = of(it);
    for (node* each : {n.parent, n.supplier}) {
      if (each == nullptr) continue;
      sim::expect(each->data.read() == 0, "a device came up before one it needs");
    }
    sim::expect(n.downs == n.ups + 1, "a device came up that was not down");
    n.data.write(0);
    ++n.ups;
    return status::ok;
  }
  static constexpr basic_callbacks<P> table = {.suspend = &down, .resume = &up};
  static constexpr basic_callbacks<P> late = {.suspend_late = &down, .resume_early = &up};
  static constexpr basic_callbacks<P> noirq = {.suspend_noirq = &down, .resume_noirq = &up};

  node* parent;
  node* supplier = nullptr;
  node* below[2] = {};
  bool fails = false;
  pmgate::pm::basic_wakeup<P>* wakes = nullptr;
  int downs = 0;
  int ups = 0;
  sim::guarded<int> data{0};
  basic_device<P> self;
};

/// t above d and r, asynchronous but for the bits of `Sync`; who refuses, who wakes.
template <class P>
struct family {
  enum who : unsigned { t_is = 1, d_is = 2, r_is = 4 };

  family(unsigned sync, unsigned refusing, bool linked, unsigned waking = 0,
         phase in = phase::suspend)
      : has_link(linked), at(in) {
    t.below[0] = &d;
    t.below[1] = &r;
    unsigned bit = 1;
    for (node<P>* each : {&t, &d, &r}) {
      (void)tree.add(each->self);
      each->self.set_async((sync & bit) == 0);
      each->fails = (refusing & bit) != 0;
      if ((waking & bit) != 0) each->wakes = &wakeup;
      bit <<= 1;
    }
    if (linked) {  // r needs d
      (void)tree.add_link(link, r.self, d.self);
      d.below[0] = &r;
      r.supplier = &d;
    }
    tree.set_wakeup(&wakeup);
    tree.set_async_queue(&queue);
  }
  void transition() {
    result = tree.suspend_start(event::suspend);
    if (at != phase::suspend && result == status::ok) result = tree.suspend_end(event::suspend);
    for (const node<P>* each : {&t, &d, &r}) {
      const bool down = each->data.read() == 1;  // the phase is over: nothing races any more
      sim::expect(is_down(each->self) == down, "a mark that is not true");
    }
    if (result != status::ok) {
      sim::expect(t.downs == 0, "the parent went down after an error");
      const bool wakes = d.wakes != nullptr || r.wakes != nullptr;
      sim::expect(tree.was_woken() == wakes, "a wakeup is taken for an error, or an error for one");
    }
    if (at != phase::suspend && result == status::ok) tree.resume_start(event::resume);
    tree.resume_end(event::resume);
    for (const node<P>* each : {&t, &d, &r}) {
      sim::expect(each->data.read() == 0, "a device is down at the end");
    }
    queue.stop();
  }
  void check() {
    const bool refused = t.fails || d.fails || r.fails || d.wakes != nullptr || r.wakes != nullptr;
    sim::expect((result != status::ok) == refused, "the result of the transition");
    for (node<P>* each : {&r, &d, &t}) {
      sim::expect(each->downs == each->ups, "those who came up are not those who went down");
      sim::expect(!each->self.is_prepared(), "a device is still prepared");
    }
    if (has_link) (void)tree.remove_link(link);
    for (node<P>* each : {&r, &d, &t}) {
      sim::expect(tree.remove(each->self) == status::ok, "the transition is not over");
    }
  }
  bool is_down(const basic_device<P>& which) const {
    return at == phase::suspend        ? which.is_suspended()
           : at == phase::suspend_late ? which.is_late_suspended()
                                       : which.is_noirq_suspended();
  }
  const basic_callbacks<P>& calls() const {
    return at == phase::suspend        ? node<P>::table
           : at == phase::suspend_late ? node<P>::late
                                       : node<P>::noirq;
  }
  bool has_link;
  phase at;
  status result = status::ok;
  basic_work_queue<P> queue{"async", work_queue_flags::none, 0};
  pmgate::pm::basic_wakeup<P> wakeup;
  basic_device_tree<P> tree;
  node<P> t{"t", nullptr, calls()}, d{"d", &t, calls()}, r{"r", &t, calls()};
  basic_device_link<P> link;
};

template <class P>
struct siblings : family<P> {
  siblings() : family<P>(family<P>::t_is, 0, false) {}
};
template <class P>
struct all_async : family<P> {
  all_async() : family<P>(0, 0, false) {}
};
template <class P>
struct linked : family<P> {
  linked() : family<P>(0, 0, true) {}
};
template <class P>
struct one_refuses : family<P> {
  one_refuses() : family<P>(family<P>::t_is, family<P>::r_is, false) {}
};
template <class P>
struct sync_one_refuses : family<P> {
  sync_one_refuses() : family<P>(family<P>::d_is, family<P>::d_is, false) {}
};
template <class P>
struct one_wakes : family<P> {
  one_wakes() : family<P>(family<P>::t_is, 0, false, family<P>::r_is) {}
};

template <class P>
struct late_siblings : family<P> {
  late_siblings() : family<P>(family<P>::t_is, 0, false, 0, phase::suspend_late) {}
};
template <class P>
struct late_one_wakes : family<P> {
  late_one_wakes() : family<P>(family<P>::t_is, 0, false, family<P>::r_is, phase::suspend_late) {}
};
template <class P>
struct noirq_all_async : family<P> {
  noirq_all_async() : family<P>(0, 0, true, 0, phase::suspend_noirq) {}
};
template <class P>
struct noirq_one_refuses : family<P> {
  noirq_one_refuses()
      : family<P>(family<P>::t_is, family<P>::r_is, false, 0, phase::suspend_noirq) {}
};

/// A device that is probed now and then.
template <class P>
struct probed {
  probed() { (void)tree.add(self); }
  void probe() {
    if (!tree.begin_probe()) return;
    (void)data.read();
    tree.end_probe();
  }
  void sleep() {
    sim::expect(tree.suspend_start(event::suspend) == status::ok, "the suspend was refused");
    data.write(2);
    tree.resume_end(event::resume);
  }
  void check() {
    sim::expect(tree.begin_probe(), "a probe is refused at the end");
    tree.end_probe();
    (void)tree.remove(self);
  }
  basic_device_tree<P> tree;
  basic_device<P> self{"device"};
  sim::guarded<int> data{0};
};

constexpr auto suspender = [](auto& s) { s.transition(); };
constexpr auto a_worker = [](auto& s) { s.queue.run(); };

/// The stress of scenario 36, small: a disk whose entry closes in the main phase, on an
/// adapter whose ring goes in noirq; a poller on a freezable queue. `ring` is written by
/// who tears it down, and read by who submits.
template <class P>
struct machine {
  using work = pmgate::pm::basic_work<P>;
  using scope = pmgate::pm::basic_scope<P>;

  machine() {
    kernel.freezer.add(polling);
    kernel.freezer.set_timeout(P::milliseconds(30));
    (void)polling.queue(poll);
  }
  bool submit() {
    if (entry.enter() != status::ok) return false;
    sim::expect(ring.read() == 1, "a request reached a ring that was torn down");
    entry.exit();
    return true;
  }
  static void run_poll(work& item) noexcept {
    auto& self = *static_cast<machine*>(item.context());
    if (self.submit() && ++self.polls < 2) (void)self.polling.queue(item);
  }
  static status tear_down(void* it) noexcept {
    auto& self = *static_cast<machine*>(it);
    self.ring.write(0);
    return status::ok;
  }
  static status set_up(void* it) noexcept {
    static_cast<machine*>(it)->ring.write(1);
    return status::ok;
  }
  static status refuse_once(void* it) noexcept {
    auto& self = *static_cast<machine*>(it);
    return self.refused++ == 0 ? status::io_error : status::ok;
  }
  static status nothing(void*) noexcept { return status::ok; }

  void suspends() {
    // Busy: a schedule that lets nobody else run for so long stops no task.
    status expected = status::io_error;
    for (int n = 0; n < 3; ++n) {
      const status result = pmgate::pm::suspend(kernel);
      sim::expect(result == expected || result == status::busy, "the result of a suspend");
      if (result == status::io_error) expected = status::ok;
    }
    sim::expect(polling.drain() == status::ok, "the polls do not end");
    polling.stop();
  }
  void check() {
    sim::expect(ring.read() == 1, "the ring is not up at the end");
    sim::expect(polls == 2, "a poll was lost");
    sim::expect(entry.try_enter(), "the entry is not open at the end");
    entry.exit();
    kernel.freezer.remove(polling);
  }

  sim::guarded<int> ring{1};
  int polls = 0;
  int refused = 0;
  pmgate::basic_freeze_gate<P> entry;
  basic_work_queue<P> polling{"polling", work_queue_flags::freezable};
  work poll{&run_poll, this};
  pmgate::pm::basic_kernel<P> kernel;
  scope adapter{kernel.devices, "adapter"};
  typename scope::gate ring_gate{adapter, phase::suspend_noirq, &tear_down, &set_up, this};
  typename scope::gate moody{adapter, phase::suspend_noirq, &refuse_once, &nothing, this};
  scope disk{kernel.devices, "disk", &adapter};
  typename scope::gate class_gate{disk, phase::suspend, pmgate::pm::pm_only(entry)};
};

/// The tree has no CPU-local counters: the models of memory and of sleeping are enough.
template <template <class> class State, class... Threads>
void hold_on_memory_models(const char* title, const sim::options& base, const Threads&... threads) {
  ++tally::all().tests;
  const auto try_one = [&](const char* model, sim::options how) {
    how.preemptions += scale();
    const std::string name = std::string(title) + " | " + model;
    const sim::result found = explore_one<State<pmgate::sim_platform>>(name, how, threads...);
    found.print();
    CHECK_MESSAGE(found.failure.empty(), found.failure, " in ", name);
  };
  sim::options how = base;
  try_one("sc", how);
  how.sleep = sim::sleep_model::condition;
  try_one("sc, condition", how);
  // With choices of their own these are exhausted for two threads only.
  const bool exhausts = base.how == sim::search::exhaustive;
  if (exhausts && sizeof...(threads) > 2) return;
  how = base;
  if (exhausts) how.preemptions = 1;
  how.memory = sim::memory_model::store_buffers;
  try_one("tso", how);
  how = base;
  if (exhausts) how.preemptions = 1;
  how.spurious = 1;
  try_one("sc, spurious", how);
}

template <template <class> class State, class... Threads>
void hold_by_chance_here(const char* title, std::uint64_t schedules, const Threads&... threads) {
  sim::options how;
  how.preemptions = how.delayed_stores = sim::unbounded;
  how.schedules = schedules << 2 * (scale() > 0 ? scale() : 0);
  how.how = sim::search::random;
  hold_on_memory_models<State>((std::string(title) + " | random").c_str(), how, threads...);
  how.how = sim::search::priorities;
  how.priority_changes = 4;
  hold_on_memory_models<State>((std::string(title) + " | priorities").c_str(), how, threads...);
}

TEST_SUITE("interleavings of device_tree") {

TEST_CASE("scenario 12: asynchronous siblings and their parent") {
  hold_on_memory_models<siblings>("siblings, one worker", {.preemptions = 2}, suspender, a_worker);
  hold_on_memory_models<siblings>("siblings, two workers", {.preemptions = 1}, suspender, a_worker,
                                  a_worker);
  hold_by_chance_here<siblings>("siblings, two workers", 3000, suspender, a_worker, a_worker);
}

TEST_CASE("scenario 12: a sibling that refuses; the resumed are exactly the suspended") {
  hold_on_memory_models<one_refuses>("one refuses, one worker", {.preemptions = 2}, suspender,
                                     a_worker);
  hold_on_memory_models<one_refuses>("one refuses, two workers", {.preemptions = 1}, suspender,
                                     a_worker, a_worker);
  hold_by_chance_here<one_refuses>("one refuses, two workers", 3000, suspender, a_worker, a_worker);
}

TEST_CASE("a synchronous device that refuses while an asynchronous one is on its way") {
  hold_on_memory_models<sync_one_refuses>("a synchronous one refuses", {.preemptions = 2},
                                          suspender, a_worker);
  hold_by_chance_here<sync_one_refuses>("a synchronous one refuses", 3000, suspender, a_worker,
                                        a_worker);
}

TEST_CASE("scenario 13: everybody asynchronous") {
  hold_on_memory_models<all_async>("all asynchronous, two workers", {.preemptions = 1}, suspender,
                                   a_worker, a_worker);
  hold_by_chance_here<all_async>("all asynchronous, three workers", 3000, suspender, a_worker,
                                 a_worker, a_worker);
}

TEST_CASE("a link between asynchronous siblings") {
  hold_on_memory_models<linked>("linked siblings, two workers", {.preemptions = 1}, suspender,
                                a_worker, a_worker);
  hold_by_chance_here<linked>("linked siblings, two workers", 3000, suspender, a_worker, a_worker);
}

TEST_CASE("a wakeup from a worker") {
  hold_on_memory_models<one_wakes>("one wakes, one worker", {.preemptions = 2}, suspender,
                                   a_worker);
}

TEST_CASE("the late and noirq phases of asynchronous devices") {
  hold_on_memory_models<late_siblings>("late siblings, one worker", {.preemptions = 1}, suspender,
                                       a_worker);
  hold_on_memory_models<late_one_wakes>("one wakes late, one worker", {.preemptions = 1}, suspender,
                                        a_worker);
  hold_on_memory_models<noirq_one_refuses>("one refuses noirq, one worker", {.preemptions = 1},
                                           suspender, a_worker);
  hold_by_chance_here<noirq_all_async>("all asynchronous in noirq, two workers", 1000, suspender,
                                       a_worker, a_worker);
  hold_by_chance_here<late_one_wakes>("one wakes late, two workers", 1000, suspender, a_worker,
                                      a_worker);
}

TEST_CASE("a probe is over before prepare, or refused until complete is over") {
  hold_on_memory_models<probed>(
      "suspend x probe", {.preemptions = 3}, [](auto& s) { s.sleep(); },
      [](auto& s) { s.probe(); });
  hold_on_memory_models<probed>(
      "suspend x probe x probe", {.preemptions = 2}, [](auto& s) { s.sleep(); },
      [](auto& s) { s.probe(); }, [](auto& s) { s.probe(); });
}

TEST_CASE("scenario 36: a submitter, a poller and three suspends, one of which is refused") {
  hold_by_chance<machine>(
      "submit x poll x suspend", {.schedules = 2000},
      [](auto& s) {
        for (int n = 0; n < 3; ++n) sim::expect(s.submit(), "a request was refused");
      },
      [](auto& s) { s.polling.run(); }, [](auto& s) { s.suspends(); });
}

}  // TEST_SUITE

}  // namespace
