// SPDX-License-Identifier: MIT
//
// freezer_test.cpp - tasks and work queues that are stopped; the numbers are those of
// the scenarios in the specification of system sleep.
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/single.hpp>
#include <pmgate/pm/freezer.hpp>

#include "support/deferred_platform.hpp"
#include "support/virtual_platform.hpp"

using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_freezable_task;
using pmgate::pm::basic_freezer;
using pmgate::pm::basic_work;
using pmgate::pm::basic_work_queue;
using pmgate::pm::task_kind;
using pmgate::pm::work_queue_flags;
using testing::misuse_log;
using testing::time_limit;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using default_freezer = pmgate::pm::freezer;
using default_task = pmgate::pm::freezable_task;
using default_queue = pmgate::pm::work_queue;

static_assert(!std::is_copy_constructible_v<default_freezer>);
static_assert(!std::is_move_constructible_v<default_freezer>);
static_assert(!std::is_copy_constructible_v<default_task>);
static_assert(!std::is_move_constructible_v<default_task>);
static_assert(std::is_nothrow_default_constructible_v<default_freezer>);
static_assert(noexcept(std::declval<default_task&>().try_to_freeze()));

namespace {

auto ms(int n) { return std::chrono::milliseconds(n); }

/// Counts its runs.
template <class P>
struct counted_item {
  static void run(basic_work<P>& item) noexcept {
    ++static_cast<counted_item*>(item.context())->runs;
  }
  std::atomic<int> runs{0};
  basic_work<P> work{&run, this};
};

/// An item of the test's clock that does what the test says.
struct running {
  explicit running(std::function<void()> what) : body(std::move(what)) {}
  static void run(basic_work<virtual_platform>& item) noexcept {
    static_cast<running*>(item.context())->body();
  }
  std::function<void()> body;
  basic_work<virtual_platform> work{&run, this};
};

/// A freezer with a queue, on the test's clock; tasks that are asleep or awake.
struct sequential {
  using freezer_type = basic_freezer<virtual_platform>;
  using task = basic_freezable_task<virtual_platform>;
  using item = counted_item<virtual_platform>;

  sequential() {
    virtual_clock::reset();
    freezer.add(queue);
  }
  ~sequential() {
    virtual_clock::reset();
    freezer.remove(queue);
  }
  misuse_log misuse;
  freezer_type::wakeup wakeup;
  freezer_type freezer{&wakeup};
  freezer_type::report report;
  basic_work_queue<virtual_platform> queue{"poll", work_queue_flags::freezable};
};

/// A thread of the real platform that passes freeze points until told to end.
struct looping_thread {
  looping_thread(default_freezer& owner, task_kind kind) : task(owner, "looping", kind) {
    thread = std::thread([this, kind] {
      if (kind == task_kind::kernel) task.set_freezable();
      while (!stop) {
        ++rounds;
        if (task.try_to_freeze()) ++freezes;
        std::this_thread::yield();
      }
    });
    while (rounds == 0) std::this_thread::yield();
  }
  ~looping_thread() {
    stop = true;
    thread.join();
  }
  /// True if it does not get on.
  bool stands_still() const {
    const long before = rounds;
    std::this_thread::sleep_for(ms(5));
    return rounds == before;
  }
  /// True if it gets on, sooner or later.
  bool gets_on() const {
    const long before = rounds;
    const testing::time_limit limit(60000);
    while (rounds == before && limit) std::this_thread::yield();
    return rounds != before;
  }
  default_task task;
  std::atomic<long> rounds{0};
  std::atomic<int> freezes{0};
  std::atomic<bool> stop{false};
  std::thread thread;
};

}  // namespace

