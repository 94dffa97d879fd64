// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/ring_layout.hpp - the bytes of a VMBus ring and the arithmetic
// of its indices.
//
// A ring is one 4096-byte control page and D data bytes, D a positive multiple
// of 4096. Both indices are byte offsets into the data, always multiples of 8
// and always below D; equal indices mean empty, so a ring is never quite full.
// Everything is little-endian, on every machine.
//
// Counterpart: the VMBus wire format (guest and host must match it exactly).
#ifndef PMGATE_VMBUS_RING_LAYOUT_HPP
#define PMGATE_VMBUS_RING_LAYOUT_HPP

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pmgate::vmbus {

inline constexpr std::uint32_t page_size = 4096;          ///< the unit of PFNs, on every machine
inline constexpr std::uint32_t control_page_size = 4096;  ///< in front of the data of each ring
inline constexpr std::uint32_t data_alignment = 8;        ///< of packets, hence of indices
inline constexpr std::uint32_t descriptor_size = 16;
inline constexpr std::uint32_t trailer_size = 8;
inline constexpr std::uint32_t smallest_packet = descriptor_size + trailer_size;
inline constexpr std::uint32_t largest_len8 = 0xFFFF;  ///< len8 has 16 bits
inline constexpr std::uint32_t largest_data_size = 0x8000'0000u - page_size;

// ---- The control page ------------------------------------------------------

/// The first bytes of the control page; the rest of it is zero.
///
/// Written by the producer: write_index, pending_send_size, feature_bits.
/// Written by the consumer: read_index, interrupt_mask. A hostile peer writes
/// whatever it likes, so nobody reads back a word that is its own.
struct control_page {
  std::uint32_t write_index;        ///< next byte the producer will write
  std::uint32_t read_index;         ///< next byte the consumer will read
  std::uint32_t interrupt_mask;     ///< not 0: do not signal that data arrived
  std::uint32_t pending_send_size;  ///< not 0: signal when more than this is free
  std::uint32_t reserved[12];
  std::uint32_t feature_bits;  ///< bit 0: pending_send_size is in use
};
static_assert(offsetof(control_page, write_index) == 0);
static_assert(offsetof(control_page, read_index) == 4);
static_assert(offsetof(control_page, interrupt_mask) == 8);
static_assert(offsetof(control_page, pending_send_size) == 12);
static_assert(offsetof(control_page, feature_bits) == 64);
static_assert(sizeof(control_page) == 68 && std::is_trivially_copyable_v<control_page>);

/// The words of the control page that mean something, as byte offsets.
enum class control_word : std::uint32_t {
  write_index = 0,
  read_index = 4,
  interrupt_mask = 8,
  pending_send_size = 12,
  feature_bits = 64,
};

/// Bit 0 of feature_bits, set by an endpoint in the ring it produces into: it
/// uses pending_send_size there, and honours its peer's in the other ring.
inline constexpr std::uint32_t feature_pending_send_size = 1;

// ---- Little-endian helpers -------------------------------------------------

/// The value whose bytes in memory are those of `value`, little-endian.
/// Its own inverse: converts from the wire as well as to it.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T little_endian(T value) noexcept {
  if constexpr (std::endian::native == std::endian::little) {
    return value;
  } else {
    T swapped = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      const T byte = static_cast<T>((value >> (8 * i)) & 0xFFu);
      swapped = static_cast<T>(swapped | static_cast<T>(byte << (8 * (sizeof(T) - 1 - i))));
    }
    return swapped;
  }
}

/// Stores `value` at `to`, little-endian, without alignment.
template <std::unsigned_integral T>
constexpr void store_le(unsigned char* to, T value) noexcept {
  if (std::is_constant_evaluated()) {
    for (std::size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<unsigned char>(value >> 8 * i);
  } else {
    const T wire = little_endian(value);  // one store: a load of the whole will follow
    __builtin_memcpy(to, &wire, sizeof(T));
  }
}

/// Loads a little-endian value from `from`, without alignment.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T load_le(const unsigned char* from) noexcept {
  T value = 0;
  if (std::is_constant_evaluated()) {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value = static_cast<T>(value | static_cast<T>(T{from[i]} << 8 * i));
    }
  } else {
    __builtin_memcpy(&value, from, sizeof(T));
    value = little_endian(value);
  }
  return value;
}

// ---- A packet --------------------------------------------------------------
//
//   start          +16          offset8 * 8        len8 * 8          + 8
//     | descriptor  | extension      | payload, padded | trailer      |
//     |             | (GPA direct)   | to 8 bytes      | start << 32  |

/// What follows the descriptor, and who may send it.
enum class packet_type : std::uint16_t {
  invalid = 0x0,
  in_band = 0x6,         ///< payload only
  transfer_pages = 0x7,  ///< network devices
  gpa_direct = 0x9,      ///< payload about guest memory that the extension lists
  cancel = 0xA,
  completion = 0xB,  ///< answers the packet with the same trans_id
};

/// The only flag there is: the sender wants a completion.
inline constexpr std::uint16_t flag_completion_requested = 1;

/// The 16 bytes in front of every packet, in host byte order.
struct packet_descriptor {
  packet_type type = packet_type::invalid;
  std::uint16_t offset8 = 0;  ///< where the payload starts, in units of 8 bytes
  std::uint16_t len8 = 0;     ///< the packet without its trailer, in units of 8 bytes
  std::uint16_t flags = 0;
  std::uint64_t trans_id = 0;  ///< echoed in the completion
};
static_assert(sizeof(packet_descriptor) == descriptor_size, "fields lie as on the wire");
static_assert(offsetof(packet_descriptor, trans_id) == 8);

