// SPDX-License-Identifier: MIT
//
// quick_start.cpp - carry a storage queue through system sleep.
//
// Shows:  how to stop ordinary I/O, drain it, and still let the device's own
//         power commands through until it is awake again.
// Prints: running:    write accepted
//         suspending: one write in flight drained, writes refused, power command accepted
//         resumed:    write accepted
#include <cstdio>
#include <thread>

#include <pmgate/block/freeze_gate.hpp>

namespace {

using pmgate::enter_flags;
using pmgate::freeze_gate;

/// A submitter that would rather be refused than wait.
bool accepted(freeze_gate& queue, enter_flags intent = {}) {
  const auto ticket = queue.hold(enter_flags::nowait | intent);  // inside until it goes
  return static_cast<bool>(ticket);
}

const char* verdict(bool accepted) { return accepted ? "accepted" : "refused"; }

}  // namespace

int main() {
  freeze_gate queue;

  // Awake: entering is one add to a counter of this CPU.
  const bool before = accepted(queue);
  std::printf("running:    write %s\n", verdict(before));

  // A write is in flight; another thread, the "interrupt", will complete it.
  freeze_gate::ticket in_flight = queue.hold();
  bool written = false;
  std::thread completion([&] {
    written = true;
    in_flight.leave();  // whoever entered, any thread may leave
  });

  // Going down: only power commands from now on, and nothing older left inside.
  queue.set_pm_only();
  queue.freeze();  // everything before leave() is visible here: `written` needs no lock
  const bool drained = written;
  queue.unfreeze();
  const bool write = accepted(queue);
  const bool power = accepted(queue, enter_flags::pm);
  std::printf("suspending: one write in flight %s, writes %s, power command %s\n",
              drained ? "drained" : "missed", verdict(write), verdict(power));

  // Coming back: open to everybody.
  queue.clear_pm_only();
  const bool after = accepted(queue);
  std::printf("resumed:    write %s\n", verdict(after));

  completion.join();
  return before && drained && !write && power && after ? 0 : 1;
}
