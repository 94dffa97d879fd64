// SPDX-License-Identifier: MIT
//
// ring_test.cpp - both ends of a VMBus ring: bytes, signals, liars, races.
//
// The numbers are those of the scenarios that the ring was specified by. Unless
// said otherwise D is 4096, the ring is fresh, and P is an in-band packet that
// asks for a completion and has 64 bytes of payload: 88 bytes in the ring.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <semaphore>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#if defined(__linux__)
#include <pmgate/platform/linux_memory.hpp>
#endif
#include <pmgate/vmbus/ring.hpp>

namespace {

using namespace pmgate::vmbus;
using pmgate::status;
using bytes = std::vector<unsigned char>;
using word = control_word;

static_assert(!std::is_copy_constructible_v<ring_producer<flat_memory>>);
static_assert(!std::is_copy_constructible_v<ring_consumer<flat_memory>>);
static_assert(noexcept(std::declval<ring_producer<flat_memory>&>().write(packet{})));
static_assert(noexcept(std::declval<ring_consumer<flat_memory>&>().commit()));
static_assert(sizeof(ring_producer<flat_memory>) <= 64, "fits one cache line");
static_assert(std::is_trivially_destructible_v<ring_consumer<mirrored_memory>>);

bytes from_hex(const std::string& text) {
  bytes out;
  for (std::size_t i = 0; i < text.size(); i += text[i] == ' ' ? 1u : 2u) {
    if (text[i] == ' ') continue;
    out.push_back(static_cast<unsigned char>(std::stoul(text.substr(i, 2), nullptr, 16)));
  }
  return out;
}

bytes zeros(std::size_t count) { return bytes(count); }

// What the first packet of a storage guest says.
const bytes hello = [] {
  bytes p = from_hex("07 00 00 00 01 00 00 00");
  p.resize(64);
  return p;
}();

packet in_band(const bytes& payload, std::uint64_t id = 1) {
  packet p;
  p.flags = flag_completion_requested;
  p.trans_id = id;
  p.payload = payload.data();
  p.payload_size = static_cast<std::uint32_t>(payload.size());
  return p;
}

// One ring in the memory of this process, with both its ends.
template <class Memory = flat_memory>
struct basic_rig {
  std::vector<std::uint64_t> control = std::vector<std::uint64_t>(control_page_size / 8);
  std::vector<std::uint64_t> data;
  Memory memory;
  ring_producer<Memory> producer;
  ring_consumer<Memory> consumer;
  received_packet got{};
  bytes buffer;

  explicit basic_rig(std::uint32_t size = 4096, consumer_options options = {host_accepts, 0})
      : data(size / 8), memory(control.data(), data.data(), size), buffer(size) {
    memory.clear_control();
    REQUIRE(producer.attach(memory) == status::ok);
    producer.announce_pending_send();
    REQUIRE(consumer.attach(memory, options) == status::ok);
  }

  unsigned char* at(std::uint32_t offset) {
    return reinterpret_cast<unsigned char*>(data.data()) + offset;
  }
  bytes dump(std::uint32_t from, std::uint32_t to) { return bytes(at(from), at(to)); }
  std::uint32_t load(word w) const { return memory.load(w, std::memory_order_relaxed); }
  void poke(word w, std::uint32_t value) { memory.store(w, value, std::memory_order_relaxed); }
  std::uint32_t W() const { return load(word::write_index); }
  std::uint32_t R() const { return load(word::read_index); }

  ring_result write(const bytes& payload = hello, std::uint64_t id = 1) {
    return producer.write(in_band(payload, id));
  }
  // Writes P n times. Returns how often a signal was asked for.
  int fill(int n) {
    int signals = 0;
    for (int i = 0; i < n; ++i) {
      const ring_result done = write();
      REQUIRE(done.code == status::ok);
      signals += done.signal;
    }
    return signals;
  }
  status take() {
    return consumer.take(buffer.data(), static_cast<std::uint32_t>(buffer.size()), got);
  }
  void take(int n) {
    for (int i = 0; i < n; ++i) REQUIRE(take() == status::ok);
  }
  // Takes n packets and gives their room back at once. Returns whether to signal.
  bool eat(int n = 1) {
    take(n);
    const ring_result done = consumer.commit();
    REQUIRE(done.code == status::ok);
    return done.signal;
  }
  bytes payload() const { return bytes(got.payload, got.payload + got.payload_size); }

  // Writes a descriptor as a liar would, and moves the write index.
  void forge(std::uint32_t at_index, const packet_descriptor& d, std::uint32_t write_index) {
    unsigned char head[descriptor_size];
    encode(head, d);
    memory.copy_in(at_index, head, descriptor_size);
    poke(word::write_index, write_index);
  }
  // What the consumer makes of one forged packet at 0.
  ring_fault fault_of(const packet_descriptor& d, std::uint32_t write_index = 88) {
    forge(0, d, write_index);
    return fault_now();
  }
  ring_fault fault_now() {
    const status first = take();
    CHECK((first == status::io_error) == (consumer.fault() != ring_fault::none));
    CHECK(R() == 0);
    return consumer.fault();
  }
};
using rig = basic_rig<>;

constexpr packet_descriptor honest{packet_type::in_band, 2, 10, 1, 1};

}  // namespace

