// SPDX-License-Identifier: MIT
//
// scope_test.cpp - trees of gates, and the mail thread this library comes from: a poller
// that reaches a driver which is torn down. The numbers are those of the scenarios in the
// specification of system sleep.
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/gate_group.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/block/request_queue.hpp>
#include <pmgate/block/tag_set.hpp>
#include <pmgate/platform/single.hpp>
#include <pmgate/pm/disk_events.hpp>
#include <pmgate/pm/hibernation.hpp>
#include <pmgate/pm/scope.hpp>
#include <pmgate/pm/suspend.hpp>
#include <pmgate/scsi/device.hpp>
#include <pmgate/scsi/host.hpp>

#include "support/deferred_platform.hpp"
#include "support/device_rig.hpp"
#include "support/virtual_platform.hpp"

using pmgate::basic_freeze_gate;
using pmgate::basic_quiesce_gate;
using pmgate::enter_flags;
using pmgate::single_platform;
using pmgate::status;
using pmgate::pm::basic_device_tree;
using pmgate::pm::basic_disk_events;
using pmgate::pm::basic_kernel;
using pmgate::pm::basic_scope;
using pmgate::pm::basic_work_queue;
using pmgate::pm::dispatch_of;
using pmgate::pm::event;
using pmgate::pm::hibernate;
using pmgate::pm::image_move;
using pmgate::pm::phase;
using pmgate::pm::pm_only;
using pmgate::pm::power_off_mode;
using pmgate::pm::restore;
using pmgate::pm::restore_freeze;
using pmgate::pm::sleep_kinds;
using pmgate::pm::step;
using pmgate::pm::task_kind;
using pmgate::pm::work_queue_flags;
using testing::come_up;
using testing::go_down;
using testing::misuse_log;
using testing::virtual_clock;
using testing::virtual_platform;
using testing::worker;
using default_platform = pmgate::default_platform;
using scope = pmgate::pm::scope;
using device_tree = pmgate::pm::device_tree;

static_assert(!std::is_copy_constructible_v<scope>);
static_assert(!std::is_move_constructible_v<scope>);
static_assert(!std::is_copy_constructible_v<scope::gate>);
static_assert(!std::is_move_constructible_v<scope::gate>);

// What the rooms above offer is what a scope's gate takes.
static_assert(pmgate::detail::freezing_gate<pmgate::freeze_gate>);
static_assert(pmgate::detail::freezing_gate<pmgate::request_queue>);
static_assert(pmgate::detail::freezing_gate<pmgate::tag_set>);
static_assert(pmgate::detail::freezing_gate<pmgate::gate_group>);
static_assert(pmgate::detail::quiescing_gate<pmgate::quiesce_gate>);
static_assert(pmgate::detail::quiescing_gate<pmgate::request_queue>);
static_assert(pmgate::detail::quiescing_device<pmgate::scsi::device>);

namespace {

auto ms(int n) { return std::chrono::milliseconds(n); }

/// Something with suspend() and resume() that writes down what it is told.
struct driver {
  driver(const char* its_name, std::string& into) : name(its_name), log(into) {}
  status suspend() noexcept {
    log += std::string("-") + name + " ";
    return says;
  }
  void resume() noexcept { log += std::string("+") + name + " "; }
  void keep_image(image_move what) noexcept {
    images += what == image_move::save       ? "save "
              : what == image_move::put_back ? "put_back "
                                             : "- ";
  }
  const char* name;
  std::string& log;
  std::string images;
  status says = status::ok;
};

/// A host with a SCSI device on it, whose driver keeps the commands it gets.
template <class P>
struct scsi_disk {
  static int queuecommand(pmgate::scsi::basic_host<P>& host,
                          pmgate::scsi::basic_command<P>&) noexcept {
    ++static_cast<scsi_disk*>(host.context())->commands;
    return 0;
  }
  scsi_disk() { (void)device.set_state(pmgate::scsi::device_state::running); }
  int commands = 0;
  basic_work_queue<P> works{"kblockd", work_queue_flags::none, 0};
  pmgate::scsi::basic_host<P> host{{&queuecommand, this}};
  pmgate::scsi::basic_target<P> target;
  pmgate::scsi::basic_device<P> device{host, target, works};
};

/// A host with a dispatch gate and a ring; a disk with an entry: the order of it all.
struct stack {
  std::string log;
  device_tree tree;
  driver drain{"drain", log}, ring{"ring", log}, entry{"entry", log}, flush{"flush", log};
  scope host{tree, "host"};
  scope::gate drain_first{host, phase::suspend_noirq, drain};
  scope::gate ring_last{host, phase::suspend_noirq, ring};
  scope disk{tree, "disk", &host};
  scope::gate class_gate{disk, phase::suspend, entry};
  scope::gate flush_late{disk, phase::suspend_late, flush};
};

}  // namespace

