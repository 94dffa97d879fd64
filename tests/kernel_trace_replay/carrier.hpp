// SPDX-License-Identifier: MIT
//
// carrier.hpp - a stack on which the jobs of a task run, and that can be left in
// the middle of one: a fiber, or a thread where fibers do not serve.
//
// Fibers, because traces are many and a switch of threads costs microseconds.
// ThreadSanitizer follows threads only.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_CARRIER_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_CARRIER_HPP

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PMGATE_REPLAY_THREADS 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || !defined(__linux__)
#define PMGATE_REPLAY_THREADS 1
#endif

#if defined(PMGATE_REPLAY_THREADS)
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <pmgate/detail/sim_fiber.hpp>
#endif

namespace replay {

#if defined(PMGATE_REPLAY_THREADS)

/// A thread with a baton.
class carrier {
 public:
  explicit carrier(std::function<void()> work) : work_(std::move(work)) {}
  ~carrier() {
    if (!thread_.joinable()) return;
    stop_ = true;
    enter();
    thread_.join();
  }
  carrier(const carrier&) = delete;
  carrier& operator=(const carrier&) = delete;

  /// Goes on where leave() was called, or calls the work once more.  Returns: when it
  /// calls leave(), or has returned.
  void enter() {
    std::unique_lock guard(lock_);
    inside_ = true;
    if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
    turn_.notify_all();
    turn_.wait(guard, [this] { return !inside_; });
  }
  /// Stops the work, which calls this.
  void leave() {
    std::unique_lock guard(lock_);
    inside_ = false;
    turn_.notify_all();
    turn_.wait(guard, [this] { return inside_; });
  }

 private:
  void serve() {
    while (!stop_) {
      work_();
      leave();
    }
    const std::scoped_lock guard(lock_);
    inside_ = false;
    turn_.notify_all();
  }

  std::function<void()> work_;
  std::mutex lock_;
  std::condition_variable turn_;
  std::thread thread_;
  bool inside_ = false;
  bool stop_ = false;
};

#else

/// A fiber. Stacks are kept for the carriers to come.
class carrier {
 public:
  explicit carrier(std::function<void()> work) : work_(std::move(work)) {}
  /// Precondition: the work has returned; what it holds would be lost.
  ~carrier() {
    if (fiber_ != nullptr) spare().push_back(std::move(fiber_));
  }
  carrier(const carrier&) = delete;
  carrier& operator=(const carrier&) = delete;

  /// Goes on where leave() was called, or calls the work once more.  Returns: when it
  /// calls leave(), or has returned.
  void enter() {
    if (fiber_ == nullptr) begin();
    inside() = this;
    outside().switch_to(*fiber_);
  }
  /// Stops the work, which calls this.
  void leave() { fiber_->switch_to(outside()); }

 private:
  using fiber = pmgate::detail::sim_fiber;

  void begin() {
    if (spare().empty()) {
      fiber_ = std::make_unique<fiber>();
    } else {
      fiber_ = std::move(spare().back());
      spare().pop_back();
    }
    fiber_->prepare(&serve);
  }
  static void serve() {
    fiber::arrived(outside());
    carrier& self = *inside();
    for (;;) {
      self.work_();
      self.leave();
    }
  }

  static fiber& outside() {
    static fiber only;
    return only;
  }
  static carrier*& inside() {
    static carrier* last = nullptr;
    return last;
  }
  static std::vector<std::unique_ptr<fiber>>& spare() {
    static std::vector<std::unique_ptr<fiber>> all;
    return all;
  }

  std::function<void()> work_;
  std::unique_ptr<fiber> fiber_;
};

#endif

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_CARRIER_HPP