TEST_SUITE("freezer") {

// -- who is stopped

TEST_CASE(
    "the first pass stops user tasks, the second kernel tasks that are freezable and queues") {
  sequential s;
  sequential::task user(s.freezer, "user", task_kind::user);
  sequential::task kernel(s.freezer, "kernel", task_kind::kernel);
  sequential::task plain(s.freezer, "plain kernel", task_kind::kernel);
  kernel.set_freezable();
  auto user_sleep = std::make_optional<sequential::task::freezable_sleep>(user);
  auto kernel_sleep = std::make_optional<sequential::task::freezable_sleep>(kernel);

  CHECK(s.freezer.freeze_processes() == status::ok);
  CHECK(user.is_freezing());
  CHECK(user.is_frozen());
  CHECK_FALSE(kernel.is_freezing());
  CHECK_FALSE(s.queue.is_frozen());

  CHECK(s.freezer.freeze_kernel_threads() == status::ok);
  CHECK(kernel.is_frozen());
  CHECK_FALSE(plain.is_freezing());
  CHECK(s.queue.is_frozen());

  s.freezer.thaw_kernel_threads();
  CHECK_FALSE(kernel.is_freezing());
  CHECK_FALSE(s.queue.is_frozen());
  CHECK(user.is_freezing());

  s.freezer.thaw_processes();
  CHECK_FALSE(user.is_freezing());
}

TEST_CASE("the thread that freezes passes its own freeze points") {
  sequential s;
  sequential::task self(s.freezer, "suspend", task_kind::user);
  self.bind_to_this_thread();

  CHECK(s.freezer.freeze_processes() == status::ok);

  CHECK_FALSE(self.is_freezing());
  CHECK_FALSE(self.try_to_freeze());
  s.freezer.thaw_processes();
}

TEST_CASE("so it does if the freezer does not know which task it is") {
  sequential s;
  sequential::task unbound(s.freezer, "suspend", task_kind::user);
  {
    const sequential::task::freezable_sleep sleep(unbound);
    CHECK(s.freezer.freeze_processes() == status::ok);
    CHECK(unbound.is_frozen());
  }  // a freeze point

  CHECK_FALSE(unbound.try_to_freeze());

  CHECK(unbound.is_freezing());
  CHECK_FALSE(unbound.is_frozen());
  s.freezer.thaw_processes();
}

TEST_CASE("a queue that is made known while everything is frozen starts frozen") {
  sequential s;
  basic_work_queue<virtual_platform> late("late", work_queue_flags::freezable);
  CHECK(s.freezer.freeze_kernel_threads() == status::ok);

  s.freezer.add(late);
  CHECK(late.is_frozen());

  s.freezer.thaw_processes();
  CHECK_FALSE(late.is_frozen());
  s.freezer.remove(late);
}

TEST_CASE("flushing parked items waits, except for the thread that froze") {
  misuse_log misuse;
  default_freezer freezer;
  default_queue early("early", work_queue_flags::freezable);
  default_queue late("late", work_queue_flags::freezable);
  counted_item<pmgate::default_platform> first, second;
  freezer.add(early);
  REQUIRE(freezer.freeze_kernel_threads() == status::ok);
  early.queue(first.work);
  CHECK(early.flush(first.work) == status::deadlock);
  worker newcomer([&] {
    freezer.add(late);
    late.queue(second.work);
    CHECK(late.flush(second.work) == status::ok);
  });
  while (!late.is_frozen()) std::this_thread::yield();
  CHECK(newcomer.is_blocked());
  CHECK(late.flush() == status::deadlock);
  CHECK(misuse.take() == 2);

  freezer.thaw_processes();
  CHECK(early.run_pending());
  CHECK(late.run_pending());
  newcomer.join();
  CHECK(second.runs == 1);
  freezer.remove(early);
  freezer.remove(late);
}

TEST_CASE("running tasks stop at their next freeze point and go on after the thaw") {
  default_freezer freezer;
  looping_thread user(freezer, task_kind::user);
  looping_thread kernel(freezer, task_kind::kernel);

  REQUIRE(freezer.freeze_processes() == status::ok);
  CHECK(user.stands_still());
  CHECK(kernel.gets_on());
  REQUIRE(freezer.freeze_kernel_threads() == status::ok);
  CHECK(kernel.stands_still());

  freezer.thaw_kernel_threads();
  CHECK(kernel.gets_on());
  CHECK(user.stands_still());
  freezer.thaw_processes();
  CHECK(user.gets_on());
  CHECK(user.freezes == 1);
  CHECK(kernel.freezes == 1);
}

TEST_CASE("a task that ends its freezable sleep while frozen stays there until the thaw") {
  default_freezer freezer;
  std::atomic<bool> asleep{false};
  std::atomic<bool> wake{false};
  worker sleeper([&] {
    default_task task(freezer, "sleeper", task_kind::user);
    const default_task::freezable_sleep sleep(task);
    asleep = true;
    while (!wake) std::this_thread::yield();
  });
  while (!asleep) std::this_thread::yield();

  REQUIRE(freezer.freeze_processes() == status::ok);
  wake = true;
  CHECK(sleeper.is_blocked());

  freezer.thaw_processes();
  sleeper.join();
}

TEST_CASE("a frozen task that is asked to stop may end while the rest stays frozen") {
  default_freezer freezer;
  default_task task(freezer, "stoppable", task_kind::kernel);
  task.set_freezable();
  worker thread([&] {
    while (!task.freezable_should_stop()) std::this_thread::yield();
  });
  REQUIRE(freezer.freeze_processes() == status::ok);
  REQUIRE(freezer.freeze_kernel_threads() == status::ok);

  task.request_stop();

  thread.join();
  CHECK(freezer.freezes_everything());
  freezer.thaw_processes();
}

TEST_CASE("a frozen task that is exempted goes on while the rest stays frozen") {
  default_freezer freezer;
  looping_thread victim(freezer, task_kind::user);
  looping_thread other(freezer, task_kind::user);
  REQUIRE(freezer.freeze_processes() == status::ok);
  REQUIRE(victim.stands_still());

  victim.task.set_nofreeze();

  CHECK(victim.gets_on());
  CHECK(other.stands_still());
  CHECK_FALSE(victim.task.is_frozen());
  freezer.thaw_processes();
}

// -- order of success, deadline and wakeup

TEST_CASE("scenario 11: an abort from before a freeze is forgotten") {
  sequential s;
  SUBCASE("with nothing to freeze") {
    s.freezer.abort();
    CHECK(s.freezer.freeze_processes(s.report) == status::ok);
    CHECK(virtual_clock::now() == 0);
    s.freezer.thaw_processes();
  }
  SUBCASE("with a task that needs a round") {
    sequential::task slow(s.freezer, "slow", task_kind::user);
    std::unique_ptr<sequential::task::freezable_sleep> sleep;
    virtual_clock::on_sleep() = [&] {
      sleep = std::make_unique<sequential::task::freezable_sleep>(slow);
    };
    s.freezer.abort();
    CHECK(s.freezer.freeze_processes(s.report) == status::ok);
    CHECK(virtual_clock::now() == 1);
    s.freezer.thaw_processes();
  }
  CHECK_FALSE(s.report.aborted);
  CHECK_FALSE(s.wakeup.pending());
}

TEST_CASE(
    "scenario 22: the kernel pass takes as long as the item that runs, and parks the others") {
  sequential s;
  std::vector<std::string> log;
  std::atomic<bool> entered{false}, open{false};
  running w1([&] {
    log.emplace_back("w1");
    if (entered.exchange(true)) return;
    while (!open) std::this_thread::yield();
    CHECK(s.queue.queue(w1.work));
  });
  running w2([&] { log.emplace_back("w2"); });
  running w3([&] { log.emplace_back("w3"); });
  running w4([&] { log.emplace_back("w4"); });
  s.queue.queue(w1.work);
  std::thread runner([&] { s.queue.run_pending(); });
  while (!entered) std::this_thread::yield();
  s.queue.queue(w2.work);
  s.queue.queue_delayed(w4.work, ms(50));
  virtual_clock::on_sleep() = [&] {
    (void)s.queue.queue(w3.work);
    if (virtual_clock::now() < 100 || !runner.joinable()) return;
    open = true;
    runner.join();
  };

  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::ok);

  CHECK(s.report.elapsed >= ms(100));
  CHECK(s.report.elapsed <= ms(110));
  CHECK(log == std::vector<std::string>{"w1"});
  CHECK_FALSE(s.queue.run_pending());
  s.freezer.thaw_processes();
  while (s.queue.run_pending()) {
  }
  CHECK(log == std::vector<std::string>{"w1", "w2", "w3", "w4", "w1"});
}

