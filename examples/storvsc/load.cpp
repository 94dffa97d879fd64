// SPDX-License-Identifier: MIT
#include "storvsc/load.hpp"

#include <algorithm>
#include <array>
#include <optional>

namespace storvsc {
namespace {

namespace scsi = pmgate::scsi;
using clock = std::chrono::steady_clock;

constexpr std::uint64_t largest_extent = 16;  // blocks
constexpr std::uint64_t sectors_per_block = block_size / sector_size;
constexpr int most_attempts = 100;            // of one I/O; lost rings take a few each

using cdb10 = std::array<unsigned char, 10>;

cdb10 transfer_cdb(unsigned char opcode, std::uint64_t block, std::uint64_t blocks) {
  const std::uint64_t sector = block * sectors_per_block;
  const std::uint64_t count = blocks * sectors_per_block;
  const auto byte = [](std::uint64_t value, int shift) {
    return static_cast<unsigned char>(value >> shift & 0xFF);
  };
  return {opcode, 0, byte(sector, 24), byte(sector, 16), byte(sector, 8), byte(sector, 0),
          0, byte(count, 8), byte(count, 0), 0};
}

}  // namespace

submitter::submitter(guest& machine, ledger& book, std::uint64_t first, std::uint64_t count,
                     std::uint64_t seed, bool user_task)
    : machine_(machine),
      book_(book),
      first_(first),
      count_(count),
      user_task_(user_task),
      random_(seed),
      buffer_(machine.allocate(largest_extent * block_size)),
      thread_([this] { run(); }) {}

void submitter::stop() {
  // [submitter.stop] relaxed: looked at before every I/O.
  stopping_.store(true, std::memory_order_relaxed);
  if (thread_.joinable()) thread_.join();
}

void submitter::run() {
  using pmgate::pm::task_kind;
  pmgate::pm::basic_freezable_task<pmgate::default_platform> task(
      machine_.freezer(), "submitter", user_task_ ? task_kind::user : task_kind::kernel);
  task.bind_to_this_thread();
  // [submitter.look] relaxed: see [submitter.stop].
  while (!stopping_.load(std::memory_order_relaxed)) {
    (void)task.try_to_freeze();
    const auto began = clock::now();
    one_io();
    counts_.longest = std::max(counts_.longest, clock::now() - began);
    // [progress.bump] relaxed: a number, not a message.
    progress_.fetch_add(1, std::memory_order_relaxed);
  }
}

void submitter::one_io() {
  const std::uint64_t dice = random_() % 256;
  const std::uint64_t blocks = std::min(1 + random_() % largest_extent, count_);
  const std::uint64_t block = first_ + random_() % (count_ - blocks + 1);
  if (dice == 0) {
    counts_.ios += transfer(kind::flush, 0, 0);
  } else if (dice % 2 == 0) {
    for (std::uint64_t i = 0; i < blocks; ++i) {
      book_.next(block + i, block_bytes(buffer_.bytes.subspan(i * block_size, block_size)));
    }
    if (!transfer(kind::write, block, blocks)) return;
    for (std::uint64_t i = 0; i < blocks; ++i) book_.written(block + i);
    ++counts_.ios;
  } else if (transfer(kind::read, block, blocks)) {
    verify(block, blocks);
    ++counts_.ios;
  }
}

/// Tries again what the adapter says went down with its rings: the adapter counts that.
bool submitter::transfer(kind what, std::uint64_t block, std::uint64_t blocks) {
  const unsigned char opcode = what == kind::read ? 0x28 : what == kind::write ? 0x2A : 0x35;
  const data_direction direction = what == kind::read    ? data_direction::from_device
                                   : what == kind::write ? data_direction::to_device
                                                         : data_direction::none;
  const cdb10 cdb = transfer_cdb(opcode, block, blocks);
  for (int attempt = 0; attempt < most_attempts; ++attempt) {
    scsi_command c;
    const int result = machine_.execute(machine_.disk(), c, cdb, direction,
                                        blocks == 0 ? nullptr : &buffer_, blocks * block_size,
                                        scsi::command_flags::none);
    if (result == 0 && c.wire.resid == 0) return true;
    if (result >> 16 != static_cast<int>(host_byte::reset)) break;
  }
  ++counts_.errors;
  return false;
}

void submitter::verify(std::uint64_t block, std::uint64_t blocks) {
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const block_view bytes(buffer_.bytes.subspan(i * block_size, block_size));
    const verdict v = book_.check(block + i, bytes);
    counts_.lost += v == verdict::lost;
    counts_.corrupted += v == verdict::corrupted;
  }
}

event_poller::event_poller(guest& machine, std::chrono::milliseconds interval)
    : machine_(machine), interval_(interval), buffer_(machine.allocate(8)) {
  (void)machine_.events().queue_delayed(work_, interval_);
}

void event_poller::stop() {
  // [poller.stop] relaxed: cancel_sync() orders it; the item is cancelled once more if
  // it has queued itself before it looked.
  stopping_.store(true, std::memory_order_relaxed);
  (void)machine_.events().cancel_sync(work_);
}

void event_poller::on_work(pmgate::pm::work& item) noexcept {
  auto& self = *static_cast<event_poller*>(item.context());
  self.poll();
  // [poller.look] relaxed: see [poller.stop].
  if (self.stopping_.load(std::memory_order_relaxed)) return;
  (void)self.machine_.events().queue_delayed(item, self.interval_);
}

/// GET EVENT STATUS NOTIFICATION, as the CD-ROM driver sends it: an internal command, and
/// so a special one before 5.11.
void event_poller::poll() {
  static constexpr cdb10 gesn{0x4A, 0x01, 0, 0, 0x10, 0, 0, 0, 0x08, 0};
  scsi_command c;
  const int result = machine_.execute(machine_.cdrom(), c, gesn, data_direction::from_device,
                                      &buffer_, buffer_.bytes.size(), scsi::command_flags::special);
  if (result >> 16 == static_cast<int>(host_byte::reset)) return;  // counted by the adapter
  if (result != 0) {
    bump(errors_);
    return;
  }
  bump(polls_);
  const bool media_class = std::to_integer<unsigned>(buffer_.bytes[2]) == 4;
  if (media_class && (std::to_integer<unsigned>(buffer_.bytes[4]) & 0x0F) != 0) bump(events_);
}

}  // namespace storvsc
