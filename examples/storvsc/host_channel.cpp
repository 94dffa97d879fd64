// SPDX-License-Identifier: MIT
//
// storvsc/host_channel.cpp - one channel served: rings, negotiation, requests.
#include "storvsc/host_channel.hpp"

#include <cstdio>
#include <iterator>
#include <utility>

namespace storvsc {
namespace {

constexpr std::uint32_t reply_total =
    vmbus::descriptor_size + static_cast<std::uint32_t>(vstor_size) + vmbus::trailer_size;
static_assert(reply_total == 88);

constexpr std::uint32_t most_packet_bytes = 64 * 1024;
constexpr int packets_per_service = 64;

[[nodiscard]] bool is_flush(const scsi_cdb& cdb) noexcept {
  constexpr unsigned char start_or_load = 3;
  return cdb[0] == opcode::synchronize_cache_10 || cdb[0] == opcode::synchronize_cache_16 ||
         (cdb[0] == opcode::start_stop_unit && (cdb[4] & start_or_load) == 0);
}

[[nodiscard]] data_direction direction_of(std::uint8_t data_in) noexcept {
  switch (data_in) {
    case 0: return data_direction::to_device;
    case 2: return data_direction::none;
    default: return data_direction::from_device;
  }
}

[[nodiscard]] const char* describe(vmbus::ring_fault fault) noexcept {
  switch (fault) {
    case vmbus::ring_fault::index_range: return "an index outside the ring";
    case vmbus::ring_fault::index_order: return "an index that moved backwards";
    case vmbus::ring_fault::short_packet: return "less than a packet published";
    case vmbus::ring_fault::bad_length: return "a packet of impossible length";
    case vmbus::ring_fault::bad_offset: return "a payload outside its packet";
    case vmbus::ring_fault::bad_flags: return "a packet with unknown flags";
    case vmbus::ring_fault::bad_type: return "a packet of unknown type";
    case vmbus::ring_fault::bad_ranges: return "a packet with malformed ranges";
    default: return "a ring that is not one";
  }
}

}  // namespace

// splitmix64: small, good enough, and the same everywhere.
std::uint64_t host_context::random() noexcept {
  std::uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

void host_context::report_error(std::uint32_t relid, const char* what) noexcept {
  char text[160];
  (void)std::snprintf(text, sizeof text, "channel %u: %s", static_cast<unsigned>(relid), what);
  ++statistics.protocol_errors;
  last_error = text;
  port.log(text);
}

// ---- Opened and closed -----------------------------------------------------

bool host_channel::open(std::vector<unsigned char*> pages, std::uint32_t second,
                        std::uint32_t gpadl) noexcept {
  constexpr std::size_t least_pages = 2;  // control and data
  if (is_open() || withdrawn_) return false;
  if (second < least_pages || pages.size() < second + least_pages) return false;
  const std::span<unsigned char* const> all(pages);
  const page_memory requests(all.first(second));
  const page_memory replies(all.subspan(second));
  buffer_.resize(std::min(requests.data_size(), most_packet_bytes));
  const vmbus::consumer_options limits{vmbus::host_accepts,
                                       static_cast<std::uint32_t>(buffer_.size())};
  if (consumer_.attach(requests, limits) != pmgate::status::ok ||
      producer_.attach(replies) != pmgate::status::ok) {
    consumer_.detach();
    producer_.detach();
    return false;
  }
  pages_ = std::move(pages);  // keeps its storage, to which the views above point
  requests_ = requests;
  reply_ring_size_ = replies.data_size();
  gpadl_ = gpadl;
  stopped_ = false;
  masked_ = true;
  consumer_.begin_read();  // until we have looked once, signals tell us nothing
  producer_.announce_pending_send();
  ++context_.statistics.opens;
  return true;
}

void host_channel::close() noexcept {
  consumer_.detach();
  producer_.detach();
  context_.statistics.dropped += in_flight_.size();
  in_flight_.clear();
  pages_.clear();
}

// The rings are left as they are: the guest gets no further sign of life.
bool host_channel::stop(const char* reason) noexcept {
  stopped_ = true;
  context_.statistics.dropped += in_flight_.size();
  in_flight_.clear();
  context_.report_error(offer_.relid, reason);
  return false;
}

// ---- A round of service ----------------------------------------------------

service_result host_channel::service(host_clock::time_point now) noexcept {
  if (!is_running()) return {};
  tell_bus_changed();
  (void)complete_due(now);
  const drained how = is_running() ? take_requests(now) : drained::stopped;
  const bool completed = complete_due(now);  // after the last wish for space
  return is_running() ? publish(how, completed, now) : service_result{};
}

host_channel::drained host_channel::take_requests(host_clock::time_point now) noexcept {
  if (!context_.behaviour.read_requests) return drained::not_allowed;
  if (!is_primary() && context_.phase != protocol_phase::ready) return drained::not_allowed;
  if (!std::exchange(masked_, true)) consumer_.begin_read();
  for (int taken = 0; taken < packets_per_service; ++taken) {
    if (!reserve_room()) return is_running() ? drained::no_room : drained::stopped;
    vmbus::received_packet packet;
    const pmgate::status code =
        consumer_.take(buffer_.data(), static_cast<std::uint32_t>(buffer_.size()), packet);
    if (code == pmgate::status::again) return drained::empty;
    if (code != pmgate::status::ok) {
      stop(describe(consumer_.fault()));
      return drained::stopped;
    }
    if (!accept(packet, now)) return drained::stopped;
  }
  return drained::budget;
}

// Room for the completions of everything in flight, and of one more. Where that
// is more than the ring, our own completions have to come first.
bool host_channel::reserve_room() noexcept {
  const auto need = static_cast<std::uint32_t>((in_flight_.size() + 1) * reply_total);
  if (producer_.writable() > need) return true;
  const std::uint32_t wish = std::max(need, reply_ring_size_ / 4);
  const pmgate::status code = producer_.request_space(wish);
  if (code == pmgate::status::io_error) return stop(describe(producer_.fault()));
  return code == pmgate::status::ok;
}

bool host_channel::guest_signals_space() const noexcept {
  // [host.feature] acquire: pairs with the producer's [announce.feature].
  const std::uint32_t bits =
      requests_.load(vmbus::control_word::feature_bits, std::memory_order_acquire);
  return (bits & vmbus::feature_pending_send_size) != 0;
}

// Gives room back, publishes completions, and signals at most once for both.
// Signals stay masked unless the ring was found empty: in every other case
// something else wakes us.
service_result host_channel::publish(drained how, bool completed,
                                     host_clock::time_point now) noexcept {
  service_result result;
  vmbus::ring_result given;
  if (how == drained::empty) {
    const vmbus::end_read_result end = consumer_.end_read();
    given = {end.code, end.signal};
    masked_ = false;
    result.again = end.bytes != 0;
  } else {
    given = consumer_.commit();
  }
  const vmbus::ring_result written = producer_.flush();
  if (given.signal || written.signal) {
    ++context_.statistics.interrupts;
    context_.port.interrupt(offer_.relid);
  }
  if (given.code != pmgate::status::ok)
    stop(describe(consumer_.fault()));
  else if (written.code != pmgate::status::ok)
    stop(describe(producer_.fault()));
  if (!is_running()) return {};

  constexpr auto space_poll = std::chrono::milliseconds(5);
  if (how == drained::budget) result.again = true;
  if (how == drained::no_room) {
    result.again = completed;  // completing has taken the wish for space back
    if (!guest_signals_space()) result.due = now + space_poll;
  }
  if (!context_.behaviour.complete_requests) return result;
  for (const pending_srb& r : in_flight_) result.due = std::min(result.due, r.due);
  return result;
}

void host_channel::tell_bus_changed() noexcept {
  if (!context_.bus_changed || !is_primary() || context_.phase != protocol_phase::ready) return;
  const auto need = static_cast<std::uint32_t>((in_flight_.size() + 1) * reply_total);
  if (context_.protocol_version >= version::win7) {
    if (producer_.writable() <= need) return;  // later
    vstor_packet notice;
    notice.op = operation::enumerate_bus;
    send(vmbus::packet_type::in_band, 0, notice, vstor_body_size);
  }
  context_.bus_changed = false;
}

void host_channel::send(vmbus::packet_type type, std::uint64_t trans_id, const vstor_packet& packet,
                        std::size_t body_size) noexcept {
  const vstor_bytes bytes = encode(packet);
  vmbus::packet out;
  out.type = type;
  out.trans_id = trans_id;
  out.payload = bytes.data();
  out.payload_size = static_cast<std::uint32_t>(vstor_header_size + body_size);
  if (producer_.put(out) == pmgate::status::ok) return;
  const bool lied = producer_.fault() != vmbus::ring_fault::none;
  stop(lied ? describe(producer_.fault()) : "the room kept for a completion is gone");
}

// ---- Requests --------------------------------------------------------------

bool host_channel::accept(const vmbus::received_packet& p, host_clock::time_point now) noexcept {
  if (p.type == vmbus::packet_type::completion) return stop("a completion from the guest");
  if (p.flags != vmbus::flag_completion_requested) return stop("a request without completion");
  if (p.payload_size < vstor_header_size) return stop("a request without a header");
  const vstor_packet packet = decode_packet({p.payload, p.payload_size});
  switch (packet.op) {
    case operation::execute_srb:
      if (context_.phase == protocol_phase::ready) return accept_srb(p, packet, now);
      return accept_control(p, packet);
    case operation::reset_lun:
    case operation::reset_adapter:
    case operation::reset_bus:
    case operation::begin_initialization:
    case operation::end_initialization:
    case operation::query_protocol_version:
    case operation::query_properties:
    case operation::fchba_data:
    case operation::create_sub_channels: return accept_control(p, packet);
    default: return stop("an unknown operation");
  }
}

// Answered at once, with as many bytes of body as the request had.
bool host_channel::accept_control(const vmbus::received_packet& p,
                                  const vstor_packet& request) noexcept {
  const std::size_t body = std::min(p.payload_size - vstor_header_size, vstor_body_size);
  const bool word = request.op == operation::query_protocol_version ||
                    request.op == operation::create_sub_channels;
  if (word && body < sizeof(std::uint16_t)) return stop("a request without its argument");
  ++context_.statistics.control_requests;
  if (!context_.behaviour.answer_control) return true;

  vstor_packet reply;
  reply.op = operation::complete_io;
  const bool refused = request.op == context_.behaviour.refused;
  reply.status = refused ? context_.behaviour.refusal : negotiate(request, reply);
  send(vmbus::packet_type::completion, p.trans_id, reply, body);
  if (context_.behaviour.duplicate_replies && is_running() && reserve_room()) {
    send(vmbus::packet_type::completion, p.trans_id, reply, body);
  }
  return is_running();
}

// The state machine. Whatever is not expected changes nothing.
std::uint32_t host_channel::negotiate(const vstor_packet& request, vstor_packet& reply) noexcept {
  using phase = protocol_phase;
  const host_behaviour& behaviour = context_.behaviour;
  phase& now = context_.phase;
  const bool reset = request.op == operation::reset_lun || request.op == operation::reset_adapter ||
                     request.op == operation::reset_bus;
  if (reset && now == phase::ready) return nt_status::success;
  if (!is_primary()) return nt_status::invalid_device_state;

  if (now == phase::begin && request.op == operation::begin_initialization) {
    now = phase::query_version;
    return nt_status::success;
  }
  if (now == phase::query_version && request.op == operation::query_protocol_version) {
    const std::uint16_t wanted = decode_word(request.body);
    encode_word(reply.body, wanted);
    const bool known =
        std::find(version::known.begin(), version::known.end(), wanted) != version::known.end();
    if (!known || wanted < behaviour.oldest_version || wanted > behaviour.newest_version) {
      return nt_status::revision_mismatch;
    }
    context_.protocol_version = wanted;
    now = phase::query_properties;
    return nt_status::success;
  }
  const bool multi_channel = context_.protocol_version >= version::win8;
  const std::uint16_t allowed = multi_channel ? behaviour.max_sub_channels : std::uint16_t{0};
  if (now == phase::query_properties && request.op == operation::query_properties) {
    channel_properties properties;
    properties.max_channel_count = allowed;
    properties.flags = multi_channel ? multi_channel_supported : 0;
    properties.max_transfer_bytes = behaviour.max_transfer_bytes;
    encode(reply.body, properties);
    now = phase::end_initialization;
    return nt_status::success;
  }
  const bool may_grant = now == phase::end_initialization || now == phase::ready;
  if (may_grant && request.op == operation::create_sub_channels) {
    const std::uint16_t wanted = decode_word(request.body);
    if (context_.sub_channels_granted) return nt_status::invalid_device_state;
    if (wanted > allowed) return nt_status::invalid_parameter;
    context_.sub_channels_granted = true;
    context_.sub_channels_to_offer = wanted;
    return nt_status::success;
  }
  if (now == phase::end_initialization && request.op == operation::end_initialization) {
    now = phase::ready;
    context_.bus_changed = false;  // the guest looks anyway
    return nt_status::success;
  }
  return nt_status::invalid_device_state;
}

bool host_channel::accept_srb(const vmbus::received_packet& p, const vstor_packet& packet,
                              host_clock::time_point now) noexcept {
  if (p.payload_size - vstor_header_size < srb_size_of(context_.protocol_version)) {
    return stop("an SRB that is too short");
  }
  const srb from = decode_srb(packet.body);
  pending_srb r{
      now, p.trans_id, {from.path_id, from.target_id, from.lun}, {}, direction_of(from.data_in),
      {}};
  std::copy_n(from.cdb_or_sense.begin(), cdb_size, r.cdb.begin());  // whatever cdb_length says
  if (const char* const bad = map_data(p, from.data_transfer_length, r.data)) return stop(bad);

  const host_behaviour& behaviour = context_.behaviour;
  r.due += behaviour.latency;
  if (behaviour.jitter.count() > 0) {
    const auto most = static_cast<std::uint64_t>(behaviour.jitter.count()) + 1;
    r.due += std::chrono::microseconds(static_cast<std::int64_t>(context_.random() % most));
  }
  in_flight_.push_back(std::move(r));
  ++context_.statistics.requests;
  return true;
}

// Every page of the range is translated before any is used; of these, only
// `length` bytes are passed on. Returns what is wrong, or null.
const char* host_channel::map_data(const vmbus::received_packet& p, std::uint32_t length,
                                   std::vector<std::span<unsigned char>>& data) noexcept {
  if (p.type != vmbus::packet_type::gpa_direct) return length == 0 ? nullptr : "data nowhere";
  vmbus::gpa_reader ranges(p.extension, p.extension_size);
  vmbus::gpa_view range;
  if (!ranges.next(range)) return "malformed ranges";
  if (vmbus::gpa_view second; ranges.next(second)) return "more than one range";
  if (length > range.byte_count) return "a transfer beyond its range";

  std::uint32_t offset = range.byte_offset;
  for (std::uint32_t i = 0; i < range.page_count; ++i, offset = 0) {
    auto* const page = static_cast<unsigned char*>(context_.memory.translate(range.pfn(i)));
    if (page == nullptr) return "a page that the guest does not have";
    const std::uint32_t count = std::min(length, vmbus::page_size - offset);
    length -= count;
    if (count == 0) continue;
    unsigned char* const at = page + offset;
    if (!data.empty() && data.back().data() + data.back().size() == at) {
      data.back() = {data.back().data(), data.back().size() + count};
    } else {
      data.emplace_back(at, count);
    }
  }
  return nullptr;
}

// ---- Completions -----------------------------------------------------------

bool host_channel::complete_due(host_clock::time_point now) noexcept {
  if (!context_.behaviour.complete_requests || in_flight_.empty()) return false;
  const auto first = std::stable_partition(in_flight_.begin(), in_flight_.end(),
                                           [now](const pending_srb& r) { return r.due > now; });
  std::vector<pending_srb> due(std::make_move_iterator(first),
                               std::make_move_iterator(in_flight_.end()));
  std::stable_sort(due.begin(), due.end(),
                   [](const pending_srb& a, const pending_srb& b) { return a.due < b.due; });
  if (context_.behaviour.out_of_order) {
    for (std::size_t i = due.size(); i > 1; --i) {
      std::swap(due[i - 1], due[static_cast<std::size_t>(context_.random() % i)]);
    }
  }
  in_flight_.erase(first, in_flight_.end());
  for (const pending_srb& r : due) {
    if (is_running()) complete(r);
  }
  return !due.empty();
}

void host_channel::complete(const pending_srb& r) noexcept {
  const scsi_reply result = context_.target.execute({r.at, r.cdb, r.direction, r.data});
  host_statistics& statistics = context_.statistics;
  ++statistics.completions;
  const bool good = result.srb_status == srb_status::success;
  if (!good) ++statistics.failures;
  if (good && is_flush(r.cdb)) ++statistics.flushes;
  const bool inward = r.direction == data_direction::to_device;
  (inward ? statistics.bytes_written : statistics.bytes_read) += result.transferred;

  const std::size_t body = srb_size_of(context_.protocol_version);
  srb to;
  to.length = static_cast<std::uint16_t>(body);
  to.srb_status = result.srb_status;
  to.scsi_status = result.scsi_status;
  to.sense_length = static_cast<std::uint8_t>(sense_size_of(context_.protocol_version));
  to.data_transfer_length = result.transferred;
  to.cdb_or_sense = result.sense;
  vstor_packet reply;
  reply.op = operation::complete_io;
  reply.status = nt_status_of(result.srb_status);
  encode(reply.body, to);
  send(vmbus::packet_type::completion, r.trans_id, reply, body);
}

}  // namespace storvsc
