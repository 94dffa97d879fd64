// SPDX-License-Identifier: MIT
//
// checked_test.cpp - what the checked platform reports, and what it must not report.
//
// The cases named "section 4" are the rows of the table of deadlock classes in the
// specification of queue freezing, the numbers its scenarios. On the simulated
// platform they run outside of an exploration, where nothing ever waits.
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/checked_gates.hpp>
#include <pmgate/block/dump.hpp>
#include <pmgate/block/gate_group.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/request_queue.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/sim.hpp>
#include <pmgate/platform/single.hpp>
#include <pmgate/scsi/host.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_freeze_gate;
using pmgate::basic_gate_waiter;
using pmgate::basic_quiesce_gate;
using pmgate::check_kind;
using pmgate::checked_options;
using pmgate::checked_platform;
using pmgate::enter_flags;
using pmgate::gate_start;
using pmgate::scoped_lock;
using pmgate::status;
using testing::worker;

// These tests lock in wrong orders on purpose.
extern "C" const char* __tsan_default_options() { return "detect_deadlocks=0"; }

namespace {

// -- the interface is that of the plain gates

template <class Gate>
concept has_freeze_gate_members = requires(Gate& g, const Gate& view, enter_flags flags,
                                           typename Gate::time_point t, typename Gate::waiter& w,
                                           typename Gate::ticket ticket, bool& closed_it,
                                           typename Gate::resume_fn ask) {
  { g.enter() } noexcept -> std::same_as<status>;
  { g.enter(flags) } noexcept -> std::same_as<status>;
  { g.enter_until(t) } noexcept -> std::same_as<status>;
  { g.enter_until(t, flags) } noexcept -> std::same_as<status>;
  { g.try_enter() } noexcept -> std::same_as<bool>;
  { g.try_enter(flags) } noexcept -> std::same_as<bool>;
  { g.exit() } noexcept -> std::same_as<void>;
  { g.exit(2) } noexcept -> std::same_as<void>;
  { g.hold() } noexcept -> std::same_as<typename Gate::ticket>;
  { g.hold(flags) } noexcept -> std::same_as<typename Gate::ticket>;
  { g.get() } noexcept -> std::same_as<void>;
  { g.get(2) } noexcept -> std::same_as<void>;
  { g.try_get() } noexcept -> std::same_as<bool>;
  { g.enter_or_wait(w) } noexcept -> std::same_as<status>;
  { g.enter_or_wait(w, flags) } noexcept -> std::same_as<status>;
  { g.cancel(w) } noexcept -> std::same_as<bool>;
  { g.freeze() } noexcept -> std::same_as<status>;
  { g.freeze_start() } noexcept -> std::same_as<status>;
  { g.freeze_start(closed_it) } noexcept -> std::same_as<status>;
  { g.freeze_wait() } noexcept -> std::same_as<status>;
  { g.freeze_wait_until(t) } noexcept -> std::same_as<bool>;
  { g.freeze_until(t) } noexcept -> std::same_as<status>;
  { g.freeze_or_wait(w) } noexcept -> std::same_as<status>;
  { g.drained_or_wait(w) } noexcept -> std::same_as<status>;
  { g.unfreeze() } noexcept -> std::same_as<void>;
  { g.unfreeze_to_atomic() } noexcept -> std::same_as<void>;
  { g.freeze_start_non_owner() } noexcept -> std::same_as<status>;
  { g.unfreeze_non_owner() } noexcept -> std::same_as<void>;
  { g.set_pm_only() } noexcept -> std::same_as<void>;
  { g.clear_pm_only() } noexcept -> std::same_as<void>;
  { g.set_runtime_suspended(true) } noexcept -> std::same_as<void>;
  { g.set_resume_request(ask, nullptr) } noexcept -> std::same_as<void>;
  { g.mark_dying() } noexcept -> std::same_as<void>;
  { g.start_drain() } noexcept -> std::same_as<status>;
  { g.start_drain(closed_it) } noexcept -> std::same_as<status>;
  { g.switch_to_percpu() } noexcept -> std::same_as<void>;
  { g.switch_to_atomic_sync() } noexcept -> std::same_as<bool>;
  { view.depth() } noexcept -> std::same_as<int>;
  { view.pm_only() } noexcept -> std::same_as<int>;
  { view.is_frozen() } noexcept -> std::same_as<bool>;
  { view.is_dying() } noexcept -> std::same_as<bool>;
  { view.usage() } noexcept -> std::same_as<const typename Gate::count_type&>;
  ticket.leave();
  ticket.release();
  static_cast<bool>(ticket);
};
template <class Gate>
concept has_quiesce_gate_members =
    requires(Gate& g, const Gate& view, typename Gate::waiter& w, typename Gate::ticket ticket) {
      { g.try_dispatch() } noexcept -> std::same_as<bool>;
      { g.end_dispatch() } noexcept -> std::same_as<void>;
      { g.dispatch() } noexcept -> std::same_as<typename Gate::ticket>;
      { g.quiesce() } noexcept -> std::same_as<status>;
      { g.quiesce_nowait() } noexcept -> std::same_as<void>;
      { g.wait_quiesced() } noexcept -> std::same_as<status>;
      { g.quiesce_or_wait(w) } noexcept -> std::same_as<status>;
      { g.quiesced_or_wait(w) } noexcept -> std::same_as<status>;
      { g.cancel(w) } noexcept -> std::same_as<bool>;
      { g.unquiesce() } noexcept -> std::same_as<bool>;
      { view.depth() } noexcept -> std::same_as<int>;
      ticket.leave();
      ticket.release();
      static_cast<bool>(ticket);
    };
using checked_default = pmgate::default_checked_platform;
static_assert(has_freeze_gate_members<pmgate::freeze_gate>);
static_assert(has_freeze_gate_members<pmgate::checked_freeze_gate>);
static_assert(has_quiesce_gate_members<pmgate::quiesce_gate>);
static_assert(has_quiesce_gate_members<pmgate::checked_quiesce_gate>);
static_assert(!std::is_copy_constructible_v<pmgate::checked_freeze_gate>);
static_assert(!std::is_move_constructible_v<pmgate::checked_freeze_gate>);
static_assert(std::is_nothrow_move_constructible_v<pmgate::checked_freeze_gate::ticket>);
static_assert(!std::is_copy_constructible_v<pmgate::checked_freeze_gate::ticket>);
static_assert(pmgate::platform<checked_default>);
static_assert(pmgate::platform<checked_platform<pmgate::single_platform>>);

// -- what is reported

struct seen_report {
  check_kind kind;
  std::string text;
};
std::mutex seen_lock;
std::vector<seen_report> seen_reports;

void note(const pmgate::check_report& report) noexcept {
  const std::scoped_lock lock(seen_lock);
  seen_reports.push_back({report.kind, report.text});
}

/// A checked platform at its beginning, whose reports are kept.
template <class B>
struct rig {
  using platform = checked_platform<B>;
  using gate = basic_freeze_gate<platform>;
  using quiesce_gate = basic_quiesce_gate<platform>;
  using mutex = typename platform::mutex;

