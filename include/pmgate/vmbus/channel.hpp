// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/channel.hpp - one VMBus channel as its guest sees it: two rings,
// a life that the host may end at any time, and a callback.
//
// The one rule to know: the pages of the rings belong to the host from open()
// until close() returned `ok`. CLOSE has no answer; only the answer to the GPADL
// teardown says that the host has let go. Where it does not come, the pages must
// never be used for anything else: pages_released() tells.
//
// Counterpart: Linux struct vmbus_channel, vmbus_open(), vmbus_close().
#ifndef PMGATE_VMBUS_CHANNEL_HPP
#define PMGATE_VMBUS_CHANNEL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/platform/concept.hpp>
#include <pmgate/status.hpp>
#include <pmgate/vmbus/channel_control.hpp>
#include <pmgate/vmbus/channel_messages.hpp>
#include <pmgate/vmbus/channel_setup.hpp>
#include <pmgate/vmbus/packet.hpp>
#include <pmgate/vmbus/request_ids.hpp>
#include <pmgate/vmbus/ring.hpp>

namespace pmgate::vmbus {

/// Where a channel is in its life.
enum class channel_state : std::uint8_t { closed, opening, open, closing };

/// What write() returns.
struct [[nodiscard]] write_result {
  status code = status::ok;
  std::uint64_t trans_id = 0;  ///< as it was sent; the ring is not asked for it again
};

/// A channel: opened, used by many writers and one reader, closed, opened again.
///
/// Lifetime: neither copyable nor movable; closed when destroyed, and nobody
///           inside interrupt(), run_deferred() or on_message() then.
/// Threads:  any member may race with any other; receive() is for one thread.
/// Blocking: open() and close() wait for the host, each wait bounded by the
///           timeout; close() also waits for a callback that runs.
/// Misuse:   using a closed channel is `no_device`, never a crash. A channel that
///           is destroyed open or closed from its own callback is reported.
/// Limits:   sub-channels are channels of their own; close them first.
template <platform P, ring_memory Memory = flat_memory>
class basic_channel {
public:
  using setup = channel_setup<Memory>;

  /// A closed channel. `timeout` bounds every single wait for the host.
  basic_channel(const channel_transport& transport, const channel_offer& offer,
                typename P::duration timeout) noexcept
      : transport_(transport), control_(transport, offer, timeout) {}
  ~basic_channel() {
    if (state() != channel_state::closed) P::misuse("channel destroyed while open");
  }
  basic_channel(const basic_channel&) = delete;
  basic_channel& operator=(const basic_channel&) = delete;

  /// Shares the rings with the host and opens the channel.
  ///
  /// Both rings start empty. The callback may run before this returns.
  /// Returns: `ok`; `invalid` (setup, or not closed); `quota` (the host refused the
  /// pages); `again` (it refused the channel); `no_device` (rescinded);
  /// `timed_out`; or what send() returned. Unless `ok`, the channel is closed;
  /// see pages_released().
  /// Blocks: for two answers of the host.  Kernel: vmbus_open().
  [[nodiscard]] status open(const setup& s) noexcept;

  /// Stops the callback, then writers, then takes the pages back from the host.
  ///
  /// Once it returns the callback never runs again, and nothing of the setup is
  /// touched. Every outstanding request ID is forgotten.
  /// Returns: `ok`; `invalid` if not open; `deadlock` from the callback itself;
  /// anything else: closed, but see pages_released().
  /// Blocks: for a running callback and one answer of the host.
  /// Kernel: vmbus_close().
  [[nodiscard]] status close() noexcept;

  /// Adopts a new offer of the same device, after a resume.
  /// Returns: `ok`; `busy` unless closed.
  [[nodiscard]] status rebind(const channel_offer& offer) noexcept;

  /// Tells the host that its rescind has been dealt with.
  /// Returns: `invalid` unless rescinded and closed; or what send() returned.
  [[nodiscard]] status release_relid() noexcept;

  /// Sends one packet, and signals the host if it waits for that.
  ///
  /// If a completion is requested, p.trans_id is a cookie that an ID stands for.
  /// Returns: as ring_producer::write(); `again` also for want of an ID;
  /// `no_device` if closed or rescinded. Unless `ok`, no ID is outstanding.
  /// Blocks: for other writers only.  Kernel: vmbus_sendpacket().
  write_result write(const packet& p) noexcept;

  /// Copies the next packet into the buffer; `out` is valid until the next call.
  ///
  /// Returns: as ring_consumer::take(); `again` also if closed, and in a callback
  /// whose budget is used up.
  [[nodiscard]] status receive(received_packet& out) noexcept;

