// SPDX-License-Identifier: MIT
//
// runtime_pm_interleavings.cpp - suspend and resume of a device against those who use
// it, in every order; and the same with steps left out or exchanged, which must fail.
//
// The guarded data is the device: who is inside uses it, who suspended it writes it.
#include <atomic>
#include <cstdint>
#include <cstdio>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/runtime_pm.hpp>
#include <pmgate/block/runtime_pm_binding.hpp>
#include <pmgate/pm/device_tree.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace interleavings {

using pmgate::rpm_status;

/// A device, its gate, and a PM core that can be asked for a resume.
template <class P>
struct device {
  pmgate::basic_freeze_gate<P> gate;
  pmgate::basic_runtime_pm<P> pm{gate, {&ask, nullptr, nullptr, this}};
  typename P::wait_word asked{0};
  sim::guarded<int> data;

  /// Asked while it sleeps; what comes earlier is forgotten, as is allowed.
  static void ask(void* self) noexcept {
    auto& mine = *static_cast<device*>(self);
    if (mine.pm.runtime_status() != rpm_status::suspended) return;
    mine.note_asked();
  }
  void note_asked() {
    (void)asked.exchange(1, std::memory_order_acq_rel);
    asked.wake_all();
  }
  void await_asked() {
    while (asked.load(std::memory_order_acquire) == 0) asked.wait(0);
  }
  void check() {
    sim::expect(pm.runtime_status() == rpm_status::active, "the device is not active at the end");
    sim::expect(gate.pm_only() == 0, "pm_only is left at the end");
    sim::expect(gate.depth() == 0, "a freeze is left at the end");
    sim::expect(gate.try_enter(), "the gate is not open at the end");
    gate.exit();
  }
};

/// One that has been suspended before: its count is in the shared word.
template <class P>
struct seasoned : device<P> {
  seasoned() {
    (void)this->pm.pre_runtime_suspend();
    this->pm.post_runtime_resume();
  }
};

/// Under somebody's freeze, with nobody inside; or with one who is.
template <class P>
struct under_freeze : device<P> {
  under_freeze() { (void)this->gate.freeze(); }
};
template <class P>
struct under_drain : device<P> {
  under_drain() {
    (void)this->gate.try_enter();
    (void)this->gate.freeze_start();
  }
};

/// Suspends and resumes, if that is possible.
inline constexpr auto nap = [](auto& s) {
  const status checked = s.pm.pre_runtime_suspend();
  sim::expect(checked == status::ok || checked == status::busy, "a wrong refusal");
  if (checked != status::ok) return;
  s.data.write(1);  // puts the device to sleep
  s.pm.post_runtime_suspend(status::ok);
  s.pm.pre_runtime_resume();
  s.data.write(1);  // wakes it up
  s.pm.post_runtime_resume();
};
inline constexpr auto try_use = [](auto& s) {
  if (!s.gate.try_enter()) return;
  (void)s.data.read();
  s.gate.exit();
};
inline constexpr auto use_device = [](auto& s) {
  sim::expect(s.gate.enter() == status::ok, "a request was refused");
  (void)s.data.read();
  s.gate.exit();
};
/// Suspends, and resumes when asked to.
inline constexpr auto sleep_until_asked = [](auto& s) {
  if (s.pm.pre_runtime_suspend() != status::ok) return;
  s.data.write(1);
  s.pm.post_runtime_suspend(status::ok);
  s.await_asked();
  s.pm.pre_runtime_resume();
  s.data.write(1);
  s.pm.post_runtime_resume();
};

/// Suspends, and resumes with the help of a PM request.
inline constexpr auto resume_with_pm_request = [](auto& s) {
  if (s.pm.pre_runtime_suspend() != status::ok) return;
  s.pm.post_runtime_suspend(status::ok);
  s.pm.pre_runtime_resume();
  s.await_asked();  // until the PM request is over
  s.pm.post_runtime_resume();
};
inline constexpr auto send_pm_request = [](auto& s) {
  sim::expect(s.gate.enter(enter_flags::pm) == status::ok, "a PM request was refused");
  s.gate.exit();
  s.note_asked();
};
/// Uses the device, and says so to who sleeps until asked.
inline constexpr auto use_and_note = [](auto& s) {
  use_device(s);
  s.note_asked();
};

