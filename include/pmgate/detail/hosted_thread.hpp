// SPDX-License-Identifier: MIT
//
// pmgate/detail/hosted_thread.hpp - who runs, on platforms with threads.
//
// A thread is known by the address of a variable of its own. The number that
// spreads threads over shards is taken in turn when a thread first needs one.
#ifndef PMGATE_DETAIL_HOSTED_THREAD_HPP
#define PMGATE_DETAIL_HOSTED_THREAD_HPP

#include <atomic>
#include <cstddef>

namespace pmgate::detail {

/// Identity of a living thread; nullptr is nobody.
using thread_identity = const void*;

/// Returns: the number of the calling thread, and a variable of its own.
///
/// Numbers run from 1 and say nothing but "probably another one than yours".
inline std::size_t& own_thread_number() noexcept {
  static std::atomic<std::size_t> last{0};
  thread_local std::size_t number = 0;
  // [thread.number] relaxed: the value is all that is wanted.
  if (number == 0) number = last.fetch_add(1, std::memory_order_relaxed) + 1;
  return number;
}

inline thread_identity this_thread() noexcept { return &own_thread_number(); }

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_HOSTED_THREAD_HPP
