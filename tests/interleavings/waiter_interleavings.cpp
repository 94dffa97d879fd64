// SPDX-License-Identifier: MIT
//
// waiter_interleavings.cpp - waiters that are queued at gates: each is resumed or
// cancelled, once, whatever else goes on; gates that are closed together.
//
// A thread that was to be resumed and is not sleeps for ever: a deadlock.
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/gate_group.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>

#include "explore_models.hpp"
#include "gate_scenarios.hpp"

namespace {

using namespace interleavings;
using pmgate::sim_platform;

/// A waiter with a thread behind it.
template <class P>
struct sleeper : pmgate::basic_gate_waiter<P> {
  sleeper() : pmgate::basic_gate_waiter<P>(&wake) {}

  /// What the queueing call said, and in the end the resumption.
  status outcome(status queued) {
    if (queued != status::in_progress) {
      sim::expect(resumed() == 0, "answered, and resumed");
      return queued;
    }
    while (told.load(std::memory_order_acquire) == 0) told.wait(0);
    told.store(0, std::memory_order_relaxed);
    return result;
  }
  [[nodiscard]] std::uint32_t resumed() const { return told.load(std::memory_order_acquire); }

  sim::wait_word told{0};
  status result = status::in_progress;

 private:
  static void wake(pmgate::basic_gate_waiter<P>& self, status result) noexcept {
    auto& woken = static_cast<sleeper&>(self);
    woken.result = result;
    woken.told.publish_add(1);
  }
};

/// A waiter with something to do; `what(state)` runs in whatever call resumes it.
template <class P, class State>
struct doer : pmgate::basic_gate_waiter<P> {
  using action = void (*)(State&);
  doer(State& s, action a) : pmgate::basic_gate_waiter<P>(&run), state(s), what(a) {}
  State& state;
  action what;

