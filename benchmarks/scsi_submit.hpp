// SPDX-License-Identifier: MIT
//
// scsi_submit.hpp - what scsi_bench.cpp calls of the two copies of scsi_submit.cpp.
#ifndef PMGATE_BENCHMARKS_SCSI_SUBMIT_HPP
#define PMGATE_BENCHMARKS_SCSI_SUBMIT_HPP

#include <string>

#include <benchmark/benchmark.h>

using add_fn = void (*)(const std::string& name, void (*function)(benchmark::State&));

namespace storvsc {
/// Adds the rows of one copy; `gates` says which.
void add_submit(const char* gates, add_fn add);
}  // namespace storvsc

#endif  // PMGATE_BENCHMARKS_SCSI_SUBMIT_HPP
