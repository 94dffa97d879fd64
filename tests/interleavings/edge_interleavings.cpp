// SPDX-License-Identifier: MIT
//
// edge_interleavings.cpp - what single orders, wake-ups and second looks are there for.
//
// Small scenarios beside the large ones of each room: each passes something through one
// edge that the others do not need. They are what the mutation gate asked for.
#include <array>
#include <atomic>
#include <optional>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/percpu_ref.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace {

using namespace interleavings;
using pmgate::ref_init;

// --- freeze gates ---------------------------------------------------------------------

template <class P>
struct clocked : entered<P> {
  static auto now() { return P::now(); }
};

/// pm_only, and the device asleep.
template <class P>
struct asleep : gated<P> {
  asleep() {
    this->gate.set_pm_only();
    this->gate.set_runtime_suspended(true);
  }
};

template <class P>
struct idle_at_the_end : gated<P> {
  void check() {
    sim::expect(this->gate.pm_only() == 0, "pm_only is raised at the end");
    gated<P>::check();
  }
};

constexpr auto write_and_exit = [](auto& s) {
  s.data.write(1);
  s.gate->exit();
};
constexpr auto raise_and_clear = [](auto& s) {
  s.gate.set_pm_only();
  s.gate.clear_pm_only();
};

// --- quiesce gates --------------------------------------------------------------------

/// A gate whose sections read what is written by who has waited.
template <class P>
struct sectioned {
  pmgate::basic_quiesce_gate<P> gate;
  sim::guarded<int> data;
  void check() {
    while (gate.depth() > 0) (void)gate.unquiesce();
  }
};
template <class P>
struct sectioned_room {
  std::optional<pmgate::basic_quiesce_gate<P>> gate{std::in_place};
};

// --- references -----------------------------------------------------------------------

/// A ref with one reference beside the initial one.
template <class P>
struct shared_ref {
  struct tagged : pmgate::basic_percpu_ref<P> {
    explicit tagged(shared_ref& of)
        : pmgate::basic_percpu_ref<P>(&on_release, ref_init::allow_reinit), owner(&of) {}
    shared_ref* owner;
  };
  static void on_release(pmgate::basic_percpu_ref<P>& which) noexcept {
    static_cast<tagged&>(which).owner->released.fetch_add(1, std::memory_order_relaxed);
  }
  sim::guarded<int> data;
  sim::atomic<int> released{0};
  tagged ref{*this};
  shared_ref() { ref.get(); }
  void check() { ref.exit(); }
};
template <class P>
struct released_once : shared_ref<P> {
  void check() {
    sim::expect(this->released.load(std::memory_order_relaxed) == 1, "not released exactly once");
  }
};

constexpr auto write_and_put = [](auto& s) {
  s.data.write(1);
  s.ref.put();
};

TEST_SUITE("interleavings of single edges") {

TEST_CASE("a timed wait that gives up has waited until its deadline") {
  hold_on_all_models<clocked>(
      "exit x freeze_wait_until, clock", {.preemptions = 2},
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_start();
        if (!s.gate.freeze_wait_until(5)) sim::expect(s.now() >= 5, "gave up too early");
        s.gate.unfreeze();
      });
}

TEST_CASE("one undo too many is reported and changes nothing") {
  hold_on_all_models<gated>("one too many", {.preemptions = 1}, [](auto& s) {
    sim::expect_misuse(2);
    s.gate.unfreeze();
    s.gate.clear_pm_only();
    sim::expect(sim::misuses() == 2, "not reported");
    sim::expect(s.gate.pm_only() == 0, "pm_only changed");
  });
  hold_on_all_models<sectioned>("one unquiesce too many", {.preemptions = 1}, [](auto& s) {
    sim::expect_misuse();
    sim::expect(!s.gate.unquiesce(), "the last one");
    sim::expect(sim::misuses() == 1 && s.gate.depth() == 0, "not reported, or changed");
  });
}

