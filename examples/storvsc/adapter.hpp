// SPDX-License-Identifier: MIT
//
// storvsc/adapter.hpp - the guest's storage adapter: commands in, packets out,
// across as many suspends and resumes as it takes.
//
// The one rule to know: the rings exist from connect() or resume() to suspend(),
// and they are other memory each time. A command reaches them only inside an entry
// of a freeze gate. With gating::own the gate is closed before the adapter drains;
// with gating::none, as in the kernel of the crash, only afterwards: it then shows
// who came too late, where the kernel took a page fault.
//
// Counterpart: Linux storvsc_drv.c, with the faults of its suspend path named in the
// discussion of April 2020 mended, or shown.
#ifndef STORVSC_ADAPTER_HPP
#define STORVSC_ADAPTER_HPP

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/vmbus/channel.hpp>

#include "storvsc/adapter_config.hpp"
#include "storvsc/in_flight.hpp"
#include "storvsc/protocol.hpp"
#include "storvsc/work_list.hpp"

namespace storvsc {

/// A storage adapter over one channel.
///
/// Lifetime: neither copyable nor movable. Disconnects when destroyed; the interrupt
///           thread has been stopped then, and nobody is inside submit().
/// Threads:  submit() and the queries from any thread; handle_doorbell(),
///           run_deferred() and on_message() from any thread; connect(), suspend(),
///           resume(), disconnect() and reset_bus() from any thread but the one that
///           runs the former, and not from done(). They wait for each other.
/// Blocking: where it says so, and always bounded.
/// Misuse:   a command that contradicts itself, or whose tag is in flight, completes
///           with DID_ERROR.
/// Limits:   one channel: sub-channels are never asked for. A ring that the host has
///           corrupted stays corrupt until disconnect().
class adapter {
public:
  using platform = pmgate::default_platform;
  using clock = std::chrono::steady_clock;

  explicit adapter(const adapter_config& config);
  ~adapter();
  adapter(const adapter&) = delete;
  adapter& operator=(const adapter&) = delete;

  // -- life

  /// Opens the rings and negotiates.
  ///
  /// Returns: `ok`; `invalid` if not closed, or if the host speaks no version of ours
  /// or answers nonsense; `timed_out`; `no_memory` for want of pages; or what the
  /// channel said. Unless `ok` it is closed, nothing is held, and one may try again.
  /// Blocks: for the host's answers, each bounded by init_timeout.
  /// Kernel: storvsc_connect_to_vsp().
  [[nodiscard]] status connect() noexcept;

  /// Puts the adapter to sleep: no command in the host's hands, no rings.
  ///
  /// Returns: `ok`, CLOSED; `busy` if the deadline passed first, and then it is
  /// RUNNING as before; `invalid` if it was not RUNNING. Anything else: CLOSED, but
  /// the host did not let go of the pages, and they are never used again.
  /// Blocks: for the work that was begun (see work_callbacks::flush), until the host has
  /// completed everything, and for one answer of it.
  /// Kernel: storvsc_suspend().
  [[nodiscard]] status suspend(clock::time_point deadline) noexcept;
  [[nodiscard]] status suspend(clock::duration within) noexcept {
    return suspend(clock::now() + within);
  }

  /// Wakes it up: new rings, a new negotiation, then RUNNING.
  ///
  /// Returns: as connect(); unless `ok` it is FAILED, commands complete with
  /// DID_NO_CONNECT, and one may resume again. `invalid` unless CLOSED or FAILED.
  /// Blocks: as connect().  Kernel: storvsc_resume().
  [[nodiscard]] status resume() noexcept;

  /// The device came back under another offer.  Returns: `busy` unless closed or failed.
  [[nodiscard]] status rebind(const pmgate::vmbus::channel_offer& offer) noexcept;

  /// Closes it in any state. What the host does not complete within `within` is lost.
  /// Kernel: storvsc_remove().
  void disconnect(clock::duration within = std::chrono::seconds(1)) noexcept;

  // -- commands

  /// Sends a command.
  ///
  /// Returns: 0: accepted, done() will be called exactly once, perhaps before this
  /// returns. `host_busy`, `device_busy`: not accepted, nothing is remembered, try later.
  /// Blocks: no.  Kernel: storvsc_queuecommand().
  [[nodiscard]] int submit(command& c) noexcept;