 private:
  static void run(pmgate::basic_gate_waiter<P>& self, status) noexcept {
    auto& woken = static_cast<doer&>(self);
    woken.what(woken.state);
  }
};

// --- at the door ---------------------------------------------------------------------

template <class P>
struct queued_at : gated<P> {
  sleeper<P> first;
  sleeper<P> other;
};
template <class P>
struct entered_queued_at : queued_at<P> {
  entered_queued_at() { (void)this->gate.try_enter(); }
};

constexpr auto queue_and_enter = [](auto& s) {
  const status entered = s.first.outcome(s.gate.enter_or_wait(s.first));
  if (entered != status::ok) return sim::expect(false, "enter_or_wait() was refused");
  s.use();
  s.gate.exit();
};
constexpr auto queue_and_look = [](auto& s) {
  const status entered = s.other.outcome(s.gate.enter_or_wait(s.other));
  if (entered != status::ok) return sim::expect(false, "enter_or_wait() was refused");
  (void)s.data.read();
  s.gate.exit();
};
constexpr auto queue_or_cancel = [](auto& s) {
  const status queued = s.gate.enter_or_wait(s.first);
  if (queued == status::in_progress && s.gate.cancel(s.first)) {
    sim::expect(s.first.resumed() == 0, "cancelled, and resumed");
    return;
  }
  sim::expect(s.first.outcome(queued) == status::ok, "enter_or_wait() was refused");
  s.use();
  s.gate.exit();
};
constexpr auto queue_freeze_and_thaw = [](auto& s) {
  const status frozen = s.other.outcome(s.gate.freeze_or_wait(s.other));
  if (frozen != status::ok) return sim::expect(false, "freeze_or_wait() was refused");
  sim::expect(s.gate.is_frozen(), "told, and not frozen");
  s.change();
  s.gate.unfreeze();
};

/// Frozen, with a waiter at the door; somebody else cancels it.
template <class P>
struct waiting_at_frozen : gated<P> {
  sleeper<P> first;
  bool cancelled = false;
  waiting_at_frozen() {
    (void)this->gate.freeze();
    (void)this->gate.enter_or_wait(first);
  }
  void check() {
    sim::expect(cancelled == (first.resumed() == 0), "not resumed or cancelled once");
    if (!cancelled) this->gate.exit();
    gated<P>::check();
  }
};

/// Two wait; the order in which they are let in is noted.
template <class P>
struct in_line : gated<P> {
  struct member : pmgate::basic_gate_waiter<P> {
    member(in_line& l, int n) : pmgate::basic_gate_waiter<P>(&run), line(l), number(n) {}
    static void run(pmgate::basic_gate_waiter<P>& self, status) noexcept {
      auto& woken = static_cast<member&>(self);
      const int before = woken.line.last.exchange(woken.number, std::memory_order_acq_rel);
      sim::expect(before == woken.number - 1, "a waiter was overtaken");
    }
    in_line& line;
    int number;
  };
  sim::atomic<int> last{0};
  member first{*this, 1};
  member second{*this, 2};
  in_line() {
    (void)this->gate.freeze();
    (void)this->gate.enter_or_wait(first);
    (void)this->gate.enter_or_wait(second);
  }
  void check() {
    sim::expect(last.load(std::memory_order_acquire) == 2, "somebody was forgotten");
    this->gate.exit(2);
    gated<P>::check();
  }
};

/// One waiter, whom two queue.
template <class P>
struct queued_twice : entered_queued_at<P> {
  void check() {
    sim::expect(sim::misuses() == 1, "queued twice, and not reported once");
    (void)this->gate.freeze_start();
    this->gate.exit();
    sim::expect(this->first.resumed() == 1, "not resumed once");
    this->gate.unfreeze();
    gated<P>::check();
  }
};

/// Two wait; the first one's callback writes what may be read once the second is resumed.
template <class P>
struct told_in_line : gated<P> {
  doer<P, told_in_line> first{*this, [](told_in_line& s) { s.data.write(1); }};
  doer<P, told_in_line> second{*this, [](told_in_line&) {}};
  told_in_line() {
    (void)this->gate.freeze();
    (void)this->gate.enter_or_wait(first);
    (void)this->gate.enter_or_wait(second);
  }
  void check() {
    (void)this->gate.freeze_start();
    this->gate.exit(2);
    this->gate.unfreeze();
    gated<P>::check();
  }
};

/// Frozen, and drained; somebody asks for the drain.
template <class P>
struct frozen_queued_at : queued_at<P> {
  status queued = status::again;
  frozen_queued_at() { (void)this->gate.freeze(); }
  void check() {
    (void)this->gate.freeze();
    this->gate.unfreeze();
    const bool waited = queued == status::in_progress;
    sim::expect(this->first.resumed() == (waited ? 1 : 0), "not resumed by the next drain");
    gated<P>::check();
  }
};

/// pm_only from the start.
template <class P>
struct pm_only_at : queued_at<P> {
  pm_only_at() { this->gate.set_pm_only(); }
};

// --- for the drain -------------------------------------------------------------------

/// Somebody inside; two wait for the drain.
template <class P>
struct draining : gated<P> {
  sleeper<P> first;
  sleeper<P> second;
  bool cancelled = false;
  draining() {
    (void)this->gate.try_enter();
    (void)this->gate.freeze_or_wait(first);
    (void)this->gate.freeze_or_wait(second);
  }
  void check() {
    // Those whose freeze was undone before the drain wait for the next one.
    (void)this->gate.freeze();
    this->gate.unfreeze();
    sim::expect(first.resumed() == (cancelled ? 0 : 1), "not resumed or cancelled once");
    sim::expect(second.resumed() == 1, "the other was not resumed once");
    gated<P>::check();
  }
};

/// Somebody inside; one waits for the drain.
template <class P>
struct alone_at_drain : entered_queued_at<P> {
  bool cancelled = false;
  alone_at_drain() { (void)this->gate.freeze_or_wait(this->first); }
  void check() {
    sim::expect(this->first.resumed() == (cancelled ? 0 : 1), "not resumed or cancelled once");
    this->gate.unfreeze();
    gated<P>::check();
  }
};

/// Somebody inside; one waits for the drain, another cancels.
template <class P>
struct cancelled_by_other : entered_queued_at<P> {
  bool cancelled = false;
  void check() {
    (void)this->gate.freeze_start();
    this->gate.exit();
    sim::expect(this->first.resumed() == (cancelled ? 0 : 1), "not resumed or cancelled once");
    this->gate.unfreeze();
    gated<P>::check();
  }
};

/// A gate that goes with the resumption of its freezer.
template <class P, int Inside>
struct doomed_by_waiter {
  std::optional<pmgate::basic_freeze_gate<P>> gate{std::in_place};
  sim::guarded<int> data;
  doer<P, doomed_by_waiter> freezer{*this, [](doomed_by_waiter& s) { s.destroy(); }};
  doomed_by_waiter() {
    for (int i = 0; i < Inside; ++i) (void)gate->try_enter();
  }
  void destroy() {
    data.write(1);
    gate.reset();
  }
  void check() { sim::expect(!gate, "the freezer was not resumed"); }
};
template <class P>
using doomed_by_one = doomed_by_waiter<P, 1>;
template <class P>
using doomed_by_two = doomed_by_waiter<P, 2>;

constexpr auto last_exit = [](auto& s) {
  (void)s.data.read();
  s.gate->exit();
};

/// Somebody waits for a drain that nobody has asked for yet, and opens the gate when told.
template <class P>
struct early_bird : gated<P> {
  sim::wait_word opened{0};
  doer<P, early_bird> bird{*this, [](early_bird& s) {
                             s.change();
                             s.gate.unfreeze();
                             s.opened.publish_add(1);
                           }};
  early_bird() {
    (void)this->gate.try_enter();
    (void)this->gate.drained_or_wait(bird);
  }
};

// --- for the end of sections ---------------------------------------------------------

template <class P>
struct quiescing {
  pmgate::basic_quiesce_gate<P> gate;
  sim::guarded<int> data;
  sleeper<P> first;
  bool cancelled = false;
  quiescing() { (void)gate.try_dispatch(); }
  void check() {
    sim::expect(gate.depth() == 0, "the depth is not 0 at the end");
    sim::expect(gate.try_dispatch(), "the gate is not open at the end");
    gate.end_dispatch();
  }
};
template <class P>
struct quiesced_already : quiescing<P> {
  quiesced_already() { this->gate.quiesce_nowait(); }
};
template <class P>
struct doomed_quiesce {
  std::optional<pmgate::basic_quiesce_gate<P>> gate{std::in_place};
  sim::guarded<int> data;
  doer<P, doomed_quiesce> waiter{*this, [](doomed_quiesce& s) { s.destroy(); }};
  doomed_quiesce() { (void)gate->try_dispatch(); }
  void destroy() {
    data.write(1);
    gate.reset();
  }
  void check() { sim::expect(!gate, "the waiter was not resumed"); }
};

constexpr auto end_section = [](auto& s) {
  (void)s.data.read();
  s.gate.end_dispatch();
};

// --- many gates ----------------------------------------------------------------------

template <class P>
struct two_gates {
  using gate_type = pmgate::basic_freeze_gate<P>;
  gate_type a;
  gate_type b;
  std::array<gate_type*, 2> forth{&a, &b};
  std::array<gate_type*, 2> back{&b, &a};
  sim::guarded<int> data;    // read inside either gate
  sim::guarded<int> second;  // the same
  void check() {
    for (gate_type* const gate : forth) {
      sim::expect(gate->depth() == 0, "the depth is not 0 at the end");
      sim::expect(gate->try_enter(), "a gate is not open at the end");
      gate->exit();
    }
  }
};
constexpr auto freeze_forth = [](auto& s) {
  if (pmgate::freeze_all(s.forth) != status::ok) return;
  s.data.write(1);
  pmgate::unfreeze_all(s.forth);
};
constexpr auto freeze_back = [](auto& s) {
  if (pmgate::freeze_all(s.back) != status::ok) return;
  s.second.write(1);
  pmgate::unfreeze_all(s.back);
};
constexpr auto visit_b = [](auto& s) {
  if (s.b.enter() != status::ok) return sim::expect(false, "enter() was refused");
  (void)s.data.read();
  s.b.exit();
};

template <class P>
struct grouped {
  pmgate::basic_gate_group<P> group;
  pmgate::basic_freeze_gate<P> old_gate;
  typename pmgate::basic_gate_group<P>::member old_member{group, &old_gate};
  sim::guarded<int> data;
  void come_and_go() {
    pmgate::basic_freeze_gate<P> gate;
    const typename pmgate::basic_gate_group<P>::member place(group, &gate);
    if (gate.enter() != status::ok) return;
    (void)data.read();
    gate.exit();
  }
  void check() {
    sim::expect(group.freeze_depth() == 0, "the group is frozen at the end");
    sim::expect(old_gate.depth() == 0, "a member is frozen at the end");
  }
};
constexpr auto freeze_group = [](auto& s) {
  if (s.group.freeze() != status::ok) return;
  s.data.write(1);
  s.group.unfreeze();
};

/// A member of a group, whose gates stay when it leaves.
template <class P>
struct leaving {
  pmgate::basic_gate_group<P> group;
  pmgate::basic_freeze_gate<P> door;
  pmgate::basic_quiesce_gate<P> sections;
  std::optional<typename pmgate::basic_gate_group<P>::member> member;
  sim::guarded<int> data;
  leaving() { member.emplace(group, &door, &sections); }
  void leave() { member.reset(); }
  void check() {
    leave();
    sim::expect(door.depth() == 0, "it left, and is frozen");
    sim::expect(sections.depth() == 0, "it left, and is quiesced");
  }
};
template <class P>
struct leaving_frozen : leaving<P> {
  leaving_frozen() { (void)this->group.freeze(); }
};

/// A gate that is dying in the end, as its group is.
template <class P>
struct joining {
  pmgate::basic_gate_group<P> group;
  pmgate::basic_freeze_gate<P> door;
  std::optional<typename pmgate::basic_gate_group<P>::member> member;
  void join() { member.emplace(group, &door); }
  void check() {
    sim::expect(door.is_dying(), "its group is dying, and it lives");
    member.reset();
  }
};

/// A gate without anybody, and one to dispatch from, in ranges of one.
template <class P>
struct ranges {
  pmgate::basic_quiesce_gate<P> sections;
  std::array<pmgate::basic_quiesce_gate<P>*, 1> all{&sections};
  sleeper<P> first;
  sim::guarded<int> data;
};
constexpr auto visit_section = [](auto& s) {
  if (!s.sections.try_dispatch()) return;
  (void)s.data.read();
  s.sections.end_dispatch();
};

// --- planted bugs --------------------------------------------------------------------

/// Explores until the bug shows.
template <class State, class... Threads>
void caught(const char* title, const Threads&... threads) {
  ++tally::all().tests;
  const sim::result found = explore_one<State>(title, {.preemptions = 3}, threads...);
  std::printf("    %s\n", found.failure.c_str());
  CHECK_FALSE_MESSAGE(found.failure.empty(), title);
}

/// Lowers the order of one kind of operation: of the stack of freezers.
template <class T, std::memory_order Push, std::memory_order Take>
struct weak_atomic : sim::atomic<T> {
  using base = sim::atomic<T>;
  using base::base;
  T exchange(T n, std::memory_order order) noexcept {
    const bool stack = std::is_same_v<T, std::uintptr_t>;
    return base::exchange(n, stack && order == std::memory_order_acquire ? Take : order);
  }
  bool compare_exchange_weak(T& expected, T value, std::memory_order order,
                             std::memory_order failure) noexcept {
    if (order == std::memory_order_release) order = Push;
    return base::compare_exchange_weak(expected, value, order, failure);
  }
};
template <std::memory_order Push, std::memory_order Take>
struct weak_stack : sim_platform {
  template <class T>
  using atomic = weak_atomic<T, Push, Take>;
};

/// A change of pm_only that takes place when the queue has been walked: with the next lock
/// that is left.
struct late_change {
  static inline sim::atomic<std::uint32_t>* word = nullptr;
  static inline std::uint32_t mask = 0;
  static void happen() noexcept {
    if (auto* const changed = std::exchange(word, nullptr)) {
      (void)changed->fetch_and(mask, std::memory_order_acq_rel);
    }
  }
};
template <class T>
struct late_atomic : sim::atomic<T> {
  using sim::atomic<T>::atomic;
  T fetch_and(T mask, std::memory_order order) noexcept {
    if constexpr (std::is_same_v<T, std::uint32_t>) {
      late_change::word = this;
      late_change::mask = mask;
      return 0;
    } else {
      return sim::atomic<T>::fetch_and(mask, order);
    }
  }
};
struct late_mutex : sim::mutex {
  void unlock() noexcept {
    sim::mutex::unlock();
    late_change::happen();
  }
};
struct walks_first : sim_platform {
  template <class T>
  using atomic = late_atomic<T>;
  using mutex = late_mutex;
};
template <class P>
struct suspended_at : pm_only_at<P> {
  suspended_at() { this->gate.set_runtime_suspended(true); }
  void check() {
    this->gate.clear_pm_only();
    gated<P>::check();
  }
};
constexpr auto queue_power_request = [](auto& s) {
  const status queued = s.gate.enter_or_wait(s.first, enter_flags::pm);
  sim::expect(s.first.outcome(queued) == status::ok, "enter_or_wait() was refused");
  s.gate.exit();
};
constexpr auto end_suspend = [](auto& s) { s.gate.set_runtime_suspended(false); };

/// A mutex that keeps nobody out.
struct no_mutex {
  void lock() noexcept {}
  void unlock() noexcept {}
};
struct without_mutex : sim_platform {
  using mutex = no_mutex;
};

}  // namespace

