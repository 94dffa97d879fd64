// SPDX-License-Identifier: MIT
//
// pmgate/platform/sim.hpp - a platform that runs one thread at a time, in every order.
//
// explore() runs a small scenario again and again, each time with another schedule,
// until all schedules within the bounds were tried or one failed: a data race on
// guarded data, a deadlock, a use of something destroyed, misuse, a failed expect().
// A failure comes with its schedule as a string; with PMGATE_SCHEDULE set to it the
// program runs that schedule alone and tells each step.
//
// Counterpart: loom, CHESS, CDSChecker; there is none in the kernel.
#ifndef PMGATE_PLATFORM_SIM_HPP
#define PMGATE_PLATFORM_SIM_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include <pmgate/detail/sim_engine.hpp>
#include <pmgate/platform/concept.hpp>
#include <pmgate/platform/sim_counter.hpp>
#include <pmgate/platform/sim_memory.hpp>
#include <pmgate/platform/sim_options.hpp>

namespace pmgate {

/// The simulated platform.
///
/// Threads:  those of explore(). Time stands still but for deadlines that pass.
/// Blocking: a blocked thread is one the scheduler does not choose.
/// Misuse:   fails the schedule, unless sim::expect_misuse() announced it.
/// Limits:   loads are not reordered with loads: no weaker memory than x86's, unless
///           stale_loads allows it; then, on sequential memory, a few loads of each
///           schedule give what the C++ orders allow them to.
template <class CounterEngine>
struct basic_sim_platform {
  template <class T>
  using atomic = sim::atomic<T>;
  using cpu_counter = CounterEngine;
  using mutex = sim::mutex;
  using wait_word = sim::wait_word;
  using thread_id = int;
  using time_point = std::int64_t;  ///< nanoseconds
  using duration = std::int64_t;    ///< nanoseconds

  static constexpr bool can_block = true;

  [[nodiscard]] static bool heavy_fence() noexcept {
    auto* const e = detail::sim_engine::running();
    return e == nullptr || e->heavy_fence();
  }
  [[nodiscard]] static bool after_grace_period(grace_callback& first) noexcept {
    if (auto* const e = detail::sim_engine::running()) return e->after_grace_period(first);
    for (grace_callback* next = &first; next != nullptr;) {
      grace_callback& current = *next;
      next = current.next;  // the callback may free its owner
      current.run(current);
    }
    return true;
  }
  [[nodiscard]] static bool synchronize() noexcept { return heavy_fence(); }

  [[nodiscard]] static time_point now() noexcept {
    auto* const e = detail::sim_engine::running();
    return e == nullptr ? 0 : e->now();
  }
  [[nodiscard]] static duration milliseconds(std::int64_t n) noexcept { return n * 1000000; }
  [[nodiscard]] static thread_id this_thread() noexcept {
    auto* const e = detail::sim_engine::running();
    return e == nullptr ? sim_main_thread : e->current() + 1;
  }
  static void misuse(const char* text) noexcept {
    if (auto* const e = detail::sim_engine::exploring()) e->misuse(text);
  }

private:
  static constexpr int sim_main_thread = sim::max_threads + 2;
};

/// Counts in CPU-local slots with restartable sequences, as Linux does.
using sim_platform = basic_sim_platform<sim::rseq_engine>;
/// Counts in shards with compare-and-swap, as portable_platform does.
using sim_sharded_platform = basic_sim_platform<sim::sharded_engine>;

static_assert(platform<sim_platform>);
static_assert(platform<sim_sharded_platform>);

namespace sim {

/// Fails the schedule unless `holds`.
inline void expect(bool holds, const char* text) noexcept {
  auto* const e = detail::sim_engine::exploring();
  if (!holds && e != nullptr) e->fail("%s", text);
}

/// The next `times` reports of misuse do not fail the schedule.
inline void expect_misuse(int times = 1) noexcept {
  if (auto* const e = detail::sim_engine::exploring()) e->allow_misuse(times);
}

/// Reports of misuse in this schedule.
[[nodiscard]] inline int misuses() noexcept {
  auto* const e = detail::sim_engine::exploring();
  return e == nullptr ? 0 : e->misuses();
}

/// A line of its own in the log of a replayed schedule.
inline void note(const char* text) noexcept {
  auto* const e = detail::sim_engine::running();
  if (e != nullptr) e->note(text);
}

/// Runs `threads` on a fresh State under every schedule that `how` asks for.
///
/// Each thread is called with State&. When all are done, check() is called if State has
/// it, and the state is destroyed; both appear as thread 0 in a log and have no choices.
/// The state of a schedule that failed is not destroyed.
/// Precondition: 1 to max_threads threads, which do nothing of their own that differs
/// from run to run; not called from such a thread.
template <class State, class... Threads>
[[nodiscard]] result explore(const options& how, const Threads&... threads) {
  static_assert(sizeof...(Threads) >= 1 && sizeof...(Threads) <= max_threads,
                "an exploration has 1 to max_threads threads");
  static_assert((std::is_invocable_v<const Threads&, State&> && ...),
                "a thread is called with the state");
  struct room {
    alignas(State) std::byte bytes[sizeof(State)];
  };
  const auto storage = std::make_unique<room>();
  detail::sim_engine::scenario what;
  what.state = storage->bytes;
  what.make = [](void* at) { ::new (at) State; };
  what.finish = [](void* at) {
    State& state = *std::launder(static_cast<State*>(at));
    if constexpr (requires { state.check(); }) state.check();
    state.~State();
  };
  const auto add = [&what]<class Thread>(const Thread& thread) {
    auto& body = what.bodies[static_cast<std::size_t>(what.threads++)];
    body.function = &thread;
    body.run = [](void* state, const void* function) {
      (*static_cast<const Thread*>(function))(*std::launder(static_cast<State*>(state)));
    };
  };
  (add(threads), ...);
  return std::make_unique<detail::sim_engine>(what, how)->explore();
}

}  // namespace sim
}  // namespace pmgate

#endif  // PMGATE_PLATFORM_SIM_HPP
