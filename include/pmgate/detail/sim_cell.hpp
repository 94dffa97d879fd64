// SPDX-License-Identifier: MIT
//
// pmgate/detail/sim_cell.hpp - what the simulator knows of a place in memory.
//
// Beside its value: the clock that its last release published, which access of
// each thread was the last one, and whether the place still exists. An acquire
// that reads the value joins the clock; two accesses that no chain of such joins
// connects are unordered, whatever order the simulator ran them in. The values it
// had before are kept for loads that may be late.
#ifndef PMGATE_DETAIL_SIM_CELL_HPP
#define PMGATE_DETAIL_SIM_CELL_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmgate::detail {

/// Fibers of one exploration: max_threads and the one that runs grace periods.
inline constexpr int sim_fibers = 8;

/// A vector clock: of[t] counts the releases of thread t that are known of.
struct sim_clock {
  std::uint16_t of[sim_fibers]{};

  void join(const sim_clock& other) noexcept {
    for (int t = 0; t < sim_fibers; ++t) {
      if (other.of[t] > of[t]) of[t] = other.of[t];
    }
  }
  /// True if one of the noted accesses happened before a thread that knows of `ours`.
  [[nodiscard]] bool ordered_before(const sim_clock& ours) const noexcept {
    for (int t = 0; t < sim_fibers; ++t) {
      if (of[t] != 0 && of[t] <= ours.of[t]) return true;
    }
    return false;
  }
  /// Returns: a thread whose entry is ahead of ours, or -1.
  [[nodiscard]] int behind(const sim_clock& other) const noexcept {
    for (int t = 0; t < sim_fibers; ++t) {
      if (other.of[t] > of[t]) return t;
    }
    return -1;
  }
};

[[nodiscard]] constexpr bool sim_acquires(std::memory_order order) noexcept {
  return order != std::memory_order_relaxed && order != std::memory_order_release;
}
[[nodiscard]] constexpr bool sim_releases(std::memory_order order) noexcept {
  return order == std::memory_order_release || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}
[[nodiscard]] constexpr const char* sim_order_name(std::memory_order order) noexcept {
  switch (order) {
    case std::memory_order_relaxed: return "relaxed";
    case std::memory_order_consume: return "consume";
    case std::memory_order_acquire: return "acquire";
    case std::memory_order_release: return "release";
    case std::memory_order_acq_rel: return "acq_rel";
    case std::memory_order_seq_cst: return "seq_cst";
  }
  return "?";
}

/// A value that a place had, for loads that are late (options::stale_loads).
struct sim_version {
  std::uint64_t value = 0;
  std::uint32_t stamp = 0;    // stores so far, of the whole schedule
  sim_clock released;
  mutable sim_clock noticed;  // the accesses that made it or saw it
};

/// A place in memory. Its class says what the members mean.
struct sim_cell {
  explicit sim_cell(std::uint64_t initial) noexcept;
  ~sim_cell();
  sim_cell(const sim_cell&) = delete;
  sim_cell& operator=(const sim_cell&) = delete;

  static constexpr std::uint32_t living = 0x6c697665;
  static constexpr std::uint32_t dead = 0x64656164;
  static constexpr int nobody = -1;
  static constexpr int kept = 3;  // versions before the last one

  mutable std::uint64_t value;           // mutable: looking at a place leaves traces
  mutable sim_clock released;            // guarded data: the last write of each thread
  mutable sim_clock touched;             // the last access of each thread
  mutable sim_clock noticed;             // who made or saw the last value
  sim_version past[kept];                // what was before, newest first
  std::uint32_t stamp = 0;               // of the last value
  std::uint32_t number;                  // in the order of construction, for reports
  mutable std::int16_t holder = nobody;  // of a mutex
  volatile std::uint32_t alive = living;
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_SIM_CELL_HPP
