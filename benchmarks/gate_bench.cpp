// SPDX-License-Identifier: MIT
//
// gate_bench.cpp - what it costs to enter and leave a gate, and to close it.
//
// Baselines stand beside the gates: a bare increment and decrement in restartable
// sequences (the floor), one std::atomic, std::shared_mutex; for closing, one
// membarrier. Compare rows of one run only; see README.md.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#if defined(__linux__)
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/percpu_ref.hpp>
#include <pmgate/platform/portable.hpp>

namespace {

using pmgate::portable_platform;
using default_platform = pmgate::default_platform;

void pin_to(int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu) % std::max(1U, std::thread::hardware_concurrency()), &set);
  (void)::sched_setaffinity(0, sizeof set, &set);
#else
  (void)cpu;
#endif
}

// -- subjects: what is entered and left. One object per run, shared by its threads.

template <class P>
struct freeze_subject {
  pmgate::basic_freeze_gate<P> gate;
  bool enter() { return gate.try_enter(); }
  void leave() { gate.exit(); }
  void close() { (void)gate.freeze(); }
  void open() { gate.unfreeze(); }
};

template <class P>
struct blocking_freeze_subject {  // enter(), as a caller that is willing to wait spells it
  pmgate::basic_freeze_gate<P> gate;
  bool enter() { return gate.enter() == pmgate::status::ok; }
  void leave() { gate.exit(); }
};

template <class P>
struct ref_subject {
  pmgate::basic_percpu_ref<P> ref{[](pmgate::basic_percpu_ref<P>&) noexcept {},
                                  pmgate::ref_init::allow_reinit};
  ~ref_subject() { ref.exit(); }
  bool enter() { return ref.try_get_live(); }
  void leave() { ref.put(); }
  void close() { (void)ref.kill(); }
  void open() { (void)ref.resurrect(); }
};

template <class P>
struct quiesce_subject {
  pmgate::basic_quiesce_gate<P> gate;
  bool enter() { return gate.try_dispatch(); }
  void leave() { gate.end_dispatch(); }
  void close() { (void)gate.quiesce(); }
  void open() { (void)gate.unquiesce(); }
};

struct atomic_subject {
  alignas(64) std::atomic<std::int64_t> count{0};
  bool enter() {
    count.fetch_add(1, std::memory_order_acq_rel);
    return true;
  }
  void leave() { count.fetch_sub(1, std::memory_order_acq_rel); }
};

struct shared_mutex_subject {
  std::shared_mutex mutex;
  bool enter() {
    mutex.lock_shared();
    return true;
  }
  void leave() { mutex.unlock_shared(); }
  void close() { mutex.lock(); }
  void open() { mutex.unlock(); }
};

#if PMGATE_DETAIL_RSEQ

/// The floor: the CPU's word, one add in a restartable sequence; no gate, no test of
/// a state, no bound on the CPU number.
struct bare_rseq_subject {
  static constexpr std::size_t stride = 64;
  alignas(64) std::byte words[1024 * stride]{};

  [[gnu::always_inline]] static inline bool add(std::byte* words, std::intptr_t n) {
    asm goto(
        ".pushsection __rseq_cs, \"aw?\"\n\t"
        ".balign 32\n\t"
        "3: .long 0, 0\n\t"
        ".quad 1f, 2f - 1f, 4f\n\t"
        ".popsection\n\t"
        "leaq 3b(%%rip), %%rax\n\t"
        "movq %%rax, %%fs:8(%[area])\n\t"
        "1:\n\t"
        "movl %%fs:4(%[area]), %%eax\n\t"
        "shlq $6, %%rax\n\t"
        "addq %[n], (%[words], %%rax)\n\t"
        "2:\n\t"
        ".pushsection __rseq_abort, \"ax?\"\n\t"
        ".byte 0x0f, 0xb9, 0x3d\n\t"
        ".long %c[signature]\n\t"
        "4: jmp %l[aborted]\n\t"
        ".popsection"
        :
        : [area] "r"(__rseq_offset), [words] "r"(words), [n] "er"(n), [signature] "i"(RSEQ_SIG)
        : "memory", "cc", "rax"
        : aborted);
    return true;
  aborted:
    return false;
  }
  bool enter() {
    while (!add(words, 1)) {
    }
    return true;
  }
  void leave() {
    while (!add(words, -1)) {
    }
  }
};

#endif  // PMGATE_DETAIL_RSEQ

template <class Subject>
Subject*& shared_subject() {
  static Subject* subject = nullptr;
  return subject;
}

template <class Subject>
void make_subject(const benchmark::State&) {
  shared_subject<Subject>() = new Subject;
}
template <class Subject>
void drop_subject(const benchmark::State&) {
  delete shared_subject<Subject>();
}

/// One entry and one exit, by each of the threads, at one object.
template <class Subject>
void enter_exit(benchmark::State& state) {
  pin_to(state.thread_index());
  Subject& subject = *shared_subject<Subject>();
  std::int64_t refused = 0;
  for (auto _ : state) {
    if (subject.enter()) [[likely]] {
      benchmark::ClobberMemory();
      subject.leave();
    } else {
      ++refused;
    }
  }
  if (refused != 0) state.SkipWithError("the gate refused");
  // Wall time of one pair as one thread sees it; the library divides by the threads.
  state.counters["per_pair"] =
      benchmark::Counter(static_cast<double>(state.iterations()),
                         benchmark::Counter::kAvgThreadsRate | benchmark::Counter::kInvert);
}