  explicit rig(checked_options options = {}) {
    platform::reset();
    options.sink = &note;
    if (options.limit_ms == checked_options().limit_ms) options.limit_ms = 0;
    platform::set_options(options);
    (void)take();
  }
  ~rig() { platform::set_options({}); }
  rig(const rig&) = delete;
  rig& operator=(const rig&) = delete;

  static std::vector<seen_report> take() {
    const std::scoped_lock lock(seen_lock);
    return std::exchange(seen_reports, {});
  }
  static std::size_t count() {
    const std::scoped_lock lock(seen_lock);
    return seen_reports.size();
  }
};

/// Another thread, to its end.
template <class Body>
void elsewhere(Body body) {
  std::thread(body).join();
}

std::string line(unsigned number) {
  return std::string("checked_test.cpp:") + std::to_string(number) + " ";
}
bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#define CHECK_REPORT(reports, what, part)                              \
  do {                                                                 \
    const auto their = (reports);                                      \
    REQUIRE(their.size() == 1);                                        \
    CHECK(their[0].kind == check_kind::what);                          \
    CHECK_MESSAGE(mentions(their[0].text, part), their[0].text);       \
  } while (false)

}  // namespace

#define ALL_PLATFORMS pmgate::linux_platform, pmgate::portable_platform, pmgate::sim_platform
#define THREADED_PLATFORMS pmgate::linux_platform, pmgate::portable_platform

