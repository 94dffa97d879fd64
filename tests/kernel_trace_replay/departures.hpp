// SPDX-License-Identifier: MIT
//
// departures.hpp - where the library departs from the kernel on purpose, and how
// the replayer goes on from there.
//
// A departure is never a reason to skip a file: the library does what it says,
// the replayer checks that it reported, and then does by the public interface
// what the kernel has done, so that the rest of the trace can be compared.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_DEPARTURES_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_DEPARTURES_HPP

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace replay {

struct departure {
  std::string_view name;
  std::string_view reason;
};

inline constexpr std::array<departure, 5> departures = {{
    {"misuse",
     "The kernel warns of misuse, once per place, and goes on broken; the library reports it "
     "each time, and nothing changes. Repeated reports are not compared, and the replayer does "
     "by the public interface what the kernel's mistake has done:"},
    {"status-wakes",
     "The kernel wakes nobody when rpm_status changes, so that a PM request sleeps on although it "
     "may pass; the library wakes everybody who waits. The replayer withholds these wake-ups."},
    {"one-grace-period",
     "The dispatch of a BLOCKING tag set has a grace period of its own, which plain readers do not "
     "hold up, and which all queues of the set share; the library counts the sections of each "
     "queue, and a platform has one grace period. Where such a queue is quiesced the replayer has "
     "readers hold up nothing, and waits for the driver's calls of the whole set."},
    {"born-quiesced",
     "The kernel lets a queue that joins a quiesced tag set dispatch, and warns when the set is "
     "unquiesced; the library's queue is born quiesced as often as the set is. The replayer "
     "unquiesces it."},
    {"device-order",
     "Which of several devices of a host has its queue run first is specified nowhere, and with "
     "timed runs depends on the clock: events of different devices have no order."},
}};

/// The cases of departure misuse: what the kernel has done, and how it is made up for.
inline constexpr std::array<departure, 8> misuses = {{
    {"second-kill",
     "a kill() too many confirms, and drops a reference of somebody else: the replayer confirms "
     "and puts one"},
    {"resurrect-live", "resurrect() of a live ref leaks a reference into it: taken"},
    {"put-nothing", "0 references put on a released ref release it again: noted"},
    {"no-reinit-no-return",
     "a ref without allow_reinit is marked dead behind the back of who switches it, or comes back "
     "half dead: from there to its exit it is not compared"},
    {"unfreeze-balanced",
     "an unfreeze too many makes the depth -1, and the next freeze closes nothing: the debt eats "
     "the next freezes"},
    {"pm-only-balanced",
     "a clear_pm_only() too many makes it -1, which closes the gate: raised while there is a debt"},
    {"suspend-once",
     "a suspend check of a device that is not active takes all its steps, and raises pm_only once "
     "more: raised, and taken from the state active"},
    {"steps-in-turn",
     "a step of runtime PM out of its turn changes the status, and may take back a pm_only that "
     "nobody raised: the status is kept beside"},
}};

/// Departure device-order: the events in their order, but device by device.
inline std::vector<std::string> by_device(std::vector<std::string> events) {
  const auto device_of = [](const std::string& event) -> std::string_view {
    for (const std::string_view what : {"! queuecommand d", "! pm_request_resume d"}) {
      if (!event.starts_with(what)) continue;
      const std::string_view rest = std::string_view(event).substr(what.size());
      return rest.substr(0, rest.find(' '));
    }
    return {};
  };
  std::stable_sort(events.begin(), events.end(),
                   [&](const auto& a, const auto& b) { return device_of(a) < device_of(b); });
  return events;
}

/// Turns what the library reports into the kernel's warnings.
class warnings {
 public:
  /// Returns: the places where the kernel warns of this, that have not warned yet in
  /// this trace. `percpu`: of a ref in per-CPU mode.
  std::vector<std::string> places_of(std::string_view text, bool percpu) {
    struct entry {
      std::string_view begins;
      std::string_view place;
      bool percpu_only = false;
    };
    static constexpr std::array<entry, 12> table = {{
        {"percpu_ref: more references were put", "lib/percpu-refcount.c:197"},
        {"kill() of a percpu_ref that is dying", "lib/percpu-refcount.c:390"},
        {"reinit() of a percpu_ref that is not at zero", "lib/percpu-refcount.c:443"},
        {"resurrect() of a percpu_ref that is live", "lib/percpu-refcount.c:470"},
        {"resurrect() of a percpu_ref that is live", "lib/percpu-refcount.c:471", true},
        {"unfreeze() of a gate that is not frozen", "block/blk-mq.c:247"},
        {"unquiesce() of a gate that is not quiesced", "block/blk-mq.c:349"},
        {"pre_runtime_suspend() of a device that is not active", "block/blk-pm.c:69"},
        {"clear_pm_only() without set_pm_only()", "block/blk-core.c:242"},
        {"scsi: ordinary command in a quiesced device", "drivers/scsi/scsi_lib.c:1361"},
        {"quiesce() of a device that another thread", "drivers/scsi/scsi_lib.c:2776"},
        {"scsi: a device cannot be blocked", "drivers/scsi/scsi_lib.c:2945"},
    }};
    std::vector<std::string> places;
    bool known = false;
    for (const auto& [begins, place, percpu_only] : table) {
      if (!text.starts_with(begins)) continue;
      known = true;
      if (percpu_only && !percpu) continue;
      if (warned_.insert(std::string(place)).second) places.emplace_back(place);
    }
    if (!known) places.push_back("(library) " + std::string(text));
    return places;
  }

 private:
  std::set<std::string> warned_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_DEPARTURES_HPP
