// SPDX-License-Identifier: MIT
//
// suspend_tree.cpp - a stack of three drivers goes to sleep; one refuses, all come back.
//
// Shows:  a scope for each driver and one line for each gate: the disk closes its queue
//         in the main phase, the host stops and tears its ring down in noirq, then the bus.
// Prints: asleep: ring down, write refused
//         suspend: 0, then -EBUSY because of host; ring up, write accepted
#include <cstdio>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/pm/scope.hpp>
#include <pmgate/pm/suspend.hpp>

namespace {

namespace pm = pmgate::pm;
using pm::phase, pmgate::status;

struct host_driver {
  host_driver(pm::device_tree& tree, pm::scope& bus) : power(tree, "host", &bus) {}
  status suspend() noexcept {  // the teardown
    if (!stubborn) ring_up = false;
    return stubborn ? status::busy : status::ok;
  }
  void resume() noexcept { ring_up = true; }

  bool ring_up = true, stubborn = false;
  pmgate::quiesce_gate dispatch;
  pm::scope power;
  pm::scope::gate stop{power, phase::suspend_noirq, dispatch};  // first nothing is dispatched,
  pm::scope::gate ring{power, phase::suspend_noirq, *this};     // then the ring goes
};

struct disk_driver {
  disk_driver(pm::device_tree& tree, pm::scope& host) : power(tree, "disk", &host) {}
  bool write() { return static_cast<bool>(queue.hold(pmgate::enter_flags::nowait)); }

  pmgate::freeze_gate queue;
  pm::scope power;
  pm::scope::gate entry{power, phase::suspend, queue};  // the class gate: before all of the host
};

struct machine {
  pm::kernel kernel;
  pmgate::quiesce_gate lanes;
  pm::scope bus{kernel.devices, "bus"};
  pm::scope::gate still{bus, phase::suspend_noirq, lanes};  // after all of the host
  host_driver host{kernel.devices, bus};
  disk_driver disk{kernel.devices, host.power};
  bool silent = false;

  static status on_step(void* context, pm::step what, bool) noexcept {
    auto& m = *static_cast<machine*>(context);
    if (what != pm::step::enter) return status::ok;
    m.silent = m.lanes.depth() == 1 && !m.host.ring_up && !m.disk.write();
    std::printf("asleep: ring %s, write %s\n", m.host.ring_up ? "up" : "down",
                m.silent ? "refused" : "accepted");
    return status::ok;
  }
};

}  // namespace

int main() {
  machine m;
  m.kernel.set_steps(&machine::on_step, &m);
  const status slept = pm::suspend(m.kernel);  // everybody agrees

  // The host refuses, in noirq: its own gate and the disk's, closed long before, open again.
  m.host.stubborn = true;
  const status refused = pm::suspend(m.kernel);
  const bool back = m.host.ring_up && m.host.dispatch.depth() == 0 && m.disk.write();
  std::printf("suspend: %s, then %s because of %s; ring %s, write %s\n", to_string(slept),
              to_string(refused), m.kernel.devices.last_failure().name,
              m.host.ring_up ? "up" : "down", back ? "accepted" : "refused");
  return slept == status::ok && m.silent && refused == status::busy && back ? 0 : 1;
}
