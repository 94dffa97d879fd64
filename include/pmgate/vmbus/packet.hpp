// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/packet.hpp - what is put into a ring, and what may come out.
//
// Outgoing packets are described, never built: the ring writes the pieces
// straight to their place. Incoming packets are checked field by field, always
// on a private copy: what was checked is what is used, whatever the peer does
// to the ring meanwhile.
//
// Counterpart: the VMBus packet formats; stricter than the kernel, which clamps.
#ifndef PMGATE_VMBUS_PACKET_HPP
#define PMGATE_VMBUS_PACKET_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <pmgate/status.hpp>
#include <pmgate/vmbus/ring_layout.hpp>
#include <pmgate/vmbus/ring_memory.hpp>

namespace pmgate::vmbus {

/// Which rule the peer broke. The first breach is final: the ring stays corrupt.
enum class ring_fault : std::uint8_t {
  none,
  detached,      ///< no fault of the peer: there is no ring here
  bad_geometry,  ///< no fault of the peer: the data area has no legal size
  index_range,   ///< an index that is not below D or not a multiple of 8
  index_order,   ///< an index that moved backwards, or past what was written
  short_packet,  ///< fewer bytes published than the smallest packet has
  bad_length,    ///< len8 below a descriptor, above the limit or past the write index
  bad_offset,    ///< offset8 outside its packet
  bad_flags,     ///< a flag that does not exist
  bad_type,      ///< a type that this end does not accept
  bad_ranges,    ///< a GPA-direct extension that contradicts itself
};

/// What an operation on a ring with this fault returns.
[[nodiscard]] constexpr status status_of(ring_fault fault) noexcept {
  switch (fault) {
    case ring_fault::none: return status::ok;
    case ring_fault::detached: return status::no_device;
    case ring_fault::bad_geometry: return status::invalid;
    default: return status::io_error;
  }
}

/// The name of a fault, for logs.
[[nodiscard]] constexpr const char* to_string(ring_fault fault) noexcept {
  switch (fault) {
    case ring_fault::none: return "none";
    case ring_fault::detached: return "detached";
    case ring_fault::bad_geometry: return "bad geometry";
    case ring_fault::index_range: return "index out of range";
    case ring_fault::index_order: return "index out of order";
    case ring_fault::short_packet: return "short packet";
    case ring_fault::bad_length: return "bad length";
    case ring_fault::bad_offset: return "bad offset";
    case ring_fault::bad_flags: return "bad flags";
    case ring_fault::bad_type: return "bad type";
    case ring_fault::bad_ranges: return "bad ranges";
  }
  return "unknown";
}

/// The types a consumer accepts, as a set of bits.
struct packet_types {
  std::uint16_t bits = 0;

