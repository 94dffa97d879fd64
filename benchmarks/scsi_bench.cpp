// SPDX-License-Identifier: MIT
//
// scsi_bench.cpp - what the gates cost a SCSI command, and what it costs to hold a host.
//
// The baseline of a command is the same code with the gates compiled out, where nobody
// can be stopped: scsi_submit.cpp, compiled twice. That of a host block is the way of
// 5.7, a wait for each device. Compare rows of one run only; see README.md.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/host.hpp>

#include "scsi_submit.hpp"

namespace storvsc_ungated {
void add_submit(const char* gates, add_fn add);
}  // namespace storvsc_ungated

namespace {

using pmgate::default_platform;
using pmgate::status;
namespace scsi = pmgate::scsi;

void pin_to(int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  (void)::sched_setaffinity(0, sizeof set, &set);
#else
  (void)cpu;
#endif
}

/// A host and its devices; there are no commands.
struct rig {
  explicit rig(std::size_t count) {
    for (std::size_t n = 0; n < count; ++n) {
      devices.push_back(std::make_unique<scsi::device>(host, target, works));
      (void)devices.back()->set_state(scsi::device_state::running);
    }
  }

  pmgate::pm::work_queue works{"kblockd"};
  scsi::host host{{[](scsi::host&, scsi::command&) noexcept { return 0; }}};
  scsi::target target;
  std::vector<std::unique_ptr<scsi::device>> devices;
};

/// block() and unblock() of a host without load.
void block_host(benchmark::State& state) {
  rig all(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    if (all.host.block() != status::ok) state.SkipWithError("block() was refused");
    if (all.host.unblock(scsi::device_state::running) != status::ok) {
      state.SkipWithError("unblock() was refused");
    }
  }
}

/// The same with a wait, and so a grace period, for each device.
void block_each(benchmark::State& state) {
  rig all(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    for (const auto& each : all.devices) {
      if (each->block_nowait() != status::ok || each->wait_blocked() != status::ok) {
        state.SkipWithError("block() was refused");
      }
    }
    (void)all.host.unblock(scsi::device_state::running);
  }
}

double least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

void add(const std::string& name, void (*function)(benchmark::State&)) {
  benchmark::RegisterBenchmark(name.c_str(), function)
      ->UseRealTime()
      ->ComputeStatistics("min", &least);
}

void add_hosts(const std::string& name, void (*function)(benchmark::State&)) {
  benchmark::RegisterBenchmark(name.c_str(), function)
      ->ArgName("devices")
      ->Arg(1)
      ->Arg(64)
      ->Arg(1024)
      ->UseRealTime()
      ->ComputeStatistics("min", &least);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  pin_to(0);
  const bool sequences = default_platform::cpu_counter(true).is_cpu_local();
  benchmark::AddCustomContext("engine", sequences ? "rseq" : "fallback");

  storvsc::add_submit("gated", &add);
  storvsc_ungated::add_submit("gates_compiled_out", &add);
  add_hosts("scsi_host_block_unblock/one_grace_period", &block_host);
  add_hosts("scsi_host_block_unblock/one_for_each_device", &block_each);

  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