TEST_SUITE("ring") {

// ---- Layout and write ------------------------------------------------------

TEST_CASE_FIXTURE(rig, "ring 1: a fresh ring is empty and announces only its feature bit") {
  CHECK(W() == 0);
  CHECK(R() == 0);
  CHECK(load(word::interrupt_mask) == 0);
  CHECK(load(word::pending_send_size) == 0);
  CHECK(load(word::feature_bits) == 1);
  control[8] = 0;  // words 16 and 17
  CHECK(control == std::vector<std::uint64_t>(512));
  CHECK(producer.writable() == 4096);
  CHECK(take() == status::again);
}

TEST_CASE_FIXTURE(rig, "ring 2: the first packet lies at 0, ends with a zero trailer and signals") {
  const ring_result done = write(hello, 0xFFFFFFFFFFFFFFFDu);

  CHECK(done.code == status::ok);
  CHECK(done.signal);
  CHECK(dump(0, 24) == from_hex("06 00 02 00 0A 00 01 00 FD FF FF FF FF FF FF FF"
                                "07 00 00 00 01 00 00 00"));
  CHECK(dump(80, 88) == zeros(8));
  CHECK(W() == 88);
}

TEST_CASE_FIXTURE(rig, "ring 3: the second packet's trailer holds its own start, and is silent") {
  fill(1);

  CHECK_FALSE(write().signal);
  CHECK(dump(168, 176) == from_hex("00 00 00 00 58 00 00 00"));
  CHECK(W() == 176);
}

TEST_CASE_FIXTURE(rig, "ring 4: the 47th packet is refused and nothing changes") {
  fill(46);
  const bytes before = dump(0, 4096);

  CHECK(write().code == status::again);

  CHECK(W() == 4048);
  CHECK(producer.writable() == 48);
  CHECK(dump(0, 4096) == before);
  CHECK(producer.fault() == ring_fault::none);
}

TEST_CASE_FIXTURE(rig, "ring 5: a packet of D - 8 bytes fits an empty ring") {
  CHECK(write(zeros(4064)).code == status::ok);
  CHECK(W() == 4088);
  CHECK(dump(4, 6) == from_hex("FE 01"));
  CHECK(producer.writable() == 8);
}

TEST_CASE_FIXTURE(rig, "ring 5: a packet of D bytes never fits, and says so") {
  CHECK(write(zeros(4072)).code == status::message_size);
  CHECK(W() == 0);
  CHECK(dump(0, 4096) == zeros(4096));
}

TEST_CASE_FIXTURE(rig,
                  "ring 6: a packet that wraps goes on at 0, where its trailer names its start") {
  fill(46);
  eat(46);

  const ring_result done = write();

  CHECK(done.signal);
  CHECK(dump(32, 40) == from_hex("00 00 00 00 D0 0F 00 00"));
  CHECK(W() == 40);
  REQUIRE(take() == status::ok);
  CHECK(payload() == hello);
}

TEST_CASE_FIXTURE(rig, "ring 7: a descriptor that wraps has its trans_id at 0") {
  REQUIRE(write(zeros(4064)).code == status::ok);
  eat();

  REQUIRE(write(hello, 0xFFFFFFFFFFFFFFFDu).code == status::ok);

  CHECK(dump(4088, 4096) == from_hex("06 00 02 00 0A 00 01 00"));
  CHECK(dump(0, 8) == from_hex("FD FF FF FF FF FF FF FF"));
  CHECK(dump(8, 72) == hello);
  CHECK(dump(72, 80) == from_hex("00 00 00 00 F8 0F 00 00"));
  CHECK(W() == 80);
}

TEST_CASE_FIXTURE(rig, "ring 8: an index that reaches the end is stored as 0") {
  REQUIRE(write(zeros(3984)).code == status::ok);
  eat();

  REQUIRE(write().code == status::ok);

  CHECK(dump(4088, 4096) == from_hex("00 00 00 00 A8 0F 00 00"));
  CHECK(W() == 0);
  CHECK(producer.writable() == 4096 - 88);
}

TEST_CASE_FIXTURE(rig, "ring 9: a payload of 5 bytes is padded with zeros and received as 8") {
  std::fill(data.begin(), data.end(), ~std::uint64_t{0});

  REQUIRE(write(from_hex("AA BB CC DD EE")).code == status::ok);

  CHECK(dump(4, 6) == from_hex("03 00"));
  CHECK(dump(16, 24) == from_hex("AA BB CC DD EE 00 00 00"));
  CHECK(W() == 32);
  REQUIRE(take() == status::ok);
  CHECK(got.payload_size == 8);
}

TEST_CASE_FIXTURE(rig, "ring 10: an empty payload is still a packet") {
  REQUIRE(write({}).code == status::ok);

  CHECK(W() == 24);
  REQUIRE(take() == status::ok);
  CHECK(got.payload_size == 0);
  CHECK(got.size == 16);
  CHECK(take() == status::again);
}

TEST_CASE_FIXTURE(rig,
                  "ring 11: a GPA-direct packet lists its pages between descriptor and payload") {
  const std::uint64_t pfn = 0x1234;
  const gpa_range range{4096, 0, &pfn};
  packet p = in_band(hello, 0x30006);
  p.type = packet_type::gpa_direct;
  p.ranges = &range;
  p.range_count = 1;

  REQUIRE(producer.write(p).code == status::ok);

  CHECK(dump(0, 40) == from_hex("09 00 05 00 0D 00 01 00 06 00 03 00 00 00 00 00"
                                "00 00 00 00 01 00 00 00 00 10 00 00 00 00 00 00"
                                "34 12 00 00 00 00 00 00"));
  CHECK(W() == 112);
  REQUIRE(take() == status::ok);
  CHECK(got.extension_size == 24);
  CHECK(payload() == hello);
}

TEST_CASE_FIXTURE(rig, "ring 12: a batch becomes visible at once and signals once") {
  REQUIRE(producer.put(in_band(hello)) == status::ok);
  REQUIRE(producer.put(in_band(hello)) == status::ok);
  REQUIRE(producer.put(in_band(hello)) == status::ok);
  CHECK(W() == 0);
  CHECK(take() == status::again);

  CHECK(producer.flush().signal);

  CHECK(W() == 264);
  CHECK(dump(84, 88) == from_hex("00 00 00 00"));
  CHECK(dump(172, 176) == from_hex("58 00 00 00"));
  CHECK(dump(260, 264) == from_hex("B0 00 00 00"));
  CHECK_FALSE(producer.flush().signal);
}

// The free space is split: 40 bytes at the end, 48 at the start, 88 together.
TEST_CASE_FIXTURE(rig, "a packet fits into space that lies at both ends, and only just") {
  REQUIRE(write(zeros(24)).code == status::ok);              // 0 to 48
  REQUIRE(write(zeros(4056 - 48 - 24)).code == status::ok);  // 48 to 4056
  eat();
  REQUIRE(producer.writable() == 88);
  const bytes unread = dump(48, 4056);

  CHECK(write().code == status::again);  // 88 bytes, but equal indices mean empty
  CHECK(write(zeros(56)).code == status::ok);

  CHECK(W() == 40);
  CHECK(dump(48, 4056) == unread);
  take(2);
  CHECK(got.payload_size == 56);
}

TEST_CASE_FIXTURE(rig, "neither end of the split free space alone takes a packet that is larger") {
  REQUIRE(write(zeros(24)).code == status::ok);
  REQUIRE(write(zeros(4032 - 48 - 24)).code == status::ok);  // leaves 64 at the end
  eat();
  const bytes unread = dump(48, 4032);

  CHECK(write(zeros(96)).code == status::again);

  CHECK(W() == 4032);
  CHECK(dump(48, 4032) == unread);
}

TEST_CASE_FIXTURE(rig, "a producer with a lower limit refuses what its peer could not send") {
  REQUIRE(producer.attach(memory, {4096 - 16}) == status::ok);
  CHECK(write(zeros(4064)).code == status::message_size);
  CHECK(write(zeros(4056)).code == status::ok);
}

TEST_CASE_FIXTURE(rig, "both ends take a ring over with packets in it") {
  REQUIRE(write(zeros(4064)).code == status::ok);
  eat();
  REQUIRE(write(hello, 7).code == status::ok);

  ring_producer<flat_memory> second_producer;
  REQUIRE(second_producer.attach(memory) == status::ok);
  CHECK_FALSE(second_producer.write(in_band(hello, 8)).signal);
  REQUIRE(consumer.attach(memory, {host_accepts, 0}) == status::ok);

  REQUIRE(take() == status::ok);
  CHECK(got.trans_id == 7);
  REQUIRE(take() == status::ok);
  CHECK(got.trans_id == 8);
}

TEST_CASE("an end without a ring refuses everything and touches nothing") {
  ring_producer<flat_memory> producer;
  ring_consumer<flat_memory> consumer;
  received_packet got;
  unsigned char buffer[64];

  CHECK(producer.write(in_band(hello)).code == status::no_device);
  CHECK(producer.flush().code == status::no_device);
  CHECK(producer.request_space(88) == status::no_device);
  CHECK(producer.writable() == 0);
  CHECK(producer.percent_free() == 0);
  CHECK(consumer.take(buffer, 64, got) == status::no_device);
  CHECK(consumer.commit().code == status::no_device);
  CHECK(consumer.end_read().code == status::no_device);
  consumer.begin_read();
}

TEST_CASE_FIXTURE(rig, "an end that was detached leaves the memory alone") {
  fill(1);
  producer.detach();
  consumer.detach();

  CHECK(write().code == status::no_device);
  CHECK(take() == status::no_device);
  CHECK(W() == 88);
}

TEST_CASE("a data area of no legal size is refused") {
  alignas(8) unsigned char page[64] = {};
  ring_producer<flat_memory> producer;
  CHECK(producer.attach(flat_memory(page, page, 64)) == status::invalid);
  CHECK(producer.write(in_band(hello)).code == status::invalid);
}

TEST_CASE_FIXTURE(rig, "a buffer that is too small is told the size, and the packet stays") {
  fill(1);

  CHECK(consumer.take(buffer.data(), 79, got) == status::no_buffer_space);
  CHECK(got.size == 80);
  CHECK(got.payload_size == 64);
  CHECK(consumer.take(buffer.data(), 80, got) == status::ok);
}

// ---- Signalling ------------------------------------------------------------

TEST_CASE_FIXTURE(rig, "ring 13: a masked consumer is not signalled, and finds the packet itself") {
  consumer.begin_read();

  CHECK_FALSE(write().signal);

  CHECK(consumer.end_read().bytes == 88);
  CHECK(load(word::interrupt_mask) == 0);
}

TEST_CASE_FIXTURE(rig,
                  "ring 14: a packet that comes between the last look and the unmasking is found") {
  consumer.begin_read();
  REQUIRE(take() == status::again);
  CHECK_FALSE(write().signal);

  CHECK(consumer.end_read().bytes == 88);

  consumer.begin_read();
  CHECK(take() == status::ok);
  CHECK(consumer.end_read().bytes == 0);
  CHECK(write().signal);
}

TEST_CASE_FIXTURE(rig, "ring 15: packets read but not given back keep the producer silent") {
  fill(2);
  take(2);

  CHECK_FALSE(write().signal);

  CHECK(consumer.end_read().bytes == 88);
  CHECK(R() == 176);
}

TEST_CASE_FIXTURE(rig, "a consumer that gave back all that was written is signalled again") {
  fill(1);
  eat();
  CHECK(write().signal);
}

TEST_CASE_FIXTURE(rig, "ring 16: the commit that makes enough room signals, and only that one") {
  fill(46);
  poke(word::pending_send_size, 88);

  CHECK(eat());
  CHECK_FALSE(eat());
}

TEST_CASE_FIXTURE(rig, "ring 17: room for exactly the wish is not enough") {
  fill(46);
  poke(word::pending_send_size, 136);

  CHECK_FALSE(eat());
  CHECK(eat());
  CHECK_FALSE(eat());
}

TEST_CASE_FIXTURE(rig, "ring 18: without the feature bit nobody is signalled for space") {
  fill(46);
  poke(word::pending_send_size, 88);
  poke(word::feature_bits, 0);

  CHECK_FALSE(eat());
  CHECK_FALSE(eat(45));
}

TEST_CASE_FIXTURE(rig, "ring 19: a wish for D - 1 bytes is fulfilled by the empty ring only") {
  fill(46);
  poke(word::pending_send_size, 4095);

  CHECK_FALSE(eat(45));
  CHECK(eat());
}

TEST_CASE("ring 20: the low three bits of a wish make no difference") {
  for (std::uint32_t wish = 80; wish < 88; ++wish) {
    rig r;
    r.fill(46);
    r.poke(word::pending_send_size, wish);
    CHECK(r.eat());
    CHECK_FALSE(r.eat());
  }
}

TEST_CASE_FIXTURE(rig, "a commit of nothing gives nothing back and never signals") {
  fill(46);
  poke(word::pending_send_size, 40);
  CHECK_FALSE(consumer.commit().signal);
}

TEST_CASE_FIXTURE(rig, "a producer that has refilled more than was freed is not signalled") {
  fill(46);
  poke(word::pending_send_size, 8);
  take(2);
  // As if the producer had written 176 bytes between our two steps: what is free
  // is less than what we freed.
  poke(word::write_index, 128);
  CHECK_FALSE(consumer.commit().signal);
}

TEST_CASE_FIXTURE(rig, "ring 21: a producer that asks for room after it came does not sleep") {
  fill(46);
  REQUIRE(write().code == status::again);
  CHECK_FALSE(eat());

  CHECK(producer.request_space(88) == status::ok);
  CHECK(load(word::pending_send_size) == 88);
  CHECK(write().code == status::ok);
  CHECK(load(word::pending_send_size) == 0);
}

TEST_CASE_FIXTURE(rig, "a producer that asks in vain is signalled when its packet fits") {
  fill(46);
  CHECK(producer.request_space(81) == status::again);
  CHECK(load(word::pending_send_size) == 88);
  CHECK(eat());
  CHECK(producer.request_space(4096) == status::message_size);
}

// ---- Request IDs -----------------------------------------------------------

TEST_CASE_FIXTURE(rig, "ring 22: a packet for which there is no ID is not published") {
  const auto none = [](std::uint64_t&) noexcept { return false; };

  CHECK(producer.write(in_band(hello), none).code == status::again);
  CHECK(W() == 0);
  CHECK(take() == status::again);
}

TEST_CASE_FIXTURE(rig, "an ID is asked for only where a completion is, and after every check") {
  int asked = 0;
  const auto source = [&asked](std::uint64_t& id) noexcept {
    id = 0x77;
    return ++asked, true;
  };
  packet p = in_band(hello, 5);
  p.flags = 0;
  REQUIRE(producer.write(p, source).code == status::ok);
  CHECK(asked == 0);
  CHECK(producer.write(in_band(zeros(4064)), source).code == status::again);
  CHECK(asked == 0);
  REQUIRE(producer.write(in_band(hello, 5), source).code == status::ok);

  take(1);
  CHECK(got.trans_id == 5);
  take(1);
  CHECK(got.trans_id == 0x77);
}

// ---- Hostile peer: the consumer --------------------------------------------

TEST_CASE("ring 25: a write index that cannot be is corrupt, and nothing is delivered") {
  const auto fault = [](std::uint32_t index) {
    rig r;
    return r.fault_of(honest, index);
  };
  CHECK(fault(4096) == ring_fault::index_range);
  CHECK(fault(0xFFFFFFF8u) == ring_fault::index_range);
  CHECK(fault(4) == ring_fault::index_range);
}

TEST_CASE("ring 26: fewer bytes than the smallest packet are corrupt") {
  const auto fault = [](std::uint32_t index) {
    rig r;
    return r.fault_of(honest, index);
  };
  CHECK(fault(8) == ring_fault::short_packet);
  CHECK(fault(16) == ring_fault::short_packet);
}

TEST_CASE("ring 27: a length below the descriptor or beyond what was written is corrupt") {
  const auto fault = [](std::uint16_t len8) {
    rig r;
    return r.fault_of({packet_type::in_band, 2, len8, 1, 1});
  };
  CHECK(fault(0) == ring_fault::bad_length);
  CHECK(fault(1) == ring_fault::bad_length);
  CHECK(fault(0xFFFF) == ring_fault::bad_length);
  CHECK(fault(10) == ring_fault::none);
}

TEST_CASE("ring 28: a length that leaves no room for the trailer is corrupt") {
  rig r;
  CHECK(r.fault_of({packet_type::in_band, 2, 11, 1, 1}) == ring_fault::bad_length);
}

TEST_CASE("ring 29: a payload that starts outside its packet is corrupt") {
  const auto fault = [](std::uint16_t offset8) {
    rig r;
    return r.fault_of({packet_type::in_band, offset8, 10, 1, 1});
  };
  CHECK(fault(0) == ring_fault::bad_offset);
  CHECK(fault(1) == ring_fault::bad_offset);
  CHECK(fault(11) == ring_fault::bad_offset);
}

TEST_CASE_FIXTURE(rig, "ring 29: a payload that starts at the end of its packet is empty") {
  forge(0, {packet_type::in_band, 10, 10, 1, 1}, 88);
  REQUIRE(take() == status::ok);
  CHECK(got.payload_size == 0);
  CHECK(got.extension_size == 64);
}

TEST_CASE("ring 30: a packet above the agreed size is corrupt, not cut") {
  rig r(4096, {guest_accepts, 80});
  CHECK(r.fault_of({packet_type::in_band, 2, 12, 1, 1}, 104) == ring_fault::bad_length);
}

TEST_CASE("ring 31: flags and types that do not exist are corrupt") {
  const auto fault = [](packet_type type, std::uint16_t flags) {
    rig r;
    return r.fault_of({type, 2, 10, flags, 1});
  };
  CHECK(fault(packet_type::in_band, 2) == ring_fault::bad_flags);
  CHECK(fault(packet_type::invalid, 1) == ring_fault::bad_type);
  CHECK(fault(static_cast<packet_type>(8), 1) == ring_fault::bad_type);
  CHECK(fault(static_cast<packet_type>(0xE), 1) == ring_fault::bad_type);
  CHECK(fault(static_cast<packet_type>(0x106), 1) == ring_fault::bad_type);
}

TEST_CASE("a guest does not accept what only guests send") {
  rig r(4096, {guest_accepts, 0});
  CHECK(r.fault_of({packet_type::gpa_direct, 2, 10, 1, 1}) == ring_fault::bad_type);
}

TEST_CASE("ring 36: a GPA-direct packet without a whole range is corrupt") {
  rig r;
  CHECK(r.fault_of({packet_type::gpa_direct, 2, 10, 1, 1}) == ring_fault::bad_ranges);
  rig none;
  CHECK(none.fault_of({packet_type::gpa_direct, 5, 10, 1, 1}) == ring_fault::bad_ranges);
}

TEST_CASE_FIXTURE(rig, "a corrupt ring stays corrupt when the peer mends its lie") {
  REQUIRE(write().code == status::ok);
  poke(word::write_index, 4096);
  REQUIRE(take() == status::io_error);

  poke(word::write_index, 88);

  CHECK(take() == status::io_error);
  CHECK(consumer.commit().code == status::io_error);
  CHECK(consumer.end_read().code == status::io_error);
}

TEST_CASE_FIXTURE(rig, "what was taken before a lie is not given back after it") {
  fill(1);
  take(1);
  forge(88, {packet_type::in_band, 2, 0, 1, 1}, 176);

  CHECK(take() == status::io_error);
  CHECK(consumer.commit().code == status::io_error);
  CHECK(R() == 0);
}

TEST_CASE_FIXTURE(rig, "a write index that moves backwards is corrupt") {
  fill(2);
  take(1);
  poke(word::write_index, 88);

  CHECK(consumer.end_read().code == status::io_error);
  CHECK(consumer.fault() == ring_fault::index_order);
}

TEST_CASE_FIXTURE(rig, "a write index that runs back over what was taken is corrupt") {
  fill(2);
  take(2);
  poke(word::write_index, 88);

  CHECK(take() == status::io_error);
  CHECK(consumer.fault() == ring_fault::index_order);
}

TEST_CASE_FIXTURE(rig, "a lying write index is found by the commit that looks at it") {
  fill(46);
  poke(word::pending_send_size, 88);
  take(1);
  poke(word::write_index, 4);

  const ring_result done = consumer.commit();

  CHECK(done.code == status::io_error);
  CHECK_FALSE(done.signal);
}

TEST_CASE("ring 33: a descriptor that wraps is read intact, and its lies are seen") {
  rig good;
  REQUIRE(good.write(zeros(4064)).code == status::ok);
  good.eat();
  good.fill(1);
  REQUIRE(good.take() == status::ok);
  CHECK(good.payload() == hello);

  rig bad;
  REQUIRE(bad.write(zeros(4064)).code == status::ok);
  bad.eat();
  bad.forge(4088, {packet_type::in_band, 2, 0x1FF, 1, 1}, 80);
  CHECK(bad.take() == status::io_error);
  CHECK(bad.consumer.fault() == ring_fault::bad_length);
}

TEST_CASE_FIXTURE(rig, "ring 37: a peer that scribbles on the consumer's words changes nothing") {
  std::minstd_rand random(37);
  std::uint32_t write_index = 0;
  for (std::uint64_t id = 1; id <= 200; ++id) {
    packet_descriptor next = honest;
    next.trans_id = id;
    const std::uint32_t start = write_index;
    write_index = advance(write_index, 88, 4096);
    forge(start, next, write_index);
    poke(word::read_index, static_cast<std::uint32_t>(random()));
    poke(word::interrupt_mask, static_cast<std::uint32_t>(random()));

    REQUIRE(take() == status::ok);
    REQUIRE(got.trans_id == id);
    REQUIRE(consumer.commit().code == status::ok);
  }
}

// ---- Hostile peer: the producer --------------------------------------------

TEST_CASE("ring 34: a read index that cannot be fails the write before anything is touched") {
  const auto attempt = [](std::uint32_t index) {
    rig r;
    r.poke(word::read_index, index);
    CHECK(r.write().code == status::io_error);
    CHECK(r.W() == 0);
    CHECK(r.dump(0, 4096) == zeros(4096));
    return r.producer.fault();
  };
  CHECK(attempt(4100) == ring_fault::index_range);
  CHECK(attempt(12) == ring_fault::index_range);
  CHECK(attempt(8) == ring_fault::index_order);
}

TEST_CASE_FIXTURE(rig, "ring 34: a read index ahead of the write index fails the write") {
  fill(1);
  poke(word::read_index, 176);

  CHECK(write().code == status::io_error);
  CHECK(W() == 88);
}

TEST_CASE_FIXTURE(rig, "ring 34: a read index that moves backwards fails the write") {
  fill(2);
  poke(word::read_index, 88);
  fill(1);
  poke(word::read_index, 0);

  CHECK(write().code == status::io_error);
  CHECK(producer.fault() == ring_fault::index_order);
  poke(word::read_index, 88);
  CHECK(write().code == status::io_error);
}

TEST_CASE_FIXTURE(rig, "a read index inside the batch that is not published yet is a lie") {
  REQUIRE(producer.put(in_band(hello)) == status::ok);
  poke(word::read_index, 88);
  CHECK(producer.request_space(88) == status::io_error);
}

TEST_CASE_FIXTURE(rig, "a lie met after publishing is reported at once") {
  REQUIRE(producer.put(in_band(hello)) == status::ok);
  poke(word::read_index, 4);
  const ring_result done = producer.flush();
  CHECK(done.code == status::io_error);
  CHECK_FALSE(done.signal);
}

TEST_CASE_FIXTURE(rig, "a producer does not look at the words it owns") {
  fill(1);
  poke(word::write_index, 4000);
  poke(word::pending_send_size, 99);

  CHECK(write().code == status::ok);

  CHECK(W() == 176);
}

}  // TEST_SUITE

