// SPDX-License-Identifier: MIT
//
// device_tree_test.cpp - devices that go down and up; the numbers are those of the
// scenarios in the specification of system sleep.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/single.hpp>
#include <pmgate/pm/device_tree.hpp>
#include <pmgate/pm/suspend.hpp>

#include "support/deferred_platform.hpp"
#include "support/device_rig.hpp"
#include "support/virtual_platform.hpp"

using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_callbacks;
using pmgate::pm::basic_device;
using pmgate::pm::basic_device_link;
using pmgate::pm::basic_device_tree;
using pmgate::pm::basic_wakeup;
using pmgate::pm::event;
using pmgate::pm::image_move;
using pmgate::pm::link_kind;
using pmgate::pm::may_stay_suspended;
using pmgate::pm::phase;
using testing::call_log;
using testing::come_up;
using testing::go_down;
using testing::logged_device;
using testing::misuse_log;
using testing::tree_of_eight;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using default_device = pmgate::pm::device;
using default_link = pmgate::pm::device_link;
using default_platform = pmgate::default_platform;
using default_queue = pmgate::pm::work_queue;
using default_tree = pmgate::pm::device_tree;

static_assert(!std::is_copy_constructible_v<default_device>);
static_assert(!std::is_move_constructible_v<default_device>);
static_assert(!std::is_copy_constructible_v<default_tree>);
static_assert(!std::is_move_constructible_v<default_tree>);
static_assert(!std::is_move_constructible_v<default_link>);
static_assert(std::is_nothrow_default_constructible_v<default_tree>);
static_assert(noexcept(std::declval<default_tree&>().suspend(event::suspend)));

// -- which callback an event selects

static_assert(std::string_view(callback_name(event::quiesce, phase::suspend)) == "freeze");
static_assert(std::string_view(callback_name(event::quiesce, phase::suspend_noirq)) ==
              "freeze_noirq");
static_assert(std::string_view(callback_name(event::recover, phase::resume_early)) == "thaw_early");
static_assert(std::string_view(callback_name(event::hibernate, phase::suspend_late)) ==
              "poweroff_late");
static_assert(std::string_view(callback_name(event::restore, phase::resume)) == "restore");
static_assert(std::string_view(callback_name(event::restore, phase::suspend)) == "none");
static_assert(undo_of(event::suspend) == event::resume);
static_assert(undo_of(event::freeze) == event::recover);
static_assert(undo_of(event::quiesce) == event::recover);
static_assert(undo_of(event::hibernate) == event::restore);

namespace {

auto ms(int n) { return std::chrono::milliseconds(n); }

constexpr const char* up_order = "R V N S h t d r";
constexpr const char* down_order = "r d t h S N V R";

/// The tree T, everything synchronous.
template <class P = default_platform>
struct sequential {
  sequential() { nodes.add_to(tree); }
  ~sequential() { nodes.remove_from(tree); }
  std::string order() {
    std::string found;
    tree.for_each([&](basic_device<P>& each) {
      found += (found.empty() ? "" : " ") + std::string(each.name());
    });
    return found;
  }
  misuse_log misuse;
  call_log log;
  tree_of_eight<P> nodes{log};
  basic_device_tree<P> tree;
};

/// The same with workers for asynchronous devices.
struct threaded : sequential<> {
  explicit threaded(unsigned threads) {
    for (unsigned n = 0; n < threads; ++n) workers.emplace_back([this] { queue.run(); });
    tree.set_async_queue(&queue);
  }
  ~threaded() {
    queue.stop();
    for (std::thread& thread : workers) thread.join();
  }
  default_queue queue{"async", pmgate::pm::work_queue_flags::none, 0};
  std::vector<std::thread> workers;
};

/// Both meet: neither goes on before the other is there.
struct meeting {
  void arrive() {
    ++here;
    while (here < 2) std::this_thread::yield();
  }
  std::atomic<int> here{0};
};

}  // namespace

TEST_SUITE("device_tree") {

// -- the phases and their orders

TEST_CASE_TEMPLATE("scenario 1: everybody goes down children first and up parents first", P,
                   default_platform, virtual_platform, single_platform) {
  sequential<P> s;

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  CHECK(s.tree.in_transition());
  come_up(s.tree, event::resume);

  CHECK(s.log.of("prepare") == up_order);
  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.log.of("suspend_late") == down_order);
  CHECK(s.log.of("suspend_noirq") == down_order);
  CHECK(s.log.of("resume_noirq") == up_order);
  CHECK(s.log.of("resume_early") == up_order);
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.log.of("complete") == down_order);
  CHECK(s.log.on("d") ==
        "prepare suspend suspend_late suspend_noirq resume_noirq resume_early resume complete");
  CHECK_FALSE(s.tree.in_transition());
  CHECK(s.order() == up_order);
}

TEST_CASE("scenario 2: a device that refuses to suspend is completed but not resumed") {
  sequential<> s;
  s.nodes.t.fail("suspend");

  CHECK(go_down(s.tree, event::suspend) == status::io_error);

  CHECK(s.log.of("suspend") == "r d t");
  CHECK(s.log.of("suspend_late").empty());
  CHECK(s.log.of("resume") == "d r");
  CHECK(s.log.of("complete") == down_order);
  CHECK(s.tree.failures(phase::suspend) == 1);
  CHECK(s.tree.last_failure().name == std::string("t"));
  CHECK(s.tree.last_failure().result == status::io_error);
  CHECK(s.order() == up_order);
}

TEST_CASE("scenario 3: a device that refuses to prepare is not completed") {
  sequential<> s;
  s.nodes.S.fail("prepare");

  CHECK(go_down(s.tree, event::suspend) == status::io_error);

  CHECK(s.log.of("prepare") == "R V N S");
  CHECK(s.log.of("suspend").empty());
  CHECK(s.log.of("resume").empty());
  CHECK(s.log.of("complete") == "N V R");
  CHECK_FALSE(s.nodes.S.device.holds_runtime_pm());
  CHECK(s.order() == up_order);
}

TEST_CASE("scenario 4: a device that says -EAGAIN is asked to prepare again") {
  sequential<> s;
  int asked = 0;
  s.nodes.h.then["prepare"] = [&] { return ++asked == 1 ? status::again : status::ok; };

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("prepare") == "R V N S h h t d r");
  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.log.of("complete") == down_order);
  CHECK(s.tree.failures(phase::prepare) == 0);
}

