// SPDX-License-Identifier: MIT
//
// storvsc/host_channel.hpp - the host's end of one storage channel: requests come
// out of one ring, completions go into the other.
//
// No request is taken before there is room for its completion, so a completion is
// never lost for want of space. A guest that breaks the protocol is not argued
// with: its channel stops, and the guest sees silence until it closes the channel.
//
// Counterpart: the channel worker of a hypervisor's storage device.
#ifndef STORVSC_HOST_CHANNEL_HPP
#define STORVSC_HOST_CHANNEL_HPP

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <pmgate/platform/linux_memory.hpp>
#include <pmgate/vmbus/channel_messages.hpp>
#include <pmgate/vmbus/ring.hpp>

#include "storvsc/protocol.hpp"
#include "storvsc/scsi_target.hpp"

namespace storvsc {

namespace vmbus = pmgate::vmbus;
using host_clock = std::chrono::steady_clock;

/// How the guest is reached. Called from the host's thread, which holds no lock.
class guest_port {
public:
  virtual ~guest_port() = default;
  /// A control message for the guest.
  virtual void deliver(const vmbus::control_message& message) noexcept = 0;
  /// The doorbell of the channel with this relid.
  virtual void interrupt(std::uint32_t relid) noexcept = 0;
  /// TORNDOWN has been delivered: the host will not touch these pages again.
  virtual void pages_released(std::uint32_t relid, std::span<const std::uint64_t> pfns) noexcept {
    (void)relid, (void)pfns;
  }
  /// Something worth a line in a log.
  virtual void log(const char* text) noexcept { (void)text; }
};

/// How the host behaves; the defaults are those of a good host without delay.
struct host_behaviour {
  std::chrono::microseconds latency{0};  ///< from taking a request to executing it
  std::chrono::microseconds jitter{0};   ///< at most this much more, by chance
  bool out_of_order = false;             ///< what is due together completes in any order
  std::uint64_t seed = 1;                ///< of all chance; a new one starts it anew

  std::uint16_t oldest_version = version::win6;  ///< what negotiation accepts
  std::uint16_t newest_version = version::win8_1;
  std::uint16_t max_sub_channels = 0;
  std::uint32_t max_transfer_bytes = 0x40000;

  bool read_requests = true;       ///< false: requests stay in the ring
  bool complete_requests = true;   ///< false: requests are taken and stay in flight
  bool answer_control = true;      ///< false: silence to everything but SRBs
  bool duplicate_replies = false;  ///< answers every control operation twice
  bool accept_gpadl = true;
  bool accept_open = true;
  operation refused = operation::none;  ///< this control operation fails with `refusal`
  std::uint32_t refusal = nt_status::unsuccessful;
  bool poison_released_pages = true;  ///< fill pages with 0xFF before they are given back
};

/// What has happened so far.
struct host_statistics {
  std::uint64_t requests = 0;     ///< SRBs taken
  std::uint64_t completions = 0;  ///< SRBs answered
  std::uint64_t failures = 0;     ///< ... of these, not with success
  std::uint64_t dropped = 0;      ///< SRBs in flight when their channel was closed or stopped
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t flushes = 0;
  std::uint64_t control_requests = 0;
  std::uint64_t protocol_errors = 0;  ///< malformed packets and messages
  std::uint64_t interrupts = 0;
  std::uint64_t opens = 0;
};

/// How far the negotiation is.
enum class protocol_phase : std::uint8_t {
  begin,
  query_version,
  query_properties,
  end_initialization,
  ready,
};

/// What the channels of one device share; for the host's thread only.
struct host_context {
  const pmgate::guest_memory& memory;
  scsi_target& target;
  guest_port& port;

  host_behaviour behaviour{};
  host_statistics statistics{};
  protocol_phase phase = protocol_phase::begin;
  std::uint16_t protocol_version = 0;
  bool sub_channels_granted = false;
  std::uint16_t sub_channels_to_offer = 0;
  bool bus_changed = false;  ///< the guest is to be told
  std::uint64_t random_state = 1;
  std::string last_error{};

  void restart_protocol() noexcept {
    phase = protocol_phase::begin;
    protocol_version = 0;
    sub_channels_granted = false;
    sub_channels_to_offer = 0;
  }
  [[nodiscard]] std::uint64_t random() noexcept;
  void report_error(std::uint32_t relid, const char* what) noexcept;
};

/// A ring whose pages lie anywhere in guest memory: a view of their addresses.
///
/// Nothing is mapped for it; copies go page by page.
/// Lifetime: the list of pages must outlive it.  Threads: as the ring above it.
class page_memory {
public:
  page_memory() = default;
  /// The control page comes first.  Precondition: there are at least two pages.
  explicit page_memory(std::span<unsigned char* const> pages) noexcept
      : pages_(pages.data() + 1),
        size_(static_cast<std::uint32_t>((pages.size() - 1) * vmbus::page_size)),
        control_(pages[0], pages[0], vmbus::page_size) {}