// ---- A peer that changes the ring between two looks -------------------------

namespace {

struct meddler {
  std::function<void()> before_copy = [] {};
  std::function<void()> after_copy = [] {};
  int copies = 0;
};

// Memory that lets somebody in between the header's load and the copy of the rest.
struct meddled_memory : flat_memory {
  meddler* who = nullptr;
  meddled_memory() = default;
  meddled_memory(void* control, void* data, std::uint32_t size)
      : flat_memory(control, data, size) {}
  void copy_out(std::uint32_t index, void* to, std::uint32_t count) const noexcept {
    if (who != nullptr) who->before_copy();
    flat_memory::copy_out(index, to, count);
    if (who != nullptr) {
      ++who->copies;
      who->after_copy();
    }
  }
};
static_assert(ring_memory<meddled_memory>);

}  // namespace

TEST_SUITE("ring") {

TEST_CASE("ring 32: a header that changes after it was checked changes nothing") {
  basic_rig<meddled_memory> r;
  meddler who;
  who.before_copy = [&r] { store_le(r.at(4), std::uint16_t{0xFFFF}); };
  who.after_copy = [&r] { store_le(r.at(2), std::uint16_t{200}); };
  r.fill(2);
  meddled_memory memory = r.memory;
  memory.who = &who;
  REQUIRE(r.consumer.attach(memory, {host_accepts, 0}) == status::ok);

  REQUIRE(r.take() == status::ok);

  CHECK(who.copies == 1);
  CHECK(r.got.size == 80);
  CHECK(r.got.payload_size == 64);
  CHECK(load_le<std::uint16_t>(r.buffer.data() + 4) == 10);
  CHECK(load_le<std::uint16_t>(r.buffer.data() + 2) == 2);
  REQUIRE(r.consumer.commit().code == status::ok);
  CHECK(r.R() == 88);
}

TEST_CASE("ring 24: an ID that the peer overwrites in the ring stays as it was issued") {
  rig r;
  std::uint64_t issued = 0;
  REQUIRE(r.producer
              .write(in_band(hello),
                     [&issued](std::uint64_t& id) noexcept {
                       id = issued = 3;
                       return true;
                     })
              .code == status::ok);

  store_le(r.at(8), ~std::uint64_t{0});

  CHECK(issued == 3);
}

}  // TEST_SUITE