TEST_CASE("scenario 5: a late failure is undone in its own phase, then by the caller") {
  sequential<> s;
  s.nodes.h.fail("suspend_late");

  CHECK(go_down(s.tree, event::suspend) == status::io_error);

  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.log.of("suspend_late") == "r d t h");
  CHECK(s.log.of("suspend_noirq").empty());
  CHECK(s.log.of("resume_noirq").empty());
  CHECK(s.log.of("resume_early") == "t d r");
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.log.of("complete") == down_order);
}

TEST_CASE("scenario 6: a noirq failure enables the interrupts again and resumes everybody") {
  sequential<> s;
  std::vector<bool> interrupts;
  s.tree.set_interrupt_control(
      [](void* context, bool on) noexcept {
        static_cast<std::vector<bool>*>(context)->push_back(on);
      },
      &interrupts);
  s.nodes.d.fail("suspend_noirq");

  CHECK(go_down(s.tree, event::suspend) == status::io_error);

  CHECK(s.log.of("suspend_late") == down_order);
  CHECK(s.log.of("suspend_noirq") == "r d");
  CHECK(s.log.of("resume_noirq") == "r");
  CHECK(interrupts == std::vector<bool>{false, true});
  CHECK(s.log.of("resume_early") == up_order);
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.log.of("complete") == down_order);
}

TEST_CASE("scenario 7: an error on the way up is counted and stops nothing") {
  sequential<> s;
  s.nodes.S.fail("resume");

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("resume") == up_order);
  CHECK(s.log.of("complete") == down_order);
  CHECK(s.tree.failures(phase::resume) == 1);
  CHECK(s.tree.last_failure().at == phase::resume);
}

TEST_CASE("scenario 7: a suspend that slept is ok, whatever failed on the way up") {
  call_log log;
  tree_of_eight<default_platform> nodes(log);
  pmgate::pm::kernel kernel;
  nodes.add_to(kernel.devices);
  nodes.S.fail("resume");

  CHECK(pmgate::pm::suspend(kernel) == status::ok);

  CHECK(log.of("resume") == up_order);
  CHECK(log.of("complete") == down_order);
  CHECK(kernel.devices.failures(phase::resume) == 1);
  nodes.remove_from(kernel.devices);
}

TEST_CASE("an event selects its own callbacks, and what fails is undone by its counterpart") {
  const auto trace = [](event what, const char* refused) {
    sequential<> s;
    if (refused != nullptr) s.nodes.R.fail(refused);
    const status result = go_down(s.tree, what);
    CHECK(result == (refused == nullptr ? status::ok : status::io_error));
    if (result == status::ok) come_up(s.tree, undo_of(what));
    return s.log.on("d");
  };

  CHECK(trace(event::freeze, nullptr) ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");
  CHECK(trace(event::quiesce, nullptr) == trace(event::freeze, nullptr));
  CHECK(trace(event::hibernate, nullptr) ==
        "prepare poweroff poweroff_late poweroff_noirq restore_noirq restore_early restore "
        "complete");
  CHECK(trace(event::quiesce, "freeze_noirq") == trace(event::freeze, nullptr));
  CHECK(trace(event::quiesce, "freeze_late") ==
        "prepare freeze freeze_late thaw_early thaw complete");
  CHECK(trace(event::hibernate, "poweroff") == "prepare poweroff restore complete");
}

// -- wakeups

TEST_CASE("scenario 8: a wakeup in the main phase skips the next device and fails with -EBUSY") {
  sequential<> s;
  basic_wakeup<default_platform> wakeup;
  s.tree.set_wakeup(&wakeup);
  s.nodes.r.then["suspend"] = [&] {
    wakeup.abort();
    return status::ok;
  };

  CHECK(go_down(s.tree, event::suspend) == status::busy);

  CHECK(s.log.of("suspend") == "r");
  CHECK(s.log.of("resume") == "r");
  CHECK(s.log.of("complete") == down_order);
  CHECK(s.tree.failures(phase::suspend) == 0);
}

TEST_CASE("scenario 9: a wakeup in the noirq phase lets that phase finish") {
  sequential<> s;
  basic_wakeup<default_platform> wakeup;
  s.tree.set_wakeup(&wakeup);
  s.nodes.r.then["suspend_noirq"] = [&] {
    wakeup.abort();
    return status::ok;
  };

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  CHECK(s.log.of("suspend_noirq") == down_order);
  CHECK(wakeup.pending());

  come_up(s.tree, event::resume);
  CHECK(s.log.of("resume_noirq") == up_order);
}

TEST_CASE("a wakeup in the late phase, also of a quiesce, undoes what is late") {
  sequential<> s;
  basic_wakeup<default_platform> wakeup;
  s.tree.set_wakeup(&wakeup);
  s.nodes.d.then["freeze_late"] = [&] {
    wakeup.abort();
    return status::ok;
  };

  CHECK(go_down(s.tree, event::quiesce) == status::busy);

  CHECK(s.log.of("freeze_late") == "r d");
  CHECK(s.log.of("thaw_early") == "d r");
  CHECK(s.log.of("thaw") == up_order);
}

TEST_CASE("scenario 10: counted events are told once, and the phase remembers") {
  sequential<> s;
  basic_wakeup<default_platform> wakeup;
  REQUIRE(wakeup.arm(wakeup.count()));
  wakeup.signal();
  CHECK(wakeup.pending());
  CHECK_FALSE(wakeup.pending());

  REQUIRE(wakeup.arm(wakeup.count()));
  s.tree.set_wakeup(&wakeup);
  s.nodes.r.then["suspend"] = [&] {
    wakeup.signal();
    return status::ok;
  };
  CHECK(go_down(s.tree, event::suspend) == status::busy);

  CHECK(s.log.of("suspend") == "r");
  CHECK_FALSE(wakeup.pending());
}

TEST_CASE("events count only once somebody armed the count, and one that goes on refuses it") {
  misuse_log misuse;
  basic_wakeup<default_platform> wakeup;
  wakeup.signal();
  CHECK_FALSE(wakeup.pending());
  CHECK_FALSE(wakeup.arm(0));

  wakeup.begin_event();
  CHECK_FALSE(wakeup.arm(wakeup.count()));
  wakeup.end_event();
  CHECK(wakeup.count() == 2);
  CHECK(wakeup.arm(2));
  wakeup.begin_event();
  CHECK(wakeup.pending());
  wakeup.end_event();

  wakeup.abort();
  wakeup.abort();
  wakeup.cancel_abort();
  CHECK(wakeup.pending());
  CHECK(wakeup.pending());
  wakeup.clear();
  wakeup.cancel_abort();
  CHECK_FALSE(wakeup.pending());

  wakeup.end_event();
  CHECK(misuse.take() == 1);
}

// -- asynchronous devices

TEST_CASE("scenario 12: asynchronous siblings overlap, and their parent comes after both") {
  threaded s(2);
  s.nodes.d.device.set_async(true);
  s.nodes.r.device.set_async(true);
  meeting together;
  std::atomic<int> returned{0};
  const auto meet = [&] {
    together.arrive();
    ++returned;
    return status::ok;
  };
  s.nodes.d.then["suspend"] = meet;
  s.nodes.r.then["suspend"] = meet;
  s.nodes.t.then["suspend"] = [&] {
    CHECK(returned == 2);
    return status::ok;
  };

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("suspend").substr(4) == "t h S N V R");
  CHECK(s.log.of("resume").substr(0, 11) == "R V N S h t");
}

