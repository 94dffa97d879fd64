// SPDX-License-Identifier: MIT
//
// scsi_bus_pm_test.cpp - the SCSI bus in system sleep; the numbers are those of the
// scenarios in the specification of SCSI.
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/scsi/bus_pm.hpp>

#include "support/scsi_rig.hpp"

using pmgate::status;
using pmgate::scsi::bus_down;
using pmgate::scsi::bus_prepare;
using pmgate::scsi::bus_up;
using pmgate::scsi::command_flags;
using testing::command;
using testing::device;
using testing::device_state;
using testing::scsi_rig;
using testing::virtual_platform;
using testing::worker;
using scans = pmgate::scsi::basic_scans<virtual_platform>;
using upper_ops = pmgate::scsi::basic_upper_ops<virtual_platform>;
using enum device_state;

namespace {

/// An upper driver that notes in which state it was called, and answers what it is told.
struct upper {
  static status called(device& which, void* context) noexcept {
    auto& self = *static_cast<upper*>(context);
    self.seen = which.state();
    ++self.calls;
    return self.answer;
  }
  status answer = status::ok;
  device_state seen{};
  int calls = 0;
  upper_ops ops{.suspend = &called, .resume = &called, .context = this};
};

}  // namespace

TEST_SUITE("scsi_bus_pm") {

TEST_CASE("scenario 33: a device whose upper driver cannot sleep runs on") {
  scsi_rig rig;
  upper driver;
  driver.answer = status::io_error;

  CHECK(bus_down(rig.dev(), driver.ops, &upper_ops::suspend) == status::io_error);

  CHECK(driver.seen == quiesce);
  CHECK(rig.dev().state() == running);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
}

TEST_CASE("scenario 33: a device is resumed whatever its upper driver says") {
  scsi_rig rig;
  upper driver;
  REQUIRE(bus_down(rig.dev(), driver.ops, &upper_ops::suspend) == status::ok);
  CHECK(rig.dev().state() == quiesce);
  driver.answer = status::io_error;

  CHECK(bus_up(rig.dev(), driver.ops, &upper_ops::resume) == status::io_error);

  CHECK(driver.seen == quiesce);
  CHECK(rig.dev().state() == running);
  CHECK(rig.dev().queue().gate().pm_only() == 0);
}

TEST_CASE("scenario 33: hosts and targets do nothing") {
  scsi_rig rig;
  upper driver;
  driver.answer = status::io_error;

  CHECK(bus_down(rig.adapter, driver.ops, &upper_ops::suspend) == status::ok);
  CHECK(bus_down(rig.where, driver.ops, &upper_ops::suspend) == status::ok);
  CHECK(bus_up(rig.adapter, driver.ops, &upper_ops::resume) == status::ok);
  CHECK(bus_up(rig.where, driver.ops, &upper_ops::resume) == status::ok);

  CHECK(driver.calls == 0);
  CHECK(rig.dev().state() == running);
}

TEST_CASE("a device that cannot be quiesced does not ask its upper driver") {
  scsi_rig rig({block});
  upper driver;

  CHECK(bus_down(rig.dev(), driver.ops, &upper_ops::suspend) == status::invalid);

  CHECK(driver.calls == 0);
  CHECK(rig.dev().state() == block);
}

TEST_CASE("without a callback for the event only the quiesce happens") {
  scsi_rig rig;
  upper driver;

  CHECK(bus_down(rig.dev(), driver.ops, &upper_ops::freeze) == status::ok);
  CHECK(rig.dev().state() == quiesce);
  CHECK(bus_up(rig.dev(), driver.ops, &upper_ops::thaw) == status::ok);

  CHECK(driver.calls == 0);
  CHECK(rig.dev().state() == running);
}

// -- prepare

static_assert(!std::is_copy_constructible_v<scans>);
static_assert(!std::is_move_constructible_v<scans>);

TEST_CASE("a host that is prepared for sleep waits for every scan, a device for none") {
  scsi_rig rig;
  scans all;
  CHECK(bus_prepare(rig.adapter, all) == status::ok);
  all.begin();
  all.begin();

  CHECK(bus_prepare(rig.dev(), all) == status::ok);
  status prepared = status::busy;
  worker sleeper([&] { prepared = bus_prepare(rig.adapter, all); });
  CHECK(sleeper.is_blocked());
  all.end();
  CHECK(sleeper.is_blocked());
  all.end();
  sleeper.join();

  CHECK(prepared == status::ok);
  CHECK(all.under_way() == 0);
}

TEST_CASE("the end of a scan that nobody began is reported, and ends none") {
  scsi_rig rig;
  scans all;
  all.end();

  CHECK(rig.misuse.take() == 1);
  CHECK(all.under_way() == 0);
}

}  // TEST_SUITE
