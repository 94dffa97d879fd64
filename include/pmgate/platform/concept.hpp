// SPDX-License-Identifier: MIT
//
// pmgate/platform/concept.hpp - what a platform must provide.
//
// Everything that touches the machine goes through a platform: atomics,
// waiting, time, thread identity, CPU-local counters, grace periods, reports
// of misuse. The rooms above are templates over it, so the same gate runs on
// Linux with rseq, on any hosted C++ implementation, in a single-threaded
// simulator and under a model checker.
//
// The one rule to know: the grace period. It ends once every try_add() that
// was under way when it began has finished; a counter that was told to close
// before the grace period began does not change after it ended.
#ifndef PMGATE_PLATFORM_CONCEPT_HPP
#define PMGATE_PLATFORM_CONCEPT_HPP

#include <atomic>
#include <concepts>
#include <cstdint>

namespace pmgate {

/// A request to be told of the end of a grace period; lives in its owner.
///
/// The platform may use `next` while the request is pending, and touches
/// nothing of it once `run` has been called, or if it refuses. Requests that the caller links
/// through `next` are served by one grace period, in order.
struct grace_callback {
  void (*run)(grace_callback&) noexcept = nullptr;
  grace_callback* next = nullptr;
};

/// Runs a chain of requests, in order, once their grace period is over.
inline void run_grace_callbacks(grace_callback& first) noexcept {
  for (grace_callback* next = &first; next != nullptr;) {
    grace_callback& current = *next;
    next = current.next;  // the callback may free its owner
    current.run(current);
  }
}

/// What Platform::atomic<T> offers: std::atomic's members, every order spelled out.
template <class A, class T>
concept platform_atomic = requires(A& word, const A& view, T& expected, T value) {
  { view.load(std::memory_order_acquire) } -> std::same_as<T>;
  word.store(value, std::memory_order_release);
  { word.exchange(value, std::memory_order_acq_rel) } -> std::same_as<T>;
  { word.fetch_add(value, std::memory_order_acq_rel) } -> std::same_as<T>;
  { word.fetch_sub(value, std::memory_order_acq_rel) } -> std::same_as<T>;
  { word.fetch_or(value, std::memory_order_acq_rel) } -> std::same_as<T>;
  { word.fetch_and(value, std::memory_order_acq_rel) } -> std::same_as<T>;
  {
    word.compare_exchange_weak(expected, value, std::memory_order_acq_rel,
                               std::memory_order_relaxed)
  } -> std::same_as<bool>;
  {
    word.compare_exchange_strong(expected, value, std::memory_order_acq_rel,
                                 std::memory_order_relaxed)
  } -> std::same_as<bool>;
};

/// A count spread over CPUs that can be closed and summed.
///
/// * `try_add(n)`: true if counted; false if closed, and nothing was changed.
///   CPU-local, never blocks, legal from any thread at any time.
/// * `begin_close()`: from now on try_add() fails, except those under way.
/// * `finish_close()`: only after a grace period that began after
///   begin_close(): the exact sum since open().
/// * `open()`: only after finish_close(); the sum restarts at 0.
/// * `reopen()`: undoes begin_close(); the sum goes on as if never closed.
/// * `peek()`: the sum as it looks now; exact only while nobody adds. It keeps
///   its last value while closed.
///
/// Orders: everything before a successful try_add() happens-before
/// finish_close() returns; everything before open() or reopen() happens-before
/// a later successful try_add().
template <class C>
concept platform_counter = requires(C& counter, const C& view) {
  requires std::constructible_from<C, bool>;  // true: starts open
  { counter.try_add(std::intptr_t{1}) } noexcept -> std::same_as<bool>;
  { counter.begin_close() } noexcept;
  { counter.finish_close() } noexcept -> std::same_as<std::intptr_t>;
  { counter.open() } noexcept;
  { counter.reopen() } noexcept;
  { view.peek() } noexcept -> std::same_as<std::intptr_t>;
};

/// A 31-bit atomic one can sleep on; all it needs lies inside it.
///
/// Values run from 0 to 2^31 - 1 and arithmetic wraps there.
///
/// * `wait(old)`: sleeps while the value is `old`; may return early.
/// * `wait_until(old, deadline)`: the same; false if the deadline passed.
/// * `wake_all()`: wakes everybody asleep; to be called after a change.
/// * `publish_add(n)`: adds n and wakes everybody, and this is the last touch: a
///   thread that has seen the sum and then called `settle()` may destroy the word.
///
/// Orders: publish_add() is acq_rel; wait() and settle() order nothing by themselves:
/// load the value again.
template <class W, class TimePoint>
concept platform_wait_word = requires(W& word, const W& view, std::uint32_t value, TimePoint t) {
  { view.load(std::memory_order_acquire) } noexcept -> std::same_as<std::uint32_t>;
  { word.store(value, std::memory_order_release) } noexcept;
  { word.exchange(value, std::memory_order_acq_rel) } noexcept -> std::same_as<std::uint32_t>;
  { word.fetch_add(value, std::memory_order_acq_rel) } noexcept -> std::same_as<std::uint32_t>;
  { word.fetch_sub(value, std::memory_order_acq_rel) } noexcept -> std::same_as<std::uint32_t>;
  { word.wait(value) } noexcept;
  { word.wait_until(value, t) } noexcept -> std::same_as<bool>;
  { word.wake_all() } noexcept;
  { word.publish_add(value) } noexcept;
  { word.settle() } noexcept;
};

/// A mutex for slow paths; it may be destroyed as soon as it can be locked.
template <class M>
concept platform_mutex = requires(M& mutex) {
  { mutex.lock() } noexcept;
  { mutex.unlock() } noexcept;
};

/// Everything the library asks of the machine.
///
/// * `after_grace_period(cb)`: runs the chain of callbacks that starts at `cb`
///   after one grace period, here and now or later, never under a lock of the
///   library. False: no grace period can be had (the operating system refused
///   it) and nothing was or will be run.
/// * `synchronize()`: waits for one grace period; false as above.
/// * `can_block`: false where there is one thread of execution only. Calls that
///   would have to wait then report misuse and return `status::again`.
/// * `this_thread()`: who runs; a value-initialised thread_id is nobody.
/// * `misuse(text)`: a broken precondition; the call has no effect.
/// * `trace(event, object)`: optional; costs nothing when absent.
/// * `process_shared`: optional; see is_process_shared.
template <class P>
concept platform = requires(grace_callback& callback, const char* text) {
  requires platform_atomic<typename P::template atomic<std::uint64_t>, std::uint64_t>;
  requires platform_atomic<typename P::template atomic<std::uint32_t>, std::uint32_t>;
  requires platform_counter<typename P::cpu_counter>;
  requires platform_mutex<typename P::mutex>;
  requires platform_wait_word<typename P::wait_word, typename P::time_point>;
  requires std::equality_comparable<typename P::thread_id>;
  { P::after_grace_period(callback) } noexcept -> std::same_as<bool>;
  { P::synchronize() } noexcept -> std::same_as<bool>;
  { P::can_block } -> std::convertible_to<bool>;
  { P::now() } noexcept -> std::same_as<typename P::time_point>;
  { P::milliseconds(std::int64_t{1}) } noexcept -> std::same_as<typename P::duration>;
  { P::now() + P::milliseconds(1) } -> std::convertible_to<typename P::time_point>;
  { P::this_thread() } noexcept -> std::same_as<typename P::thread_id>;
  { P::misuse(text) } noexcept;
};

/// True for a platform whose gates lie in memory shared by processes: it says
/// `static constexpr bool process_shared = true`. Such gates keep no pointers, so
/// the forms that would queue one are missing.
template <class Platform>
inline constexpr bool is_process_shared = false;
template <class Platform>
  requires requires { requires Platform::process_shared; }
inline constexpr bool is_process_shared<Platform> = true;

/// True for checked_platform: its gates are those of block/checked_gates.hpp.
template <class Platform>
inline constexpr bool is_checked = false;

/// Tells Platform::trace() of an event, where there is such a function.
template <class Platform>
constexpr void trace_event([[maybe_unused]] const char* event,
                           [[maybe_unused]] const void* object) noexcept {
  if constexpr (requires { Platform::trace(event, object); }) Platform::trace(event, object);
}

/// Holds a Platform::mutex for a scope.
template <platform_mutex Mutex>
class [[nodiscard]] scoped_lock {
 public:
  explicit scoped_lock(Mutex& mutex) noexcept : mutex_(mutex) { mutex_.lock(); }
  ~scoped_lock() { mutex_.unlock(); }
  scoped_lock(const scoped_lock&) = delete;
  scoped_lock& operator=(const scoped_lock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_CONCEPT_HPP