TEST_SUITE("scope") {

// -- order and undoing

TEST_CASE("the class gate goes down first and up last, drain before teardown, mirrored") {
  stack s;
  CHECK(go_down(s.tree, event::suspend) == status::ok);
  CHECK(s.log == "-entry -flush -drain -ring ");
  CHECK(s.class_gate.is_down());

  s.log.clear();
  come_up(s.tree, event::resume);
  CHECK(s.log == "+ring +drain +flush +entry ");
  CHECK_FALSE(s.class_gate.is_down());
}

TEST_CASE("whoever refuses, all gates that are down go up again, those of its own phase too") {
  stack s;
  SUBCASE("the last of all") {
    s.ring.says = status::busy;
    CHECK(go_down(s.tree, event::quiesce) == status::busy);
    CHECK(s.log == "-entry -flush -drain -ring +drain +flush +entry ");
  }
  SUBCASE("one in the middle") {
    s.flush.says = status::io_error;
    CHECK(go_down(s.tree, event::hibernate) == status::io_error);
    CHECK(s.log == "-entry -flush +entry ");
  }
  SUBCASE("the first") {
    s.entry.says = status::io_error;
    CHECK(go_down(s.tree, event::suspend) == status::io_error);
    CHECK(s.log == "-entry ");
  }
  for (const auto* each : {&s.drain_first, &s.ring_last, &s.class_gate, &s.flush_late}) {
    CHECK_FALSE(each->is_down());
  }
}

TEST_CASE("a gate takes part in the transitions it was declared for") {
  std::string log;
  device_tree tree;
  driver always{"always", log}, hibernation{"hibernation", log}, sleep{"sleep", log};
  scope power(tree, "device");
  const scope::gate first(power, phase::suspend, always);
  const scope::gate second(power, phase::suspend, hibernation, sleep_kinds::hibernate);
  const scope::gate third(power, phase::suspend, sleep, sleep_kinds::suspend);

  CHECK(go_down(tree, event::suspend) == status::ok);
  come_up(tree, event::resume);
  CHECK(log == "-always -sleep +sleep +always ");

  log.clear();
  CHECK(go_down(tree, event::quiesce) == status::ok);
  come_up(tree, event::recover);
  CHECK(log == "-always -hibernation +hibernation +always ");

  log.clear();
  CHECK(go_down(tree, event::hibernate) == status::ok);
  come_up(tree, event::restore);
  CHECK(log == "-always -hibernation +hibernation +always ");
}

// -- the kinds of gates

TEST_CASE_TEMPLATE("each kind of gate is closed and opened by what it offers", P, default_platform,
                   single_platform) {
  struct class_device {
    status quiesce() noexcept { return ++quiesced, status::ok; }
    void resume() noexcept { --quiesced; }
    int quiesced = 0;
  };
  struct both {
    status freeze_start() noexcept { return ++frozen, status::ok; }
    status freeze_wait() noexcept { return status::ok; }
    void unfreeze() noexcept { --frozen; }
    void quiesce_nowait() noexcept { ++quiesced; }
    status wait_quiesced() noexcept { return status::ok; }
    bool unquiesce() noexcept { return --quiesced == 0; }
    int frozen = 0;
    int quiesced = 0;
  };
  misuse_log misuse;
  basic_device_tree<P> tree;
  basic_freeze_gate<P> entry, special;
  basic_quiesce_gate<P> dispatch;
  class_device disk;
  both queue;
  int called = 0;
  {
    using gate = typename basic_scope<P>::gate;
    basic_scope<P> power(tree, "device");
    const gate one(power, phase::suspend, entry);
    const gate two(power, phase::suspend, pm_only(special));
    const gate three(power, phase::suspend, dispatch);
    const gate four(power, phase::suspend, disk);
    const gate five(power, phase::suspend, queue);
    const gate six(power, phase::suspend, dispatch_of(queue));
    const gate seven(
        power, phase::suspend,
        [](void* it) noexcept { return ++*static_cast<int*>(it), status::ok; },
        [](void* it) noexcept { return --*static_cast<int*>(it), status::ok; }, &called);

    CHECK(go_down(tree, event::suspend) == status::ok);
    CHECK_FALSE(entry.try_enter());
    CHECK_FALSE(special.try_enter());
    CHECK(special.try_enter(enter_flags::pm));
    special.exit();
    CHECK_FALSE(dispatch.try_dispatch());
    CHECK(disk.quiesced == 1);
    CHECK(queue.frozen == 1);
    CHECK(queue.quiesced == 1);
    CHECK(called == 1);

    come_up(tree, event::resume);
    CHECK(entry.try_enter());
    CHECK(special.try_enter());
    CHECK(dispatch.try_dispatch());
    entry.exit();
    special.exit();
    dispatch.end_dispatch();
    CHECK(disk.quiesced + queue.frozen + queue.quiesced + called == 0);
  }
  CHECK(misuse.count() == 0);
}

TEST_CASE("a gate that does not drain within the limit opens again, and the device refuses") {
  virtual_clock::reset();
  basic_device_tree<virtual_platform> tree;
  basic_freeze_gate<virtual_platform> entry, special;
  basic_scope<virtual_platform> power(tree, "device");
  const basic_scope<virtual_platform>::gate one(power, phase::suspend, pm_only(special));
  const basic_scope<virtual_platform>::gate two(power, phase::suspend_late, entry);
  power.set_drain_limit(ms(30));
  REQUIRE(entry.try_enter());

  CHECK(go_down(tree, event::suspend) == status::timed_out);
  CHECK(virtual_clock::now() == 30);
  CHECK(entry.depth() == 0);
  CHECK(special.pm_only() == 0);
  entry.exit();

  REQUIRE(special.try_enter());
  CHECK(go_down(tree, event::suspend) == status::timed_out);
  CHECK(special.depth() == 0);
  CHECK(special.pm_only() == 0);
  special.exit();
  CHECK(go_down(tree, event::suspend) == status::ok);
  come_up(tree, event::resume);
  virtual_clock::reset();
}

TEST_CASE("the limit holds for every kind of gate that has a deadline form") {
  using P = virtual_platform;
  virtual_clock::reset();
  struct silent {
    static pmgate::dispatch_status queue_rq(pmgate::basic_request_queue<P>&,
                                            pmgate::basic_request<P>&) noexcept {
      return pmgate::dispatch_status::ok;
    }
  };
  basic_device_tree<P> tree;
  const auto times_out = [&tree](auto& gate) {
    basic_scope<P> power(tree, "device");
    const typename basic_scope<P>::gate only(power, phase::suspend, gate);
    power.set_drain_limit(ms(30));
    const auto before = virtual_clock::now();
    CHECK(go_down(tree, event::suspend) == status::timed_out);
    CHECK(virtual_clock::now() == before + 30);
    CHECK_FALSE(only.is_down());
  };

  SUBCASE("one that quiesces") {
    basic_quiesce_gate<P> gate;
    REQUIRE(gate.try_dispatch());
    times_out(gate);
    CHECK(gate.depth() == 0);
    gate.end_dispatch();
  }
  SUBCASE("a SCSI device") {
    const auto disk = std::make_unique<scsi_disk<P>>();
    pmgate::scsi::basic_command<P> item;
    REQUIRE(disk->device.submit(item) == status::ok);
    times_out(disk->device);
    CHECK(disk->device.state() == pmgate::scsi::device_state::running);
    CHECK(disk->device.queue().gate().pm_only() == 0);
    disk->device.complete(item);
  }
  SUBCASE("a request queue, or its dispatch, or a tag set") {
    basic_work_queue<P> works("kblockd", work_queue_flags::none, 0);
    pmgate::basic_tag_set<P> set(4);
    pmgate::basic_request_queue<P> queue({&silent::queue_rq, nullptr}, works, set);
    pmgate::basic_request<P> item;
    REQUIRE(queue.alloc(item) == status::ok);
    times_out(queue);
    times_out(set);
    CHECK(queue.gate().depth() == 0);
    queue.free(item);

    REQUIRE(queue.sections().try_dispatch());
    basic_scope<P> power(tree, "device");
    const basic_scope<P>::gate dispatch(power, phase::suspend, dispatch_of(queue));
    power.set_drain_limit(ms(30));
    CHECK(go_down(tree, event::suspend) == status::timed_out);
    CHECK(queue.quiesce_depth() == 0);
    queue.sections().end_dispatch();
  }
  virtual_clock::reset();
}

// -- images

TEST_CASE("gates that were closed in the image are closed when the image goes on") {
  stack s;
  REQUIRE(go_down(s.tree, event::freeze) == status::ok);
  s.tree.save_image();
  come_up(s.tree, event::thaw);
  s.log.clear();

  CHECK(s.tree.put_back_image());
  CHECK(s.class_gate.is_down());
  CHECK(s.ring_last.is_down());
  s.log.clear();
  come_up(s.tree, event::restore);

  CHECK(s.log == "+ring +drain +flush +entry ");
  s.tree.discard_image();
}

/// What the hardware is told in a hibernation and a restore, and the moment of the jump.
struct two_kernels {
  explicit two_kernels(pmgate::pm::kernel& the_image) : image(the_image) {
    boot.set_steps(
        [](void* context, step what, bool) noexcept {
          auto& self = *static_cast<two_kernels*>(context);
          if (what == step::jump) self.log += "| ";
          return status::ok;
        },
        this);
  }
  void hibernate_and_restore(power_off_mode mode) {
    if (mode == power_off_mode::suspend) {  // the power fails while it sleeps: no wakeup
      image.set_steps(
          [](void*, step what, bool) noexcept {
            return what == step::enter ? status::io_error : status::ok;
          },
          nullptr);
    }
    REQUIRE(hibernate(image, mode) == status::ok);
    REQUIRE(image.is_off());
    log.clear();
    if (when_off) when_off();
    REQUIRE(restore(boot, &image) == status::ok);
  }
  std::string log;
  std::function<void()> when_off;
  pmgate::pm::kernel& image;
  pmgate::pm::kernel boot;
};

TEST_CASE("after the jump no driver goes down again, however the image kernel went off") {
  for (const auto mode :
       {power_off_mode::platform, power_off_mode::shutdown, power_off_mode::suspend}) {
    pmgate::pm::kernel image;
    two_kernels both(image);
    driver ring{"ring", both.log}, entry{"entry", both.log}, function{"function", both.log};
    scope host(image.devices, "host");
    const scope::gate ring_gate(host, phase::suspend_noirq, ring);
    scope disk(image.devices, "disk", &host);
    const scope::gate class_gate(disk, phase::suspend, entry, sleep_kinds::freeze);
    const scope::gate by_function(
        disk, phase::suspend_late,
        [](void* it) noexcept { return static_cast<driver*>(it)->suspend(); },
        [](void* it) noexcept { return static_cast<driver*>(it)->resume(), status::ok; },
        &function);

    both.hibernate_and_restore(mode);

    CHECK(both.log == "| +ring +function +entry ");
    CHECK_FALSE(class_gate.is_down());
    CHECK(entry.images == "save put_back ");
  }
}

TEST_CASE("what went down for the power-off only is up in the image, without a word") {
  pmgate::pm::kernel image;
  two_kernels both(image);
  driver spindle{"spindle", both.log};
  pmgate::freeze_gate entry;
  scope disk(image.devices, "disk");
  const scope::gate spin_down(disk, phase::suspend, spindle, sleep_kinds::poweroff);
  const scope::gate closed(disk, phase::suspend, entry, sleep_kinds::poweroff);
  both.when_off = [&] {
    CHECK(spin_down.is_down());
    CHECK(entry.depth() == 1);
  };

  both.hibernate_and_restore(power_off_mode::platform);

  CHECK(both.log == "| ");
  CHECK_FALSE(spin_down.is_down());
  CHECK_FALSE(closed.is_down());
  CHECK(entry.depth() == 0);
}

TEST_CASE("gates are closed in the image without waiting for whoever is inside") {
  struct look {
    status suspend() noexcept { return status::ok; }
    void resume() noexcept {
      closed = entry.depth() == 1 && special.pm_only() == 1 && dispatch.depth() == 1 &&
               entry.is_frozen() == false;
    }
    pmgate::freeze_gate entry, special;
    pmgate::quiesce_gate dispatch;
    bool closed = false;
  } s;
  pmgate::pm::kernel image;
  two_kernels both(image);
  scope host(image.devices, "host");
  const scope::gate stop(host, phase::suspend_late, s.dispatch);
  const scope::gate first_up(host, phase::suspend_noirq, s);
  scope disk(image.devices, "disk", &host);
  const scope::gate class_gate(disk, phase::suspend, s.entry);
  const scope::gate other(disk, phase::suspend, pm_only(s.special));
  both.when_off = [&] {  // somebody who is not frozen is inside
    REQUIRE(s.entry.try_enter());
    REQUIRE(s.special.try_enter());
    REQUIRE(s.dispatch.try_dispatch());
  };

  both.hibernate_and_restore(power_off_mode::shutdown);

  CHECK(s.closed);
  CHECK(s.entry.depth() + s.special.pm_only() + s.dispatch.depth() == 0);
  s.entry.exit();
  s.special.exit();
  s.dispatch.end_dispatch();
}

TEST_CASE("a SCSI device is quiesced between the jump and RESTORE if the image has it so") {
  using pmgate::scsi::device_state;
  struct look {
    status suspend() noexcept { return status::ok; }
    void resume() noexcept {
      state = disk.device.state();
      pm_only_count = disk.device.queue().gate().pm_only();
      is_mine = disk.device.quiesced_by() == default_platform::this_thread();
      ordinary = disk.device.submit(item, pmgate::scsi::command_flags::nowait);
    }
    scsi_disk<default_platform> disk;
    pmgate::scsi::basic_command<default_platform> item;
    device_state state{};
    int pm_only_count = 0;
    bool is_mine = false;
    status ordinary = status::ok;
  } s;
  const auto try_it = [&s](power_off_mode mode, sleep_kinds kinds) {
    pmgate::pm::kernel image;
    two_kernels both(image);
    scope host(image.devices, "host");
    const scope::gate first_up(host, phase::suspend_noirq, s, sleep_kinds::freeze);
    scope disk(image.devices, "disk", &host);
    const scope::gate class_gate(disk, phase::suspend, s.disk.device, kinds);

    both.hibernate_and_restore(mode);

    CHECK(s.state == device_state::quiesce);
    CHECK(s.pm_only_count == 1);
    CHECK(s.is_mine);
    CHECK(s.ordinary == status::again);
    CHECK_FALSE(class_gate.is_down());
    CHECK(s.disk.device.state() == device_state::running);
    CHECK(s.disk.device.queue().gate().pm_only() == 0);
  };
  try_it(power_off_mode::platform, sleep_kinds::all);     // it is down when the power goes
  try_it(power_off_mode::platform, sleep_kinds::freeze);  // it is up
  try_it(power_off_mode::shutdown, sleep_kinds::all);
  try_it(power_off_mode::suspend, sleep_kinds::all);
  CHECK(s.disk.commands == 0);
}

TEST_CASE("a request queue and a tag set are frozen after the jump if the image has them so") {
  struct look {
    status suspend() noexcept { return status::ok; }
    void resume() noexcept { depths = queue.gate().depth() * 10 + shared.gate().depth(); }
    static pmgate::dispatch_status queue_rq(pmgate::request_queue&, pmgate::request&) noexcept {
      return pmgate::dispatch_status::ok;
    }
    pmgate::pm::work_queue works{"kblockd", work_queue_flags::none, 0};
    pmgate::tag_set set{4};
    pmgate::request_queue queue{{&queue_rq, nullptr}, works, 4};
    pmgate::request_queue shared{{&queue_rq, nullptr}, works, set};
    int depths = 0;
  } s;
  pmgate::pm::kernel image;
  two_kernels both(image);
  scope host(image.devices, "host");
  const scope::gate first_up(host, phase::suspend_noirq, s);
  scope disk(image.devices, "disk", &host);
  const scope::gate queue_gate(disk, phase::suspend, s.queue);
  const scope::gate set_gate(disk, phase::suspend, s.set);
  pmgate::request busy;
  both.when_off = [&] { REQUIRE(s.shared.alloc(busy) == status::ok); };

  both.hibernate_and_restore(power_off_mode::shutdown);

  CHECK(s.depths == 11);
  CHECK(s.queue.gate().depth() + s.shared.gate().depth() == 0);
  s.shared.free(busy);
}

TEST_CASE("whoever waits at a gate of a kernel that vanished is told that it is gone") {
  struct waiters {
    static status begin(void* it) noexcept {
      auto& self = *static_cast<waiters*>(it);
      self.wait([&self] { return self.entry.enter(); });
      self.wait([&self] { return self.special.enter(); });
      self.wait([&self] { return self.grouped.enter(); });
      self.wait([&self] { return self.queue.enter(); });
      self.wait([&self] { return self.shared.enter(); });
      self.wait([&self] { return self.disk.device.submit(self.item); });
      for (const auto& each : self.threads) CHECK(each->is_blocked());
      return status::ok;
    }
    void wait(const std::function<status()>& enter) {
      status& answer = told[threads.size()];
      threads.push_back(std::make_unique<worker>([&answer, enter] { answer = enter(); }));
    }
    static pmgate::dispatch_status queue_rq(pmgate::request_queue&, pmgate::request&) noexcept {
      return pmgate::dispatch_status::ok;
    }
    pmgate::freeze_gate entry, special, grouped;
    pmgate::gate_group group;
    pmgate::gate_group::member of_group{group, &grouped};
    pmgate::pm::work_queue works{"kblockd", work_queue_flags::none, 0};
    pmgate::tag_set set{4};
    pmgate::request_queue queue{{&queue_rq, nullptr}, works, 4};
    pmgate::request_queue shared{{&queue_rq, nullptr}, works, set};
    scsi_disk<default_platform> disk;
    pmgate::scsi::basic_command<default_platform> item;
    std::array<status, 6> told{};
    std::vector<std::unique_ptr<worker>> threads;
  } s;
  pmgate::pm::kernel image, boot;
  scope disk(boot.devices, "disk");
  const scope::gate class_gate(disk, phase::suspend, s.entry);
  const scope::gate other(disk, phase::suspend_late, pm_only(s.special));
  const scope::gate group(disk, phase::suspend_late, s.group);
  const scope::gate queue(disk, phase::suspend_late, s.queue);
  const scope::gate set(disk, phase::suspend_late, s.set);
  const scope::gate device(disk, phase::suspend_late, s.disk.device);
  const scope::gate last(
      disk, phase::suspend_noirq, &waiters::begin, [](void*) noexcept { return status::ok; }, &s);

  REQUIRE(hibernate(image) == status::ok);
  REQUIRE(restore(boot, &image) == status::ok);
  for (const auto& each : s.threads) each->join();

  for (const status each : s.told) CHECK(each == status::no_device);
  CHECK_FALSE(class_gate.is_down());
  CHECK(s.disk.commands == 0);
}

TEST_CASE("a gate that was open when its kernel was given up stays as it is") {
  pmgate::pm::kernel image;
  scsi_disk<default_platform> real;
  pmgate::freeze_gate entry;
  scope disk(image.devices, "disk");
  const scope::gate class_gate(disk, phase::suspend, real.device);
  const scope::gate other(disk, phase::suspend, entry);
  REQUIRE(hibernate(image, power_off_mode::shutdown) == status::ok);

  image.abandon_image();

  CHECK(real.device.state() == pmgate::scsi::device_state::running);
  CHECK(real.device.queue().try_enter());
  real.device.queue().exit();
  CHECK(entry.try_enter());
  entry.exit();
}

// -- misuse

TEST_CASE("a scope below a prepared one is not registered, wrong phases are reported") {
  misuse_log misuse;
  std::string log;
  device_tree tree;
  driver something{"something", log};
  scope host(tree, "host");
  CHECK(host.registration() == status::ok);
  REQUIRE(tree.prepare(event::suspend) == status::ok);
  {
    scope late(tree, "late", &host);
    CHECK(late.registration() == status::busy);
    const scope::gate wrong(late, phase::resume, something);
    CHECK(misuse.take() == 1);
  }
  tree.complete(event::resume);
  {
    std::optional<scope::gate> left;
    {
      auto short_lived = std::make_unique<scope>(tree, "short");
      left.emplace(*short_lived, phase::suspend, something);
      REQUIRE(tree.suspend_start(event::suspend) == status::ok);
      left.reset();
      CHECK(misuse.take() == 1);
      tree.resume_end(event::resume);
    }
  }
  CHECK(misuse.count() == 0);
}

}  // TEST_SUITE

