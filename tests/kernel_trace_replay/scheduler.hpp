// SPDX-License-Identifier: MIT
//
// scheduler.hpp - the world in which traces are replayed: actors that run one
// at a time, virtual time, and grace periods that readers hold open.
//
// A task has a stack of its own. It runs until it sleeps or has finished its job;
// what it wakes runs afterwards, in the order in which it was woken. When nobody
// can run, grace periods advance, and when they cannot, timers fire.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCHEDULER_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCHEDULER_HPP

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/platform/concept.hpp>

#include "carrier.hpp"

namespace replay {

class scheduler;

/// Ends the program: the replayer itself, or what it replays, cannot go on.
[[noreturn]] inline void give_up(const std::string& text) {
  std::fflush(stdout);
  std::fprintf(stderr, "kernel_trace_replay: %s\n", text.c_str());
  std::fflush(stderr);
  std::_Exit(1);
}

/// An actor: does one job after another.
class task {
 public:
  explicit task(std::string name) : name_(std::move(name)) {}
  task(const task&) = delete;
  task& operator=(const task&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  /// True between jobs.
  [[nodiscard]] bool idle() const { return !job_; }

 private:
  friend class scheduler;

  std::string name_;
  std::function<void()> job_;
  bool queued_ = false;  // among those that can run
  carrier carrier_{[this] {
    if (job_) job_();
    job_ = nullptr;
  }};
};

/// One grace period at a time. It waits for the readers inside when it begins;
/// callbacks queued meanwhile belong to the next one.
class grace_periods {
 public:
  void lock(const std::string& reader) { readers_.push_back(reader); }
  /// Returns: false if the reader is not inside.
  bool unlock(const std::string& reader) {
    const auto found = std::find(readers_.begin(), readers_.end(), reader);
    if (found == readers_.end()) return false;
    readers_.erase(found);
    if (std::find(readers_.begin(), readers_.end(), reader) == readers_.end()) {
      awaited_.erase(reader);
    }
    return true;
  }
  void call(pmgate::grace_callback& first) {
    for (auto* next = &first; next != nullptr; next = next->next) queued_.push_back(next);
  }
  [[nodiscard]] bool idle() const { return current_.empty() && queued_.empty(); }
  /// Returns: true if a grace period began or ended.
  bool advance() {
    if (!current_.empty()) {
      if (!awaited_.empty()) return false;
      for (auto* callback : std::exchange(current_, {})) callback->run(*callback);
      return true;
    }
    if (queued_.empty()) return false;
    current_ = std::exchange(queued_, {});
    awaited_.insert(readers_.begin(), readers_.end());
    return true;
  }

 private:
  std::vector<std::string> readers_;
  std::set<std::string> awaited_;  // of the present grace period
  std::vector<pmgate::grace_callback*> current_;
  std::vector<pmgate::grace_callback*> queued_;
};

class scheduler {
 public:
  using timer_key = std::pair<std::int64_t, std::uint64_t>;
  static constexpr std::int64_t settle_ms = 400;  // virtual time that passes after each operation
  static constexpr std::uint64_t patience = 2000000;  // steps a task may take without a sleep

  scheduler() { active() = this; }
  ~scheduler() { active() = nullptr; }
  scheduler(const scheduler&) = delete;
  scheduler& operator=(const scheduler&) = delete;

  /// The one that exists.
  static scheduler*& active() {
    static scheduler* only = nullptr;
    return only;
  }
  static scheduler& get() {
    if (active() == nullptr) give_up("the library was used outside a trace");
    return *active();
  }

  /// Who runs; null between tasks.
  [[nodiscard]] task* current() const { return current_; }
  [[nodiscard]] std::int64_t now() const { return now_; }
  grace_periods rcu;
  std::string where;  // what is being replayed, for give_up()

  task& find(const std::string& name) {
    auto& slot = tasks_[name];
    if (slot == nullptr) slot = std::make_unique<task>(name);
    return *slot;
  }
  void start(task& actor, std::function<void()> job) {
    actor.job_ = std::move(job);
    wake(actor);
  }
  void wake(task& sleeper) {
    if (sleeper.queued_) return;
    sleeper.queued_ = true;
    ready_.push_back(&sleeper);
  }
  /// The current task sleeps until it is woken.
  void sleep() {
    if (current_ == nullptr) give_up(where + ": the library blocks in a callback or a query");
    current_->carrier_.leave();
  }
  timer_key after(std::int64_t when, std::function<void()> call) {
    const timer_key key{when, ++timers_made_};
    timers_.emplace(key, std::move(call));
    return key;
  }
  void cancel(const timer_key& key) { timers_.erase(key); }

  /// The current task sleeps until a grace period has begun or ended.
  void sleep_until_grace() {
    grace_sleepers_.push_back(current_);
    sleep();
  }

  /// Called for every step of the library; a task that never sleeps is put to sleep for
  /// good, and the trace ends there.
  void count_step() {
    if (++steps_ <= patience) return;
    if (current_ == nullptr) give_up(where + ": the library spins in a callback or a query");
    spins_ = true;
    steps_ = 0;
    for (;;) current_->carrier_.leave();
  }
  [[nodiscard]] bool spins() const { return spins_; }

  /// Runs until nothing moves: tasks first, then grace periods, then timers.
  void settle() {
    const std::int64_t horizon = now_ + settle_ms;
    for (;;) {
      steps_ = 0;
      if (!ready_.empty()) {
        task& next = *ready_.front();
        ready_.pop_front();
        next.queued_ = false;
        run(next);
      } else if (rcu.advance()) {
        for (task* sleeper : std::exchange(grace_sleepers_, {})) wake(*sleeper);
      } else if (!timers_.empty() && timers_.begin()->first.first <= horizon) {
        auto timer = timers_.extract(timers_.begin());
        now_ = std::max(now_, timer.key().first);
        timer.mapped()();
      } else {
        break;
      }
    }
    now_ = horizon;
    steps_ = 0;
  }

 private:
  // Lets a task run until it sleeps or has finished.
  void run(task& next) {
    current_ = &next;
    next.carrier_.enter();
    current_ = nullptr;
  }

  task* current_ = nullptr;
  std::map<std::string, std::unique_ptr<task>> tasks_;
  std::deque<task*> ready_;
  std::vector<task*> grace_sleepers_;
  std::map<timer_key, std::function<void()>> timers_;
  std::uint64_t timers_made_ = 0;
  std::uint64_t steps_ = 0;
  bool spins_ = false;
  std::int64_t now_ = 0;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCHEDULER_HPP
