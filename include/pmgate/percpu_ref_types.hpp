// SPDX-License-Identifier: MIT
//
// pmgate/percpu_ref_types.hpp - the plain types of percpu_ref: how one starts and
// what it looks like.
//
// Counterpart: PERCPU_REF_INIT_ATOMIC, _DEAD and PERCPU_REF_ALLOW_REINIT.
#ifndef PMGATE_PERCPU_REF_TYPES_HPP
#define PMGATE_PERCPU_REF_TYPES_HPP

#include <cstdint>

namespace pmgate {

/// How a percpu_ref starts; combine with |.
enum class ref_init : std::uint8_t {
  none = 0,
  atomic = 1,        ///< in the shared word, and to stay there (sticky); implies allow_reinit
  dead = 2,          ///< killed and at zero, to be reinit(); implies allow_reinit
  allow_reinit = 4,  ///< may come back after kill()
};

[[nodiscard]] constexpr ref_init operator|(ref_init a, ref_init b) noexcept {
  return static_cast<ref_init>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// True if `flags` has `flag`.
[[nodiscard]] constexpr bool has(ref_init flags, ref_init flag) noexcept {
  return (static_cast<unsigned>(flags) & static_cast<unsigned>(flag)) != 0;
}

/// What a percpu_ref looks like at one moment; exact while nothing moves.
struct percpu_ref_snapshot {
  bool percpu;           ///< gets and puts go to per-CPU counters
  bool dying;            ///< killed, or exited
  bool zero;             ///< nobody holds a reference
  bool switching;        ///< the grace period of a switch is not over
  bool force_atomic;     ///< switch_to_atomic() is in force
  bool allow_reinit;
  bool biased;           ///< part of the count is, or may be, in the per-CPU counters
  std::int64_t shared;   ///< the shared word without its bias; includes the switch's own reference
  std::int64_t per_cpu;  ///< sum of the per-CPU counters; left over from the last switch if !biased
};

}  // namespace pmgate

#endif  // PMGATE_PERCPU_REF_TYPES_HPP
