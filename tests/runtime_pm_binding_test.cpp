// SPDX-License-Identifier: MIT
//
// runtime_pm_binding_test.cpp - runtime power management under system sleep: what is held
// when, and which devices a suspend leaves alone.
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/runtime_pm.hpp>
#include <pmgate/block/runtime_pm_binding.hpp>
#include <pmgate/platform/single.hpp>
#include <pmgate/pm/scope.hpp>

#include "support/deferred_platform.hpp"
#include "support/device_rig.hpp"

using pmgate::basic_freeze_gate;
using pmgate::basic_runtime_pm;
using pmgate::basic_runtime_pm_binding;
using pmgate::rpm_status;
using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_device_tree;
using pmgate::pm::event;
using pmgate::pm::may_stay_suspended;
using pmgate::pm::phase;
using testing::call_log;
using testing::come_up;
using testing::go_down;
using testing::misuse_log;
using testing::tree_of_eight;
using default_platform = pmgate::default_platform;

static_assert(!std::is_copy_constructible_v<pmgate::runtime_pm_binding>);
static_assert(!std::is_move_constructible_v<pmgate::runtime_pm_binding>);

namespace {

/// The tree T, and runtime PM of d.
template <class P = default_platform>
struct rig {
  rig() { nodes.add_to(tree); }
  ~rig() { nodes.remove_from(tree); }

  /// "s" if a runtime suspend may begin, "r" if a resume may; both leave no trace.
  std::string allowed() {
    std::string found;
    const bool awake = runtime.runtime_status() == rpm_status::active;
    if (awake) {
      const bool may = runtime.pre_runtime_suspend() == status::ok;
      found = may ? "s" : "-";
      if (may) runtime.post_runtime_suspend(status::io_error);
    } else {
      const bool may = runtime.pre_runtime_resume() == status::ok;
      found = may ? "r" : "-";
      if (may) {
        runtime.post_runtime_resume();
        sleep();
      }
    }
    return found;
  }
  void sleep() {
    if (runtime.pre_runtime_suspend() == status::ok) runtime.post_runtime_suspend(status::ok);
  }
  void wake() {
    if (runtime.pre_runtime_resume() == status::ok) runtime.post_runtime_resume();
  }
  misuse_log misuse;
  call_log log;
  tree_of_eight<P> nodes{log};
  basic_device_tree<P> tree;
  basic_freeze_gate<P> gate;
  basic_runtime_pm<P> runtime{gate};
  basic_runtime_pm_binding<P> binding{nodes.d.device, runtime};
};

constexpr const char* callbacks[] = {"prepare",       "suspend",      "suspend_late",
                                     "suspend_noirq", "resume_noirq", "resume_early",
                                     "resume",        "complete"};

}  // namespace

