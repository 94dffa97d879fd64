// SPDX-License-Identifier: MIT
//
// hibernation_test.cpp - whole transitions: suspend, hibernation, restore with two
// kernels; the numbers are those of the scenarios in the specification of system sleep.
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/single.hpp>
#include <pmgate/pm/hibernation.hpp>
#include <pmgate/pm/suspend.hpp>

#include "support/deferred_platform.hpp"
#include "support/device_rig.hpp"
#include "support/virtual_platform.hpp"

using pmgate::status;
using pmgate::pm::basic_freezable_task;
using pmgate::pm::basic_kernel;
using pmgate::pm::basic_notifier;
using pmgate::pm::basic_work;
using pmgate::pm::basic_work_queue;
using pmgate::pm::event;
using pmgate::pm::hibernate;
using pmgate::pm::notice;
using pmgate::pm::phase;
using pmgate::pm::power_off_mode;
using pmgate::pm::refused_by;
using pmgate::pm::restore;
using pmgate::pm::restore_freeze;
using pmgate::pm::sleep_mode;
using pmgate::pm::step;
using pmgate::pm::suspend;
using pmgate::pm::task_kind;
using pmgate::pm::work_queue_flags;
using testing::call_log;
using testing::misuse_log;
using testing::tree_of_eight;
using testing::virtual_clock;
using testing::virtual_platform;

static_assert(!std::is_copy_constructible_v<pmgate::pm::kernel>);
static_assert(!std::is_move_constructible_v<pmgate::pm::kernel>);
static_assert(noexcept(suspend(std::declval<pmgate::pm::kernel&>())));

namespace {

auto ms(int n) { return std::chrono::milliseconds(n); }

constexpr const char* up_order = "R V N S h t d r";
constexpr const char* down_order = "r d t h S N V R";

const char* name_of(step what) {
  switch (what) {
    case step::sync_filesystems: return "sync";
    case step::platform: return "platform";
    case step::console: return "console";
    case step::platform_prepare: return "prepare";
    case step::platform_prepare_late: return "prepare_late";
    case step::platform_noirq: return "noirq";
    case step::platform_snapshot: return "pre_snapshot";
    case step::platform_restore: return "pre_restore";
    case step::secondary_cpus: return "cpus";
    case step::local_interrupts: return "irqs";
    case step::syscore: return "syscore";
    case step::enter: return "enter";
    case step::image_memory: return "memory";
    case step::snapshot: return "snapshot";
    case step::write_image: return "write";
    case step::platform_enter: return "platform_enter";
    case step::power_off: return "power_off";
    case step::open_image: return "open";
    case step::read_image: return "read";
    case step::jump: return "jump";
  }
  return "?";
}

const char* name_of(notice what) {
  switch (what) {
    case notice::suspend_prepare: return "suspend_prepare";
    case notice::post_suspend: return "post_suspend";
    case notice::hibernation_prepare: return "hibernation_prepare";
    case notice::post_hibernation: return "post_hibernation";
    case notice::restore_prepare: return "restore_prepare";
    case notice::post_restore: return "post_restore";
  }
  return "?";
}

/// One kernel with the tree T, a user task, a queue, and everything written down.
template <class P = virtual_platform>
struct rig {
  struct item {
    static void run(basic_work<P>& it) noexcept { ++static_cast<item*>(it.context())->runs; }
    int runs = 0;
    basic_work<P> work{&run, this};
  };