// --- system sleep

/// Suspends, and fails to: the device is active again.
inline constexpr auto try_to_nap = [](auto& s) {
  if (s.pm.pre_runtime_suspend() != status::ok) return;
  s.data.write(1);
  s.pm.post_runtime_suspend(status::io_error);
};
/// Suspends, and stays asleep if it may not wake up.
inline constexpr auto doze = [](auto& s) {
  if (s.pm.pre_runtime_suspend() != status::ok) return;
  s.data.write(1);
  s.pm.post_runtime_suspend(status::ok);
  if (s.pm.pre_runtime_resume() != status::ok) return;
  s.data.write(1);
  s.pm.post_runtime_resume();
};
/// System sleep has the device to itself.
inline constexpr auto hold_device = [](auto& s) {
  s.pm.hold();
  s.data.write(2);
  s.pm.release();
};
inline constexpr auto disable_device = [](auto& s) {
  s.pm.disable();
  s.data.write(2);
  s.pm.enable();
};
/// What is awake is open to system sleep.
inline constexpr auto enter_if_active = [](auto& s) {
  if (s.pm.runtime_status() != rpm_status::active) return;
  sim::expect(s.gate.try_enter(), "awake, and still closed");
  s.gate.exit();
};
inline constexpr auto hold_and_enter = [](auto& s) {
  s.pm.hold();
  enter_if_active(s);
  s.pm.release();
};
inline constexpr auto disable_and_enter = [](auto& s) {
  s.pm.disable();
  enter_if_active(s);
  s.pm.enable();
};
inline constexpr auto resume_if_legal = [](auto& s) {
  if (s.pm.pre_runtime_resume() == status::ok) s.pm.post_runtime_resume();
};
/// Resumes a device that sleeps when asked to; one who is refused is asked again.
inline constexpr auto resume_when_asked = [](auto& s) {
  for (;;) {
    s.await_asked();
    (void)s.asked.exchange(0, std::memory_order_acq_rel);
    if (s.pm.pre_runtime_resume() == status::ok) break;
  }
  s.data.write(1);
  s.pm.post_runtime_resume();
};

/// One that sleeps at first; or may do so at the end.
template <class P>
struct asleep : device<P> {
  asleep() {
    (void)this->pm.pre_runtime_suspend();
    this->pm.post_runtime_suspend(status::ok);
  }
};
template <class P>
struct dozing : device<P> {
  void check() {
    if (this->pm.runtime_status() == rpm_status::suspended) {
      sim::expect(this->pm.pre_runtime_resume() == status::ok, "a resume is refused at the end");
      this->pm.post_runtime_resume();
    }
    device<P>::check();
  }
};

template <class P>
struct asleep_dozing : dozing<P> {
  asleep_dozing() {
    (void)this->pm.pre_runtime_suspend();
    this->pm.post_runtime_suspend(status::ok);
  }
};

/// It is active in the end, and the next suspend lets PM requests through.
template <class P>
struct open_in_the_end : dozing<P> {
  void check() {
    if (this->pm.runtime_status() == rpm_status::active) {
      sim::expect(this->pm.pre_runtime_suspend() == status::ok, "no suspend at the end");
      sim::expect(this->gate.try_enter(enter_flags::pm), "a PM request is refused at the end");
      this->gate.exit();
      this->pm.post_runtime_suspend(status::io_error);
    }
    dozing<P>::check();
  }
};
inline constexpr auto wake_while_disabled = [](auto& s) {
  s.pm.disable();
  s.data.write(2);
  s.pm.post_runtime_resume();
  s.pm.enable();
};
inline constexpr auto suspend_only = [](auto& s) {
  if (s.pm.pre_runtime_suspend() != status::ok) return;
  s.data.write(1);
  s.pm.post_runtime_suspend(status::ok);
};

