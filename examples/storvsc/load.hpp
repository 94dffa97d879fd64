// SPDX-License-Identifier: MIT
//
// load.hpp - what goes on in the guest while it hibernates: threads that write and
// read the disk, and the poll of the CD-ROM.
//
// Every other submitter is a user task, which freezing processes stops. The rest are
// like the kernel's own writers: nothing freezes them, only the gates hold them.
#ifndef STORVSC_LOAD_HPP
#define STORVSC_LOAD_HPP

#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <thread>

#include "storvsc/guest.hpp"
#include "storvsc/ledger.hpp"

namespace storvsc {

/// What a submitter has seen. Read it when the thread has ended.
struct load_counts {
  std::uint64_t ios = 0;
  std::uint64_t errors = 0;     ///< completed with an error, other than for lost rings
  std::uint64_t lost = 0;       ///< blocks whose acknowledged write was missing
  std::uint64_t corrupted = 0;  ///< blocks with content that nobody wrote
  std::chrono::steady_clock::duration longest{};
};

/// A thread that writes and reads random extents of its own part of the disk.
///
/// Lifetime: ends its thread when destroyed.
class submitter {
 public:
  /// Blocks from `first` on are this submitter's alone.
  submitter(guest& machine, ledger& book, std::uint64_t first, std::uint64_t count,
            std::uint64_t seed, bool user_task);
  ~submitter() { stop(); }
  submitter(const submitter&) = delete;
  submitter& operator=(const submitter&) = delete;

  /// Ends the thread after the I/O it is in.
  void stop();
  [[nodiscard]] const load_counts& counts() const { return counts_; }
  /// I/Os so far; from any thread.
  [[nodiscard]] std::uint64_t progress() const {
    // [progress.read] relaxed: a number, not a message.
    return progress_.load(std::memory_order_relaxed);
  }

 private:
  enum class kind : std::uint8_t { read, write, flush };

  void run();
  void one_io();
  [[nodiscard]] bool transfer(kind what, std::uint64_t block, std::uint64_t blocks);
  void verify(std::uint64_t block, std::uint64_t blocks);

  guest& machine_;
  ledger& book_;
  const std::uint64_t first_;
  const std::uint64_t count_;
  const bool user_task_;
  std::mt19937_64 random_;
  dma_buffer buffer_;
  load_counts counts_;
  std::atomic<std::uint64_t> progress_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

/// The disk-events poller: a work item on a freezable queue that asks the drive for media
/// events and queues itself again.
///
/// Lifetime: stops when destroyed.
class event_poller {
 public:
  event_poller(guest& machine, std::chrono::milliseconds interval);
  ~event_poller() { stop(); }
  event_poller(const event_poller&) = delete;
  event_poller& operator=(const event_poller&) = delete;

  /// Takes the item back, and waits while it runs.
  void stop();
  [[nodiscard]] std::uint64_t polls() const { return read(polls_); }
  [[nodiscard]] std::uint64_t errors() const { return read(errors_); }
  /// Polls that reported an event.
  [[nodiscard]] std::uint64_t events() const { return read(events_); }

 private:
  static void on_work(pmgate::pm::work& item) noexcept;
  void poll();
  static std::uint64_t read(const std::atomic<std::uint64_t>& n) {
    // [poller.read] relaxed: a number, not a message.
    return n.load(std::memory_order_relaxed);
  }
  static void bump(std::atomic<std::uint64_t>& n) {
    // [poller.bump] relaxed: as [poller.read].
    n.fetch_add(1, std::memory_order_relaxed);
  }

  guest& machine_;
  const std::chrono::milliseconds interval_;
  dma_buffer buffer_;
  pmgate::pm::work work_{&on_work, this};
  std::atomic<std::uint64_t> polls_{0};
  std::atomic<std::uint64_t> errors_{0};
  std::atomic<std::uint64_t> events_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace storvsc

#endif  // STORVSC_LOAD_HPP