// ---- Interleavings ---------------------------------------------------------

namespace {

// Runs two sides step by step in every order there is. A step is one access to
// the control page. Plain and release stores wait in a buffer, first in first
// out, until a step of its own drains them, as on x86; a seq_cst store drains
// the buffer and is visible at once.
class interleaver {
public:
  struct side {
    std::binary_semaphore go{0};
    std::binary_semaphore paused{0};
    bool done = false;
    std::deque<std::pair<word, std::uint32_t>> stores;
  };
  side sides[2];
  std::uint32_t words[32] = {};
  bool weak = false;  // treats seq_cst stores as release stores
  bool quiet = true;  // before and after the race nothing is scheduled
  static thread_local int self;

  static std::size_t index_of(word w) { return static_cast<std::size_t>(w) / 4; }

  void pause() {
    if (quiet) return;
    side& me = sides[self];
    me.paused.release();
    me.go.acquire();
  }
  std::uint32_t load(word w) {
    pause();
    if (!quiet) {
      const auto& mine = sides[self].stores;
      for (auto it = mine.rbegin(); it != mine.rend(); ++it) {
        if (it->first == w) return it->second;
      }
    }
    return words[index_of(w)];
  }
  void store(word w, std::uint32_t value, std::memory_order order) {
    pause();
    if (!quiet && (weak || order != std::memory_order_seq_cst)) {
      sides[self].stores.emplace_back(w, value);
      return;
    }
    if (!quiet) drain_all(sides[self]);
    words[index_of(w)] = value;
  }
  void drain(side& s) {
    words[index_of(s.stores.front().first)] = s.stores.front().second;
    s.stores.pop_front();
  }
  void drain_all(side& s) {
    while (!s.stores.empty()) drain(s);
  }

