// SPDX-License-Identifier: MIT
//
// pmgate/pm/event.hpp - the eight events of system sleep, their phases, and which
// callback each of them selects.
//
// The one rule to know: there is no callback for QUIESCE and none for RECOVER. A
// driver cannot tell FREEZE from QUIESCE, nor THAW from RECOVER, by what is called.
//
// Counterpart: pm_message_t, PM_EVENT_* and pm_op() of Linux (values and semantics).
#ifndef PMGATE_PM_EVENT_HPP
#define PMGATE_PM_EVENT_HPP

#include <cstdint>

#include <pmgate/status.hpp>

namespace pmgate::pm {

/// Why devices go down or come up.  Kernel: PM_EVENT_*, with its values.
enum class event : std::uint8_t {
  freeze = 0x01,     ///< down, for a snapshot of this kernel
  suspend = 0x02,    ///< down, to sleep with the memory powered
  hibernate = 0x04,  ///< down, to be powered off
  quiesce = 0x08,    ///< down, to be overwritten by the image of another kernel
  resume = 0x10,     ///< up after suspend
  thaw = 0x20,       ///< up after freeze, the snapshot was taken
  restore = 0x40,    ///< up in the image, after another kernel's quiesce
  recover = 0x80,    ///< up after a freeze or quiesce that came to nothing
};

/// The eight phases of a transition, in order. Each ends for all devices before the
/// next begins.
enum class phase : std::uint8_t {
  prepare,        ///< parents first; nothing may be registered below a prepared device
  suspend,        ///< children first; the class gates close
  suspend_late,   ///< children first; runtime PM is off from here
  suspend_noirq,  ///< children first; device interrupts are off from here
  resume_noirq,   ///< parents first
  resume_early,   ///< parents first
  resume,         ///< parents first
  complete,       ///< children first
};
inline constexpr unsigned phase_count = 8;

/// The sets of callbacks: three for going down, three for coming up.
enum class callback_group : std::uint8_t { suspend, freeze, poweroff, resume, thaw, restore };

/// The set that an event selects its callbacks from.
[[nodiscard]] constexpr callback_group group_of(event what) noexcept {
  switch (what) {
    case event::suspend: return callback_group::suspend;
    case event::freeze:
    case event::quiesce: return callback_group::freeze;
    case event::hibernate: return callback_group::poweroff;
    case event::resume: return callback_group::resume;
    case event::thaw:
    case event::recover: return callback_group::thaw;
    case event::restore: break;
  }
  return callback_group::restore;
}

/// True for the events that take devices down.
[[nodiscard]] constexpr bool goes_down(event what) noexcept {
  return static_cast<std::uint8_t>(what) <= static_cast<std::uint8_t>(event::quiesce);
}

/// True for the phases of the way down.
[[nodiscard]] constexpr bool goes_down(phase at) noexcept {
  return static_cast<std::uint8_t>(at) <= static_cast<std::uint8_t>(phase::suspend_noirq);
}

/// The event that undoes a way down which failed; an upward event is its own.
///
/// Kernel: resume_event().
[[nodiscard]] constexpr event undo_of(event what) noexcept {
  switch (what) {
    case event::suspend: return event::resume;
    case event::freeze:
    case event::quiesce: return event::recover;
    case event::hibernate: return event::restore;
    default: return what;
  }
}

/// Returns: the log verb of the kernel: "suspend", "quiesce", ...
[[nodiscard]] constexpr const char* to_string(event what) noexcept {
  switch (what) {
    case event::freeze: return "freeze";
    case event::suspend: return "suspend";
    case event::hibernate: return "hibernate";
    case event::quiesce: return "quiesce";
    case event::resume: return "resume";
    case event::thaw: return "thaw";
    case event::restore: return "restore";
    case event::recover: return "recover";
  }
  return "unknown";
}

/// The name of the callback that an event selects in a phase: "freeze_noirq".
///
/// A phase that does not belong to the direction of the event selects none: "none".
[[nodiscard]] constexpr const char* callback_name(event what, phase at) noexcept {
  constexpr const char* down[3][3] = {
      {"suspend", "suspend_late", "suspend_noirq"},
      {"freeze", "freeze_late", "freeze_noirq"},
      {"poweroff", "poweroff_late", "poweroff_noirq"},
  };
  constexpr const char* up[3][3] = {
      {"resume_noirq", "resume_early", "resume"},
      {"thaw_noirq", "thaw_early", "thaw"},
      {"restore_noirq", "restore_early", "restore"},
  };
  const auto group = static_cast<unsigned>(group_of(what));
  const auto step = static_cast<unsigned>(at);
  if (at == phase::prepare) return "prepare";
  if (at == phase::complete) return "complete";
  if (goes_down(what)) return step <= 3 ? down[group][step - 1] : "none";
  return step >= 4 ? up[group - 3][step - 4] : "none";
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_EVENT_HPP