/// Encodes a descriptor into 16 bytes.
constexpr void encode(unsigned char* to, const packet_descriptor& from) noexcept {
  store_le(to, static_cast<std::uint16_t>(from.type));
  store_le(to + 2, from.offset8);
  store_le(to + 4, from.len8);
  store_le(to + 6, from.flags);
  store_le(to + 8, from.trans_id);
}

/// Decodes a descriptor from its four 32-bit words, as loaded from the ring.
[[nodiscard]] constexpr packet_descriptor decode_descriptor(std::uint32_t word0,
                                                            std::uint32_t word1,
                                                            std::uint32_t word2,
                                                            std::uint32_t word3) noexcept {
  return {static_cast<packet_type>(static_cast<std::uint16_t>(word0)),
          static_cast<std::uint16_t>(word0 >> 16), static_cast<std::uint16_t>(word1),
          static_cast<std::uint16_t>(word1 >> 16), std::uint64_t{word3} << 32 | word2};
}

static_assert(
    [] {
      unsigned char at[descriptor_size] = {};
      encode(at, {packet_type::gpa_direct, 5, 13, 1, 0x30006});
      return at[0] == 9 && at[2] == 5 && at[4] == 13 && load_le<std::uint64_t>(at + 8) == 0x30006;
    }(),
    "the fields follow each other, little-endian");

/// The trailer of a packet that starts at `start`: its own start, upper half.
[[nodiscard]] constexpr std::uint64_t trailer_of(std::uint32_t start) noexcept {
  return std::uint64_t{start} << 32;
}

/// `size` rounded up to the alignment of packets.
[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t size) noexcept {
  return (size + (data_alignment - 1)) & ~std::uint64_t{data_alignment - 1};
}

// ---- The GPA-direct extension ----------------------------------------------
//
//   +16 reserved, 4 bytes   +20 range_count, 4 bytes   then for each range:
//   byte_count, 4 bytes     byte_offset, 4 bytes       one 8-byte PFN per page

inline constexpr std::uint32_t gpa_header_size = 8;        ///< reserved and range_count
inline constexpr std::uint32_t gpa_range_header_size = 8;  ///< byte_count and byte_offset
inline constexpr std::uint32_t pfn_size = 8;

/// How many pages a range touches: `offset` counts from the first one's start.
[[nodiscard]] constexpr std::uint64_t gpa_page_count(std::uint32_t byte_offset,
                                                     std::uint32_t byte_count) noexcept {
  return (std::uint64_t{byte_offset} + byte_count + (page_size - 1)) / page_size;
}
static_assert(gpa_page_count(0xFFC, 8) == 2, "the offset into the first page counts");

// ---- Index arithmetic ------------------------------------------------------
//
//   0        R           W        D          0        W           R        D
//   |..free..|###used####|..free..|          |##used##|...free....|##used##|

/// True if `size` can be the size of a data area.
[[nodiscard]] constexpr bool valid_data_size(std::uint32_t size) noexcept {
  return size != 0 && size % page_size == 0 && size <= largest_data_size;
}

/// True if `index` can be an index into `size` data bytes.
[[nodiscard]] constexpr bool valid_index(std::uint32_t index, std::uint32_t size) noexcept {
  return index < size && index % data_alignment == 0;
}

/// Bytes from `read` on to `write`: what is readable, or how far apart they lie.
[[nodiscard]] constexpr std::uint32_t used_bytes(std::uint32_t write, std::uint32_t read,
                                                 std::uint32_t size) noexcept {
  return write >= read ? write - read : size - read + write;
}

/// Bytes not used. A packet fits if its total is *less* than this.
[[nodiscard]] constexpr std::uint32_t free_bytes(std::uint32_t write, std::uint32_t read,
                                                 std::uint32_t size) noexcept {
  return size - used_bytes(write, read, size);
}

/// `index` moved on by `count`, which is at most `size`. Never returns `size`.
[[nodiscard]] constexpr std::uint32_t advance(std::uint32_t index, std::uint32_t count,
                                              std::uint32_t size) noexcept {
  const std::uint32_t sum = index + count;
  return sum >= size ? sum - size : sum;
}

/// Free space in percent of the whole ring, control page included, as storage
/// drivers compute it: an empty ring of 128 KiB reads 96.
/// Kernel: hv_get_avail_to_write_percent().
[[nodiscard]] constexpr std::uint32_t percent_free(std::uint32_t free,
                                                   std::uint32_t size) noexcept {
  const std::uint64_t ring_size = std::uint64_t{size} + control_page_size;
  return static_cast<std::uint32_t>(std::uint64_t{free} * 10 / (ring_size / 10));
}

static_assert(used_bytes(0, 0, 4096) == 0 && free_bytes(0, 0, 4096) == 4096);
static_assert(used_bytes(0, 4008, 4096) == 88, "an index that reached the end is 0");
static_assert(advance(4008, 88, 4096) == 0 && advance(4088, 88, 4096) == 80);
static_assert(percent_free(126976, 126976) == 96);
static_assert(percent_free(14424, 126976) == 11 && percent_free(14416, 126976) == 10);

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_RING_LAYOUT_HPP