  // One run. Follows `path` and then always the first choice; `path` becomes the
  // choices made, `widths` how many there were.
  void run(const std::function<void()>& first, const std::function<void()>& second,
           std::vector<int>& path, std::vector<int>& widths) {
    quiet = false;
    const std::function<void()>* bodies[2] = {&first, &second};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([this, i, body = bodies[i]] {
        self = i;
        sides[i].go.acquire();
        (*body)();
        sides[i].done = true;
        sides[i].paused.release();
      });
    }
    widths.clear();
    for (std::size_t depth = 0;; ++depth) {
      std::vector<int> choices;  // 0, 1: let a side run; 2, 3: drain one of its stores
      for (int i = 0; i < 2; ++i) {
        if (!sides[i].done) choices.push_back(i);
        if (!sides[i].stores.empty()) choices.push_back(i + 2);
      }
      if (choices.empty()) break;
      if (depth == path.size()) path.push_back(0);
      widths.push_back(static_cast<int>(choices.size()));
      const int choice = choices[static_cast<std::size_t>(path[depth])];
      if (choice >= 2) {
        drain(sides[choice - 2]);
      } else {
        sides[choice].go.release();
        sides[choice].paused.acquire();
      }
    }
    for (auto& t : threads) t.join();
    quiet = true;
  }
};
thread_local int interleaver::self = 0;