TEST_CASE("scenario 12: an asynchronous failure stops all above, and the resumed set is exact") {
  for (int turn = 0; turn < 1000; ++turn) {
    threaded s(2);
    s.nodes.d.device.set_async(true);
    s.nodes.r.device.set_async(true);
    if (turn % 2 == 0) s.nodes.h.device.set_async(true);
    s.nodes.r.fail("suspend");
    if (turn % 3 == 0) {
      s.nodes.d.then["suspend"] = [] {
        std::this_thread::yield();
        return status::ok;
      };
    }

    REQUIRE(go_down(s.tree, event::suspend) == status::io_error);

    const std::string called = s.log.of("suspend");
    const bool d_ran = called.find('d') != std::string::npos;
    REQUIRE(called.size() == (d_ran ? 3U : 1U));
    REQUIRE(s.log.of("resume") == (d_ran ? "d" : ""));
    REQUIRE(s.log.of("complete") == down_order);
  }
}

TEST_CASE("a synchronous error is what a phase returns, whatever fails after it on a worker") {
  threaded s(1);
  std::atomic<bool> called{false};
  s.nodes.r.device.set_async(true);
  s.nodes.r.then["suspend"] = [&] {
    called = true;
    while (s.tree.failures(phase::suspend) == 0) std::this_thread::yield();
    return status::io_error;
  };
  s.nodes.d.then["suspend"] = [&] {
    while (!called) std::this_thread::yield();
    return status::timed_out;
  };

  CHECK(go_down(s.tree, event::suspend) == status::timed_out);

  CHECK(s.tree.failures(phase::suspend) == 2);
  CHECK(s.log.of("resume").empty());
}

TEST_CASE("of two errors on workers the later one is what a phase returns") {
  threaded s(2);
  std::atomic<bool> called{false};
  s.nodes.d.device.set_async(true);
  s.nodes.r.device.set_async(true);
  s.nodes.d.then["suspend"] = [&] {
    called = true;
    while (s.tree.failures(phase::suspend) == 0) std::this_thread::yield();
    return status::timed_out;
  };
  s.nodes.r.then["suspend"] = [&] {
    while (!called) std::this_thread::yield();
    return status::io_error;
  };

  CHECK(go_down(s.tree, event::suspend) == status::timed_out);

  CHECK(s.tree.failures(phase::suspend) == 2);
}

TEST_CASE("an error on a worker ends the phase: nobody above is so much as looked at") {
  threaded s(1);
  s.nodes.r.device.set_async(true);
  s.nodes.r.fail("suspend");
  s.nodes.S.device.set_runtime_suspended(true);
  s.nodes.S.then["prepare"] = [] { return may_stay_suspended; };

  REQUIRE(s.tree.suspend_start(event::suspend) == status::io_error);

  CHECK(s.nodes.S.device.is_direct_complete());  // a look would have taken it
  s.tree.resume_end(event::resume);
}

TEST_CASE("scenario 13: with everybody asynchronous, each comes up after its parent is done") {
  threaded s(3);
  std::atomic<unsigned> up{0};  // a bit each
  const auto nodes = s.nodes.all();
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    nodes[n]->device.set_async(true);
    for (const char* callback : {"resume_noirq", "resume_early", "resume"}) {
      nodes[n]->then[callback] = [&, n] {
        for (std::size_t p = 0; p < nodes.size(); ++p) {
          if (&nodes[p]->device == nodes[n]->device.parent()) CHECK((up & (1U << p)) != 0);
        }
        std::this_thread::yield();
        if (up.fetch_or(1U << n) + (1U << n) == 0xffU) up = 0;  // the last one of the phase
        return status::ok;
      };
    }
  }

  for (int turn = 0; turn < 50; ++turn) {
    CHECK(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(up == 0);
  }
}

TEST_CASE("asynchronous devices go one after another when they are switched off") {
  threaded s(2);
  for (auto* each : s.nodes.all()) each->device.set_async(true);
  s.tree.set_async_enabled(false);

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.log.of("resume") == up_order);
}

TEST_CASE("asynchronous devices go one after another when their queue is stopped") {
  sequential<> s;
  default_queue stopped("stopped");
  stopped.stop();
  s.tree.set_async_queue(&stopped);
  for (auto* each : s.nodes.all()) each->device.set_async(true);

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.log.of("resume") == up_order);
}

TEST_CASE("a freezable queue is refused for asynchronous devices") {
  sequential<> s;
  default_queue freezable("freezable", pmgate::pm::work_queue_flags::freezable);
  s.nodes.d.device.set_async(true);

  s.tree.set_async_queue(&freezable);

  CHECK(s.misuse.take() == 1);
  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
}

// -- device links

TEST_CASE("scenario 14: a consumer goes down before its supplier, with its whole subtree") {
  sequential<> s;
  default_link link;
  REQUIRE(s.tree.add_link(link, s.nodes.N.device, s.nodes.S.device) == status::ok);
  CHECK(s.order() == "R V S h t d r N");
  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  CHECK(s.log.of("suspend") == "N r d t h S V R");
  CHECK(s.log.of("resume") == "R V S h t d r N");
  CHECK(s.tree.remove_link(link) == status::ok);

  s.log.clear();
  REQUIRE(s.tree.add_link(link, s.nodes.S.device, s.nodes.N.device) == status::ok);
  CHECK(s.order() == "R V N S h t d r");
  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.tree.remove_link(link) == status::ok);
}