  [[nodiscard]] constexpr packet_types with(packet_type type) const noexcept {
    const auto number = static_cast<std::uint16_t>(type);
    return {static_cast<std::uint16_t>(number < 16 ? bits | 1u << number : bits)};
  }
  [[nodiscard]] constexpr bool has(packet_type type) const noexcept {
    const auto number = static_cast<std::uint16_t>(type);
    return number < 16 && (bits >> number & 1u) != 0;
  }
};

/// What a guest accepts from its host.
inline constexpr packet_types guest_accepts =
    packet_types{}.with(packet_type::in_band).with(packet_type::completion);
/// What a host accepts from its guest.
inline constexpr packet_types host_accepts = guest_accepts.with(packet_type::gpa_direct);

// ---- Outgoing --------------------------------------------------------------

/// A piece of guest memory that an outgoing packet is about.
struct gpa_range {
  std::uint32_t byte_count = 0;         ///< at least 1
  std::uint32_t byte_offset = 0;        ///< into the first page, below 4096
  const std::uint64_t* pfns = nullptr;  ///< gpa_page_count(byte_offset, byte_count) of them
};

/// A packet to send. Everything it points to is only read, and only by put().
struct packet {
  packet_type type = packet_type::in_band;  ///< in_band, gpa_direct or completion
  std::uint16_t flags = 0;                  ///< 0 or flag_completion_requested
  std::uint64_t trans_id = 0;
  const void* payload = nullptr;
  std::uint32_t payload_size = 0;     ///< padded with zeros to 8 bytes on the wire
  const gpa_range* ranges = nullptr;  ///< for gpa_direct, and only for it
  std::uint32_t range_count = 0;
};

/// How much room a packet takes.
struct packet_shape {
  status code = status::ok;
  std::uint16_t offset8 = 0;
  std::uint16_t len8 = 0;
  std::uint32_t total = 0;  ///< bytes in the ring, trailer included
};

/// Works out the shape of `p`, and whether it is legal at all.
///
/// Returns: code `ok`; `invalid` for a packet that contradicts itself;
/// `message_size` if it is longer than its length field can say.
[[nodiscard]] constexpr packet_shape shape_of(const packet& p) noexcept {
  const bool direct = p.type == packet_type::gpa_direct;
  const bool known = direct || p.type == packet_type::in_band || p.type == packet_type::completion;
  if (!known || (p.flags & ~flag_completion_requested) != 0) return {status::invalid};
  if (direct != (p.range_count != 0)) return {status::invalid};
  if (direct && p.ranges == nullptr) return {status::invalid};
  if (p.payload_size != 0 && p.payload == nullptr) return {status::invalid};

  std::uint64_t offset = descriptor_size;
  if (direct) offset += gpa_header_size;
  for (std::uint32_t i = 0; i < p.range_count; ++i) {
    const gpa_range& range = p.ranges[i];
    if (range.byte_count == 0 || range.byte_offset >= page_size) return {status::invalid};
    offset +=
        gpa_range_header_size + pfn_size * gpa_page_count(range.byte_offset, range.byte_count);
    if (offset / 8 > largest_len8) return {status::message_size};
  }
  const std::uint64_t length = offset + padded(p.payload_size);
  if (length / 8 > largest_len8) return {status::message_size};
  return {status::ok, static_cast<std::uint16_t>(offset / 8),
          static_cast<std::uint16_t>(length / 8),
          static_cast<std::uint32_t>(length + trailer_size)};
}

// ---- Incoming --------------------------------------------------------------

/// A packet that was received, validated, in the reader's private buffer.
struct received_packet {
  packet_type type = packet_type::invalid;
  std::uint16_t flags = 0;
  std::uint64_t trans_id = 0;
  const unsigned char* extension = nullptr;  ///< between descriptor and payload
  std::uint32_t extension_size = 0;
  const unsigned char* payload = nullptr;
  std::uint32_t payload_size = 0;  ///< padded: the true length is not on the wire
  std::uint32_t size = 0;          ///< of the whole packet without its trailer
};

/// Checks a descriptor against what was published and what may be sent.
///
/// `unread` is what lies between the read and the write index, trailers included.
[[nodiscard]] constexpr ring_fault check_descriptor(const packet_descriptor& d,
                                                    std::uint32_t unread, std::uint32_t max_packet,
                                                    packet_types accepted) noexcept {
  const std::uint32_t length = std::uint32_t{d.len8} * 8;
  const std::uint32_t offset = std::uint32_t{d.offset8} * 8;
  if (length < descriptor_size || length + trailer_size > unread || length > max_packet) {
    return ring_fault::bad_length;
  }
  if (offset < descriptor_size || offset > length) return ring_fault::bad_offset;
  if ((d.flags & ~flag_completion_requested) != 0) return ring_fault::bad_flags;
  return accepted.has(d.type) ? ring_fault::none : ring_fault::bad_type;
}

/// One range of a received GPA-direct packet.
struct gpa_view {
  std::uint32_t byte_count = 0;
  std::uint32_t byte_offset = 0;
  std::uint32_t page_count = 0;
  const unsigned char* pfn_bytes = nullptr;

  /// The page frame number of page `i`. It is the peer's word: translate it only
  /// to memory that the peer may use.  Precondition: i < page_count.
  [[nodiscard]] constexpr std::uint64_t pfn(std::uint32_t i) const noexcept {
    return load_le<std::uint64_t>(pfn_bytes + std::size_t{pfn_size} * i);
  }
};

/// Walks the ranges of a GPA-direct extension and trusts none of its numbers.
///
///     for (gpa_reader ranges(p.extension, p.extension_size); ranges.next(range);) ...
///
/// Lifetime: a view of the private copy.  Threads: one.
class gpa_reader {
public:
  constexpr gpa_reader(const unsigned char* extension, std::uint32_t size) noexcept
      : at_(extension), left_(size) {
    if (size < gpa_header_size) return;
    count_ = load_le<std::uint32_t>(extension + 4);  // the first four bytes may be garbage
    intact_ = count_ != 0;
    at_ += gpa_header_size;
    left_ -= gpa_header_size;
  }

