// SPDX-License-Identifier: MIT
//
// scsi_bench.cpp - what the gates cost a SCSI command, and what it costs to hold a host.
//
// The baseline of a command is the same code on a platform whose gates are compiled
// out: nobody can be stopped there. That of a host block is the way of 5.7, a wait for
// each device. Compare rows of one run only; see README.md.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/host.hpp>

namespace {

/// The platform that plain names use, with gates that let everybody in.
struct ungated_platform : pmgate::default_platform {};

}  // namespace

// -- the gates of that platform

template <>
class pmgate::basic_freeze_gate<ungated_platform> {
 public:
  using time_point = ungated_platform::time_point;
  explicit basic_freeze_gate(gate_start = gate_start::percpu) noexcept {}
  [[nodiscard]] status enter(enter_flags = {}) noexcept { return status::ok; }
  void exit(std::intptr_t = 1) noexcept {}
  void switch_to_percpu() noexcept {}
  status freeze_start() noexcept { return status::ok; }
  status freeze_start_non_owner() noexcept { return status::ok; }
  status freeze_start(bool& closed_it) noexcept {
    closed_it = false;
    return status::ok;
  }
  status freeze_wait() noexcept { return status::ok; }
  void unfreeze() noexcept {}
};

template <>
class pmgate::basic_quiesce_gate<ungated_platform> {
 public:
  [[nodiscard]] bool try_dispatch() noexcept { return true; }
  void end_dispatch() noexcept {}
  status quiesce() noexcept { return status::ok; }
  void quiesce_nowait() noexcept {}
  status wait_quiesced() noexcept { return status::ok; }
  bool unquiesce() noexcept { return false; }
  [[nodiscard]] int depth() const noexcept { return 0; }
};

namespace pmgate::scsi {

// Neither the device's state nor the host's holds anything.
template <>
dispatch_status basic_device<ungated_platform>::check_state(
    const basic_command<ungated_platform>&) noexcept {
  return dispatch_status::ok;
}
template <>
device_state basic_device<ungated_platform>::state() const noexcept {
  return device_state::running;
}
template <>
host_state basic_host<ungated_platform>::state() const noexcept {
  return host_state::running;
}
template <>
bool basic_host<ungated_platform>::is_in_recovery() const noexcept {
  return false;
}
template <>
auto basic_host<ungated_platform>::take() noexcept -> countdown::answer {
  return count_.try_take();
}

}  // namespace pmgate::scsi

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

/// What a driver does with a command.
enum class work {
  nothing,    ///< it completes it: the gates never weigh more
  copy_page,  ///< it copies 4 KiB first, as the fastest disk there is
};

/// A host whose driver completes what it is given at once.
template <class P, work Work = work::nothing>
struct rig {
  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    if constexpr (Work == work::copy_page) {
      auto& self = *static_cast<rig*>(host.context());
      std::memcpy(self.memory, self.disk, sizeof self.memory);
      benchmark::ClobberMemory();
    }
    host.complete(item);
    return 0;
  }
  explicit rig(std::size_t count) {
    for (std::size_t n = 0; n < count; ++n) {
      devices.push_back(std::make_unique<scsi::basic_device<P>>(host, target, works));
      (void)devices.back()->set_state(scsi::device_state::running);
    }
  }

  pmgate::pm::basic_work_queue<P> works{"kblockd"};
  scsi::basic_host<P> host{{&queuecommand, this}};
  scsi::basic_target<P> target;
  std::vector<std::unique_ptr<scsi::basic_device<P>>> devices;
  alignas(4096) char disk[4096]{};
  alignas(4096) char memory[4096]{};
};

/// A command from submit() to queuecommand and back.
template <class P, work Work>
void submit(benchmark::State& state) {
  pin_to(0);
  const auto made = std::make_unique<rig<P, Work>>(1);
  rig<P, Work>& all = *made;
  scsi::basic_command<P> item;
  scsi::basic_device<P>& where = *all.devices.front();
  for (auto _ : state) {
    if (where.submit(item) != status::ok) state.SkipWithError("a command was refused");
    benchmark::ClobberMemory();
  }
}

/// block() and unblock() of a host without load.
void block_host(benchmark::State& state) {
  pin_to(0);
  rig<default_platform> all(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    if (all.host.block() != status::ok) state.SkipWithError("block() was refused");
    if (all.host.unblock(scsi::device_state::running) != status::ok) {
      state.SkipWithError("unblock() was refused");
    }
  }
}

/// The same with a wait, and so a grace period, for each device.
void block_each(benchmark::State& state) {
  pin_to(0);
  rig<default_platform> all(static_cast<std::size_t>(state.range(0)));
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
  const bool sequences = default_platform::cpu_counter(true).is_cpu_local();
  benchmark::AddCustomContext("engine", sequences ? "rseq" : "fallback");

  add("scsi_submit/gated", &submit<default_platform, work::nothing>);
  add("scsi_submit/gates_compiled_out", &submit<ungated_platform, work::nothing>);
  add("scsi_submit_4k/gated", &submit<default_platform, work::copy_page>);
  add("scsi_submit_4k/gates_compiled_out", &submit<ungated_platform, work::copy_page>);
  add_hosts("scsi_host_block_unblock/one_grace_period", &block_host);
  add_hosts("scsi_host_block_unblock/one_for_each_device", &block_each);

  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