TEST_CASE("consumers of consumers move too, each behind all it needs") {
  sequential<> s;
  default_link d_on_r, N_on_d, S_on_late;
  logged_device<default_platform> late("late", nullptr, s.log);
  REQUIRE(s.tree.add(late.device) == status::ok);
  REQUIRE(s.tree.add_link(d_on_r, s.nodes.d.device, s.nodes.r.device) == status::ok);
  REQUIRE(s.tree.add_link(N_on_d, s.nodes.N.device, s.nodes.d.device) == status::ok);
  CHECK(s.order() == "R V S h t r late d N");

  REQUIRE(s.tree.add_link(S_on_late, s.nodes.S.device, late.device) == status::ok);
  CHECK(s.order() == "R V late S h t r d N");

  for (default_link* each : {&d_on_r, &N_on_d, &S_on_late}) {
    CHECK(s.tree.remove_link(*each) == status::ok);
  }
  CHECK(s.tree.remove(late.device) == status::ok);
}

TEST_CASE("scenario 15: a link that would close a circle is refused and changes nothing") {
  sequential<> s;
  default_link link, other;

  CHECK(s.tree.add_link(link, s.nodes.V.device, s.nodes.d.device) == status::deadlock);
  CHECK(s.tree.add_link(link, s.nodes.V.device, s.nodes.V.device) == status::deadlock);
  CHECK(s.order() == up_order);
  CHECK(link.consumer() == nullptr);

  CHECK(s.tree.add_link(link, s.nodes.d.device, s.nodes.V.device) == status::ok);
  CHECK(s.tree.remove_link(link) == status::ok);

  CHECK(s.tree.add_link(link, s.nodes.N.device, s.nodes.d.device) == status::ok);
  CHECK(s.tree.add_link(other, s.nodes.S.device, s.nodes.N.device) == status::deadlock);
  CHECK(s.tree.remove_link(link) == status::ok);
}

TEST_CASE("a sync-state link may point backwards: what orders nothing closes no circle") {
  sequential<> s;
  default_link backwards(link_kind::sync_state_only), ordered;
  REQUIRE(s.tree.add_link(backwards, s.nodes.R.device, s.nodes.d.device) == status::ok);
  CHECK(s.order() == up_order);
  CHECK(s.tree.add_link(ordered, s.nodes.N.device, s.nodes.R.device) == status::ok);
  default_link on_itself(link_kind::sync_state_only);
  CHECK(s.tree.add_link(on_itself, s.nodes.d.device, s.nodes.d.device) == status::deadlock);

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("suspend") == "N r d t h S V R");
  CHECK(s.tree.remove_link(backwards) == status::ok);
  CHECK(s.tree.remove_link(ordered) == status::ok);
}

TEST_CASE("a sync-state link orders nothing, a dormant one is not waited for") {
  threaded s(2);
  default_link sync_state(link_kind::sync_state_only), dormant;
  REQUIRE(s.tree.add_link(sync_state, s.nodes.N.device, s.nodes.S.device) == status::ok);
  CHECK(s.order() == up_order);
  REQUIRE(s.tree.add_link(dormant, s.nodes.r.device, s.nodes.d.device) == status::ok);
  dormant.set_dormant(true);
  s.nodes.d.device.set_async(true);
  s.nodes.r.device.set_async(true);
  meeting together;
  const auto meet = [&] {
    together.arrive();
    return status::ok;
  };
  for (const char* each : {"suspend", "resume_noirq"}) {
    s.nodes.d.then[each] = meet;
    s.nodes.r.then[each] = meet;
  }

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  CHECK(together.here == 2);
  together.here = 0;
  come_up(s.tree, event::resume);

  CHECK(together.here == 2);
  CHECK(s.tree.remove_link(sync_state) == status::ok);
  CHECK(s.tree.remove_link(dormant) == status::ok);
}

