// SPDX-License-Identifier: MIT
//
// scsi_state_test.cpp - which change of state is legal, and what states are called; the
// numbers are those of the scenarios in the specification of SCSI.
#include <array>
#include <string>
#include <string_view>
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/scsi/state.hpp>

using pmgate::scsi::can_transition;
using pmgate::scsi::device_state;
using pmgate::scsi::device_state_count;
using pmgate::scsi::host_state;
using pmgate::scsi::host_state_count;
using pmgate::scsi::kernel_name;
using pmgate::scsi::parse;
using pmgate::scsi::scsi_generation;
using pmgate::scsi::to_string;

static_assert(static_cast<int>(device_state::created_block) == 9);
static_assert(static_cast<int>(host_state::del_recovery) == 7);
static_assert(sizeof(device_state) == 1 && sizeof(host_state) == 1);
static_assert(can_transition(device_state::quiesce, device_state::block));
static_assert(can_transition(device_state::quiesce, device_state::block, scsi_generation::v5_7));
static_assert(!can_transition(device_state::quiesce, device_state::block,
                              scsi_generation::v5_7_rc3));
static_assert(noexcept(can_transition(host_state::running, host_state::del)));

namespace {

// Rows: from, columns: to, in the order of the values. x: illegal.
constexpr std::array<std::string_view, 9> device_table = {
    // CREATED RUNNING CANCEL DEL QUIESCE OFFLINE T_OFFLINE BLOCK CREATED_BLOCK
    "=+++x++x+",  // CREATED
    "x=++++++x",  // RUNNING
    "xx=+xxxxx",  // CANCEL
    "xxx=xxxxx",  // DEL
    "x++x=+++x",  // QUIESCE
    "x++++=x+x",  // OFFLINE
    "x++++x=xx",  // TRANSPORT_OFFLINE
    "x+x+x++=x",  // BLOCK
    "+xx+xxx+=",  // CREATED_BLOCK
};
constexpr std::array<std::string_view, 7> host_table = {
    // CREATED RUNNING CANCEL DEL RECOVERY CANCEL_RECOVERY DEL_RECOVERY
    "=++xxxx", "x=+x+xx", "xx=+x+x", "xxx=xxx", "x+xx=+x", "xx+xx=+", "xxx+xx=",
};

device_state device_at(std::size_t n) { return static_cast<device_state>(n + 1); }
host_state host_at(std::size_t n) { return static_cast<host_state>(n + 1); }

}  // namespace

TEST_SUITE("scsi_state") {

TEST_CASE("scenario 1: of 81 pairs of device states 34 changes are legal, 9 are none, 38 illegal") {
  int changes = 0, same = 0, illegal = 0;
  for (std::size_t from = 0; from < device_state_count; ++from) {
    for (std::size_t to = 0; to < device_state_count; ++to) {
      const char entry = device_table[from][to];
      CAPTURE(from);
      CAPTURE(to);
      CHECK(can_transition(device_at(from), device_at(to)) == (entry != 'x'));
      ++(entry == '+' ? changes : entry == '=' ? same : illegal);
    }
  }
  CHECK(changes == 34);
  CHECK(same == 9);
  CHECK(illegal == 38);
}

TEST_CASE("scenario 2: of 49 pairs of host states 11 changes are legal, 7 are none, 31 illegal") {
  int changes = 0, same = 0, illegal = 0;
  for (std::size_t from = 0; from < host_state_count; ++from) {
    for (std::size_t to = 0; to < host_state_count; ++to) {
      const char entry = host_table[from][to];
      CAPTURE(from);
      CAPTURE(to);
      CHECK(can_transition(host_at(from), host_at(to)) == (entry != 'x'));
      ++(entry == '+' ? changes : entry == '=' ? same : illegal);
    }
  }
  CHECK(changes == 11);
  CHECK(same == 7);
  CHECK(illegal == 31);
}

TEST_CASE(
    "scenario 14: before 5.7-rc4 the table differs in one place: a quiesced device is not "
    "blocked") {
  int differences = 0;
  for (std::size_t from = 0; from < device_state_count; ++from) {
    for (std::size_t to = 0; to < device_state_count; ++to) {
      const bool now = can_transition(device_at(from), device_at(to));
      const bool then = can_transition(device_at(from), device_at(to), scsi_generation::v5_7_rc3);
      if (now != then) ++differences;
    }
  }
  CHECK(differences == 1);
}

TEST_CASE("states are found by their names in sysfs and in the kernel") {
  for (std::size_t n = 0; n < device_state_count; ++n) {
    device_state state = device_at((n + 1) % device_state_count);
    CHECK(parse(to_string(device_at(n)), state));
    CHECK(state == device_at(n));
    state = device_at((n + 1) % device_state_count);
    CHECK(parse(kernel_name(device_at(n)), state));
    CHECK(state == device_at(n));
  }
  for (std::size_t n = 0; n < host_state_count; ++n) {
    host_state state = host_at((n + 1) % host_state_count);
    CHECK(parse(to_string(host_at(n)), state));
    CHECK(state == host_at(n));
    state = host_at((n + 1) % host_state_count);
    CHECK(parse(kernel_name(host_at(n)), state));
    CHECK(state == host_at(n));
  }
  CHECK(to_string(device_state::block) == std::string("blocked"));
  CHECK(to_string(host_state::del_recovery) == std::string("deleted/recovery"));
}

TEST_CASE("a name that is no state's finds none and changes nothing") {
  device_state state = device_state::cancel;
  host_state host = host_state::cancel;

  CHECK_FALSE(parse("", state));
  CHECK_FALSE(parse("block", state));
  CHECK_FALSE(parse("runningx", state));
  CHECK_FALSE(parse("blocked", host));

  CHECK(state == device_state::cancel);
  CHECK(host == host_state::cancel);
  CHECK(to_string(static_cast<device_state>(0)) == std::string("unknown"));
  CHECK(kernel_name(static_cast<host_state>(8)) == std::string("UNKNOWN"));
}

TEST_CASE("a device is online unless failed or removed, blocked in both block states") {
  using enum device_state;
  using pmgate::scsi::is_blocked;
  using pmgate::scsi::is_created;
  using pmgate::scsi::is_gettable;
  using pmgate::scsi::is_online;
  for (const device_state state : {created, running, cancel, quiesce, block, created_block}) {
    CHECK(is_online(state));
  }
  for (const device_state state : {del, offline, transport_offline}) CHECK_FALSE(is_online(state));
  for (std::size_t n = 0; n < device_state_count; ++n) {
    const device_state state = device_at(n);
    CHECK(is_blocked(state) == (state == block || state == created_block));
    CHECK(is_created(state) == (state == created || state == created_block));
    CHECK(is_gettable(state) == (state != cancel && state != del));
  }
}

TEST_CASE("a host recovers in three states, and is scanned in two") {
  using pmgate::scsi::is_in_recovery;
  using pmgate::scsi::is_scan_allowed;
  for (std::size_t n = 0; n < host_state_count; ++n) {
    CHECK(is_in_recovery(host_at(n)) == (n >= 4));
    CHECK(is_scan_allowed(host_at(n)) ==
          (host_at(n) == host_state::running || host_at(n) == host_state::recovery));
  }
}

}  // TEST_SUITE