TEST_CASE("scenario 23: the kernel pass waits for an item that was activated, and not started") {
  sequential s;
  basic_work_queue<virtual_platform> wide("wide", work_queue_flags::freezable, 4);
  s.freezer.add(wide);
  std::atomic<int> entered{0}, open{0};
  const auto wait_for_turn = [&] {
    for (const int turn = ++entered; open < turn;) std::this_thread::yield();
  };
  running a(wait_for_turn), b(wait_for_turn);
  wide.queue(a.work);
  wide.queue(b.work);
  std::thread one_worker([&] { wide.run_pending(); });
  while (entered < 1) std::this_thread::yield();
  virtual_clock::on_sleep() = [&] {
    if (virtual_clock::now() < 20) return;
    open = 1;
    while (entered < 2) std::this_thread::yield();
    if (virtual_clock::now() < 40 || !one_worker.joinable()) return;
    open = 2;
    one_worker.join();
  };

  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::ok);

  CHECK(entered == 2);
  CHECK(s.report.elapsed >= ms(40));
  CHECK(s.report.elapsed <= ms(50));
  s.freezer.thaw_processes();
  s.freezer.remove(wide);
}

TEST_CASE(
    "scenario 25: a task that reaches no freeze point fails the kernel pass, and user tasks stay "
    "frozen") {
  sequential s;
  sequential::task user(s.freezer, "user", task_kind::user);
  sequential::task stubborn(s.freezer, "stubborn", task_kind::kernel);
  stubborn.set_freezable();
  const sequential::task::freezable_sleep sleep(user);
  sequential::item parked;
  s.freezer.set_timeout(ms(200));
  virtual_clock::on_sleep() = [&] { s.queue.queue(parked.work); };
  REQUIRE(s.freezer.freeze_processes() == status::ok);

  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::busy);

  CHECK(s.report.elapsed >= ms(200));
  CHECK(s.report.elapsed <= ms(220));
  CHECK(s.report.tasks_refusing == 1);
  CHECK(s.report.tasks[0] == std::string("stubborn"));
  CHECK_FALSE(s.report.wq_busy());
  CHECK_FALSE(s.report.aborted);
  CHECK(s.queue.run_pending());
  CHECK(parked.runs == 1);
  CHECK(user.is_freezing());
  s.freezer.thaw_processes();
  CHECK_FALSE(user.is_freezing());
}