  rig() {
    virtual_clock::reset();
    nodes.add_to(kernel.devices);
    kernel.freezer.add(queue);
    REQUIRE(kernel.notifiers.add(told) == status::ok);
    kernel.set_steps(
        [](void* context, step what, bool undo) noexcept {
          return static_cast<rig*>(context)->on_step(what, undo);
        },
        this);
    sleep.emplace(user);
  }
  ~rig() {
    sleep.reset();
    REQUIRE(kernel.notifiers.remove(told) == status::ok);
    kernel.freezer.remove(queue);
    nodes.remove_from(kernel.devices);
    virtual_clock::reset();
  }
  status on_step(step what, bool undo) {
    const std::string word = std::string(undo ? "-" : "") + name_of(what);
    steps += (steps.empty() ? "" : " ") + word;
    tell(word);
    if (undo) {
      if (when_undone.count(what) != 0) when_undone[what]();
      return status::ok;
    }
    const auto found = then.find(what);
    return found != then.end() ? found->second() : status::ok;
  }
  /// Into the story: steps, [notices], and who is (frozen) since when.
  void tell(const std::string& word) {
    const auto& freezer = kernel.freezer;
    const std::string now = freezer.freezes_everything()   ? "(all)"
                            : freezer.freezes_user_tasks() ? "(user)"
                                                           : "(nobody)";
    if (now != frozen) story += " " + now;
    frozen = now;
    story += (story.empty() ? "" : " ") + word;
  }
  void fail(step what) {
    then[what] = [] { return status::io_error; };
  }
  /// Nothing is frozen and nobody is down.
  void check_awake() {
    CHECK_FALSE(kernel.freezer.freezes_user_tasks());
    CHECK_FALSE(kernel.freezer.freezes_everything());
    CHECK_FALSE(queue.is_frozen());
    CHECK_FALSE(kernel.devices.in_transition());
    CHECK_FALSE(kernel.is_off());
    for (auto* each : nodes.all()) {
      CHECK_FALSE(each->device.is_prepared());
      CHECK_FALSE(each->device.is_suspended());
      CHECK_FALSE(each->device.is_noirq_suspended());
    }
    CHECK(kernel.begin_transition());
    kernel.end_transition();
    // Steps that are undone are undone, each as often as it was taken.
    for (const char* name : {"platform", "console", "prepare", "prepare_late", "noirq",
                             "pre_snapshot", "cpus", "irqs", "syscore"}) {
      CHECK_MESSAGE(count(name) - failed(name) == count(std::string("-") + name), name);
    }
  }
  int count(const std::string& name) const {
    int found = 0;
    const std::string all = " " + steps + " ";
    for (auto at = all.find(" " + name + " "); at != std::string::npos;
         at = all.find(" " + name + " ", at + 1)) {
      ++found;
    }
    return found;
  }
  int failed(const std::string& name) const {
    for (const auto& [what, action] : then) {
      if (name == name_of(what)) return refusing;
    }
    return 0;
  }

  call_log log;
  std::string steps;
  std::map<step, std::function<status()>> then;
  std::map<step, std::function<void()>> when_undone;
  int refusing = 1;  // how often a step with an action refused
  std::string notices;
  status says = status::ok;  // the notifier
  std::string frozen = "(nobody)";
  std::string story;
  tree_of_eight<P> nodes{log};
  basic_kernel<P> kernel;
  basic_work_queue<P> queue{"queue", work_queue_flags::freezable, 0};
  basic_freezable_task<P> user{kernel.freezer, "user", task_kind::user};
  std::optional<typename basic_freezable_task<P>::freezable_sleep> sleep;
  basic_notifier<P> told{[](basic_notifier<P>& it, notice what) noexcept {
                           auto& self = *static_cast<rig*>(it.context());
                           self.notices += (self.notices.empty() ? "" : " ");
                           self.notices += name_of(what);
                           self.tell(std::string("[") + name_of(what) + "]");
                           return self.says;
                         },
                         this};
};

}  // namespace

TEST_SUITE("hibernation") {

// -- suspend

TEST_CASE_TEMPLATE("a suspend takes every step down and its mirror up", P, virtual_platform,
                   pmgate::default_platform, pmgate::single_platform) {
  misuse_log misuse;
  rig<P> s;
  s.then[step::enter] = [&] {
    CHECK(s.kernel.freezer.freezes_everything());
    CHECK(s.queue.is_frozen());
    CHECK(s.nodes.R.device.is_noirq_suspended());
    CHECK(suspend(s.kernel) == status::busy);
    return status::ok;
  };

  CHECK(suspend(s.kernel) == status::ok);

  CHECK(s.steps ==
        "sync platform console prepare prepare_late noirq cpus irqs syscore enter -syscore -irqs "
        "-cpus -noirq -prepare_late -prepare -console -platform");
  CHECK(
      s.story ==
      "sync [suspend_prepare] (all) platform console prepare prepare_late noirq cpus irqs syscore "
      "enter -syscore -irqs -cpus -noirq -prepare_late -prepare -console -platform (nobody) "
      "[post_suspend]");
  CHECK(s.log.of("suspend_noirq") == down_order);
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.notices == "suspend_prepare post_suspend");
  CHECK(s.kernel.last_refusal().whom == refused_by::nobody);
  s.check_awake();
  CHECK(misuse.count() == 0);
}

TEST_CASE("an idle sleep leaves the CPUs on") {
  rig<> s;
  CHECK(suspend(s.kernel, sleep_mode::idle) == status::ok);
  CHECK(s.steps ==
        "sync platform console prepare prepare_late noirq enter -noirq -prepare_late -prepare "
        "-console -platform");
}

