// SPDX-License-Identifier: MIT
//
// options.hpp - the command line of storvsc_hibernate.
#ifndef STORVSC_OPTIONS_HPP
#define STORVSC_OPTIONS_HPP

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace storvsc {

/// What keeps I/O away from the adapter while its rings are gone.
enum class policy : std::uint8_t {
  none,             ///< nothing: the driver just tears down
  quiesce_5_7,      ///< devices quiesced, special commands pass: the kernel of the crash
  busy_flag,        ///< ... and the driver answers "busy" while paused
  host_block,       ///< ... and the driver blocks its host: the proposed patch
  freeze_kthreads,  ///< ... and work queues are frozen first: the fix that was merged
  quiesce_6_12,     ///< devices quiesced, only PM commands pass
};

inline constexpr policy all_policies[] = {policy::none,       policy::quiesce_5_7,
                                          policy::busy_flag,  policy::host_block,
                                          policy::freeze_kthreads, policy::quiesce_6_12};

/// The name on the command line and in reports.
[[nodiscard]] constexpr const char* to_string(policy p) noexcept {
  switch (p) {
    case policy::none: return "none";
    case policy::quiesce_5_7: return "quiesce-5.7";
    case policy::busy_flag: return "busy-flag";
    case policy::host_block: return "host-block";
    case policy::freeze_kthreads: return "freeze-kthreads";
    case policy::quiesce_6_12: return "quiesce-6.12";
  }
  return "?";
}

/// True if I/O must never reach a torn-down adapter under this policy.
[[nodiscard]] constexpr bool is_cure(policy p) noexcept {
  return p != policy::none && p != policy::quiesce_5_7;
}

struct options {
  std::string disk;  ///< empty: a temporary image
  std::vector<policy> policies{std::begin(all_policies), std::end(all_policies)};
  bool all = true;  ///< all policies are run, and compared
  unsigned cycles = 50;
  unsigned submitters = 4;
  unsigned poll_ms = 3;
  std::uint64_t seed = 1;
  std::string json;  ///< empty: no report file
  bool help = false;
};

/// Returns: the options, or nothing; then `error` is one sentence.
[[nodiscard]] std::optional<options> parse_options(std::span<char* const> arguments,
                                                   std::string& error);

[[nodiscard]] std::string_view help_text();

}  // namespace storvsc

#endif  // STORVSC_OPTIONS_HPP
