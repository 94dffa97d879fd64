// SPDX-License-Identifier: MIT
//
// freezer_interleavings.cpp - the freezer against tasks that stop, sleep, end or are let
// out; disk events that are blocked while a check runs; a restore against a poller; and an
// image against those who want it.
//
// What a task works on is guarded, and whoever froze it writes there: a freeze that
// succeeds too early is a data race and fails the schedule, one that nobody leaves is a
// deadlock. A budget that runs out is no failure: a schedule may keep a task from moving.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/pm/disk_events.hpp>
#include <pmgate/pm/freezer.hpp>
#include <pmgate/pm/hibernation.hpp>
#include <pmgate/pm/scope.hpp>

#include "explore_models.hpp"

namespace interleavings {

using pmgate::status;
using pmgate::pm::basic_disk_events;
using pmgate::pm::basic_freezable_task;
using pmgate::pm::basic_freezer;
using pmgate::pm::basic_kernel;
using pmgate::pm::basic_notifier;
using pmgate::pm::basic_scope;
using pmgate::pm::basic_work;
using pmgate::pm::basic_work_queue;
using pmgate::pm::hibernate;
using pmgate::pm::notice;
using pmgate::pm::phase;
using pmgate::pm::power_off_mode;
using pmgate::pm::restore;
using pmgate::pm::restore_freeze;
using pmgate::pm::step;
using pmgate::pm::task_kind;
using pmgate::pm::work_queue_flags;

// --- tasks ----------------------------------------------------------------------------

/// A task that works twice with something in between, and those who stop it.
template <class P>
struct one_task {
  using task_type = basic_freezable_task<P>;

  one_task() { freezer.set_timeout(P::milliseconds(2)); }
  void work() { data.write(data.read() + 1); }
  /// The last thing a task does: from here on nobody waits for it.
  void end() {
    task.set_nofreeze();
    ended.publish_add(1);
  }
  void await_end() {
    // [ended.seen] acquire: pairs with publish_add() in end().
    while (ended.load(std::memory_order_acquire) == 0) ended.wait(0);
  }
  /// Returns: true if it was frozen, and works on what the task works on.
  bool freeze() {
    if (freezer.freeze_processes() != status::ok) return false;
    data.write(data.read() + 10);
    return true;
  }
  void check() {
    sim::expect(data.read() % 10 == 2, "work was lost");
    sim::expect(!task.is_frozen(), "the task is still frozen");
    sim::expect(!freezer.freezes_user_tasks() && !freezer.freezes_everything(), "nobody thawed");
  }

  basic_freezer<P> freezer;
  task_type task{freezer, "task", task_kind::user};
  sim::guarded<int> data{0};
  typename P::wait_word ended{0};
};

/// The same with a kernel task that can be asked to stop.
template <class P>
struct one_kernel_task : one_task<P> {
  using task_type = basic_freezable_task<P>;
  task_type kernel_task{this->freezer, "kernel task", task_kind::kernel};
  one_kernel_task() {
    this->task.set_nofreeze();
    (void)kernel_task.set_freezable();
  }
};

inline constexpr auto passes_a_freeze_point = [](auto& s) {
  s.work();
  (void)s.task.try_to_freeze();
  s.work();
  s.end();
};
inline constexpr auto sleeps = [](auto& s) {
  s.work();
  { const typename std::remove_reference_t<decltype(s)>::task_type::freezable_sleep sleep(s.task); }
  s.work();
  s.end();
};
inline constexpr auto freezes_and_thaws = [](auto& s) {
  if (s.freeze()) s.freezer.thaw_processes();
};

// --- disk events ----------------------------------------------------------------------

/// A disk whose checks write.
template <class P>
struct polled_disk {
  polled_disk() { events.unblock(); }
  static unsigned check_medium(void* context, unsigned) noexcept {
    auto& self = *static_cast<polled_disk*>(context);
    self.data.write(self.data.read() + 1);
    return 0;
  }
  void check() {
    while (queue.run_pending()) {
    }
    sim::expect(data.read() >= 1, "no check came");
    sim::expect(events.depth() == 0, "blocked at the end");
    events.block();
  }

