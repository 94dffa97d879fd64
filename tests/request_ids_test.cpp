// SPDX-License-Identifier: MIT
//
// request_ids_test.cpp - IDs that stand for requests, and peers that guess them.
#include <cstdint>
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/vmbus/request_ids.hpp>

namespace {

using namespace pmgate::vmbus;

static_assert(std::is_nothrow_default_constructible_v<request_ids>);
static_assert(noexcept(request_ids{}.lookup(0)));
static_assert(!std::is_convertible_v<request_lookup, bool>, "only where a truth is asked for");

// A table of four, all of them issued for the cookies 0xA0 to 0xA3.
struct full_table {
  request_slot slots[4];
  request_ids ids{slots, 4};
  std::uint64_t id[4] = {};
  full_table() {
    REQUIRE(ids.issue(0xA0, id[0]));
    REQUIRE(ids.issue(0xA1, id[1]));
    REQUIRE(ids.issue(0xA2, id[2]));
    REQUIRE(ids.issue(0xA3, id[3]));
  }
};

}  // namespace

TEST_SUITE("request_ids") {

TEST_CASE_FIXTURE(full_table, "ring 22: four requests get the IDs 1 to 4 and the fifth none") {
  CHECK(id[0] == 1);
  CHECK(id[3] == 4);

  std::uint64_t fifth = 77;
  CHECK_FALSE(ids.issue(0xA4, fifth));
  CHECK(fifth == 77);
  CHECK(ids.outstanding() == 4);
}

TEST_CASE_FIXTURE(full_table, "ring 22: the ID freed last is issued first") {
  REQUIRE(ids.lookup(2));
  REQUIRE(ids.lookup(3));
  std::uint64_t next = 0;

  REQUIRE(ids.issue(0xB0, next));
  CHECK(next == 3);
  REQUIRE(ids.issue(0xB1, next));
  CHECK(next == 2);
}

TEST_CASE_FIXTURE(full_table, "ring 23: IDs that were never issued stand for nothing") {
  CHECK(ids.lookup(0).match == request_match::unknown);
  CHECK(ids.lookup(5).match == request_match::unknown);
  CHECK(ids.lookup(~std::uint64_t{0}).match == request_match::unknown);
  CHECK(ids.lookup((std::uint64_t{1} << 32) + 1).match == request_match::unknown);
  CHECK(ids.outstanding() == 4);
}

TEST_CASE_FIXTURE(full_table, "ring 23: a second completion of an ID is refused") {
  const request_lookup first = ids.lookup(3);
  const request_lookup second = ids.lookup(3);

  CHECK(first.cookie == 0xA2);
  CHECK(first.match == request_match::released);
  CHECK(second.match == request_match::unknown);
  CHECK(ids.outstanding() == 3);
}

TEST_CASE_FIXTURE(full_table, "ring 23: an ID that stands for another cookie stays in use") {
  const request_lookup found = ids.lookup(2, 0xFFFF);

  CHECK(found.match == request_match::mismatch);
  CHECK(found.cookie == 0xA1);
  CHECK_FALSE(static_cast<bool>(found));
  CHECK(ids.lookup(2, 0xA1).match == request_match::released);
}

TEST_CASE_FIXTURE(full_table, "a reset forgets every request and starts at 1 again") {
  ids.reset();

  CHECK(ids.outstanding() == 0);
  CHECK(ids.lookup(1).match == request_match::unknown);
  std::uint64_t next = 0;
  REQUIRE(ids.issue(0xC0, next));
  CHECK(next == 1);
}

TEST_CASE("a cookie may have any value, the greatest too") {
  request_slot slots[1];
  request_ids ids(slots, 1);
  std::uint64_t id = 0;
  REQUIRE(ids.issue(~std::uint64_t{0}, id));
  CHECK(ids.lookup(id).cookie == ~std::uint64_t{0});
}

TEST_CASE("without a table the cookie is the ID, and no ID is ever outstanding") {
  request_ids ids;
  std::uint64_t id = 0;

  REQUIRE(ids.issue(0xFFFFFFFFFFFFFFFDu, id));

  CHECK(id == 0xFFFFFFFFFFFFFFFDu);
  CHECK(ids.lookup(id).match == request_match::unknown);
}

}  // TEST_SUITE
