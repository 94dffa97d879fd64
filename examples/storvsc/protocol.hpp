// SPDX-License-Identifier: MIT
//
// storvsc/protocol.hpp - what storage guest and storage host say to each other.
//
// Every message is a vstor_packet: twelve bytes of header and a body of up to 52
// bytes, carried as the payload of a VMBus packet. Everything is little-endian
// but SCSI itself: CDBs, sense and parameter data are big-endian. Structs here
// hold values in host byte order; encode() and decode() are the only way between
// them and bytes.
//
// Counterpart: the vstor protocol (guest and host must match it exactly).
#ifndef STORVSC_PROTOCOL_HPP
#define STORVSC_PROTOCOL_HPP

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <pmgate/vmbus/ring_layout.hpp>

namespace storvsc {

using pmgate::vmbus::load_le;
using pmgate::vmbus::store_le;

/// Stores `value` at `to`, big-endian, without alignment.
template <std::unsigned_integral T>
constexpr void store_be(unsigned char* to, T value) noexcept {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    to[i] = static_cast<unsigned char>(value >> (8 * (sizeof(T) - 1 - i)));
  }
}

/// Loads a big-endian value from `from`, without alignment.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T load_be(const unsigned char* from) noexcept {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value = value << 8 | from[i];
  return static_cast<T>(value);
}

// ---- Identity --------------------------------------------------------------

/// Interface type of a SCSI controller, ba6163d9-04a1-4d29-b605-72e2ffb1dc7f, as on the wire.
inline constexpr std::array<unsigned char, 16> scsi_interface_type = {
    0xD9, 0x63, 0x61, 0xBA, 0xA1, 0x04, 0x29, 0x4D, 0xB6, 0x05, 0x72, 0xE2, 0xFF, 0xB1, 0xDC, 0x7F};

/// trans_id of the requests of the negotiation, and of a reset.
inline constexpr std::uint64_t init_trans_id = 0xFFFF'FFFF'FFFF'FFFDu;
inline constexpr std::uint64_t reset_trans_id = 0xFFFF'FFFF'FFFF'FFFCu;

// ---- Operations ------------------------------------------------------------

/// What a vstor_packet is about.
enum class operation : std::uint32_t {
  none = 0,
  complete_io = 1,             ///< host: every completion, whatever it completes
  remove_device = 2,           ///< host, unsolicited
  execute_srb = 3,             ///< guest
  reset_lun = 4,               ///< guest
  reset_adapter = 5,           ///< guest
  reset_bus = 6,               ///< guest
  begin_initialization = 7,    ///< guest
  end_initialization = 8,      ///< guest
  query_protocol_version = 9,  ///< guest
  query_properties = 10,       ///< guest
  enumerate_bus = 11,          ///< host, unsolicited
  fchba_data = 12,             ///< Fibre Channel only
  create_sub_channels = 13,    ///< guest
  event_notification = 14,     ///< host, unsolicited
};

/// vstor_packet::flags of a request: a completion is wanted.
inline constexpr std::uint32_t vstor_completion_requested = 1;

/// vstor_packet::status. For SRBs it only mirrors the SRB status.
namespace nt_status {
inline constexpr std::uint32_t success = 0;
inline constexpr std::uint32_t buffer_overflow = 0x80000005;
inline constexpr std::uint32_t device_busy = 0x80000011;
inline constexpr std::uint32_t unsuccessful = 0xC0000001;
inline constexpr std::uint32_t invalid_parameter = 0xC000000D;
inline constexpr std::uint32_t invalid_device_request = 0xC0000010;
inline constexpr std::uint32_t revision_mismatch = 0xC0000059;
inline constexpr std::uint32_t device_not_connected = 0xC000009D;
inline constexpr std::uint32_t io_timeout = 0xC00000B5;
inline constexpr std::uint32_t device_does_not_exist = 0xC00000C0;
inline constexpr std::uint32_t cancelled = 0xC0000120;
inline constexpr std::uint32_t invalid_device_state = 0xC0000184;
inline constexpr std::uint32_t io_device_error = 0xC0000185;
}  // namespace nt_status

// ---- Versions --------------------------------------------------------------

/// Protocol versions: major << 8 | minor.
namespace version {
inline constexpr std::uint16_t win6 = 0x0200;
inline constexpr std::uint16_t win7 = 0x0402;
inline constexpr std::uint16_t win8 = 0x0501;
inline constexpr std::uint16_t win8_1 = 0x0600;
inline constexpr std::uint16_t win10 = 0x0602;
inline constexpr std::array<std::uint16_t, 5> known = {win6, win7, win8, win8_1, win10};
}  // namespace version

