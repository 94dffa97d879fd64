// SPDX-License-Identifier: MIT
//
// scsi_sysfs_test.cpp - what may be written to the states of devices and hosts; the
// numbers are those of the scenarios in the specification of SCSI.
#include <atomic>
#include <string>

#include <doctest/doctest.h>

#include <pmgate/scsi/sysfs.hpp>

#include "support/scsi_rig.hpp"

using pmgate::status;
using pmgate::scsi::host_state;
using pmgate::scsi::show_state;
using pmgate::scsi::store_state;
using testing::command;
using testing::device;
using testing::device_state;
using testing::host;
using testing::scsi_rig;
using testing::virtual_platform;
using enum device_state;

namespace {

int scans = 0;

void rescan(device& which) noexcept {
  ++scans;
  CHECK(which.state() == running);
}

}  // namespace

TEST_SUITE("scsi_sysfs") {

TEST_CASE("scenario 36: a quiesced or blocked device cannot be set running by hand") {
  scsi_rig rig({quiesce, block, created_block, created, transport_offline, cancel, del});
  const auto before = rig.states();

  for (const auto& each : rig.devices) {
    CHECK(store_state(*each, "running") == status::invalid);
    CHECK(store_state(*each, "offline") == status::invalid);
  }

  CHECK(rig.states() == before);
}

TEST_CASE("scenario 36: an offline device set running has its queue run and is rescanned") {
  scsi_rig rig;
  scans = 0;
  host adapter(
      {.queuecommand = &testing::driver::queuecommand, .context = &rig.lld, .rescan = &rescan});
  device dev(adapter, rig.where, rig.works);
  command held;
  REQUIRE(dev.set_state(running) == status::ok);
  REQUIRE(dev.set_state(block) == status::ok);
  REQUIRE(dev.submit(held) == status::ok);
  REQUIRE(dev.set_state(offline) == status::ok);

  CHECK(store_state(dev, "running\n") == status::ok);

  CHECK(dev.state() == running);
  CHECK(scans == 1);
  CHECK(rig.lld.calls() == 0);  // asynchronously
  rig.settle();
  CHECK(rig.lld.has(held));
  rig.lld.complete_all();
}

TEST_CASE("scenario 36: a running device takes running and offline, and no other word") {
  scsi_rig rig;
  for (const char* const word :
       {"blocked", "quiesce", "created", "RUNNING", "", "run", "running "}) {
    CHECK(store_state(rig.dev(), word) == status::invalid);
  }
  CHECK(rig.dev().state() == running);
  CHECK(store_state(rig.dev(), "running") == status::ok);
  CHECK(store_state(rig.dev(), "offline") == status::ok);
  CHECK(store_state(rig.dev(), "offline") == status::ok);
  CHECK(rig.dev().state() == offline);
}

TEST_CASE("a host goes by its name where its table lets it") {
  scsi_rig rig;
  CHECK(std::string(show_state(rig.adapter)) == "running");

  CHECK(store_state(rig.adapter, "recovery\n") == status::ok);
  CHECK(store_state(rig.adapter, "deleted") == status::invalid);
  CHECK(store_state(rig.adapter, "RECOVERY") == status::invalid);
  CHECK(store_state(rig.adapter, "cancel/recovery") == status::ok);

  CHECK(rig.adapter.state() == host_state::cancel_recovery);
  CHECK(std::string(show_state(rig.adapter)) == "cancel/recovery");
  CHECK(std::string(show_state(rig.dev())) == "running");
}

}  // TEST_SUITE