TEST_CASE("a gate that is destroyed with somebody inside says so") {
  hold_on_all_models<doomed>("destroyed while entered", {.preemptions = 1}, [](auto& s) {
    sim::expect_misuse();
    s.gate.reset();
    sim::expect(sim::misuses() == 1, "not reported");
  });
  hold_on_all_models<sectioned_room>("destroyed while dispatching", {.preemptions = 1},
                                     [](auto& s) {
                                       sim::expect_misuse();
                                       (void)s.gate->try_dispatch();
                                       s.gate.reset();
                                       sim::expect(sim::misuses() == 1, "not reported");
                                     });
}

TEST_CASE("an idle gate may be destroyed after it was opened again") {
  hold_on_all_models<doomed>("exit x freeze_start, unfreeze, destroy", {.preemptions = 3},
                             write_and_exit, [](auto& s) {
                               (void)s.gate->freeze_start();
                               const bool idle = s.gate->usage().is_zero();
                               s.gate->unfreeze();
                               if (!idle) return;
                               (void)s.data.read();
                               s.gate.reset();
                             });
}

TEST_CASE("a gate that says that it is frozen may be destroyed") {
  hold_on_all_models<doomed>("exit x is_frozen, destroy", {.preemptions = 3}, write_and_exit,
                             [](auto& s) {
                               (void)s.gate->freeze_start();
                               if (!s.gate->is_frozen()) return s.gate->unfreeze();
                               (void)s.data.read();
                               s.gate.reset();
                             });
}

TEST_CASE("a PM request sees what was done to wake the device") {
  hold_on_all_models<asleep>(
      "resume x enter pm, data", {.preemptions = 2},
      [](auto& s) {
        s.data.write(1);
        s.gate.set_runtime_suspended(false);
      },
      [](auto& s) {
        if (s.gate.enter(enter_flags::pm) != status::ok) return;
        (void)s.data.read();
        s.gate.exit();
        s.gate.clear_pm_only();
      });
}

TEST_CASE("a device that is asleep gets no PM request either") {
  hold_on_all_models<idle_at_the_end>("suspended, resumed", {.preemptions = 1}, [](auto& s) {
    s.gate.set_pm_only();
    sim::expect(s.gate.try_enter(enter_flags::pm), "a PM request was refused");
    s.gate.exit();
    s.gate.set_runtime_suspended(true);
    sim::expect(!s.gate.try_enter(enter_flags::pm), "a PM request got in");
    s.gate.set_runtime_suspended(false);
    sim::expect(s.gate.try_enter(enter_flags::pm), "a PM request was refused after the resume");
    s.gate.exit();
    s.gate.clear_pm_only();
  });
}

TEST_CASE("pm_only of two threads nests, whatever the device does meanwhile") {
  hold_on_all_models<idle_at_the_end>("pm_only x pm_only x suspend, resume", {.preemptions = 2},
                                      raise_and_clear, raise_and_clear, [](auto& s) {
                                        s.gate.set_runtime_suspended(true);
                                        s.gate.set_runtime_suspended(false);
                                      });
}

TEST_CASE("three who wake at once wake everybody") {
  hold_on_all_models<asleep>(
      "enter x resume x resume x clear", {.preemptions = 2},
      [](auto& s) {
        (void)s.gate.enter();
        s.gate.exit();
      },
      [](auto& s) { s.gate.set_runtime_suspended(false); },
      [](auto& s) { s.gate.set_runtime_suspended(false); }, [](auto& s) { s.gate.clear_pm_only(); });
}

TEST_CASE("who sees that a gate is dying sees what was done before") {
  hold_on_all_models<gated>(
      "mark_dying x is_dying", {.preemptions = 2},
      [](auto& s) {
        s.data.write(1);
        s.gate.mark_dying();
      },
      [](auto& s) {
        if (s.gate.is_dying()) (void)s.data.read();
      });
}

TEST_CASE("a gate that starts in its shared word counts there, whoever enters") {
  hold_on_all_models<unregistered>("switch to percpu x enter", {.preemptions = 2},
                                   [](auto& s) { s.gate.switch_to_percpu(); }, enter_and_leave,
                                   freeze_and_thaw);
}