TEST_CASE(
    "scenario 26: an item that does not end fails the kernel pass, and the report names its "
    "queue") {
  sequential s;
  sequential::item started;
  s.queue.queue(started.work);
  s.freezer.set_timeout(ms(200));
  REQUIRE(s.freezer.freeze_processes() == status::ok);

  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::busy);

  CHECK(s.report.tasks_refusing == 0);
  CHECK(s.report.tasks[0] == nullptr);
  CHECK(s.report.wq_busy());
  CHECK(s.report.queues[0] == std::string("poll"));
  CHECK_FALSE(s.queue.is_frozen());
  s.freezer.thaw_processes();
  CHECK(s.queue.run_pending());
}

TEST_CASE(
    "scenario 27: a wakeup ends the user pass long before the deadline, and everything is thawed") {
  sequential s;
  sequential::task stubborn(s.freezer, "stubborn", task_kind::user);
  virtual_clock::on_sleep() = [&] { s.freezer.abort(); };

  CHECK(s.freezer.freeze_processes(s.report) == status::busy);

  CHECK(s.report.aborted);
  CHECK(s.report.elapsed < ms(10));
  CHECK(s.report.tasks_refusing == 1);
  CHECK_FALSE(stubborn.is_freezing());
  CHECK_FALSE(s.freezer.freezes_user_tasks());
}

TEST_CASE("a wakeup during the kernel pass leaves the user tasks frozen") {
  sequential s;
  sequential::task stubborn(s.freezer, "stubborn", task_kind::kernel);
  stubborn.set_freezable();
  REQUIRE(s.freezer.freeze_processes() == status::ok);
  REQUIRE(s.wakeup.arm(s.wakeup.count()));

  s.wakeup.signal();
  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::busy);

  CHECK(s.report.aborted);
  CHECK(s.freezer.freezes_user_tasks());
  CHECK_FALSE(s.freezer.freezes_everything());
  CHECK_FALSE(s.queue.is_frozen());
  s.freezer.thaw_processes();
}

TEST_CASE("that nothing is left wins over a pending wakeup") {
  sequential s;
  REQUIRE(s.wakeup.arm(s.wakeup.count()));
  s.wakeup.signal();

  CHECK(s.freezer.freeze_processes(s.report) == status::ok);

  CHECK_FALSE(s.report.aborted);
  CHECK(s.wakeup.pending());
  s.freezer.thaw_processes();
}

TEST_CASE("the deadline wins over a wakeup") {
  sequential s;
  sequential::task stubborn(s.freezer, "stubborn", task_kind::user);
  s.freezer.set_timeout(ms(100));
  virtual_clock::on_sleep() = [&] {
    if (virtual_clock::now() > 100) s.freezer.abort();
  };

  CHECK(s.freezer.freeze_processes(s.report) == status::busy);

  CHECK(s.report.elapsed > ms(100));
  CHECK_FALSE(s.report.aborted);
  CHECK(s.wakeup.pending());
}

