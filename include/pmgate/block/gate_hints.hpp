// SPDX-License-Identifier: MIT
//
// pmgate/block/gate_hints.hpp - what a program may tell of its gates, for reports.
//
// Gates over checked_platform listen; others have no place for it, and the calls are
// nothing. So code that is generic over the platform says it once.
#ifndef PMGATE_BLOCK_GATE_HINTS_HPP
#define PMGATE_BLOCK_GATE_HINTS_HPP

#include <cstdint>

namespace pmgate {

/// The calling thread gives away the last n entries (or sections) it made by hand:
/// somebody else ends them, and until then it may wait for them like anybody else.
///
/// To be called before anybody can have ended them.  Blocks: no.
template <class Gate>
constexpr void hand_over([[maybe_unused]] Gate& gate,
                         [[maybe_unused]] std::intptr_t n = 1) noexcept {
  if constexpr (requires { gate.note_hand_over(n); }) gate.note_hand_over(n);
}

/// What the gate is called in reports; the name is not copied.
template <class Gate>
constexpr void name_gate([[maybe_unused]] Gate& gate,
                         [[maybe_unused]] const char* name) noexcept {
  if constexpr (requires { gate.set_name(name); }) gate.set_name(name);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_GATE_HINTS_HPP
