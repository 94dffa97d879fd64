// SPDX-License-Identifier: MIT
//
// pmgate/detail/hosted_misuse.hpp - where hosted platforms send misuse.
//
// A report is one line on standard error unless a handler was installed. The
// handler is per program, or per shared object where symbols are hidden: a copy
// of it is harmless, since it only says where text goes.
#ifndef PMGATE_DETAIL_HOSTED_MISUSE_HPP
#define PMGATE_DETAIL_HOSTED_MISUSE_HPP

#include <atomic>
#include <cstdio>

namespace pmgate {

/// Receives the text of a broken precondition; must not throw or call back.
using misuse_handler = void (*)(const char* text) noexcept;

namespace detail {

inline std::atomic<misuse_handler>& misuse_target() noexcept {
  static std::atomic<misuse_handler> target{nullptr};
  return target;
}

inline void report_misuse(const char* text) noexcept {
  // [misuse.read] acquire: pairs with [misuse.set]; the handler's data is there.
  if (const auto handler = misuse_target().load(std::memory_order_acquire)) {
    handler(text);
  } else {
    std::fprintf(stderr, "pmgate: misuse: %s\n", text);
  }
}

}  // namespace detail

/// Sends reports of misuse to `handler`; null: to standard error again.
///
/// Returns: the handler that was installed before, or null.
inline misuse_handler set_misuse_handler(misuse_handler handler) noexcept {
  // [misuse.set] acq_rel: release pairs with [misuse.read]; acquire so that the
  // caller may look at what the old handler wrote.
  return detail::misuse_target().exchange(handler, std::memory_order_acq_rel);
}

}  // namespace pmgate

#endif  // PMGATE_DETAIL_HOSTED_MISUSE_HPP
