// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/request_ids.hpp - small numbers that stand for requests while
// they are out of our hands.
//
// The trans_id of a packet travels through memory that the peer controls, so it
// must never be a pointer. It is a slot number plus one; what the slot means
// stays here. An ID that is not outstanding is refused, whatever it is.
//
// Counterpart: Linux vmbus_next_request_id() and vmbus_request_addr_match().
#ifndef PMGATE_VMBUS_REQUEST_IDS_HPP
#define PMGATE_VMBUS_REQUEST_IDS_HPP

#include <cstdint>
#include <limits>

namespace pmgate::vmbus {

/// One outstanding request. Left to request_ids; provided by its owner.
struct request_slot {
  std::uint64_t cookie = 0;
  std::uint32_t link = 0;  ///< next free slot, or a mark that this one is in use
};

/// What became of a lookup.
enum class request_match : std::uint8_t {
  unknown,   ///< no such ID is outstanding; nothing was changed
  mismatch,  ///< it stands for another cookie than expected, and still does
  released,  ///< it stood for this cookie; the ID is free again
};

/// A lookup's result; converts to true if the request was found and released.
struct [[nodiscard]] request_lookup {
  request_match match = request_match::unknown;
  std::uint64_t cookie = 0;  ///< meaningful unless `unknown`
  [[nodiscard]] constexpr explicit operator bool() const noexcept {
    return match == request_match::released;
  }
};

/// A table of outstanding requests.
///
/// IDs run from 1 to capacity(); 0 stays free for messages nobody asked for. The
/// ID freed last is issued first, so that few slots stay warm.
/// Lifetime: a view of slots that the owner provides; they must outlive it.
/// Threads:  one at a time; lock around it where there are more.
/// Blocking: never; nothing is allocated.
/// Limits:   a duplicate completion is refused unless its ID was issued again.
class request_ids {
public:
  /// An empty table: issue() hands the caller's cookie through as the ID.
  request_ids() = default;

  /// A table over `count` slots, all free.
  request_ids(request_slot* slots, std::uint32_t count) noexcept
      : slots_(slots), capacity_(count < in_use ? count : in_use - 1) {
    reset();
  }

  /// Forgets every outstanding request; the next IDs are 1, 2, 3 and so on.
  void reset() noexcept {
    for (std::uint32_t i = 0; i < capacity_; ++i) slots_[i] = {0, i + 1};
    first_free_ = 0;
    outstanding_ = 0;
  }

  /// Issues an ID that stands for `cookie`.
  ///
  /// Returns: false if every ID is outstanding; `id` is then unchanged.
  /// Kernel: vmbus_next_request_id().
  [[nodiscard]] bool issue(std::uint64_t cookie, std::uint64_t& id) noexcept {
    if (capacity_ == 0) {
      id = cookie;
      return true;
    }
    if (first_free_ == capacity_) return false;
    request_slot& slot = slots_[first_free_];
    id = std::uint64_t{first_free_} + 1;
    first_free_ = slot.link;
    slot = {cookie, in_use};
    ++outstanding_;
    return true;
  }

  /// Finds out what `id` stands for, and frees it.
  /// Kernel: vmbus_request_addr().
  request_lookup lookup(std::uint64_t id) noexcept {
    request_slot* const slot = find(id);
    return slot != nullptr ? release(*slot) : request_lookup{};
  }

  /// As above, but frees the ID only if it stands for `expected`.
  /// Kernel: vmbus_request_addr_match().
  request_lookup lookup(std::uint64_t id, std::uint64_t expected) noexcept {
    request_slot* const slot = find(id);
    if (slot == nullptr) return {};
    if (slot->cookie != expected) return {request_match::mismatch, slot->cookie};
    return release(*slot);
  }

  [[nodiscard]] std::uint32_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::uint32_t outstanding() const noexcept { return outstanding_; }

private:
  static constexpr std::uint32_t in_use = (std::numeric_limits<std::uint32_t>::max)();

  [[nodiscard]] request_slot* find(std::uint64_t id) const noexcept {
    if (id == 0 || id > capacity_) return nullptr;
    request_slot& slot = slots_[id - 1];
    return slot.link == in_use ? &slot : nullptr;
  }

  request_lookup release(request_slot& slot) noexcept {
    slot.link = first_free_;
    first_free_ = static_cast<std::uint32_t>(&slot - slots_);
    --outstanding_;
    return {request_match::released, slot.cookie};
  }

  request_slot* slots_ = nullptr;
  std::uint32_t capacity_ = 0;
  std::uint32_t first_free_ = 0;  // capacity_: none
  std::uint32_t outstanding_ = 0;
};

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_REQUEST_IDS_HPP