TEST_CASE("who sees a quiesce in force may wait for it") {
  hold_on_all_models<sectioned>(
      "dispatch x quiesce_nowait x wait", {.preemptions = 2},
      [](auto& s) {
        if (!s.gate.try_dispatch()) return;
        (void)s.data.read();
        s.gate.end_dispatch();
      },
      [](auto& s) { s.gate.quiesce_nowait(); },
      [](auto& s) {
        if (s.gate.depth() == 0) return;
        if (s.gate.wait_quiesced() == status::ok) s.data.write(1);
      });
}

TEST_CASE("a wait for a quiesce that is undone ends, whatever sections come and go") {
  hold_on_all_models<sectioned>(
      "quiesce_nowait, unquiesce x wait x dispatch", {.preemptions = 2},
      [](auto& s) {
        s.gate.quiesce_nowait();
        s.gate.unquiesce();
      },
      [](auto& s) { (void)s.gate.wait_quiesced(); },
      [](auto& s) {
        if (!s.gate.try_dispatch()) return;
        s.gate.end_dispatch();
      });
  hold_on_all_models<sectioned>(
      "quiesce_nowait, unquiesce x wait of a range x dispatch", {.preemptions = 2},
      [](auto& s) {
        s.gate.quiesce_nowait();
        s.gate.unquiesce();
      },
      [](auto& s) {
        const std::array range{&s.gate};
        (void)pmgate::wait_quiesced_all(range);
      },
      [](auto& s) {
        if (!s.gate.try_dispatch()) return;
        s.gate.end_dispatch();
      });
}

TEST_CASE("who waits for a range sees what its sections have done, and is told of a refusal") {
  const auto look_in_section = [](auto& s) {
    if (!s.gate.try_dispatch()) return;
    (void)s.data.read();
    s.gate.end_dispatch();
  };
  const auto quiesce_range = [](auto& s) {
    const std::array range{&s.gate};
    if (pmgate::quiesce_all(range) == status::ok) s.data.write(1);
    pmgate::unquiesce_all(range);
  };
  hold_on_all_models<sectioned>("dispatch x dispatch x quiesce of a range", {.preemptions = 3},
                                look_in_section, look_in_section, quiesce_range);
  hold_on_all_models<sectioned>("dispatch x dispatch x refused quiesce of a range",
                                {.preemptions = 3, .refused_graces = 1}, look_in_section,
                                look_in_section, quiesce_range);
}

TEST_CASE("a wait of a range for a quiesce that is undone and comes again ends") {
  hold_on_all_models<sectioned>(
      "quiesce_nowait, wait of a range x unquiesce, quiesce_nowait x dispatch", {.preemptions = 3},
      [](auto& s) {
        s.gate.quiesce_nowait();
        const std::array range{&s.gate};
        (void)pmgate::wait_quiesced_all(range);
      },
      [](auto& s) {
        if (s.gate.depth() == 0) return;
        s.gate.unquiesce();
        s.gate.quiesce_nowait();
      },
      [](auto& s) {
        if (!s.gate.try_dispatch()) return;
        s.gate.end_dispatch();
      });
}

TEST_CASE("who resurrects a ref from zero sees what was done before the last put") {
  hold_on_all_models<shared_ref>("put x kill, resurrect", {.preemptions = 3}, write_and_put,
                                 [](auto& s) {
                                   (void)s.ref.kill();
                                   if (s.ref.resurrect()) (void)s.data.read();
                                 });
}

TEST_CASE("a snapshot is one of one moment") {
  hold_on_all_models<shared_ref>(
      "kill x snapshot", {.preemptions = 2},
      [](auto& s) {
        (void)s.ref.kill();
        s.ref.put();
      },
      [](auto& s) {
        const auto seen = s.ref.snapshot();
        sim::expect(!(seen.dying && seen.percpu), "dying, and not switched");
      });
}

TEST_CASE("a kill that is refused again and again counts everybody when it is granted") {
  hold_on_all_models<released_once>("put x refused kill x 3", {.preemptions = 2, .refused_graces = 2},
                                    write_and_put, [](auto& s) {
                                      while (!s.ref.kill()) {
                                      }
                                    });
}

}  // TEST_SUITE

}  // namespace