/// The device in a tree: its callbacks have it to themselves from late to early.
template <class P>
struct in_tree : dozing<P> {
  using pm_device = pmgate::pm::basic_device<P>;
  static status touch(pm_device& it) noexcept {
    static_cast<in_tree*>(it.context())->data.write(3);
    return status::ok;
  }
  static constexpr pmgate::pm::basic_callbacks<P> table = {.suspend_late = &touch,
                                                           .resume_early = &touch};
  in_tree() { (void)tree.add(self); }
  void sleep_and_wake() {
    using pmgate::pm::event;
    sim::expect(tree.suspend_start(event::suspend) == status::ok, "the suspend was refused");
    sim::expect(tree.suspend_late(event::suspend) == status::ok, "the late phase was refused");
    tree.resume_early(event::resume);
    tree.resume_end(event::resume);
  }
  void check() {
    sim::expect(tree.remove(self) == status::ok, "the transition is not over");
    dozing<P>::check();
  }
  pmgate::pm::basic_device_tree<P> tree;
  pm_device self{"device", nullptr, {.driver = &table}, this};
  pmgate::basic_runtime_pm_binding<P> binding{self, this->pm};
};

// --- the class with a step left out or exchanged: explicit specialisations -------------

template <int Bug>
struct planted : pmgate::sim_platform {};
using pm_only_too_late = planted<0>;
using no_look = planted<1>;
using left_closed = planted<2>;
using deaf_resume = planted<3>;
using hasty_suspend = planted<4>;
using hasty_hold = planted<5>;
using deaf_enable = planted<6>;
using unchecked_resume = planted<7>;
using late_mark = planted<8>;

}  // namespace interleavings

namespace pmgate {
using namespace interleavings;

template <>
status basic_runtime_pm<pm_only_too_late>::pre_runtime_suspend() noexcept {
  set(rpm_status::suspending);
  const status result = check_idle();
  gate_.set_pm_only();
  if (result != status::ok) open_again();
  return result;
}
template <>
status basic_runtime_pm<no_look>::check_idle() noexcept {
  (void)freeze_start_(door_);
  (void)gate_.switch_to_atomic_sync();
  gate_.unfreeze();
  return status::ok;
}
template <>
void basic_runtime_pm<left_closed>::open_again() noexcept {
  set(rpm_status::active);
}
template <>
status basic_runtime_pm<deaf_resume>::pre_runtime_resume() noexcept {
  set(rpm_status::resuming);
  return status::ok;
}
template <>
void basic_runtime_pm<hasty_suspend>::post_runtime_suspend(status) noexcept {
  gate_.set_runtime_suspended(true);
  set(rpm_status::suspended);  // who was woken asked in vain
}
template <>
void basic_runtime_pm<late_mark>::post_runtime_suspend(status) noexcept {
  set(rpm_status::suspended);
  gate_.set_runtime_suspended(true);
}
template <>
void basic_runtime_pm<hasty_hold>::await_step(rpm_status, rpm_status) noexcept {}
template <>
void basic_runtime_pm<deaf_enable>::enable() noexcept {
  const scoped_lock guard(lock_);
  --disables_;
}
template <>
status basic_runtime_pm<unchecked_resume>::pre_runtime_resume() noexcept {
  set(rpm_status::resuming);
  gate_.set_runtime_suspended(false);
  return status::ok;
}

}  // namespace pmgate

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