namespace {

/// What the mail thread is about: a disk with a poller on a freezable queue, behind an
/// entry that is closed in the main phase, on an adapter that is torn down in noirq.
template <class P>
struct storage {
  explicit storage(bool polls_pass_as_special) : special(polls_pass_as_special) {
    kernel.freezer.add(queue);
    kernel.set_steps(
        [](void* context, step what, bool undo) noexcept {
          auto& self = *static_cast<storage*>(context);
          if (!undo && what == step::platform_restore && self.in_the_window) self.in_the_window();
          if (!undo && what == step::write_image && self.while_writing) self.while_writing();
          return !undo && what == step::jump ? self.jump_result : status::ok;
        },
        this);
  }
  ~storage() {
    if (events.depth() == 0) events.block();
    kernel.freezer.remove(queue);
  }

  static unsigned poll(void* context, unsigned) noexcept {
    auto& self = *static_cast<storage*>(context);
    ++self.polls;
    if (self.entry.enter(self.special ? enter_flags::pm : enter_flags{}) == status::ok) {
      self.submit();
    }
    return 0;
  }
  /// The midlayer: to the adapter, or onto a list while it is blocked.
  void submit() {
    if (!blocking.try_dispatch()) {
      ++waiting;
      return;
    }
    queue_command();
    blocking.end_dispatch();
  }
  /// The adapter. This is where the kernel of the thread crashed.
  void queue_command() {
    if (torn_down) ++violations;
    ++delivered;
    entry.exit();
  }
  static status tear_down(void* it) noexcept {
    static_cast<storage*>(it)->torn_down = true;
    return status::ok;
  }
  static status set_up(void* it) noexcept {
    static_cast<storage*>(it)->torn_down = false;
    return status::ok;
  }
  static status block_host(void* it) noexcept {
    auto& self = *static_cast<storage*>(it);
    return self.has_host_block ? self.blocking.quiesce() : status::ok;
  }
  static status unblock_host(void* it) noexcept {
    auto& self = *static_cast<storage*>(it);
    if (!self.has_host_block) return status::ok;
    (void)self.blocking.unquiesce();
    self.entry_was_closed = self.entry.pm_only() != 0;
    for (; self.waiting > 0; --self.waiting) self.submit();
    return status::ok;
  }