TEST_SUITE("checked") {

// -- the table of section 4

TEST_CASE_TEMPLATE("section 4: a thread enters a gate it has frozen; scenario 41", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g(gate_start::percpu, "sda");
  REQUIRE(g.freeze() == status::ok); const unsigned frozen = __LINE__;

  CHECK(g.enter(enter_flags::nowait) == status::again);
  CHECK(r.count() == 0);
  CHECK(g.enter() == status::deadlock); const unsigned entered = __LINE__;
  const auto reports = r.take();
  CHECK_REPORT(reports, deadlock, "\"sda\"");
  CHECK(mentions(reports[0].text, line(frozen)));
  CHECK(mentions(reports[0].text, line(entered)));
  CHECK_FALSE(g.hold());
  CHECK(r.take().size() == 1);

  g.unfreeze();
  REQUIRE(g.enter() == status::ok);
  g.exit();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("section 4: a lock held while entering and taken inside a freeze; scenario 42",
                   B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g(gate_start::percpu, "sda");
  typename rig<B>::mutex lock("elevator");
  unsigned entered = 0;
  elsewhere([&] {
    const scoped_lock guard(lock);
    REQUIRE(g.enter() == status::ok); entered = __LINE__;
    g.exit();
  });
  CHECK(r.count() == 0);

  unsigned locked = 0;
  elsewhere([&] {
    (void)g.freeze();
    lock.lock(); locked = __LINE__;
    CHECK(r.count() == 1);
    lock.unlock();
    g.unfreeze();
  });

  const auto reports = r.take();
  CHECK_REPORT(reports, lock_order, "mutex \"elevator\"");
  CHECK(mentions(reports[0].text, "freeze_gate \"sda\""));
  CHECK(mentions(reports[0].text, line(entered)));
  CHECK(mentions(reports[0].text, line(locked)));

}

TEST_CASE_TEMPLATE("section 4: a chain through other locks", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  typename rig<B>::mutex sysfs("sysfs"), elevator("elevator"), hotplug("hotplug");
  elsewhere([&] {
    const scoped_lock guard(sysfs);
    REQUIRE(g.enter() == status::ok);
    g.exit();
  });
  elsewhere([&] {
    const scoped_lock outer(hotplug);
    const scoped_lock inner(sysfs);
  });
  elsewhere([&] {
    const scoped_lock outer(elevator);
    const scoped_lock inner(hotplug);
  });
  CHECK(r.count() == 0);

  elsewhere([&] {
    (void)g.freeze();
    { const scoped_lock guard(elevator); }
    g.unfreeze();
  });

  const auto reports = r.take();
  CHECK_REPORT(reports, lock_order, "\"sysfs\"");
  CHECK(mentions(reports[0].text, "\"hotplug\""));
  CHECK(mentions(reports[0].text, "\"elevator\""));
}

TEST_CASE_TEMPLATE("section 4: a stacked gate below is frozen before the one above is drained", B,
                   ALL_PLATFORMS) {
  const rig<B> r({.freeze_order = false});
  typename rig<B>::gate upper(gate_start::percpu, "upper"), lower(gate_start::percpu, "lower");
  elsewhere([&] {  // inside the upper one the lower one is needed
    REQUIRE(upper.enter() == status::ok);
    REQUIRE(lower.enter() == status::ok);
    lower.exit();
    upper.exit();
  });
  elsewhere([&] {  // the right order
    (void)upper.freeze();
    (void)lower.freeze();
    lower.unfreeze();
    upper.unfreeze();
  });
  CHECK(r.count() == 0);

  elsewhere([&] {
    (void)lower.freeze();
    (void)upper.freeze();
    upper.unfreeze();
    lower.unfreeze();
  });

  CHECK_REPORT(r.take(), lock_order, "\"upper\"");
}

TEST_CASE_TEMPLATE("section 4: I/O to a stacked gate above by the thread that froze the one below",
                   B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate upper, lower;
  REQUIRE(lower.freeze() == status::ok);
  REQUIRE(upper.enter() == status::ok);

  CHECK(lower.enter() == status::deadlock);

  upper.exit();
  lower.unfreeze();
  CHECK(r.take().size() == 1);
}

TEST_CASE_TEMPLATE("section 4: freezes that are waited for together are a wrong order where gates "
                   "stand on each other",
                   B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate upper, lower;
  typename rig<B>::gate* const both[] = {&upper, &lower};
  REQUIRE(pmgate::freeze_all(both) == status::ok);
  pmgate::unfreeze_all(both);
  CHECK(r.count() == 0);

  REQUIRE(upper.enter() == status::ok);
  REQUIRE(lower.enter() == status::ok);
  lower.exit();
  upper.exit();

  CHECK(r.take().size() == 1);
}

TEST_CASE_TEMPLATE("section 4: a lock held when the freeze starts, needed by who is inside", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g(gate_start::percpu, "sda");
  typename rig<B>::mutex lock("limits");
  unsigned locked = 0;
  elsewhere([&] {
    REQUIRE(g.enter() == status::ok);
    lock.lock(); locked = __LINE__;
    lock.unlock();
    g.exit();
  });
  CHECK(r.count() == 0);

  unsigned frozen = 0;
  elsewhere([&] {
    const scoped_lock guard(lock);
    (void)g.freeze(); frozen = __LINE__;
    CHECK(r.count() == 1);
    g.unfreeze();
  });

  const auto reports = r.take();
  CHECK_REPORT(reports, lock_order, "\"limits\"");
  CHECK(mentions(reports[0].text, line(locked)));
  CHECK(mentions(reports[0].text, line(frozen)));
}

TEST_CASE_TEMPLATE("section 4: the same, seen by a ticket before the lock is waited for", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  typename rig<B>::mutex lock;
  elsewhere([&] {
    const scoped_lock guard(lock);
    (void)g.freeze();
    g.unfreeze();
  });

  elsewhere([&] {
    const auto inside = g.hold();
    lock.lock();
    CHECK(r.count() == 1);
    lock.unlock();
  });

  CHECK(r.take().size() == 1);
}

TEST_CASE_TEMPLATE("section 4: gates frozen in different orders", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate first(gate_start::percpu, "q1"), second(gate_start::percpu, "q2");
  const auto freeze_both = [](auto& a, auto& b) {
    (void)a.freeze();
    (void)b.freeze();
    b.unfreeze();
    a.unfreeze();
  };
  elsewhere([&] { freeze_both(first, second); });
  CHECK(r.count() == 0);
  elsewhere([&] { freeze_both(second, first); });

  const auto reports = r.take();
  CHECK_REPORT(reports, lock_order, "different orders");
  CHECK(mentions(reports[0].text, "\"q1\""));
  CHECK(mentions(reports[0].text, "\"q2\""));

  elsewhere([&] { freeze_both(first, second); });
  elsewhere([&] { freeze_both(second, first); });
  CHECK(r.count() == 0);  // told once
}

TEST_CASE_TEMPLATE("43: different orders of freezing are no report where that is not asked for", B,
                   ALL_PLATFORMS) {
  const rig<B> r({.freeze_order = false});
  typename rig<B>::gate first, second;
  for (int round = 0; round < 2; ++round) {
    (void)first.freeze();
    (void)second.freeze();
    second.unfreeze();
    first.unfreeze();
    (void)second.freeze();
    (void)first.freeze();
    first.unfreeze();
    second.unfreeze();
  }
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("section 4: a freeze while quiesced, with work parked; scenario 38", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate door(gate_start::percpu, "door");
  typename rig<B>::quiesce_gate dispatch("dispatch");
  REQUIRE(dispatch.quiesce() == status::ok); const unsigned quiesced = __LINE__;
  REQUIRE(door.freeze() == status::ok);  // nothing is parked
  door.unfreeze();
  elsewhere([&] {
    REQUIRE(door.enter() == status::ok);
    REQUIRE_FALSE(dispatch.try_dispatch());
  });

  CHECK(door.freeze() == status::deadlock);

  CHECK(door.depth() == 0);
  const auto reports = r.take();
  CHECK_REPORT(reports, deadlock, "\"dispatch\"");
  CHECK(mentions(reports[0].text, line(quiesced)));

  dispatch.unquiesce();
  REQUIRE(door.freeze_start() == status::ok);
  door.exit();
  CHECK(door.freeze_wait() == status::ok);
  door.unfreeze();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("section 4: a freeze while holding an own entry", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g(gate_start::percpu, "sda");
  REQUIRE(g.enter() == status::ok); const unsigned entered = __LINE__;

  CHECK(g.freeze() == status::deadlock);
  CHECK(g.depth() == 0);
  const auto reports = r.take();
  CHECK_REPORT(reports, deadlock, line(entered));

  REQUIRE(g.freeze_start() == status::ok);
  CHECK(g.freeze_wait() == status::deadlock);
  CHECK(g.depth() == 1);
  CHECK_FALSE(g.freeze_wait_until(B::now()));  // ends by itself
  CHECK(r.take().size() == 1);
  g.exit();
  CHECK(g.freeze_wait() == status::ok);
  g.unfreeze();

  {
    const auto inside = g.hold();
    CHECK(g.freeze() == status::deadlock);
  }
  CHECK(g.freeze() == status::ok);
  g.unfreeze();
  CHECK(r.take().size() == 1);
}

TEST_CASE_TEMPLATE("section 4: nested and non-owner freezes are no report; 44", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.freeze() == status::ok);
  g.unfreeze();
  g.unfreeze();

  elsewhere([&] { REQUIRE(g.freeze_start_non_owner() == status::ok); });
  CHECK(g.is_frozen());
  g.unfreeze_non_owner();
  CHECK(g.depth() == 0);
  REQUIRE(g.enter() == status::ok);
  g.exit();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("45: whoever has undone his freeze may wait behind another thread's", B,
                   THREADED_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  (void)g.freeze();
  elsewhere([&] { (void)g.freeze(); });
  g.unfreeze();
  std::atomic<bool> entering{false};
  worker other([&] {
    while (!entering) std::this_thread::yield();
    while (g.depth() > 0) {
      g.unfreeze();
    }
  });
  entering = true;
  CHECK(g.enter() == status::ok);
  g.exit();
  other.join();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("entering again while inside is reported once the gate is frozen", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.enter() == status::ok);
  g.exit(2);
  CHECK(r.count() == 0);
  elsewhere([&] {
    (void)g.freeze();
    g.unfreeze();
  });
  CHECK(r.take().size() == 1);
}

TEST_CASE_TEMPLATE("waiting for one's own section is refused", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::quiesce_gate q("hctx0");
  {
    const auto section = q.dispatch();
    CHECK(q.quiesce() == status::deadlock);
    CHECK(q.depth() == 0);
    q.quiesce_nowait();
    CHECK(q.wait_quiesced() == status::deadlock);
  }
  CHECK(q.wait_quiesced() == status::ok);
  q.unquiesce();
  REQUIRE(q.try_dispatch()); const unsigned started = __LINE__;
  (void)r.take();
  CHECK(q.quiesce() == status::deadlock);
  CHECK_REPORT(r.take(), deadlock, line(started));
  q.end_dispatch();
}

TEST_CASE_TEMPLATE("a lock taken in a section and held while its end is waited for", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::quiesce_gate q("hctx0");
  typename rig<B>::mutex lock("driver");
  elsewhere([&] {
    const auto section = q.dispatch();
    const scoped_lock guard(lock);
  });
  CHECK(r.count() == 0);
  elsewhere([&] {
    const scoped_lock guard(lock);
    (void)q.quiesce();
    q.unquiesce();
  });
  CHECK_REPORT(r.take(), lock_order, "\"hctx0\"");
}

TEST_CASE_TEMPLATE("locks in different orders, and one locked twice", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::mutex a("a"), b("b");
  elsewhere([&] {
    const scoped_lock outer(a);
    const scoped_lock inner(b);
  });
  elsewhere([&] {
    const scoped_lock outer(b);
    const scoped_lock inner(a);
  });
  CHECK_REPORT(r.take(), lock_order, "mutex \"a\"");

  a.lock();
  a.lock();
  CHECK_REPORT(r.take(), deadlock, "twice");
  a.unlock();
  elsewhere([&] { a.unlock(); });
  CHECK_REPORT(r.take(), misuse, "not locked");
  a.unlock();
  CHECK(r.count() == 0);
}

// -- misuse

TEST_CASE_TEMPLATE("what is given back too often is reported and changes nothing", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g(gate_start::percpu, "sda");
  typename rig<B>::quiesce_gate q("hctx0");

  g.exit(); const unsigned first = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(first));
  g.unfreeze(); const unsigned second = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(second));
  g.clear_pm_only(); const unsigned third = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(third));
  CHECK_FALSE(q.unquiesce()); const unsigned fourth = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(fourth));
  q.end_dispatch(); const unsigned fifth = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(fifth));

  REQUIRE(g.enter() == status::ok);
  g.exit(2);
  CHECK_REPORT(r.take(), misuse, "\"sda\"");
  CHECK(g.depth() == 0);
  CHECK(g.pm_only() == 0);
  CHECK(g.freeze() == status::ok);
  g.unfreeze();
  CHECK(q.quiesce() == status::ok);
  q.unquiesce();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("destroying a gate in use tells who is inside", B, ALL_PLATFORMS) {
  const rig<B> r;
  unsigned entered = 0;
  {
    typename rig<B>::gate g(gate_start::percpu, "sda");
    REQUIRE(g.enter() == status::ok); entered = __LINE__;
  }
  CHECK_REPORT(r.take(), misuse, line(entered));
  {
    typename rig<B>::quiesce_gate q("hctx0");
    REQUIRE(q.try_dispatch()); entered = __LINE__;
  }
  CHECK_REPORT(r.take(), misuse, line(entered));
  {
    typename rig<B>::gate g;
    REQUIRE(g.freeze() == status::ok);
  }
  CHECK(r.count() == 0);
  typename rig<B>::gate next;  // knows nothing of those before it
  CHECK(next.freeze() == status::ok);
  next.unfreeze();
  CHECK(r.count() == 0);
}

