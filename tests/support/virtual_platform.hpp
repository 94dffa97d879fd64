// SPDX-License-Identifier: MIT
//
// virtual_platform.hpp - the portable platform with a clock of the test's.
//
// Time passes when the test says so, and when somebody sleeps until a deadline: then
// it is that time at once. So what takes 20 seconds is tested in none.
#ifndef PMGATE_TESTS_SUPPORT_VIRTUAL_PLATFORM_HPP
#define PMGATE_TESTS_SUPPORT_VIRTUAL_PLATFORM_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>

#include <pmgate/platform/concept.hpp>
#include <pmgate/platform/portable.hpp>

namespace testing {

/// The clock, in milliseconds since the beginning of the test.
class virtual_clock {
 public:
  static void reset() {
    milliseconds_ = 0;
    on_sleep() = nullptr;
  }
  static void advance(std::int64_t milliseconds) { milliseconds_ += milliseconds; }
  static std::int64_t now() { return milliseconds_; }
  /// Called after each sleep with a deadline; to be set with one thread running.
  static std::function<void()>& on_sleep() {
    static std::function<void()> hook;
    return hook;
  }

 private:
  static inline std::atomic<std::int64_t> milliseconds_{0};
};

struct virtual_platform : pmgate::portable_platform {
  [[nodiscard]] static time_point now() noexcept {
    return time_point{} + std::chrono::hours(1) + std::chrono::milliseconds(virtual_clock::now());
  }

  class wait_word : public pmgate::portable_platform::wait_word {
   public:
    using pmgate::portable_platform::wait_word::wait_word;
    bool wait_until(std::uint32_t old, time_point deadline) noexcept {
      if (load(std::memory_order_acquire) != old) return true;
      const auto missing =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - virtual_platform::now());
      if (missing.count() > 0) virtual_clock::advance(missing.count());
      if (virtual_clock::on_sleep()) virtual_clock::on_sleep()();
      return load(std::memory_order_acquire) != old;
    }
  };
};
static_assert(pmgate::platform<virtual_platform>);

}  // namespace testing

#endif  // PMGATE_TESTS_SUPPORT_VIRTUAL_PLATFORM_HPP
