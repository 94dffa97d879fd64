// SPDX-License-Identifier: MIT
//
// explore_interleavings.cpp - find the schedule that breaks a driver.
//
// Shows:  how to run a driver under every interleaving of its threads: a driver that
//         checks a flag before it touches the device breaks, one with a gate holds.
// Prints: flag: a request reached a device without power
//         flag: found in schedule N, PMGATE_SCHEDULE=flag:... tells it step by step
//         gate: N schedules, none failed, that is all of them with at most 3 preemptions
#include <atomic>
#include <cstdio>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/platform/sim.hpp>

namespace {

namespace sim = pmgate::sim;

/// A device that must not be asked for anything once it has no power.
struct device {
  sim::atomic<bool> powered{true};

  void request() {
    sim::expect(powered.load(std::memory_order_relaxed),
                "a request reached a device without power");
  }
  void power_off() { powered.store(false, std::memory_order_relaxed); }
};

/// "Suspended" does not mean "silent": a request may be past the check already.
struct flag_driver {
  sim::atomic<bool> suspended{false};
  device disk;

  void submit() {
    if (!suspended.load(std::memory_order_acquire)) disk.request();
  }
  void suspend() {
    suspended.store(true, std::memory_order_release);
    disk.power_off();
  }
};

/// Whoever is inside the gate is waited for.
struct gated_driver {
  pmgate::basic_freeze_gate<pmgate::sim_platform> gate;
  device disk;

  void submit() {
    if (const auto inside = gate.hold(pmgate::enter_flags::nowait)) disk.request();
  }
  void suspend() {
    if (gate.freeze() == pmgate::status::ok) disk.power_off();
  }
};

constexpr auto submitter = [](auto& driver) { driver.submit(); };
constexpr auto suspender = [](auto& driver) { driver.suspend(); };

}  // namespace

int main() {
  // Each schedule starts with a fresh driver; stores may be delayed, as on x86.
  sim::options how{.name = "flag", .memory = sim::memory_model::store_buffers, .preemptions = 3};
  const sim::result broken = sim::explore<flag_driver>(how, submitter, suspender);
  std::printf("flag: %s\n", broken.failure.c_str());
  std::printf("flag: found in schedule %llu, PMGATE_SCHEDULE=%s tells it step by step\n",
              static_cast<unsigned long long>(broken.schedules), broken.schedule.c_str());

  how.name = "gate";
  const sim::result held = sim::explore<gated_driver>(how, submitter, suspender);
  std::printf("gate: %llu schedules, %s, that is %s with at most %d preemptions\n",
              static_cast<unsigned long long>(held.schedules),
              held ? "none failed" : held.failure.c_str(),
              held.complete ? "all of them" : "not all", how.preemptions);
  return !broken && held && held.complete ? 0 : 1;
}
