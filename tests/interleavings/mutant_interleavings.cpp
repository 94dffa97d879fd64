// SPDX-License-Identifier: MIT
//
// mutant_interleavings.cpp - the explorations find what they are there to find.
//
// Each case plants one bug and expects a failure, in less than a second. Bugs are
// planted from outside: a platform with one part replaced, a counter engine with
// one line changed, a caller who leaves a step out.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <utility>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/percpu_ref.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace {

using namespace interleavings;
using pmgate::sim_platform;
using pmgate::sim_sharded_platform;

constexpr sim::options sc{.preemptions = 3};
constexpr sim::options tso{.memory = sim::memory_model::store_buffers, .preemptions = 2};
constexpr sim::options condition{.sleep = sim::sleep_model::condition, .preemptions = 3};

/// Explores until the bug shows.
template <class State, class... Threads>
void caught(const char* title, sim::options how, const Threads&... threads) {
  how.name = title;
  const auto begin = std::chrono::steady_clock::now();
  const sim::result found = sim::explore<State>(how, threads...);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  std::printf("  %-58s %7llu schedules %6.3f s  %s\n", title,
              static_cast<unsigned long long>(found.schedules), took.count(),
              found ? "NOT CAUGHT" : found.failure.c_str());
  std::fflush(stdout);
  ++tally::all().tests;
  tally::all().schedules += found.schedules;
  CHECK_FALSE_MESSAGE(found.failure.empty(), title);
  CHECK_MESSAGE(took.count() < 1.0, title);
}

// --- platforms with one part replaced ------------------------------------------------

template <class Word>
struct with_word : sim_platform {
  using wait_word = Word;
};
struct deaf_word : sim::wait_word {
  using sim::wait_word::wait_word;
  void wake_all() noexcept {}
};
struct unsettled_word : sim::wait_word {
  using sim::wait_word::wait_word;
  void settle() noexcept {}
};
struct touching_word : sim::wait_word {
  using sim::wait_word::wait_word;
  void publish_add(std::uint32_t n) noexcept {
    (void)fetch_add(n, std::memory_order_acq_rel);
    wake_all();
  }
};
struct relaxed_word : sim::wait_word {
  using sim::wait_word::wait_word;
  void publish_add(std::uint32_t n) noexcept {
    (void)fetch_add(n, std::memory_order_relaxed);
    wake_all();
  }
};
struct hasty_word : sim::wait_word {
  using sim::wait_word::wait_word;
  void publish_add(std::uint32_t n) noexcept {
    wake_all();
    (void)fetch_add(n, std::memory_order_acq_rel);
  }
};

struct no_mutex {
  void lock() noexcept {}
  void unlock() noexcept {}
};
struct without_mutex : sim_platform {
  using mutex = no_mutex;
};

/// Lowers the order of one kind of operation.
template <class T, std::memory_order Sub, std::memory_order Or, std::memory_order Compare>
struct weak_atomic : sim::atomic<T> {
  using base = sim::atomic<T>;
  using base::base;
  T fetch_sub(T n, std::memory_order) noexcept { return base::fetch_sub(n, Sub); }
  T fetch_or(T n, std::memory_order) noexcept { return base::fetch_or(n, Or); }
  bool compare_exchange_weak(T& expected, T value, std::memory_order,
                             std::memory_order failure) noexcept {
    return base::compare_exchange_weak(expected, value, Compare, failure);
  }
};
constexpr auto kept = std::memory_order_acq_rel;

template <std::memory_order Put>
struct weak_put : sim_platform {
  template <class T>
  using atomic = weak_atomic<T, Put, kept, kept>;
};
struct weak_try_get : sim_platform {
  template <class T>
  using atomic = weak_atomic<T, kept, kept, std::memory_order_relaxed>;
};