// The next path in depth-first order; false if there is none.
bool next_path(std::vector<int>& path, std::vector<int>& widths) {
  path.resize(widths.size());
  while (!path.empty() && path.back() + 1 == widths.back()) {
    path.pop_back();
    widths.pop_back();
  }
  if (path.empty()) return false;
  ++path.back();
  return true;
}

// Memory whose control words the interleaver owns. The data is plain: what it
// holds does not matter to who sleeps.
struct stepped_memory {
  interleaver* steps = nullptr;
  flat_memory data;
  std::uint32_t data_size() const noexcept { return data.data_size(); }
  std::uint32_t load(word w, std::memory_order) const noexcept { return steps->load(w); }
  void store(word w, std::uint32_t v, std::memory_order order) noexcept {
    steps->store(w, v, order);
  }
  std::uint32_t load_data(std::uint32_t i) const noexcept { return data.load_data(i); }
  void copy_in(std::uint32_t i, const void* from, std::uint32_t n) noexcept {
    data.copy_in(i, from, n);
  }
  void copy_out(std::uint32_t i, void* to, std::uint32_t n) const noexcept {
    data.copy_out(i, to, n);
  }
  void clear_control() noexcept {}
};
static_assert(ring_memory<stepped_memory>);

struct stepped_rig {
  interleaver steps;
  std::vector<std::uint64_t> data = std::vector<std::uint64_t>(512);
  stepped_memory memory{&steps, flat_memory(data.data(), data.data(), 4096)};
  ring_producer<stepped_memory> producer;
  ring_consumer<stepped_memory> consumer;
  bytes buffer = bytes(4096);
  received_packet got{};

