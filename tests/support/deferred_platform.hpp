// SPDX-License-Identifier: MIT
//
// deferred_platform.hpp - what the tests of the gates share: a platform whose
// grace periods are over when the test says so, or are refused; and a log of
// misuse.
//
// A kernel's grace period takes milliseconds, Linux' membarrier none: on the real
// platforms the states "switch under way" and "no grace period to be had" are never
// seen. Here they are states like any other.
#ifndef PMGATE_TESTS_SUPPORT_DEFERRED_PLATFORM_HPP
#define PMGATE_TESTS_SUPPORT_DEFERRED_PLATFORM_HPP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <pmgate/platform/concept.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

namespace testing {

/// Grace periods, by hand.
class grace_periods {
 public:
  /// Who reads holds it shared; a grace period begins by holding it alone once.
  std::shared_mutex readers;

  /// Back to the beginning: nothing queued, nothing refused, run by hand.
  void reset() {
    const std::scoped_lock lock(mutex_);
    queue_.clear();
    refusals_ = 0;
    by_hand_ = true;
    served_ = requested_ = synchronized_ = broken_contracts_ = 0;
  }
  /// From now on requests are served at once, as on Linux; or by run() again.
  void serve_at_once(bool at_once) {
    const std::scoped_lock lock(mutex_);
    by_hand_ = !at_once;
  }
  /// Refuses the next n requests.
  void refuse(int n) {
    const std::scoped_lock lock(mutex_);
    refusals_ = n;
  }

  /// Ends one grace period for everything that waits for one. Returns: how many chains.
  std::size_t run() {
    std::vector<pmgate::grace_callback*> due;
    {
      const std::scoped_lock lock(mutex_);
      due.swap(queue_);
      ++served_;
    }
    wait_for_readers();
    for (pmgate::grace_callback* first : due) run_chain(*first);
    served_changed_.notify_all();
    return due.size();
  }
  [[nodiscard]] std::size_t pending() {
    const std::scoped_lock lock(mutex_);
    return queue_.size();
  }
  /// Waits until n chains wait for a grace period.
  void await_pending(std::size_t n) {
    while (pending() < n) std::this_thread::yield();
  }
  [[nodiscard]] int requested() const noexcept { return requested_; }
  [[nodiscard]] int synchronized() const noexcept { return synchronized_; }
  /// Times a counter was used against its contract.
  [[nodiscard]] int broken_contracts() const noexcept { return broken_contracts_; }
  void note_broken_contract() noexcept { ++broken_contracts_; }
  /// Grace periods that have begun so far.
  [[nodiscard]] int begun() const noexcept { return served_; }

  bool request(pmgate::grace_callback& first) {
    {
      const std::scoped_lock lock(mutex_);
      ++requested_;
      if (refusals_ > 0) {
        --refusals_;
        return false;
      }
      if (by_hand_) {
        queue_.push_back(&first);
        return true;
      }
      ++served_;
    }
    wait_for_readers();
    run_chain(first);
    return true;
  }
  bool synchronize() {
    std::unique_lock lock(mutex_);
    ++synchronized_;
    if (refusals_ > 0) {
      --refusals_;
      return false;
    }
    if (by_hand_) {
      const int before = served_;
      served_changed_.wait(lock, [&] { return served_ > before; });
    } else {
      ++served_;
    }
    lock.unlock();
    wait_for_readers();
    return true;
  }

 private:
  void wait_for_readers() { const std::scoped_lock all(readers); }
  static void run_chain(pmgate::grace_callback& first) {
    for (pmgate::grace_callback* next = &first; next != nullptr;) {
      pmgate::grace_callback& current = *next;
      next = current.next;
      current.run(current);
    }
  }

  std::mutex mutex_;
  std::condition_variable served_changed_;
  std::vector<pmgate::grace_callback*> queue_;
  int refusals_ = 0;
  bool by_hand_ = true;
  std::atomic<int> served_{0};
  std::atomic<int> requested_{0};
  std::atomic<int> synchronized_{0};
  std::atomic<int> broken_contracts_{0};
};

inline grace_periods& grace() {
  static grace_periods instance;
  return instance;
}

/// True: adds of this thread count as under way since before the close, so they
/// succeed until the grace period is over.
inline bool& straggling() {
  thread_local bool value = false;
  return value;
}

/// What to do at the beginning of the next begin_close() of this thread.
inline std::function<void()>& before_close() {
  thread_local std::function<void()> action;
  return action;
}

/// What to do at the beginning of the next try_add(), publish_add() of this thread.
inline std::function<void()>& before_add() {
  thread_local std::function<void()> action;
  return action;
}
inline std::function<void()>& before_publish() {
  thread_local std::function<void()> action;
  return action;
}

/// A counter that takes its contract at its word: whoever is under way still counts
/// after begin_close(), and who sums or opens too early is found out.
class deferred_counter {
 public:
  explicit deferred_counter(bool starts_open) noexcept
      : state_(starts_open ? is_open : is_summed) {}
  deferred_counter(const deferred_counter&) = delete;
  deferred_counter& operator=(const deferred_counter&) = delete;