  const bool special;
  bool has_host_block = false;
  std::function<void()> in_the_window;  // between R4 and R5
  std::function<void()> while_writing;  // in H8
  status jump_result = status::io_error;
  std::atomic<int> polls{0}, delivered{0}, violations{0};
  int waiting = 0;
  bool entry_was_closed = false;
  std::atomic<bool> torn_down{false};
  basic_freeze_gate<P> entry;
  basic_quiesce_gate<P> blocking;
  basic_kernel<P> kernel;
  basic_work_queue<P> queue{"events_freezable_power_efficient", work_queue_flags::freezable};
  basic_disk_events<P> events{queue, &poll, nullptr, this};
  basic_scope<P> adapter{kernel.devices, "vmbus storvsc"};
  typename basic_scope<P>::gate host_block{adapter, phase::suspend_noirq, &block_host,
                                           &unblock_host, this};
  typename basic_scope<P>::gate ring{adapter, phase::suspend_noirq, &tear_down, &set_up, this};
  basic_scope<P> disk{kernel.devices, "sr 0:0:0:1", &adapter};
  typename basic_scope<P>::gate class_gate{disk, phase::suspend, pm_only(entry)};
};

/// A storage on the test's clock with a poll every 5 ms; the window lasts for 20 ms.
/// Made on the heap: on the stack ThreadSanitizer takes the locks of one for another's.
struct sequential_storage : storage<virtual_platform> {
  explicit sequential_storage(bool polls_pass_as_special) : storage(polls_pass_as_special) {
    virtual_clock::reset();
    events.set_poll_interval(ms(5));
    events.unblock();
    queue.run_pending();
    delivered = polls = 0;
    in_the_window = [this] {
      for (int n = 0; n < 4; ++n) {
        virtual_clock::advance(5);
        queue.run_pending();
      }
    };
  }
};

/// A storage of the real platform with a worker.
struct threaded_storage : storage<default_platform> {
  explicit threaded_storage(bool polls_pass_as_special = false)
      : storage(polls_pass_as_special), thread([this] { queue.run(); }) {
    events.unblock();
    while (delivered == 0) std::this_thread::yield();
    delivered = polls = 0;
  }
  ~threaded_storage() {
    queue.stop();
    thread.join();
  }
  /// A poll comes, and stays at the entry.
  void poll_and_wait() {
    events.flush(1);
    while (polls == 0) std::this_thread::yield();
  }
  std::thread thread;
};

}  // namespace