  stepped_rig() {
    REQUIRE(producer.attach(memory) == status::ok);
    producer.announce_pending_send();
    REQUIRE(consumer.attach(memory, {host_accepts, 0}) == status::ok);
  }
  bool take() { return consumer.take(buffer.data(), 4096, got) == status::ok; }
};

struct verdict {
  std::size_t runs = 0;
  std::size_t lost = 0;
};

// `Race` has before(), first(), second() and lost(), and a stepped_rig as base.
template <class Race>
verdict every_order(bool weak) {
  verdict out;
  std::vector<int> path;
  std::vector<int> widths;
  do {
    Race race;
    race.before();
    race.steps.weak = weak;
    race.steps.run([&race] { race.first(); }, [&race] { race.second(); }, path, widths);
    ++out.runs;
    out.lost += race.lost();
  } while (!(weak && out.lost != 0) && next_path(path, widths));  // one loss is enough there
  return out;
}

// A packet comes while the consumer stops polling.
struct unmask_race : stepped_rig {
  bool signalled = false;
  bool seen = false;
  void before() { consumer.begin_read(); }
  void first() { signalled = producer.write(in_band(hello)).signal; }
  void second() {
    if (take()) seen = true;
    if (consumer.end_read().bytes != 0) seen = true;
  }
  bool lost() const { return !signalled && !seen; }
};

// The same with a consumer that never masks: it gives back and looks once more.
struct drained_race : stepped_rig {
  bool signalled = false;
  bool seen = false;
  void before() {
    REQUIRE(producer.write(in_band(hello)).signal);
    REQUIRE(take());
  }
  void first() { signalled = producer.write(in_band(hello)).signal; }
  void second() {
    REQUIRE(consumer.commit().code == status::ok);
    seen = take();
  }
  bool lost() const { return !signalled && !seen; }
};

// Room comes while the producer goes to sleep for want of it.
struct space_race : stepped_rig {
  bool asleep = false;
  bool signalled = false;
  void before() {
    while (producer.write(in_band(hello)).code == status::ok) {
    }
    REQUIRE(take());
  }
  void first() { asleep = producer.request_space(88) == status::again; }
  void second() { signalled = consumer.commit().signal; }
  bool lost() const { return asleep && !signalled; }
};

}  // namespace

TEST_SUITE("ring") {

TEST_CASE("ring 14: in no order of steps does a packet meet a sleeping consumer unsignalled") {
  const verdict v = every_order<unmask_race>(false);
  MESSAGE(v.runs, " orders");
  CHECK(v.runs > 50);
  CHECK(v.lost == 0);
}

TEST_CASE("ring 15: in no order of steps does a consumer that never masks miss a packet") {
  const verdict v = every_order<drained_race>(false);
  MESSAGE(v.runs, " orders");
  CHECK(v.runs > 50);
  CHECK(v.lost == 0);
}

TEST_CASE("ring 21: in no order of steps does a producer sleep beside the room it waits for") {
  const verdict v = every_order<space_race>(false);
  MESSAGE(v.runs, " orders");
  CHECK(v.runs > 20);
  CHECK(v.lost == 0);
}

TEST_CASE("with stores that may be delayed past loads each of the three is lost in some order") {
  CHECK(every_order<unmask_race>(true).lost > 0);
  CHECK(every_order<drained_race>(true).lost > 0);
  CHECK(every_order<space_race>(true).lost > 0);
}

}  // TEST_SUITE

// ---- Many packets, two kinds of memory, two threads -------------------------

namespace {

std::uint32_t packets_to_send(std::uint32_t otherwise) {
  const char* const wanted = std::getenv("PMGATE_RING_PACKETS");
  return wanted != nullptr ? static_cast<std::uint32_t>(std::strtoul(wanted, nullptr, 10))
                           : otherwise;
}

// A payload whose every word depends on the packet's number.
struct payload_source {
  std::vector<std::uint64_t> words = std::vector<std::uint64_t>(8192 / 8);
  packet make(std::uint64_t id, std::uint32_t size) {
    for (std::uint32_t i = 0; i * 8 < size; ++i) words[i] = id * 0x9E3779B97F4A7C15u + i;
    packet p;
    p.trans_id = id;
    p.payload = words.data();
    p.payload_size = size;
    return p;
  }
  static bool matches(const received_packet& p, std::uint64_t id, std::uint32_t size) {
    if (p.trans_id != id || p.payload_size != padded(size)) return false;
    for (std::uint32_t i = 0; i < size / 8; ++i) {
      if (load_le<std::uint64_t>(p.payload + 8 * i) !=
          little_endian(id * 0x9E3779B97F4A7C15u + i)) {
        return false;
      }
    }
    return true;
  }
};

std::uint32_t size_of_packet(std::uint64_t id, std::uint32_t limit) {
  return static_cast<std::uint32_t>((id * 0xD1B54A32D192ED03u >> 33) % (limit + 1));
}

}  // namespace

