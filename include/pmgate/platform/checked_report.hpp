// SPDX-License-Identifier: MIT
//
// pmgate/platform/checked_report.hpp - what checked.hpp finds, how it is told, and what
// may be set.
//
// Counterpart: a lockdep splat, the hung-task message.
#ifndef PMGATE_PLATFORM_CHECKED_REPORT_HPP
#define PMGATE_PLATFORM_CHECKED_REPORT_HPP

#include <cstdint>

namespace pmgate {

/// A place in a program; as a defaulted argument, the place of the call.
struct call_site {
  const char* file = nullptr;
  unsigned line = 0;
  const char* function = nullptr;

  [[nodiscard]] static constexpr call_site current(
      const char* file = __builtin_FILE(), unsigned line = __builtin_LINE(),
      const char* function = __builtin_FUNCTION()) noexcept {
    return {file, line, function};
  }
};

/// What kind of mistake a report is about.
enum class check_kind : std::uint8_t {
  misuse,      ///< a broken precondition; the call had no effect
  deadlock,    ///< this wait would never end; it was refused
  lock_order,  ///< a cycle: orders that can deadlock, whether they did or not
  long_wait,   ///< a wait over the limit; it goes on
};

/// One report; the text lives as long as the call of the sink.
struct check_report {
  check_kind kind;
  const char* text;  ///< what happened, where, by which thread; several lines for a cycle
};

/// Receives reports: outside every lock, on the thread that made the mistake.
using check_sink = void (*)(const check_report& report) noexcept;

/// What checked_platform may be told.
struct checked_options {
  /// A freeze, or an entry, that waits longer is reported, each time; 0: never.
  std::int64_t limit_ms = 10000;
  /// Whether freezing two gates now in one order, now in the other, is reported although
  /// no user is known to be inside one of them and wait for the other. With one known,
  /// the wrong order is reported in any case.
  bool freeze_order = true;
  /// Where reports go; null: their texts go to the misuse() of the platform below.
  check_sink sink = nullptr;
};

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_CHECKED_REPORT_HPP
