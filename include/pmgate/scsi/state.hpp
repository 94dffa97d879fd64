// SPDX-License-Identifier: MIT
//
// pmgate/scsi/state.hpp - the states of SCSI devices and hosts, and which change is legal.
//
// Tables and predicates only. The one rule to know: the table of the devices is
// not what unblocking goes by. It assigns the state, and a device that was OFFLINE
// when it was quiesced is RUNNING when it is resumed.
//
// Counterpart: enum scsi_device_state, enum scsi_host_state, scsi_device_set_state()
// and scsi_host_set_state() of Linux (semantics only).
#ifndef PMGATE_SCSI_STATE_HPP
#define PMGATE_SCSI_STATE_HPP

#include <cstddef>
#include <cstdint>

namespace pmgate::scsi {

/// Which kernel's rules hold: of what passes and of what may change.
///
/// Limits: in all else 5.7 is as 6.12 here. There the door was locked with a command that
/// could block at the entry, a host block waited for one device after another, and a
/// quiesce of the queue was a flag and not a count.
enum class scsi_generation : std::uint8_t {
  v5_7_rc3,  ///< "special" commands pass, and a quiesced device cannot be blocked
  v5_7,      ///< since 5.7-rc4: it can
  v6_12,     ///< since 5.11: only commands of power management pass
};

/// State of a device; the values are the kernel's.
enum class device_state : std::uint8_t {
  created = 1,        ///< being scanned
  running,            ///< normal
  cancel,             ///< removal has begun
  del,                ///< removed; everything fails
  quiesce,            ///< privileged commands only
  offline,            ///< failed; everything fails
  transport_offline,  ///< the same, said by the transport
  block,              ///< everything is held
  created_block,      ///< the same while being scanned
};

/// State of a host; the values are the kernel's.
enum class host_state : std::uint8_t {
  created = 1,
  running,
  cancel,
  del,
  recovery,
  cancel_recovery,
  del_recovery,
};

inline constexpr unsigned device_state_count = 9;
inline constexpr unsigned host_state_count = 7;

namespace detail {

template <class State>
constexpr std::uint16_t bit(State state) noexcept {
  return static_cast<std::uint16_t>(1U << (static_cast<unsigned>(state) - 1));
}
template <class... States>
constexpr std::uint16_t bits(States... states) noexcept {
  return static_cast<std::uint16_t>((0U | ... | unsigned{bit(states)}));
}

/// The states one may change to, by the state one is in; itself not included.
constexpr std::uint16_t device_changes(device_state from, scsi_generation generation) noexcept {
  using enum device_state;
  switch (from) {
    case created: return bits(running, cancel, del, offline, transport_offline, created_block);
    case running: return bits(cancel, del, quiesce, offline, transport_offline, block);
    case cancel: return bits(del);
    case del: return 0;
    case quiesce:
      return generation == scsi_generation::v5_7_rc3
                 ? bits(running, cancel, offline, transport_offline)
                 : bits(running, cancel, offline, transport_offline, block);
    case offline: return bits(running, cancel, del, quiesce, block);
    case transport_offline: return bits(running, cancel, del, quiesce);
    case block: return bits(running, del, offline, transport_offline);
    case created_block: return bits(created, del, block);
  }
  return 0;
}

constexpr std::uint16_t host_changes(host_state from) noexcept {
  using enum host_state;
  switch (from) {
    case created: return bits(running, cancel);
    case running: return bits(cancel, recovery);
    case cancel: return bits(del, cancel_recovery);
    case del: return 0;
    case recovery: return bits(running, cancel_recovery);
    case cancel_recovery: return bits(cancel, del_recovery);
    case del_recovery: return bits(del);
  }
  return 0;
}

}  // namespace detail

/// True if a device in `from` may be set to `to`; to the same state it always may.
///
/// Kernel: scsi_device_set_state().
[[nodiscard]] constexpr bool can_transition(
    device_state from, device_state to,
    scsi_generation generation = scsi_generation::v6_12) noexcept {
  return from == to || (detail::device_changes(from, generation) & detail::bit(to)) != 0;
}

/// True if a host in `from` may be set to `to`; to the same state it always may.
///
/// Kernel: scsi_host_set_state().
[[nodiscard]] constexpr bool can_transition(host_state from, host_state to) noexcept {
  return from == to || (detail::host_changes(from) & detail::bit(to)) != 0;
}

namespace detail {

template <class... Generation>
constexpr unsigned count_changes(unsigned states, auto as_state,
                                 Generation... generation) noexcept {
  unsigned legal = 0;
  for (unsigned from = 1; from <= states; ++from) {
    for (unsigned to = 1; to <= states; ++to) {
      if (from != to && can_transition(as_state(from), as_state(to), generation...)) ++legal;
    }
  }
  return legal;
}
constexpr device_state as_device_state(unsigned n) noexcept { return static_cast<device_state>(n); }
constexpr host_state as_host_state(unsigned n) noexcept { return static_cast<host_state>(n); }

static_assert(count_changes(device_state_count, &as_device_state) == 34,
              "34 changes of a device are legal");
static_assert(count_changes(device_state_count, &as_device_state, scsi_generation::v5_7_rc3) == 33,
              "before 5.7-rc4 a quiesced device could not be blocked");
static_assert(count_changes(host_state_count, &as_host_state) == 11,
              "11 changes of a host are legal");

constexpr bool same_text(const char* a, const char* b) noexcept {
  while (*a != '\0' && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

}  // namespace detail

/// The name in sysfs; "unknown" for a value that has none.
[[nodiscard]] constexpr const char* to_string(device_state state) noexcept {
  switch (state) {
    case device_state::created: return "created";
    case device_state::running: return "running";
    case device_state::cancel: return "cancel";
    case device_state::del: return "deleted";
    case device_state::quiesce: return "quiesce";
    case device_state::offline: return "offline";
    case device_state::transport_offline: return "transport-offline";
    case device_state::block: return "blocked";
    case device_state::created_block: return "created-blocked";
  }
  return "unknown";
}
/// The name in sysfs; "unknown" for a value that has none.
[[nodiscard]] constexpr const char* to_string(host_state state) noexcept {
  switch (state) {
    case host_state::created: return "created";
    case host_state::running: return "running";
    case host_state::cancel: return "cancel";
    case host_state::del: return "deleted";
    case host_state::recovery: return "recovery";
    case host_state::cancel_recovery: return "cancel/recovery";
    case host_state::del_recovery: return "deleted/recovery";
  }
  return "unknown";
}

/// The name in the kernel's enumeration, without its prefix; "UNKNOWN" if it has none.
[[nodiscard]] constexpr const char* kernel_name(device_state state) noexcept {
  switch (state) {
    case device_state::created: return "CREATED";
    case device_state::running: return "RUNNING";
    case device_state::cancel: return "CANCEL";
    case device_state::del: return "DEL";
    case device_state::quiesce: return "QUIESCE";
    case device_state::offline: return "OFFLINE";
    case device_state::transport_offline: return "TRANSPORT_OFFLINE";
    case device_state::block: return "BLOCK";
    case device_state::created_block: return "CREATED_BLOCK";
  }
  return "UNKNOWN";
}
/// The name in the kernel's enumeration, without its prefix; "UNKNOWN" if it has none.
[[nodiscard]] constexpr const char* kernel_name(host_state state) noexcept {
  switch (state) {
    case host_state::created: return "CREATED";
    case host_state::running: return "RUNNING";
    case host_state::cancel: return "CANCEL";
    case host_state::del: return "DEL";
    case host_state::recovery: return "RECOVERY";
    case host_state::cancel_recovery: return "CANCEL_RECOVERY";
    case host_state::del_recovery: return "DEL_RECOVERY";
  }
  return "UNKNOWN";
}

/// Finds the state of that name, be it the kernel's or that of sysfs.
///
/// Returns: false if there is none; `state` is unchanged then.
[[nodiscard]] constexpr bool parse(const char* name, device_state& state) noexcept {
  for (unsigned n = 1; n <= device_state_count; ++n) {
    const device_state candidate = detail::as_device_state(n);
    if (!detail::same_text(name, to_string(candidate)) &&
        !detail::same_text(name, kernel_name(candidate))) {
      continue;
    }
    state = candidate;
    return true;
  }
  return false;
}
/// Finds the state of that name, be it the kernel's or that of sysfs.
///
/// Returns: false if there is none; `state` is unchanged then.
[[nodiscard]] constexpr bool parse(const char* name, host_state& state) noexcept {
  for (unsigned n = 1; n <= host_state_count; ++n) {
    const host_state candidate = detail::as_host_state(n);
    if (!detail::same_text(name, to_string(candidate)) &&
        !detail::same_text(name, kernel_name(candidate))) {
      continue;
    }
    state = candidate;
    return true;
  }
  return false;
}

/// True unless failed or removed; blocked, quiesced and being removed are online.
///
/// Kernel: scsi_device_online().
[[nodiscard]] constexpr bool is_online(device_state state) noexcept {
  using enum device_state;
  return (detail::bits(offline, transport_offline, del) & detail::bit(state)) == 0;
}
/// Kernel: scsi_device_blocked().
[[nodiscard]] constexpr bool is_blocked(device_state state) noexcept {
  return state == device_state::block || state == device_state::created_block;
}
/// Kernel: scsi_device_created().
[[nodiscard]] constexpr bool is_created(device_state state) noexcept {
  return state == device_state::created || state == device_state::created_block;
}
/// True unless it is being removed; walks over devices pass over the others.
///
/// Kernel: scsi_device_get().
[[nodiscard]] constexpr bool is_gettable(device_state state) noexcept {
  return state != device_state::cancel && state != device_state::del;
}
/// Kernel: scsi_host_in_recovery(), without tmf_in_progress.
[[nodiscard]] constexpr bool is_in_recovery(host_state state) noexcept {
  using enum host_state;
  return (detail::bits(recovery, cancel_recovery, del_recovery) & detail::bit(state)) != 0;
}
/// Kernel: scsi_host_scan_allowed().
[[nodiscard]] constexpr bool is_scan_allowed(host_state state) noexcept {
  return state == host_state::running || state == host_state::recovery;
}

// -- words of drivers and results

/// What queuecommand answers if it does not take a command; anything else that is not
/// zero means host_busy.
inline constexpr int host_busy = 0x1055;
inline constexpr int device_busy = 0x1056;
inline constexpr int eh_retry = 0x1057;  ///< from queuecommand: as host_busy
inline constexpr int target_busy = 0x1058;

/// Host bytes of a result word.
inline constexpr int did_no_connect = 0x10000;
inline constexpr int did_abort = 0x50000;
inline constexpr int did_error = 0x70000;
inline constexpr int did_reset = 0x80000;
inline constexpr int host_byte_mask = 0xff0000;
/// Status bytes of a result word.
inline constexpr int status_busy = 0x08;
inline constexpr int status_reservation_conflict = 0x18;
inline constexpr int status_task_set_full = 0x28;

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_STATE_HPP
