// SPDX-License-Identifier: MIT
//
// pmgate/block/enter_flags.hpp - how one wants to enter a gate or a queue.
//
// Counterpart: BLK_MQ_REQ_NOWAIT and BLK_MQ_REQ_PM.
#ifndef PMGATE_BLOCK_ENTER_FLAGS_HPP
#define PMGATE_BLOCK_ENTER_FLAGS_HPP

#include <cstdint>

namespace pmgate {

/// How one wants to enter; combine with |.
enum class enter_flags : std::uint8_t {
  none = 0,
  nowait = 1,  ///< refuse with status::again rather than wait
  pm = 2,      ///< a power-management request: passes pm_only, never a freeze
  /// With pm: passes also while the queue is runtime-suspended.  Kernel: BLK_MQ_REQ_PREEMPT,
  /// before 5.11
  although_suspended = 4,
};

[[nodiscard]] constexpr enter_flags operator|(enter_flags a, enter_flags b) noexcept {
  return static_cast<enter_flags>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// True if `flags` has `flag`.
[[nodiscard]] constexpr bool has(enter_flags flags, enter_flags flag) noexcept {
  return (static_cast<unsigned>(flags) & static_cast<unsigned>(flag)) != 0;
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_ENTER_FLAGS_HPP