/// Threads of this process that keep other CPUs busy.
class busy_threads {
 public:
  explicit busy_threads(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      threads_.emplace_back([this, i] {
        pin_to(static_cast<int>(i) + 1);
        while (!stop_.load(std::memory_order_relaxed)) {
        }
      });
    }
  }
  ~busy_threads() {
    stop_ = true;
    for (auto& thread : threads_) thread.join();
  }
  busy_threads(const busy_threads&) = delete;
  busy_threads& operator=(const busy_threads&) = delete;

 private:
  alignas(64) std::atomic<bool> stop_{false};  // nothing that is measured lies beside it
  alignas(64) std::vector<std::thread> threads_;
};

/// Closing and opening, with `busy` other CPUs busy in this process.
template <class Subject>
void close_open(benchmark::State& state) {
  pin_to(0);
  Subject subject;
  const busy_threads busy(state.range(0));
  for (auto _ : state) {
    subject.close();
    benchmark::ClobberMemory();
    subject.open();
  }
}

using benchmark_clock = std::chrono::steady_clock;

double seconds_since(benchmark_clock::time_point begin) {
  return std::chrono::duration<double>(benchmark_clock::now() - begin).count();
}

/// Freezing `gates` gates, with `busy` other CPUs busy: all at once, or one by one. The
/// time is that of closing; opening is another benchmark.
template <bool together>
void freeze_many(benchmark::State& state) {
  pin_to(0);
  std::deque<pmgate::freeze_gate> gates(static_cast<std::size_t>(state.range(0)));
  const busy_threads busy(state.range(1));
  for (auto _ : state) {
    const auto begin = benchmark_clock::now();
    if constexpr (together) {
      (void)pmgate::freeze_all(gates);
    } else {
      for (auto& gate : gates) (void)gate.freeze();
    }
    state.SetIterationTime(seconds_since(begin));
    pmgate::unfreeze_all(gates);
  }
  state.counters["per_gate"] =
      benchmark::Counter(static_cast<double>(state.iterations() * state.range(0)),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

/// Opening a gate with nobody waiting: 100 of them per reading of the clock.
void thaw(benchmark::State& state) {
  pin_to(0);
  std::deque<pmgate::freeze_gate> gates(100);
  for (auto _ : state) {
    (void)pmgate::freeze_all(gates);
    const auto begin = benchmark_clock::now();
    pmgate::unfreeze_all(gates);
    state.SetIterationTime(seconds_since(begin) / static_cast<double>(gates.size()));
  }
}

#if PMGATE_DETAIL_RSEQ
struct membarrier_subject {
  void close() {
    (void)::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0);
  }
  void open() {}
};
#endif

double least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

template <class Subject>
void add_enter_exit(const std::string& name) {
  benchmark::RegisterBenchmark(("gate_enter_exit/" + name).c_str(), &enter_exit<Subject>)
      ->Setup(&make_subject<Subject>)
      ->Teardown(&drop_subject<Subject>)
      ->Threads(1)
      ->Threads(2)
      ->UseRealTime()
      ->ComputeStatistics("min", &least);
}

template <class Subject>
void add_close_open(const std::string& name) {
  benchmark::RegisterBenchmark(("gate_freeze_unfreeze/" + name).c_str(), &close_open<Subject>)
      ->ArgName("busy")
      ->Arg(0)
      ->Arg(1)
      ->UseRealTime()
      ->ComputeStatistics("min", &least);
}

template <bool together>
void add_freeze_many(const std::string& name) {
  benchmark::RegisterBenchmark(("gate_freeze_many/" + name).c_str(), &freeze_many<together>)
      ->ArgNames({"gates", "busy"})
      ->ArgsProduct({{1, 1000}, {0, 1}})
      ->UseManualTime()
      ->ComputeStatistics("min", &least);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;

  // Registers for membarrier, which the floor and the yardstick need as well.
  const bool sequences = default_platform::cpu_counter(true).is_cpu_local();
  const std::string engine = sequences ? "rseq" : "fallback";
  benchmark::AddCustomContext("engine", engine);

  add_enter_exit<freeze_subject<default_platform>>("freeze_gate_" + engine);
  add_enter_exit<blocking_freeze_subject<default_platform>>("freeze_gate_" + engine + "_enter");
  add_enter_exit<freeze_subject<portable_platform>>("freeze_gate_sharded");
  add_enter_exit<ref_subject<default_platform>>("percpu_ref_" + engine);
  add_enter_exit<quiesce_subject<default_platform>>("quiesce_gate_" + engine);
#if PMGATE_DETAIL_RSEQ
  if (sequences) add_enter_exit<bare_rseq_subject>("bare_rseq");
#endif
  add_enter_exit<atomic_subject>("one_atomic");
  add_enter_exit<shared_mutex_subject>("shared_mutex");

  add_close_open<freeze_subject<default_platform>>("freeze_gate_" + engine);
  add_close_open<freeze_subject<portable_platform>>("freeze_gate_sharded");
  add_close_open<ref_subject<default_platform>>("percpu_ref_" + engine);
  add_close_open<quiesce_subject<default_platform>>("quiesce_gate_" + engine);
#if PMGATE_DETAIL_RSEQ
  if (sequences) add_close_open<membarrier_subject>("one_membarrier");
#endif
  add_close_open<shared_mutex_subject>("shared_mutex");

  add_freeze_many<true>("freeze_all");
  add_freeze_many<false>("one_by_one");
  benchmark::RegisterBenchmark("gate_thaw/freeze_gate", &thaw)
      ->UseManualTime()
      ->ComputeStatistics("min", &least);

  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