inline constexpr std::size_t vstor_header_size = 12;
inline constexpr std::size_t vstor_body_size = 52;
inline constexpr std::size_t vstor_size = vstor_header_size + vstor_body_size;
inline constexpr std::size_t srb_size_before_win8 = 36;
inline constexpr std::size_t sense_size = 20;
inline constexpr std::size_t sense_size_before_win8 = 18;
inline constexpr std::size_t cdb_size = 16;

/// Bytes of an SRB, hence of the body of a message that carries one.
[[nodiscard]] constexpr std::size_t srb_size_of(std::uint16_t v) noexcept {
  return v >= version::win8 ? vstor_body_size : srb_size_before_win8;
}
/// Bytes of sense data that an SRB carries.
[[nodiscard]] constexpr std::size_t sense_size_of(std::uint16_t v) noexcept {
  return v >= version::win8 ? sense_size : sense_size_before_win8;
}

// ---- Status of a SCSI command ----------------------------------------------

namespace scsi_status {
inline constexpr std::uint8_t good = 0x00;
inline constexpr std::uint8_t check_condition = 0x02;
inline constexpr std::uint8_t busy = 0x08;
inline constexpr std::uint8_t reservation_conflict = 0x18;
inline constexpr std::uint8_t queue_full = 0x28;
inline constexpr std::uint8_t task_aborted = 0x40;
}  // namespace scsi_status

/// srb::srb_status: a code in the low six bits, and two flags.
namespace srb_status {
inline constexpr std::uint8_t pending = 0x00;
inline constexpr std::uint8_t success = 0x01;
inline constexpr std::uint8_t aborted = 0x02;
inline constexpr std::uint8_t error = 0x04;
inline constexpr std::uint8_t busy = 0x05;
inline constexpr std::uint8_t invalid_request = 0x06;
inline constexpr std::uint8_t no_device = 0x08;
inline constexpr std::uint8_t timeout = 0x09;
inline constexpr std::uint8_t selection_timeout = 0x0A;
inline constexpr std::uint8_t command_timeout = 0x0B;
inline constexpr std::uint8_t bus_reset = 0x0E;
inline constexpr std::uint8_t no_hba = 0x11;
inline constexpr std::uint8_t data_overrun = 0x12;
inline constexpr std::uint8_t bad_srb_length = 0x15;
inline constexpr std::uint8_t request_flushed = 0x16;
inline constexpr std::uint8_t invalid_lun = 0x20;
inline constexpr std::uint8_t invalid_target = 0x21;
inline constexpr std::uint8_t bad_function = 0x22;
inline constexpr std::uint8_t internal_error = 0x30;

inline constexpr std::uint8_t code_mask = 0x3F;
inline constexpr std::uint8_t queue_frozen = 0x40;
inline constexpr std::uint8_t autosense_valid = 0x80;
}  // namespace srb_status

/// The NTSTATUS that a host puts beside an SRB status.
[[nodiscard]] constexpr std::uint32_t nt_status_of(std::uint8_t status) noexcept {
  switch (status & srb_status::code_mask) {
    case srb_status::pending:
    case srb_status::success: return nt_status::success;
    case srb_status::aborted: return nt_status::cancelled;
    case srb_status::busy: return nt_status::device_busy;
    case srb_status::no_device:
    case srb_status::no_hba:
    case srb_status::invalid_lun:
    case srb_status::invalid_target: return nt_status::device_does_not_exist;
    case srb_status::timeout:
    case srb_status::command_timeout: return nt_status::io_timeout;
    case srb_status::selection_timeout: return nt_status::device_not_connected;
    case srb_status::data_overrun: return nt_status::buffer_overflow;
    case srb_status::request_flushed: return nt_status::unsuccessful;
    case srb_status::bad_function:
    case srb_status::bad_srb_length: return nt_status::invalid_device_request;
    default: return nt_status::io_device_error;
  }
}

/// srb::srb_flags.
namespace srb_flags {
inline constexpr std::uint32_t queue_action_enable = 0x002;
inline constexpr std::uint32_t disable_synch_transfer = 0x008;
inline constexpr std::uint32_t data_in = 0x040;
inline constexpr std::uint32_t data_out = 0x080;
inline constexpr std::uint32_t no_queue_freeze = 0x100;
}  // namespace srb_flags

inline constexpr std::uint8_t tagged_queue_tag = 0xFF;
inline constexpr std::uint8_t simple_queue_action = 0x20;
inline constexpr std::uint32_t srb_timeout_seconds = 60;