  sim::guarded<int> data{0};
  basic_work_queue<P> queue{"events", work_queue_flags::freezable};
  basic_disk_events<P> events{queue, &check_medium, nullptr, this};
};

inline constexpr auto runs_checks = [](auto& s) { (void)s.queue.run_pending(); };
/// Reads what the checks write, and has one come afterwards.
inline constexpr auto blocks = [](auto& s) {
  s.events.block();
  (void)s.data.read();
  s.events.unblock();
  s.events.flush(1);
};

/// A disk without polling, whose checks find whatever they are asked for.
template <class P>
struct quiet_disk {
  quiet_disk() {
    events.unblock();
    (void)queue.run_pending();
  }
  static unsigned check_medium(void* context, unsigned clearing) noexcept {
    auto& self = *static_cast<quiet_disk*>(context);
    // [asked.add] relaxed: read when the threads have ended.
    (void)self.asked.fetch_or(clearing, std::memory_order_relaxed);
    return 3;
  }
  void clear(unsigned event) {
    sim::expect(events.clear_events(event) == event, "an event that is there was not found");
  }
  void check() {
    while (queue.run_pending()) {
    }
    // [asked.read] relaxed: the threads have ended.
    sim::expect(asked.load(std::memory_order_relaxed) == 3, "nobody has asked for an event");
    sim::expect(events.depth() == 0, "blocked at the end");
    events.block();
  }

  typename P::template atomic<unsigned> asked{0};
  basic_work_queue<P> queue{"events", work_queue_flags::freezable};
  basic_disk_events<P> events{queue, &check_medium, nullptr, this};
};

// --- a restore ------------------------------------------------------------------------

/// A boot kernel with a poller on a freezable queue, and a ring that goes in noirq.
template <class P, restore_freeze Stops>
struct boot {
  boot() {
    kernel.freezer.add(polling);
    kernel.freezer.set_timeout(P::milliseconds(30));
    kernel.set_steps(
        [](void*, step what, bool undo) noexcept {
          return what == step::jump && !undo ? status::io_error : status::ok;
        },
        nullptr);
    (void)polling.queue(poll);
  }
  static void run_poll(basic_work<P>& item) noexcept {
    auto& self = *static_cast<boot*>(item.context());
    sim::expect(self.ring.read() == 1, "a poll reached a ring that was torn down");
    if (++self.polls < 3) (void)self.polling.queue(item);
  }
  static status tear_down(void* it) noexcept {
    static_cast<boot*>(it)->ring.write(0);
    ++tear_downs;
    return status::ok;
  }
  static status set_up(void* it) noexcept {
    static_cast<boot*>(it)->ring.write(1);
    return status::ok;
  }
  void restores() {
    const status result = restore<P>(kernel, nullptr, Stops);
    sim::expect(result == status::io_error || result == status::busy, "the result of a restore");
    sim::expect(polling.drain() == status::ok, "the polls do not end");
    polling.stop();
  }
  void check() {
    sim::expect(ring.read() == 1, "the ring is not up at the end");
    sim::expect(polls == 3, "a poll was lost");
    kernel.freezer.remove(polling);
  }