  /// Resets the bus, and waits until every command has come back.
  /// Returns: `ok`; `timed_out`; `no_device` if closed, also meanwhile; or what the
  /// channel said. A second reset waits for the first.
  /// Blocks: twice init_timeout at most.  Kernel: storvsc_host_reset().
  [[nodiscard]] status reset_bus(std::uint8_t path) noexcept;

  /// Marks the adapter busy, or not: while paused, submit() returns `host_busy`.
  ///
  /// Returns: `not_supported` unless the adapter is pausable.
  /// Blocks: pausing waits for those who are inside submit().
  /// Kernel: scsifront_suspend() of xen-scsifront.
  status set_paused(bool paused) noexcept;

  /// The next piece of work that the host, or an answer of it, asked for.
  /// Returns: false if there is none, or this is not the time.
  [[nodiscard]] bool take_work(work_item& out) noexcept { return work_.take(out); }

  // -- the host's side of the world

  void handle_doorbell() noexcept { channel_.interrupt(); }
  void run_deferred(std::uint32_t ticket) noexcept { channel_.run_deferred(ticket); }
  status on_message(const void* message, std::uint32_t size) noexcept;

  // -- queries

  [[nodiscard]] adapter_state state() const noexcept {
    // [state.read] acquire: pairs with [state.set].
    return state_.load(std::memory_order_acquire);
  }
  /// Commands accepted and not completed.
  [[nodiscard]] std::uint32_t outstanding() const noexcept {
    // [outstanding.read] acquire: a hint.
    return outstanding_.load(std::memory_order_acquire);
  }
  /// How often the rings were taken down.
  [[nodiscard]] std::uint32_t generation() const noexcept {
    // [generation.read] acquire: a hint.
    return generation_.load(std::memory_order_acquire);
  }
  /// Commands that found no channel table: each of them would have been a page fault.
  [[nodiscard]] std::uint64_t violations() const noexcept { return count(violations_); }
  /// Where the last of them would have faulted: 8 times its CPU number.
  [[nodiscard]] std::uint64_t last_fault_address() const noexcept { return count(last_fault_); }
  /// Commands that were in flight when the rings went away; completed with DID_RESET.
  [[nodiscard]] std::uint64_t lost() const noexcept { return count(lost_); }
  [[nodiscard]] adapter_statistics statistics() const noexcept;

  /// What was negotiated last.
  [[nodiscard]] std::uint16_t protocol_version() const noexcept {
    // [version.read] relaxed: commands are ordered behind it by the gate.
    return version_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] channel_properties properties() const noexcept {
    const lock guard(control_mutex_);
    return properties_;
  }
  /// Bytes that one command may move: what the host allows, in whole pages.
  [[nodiscard]] std::uint32_t max_transfer() const noexcept {
    constexpr std::uint32_t page = pmgate::vmbus::page_size;
    return properties().max_transfer_bytes / page * page;
  }
  [[nodiscard]] pmgate::vmbus::ring_fault fault() const noexcept { return channel_.fault(); }
  /// First page of the rings of the last connection.
  [[nodiscard]] std::uint64_t ring_pfn() const noexcept { return count(ring_pfn_); }

private:
  using channel = pmgate::vmbus::channel;
  using lock = pmgate::scoped_lock<platform::mutex>;
  using counter = std::atomic<std::uint64_t>;

  /// Somebody waits for the answer to a request that is not a command.
  struct control_slot {
    bool expected = false;
    bool arrived = false;
    vstor_packet answer{};
  };
  /// What try_submit() decided.
  struct verdict {
    int code = 0;
    bool finished = false;  ///< completed at once, with:
    std::uint32_t host = host_byte::ok;
  };

  // adapter.cpp
  [[nodiscard]] verdict try_submit(command& c) noexcept;
  [[nodiscard]] verdict turn_away() noexcept;
  [[nodiscard]] verdict send(command& c) noexcept;
  [[nodiscard]] channel* choose_channel() noexcept;
  [[nodiscard]] bool well_formed(const command& c) const noexcept;
  [[nodiscard]] unsigned this_cpu() const noexcept;
  [[nodiscard]] bool enter_unless_paused() noexcept;
  void leave_pausable() noexcept;
  [[nodiscard]] bool sleep(platform::wait_word& word, std::uint32_t seen,
                           clock::time_point deadline) noexcept;
  [[nodiscard]] bool await_drain(clock::time_point deadline, bool momentary) noexcept;
  void retire() noexcept;
  static void finish(command& c, std::uint32_t host) noexcept;