/// Takes the bias and the switch's own reference off first and adds the sum later.
template <class T>
struct two_step_atomic : sim::atomic<T> {
  using base = sim::atomic<T>;
  using base::base;
  T fetch_add(T n, std::memory_order order) noexcept {
    constexpr T bias = static_cast<T>(T{1} << (sizeof(T) * 8 - 1));
    constexpr T own = 2;
    const bool folds = n > bias / 2 && (this->load(std::memory_order_relaxed) & bias) != 0;
    if (!folds) return base::fetch_add(n, order);
    const T old = base::fetch_add(static_cast<T>(bias - own), order);
    (void)base::fetch_add(static_cast<T>(n - bias + own), order);
    return old;
  }
};
struct two_step_fold : sim_platform {
  template <class T>
  using atomic = two_step_atomic<T>;
};

// --- counter engines with one line changed -------------------------------------------

/// A sharded engine whose orders are chosen, and how it adds.
template <std::memory_order Add, std::memory_order Close, std::memory_order Open,
          bool TakesBack = false>
class planted_shard {
public:
  explicit planted_shard(bool starts_open) noexcept : word_(starts_open ? 0 : closed) {}
  bool try_add(std::intptr_t n) noexcept {
    const auto change = static_cast<std::uintptr_t>(n) << 1;
    if constexpr (TakesBack) {
      if ((word_.fetch_add(change, Add) & closed) == 0) return true;
      (void)word_.fetch_sub(change, Add);
      return false;
    }
    std::uintptr_t seen = word_.load(std::memory_order_relaxed);
    do {
      if ((seen & closed) != 0) return false;
    } while (!word_.compare_exchange_weak(seen, seen + change, Add, std::memory_order_relaxed));
    return true;
  }
  void begin_close() noexcept { (void)word_.fetch_or(closed, Close); }
  std::intptr_t finish_close() noexcept { return peek(); }
  void open() noexcept { word_.store(0, Open); }
  void reopen() noexcept { (void)word_.fetch_and(~closed, Open); }
  std::intptr_t peek() const noexcept {
    return static_cast<std::intptr_t>(word_.load(std::memory_order_relaxed)) >> 1;
  }

private:
  static constexpr std::uintptr_t closed = 1;
  sim::atomic<std::uintptr_t> word_;
};
constexpr auto acq_rel = std::memory_order_acq_rel;
constexpr auto release = std::memory_order_release;
constexpr auto relaxed = std::memory_order_relaxed;

template <class Engine>
using with_engine = pmgate::basic_sim_platform<Engine>;
using intact_shard = with_engine<planted_shard<acq_rel, acq_rel, release>>;

/// An engine with one slot per thread, which tests and adds without a sequence.
template <bool Zeroes, std::memory_order Open, std::memory_order Sum>
class planted_slots {
public:
  explicit planted_slots(bool starts_open) noexcept : closed_(!starts_open) {}
  bool try_add(std::intptr_t n) noexcept {
    auto& mine = slots_[sim::machine::shard_hint() & 3];
    if (closed_.load(std::memory_order_acquire)) return false;
    mine.store(mine.load(std::memory_order_relaxed) + n, std::memory_order_release);
    return true;
  }
  void begin_close() noexcept { closed_.store(true, std::memory_order_release); }
  std::intptr_t finish_close() noexcept { return peek(); }
  void open() noexcept {
    if (Zeroes) {
      for (auto& slot : slots_) slot.store(0, std::memory_order_relaxed);
    }
    reopen();
  }
  void reopen() noexcept { closed_.store(false, Open); }
  std::intptr_t peek() const noexcept {
    std::intptr_t sum = 0;
    for (const auto& slot : slots_) sum += slot.load(Sum);
    return sum;
  }

private:
  sim::atomic<bool> closed_;
  sim::atomic<std::intptr_t> slots_[4];
};

enum class left_out : std::uint8_t { restart, cpu_inside, zeroing, closing_fallback, state };

/// The rseq engine with something left out.
template <left_out Bug>
class planted_rseq {
public:
  explicit planted_rseq(bool starts_open) noexcept
      : state_(starts_open ? 0 : 1), fallback_(starts_open, sim::sharded_engine::width::one) {}