  /// Moves on to the next range.
  /// Returns: false at the end, or at the first range that is malformed.
  [[nodiscard]] constexpr bool next(gpa_view& range) noexcept {
    if (!intact_ || count_ == 0) return false;
    intact_ = read(range);
    if (!intact_) return false;
    --count_;
    return true;
  }

  /// False once anything was found that does not fit.
  [[nodiscard]] constexpr bool intact() const noexcept { return intact_; }

private:
  [[nodiscard]] constexpr bool read(gpa_view& range) noexcept {
    if (left_ < gpa_range_header_size) return false;
    const auto bytes = load_le<std::uint32_t>(at_);
    const auto offset = load_le<std::uint32_t>(at_ + 4);
    if (bytes == 0 || offset >= page_size) return false;
    constexpr std::uint32_t most = (std::numeric_limits<std::uint32_t>::max)();
    if (bytes > most - offset - (page_size - 1)) return false;  // such sums overflow elsewhere
    const std::uint64_t pages = gpa_page_count(offset, bytes);
    if (pages > (left_ - gpa_range_header_size) / pfn_size) return false;

    range = {bytes, offset, static_cast<std::uint32_t>(pages), at_ + gpa_range_header_size};
    const auto taken = static_cast<std::uint32_t>(gpa_range_header_size + pages * pfn_size);
    at_ += taken;
    left_ -= taken;
    return true;
  }

  const unsigned char* at_;
  std::uint32_t left_;
  std::uint32_t count_ = 0;
  bool intact_ = false;
};

/// True if every range of the extension lies inside it and makes sense.
[[nodiscard]] constexpr bool intact_ranges(const unsigned char* extension,
                                           std::uint32_t size) noexcept {
  gpa_reader ranges(extension, size);
  for (gpa_view range; ranges.next(range);) {
  }
  return ranges.intact();
}

// ---- Between a packet and the bytes of a ring ------------------------------

namespace detail {

/// Writes one piece after the other into the data area, around its end.
template <ring_memory Memory>
struct ring_cursor {
  Memory& memory;
  std::uint32_t at;

  void put(const void* from, std::uint32_t count) noexcept {
    memory.copy_in(at, from, count);
    at = advance(at, count, memory.data_size());
  }
};

template <ring_memory Memory>
void write_pfns(ring_cursor<Memory>& to, const std::uint64_t* pfns, std::uint64_t count) noexcept {
  if constexpr (std::endian::native == std::endian::little) {
    to.put(pfns, static_cast<std::uint32_t>(count * pfn_size));
  } else {
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t wire = little_endian(pfns[i]);
      to.put(&wire, pfn_size);
    }
  }
}

/// Writes extension, payload, padding and trailer of a packet that starts at
/// `start`: everything but the descriptor. The packet fits.
template <ring_memory Memory>
void write_body(Memory& memory, std::uint32_t start, const packet& p) noexcept {
  ring_cursor<Memory> to{memory, advance(start, descriptor_size, memory.data_size())};
  unsigned char words[8] = {};
  if (p.range_count != 0) {
    store_le(words + 4, p.range_count);
    to.put(words, gpa_header_size);
  }
  for (std::uint32_t i = 0; i < p.range_count; ++i) {
    const gpa_range& range = p.ranges[i];
    store_le(words, range.byte_count);
    store_le(words + 4, range.byte_offset);
    to.put(words, gpa_range_header_size);
    write_pfns(to, range.pfns, gpa_page_count(range.byte_offset, range.byte_count));
  }
  to.put(p.payload, p.payload_size);

  const auto padding = static_cast<std::uint32_t>(padded(p.payload_size) - p.payload_size);
  store_le(words, std::uint64_t{0});
  if (padding != 0) to.put(words, padding);
  store_le(words, trailer_of(start));
  to.put(words, trailer_size);
}

/// Loads the descriptor at `start`, each of its words once.
template <ring_memory Memory>
[[nodiscard]] packet_descriptor load_descriptor(const Memory& memory,
                                                std::uint32_t start) noexcept {
  // Packets and D are multiples of 8: no half of a descriptor wraps, but the
  // second half may lie at the start.
  const std::uint32_t half = advance(start, 8, memory.data_size());
  const std::uint32_t word0 = memory.load_data(start);
  const std::uint32_t word1 = memory.load_data(start + 4);
  const std::uint32_t word2 = memory.load_data(half);
  const std::uint32_t word3 = memory.load_data(half + 4);
  return decode_descriptor(word0, word1, word2, word3);
}

}  // namespace detail

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_PACKET_HPP