TEST_CASE("success in the last round wins over the deadline") {
  sequential s;
  sequential::item started;
  s.queue.queue(started.work);
  s.freezer.set_timeout(ms(100));
  virtual_clock::on_sleep() = [&] {
    if (virtual_clock::now() < 100) return;
    virtual_clock::advance(500);
    s.queue.run_pending();
  };

  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::ok);

  CHECK(s.report.elapsed > ms(100));
  s.freezer.thaw_processes();
}

TEST_CASE("rounds come after 1, 2, 4, 8 and then every 8 milliseconds, for 20 seconds") {
  sequential s;
  sequential::task stubborn(s.freezer, "stubborn", task_kind::user);
  std::vector<long> rounds;
  virtual_clock::on_sleep() = [&] { rounds.push_back(static_cast<long>(virtual_clock::now())); };

  CHECK(s.freezer.freeze_processes(s.report) == status::busy);

  REQUIRE(rounds.size() > 6);
  rounds.resize(6);
  CHECK(rounds == std::vector<long>{1, 3, 7, 15, 23, 31});
  CHECK(s.report.elapsed > ms(20000));
  CHECK(s.report.elapsed <= ms(20008));
}

TEST_CASE("each pass has a budget of its own") {
  sequential s;
  sequential::task slow(s.freezer, "slow", task_kind::user);
  sequential::task stubborn(s.freezer, "stubborn", task_kind::kernel);
  stubborn.set_freezable();
  std::optional<sequential::task::freezable_sleep> sleep;
  s.freezer.set_timeout(ms(100));
  virtual_clock::on_sleep() = [&] {
    if (virtual_clock::now() > 90 && !sleep) sleep.emplace(slow);
  };
  REQUIRE(s.freezer.freeze_processes(s.report) == status::ok);
  CHECK(s.report.elapsed > ms(80));

  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::busy);

  CHECK(s.report.elapsed >= ms(100));
  s.freezer.thaw_processes();
}

// -- reports, and what belongs to the user pass

TEST_CASE("a report names the stragglers, the first eight of them") {
  sequential s;
  std::vector<std::string> names;
  for (int n = 0; n < 10; ++n) names.push_back("task " + std::to_string(n));
  std::vector<std::unique_ptr<sequential::task>> tasks;
  for (const std::string& name : names) {
    tasks.push_back(std::make_unique<sequential::task>(s.freezer, name.c_str(), task_kind::user));
  }
  basic_work_queue<virtual_platform> second("second", work_queue_flags::freezable);
  s.freezer.add(second);
  sequential::item first_item, second_item;
  s.queue.queue(first_item.work);
  second.queue(second_item.work);
  s.freezer.set_timeout(ms(50));

  CHECK(s.freezer.freeze_processes(s.report) == status::busy);
  CHECK(s.report.tasks_refusing == 10);
  CHECK(s.report.queues_busy == 0);
  for (const char* name : s.report.tasks) {
    REQUIRE(name != nullptr);
    CHECK(std::string(name).substr(0, 5) == "task ");
  }
  tasks.clear();
  CHECK(s.freezer.freeze_kernel_threads(s.report) == status::busy);
  CHECK(s.report.queues_busy == 2);
  CHECK(std::string(s.report.queues[0]) + s.report.queues[1] == "secondpoll");
  CHECK(s.report.queues[2] == nullptr);

  s.queue.run_pending();
  second.run_pending();
  s.freezer.remove(second);
}

TEST_CASE("a report is kept for who did not call the pass himself, one of each kind") {
  sequential s;
  sequential::task user(s.freezer, "user", task_kind::user);
  sequential::item started;
  s.queue.queue(started.work);
  s.freezer.set_timeout(ms(50));
  CHECK(s.freezer.last_report(task_kind::user).tasks_refusing == 0);

  CHECK(s.freezer.freeze_processes() == status::busy);
  CHECK(s.freezer.freeze_kernel_threads() == status::busy);

  const auto first = s.freezer.last_report(task_kind::user);
  CHECK(first.tasks_refusing == 1);
  CHECK(first.tasks[0] == std::string("user"));
  CHECK(first.queues_busy == 0);
  CHECK(first.elapsed >= ms(50));
  const auto second = s.freezer.last_report(task_kind::kernel);
  CHECK(second.queues_busy == 1);
  CHECK(second.queues[0] == std::string("poll"));
  s.queue.run_pending();
}