  static inline std::uint64_t tear_downs = 0;  // in all schedules
  sim::guarded<int> ring{1};
  int polls = 0;
  basic_work_queue<P> polling{"polling", work_queue_flags::freezable};
  basic_work<P> poll{&run_poll, this};
  basic_kernel<P> kernel;
  basic_scope<P> adapter{kernel.devices, "adapter"};
  typename basic_scope<P>::gate ring_gate{adapter, phase::suspend_noirq, &tear_down, &set_up, this};
};

template <class P>
using fixed_boot = boot<P, restore_freeze::everything>;
template <class P>
using unfixed_boot = boot<P, restore_freeze::user_only>;

inline constexpr auto restores = [](auto& s) { s.restores(); };
inline constexpr auto polls = [](auto& s) { s.polling.run(); };

// --- an image, and who wants it -------------------------------------------------------

/// A kernel that saves itself, and others that look whether it is off by now.
template <class P>
struct sleeper {
  sleeper() {
    (void)image.notifiers.add(told);
    image.set_steps(
        [](void* context, step what, bool undo) noexcept {
          if (what == step::write_image && undo) ++static_cast<sleeper*>(context)->removed;
          return status::ok;
        },
        this);
  }
  static status hear(basic_notifier<P>& it, notice what) noexcept {
    if (what == notice::post_hibernation) ++static_cast<sleeper*>(it.context())->awake;
    return status::ok;
  }
  void hibernates() {
    const status result = hibernate(image, power_off_mode::shutdown);
    sim::expect(result == status::ok, "the result of a hibernation");
  }
  void restores(basic_kernel<P>& on) {
    if (!image.is_off()) return;
    const status result = restore(on, &image);
    sim::expect(result == status::ok || !alone, "the result of a restore");
    // [restored.add] relaxed: read when the threads have ended.
    if (result == status::ok) (void)restored.fetch_add(1, std::memory_order_relaxed);
  }
  void gives_up() {
    if (image.is_off()) image.abandon_image();
  }
  void check() {
    // [restored.read] relaxed: the threads have ended.
    const int woken = restored.load(std::memory_order_relaxed);
    sim::expect(woken <= 1, "one image woke up twice");
    sim::expect(awake == woken, "post_hibernation is told once, by who wakes the image");
    sim::expect(removed == 0, "an image that was restored is removed");
    if (image.is_off()) image.abandon_image();
    sim::expect(image.begin_transition(), "a transition of the image goes on for ever");
    (void)image.notifiers.remove(told);
  }

  bool alone = true;  // nobody else wants the image
  int awake = 0;      // written by who has the image
  int removed = 0;
  typename P::template atomic<int> restored{0};
  basic_kernel<P> image, boot, other_boot;
  basic_notifier<P> told{&hear, this};
};

/// It is off, and several want it.
template <class P>
struct sleeping : sleeper<P> {
  sleeping() {
    this->alone = false;
    this->hibernates();
  }
};

inline constexpr auto hibernates = [](auto& s) { s.hibernates(); };
inline constexpr auto restores_it = [](auto& s) {
  if (!s.alone) sim::expect_misuse(1);  // who comes when it is over is told so
  s.restores(s.boot);
};
inline constexpr auto restores_it_too = [](auto& s) { s.restores(s.other_boot); };
inline constexpr auto gives_it_up = [](auto& s) { s.gives_up(); };

// --- the classes with a step left out: explicit specialisations ------------------------

template <int Bug>
struct planted : pmgate::sim_platform {};
using deaf_thaw = planted<0>;
using hasty_block = planted<1>;

}  // namespace interleavings

namespace pmgate::pm {
using namespace interleavings;

template <>
void basic_freezer<deaf_thaw>::wake_tasks() noexcept {
  // [cold.leave] relaxed: as the original; whoever sleeps already is not told.
  (void)thaws_.fetch_add(1, std::memory_order_relaxed);
}
template <>
void basic_disk_events<hasty_block>::block() noexcept {
  const scoped_lock guard(lock_);
  if (depth_++ == 0) (void)queue_.cancel(work_);  // and does not wait for the one that runs
}

}  // namespace pmgate::pm