TEST_CASE("reports go to the misuse of the platform below unless there is a sink") {
  const testing::misuse_log log;
  checked_default::reset();
  checked_default::set_options({});
  pmgate::checked_freeze_gate g(gate_start::percpu, "sda");

  g.unfreeze();
  CHECK(log.count() == 1);
  CHECK(mentions(log.last(), "\"sda\""));
  checked_default::misuse("something above went wrong");
  CHECK(log.count() == 2);
  CHECK(checked_default::reports() == 2);
}

TEST_CASE("where nobody can wait, waiting is reported with its place") {
  using P = checked_platform<pmgate::single_platform>;
  const rig<pmgate::single_platform> r;
  basic_freeze_gate<P> g(gate_start::percpu, "sda");
  g.set_pm_only();
  CHECK(g.enter() == status::again); const unsigned entered = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(entered));
}

// -- who holds it

TEST_CASE_TEMPLATE("a freeze that waits too long tells who is inside", B, THREADED_PLATFORMS) {
  const rig<B> r({.limit_ms = 1});
  typename rig<B>::gate g(gate_start::percpu, "sda");
  rig<B>::platform::name_thread("submitter");
  REQUIRE(g.enter() == status::ok); const unsigned entered = __LINE__;
  g.get(3); const unsigned got = __LINE__;
  unsigned frozen = 0;
  status result = status::again;
  worker freezer([&] {
    frozen = __LINE__; result = g.freeze();
  });

  while (r.count() < 2) std::this_thread::yield();
  std::string state;
  pmgate::dump(g, [&](const char* text) { state += text; });
  g.exit(4);
  freezer.join();

  CHECK(result == status::ok);
  g.unfreeze();
  const auto reports = r.take();
  REQUIRE(reports.size() >= 2);
  for (const std::string& text : {reports[0].text, reports[1].text, state}) {
    CHECK_MESSAGE(mentions(text, "\"sda\""), text);
    CHECK(mentions(text, "\"submitter\""));
    CHECK(mentions(text, line(entered)));
    CHECK(mentions(text, line(got)));
    CHECK(mentions(text, line(frozen)));
    CHECK(mentions(text, "3 times"));
    CHECK(mentions(text, " ms ago"));
  }
  CHECK(reports[0].kind == check_kind::long_wait);
  CHECK(mentions(state, "DRAINING"));
  CHECK(mentions(state, "usage: 4 ("));
}

