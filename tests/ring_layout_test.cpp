// SPDX-License-Identifier: MIT
//
// ring_layout_test.cpp - the bytes and the arithmetic of a VMBus ring.
#include <cstdint>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/vmbus/channel_messages.hpp>
#include <pmgate/vmbus/packet.hpp>
#include <pmgate/vmbus/ring_layout.hpp>

namespace {

using namespace pmgate::vmbus;
using pmgate::status;
using bytes = std::vector<unsigned char>;

static_assert(std::is_trivially_copyable_v<packet_descriptor>);
static_assert(std::is_trivially_copyable_v<received_packet>);
static_assert(sizeof(control_page) == 68);
static_assert(noexcept(used_bytes(0, 0, 0)) && noexcept(shape_of(packet{})));

// An extension of one range, with the header in front.
bytes extension(std::uint32_t range_count, std::uint32_t byte_count, std::uint32_t byte_offset,
                std::uint32_t pfns) {
  bytes out(gpa_header_size + gpa_range_header_size + pfns * pfn_size);
  store_le(out.data() + 4, range_count);
  store_le(out.data() + 8, byte_count);
  store_le(out.data() + 12, byte_offset);
  return out;
}

bool intact(const bytes& from) {
  return intact_ranges(from.data(), static_cast<std::uint32_t>(from.size()));
}

}  // namespace