/// SCSI operation codes: byte 0 of a CDB.
namespace opcode {
inline constexpr std::uint8_t test_unit_ready = 0x00;
inline constexpr std::uint8_t request_sense = 0x03;
inline constexpr std::uint8_t inquiry = 0x12;
inline constexpr std::uint8_t mode_sense_6 = 0x1A;
inline constexpr std::uint8_t start_stop_unit = 0x1B;
inline constexpr std::uint8_t prevent_allow = 0x1E;
inline constexpr std::uint8_t set_window = 0x24;
inline constexpr std::uint8_t read_capacity_10 = 0x25;
inline constexpr std::uint8_t read_10 = 0x28;
inline constexpr std::uint8_t write_10 = 0x2A;
inline constexpr std::uint8_t synchronize_cache_10 = 0x35;
inline constexpr std::uint8_t write_same_10 = 0x41;
inline constexpr std::uint8_t get_event_status = 0x4A;
inline constexpr std::uint8_t mode_sense_10 = 0x5A;
inline constexpr std::uint8_t ata_pass_through_16 = 0x85;
inline constexpr std::uint8_t read_16 = 0x88;
inline constexpr std::uint8_t write_16 = 0x8A;
inline constexpr std::uint8_t synchronize_cache_16 = 0x91;
inline constexpr std::uint8_t service_action_in = 0x9E;
inline constexpr std::uint8_t report_luns = 0xA0;
inline constexpr std::uint8_t ata_pass_through_12 = 0xA1;
}  // namespace opcode

/// srb::data_in: where the data goes.
enum class data_direction : std::uint8_t { to_device = 0, from_device = 1, none = 2 };

/// Fixed-format sense data, zero padded to the field that carries it.
using sense_data = std::array<unsigned char, sense_size>;

[[nodiscard]] constexpr sense_data make_sense(std::uint8_t key, std::uint8_t asc,
                                              std::uint8_t ascq) noexcept {
  sense_data sense{};
  sense[0] = 0x70;
  sense[2] = key;
  sense[7] = 10;  // bytes that follow, of the 18 that fixed format has
  sense[12] = asc;
  sense[13] = ascq;
  return sense;
}

// ---- Bodies ----------------------------------------------------------------

/// A SCSI request, and its answer. The answer's sense lies where the CDB was.
struct srb {
  std::uint16_t length = vstor_body_size;
  std::uint8_t srb_status = 0;
  std::uint8_t scsi_status = 0;
  std::uint8_t port_number = 0;
  std::uint8_t path_id = 0;
  std::uint8_t target_id = 0;
  std::uint8_t lun = 0;
  std::uint8_t cdb_length = cdb_size;
  std::uint8_t sense_length = sense_size;
  std::uint8_t data_in = 0;  ///< a data_direction
  std::uint8_t reserved = 0;
  std::uint32_t data_transfer_length = 0;
  std::array<unsigned char, sense_size> cdb_or_sense{};
  std::uint16_t reserve = 0;  ///< from here on: since Win8
  std::uint8_t queue_tag = 0;
  std::uint8_t queue_action = 0;
  std::uint32_t srb_flags = 0;
  std::uint32_t time_out_value = 0;
  std::uint32_t queue_sort_key = 0;
};
static_assert(sizeof(srb) == vstor_body_size && std::is_trivially_copyable_v<srb>);
static_assert(offsetof(srb, srb_status) == 2 && offsetof(srb, scsi_status) == 3);
static_assert(offsetof(srb, path_id) == 5 && offsetof(srb, lun) == 7);
static_assert(offsetof(srb, cdb_length) == 8 && offsetof(srb, sense_length) == 9);
static_assert(offsetof(srb, data_in) == 10 && offsetof(srb, data_transfer_length) == 12);
static_assert(offsetof(srb, cdb_or_sense) == 16);
static_assert(offsetof(srb, reserve) == srb_size_before_win8, "Win7 ends here");
static_assert(offsetof(srb, queue_tag) == 38 && offsetof(srb, queue_action) == 39);
static_assert(offsetof(srb, srb_flags) == 40 && offsetof(srb, time_out_value) == 44);
static_assert(offsetof(srb, queue_sort_key) == 48);

/// What the host tells about a channel.
struct channel_properties {
  std::uint32_t reserved = 0;
  std::uint16_t max_channel_count = 0;  ///< sub-channels that the host allows
  std::uint16_t reserved2 = 0;
  std::uint32_t flags = 0;  ///< bit 0: sub-channels are supported
  std::uint32_t max_transfer_bytes = 0;
  std::uint32_t reserved3[2] = {};
};
static_assert(sizeof(channel_properties) == 24 && std::is_trivially_copyable_v<channel_properties>);
static_assert(offsetof(channel_properties, max_channel_count) == 4);
static_assert(offsetof(channel_properties, flags) == 8);
static_assert(offsetof(channel_properties, max_transfer_bytes) == 12);

inline constexpr std::uint32_t multi_channel_supported = 1;

// ---- The packet ------------------------------------------------------------