TEST_CASE_TEMPLATE("an entry that waits too long tells who froze the gate", B,
                   THREADED_PLATFORMS) {
  const rig<B> r({.limit_ms = 1});
  typename rig<B>::gate g;
  REQUIRE(g.freeze() == status::ok); const unsigned frozen = __LINE__;
  worker enterer([&] {
    CHECK(g.enter() == status::ok);
    g.exit();
  });
  while (r.count() == 0) std::this_thread::yield();
  g.unfreeze();
  enterer.join();
  CHECK(mentions(r.take()[0].text, line(frozen)));
}

TEST_CASE_TEMPLATE("a quiesce that waits too long tells who is in a section", B,
                   THREADED_PLATFORMS) {
  const rig<B> r({.limit_ms = 1});
  typename rig<B>::quiesce_gate q;
  REQUIRE(q.try_dispatch()); const unsigned started = __LINE__;
  status result = status::again;
  worker quiescer([&] { result = q.quiesce(); });
  while (r.count() == 0) std::this_thread::yield();
  q.end_dispatch();
  quiescer.join();
  CHECK(result == status::ok);
  q.unquiesce();
  CHECK(mentions(r.take()[0].text, line(started)));
}

TEST_CASE_TEMPLATE("a timed freeze tells as well, each time the limit has passed", B,
                   THREADED_PLATFORMS) {
  const rig<B> r({.limit_ms = 1});
  typename rig<B>::gate g;
  REQUIRE(g.enter() == status::ok); const unsigned entered = __LINE__;
  worker freezer([&] {
    (void)g.freeze_start();
    CHECK(g.freeze_wait_until(B::now() + B::milliseconds(60000)));
    g.unfreeze();
  });
  while (r.count() == 0) std::this_thread::yield();
  g.exit();
  freezer.join();
  CHECK(mentions(r.take()[0].text, line(entered)));
}

// -- what is not a mistake

