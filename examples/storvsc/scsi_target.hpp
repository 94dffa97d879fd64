// SPDX-License-Identifier: MIT
//
// storvsc/scsi_target.hpp - the disks and drives behind the storage host.
//
// A command goes in, an answer comes out: nothing is queued here, and no command
// leaves anything behind but what SCSI says it does. Every number of a CDB is
// the guest's word and is checked before it is used.
//
// Counterpart: a hypervisor's emulation of SCSI disks and optical drives.
#ifndef STORVSC_SCSI_TARGET_HPP
#define STORVSC_SCSI_TARGET_HPP

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "storvsc/disk_image.hpp"
#include "storvsc/protocol.hpp"

namespace storvsc {

/// Where a logical unit is.
struct scsi_address {
  std::uint8_t path = 0;
  std::uint8_t target = 0;
  std::uint8_t lun = 0;
  friend auto operator<=>(const scsi_address&, const scsi_address&) = default;
};

using scsi_cdb = std::array<unsigned char, cdb_size>;

/// A command, and the guest memory that it is about.
struct scsi_request {
  scsi_address at{};
  scsi_cdb cdb{};
  data_direction direction = data_direction::none;
  data_buffer data{};  ///< as long as the guest said, not longer
};

/// How a command ended.
struct scsi_reply {
  std::uint8_t srb_status = srb_status::success;  ///< with its flags
  std::uint8_t scsi_status = scsi_status::good;
  std::uint32_t transferred = 0;  ///< bytes of the buffer that were filled or taken
  sense_data sense{};             ///< meaningful with srb_status::autosense_valid
};

/// How often something happened to a unit.
struct scsi_counters {
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
  std::uint64_t flushes = 0;  ///< SYNCHRONIZE CACHE, and START STOP UNIT that stops
  std::uint64_t event_polls = 0;
};

namespace detail {
class scsi_unit;
}

/// The logical units of one SCSI controller.
///
/// Lifetime: neither copyable nor movable. Units keep their images alive.
/// Threads:  any member may race with any other; commands run one at a time.
/// Blocking: execute(), for as long as the image takes.
class scsi_target {
public:
  scsi_target();
  ~scsi_target();
  scsi_target(const scsi_target&) = delete;
  scsi_target& operator=(const scsi_target&) = delete;

  /// Adds a disk.  Returns: false if the address is taken or the image not open.
  bool attach_disk(scsi_address at, std::shared_ptr<disk_image> image);

  /// Adds an optical drive; a null medium leaves it empty, its tray closed. A
  /// medium that is in it from the start is announced by media events.
  /// Returns: false if the address is taken.
  bool attach_drive(scsi_address at, std::shared_ptr<disk_image> medium);

  /// Removes a unit. The guest learns of it by asking; see storage_host::bus_changed().
  bool detach(scsi_address at);

  /// Puts a medium into a drive and closes its tray.
  /// Returns: false if there is no drive.
  bool insert(scsi_address at, std::shared_ptr<disk_image> medium);

  /// Presses the button: opens the tray and takes the medium away. If the guest
  /// prevents removal, it is told of the wish instead.
  /// Returns: true if the tray is open now.
  bool eject(scsi_address at);

  /// Has the next command to a disk report that its capacity has changed.
  bool report_capacity_change(scsi_address at);

  /// Has transfers that touch these blocks fail; a count of 0 heals the unit.
  bool damage_blocks(scsi_address at, std::uint64_t first, std::uint64_t count);

  /// Executes a command.
  ///
  /// Of `request.data` nothing is written beyond what the reply says was transferred;
  /// after an error its content is not defined. A direction that does not fit the
  /// command is as good as no buffer.
  [[nodiscard]] scsi_reply execute(const scsi_request& request) noexcept;

  /// Returns: zeros for an address where nothing is.
  [[nodiscard]] scsi_counters counters(scsi_address at) const;

private:
  [[nodiscard]] detail::scsi_unit* find(scsi_address at) const noexcept;
  template <class Change>
  [[nodiscard]] bool change(scsi_address at, Change what);
  [[nodiscard]] scsi_reply report_luns(const scsi_request& request) const noexcept;

  mutable std::mutex mutex_;
  std::map<scsi_address, std::unique_ptr<detail::scsi_unit>> units_;
};

}  // namespace storvsc

#endif  // STORVSC_SCSI_TARGET_HPP
