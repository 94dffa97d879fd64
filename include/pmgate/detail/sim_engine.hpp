// SPDX-License-Identifier: MIT
//
// pmgate/detail/sim_engine.hpp - runs one schedule after the other.
//
// Every operation of the simulated platform calls point() first: there the engine
// may let somebody else go on, empty a store buffer, or move the thread to
// another CPU. The operation then happens at one instant. A thread that was let
// go on does its operation without another choice.
//
// The class is here; sim_schedule.hpp has what chooses and switches, and
// sim_operations.hpp what the operations do. Use sim_memory.hpp, which has all.
//
// Hosted: <array>
#ifndef PMGATE_DETAIL_SIM_ENGINE_HPP
#define PMGATE_DETAIL_SIM_ENGINE_HPP

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include <pmgate/detail/sim_cell.hpp>
#include <pmgate/detail/sim_choices.hpp>
#include <pmgate/detail/sim_fiber.hpp>
#include <pmgate/platform/concept.hpp>
#include <pmgate/platform/sim_options.hpp>

namespace pmgate::detail {

/// The scheduler, the threads and their store buffers.
///
/// Lifetime: one per exploration. Threads: the one that explores.
class sim_engine {
public:
  using mask = std::uint64_t;

  /// A thread of the test.
  struct body {
    void (*run)(void* state, const void* function) = nullptr;
    const void* function = nullptr;
  };
  /// What is explored: `make` runs before the threads; `finish` after them, in a fiber.
  struct scenario {
    void* state = nullptr;
    void (*make)(void* state) = nullptr;
    void (*finish)(void* state) = nullptr;
    std::array<body, sim::max_threads> bodies{};
    int threads = 0;
  };

  sim_engine(const scenario& what, const sim::options& how) noexcept
      : scenario_(what), options_(how) {}

  sim::result explore();

  /// The engine whose fiber runs now; null outside of fibers.
  static sim_engine*& running() noexcept { return running_; }
  /// The engine that explores; also while a scenario is made and finished.
  static sim_engine*& exploring() noexcept { return exploring_; }
  static std::uint32_t next_number() noexcept { return ++numbers_; }

  // -- for the operations of the platform; from fibers only

  /// Where the schedule may turn to something else.
  void point() noexcept {
    if (++steps_ > options_.steps) [[unlikely]]
      fail("%u steps: a livelock?", options_.steps);
    if (fresh_) {
      fresh_ = false;
    } else {
      schedule(true);
    }
  }
  /// Fails the schedule if the place is gone; notes the access.
  void access(const sim_cell& place) noexcept {
    if (place.alive != sim_cell::living) [[unlikely]]
      fail_dead(place);
    place.touched.of[current_] = self().seen.of[current_];
  }

  std::uint64_t load(const sim_cell& place, std::memory_order order) noexcept;
  void store(sim_cell& place, std::uint64_t value, std::memory_order order) noexcept;
  /// change(old, new): false if nothing is stored.
  template <class Change>
  std::uint64_t update(sim_cell& place, std::memory_order order, std::memory_order refused,
                       const char* what, Change change) noexcept;
  void fence(std::memory_order order) noexcept;
  bool weak_exchange_fails() noexcept;

  bool wait(const sim_cell& word, std::uint64_t old, const std::int64_t* deadline) noexcept;
  void wake_all(const sim_cell& word) noexcept;
  void publish_add(sim_cell& word, std::uint64_t n, std::uint64_t values) noexcept;
  void settle(const sim_cell& word) noexcept;
  void lock(sim_cell& mutex) noexcept;
  void unlock(sim_cell& mutex) noexcept;

  void guarded_read(const sim_cell& place) noexcept;
  void guarded_write(sim_cell& place) noexcept;
  void destroyed(sim_cell& place) noexcept;

  // -- restartable sequences and grace periods

  [[nodiscard]] bool begin_sequence() noexcept;  ///< false: this thread has none
  [[nodiscard]] bool aborted() const noexcept { return self().aborted; }
  void end_sequence() noexcept { self().in_sequence = false; }
  [[nodiscard]] bool commit_add(sim_cell& slot, std::uint64_t n) noexcept;
  [[nodiscard]] int cpu() const noexcept { return self().cpu; }

  bool heavy_fence() noexcept;
  bool after_grace_period(grace_callback& first) noexcept;

  // -- what else a schedule knows

  [[nodiscard]] int current() const noexcept { return current_; }
  [[nodiscard]] std::int64_t now() const noexcept { return now_; }
  [[nodiscard]] const sim::options& options() const noexcept { return options_; }
  [[gnu::format(printf, 2, 3)]] void fail(const char* format, ...) noexcept;
  [[gnu::format(printf, 2, 3)]] void say(const char* format, ...) const noexcept;
  void note(const char* text) const noexcept {
    if (log_) say("T%d -- %s", current_, text);
  }
  void misuse(const char* text) noexcept;
  void allow_misuse(int times) noexcept { misuses_allowed_ += times; }
  [[nodiscard]] int misuses() const noexcept { return misuses_; }

private:
  static constexpr int flushes = 8;  // outcome: thread (n - flushes) empties one store
  static constexpr int moves = 16;   // outcome: the thread goes to CPU (n - moves)
  static constexpr int buffer_size = 8;

