// SPDX-License-Identifier: MIT
//
// pm_and_death_interleavings.cpp - a freeze gate at suspend, at death, and where the
// operating system refuses a grace period, in every order.
#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace {

using namespace interleavings;

/// The check before a runtime suspend: idle, and nobody but PM gets in any more?
constexpr auto suspend_check = [](auto& s) {
  s.gate.set_pm_only();
  (void)s.gate.freeze_start();
  (void)s.gate.switch_to_atomic_sync();
  const bool idle = s.gate.usage().is_zero();
  s.gate.unfreeze();
  if (idle) s.change();  // the device is asleep
  s.gate.clear_pm_only();
};

/// The gate of a device that is asleep.
template <class P>
struct asleep : gated<P> {
  asleep() {
    this->gate.set_pm_only();
    this->gate.set_runtime_suspended(true);
  }
};

/// A gate with one normal request inside, and a freeze in force.
template <class P>
struct draining : gated<P> {
  draining() {
    (void)this->gate.try_enter();
    (void)this->gate.freeze_start();
  }
};

/// A gate that is frozen, and dies so.
template <class P>
struct dying {
  pmgate::basic_freeze_gate<P> gate;
  sim::guarded<int> data;
  dying() { (void)gate.freeze(); }
};
template <class P>
struct mortal {
  pmgate::basic_freeze_gate<P> gate;
  sim::guarded<int> data;
};

constexpr auto enter_unless_dead = [](auto& s) {
  const status entered = s.gate.enter();
  sim::expect(entered == status::ok || entered == status::no_device, "a wrong refusal");
  if (entered != status::ok) return;
  (void)s.data.read();
  s.gate.exit();
};
constexpr auto tear_down = [](auto& s) {
  s.gate.mark_dying();
  (void)s.gate.start_drain();
  (void)s.gate.freeze_wait();
  s.data.write(1);
  sim::expect(s.gate.enter() == status::no_device, "somebody entered a dead gate");
};

