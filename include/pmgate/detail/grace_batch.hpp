// SPDX-License-Identifier: MIT
//
// pmgate/detail/grace_batch.hpp - a list of requests for one grace period.
#ifndef PMGATE_DETAIL_GRACE_BATCH_HPP
#define PMGATE_DETAIL_GRACE_BATCH_HPP

#include <pmgate/platform/concept.hpp>

namespace pmgate::detail {

/// Grace-period requests to be served together, in order.
class grace_batch {
 public:
  void add(grace_callback& request) noexcept {
    request.next = nullptr;
    *last_ = &request;
    last_ = &request.next;
  }
  [[nodiscard]] grace_callback* first() const noexcept { return first_; }

 private:
  grace_callback* first_ = nullptr;
  grace_callback** last_ = &first_;
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_GRACE_BATCH_HPP