TEST_SUITE("ring_layout") {

TEST_CASE("equal indices mean empty, in the middle as at the start") {
  CHECK(used_bytes(0, 0, 4096) == 0);
  CHECK(used_bytes(88, 88, 4096) == 0);
  CHECK(free_bytes(88, 88, 4096) == 4096);
}

TEST_CASE("a write index below the read index counts round the end") {
  CHECK(used_bytes(40, 4048, 4096) == 88);
  CHECK(free_bytes(40, 4048, 4096) == 4008);
}

TEST_CASE("an index that reaches the end becomes 0") {
  CHECK(advance(4008, 88, 4096) == 0);
  CHECK(advance(4008, 80, 4096) == 4088);
  CHECK(advance(4088, 4096, 4096) == 4088);
}

TEST_CASE("an index is below the size and a multiple of 8") {
  CHECK(valid_index(4088, 4096));
  CHECK_FALSE(valid_index(4096, 4096));
  CHECK_FALSE(valid_index(12, 4096));
  CHECK_FALSE(valid_index(0xFFFFFFF8u, 4096));
}

TEST_CASE("a data area is a positive number of pages") {
  CHECK(valid_data_size(4096));
  CHECK_FALSE(valid_data_size(0));
  CHECK_FALSE(valid_data_size(4104));
  CHECK_FALSE(valid_data_size(0x8000'0000u));
}

TEST_CASE("an empty ring of 128 KiB is 96 percent free, control page included") {
  CHECK(percent_free(126976, 126976) == 96);
}

TEST_CASE("the first free space above 10 percent of a 128 KiB ring is 14424 bytes") {
  CHECK(percent_free(14416, 126976) == 10);
  CHECK(percent_free(14424, 126976) == 11);
}

TEST_CASE("little-endian bytes do not depend on the machine") {
  unsigned char at[8] = {};

  store_le(at, std::uint32_t{0x01020304});

  CHECK(at[0] == 4);
  CHECK(at[3] == 1);
  CHECK(load_le<std::uint32_t>(at) == 0x01020304);
  CHECK(little_endian(little_endian(std::uint16_t{0x1234})) == 0x1234);
}

TEST_CASE("a descriptor comes back from its bytes as it went in") {
  unsigned char at[descriptor_size] = {};
  encode(at, {packet_type::completion, 2, 10, 1, 0xFFFFFFFFFFFFFFFDu});

  const auto word = [&at](std::uint32_t i) { return load_le<std::uint32_t>(at + 4 * i); };
  const packet_descriptor d = decode_descriptor(word(0), word(1), word(2), word(3));

  CHECK(d.type == packet_type::completion);
  CHECK(d.offset8 == 2);
  CHECK(d.len8 == 10);
  CHECK(d.flags == 1);
  CHECK(d.trans_id == 0xFFFFFFFFFFFFFFFDu);
}

TEST_CASE("a trailer holds its packet's start in the upper half") {
  CHECK(trailer_of(88) == std::uint64_t{88} << 32);
}

TEST_CASE("a payload of 5 bytes takes 8") {
  const unsigned char five[5] = {};
  packet p;
  p.payload = five;
  p.payload_size = 5;

  const packet_shape shape = shape_of(p);

  CHECK(shape.offset8 == 2);
  CHECK(shape.len8 == 3);
  CHECK(shape.total == 32);
}

TEST_CASE("8 bytes at page offset 0xFFC take two page frame numbers") {
  const std::uint64_t pfns[2] = {};
  const gpa_range range{8, 0xFFC, pfns};
  packet p;
  p.type = packet_type::gpa_direct;
  p.ranges = &range;
  p.range_count = 1;

  CHECK(shape_of(p).offset8 == 6);
}

TEST_CASE("a packet of 65535 units is the longest, one more is refused") {
  const std::vector<unsigned char> large(65536 * 8);
  packet p;
  p.payload = large.data();
  p.payload_size = 65535 * 8 - descriptor_size;
  CHECK(shape_of(p).code == status::ok);
  CHECK(shape_of(p).len8 == 0xFFFF);

  p.payload_size += 1;
  CHECK(shape_of(p).code == status::message_size);
}

TEST_CASE("a payload near 4 GiB is refused and no sum overflows") {
  packet p;
  p.payload = &p;
  p.payload_size = 0xFFFFFFFFu;
  CHECK(shape_of(p).code == status::message_size);
}

TEST_CASE("packets that contradict themselves are refused") {
  packet p;
  p.flags = 2;
  CHECK(shape_of(p).code == status::invalid);

  p = packet{};
  p.type = packet_type::cancel;
  CHECK(shape_of(p).code == status::invalid);

  p = packet{};
  p.type = packet_type::gpa_direct;
  CHECK(shape_of(p).code == status::invalid);

  const gpa_range none{0, 0, nullptr};
  p.ranges = &none;
  p.range_count = 1;
  CHECK(shape_of(p).code == status::invalid);

  p = packet{};
  p.payload_size = 8;
  CHECK(shape_of(p).code == status::invalid);
}

TEST_CASE("a set of packet types has what was put in and nothing above 15") {
  CHECK(guest_accepts.has(packet_type::in_band));
  CHECK(guest_accepts.has(packet_type::completion));
  CHECK_FALSE(guest_accepts.has(packet_type::gpa_direct));
  CHECK(host_accepts.has(packet_type::gpa_direct));
  CHECK_FALSE(host_accepts.has(static_cast<packet_type>(0x16)));
}

TEST_CASE("the first four bytes of a GPA-direct extension may be garbage") {
  bytes e = extension(1, 4096, 0, 1);
  store_le(e.data(), std::uint32_t{0xDEADBEEF});
  CHECK(intact(e));
}

TEST_CASE("a GPA-direct extension is read range by range") {
  bytes e = extension(2, 4096, 0, 1);
  const bytes second = extension(0, 16, 4088, 2);
  store_le(e.data() + 16, std::uint64_t{0x1234});
  e.insert(e.end(), second.begin() + gpa_header_size, second.end());
  gpa_reader ranges(e.data(), static_cast<std::uint32_t>(e.size()));
  gpa_view range;

  REQUIRE(ranges.next(range));
  CHECK(range.byte_count == 4096);
  CHECK(range.pfn(0) == 0x1234);
  REQUIRE(ranges.next(range));
  CHECK(range.byte_offset == 4088);
  CHECK(range.page_count == 2);
  CHECK_FALSE(ranges.next(range));
  CHECK(ranges.intact());
}

TEST_CASE("ring 36: GPA-direct extensions that contradict themselves are refused") {
  CHECK(intact(extension(1, 8192, 0, 2)));
  CHECK_FALSE(intact(extension(0, 4096, 0, 1)));
  CHECK_FALSE(intact(extension(1, 16, 4096, 2)));
  CHECK_FALSE(intact(extension(1, 0, 0, 1)));
  CHECK_FALSE(intact(extension(1, 0xFFFFFFFFu, 0, 2)));
  CHECK_FALSE(intact(extension(1, 8193, 0, 2)));
  CHECK_FALSE(intact(extension(2, 4096, 0, 1)));
  CHECK_FALSE(intact(bytes(4)));
  CHECK_FALSE(intact(bytes{}));
}

TEST_CASE("a GPADL header takes 26 page numbers and a body 28, in 240 bytes") {
  const std::uint64_t pfns[28] = {7};
  control_message header(message_type::gpadl_header);
  control_message body(message_type::gpadl_body);

  append_pfns(header, pfns, header_pfn_limit);
  append_pfns(body, pfns, body_pfn_limit);

  CHECK(header.size == 236);
  CHECK(body.size == 240);
  CHECK(header.get<std::uint64_t>(field::header_pfns) == 7);
}

TEST_CASE("an offer comes back from its message as it went in") {
  channel_offer offer;
  offer.relid = 11;
  offer.connection_id = 0x10002;
  offer.sub_channel_index = 3;
  offer.instance[15] = 0xAB;

  const control_message m = encode(offer);
  const channel_offer again = decode_offer(m);

  CHECK(m.size == 196);
  CHECK(again.relid == 11);
  CHECK(again.connection_id == 0x10002);
  CHECK(again.sub_channel_index == 3);
  CHECK(again.instance[15] == 0xAB);
}

TEST_CASE("messages that are cut short, too long or of no known type are not intact") {
  const control_message good(message_type::open_result);
  CHECK(good.intact());
  CHECK_FALSE(control_message(good.bytes, 19).intact());
  CHECK_FALSE(control_message(good.bytes, 241).intact());
  CHECK_FALSE(control_message(good.bytes, 0).intact());
  CHECK_FALSE(control_message(static_cast<message_type>(99)).intact());
}

}  // TEST_SUITE
