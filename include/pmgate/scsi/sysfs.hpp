// SPDX-License-Identifier: MIT
//
// pmgate/scsi/sysfs.hpp - the attribute `state` of devices and hosts.
//
// The one rule to know: what an administrator writes can neither undo a quiesce nor a
// block. A device is set running or offline, and only from there.
//
// Counterpart: the `state` attributes in drivers/scsi/scsi_sysfs.c (semantics only).
#ifndef PMGATE_SCSI_SYSFS_HPP
#define PMGATE_SCSI_SYSFS_HPP

#include <pmgate/platform.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/status.hpp>

namespace pmgate::scsi {

namespace detail {

/// Compares as sysfs does: a newline at the end of what was written does not count.
constexpr bool same_word(const char* written, const char* name) noexcept {
  while (*name != '\0' && *written == *name) {
    ++written;
    ++name;
  }
  return *name == '\0' && (*written == '\0' || (written[0] == '\n' && written[1] == '\0'));
}

}  // namespace detail

/// What is read from the attribute: to_string() of the state.
template <platform Platform>
[[nodiscard]] const char* show_state(const basic_device<Platform>& which) noexcept {
  return to_string(which.state());
}
template <platform Platform>
[[nodiscard]] const char* show_state(const basic_host<Platform>& adapter) noexcept {
  return to_string(adapter.state());
}

/// Writes "running" or "offline" to a device that is RUNNING or OFFLINE.
///
/// OFFLINE to RUNNING runs the queue asynchronously and rescans the device; the state
/// a device has may be written again, to no effect.
/// Returns: ok; invalid for another word or another state: nothing changed.
/// Blocks: if the driver's rescan does.  Kernel: store_state_field().
template <platform Platform>
status store_state(basic_device<Platform>& which, const char* text) noexcept {
  using enum device_state;
  const bool run = detail::same_word(text, to_string(running));
  if (!run && !detail::same_word(text, to_string(offline))) return status::invalid;
  bool changed = false;
  const status result =
      which.set_state_from(run ? offline : running, run ? running : offline, changed);
  if (!run || !changed) return result;
  which.queue().run(true);
  (void)which.host().rescan(which);
  return result;
}

/// Writes the state of a host by its name, if the table allows it.
///
/// Returns: ok; invalid for another word, or a change that is not legal.
/// Blocks: no.  Kernel: store_shost_state().
template <platform Platform>
status store_state(basic_host<Platform>& adapter, const char* text) noexcept {
  for (unsigned n = 1; n <= host_state_count; ++n) {
    const host_state wanted = detail::as_host_state(n);
    if (detail::same_word(text, to_string(wanted))) return adapter.set_state(wanted);
  }
  return status::invalid;
}

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_SYSFS_HPP
