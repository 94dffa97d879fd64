// SPDX-License-Identifier: MIT
//
// pmgate/block/hand_over.hpp - says that entries will be left by another thread.
#ifndef PMGATE_BLOCK_HAND_OVER_HPP
#define PMGATE_BLOCK_HAND_OVER_HPP

#include <cstdint>

namespace pmgate {

/// The calling thread gives away the last n entries (or sections) it made by hand: from
/// now on it waits for them like anybody else.
///
/// Does nothing to a gate, and is needed by none; over checked_platform it keeps a thread
/// from being taken for one that waits for itself.  Blocks: no.
template <class Gate>
constexpr void hand_over([[maybe_unused]] Gate& gate,
                         [[maybe_unused]] std::intptr_t n = 1) noexcept {
  if constexpr (requires { gate.note_hand_over(n); }) gate.note_hand_over(n);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_HAND_OVER_HPP