/// A message: header in host byte order, body as it travels.
struct vstor_packet {
  operation op = operation::none;
  std::uint32_t flags = 0;
  std::uint32_t status = 0;
  std::array<unsigned char, vstor_body_size> body{};
};
static_assert(sizeof(vstor_packet) == vstor_size && std::is_trivially_copyable_v<vstor_packet>);
static_assert(offsetof(vstor_packet, body) == vstor_header_size);

using vstor_bytes = std::array<unsigned char, vstor_size>;

[[nodiscard]] constexpr vstor_bytes encode(const vstor_packet& from) noexcept {
  vstor_bytes to{};
  store_le(to.data(), static_cast<std::uint32_t>(from.op));
  store_le(to.data() + 4, from.flags);
  store_le(to.data() + 8, from.status);
  std::copy(from.body.begin(), from.body.end(), to.begin() + vstor_header_size);
  return to;
}

/// Reads a message; a body shorter than 52 bytes is filled up with zeros.
/// Precondition: `from` has a header at least.
[[nodiscard]] constexpr vstor_packet decode_packet(std::span<const unsigned char> from) noexcept {
  vstor_packet to;
  to.op = static_cast<operation>(load_le<std::uint32_t>(from.data()));
  to.flags = load_le<std::uint32_t>(from.data() + 4);
  to.status = load_le<std::uint32_t>(from.data() + 8);
  const auto body = from.subspan(vstor_header_size);
  std::copy_n(body.begin(), std::min(body.size(), to.body.size()), to.body.begin());
  return to;
}

using vstor_body = std::span<unsigned char, vstor_body_size>;
using const_vstor_body = std::span<const unsigned char, vstor_body_size>;

constexpr void encode(vstor_body to, const srb& from) noexcept {
  unsigned char* const at = to.data();
  store_le(at, from.length);
  at[2] = from.srb_status;
  at[3] = from.scsi_status;
  at[4] = from.port_number;
  at[5] = from.path_id;
  at[6] = from.target_id;
  at[7] = from.lun;
  at[8] = from.cdb_length;
  at[9] = from.sense_length;
  at[10] = from.data_in;
  at[11] = from.reserved;
  store_le(at + 12, from.data_transfer_length);
  std::copy(from.cdb_or_sense.begin(), from.cdb_or_sense.end(), at + 16);
  store_le(at + 36, from.reserve);
  at[38] = from.queue_tag;
  at[39] = from.queue_action;
  store_le(at + 40, from.srb_flags);
  store_le(at + 44, from.time_out_value);
  store_le(at + 48, from.queue_sort_key);
}

[[nodiscard]] constexpr srb decode_srb(const_vstor_body from) noexcept {
  const unsigned char* const at = from.data();
  srb to;
  to.length = load_le<std::uint16_t>(at);
  to.srb_status = at[2];
  to.scsi_status = at[3];
  to.port_number = at[4];
  to.path_id = at[5];
  to.target_id = at[6];
  to.lun = at[7];
  to.cdb_length = at[8];
  to.sense_length = at[9];
  to.data_in = at[10];
  to.reserved = at[11];
  to.data_transfer_length = load_le<std::uint32_t>(at + 12);
  std::copy_n(at + 16, sense_size, to.cdb_or_sense.begin());
  to.reserve = load_le<std::uint16_t>(at + 36);
  to.queue_tag = at[38];
  to.queue_action = at[39];
  to.srb_flags = load_le<std::uint32_t>(at + 40);
  to.time_out_value = load_le<std::uint32_t>(at + 44);
  to.queue_sort_key = load_le<std::uint32_t>(at + 48);
  return to;
}

constexpr void encode(vstor_body to, const channel_properties& from) noexcept {
  store_le(to.data() + 4, from.max_channel_count);
  store_le(to.data() + 8, from.flags);
  store_le(to.data() + 12, from.max_transfer_bytes);
}

[[nodiscard]] constexpr channel_properties decode_properties(const_vstor_body from) noexcept {
  channel_properties to;
  to.max_channel_count = load_le<std::uint16_t>(from.data() + 4);
  to.flags = load_le<std::uint32_t>(from.data() + 8);
  to.max_transfer_bytes = load_le<std::uint32_t>(from.data() + 12);
  return to;
}

/// The version of a QUERY_PROTOCOL_VERSION, the count of a CREATE_SUB_CHANNELS:
/// both are the first two bytes of the body.
constexpr void encode_word(vstor_body to, std::uint16_t word) noexcept {
  store_le(to.data(), word);
}
[[nodiscard]] constexpr std::uint16_t decode_word(const_vstor_body from) noexcept {
  return load_le<std::uint16_t>(from.data());
}

}  // namespace storvsc

#endif  // STORVSC_PROTOCOL_HPP