  [[nodiscard]] bool try_add(std::intptr_t n) noexcept {
    if (const auto action = std::exchange(before_add(), nullptr)) action();
    const std::shared_lock section(grace().readers);
    const int state = state_.load(std::memory_order_acquire);
    if (state == is_summed || (state == is_closing && !straggling())) return false;
    sum_.fetch_add(n, std::memory_order_acq_rel);
    return true;
  }
  void begin_close() noexcept {
    if (const auto action = std::exchange(before_close(), nullptr)) action();
    expect(is_open);
    closed_at_ = grace().begun();
    state_.store(is_closing, std::memory_order_release);
  }
  [[nodiscard]] std::intptr_t finish_close() noexcept {
    expect(is_closing);
    if (grace().begun() <= closed_at_) grace().note_broken_contract();
    state_.store(is_summed, std::memory_order_release);
    return peek();
  }
  void open() noexcept {
    expect(is_summed);
    sum_.store(0, std::memory_order_relaxed);
    state_.store(is_open, std::memory_order_release);
  }
  void reopen() noexcept {
    if (state_.load(std::memory_order_relaxed) == is_open) grace().note_broken_contract();
    state_.store(is_open, std::memory_order_release);
  }
  [[nodiscard]] std::intptr_t peek() const noexcept {
    return sum_.load(std::memory_order_acquire);
  }

 private:
  static constexpr int is_open = 0;
  static constexpr int is_closing = 1;
  static constexpr int is_summed = 2;
  void expect(int state) const noexcept {
    if (state_.load(std::memory_order_relaxed) != state) grace().note_broken_contract();
  }
  std::atomic<int> state_;
  int closed_at_ = 0;
  std::atomic<std::intptr_t> sum_{0};
};

/// What to do when a mutex of the platform has been unlocked the n-th time from now;
/// this is how a test gets between two steps of a slow path.
struct unlock_hook {
  int countdown = 0;
  std::function<void()> action;
};
inline unlock_hook& after_unlock() {
  thread_local unlock_hook hook;
  return hook;
}

class hooked_mutex {
 public:
  void lock() noexcept { mutex_.lock(); }
  void unlock() noexcept {
    mutex_.unlock();
    unlock_hook& hook = after_unlock();
    if (hook.countdown > 0 && --hook.countdown == 0) {
      const std::function<void()> action = std::exchange(hook.action, nullptr);
      action();
    }
  }

 private:
  std::mutex mutex_;
};

class hooked_word : public pmgate::detail::portable_wait_word {
 public:
  using portable_wait_word::portable_wait_word;
  void publish_add(std::uint32_t n) noexcept {
    if (const auto action = std::exchange(before_publish(), nullptr)) action();
    portable_wait_word::publish_add(n);
  }
};

/// The portable platform, with the grace periods above.
struct deferred_platform : pmgate::portable_platform {
  using cpu_counter = deferred_counter;
  using mutex = hooked_mutex;
  using wait_word = hooked_word;
  [[nodiscard]] static bool after_grace_period(pmgate::grace_callback& first) noexcept {
    return grace().request(first);
  }
  [[nodiscard]] static bool synchronize() noexcept { return grace().synchronize(); }
};
static_assert(pmgate::platform<deferred_platform>);

/// Collects the misuse that any platform reports, for as long as it lives; and sees
/// to it that each test starts with fresh grace periods.
class misuse_log {
 public:
  misuse_log() {
    count_ = 0;
    old_hosted_ = pmgate::set_misuse_handler(&note);
    old_single_ = std::exchange(pmgate::single_platform::installed().on_misuse, &note);
    grace().reset();
  }
  ~misuse_log() {
    pmgate::set_misuse_handler(old_hosted_);
    pmgate::single_platform::installed().on_misuse = old_single_;
  }
  misuse_log(const misuse_log&) = delete;
  misuse_log& operator=(const misuse_log&) = delete;

  [[nodiscard]] int count() const noexcept { return count_; }
  /// Returns: what was reported since the last call.
  int take() noexcept { return count_.exchange(0); }
  [[nodiscard]] std::string last() const {
    const char* const text = last_;
    return text != nullptr ? text : "";
  }

 private:
  static void note(const char* text) noexcept {
    last_ = text;
    ++count_;
  }
  static inline std::atomic<int> count_{0};
  static inline std::atomic<const char*> last_{nullptr};
  pmgate::misuse_handler old_hosted_ = nullptr;
  void (*old_single_)(const char*) noexcept = nullptr;
};

/// A thread that is expected to wait for something.
class worker {
 public:
  template <class Body>
  explicit worker(Body body)
      : thread_([this, body]() mutable {
          body();
          done_.store(true, std::memory_order_release);
        }) {}
  ~worker() {
    if (thread_.joinable()) thread_.join();
  }
  worker(const worker&) = delete;
  worker& operator=(const worker&) = delete;

  [[nodiscard]] bool done() const noexcept { return done_.load(std::memory_order_acquire); }
  /// True if it has not come to its end after a generous delay.
  [[nodiscard]] bool is_blocked() const {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return !done();
  }
  void join() { thread_.join(); }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

/// Says yes until its time is over.
class time_limit {
 public:
  explicit time_limit(int milliseconds)
      : end_(std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds)) {}
  explicit operator bool() const { return std::chrono::steady_clock::now() < end_; }

 private:
  std::chrono::steady_clock::time_point end_;
};

}  // namespace testing

#endif  // PMGATE_TESTS_SUPPORT_DEFERRED_PLATFORM_HPP