TEST_CASE("the steps around the user tasks: the first to stop is the last to go on") {
  sequential s;
  sequential::task user(s.freezer, "user", task_kind::user);
  const sequential::task::freezable_sleep sleep(user);
  struct service {
    static bool stop(void* context, virtual_platform::duration limit) noexcept {
      auto& self = *static_cast<service*>(context);
      self.log += self.name + (limit == ms(70) ? "- " : ": wrong limit ");
      CHECK(self.user.is_frozen() == self.comes_last);
      return !self.refuses;
    }
    static void go_on(void* context) noexcept {
      auto& self = *static_cast<service*>(context);
      self.log += self.name + "+ ";
      CHECK_FALSE(self.user.is_freezing());
      CHECK(self.user.is_frozen());  // and does not go on yet
    }
    std::string& log;
    sequential::task& user;
    std::string name;
    bool comes_last;
    bool refuses = false;
  };
  std::string log;
  service helpers{log, user, "helpers", false}, killer{log, user, "killer", true};
  s.freezer.set_timeout(ms(70));
  s.freezer.set_first_step({&service::stop, &service::go_on, &helpers});
  s.freezer.set_last_step({&service::stop, &service::go_on, &killer});

  SUBCASE("nobody refuses") {
    CHECK(s.freezer.freeze_processes(s.report) == status::ok);
    CHECK(s.freezer.freeze_kernel_threads() == status::ok);
    s.freezer.thaw_kernel_threads();
    CHECK(log == "helpers- killer- ");
    CHECK(s.freezer.freeze_kernel_threads() == status::ok);
    s.freezer.thaw_processes();
    CHECK(log == "helpers- killer- killer+ helpers+ ");
  }
  SUBCASE("the last refuses: everything is thawed") {
    killer.refuses = true;
    CHECK(s.freezer.freeze_processes(s.report) == status::busy);
    CHECK(s.report.last_step_refused);
    CHECK(log == "helpers- killer- helpers+ ");
  }
  SUBCASE("the first refuses: nothing is touched, an earlier abort stays") {
    helpers.refuses = true;
    s.freezer.abort();
    CHECK(s.freezer.freeze_processes(s.report) == status::busy);
    CHECK(s.report.first_step_refused);
    CHECK(s.wakeup.pending());
    CHECK(log == "helpers- ");
  }
  CHECK_FALSE(user.is_frozen());
  CHECK_FALSE(s.freezer.freezes_user_tasks());
}

TEST_CASE("the queues are thawed after the steps have gone on") {
  sequential s;
  s.freezer.set_last_step({[](void*, virtual_platform::duration) noexcept { return true; },
                           [](void* it) noexcept {
                             auto& self = *static_cast<sequential*>(it);
                             CHECK_FALSE(self.freezer.freezes_everything());
                             CHECK(self.queue.is_frozen());
                           },
                           &s});
  REQUIRE(s.freezer.freeze_processes() == status::ok);
  REQUIRE(s.freezer.freeze_kernel_threads() == status::ok);

  s.freezer.thaw_processes();

  CHECK_FALSE(s.queue.is_frozen());
}

TEST_CASE("a task that sleeps on after the thaw does not count as frozen") {
  sequential s;
  sequential::task user(s.freezer, "user", task_kind::user);
  const sequential::task::freezable_sleep sleep(user);

  for (int turn = 0; turn < 2; ++turn) {
    CHECK(s.freezer.freeze_processes() == status::ok);
    CHECK(user.is_frozen());
    s.freezer.thaw_processes();
    CHECK_FALSE(user.is_frozen());
  }
}

TEST_CASE("the kernel pass of another thread does not take the thaw from who froze first") {
  misuse_log misuse;
  default_freezer freezer;
  REQUIRE(freezer.freeze_processes() == status::ok);
  std::thread([&] { CHECK(freezer.freeze_kernel_threads() == status::ok); }).join();

  freezer.thaw_processes();

  CHECK(misuse.count() == 0);
  CHECK_FALSE(freezer.freezes_everything());
}

