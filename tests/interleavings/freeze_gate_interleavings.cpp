// SPDX-License-Identifier: MIT
//
// freeze_gate_interleavings.cpp - who is inside, and who may touch what the gate
// protects, in every order.
//
// The scenarios are in gate_scenarios.hpp, the models in explore_models.hpp.
#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace {

using namespace interleavings;

TEST_SUITE("interleavings of freeze_gate") {

TEST_CASE("nobody is inside while the gate is frozen, and who waits gets in") {
  hold_on_all_models<gated>("enter x freeze", {.preemptions = 3}, enter_and_leave, freeze_and_thaw);
}

TEST_CASE("two enterers and a freezer") {
  hold_on_all_models<gated>("enter x enter x freeze", {.preemptions = 2}, enter_and_leave, look_in,
                            freeze_and_thaw);
}

TEST_CASE("an enterer who comes twice and a freezer who comes twice") {
  hold_on_all_models<gated>(
      "enter twice x freeze twice", {.preemptions = 2},
      [](auto& s) {
        enter_and_leave(s);
        enter_and_leave(s);
      },
      [](auto& s) {
        freeze_and_thaw(s);
        freeze_and_thaw(s);
      });
}

TEST_CASE("who does not want to wait is refused or inside") {
  hold_on_all_models<gated>(
      "nowait x freeze", {.preemptions = 3},
      [](auto& s) {
        const status entered = s.gate.enter(enter_flags::nowait);
        sim::expect(entered == status::ok || entered == status::again, "a wrong refusal");
        if (entered != status::ok) return;
        s.use();
        s.gate.exit();
      },
      freeze_and_thaw);
}

TEST_CASE("freezes of two threads nest") {
  hold_on_all_models<gated>(
      "freeze x freeze x enter", {.preemptions = 2}, freeze_and_thaw,
      [](auto& s) {
        (void)s.gate.freeze();
        sim::expect(s.gate.is_frozen(), "a frozen gate says that it is not");
        (void)s.inside.read();
        s.second.write(1);
        s.gate.unfreeze();
      },
      enter_and_leave);
}

TEST_CASE("a freeze may be undone by another thread while a third one waits for it") {
  hold_on_all_models<entered>(
      "freeze_wait x unfreeze x exit", {.preemptions = 2},
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_start();
        (void)s.gate.freeze_wait();
        s.change();
        s.gate.unfreeze();
      },
      [](auto& s) {
        (void)s.gate.freeze_start_non_owner();
        s.gate.unfreeze_non_owner();
      });
}

TEST_CASE("unfreeze() without waiting, with the last exit in flight, then another freeze") {
  hold_on_all_models<entered>(
      "exit x freeze_start, unfreeze, freeze", {.preemptions = 3},
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_start();
        s.gate.unfreeze();
        freeze_and_thaw(s);
      });
}

TEST_CASE("the same with an enterer who comes between") {
  hold_on_all_models<entered>(
      "exit x enter x freeze_start, unfreeze, freeze", {.preemptions = 2},
      [](auto& s) {
        (void)s.data.read();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_start();
        s.gate.unfreeze();
        freeze_and_thaw(s);
      },
      enter_and_leave);
}

TEST_CASE("one thread leaves for many") {
  hold_on_all_models<gated>(
      "batch x freeze", {.preemptions = 2},
      [](auto& s) {
        if (s.gate.enter() != status::ok) return;
        s.gate.get(2);
        s.use();
        s.gate.exit();
        s.gate.exit(2);
      },
      freeze_and_thaw,
      [](auto& s) {
        if (!s.gate.try_get()) return;
        (void)s.data.read();
        s.gate.exit();
      });
}

TEST_CASE("a gate kept in its shared word opens and closes like any other") {
  hold_on_all_models<gated>("unfreeze_to_atomic x enter", {.preemptions = 2}, enter_and_leave,
                            [](auto& s) {
                              (void)s.gate.freeze();
                              s.change();
                              s.gate.unfreeze_to_atomic();
                              freeze_and_thaw(s);
                            });
}

TEST_CASE("a gate that starts in its shared word moves while it is used") {
  hold_on_all_models<unregistered>("switch to percpu x enter x freeze", {.preemptions = 2},
                                   enter_and_leave, freeze_and_thaw,
                                   [](auto& s) { s.gate.switch_to_percpu(); });
}

TEST_CASE("the count moves while others enter and freeze") {
  hold_on_all_models<gated>("switch to atomic and back x enter x freeze", {.preemptions = 1},
                            enter_and_leave, freeze_and_thaw, [](auto& s) {
                              (void)s.gate.switch_to_atomic_sync();
                              s.gate.switch_to_percpu();
                            });
}

TEST_CASE("a drained gate may be destroyed while the last exit() returns") {
  hold_on_all_models<doomed>(
      "exit x freeze, destroy", {.preemptions = 3},
      [](auto& s) {
        s.data.write(1);
        s.gate->exit();
      },
      [](auto& s) {
        (void)s.gate->freeze();
        (void)s.data.read();
        s.gate.reset();
      });
}

TEST_CASE("a drained gate may be destroyed while the last of two exit() returns") {
  hold_on_all_models<doubly_doomed>(
      "exit x exit x freeze, destroy", {.preemptions = 2},
      [](auto& s) {
        (void)s.data.read();
        s.gate->exit();
      },
      [](auto& s) {
        (void)s.data.read();
        s.gate->exit();
      },
      [](auto& s) {
        (void)s.gate->freeze();
        s.data.write(1);
        s.gate.reset();
      });
}

TEST_CASE("a gate may be destroyed after a timed wait said that it is drained") {
  hold_on_all_models<doomed>(
      "exit x freeze_wait_until, destroy", {.preemptions = 2},
      [](auto& s) {
        s.data.write(1);
        s.gate->exit();
      },
      [](auto& s) {
        (void)s.gate->freeze_start();
        if (!s.gate->freeze_wait_until(5)) (void)s.gate->freeze_wait();
        (void)s.data.read();
        s.gate.reset();
      });
}

TEST_CASE("deadlines pass for freezers and enterers without a trace") {
  hold_on_all_models<gated>(
      "enter_until x freeze_wait_until", {.preemptions = 2},
      [](auto& s) {
        if (s.gate.enter_until(10) != status::ok) return;
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_start();
        if (s.gate.freeze_wait_until(5)) s.change();
        s.gate.unfreeze();
      });
}

TEST_CASE("everybody at once") {
  hold_by_chance<gated>(
      "storm of five", {.refused_graces = 1, .priority_changes = 4},
      [](auto& s) {
        for (int i = 0; i < 3; ++i) enter_and_leave(s);
      },
      [](auto& s) {
        for (int i = 0; i < 3; ++i) look_in(s);
      },
      [](auto& s) {
        for (int i = 0; i < 2; ++i) {
          if (s.gate.freeze() != status::ok) continue;
          s.change();
          s.gate.unfreeze();
        }
      },
      [](auto& s) {
        for (int i = 0; i < 2; ++i) {
          if (s.gate.freeze_start() != status::ok) continue;
          if (s.gate.freeze_wait_until(10)) s.second.write(1);
          if (i == 0) {
            s.gate.unfreeze_to_atomic();
          } else {
            s.gate.unfreeze();
          }
        }
      },
      [](auto& s) {
        s.gate.set_pm_only();
        (void)s.gate.switch_to_atomic_sync();
        s.gate.clear_pm_only();
        s.gate.switch_to_percpu();
      });
}

}  // TEST_SUITE

}  // namespace
