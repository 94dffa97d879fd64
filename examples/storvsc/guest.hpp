// SPDX-License-Identifier: MIT
//
// guest.hpp - a guest with a disk and a CD-ROM, and the host that serves them.
//
// All rooms of the library meet here: SCSI devices over request queues over gates, the
// adapter over a VMBus channel, work queues and a freezer. hibernate() takes them down
// and up again in the order of the mail's log; the policy says which gates are closed.
//
// Counterpart: the machine of the mail thread, and software_resume() of its kernel.
#ifndef STORVSC_GUEST_HPP
#define STORVSC_GUEST_HPP

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include <pmgate/platform/linux_memory.hpp>
#include <pmgate/pm/freezer.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/device.hpp>
#include <pmgate/scsi/host.hpp>

#include "storvsc/adapter.hpp"
#include "storvsc/disk_image.hpp"
#include "storvsc/host.hpp"
#include "storvsc/interrupt_thread.hpp"
#include "storvsc/options.hpp"
#include "storvsc/report.hpp"

namespace storvsc {

/// Pages of guest memory, handed out so that what was given back is used last.
///
/// Threads: any.
class page_pool {
 public:
  page_pool(std::uint64_t first, std::uint32_t count) : first_(first), used_(count, false) {}

  /// Takes consecutive pages.  Returns: false if there are none.
  [[nodiscard]] bool take(std::uint32_t count, std::uint64_t& first);
  void give_back(std::uint64_t first, std::uint32_t count);

 private:
  std::mutex mutex_;
  std::uint64_t first_;
  std::size_t next_ = 0;  // where to look next
  std::vector<bool> used_;
};

/// Guest memory that a device can reach.
struct dma_buffer {
  std::span<std::byte> bytes{};
  std::vector<std::uint64_t> pfns{};
};

/// A command of the midlayer together with what the adapter makes of it.
struct scsi_command : pmgate::scsi::command {
  storvsc::command wire{};
};

/// Guest, host and the wire between them.
///
/// Lifetime: neither copyable nor movable; up from boot() to shutdown().
/// Threads:  execute() and the queries from any thread; the rest by one.
class guest : guest_port {
 public:
  guest(policy which, std::shared_ptr<disk_image> disk, std::chrono::milliseconds dark);
  ~guest();
  guest(const guest&) = delete;
  guest& operator=(const guest&) = delete;

  /// Starts all threads and connects.  Returns: `ok`, or why there is no guest.
  [[nodiscard]] status boot();
  /// Disconnects and ends all threads. Nobody is inside execute() any more.
  void shutdown();

  /// Memory for transfers of `size` bytes; empty if there is no more.
  [[nodiscard]] dma_buffer allocate(std::size_t size);

  /// Sends cdb and data to a unit and waits for the answer.
  ///
  /// Returns: the result word; or the negative status of a refused entry.
  int execute(pmgate::scsi::device& unit, scsi_command& c, std::span<const unsigned char> cdb,
              data_direction direction, const dma_buffer* data, std::size_t length,
              pmgate::scsi::command_flags flags);

  /// One hibernation: down, dark for a while, up again.
  ///
  /// Returns: the number of steps that failed.
  unsigned hibernate(kernel_log& log);

  /// Presses the button of the CD-ROM drive, or puts the medium back.
  void change_medium(bool insert);

  [[nodiscard]] pmgate::scsi::device& disk() { return *disk_; }
  [[nodiscard]] pmgate::scsi::device& cdrom() { return *cdrom_; }
  [[nodiscard]] pmgate::pm::basic_freezer<pmgate::default_platform>& freezer() { return freezer_; }
  /// Where disk events are polled: frozen with kernel threads, not with processes.
  [[nodiscard]] pmgate::pm::work_queue& events() { return events_; }
  [[nodiscard]] const adapter& hba() const { return *adapter_; }
  [[nodiscard]] host_statistics host_counts() const { return host_.statistics(); }

 private:
  // guest_port: the host calls these.
  void deliver(const vmbus::control_message& message) noexcept override;
  void interrupt(std::uint32_t relid) noexcept override;

  static int queuecommand(pmgate::scsi::host& host, pmgate::scsi::command& c) noexcept;
  static void on_done(storvsc::command& wire) noexcept;

  unsigned freeze_tasks(kernel_log& log);
  unsigned suspend_devices(kernel_log& log);
  unsigned suspend_adapter(kernel_log& log);
  unsigned resume_adapter(kernel_log& log);
  void resume_devices(kernel_log& log);
  void tell_of_crash(kernel_log& log, std::uint64_t violations_before);
  [[nodiscard]] bool quiesces() const { return policy_ != policy::none; }

  const policy policy_;
  const std::chrono::milliseconds dark_;

  pmgate::guest_memory memory_;
  std::unique_ptr<page_pool> pages_;
  scsi_target units_;
  std::shared_ptr<disk_image> medium_ = std::make_shared<disk_image>();
  storage_host host_;
  pmgate::doorbell bell_;
  interrupt_thread interrupts_{bell_};
  std::unique_ptr<adapter> adapter_;

  pmgate::pm::basic_freezer<pmgate::default_platform> freezer_;
  pmgate::pm::work_queue kblockd_{"kblockd", pmgate::pm::work_queue_flags::none, 0};
  pmgate::pm::work_queue events_{"events_freezable_power_efficient",
                                 pmgate::pm::work_queue_flags::freezable, 0};
  std::vector<std::thread> workers_;

  pmgate::scsi::host midlayer_;
  pmgate::scsi::target target_;
  std::unique_ptr<pmgate::scsi::device> disk_;
  std::unique_ptr<pmgate::scsi::device> cdrom_;
};

}  // namespace storvsc

#endif  // STORVSC_GUEST_HPP
