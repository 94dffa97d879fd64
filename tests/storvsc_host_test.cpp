// SPDX-License-Identifier: MIT
//
// storvsc_host_test.cpp - the storage host, driven by hand: packets byte by byte,
// rounds one by one. Numbers in names are those of the protocol's scenarios.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/linux_memory.hpp>
#include <pmgate/vmbus/ring.hpp>

#include "storvsc/host.hpp"
#include "storvsc_machine.hpp"

namespace {

using namespace storvsc_test;

static_assert(!std::is_copy_constructible_v<storvsc::storage_host>);
static_assert(!std::is_copy_constructible_v<storvsc::host_channel>);

}  // namespace

TEST_SUITE("storvsc_host") {

// ---- Negotiation -----------------------------------------------------------

TEST_CASE_FIXTURE(opened, "1, 2: the first exchange is the recorded one, byte for byte") {
  const bytes request = hex(
      "06 00 02 00 0A 00 01 00 FD FF FF FF FF FF FF FF 07 00 00 00 01 00 00 00 00 00 00 00 +60");
  const reply answer = control(operation::begin_initialization);

  CHECK(bytes(channel->requests(), channel->requests() + 88) == request);
  CHECK(bytes(channel->replies(), channel->replies() + 88) ==
        hex("0B 00 02 00 0A 00 00 00 FD FF FF FF FF FF FF FF 01 00 00 00 +68"));
  CHECK(answer.type == vmbus::packet_type::completion);
  CHECK(interrupts == std::vector<std::uint32_t>{primary});
}

TEST_CASE_FIXTURE(opened, "3: a version that is too new is refused and the next one accepted") {
  (void)control(operation::begin_initialization);

  CHECK(control(operation::query_protocol_version, "02 06 +50").payload ==
        hex("01 00 00 00 00 00 00 00 59 00 00 C0 02 06 +50"));
  CHECK(host->protocol_version() == 0);
  CHECK(control(operation::query_protocol_version, "00 06 +50").nt_status() == 0);
  CHECK(host->protocol_version() == 0x0600);
}

TEST_CASE_FIXTURE(opened, "4: a host that speaks one version only refuses all others") {
  behaviour.oldest_version = behaviour.newest_version = storvsc::version::win8;
  set(behaviour);
  (void)control(operation::begin_initialization);

  for (const char* const other : {"02 06 +50", "00 06 +50", "02 04 +50", "00 07 +50"}) {
    CHECK(control(operation::query_protocol_version, other).nt_status() == nt::revision_mismatch);
  }
  CHECK(control(operation::query_protocol_version, "01 05 +50").nt_status() == 0);
}

TEST_CASE_FIXTURE(opened,
                  "5, 6, 7: sub-channels are granted once, up to the maximum, and offered") {
  behaviour.max_sub_channels = 4;
  set(behaviour);
  (void)control(operation::begin_initialization);
  (void)control(operation::query_protocol_version, "00 06 +50");
  CHECK(control(operation::query_properties).payload ==
        hex("01 +11 00 00 00 00 04 00 00 00 01 00 00 00 00 00 04 00 +36"));
  CHECK(control(operation::create_sub_channels, "05 00 +50").nt_status() == nt::invalid_parameter);
  (void)control(operation::end_initialization);
  inbox.clear();
  CHECK(control(operation::create_sub_channels, "02 00 +50").nt_status() == 0);
  CHECK(control(operation::create_sub_channels, "01 00 +50").nt_status() ==
        nt::invalid_device_state);

  REQUIRE(inbox.size() == 2);
  const vmbus::channel_offer second = vmbus::decode_offer(inbox[1]);
  CHECK(second.sub_channel_index == 2);
  CHECK(second.relid == 0x101);
}

TEST_CASE_FIXTURE(opened, "8: what is not expected is refused and changes nothing") {
  CHECK(control(operation::query_properties).nt_status() == nt::invalid_device_state);
  CHECK(control(operation::execute_srb).nt_status() == nt::invalid_device_state);
  CHECK(control(operation::reset_bus).nt_status() == nt::invalid_device_state);
  negotiate();

  CHECK(control(operation::begin_initialization).nt_status() == nt::invalid_device_state);
  CHECK(control(operation::reset_bus).nt_status() == 0);
  submit(1, "00", 0);
  poll();
  CHECK(channel->receive().as_srb().srb_status == 1);
}

TEST_CASE_FIXTURE(opened,
                  "a reply is as long as its request, and never longer than 52 bytes of body") {
  CHECK(control(operation::begin_initialization, "+4").payload.size() == 16);
  CHECK(control(operation::query_protocol_version, "00 06 +98").payload.size() == 64);
}

TEST_CASE_FIXTURE(opened, "9, 10, 45: silence, a second reply and a refusal can be asked for") {
  behaviour.answer_control = false;
  set(behaviour);
  CHECK_FALSE(control(operation::begin_initialization).found);
  behaviour.answer_control = behaviour.duplicate_replies = true;
  behaviour.refused = operation::end_initialization;
  set(behaviour);

  CHECK(control(operation::begin_initialization).nt_status() == 0);
  CHECK(channel->receive().id == storvsc::init_trans_id);
  CHECK(control(operation::end_initialization).nt_status() == nt::unsuccessful);
}

// ---- Requests --------------------------------------------------------------

TEST_CASE_FIXTURE(ready, "11: the recorded READ(10) is served") {
  unsigned char* const page = data();
  std::memset(page, 0x5A, 4096);
  submit(1, "2A 00 00 00 00 10 00 00 08 00", 4096, 0);
  poll();
  REQUIRE(channel->receive().as_srb().data_transfer_length == 4096);
  std::memset(page, 0, 4096);

  const bytes payload =
      hex("03 00 00 00 01 00 00 00 00 00 00 00 34 00 00 00 00 00 00 00 0A 14 01 00 00 10 00 00 "
          "28 00 00 00 00 10 00 00 08 00 +10 00 00 FF 20 4A 01 00 00 3C 00 00 00 00 00 00 00");
  const std::uint64_t pfn = data_pfn;
  REQUIRE(channel->send(vmbus::packet_type::gpa_direct, 0x30006, payload, 1, {{4096, 0, &pfn}}) ==
          status::ok);
  poll();

  const reply answer = channel->receive();
  CHECK(answer.id == 0x30006);
  CHECK(answer.flags == 0);
  CHECK(answer.payload == hex("01 +11 34 00 01 00 00 00 00 00 10 14 00 00 00 10 00 00 +36"));
  CHECK(std::all_of(page, page + 4096, [](unsigned char b) { return b == 0x5A; }));
  CHECK(host->statistics().bytes_written == 4096);
  CHECK(host->statistics().bytes_read == 4096);
}

TEST_CASE_FIXTURE(ready, "13: eight bytes across the end of a page land on two pages") {
  const std::uint64_t pfns[] = {data_pfn + 5, data_pfn};
  REQUIRE(channel->send(vmbus::packet_type::gpa_direct, 1, srb_payload("25", 8), 1,
                        {{8, 0xFFC, pfns}}) == status::ok);
  poll();

  CHECK(channel->receive().as_srb().srb_status == 1);
  CHECK(std::memcmp(data() + 5 * 4096 + 0xFFC, "\x00\x00\x4F\xFF", 4) == 0);
  CHECK(std::memcmp(data(), "\x00\x00\x02\x00", 4) == 0);
}

TEST_CASE_FIXTURE(ready, "15: TEST UNIT READY to the empty drive has the recorded answer") {
  REQUIRE(channel->send(1, srb_payload("00", 0, 1, 2)) == status::ok);
  poll();

  CHECK(channel->receive().payload == hex("01 00 00 00 00 00 00 00 85 01 00 C0 34 00 84 02 00 00 "
                                          "00 00 10 14 00 00 00 00 00 00 70 00 02 00 "
                                          "00 00 00 0A 00 00 00 00 3A 01 00 00 00 00 00 00 +16"));
}

TEST_CASE_FIXTURE(ready, "18: nothing at an address is an invalid LUN without sense") {
  REQUIRE(channel->send(1, srb_payload("00", 0, 7, 2)) == status::ok);
  poll();

  const reply answer = channel->receive();
  CHECK(answer.nt_status() == nt::device_does_not_exist);
  CHECK(answer.as_srb().srb_status == 0x20);
}

TEST_CASE_FIXTURE(opened, "before Win8 an SRB has 36 bytes, and its sense 18") {
  negotiate("02 04 +50");
  bytes request = srb_payload("FF", 0, 0, 2);
  request.resize(48);
  REQUIRE(channel->send(1, request) == status::ok);
  poll();

  const reply answer = channel->receive();
  CHECK(answer.payload.size() == 48);
  CHECK(answer.as_srb().sense_length == 18);
  CHECK(answer.as_srb().srb_status == 0x86);
}

// ---- Delay, order, room ----------------------------------------------------

TEST_CASE_FIXTURE(ready, "requests in flight complete when they are due, and may be held") {
  behaviour.latency = 10ms;
  set(behaviour);
  const auto start = storvsc::host_clock::time_point{} + 1h;
  submit(1, "00", 0);
  CHECK_FALSE(host->poll(start));
  CHECK_FALSE(channel->receive().found);
  CHECK(host->next_due() == start + 10ms);

  CHECK_FALSE(host->poll(start + 10ms));
  CHECK(channel->receive().id == 1);
  behaviour.complete_requests = false;
  set(behaviour);
  submit(2, "00", 0);
  CHECK_FALSE(host->poll(start + 1h));
  CHECK(host->next_due() == storvsc::host_clock::time_point::max());
  CHECK_FALSE(channel->receive().found);
}

TEST_CASE("the order of completions follows the seed") {
  std::vector<std::vector<std::uint64_t>> orders;
  for (const std::uint64_t seed : {5u, 5u, 6u}) {
    ready m;
    m.behaviour.out_of_order = true;
    m.behaviour.seed = seed;
    m.set(m.behaviour);
    for (std::uint64_t id = 1; id <= 20; ++id) m.submit(id, "00", 0);
    m.poll();
    orders.emplace_back();
    for (reply r = m.channel->receive(); r.found; r = m.channel->receive())
      orders.back().push_back(r.id);
  }

  CHECK(orders[0] == orders[1]);
  CHECK(orders[0] != orders[2]);
  std::sort(orders[0].begin(), orders[0].end());
  CHECK(orders[0].size() == 20);
  CHECK(orders[0].front() == 1);
  CHECK(std::unique(orders[0].begin(), orders[0].end()) == orders[0].end());
}

TEST_CASE("no request is taken without room for its completion, and space is asked for") {
  machine m(2);  // D = 4096: 46 completions and 48 bytes
  m.connect(*m.channel);
  m.negotiate();
  for (std::uint64_t id = 1; id <= 40; ++id) m.submit(id, "00", 0);
  m.poll();
  for (std::uint64_t id = 41; id <= 60; ++id) m.submit(id, "00", 0);
  m.poll();

  const vmbus::flat_memory replies = m.channel->ring(2);
  CHECK(m.host->statistics().requests == 46);
  CHECK(replies.load(vmbus::control_word::pending_send_size, std::memory_order_relaxed) == 1024);
  for (std::uint64_t id = 1; id <= 46; ++id) CHECK(m.channel->receive().id == id);
  m.poll();
  for (std::uint64_t id = 47; id <= 60; ++id) CHECK(m.channel->receive().id == id);
  CHECK(replies.load(vmbus::control_word::pending_send_size, std::memory_order_relaxed) == 0);
}

TEST_CASE_FIXTURE(ready,
                  "signals are sent on the change from nothing, and for space that is waited for") {
  interrupts.clear();
  for (std::uint64_t id = 1; id <= 5; ++id) submit(id, "00", 0);
  poll();
  CHECK(interrupts.size() == 1);  // five completions, one signal
  submit(6, "00", 0);
  poll();
  CHECK(interrupts.size() == 1);  // the guest has not emptied its ring

  behaviour.read_requests = false;
  set(behaviour);
  const bytes request = srb_payload("00", 0, 0, 2);
  while (channel->send(7, request) == status::ok) {
  }
  CHECK(channel->out.request_space(88) == status::again);
  interrupts.clear();
  behaviour.read_requests = behaviour.complete_requests = true;
  behaviour.latency = 1h;  // no completion, so no other reason to signal
  set(behaviour);
  (void)host->poll();
  CHECK(interrupts.size() == 1);
}

TEST_CASE("22: a host that does not read leaves the requests in the ring") {
  ready m;
  m.behaviour.read_requests = false;
  m.set(m.behaviour);
  m.submit(1, "00", 0);
  CHECK(m.silent());

  m.behaviour.read_requests = true;
  m.set(m.behaviour);
  m.poll();
  CHECK(m.channel->receive().id == 1);
}

// ---- Unsolicited -----------------------------------------------------------

TEST_CASE_FIXTURE(opened, "28: a changed bus is told once, and only to a guest that is ready") {
  host->bus_changed();
  CHECK(silent());
  negotiate();
  CHECK(silent());
  for (int i = 0; i < 10; ++i) host->bus_changed();
  poll();

  const reply notice = channel->receive();
  CHECK(notice.type == vmbus::packet_type::in_band);
  CHECK(notice.flags == 0);
  CHECK(notice.id == 0);
  CHECK(notice.payload == hex("0B +63"));
  CHECK(silent());
}

TEST_CASE_FIXTURE(ready, "29: a unit that was taken away is an invalid LUN") {
  REQUIRE(target.detach({0, 0, 0}));
  submit(1, "00", 0);
  poll();
  CHECK(channel->receive().as_srb().srb_status == 0x20);
}

// ---- Pages and channels ----------------------------------------------------

TEST_CASE_FIXTURE(machine, "64 pages are lent in three messages and given back poisoned") {
  channel->clear_rings();
  CHECK(lend(*channel).get(16) == 0);
  CHECK(host->lent_pages() == 64);
  const control_message result = open(*channel, 32);
  CHECK(result.type() == message_type::open_result);
  CHECK(result.get(12) == 3);
  CHECK(result.get(16) == 0);
  CHECK(channel->page(0)[8] == 0);  // it has looked, so it wants signals

  CHECK(disconnect(*channel).type() == message_type::gpadl_torndown);
  CHECK(host->lent_pages() == 0);
  CHECK(released.size() == 64);
  CHECK(
      std::all_of(channel->page(0), channel->page(64), [](unsigned char b) { return b == 0xFF; }));
}

TEST_CASE_FIXTURE(machine, "what cannot be lent or opened is refused") {
  channel->clear_rings();
  CHECK(open(*channel, 32).get(16) != 0);  // nothing was lent
  channel->pfn = first_pfn + 0x400 - 63;   // the last page is not the guest's
  CHECK(lend(*channel).get(16) != 0);
  CHECK(host->lent_pages() == 0);
  channel->pfn = ring_pfn;
  CHECK(lend(*channel).get(16) == 0);
  CHECK(lend(*channel).get(16) != 0);  // the handle is taken, and keeps its meaning
  CHECK(host->lent_pages() == 64);
  for (const std::uint32_t second : {0u, 1u, 63u, 64u, 0xFFFFFFFFu})
    CHECK(open(*channel, second).get(16) != 0);
  vmbus::store_le(channel->page(0) + 4, 5u);  // an index of the host's that is none
  CHECK(open(*channel, 32).get(16) != 0);
}

TEST_CASE_FIXTURE(ready,
                  "closing drops what is in flight, and the next life begins at the beginning") {
  behaviour.latency = 1h;
  set(behaviour);
  submit(1, "00", 0);
  poll();
  (void)disconnect(*channel);

  CHECK(host->statistics().dropped == 1);
  CHECK(host->phase() == storvsc::protocol_phase::begin);
  behaviour.latency = 0us;
  set(behaviour);
  connect(*channel);
  CHECK(control(operation::query_properties).nt_status() == nt::invalid_device_state);
  negotiate();
  CHECK(silent());
  CHECK(host->statistics().opens == 2);
}

TEST_CASE_FIXTURE(opened, "43: sub-channels serve requests, and are withdrawn with the primary") {
  behaviour.max_sub_channels = 1;
  set(behaviour);
  (void)control(operation::begin_initialization);
  (void)control(operation::query_protocol_version, "00 06 +50");
  (void)control(operation::query_properties);
  inbox.clear();
  (void)control(operation::create_sub_channels, "01 00 +50");
  REQUIRE(inbox.size() == 1);
  guest_channel sub{memory, vmbus::decode_offer(inbox[0]).relid, ring_pfn + 0x40, 4, 0xE1E11};
  connect(sub);
  REQUIRE(sub.send(9, srb_payload("00", 0, 0, 2)) == status::ok);
  poll();
  CHECK_FALSE(sub.receive().found);  // the primary is not ready yet
  CHECK(control(operation::end_initialization).nt_status() == 0);
  CHECK(sub.receive().as_srb().srb_status == 1);
  CHECK_FALSE(channel->receive().found);
  REQUIRE(sub.send(10, hex("07 +63")) == status::ok);  // it is not the one to negotiate
  poll();
  CHECK(sub.receive().nt_status() == nt::invalid_device_state);

  REQUIRE(sub.send(11, hex("63 +63")) == status::ok);  // breaks this channel, and no other
  submit(12, "00", 0);
  poll();
  CHECK_FALSE(sub.receive().found);
  CHECK(channel->receive().id == 12);
  (void)disconnect(sub);

  const control_message rescind = ask(control_message(message_type::close).set(8, primary));
  CHECK(rescind.type() == message_type::rescind);
  CHECK(rescind.get(8) == sub.relid);
  CHECK(lend(sub).get(16) != 0);
  (void)ask(control_message(message_type::relid_released).set(8, sub.relid));
  CHECK(host->on_message(control_message(message_type::unload)) == status::ok);
  poll();
  CHECK(inbox.back().type() == message_type::unload_response);
}

// ---- With its thread -------------------------------------------------------

struct bell_port : machine {
  pmgate::doorbell bell;
  bell_port() { REQUIRE(bell.create() == status::ok); }
  void interrupt(std::uint32_t) noexcept override { bell.ring(); }
  void deliver(const control_message&) noexcept override { bell.ring(); }
};

TEST_CASE_FIXTURE(bell_port,
                  "the host's thread completes everything once, with delay and disorder") {
  connect(*channel);
  negotiate();
  behaviour.jitter = 200us;
  behaviour.out_of_order = true;
  set(behaviour);
  REQUIRE(host->start() == status::ok);
  CHECK(host->start() == status::busy);

  constexpr std::uint64_t total = 3000;
  std::vector<int> completed(total + 1);
  std::uint64_t sent = 0;
  const auto deadline = std::chrono::steady_clock::now() + 60s;
  for (std::uint64_t received = 0; received < total;) {
    bool rang = false;
    const bytes request = srb_payload("00", 0, 0, 2);
    while (sent < total && sent - received < 300) {
      vmbus::packet p;
      p.flags = 1;
      p.trans_id = sent + 1;
      p.payload = request.data();
      p.payload_size = 64;
      if (channel->out.put(p) != status::ok) break;
      ++sent;
      rang = true;
    }
    if (rang && channel->out.flush().signal) host->ring();
    for (;;) {
      vmbus::received_packet p;
      const vmbus::ring_result got = channel->in.read(channel->buffer.data(), 4096, p);
      if (got.signal) host->ring();
      if (got.code != status::ok) break;
      ++completed[p.trans_id];
      ++received;
    }
    // Only what is in flight can ring: with nothing there, it is our turn to send.
    if (received < sent) REQUIRE(bell.wait_until(deadline));
  }
  host->stop();

  CHECK(std::all_of(completed.begin() + 1, completed.end(), [](int n) { return n == 1; }));
  CHECK(host->statistics().completions == total);
}

}  // TEST_SUITE
