// SPDX-License-Identifier: MIT
//
// gate_torture.cpp - many threads at one freeze gate, and a history checker.
//
// Usage:  gate_torture [--seconds N] [--enters N] [--freezes N] [--threads N]
//                      [--rest N] [--platform linux|portable] [--seed N]
// Prints: counts of enters, freezes and violations. Exit status 1 on any violation.
//
// The history that is checked: no entry overlaps a frozen interval. Who enters says
// so in a word of his own, with plain stores that order nothing, so that nothing but
// the gate keeps them in order; who has frozen looks at all the words, and who leaves
// looks whether anybody has frozen. Entries are handed to other threads, queued and
// cancelled, freezes nest, threads move between CPUs, and now and then the gate is
// destroyed right after freeze_wait(), its memory poisoned and used again.
#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/platform/portable.hpp>

namespace {

using pmgate::enter_flags;
using pmgate::status;

struct options {
  std::int64_t seconds = 3;
  std::uint64_t enters = 0;   // at least so many,
  std::uint64_t freezes = 0;  // and so many, however long it takes
  std::int64_t threads = 4;
  std::int64_t rest = 5000;
  std::uint64_t seed = 1;
  bool portable = false;
};

/// xorshift64*: small, and the same everywhere.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15U | 1U) {}
  std::uint64_t operator()(std::uint64_t below) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1dU >> 32) % below;
  }

 private:
  std::uint64_t state_;
};

void pin_to(unsigned cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu % std::max(1U, std::thread::hardware_concurrency()), &set);
  (void)::sched_setaffinity(0, sizeof set, &set);
#else
  (void)cpu;
#endif
}

/// Now and then gives way: nothing, a few empty rounds, or the CPU.
void stutter(random_numbers& random) {
  const std::uint64_t how = random(64);
  if (how == 0) {
    std::this_thread::yield();
  } else if (how < 8) {
    for (std::uint64_t i = random(200); i > 0; --i) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
  }
}

struct counts {
  std::atomic<std::uint64_t> enters{0};
  std::atomic<std::uint64_t> refusals{0};
  std::atomic<std::uint64_t> resumed{0};
  std::atomic<std::uint64_t> cancelled{0};
  std::atomic<std::uint64_t> handed_over{0};
  std::atomic<std::uint64_t> freezes{0};
  std::atomic<std::uint64_t> timed_out{0};
  std::atomic<std::uint64_t> pm_only{0};
  std::atomic<std::uint64_t> rebuilt{0};
  std::atomic<std::uint64_t> violations{0};
  std::atomic<std::uint64_t> misuses{0};
};
counts total;

void violation(const char* what, std::uint64_t seed) {
  if (total.violations.fetch_add(1) < 10) {
    std::fprintf(stderr, "violation: %s (seed %llu)\n", what,
                 static_cast<unsigned long long>(seed));
  }
}

/// A waiter, and how often it was resumed.
template <class P>
class waiting {
 public:
  typename pmgate::basic_freeze_gate<P>::waiter waiter{&resume};

  /// After in_progress: cancels if told so, else is idle until it is resumed.
  /// Returns: status::again if cancelled.
  template <class Idle>
  status outcome(pmgate::basic_freeze_gate<P>& gate, bool cancel, std::uint64_t seed, Idle idle) {
    if (cancel && gate.cancel(waiter)) {
      total.cancelled.fetch_add(1, std::memory_order_relaxed);
      if (resumed_.load() != 0) violation("cancelled and resumed", seed);
      return status::again;
    }
    while (resumed_.load(std::memory_order_acquire) == 0) idle();
    total.resumed.fetch_add(1, std::memory_order_relaxed);
    if (resumed_.exchange(0) != 1) violation("resumed twice", seed);
    return result_;
  }

 private:
  static void resume(pmgate::basic_gate_waiter<P>& self, status result) noexcept {
    auto& whole = *reinterpret_cast<waiting*>(&self);  // its first member
    whole.result_ = result;
    whole.resumed_.fetch_add(1, std::memory_order_release);
  }
  status result_ = status::ok;
  std::atomic<int> resumed_{0};
};

template <class P>
class torture {
 public:
  explicit torture(const options& wanted)
      : options_(wanted), own_words_(static_cast<std::size_t>(wanted.threads)) {
    build();
  }
  ~torture() { gate_->~gate(); }
  torture(const torture&) = delete;
  torture& operator=(const torture&) = delete;