TEST_SUITE("interleavings of waiters") {

TEST_CASE("who queues at a gate that is frozen and opened is inside in the end") {
  hold_on_all_models<queued_at>("enter_or_wait x freeze", {.preemptions = 3}, queue_and_enter,
                                freeze_and_thaw);
  hold_on_all_models<queued_at>("enter_or_wait x freeze_or_wait", {.preemptions = 2},
                                queue_and_enter, queue_freeze_and_thaw);
}

TEST_CASE("a waiter is at one gate at a time") {
  const auto queue = [](auto& s) {
    sim::expect_misuse();
    (void)s.gate.drained_or_wait(s.first);
  };
  hold_on_all_models<queued_twice>("drained_or_wait x drained_or_wait of one waiter",
                                   {.preemptions = 2}, queue, queue);
}

TEST_CASE("a waiter that has been resumed says so, and may be queued again") {
  hold_on_all_models<told_in_line>(
      "unfreeze x is_queued", {.preemptions = 2}, [](auto& s) { s.gate.unfreeze(); },
      [](auto& s) {
        if (!s.second.is_queued()) (void)s.data.read();
      });
  hold_on_all_models<told_in_line>(
      "unfreeze x queue again", {.preemptions = 2}, [](auto& s) { s.gate.unfreeze(); },
      [](auto& s) {
        sim::expect_misuse();
        if (s.gate.drained_or_wait(s.second) != status::busy) (void)s.data.read();
      });
}

TEST_CASE("a wait for a drain is cancelled once, and a gate that has drained is not opened by it") {
  hold_on_all_models<entered_queued_at>(
      "cancel before and after the drain", {.preemptions = 1}, [](auto& s) {
        (void)s.gate.freeze_start();
        sim::expect(!s.gate.cancel(s.first), "cancelled, and not queued");
        sim::expect(s.gate.drained_or_wait(s.first) == status::in_progress, "drained too early");
        sim::expect(s.gate.cancel(s.first), "queued, and not cancelled");
        s.gate.exit();
        (void)s.gate.freeze_wait();
        sim::expect(!s.gate.cancel(s.first), "cancelled, and not queued");
        sim::expect(s.gate.drained_or_wait(s.first) == status::ok, "has drained, and says no");
        s.gate.unfreeze();
      });
}

TEST_CASE("who waits for a drain that is undone meanwhile waits for the next one") {
  hold_on_all_models<frozen_queued_at>(
      "unfreeze x drained_or_wait", {.preemptions = 2}, [](auto& s) { s.gate.unfreeze(); },
      [](auto& s) { s.queued = s.gate.drained_or_wait(s.first); });
}

TEST_CASE("two who queue") {
  hold_on_all_models<queued_at>("enter_or_wait x enter_or_wait x freeze", {.preemptions = 2},
                                queue_and_enter, queue_and_look, freeze_and_thaw);
}

TEST_CASE("a waiter is resumed or cancelled, not both and not neither") {
  hold_on_all_models<queued_at>("enter_or_wait, cancel x freeze", {.preemptions = 3},
                                queue_or_cancel, freeze_and_thaw);
  hold_on_all_models<waiting_at_frozen>(
      "unfreeze x cancel by another", {.preemptions = 4}, [](auto& s) { s.gate.unfreeze(); },
      [](auto& s) { s.cancelled = s.gate.cancel(s.first); });
}

TEST_CASE("a change of pm_only is not missed by who queues") {
  hold_on_all_models<pm_only_at>("enter_or_wait x clear_pm_only", {.preemptions = 3},
                                 queue_and_enter, [](auto& s) { s.gate.clear_pm_only(); });
  hold_on_all_models<queued_at>("enter_or_wait x set_pm_only, freeze, clear_pm_only",
                                {.preemptions = 2}, queue_and_enter, [](auto& s) {
                                  s.gate.set_pm_only();
                                  (void)s.gate.freeze();
                                  s.gate.unfreeze();
                                  s.change();  // no normal request is inside now
                                  s.gate.clear_pm_only();
                                });
}

TEST_CASE("the end of a runtime suspend is not missed by a PM request that queues") {
  hold_on_all_models<suspended_at>("enter_or_wait(pm) x set_runtime_suspended(false)",
                                   {.preemptions = 3}, queue_power_request, end_suspend);
}

TEST_CASE("what pm_only keeps out holds up no freeze for good") {
  hold_on_all_models<pm_only_at>(
      "enter_or_wait x clear_pm_only x freeze", {.preemptions = 2}, queue_and_enter,
      [](auto& s) { s.gate.clear_pm_only(); }, queue_freeze_and_thaw);
}

TEST_CASE("death is not missed by who queues") {
  hold_on_all_models<queued_at>(
      "enter_or_wait x mark_dying, start_drain", {.preemptions = 3},
      [](auto& s) {
        const status entered = s.first.outcome(s.gate.enter_or_wait(s.first));
        if (entered == status::ok) {
          s.use();
          s.gate.exit();
        } else {
          sim::expect(entered == status::no_device, "a wrong refusal");
        }
      },
      [](auto& s) {
        s.gate.mark_dying();
        (void)s.gate.start_drain();
        (void)s.gate.freeze_wait();
        s.change();
        s.gate.unfreeze();
      });
}

TEST_CASE("two who wait are let in in their order, whoever walks the queue") {
  hold_on_all_models<in_line>(
      "unfreeze x another walk of the queue", {.preemptions = 3},
      [](auto& s) { s.gate.unfreeze(); }, [](auto& s) { s.gate.set_runtime_suspended(false); });
}

TEST_CASE("a refused freeze lets in who queued meanwhile") {
  hold_on_all_models<queued_at>("enter_or_wait x refused freeze",
                                {.preemptions = 2, .refused_graces = 1}, queue_and_enter,
                                [](auto& s) {
                                  if (s.gate.freeze() != status::ok) return;
                                  s.change();
                                  s.gate.unfreeze();
                                });
}

TEST_CASE("a freezer is resumed by the last exit, and may destroy the gate") {
  hold_on_all_models<doomed_by_one>("exit x freeze_or_wait, destroy", {.preemptions = 3}, last_exit,
                                    [](auto& s) {
                                      if (s.gate->freeze_or_wait(s.freezer) == status::ok) {
                                        s.destroy();
                                      }
                                    });
  hold_on_all_models<doomed_by_two>("exit x exit x freeze_or_wait, destroy", {.preemptions = 2},
                                    last_exit, last_exit, [](auto& s) {
                                      if (s.gate->freeze_or_wait(s.freezer) == status::ok) {
                                        s.destroy();
                                      }
                                    });
}

TEST_CASE("a freezer is cancelled while the drain comes and the freezes are undone") {
  hold_on_all_models<draining>(
      "exit x cancel x unfreeze", {.preemptions = 2}, [](auto& s) { s.gate.exit(); },
      [](auto& s) { s.cancelled = s.gate.cancel(s.first); },
      [](auto& s) {
        s.gate.unfreeze();
        s.gate.unfreeze();
      });
}

TEST_CASE("a freezer is cancelled while the drain comes") {
  hold_on_all_models<alone_at_drain>(
      "cancel x exit", {.preemptions = 2}, [](auto& s) { s.cancelled = s.gate.cancel(s.first); },
      [](auto& s) { s.gate.exit(); });
}

TEST_CASE("who cancels for another sees what was done before the waiter was queued") {
  hold_on_all_models<cancelled_by_other>(
      "drained_or_wait x cancel by another", {.preemptions = 2},
      [](auto& s) {
        s.data.write(1);
        (void)s.gate.drained_or_wait(s.first);
      },
      [](auto& s) {
        s.cancelled = s.gate.cancel(s.first);
        if (s.cancelled) (void)s.data.read();
      });
}

TEST_CASE("a freezer queues while the drain is told of and undone") {
  hold_on_all_models<entered_queued_at>(
      "exit x freeze_or_wait, unfreeze x freeze, unfreeze", {.preemptions = 2},
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      queue_freeze_and_thaw,
      [](auto& s) {
        if (s.gate.freeze() == status::ok) s.gate.unfreeze();
      });
}

TEST_CASE("who waits for a drain that another brings about may open the gate") {
  hold_on_all_models<early_bird>(
      "drained_or_wait, unfreeze x exit x freeze_start", {.preemptions = 2},
      [](auto& s) {
        s.use();
        s.gate.exit();
      },
      [](auto& s) {
        (void)s.gate.freeze_start();
        while (s.opened.load(std::memory_order_acquire) == 0) s.opened.wait(0);
      });
}

TEST_CASE("the last section resumes who waits, and he may destroy the gate") {
  hold_on_all_models<doomed_quiesce>(
      "end x quiesce_or_wait, destroy", {.preemptions = 3},
      [](auto& s) {
        (void)s.data.read();
        s.gate->end_dispatch();
      },
      [](auto& s) {
        if (s.gate->quiesce_or_wait(s.waiter) == status::ok) s.destroy();
      });
}

TEST_CASE("a wait for sections ends with them, with the quiesce, or with a cancel") {
  hold_on_all_models<quiescing>("end x quiesce_or_wait, cancel", {.preemptions = 3}, end_section,
                                [](auto& s) {
                                  const status queued = s.gate.quiesce_or_wait(s.first);
                                  if (queued == status::in_progress && s.gate.cancel(s.first)) {
                                    sim::expect(s.first.resumed() == 0, "cancelled, and resumed");
                                  } else if (s.first.outcome(queued) == status::ok) {
                                    s.data.write(1);
                                  }
                                  s.gate.unquiesce();
                                });
  hold_on_all_models<quiescing>(
      "end x quiesce_or_wait x quiesce_nowait, unquiesce", {.preemptions = 2}, end_section,
      [](auto& s) {
        const status ended = s.first.outcome(s.gate.quiesce_or_wait(s.first));
        sim::expect(ended == status::ok, "quiesce_or_wait() was refused");
        s.data.write(1);
        s.gate.unquiesce();
      },
      [](auto& s) {
        s.gate.quiesce_nowait();
        s.gate.unquiesce();
      });
  hold_on_all_models<quiesced_already>(
      "end x quiesced_or_wait x unquiesce", {.preemptions = 3}, end_section,
      [](auto& s) { (void)s.first.outcome(s.gate.quiesced_or_wait(s.first)); },
      [](auto& s) { s.gate.unquiesce(); });
}

TEST_CASE("a wait for sections says that its grace period was refused") {
  hold_on_all_models<ranges>("dispatch x quiesce_or_wait, refused",
                             {.preemptions = 2, .refused_graces = 1}, visit_section, [](auto& s) {
                               const status queued = s.sections.quiesce_or_wait(s.first);
                               if (s.first.outcome(queued) == status::ok) s.data.write(1);
                               s.sections.unquiesce();
                             });
}

TEST_CASE("planted bugs are found") {
  constexpr auto relaxed = std::memory_order_relaxed;
  constexpr auto release = std::memory_order_release;
  constexpr auto acquire = std::memory_order_acquire;
  const auto freeze_and_destroy = [](auto& s) {
    if (s.gate->freeze_or_wait(s.freezer) == status::ok) s.destroy();
  };
  caught<doomed_by_one<weak_stack<relaxed, acquire>>>("a freezer queued without a release",
                                                      last_exit, freeze_and_destroy);
  caught<doomed_by_one<weak_stack<release, relaxed>>>("freezers taken without an acquire",
                                                      last_exit, freeze_and_destroy);
  caught<suspended_at<walks_first>>("the queue is walked before the change", queue_power_request,
                                    end_suspend);
  caught<doomed_by_one<sim_platform>>("destroyed without waiting for the resumption", last_exit,
                                      [](auto& s) {
                                        (void)s.gate->freeze_or_wait(s.freezer);
                                        s.destroy();
                                      });
  caught<waiting_at_frozen<without_mutex>>(
      "a queue without a lock", [](auto& s) { s.gate.unfreeze(); },
      [](auto& s) { s.cancelled = s.gate.cancel(s.first); });
  caught<queued_at<sim_platform>>(
      "a cancel whose answer is not heeded",
      [](auto& s) {
        const status queued = s.gate.enter_or_wait(s.first);
        if (queued == status::in_progress) {
          (void)s.gate.cancel(s.first);  // resumed already, perhaps: then he is inside
        } else {
          s.gate.exit();
        }
      },
      freeze_and_thaw);
}

}  // TEST_SUITE