TEST_SUITE("ring") {

#if defined(__linux__)
namespace {

// Sends packets of random size from one kind of memory to the other. The signals
// must be no more than the times the ring was empty.
template <class To, class From>
void interoperate(std::uint32_t size) {
  pmgate::guest_memory file;
  pmgate::ring_mapping mapping;
  REQUIRE(file.create(1 + size / page_size, 100) == status::ok);
  REQUIRE(mapping.map(file.fd(), 0, size / page_size) == status::ok);
  const auto view = [&]<class Memory>(Memory) {
    if constexpr (std::is_same_v<Memory, mirrored_memory>) {
      return mirrored_memory(mapping.address(), size);
    } else {
      return flat_memory(file.translate(100), file.translate(101), size);
    }
  };
  ring_producer<To> producer;
  ring_consumer<From> consumer;
  REQUIRE(producer.attach(view(To{})) == status::ok);
  REQUIRE(consumer.attach(view(From{})) == status::ok);

  payload_source source;
  bytes buffer(size);
  received_packet got;
  std::uint32_t sent = 0, received = 0, signals = 0, empties = 1;
  const std::uint32_t all = packets_to_send(20'000);
  while (received < all) {
    const packet p = source.make(sent, size_of_packet(sent, 4056));
    const ring_result done = sent < all ? producer.write(p) : ring_result{status::again, false};
    if (done.code == status::ok) {
      ++sent;
      signals += done.signal;
      if (sent % 7 != 0) continue;  // let some pile up
    }
    REQUIRE((done.code == status::ok || done.code == status::again));
    REQUIRE(consumer.read(buffer.data(), size, got).code == status::ok);
    REQUIRE(payload_source::matches(got, received, size_of_packet(received, 4056)));
    ++received;
    empties += received == sent;
  }
  CHECK(signals <= empties);
}

}  // namespace

TEST_CASE("the data of a mapped ring shows twice, and its file once") {
  pmgate::guest_memory file;
  pmgate::ring_mapping mapping;
  REQUIRE(file.create(3, 100) == status::ok);
  REQUIRE(mapping.map(file.fd(), 1, 1) == status::ok);
  CHECK(mapping.data_size() == 4096);

  static_cast<unsigned char*>(mapping.address())[4096] = 0x5A;

  CHECK(static_cast<unsigned char*>(mapping.address())[8192] == 0x5A);
  CHECK(static_cast<unsigned char*>(file.translate(102))[0] == 0x5A);
}

TEST_CASE("guest memory translates its own page numbers and no others") {
  pmgate::guest_memory file;
  CHECK(file.translate(0) == nullptr);
  CHECK(file.create(0, 100) == status::invalid);
  REQUIRE(file.create(3, 100) == status::ok);

  CHECK(file.translate(100, 3) != nullptr);
  CHECK(file.translate(99) == nullptr);
  CHECK(file.translate(103) == nullptr);
  CHECK(file.translate(101, 3) == nullptr);
  CHECK(file.translate(~std::uint64_t{0}) == nullptr);
}

TEST_CASE("a doorbell rung before the wait ends it, once, however often it was rung") {
  pmgate::doorbell bell;
  REQUIRE(bell.create() == status::ok);
  const auto now = std::chrono::steady_clock::now();
  CHECK_FALSE(bell.wait_until(now));

  bell.ring();
  bell.ring();

  CHECK(bell.wait_until(now));
  CHECK_FALSE(bell.wait_until(now + std::chrono::milliseconds(2)));
}

TEST_CASE("ring 45: a doubly mapped producer and a split-copy consumer understand each other") {
  interoperate<mirrored_memory, flat_memory>(4096);
  interoperate<mirrored_memory, flat_memory>(8192);
}

TEST_CASE("ring 45: a split-copy producer and a doubly mapped consumer understand each other") {
  interoperate<flat_memory, mirrored_memory>(4096);
  interoperate<flat_memory, mirrored_memory>(8192);
}
#endif

TEST_CASE("two threads that sleep whenever they may lose no packet and no wake-up") {
  rig r;
  std::atomic<std::uint32_t> data_rung{0}, space_rung{0};
  std::atomic<bool> failed{false};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  // Sleeps until the bell has been rung since `seen`; a second too long is a loss.
  const auto sleep = [&](std::atomic<std::uint32_t>& bell, std::uint32_t& seen) {
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (bell.load(std::memory_order_acquire) == seen &&
           !failed.load(std::memory_order_relaxed)) {
      if (std::chrono::steady_clock::now() > patience) failed = true;
      std::this_thread::yield();
    }
    seen = bell.load(std::memory_order_acquire);
  };
  const std::uint64_t last = packets_to_send(30'000);

  std::thread consumer([&] {
    bytes buffer(4096);
    received_packet got;
    std::uint32_t rung = 0;
    for (std::uint64_t next = 1; next <= last && !failed;) {
      r.consumer.begin_read();
      while (r.consumer.take(buffer.data(), 4096, got) == status::ok) {
        if (!payload_source::matches(got, next, size_of_packet(next, 1000))) failed = true;
        ++next;
      }
      const end_read_result end = r.consumer.end_read();
      if (end.code != status::ok) failed = true;
      if (end.signal) space_rung.fetch_add(1, std::memory_order_release);
      if (end.bytes == 0 && next <= last) sleep(data_rung, rung);
    }
  });

  payload_source source;
  std::uint32_t rung = 0;
  std::uint64_t sent = 0;
  while (sent < last && !failed) {
    const packet p = source.make(sent + 1, size_of_packet(sent + 1, 1000));
    const ring_result done = r.producer.write(p);
    if (done.signal) data_rung.fetch_add(1, std::memory_order_release);
    if (done.code == status::ok) ++sent;
    if (done.code == status::again &&
        r.producer.request_space(shape_of(p).total) == status::again) {
      sleep(space_rung, rung);
    }
    if (done.code == status::io_error) failed = true;
  }
  consumer.join();
  CHECK_FALSE(failed.load());
  CHECK(sent == last);
  WARN(std::chrono::steady_clock::now() < deadline);
}

}  // TEST_SUITE
