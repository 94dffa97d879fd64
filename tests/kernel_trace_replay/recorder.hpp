// SPDX-License-Identifier: MIT
//
// recorder.hpp - what happens in a window, in the words of a trace.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_RECORDER_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_RECORDER_HPP

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/percpu_ref.hpp>

#include "departures.hpp"
#include "scheduler.hpp"
#include "trace_platform.hpp"

namespace replay {

/// The events of the present window.
class recorder {
 public:
  void begin_window() {
    events_.clear();
    once_.clear();
  }
  void event(const std::string& text) { events_.push_back("! " + text); }
  void event_once_per_actor(const std::string& text) {
    const task* const actor = scheduler::get().current();
    if (once_.emplace(actor, text).second) event(text);
  }
  void report(const char* text) {
    ++reports_[scheduler::get().current()];
    for (const auto& place : warnings_.places_of(text, percpu)) event("WARN " + place);
  }
  /// An event of which the kernel warns; the library goes on.
  void notice(const char* text) {
    for (const auto& place : warnings_.places_of(text, false)) {
      if (!place.starts_with("(library) ")) event("WARN " + place);
    }
  }
  [[nodiscard]] const std::vector<std::string>& events() const { return events_; }
  /// How often the library has reported misuse by the present task.
  [[nodiscard]] int reports() { return reports_[scheduler::get().current()]; }

  bool percpu = false;  ///< the ref that is operated on is in per-CPU mode

 private:
  std::vector<std::string> events_;
  std::set<std::pair<const task*, std::string>> once_;
  warnings warnings_;
  std::map<const task*, int> reports_;  // by who was running; null: in a callback
};

inline const char* text_of(bool value) { return value ? "true" : "false"; }

/// A percpu_ref as traces print it.
inline std::string state_of(const pmgate::percpu_ref_snapshot& now) {
  constexpr std::uint64_t bias = std::uint64_t{1} << 63;
  // The kernel drops the counters of a ref that cannot come back once it is switched.
  const bool dropped = !now.biased && !now.allow_reinit;
  const std::uint64_t slots = dropped ? 0 : static_cast<std::uint64_t>(now.per_cpu);
  const std::uint64_t raw = static_cast<std::uint64_t>(now.shared) + (now.biased ? bias : 0);
  const std::string count = (raw & bias) != 0
                                ? std::to_string(static_cast<std::int64_t>(raw - bias + slots))
                                : std::to_string(raw);
  return std::string("mode=") + (now.percpu ? "percpu" : "atomic") +
         " dying=" + text_of(now.dying) + " zero=" + text_of(now.zero) +
         " switching=" + text_of(now.switching) +
         " force_atomic=" + (now.force_atomic ? "1" : "0") + " count=" + count;
}

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_RECORDER_HPP