TEST_CASE("whatever step refuses, everything is undone") {
  for (const step refused :
       {step::platform, step::console, step::platform_prepare, step::platform_prepare_late,
        step::platform_noirq, step::secondary_cpus, step::local_interrupts, step::syscore,
        step::enter}) {
    CAPTURE(name_of(refused));
    rig<> s;
    s.fail(refused);
    CHECK(suspend(s.kernel) == status::io_error);
    CHECK(s.kernel.last_refusal().whom == refused_by::machine);
    CHECK(s.kernel.last_refusal().what == refused);
    CHECK(s.kernel.last_refusal().said == status::io_error);
    CHECK(s.log.of("resume") == (s.log.of("suspend").empty() ? "" : up_order));
    CHECK(s.notices == "suspend_prepare post_suspend");
    s.check_awake();
  }
}

TEST_CASE("scenario 9: a wakeup in the noirq phase is found at the syscore stage") {
  rig<> s;
  s.nodes.r.then["suspend_noirq"] = [&] {
    s.kernel.wakeup.abort();
    return status::ok;
  };

  CHECK(suspend(s.kernel) == status::busy);

  CHECK(s.log.of("suspend_noirq") == down_order);
  CHECK(s.log.of("resume_noirq") == up_order);
  CHECK(s.count("enter") == 0);
  CHECK(s.count("syscore") == 0);
  CHECK(s.count("-cpus") == 1);
  s.check_awake();
}

TEST_CASE(
    "a wakeup that comes after the last check of the core is found before the machine sleeps") {
  rig<> s;
  s.refusing = 0;
  SUBCASE("in the core") {
    s.then[step::syscore] = [&] { return s.kernel.wakeup.abort(), status::ok; };
    CHECK(suspend(s.kernel) == status::busy);
  }
  SUBCASE("before it is idle") {
    s.then[step::platform_noirq] = [&] { return s.kernel.wakeup.abort(), status::ok; };
    CHECK(suspend(s.kernel, sleep_mode::idle) == status::busy);
  }
  CHECK(s.count("enter") == 0);
  CHECK(s.kernel.last_refusal().whom == refused_by::wakeups);
  s.check_awake();
}

TEST_CASE("scenario 7: an error on the way up does not change what a suspend returns") {
  rig<> s;
  s.nodes.S.fail("resume");
  CHECK(suspend(s.kernel) == status::ok);
  CHECK(s.log.of("resume") == up_order);
  CHECK(s.kernel.devices.failures(phase::resume) == 1);
  CHECK(s.kernel.last_refusal().whom == refused_by::nobody);
  s.check_awake();
}

TEST_CASE("who refused is known afterwards: a task, a queue, a device, a notifier") {
  rig<> s;
  s.kernel.freezer.set_timeout(ms(50));
  SUBCASE("a task") {
    s.sleep.reset();
    CHECK(suspend(s.kernel) == status::busy);
    CHECK(s.kernel.last_refusal().whom == refused_by::user_tasks);
    CHECK(s.kernel.freezer.last_report(task_kind::user).tasks[0] == std::string("user"));
  }
  SUBCASE("a queue") {
    rig<>::item stuck;
    CHECK(s.queue.queue(stuck.work));
    CHECK(suspend(s.kernel) == status::busy);
    CHECK(s.kernel.last_refusal().whom == refused_by::kernel_threads);
    CHECK(s.kernel.freezer.last_report(task_kind::kernel).queues[0] == std::string("queue"));
    CHECK(s.queue.run_pending());
  }
  SUBCASE("a device") {
    const char* callback = nullptr;
    SUBCASE("that prepares") { callback = "prepare"; }
    SUBCASE("in the main phase") { callback = "suspend"; }
    SUBCASE("in the late phase") { callback = "suspend_late"; }
    SUBCASE("in the noirq phase") { callback = "suspend_noirq"; }
    s.nodes.t.fail(callback);
    CHECK(suspend(s.kernel) == status::io_error);
    CHECK(s.kernel.last_refusal().whom == refused_by::devices);
    CHECK(s.kernel.devices.last_failure().name == std::string("t"));
  }
  SUBCASE("a notifier") {
    s.says = status::io_error;
    CHECK(suspend(s.kernel) == status::io_error);
    CHECK(s.kernel.last_refusal().whom == refused_by::notifiers);
  }
  s.check_awake();
  s.says = status::ok;
  s.sleep.emplace(s.user);
  s.nodes.t.then.clear();
  CHECK(suspend(s.kernel) == status::ok);
  CHECK(s.kernel.last_refusal().whom == refused_by::nobody);
}