  void run() {
    std::vector<std::thread> threads;
    for (std::int64_t i = 0; i < options_.threads; ++i) {
      threads.emplace_back([this, i] { user(static_cast<unsigned>(i)); });
    }
    threads.emplace_back([this] { freezer(1000); });
    threads.emplace_back([this] { freezer(1001); });
    threads.emplace_back([this] { power_manager(1002); });
    rebuilder(1003);
    stop_ = true;
    // Freezers may be waiting for entries that were handed over and not taken.
    while (users_.load() != 0) make_way();
    for (auto& thread : threads) thread.join();
    empty_all_boxes();
    if (gate_->freeze() != status::ok) violation("the last freeze", options_.seed);
    check_drained("after the last freeze");
    gate_->unfreeze();
  }

 private:
  using gate = pmgate::basic_freeze_gate<P>;

  void build() {
    gate_ = ::new (static_cast<void*>(room_.data())) gate;
    gate_is_there_.store(true, std::memory_order_release);
  }

  // The users are in an epoch of their own: the gate is destroyed only when none of
  // them uses it, so what is proved is that the *last exit* has let go of it.
  bool begin_use() {
    users_.fetch_add(1);
    if (gate_is_there_.load()) return true;
    users_.fetch_sub(1);
    return false;
  }
  void end_use() { users_.fetch_sub(1); }

  void check_not_frozen() {
    if (frozen_.load(std::memory_order_relaxed) != 0) {
      violation("somebody was inside a frozen gate", options_.seed);
    }
  }
  void check_drained(const char* when) {
    int inside = boxed_.load(std::memory_order_relaxed);
    for (const auto& word : own_words_) inside += word.inside.load(std::memory_order_relaxed);
    if (inside != 0) violation(when, options_.seed);
    if (!gate_->usage().is_zero()) violation("frozen, and the count is not zero", options_.seed);
  }

