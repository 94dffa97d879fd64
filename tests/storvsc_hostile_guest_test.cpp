// SPDX-License-Identifier: MIT
//
// storvsc_hostile_guest_test.cpp - what a guest can do to the storage host: stop its
// own channel, and nothing else. Numbers in names are those of the protocol's
// scenarios.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include <doctest/doctest.h>

#include <pmgate/vmbus/ring.hpp>

#include "storvsc/host.hpp"
#include "storvsc_machine.hpp"

namespace {
using namespace storvsc_test;
}  // namespace

TEST_SUITE("storvsc_hostile_guest") {

TEST_CASE("37: a guest that breaks the protocol is met with silence") {
  const std::uint64_t pfns[] = {data_pfn, data_pfn + 1};
  const std::uint64_t foreign[] = {0x10};
  const auto breaks = [&](auto&& send, const char* reason) {
    ready m;
    std::memset(m.data(), 0x77, 8192);
    send(m);
    CHECK(m.silent());
    CHECK(m.host->last_error().find(reason) != std::string::npos);
    m.submit(2, "00", 0);
    CHECK(m.silent());
    CHECK(std::all_of(m.data(), m.data() + 8192, [](unsigned char b) { return b == 0x77; }));
    CHECK(m.host->statistics().protocol_errors == 1);
    m.disconnect(*m.channel);  // and a new connection works
    m.connect(*m.channel);
    m.negotiate();
  };
  using kind = vmbus::packet_type;
  const std::string read = "28 00 00 00 00 00 00 00 10 00";

  breaks(
      [&](ready& m) { (void)m.channel->send(kind::in_band, 1, m.srb_payload("00", 0, 0, 2), 0); },
      "without completion");
  breaks([&](ready& m) { (void)m.channel->send(kind::completion, 1, bytes(64)); }, "a completion");
  breaks([&](ready& m) { (void)m.channel->send(1, hex("63 +63")); }, "unknown operation");
  breaks([&](ready& m) { (void)m.channel->send(1, hex("0B +63")); }, "unknown operation");
  breaks([&](ready& m) { (void)m.channel->send(1, hex("03 +47")); }, "too short");
  breaks([&](ready& m) { (void)m.channel->send(1, hex("03 +7")); }, "without a header");
  breaks([&](ready& m) { (void)m.channel->send(1, m.srb_payload(read, 8192)); }, "data nowhere");
  breaks(
      [&](ready& m) {
        (void)m.channel->send(kind::gpa_direct, 1, m.srb_payload(read, 8192), 1, {{4096, 0, pfns}});
      },
      "beyond its range");
  breaks(
      [&](ready& m) {
        (void)m.channel->send(kind::gpa_direct, 1, m.srb_payload(read, 4096), 1,
                              {{4096, 0, pfns}, {4096, 0, pfns + 1}});
      },
      "more than one range");
  breaks(
      [&](ready& m) {
        (void)m.channel->send(kind::gpa_direct, 1, m.srb_payload(read, 512), 1,
                              {{4096, 0, foreign}});
      },
      "does not have");
  breaks([&](ready& m) { vmbus::store_le(m.channel->page(0), 12u); }, "outside the ring");
  breaks([&](ready& m) { vmbus::store_le(m.channel->page(32) + 4, 4u), m.submit(1, "00", 0); },
         "outside the ring");
}

TEST_CASE("ring 36: ranges that contradict themselves are found out, whoever wrote them") {
  struct patch {
    std::uint32_t at, value;
  };
  for (const patch lie : {patch{20, 0}, patch{20, 2}, patch{24, 0}, patch{24, 0xFFFFFFFF},
                          patch{24, 8193}, patch{28, 4096}, patch{36, 1}}) {
    ready m;
    const std::uint32_t start = vmbus::load_le<std::uint32_t>(m.channel->page(0));
    const std::uint64_t pfns[] = {data_pfn, data_pfn + 1};
    const bytes payload = m.srb_payload("25", 8);
    const vmbus::gpa_range range{8192, 0, pfns};
    vmbus::packet p{vmbus::packet_type::gpa_direct, 1, 1, payload.data(), 64, &range, 1};
    REQUIRE(m.channel->out.put(p) == status::ok);
    vmbus::store_le(m.channel->requests() + start + lie.at, lie.value);
    (void)m.channel->out.flush();

    CHECK(m.silent());
    CHECK(m.host->statistics().requests == 0);
    CHECK_FALSE(m.host->last_error().empty());
  }
}

TEST_CASE("no packet, however odd, brings the host down or makes it touch other memory") {
  std::uint64_t state = 20200423;
  const auto random = [&state](std::uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
  };
  ready m;
  std::memset(m.memory.translate(first_pfn + 0x300), 0x77, 4096);
  for (int round = 0; round < 3000; ++round) {
    const std::uint64_t pfn = data_pfn + random(8);
    bytes payload =
        m.srb_payload("28", static_cast<std::uint32_t>(random(4097)),
                      static_cast<std::uint8_t>(random(3)), static_cast<std::uint8_t>(random(4)));
    for (std::uint64_t i = 0; i < 4; ++i)
      payload[28 + random(16)] = static_cast<unsigned char>(random(256));
    if (random(8) == 0) payload[random(payload.size())] = static_cast<unsigned char>(random(256));
    const vmbus::gpa_range range{4096, 0, &pfn};
    vmbus::packet p{vmbus::packet_type::gpa_direct, 1, 1, payload.data(), 64, &range, 1};
    REQUIRE(m.channel->out.put(p) == status::ok);
    if (random(8) == 0) {
      unsigned char* const at = m.channel->requests() + (random(126976));
      *at = static_cast<unsigned char>(random(256));
    }
    (void)m.channel->out.flush();
    m.poll();
    if (m.channel->receive().found) continue;
    (void)m.disconnect(*m.channel);
    m.connect(*m.channel);
    m.negotiate();
  }
  const auto* const other = static_cast<unsigned char*>(m.memory.translate(first_pfn + 0x300));
  CHECK(std::all_of(other, other + 4096, [](unsigned char b) { return b == 0x77; }));
  CHECK(m.host->statistics().opens > 10);
  CHECK(m.host->statistics().completions > 1000);
}

TEST_CASE_FIXTURE(ready, "38: a CDB has sixteen bytes, whatever its length field says") {
  bytes request = srb_payload("25", 0, 0, 2);
  request[12 + 8] = 0xFF;
  REQUIRE(channel->send(1, request) == status::ok);
  poll();
  CHECK(channel->receive().as_srb().srb_status == 0x92);  // served: it had no buffer
}

}  // TEST_SUITE