TEST_CASE("a thaw of the kernel pass without one takes the thaw from nobody, and opens no queue") {
  misuse_log misuse;
  default_freezer freezer;
  pmgate::pm::work_queue frozen("frozen", work_queue_flags::freezable);
  freezer.add(frozen);
  frozen.freeze_begin();
  pmgate::pm::user_step step;
  step.context = &freezer;
  step.stop = [](void* context, auto) noexcept {
    // Whoever freezes has begun, and nothing is frozen yet.
    std::thread([context] {
      static_cast<default_freezer*>(context)->thaw_kernel_threads();
    }).join();
    return true;
  };
  step.go_on = [](void*) noexcept {};
  freezer.set_first_step(step);

  CHECK(freezer.freeze_processes() == status::ok);
  CHECK(frozen.is_frozen());
  freezer.thaw_processes();

  CHECK_FALSE(freezer.freezes_user_tasks());
  CHECK_FALSE(frozen.is_frozen());
  CHECK(misuse.count() == 0);
  freezer.remove(frozen);
}

TEST_CASE("a freeze by another thread is refused, and takes neither the thaw nor the abort away") {
  misuse_log misuse;
  default_freezer::wakeup wakeup;
  default_freezer freezer(&wakeup);
  default_freezer::report report;
  const auto from_elsewhere = [&] {
    std::thread([&] {
      CHECK(freezer.freeze_processes(report) == status::busy);
      CHECK_FALSE(report.aborted);
    }).join();
  };
  SUBCASE("after the user pass") {
    REQUIRE(freezer.freeze_processes() == status::ok);
    freezer.abort();
    from_elsewhere();
    CHECK(freezer.freezes_user_tasks());
  }
  SUBCASE("after the kernel pass") {
    REQUIRE(freezer.freeze_kernel_threads() == status::ok);
    freezer.abort();
    from_elsewhere();
    CHECK_FALSE(freezer.freezes_user_tasks());
    CHECK(freezer.freezes_everything());
  }
  CHECK(misuse.take() == 1);
  CHECK(wakeup.pending());

  freezer.thaw_processes();
  CHECK(misuse.count() == 0);
  CHECK_FALSE(freezer.freezes_everything());
  std::thread([&] {
    CHECK(freezer.freeze_processes() == status::ok);
    freezer.thaw_processes();
  }).join();
}

TEST_CASE("the time a pass may take can be changed while one goes on") {
  default_freezer freezer;
  std::atomic<bool> stop{false};
  worker changes([&] {
    while (!stop) freezer.set_timeout(ms(20000));
  });
  for (int n = 0; n < 1000; ++n) {
    CHECK(freezer.freeze_processes() == status::ok);
    freezer.thaw_processes();
  }
  stop = true;
}

// -- hibernation

TEST_CASE("after an image was put back, it is who did so that cannot wait for parked items") {
  misuse_log misuse;
  default_freezer freezer;
  default_queue queue("poll", work_queue_flags::freezable);
  counted_item<pmgate::default_platform> parked;
  freezer.add(queue);
  std::atomic<bool> saved{false}, put_back{false};
  worker sleeps([&] {
    REQUIRE(freezer.freeze_processes() == status::ok);
    REQUIRE(freezer.freeze_kernel_threads() == status::ok);
    queue.queue(parked.work);
    freezer.save_image();
    saved = true;
    while (!put_back) std::this_thread::yield();
    CHECK(queue.flush(parked.work) == status::ok);  // somebody else thaws
  });
  while (!saved) std::this_thread::yield();

  freezer.put_back_image();
  CHECK(queue.flush(parked.work) == status::deadlock);
  CHECK(queue.flush() == status::deadlock);
  CHECK(misuse.take() == 2);

  put_back = true;
  CHECK(sleeps.is_blocked());
  freezer.thaw_processes();
  CHECK(queue.run_pending());
  sleeps.join();
  CHECK(misuse.count() == 0);
  freezer.remove(queue);
}

TEST_CASE("what was queued after the image was made is not in it, what was pending is") {
  sequential s;
  sequential::item before, timer, after, late_timer;
  REQUIRE(s.freezer.freeze_processes() == status::ok);
  REQUIRE(s.freezer.freeze_kernel_threads() == status::ok);
  s.queue.queue(before.work);
  s.queue.queue_delayed(timer.work, ms(10));
  s.freezer.save_image();
  s.queue.queue(after.work);
  s.queue.queue_delayed(late_timer.work, ms(10));
  virtual_clock::advance(20);
  CHECK(s.queue.cancel(late_timer.work));
  s.queue.queue_delayed(late_timer.work, ms(10));

  s.freezer.put_back_image();
  CHECK(before.work.is_pending());
  CHECK(timer.work.is_pending());
  CHECK_FALSE(after.work.is_pending());
  CHECK_FALSE(late_timer.work.is_pending());

  s.freezer.thaw_processes();
  virtual_clock::advance(20);
  while (s.queue.run_pending()) {
  }
  CHECK(before.runs == 1);
  CHECK(timer.runs == 1);
  CHECK(after.runs == 0);
  s.freezer.put_back_image();
  CHECK(s.misuse.take() == 1);
}

