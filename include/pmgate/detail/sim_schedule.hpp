// SPDX-License-Identifier: MIT
//
// pmgate/detail/sim_schedule.hpp - how the simulator chooses, switches and reports.
//
// At each point the possible outcomes are a set of bits: threads to go on with,
// buffers to empty, CPUs to move to. The bounds take outcomes away; what is left
// is chosen by sim_choices, and is part of the schedule if there was a choice.
//
// Hosted: <cstdarg> <cstdio> <cstdlib> <string> <string_view>
#ifndef PMGATE_DETAIL_SIM_SCHEDULE_HPP
#define PMGATE_DETAIL_SIM_SCHEDULE_HPP

#include <bit>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include <pmgate/detail/sim_engine.hpp>

namespace pmgate::detail {

// --- choosing ------------------------------------------------------------------

inline auto sim_engine::outcomes(bool can_go_on) const noexcept -> mask {
  mask from = can_go_on ? bit(current_) : 0;
  if (!can_go_on || preemptions_ < options_.preemptions) {
    from |= runnable_ | timed_;
    if (spurious_ < options_.spurious) from |= sleeping_;
  }
  from |= buffered_ << flushes;
  if (can_go_on && migrations_ < options_.migrations) {
    const auto cpus = static_cast<int>(bit(options_.cpus) - 1);
    from |= (static_cast<mask>(cpus) & ~bit(self().cpu)) << moves;
  }
  return from;
}

inline void sim_engine::schedule(bool can_go_on) noexcept {
  for (;;) {
    const mask from = outcomes(can_go_on);
    if (can_go_on && from == bit(current_)) return;
    if (from == 0) {
      stuck();
      return;
    }
    const int outcome = (from & (from - 1)) == 0 ? std::countr_zero(from) : choose(from, can_go_on);
    if (outcome >= moves) {
      move_to(outcome - moves);
    } else if (outcome >= flushes) {
      flush(outcome - flushes);
    } else {
      if (can_go_on && outcome != current_) ++preemptions_;
      go_to(outcome);
      return;
    }
  }
}

inline int sim_engine::choose(mask from, bool can_go_on) noexcept {
  if (options_.how == sim::search::priorities && !choices_.replaying()) {
    const int outcome = highest_priority(from);
    choices_.note(outcome);
    return outcome;
  }
  // Going on comes first, then the oldest store, then the lowest thread.
  int first = std::countr_zero(from);
  if (can_go_on) first = current_;
  return choices_.pick(from, first);
}

/// Threads by priority; what is not a thread now and then.
inline int sim_engine::highest_priority(mask from) noexcept {
  const mask others = from >> flushes << flushes;
  const mask threads = from ^ others;
  if (others != 0 && (threads == 0 || choices_.below(4) == 0)) return std::countr_zero(others);
  for (std::size_t i = 0; i < static_cast<std::size_t>(options_.priority_changes); ++i) {
    if (change_at_[i] == steps_ && current_ >= 0) self().priority = -static_cast<int>(i);
  }
  int best = std::countr_zero(threads);
  for (mask rest = threads; rest != 0; rest &= rest - 1) {
    const int candidate = std::countr_zero(rest);
    if (of(candidate).priority > of(best).priority) best = candidate;
  }
  return best;
}

/// Returns: one of 0 ... count - 1; 0 comes first.
inline int sim_engine::decide(int count) noexcept {
  if (count < 2) return 0;
  if (options_.how == sim::search::priorities && !choices_.replaying()) {
    const auto outcome = static_cast<int>(choices_.below(static_cast<std::uint64_t>(count)));
    choices_.note(outcome);
    return outcome;
  }
  return choices_.pick(bit(count) - 1, 0);
}

inline void sim_engine::go_to(int index) noexcept {
  thread& next = of(index);
  if ((runnable_ & bit(index)) == 0) {
    // Asleep: the deadline passes, or the wait ends for no reason.
    if ((timed_ & bit(index)) != 0) {
      next.timed_out = true;
      if (next.deadline > now_) now_ = next.deadline;
    } else {
      ++spurious_;
    }
    unblock(index);
    if (logs()) say("T%d wakes up: %s", index, next.timed_out ? "time is over" : "no reason");
  }
  if (shares_cpus_) enter_cpu(index);
  if (index == current_) return;
  sim_fiber& here = current_ < 0 ? main_ : self().fiber;
  current_ = index;
  here.switch_to(next.fiber);
}

/// Another thread on the CPU: who ran there is interrupted.
inline void sim_engine::enter_cpu(int index) noexcept {
  int& owner = on_cpu_[static_cast<std::size_t>(of(index).cpu)];
  if (owner == index) return;
  if (owner >= 0) interrupt(owner);
  owner = index;
}

inline void sim_engine::move_to(int cpu) noexcept {
  ++migrations_;
  shares_cpus_ = true;
  interrupt(current_);
  int& owner = on_cpu_[static_cast<std::size_t>(self().cpu)];
  if (owner == current_) owner = -1;
  self().cpu = cpu;
  enter_cpu(current_);
  if (logs()) say("T%d moves to CPU %d", current_, cpu);
}

/// What a context switch and the interrupt of a heavy fence have in common.
inline void sim_engine::interrupt(int index) noexcept {
  drain(index);
  thread& target = of(index);
  target.up_to_date = stores_;
  if (target.in_sequence) target.aborted = true;
}

// --- blocking ------------------------------------------------------------------

inline void sim_engine::block(const sim_cell* on, const char* how) noexcept {
  thread& me = self();
  me.waits_for = on;
  me.waits_how = how;
  me.timed_out = false;
  runnable_ &= ~bit(current_);
  schedule(false);
}

inline void sim_engine::unblock(int index) noexcept {
  runnable_ |= bit(index);
  sleeping_ &= ~bit(index);
  timed_ &= ~bit(index);
  of(index).waits_for = nullptr;
}

inline void sim_engine::finish_thread() noexcept {
  runnable_ &= ~bit(current_);
  finished_ |= bit(current_);
  fresh_ = false;
  if (logs()) say("T%d is done", current_);
  schedule(false);
  leave_fibers();
}

/// Nobody can go on: all is done, or somebody sleeps for ever. No string with a heap:
/// this stack may never be left.
inline void sim_engine::stuck() noexcept {
  char text[256] = "";
  std::size_t used = 0;
  const auto add = [&](const char* format, auto... values) {
    if (used + 1 < sizeof text) {
      const int length = std::snprintf(text + used, sizeof text - used, format, values...);
      used += static_cast<std::size_t>(length);
    }
  };
  for (int t = 0; t < scenario_.threads; ++t) {
    if ((finished_ & bit(t)) != 0) continue;
    const thread& who = of(t);
    add("%sT%d %s", used == 0 ? "" : ", ", t, who.waits_how);
    if (who.waits_for == nullptr) continue;
    add(" #%u", who.waits_for->number);
    if (who.waits_for->holder >= 0) add(" held by T%d", int{who.waits_for->holder});
  }
  if (used != 0) fail("deadlock: %s", text);
  if (current_ >= 0) leave_fibers();
}

// --- running -------------------------------------------------------------------

inline void sim_engine::fiber_entry() {
  running_->run_fiber();
  std::abort();  // never reached: run_fiber() leaves through another fiber
}

inline void sim_engine::run_fiber() noexcept {
  sim_fiber::arrived(main_);
  fresh_ = true;
  if (current_ == grace_thread()) run_grace_periods();
  if (finishing_) {
    scenario_.finish(scenario_.state);
  } else {
    const body& mine = scenario_.bodies[static_cast<std::size_t>(current_)];
    if (logs()) say("T%d starts", current_);
    mine.run(scenario_.state, mine.function);
  }
  finish_thread();
}

/// The thread that runs grace periods when they are deferred; it never ends.
inline void sim_engine::run_grace_periods() noexcept {
  for (;;) {
    while (grace_first_ == nullptr) block(nullptr, "has no grace period to run");
    grace_callback* next = grace_first_;
    grace_first_ = grace_last_ = nullptr;
    fence_all();
    while (next != nullptr) {
      grace_callback& callback = *next;
      next = callback.next;  // the callback may free its owner
      if (logs()) say("T%d runs a grace callback", current_);
      callback.run(callback);
    }
  }
}

inline void sim_engine::leave_fibers() noexcept {
  sim_fiber& here = self().fiber;
  running_ = nullptr;
  here.switch_to(main_);
  std::abort();  // nobody comes back
}

inline void sim_engine::start() noexcept {
  current_ = -1;
  fresh_ = false;
  steps_ = stores_ = 0;
  preemptions_ = delayed_ = migrations_ = refused_ = spurious_ = stale_ = misuses_ = misuses_allowed_ = 0;
  sleeping_ = timed_ = buffered_ = finished_ = 0;
  finishing_ = false;
  now_ = 0;
  grace_first_ = grace_last_ = nullptr;
  shares_cpus_ = options_.cpus < scenario_.threads;
  on_cpu_.fill(-1);
  runnable_ = bit(scenario_.threads) - 1;
  for (int t = 0; t < scenario_.threads + (defers() ? 1 : 0); ++t) {
    thread& each = of(t);
    each.fiber.prepare(&fiber_entry);
    each.seen = each.loaded = each.fenced = sim_clock{};
    each.seen.of[t] = 1;
    each.buffered = 0;
    each.up_to_date = 0;
    each.cpu = t % options_.cpus;
    each.in_sequence = each.aborted = each.timed_out = false;
    each.waits_for = nullptr;
    each.waits_how = "";
    if (options_.how == sim::search::priorities) {
      each.priority = static_cast<int>(choices_.below(1000)) + 1;
    }
  }
  if (options_.how == sim::search::priorities) {
    for (auto& when : change_at_) when = choices_.below(likely_steps_) + 1;
  }
}

inline sim::result sim_engine::explore() {
  const bool by_chance = options_.how != sim::search::exhaustive;
  if (by_chance && options_.schedules == 0) options_.schedules = 10000;
  if (options_.cpus <= 0) options_.cpus = scenario_.threads;
  if (options_.cpus > sim::max_cpus) options_.cpus = sim::max_cpus;
  choices_.reset(by_chance, options_.seed);
  const bool replays = given_schedule();

  sim::result found;
  for (;;) {
    run_once();
    ++found.schedules;
    found.steps += steps_;
    if (failed_) {
      found.failure = failure_;
      found.schedule = std::string(options_.name) + ":" + choices_.text();
      return found;
    }
    if (replays) return found;
    const bool enough = options_.schedules != 0 && found.schedules >= options_.schedules;
    found.complete = by_chance ? enough : !choices_.next();
    if (found.complete || enough) return found;
  }
}

/// Whether PMGATE_SCHEDULE has a schedule for the exploration of this name.
inline bool sim_engine::given_schedule() {
  const char* const given = std::getenv("PMGATE_SCHEDULE");
  const std::string_view text = given != nullptr ? given : "";
  const std::size_t colon = text.rfind(':');
  if (colon == text.npos || text.substr(0, colon) != options_.name) return false;
  choices_.replay(text.substr(colon + 1));
  log_ = true;
  std::fprintf(stderr, "replaying %s\n", given);
  return true;
}

/// All threads are done: looks at the state and destroys it, as a thread that comes
/// after all others. It has no choices; what would wait for ever is a deadlock.
inline void sim_engine::finish() noexcept {
  finishing_ = true;
  preemptions_ = migrations_ = refused_ = spurious_ = stale_ = delayed_ = 2 * sim::unbounded;
  thread& last = of(0);
  for (const thread& each : threads_) last.seen.join(each.seen);
  last.fiber.prepare(&fiber_entry);
  finished_ &= ~bit(0);
  runnable_ |= bit(0);
  running_ = this;
  schedule(false);
}

inline void sim_engine::run_once() {
  choices_.rewind();
  numbers_ = 0;
  failed_ = false;
  exploring_ = this;
  scenario_.make(scenario_.state);
  start();
  running_ = this;
  schedule(false);
  current_ = -1;
  if (!failed_) finish();  // else threads are stopped half-way in the state
  running_ = nullptr;
  current_ = -1;
  exploring_ = nullptr;
  likely_steps_ = steps_ + 1;
}

// --- reports -------------------------------------------------------------------

inline void sim_engine::fail(const char* format, ...) noexcept {
  if (!failed_) {
    va_list arguments;
    va_start(arguments, format);
    (void)std::vsnprintf(failure_, sizeof failure_, format, arguments);
    va_end(arguments);
    failed_ = true;
    if (logs()) say("FAILED: %s", failure_);
  }
  if (running_ != nullptr) leave_fibers();
}

inline void sim_engine::fail_dead(const sim_cell& place) noexcept {
  fail("T%d touches #%u after it was destroyed", current_, place.number);
  std::abort();  // never reached: operations run in fibers
}

inline void sim_engine::say(const char* format, ...) const noexcept {
  std::fprintf(stderr, "%5u  ", steps_);
  va_list arguments;
  va_start(arguments, format);
  (void)std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

inline void sim_engine::misuse(const char* text) noexcept {
  ++misuses_;
  if (misuses_allowed_ > 0) {
    --misuses_allowed_;
    if (logs()) say("T%d expected misuse: %s", current_, text);
  } else {
    fail("misuse: %s", text);
  }
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_SIM_SCHEDULE_HPP