  /// Gives room back and signals; the deferred callback is followed by one anyway.
  [[nodiscard]] status commit() noexcept;

  /// For polled channels and isr callbacks: as ring_consumer's. The latter tells
  /// in `bytes` whether to begin anew; its signal has been sent.
  void begin_read() noexcept;
  end_read_result end_read() noexcept;

  /// What a completion's trans_id stands for; frees it (see request_ids).
  request_lookup lookup(std::uint64_t id) noexcept;
  request_lookup lookup(std::uint64_t id, std::uint64_t expected) noexcept;

  /// The host rang the doorbell. Spurious and late calls do no harm.
  /// Blocks: no, but in isr mode for as long as the callback.
  void interrupt() noexcept;

  /// The second half of interrupt(), as asked for through schedule(). A ticket
  /// from before the last close() is dropped.
  void run_deferred(std::uint32_t ticket) noexcept;

  /// A control message came from the host.
  /// Returns: `ok` if it was for this channel and expected; `no_device` if it is for
  /// another one; `invalid` if malformed or unasked for. Refused ones change nothing.
  [[nodiscard]] status on_message(const void* message, std::uint32_t size) noexcept;

  [[nodiscard]] channel_state state() const noexcept;
  [[nodiscard]] bool is_rescinded() const noexcept { return control_.is_rescinded(); }
  /// False while the host may still reach the pages of the last open().
  [[nodiscard]] bool pages_released() const noexcept { return control_.pages_released(); }
  /// How often it was closed; tells requests of one life from those of the next.
  [[nodiscard]] std::uint32_t generation() const noexcept;
  /// Free space to write in percent; 0 while closed.
  [[nodiscard]] std::uint32_t percent_free() noexcept;
  /// What is wrong with either ring; the inbound one first.
  [[nodiscard]] ring_fault fault() const noexcept;
  [[nodiscard]] const channel_offer& offer() const noexcept { return control_.offer(); }

private:
  using lock = scoped_lock<typename P::mutex>;
  [[nodiscard]] status check(const setup& s) const noexcept;
  [[nodiscard]] bool move_state(channel_state from, channel_state to) noexcept;
  [[nodiscard]] status install(const setup& s) noexcept;
  void uninstall() noexcept;
  void signal() noexcept { transport_.signal(transport_.context, control_.offer().connection_id); }
  [[nodiscard]] bool next_id(std::uint64_t cookie, std::uint64_t& id) noexcept;
  [[nodiscard]] bool finish_callback() noexcept;

  const channel_transport transport_;
  channel_control<P> control_;

  // Locks are taken in this order: life; callback, inbound; outbound; requests.
  // The callback lock is held while the callback runs.
  mutable typename P::mutex life_mutex_;
  channel_state state_ = channel_state::closed;

  mutable typename P::mutex outbound_mutex_;
  ring_producer<Memory> producer_;
  bool writable_ = false;
  setup setup_{};  // the callback belongs to inbound, map_request_id to outbound

  typename P::mutex requests_mutex_;
  request_ids requests_;

  typename P::mutex callback_mutex_;
  mutable typename P::mutex inbound_mutex_;
  ring_consumer<Memory> consumer_;
  bool callable_ = false;  // false: interrupt() and run_deferred() do nothing
  bool in_callback_ = false;
  std::uint32_t budget_left_ = 0;
  typename P::thread_id callback_thread_{};