TEST_SUITE("interleavings of runtime_pm") {

TEST_CASE("scenario 29: a device that is put to sleep has nobody inside") {
  hold_on_all_models<device>("suspend and resume x enter nowait x enter nowait", {.preemptions = 2},
                             nap, try_use, try_use);
}

TEST_CASE("scenario 30: also when its count is in the shared word already") {
  hold_on_all_models<seasoned>("suspend and resume again x enter nowait x enter nowait",
                               {.preemptions = 3}, nap, try_use, try_use);
}

TEST_CASE("scenario 31: a suspend check beside the freeze of somebody else") {
  hold_on_all_models<under_freeze>(
      "suspend x unfreeze x enter", {.preemptions = 2}, nap, [](auto& s) { s.gate.unfreeze(); },
      use_device);
}

TEST_CASE("scenario 31: and beside one that has not drained") {
  hold_on_all_models<under_drain>(
      "suspend x exit x freeze_wait, unfreeze", {.preemptions = 2}, nap,
      [](auto& s) {
        (void)s.data.read();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_wait();
        s.gate.unfreeze();
      });
}

TEST_CASE("scenario 25: a suspend that fails lets in who waits") {
  hold_on_all_models<device>(
      "failing suspend x enter x enter pm", {.preemptions = 2},
      [](auto& s) {
        if (s.pm.pre_runtime_suspend() != status::ok) return;
        s.pm.post_runtime_suspend(status::io_error);
      },
      use_device,
      [](auto& s) {
        sim::expect(s.gate.enter(enter_flags::pm) == status::ok, "a PM request was refused");
        s.gate.exit();
      });
}

TEST_CASE("scenario 26: who needs a sleeping device wakes it, however early he asked") {
  hold_on_all_models<device>("suspend until asked x enter", {.preemptions = 3}, sleep_until_asked,
                             use_and_note);
}

TEST_CASE("scenario 27: a PM request waits for the begin of the resume only") {
  hold_on_all_models<device>("suspend, pre resume x enter pm", {.preemptions = 3},
                             resume_with_pm_request, send_pm_request);
}

TEST_CASE("a suspend that is refused its grace period leaves everything as it was") {
  hold_on_all_models<device>("refused suspend x enter", {.preemptions = 3, .refused_graces = 1},
                             use_device, [](auto& s) {
                               const status checked = s.pm.pre_runtime_suspend();
                               if (checked != status::ok) return;
                               s.data.write(1);
                               s.pm.post_runtime_resume();
                             });
}

TEST_CASE("whoever holds a device has it without a runtime suspend") {
  hold_on_all_models<device>("hold, enter x failing suspend", {.preemptions = 2}, hold_and_enter,
                             try_to_nap);
  hold_on_all_models<asleep_dozing>("disable, enter x resume", {.preemptions = 2},
                                    disable_and_enter, resume_if_legal);
  hold_on_all_models<device>("hold x failing suspend x enter", {.preemptions = 2}, hold_device,
                             try_to_nap, [](auto& s) {
                               if (s.gate.try_enter()) s.gate.exit();
                             });
}

TEST_CASE("whoever disabled it has it without any step") {
  hold_on_all_models<dozing>("disable x suspend, resume", {.preemptions = 3}, disable_device, doze);
  hold_on_all_models<dozing>(
      "disable x hold, release x suspend, resume", {.preemptions = 2}, disable_device,
      [](auto& s) {
        s.pm.hold();
        s.pm.release();
      },
      doze);
}

TEST_CASE("a suspend that has ended has ended altogether, for who disables the device then") {
  hold_on_all_models<open_in_the_end>("disable, wake up x suspend", {.preemptions = 3},
                                      wake_while_disabled, suspend_only);
}

TEST_CASE("a request that waits while it is disabled is heard when it is enabled") {
  hold_on_all_models<asleep>("enter x resume when asked x disable", {.preemptions = 2}, use_device,
                             resume_when_asked, [](auto& s) {
                               s.pm.disable();
                               s.pm.enable();
                             });
}

TEST_CASE("a suspend check beside a system suspend, from prepare to complete") {
  hold_on_all_models<in_tree>(
      "system suspend x runtime suspend, resume", {.preemptions = 3},
      [](auto& s) { s.sleep_and_wake(); }, doze);
}

TEST_CASE("planted bugs are found") {
  caught<device<hasty_hold>>("a hold that does not wait", hold_device, try_to_nap);
  caught<open_in_the_end<late_mark>>("a mark at the gate behind the status", wake_while_disabled,
                                     suspend_only);
  caught<dozing<unchecked_resume>>("a resume while disabled", disable_device, doze);
  caught<asleep<deaf_enable>>("an enable that nobody hears", use_device, resume_when_asked,
                              [](auto& s) {
                                s.pm.disable();
                                s.pm.enable();
                              });
  caught<device<pm_only_too_late>>("pm_only raised behind the check", nap, try_use);
  caught<seasoned<pm_only_too_late>>("the same in the shared word", nap, try_use);
  caught<device<no_look>>("no look at the count", nap, try_use);
  caught<device<left_closed>>("pm_only left raised by a refusal", nap, use_device);
  caught<device<deaf_resume>>("a resume that lets no PM request in", resume_with_pm_request,
                              send_pm_request);
  caught<device<hasty_suspend>>("a wake-up ahead of the status", sleep_until_asked, use_and_note);
}

}  // TEST_SUITE

}  // namespace