TEST_CASE("an asynchronous supplier waits for its consumer, and a consumer for its supplier") {
  threaded s(2);
  default_link link;
  REQUIRE(s.tree.add_link(link, s.nodes.r.device, s.nodes.d.device) == status::ok);
  s.nodes.d.device.set_async(true);
  s.nodes.r.device.set_async(true);
  for (int turn = 0; turn < 100; ++turn) {
    s.log.clear();
    REQUIRE(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(s.log.of("suspend") == down_order);
    CHECK(s.log.of("suspend_noirq") == down_order);
    CHECK(s.log.of("resume_noirq") == up_order);
    CHECK(s.log.of("resume") == up_order);
  }
  CHECK(s.tree.remove_link(link) == status::ok);
}

// -- direct complete

TEST_CASE("scenario 16: devices that may stay suspended are left alone, by a suspend only") {
  sequential<> s;
  for (auto* each : {&s.nodes.d, &s.nodes.r}) {
    each->device.set_runtime_suspended(true);
    each->then["prepare"] = [] { return may_stay_suspended; };
  }
  SUBCASE("suspend") {
    CHECK(go_down(s.tree, event::suspend) == status::ok);
    CHECK(s.nodes.d.device.is_direct_complete());
    come_up(s.tree, event::resume);

    CHECK(s.log.on("d") == "prepare complete");
    CHECK(s.log.on("r") == "prepare complete");
    CHECK(s.log.of("suspend") == "t h S N V R");
    CHECK(s.log.of("resume_noirq") == "R V N S h t");
  }
  SUBCASE("freeze") {
    CHECK(go_down(s.tree, event::freeze) == status::ok);
    come_up(s.tree, event::thaw);
    CHECK(s.log.on("d") ==
          "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");
    for (const char* each : {"freeze", "freeze_late", "freeze_noirq", "complete"}) {
      CHECK(s.log.of(each) == down_order);
    }
    for (const char* each : {"thaw_noirq", "thaw_early", "thaw"}) {
      CHECK(s.log.of(each) == up_order);
    }
  }
  SUBCASE("one below suspends: those above lose it, its sibling keeps it") {
    for (auto* each : {&s.nodes.t, &s.nodes.h, &s.nodes.S}) {
      each->device.set_runtime_suspended(true);
      each->then["prepare"] = [] { return may_stay_suspended; };
    }
    s.nodes.r.device.set_runtime_suspended(false);
    CHECK(go_down(s.tree, event::suspend) == status::ok);
    CHECK(s.nodes.d.device.is_direct_complete());
    for (const auto* each : {&s.nodes.r, &s.nodes.t, &s.nodes.h, &s.nodes.S}) {
      CHECK_FALSE(each->device.is_direct_complete());
    }
    come_up(s.tree, event::resume);
    CHECK(s.log.on("d") == "prepare complete");
    CHECK(s.log.of("suspend") == "r t h S N V R");
  }
  SUBCASE("nobody below suspends: those above are left alone as well") {
    for (auto* each : {&s.nodes.t, &s.nodes.h, &s.nodes.S}) {
      each->device.set_runtime_suspended(true);
      each->then["prepare"] = [] { return may_stay_suspended; };
    }
    CHECK(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(s.log.of("suspend") == "N V R");
  }
  SUBCASE("a consumer that suspends takes it from its supplier") {
    default_link link;
    REQUIRE(s.tree.add_link(link, s.nodes.N.device, s.nodes.d.device) == status::ok);
    CHECK(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(s.log.of("suspend_late") == "N d t h S V R");
    CHECK(s.tree.remove_link(link) == status::ok);
  }
  SUBCASE("one that may wake the system is not left alone") {
    s.nodes.d.device.set_may_wakeup(true);
    CHECK(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(s.log.of("suspend") == "d t h S N V R");
  }
  SUBCASE("an error before its turn: it is completed, and that is all") {
    s.nodes.r.device.set_runtime_suspended(false);
    s.nodes.r.fail("suspend");
    CHECK(go_down(s.tree, event::suspend) == status::io_error);
    CHECK(s.log.on("d") == "prepare complete");
    CHECK_FALSE(s.nodes.d.device.is_direct_complete());
  }
}

TEST_CASE("a device without callbacks that sleeps already is left alone") {
  call_log log;
  default_tree tree;
  logged_device<default_platform> mute("mute", nullptr, log, false);
  logged_device<default_platform> awake("awake", nullptr, log, false);
  mute.device.set_runtime_suspended(true);
  REQUIRE(tree.add(mute.device) == status::ok);
  REQUIRE(tree.add(awake.device) == status::ok);

  CHECK(tree.suspend_start(event::suspend) == status::ok);
  CHECK(mute.device.is_direct_complete());
  CHECK_FALSE(mute.device.is_suspended());
  CHECK(awake.device.is_suspended());
  tree.resume_end(event::resume);
  CHECK_FALSE(awake.device.is_suspended());

  CHECK(tree.remove(mute.device) == status::ok);
  CHECK(tree.remove(awake.device) == status::ok);
}

// -- who supplies the callback

TEST_CASE("the first of domain, type, class and bus is asked, and the driver for what it lacks") {
  using table = basic_callbacks<default_platform>;
  static std::vector<std::string> calls;
  calls.clear();
  static constexpr table domain = {.suspend = [](default_device&) noexcept {
    calls.emplace_back("domain");
    return status::ok;
  }};
  static constexpr table bus = {.suspend = [](default_device&) noexcept {
    calls.emplace_back("bus");
    return status::ok;
  }};
  static constexpr table driver = {.suspend =
                                       [](default_device&) noexcept {
                                         calls.emplace_back("driver");
                                         return status::ok;
                                       },
                                   .resume =
                                       [](default_device&) noexcept {
                                         calls.emplace_back("driver resume");
                                         return status::ok;
                                       }};
  default_tree tree;
  default_device all("all", nullptr, {.driver = &driver, .domain = &domain, .bus = &bus});
  default_device two("two", nullptr, {.driver = &driver, .bus = &bus});
  default_device one("one", nullptr, {.driver = &driver});
  for (default_device* each : {&all, &two, &one}) REQUIRE(tree.add(*each) == status::ok);

  CHECK(tree.suspend_start(event::suspend) == status::ok);
  tree.resume_end(event::resume);

  CHECK(calls == std::vector<std::string>{"driver", "bus", "domain", "driver resume",
                                          "driver resume", "driver resume"});
  for (default_device* each : {&all, &two, &one}) REQUIRE(tree.remove(*each) == status::ok);
}

TEST_CASE("scenario 34: a bus that knows hibernation only, and a driver that cannot suspend") {
  using table = basic_callbacks<default_platform>;
  static std::vector<std::string> calls;
  static status driver_says;
  static constexpr auto note = [](default_device& it) noexcept {
    calls.emplace_back(it.name());
    return it.name()[0] == 'c' ? driver_says : status::ok;
  };
  static constexpr table bus = {.freeze_noirq = note, .poweroff_noirq = note, .thaw_noirq = note};
  static constexpr table scsi = {.suspend = note, .freeze = note, .thaw = note};
  for (const status says : {status::ok, status::not_supported}) {
    calls.clear();
    driver_says = says;
    default_tree tree;
    default_device root("vmbus", nullptr, {.bus = &bus});
    default_device child("child", &root, {.bus = &bus});
    default_device sibling("net", &root, {.bus = &bus});
    default_device disk("sd", &child, {.bus = &scsi});
    for (default_device* each : {&root, &child, &sibling, &disk}) {
      REQUIRE(tree.add(*each) == status::ok);
    }

    CHECK(go_down(tree, event::suspend) == status::ok);
    come_up(tree, event::resume);
    CHECK(calls == std::vector<std::string>{"sd"});

    calls.clear();
    const status result = go_down(tree, event::freeze);
    CHECK(result == says);
    if (result == status::ok) {
      come_up(tree, event::thaw);
      CHECK(calls ==
            std::vector<std::string>{"sd", "net", "child", "vmbus", "vmbus", "child", "net", "sd"});
    } else {
      CHECK(calls == std::vector<std::string>{"sd", "net", "child", "net", "sd"});
    }
    for (default_device* each : {&disk, &sibling, &child, &root}) {
      REQUIRE(tree.remove(*each) == status::ok);
    }
  }
}

// -- what may change when

TEST_CASE("nothing comes below a prepared device until it has resumed") {
  sequential<> s;
  logged_device<default_platform> plugged("plugged", &s.nodes.h, s.log);
  logged_device<default_platform> loose("loose", nullptr, s.log);
  default_link link;
  CHECK(s.tree.prepare(event::suspend) == status::ok);

  CHECK(s.tree.add(plugged.device) == status::busy);
  CHECK(s.tree.add(loose.device) == status::ok);
  CHECK(s.tree.remove(loose.device) == status::busy);
  CHECK(s.tree.add_link(link, s.nodes.N.device, s.nodes.S.device) == status::busy);
  CHECK(s.tree.suspend(event::suspend) == status::ok);
  CHECK(s.tree.add(plugged.device) == status::busy);
  s.tree.resume(event::resume);
  CHECK(s.tree.add(plugged.device) == status::ok);
  s.tree.complete(event::resume);

  CHECK(s.log.on("loose").empty());
  CHECK(s.log.on("plugged").empty());
  s.log.clear();
  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  CHECK(s.log.of("suspend").substr(0, 13) == "plugged loose");
  CHECK(s.tree.remove(plugged.device) == status::ok);
  CHECK(s.tree.remove(loose.device) == status::ok);
}

TEST_CASE("a device that comes while others are prepared is prepared as well") {
  sequential<> s;
  logged_device<default_platform> late("late", nullptr, s.log);
  s.nodes.r.then["prepare"] = [&] {
    CHECK(s.tree.add(late.device) == status::ok);
    return status::ok;
  };

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(s.log.of("suspend") == std::string("late ") + down_order);
  s.nodes.r.then.clear();
  CHECK(s.tree.remove(late.device) == status::ok);
}

TEST_CASE("what is not here, or is in use, is not taken") {
  misuse_log misuse;
  call_log log;
  default_tree tree, other;
  logged_device<default_platform> parent("parent", nullptr, log);
  logged_device<default_platform> child("child", &parent, log);
  logged_device<default_platform> third("third", nullptr, log);
  default_link link;
  CHECK(tree.add(child.device) == status::invalid);
  REQUIRE(tree.add(parent.device) == status::ok);
  REQUIRE(tree.add(child.device) == status::ok);
  REQUIRE(tree.add(third.device) == status::ok);

  CHECK(tree.add(child.device) == status::invalid);
  CHECK(other.add(child.device) == status::invalid);
  CHECK(other.remove(child.device) == status::invalid);
  CHECK(tree.remove(parent.device) == status::busy);
  CHECK(other.add_link(link, child.device, third.device) == status::invalid);
  CHECK(tree.remove_link(link) == status::invalid);
  REQUIRE(tree.add_link(link, child.device, third.device) == status::ok);
  CHECK(tree.add_link(link, child.device, third.device) == status::invalid);
  CHECK(tree.remove(third.device) == status::busy);
  CHECK(tree.remove(child.device) == status::busy);

  CHECK(tree.remove_link(link) == status::ok);
  for (auto* each : {&child, &parent, &third}) CHECK(tree.remove(each->device) == status::ok);
  CHECK(misuse.count() == 0);
}

TEST_CASE("probes are waited for before prepare, and refused until complete") {
  sequential<> s;
  REQUIRE(s.tree.begin_probe());
  s.nodes.R.then["complete"] = [&] {
    CHECK_FALSE(s.tree.begin_probe());
    return status::ok;
  };
  worker suspender([&] {
    CHECK(s.tree.suspend_start(event::suspend) == status::ok);
    CHECK_FALSE(s.tree.begin_probe());
    s.tree.resume_end(event::resume);
  });
  CHECK(suspender.is_blocked());
  CHECK_FALSE(s.tree.begin_probe());
  CHECK(s.log.size() == 0);

  s.tree.end_probe();
  suspender.join();

  CHECK(s.tree.begin_probe());
  s.tree.end_probe();
}

TEST_CASE("runtime PM is held from prepare to complete, and off from late to early") {
  sequential<> s;
  std::string seen;
  const auto look = [&] {
    seen += s.nodes.d.device.holds_runtime_pm() ? 'h' : '-';
    seen += s.nodes.d.device.is_runtime_disabled() ? 'o' : '-';
    return status::ok;
  };
  for (const char* callback : {"prepare", "suspend", "suspend_late", "suspend_noirq",
                               "resume_noirq", "resume_early", "resume", "complete"}) {
    s.nodes.d.then[callback] = look;
  }

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  look();

  CHECK(seen == "h-h-hohohohoh-h---");
}

// -- the watchdog

TEST_CASE("the watchdog reports a callback that took too long, and changes nothing") {
  virtual_clock::reset();
  sequential<virtual_platform> s;
  std::vector<std::string> reports;
  s.tree.set_watchdog(
      ms(100),
      [](void* context, const basic_device_tree<virtual_platform>::overdue& what) noexcept {
        static_cast<std::vector<std::string>*>(context)->push_back(
            std::string(what.name) + " " + callback_name(what.during, what.at) +
            (what.returned ? " returned" : " runs"));
      },
      &reports);
  s.nodes.d.then["suspend"] = [] {
    virtual_clock::advance(101);
    return status::ok;
  };
  s.nodes.t.then["suspend"] = [&] {
    virtual_clock::advance(100);
    s.tree.look_for_overdue();
    virtual_clock::advance(1);
    s.tree.look_for_overdue();
    s.tree.look_for_overdue();
    return status::ok;
  };

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  CHECK(reports == std::vector<std::string>{"d suspend returned", "t suspend runs"});
  CHECK(s.log.of("resume") == up_order);
  virtual_clock::reset();
}

// -- failure injection: every callback of the tree, one at a time

TEST_CASE("after any failure those resumed are those who went down, in every phase") {
  const std::vector<std::string> down = {"prepare", "suspend", "suspend_late", "suspend_noirq"};
  const std::vector<std::string> up = {"complete", "resume", "resume_early", "resume_noirq"};
  for (std::size_t at = 0; at < down.size(); ++at) {
    for (std::size_t n = 0; n < 8; ++n) {
      sequential<> s;
      auto& refusing = *s.nodes.all()[n];
      refusing.fail(down[at].c_str());

      REQUIRE(go_down(s.tree, event::suspend) == status::io_error);

      for (auto* each : s.nodes.all()) {
        const std::string name = each->device.name();
        for (std::size_t p = 0; p < down.size(); ++p) {
          // Of its phase the one who refused is not undone; that it was prepared is.
          const bool called =
              (" " + s.log.of(down[p]) + " ").find(" " + name + " ") != std::string::npos;
          const bool undone =
              (" " + s.log.of(up[p]) + " ").find(" " + name + " ") != std::string::npos;
          REQUIRE(undone == (called && !(p == at && each == &refusing)));
        }
        REQUIRE_FALSE(each->device.is_suspended());
        REQUIRE_FALSE(each->device.is_prepared());
      }
      REQUIRE(s.order() == up_order);
    }
  }
}

// -- images

TEST_CASE("an image puts every device back to where it was when it was saved") {
  sequential<> s;
  CHECK_FALSE(s.tree.put_back_image());
  REQUIRE(go_down(s.tree, event::freeze) == status::ok);
  s.tree.save_image();
  come_up(s.tree, event::thaw);
  CHECK_FALSE(s.nodes.d.device.is_noirq_suspended());
  CHECK(s.tree.remove(s.nodes.d.device) == status::busy);
  REQUIRE(go_down(s.tree, event::hibernate) == status::ok);

  CHECK(s.tree.put_back_image());
  CHECK(s.nodes.d.device.is_noirq_suspended());
  CHECK(s.tree.in_transition());
  CHECK(s.order() == up_order);
  s.log.clear();
  come_up(s.tree, event::restore);

  CHECK(s.log.of("restore_noirq") == up_order);
  CHECK(s.log.of("complete") == down_order);
  CHECK_FALSE(s.tree.in_transition());
  s.tree.discard_image();
}

TEST_CASE("a kernel that is overwritten tells nobody") {
  sequential<> s;
  REQUIRE(go_down(s.tree, event::quiesce) == status::ok);
  s.log.clear();

  s.tree.vanish();

  CHECK(s.log.size() == 0);
  CHECK_FALSE(s.tree.in_transition());
  CHECK_FALSE(s.nodes.d.device.is_prepared());
  CHECK(s.order() == up_order);
}

// -- misuse, and one thread of execution

TEST_CASE("while a kernel is overwritten nobody comes into its tree") {
  pmgate::pm::device_tree tree;
  pmgate::pm::device late("late");
  struct newcomer {
    pmgate::pm::device_tree& tree;
    pmgate::pm::device& late;
    status told = status::ok;
  } other{tree, late};
  pmgate::pm::device device("device", nullptr, {}, &other);
  REQUIRE(tree.add(device) == status::ok);
  device.set_image_function([](pmgate::pm::device& it, image_move) noexcept {
    auto& self = *static_cast<newcomer*>(it.context());
    self.told = self.tree.add(self.late);
  });
  REQUIRE(tree.suspend_start(event::quiesce) == status::ok);

  tree.vanish();

  CHECK(other.told == status::busy);
  CHECK(tree.add(late) == status::ok);
  CHECK(tree.remove(late) == status::ok);
  CHECK(tree.remove(device) == status::ok);
}

TEST_CASE("a phase with an event of the other direction is reported and does nothing") {
  sequential<> s;
  CHECK(s.tree.suspend_start(event::resume) == status::invalid);
  CHECK(s.misuse.take() == 1);
  CHECK_FALSE(s.tree.in_transition());

  REQUIRE(go_down(s.tree, event::suspend) == status::ok);
  s.tree.resume_noirq(event::suspend);
  CHECK(s.nodes.d.device.is_noirq_suspended());
  s.tree.resume_noirq(event::resume);
  s.tree.resume_early(event::freeze);
  CHECK(s.nodes.d.device.is_late_suspended());
  s.tree.resume_early(event::resume);
  s.tree.resume(event::hibernate);
  CHECK(s.nodes.d.device.is_suspended());
  s.tree.resume(event::resume);
  s.tree.complete(event::quiesce);
  CHECK(s.tree.in_transition());
  CHECK(s.misuse.take() == 4);

  s.tree.complete(event::resume);
  CHECK(s.log.of("resume_noirq") == up_order);
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.log.of("complete") == down_order);
}

TEST_CASE("a phase out of order is reported and does nothing: no device is lost on the way") {
  using tree = default_tree;
  const std::vector<status (tree::*)(event)> down = {&tree::prepare, &tree::suspend,
                                                     &tree::suspend_late, &tree::suspend_noirq};
  const std::vector<void (tree::*)(event)> up = {&tree::complete, &tree::resume,
                                                 &tree::resume_early, &tree::resume_noirq};
  sequential<> s;
  const auto try_all_but = [&](const std::vector<std::size_t>& legal_down,
                               const std::vector<std::size_t>& legal_up) {
    const std::size_t calls = s.log.size();
    const auto among = [](const std::vector<std::size_t>& some, std::size_t n) {
      return std::find(some.begin(), some.end(), n) != some.end();
    };
    for (std::size_t n = 0; n < down.size(); ++n) {
      if (!among(legal_down, n)) {
        const bool twice = n == 0 && s.tree.in_transition();
        CHECK((s.tree.*down[n])(event::suspend) == (twice ? status::busy : status::invalid));
        CHECK(s.misuse.take() == 1);
      }
      if (!among(legal_up, n)) {
        (s.tree.*up[n])(event::resume);
        CHECK(s.misuse.take() == 1);
      }
    }
    CHECK(s.log.size() == calls);
  };

  try_all_but({0}, {});
  REQUIRE(s.tree.prepare(event::suspend) == status::ok);
  try_all_but({1}, {0, 1});
  REQUIRE(s.tree.suspend(event::suspend) == status::ok);
  try_all_but({2}, {1});
  REQUIRE(s.tree.suspend_late(event::suspend) == status::ok);
  try_all_but({3}, {2});
  REQUIRE(s.tree.suspend_noirq(event::suspend) == status::ok);
  try_all_but({}, {3});
  s.tree.resume_noirq(event::resume);
  try_all_but({3}, {2});
  s.tree.resume_early(event::resume);
  try_all_but({2}, {1});
  s.tree.resume(event::resume);
  try_all_but({}, {0, 1});
  s.tree.complete(event::resume);
  try_all_but({0}, {});

  // What failed is undone, and not gone on with.
  s.nodes.t.fail("prepare");
  REQUIRE(s.tree.prepare(event::suspend) == status::io_error);
  try_all_but({}, {0, 1});
  s.tree.resume_end(event::resume);
  s.nodes.t.then.clear();
  s.nodes.t.fail("suspend");
  REQUIRE(s.tree.suspend_start(event::suspend) == status::io_error);
  try_all_but({}, {1});
  s.tree.resume_end(event::resume);
  CHECK(s.order() == up_order);
}

TEST_CASE("a phase from within a phase is reported and does nothing, whichever they are") {
  using tree = default_tree;
  const std::vector<std::pair<const char*, status (tree::*)(event)>> down = {
      {"prepare", &tree::prepare},
      {"suspend", &tree::suspend},
      {"suspend_late", &tree::suspend_late},
      {"suspend_noirq", &tree::suspend_noirq}};
  const std::vector<std::pair<const char*, void (tree::*)(event)>> up = {
      {"resume_noirq", &tree::resume_noirq},
      {"resume_early", &tree::resume_early},
      {"resume", &tree::resume},
      {"complete", &tree::complete}};
  sequential<> s;
  const auto try_all = [&] {
    const std::size_t calls = s.log.size();
    for (const auto& each : down) CHECK((s.tree.*each.second)(event::suspend) == status::busy);
    for (const auto& each : up) (s.tree.*each.second)(event::resume);
    CHECK(s.misuse.take() == 8);
    CHECK(s.log.size() == calls);
    return status::ok;
  };
  for (const auto& each : down) s.nodes.h.then[each.first] = try_all;
  for (const auto& each : up) s.nodes.h.then[each.first] = try_all;

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);

  for (const auto& each : down) CHECK(s.log.of(each.first).size() == std::string(up_order).size());
  CHECK(s.log.of("suspend") == down_order);
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.log.of("complete") == down_order);
  CHECK_FALSE(s.tree.in_transition());
  CHECK(s.order() == up_order);
}

TEST_CASE("devices go down with the event they were prepared for, and with no other") {
  sequential<> s;
  s.nodes.d.then["prepare"] = [] { return may_stay_suspended; };
  s.nodes.d.device.set_runtime_suspended(true);
  REQUIRE(s.tree.prepare(event::suspend) == status::ok);
  CHECK(s.tree.suspend(event::freeze) == status::invalid);  // d would be left alone
  CHECK(s.misuse.take() == 1);
  CHECK(s.log.of("freeze").empty());
  REQUIRE(s.tree.suspend(event::suspend) == status::ok);
  CHECK(s.tree.suspend_late(event::hibernate) == status::invalid);
  REQUIRE(s.tree.suspend_late(event::suspend) == status::ok);
  CHECK(s.tree.suspend_noirq(event::quiesce) == status::invalid);
  CHECK(s.misuse.take() == 2);

  s.tree.resume_early(event::resume);
  s.tree.resume_end(event::resume);
  CHECK(go_down(s.tree, event::freeze) == status::ok);
  CHECK(s.log.of("freeze") == down_order);
  come_up(s.tree, event::restore);
  CHECK(s.misuse.count() == 0);
}

TEST_CASE("a transition that goes on in an image goes down further with its own event") {
  sequential<> s;
  REQUIRE(s.tree.suspend_start(event::freeze) == status::ok);
  s.tree.save_image();
  s.tree.resume_end(event::thaw);
  REQUIRE(s.tree.suspend_start(event::hibernate) == status::ok);

  CHECK(s.tree.put_back_image());
  CHECK(s.tree.suspend_late(event::hibernate) == status::invalid);
  CHECK(s.misuse.take() == 1);
  CHECK(s.tree.suspend_late(event::freeze) == status::ok);
  s.tree.resume_early(event::restore);
  s.tree.resume_end(event::restore);
  s.tree.discard_image();
  CHECK(s.misuse.count() == 0);
}

TEST_CASE("nobody takes a transition further, or undoes it, but the thread that began it") {
  sequential<> s;
  REQUIRE(go_down(s.tree, event::suspend) == status::ok);
  s.log.clear();

  worker other([&] {
    CHECK(go_down(s.tree, event::suspend) == status::busy);  // and its undoing, as documented
    CHECK(s.tree.suspend_noirq(event::suspend) == status::busy);
    come_up(s.tree, event::resume);
  });
  other.join();

  CHECK(s.misuse.take() == 8);
  CHECK(s.log.size() == 0);
  CHECK(s.nodes.d.device.is_noirq_suspended());
  come_up(s.tree, event::resume);
  CHECK(s.log.of("complete") == down_order);
}

TEST_CASE("a transition goes on in an image on the thread that put the image back") {
  sequential<> s;
  REQUIRE(go_down(s.tree, event::freeze) == status::ok);
  s.tree.save_image();
  come_up(s.tree, event::thaw);

  worker restorer([&] {
    REQUIRE(s.tree.put_back_image());
    come_up(s.tree, event::restore);
    s.tree.discard_image();
  });
  restorer.join();

  CHECK(s.misuse.count() == 0);
  CHECK(s.log.of("restore") == up_order);
  CHECK_FALSE(s.tree.in_transition());
}

TEST_CASE("wrong events, a second transition, and what is destroyed too early are reported") {
  misuse_log misuse;
  default_tree tree;
  CHECK(tree.prepare(event::resume) == status::invalid);
  CHECK(misuse.take() == 1);
  CHECK(tree.prepare(event::suspend) == status::ok);
  CHECK(tree.prepare(event::suspend) == status::busy);
  CHECK(misuse.take() == 1);
  tree.complete(event::resume);
  tree.end_probe();
  CHECK(misuse.take() == 1);

  auto small = std::make_unique<default_tree>();
  auto device = std::make_unique<default_device>("device");
  REQUIRE(small->add(*device) == status::ok);
  small.reset();
  CHECK(misuse.take() == 1);
  device.reset();
  CHECK(misuse.take() == 1);
}

TEST_CASE("with one thread only, asynchronous devices go in order and a probe is not waited for") {
  sequential<single_platform> s;
  pmgate::pm::basic_work_queue<single_platform> queue("async");
  s.tree.set_async_queue(&queue);
  for (auto* each : s.nodes.all()) each->device.set_async(true);

  CHECK(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  CHECK(s.log.of("suspend") == down_order);

  REQUIRE(s.tree.begin_probe());
  CHECK(s.tree.prepare(event::suspend) == status::again);
  CHECK(s.misuse.take() == 1);
  CHECK_FALSE(s.tree.in_transition());
  CHECK(s.tree.begin_probe());
  s.tree.end_probe();
  s.tree.end_probe();
}

}  // TEST_SUITE