  typename P::template atomic<std::uint32_t> generation_{0};
};

/// A channel on the default platform.
using channel = basic_channel<default_platform>;

// ---- Opening and closing ---------------------------------------------------

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::open(const setup& s) noexcept {
  if (const status code = check(s); code != status::ok) return code;
  if (!move_state(channel_state::closed, channel_state::opening)) return status::invalid;

  status code = is_rescinded() ? status::no_device : install(s);
  if (code == status::ok) code = control_.share_pages(s.pfns, s.pfn_count);
  if (code == status::ok) {
    const std::uint32_t second_ring = 1 + s.outbound.data_size() / page_size;
    code = control_.request_open(second_ring, s.target_vp, s.userdata, s.userdata_size);
  }
  if (code == status::ok) {
    const lock out(outbound_mutex_);
    writable_ = true;
  } else {
    uninstall();
  }
  const bool opened = code == status::ok;
  static_cast<void>(
      move_state(channel_state::opening, opened ? channel_state::open : channel_state::closed));
  return code;
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::close() noexcept {
  {
    const lock in(inbound_mutex_);
    if (in_callback_ && callback_thread_ == P::this_thread()) {
      P::misuse("channel closed from its own callback");
      return status::deadlock;
    }
  }
  if (!move_state(channel_state::open, channel_state::closing)) return status::invalid;

  uninstall();
  const status code = control_.request_close();
  static_cast<void>(move_state(channel_state::closing, channel_state::closed));
  return code;
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::rebind(const channel_offer& offer) noexcept {
  const lock life(life_mutex_);
  if (state_ != channel_state::closed) return status::busy;
  control_.rebind(offer);
  return status::ok;
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::release_relid() noexcept {
  if (!is_rescinded() || state() != channel_state::closed) return status::invalid;
  return control_.release_relid();
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::check(const setup& s) const noexcept {
  const std::uint32_t out_size = s.outbound.data_size();
  const std::uint32_t in_size = s.inbound.data_size();
  if (!valid_data_size(out_size) || !valid_data_size(in_size)) return status::invalid;
  const std::uint32_t pages = out_size / page_size + in_size / page_size + 2;
  if (s.pfns == nullptr || s.pfn_count != pages || pages > gpadl_page_limit) return status::invalid;
  if (s.userdata_size > max_userdata_size) return status::invalid;
  const std::uint32_t needed = s.max_packet != 0 ? s.max_packet : default_max_packet;
  if (s.buffer == nullptr || s.buffer_size < needed || s.budget == 0) return status::invalid;
  return s.request_count != 0 && s.requests == nullptr ? status::invalid : status::ok;
}

template <platform P, ring_memory Memory>
bool basic_channel<P, Memory>::move_state(channel_state from, channel_state to) noexcept {
  const lock life(life_mutex_);
  if (state_ != from) return false;
  state_ = to;
  return true;
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::install(const setup& s) noexcept {
  const lock in(inbound_mutex_);
  const lock out(outbound_mutex_);
  setup_ = s;
  setup_.outbound.clear_control();
  setup_.inbound.clear_control();
  const status sending = producer_.attach(s.outbound, s.limits);
  producer_.announce_pending_send();
  const std::uint32_t limit = s.max_packet != 0 ? s.max_packet : default_max_packet;
  const status receiving = consumer_.attach(s.inbound, {guest_accepts, limit});
  callable_ = s.callback != nullptr;
  const lock requests(requests_mutex_);
  requests_ = request_ids(s.requests, s.request_count);
  return sending != status::ok ? sending : receiving;
}

// Waits for a callback that runs; afterwards nothing of the setup is in use.
template <platform P, ring_memory Memory>
void basic_channel<P, Memory>::uninstall() noexcept {
  {
    const lock running(callback_mutex_);
    const lock in(inbound_mutex_);
    callable_ = false;
    consumer_.detach();
    // [uninstall.age] release: pairs with [generation.read]; whoever sees the new
    // number finds the callback gone.
    generation_.fetch_add(1, std::memory_order_release);
  }
  const lock out(outbound_mutex_);
  writable_ = false;
  producer_.detach();
  const lock requests(requests_mutex_);
  requests_ = request_ids();
}

// ---- Sending and receiving -------------------------------------------------

template <platform P, ring_memory Memory>
write_result basic_channel<P, Memory>::write(const packet& p) noexcept {
  bool issued = false;
  std::uint64_t id = p.trans_id;
  status code = status::no_device;
  {
    const lock out(outbound_mutex_);
    if (!writable_ || is_rescinded()) return {status::no_device, 0};
    const ring_result done = producer_.write(p, [&](std::uint64_t& slot) noexcept {
      issued = next_id(p.trans_id, id);
      slot = id;
      return issued;
    });
    code = done.code;
    if (done.signal) signal();
  }
  // A rescind after the packet was published: it lies in the ring, but nobody
  // will ever answer it.
  if (is_rescinded()) code = status::no_device;
  if (code != status::ok && issued) static_cast<void>(lookup(id, p.trans_id));
  return {code, id};
}

template <platform P, ring_memory Memory>
bool basic_channel<P, Memory>::next_id(std::uint64_t cookie, std::uint64_t& id) noexcept {
  if (setup_.map_request_id != nullptr) {
    return setup_.map_request_id(setup_.callback_context, cookie, id);
  }
  const lock requests(requests_mutex_);
  return requests_.issue(cookie, id);
}

template <platform P, ring_memory Memory>
request_lookup basic_channel<P, Memory>::lookup(std::uint64_t id) noexcept {
  const lock requests(requests_mutex_);
  return requests_.lookup(id);
}

template <platform P, ring_memory Memory>
request_lookup basic_channel<P, Memory>::lookup(std::uint64_t id, std::uint64_t expected) noexcept {
  const lock requests(requests_mutex_);
  return requests_.lookup(id, expected);
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::receive(received_packet& out) noexcept {
  const lock in(inbound_mutex_);
  if (in_callback_ && budget_left_ == 0) return status::again;
  const status code = consumer_.take(setup_.buffer, setup_.buffer_size, out);
  if (code == status::ok && in_callback_) --budget_left_;
  return code == status::no_device ? status::again : code;  // a closed channel is empty
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::commit() noexcept {
  const lock in(inbound_mutex_);
  const ring_result done = consumer_.commit();
  if (done.signal) signal();
  return done.code;
}

template <platform P, ring_memory Memory>
status basic_channel<P, Memory>::on_message(const void* message, std::uint32_t size) noexcept {
  const control_message m(message, size);
  const status code = control_.on_message(m);
  if (code == status::ok && m.type() == message_type::rescind) {
    const lock in(inbound_mutex_);
    callable_ = false;  // a callback that runs is left alone: close() waits for it
  }
  return code;
}

template <platform P, ring_memory Memory>
void basic_channel<P, Memory>::begin_read() noexcept {
  const lock in(inbound_mutex_);
  consumer_.begin_read();
}

template <platform P, ring_memory Memory>
end_read_result basic_channel<P, Memory>::end_read() noexcept {
  const lock in(inbound_mutex_);
  const end_read_result done = consumer_.end_read();
  if (done.signal) signal();
  return done;
}

// ---- The callback ----------------------------------------------------------

template <platform P, ring_memory Memory>
void basic_channel<P, Memory>::interrupt() noexcept {
  std::uint32_t ticket = 0;
  bool at_once = false;
  {
    const lock in(inbound_mutex_);
    if (!callable_) return;  // closed, or about to be
    ticket = generation();
    at_once = setup_.mode == callback_mode::isr;
    if (setup_.mode == callback_mode::batched) consumer_.begin_read();
  }
  if (at_once) {
    run_deferred(ticket);
  } else {
    transport_.schedule(transport_.context, ticket);
  }
}

template <platform P, ring_memory Memory>
void basic_channel<P, Memory>::run_deferred(std::uint32_t ticket) noexcept {
  bool again = false;
  {
    const lock running(callback_mutex_);
    {
      const lock in(inbound_mutex_);
      if (!callable_ || ticket != generation()) return;
      in_callback_ = true;
      callback_thread_ = P::this_thread();
      budget_left_ = setup_.budget;
    }
    setup_.callback(setup_.callback_context);  // uninstall() waits for the running lock
    again = finish_callback();
  }
  if (again) transport_.schedule(transport_.context, ticket);
}

// Returns whether the callback must run once more.
template <platform P, ring_memory Memory>
bool basic_channel<P, Memory>::finish_callback() noexcept {
  const lock in(inbound_mutex_);
  const bool exhausted = budget_left_ == 0;
  in_callback_ = false;
  callback_thread_ = {};
  if (!callable_ || setup_.mode == callback_mode::isr) return false;
  if (setup_.mode == callback_mode::direct) {
    const ring_result done = consumer_.commit();
    if (done.signal) signal();
    return exhausted && done.code == status::ok;
  }
  const end_read_result done = consumer_.end_read();
  if (done.signal) signal();
  if (done.bytes == 0) return false;
  consumer_.begin_read();
  return true;
}

// ---- Queries ---------------------------------------------------------------

template <platform P, ring_memory Memory>
channel_state basic_channel<P, Memory>::state() const noexcept {
  const lock life(life_mutex_);
  return state_;
}

template <platform P, ring_memory Memory>
std::uint32_t basic_channel<P, Memory>::generation() const noexcept {
  // [generation.read] acquire: pairs with [uninstall.age].
  return generation_.load(std::memory_order_acquire);
}

template <platform P, ring_memory Memory>
std::uint32_t basic_channel<P, Memory>::percent_free() noexcept {
  const lock out(outbound_mutex_);
  return producer_.percent_free();
}

template <platform P, ring_memory Memory>
ring_fault basic_channel<P, Memory>::fault() const noexcept {
  {
    const lock in(inbound_mutex_);
    if (consumer_.fault() != ring_fault::none) return consumer_.fault();
  }
  const lock out(outbound_mutex_);
  return producer_.fault();
}

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_CHANNEL_HPP
