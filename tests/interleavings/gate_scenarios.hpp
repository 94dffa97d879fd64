// SPDX-License-Identifier: MIT
//
// gate_scenarios.hpp - gates with something to protect, and the threads that use them.
//
// Guarded data stands for what a gate protects: those inside read it, those who
// have drained the gate write it. An overlap, or an order that nothing guarantees,
// is a data race and fails the schedule.
#ifndef PMGATE_TESTS_GATE_SCENARIOS_HPP
#define PMGATE_TESTS_GATE_SCENARIOS_HPP

#include <optional>
#include <utility>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/platform/sim.hpp>
#include <pmgate/status.hpp>

namespace interleavings {

namespace sim = pmgate::sim;
using pmgate::enter_flags;
using pmgate::status;

/// A gate and what it protects.
template <class P>
struct gated {
  explicit gated(pmgate::gate_start start = pmgate::gate_start::percpu) : gate(start) {}

  pmgate::basic_freeze_gate<P> gate;
  sim::guarded<int> data;    // read inside, written by who drained the gate
  sim::guarded<int> second;  // the same for a second freezer
  sim::guarded<int> inside;  // written inside, by one thread

  void use() {
    (void)data.read();
    (void)second.read();
    inside.write(1);
  }
  void change() {
    (void)inside.read();
    data.write(1);
  }
  void check() {
    sim::expect(gate.depth() == 0, "the depth is not 0 at the end");
    sim::expect(gate.try_enter(), "the gate is not open at the end");
    (void)gate.freeze_start();
    sim::expect(!gate.freeze_wait_until(0), "the next freeze does not wait");
    gate.exit();
    sim::expect(gate.freeze_wait_until(0), "the next freeze is not told");
    gate.unfreeze();
  }
};

/// The same with somebody inside from the start.
template <class P>
struct entered : gated<P> {
  entered() { (void)this->gate.try_enter(); }
};

/// A gate that nobody has moved to CPU-local counting yet.
template <class P>
struct unregistered : gated<P> {
  unregistered() : gated<P>(pmgate::gate_start::atomic) {}
};

/// A gate that is frozen from the start.
template <class P>
struct frozen : gated<P> {
  frozen() { (void)this->gate.freeze(); }
};

/// A gate that somebody destroys; one or two are inside from the start.
template <class P, int Inside>
struct doomed_with {
  std::optional<pmgate::basic_freeze_gate<P>> gate{std::in_place};
  sim::guarded<int> data;
  doomed_with() {
    for (int i = 0; i < Inside; ++i) (void)gate->try_enter();
  }
};
template <class P>
using doomed = doomed_with<P, 1>;
template <class P>
using doubly_doomed = doomed_with<P, 2>;

inline constexpr auto enter_and_leave = [](auto& s) {
  if (s.gate.enter() != status::ok) return sim::expect(false, "enter() was refused");
  s.use();
  s.gate.exit();
};
inline constexpr auto look_in = [](auto& s) {  // beside others who are inside
  if (s.gate.enter() != status::ok) return sim::expect(false, "enter() was refused");
  (void)s.data.read();
  s.gate.exit();
};
inline constexpr auto freeze_and_thaw = [](auto& s) {
  if (s.gate.freeze() != status::ok) return sim::expect(false, "freeze() was refused");
  s.change();
  s.gate.unfreeze();
};

}  // namespace interleavings

#endif  // PMGATE_TESTS_GATE_SCENARIOS_HPP
