// SPDX-License-Identifier: MIT
//
// explore_models.hpp - runs a scenario under every model the library has to hold on.
//
// A scenario is a template over the platform and some threads. It is explored with
// both counter engines, on sequential memory and with store buffers, with grace
// periods that are over at once or later, with both kinds of sleeping, and with
// threads that share CPUs and move between them.
//
// PMGATE_INTERLEAVINGS_SCALE=n allows n preemptions more (or less) than each test asks for.
// PMGATE_INTERLEAVINGS_TALLY=file has the program leave there what it has explored, for
// the sum over all programs.
#ifndef PMGATE_TESTS_EXPLORE_MODELS_HPP
#define PMGATE_TESTS_EXPLORE_MODELS_HPP

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include <pmgate/platform/sim.hpp>

namespace interleavings {

namespace sim = pmgate::sim;

/// What the program has explored; said when it ends.
struct tally {
  unsigned long long schedules = 0;
  unsigned tests = 0;
  unsigned incomplete = 0;

  static tally& all() {
    static tally value;
    return value;
  }
  ~tally() {
    std::printf("interleavings: %llu schedules, %u tests, ", schedules, tests);
    if (incomplete == 0) {
      std::printf("all bounds complete\n");
    } else {
      std::printf("%u incomplete\n", incomplete);
    }
    const char* const file = std::getenv("PMGATE_INTERLEAVINGS_TALLY");
    std::FILE* const out = file != nullptr ? std::fopen(file, "w") : nullptr;
    if (out == nullptr) return;
    std::fprintf(out, "%llu %u %u\n", schedules, tests, incomplete);
    std::fclose(out);
  }
};

inline int scale() {
  static const char* const given = std::getenv("PMGATE_INTERLEAVINGS_SCALE");
  return given != nullptr ? std::atoi(given) : 0;
}

/// A model: a name for reports, and what it changes.
struct model {
  const char* name;
  bool sharded;
  int fewer_preemptions;  // than the test asks for, where a model has choices of its own
  void (*apply)(sim::options&, int threads);
};

inline const model models[] = {
    {"rseq sc", false, 0, [](sim::options&, int) {}},
    {"rseq tso, one interrupt each", false, 1,
     [](sim::options& o, int) {
       o.memory = sim::memory_model::store_buffers;
       o.fence = sim::fence_model::per_thread;
     }},
    {"rseq tso, deferred", false, 1,
     [](sim::options& o, int) {
       o.memory = sim::memory_model::store_buffers;
       o.grace = sim::grace_model::deferred;
     }},
    {"rseq sc, deferred, condition", false, 0,
     [](sim::options& o, int) {
       o.grace = sim::grace_model::deferred;
       o.sleep = sim::sleep_model::condition;
     }},
    {"rseq sc, two CPUs, one move", false, 1,
     [](sim::options& o, int threads) {
       o.cpus = threads < 3 ? threads : 2;
       o.migrations = 1;
     }},
    {"rseq sc, some without, spurious", false, 1,
     [](sim::options& o, int) {
       o.without_rseq = 1;
       o.spurious = 1;
     }},
    {"sharded sc, condition", true, 0,
     [](sim::options& o, int) { o.sleep = sim::sleep_model::condition; }},
    {"sharded tso", true, 1,
     [](sim::options& o, int) { o.memory = sim::memory_model::store_buffers; }},
    {"sharded, two late loads", true, 1,
     [](sim::options& o, int) {
       o.stale_loads = 2;
       o.fence = sim::fence_model::silently_refused;  // a portable grace period is no barrier
     }},
    {"sharded sc, deferred", true, 1,
     [](sim::options& o, int) { o.grace = sim::grace_model::deferred; }},
};

/// Whether each exploration has a line of its own.
inline bool reports = true;

inline void report(const char* name, const sim::result& found, double seconds) {
  if (!reports) return;
  std::printf("  %-72s %9llu schedules  %5.2f s  %s\n", name,
              static_cast<unsigned long long>(found.schedules), seconds,
              !found           ? "FAILED"
              : found.complete ? "complete"
                               : "INCOMPLETE");
  std::fflush(stdout);
  tally& all = tally::all();
  all.schedules += found.schedules;
  if (!found.complete && found) ++all.incomplete;
}

/// One exploration, timed and counted; `title` and the model name make its name.
template <class State, class... Threads>
sim::result explore_one(const std::string& name, sim::options how, const Threads&... threads) {
  how.name = name.c_str();
  const auto begin = std::chrono::steady_clock::now();
  const sim::result found = sim::explore<State>(how, threads...);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  report(name.c_str(), found, took.count());
  return found;
}

/// A scenario that can be explored under any model.
struct scenario {
  std::string title;
  sim::options base;
  int threads;
  bool by_chance;  // too large to be exhausted
  std::function<sim::result(const model&, const std::string& name, const sim::options&)> explore;
};

/// Explores a scenario under every model; each must be complete and without a failure.
inline void hold_exhaustively(const scenario& what) {
  for (const model& each : models) {
    sim::options how = what.base;
    how.preemptions = what.base.preemptions - each.fewer_preemptions + scale();
    if (how.preemptions < 1) how.preemptions = 1;
    each.apply(how, what.threads);
    const std::string name = what.title + " | " + each.name;
    const sim::result found = what.explore(each, name, how);
    found.print();
    CHECK_MESSAGE(found.failure.empty(), found.failure, " in ", name);
  }
}

/// The same with choices by chance and without bounds. A failure prints its schedule,
/// which no seed is needed for.
inline void hold_at_random(const scenario& what) {
  for (const model& each : models) {
    for (const auto search : {sim::search::random, sim::search::priorities}) {
      sim::options how = what.base;
      each.apply(how, what.threads);
      how.how = search;
      const bool by_priority = search == sim::search::priorities;
      const std::string name =
          what.title + " | " + each.name + (by_priority ? " | priorities" : " | random");
      const sim::result found = what.explore(each, name, how);
      found.print();
      CHECK_MESSAGE(found.failure.empty(), found.failure, " in ", name, ", seed ", how.seed);
    }
  }
}

inline void hold(const scenario& what) {
  ++tally::all().tests;
  if (what.by_chance) {
    hold_at_random(what);
  } else {
    hold_exhaustively(what);
  }
}

/// What is done with the scenarios of a program; the mutation gate collects them instead.
inline void (*on_scenario)(const scenario&) = &hold;

template <template <class> class State, class... Threads>
scenario make_scenario(const char* title, const sim::options& base, bool by_chance,
                       const Threads&... threads) {
  return {title, base, static_cast<int>(sizeof...(threads)), by_chance,
          [threads...](const model& which, const std::string& name, const sim::options& how) {
            return which.sharded
                       ? explore_one<State<pmgate::sim_sharded_platform>>(name, how, threads...)
                       : explore_one<State<pmgate::sim_platform>>(name, how, threads...);
          }};
}

/// Every schedule within the bounds holds, on all models.
template <template <class> class State, class... Threads>
void hold_on_all_models(const char* title, const sim::options& base, const Threads&... threads) {
  on_scenario(make_scenario<State>(title, base, false, threads...));
}

/// Beyond what can be exhausted: many schedules by chance hold, on all models.
template <template <class> class State, class... Threads>
void hold_by_chance(const char* title, sim::options base, const Threads&... threads) {
  base.preemptions = base.delayed_stores = sim::unbounded;
  if (base.schedules == 0) base.schedules = 10000;
  base.schedules <<= 2 * (scale() > 0 ? scale() : 0);
  on_scenario(make_scenario<State>(title, base, true, threads...));
}

}  // namespace interleavings

#endif  // PMGATE_TESTS_EXPLORE_MODELS_HPP