  [[nodiscard]] std::uint32_t data_size() const noexcept { return size_; }
  [[nodiscard]] std::uint32_t load(vmbus::control_word which,
                                   std::memory_order order) const noexcept {
    // [pages.load] relaxed to seq_cst: as the ring asks, which labels each call.
    return control_.load(which, order);
  }
  void store(vmbus::control_word which, std::uint32_t value, std::memory_order order) noexcept {
    // [pages.store] relaxed to seq_cst: as the ring asks, which labels each call.
    control_.store(which, value, order);
  }
  [[nodiscard]] std::uint32_t load_data(std::uint32_t index) const noexcept {
    return page_of(index).load_data(index % vmbus::page_size);
  }
  void copy_in(std::uint32_t index, const void* from, std::uint32_t count) noexcept {
    const auto* bytes = static_cast<const unsigned char*>(from);
    for (std::uint32_t n = 0; count != 0; count -= n, bytes += n) {
      n = std::min(count, vmbus::page_size - index % vmbus::page_size);
      page_of(index).copy_in(index % vmbus::page_size, bytes, n);
      index = vmbus::advance(index, n, size_);
    }
  }
  void copy_out(std::uint32_t index, void* to, std::uint32_t count) const noexcept {
    auto* bytes = static_cast<unsigned char*>(to);
    for (std::uint32_t n = 0; count != 0; count -= n, bytes += n) {
      n = std::min(count, vmbus::page_size - index % vmbus::page_size);
      page_of(index).copy_out(index % vmbus::page_size, bytes, n);
      index = vmbus::advance(index, n, size_);
    }
  }
  void clear_control() noexcept { control_.clear_control(); }

private:
  [[nodiscard]] vmbus::flat_memory page_of(std::uint32_t index) const noexcept {
    unsigned char* const page = pages_[index / vmbus::page_size];
    return {page, page, vmbus::page_size};
  }

  unsigned char* const* pages_ = nullptr;
  std::uint32_t size_ = 0;
  vmbus::flat_memory control_;
};
static_assert(vmbus::ring_memory<page_memory>);

/// What a channel wants after it was serviced.
struct service_result {
  bool again = false;                                            ///< there is more to do at once
  host_clock::time_point due = (host_clock::time_point::max)();  ///< or at this time
};

/// The host's end of one channel.
///
/// Lifetime: the context must outlive it.  Threads: the host's only.
/// Blocking: service(), for as long as the images take.
class host_channel {
public:
  host_channel(host_context& context, const vmbus::channel_offer& offer) noexcept
      : context_(context), offer_(offer) {}
  host_channel(const host_channel&) = delete;
  host_channel& operator=(const host_channel&) = delete;

  /// Starts to serve the rings on these pages; the second one begins with page `second`.
  /// Returns: false if they cannot be rings, or the channel is open or withdrawn.
  [[nodiscard]] bool open(std::vector<unsigned char*> pages, std::uint32_t second,
                          std::uint32_t gpadl) noexcept;

  /// Drops what is in flight and lets go of the rings.
  void close() noexcept;

  /// As close(); never to be opened again.
  void withdraw() noexcept {
    close();
    withdrawn_ = true;
  }

  /// Takes requests, executes what is due, and answers; a bounded amount of all.
  service_result service(host_clock::time_point now) noexcept;

  [[nodiscard]] const vmbus::channel_offer& offer() const noexcept { return offer_; }
  [[nodiscard]] bool is_open() const noexcept { return !pages_.empty(); }
  [[nodiscard]] bool is_withdrawn() const noexcept { return withdrawn_; }
  [[nodiscard]] std::uint32_t gpadl() const noexcept { return gpadl_; }  ///< while open

private:
  struct pending_srb {
    host_clock::time_point due;
    std::uint64_t trans_id;
    scsi_address at;
    scsi_cdb cdb;
    data_direction direction;
    std::vector<std::span<unsigned char>> data;
  };
  enum class drained : std::uint8_t { empty, budget, no_room, not_allowed, stopped };

  [[nodiscard]] bool is_primary() const noexcept { return offer_.sub_channel_index == 0; }
  [[nodiscard]] bool is_running() const noexcept { return is_open() && !stopped_; }
  [[nodiscard]] bool guest_signals_space() const noexcept;
  bool stop(const char* reason) noexcept;  // false, so that it can be returned

  [[nodiscard]] drained take_requests(host_clock::time_point now) noexcept;
  [[nodiscard]] bool reserve_room() noexcept;
  [[nodiscard]] bool accept(const vmbus::received_packet& p, host_clock::time_point now) noexcept;
  [[nodiscard]] bool accept_control(const vmbus::received_packet& p,
                                    const vstor_packet& request) noexcept;
  [[nodiscard]] std::uint32_t negotiate(const vstor_packet& request, vstor_packet& reply) noexcept;
  [[nodiscard]] bool accept_srb(const vmbus::received_packet& p, const vstor_packet& packet,
                                host_clock::time_point now) noexcept;
  [[nodiscard]] const char* map_data(const vmbus::received_packet& p, std::uint32_t length,
                                     std::vector<std::span<unsigned char>>& data) noexcept;
  [[nodiscard]] bool complete_due(host_clock::time_point now) noexcept;
  void complete(const pending_srb& r) noexcept;
  void send(vmbus::packet_type type, std::uint64_t trans_id, const vstor_packet& packet,
            std::size_t body_size) noexcept;
  void tell_bus_changed() noexcept;
  service_result publish(drained how, bool completed, host_clock::time_point now) noexcept;

  host_context& context_;
  const vmbus::channel_offer offer_;
  bool withdrawn_ = false;
  bool stopped_ = false;
  bool masked_ = false;  // the guest has been told not to signal

  std::vector<unsigned char*> pages_;
  std::uint32_t gpadl_ = 0;
  page_memory requests_;
  vmbus::ring_consumer<page_memory> consumer_;
  vmbus::ring_producer<page_memory> producer_;
  std::uint32_t reply_ring_size_ = 0;
  std::vector<unsigned char> buffer_;
  std::vector<pending_srb> in_flight_;
};

}  // namespace storvsc

#endif  // STORVSC_HOST_CHANNEL_HPP