  bool try_add(std::intptr_t n) noexcept {
    auto* const e = pmgate::detail::sim_engine::running();
    if (e == nullptr) return fallback_.try_add(n);
    int cpu = e->cpu();
    while (e->begin_sequence()) {
      const bool open = state_.load(std::memory_order_acquire) == 0 || Bug == left_out::state;
      if (e->aborted() && Bug != left_out::restart) continue;
      if (!open) {
        e->end_sequence();
        break;
      }
      if (Bug != left_out::cpu_inside) cpu = e->cpu();
      if (Bug == left_out::restart) e->end_sequence();  // nothing to abort any more
      if (e->commit_add(slots_[cpu], static_cast<std::uint64_t>(n))) return true;
    }
    return fallback_.try_add(n);
  }
  void begin_close() noexcept {
    if (Bug != left_out::closing_fallback) fallback_.begin_close();
    state_.store(1, std::memory_order_release);
  }
  std::intptr_t finish_close() noexcept { return peek(); }
  void open() noexcept {
    auto* const e = pmgate::detail::sim_engine::running();
    for (auto& each : slots_) {
      if (Bug != left_out::zeroing && e != nullptr) e->store(each, 0, std::memory_order_relaxed);
    }
    fallback_.open();
    state_.store(0, std::memory_order_release);
  }
  void reopen() noexcept {
    fallback_.reopen();
    state_.store(0, std::memory_order_release);
  }
  std::intptr_t peek() const noexcept {
    auto* const e = pmgate::detail::sim_engine::running();
    auto sum = static_cast<std::uint64_t>(fallback_.peek());
    for (const auto& each : slots_) {
      sum += e != nullptr ? e->load(each, std::memory_order_acquire) : each.value;
    }
    return static_cast<std::intptr_t>(sum);
  }

private:
  struct slot : pmgate::detail::sim_cell {
    slot() noexcept : sim_cell(0) {}
  };
  sim::atomic<std::uint32_t> state_;
  sim::sharded_engine fallback_;
  slot slots_[2];
};
template <left_out Bug>
using without = with_engine<planted_rseq<Bug>>;

template <class Engine>
struct summed {
  Engine counter{true};
  void check() {
    counter.begin_close();
    sim::expect(counter.finish_close() == 3, "a count was lost");
  }
};

// --- callers who leave a step out ------------------------------------------------------

/// A gate that looks at pm_only before it takes the reference.
template <class P>
struct hasty_gate : gated<P> {
  sim::atomic<int> pm{0};
  bool enter_hastily() {
    if (pm.load(std::memory_order_acquire) != 0) return false;
    return this->gate.try_enter();
  }
};

/// A door that is looked at first and counted afterwards.
struct late_door {
  sim::atomic<bool> open{false};
  sim::wait_word changes{0};
};

/// Work that waits behind a quiesce gate.
struct parked {
  pmgate::basic_quiesce_gate<sim_platform> gate;
  sim::guarded<int> data;
  sim::atomic<int> waiting{0};
  void run() {
    if (!gate.try_dispatch()) return;  // and does not look again
    (void)waiting.exchange(0, std::memory_order_acq_rel);
    gate.end_dispatch();
  }
  void check() { sim::expect(waiting.load(std::memory_order_acquire) == 0, "a request was lost"); }
};

/// A frozen gate that nobody will open again.
struct closed_gate {
  pmgate::basic_freeze_gate<sim_platform> gate;
  closed_gate() { (void)gate.freeze(); }
};

struct owned {
  pmgate::basic_percpu_ref<sim_platform> ref{&released, pmgate::ref_init::allow_reinit};
  static void released(pmgate::basic_percpu_ref<sim_platform>&) noexcept {}
  void check() { ref.exit(); }
};

constexpr auto add_one = [](auto& s) { (void)s.counter.try_add(1); };