TEST_SUITE("runtime_pm_binding") {

TEST_CASE_TEMPLATE("from prepare to complete a device that is awake is not suspended", P,
                   default_platform, single_platform) {
  rig<P> s;
  std::string seen = s.allowed();
  for (const char* each : callbacks) {
    s.nodes.d.then[each] = [&] { return seen += s.allowed(), status::ok; };
  }

  REQUIRE(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  seen += s.allowed();

  CHECK(seen == "s--------s");
  CHECK(s.misuse.count() == 0);
}

TEST_CASE("one that sleeps is woken up to its late phase, and again from its early phase on") {
  std::string seen;
  for (const char* woken : callbacks) {
    rig<> s;
    s.sleep();
    s.nodes.d.then[woken] = [&] { return s.wake(), status::ok; };
    REQUIRE(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    seen += s.runtime.runtime_status() == rpm_status::active ? 'r' : '-';
  }
  CHECK(seen == "rr----rr");
}

TEST_CASE("whoever refuses, nothing is held and nothing is off in the end") {
  for (const char* refused : {"prepare", "suspend", "suspend_late", "suspend_noirq"}) {
    for (const bool itself : {true, false}) {
      rig<> s;
      (itself ? s.nodes.d : s.nodes.t).fail(refused);

      REQUIRE(go_down(s.tree, event::suspend) == status::io_error);

      CHECK(s.allowed() == "s");
      s.sleep();
      CHECK(s.allowed() == "r");
      CHECK(s.misuse.count() == 0);
    }
  }
}

TEST_CASE("a device that asks to be prepared again is held once") {
  rig<> s;
  int asked = 0;
  s.nodes.d.then["prepare"] = [&] { return ++asked < 3 ? status::again : status::ok; };
  REQUIRE(go_down(s.tree, event::suspend) == status::ok);
  come_up(s.tree, event::resume);
  CHECK(s.allowed() == "s");
}

TEST_CASE("a suspend leaves alone what its runtime status says is asleep") {
  rig<> s;
  s.nodes.d.then["prepare"] = [] { return may_stay_suspended; };
  SUBCASE("asleep: nothing wakes it until its turn on the way up") {
    s.sleep();
    std::string seen;
    for (const char* each : {"suspend", "suspend_late", "resume_early", "resume"}) {
      s.nodes.t.then[each] = [&] { return seen += s.allowed(), status::ok; };
    }
    REQUIRE(go_down(s.tree, event::suspend) == status::ok);
    CHECK(s.nodes.d.device.is_direct_complete());
    come_up(s.tree, event::resume);
    CHECK(s.log.on("d") == "prepare complete");
    CHECK(seen == "----");
    CHECK(s.allowed() == "r");
  }
  SUBCASE("awake") {
    REQUIRE(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(s.log.of("suspend") == "r d t h S N V R");
    CHECK(s.allowed() == "s");
  }
  SUBCASE("woken before its turn") {
    s.sleep();
    s.nodes.r.then["suspend"] = [&] { return s.wake(), status::ok; };
    REQUIRE(go_down(s.tree, event::suspend) == status::ok);
    come_up(s.tree, event::resume);
    CHECK(s.log.of("suspend") == "r d t h S N V R");
    CHECK(s.allowed() == "s");
  }
  SUBCASE("asleep, and somebody above refuses") {
    s.sleep();
    s.nodes.t.fail("suspend");
    REQUIRE(go_down(s.tree, event::suspend) == status::io_error);
    CHECK(s.log.on("d") == "prepare complete");
    CHECK(s.allowed() == "r");
  }
  CHECK(s.misuse.count() == 0);
}

TEST_CASE("a scope may stay asleep with all its gates as they are, if it is told so") {
  pmgate::pm::device_tree tree;
  pmgate::freeze_gate entry;
  pmgate::runtime_pm runtime(entry);
  pmgate::pm::scope disk(tree, "disk");
  const pmgate::pm::scope::gate closes(disk, phase::suspend, entry);
  const pmgate::runtime_pm_binding both(disk.device(), runtime);
  REQUIRE(runtime.pre_runtime_suspend() == status::ok);
  runtime.post_runtime_suspend(status::ok);

  REQUIRE(go_down(tree, event::suspend) == status::ok);
  CHECK(closes.is_down());
  come_up(tree, event::resume);

  disk.set_may_stay_suspended(true);
  REQUIRE(go_down(tree, event::suspend) == status::ok);
  CHECK_FALSE(closes.is_down());
  CHECK(disk.device().is_direct_complete());
  come_up(tree, event::resume);

  REQUIRE(go_down(tree, event::freeze) == status::ok);
  CHECK(closes.is_down());
  come_up(tree, event::thaw);
}

TEST_CASE("an image has runtime PM held again, and lets it go once") {
  rig<> s;
  std::string seen;
  REQUIRE(go_down(s.tree, event::freeze) == status::ok);
  s.tree.save_image();
  come_up(s.tree, event::thaw);
  SUBCASE("held when it is put back") { REQUIRE(go_down(s.tree, event::hibernate) == status::ok); }
  SUBCASE("free, and asleep") { s.sleep(); }

  REQUIRE(s.tree.put_back_image());
  seen += s.allowed();
  s.tree.resume_start(event::restore);
  s.nodes.d.then["restore"] = [&] { return s.runtime.post_runtime_resume(), status::ok; };
  s.tree.resume(event::restore);
  seen += s.allowed();
  s.tree.complete(event::restore);
  seen += s.allowed();

  CHECK(seen == "--s");
  CHECK(s.misuse.count() == 0);
  s.tree.discard_image();
}

TEST_CASE("the runtime PM of a kernel that vanished stays off") {
  rig<> s;
  REQUIRE(go_down(s.tree, event::quiesce) == status::ok);

  s.tree.vanish();

  CHECK(s.allowed() == "-");
  CHECK_FALSE(s.nodes.d.device.holds_runtime_pm());
}

TEST_CASE("runtime PM is not exchanged while it is held") {
  rig<> s;
  basic_runtime_pm<default_platform> other(s.gate);
  REQUIRE(s.tree.prepare(event::suspend) == status::ok);

  const pmgate::runtime_pm_binding refused(s.nodes.r.device, other);
  CHECK(s.misuse.take() == 1);

  s.tree.complete(event::resume);
  CHECK(other.pre_runtime_suspend() == status::ok);
  other.post_runtime_resume();
}

}  // TEST_SUITE
