// SPDX-License-Identifier: MIT
//
// storvsc_machine.hpp - a guest made by hand, for tests of the storage host: its
// memory, its rings, and every message that it can send.
#ifndef STORVSC_MACHINE_HPP
#define STORVSC_MACHINE_HPP

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform/linux_memory.hpp>
#include <pmgate/vmbus/ring.hpp>

#include "storvsc/host.hpp"

namespace storvsc_test {

namespace vmbus = pmgate::vmbus;
namespace nt = storvsc::nt_status;
using namespace std::chrono_literals;
using pmgate::status;
using storvsc::operation;
using storvsc::srb;
using vmbus::control_message;
using vmbus::message_type;
using bytes = std::vector<unsigned char>;

/// Bytes from their notation; "+52" are 52 zeros.
inline bytes hex(const std::string& text) {
  bytes out;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word[0] == '+')
      out.resize(out.size() + std::stoul(word.substr(1)));
    else
      out.push_back(static_cast<unsigned char>(std::stoul(word, nullptr, 16)));
  }
  return out;
}

inline constexpr std::uint64_t first_pfn = 0x1000;
inline constexpr std::uint64_t ring_pfn = 0x1000;
inline constexpr std::uint64_t data_pfn = 0x1234;
inline constexpr std::uint32_t primary = 7;

struct reply {
  bool found = false;
  vmbus::packet_type type{};
  std::uint16_t flags = 0;
  std::uint64_t id = 0;
  bytes payload;
  [[nodiscard]] std::uint32_t nt_status() const { return storvsc::decode_packet(payload).status; }
  [[nodiscard]] srb as_srb() const {
    return storvsc::decode_srb(storvsc::decode_packet(payload).body);
  }
};

/// One channel as the guest has it: both rings on consecutive pages.
struct guest_channel {
  pmgate::guest_memory& memory;
  std::uint32_t relid;
  std::uint64_t pfn;
  std::uint32_t pages;  // of each ring
  std::uint32_t gpadl;
  vmbus::ring_producer<vmbus::flat_memory> out{};
  vmbus::ring_consumer<vmbus::flat_memory> in{};
  std::array<unsigned char, 4096> buffer{};

  [[nodiscard]] unsigned char* page(std::uint64_t n) const {
    return static_cast<unsigned char*>(memory.translate(pfn + n));
  }
  [[nodiscard]] unsigned char* requests() const { return page(1); }
  [[nodiscard]] unsigned char* replies() const { return page(pages + 1); }
  [[nodiscard]] vmbus::flat_memory ring(std::uint64_t first) const {
    return {page(first), page(first + 1), (pages - 1) * 4096};
  }
  void clear_rings() {
    std::memset(page(0), 0, std::size_t{pages} * 2 * 4096);
    REQUIRE(out.attach(ring(0)) == status::ok);
    REQUIRE(in.attach(ring(pages)) == status::ok);
    out.announce_pending_send();
  }
  status send(vmbus::packet_type type, std::uint64_t id, const bytes& payload,
              std::uint16_t flags = 1, const std::vector<vmbus::gpa_range>& ranges = {}) {
    vmbus::packet p;
    p.type = type;
    p.flags = flags;
    p.trans_id = id;
    p.payload = payload.data();
    p.payload_size = static_cast<std::uint32_t>(payload.size());
    p.ranges = ranges.data();
    p.range_count = static_cast<std::uint32_t>(ranges.size());
    return out.write(p).code;
  }
  status send(std::uint64_t id, const bytes& payload) {
    return send(vmbus::packet_type::in_band, id, payload);
  }
  reply receive() {
    vmbus::received_packet p;
    if (in.read(buffer.data(), 4096, p).code != status::ok) return {};
    return {true, p.type, p.flags, p.trans_id, bytes(p.payload, p.payload + p.payload_size)};
  }
};

struct machine : storvsc::guest_port {
  pmgate::guest_memory memory;
  storvsc::scsi_target target;
  std::unique_ptr<storvsc::storage_host> host;
  std::unique_ptr<guest_channel> channel;
  storvsc::host_behaviour behaviour;
  std::vector<control_message> inbox;
  std::vector<std::uint32_t> interrupts;
  std::vector<std::uint64_t> released;

  explicit machine(std::uint32_t ring_pages = 32) {
    REQUIRE(memory.create(0x400, first_pfn) == status::ok);
    auto image = std::make_shared<storvsc::disk_image>();
    REQUIRE(image->create_temporary(20480 * 512) == storvsc::image_error::none);
    REQUIRE(target.attach_disk({0, 0, 0}, image));
    REQUIRE(target.attach_drive({0, 0, 1}, nullptr));
    storvsc::host_identity identity;
    identity.primary.relid = primary;
    host = std::make_unique<storvsc::storage_host>(memory, target, *this, identity);
    channel.reset(new guest_channel{memory, primary, ring_pfn, ring_pages, 0xE1E10});
  }
  void deliver(const control_message& m) noexcept override { inbox.push_back(m); }
  void interrupt(std::uint32_t relid) noexcept override { interrupts.push_back(relid); }
  void pages_released(std::uint32_t, std::span<const std::uint64_t> pfns) noexcept override {
    released.assign(pfns.begin(), pfns.end());
  }