TEST_CASE("items of a kernel that is overwritten vanish, parked ones and timers") {
  sequential s;
  sequential::item parked, timer;
  REQUIRE(s.freezer.freeze_processes() == status::ok);
  REQUIRE(s.freezer.freeze_kernel_threads() == status::ok);
  s.queue.queue(parked.work);
  s.queue.queue_delayed(timer.work, ms(10));

  s.freezer.vanish();

  CHECK_FALSE(parked.work.is_pending());
  CHECK_FALSE(timer.work.is_pending());
  CHECK_FALSE(s.queue.run_pending());
  CHECK_FALSE(s.freezer.freezes_user_tasks());
}

// -- misuse, and one thread of execution

TEST_CASE("thawing by a thread that did not freeze is reported and thaws nothing") {
  misuse_log misuse;
  default_freezer freezer;
  REQUIRE(freezer.freeze_processes() == status::ok);

  std::thread([&] { freezer.thaw_processes(); }).join();
  CHECK(misuse.take() == 1);
  CHECK(freezer.freezes_user_tasks());

  freezer.thaw_processes();
  freezer.thaw_processes();
  CHECK(misuse.take() == 0);
  CHECK_FALSE(freezer.freezes_user_tasks());
}

TEST_CASE("freezing queues twice, adding one twice and removing a stranger are reported") {
  sequential s;
  basic_work_queue<virtual_platform> stranger("stranger");
  REQUIRE(s.freezer.freeze_kernel_threads() == status::ok);

  CHECK(s.freezer.freeze_kernel_threads() == status::ok);
  s.freezer.add(s.queue);
  s.freezer.remove(stranger);

  CHECK(s.misuse.take() == 3);
  s.freezer.thaw_processes();
}

TEST_CASE("destroying a freezer that knows somebody, or a queue that is known, is reported") {
  misuse_log misuse;
  auto freezer = std::make_unique<basic_freezer<virtual_platform>>();
  auto queue = std::make_unique<basic_work_queue<virtual_platform>>("tested");
  freezer->add(*queue);

  queue.reset();
  CHECK(misuse.take() == 1);
  freezer.reset();
  CHECK(misuse.take() == 1);
}

TEST_CASE("with one thread only, a pass looks once and a freeze point does not wait") {
  misuse_log misuse;
  basic_freezer<single_platform> freezer;
  basic_freezer<single_platform>::report report;
  basic_freezable_task<single_platform> task(freezer, "task", task_kind::user);

  CHECK(freezer.freeze_processes(report) == status::busy);
  CHECK(report.tasks_refusing == 1);

  {
    const basic_freezable_task<single_platform>::freezable_sleep sleep(task);
    CHECK(freezer.freeze_processes() == status::ok);
    freezer.thaw_processes();
  }
  CHECK(misuse.count() == 0);
}

// -- real threads

TEST_CASE("stress: after both passes no task moves and no item runs, and nothing is lost") {
  default_freezer freezer;
  default_queue queue("poll", work_queue_flags::freezable);
  freezer.add(queue);
  counted_item<pmgate::default_platform> item;
  std::atomic<int> accepted{0};
  std::thread runner([&] { queue.run(); });
  {
    looping_thread user(freezer, task_kind::user);
    looping_thread kernel(freezer, task_kind::kernel);
    std::atomic<bool> stop{false};
    worker poller([&] {
      while (!stop) {
        if (queue.queue(item.work)) ++accepted;
        std::this_thread::yield();
      }
    });
    for (time_limit limit(200); limit;) {
      REQUIRE(freezer.freeze_processes() == status::ok);
      REQUIRE(freezer.freeze_kernel_threads() == status::ok);
      const long moves = user.rounds + kernel.rounds;
      const int runs = item.runs;
      std::this_thread::yield();
      CHECK(user.rounds + kernel.rounds == moves);
      CHECK(item.runs == runs);
      freezer.thaw_processes();
    }
    stop = true;
  }
  queue.drain();
  CHECK(item.runs == accepted);
  queue.stop();
  runner.join();
  freezer.remove(queue);
}

}  // TEST_SUITE
