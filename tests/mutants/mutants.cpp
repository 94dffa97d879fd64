// SPDX-License-Identifier: MIT
//
// mutants.cpp - breaks the library at one place after the other, and wants to be told.
//
// Linked with the scenarios of tests/interleavings, which are compiled against the copy
// of the headers that make_mutants.py writes. For each mutant of mutants.inc the
// scenarios are explored until one fails; the unbroken copy passes all of them.
//
//   mutants <equivalent.txt>            all mutants
//   mutants <equivalent.txt> <text>...  those whose name contains one of the texts
//   mutants <equivalent.txt> -<text>    those whose name does not contain it
//
// equivalent.txt has the mutants that break nothing, with the argument.
//
// Status 1: a mutant survives that the list does not know, one is caught that it has, it
// names one that does not exist, or the unbroken copy fails.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <pmgate_mutants.hpp>

#include "interleavings/explore_models.hpp"

namespace {

using namespace interleavings;

struct mutant {
  int number;
  const char* header;
  const char* label;
  int line;
  const char* kind;

  std::string name() const { return std::string(header) + " [" + label + "] " + kind; }
};

const mutant mutants[] = {
#include "mutants.inc"
};

std::vector<scenario>& collected() {
  static std::vector<scenario> all;
  return all;
}

/// A scenario under one model, explored in one way.
struct attempt {
  const scenario* what;
  const model* where;
  sim::search how;
  bool refuses;  // one grace period more may be refused than the scenario asks for

  std::string name() const {
    return what->title + " | " + where->name +
           (how == sim::search::exhaustive ? "" : how == sim::search::random ? " | random"
                                                                            : " | priorities");
  }
  sim::result run(std::uint64_t schedules) const {
    sim::options options = what->base;
    if (!what->by_chance) {
      options.preemptions = std::max(1, what->base.preemptions - where->fewer_preemptions);
    }
    where->apply(options, what->threads);
    options.how = how;
    options.schedules = schedules;
    options.steps = 4000;
    if (how != sim::search::exhaustive) options.preemptions = options.delayed_stores = sim::unbounded;
    const std::string full = name();
    return what->explore(*where, full, options);
  }
};

/// Every scenario under every model. Whoever catches a mutant comes first for the next one,
/// which is a neighbour in the same header and often of the same nature.
std::vector<attempt> all_attempts() {
  std::vector<attempt> all;
  for (const scenario& what : collected()) {
    for (const model& where : models) {
      if (!what.by_chance) all.push_back({&what, &where, sim::search::exhaustive, false});
    }
  }
  for (const scenario& what : collected()) {
    for (const model& where : models) {
      all.push_back({&what, &where, sim::search::random, false});
    }
  }
  return all;
}

/// Schedules of each attempt, round by round: most mutants need few, some need many.
constexpr std::uint64_t rounds[] = {10, 60, 300};

struct verdict {
  const attempt* by = nullptr;
  sim::result found;
  std::uint64_t schedules = 0;
  double milliseconds = 0;
};

verdict hunt(std::vector<attempt>& attempts) {
  verdict result;
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t before = 0;
  for (const std::uint64_t limit : rounds) {
    for (std::size_t i = 0; i < attempts.size(); ++i) {
      const bool by_chance = attempts[i].how != sim::search::exhaustive;
      if (by_chance && before != 0) continue;
      result.found = attempts[i].run(limit);
      result.schedules += result.found.schedules;
      if (result.found) continue;
      std::rotate(attempts.begin(), attempts.begin() + static_cast<std::ptrdiff_t>(i),
                  attempts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      result.by = &attempts.front();
      break;
    }
    if (result.by != nullptr) break;
    before = limit;
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  result.milliseconds = took.count();
  return result;
}

/// Groups with an empty line between: mutants, and indented below them the argument.
std::vector<std::string> read_list(const char* path, bool& good) {
  std::vector<std::string> names;
  std::ifstream file(path);
  good = file.is_open();
  bool argued = true;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) good = good && argued;
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == ' ') {
      argued = true;
      continue;
    }
    argued = false;
    names.push_back(line);
  }
  good = good && argued;
  return names;
}

bool wanted(const std::string& name, int argc, char** argv) {
  for (int i = 2; i < argc; ++i) {
    const bool without = argv[i][0] == '-';
    const bool found = name.find(argv[i] + (without ? 1 : 0)) != name.npos;
    if (found != without) return true;
  }
  return argc <= 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s <equivalent.txt> [<text>...]\n", argv[0]);
    return 2;
  }
  bool good = true;
  std::vector<std::string> argued = read_list(argv[1], good);
  if (!good) {
    std::fprintf(stderr, "%s cannot be read, or has a line without an argument\n", argv[1]);
    return 2;
  }
  on_scenario = [](const scenario& what) { collected().push_back(what); };
  reports = false;
  doctest::Context context;
  context.setOption("minimal", true);
  context.setOption("test-case-exclude", "planted*");
  if (context.run() != 0) return 1;
  std::vector<attempt> attempts = all_attempts();
  std::printf("mutants: %zu scenarios, %zu attempts\n", collected().size(), attempts.size());

  const auto begin = std::chrono::steady_clock::now();
  const verdict intact = hunt(attempts);
  std::printf("unbroken: %s after %llu schedules, %.0f ms\n",
              intact.by == nullptr ? "holds" : intact.by->name().c_str(),
              static_cast<unsigned long long>(intact.schedules), intact.milliseconds);
  if (intact.by != nullptr) {
    intact.found.print(stdout);
    return 1;
  }

  int generated = 0, caught = 0, equivalent = 0, wrong = 0;
  double slowest = 0;
  for (const mutant& each : mutants) {
    const std::string name = each.name();
    const auto known = std::find(argued.begin(), argued.end(), name);
    const bool listed = known != argued.end();
    if (listed) argued.erase(known);
    if (!wanted(name, argc, argv)) continue;
    ++generated;
    pmgate_mutants::active = each.number;
    pmgate_mutants::watching = std::string(each.kind) == "unlocked";
    const verdict found = hunt(attempts);
    pmgate_mutants::active = 0;
    pmgate_mutants::watching = false;
    if (found.by != nullptr) {
      ++caught;
      slowest = std::max(slowest, found.milliseconds);
      std::printf("caught %s by %s after %llu schedules, %.0f ms: %s\n", name.c_str(),
                  found.by->name().c_str(), static_cast<unsigned long long>(found.schedules),
                  found.milliseconds, found.found.failure.c_str());
      if (listed) {
        ++wrong;
        std::printf("  WRONG: it is argued equivalent\n");
      }
    } else if (listed) {
      ++equivalent;
      std::printf("equivalent %s, %.0f ms\n", name.c_str(), found.milliseconds);
    } else {
      ++wrong;
      std::printf("SURVIVES %s (%s:%d), %llu schedules, %.0f ms\n", name.c_str(), each.header,
                  each.line, static_cast<unsigned long long>(found.schedules), found.milliseconds);
    }
    std::fflush(stdout);
  }
  for (const std::string& stale : argued) {
    ++wrong;
    std::printf("STALE %s: there is no such mutant\n", stale.c_str());
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  if (wrong != 0) std::printf("mutants: %d wrong\n", wrong);
  std::printf("mutants: slowest catch %.0f ms, all %.1f s\n", slowest, took.count());
  std::printf("mutants: %d generated, %d caught, %d argued equivalent\n", generated, caught,
              equivalent);
  return wrong == 0 && generated != 0 ? 0 : 1;
}
