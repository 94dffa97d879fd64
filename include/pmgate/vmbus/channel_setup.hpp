// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/channel_setup.hpp - what a channel is given: its ways to the
// world, once, and its memory and callbacks, at every open().
//
// The channel allocates nothing. What is handed over stays the caller's, but
// must be left alone until close() has returned, and the pages until the host
// has let go of them.
//
// Counterpart: the parameters of Linux vmbus_open(), and the message layer.
#ifndef PMGATE_VMBUS_CHANNEL_SETUP_HPP
#define PMGATE_VMBUS_CHANNEL_SETUP_HPP

#include <cstdint>

#include <pmgate/status.hpp>
#include <pmgate/vmbus/channel_messages.hpp>
#include <pmgate/vmbus/request_ids.hpp>
#include <pmgate/vmbus/ring.hpp>

namespace pmgate::vmbus {

/// How a channel reaches the world. Every function may be called from any thread
/// that uses the channel.
struct channel_transport {
  void* context = nullptr;
  /// Sends a control message to the host. Anything but `ok`: it was not sent. The
  /// host's answer may be handed to on_message() from in here.
  status (*send)(void* context, const control_message& message) noexcept = nullptr;
  /// Rings the host's doorbell. Called under a lock: it must be brief, and must not
  /// call the channel.
  void (*signal)(void* context, std::uint32_t connection_id) noexcept = nullptr;
  /// Has run_deferred(ticket) called soon, but not from here.
  void (*schedule)(void* context, std::uint32_t ticket) noexcept = nullptr;
  /// A GPADL handle that was never used on this connection before.
  std::uint32_t (*next_gpadl)(void* context) noexcept = nullptr;
};

/// What happens when the host rings.
enum class callback_mode : std::uint8_t {
  batched,  ///< signals are masked until the deferred callback has drained the ring
  direct,   ///< the deferred callback runs once; signals are not masked
  isr,      ///< the callback runs inside interrupt() and masks as it likes
};

/// The largest packet a channel accepts unless its setup says otherwise.
inline constexpr std::uint32_t default_max_packet = 4096;

/// Everything open() needs. Nothing of it is copied but the struct itself, so
/// what it points to must live until close(); userdata until open() returns.
template <ring_memory Memory>
struct channel_setup {
  Memory outbound;  ///< guest to host; the host knows it as the first ring
  Memory inbound;
  const std::uint64_t* pfns = nullptr;  ///< the pages of both rings, outbound first
  std::uint32_t pfn_count = 0;

  void (*callback)(void* context) noexcept = nullptr;  ///< to call receive(); null: polled
  void* callback_context = nullptr;
  callback_mode mode = callback_mode::batched;
  std::uint32_t budget = 256;  ///< packets per deferred callback, so that no peer keeps us there

  void* buffer = nullptr;  ///< private; holds the packet received last
  std::uint32_t buffer_size = 0;
  std::uint32_t max_packet = 0;  ///< largest legal packet; 0: 4096. The buffer holds it

  request_slot* requests = nullptr;  ///< the table of request IDs; null: cookies go out verbatim
  std::uint32_t request_count = 0;
  /// Maps a cookie to a trans_id instead of the table; false: no ID now.
  bool (*map_request_id)(void* context, std::uint64_t cookie, std::uint64_t& id) noexcept = nullptr;

  const void* userdata = nullptr;  ///< at most 120 bytes for the host
  std::uint32_t userdata_size = 0;
  std::uint32_t target_vp = 0;
  producer_options limits{};
};

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_CHANNEL_SETUP_HPP