TEST_SUITE("interleavings of pm_only and death") {

TEST_CASE("a suspend check that says idle has nobody inside, and lets nobody in") {
  hold_on_all_models<gated>("suspend check x enter", {.preemptions = 3}, enter_and_leave,
                            suspend_check);
}

TEST_CASE("so does one whose count is in the shared word already") {
  hold_on_all_models<gated>(
      "suspend check twice x enter twice", {.preemptions = 2},
      [](auto& s) {
        enter_and_leave(s);
        enter_and_leave(s);
      },
      [](auto& s) {
        suspend_check(s);
        suspend_check(s);
      });
}

TEST_CASE("a suspend check beside somebody's freeze") {
  hold_on_all_models<gated>(
      "suspend check x freeze x enter", {.preemptions = 1}, suspend_check,
      [](auto& s) {
        (void)s.gate.freeze();
        s.gate.unfreeze();
      },
      enter_and_leave);
}

TEST_CASE("pm_only, freeze and unfreeze keep normal requests out from then on") {
  hold_on_all_models<gated>(
      "pm_only, freeze, unfreeze x enter x enter pm", {.preemptions = 2}, enter_and_leave,
      [](auto& s) {
        s.gate.set_pm_only();
        (void)s.gate.freeze();
        s.gate.unfreeze();
        s.change();
        s.gate.clear_pm_only();
      },
      [](auto& s) {
        if (s.gate.enter(enter_flags::pm) == status::ok) s.gate.exit();
      });
}

TEST_CASE("the same while another freeze is in force") {
  hold_on_all_models<frozen>(
      "pm_only beside a freeze x unfreeze x enter", {.preemptions = 2}, enter_and_leave,
      [](auto& s) {
        s.gate.set_pm_only();
        (void)s.gate.freeze();
        s.gate.unfreeze();
        s.change();
        s.gate.clear_pm_only();
      },
      [](auto& s) { s.gate.unfreeze(); });
}

TEST_CASE("everybody wakes up when the device does") {
  hold_on_all_models<asleep>(
      "resume x enter pm x enter", {.preemptions = 2}, enter_and_leave,
      [](auto& s) {
        s.gate.set_runtime_suspended(false);
        s.gate.clear_pm_only();
      },
      [](auto& s) {
        sim::expect(s.gate.enter(enter_flags::pm) == status::ok, "a PM request was refused");
        s.gate.exit();
      });
}

TEST_CASE("a PM request wakes up before pm_only is over") {
  hold_on_all_models<asleep>(
      "rpm status x enter pm", {.preemptions = 3},
      [](auto& s) { s.gate.set_runtime_suspended(false); },
      [](auto& s) {
        sim::expect(s.gate.enter(enter_flags::pm) == status::ok, "a PM request was refused");
        s.gate.exit();
        s.gate.clear_pm_only();
      });
}

TEST_CASE("a timeout handler gets in while the gate drains, and is waited for") {
  hold_on_all_models<draining>(
      "try_get x exit x freeze_wait", {.preemptions = 2},
      [](auto& s) {
        (void)s.data.read();
        s.gate.exit();
      },
      [](auto& s) {
        if (!s.gate.try_get()) return;
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_wait();
        s.change();
        s.gate.unfreeze();
      });
}

TEST_CASE("whoever waits at a frozen gate learns of its death") {
  hold_on_all_models<dying>("death x enter x enter, frozen", {.preemptions = 2}, tear_down,
                            enter_unless_dead, enter_unless_dead);
}

TEST_CASE("whoever comes to an open gate that dies is inside or refused") {
  hold_on_all_models<mortal>("death x enter x enter", {.preemptions = 2}, tear_down,
                             enter_unless_dead, enter_unless_dead);
}

TEST_CASE("whoever waits at a gate that is pm_only learns of its death") {
  hold_on_all_models<mortal>(
      "pm_only, death x enter", {.preemptions = 3},
      [](auto& s) {
        s.gate.set_pm_only();
        tear_down(s);
      },
      enter_unless_dead);
}

TEST_CASE("a freeze whose grace period is refused leaves the gate open") {
  hold_on_all_models<gated>("refused freeze x enter", {.preemptions = 3, .refused_graces = 1},
                            enter_and_leave, [](auto& s) {
                              const status frozen = s.gate.freeze();
                              if (frozen == status::not_permitted) return;
                              s.change();
                              s.gate.unfreeze();
                            });
}

TEST_CASE("a freeze that is refused beside one that is not") {
  hold_on_all_models<gated>(
      "refused freeze x freeze x enter", {.preemptions = 2, .refused_graces = 1}, enter_and_leave,
      [](auto& s) {
        if (s.gate.freeze() == status::ok) s.gate.unfreeze();
      },
      [](auto& s) {
        if (s.gate.freeze() != status::ok) return;
        s.change();
        s.gate.unfreeze();
      });
}

TEST_CASE("a switch that is refused harms neither users nor freezers nor the destructor") {
  hold_on_all_models<gated>(
      "refused switch x enter x freeze", {.preemptions = 1, .refused_graces = 1}, enter_and_leave,
      [](auto& s) { (void)s.gate.switch_to_atomic_sync(); },
      [](auto& s) {
        if (s.gate.freeze() != status::ok) return;
        s.change();
        s.gate.unfreeze();
      });
}

TEST_CASE("a switch that is refused is not taken for somebody inside") {
  hold_on_all_models<mortal>("refused switch, destroy", {.preemptions = 2, .refused_graces = 1},
                             [](auto& s) { (void)s.gate.switch_to_atomic_sync(); });
}

TEST_CASE("a freeze that is refused, and granted after all by somebody's switch") {
  hold_on_all_models<gated>(
      "refused freeze x switch x enter", {.preemptions = 2, .refused_graces = 1}, enter_and_leave,
      [](auto& s) {
        if (s.gate.freeze() != status::ok) return;
        s.change();
        s.gate.unfreeze();
      },
      [](auto& s) { (void)s.gate.switch_to_atomic_sync(); });
}

}  // TEST_SUITE

}  // namespace
