// SPDX-License-Identifier: MIT
//
// storvsc/host.hpp - the storage host: the other side of the adapter.
//
// It owns one device: the primary channel, the sub-channels that it grants, and
// the list of guest pages that it has been lent. What the guest says is put into
// an inbox and a doorbell is rung; all work is done by one thread, the host's own
// or whoever calls poll(). It reaches guest memory only through page frame
// numbers that were checked, and forgets them before it says TORNDOWN.
//
// Counterpart: a hypervisor's VMBus channel management and its storage device.
#ifndef STORVSC_HOST_HPP
#define STORVSC_HOST_HPP

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "storvsc/host_channel.hpp"

namespace storvsc {

/// What makes one storage host different from another on the same bus.
struct host_identity {
  vmbus::channel_offer primary{};         ///< its type is set by the host
  std::uint32_t first_sub_relid = 0x100;  ///< of sub-channels, counting up, never used twice
};

/// A storage device as its hypervisor runs it.
///
/// Lifetime: neither copyable nor movable. Memory, target and port must outlive it.
/// Threads:  any member may race with any other, but poll() is for one thread, and
///           for none between start() and stop().
/// Blocking: poll() for as long as the images take; stop() for the host's thread.
/// Limits:   requests in flight are dropped when their channel is closed: a guest
///           drains first.
class storage_host {
public:
  storage_host(const pmgate::guest_memory& memory, scsi_target& target, guest_port& port,
               const host_identity& identity);
  ~storage_host() { stop(); }
  storage_host(const storage_host&) = delete;
  storage_host& operator=(const storage_host&) = delete;

  /// Starts the host's thread.  Returns: `ok`; `no_memory` without a doorbell;
  /// `busy` if it runs.
  [[nodiscard]] pmgate::status start();
  /// Ends the thread after the round it is in. The channels stay as they are.
  void stop() noexcept;

  /// Takes a control message of the guest: a channel_transport's send().
  /// Returns: `ok`; `again` if a thousand of them are waiting already.
  pmgate::status on_message(const vmbus::control_message& message) noexcept;

  /// The guest signals any channel of this device: a channel_transport's signal().
  void ring() noexcept { bell_.ring(); }

  /// Does one bounded round of everything that is due at `now`.
  /// Returns: true if there is more to do at once.
  bool poll(host_clock::time_point now = host_clock::now()) noexcept;
  /// When poll() is to be called next, even if nobody rings. For poll()'s caller.
  [[nodiscard]] host_clock::time_point next_due() const noexcept { return next_due_; }

  /// Behaves like this from the next round on.
  void set_behaviour(const host_behaviour& behaviour) noexcept;
  [[nodiscard]] host_behaviour behaviour() const;

  /// Tells the guest to look for units again: ENUMERATE_BUS, once it is ready.
  void bus_changed() noexcept;

  /// The offer of the primary channel.
  [[nodiscard]] const vmbus::channel_offer& offer() const noexcept { return offer_; }

  // What was true after the last round.
  [[nodiscard]] host_statistics statistics() const;
  [[nodiscard]] protocol_phase phase() const;
  [[nodiscard]] std::uint16_t protocol_version() const;  ///< 0 before it is negotiated
  [[nodiscard]] std::string last_error() const;          ///< why a channel stopped, or the like
  [[nodiscard]] std::size_t lent_pages() const;  ///< guest pages the host may touch for rings

private:
  struct gpadl {
    std::uint32_t relid = 0;
    std::size_t expected = 0;  // pages
    std::vector<std::uint64_t> pfns;
    std::vector<unsigned char*> pages;
    [[nodiscard]] bool is_complete() const noexcept { return pages.size() == expected; }
  };
  struct snapshot {
    host_statistics statistics{};
    protocol_phase phase = protocol_phase::begin;
    std::uint16_t protocol_version = 0;
    std::size_t lent_pages = 0;
    std::string last_error{};
  };

  void run() noexcept;
  [[nodiscard]] std::vector<vmbus::control_message> take_inbox() noexcept;
  void publish_snapshot() noexcept;
  [[nodiscard]] host_channel* find(std::uint32_t relid) const noexcept;

  void handle(const vmbus::control_message& m) noexcept;
  void create_gpadl(const vmbus::control_message& m) noexcept;
  void extend_gpadl(const vmbus::control_message& m) noexcept;
  void add_pages(std::uint32_t handle, const vmbus::control_message& m,
                 std::uint32_t offset) noexcept;
  void answer_gpadl(std::uint32_t relid, std::uint32_t handle, std::uint32_t result) noexcept;
  void teardown_gpadl(const vmbus::control_message& m) noexcept;
  void open(const vmbus::control_message& m) noexcept;
  void close(const vmbus::control_message& m) noexcept;
  void withdraw_sub_channels() noexcept;
  void offer_sub_channels() noexcept;
  void offer_primary() noexcept;
  void forget_channel(std::uint32_t relid) noexcept;
  void unload() noexcept;

  const vmbus::channel_offer offer_;
  std::uint32_t next_sub_relid_;
  pmgate::doorbell bell_;
  const pmgate::status bell_state_;
  std::thread thread_;

  // For the thread that polls.
  host_context context_;
  std::vector<std::unique_ptr<host_channel>> channels_;  // the primary first
  std::map<std::uint32_t, gpadl> gpadls_;
  host_clock::time_point next_due_ = (host_clock::time_point::max)();

  // For everybody, under the mutex; nothing is called while it is held.
  mutable std::mutex mutex_;
  std::vector<vmbus::control_message> inbox_;
  host_behaviour wanted_{};
  bool bus_changed_ = false;
  bool stopping_ = false;
  snapshot seen_{};
};

}  // namespace storvsc

#endif  // STORVSC_HOST_HPP