  void user(unsigned number) {
    random_numbers random(options_.seed + number);
    std::atomic<int>& mine = own_words_[number].inside;
    waiting<P> queued;
    const auto idle = [this] { make_way(); };
    std::uint64_t enters = 0;
    std::uint64_t refusals = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      if (!begin_use()) {
        make_way();
        continue;
      }
      pin_to(random(8) == 0 ? static_cast<unsigned>(random(64)) : number);
      for (int i = 0; i < 200 && gate_is_there_.load(std::memory_order_relaxed); ++i) {
        enters += in_and_out(mine);
        // Blocking entries only with a deadline: the gate may be about to go.
        const std::uint64_t how = random(16);
        const enter_flags flags = how % 2 == 0 ? enter_flags::none : enter_flags::pm;
        const std::uint64_t sure_before = pm_sure_.load(std::memory_order_acquire);
        status answer;
        if (how < 10) {
          answer = gate_->enter(flags | enter_flags::nowait);
        } else if (how < 12) {
          answer = gate_->enter_until(P::now() + P::milliseconds(1), flags);
        } else {
          answer = gate_->enter_or_wait(queued.waiter, flags);
          if (answer == status::in_progress) {
            stutter(random);
            answer = queued.outcome(*gate_, random(2) == 0, options_.seed, idle);
          }
        }
        if (answer != status::ok) {
          ++refusals;
          continue;
        }
        mine.store(1, std::memory_order_relaxed);
        ++enters;
        if (how % 2 == 0 && sure_before % 2 == 1 && pm_sure_.load(std::memory_order_acquire) == sure_before) {
          violation("a normal request passed pm_only", options_.seed);
        }
        stutter(random);
        if (how == 3) {
          auto& box = boxes_[random(boxes_.size())];
          if (put_in(box, &mine)) {  // another thread will leave
            total.handed_over.fetch_add(1, std::memory_order_relaxed);
            continue;
          }
        }
        check_not_frozen();
        mine.store(0, std::memory_order_relaxed);
        gate_->exit();
        empty(boxes_[random(boxes_.size())]);
      }
      end_use();
      empty_all_boxes();
      // Now and then the freezers have the CPUs to themselves.
      if (options_.rest > 0 && random(2) == 0) {
        std::this_thread::sleep_for(
            std::chrono::microseconds(random(static_cast<std::uint64_t>(options_.rest))));
      }
      total.enters.fetch_add(std::exchange(enters, 0), std::memory_order_relaxed);
      total.refusals.fetch_add(std::exchange(refusals, 0), std::memory_order_relaxed);
    }
  }
  /// The bulk: nothing but entering, the two words, and leaving.
  std::uint64_t in_and_out(std::atomic<int>& mine) {
    std::uint64_t enters = 0;
    while (enters < 500 && gate_->try_enter()) {
      mine.store(1, std::memory_order_relaxed);
      ++enters;
      check_not_frozen();
      mine.store(0, std::memory_order_relaxed);
      gate_->exit();
    }
    return enters;
  }
  // A box holds an entry that whoever takes it will leave. Legal at any time: an
  // entry keeps the gate from going. Its exit may be the end of the gate.
  bool put_in(std::atomic<int>& box, std::atomic<int>* mine) {
    boxed_.fetch_add(1);
    if (mine != nullptr) mine->store(0, std::memory_order_relaxed);
    int nothing = 0;
    if (box.compare_exchange_strong(nothing, 1)) return true;
    if (mine != nullptr) mine->store(1, std::memory_order_relaxed);
    boxed_.fetch_sub(1);
    return false;
  }
  void empty(std::atomic<int>& box) {
    if (box.load(std::memory_order_relaxed) == 0 || box.exchange(0) == 0) return;
    check_not_frozen();
    boxed_.fetch_sub(1);
    gate_->exit();
  }
  void empty_all_boxes() {
    for (auto& box : boxes_) empty(box);
  }
  /// Whoever waits lets the freezers get on: legal at any time, as the entry in a box
  /// keeps the gate from going.
  void make_way() {
    empty_all_boxes();
    std::this_thread::yield();
  }

  void freezer(unsigned number) {
    random_numbers random(options_.seed + number);
    waiting<P> queued;
    const auto idle = [this] { make_way(); };
    while (!stop_.load(std::memory_order_relaxed)) {
      if (!begin_use()) {
        make_way();
        continue;
      }
      const std::uint64_t how = random(16);
      if (how == 15) pin_to(static_cast<unsigned>(random(64)));
      if (gate_->freeze_start() != status::ok) violation("freeze_start refused", options_.seed);
      if (how == 4 && gate_->drained_or_wait(queued.waiter) == status::in_progress &&
          queued.outcome(*gate_, random(2) == 0, options_.seed, idle) != status::ok) {
        // Cancelled: undone without a wait.
      } else if (how == 0) {  // undone without a wait
        stutter(random);
      } else if (how == 1 &&
                 !gate_->freeze_wait_until(P::now() + P::milliseconds(0))) {
        total.timed_out.fetch_add(1, std::memory_order_relaxed);
      } else {
        if (gate_->freeze_wait() != status::ok) violation("freeze_wait refused", options_.seed);
        frozen_.fetch_add(1);
        check_drained("freeze returned with somebody inside");
        stutter(random);
        check_drained("somebody entered a frozen gate");
        frozen_.fetch_sub(1);
        total.freezes.fetch_add(1, std::memory_order_relaxed);
      }
      if (how == 2) {
        gate_->unfreeze_to_atomic();
      } else {
        gate_->unfreeze();
      }
      if (how == 3) gate_->switch_to_percpu();
      end_use();
      if (random(4) == 0) std::this_thread::yield();
      // In bursts, so that the users get somewhere.
      if (random(1000) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void power_manager(unsigned number) {
    pin_to(number);
    random_numbers random(options_.seed + number);
    while (!stop_.load(std::memory_order_relaxed)) {
      if (!begin_use()) {
        make_way();
        continue;
      }
      gate_->set_pm_only();
      if (gate_->freeze() != status::ok) violation("freeze refused", options_.seed);
      check_drained("freeze for pm_only returned with somebody inside");
      gate_->unfreeze();
      pm_sure_.fetch_add(1);  // odd: nobody but PM gets in
      stutter(random);
      pm_sure_.fetch_add(1);
      gate_->clear_pm_only();
      total.pm_only.fetch_add(1, std::memory_order_relaxed);
      end_use();
      std::this_thread::sleep_for(std::chrono::microseconds(random(100)));
    }
  }

  /// Takes the gate away: closes it, waits until it is drained, destroys it at once.
  void rebuilder(unsigned number) {
    random_numbers random(options_.seed + number);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(options_.seconds);
    while (std::chrono::steady_clock::now() < end || total.enters.load() < options_.enters ||
           total.freezes.load() < options_.freezes) {
      std::this_thread::sleep_for(std::chrono::microseconds(500 + random(2000)));
      // One entry stays inside and is left by another thread while we wait: its exit
      // is the one that must have let go of the gate.
      gate_is_there_.store(false);
      while (users_.load() != 0) std::this_thread::yield();
      empty_all_boxes();
      if (gate_->depth() != 0 || gate_->pm_only() != 0) violation("left frozen", options_.seed);
      if (gate_->enter() != status::ok) violation("enter refused", options_.seed);
      if (!put_in(boxes_[0], nullptr)) gate_->exit();
      if (gate_->freeze() != status::ok) violation("freeze refused", options_.seed);
      check_drained("the last freeze returned with somebody inside");
      gate_->~gate();
      room_.fill(std::byte{0xa5});
      std::this_thread::yield();
      if (std::any_of(room_.begin(), room_.end(), [](std::byte b) { return b != std::byte{0xa5}; })) {
        violation("the memory of a destroyed gate was written", options_.seed);
      }
      total.rebuilt.fetch_add(1, std::memory_order_relaxed);
      build();
    }
  }

  options options_;
  alignas(gate) std::array<std::byte, sizeof(gate)> room_{};
  gate* gate_ = nullptr;
  std::atomic<bool> gate_is_there_{false};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> users_{0};
  alignas(64) std::atomic<int> boxed_{0};
  alignas(64) std::atomic<int> frozen_{0};
  alignas(64) std::atomic<std::uint64_t> pm_sure_{0};
  alignas(64) std::array<std::atomic<int>, 4> boxes_{};
  struct alignas(64) own_word {
    std::atomic<int> inside{0};
  };
  std::vector<own_word> own_words_;  // of each user
};

void usage(std::FILE* to) {
  std::fputs(
      "usage: gate_torture [--seconds N] [--enters N] [--freezes N] [--threads N]\n"
      "                    [--rest N] [--platform linux|portable] [--seed N]\n"
      "  --seconds N    how long at least (default 3)\n"
      "  --enters N     how many entries at least (default 0)\n"
      "  --freezes N    how many freezes at least (default 0)\n"
      "  --threads N    how many threads enter and leave (default 4)\n"
      "  --rest N       they rest up to N microseconds now and then, which leaves the\n"
      "                 CPUs to who freezes (default 5000; 0: never)\n"
      "  --platform P   linux (the default where there is one) or portable\n"
      "  --seed N       for the random stutter (default 1)\n"
      "Exit status: 0 without violations, 1 with, 2 for bad arguments.\n",
      to);
}

template <class T>
bool parse(std::string_view text, T& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc{} && result.ptr == text.data() + text.size();
}

/// Returns: false for bad arguments.
bool parse(const std::vector<std::string_view>& arguments, options& wanted) {
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    if (i + 1 == arguments.size()) return false;
    const std::string_view name = arguments[i];
    const std::string_view value = arguments[i + 1];
    if (name == "--seconds") {
      if (!parse(value, wanted.seconds) || wanted.seconds < 1) return false;
    } else if (name == "--enters") {
      if (!parse(value, wanted.enters)) return false;
    } else if (name == "--freezes") {
      if (!parse(value, wanted.freezes)) return false;
    } else if (name == "--threads") {
      if (!parse(value, wanted.threads) || wanted.threads < 1) return false;
    } else if (name == "--rest") {
      if (!parse(value, wanted.rest) || wanted.rest < 0) return false;
    } else if (name == "--seed") {
      if (!parse(value, wanted.seed)) return false;
    } else if (name == "--platform" && (value == "linux" || value == "portable")) {
      wanted.portable = value == "portable";
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int count, char** texts) {
  const std::vector<std::string_view> arguments(texts + 1, texts + count);
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    usage(stdout);
    return 0;
  }
  options wanted;
  if (!parse(arguments, wanted)) {
    usage(stderr);
    return 2;
  }
  pmgate::set_misuse_handler([](const char* text) noexcept {
    if (total.misuses.fetch_add(1) < 10) std::fprintf(stderr, "misuse: %s\n", text);
  });

  if (wanted.portable) {
    std::make_unique<torture<pmgate::portable_platform>>(wanted)->run();
  } else {
    std::make_unique<torture<pmgate::default_platform>>(wanted)->run();
  }

  const auto print = [](const char* name, const std::atomic<std::uint64_t>& value) {
    std::printf("%-12s %llu\n", name, static_cast<unsigned long long>(value.load()));
  };
  print("enters", total.enters);
  print("refusals", total.refusals);
  print("resumed", total.resumed);
  print("cancelled", total.cancelled);
  print("handed over", total.handed_over);
  print("freezes", total.freezes);
  print("timed out", total.timed_out);
  print("pm_only", total.pm_only);
  print("rebuilt", total.rebuilt);
  print("misuses", total.misuses);
  print("violations", total.violations);
  return total.violations == 0 && total.misuses == 0 ? 0 : 1;
}