TEST_CASE(
    "a wakeup between two devices is told as one, also after a transition that a device refused") {
  rig<> s;
  s.nodes.t.fail("suspend");
  REQUIRE(suspend(s.kernel) == status::io_error);
  REQUIRE(s.kernel.last_refusal().whom == refused_by::devices);
  s.nodes.t.then.clear();
  const auto wakes = [&s] { return s.kernel.wakeup.abort(), status::ok; };

  SUBCASE("in the main phase of a suspend") {
    s.nodes.r.then["suspend"] = wakes;
    CHECK(suspend(s.kernel) == status::busy);
  }
  SUBCASE("in the late phase, which undoes itself") {
    s.nodes.r.then["suspend_late"] = wakes;
    CHECK(suspend(s.kernel) == status::busy);
  }
  SUBCASE("before a snapshot") {
    s.nodes.r.then["freeze"] = wakes;
    CHECK(hibernate(s.kernel) == status::busy);
  }
  SUBCASE("before the power goes") {
    s.nodes.r.then["poweroff"] = wakes;
    CHECK(hibernate(s.kernel) == status::busy);
  }
  SUBCASE("before a jump") {
    s.nodes.r.then["freeze"] = wakes;
    CHECK(restore<virtual_platform>(s.kernel, nullptr) == status::busy);
  }
  CHECK(s.kernel.last_refusal().whom == refused_by::wakeups);
  CHECK(s.kernel.last_refusal().said == status::busy);
  s.check_awake();

  s.nodes.r.then.clear();
  s.nodes.V.fail("prepare", status::busy);
  CHECK(suspend(s.kernel) == status::busy);
  CHECK(s.kernel.last_refusal().whom == refused_by::devices);
  CHECK(s.kernel.devices.last_failure().name == std::string("V"));
}

TEST_CASE("scenario 21: who objects is not told that it is over, those before him are") {
  misuse_log misuse;
  rig<> s;
  std::string log;
  struct listener {
    listener(std::string its_name, rig<>& its, std::string& into, status says)
        : name(std::move(its_name)), system(its), log(into), answer(says) {}
    static status hear(basic_notifier<virtual_platform>& it, notice what) noexcept {
      auto& self = *static_cast<listener*>(it.context());
      self.log += self.name + (what == notice::suspend_prepare ? "+ " : "- ");
      CHECK_FALSE(self.system.kernel.freezer.freezes_user_tasks());
      return self.answer;
    }
    std::string name;
    rig<>& system;
    std::string& log;
    status answer;
    basic_notifier<virtual_platform> entry{&hear, this};
  };
  listener a("A", s, log, status::ok), b("B", s, log, status::io_error), c("C", s, log, status::ok);
  for (listener* each : {&a, &b, &c}) CHECK(s.kernel.notifiers.add(each->entry) == status::ok);
  CHECK(s.kernel.notifiers.add(a.entry) == status::invalid);

  CHECK(suspend(s.kernel) == status::io_error);

  CHECK(log == "A+ B+ A- ");
  CHECK(s.log.size() == 0);
  CHECK(s.story == "sync [suspend_prepare] [post_suspend]");
  s.check_awake();
  for (listener* each : {&a, &b, &c}) CHECK(s.kernel.notifiers.remove(each->entry) == status::ok);
  CHECK(s.kernel.notifiers.remove(a.entry) == status::invalid);
  CHECK(misuse.count() == 0);
}

TEST_CASE("notifiers of higher priority come first") {
  pmgate::pm::notifier_chain chain;
  static std::vector<const pmgate::pm::notifier*> order;
  order.clear();
  const auto remember = [](pmgate::pm::notifier& it, notice) noexcept {
    order.push_back(&it);
    return status::ok;
  };
  pmgate::pm::notifier low(remember), equal(remember), high(remember, nullptr, 5);
  for (auto* each : {&low, &equal, &high}) CHECK(chain.add(*each) == status::ok);
  chain.tell(notice::post_suspend);
  CHECK(order == std::vector<const pmgate::pm::notifier*>{&high, &low, &equal});
  for (auto* each : {&low, &equal, &high}) CHECK(chain.remove(*each) == status::ok);
}

// -- hibernation: the kernel that saves itself