  // adapter_lifecycle.cpp
  [[nodiscard]] status open(adapter_state on_failure) noexcept;
  [[nodiscard]] status open_channel() noexcept;
  [[nodiscard]] status map_rings(pmgate::vmbus::flat_memory& outbound,
                                 pmgate::vmbus::flat_memory& inbound) noexcept;
  [[nodiscard]] status negotiate() noexcept;
  [[nodiscard]] status negotiate_version() noexcept;
  [[nodiscard]] status exchange(vstor_packet& p) noexcept;
  [[nodiscard]] status send_control(control_slot& slot, std::uint64_t id,
                                    const vstor_packet& p) noexcept;
  [[nodiscard]] status await(control_slot& slot, vstor_packet& answer) noexcept;
  void forget(control_slot& slot) noexcept;
  [[nodiscard]] bool close_gate(clock::time_point deadline) noexcept;
  void run_again() noexcept;
  status tear_down() noexcept;
  status close_channel() noexcept;
  void release_pages() noexcept;
  void complete_lost() noexcept;
  [[nodiscard]] bool make_table() noexcept;
  void set_state(adapter_state s) noexcept {
    // [state.set] release: pairs with [state.read].
    state_.store(s, std::memory_order_release);
  }

  // adapter_completion.cpp
  static void on_channel(void* self) noexcept;
  static bool on_published(void* self, std::uint64_t cookie, std::uint64_t& id) noexcept;
  void receive(const pmgate::vmbus::received_packet& p) noexcept;
  void receive_unsolicited(const pmgate::vmbus::received_packet& p) noexcept;
  void receive_control(control_slot& slot, const vstor_packet& p) noexcept;
  void wake_control() noexcept;
  void complete(command& c, const srb& answer) noexcept;
  [[nodiscard]] std::uint32_t host_byte_for(const command& c, std::uint8_t raw_status) noexcept;
  void drop() noexcept { bump(dropped_); }

  static std::uint64_t count(const counter& c) noexcept {
    // [counter.read] relaxed: a number, not a message.
    return c.load(std::memory_order_relaxed);
  }
  static void bump(counter& c) noexcept {
    // [counter.bump] relaxed: as [counter.read].
    c.fetch_add(1, std::memory_order_relaxed);
  }

  const adapter_config config_;
  channel channel_;
  in_flight_table in_flight_;
  work_list work_;
  pmgate::freeze_gate gate_;  // open while there is a channel table
  platform::mutex life_mutex_;

  std::atomic<adapter_state> state_{adapter_state::closed};
  std::atomic<std::uint16_t> version_{0};
  std::atomic<std::uint32_t> generation_{0};

  // The channel of every CPU. One pointer publishes it, and takes it away.
  const std::uint32_t cpus_;
  std::unique_ptr<channel*[]> table_;
  std::atomic<channel* const*> published_table_{nullptr};

  std::atomic<std::uint32_t> outstanding_{0};
  std::atomic<std::uint32_t> drainers_{0};
  platform::wait_word drained_{0};  // counts the times nothing was outstanding

  mutable platform::mutex control_mutex_;
  channel_properties properties_{};
  control_slot init_{};
  control_slot reset_{};
  platform::wait_word control_events_{0};
  platform::mutex reset_mutex_;  // one reset at a time

  platform::mutex pause_mutex_;
  bool paused_ = false;
  std::uint32_t callers_ = 0;
  platform::wait_word callers_left_{0};

  pmgate::ring_mapping ring_maps_[2];
  std::vector<std::uint64_t> ring_pfns_;
  counter ring_pfn_{0};
  std::array<unsigned char, 80> inbound_packet_{};  // 16 + 64: the largest legal one

  counter completed_{0}, turned_away_{0}, ring_full_{0}, violations_{0}, last_fault_{0};
  counter lost_{0}, dropped_{0}, leaked_runs_{0};
};

}  // namespace storvsc

#endif  // STORVSC_ADAPTER_HPP
