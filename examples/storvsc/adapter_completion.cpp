// SPDX-License-Identifier: MIT
//
// storvsc/adapter_completion.cpp - what comes from the host, none of which is believed
// before it was checked. The steps are numbered as in the specification of the
// receive path.
#include <algorithm>

#include "storvsc/adapter.hpp"

namespace storvsc {

namespace vmbus = pmgate::vmbus;

namespace {

/// Additional sense code << 8 | its qualifier.
constexpr std::uint16_t capacity_changed = 0x2A09;
constexpr std::uint16_t inquiry_data_changed = 0x3F03;
constexpr std::uint16_t luns_changed = 0x3F0E;

// Hosts fail some of these, and a disk that cannot be scanned is taken offline.
bool always_succeeds(std::uint8_t code) noexcept {
  return code == opcode::inquiry || code == opcode::mode_sense_6 || code == opcode::mode_sense_10;
}

/// Returns: the additional sense code and qualifier; 0 if there is none.
std::uint16_t additional_sense(const command& c) noexcept {
  const std::uint8_t response = c.sense[0] & 0x7F;
  if (c.sense_length == 0 || response < 0x70) return 0;
  const bool descriptors = response >= 0x72;
  const unsigned code_at = descriptors ? 2 : 12;
  const unsigned valid =
      descriptors ? c.sense_length : std::min<unsigned>(c.sense_length, c.sense[7] + 8u);
  const unsigned code = valid > code_at ? c.sense[code_at] : 0u;
  const unsigned qualifier = valid > code_at + 1 ? c.sense[code_at + 1] : 0u;
  return static_cast<std::uint16_t>(code << 8 | qualifier);
}

bool asks_for_rescan(std::uint16_t sense) noexcept {
  if (sense == capacity_changed) return true;
  return sense >> 8 == 0x3F && sense != inquiry_data_changed && sense != luns_changed;
}

}  // namespace

// ---- Packets ---------------------------------------------------------------

void adapter::on_channel(void* self) noexcept {
  auto& a = *static_cast<adapter*>(self);
  vmbus::received_packet p;
  while (a.channel_.receive(p) == status::ok) a.receive(p);  // until empty, or out of budget
}

// Called when a packet is about to become visible to the host, and not before: a
// completion that comes earlier is a lie, and finds nothing to complete.
bool adapter::on_published(void* self, std::uint64_t cookie, std::uint64_t& id) noexcept {
  id = cookie;
  if (id != init_trans_id && id != reset_trans_id) static_cast<adapter*>(self)->in_flight_.arm(id);
  return true;
}

// All of `p` is a private copy.
void adapter::receive(const vmbus::received_packet& p) noexcept {
  if (p.trans_id == 0) return receive_unsolicited(p);
  // Steps 1 and 2.
  if (p.payload_size < vstor_size || p.type != vmbus::packet_type::completion) return drop();
  const vstor_packet answer = decode_packet({p.payload, p.payload_size});
  if (p.trans_id == init_trans_id) return receive_control(init_, answer);
  if (p.trans_id == reset_trans_id) return receive_control(reset_, answer);
  // Step 4: nothing is claimed unless it completes the command.
  if (answer.op != operation::complete_io) return drop();
  command* const c = in_flight_.claim(p.trans_id);
  if (c == nullptr) return drop();
  complete(*c, decode_srb(const_vstor_body(answer.body)));
}

// Step 3. Only remembered: whoever does the work is told when it may be done.
void adapter::receive_unsolicited(const vmbus::received_packet& p) noexcept {
  if (p.payload_size < 4 || p.type != vmbus::packet_type::in_band) return drop();
  const auto op = static_cast<operation>(load_le<std::uint32_t>(p.payload));
  if (op == operation::enumerate_bus || op == operation::remove_device) {
    work_.add({work_item::kind::rescan_host});
  } else if (op == operation::complete_io || op == operation::fchba_data) {
    drop();  // never unsolicited
  }
}

void adapter::receive_control(control_slot& slot, const vstor_packet& p) noexcept {
  {
    const lock guard(control_mutex_);
    if (!slot.expected || slot.arrived) return drop();
    slot.arrived = true;
    slot.answer = p;
  }
  wake_control();
}

void adapter::wake_control() noexcept {
  // [control.wake] release: pairs with [await.seen].
  control_events_.fetch_add(1, std::memory_order_release);
  control_events_.wake_all();
}

// ---- Completions -----------------------------------------------------------

void adapter::complete(command& c, const srb& answer) noexcept {
  const bool forced = always_succeeds(c.cdb[0]);  // step 1; the answer has no CDB
  const std::uint8_t scsi = forced ? scsi_status::good : answer.scsi_status;
  const std::uint8_t raw = forced ? srb_status::success : answer.srb_status;

  // Steps 2 and 3. Lengths are the host's word: they are clamped.
  c.sense = {};
  c.sense_length = 0;
  if (scsi == scsi_status::check_condition && (raw & srb_status::autosense_valid) != 0) {
    c.sense_length = std::min<std::uint8_t>(answer.sense_length, sense_size);
    std::copy_n(answer.cdb_or_sense.begin(), c.sense_length, c.sense.begin());
  }
  // Steps 4 to 6. The raw byte counts: with a flag set it is neither of these two.
  const std::uint32_t host = raw == srb_status::success ? host_byte::ok : host_byte_for(c, raw);
  const bool moved = raw == srb_status::success || raw == srb_status::data_overrun;
  c.transferred = moved ? std::min(answer.data_transfer_length, c.length) : 0;
  c.resid = c.length - c.transferred;
  c.result = host << 16 | scsi;

  // Steps 7 and 8.
  bump(completed_);
  c.done(c);
  retire();
}

std::uint32_t adapter::host_byte_for(const command& c, std::uint8_t raw_status) noexcept {
  switch (raw_status & srb_status::code_mask) {
    case srb_status::error:
    case srb_status::aborted:
    case srb_status::invalid_request:
    case srb_status::internal_error:
    case srb_status::timeout:
    case srb_status::selection_timeout:
    case srb_status::bus_reset:
    case srb_status::data_overrun: break;
    case srb_status::invalid_lun:
      work_.add({work_item::kind::remove_lun, c.path, c.target, c.lun});
      return host_byte::no_connect;
    default: return host_byte::ok;  // the SCSI status says it all
  }
  if ((raw_status & srb_status::autosense_valid) != 0) {
    if (!asks_for_rescan(additional_sense(c))) return host_byte::ok;  // the sense says it all
    work_.add({work_item::kind::rescan_lun, c.path, c.target, c.lun});
    return host_byte::requeue;
  }
  switch (c.cdb[0]) {
    case opcode::ata_pass_through_16:
    case opcode::ata_pass_through_12: return host_byte::passthrough;
    case opcode::test_unit_ready: return host_byte::ok;
    default: return host_byte::error;
  }
}

}  // namespace storvsc
