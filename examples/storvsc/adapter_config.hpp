// SPDX-License-Identifier: MIT
//
// storvsc/adapter_config.hpp - what the guest's adapter is given, and the command
// that travels through it.
//
// The adapter creates no thread, and after its construction allocates nothing but its
// channel table. It reaches the world by callbacks; each says when it is called.
//
// Counterpart: struct hv_device, struct scsi_cmnd and the module parameters.
#ifndef STORVSC_ADAPTER_CONFIG_HPP
#define STORVSC_ADAPTER_CONFIG_HPP

#include <array>
#include <chrono>
#include <cstdint>

#include <pmgate/platform/linux_memory.hpp>
#include <pmgate/vmbus/channel.hpp>

#include "storvsc/protocol.hpp"

namespace storvsc {

using pmgate::status;

/// What submit() returns for a command that was not accepted.
inline constexpr int host_busy = 0x1055;
inline constexpr int device_busy = 0x1056;

/// The upper half of command::result: what became of it below the device.
namespace host_byte {
inline constexpr std::uint32_t ok = 0x00;
inline constexpr std::uint32_t no_connect = 0x01;
inline constexpr std::uint32_t error = 0x07;
inline constexpr std::uint32_t reset = 0x08;
inline constexpr std::uint32_t passthrough = 0x0A;
inline constexpr std::uint32_t requeue = 0x0D;
}  // namespace host_byte

/// A SCSI command on its way. The caller fills in the first part and leaves all of
/// it alone until done(); done() finds the second part filled in.
struct command {
  std::uint8_t path = 0;
  std::uint8_t target = 0;
  std::uint8_t lun = 0;
  std::uint8_t cdb_length = 0;  ///< at most 16
  std::array<unsigned char, cdb_size> cdb{};
  data_direction direction = data_direction::none;
  bool tagged = false;         ///< the device queues commands
  std::uint16_t hw_queue = 0;  ///< with the tag: unique among all commands in flight
  std::uint16_t tag = 0;
  const std::uint64_t* pfns = nullptr;  ///< one for each page that the data touches
  std::uint32_t offset = 0;             ///< of the data in the first page
  std::uint32_t length = 0;             ///< of the data; 0: there is none
  /// Called once for every accepted command, by whoever completes it. Afterwards the
  /// adapter never touches the command again: it may be freed or submitted anew.
  void (*done)(command&) noexcept = nullptr;
  void* context = nullptr;

  std::uint32_t result = 0;  ///< host byte << 16 | SCSI status
  std::uint32_t transferred = 0;
  std::uint32_t resid = 0;  ///< length - transferred
  sense_data sense{};
  std::uint8_t sense_length = 0;  ///< bytes of it that mean something
};

/// What keeps commands away while the rings are gone.
enum class gating : std::uint8_t {
  own,  ///< the adapter turns them away itself, before it drains
  none  ///< nothing, as in the kernel of the crash; what gets through is counted
};

/// Where an adapter is in its life.
enum class adapter_state : std::uint8_t {
  running,
  blocking,  ///< new commands are refused; waits for those who are inside submit()
  draining,  ///< waits for the host to complete what it has
  closed,    ///< there are no rings
  opening,
  failed  ///< as closed; commands fail instead of being put off
};

[[nodiscard]] constexpr const char* to_string(adapter_state s) noexcept {
  switch (s) {
    case adapter_state::running: return "RUNNING";
    case adapter_state::blocking: return "BLOCKING";
    case adapter_state::draining: return "DRAINING";
    case adapter_state::closed: return "CLOSED";
    case adapter_state::opening: return "OPENING";
    case adapter_state::failed: return "FAILED";
  }
  return "?";
}

/// Where the pages of the rings come from: other ones for every connection.
struct page_supply {
  void* context = nullptr;
  /// Finds `count` consecutive pages that nobody uses. Returns: false if there are none.
  bool (*take)(void* context, std::uint32_t count, std::uint64_t& first) noexcept = nullptr;
  /// Takes a run back. Not called for pages that the host did not let go of.
  void (*give_back)(void* context, std::uint64_t first, std::uint32_t count) noexcept = nullptr;
};

/// Something to be done about the devices, by somebody who may issue commands.
struct work_item {
  enum class kind : std::uint8_t { rescan_host, rescan_lun, remove_lun };
  kind what = kind::rescan_host;
  std::uint8_t path = 0;  ///< path, target and lun: not for rescan_host
  std::uint8_t target = 0;
  std::uint8_t lun = 0;
  bool operator==(const work_item&) const = default;
};

/// Whoever does the work; see adapter::take_work(). Both may be null.
struct work_callbacks {
  void* context = nullptr;
  /// There is something to take. On the interrupt thread: have it taken elsewhere, soon.
  void (*pending)(void* context) noexcept = nullptr;
  /// Ends all work that was begun, and takes no more. Called by suspend() while
  /// commands still flow; it may wait for them.
  void (*flush)(void* context) noexcept = nullptr;
};

/// For tests; all may be null.
struct adapter_hooks {
  void* context = nullptr;
  /// The CPU that runs. Null: sched_getcpu().
  unsigned (*cpu)(void* context) noexcept = nullptr;
  /// Called instead of sleeping for the host. Returns: false if the time is up.
  bool (*wait)(void* context) noexcept = nullptr;
  /// A command passed the gate and has not reached the ring.
  void (*entered)(void* context) noexcept = nullptr;
  /// A command is in the ring, and submit() has not returned.
  void (*published)(void* context) noexcept = nullptr;
};

/// Everything an adapter needs. What it points to must outlive the adapter.
struct adapter_config {
  pmgate::guest_memory* memory = nullptr;
  page_supply ring_pages{};
  pmgate::vmbus::channel_transport transport{};
  pmgate::vmbus::channel_offer offer{};
  std::uint32_t ring_size = 128 * 1024;  ///< each way, control page included

  /// True: the rings get addresses of their own, which vanish with the connection,
  /// so that a late access faults. False: they are used where guest memory lies.
  bool map_rings = true;

  std::chrono::steady_clock::duration init_timeout = std::chrono::seconds(180);  ///< per answer

  std::uint16_t hardware_queues = 1;
  std::uint16_t tags = 316;    ///< per hardware queue
  std::uint32_t cpus = 0;      ///< size of the channel table; 0: what the machine has
  std::uint8_t port = 0;       ///< number of the adapter; the host ignores it
  std::uint32_t budget = 256;  ///< packets handled in one go
  gating gate = gating::own;
  bool pausable = false;  ///< set_paused() may be used; costs a lock per command

  work_callbacks work{};
  adapter_hooks hooks{};
};

/// What happened so far.
struct adapter_statistics {
  std::uint64_t completed = 0;    ///< commands that the host answered
  std::uint64_t turned_away = 0;  ///< submit() returned host_busy
  std::uint64_t ring_full = 0;    ///< submit() returned device_busy
  std::uint64_t violations = 0;   ///< see adapter::violations()
  std::uint64_t lost = 0;         ///< see adapter::lost()
  std::uint64_t dropped = 0;      ///< packets of the host that were not believed
  std::uint64_t leaked_runs = 0;  ///< runs of pages that the host did not let go of
};

}  // namespace storvsc

#endif  // STORVSC_ADAPTER_CONFIG_HPP