  void poll() {
    for (int rounds = 0; host->poll(); ++rounds) REQUIRE(rounds < 1000);
  }
  void set(const storvsc::host_behaviour& b) { host->set_behaviour(behaviour = b); }
  control_message ask(const control_message& m) {
    inbox.clear();
    REQUIRE(host->on_message(m) == status::ok);
    poll();
    return inbox.empty() ? control_message{} : inbox.front();
  }
  control_message lend(const guest_channel& c) {
    const std::uint32_t total = c.pages * 2;
    std::vector<std::uint64_t> pfns;
    for (std::uint32_t i = 0; i < total; ++i) pfns.push_back(c.pfn + i);
    control_message m(message_type::gpadl_header);
    m.set(8, c.relid).set(12, c.gpadl).set(16, static_cast<std::uint16_t>(8 + 8 * total));
    m.set(18, std::uint16_t{1}).set(20, total * 4096);
    std::uint32_t sent = std::min(total, vmbus::header_pfn_limit);
    vmbus::append_pfns(m, pfns.data(), sent);
    control_message answer = ask(m);
    while (sent < total) {
      if (answer.size != 0) return answer;  // refused; else there is silence until the last page
      control_message body(message_type::gpadl_body);
      const std::uint32_t count = std::min(total - sent, vmbus::body_pfn_limit);
      vmbus::append_pfns(body.set(12, c.gpadl), pfns.data() + sent, count);
      answer = ask(body);
      sent += count;
    }
    return answer;
  }
  control_message open(const guest_channel& c, std::uint32_t second) {
    return ask(control_message(message_type::open)
                   .set(8, c.relid)
                   .set(12, std::uint32_t{3})
                   .set(16, c.gpadl)
                   .set(24, second));
  }
  void connect(guest_channel& c) {
    c.clear_rings();
    REQUIRE(lend(c).get(16) == 0);
    REQUIRE(open(c, c.pages).get(16) == 0);
  }
  control_message disconnect(const guest_channel& c) {
    (void)ask(control_message(message_type::close).set(8, c.relid));
    return ask(control_message(message_type::gpadl_teardown).set(8, c.relid).set(12, c.gpadl));
  }
  /// A control operation, and the host's answer.
  reply control(operation op, const std::string& body = "+52") {
    bytes payload(12);
    vmbus::store_le(payload.data(), static_cast<std::uint32_t>(op));
    payload[4] = 1;
    const bytes more = hex(body);
    payload.insert(payload.end(), more.begin(), more.end());
    REQUIRE(channel->send(storvsc::init_trans_id, payload) == status::ok);
    poll();
    return channel->receive();
  }
  void negotiate(const std::string& version = "00 06 +50") {
    REQUIRE(control(operation::begin_initialization).nt_status() == 0);
    REQUIRE(control(operation::query_protocol_version, version).nt_status() == 0);
    REQUIRE(control(operation::query_properties).nt_status() == 0);
    REQUIRE(control(operation::end_initialization).nt_status() == 0);
    REQUIRE(host->phase() == storvsc::protocol_phase::ready);
  }
  bytes srb_payload(const std::string& cdb, std::uint32_t length, std::uint8_t lun = 0,
                    std::uint8_t data_in = 1) {
    storvsc::vstor_packet p;
    p.op = operation::execute_srb;
    p.flags = 1;
    srb s;
    s.lun = lun;
    s.data_in = data_in;
    s.data_transfer_length = length;
    const bytes command = hex(cdb);
    std::copy(command.begin(), command.end(), s.cdb_or_sense.begin());
    storvsc::encode(p.body, s);
    const storvsc::vstor_bytes encoded = storvsc::encode(p);
    return {encoded.begin(), encoded.end()};
  }
  void submit(std::uint64_t id, const std::string& cdb, std::uint32_t length,
              std::uint8_t data_in = 1) {
    const std::uint64_t pfn = data_pfn;
    if (length == 0)
      REQUIRE(channel->send(id, srb_payload(cdb, 0, 0, 2)) == status::ok);
    else
      REQUIRE(channel->send(vmbus::packet_type::gpa_direct, id,
                            srb_payload(cdb, length, 0, data_in), 1,
                            {{length, 0, &pfn}}) == status::ok);
  }
  unsigned char* data() { return static_cast<unsigned char*>(memory.translate(data_pfn)); }
  bool silent() { return poll(), !channel->receive().found; }
};

struct opened : machine {
  opened() { connect(*channel); }
};
struct ready : opened {
  ready() { negotiate(); }
};

}  // namespace storvsc_test

#endif  // STORVSC_MACHINE_HPP