TEST_CASE_TEMPLATE("an entry may be left by another thread", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;

  REQUIRE(g.enter() == status::ok);
  REQUIRE(g.freeze_start() == status::ok);
  elsewhere([&] { g.exit(); });
  CHECK(g.freeze_wait() == status::ok);
  g.unfreeze();

  typename rig<B>::gate::ticket moved;
  {
    auto made = g.hold();
    moved = std::move(made);
  }
  REQUIRE(g.freeze_start() == status::ok);
  elsewhere([&] { moved.leave(); });
  CHECK(g.freeze_wait() == status::ok);
  g.unfreeze();

  g.hold().release();
  REQUIRE(g.freeze_start() == status::ok);
  elsewhere([&] { g.exit(); });
  CHECK(g.freeze_wait() == status::ok);
  g.unfreeze();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("46: what was handed over is waited for like anybody else's", B,
                   THREADED_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  REQUIRE(g.enter() == status::ok);
  g.get(15);
  pmgate::hand_over(g);
  std::atomic<bool> frozen{false};
  worker completer([&] {
    while (g.depth() == 0) std::this_thread::yield();
    g.exit(15);
    CHECK_FALSE(frozen);
    g.exit();
  });

  CHECK(g.freeze() == status::ok);
  frozen = true;
  completer.join();
  g.unfreeze();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("a ticket that was moved away is waited for like anybody else's", B,
                   THREADED_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  auto made = g.hold();
  auto moved = std::move(made);
  worker completer([&] {
    while (g.depth() == 0) std::this_thread::yield();
    moved.leave();
  });
  CHECK(g.freeze() == status::ok);
  completer.join();
  g.unfreeze();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("a gate that is gone is no part of an order", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::mutex outer, inner;
  {
    typename rig<B>::gate g;
    {
      const scoped_lock guard(outer);
      (void)g.freeze();
      g.unfreeze();
    }
    const auto inside = g.hold();
    const scoped_lock guard(inner);
  }
  {
    const scoped_lock guard(inner);
    const scoped_lock both(outer);
  }
  CHECK(r.count() == 0);
}

TEST_CASE("hints are for every gate, and mean something to the checked ones") {
  pmgate::freeze_gate plain;
  pmgate::name_gate(plain, "sda");
  REQUIRE(plain.enter() == status::ok);
  pmgate::hand_over(plain);
  plain.exit();

  const rig<pmgate::default_platform> r;
  pmgate::checked_freeze_gate checked;
  pmgate::name_gate(checked, "sdb");
  checked.exit();
  CHECK_REPORT(r.take(), misuse, "\"sdb\"");
}

TEST_CASE_TEMPLATE("a thread that has used a gate with others' exits is trusted", B,
                   THREADED_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  REQUIRE(g.enter() == status::ok);
  elsewhere([&] { g.exit(); });  // nobody said so before

  REQUIRE(g.enter() == status::ok);
  worker completer([&] {
    while (g.depth() == 0) std::this_thread::yield();
    g.exit();
  });
  CHECK(g.freeze() == status::ok);
  completer.join();
  g.unfreeze();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("what gives up makes no order", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  typename rig<B>::mutex lock;
  elsewhere([&] {
    const scoped_lock guard(lock);
    REQUIRE(g.enter(enter_flags::nowait) == status::ok);
    g.exit();
    REQUIRE(g.try_enter());
    g.exit();
    REQUIRE(g.enter_until(B::now()) == status::ok);
    g.exit();
    CHECK(g.freeze_until(B::now()) == status::ok);
    g.unfreeze();
  });
  elsewhere([&] {
    (void)g.freeze();
    { const scoped_lock guard(lock); }
    g.unfreeze();
    REQUIRE(g.enter() == status::ok);
    { const scoped_lock guard(lock); }
    g.exit();
  });
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("a dying gate sends enterers away: no deadlock", B, ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  g.mark_dying();
  REQUIRE(g.start_drain() == status::ok);
  CHECK(g.enter() == status::no_device);
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("queued waiters are listed and get in", B, ALL_PLATFORMS) {
  const rig<B> r;
  using waiter = typename rig<B>::gate::waiter;
  typename rig<B>::gate g(gate_start::percpu, "sda");
  static int resumed;
  resumed = 0;
  waiter first([](waiter&, status result) noexcept { resumed += result == status::ok ? 1 : 100; });
  waiter second([](waiter&, status) noexcept { resumed += 1000; });
  REQUIRE(g.freeze() == status::ok);
  REQUIRE(g.enter_or_wait(first) == status::in_progress); const unsigned queued = __LINE__;
  REQUIRE(g.enter_or_wait(second) == status::in_progress);
  CHECK(first.is_queued());

  std::string state;
  pmgate::dump(g, [&](const char* text) { state += text; });
  CHECK(mentions(state, "waiting: thread "));
  CHECK(mentions(state, line(queued)));

  CHECK(g.cancel(second));
  g.unfreeze();
  CHECK(resumed == 1);
  state.clear();
  pmgate::dump(g, [&](const char* text) { state += text; });
  CHECK_FALSE(mentions(state, "waiting"));
  CHECK(mentions(state, "usage: 1 ("));
  CHECK(mentions(state, line(queued)));

  waiter drain([](waiter&, status) noexcept { ++resumed; });
  REQUIRE(g.freeze_or_wait(drain) == status::in_progress);
  g.exit();
  CHECK(resumed == 2);
  g.unfreeze();

  typename rig<B>::quiesce_gate q;
  REQUIRE(q.try_dispatch());
  REQUIRE(q.quiesce_or_wait(drain) == status::in_progress);
  q.end_dispatch();
  CHECK(resumed == 3);
  q.unquiesce();
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("many gates and groups are closed and opened without a report", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate gates[3];
  typename rig<B>::quiesce_gate sections[3];
  using group_type = pmgate::basic_gate_group<checked_platform<B>>;
  group_type group;
  {
    typename group_type::member a(group, &gates[0], &sections[0]);
    REQUIRE(group.freeze() == status::ok);
    typename group_type::member b(group, &gates[1], &sections[1]);
    CHECK(gates[1].depth() == 1);
    CHECK(gates[0].enter() == status::deadlock);
    CHECK(r.take().size() == 1);
    group.unfreeze();
    REQUIRE(group.quiesce() == status::ok);
    group.unquiesce();
  }
  for (auto& g : gates) {
    REQUIRE(g.enter() == status::ok);
    g.exit();
  }
  REQUIRE(pmgate::freeze_all(gates) == status::ok);
  pmgate::unfreeze_all(gates);
  REQUIRE(pmgate::quiesce_all(sections) == status::ok);
  pmgate::unquiesce_all(sections);
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("whoever lets a gate join a frozen group has not frozen it", B,
                   THREADED_PLATFORMS) {
  const rig<B> r;
  using group_type = pmgate::basic_gate_group<checked_platform<B>>;
  group_type group;
  typename rig<B>::gate g;
  std::atomic<int> step{0};
  worker freezer([&] {
    CHECK(group.freeze() == status::ok);
    step = 1;
    while (step == 1) std::this_thread::yield();
    group.unfreeze();
  });
  while (step == 0) std::this_thread::yield();
  {
    typename group_type::member member(group, &g);
    CHECK(g.depth() == 1);
    step = 2;
    CHECK(g.enter() == status::ok);
    g.exit();
    freezer.join();
  }
  CHECK(r.count() == 0);
}

TEST_CASE_TEMPLATE("calls on behalf of others are reported with the place that was set", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  typename rig<B>::gate g;
  {
    const typename rig<B>::platform::place here; const unsigned set = __LINE__;
    g.unfreeze();
    CHECK_REPORT(r.take(), misuse, line(set));
  }
  g.unfreeze(); const unsigned own = __LINE__;
  CHECK_REPORT(r.take(), misuse, line(own));
}

// -- dump

TEST_CASE("dump tells the state of plain gates without allocating") {
  std::string state;
  const auto sink = [&](const char* text) { state += text; };
  pmgate::freeze_gate g;
  REQUIRE(g.enter() == status::ok);
  pmgate::dump(g, sink);
  CHECK(mentions(state, "state: -\n"));
  CHECK(mentions(state, "freeze_depth: 0\n"));
  CHECK(mentions(state, "usage: 1 (percpu)\n"));
  g.set_pm_only();
  (void)g.freeze_start();
  (void)g.freeze_start();
  g.mark_dying();
  state.clear();
  pmgate::dump(g, sink);
  CHECK(mentions(state, "state: DRAINING|PM_ONLY|DYING\n"));
  CHECK(mentions(state, "freeze_depth: 2\n"));
  CHECK(mentions(state, "pm_only: 1\n"));
  CHECK(mentions(state, "usage: 1 (atomic, dying)\n"));
  g.exit();
  state.clear();
  pmgate::dump(g, sink);
  CHECK(mentions(state, "FROZEN"));
  CHECK(mentions(state, "usage: 0 ("));

  pmgate::quiesce_gate q;
  state.clear();
  pmgate::dump(q, sink);
  CHECK(mentions(state, "state: -\n"));
  q.quiesce_nowait();
  state.clear();
  pmgate::dump(q, sink);
  CHECK(mentions(state, "state: QUIESCED\n  quiesce_depth: 1\n"));
  q.unquiesce();

  pmgate::percpu_ref ref([](pmgate::percpu_ref&) noexcept {}, pmgate::ref_init::atomic);
  state.clear();
  pmgate::dump(ref, sink);
  CHECK(mentions(state, "usage: 0 (atomic, force_atomic)\n"));
  ref.kill();
}

// -- what is built on gates

template <class B>
struct queue_rig {
  using P = checked_platform<B>;
  static pmgate::dispatch_status take(pmgate::basic_request_queue<P>& q,
                                      pmgate::basic_request<P>& rq) noexcept {
    static_cast<queue_rig*>(q.context())->taken = &rq;
    return pmgate::dispatch_status::ok;
  }
  static void ended(pmgate::basic_request<P>&) noexcept {}
  pmgate::basic_request<P>* taken = nullptr;
  pmgate::pm::basic_work_queue<P> works{"kblockd"};
  pmgate::basic_request_queue<P> q{{&take, this}, works, 4};
};

TEST_CASE_TEMPLATE("a request queue is checked by its platform alone", B, ALL_PLATFORMS) {
  const rig<B> r;
  queue_rig<B> its;
  its.q.gate().set_name("sda");
  pmgate::basic_request<checked_platform<B>> rq(&queue_rig<B>::ended);

  REQUIRE(its.q.submit(rq) == status::ok);  // completed elsewhere, frozen here
  REQUIRE(its.q.freeze_start() == status::ok);
  elsewhere([&] { its.q.complete(*its.taken); });
  CHECK(its.q.freeze_wait() == status::ok);
  CHECK(r.count() == 0);
  CHECK(its.q.alloc(rq) == status::deadlock);
  CHECK_REPORT(r.take(), deadlock, "\"sda\"");
  its.q.unfreeze();

  REQUIRE(its.q.alloc(rq) == status::ok);  // never given away
  CHECK(its.q.freeze_start() == status::ok);
  CHECK(its.q.freeze_wait() == status::deadlock);
  its.q.unfreeze();
  its.q.free(rq);
  CHECK(r.take().size() == 1);

  its.q.quiesce();
  REQUIRE(its.q.submit(rq) == status::ok);  // parked
  REQUIRE(its.q.freeze_start() == status::ok);
  CHECK(its.q.freeze_wait() == status::deadlock);
  CHECK_REPORT(r.take(), deadlock, "parked");
  its.q.unquiesce();
  while (its.works.run_pending()) {
  }
  its.q.complete(*its.taken);
  CHECK(its.q.freeze_wait() == status::ok);
  its.q.unfreeze();
  CHECK(r.count() == 0);
}

template <class B>
struct scsi_rig {
  using P = checked_platform<B>;
  static int queuecommand(pmgate::scsi::basic_host<P>& host,
                          pmgate::scsi::basic_command<P>& item) noexcept {
    ++*static_cast<int*>(host.context());
    item.device().complete(item, 0);
    return 0;
  }
  int calls = 0;
  pmgate::pm::basic_work_queue<P> works{"kblockd"};
  pmgate::scsi::basic_host<P> host{{&queuecommand, &calls}};
  pmgate::scsi::basic_target<P> target{0};
  pmgate::scsi::basic_device<P> device{host, target, works, {8, 16}};
};

TEST_CASE_TEMPLATE("so are SCSI devices: commands, quiesce and resume without a report", B,
                   ALL_PLATFORMS) {
  const rig<B> r;
  scsi_rig<B> its;
  REQUIRE(its.device.set_state(pmgate::scsi::device_state::running) == status::ok);
  for (int i = 0; i < 3; ++i) {
    pmgate::scsi::basic_command<checked_platform<B>> item;
    CHECK(its.device.execute(item) == status::ok);
    CHECK(its.device.quiesce() == status::ok);
    its.device.resume();
  }
  CHECK(its.calls == 3);
  CHECK(r.count() == 0);
}

// -- clean programs

/// Threads that do everything that is allowed, by chance.
template <class B>
struct clean_program {
  using P = checked_platform<B>;
  static constexpr int gates = 3;
  static constexpr int rounds = 2000;

  void thread(unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < rounds; ++i) {
      switch (random() % 7) {
        case 0: submit(random); break;
        case 1: use_all(); break;
        case 2: freeze(random); break;
        case 3: control(random); break;
        case 4: complete(random() % 4); break;
        case 5: section(); break;
        default: power(random() % gates); break;
      }
    }
  }
  /// An entry for another thread to leave.
  void submit(std::mt19937& random) {
    const std::size_t at = random() % gates;
    if (random() % 2 == 0) {
      auto ticket = gate[at].hold(enter_flags::nowait);
      if (!ticket) return;
      const std::scoped_lock lock(queue_lock);
      in_flight.push_back(std::move(ticket));
    } else if (gate[at].enter(enter_flags::nowait) == status::ok) {
      gate[at].get(2);
      pmgate::hand_over(gate[at]);
      const std::scoped_lock lock(queue_lock);
      by_hand.push_back(at);
    }
  }
  void complete(std::size_t most) {
    for (; most > 0; --most) {
      typename basic_freeze_gate<P>::ticket ticket;
      std::optional<std::size_t> at;
      {
        const std::scoped_lock lock(queue_lock);
        if (!in_flight.empty()) {
          ticket = std::move(in_flight.back());
          in_flight.pop_back();
        }
        if (!by_hand.empty()) {
          at = by_hand.back();
          by_hand.pop_back();
        }
      }
      if (at) gate[*at].exit(3);
    }
  }
  /// Upper to lower, with a lock that is only ever taken inside.
  void use_all() {
    for (auto& g : gate) {
      if (g.enter(enter_flags::pm) != status::ok) std::abort();
    }
    { const scoped_lock guard(inner); }
    for (auto& g : gate) g.exit();
  }
  /// Upper to lower, nested now and then, under the lock of those who freeze.
  void freeze(std::mt19937& random) {
    const scoped_lock guard(outer);
    complete_all();
    for (auto& g : gate) {
      while (!start_and_wait(g)) {
      }
    }
    { const scoped_lock inside(inner); }
    if (random() % 2 == 0) {
      (void)gate[0].freeze();
      gate[0].unfreeze();
    }
    for (auto& g : gate) g.unfreeze();
  }
  /// Whoever freezes completes what is in flight: nobody else may be there to do it.
  bool start_and_wait(basic_freeze_gate<P>& g) {
    if (g.freeze_start() != status::ok) return false;
    while (!g.freeze_wait_until(B::now())) complete_all();
    return g.freeze_wait() == status::ok;
  }
  void complete_all() { complete(1000); }
  void control(std::mt19937& random) {
    auto& g = gate[random() % gates];
    if (g.freeze_start_non_owner() == status::ok) g.unfreeze_non_owner();
    if (g.freeze_until(B::now()) == status::ok) g.unfreeze();
  }
  void section() {
    if (!dispatch.try_dispatch()) return;
    { const scoped_lock guard(inner); }
    dispatch.end_dispatch();
    const scoped_lock guard(outer);
    (void)dispatch.quiesce();
    dispatch.unquiesce();
  }
  void power(std::size_t at) {
    gate[at].set_pm_only();
    gate[at].clear_pm_only();
  }

  basic_freeze_gate<P> gate[gates];
  basic_quiesce_gate<P> dispatch;
  typename P::mutex outer, inner;
  std::mutex queue_lock;
  std::vector<typename basic_freeze_gate<P>::ticket> in_flight;
  std::vector<std::size_t> by_hand;
};

TEST_CASE_TEMPLATE("a clean program makes no report", B, THREADED_PLATFORMS) {
  const rig<B> r;
  {
    clean_program<B> program;
    std::vector<std::thread> threads;
    for (unsigned seed = 1; seed <= 4; ++seed) {
      threads.emplace_back([&program, seed] { program.thread(seed); });
    }
    for (auto& each : threads) each.join();
    program.complete_all();
  }
  for (const auto& each : r.take()) FAIL_CHECK(each.text);
}

}  // TEST_SUITE
