// SPDX-License-Identifier: MIT
//
// pmgate/platform/sim_counter.hpp - the counter engines under simulation.
//
// The sharded engine is the library's own, over simulated atomics. The rseq engine
// is assembly, so it is modelled: its slots, its state word, and a restartable
// sequence that may be cut off at each of its steps.
//
// Counterpart: platform/rseq_counter.hpp, line by line outside of the sequence.
#ifndef PMGATE_PLATFORM_SIM_COUNTER_HPP
#define PMGATE_PLATFORM_SIM_COUNTER_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>

#include <pmgate/detail/sim_engine.hpp>
#include <pmgate/platform/sharded_counter.hpp>
#include <pmgate/platform/sim_memory.hpp>

namespace pmgate::sim {

/// What the sharded counter asks of the simulation.
struct machine {
  template <class T>
  using atomic = sim::atomic<T>;
  static std::size_t shard_count() noexcept {
    const auto* const e = detail::sim_engine::exploring();
    return e == nullptr ? 1 : static_cast<std::size_t>(e->options().shards);
  }
  static std::size_t shard_hint() noexcept {
    const auto* const e = detail::sim_engine::running();
    return e == nullptr ? 0 : static_cast<std::size_t>(e->current());
  }
};

/// The sharded engine.
using sharded_engine = sharded_counter<machine>;

/// A model of the rseq engine: per-CPU slots changed by restartable sequences.
///
/// A sequence is aborted when its thread moves to another CPU, when another thread
/// runs on its CPU, and when a heavy fence hits it; its add is a plain store.
class rseq_engine {
public:
  explicit rseq_engine(bool starts_open) noexcept
      : state_(starts_open ? open_state : closed_state),
        fallback_(starts_open, sharded_engine::width::one) {}

  [[nodiscard]] bool try_add(std::intptr_t n) noexcept;
  void begin_close() noexcept {
    fallback_.begin_close();
    // [close.mark] relaxed: as in the engine that is modelled.
    state_.store(closed_state, std::memory_order_relaxed);
  }
  [[nodiscard]] std::intptr_t finish_close() noexcept { return peek(); }
  void open() noexcept;
  void reopen() noexcept {
    fallback_.reopen();
    // [reopen.state] release: as in the engine that is modelled.
    state_.store(open_state, std::memory_order_release);
  }
  [[nodiscard]] std::intptr_t peek() const noexcept;

private:
  static constexpr std::uint32_t open_state = 0;
  static constexpr std::uint32_t closed_state = 1;

  /// One word of the arena; not an atomic: only a sequence adds to it.
  struct slot : detail::sim_cell {
    slot() noexcept : sim_cell(0) {}
  };

  static std::size_t cpus() noexcept {
    const auto* const e = detail::sim_engine::exploring();
    return e == nullptr ? 1 : static_cast<std::size_t>(e->options().cpus);
  }

  atomic<std::uint32_t> state_;
  sharded_engine fallback_;
  slot slots_[max_cpus];
};

inline bool rseq_engine::try_add(std::intptr_t n) noexcept {
  auto* const e = detail::sim_engine::running();
  if (e == nullptr) {
    // [alone.state] relaxed: no exploration, one thread.
    if (state_.load(std::memory_order_relaxed) != open_state) return fallback_.try_add(n);
    slots_[0].value += static_cast<std::uint64_t>(n);
    return true;
  }
  while (e->begin_sequence()) {
    // [sequence.state] acquire: pairs with [open.state] and [reopen.state]; what x86-64 makes
    // of the plain load.
    const bool open = state_.load(std::memory_order_acquire) == open_state;
    if (e->aborted()) continue;
    if (!open) {
      e->end_sequence();
      break;
    }
    if (e->commit_add(slots_[static_cast<std::size_t>(e->cpu())], static_cast<std::uint64_t>(n))) {
      return true;
    }
  }
  return fallback_.try_add(n);
}

inline void rseq_engine::open() noexcept {
  auto* const e = detail::sim_engine::running();
  for (std::size_t cpu = 0; cpu < cpus(); ++cpu) {
    if (e != nullptr) {
      // [open.slot] relaxed: published by [open.state], as in the engine that is modelled.
      e->store(slots_[cpu], 0, std::memory_order_relaxed);
    } else {
      slots_[cpu].value = 0;
    }
  }
  fallback_.open();
  // [open.state] release: as in the engine that is modelled.
  state_.store(open_state, std::memory_order_release);
}

inline std::intptr_t rseq_engine::peek() const noexcept {
  auto* const e = detail::sim_engine::running();
  auto sum = static_cast<std::uint64_t>(fallback_.peek());
  for (std::size_t cpu = 0; cpu < cpus(); ++cpu) {
    // [peek.slot] acquire: as in the engine that is modelled.
    sum += e != nullptr ? e->load(slots_[cpu], std::memory_order_acquire) : slots_[cpu].value;
  }
  return static_cast<std::intptr_t>(sum);
}

}  // namespace pmgate::sim

#endif  // PMGATE_PLATFORM_SIM_COUNTER_HPP
