// SPDX-License-Identifier: MIT
//
// pmgate/platform/sim_options.hpp - what an exploration tries, and what it found.
//
// The one rule to know: an exploration proves something about the schedules within
// its bounds, on the memory model it was given, and about nothing else. A result
// says whether all of them were tried.
//
// Hosted: <cstdio> <string>
#ifndef PMGATE_PLATFORM_SIM_OPTIONS_HPP
#define PMGATE_PLATFORM_SIM_OPTIONS_HPP

#include <cstdint>
#include <cstdio>
#include <string>

namespace pmgate::sim {

/// Threads of one exploration.
inline constexpr int max_threads = 7;
/// CPUs they run on.
inline constexpr int max_cpus = 4;
/// Where a bound is asked for: none.
inline constexpr int unbounded = 1 << 20;

/// When a store becomes visible to other threads.
enum class memory_model : std::uint8_t {
  sequential,     ///< at once
  store_buffers,  ///< in order, but later than the thread's own next loads: x86 (TSO)
};

/// How a heavy fence reaches the other threads.
enum class fence_model : std::uint8_t {
  instant,           ///< all of them at one moment
  per_thread,        ///< one interrupt each, in any order, with steps of others between
  silently_refused,  ///< none of them, and nobody is told: a planted bug
};

/// When the callbacks of a grace period run.
enum class grace_model : std::uint8_t {
  immediate,  ///< before after_grace_period() returns
  deferred,   ///< later, in a thread of their own
};

/// What a wait word is made of.
enum class sleep_model : std::uint8_t {
  futex,      ///< waking needs the address only
  condition,  ///< a mutex and a condition: the waker touches the word after its change
};

/// Which schedules are tried.
enum class search : std::uint8_t {
  exhaustive,  ///< all within the bounds, depth first
  random,      ///< each choice by chance
  priorities,  ///< the thread of highest random priority, changed now and then (PCT)
};

/// What to explore.
struct options {
  const char* name = "";  ///< stands before the schedule in PMGATE_SCHEDULE

  memory_model memory = memory_model::sequential;
  fence_model fence = fence_model::instant;
  grace_model grace = grace_model::immediate;
  sleep_model sleep = sleep_model::futex;

  int preemptions = 2;        ///< times a thread that could go on is made to wait
  int delayed_stores = 1;     ///< stores that are delayed of their own; later ones queue behind
  int stale_loads = 0;        ///< loads that give an overwritten value, where nothing forbids it
  int migrations = 0;         ///< times a thread is moved to another CPU
  int refused_graces = 0;     ///< grace periods the platform may refuse
  int spurious = 0;           ///< waits that end for no reason, weak exchanges that fail
  int cpus = 0;               ///< at most max_cpus; 0: one for each thread
  int shards = 2;             ///< of a sharded counter; a power of two
  unsigned without_rseq = 0;  ///< bit i: thread i has no restartable sequences

  search how = search::exhaustive;
  std::uint64_t seed = 1;       ///< of random and priorities
  std::uint64_t schedules = 0;  ///< stop after that many; 0: 10000 if by chance, else never
  std::uint32_t steps = 20000;  ///< a longer schedule fails as a livelock
  int priority_changes = 2;     ///< of search::priorities
};

/// What was found.
struct result {
  std::uint64_t schedules = 0;
  std::uint64_t steps = 0;
  bool complete = false;  ///< every schedule within the bounds was tried, or as many as asked for
  std::string failure;    ///< what went wrong in the last schedule; empty: nothing
  std::string schedule;   ///< the schedule that failed, for PMGATE_SCHEDULE

  /// True if nothing failed.
  [[nodiscard]] explicit operator bool() const noexcept { return failure.empty(); }

  /// Prints the failure and how to see it again; nothing if there is none.
  void print(std::FILE* out = stderr) const {
    if (failure.empty()) return;
    std::fprintf(out, "schedule %llu failed: %s\n  replay: PMGATE_SCHEDULE='%s'\n",
                 static_cast<unsigned long long>(schedules), failure.c_str(), schedule.c_str());
  }
};

}  // namespace pmgate::sim

#endif  // PMGATE_PLATFORM_SIM_OPTIONS_HPP
