// SPDX-License-Identifier: MIT
//
// checked_interleavings.cpp - the checked platform over the simulated one: clean threads
// make no report in any order; an order that can deadlock is reported in those schedules
// in which it does not, and before the hang in those in which it does.
//
// A report without a sink is misuse, which fails a schedule.
#include <string>

#include <doctest/doctest.h>

#include <pmgate/block/checked_gates.hpp>
#include <pmgate/platform/sim.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace {

using namespace interleavings;
using pmgate::checked_platform;
using pmgate::scoped_lock;

int reports;
int deadlocks;
void count(const pmgate::check_report& report) noexcept {
  ++reports;
  if (report.kind == pmgate::check_kind::deadlock) ++deadlocks;
}

/// Nothing known, and no limits: every deadline passes in some schedule.
template <class P>
struct fresh {
  explicit fresh(pmgate::check_sink sink) {
    reports = deadlocks = 0;
    checked_platform<P>::reset();
    checked_platform<P>::set_options({.limit_ms = 0, .sink = sink});
  }
};

template <class P>
struct checked_gated : fresh<P>, gated<checked_platform<P>> {
  checked_gated() : fresh<P>(nullptr) {}
};
template <class P>
struct checked_entered : checked_gated<P> {
  checked_entered() { (void)this->gate.try_enter(); }
};

/// A gate and a lock that is used on both sides of it.
template <class P>
struct locked : fresh<P> {
  locked() : fresh<P>(&count) {}
  pmgate::basic_freeze_gate<checked_platform<P>> gate{pmgate::gate_start::percpu, "gate"};
  typename checked_platform<P>::mutex lock{"lock"};
  sim::guarded<int> data;
};
template <class P>
struct locked_once : locked<P> {
  void check() { sim::expect(reports == 1, "the order was not reported once"); }
};
template <class P>
struct refused_once : locked<P> {
  void check() { sim::expect(deadlocks == 1, "the wait for oneself was not refused once"); }
};

constexpr auto enter_under_the_lock = [](auto& s) {
  const scoped_lock guard(s.lock);
  if (s.gate.enter() != status::ok) return;
  s.gate.exit();
};
constexpr auto lock_under_the_freeze = [](auto& s) {
  (void)s.gate.freeze();
  { const scoped_lock guard(s.lock); }
  s.gate.unfreeze();
};
constexpr auto lock_inside = [](auto& s) {
  const auto inside = s.gate.hold();
  const scoped_lock guard(s.lock);
};
constexpr auto freeze_under_the_lock = [](auto& s) {
  const scoped_lock guard(s.lock);
  (void)s.gate.freeze();
  s.gate.unfreeze();
};

/// Without preemption nothing hangs; with it the simulator finds the deadlock, and by
/// then it has been reported.
template <class First, class Second>
void reported_with_and_without_a_hang(const char* name, const First& first,
                                      const Second& second) {
  sim::options how;
  how.preemptions = 0;
  const sim::result calm =
      explore_one<locked_once<pmgate::sim_platform>>(std::string(name) + " | in turn", how, first,
                                                     second);
  calm.print();
  CHECK(calm.failure.empty());
  CHECK(calm.complete);
  CHECK(reports == 1);

  how.preemptions = 2;
  const sim::result hung = explore_one<locked<pmgate::sim_platform>>(
      std::string(name) + " | hangs, as it has to", how, first, second);
  CHECK_MESSAGE(hung.failure.find("deadlock") != std::string::npos, hung.failure);
  CHECK(reports == 1);
}

TEST_SUITE("interleavings of the checked platform") {

TEST_CASE("a lock around an entry and inside a freeze") {
  reported_with_and_without_a_hang("lock, enter x freeze, lock", enter_under_the_lock,
                                   lock_under_the_freeze);
}

TEST_CASE("a lock inside an entry and around a freeze") {
  reported_with_and_without_a_hang("enter, lock x lock, freeze", lock_inside,
                                   freeze_under_the_lock);
}

TEST_CASE("clean threads make no report in any order") {
  hold_on_all_models<checked_gated>("checked: enter x freeze", {.preemptions = 2},
                                    enter_and_leave, freeze_and_thaw);
}

TEST_CASE("two freezers and an enterer make no report in any order") {
  hold_on_all_models<checked_gated>("checked: freeze x freeze x enter", {.preemptions = 1},
                                    freeze_and_thaw,
                                    [](auto& s) {
                                      (void)s.gate.freeze();
                                      (void)s.inside.read();
                                      s.gate.unfreeze();
                                    },
                                    enter_and_leave);
}

TEST_CASE("an entry that another thread leaves makes no report in any order") {
  hold_on_all_models<checked_entered>("checked: exit x freeze x enter", {.preemptions = 1},
                                      [](auto& s) {
                                        (void)s.data.read();
                                        s.gate.exit();
                                      },
                                      freeze_and_thaw, enter_and_leave);
}

TEST_CASE("waiting for oneself is refused in every order, and harms nobody") {
  hold_on_all_models<refused_once>(
      "checked: freeze, enter x enter", {.preemptions = 2},
      [](auto& s) {
        (void)s.gate.freeze();
        sim::expect(s.gate.enter() == status::deadlock, "not refused");
        s.gate.unfreeze();
      },
      [](auto& s) {
        if (s.gate.enter() != status::ok) return sim::expect(false, "refused");
        s.gate.exit();
      });
}

}  // TEST_SUITE

}  // namespace
