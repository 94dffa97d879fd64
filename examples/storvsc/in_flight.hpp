// SPDX-License-Identifier: MIT
//
// storvsc/in_flight.hpp - which commands are in the hands of the host.
//
// A slot for every tag. A slot is reserved while its packet is being written, and
// armed at the last moment before the host can know of it; only an armed slot can
// be claimed, by one claimant. So a command is completed once, whatever the host
// says, and never while its submitter still reads it.
//
// Counterpart: the block layer's tags, and scsi_host_find_tag().
#ifndef STORVSC_IN_FLIGHT_HPP
#define STORVSC_IN_FLIGHT_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "storvsc/adapter_config.hpp"

namespace storvsc {

/// The commands in flight, by their trans_id.
///
/// Threads: any.  Blocking: never.
/// Limits:  a trans_id is a tag, as the protocol has it: a host that answers on a new
///          ring what it was asked on an old one completes the tag's new command.
class in_flight_table {
public:
  /// A reservation; a claim against it fails once somebody else has made one.
  struct reservation {
    std::size_t slot = 0;
    std::uint64_t age = 0;
  };

  in_flight_table(std::uint16_t queues, std::uint16_t tags)
      : queues_(queues), tags_(tags), slots_(std::make_unique<slot[]>(size())) {}

  /// The trans_id of a tag; never 0.
  [[nodiscard]] static constexpr std::uint64_t id_of(std::uint16_t queue,
                                                     std::uint16_t tag) noexcept {
    return (std::uint64_t{queue} << 16 | tag) + 1;
  }

  /// Returns: false if there is no such tag, or it is in use.
  [[nodiscard]] bool reserve(command& c, reservation& out) noexcept {
    if (!find(id_of(c.hw_queue, c.tag), out.slot)) return false;
    slot& s = slots_[out.slot];
    // [reserve.look] relaxed: a guess; [reserve.take] decides.
    std::uint64_t seen = s.state.load(std::memory_order_relaxed);
    if ((seen & phase_mask) != free) return false;
    out.age = (seen & ~phase_mask) + next_age;
    // [reserve.take] acquire: pairs with [claim.take] and [cancel.free]; whoever had the
    // slot before has read its command.
    if (!s.state.compare_exchange_strong(seen, out.age | reserved, std::memory_order_acquire,
                                         std::memory_order_relaxed)) {
      return false;
    }
    // [reserve.command] relaxed: published by [arm.release].
    s.owner.store(&c, std::memory_order_relaxed);
    return true;
  }

  /// From now on the command may be claimed.  Precondition: reserved, by this thread.
  void arm(std::uint64_t id) noexcept {
    std::size_t at = 0;
    if (!find(id, at)) return;
    slot& s = slots_[at];
    // [arm.age] relaxed: a reserved slot is changed by its submitter only.
    const std::uint64_t seen = s.state.load(std::memory_order_relaxed);
    // [arm.release] release: pairs with [claim.look]; the submitter has read all it
    // needs of the command, and the claimant finds what it wrote.
    s.state.store((seen & ~phase_mask) | armed, std::memory_order_release);
  }

  /// Takes the command with this ID out of the table.
  /// Returns: null if the ID, all 64 bits of it, is not one that the host may answer.
  [[nodiscard]] command* claim(std::uint64_t id) noexcept {
    std::size_t at = 0;
    return find(id, at) ? claim_slot(slots_[at]) : nullptr;
  }

  /// Takes a command out by its number, for whoever goes through all of them.
  [[nodiscard]] command* claim_at(std::size_t at) noexcept { return claim_slot(slots_[at]); }

  /// Undoes a reservation whose packet was not sent, or is not going to be answered.
  /// Returns: false if the command was claimed meanwhile.
  [[nodiscard]] bool cancel(const reservation& r) noexcept {
    slot& s = slots_[r.slot];
    std::uint64_t seen = r.age | reserved;
    // [cancel.free] acq_rel: release pairs with [reserve.take]; acquire with nothing.
    if (s.state.compare_exchange_strong(seen, r.age, std::memory_order_acq_rel,
                                        std::memory_order_relaxed)) {
      return true;
    }
    seen = r.age | armed;
    // [cancel.armed] acq_rel: as [cancel.free]; against [claim.take] one of the two wins.
    return s.state.compare_exchange_strong(seen, r.age, std::memory_order_acq_rel,
                                           std::memory_order_relaxed);
  }

  [[nodiscard]] std::size_t size() const noexcept { return std::size_t{queues_} * tags_; }

private:
  // A state is an age and a phase; the age tells one use of a slot from the next.
  static constexpr std::uint64_t free = 0;
  static constexpr std::uint64_t reserved = 1;
  static constexpr std::uint64_t armed = 2;
  static constexpr std::uint64_t phase_mask = 3;
  static constexpr std::uint64_t next_age = 4;

  struct slot {
    std::atomic<std::uint64_t> state{free};
    std::atomic<command*> owner{nullptr};
  };

  [[nodiscard]] bool find(std::uint64_t id, std::size_t& at) const noexcept {
    const std::uint64_t queue = (id - 1) >> 16;
    const std::uint64_t tag = (id - 1) & 0xFFFF;
    if (id == 0 || queue >= queues_ || tag >= tags_) return false;
    at = static_cast<std::size_t>(queue * tags_ + tag);
    return true;
  }

  [[nodiscard]] command* claim_slot(slot& s) noexcept {
    // [claim.look] acquire: pairs with [arm.release].
    std::uint64_t seen = s.state.load(std::memory_order_acquire);
    if ((seen & phase_mask) != armed) return nullptr;
    // [claim.owner] relaxed: it is the one of this age if [claim.take] succeeds.
    command* const c = s.owner.load(std::memory_order_relaxed);
    // [claim.take] acq_rel: release pairs with [reserve.take]: the owner was read.
    return s.state.compare_exchange_strong(seen, seen & ~phase_mask, std::memory_order_acq_rel,
                                           std::memory_order_relaxed)
               ? c
               : nullptr;
  }

  const std::uint16_t queues_;
  const std::uint16_t tags_;
  std::unique_ptr<slot[]> slots_;
};

}  // namespace storvsc

#endif  // STORVSC_IN_FLIGHT_HPP
