// SPDX-License-Identifier: MIT
//
// probe_waiter.hpp - a gate waiter that remembers how it was resumed, and does then what
// the test says.
#ifndef PMGATE_TESTS_SUPPORT_PROBE_WAITER_HPP
#define PMGATE_TESTS_SUPPORT_PROBE_WAITER_HPP

#include <atomic>
#include <functional>
#include <utility>

#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/status.hpp>

namespace testing {

template <class P>
class probe_waiter : public pmgate::basic_gate_waiter<P> {
 public:
  probe_waiter() : pmgate::basic_gate_waiter<P>(&note) {}
  explicit probe_waiter(std::function<void()> then) : probe_waiter() {
    on_resume = std::move(then);
  }

  /// Runs in the callback, as its last step: the waiter may be destroyed by it.
  std::function<void()> on_resume;

  [[nodiscard]] int resumed() const noexcept { return resumed_; }
  /// How it was resumed last; in_progress before that.
  [[nodiscard]] pmgate::status result() const noexcept { return result_; }

 private:
  static void note(pmgate::basic_gate_waiter<P>& self, pmgate::status result) noexcept {
    auto& woken = static_cast<probe_waiter&>(self);
    woken.result_ = result;
    const std::function<void()> then = woken.on_resume;
    ++woken.resumed_;
    if (then) then();
  }
  std::atomic<int> resumed_{0};
  std::atomic<pmgate::status> result_{pmgate::status::in_progress};
};

}  // namespace testing

#endif  // PMGATE_TESTS_SUPPORT_PROBE_WAITER_HPP