TEST_SUITE("scope: the mail thread") {

TEST_CASE("scenario 28: with the user pass only, a poll reaches the driver after its teardown") {
  const auto owned = std::make_unique<sequential_storage>(true);
  sequential_storage& s = *owned;
  CHECK(restore<virtual_platform>(s.kernel, nullptr, restore_freeze::user_only) ==
        status::io_error);
  CHECK(s.violations >= 1);
}

TEST_CASE("scenario 29: with both passes no poll comes, and the parked one runs exactly once") {
  const auto owned = std::make_unique<sequential_storage>(true);
  sequential_storage& s = *owned;
  REQUIRE(restore<virtual_platform>(s.kernel, nullptr) == status::io_error);
  CHECK(s.violations == 0);
  CHECK(s.polls == 0);

  s.queue.run_pending();
  CHECK(s.polls == 1);
  CHECK(s.delivered == 1);
  virtual_clock::advance(5);
  s.queue.run_pending();
  CHECK(s.polls == 2);
}

TEST_CASE("scenario 29: nor does one from a thread, restore after restore") {
  threaded_storage s(true);
  s.events.set_poll_interval(ms(1));
  s.in_the_window = [&] {
    const int before = s.polls;
    s.events.flush(1);
    std::this_thread::sleep_for(ms(1));
    CHECK(s.polls == before);
  };

  for (const testing::time_limit limit(300); limit;) {
    REQUIRE(restore<default_platform>(s.kernel, nullptr) == status::io_error);
  }

  CHECK(s.violations == 0);
  const int before = s.delivered;
  while (s.delivered == before) std::this_thread::yield();
}

TEST_CASE("scenario 30: with a driver gate the poll waits, until the driver is up again") {
  const auto owned = std::make_unique<sequential_storage>(true);
  sequential_storage& s = *owned;
  s.has_host_block = true;
  s.in_the_window = [&] {
    virtual_clock::advance(5);
    s.queue.run_pending();
    CHECK(s.polls == 1);
    CHECK(s.waiting == 1);
    CHECK(s.delivered == 0);
  };

  CHECK(restore<virtual_platform>(s.kernel, nullptr, restore_freeze::user_only) ==
        status::io_error);

  CHECK(s.violations == 0);
  CHECK(s.delivered == 1);
  CHECK(s.entry_was_closed);  // the driver was open before its class
}

TEST_CASE("scenario 31: a poll that does not pass the class gate sleeps there until the thaw") {
  threaded_storage s;
  const auto check_asleep = [](void* it) noexcept {
    std::this_thread::sleep_for(ms(5));
    CHECK(static_cast<threaded_storage*>(it)->delivered == 0);
    return status::ok;
  };
  const scope::gate before_the_thaw{s.disk, phase::suspend_late,
                                    [](void*) noexcept { return status::ok; }, check_asleep, &s};
  s.in_the_window = [&] {
    s.poll_and_wait();
    check_asleep(&s);
  };

  CHECK(restore<default_platform>(s.kernel, nullptr, restore_freeze::user_only) ==
        status::io_error);
  while (s.delivered == 0) std::this_thread::yield();

  CHECK(s.violations == 0);
  CHECK(s.delivered == 1);
}

TEST_CASE("scenario 32: quiescing before freezing makes the freeze fail, the poller is stuck") {
  threaded_storage s;
  s.kernel.freezer.set_timeout(ms(30));
  REQUIRE(s.kernel.devices.suspend_start(event::quiesce) == status::ok);
  s.poll_and_wait();
  pmgate::pm::freezer::report report;

  CHECK(s.kernel.freezer.freeze_kernel_threads(report) == status::busy);
  CHECK(report.wq_busy());
  CHECK(report.queues[0] == std::string("events_freezable_power_efficient"));
  CHECK(s.delivered == 0);

  s.kernel.devices.resume_end(event::recover);
  while (s.delivered == 0) std::this_thread::yield();
  s.kernel.freezer.set_timeout(ms(20000));
  CHECK(s.kernel.freezer.freeze_kernel_threads() == status::ok);
  s.kernel.freezer.thaw_processes();
  CHECK(s.violations == 0);
}

TEST_CASE("scenarios 17 and 18, with gates: I/O works while the image is written, and in the end") {
  const auto owned = std::make_unique<sequential_storage>(false);
  const auto other = std::make_unique<sequential_storage>(false);
  sequential_storage& image = *owned;
  sequential_storage& boot = *other;
  image.while_writing = [&] {
    CHECK(image.kernel.freezer.freezes_user_tasks());
    CHECK(image.queue.is_frozen());
    virtual_clock::advance(5);
    CHECK_FALSE(image.queue.run_pending());
    REQUIRE(image.entry.try_enter());
    image.submit();
  };
  boot.jump_result = status::ok;
  boot.in_the_window = nullptr;

  CHECK(hibernate(image.kernel) == status::ok);
  CHECK(image.delivered == 1);
  CHECK(image.torn_down);
  CHECK(image.class_gate.is_down());
  boot.queue.run_pending();  // its timer is due, too
  CHECK(restore(boot.kernel, &image.kernel) == status::ok);

  CHECK(boot.torn_down);  // and gone
  CHECK_FALSE(image.torn_down);
  CHECK_FALSE(image.class_gate.is_down());
  CHECK(image.entry.pm_only() == 0);
  image.queue.run_pending();
  CHECK(image.polls == 1);
  CHECK(image.delivered == 2);
  CHECK(image.violations + boot.violations == 0);
}

// -- stress

TEST_CASE("scenario 36: submitters, a poller, 500 suspends, random failures") {
  using pmgate::pm::work;
  using pmgate::pm::work_queue;
  struct request;
  /// A disk that completes on a thread of its own, and gates that refuse now and then.
  struct machine {
    std::atomic<bool> torn_down{false};
    std::atomic<long> accepted{0}, completed{0}, violations{0}, polls{0}, wanted_polls{0};
    std::atomic<int> downs{0};  // of the gate that may refuse
    std::mt19937 random{36};
    pmgate::freeze_gate entry;
    pmgate::pm::kernel kernel;
    work_queue completions{"completions", work_queue_flags::none, 0};
    work_queue polling{"polling", work_queue_flags::freezable};
    scope adapter{kernel.devices, "adapter"};
    scope::gate moody{adapter, phase::suspend_noirq,
                      [](void* it) noexcept {
                        auto& self = *static_cast<machine*>(it);
                        if (self.random() % 4 == 0) return status::io_error;
                        ++self.downs;
                        return status::ok;
                      },
                      [](void* it) noexcept {
                        --static_cast<machine*>(it)->downs;
                        return status::ok;
                      },
                      this};
    scope::gate ring{adapter, phase::suspend_noirq,
                     [](void* it) noexcept {
                       auto& self = *static_cast<machine*>(it);
                       if (self.accepted != self.completed) ++self.violations;  // not drained
                       if (self.random() % 4 == 0) return status::busy;
                       self.torn_down = true;
                       return status::ok;
                     },
                     [](void* it) noexcept {
                       static_cast<machine*>(it)->torn_down = false;
                       return status::ok;
                     },
                     this};
    scope disk{kernel.devices, "disk", &adapter};
    scope::gate class_gate{disk, phase::suspend, pm_only(entry)};
    scope::gate late{disk, phase::suspend_late,
                     [](void* it) noexcept {
                       return static_cast<machine*>(it)->random() % 8 == 0 ? status::io_error
                                                                           : status::ok;
                     },
                     [](void*) noexcept { return status::ok; }, this};
  } m;
  struct request {
    static void complete(work& item) noexcept {
      auto& self = *static_cast<request*>(item.context());
      if (self.m.torn_down) ++self.m.violations;
      ++self.m.completed;
      self.m.entry.exit();
      self.busy = false;
    }
    bool submit() {
      if (m.entry.enter() != status::ok) return false;
      ++m.accepted;
      if (m.torn_down) ++m.violations;
      busy = true;
      if (!m.completions.queue(done)) ++m.violations;
      while (busy) std::this_thread::yield();
      return true;
    }
    machine& m;
    std::atomic<bool> busy{false};
    work done{&complete, this};
  };
  m.kernel.freezer.add(m.polling);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  threads.emplace_back([&] { m.completions.run(); });
  threads.emplace_back([&] { m.polling.run(); });
  std::vector<std::thread> submitters;
  for (int n = 0; n < 4; ++n) {
    submitters.emplace_back([&, n] {
      request mine{m};
      pmgate::pm::freezable_task task(m.kernel.freezer, "submitter", task_kind::user);
      if (n % 2 == 0) task.set_nofreeze();  // stopped by the gate only
      while (!stop) {
        (void)mine.submit();
        (void)task.try_to_freeze();
      }
    });
  }
  struct poller {
    static void run(work& item) noexcept {
      auto& self = *static_cast<poller*>(item.context());
      ++self.m.polls;
      (void)self.command.submit();
    }
    machine& m;
    request command{m};
    work item{&run, this};
  } poll{m};
  std::thread timer([&] {
    while (!stop) {
      if (m.polling.queue(poll.item)) ++m.wanted_polls;
      std::this_thread::yield();
    }
  });

  int failed = 0, slept = 0;
  for (int cycle = 0; cycle < 500; ++cycle) {
    const status result = pmgate::pm::suspend(m.kernel);
    ++(result == status::ok ? slept : failed);
    REQUIRE(m.downs == 0);
    REQUIRE_FALSE(m.torn_down);
    REQUIRE_FALSE(m.class_gate.is_down());
    if (cycle % 50 == 0) {  // somebody gets on in between
      const long before = m.completed;
      while (m.completed == before) std::this_thread::yield();
    }
  }
  stop = true;
  for (std::thread& thread : submitters) thread.join();
  timer.join();
  CHECK(m.polling.drain() == status::ok);
  CHECK(m.completions.drain() == status::ok);
  m.polling.stop();
  m.completions.stop();
  for (std::thread& thread : threads) thread.join();
  m.kernel.freezer.remove(m.polling);

  CHECK(m.violations == 0);
  CHECK(m.accepted == m.completed);
  CHECK(m.polls == m.wanted_polls);
  CHECK(slept > 0);
  CHECK(failed > 0);
}

}  // TEST_SUITE
