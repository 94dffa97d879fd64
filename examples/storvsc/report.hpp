// SPDX-License-Identifier: MIT
//
// report.hpp - what storvsc_hibernate tells: the log of a first cycle, a table, JSON.
#ifndef STORVSC_REPORT_HPP
#define STORVSC_REPORT_HPP

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "storvsc/options.hpp"

namespace storvsc {

/// What a policy did.
struct policy_result {
  policy which = policy::none;
  std::uint64_t cycles = 0;
  std::uint64_t ios = 0;         ///< reads, writes and flushes of the disk completed
  std::uint64_t polls = 0;       ///< polls of the CD-ROM completed
  std::uint64_t violations = 0;  ///< submissions that reached the adapter without its rings
  std::uint64_t lost = 0;        ///< I/Os without an answer, and acknowledged writes gone
  std::uint64_t corrupted = 0;   ///< blocks with content that nobody wrote
  std::uint64_t errors = 0;      ///< I/Os and PM steps that failed
  std::uint64_t max_stall_us = 0;
  std::optional<std::uint64_t> fault_address;  ///< where a kernel would have faulted
};

/// True if the result is what must be of this policy.
[[nodiscard]] bool as_expected(const policy_result& result);
/// The exit status of a run.
[[nodiscard]] int exit_status(std::span<const policy_result> results, bool all);

[[nodiscard]] std::string table(std::span<const policy_result> results);
[[nodiscard]] std::string json(std::span<const policy_result> results);

/// Prints lines with the time since it was started, in the manner of dmesg.
///
/// Threads: line() from any thread.
class kernel_log {
 public:
  /// Starts at 0; `enabled` false: line() prints nothing.
  void start(bool enabled);
  [[gnu::format(printf, 2, 3)]] void line(const char* format, ...);

 private:
  std::mutex mutex_;
  bool enabled_ = false;
  std::chrono::steady_clock::time_point began_{};
};

}  // namespace storvsc

#endif  // STORVSC_REPORT_HPP
