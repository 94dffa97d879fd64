// SPDX-License-Identifier: MIT
//
// pmgate/status.hpp - the result of an operation that may be refused.
//
// The values are Linux errno values, negated, so that a result read in a log
// means the same here as in a kernel trace. Zero is success; nothing else is.
//
// Counterpart: include/uapi/asm-generic/errno*.h (values only).
#ifndef PMGATE_STATUS_HPP
#define PMGATE_STATUS_HPP

namespace pmgate {

/// Why an operation was refused, or `ok`.
enum class status : int {
  ok = 0,
  not_permitted = -1,      ///< the operating system refused a grace period
  io_error = -5,           ///< the device, or the peer, failed the request
  no_such_address = -6,    ///< the object is being removed
  again = -11,             ///< would have to wait, and the caller said not to
  no_memory = -12,         ///< memory or a mapping could not be had
  busy = -16,              ///< in use; nothing was changed
  no_device = -19,         ///< the device is dying, dead or closed
  invalid = -22,           ///< not legal in this state, or a bad argument
  deadlock = -35,          ///< waiting would never end
  message_size = -90,      ///< can never fit
  not_supported = -95,     ///< this object cannot do that
  no_buffer_space = -105,  ///< the caller's buffer is too small
  timed_out = -110,        ///< the deadline passed first
  in_progress = -115,      ///< queued; the answer comes by callback
  quota = -122,            ///< the peer refused the resource
  canceled = -125,         ///< given up before it came about
};

/// The errno name, with its sign: "-EAGAIN"; "0" for `ok`.
///
/// Returns: a string literal; "unknown" for a value that has no name here.
[[nodiscard]] constexpr const char* to_string(status value) noexcept {
  switch (value) {
    case status::ok: return "0";
    case status::not_permitted: return "-EPERM";
    case status::io_error: return "-EIO";
    case status::no_such_address: return "-ENXIO";
    case status::again: return "-EAGAIN";
    case status::no_memory: return "-ENOMEM";
    case status::busy: return "-EBUSY";
    case status::no_device: return "-ENODEV";
    case status::invalid: return "-EINVAL";
    case status::deadlock: return "-EDEADLK";
    case status::message_size: return "-EMSGSIZE";
    case status::not_supported: return "-EOPNOTSUPP";
    case status::no_buffer_space: return "-ENOBUFS";
    case status::timed_out: return "-ETIMEDOUT";
    case status::in_progress: return "-EINPROGRESS";
    case status::quota: return "-EDQUOT";
    case status::canceled: return "-ECANCELED";
  }
  return "unknown";
}

}  // namespace pmgate

#endif  // PMGATE_STATUS_HPP