  struct delayed_store {
    sim_cell* place;
    std::uint64_t value;
    sim_clock released;
  };
  struct thread {
    sim_fiber fiber;
    sim_clock seen;    // what happened before the thread's next operation
    sim_clock loaded;  // what an acquire fence would add to it
    sim_clock fenced;  // what a relaxed store publishes: as of the last release fence
    std::array<delayed_store, buffer_size> buffer;
    int buffered;
    std::uint32_t up_to_date;  // stores that it cannot miss any more: as of its last barrier
    int cpu;
    bool in_sequence;
    bool aborted;
    bool timed_out;
    std::int64_t deadline;
    const sim_cell* waits_for;
    const char* waits_how;
    int priority;
  };

  static constexpr mask bit(int n) noexcept { return mask{1} << n; }
  thread& self() noexcept { return threads_[static_cast<std::size_t>(current_)]; }
  const thread& self() const noexcept { return threads_[static_cast<std::size_t>(current_)]; }
  thread& of(int index) noexcept { return threads_[static_cast<std::size_t>(index)]; }
  [[nodiscard]] bool logs() const noexcept { return log_; }
  [[nodiscard]] bool defers() const noexcept {
    return options_.grace == sim::grace_model::deferred;
  }
  [[nodiscard]] int grace_thread() const noexcept { return scenario_.threads; }
  [[nodiscard]] mask everybody() const noexcept {
    return bit(scenario_.threads + (defers() ? 1 : 0)) - 1;
  }

  static void fiber_entry();
  void run_fiber() noexcept;
  void run_grace_periods() noexcept;
  void run_once();
  bool given_schedule();
  void start() noexcept;
  void finish() noexcept;

  void schedule(bool can_go_on) noexcept;
  mask outcomes(bool can_go_on) const noexcept;
  int choose(mask from, bool can_go_on) noexcept;
  int highest_priority(mask from) noexcept;
  void go_to(int thread_index) noexcept;
  void enter_cpu(int thread_index) noexcept;
  void move_to(int cpu) noexcept;
  int decide(int count) noexcept;
  void block(const sim_cell* on, const char* how) noexcept;
  void admit(const sim_cell& mutex) noexcept;
  void wake_sleepers(const sim_cell& word) noexcept;
  void unblock(int thread_index) noexcept;
  void finish_thread() noexcept;
  void stuck() noexcept;
  [[noreturn]] void fail_dead(const sim_cell& place) noexcept;
  [[noreturn]] void leave_fibers() noexcept;

  void remember(sim_cell& place, int writer) noexcept;
  void notice(sim_clock& noticed) const noexcept;
  const sim_version* late_version(const sim_cell& place, std::memory_order order) noexcept;
  bool delays(thread& me) noexcept;
  void put(thread& me, sim_cell& place, std::uint64_t value, const sim_clock& released) noexcept;
  void flush(int thread_index) noexcept;
  void drain(int thread_index) noexcept;
  void interrupt(int thread_index) noexcept;
  bool is_refused() noexcept;
  void fence_all() noexcept;
  const delayed_store* own_store(const sim_cell& place) const noexcept;

  static inline thread_local constinit sim_engine* running_ = nullptr;
  static inline thread_local constinit sim_engine* exploring_ = nullptr;
  static inline thread_local constinit std::uint32_t numbers_ = 0;

  scenario scenario_;
  sim::options options_;
  sim_choices choices_;
  sim_fiber main_;
  std::array<thread, sim_fibers> threads_{};

  // of the schedule that runs
  int current_ = -1;
  bool fresh_ = false;      // the thread has just been chosen: no choice at its next point
  bool finishing_ = false;  // the threads are done, the state is looked at
  bool shares_cpus_ = false;
  mask runnable_ = 0;
  mask sleeping_ = 0;  // on a wait word
  mask timed_ = 0;     // ... with a deadline
  mask buffered_ = 0;  // with stores in their buffers
  mask finished_ = 0;
  std::array<int, sim::max_cpus> on_cpu_{};
  std::uint32_t steps_ = 0;
  int preemptions_ = 0;
  int delayed_ = 0;
  int migrations_ = 0;
  int refused_ = 0;
  int spurious_ = 0;
  int stale_ = 0;
  std::uint32_t stores_ = 0;
  int misuses_ = 0;
  int misuses_allowed_ = 0;
  std::int64_t now_ = 0;
  grace_callback* grace_first_ = nullptr;
  grace_callback* grace_last_ = nullptr;
  bool failed_ = false;
  bool log_ = false;
  std::uint64_t likely_steps_ = 64;
  std::array<std::uint64_t, 8> change_at_{};
  char failure_[512] = "";
};

inline sim_cell::sim_cell(std::uint64_t initial) noexcept
    : value(initial), number(sim_engine::next_number()) {}

inline sim_cell::~sim_cell() {
  if (sim_engine* const engine = sim_engine::running()) engine->destroyed(*this);
  alive = dead;
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_SIM_ENGINE_HPP