namespace {

using namespace interleavings;

/// Explores until the bug shows.
template <class State, class... Threads>
void caught(const char* title, const Threads&... threads) {
  const sim::options how{.name = title, .preemptions = 3};
  const sim::result found = sim::explore<State>(how, threads...);
  std::printf("  %-58s %7llu schedules  %s\n", title,
              static_cast<unsigned long long>(found.schedules),
              found ? "NOT CAUGHT" : found.failure.c_str());
  ++tally::all().tests;
  tally::all().schedules += found.schedules;
  CHECK_FALSE_MESSAGE(found.failure.empty(), title);
}

TEST_SUITE("interleavings of freezer") {

TEST_CASE("a task that was frozen at a freeze point does not work, and goes on after the thaw") {
  hold_on_all_models<one_task>("freeze, thaw x freeze point", {.preemptions = 3}, freezes_and_thaws,
                               passes_a_freeze_point);
}

TEST_CASE("a task that was frozen in its sleep does not work before the thaw") {
  hold_on_all_models<one_task>("freeze, thaw x freezable sleep", {.preemptions = 3},
                               freezes_and_thaws, sleeps);
}

TEST_CASE("a task that is exempted while frozen comes to its end before the thaw") {
  hold_on_all_models<one_task>(
      "freeze, let out x freeze point", {.preemptions = 2},
      [](auto& s) {
        const bool frozen = s.freezer.freeze_processes() == status::ok;
        s.task.set_nofreeze();
        s.await_end();
        if (frozen) s.freezer.thaw_processes();
      },
      passes_a_freeze_point);
}

TEST_CASE("a kernel task that is asked to stop while frozen comes to its end before the thaw") {
  hold_on_all_models<one_kernel_task>(
      "both passes, stop x should stop", {.preemptions = 2},
      [](auto& s) {
        (void)s.freezer.freeze_processes();
        (void)s.freezer.freeze_kernel_threads();
        s.kernel_task.request_stop();
        s.await_end();
        s.freezer.thaw_processes();
      },
      [](auto& s) {
        s.work();
        for (int n = 0; n < 2 && !s.kernel_task.freezable_should_stop(); ++n) {
        }
        s.work();
        s.kernel_task.set_nofreeze();
        s.end();
      });
}

TEST_CASE("of two threads that freeze one is refused, or comes after the other") {
  hold_on_all_models<one_task>(
      "freeze, thaw x freeze, thaw x freeze point", {.preemptions = 2},
      [](auto& s) {
        sim::expect_misuse(2);
        freezes_and_thaws(s);
      },
      freezes_and_thaws, passes_a_freeze_point);
}

TEST_CASE("a thaw of the kernel pass that nobody made does not take the thaw from who freezes") {
  hold_on_all_models<one_task>(
      "freeze, thaw x thaw of kernel threads x freeze point", {.preemptions = 2}, freezes_and_thaws,
      [](auto& s) { s.freezer.thaw_kernel_threads(); }, passes_a_freeze_point);
}

TEST_CASE("who has blocked the checks of a disk meets none, nor does who blocks beside him") {
  hold_on_all_models<polled_disk>("block, unblock x checks", {.preemptions = 3}, blocks,
                                  runs_checks);
  hold_on_all_models<polled_disk>("block, unblock x block, unblock x checks", {.preemptions = 2},
                                  blocks, blocks, runs_checks);
}

TEST_CASE("what is flushed while somebody clears is asked for, and so is what two clear") {
  const auto clears_one = [](auto& s) { s.clear(1); };
  const auto clears_two = [](auto& s) { s.clear(2); };
  hold_on_all_models<quiet_disk>("clear x flush", {.preemptions = 2}, clears_two,
                                 [](auto& s) { s.events.flush(1); });
  hold_on_all_models<quiet_disk>("clear x clear", {.preemptions = 2}, clears_two, clears_one);
}

TEST_CASE("scenario 29: no poll reaches a driver that a restore has torn down, and none is lost") {
  hold_on_all_models<fixed_boot>("restore x poll", {.preemptions = 1}, restores, polls);
  fixed_boot<pmgate::sim_platform>::tear_downs = 0;
  hold_by_chance<fixed_boot>("restore x poll", {.schedules = 1000}, restores, polls);
  CHECK(fixed_boot<pmgate::sim_platform>::tear_downs > 1000);
}

TEST_CASE("scenario 28: with the user pass only, a poll does") {
  caught<unfixed_boot<pmgate::sim_platform>>("restore, user tasks only x poll", restores, polls);
}

TEST_CASE("a kernel that is off has done all it had to: whoever sees that may wake it at once") {
  hold_on_all_models<sleeper>("hibernate x restore", {.preemptions = 2}, hibernates, restores_it);
  hold_on_all_models<sleeper>("hibernate x abandon", {.preemptions = 2}, hibernates, gives_it_up);
}

TEST_CASE("of two who want an image one gets it") {
  hold_on_all_models<sleeping>("restore x restore", {.preemptions = 2}, restores_it,
                               restores_it_too);
  hold_on_all_models<sleeping>("restore x abandon", {.preemptions = 2}, restores_it, gives_it_up);
}

TEST_CASE("steps that are left out are found") {
  caught<one_task<deaf_thaw>>("a thaw that wakes nobody", freezes_and_thaws, passes_a_freeze_point);
  caught<polled_disk<hasty_block>>("a block that does not wait", blocks, runs_checks);
}

}  // TEST_SUITE

}  // namespace