TEST_CASE("scenario 17: a device is frozen, thawed to write the image, and powered off") {
  rig<> s;
  rig<>::item parked;
  s.then[step::write_image] = [&] {  // H8
    CHECK(s.kernel.freezer.freezes_user_tasks());
    CHECK(s.kernel.freezer.freezes_everything());
    CHECK(s.queue.queue(parked.work));
    CHECK_FALSE(s.queue.run_pending());
    CHECK_FALSE(s.nodes.d.device.is_suspended());
    CHECK_FALSE(s.kernel.devices.in_transition());
    CHECK(s.log.on("d") ==
          "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");
    return status::ok;
  };

  CHECK(hibernate(s.kernel) == status::ok);

  CHECK(s.kernel.is_off());
  CHECK(s.log.on("d") ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete "
        "prepare poweroff poweroff_late poweroff_noirq");
  CHECK(s.steps ==
        "sync platform memory console pre_snapshot cpus irqs syscore snapshot -syscore -irqs -cpus "
        "-pre_snapshot -console -platform write platform console noirq cpus irqs syscore "
        "platform_enter");
  CHECK(s.story ==
        "[hibernation_prepare] sync (user) platform memory (all) console pre_snapshot cpus irqs "
        "syscore snapshot -syscore -irqs -cpus -pre_snapshot -console -platform write platform "
        "console noirq cpus irqs syscore platform_enter");
  CHECK(s.notices == "hibernation_prepare");
  CHECK(hibernate(s.kernel) == status::busy);

  CHECK(restore<virtual_platform>(*std::make_unique<basic_kernel<virtual_platform>>(), &s.kernel) ==
        status::ok);
  CHECK(s.notices == "hibernation_prepare post_hibernation");
}

TEST_CASE("scenario 18: the boot kernel is quiesced and gone, the image kernel is restored") {
  rig<> image;
  rig<> boot;
  rig<>::item in_image, too_late, in_boot;
  image.then[step::snapshot] = [&] {
    CHECK(image.queue.queue(in_image.work));
    return status::ok;
  };
  image.then[step::write_image] = [&] {
    CHECK(image.queue.queue(too_late.work));
    return status::ok;
  };
  REQUIRE(hibernate(image.kernel) == status::ok);
  CHECK(image.kernel.freezer.freezes_everything());
  image.log.clear();
  image.steps.clear();
  image.story.clear();
  boot.then[step::read_image] = [&] {
    CHECK(boot.kernel.freezer.freezes_everything());
    CHECK(boot.queue.queue(in_boot.work));
    CHECK(boot.log.size() == 0);
    return status::ok;
  };

  CHECK(restore(boot.kernel, &image.kernel) == status::ok);

  CHECK(boot.log.on("d") == "prepare freeze freeze_late freeze_noirq");
  CHECK(boot.story ==
        "open [restore_prepare] (all) read -open console pre_restore cpus irqs syscore jump");
  CHECK(boot.notices == "restore_prepare");
  CHECK_FALSE(in_boot.work.is_pending());
  CHECK(image.log.on("d") == "restore_noirq restore_early restore complete");
  CHECK(image.log.of("restore_noirq") == up_order);
  CHECK(image.log.of("complete") == down_order);
  CHECK(image.story ==
        "-syscore -irqs -cpus -pre_snapshot -memory -console -platform (nobody) "
        "[post_hibernation]");
  CHECK(image.notices == "hibernation_prepare post_hibernation");
  CHECK_FALSE(image.kernel.is_off());
  CHECK_FALSE(image.kernel.freezer.freezes_user_tasks());
  CHECK(image.queue.run_pending());
  CHECK(in_image.runs == 1);
  CHECK(too_late.runs == 0);
  CHECK_FALSE(too_late.work.is_pending());

  image.log.clear();
  image.then.clear();
  CHECK(suspend(image.kernel) == status::ok);
  CHECK(image.log.of("suspend") == down_order);
}

