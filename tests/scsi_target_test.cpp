// SPDX-License-Identifier: MIT
//
// scsi_target_test.cpp - targets that hang on something, and what is done to all of them.
#include <memory>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/scsi/host.hpp>
#include <pmgate/scsi/target.hpp>

#include "support/scsi_rig.hpp"

using pmgate::status;
using testing::command;
using testing::device;
using testing::device_state;
using testing::scsi_rig;
using testing::target;
using enum device_state;

static_assert(!std::is_copy_constructible_v<target>);
static_assert(!std::is_move_constructible_v<target>);

namespace {

/// Two remote ports: two targets with a device each behind the first, one behind the second.
struct ports_rig : scsi_rig {
  ports_rig() : scsi_rig(std::vector<device_state>{}) {
    for (target* const each : {&a, &b, &c}) {
      devices.push_back(std::make_unique<device>(adapter, *each, works));
      testing::bring_to(*devices.back(), running);
    }
  }
  ~ports_rig() { devices.clear(); }

  char first = 0;
  char second = 0;
  target a{0, false, 3, &first};
  target b{0, false, 3, &first};
  target c{0, false, 3, &second};
};

using states = std::vector<device_state>;

}  // namespace

TEST_SUITE("scsi_target") {

TEST_CASE("what hangs on one port is blocked and unblocked, the rest runs on") {
  ports_rig rig;
  CHECK(rig.a.parent() == &rig.first);

  CHECK(rig.adapter.block_targets(&rig.first) == status::ok);
  CHECK(rig.states() == states{block, block, running});
  command held, sent;
  REQUIRE(rig.dev(1).submit(held) == status::ok);
  REQUIRE(rig.dev(2).submit(sent) == status::ok);
  CHECK_FALSE(rig.lld.has(held));
  CHECK(rig.lld.has(sent));

  rig.adapter.targets_unblock(&rig.second, running);
  CHECK(rig.states() == states{block, block, running});
  rig.adapter.targets_unblock(&rig.first, running);
  CHECK(rig.states() == states{running, running, running});
  rig.settle();
  CHECK(rig.lld.has(held));
  rig.lld.complete_all();
}

TEST_CASE("a device that cannot be blocked is passed over, and makes the result invalid") {
  ports_rig rig;
  rig.dev(0).force_state(transport_offline);

  CHECK(rig.adapter.block_targets(&rig.first) == status::invalid);

  CHECK(rig.states() == states{transport_offline, block, running});
  rig.adapter.targets_unblock(&rig.first, running);
}

TEST_CASE("to block what hangs on a target is reported, and blocks nothing") {
  ports_rig rig;

  CHECK(rig.adapter.block_targets(&rig.a) == status::invalid);

  CHECK(rig.misuse.take() == 1);
  CHECK(rig.states() == states{running, running, running});
}

}  // TEST_SUITE