TEST_SUITE("interleavings of many gates") {

TEST_CASE("ranges in opposite orders do not wait for each other") {
  hold_on_all_models<two_gates>("freeze_all x freeze_all backwards", {.preemptions = 2},
                                freeze_forth, freeze_back);
  hold_by_chance<two_gates>("freeze_all x freeze_all backwards x enter x enter",
                            {.refused_graces = 1, .schedules = 3000}, freeze_forth, freeze_back,
                            visit_b, visit_b);
}

TEST_CASE("ranges in opposite orders, one grace period refused") {
  hold_on_all_models<two_gates>("freeze_all x freeze_all backwards, refused",
                                {.preemptions = 2, .refused_graces = 1}, freeze_forth, freeze_back);
}

TEST_CASE("a batch whose grace period is refused has closed nothing") {
  hold_on_all_models<two_gates>("freeze_all x enter, refused",
                                {.preemptions = 2, .refused_graces = 1}, freeze_forth, visit_b);
  hold_on_all_models<two_gates>("enter x freeze_all of one, refused",
                                {.preemptions = 1, .refused_graces = 1}, visit_b, [](auto& s) {
                                  const std::array<decltype(&s.b), 1> one{&s.b};
                                  if (pmgate::freeze_all(one) != status::ok) return;
                                  s.data.write(1);
                                  pmgate::unfreeze_all(one);
                                });
}

TEST_CASE("sections of many gates are waited for with one grace period") {
  hold_on_all_models<ranges>("dispatch x quiesce_all, refused",
                             {.preemptions = 1, .refused_graces = 1}, visit_section, [](auto& s) {
                               if (pmgate::quiesce_all(s.all) == status::ok) s.data.write(1);
                               pmgate::unquiesce_all(s.all);
                             });
  hold_on_all_models<leaving>("dispatch x quiesce of a group, refused",
                              {.preemptions = 1, .refused_graces = 1}, visit_section, [](auto& s) {
                                if (s.group.quiesce() == status::ok) s.data.write(1);
                                s.group.unquiesce();
                              });
}

TEST_CASE("a member leaves a group that is at it") {
  hold_on_all_models<leaving_frozen>(
      "unfreeze of the group x leave", {.preemptions = 2}, [](auto& s) { s.group.unfreeze(); },
      [](auto& s) { s.leave(); });
  hold_on_all_models<leaving>(
      "leave x quiesce of the group", {.preemptions = 2}, [](auto& s) { s.leave(); },
      [](auto& s) { s.group.quiesce_nowait(); });
}

TEST_CASE("a gate that joins a group which is dying is dying") {
  hold_on_all_models<joining>(
      "join x mark_dying of the group", {.preemptions = 2}, [](auto& s) { s.join(); },
      [](auto& s) { s.group.mark_dying(); });
}

TEST_CASE("a depth of a group is the depth of its members") {
  hold_on_all_models<leaving>(
      "depth x freeze, quiesce of the group", {.preemptions = 2},
      [](auto& s) {
        if (s.group.quiesce_depth() != 0) sim::expect(s.sections.depth() != 0, "not quiesced");
        if (s.group.freeze_depth() != 0) sim::expect(s.door.depth() != 0, "not frozen");
      },
      [](auto& s) {
        (void)s.group.freeze_start();
        s.group.quiesce_nowait();
      });
}

TEST_CASE("a gate of a batch is opened by another before the batch is asked for") {
  hold_on_all_models<two_gates>("freeze_all x freeze_start, unfreeze of one", {.preemptions = 2},
                                freeze_forth, [](auto& s) {
                                  if (s.b.freeze_start() != status::ok) return;
                                  s.b.unfreeze();
                                });
}

TEST_CASE("nobody is inside a gate that joined behind a freeze of the group") {
  hold_on_all_models<grouped>(
      "join, enter, leave x freeze", {.preemptions = 2}, [](auto& s) { s.come_and_go(); },
      freeze_group);
}

}  // TEST_SUITE
