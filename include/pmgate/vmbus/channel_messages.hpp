// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/channel_messages.hpp - what guest and host say to each other
// beside the rings.
//
// Control messages carry at most 240 bytes and begin with a 32-bit type and 32
// bits of padding. Everything is little-endian and nothing is aligned to more
// than it happens to be, so fields are read and written by their offset.
//
// Counterpart: the VMBus channel messages (guest and host must match exactly).
#ifndef PMGATE_VMBUS_CHANNEL_MESSAGES_HPP
#define PMGATE_VMBUS_CHANNEL_MESSAGES_HPP

#include <concepts>
#include <cstdint>

#include <pmgate/vmbus/ring_layout.hpp>
#include <pmgate/vmbus/ring_memory.hpp>

namespace pmgate::vmbus {

inline constexpr std::uint32_t max_message_size = 240;
inline constexpr std::uint32_t max_userdata_size = 120;
inline constexpr std::uint32_t first_gpadl = 0xE1E10;  ///< the first handle a guest uses

/// What a message says. The comment tells its direction and its size.
enum class message_type : std::uint32_t {
  invalid = 0,
  offer = 1,             ///< host to guest, 196
  rescind = 2,           ///< host to guest, 12
  request_offers = 3,    ///< guest to host, 8
  offers_delivered = 4,  ///< host to guest, 8
  open = 5,              ///< guest to host, 148
  open_result = 6,       ///< host to guest, 20
  close = 7,             ///< guest to host, 12; nothing answers it
  gpadl_header = 8,      ///< guest to host, up to 240
  gpadl_body = 9,        ///< guest to host, up to 240
  gpadl_created = 10,    ///< host to guest, 20
  gpadl_teardown = 11,   ///< guest to host, 16
  gpadl_torndown = 12,   ///< host to guest, 12
  relid_released = 13,   ///< guest to host, 12
  unload = 16,           ///< guest to host, 8
  unload_response = 17,  ///< host to guest, 8
};

/// Offsets of fields.
namespace field {
inline constexpr std::uint32_t relid = 8;     ///< of all but gpadl_torndown and gpadl_body
inline constexpr std::uint32_t open_id = 12;  ///< open, open_result
inline constexpr std::uint32_t open_gpadl = 16;
inline constexpr std::uint32_t open_target_vp = 20;
inline constexpr std::uint32_t open_second_ring = 24;  ///< in pages
inline constexpr std::uint32_t open_userdata = 28;
inline constexpr std::uint32_t gpadl = 12;  ///< of all but gpadl_torndown and open
inline constexpr std::uint32_t torndown_gpadl = 8;
inline constexpr std::uint32_t result = 16;  ///< open_result, gpadl_created; 0 is success
inline constexpr std::uint32_t gpadl_range_length = 16;  ///< 16 bits: 8 + 8 * pages
inline constexpr std::uint32_t gpadl_range_count = 18;   ///< 16 bits: 1
inline constexpr std::uint32_t gpadl_byte_count = 20;
inline constexpr std::uint32_t gpadl_byte_offset = 24;
inline constexpr std::uint32_t header_pfns = 28;
inline constexpr std::uint32_t body_pfns = 16;
}  // namespace field

inline constexpr std::uint32_t header_pfn_limit = (max_message_size - field::header_pfns) / 8;
inline constexpr std::uint32_t body_pfn_limit = (max_message_size - field::body_pfns) / 8;
inline constexpr std::uint32_t gpadl_page_limit = (0xFFFF - 8) / 8;  ///< a 16-bit length
static_assert(header_pfn_limit == 26 && body_pfn_limit == 28);

/// The least size of a message of this type; 0 for types not known here.
[[nodiscard]] constexpr std::uint32_t least_size(message_type type) noexcept {
  switch (type) {
    case message_type::offer: return 196;
    case message_type::open: return field::open_userdata + max_userdata_size;
    case message_type::open_result:
    case message_type::gpadl_created: return 20;
    case message_type::gpadl_header: return field::header_pfns;
    case message_type::gpadl_body:
    case message_type::gpadl_teardown: return 16;
    case message_type::rescind:
    case message_type::close:
    case message_type::gpadl_torndown:
    case message_type::relid_released: return 12;
    case message_type::request_offers:
    case message_type::offers_delivered:
    case message_type::unload:
    case message_type::unload_response: return 8;
    default: return 0;
  }
}

/// A message as it travels; bytes behind `size` are zero.
struct control_message {
  unsigned char bytes[max_message_size] = {};
  std::uint32_t size = 0;

  control_message() = default;

  /// A message of the least size of its type; all fields zero.
  constexpr explicit control_message(message_type type) noexcept : size(least_size(type)) {
    store_le(bytes, static_cast<std::uint32_t>(type));
  }

  /// A copy of bytes that came from somewhere; see intact().
  control_message(const void* from, std::uint32_t count) noexcept
      : size(count <= max_message_size ? count : 0) {
    detail::copy_bytes(bytes, from, size);
  }

  [[nodiscard]] constexpr message_type type() const noexcept {
    return static_cast<message_type>(load_le<std::uint32_t>(bytes));
  }
  /// True if the type is known and every field of it has arrived.
  [[nodiscard]] constexpr bool intact() const noexcept {
    return size != 0 && least_size(type()) != 0 && size >= least_size(type());
  }
  template <std::unsigned_integral T = std::uint32_t>
  [[nodiscard]] constexpr T get(std::uint32_t offset) const noexcept {
    return load_le<T>(bytes + offset);
  }
  template <std::unsigned_integral T>
  constexpr control_message& set(std::uint32_t offset, T value) noexcept {
    store_le(bytes + offset, value);
    return *this;
  }
};

/// What a guest needs of an offer.
struct channel_offer {
  unsigned char interface_type[16] = {};
  unsigned char instance[16] = {};
  std::uint16_t sub_channel_index = 0;  ///< 0: the primary channel of its device
  std::uint32_t relid = 0;              ///< the channel's name in all messages
  std::uint32_t connection_id = 0;      ///< the channel's name at its doorbell
};

/// Writes an offer message.
[[nodiscard]] inline control_message encode(const channel_offer& offer) noexcept {
  control_message m(message_type::offer);
  detail::copy_bytes(m.bytes + 8, offer.interface_type, 16);
  detail::copy_bytes(m.bytes + 24, offer.instance, 16);
  return m.set(180, offer.sub_channel_index)
      .set(184, offer.relid)
      .set(190, std::uint16_t{1})
      .set(192, offer.connection_id);
}

/// Reads an offer message.  Precondition: it is one, and intact.
[[nodiscard]] inline channel_offer decode_offer(const control_message& m) noexcept {
  channel_offer offer;
  detail::copy_bytes(offer.interface_type, m.bytes + 8, 16);
  detail::copy_bytes(offer.instance, m.bytes + 24, 16);
  offer.sub_channel_index = m.get<std::uint16_t>(180);
  offer.relid = m.get(184);
  offer.connection_id = m.get(192);
  return offer;
}

/// Appends PFNs to a gpadl_header or gpadl_body.  Precondition: they fit.
inline void append_pfns(control_message& m, const std::uint64_t* pfns,
                        std::uint32_t count) noexcept {
  for (std::uint32_t i = 0; i < count; ++i, m.size += 8) m.set(m.size, pfns[i]);
}

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_CHANNEL_MESSAGES_HPP
