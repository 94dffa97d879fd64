// SPDX-License-Identifier: MIT
//
// storvsc/interrupt_thread.hpp - the thread that the guest takes its interrupts on.
//
// It waits for the guest's doorbell, tells the adapter, and runs what the adapter
// deferred. The transport's schedule() goes to schedule() here.
//
// Counterpart: the interrupt handler and the tasklet of a channel.
#ifndef STORVSC_INTERRUPT_THREAD_HPP
#define STORVSC_INTERRUPT_THREAD_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <utility>

#include <pmgate/platform/linux_memory.hpp>

#include "storvsc/adapter.hpp"

namespace storvsc {

/// One thread, between start() and stop().
///
/// Lifetime: stops when destroyed; the doorbell and the adapter outlive start() to stop().
/// Threads:  schedule() from any; the other members from one.
class interrupt_thread {
public:
  /// The bell is the one that the host rings.
  explicit interrupt_thread(const pmgate::doorbell& bell) noexcept : bell_(bell) {}
  ~interrupt_thread() { stop(); }
  interrupt_thread(const interrupt_thread&) = delete;
  interrupt_thread& operator=(const interrupt_thread&) = delete;

  void start(adapter& a) {
    // [start.run] relaxed: the thread is created after it.
    stopping_.store(false, std::memory_order_relaxed);
    thread_ = std::thread([this, &a] { run(a); });
  }

  void stop() {
    if (!thread_.joinable()) return;
    // [stop.ask] relaxed: ordered by the bell, and looked at every time it rings.
    stopping_.store(true, std::memory_order_relaxed);
    bell_.ring();
    thread_.join();
  }

  /// Has adapter::run_deferred(ticket) called on the thread. The newest ticket is
  /// enough: older ones are from before a close, and would be dropped.
  void schedule(std::uint32_t ticket) noexcept {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      ticket_ = ticket;
      pending_ = true;
      if (std::this_thread::get_id() == runner_) return;  // it looks before it sleeps
    }
    bell_.ring();
  }

private:
  void run(adapter& a) {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      runner_ = std::this_thread::get_id();
    }
    // [run.stop] relaxed: see [stop.ask].
    while (!stopping_.load(std::memory_order_relaxed)) {
      (void)bell_.wait_until(std::chrono::steady_clock::now() + std::chrono::seconds(1));
      a.handle_doorbell();
      // [run.again] relaxed: as [run.stop].
      for (std::uint32_t ticket = 0; !stopping_.load(std::memory_order_relaxed) && take(ticket);) {
        a.run_deferred(ticket);
      }
    }
    const std::lock_guard<std::mutex> guard(mutex_);
    runner_ = {};
  }

  bool take(std::uint32_t& ticket) noexcept {
    const std::lock_guard<std::mutex> guard(mutex_);
    ticket = ticket_;
    return std::exchange(pending_, false);
  }

  const pmgate::doorbell& bell_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::thread::id runner_{};
  std::uint32_t ticket_ = 0;
  bool pending_ = false;
};

}  // namespace storvsc

#endif  // STORVSC_INTERRUPT_THREAD_HPP