TEST_SUITE("planted bugs") {

TEST_CASE("in the counter engine") {
  sim::options refused = tso;
  refused.fence = sim::fence_model::silently_refused;
  caught<gated<sim_platform>>("a heavy fence that is refused, store buffers", refused,
                              enter_and_leave, freeze_and_thaw);
  refused.memory = sim::memory_model::sequential;
  caught<gated<sim_platform>>("a heavy fence that is refused, sequential", refused, enter_and_leave,
                              freeze_and_thaw);
  caught<gated<with_engine<planted_slots<true, release, std::memory_order_acquire>>>>(
      "an add that is not in a sequence", sc, enter_and_leave, freeze_and_thaw);
  caught<gated<without<left_out::restart>>>("a sequence that is not aborted", sc, enter_and_leave,
                                            freeze_and_thaw);
  sim::options moving = tso;
  moving.cpus = 2;
  moving.migrations = 1;
  caught<summed<planted_rseq<left_out::cpu_inside>>>("a CPU number read before the sequence",
                                                     moving, add_one, add_one, add_one);
  sim::options unregistered_thread = sc;
  unregistered_thread.without_rseq = 1;
  caught<gated<without<left_out::closing_fallback>>>(
      "a fallback that is not closed", unregistered_thread, enter_and_leave, freeze_and_thaw);
  caught<gated<without<left_out::state>>>("a sequence that does not look at the state", sc,
                                          enter_and_leave, freeze_and_thaw);
  caught<gated<without<left_out::zeroing>>>(
      "slots that are not zeroed", sc,
      [](auto& s) {
        enter_and_leave(s);
        enter_and_leave(s);
      },
      [](auto& s) {
        freeze_and_thaw(s);
        freeze_and_thaw(s);
      });
  caught<gated<with_engine<planted_shard<relaxed, acq_rel, release>>>>(
      "a relaxed add", sc, enter_and_leave, freeze_and_thaw);
  caught<gated<with_engine<planted_shard<release, acq_rel, release>>>>(
      "an add that does not acquire", sc, enter_and_leave, freeze_and_thaw);
  caught<gated<with_engine<planted_shard<acq_rel, relaxed, release>>>>(
      "a relaxed close", sc, enter_and_leave, freeze_and_thaw);
  caught<gated<with_engine<planted_shard<acq_rel, acq_rel, relaxed>>>>(
      "a relaxed open", sc, enter_and_leave, freeze_and_thaw);
  caught<gated<with_engine<planted_shard<acq_rel, acq_rel, release, true>>>>(
      "an add that is taken back", sc, enter_and_leave, freeze_and_thaw);
}

TEST_CASE("in the shared word") {
  caught<entered<weak_put<relaxed>>>(
      "exit() with a relaxed order", sc,
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      freeze_and_thaw);
  caught<doubly_doomed<weak_put<release>>>(
      "exit() that does not acquire", sc,
      [](auto& s) {
        (void)s.data.read();
        s.gate->exit();
      },
      [](auto& s) {
        (void)s.data.read();
        s.gate->exit();
      },
      [](auto& s) {
        (void)s.gate->freeze();
        s.data.write(1);
      });
  caught<gated<weak_try_get>>("a relaxed entry in the shared word", sc, enter_and_leave,
                              [](auto& s) {
                                (void)s.gate.freeze();
                                s.change();
                                s.gate.unfreeze_to_atomic();
                              });
  caught<gated<two_step_fold>>(
      "a fold in two steps", sc,
      [](auto& s) {
        enter_and_leave(s);
        enter_and_leave(s);
      },
      freeze_and_thaw);
}

TEST_CASE("in what the caller does") {
  const auto park = [](parked& s) {
    s.waiting.store(1, std::memory_order_release);
    s.run();
  };
  caught<parked>("no second look after a refused dispatch", tso, park, [](parked& s) {
    (void)s.gate.quiesce();
    if (s.gate.unquiesce()) s.run();
  });
  const auto section = [](parked& s) {
    if (!s.gate.try_dispatch()) return;
    (void)s.data.read();
    s.gate.end_dispatch();
  };
  caught<parked>(
      "a second quiescer who does not wait", sc, section,
      [](parked& s) {
        (void)s.gate.quiesce();
        s.gate.unquiesce();
      },
      [](parked& s) {
        s.gate.quiesce_nowait();
        s.data.write(1);
        s.gate.unquiesce();
      });
  sim::options refused = tso;
  refused.fence = sim::fence_model::silently_refused;
  caught<parked>("a quiesce without a grace period", refused, section, [](parked& s) {
    (void)s.gate.quiesce();
    s.data.write(1);
    s.gate.unquiesce();
  });
  caught<closed_gate>(
      "a death that nobody is woken for", sc, [](auto& s) { (void)s.gate.enter(); },
      [](auto& s) {
        s.gate.mark_dying();
        (void)s.gate.freeze_start();
      });
  caught<closed_gate>(
      "a death that comes after the wake-up", sc, [](auto& s) { (void)s.gate.enter(); },
      [](auto& s) {
        (void)s.gate.start_drain();
        s.gate.mark_dying();
      });
  caught<hasty_gate<sim_platform>>(
      "pm_only looked at before the reference is taken", sc,
      [](auto& s) {
        if (!s.enter_hastily()) return;
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.pm.fetch_add(1, std::memory_order_acq_rel);
        (void)s.gate.freeze();
        s.gate.unfreeze();
        s.change();
      });
  caught<gated<sim_platform>>("a suspend check without pm_only", sc, enter_and_leave, [](auto& s) {
    (void)s.gate.freeze_start();
    (void)s.gate.switch_to_atomic_sync();
    const bool idle = s.gate.usage().is_zero();
    s.gate.unfreeze();
    if (idle) s.change();
  });
  caught<gated<sim_platform>>("pm_only without a freeze", sc, enter_and_leave, [](auto& s) {
    s.gate.set_pm_only();
    s.change();
    s.gate.clear_pm_only();
  });
  const auto turn = [](owned& s) {
    (void)s.ref.kill();
    (void)s.ref.resurrect();
  };
  caught<owned>("kill and resurrect of two owners without a lock", sc, turn, turn);
}

TEST_CASE("in waiting and waking") {
  caught<late_door>(
      "a door that is counted after it was looked at", sc,
      [](late_door& s) {
        while (!s.open.load(std::memory_order_acquire)) {
          s.changes.wait(s.changes.load(std::memory_order_acquire));
        }
      },
      [](late_door& s) {
        s.open.store(true, std::memory_order_release);
        (void)s.changes.fetch_add(1, std::memory_order_release);
        s.changes.wake_all();
      });
  sim::options spurious = sc;
  spurious.spurious = 1;
  caught<late_door>(
      "a sleeper who trusts his waking", spurious,
      [](late_door& s) {
        s.changes.wait(0);
        sim::expect(s.open.load(std::memory_order_acquire), "the door is closed");
      },
      [](late_door& s) {
        s.open.store(true, std::memory_order_release);
        s.changes.publish_add(1);
      });
  caught<gated<with_word<deaf_word>>>("a door that wakes nobody", sc, enter_and_leave,
                                      freeze_and_thaw);
  caught<doomed<with_word<unsettled_word>>>(
      "a wait that does not settle", condition, [](auto& s) { s.gate->exit(); },
      [](auto& s) {
        (void)s.gate->freeze();
        s.gate.reset();
      });
  caught<doomed<with_word<touching_word>>>(
      "a wake-up that touches the word", sc, [](auto& s) { s.gate->exit(); },
      [](auto& s) {
        (void)s.gate->freeze();
        s.gate.reset();
      });
  caught<entered<with_word<relaxed_word>>>(
      "a relaxed wake-up", sc,
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      freeze_and_thaw);
  caught<entered<with_word<hasty_word>>>(
      "a wake-up before the change", sc, [](auto& s) { s.gate.exit(); }, freeze_and_thaw);
  caught<gated<without_mutex>>("freezes without a lock", sc, freeze_and_thaw, freeze_and_thaw);
}

}  // TEST_SUITE

}  // namespace
