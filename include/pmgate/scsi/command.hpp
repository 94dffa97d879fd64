// SPDX-License-Identifier: MIT
//
// pmgate/scsi/command.hpp - what is sent to a SCSI device.
//
// A command is a request with a result word. It belongs to its user, who embeds or
// inherits it, and allocates nothing.
//
// Counterpart: struct scsi_cmnd and scsi_execute_cmd()'s flags (semantics only).
#ifndef PMGATE_SCSI_COMMAND_HPP
#define PMGATE_SCSI_COMMAND_HPP

#include <cstdint>

#include <pmgate/block/request.hpp>
#include <pmgate/block/request_waiter.hpp>
#include <pmgate/platform.hpp>

namespace pmgate::scsi {

/// How a command is sent; combine with |.
enum class command_flags : std::uint8_t {
  none = 0,
  nowait = 1,  ///< refuse with status::again rather than wait for entry
  pm = 2,      ///< of power management: privileged.  Kernel: RQF_PM
  /// What every internal command carried before 5.11, media polling included: privileged
  /// at hosts of the 5.7 generations, without meaning at v6_12.  Kernel: RQF_PREEMPT
  special = 4,
  fail_if_recovering = 8,  ///< fail rather than wait while the host recovers
  /// A read or write, or without data: after a reset it is sent again. Others end with the
  /// result the driver reports.  Kernel: what is not passed through
  retry_after_reset = 16,
};

[[nodiscard]] constexpr command_flags operator|(command_flags a, command_flags b) noexcept {
  return static_cast<command_flags>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// True if `flags` has `flag`.
[[nodiscard]] constexpr bool has(command_flags flags, command_flags flag) noexcept {
  return (static_cast<unsigned>(flags) & static_cast<unsigned>(flag)) != 0;
}

template <platform Platform>
class basic_device;
template <platform Platform>
class basic_error_handler;

/// One command; see basic_request for its life.
///
/// Lifetime: neither copyable nor movable. The user's again from the moment its done
///           callback is called, or when execute() has returned.
/// Threads:  belongs to one side at a time: the user, the device, the driver.
template <platform Platform>
class basic_command : public basic_request<Platform> {
 public:
  /// Runs once, when the command is over; not for execute().
  using done_fn = void (*)(basic_command&) noexcept;

  /// done may be null.
  explicit basic_command(done_fn done = nullptr, void* context = nullptr) noexcept
      : basic_request<Platform>(&on_end, context), done_(done) {}

  /// The device it was last sent to.
  [[nodiscard]] basic_device<Platform>& device() const noexcept { return *device_; }
  /// The result word: 0, or what the driver reported, or why it did not get there.
  [[nodiscard]] int result_word() const noexcept { return result_word_; }

  /// Bytes of the command itself; one that is too long for the host ends with DID_ABORT.
  ///
  /// Precondition: it is the user's.  Kernel: cmd_len.
  void set_size(unsigned bytes) noexcept { size_ = bytes; }
  [[nodiscard]] unsigned size() const noexcept { return size_; }

 private:
  friend class basic_device<Platform>;
  friend class basic_error_handler<Platform>;
  static void on_end(basic_request<Platform>& request) noexcept {
    auto& self = static_cast<basic_command&>(request);
    if (self.done_ != nullptr) self.done_(self);
  }

  done_fn done_;
  basic_device<Platform>* device_ = nullptr;
  typename Platform::wait_word* handled_ = nullptr;  // where an error handler waits for it
  basic_command* next_failed_ = nullptr;             // the error handler's list
  int result_word_ = 0;
  unsigned size_ = 0;
  bool fail_if_recovering_ = false;
  bool retry_after_reset_ = false;
  bool with_handler_ = false;  // the error handler has it, and not the driver
};

using command = basic_command<default_platform>;

/// A place in the line of those who want to send a command and must not sleep; see
/// basic_request_waiter, whose rules it shares.
template <platform Platform>
class basic_command_waiter : private basic_request_waiter<Platform> {
  using base = basic_request_waiter<Platform>;

 public:
  /// result: ok: the command is sent right after this; no_device; canceled.
  using resume_fn = void (*)(basic_command_waiter& self, status result) noexcept;

  /// Precondition: callback is not null.
  explicit basic_command_waiter(resume_fn callback) noexcept : base(&on_resume), tell_(callback) {}

  using base::is_queued;

 private:
  friend class basic_device<Platform>;
  static void on_resume(base& self, status result) noexcept {
    auto& waiter = static_cast<basic_command_waiter&>(self);
    basic_command<Platform>& wanted = *waiter.item_;
    waiter.tell_(waiter, result);  // it may be gone
    if (result == status::ok) wanted.device().queue().execute_nowait(wanted);
  }

  resume_fn tell_;
  basic_command<Platform>* item_ = nullptr;
};

using command_waiter = basic_command_waiter<default_platform>;

/// Where a device remembers one command that the driver has. Whoever takes it out ends it.
template <platform Platform>
struct basic_started_slot {
  /// A pointer, and in its low bits how often a clock has seen it; 0: none.
  typename Platform::template atomic<std::uintptr_t> item{0};
};

using started_slot = basic_started_slot<default_platform>;

}  // namespace pmgate::scsi

#endif  // PMGATE_SCSI_COMMAND_HPP
