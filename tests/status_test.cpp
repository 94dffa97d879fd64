// SPDX-License-Identifier: MIT
//
// status_test.cpp - the result codes.
#include <string_view>
#include <type_traits>

#include <doctest/doctest.h>

#include <pmgate/status.hpp>

using pmgate::status;
using pmgate::to_string;

static_assert(std::is_same_v<std::underlying_type_t<status>, int>);
static_assert(noexcept(to_string(status::ok)));

TEST_SUITE("status") {

TEST_CASE("success is zero and nothing else is") {
  CHECK(static_cast<int>(status::ok) == 0);
  CHECK(status{} == status::ok);
}

TEST_CASE("the values are those of Linux errno, negated") {
  CHECK(static_cast<int>(status::again) == -11);
  CHECK(static_cast<int>(status::busy) == -16);
  CHECK(static_cast<int>(status::no_device) == -19);
  CHECK(static_cast<int>(status::invalid) == -22);
  CHECK(static_cast<int>(status::deadlock) == -35);
  CHECK(static_cast<int>(status::timed_out) == -110);
}

TEST_CASE("a status prints as the name of its errno, with the sign") {
  CHECK(std::string_view(to_string(status::ok)) == "0");
  CHECK(std::string_view(to_string(status::again)) == "-EAGAIN");
  CHECK(std::string_view(to_string(status::deadlock)) == "-EDEADLK");
  CHECK(std::string_view(to_string(status::timed_out)) == "-ETIMEDOUT");
}

TEST_CASE("a value without a name prints as unknown") {
  CHECK(std::string_view(to_string(static_cast<status>(-4095))) == "unknown");
}

}  // TEST_SUITE("status")