TEST_CASE("scenario 19: after a jump that fails the boot kernel recovers and goes on") {
  rig<> image;
  rig<> boot;
  REQUIRE(hibernate(image.kernel) == status::ok);
  boot.fail(step::jump);

  CHECK(restore(boot.kernel, &image.kernel) == status::io_error);

  CHECK(boot.log.on("d") ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");
  CHECK(boot.notices == "restore_prepare post_restore");
  CHECK(boot.story ==
        "open [restore_prepare] (all) read -open console pre_restore cpus irqs syscore jump "
        "-syscore -irqs -cpus -pre_restore -console (nobody) [post_restore]");
  boot.check_awake();
  CHECK(image.kernel.is_off());

  boot.then.clear();
  CHECK(restore(boot.kernel, &image.kernel) == status::ok);
  CHECK_FALSE(image.kernel.is_off());
}

TEST_CASE("scenario 20: a freeze that fails before the snapshot goes up with restore") {
  rig<> s;
  s.nodes.t.fail("freeze");

  CHECK(hibernate(s.kernel) == status::io_error);

  CHECK(s.log.of("freeze") == "r d t");
  CHECK(s.log.of("restore") == "d r");
  CHECK(s.log.of("thaw").empty());
  CHECK(s.log.of("complete") == down_order);
  CHECK(s.count("-memory") == 1);
  CHECK(s.count("write") == 0);
  CHECK(s.notices == "hibernation_prepare post_hibernation");
  s.check_awake();
}

TEST_CASE("late and noirq failures of a freeze undo themselves with thaw, then restore") {
  rig<> s;
  s.nodes.t.fail("freeze_noirq");
  CHECK(hibernate(s.kernel) == status::io_error);
  CHECK(s.log.on("d") ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early restore "
        "complete");
  s.check_awake();
}

TEST_CASE("a snapshot that fails goes up with thaw throughout, as a recovery") {
  rig<> s;
  s.fail(step::snapshot);
  CHECK(hibernate(s.kernel) == status::io_error);
  CHECK(s.log.on("d") ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");
  s.check_awake();
}

TEST_CASE("what fails between the noirq phase and the snapshot goes up with restore") {
  rig<> s;
  s.fail(step::secondary_cpus);
  CHECK(hibernate(s.kernel) == status::io_error);
  CHECK(s.log.on("d") ==
        "prepare freeze freeze_late freeze_noirq restore_noirq restore_early "
        "restore complete");
  s.check_awake();
}

TEST_CASE("a wakeup right before the snapshot reports success, without an image") {
  rig<> s;
  s.then[step::syscore] = [&] {
    s.kernel.wakeup.abort();
    return status::ok;
  };
  s.refusing = 0;
  CHECK(hibernate(s.kernel) == status::ok);
  CHECK_FALSE(s.kernel.is_off());
  CHECK(s.count("snapshot") == 0);
  CHECK(s.kernel.last_refusal().whom == refused_by::wakeups);
  CHECK(s.log.of("restore") == up_order);
  s.check_awake();
}

TEST_CASE("a prepare that fails completes those before it and thaws the kernel threads") {
  rig<> s;
  s.nodes.S.fail("prepare");
  s.when_undone[step::image_memory] = [&] {
    CHECK_FALSE(s.queue.is_frozen());
    CHECK(s.kernel.freezer.freezes_user_tasks());
  };
  CHECK(hibernate(s.kernel) == status::io_error);
  CHECK(s.log.of("complete") == "N V R");
  CHECK(s.steps == "sync platform memory -memory -platform");
  s.check_awake();
}

TEST_CASE("a kernel pass that fails frees the memory again and thaws everything") {
  rig<> s;
  rig<>::item stuck;
  CHECK(s.queue.queue(stuck.work));
  s.kernel.freezer.set_timeout(ms(50));
  CHECK(hibernate(s.kernel) == status::busy);
  CHECK(s.log.size() == 0);
  CHECK(s.steps == "sync platform memory -memory -platform");
  s.check_awake();
  CHECK(s.queue.run_pending());
}

TEST_CASE("in shutdown mode no callback is called after the image is written") {
  rig<> s;
  CHECK(hibernate(s.kernel, power_off_mode::shutdown) == status::ok);
  CHECK(s.kernel.is_off());
  CHECK(s.log.of("poweroff").empty());
  CHECK(s.count("power_off") == 1);
  CHECK(s.count("platform_enter") == 0);
  CHECK(s.log.on("d") ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");

  rig<> boot;
  s.log.clear();
  CHECK(restore(boot.kernel, &s.kernel) == status::ok);
  CHECK(s.log.on("d") == "restore_noirq restore_early restore complete");
}

TEST_CASE("in suspend mode the kernel sleeps, and the image goes when it wakes up") {
  rig<> s;
  CHECK(hibernate(s.kernel, power_off_mode::suspend) == status::ok);
  CHECK_FALSE(s.kernel.is_off());
  CHECK(s.log.of("suspend_noirq") == down_order);
  CHECK(s.log.of("poweroff").empty());
  CHECK(s.count("-write") == 1);
  CHECK(s.count("-memory") == 1);
  CHECK(s.notices == "hibernation_prepare post_hibernation");
  s.check_awake();
}

TEST_CASE("a wakeup while powering off removes the image, and the system goes on") {
  rig<> s;
  s.nodes.h.then["poweroff_late"] = [&] {
    s.kernel.wakeup.abort();
    return status::ok;
  };
  CHECK(hibernate(s.kernel) == status::busy);
  CHECK(s.log.of("poweroff_late") == "r d t h");
  CHECK(s.log.of("restore_early") == "h t d r");
  CHECK(s.log.of("restore") == up_order);
  CHECK(s.count("-write") == 1);
  s.check_awake();
}

TEST_CASE("a wakeup at the very end of powering off removes the image, and the system goes on") {
  rig<> s;
  s.refusing = 0;
  s.then[step::syscore] = [&] {
    if (s.count("write") == 1) s.kernel.wakeup.abort();
    return status::ok;
  };
  CHECK(hibernate(s.kernel) == status::again);
  CHECK(s.count("platform_enter") + s.count("power_off") == 0);
  CHECK(s.log.of("restore_noirq") == up_order);
  CHECK(s.count("-write") == 1);
  CHECK(s.kernel.last_refusal().whom == refused_by::wakeups);
  s.check_awake();
}

TEST_CASE("a wakeup that is told once keeps a machine on that was to sleep with an image") {
  rig<> s;
  REQUIRE(s.kernel.wakeup.arm(s.kernel.wakeup.count()));
  s.nodes.h.then["suspend"] = [&] { return s.kernel.wakeup.signal(), status::ok; };
  CHECK(hibernate(s.kernel, power_off_mode::suspend) == status::busy);
  CHECK(s.log.of("suspend") == "r d t h");
  CHECK(s.log.of("poweroff").empty());
  CHECK(s.count("enter") + s.count("platform_enter") + s.count("power_off") == 0);
  CHECK(s.count("-write") == 1);
  s.check_awake();
}

TEST_CASE("a machine that cannot sleep with an image goes off") {
  rig<> s;
  s.nodes.h.fail("suspend");
  CHECK(hibernate(s.kernel, power_off_mode::suspend) == status::ok);
  CHECK(s.kernel.is_off());
  CHECK(s.log.of("poweroff_noirq") == down_order);
  CHECK(s.count("platform_enter") == 1);
  s.kernel.abandon_image();
}

TEST_CASE("firmware that cannot power off leaves it to the ordinary way, with the devices up") {
  rig<> s;
  s.fail(step::platform_enter);
  CHECK(hibernate(s.kernel) == status::ok);
  CHECK(s.kernel.is_off());
  CHECK(s.count("power_off") == 1);
  CHECK(s.log.of("restore") == up_order);
  s.kernel.abandon_image();
}

TEST_CASE("devices that refuse to power off do not keep the machine on") {
  rig<> s;
  s.nodes.h.fail("poweroff");
  CHECK(hibernate(s.kernel) == status::ok);
  CHECK(s.kernel.is_off());
  CHECK(s.log.of("restore") == "t d r");
  CHECK(s.count("power_off") == 1);

  rig<> boot;
  CHECK(restore(boot.kernel, &s.kernel) == status::ok);
}

TEST_CASE("after every failure on the way to the image everything is up again") {
  for (const step refused :
       {step::platform, step::image_memory, step::console, step::platform_snapshot,
        step::local_interrupts, step::syscore, step::snapshot, step::write_image}) {
    CAPTURE(name_of(refused));
    rig<> s;
    s.fail(refused);
    CHECK(hibernate(s.kernel) == status::io_error);
    CHECK_FALSE(s.kernel.is_off());
    CHECK(s.notices == "hibernation_prepare post_hibernation");
    s.check_awake();
    s.then.clear();
    CHECK(hibernate(s.kernel) == status::ok);
    rig<> boot;
    CHECK(restore(boot.kernel, &s.kernel) == status::ok);
  }
}

TEST_CASE("the image goes on on the thread that restores, whoever went to sleep") {
  misuse_log misuse;
  rig<> image, boot;
  std::thread([&] { CHECK(hibernate(image.kernel) == status::ok); }).join();

  CHECK(restore(boot.kernel, &image.kernel) == status::ok);

  CHECK_FALSE(image.kernel.freezer.freezes_user_tasks());
  CHECK(misuse.count() == 0);
}

TEST_CASE("an image that is given up frees its kernel: nobody is told, the queues are empty") {
  misuse_log misuse;
  rig<> s;
  rig<>::item in_image;
  s.then[step::snapshot] = [&] { return (void)s.queue.queue(in_image.work), status::ok; };
  REQUIRE(hibernate(s.kernel) == status::ok);
  s.log.clear();

  s.kernel.abandon_image();

  CHECK(s.log.size() == 0);
  CHECK_FALSE(in_image.work.is_pending());
  CHECK_FALSE(s.kernel.is_off());
  CHECK(s.notices == "hibernation_prepare");
  s.steps.clear();
  s.then.clear();
  s.check_awake();
  CHECK(suspend(s.kernel) == status::ok);
  CHECK(misuse.count() == 0);

  s.kernel.abandon_image();
  CHECK(misuse.take() == 1);
}

TEST_CASE("a notifier that objects leaves nothing behind, in any transition") {
  const std::function<status(rig<>&)> transitions[] = {
      [](rig<>& s) { return suspend(s.kernel); }, [](rig<>& s) { return hibernate(s.kernel); },
      [](rig<>& s) { return restore<virtual_platform>(s.kernel, nullptr); }};
  for (const auto& transition : transitions) {
    rig<> s;
    s.says = status::io_error;
    CHECK(transition(s) == status::io_error);
    CHECK(s.kernel.last_refusal().whom == refused_by::notifiers);
    CHECK(s.log.size() == 0);
    CHECK(s.count("open") == s.count("-open"));
    s.check_awake();
  }
}

// -- restore: the kernel that is overwritten

TEST_CASE("a quiesce that fails recovers what went down, in each phase") {
  const auto trace = [](const char* refused) {
    rig<> boot;
    boot.nodes.R.fail(refused);
    CHECK(restore<virtual_platform>(boot.kernel, nullptr) == status::io_error);
    CHECK(boot.notices == "restore_prepare post_restore");
    boot.check_awake();
    return boot.log.on("d");
  };
  CHECK(trace("freeze") == "prepare freeze thaw complete");
  CHECK(trace("freeze_late") == "prepare freeze freeze_late thaw_early thaw complete");
  CHECK(trace("freeze_noirq") ==
        "prepare freeze freeze_late freeze_noirq thaw_noirq thaw_early thaw complete");
}

TEST_CASE("scenario 33: a kernel pass that fails in the boot kernel calls no device") {
  rig<> boot;
  rig<>::item stuck;
  CHECK(boot.queue.queue(stuck.work));
  boot.kernel.freezer.set_timeout(ms(50));

  CHECK(restore<virtual_platform>(boot.kernel, nullptr) == status::busy);

  CHECK(boot.log.size() == 0);
  CHECK(boot.story == "open [restore_prepare] -open [post_restore]");
  CHECK(boot.kernel.last_refusal().whom == refused_by::kernel_threads);
  boot.check_awake();
  CHECK(boot.queue.run_pending());
  CHECK(stuck.runs == 1);
}

TEST_CASE("an image that cannot be opened or read stops nothing, and is closed") {
  rig<> boot;
  SUBCASE("opened") {
    boot.fail(step::open_image);
    CHECK(restore<virtual_platform>(boot.kernel, nullptr) == status::io_error);
    CHECK(boot.story == "open");
  }
  SUBCASE("read") {
    boot.fail(step::read_image);
    CHECK(restore<virtual_platform>(boot.kernel, nullptr) == status::io_error);
    CHECK(boot.story == "open [restore_prepare] (all) read -open (nobody) [post_restore]");
  }
  CHECK(boot.log.size() == 0);
  boot.check_awake();
}

TEST_CASE("a kernel that is not off cannot be restored") {
  misuse_log misuse;
  rig<> image, boot;
  CHECK(restore(boot.kernel, &image.kernel) == status::invalid);
  CHECK(misuse.take() == 1);
  CHECK(boot.notices.empty());
}

TEST_CASE("an image that is being restored is nobody else's, and is there again if that fails") {
  misuse_log misuse;
  rig<> image, boot, other;
  REQUIRE(hibernate(image.kernel) == status::ok);
  boot.then[step::jump] = [&] {
    CHECK(image.kernel.is_off());
    CHECK(restore(other.kernel, &image.kernel) == status::busy);
    CHECK(misuse.count() == 0);
    image.kernel.abandon_image();
    CHECK(misuse.take() == 1);
    return status::io_error;
  };

  CHECK(restore(boot.kernel, &image.kernel) == status::io_error);

  CHECK(other.steps.empty());
  CHECK(image.kernel.is_off());
  CHECK(restore(other.kernel, &image.kernel) == status::ok);
  CHECK_FALSE(image.kernel.is_off());
  CHECK(image.notices == "hibernation_prepare post_hibernation");
  CHECK(misuse.count() == 0);
}

TEST_CASE("with the user pass only, the queues of the boot kernel run on") {
  rig<> boot;
  rig<>::item polled;
  boot.then[step::jump] = [&] {
    CHECK(boot.kernel.freezer.freezes_user_tasks());
    CHECK_FALSE(boot.queue.is_frozen());
    boot.queue.queue(polled.work);
    boot.queue.run_pending();
    return status::io_error;
  };
  CHECK(restore<virtual_platform>(boot.kernel, nullptr, restore_freeze::user_only) ==
        status::io_error);
  CHECK(polled.runs == 1);
  boot.check_awake();
}

}  // TEST_SUITE
