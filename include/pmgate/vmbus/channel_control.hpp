// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/channel_control.hpp - what a guest tells its host about a channel
// beside the rings, and what it waits for.
//
// The one rule to know: from share_pages() on the pages belong to the host as
// well. CLOSE has no answer; only the answer to the GPADL teardown says that the
// host has let go. Where it does not come, the pages must never be used again.
//
// Counterpart: Linux vmbus_establish_gpadl(), vmbus_teardown_gpadl() and the
// message part of vmbus_open() and vmbus_close().
#ifndef PMGATE_VMBUS_CHANNEL_CONTROL_HPP
#define PMGATE_VMBUS_CHANNEL_CONTROL_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform/concept.hpp>
#include <pmgate/status.hpp>
#include <pmgate/vmbus/channel_messages.hpp>
#include <pmgate/vmbus/channel_setup.hpp>

namespace pmgate::vmbus {

/// The conversation with the host about one channel; a part of basic_channel.
///
/// Threads:  on_message(), is_rescinded() and the queries at any time; the
///           others one at a time, as open() and close() call them.
/// Blocking: where it says so; every wait is bounded by the timeout.
template <platform P>
class channel_control {
public:
  channel_control(const channel_transport& transport, const channel_offer& offer,
                  typename P::duration timeout) noexcept
      : transport_(transport), offer_(offer), timeout_(timeout) {}
  channel_control(const channel_control&) = delete;
  channel_control& operator=(const channel_control&) = delete;

  /// Gives the host access to pages.
  /// Returns: `ok`; `quota` (refused); `no_device`; `timed_out`; or what send() said.
  /// Blocks: for GPADL_CREATED.  Kernel: vmbus_establish_gpadl().
  [[nodiscard]] status share_pages(const std::uint64_t* pfns, std::uint32_t count) noexcept;

  /// Has the host open the channel on the shared pages. On failure takes the pages back.
  /// Returns: `ok`; `again` (refused); `no_device`; `timed_out`; or what send() said.
  /// Blocks: for OPEN_RESULT, and on failure for GPADL_TORNDOWN.
  [[nodiscard]] status request_open(std::uint32_t second_ring, std::uint32_t target_vp,
                                    const void* userdata, std::uint32_t userdata_size) noexcept;

  /// Has the host close the channel and takes the pages back.
  /// Returns: `ok`, at once after a rescind; else why the pages are not back.
  /// Blocks: for GPADL_TORNDOWN.
  [[nodiscard]] status request_close() noexcept;

  /// Tells the host that its rescind has been dealt with.
  [[nodiscard]] status release_relid() noexcept {
    return send(control_message(message_type::relid_released).set(field::relid, offer_.relid));
  }

  /// Adopts a new offer and forgets a rescind.  Precondition: the channel is closed.
  void rebind(const channel_offer& offer) noexcept;

  /// Takes a message of the host; see basic_channel::on_message().
  [[nodiscard]] status on_message(const control_message& m) noexcept;

  [[nodiscard]] bool is_rescinded() const noexcept {
    // [rescinded.read] acquire: pairs with [rescind.set] and [rebind.clear].
    return rescinded_.load(std::memory_order_acquire) != 0;
  }
  [[nodiscard]] bool pages_released() const noexcept {
    const lock guard(mutex_);
    return !pages_held_;
  }
  [[nodiscard]] const channel_offer& offer() const noexcept { return offer_; }

private:
  using lock = scoped_lock<typename P::mutex>;
  struct answer {
    message_type type = message_type::invalid;  // invalid: none is waited for
    std::uint32_t id = 0;
    bool arrived = false;
    std::uint32_t result = 0;
  };

  [[nodiscard]] status take_pages_back() noexcept;
  [[nodiscard]] status send_bodies(const std::uint64_t* pfns, std::uint32_t count) noexcept;
  status forget_pages(status code) noexcept;
  void expect(message_type type, std::uint32_t id) noexcept;
  [[nodiscard]] status await_answer(std::uint32_t& result) noexcept;
  void announce() noexcept;
  [[nodiscard]] status send(const control_message& m) noexcept {
    return transport_.send(transport_.context, m);
  }

  const channel_transport transport_;
  channel_offer offer_;
  const typename P::duration timeout_;

  mutable typename P::mutex mutex_;  // for all that follows
  bool pages_held_ = false;
  bool asked_back_ = false;  // a teardown of gpadl_ was sent
  std::uint32_t gpadl_ = 0;
  answer answer_{};
  typename P::wait_word events_{0};  // counts what the waiter must look at
  typename P::template atomic<std::uint32_t> rescinded_{0};
};

// ---- Questions -------------------------------------------------------------

template <platform P>
status channel_control<P>::share_pages(const std::uint64_t* pfns, std::uint32_t count) noexcept {
  const std::uint32_t handle = transport_.next_gpadl(transport_.context);
  {
    const lock guard(mutex_);
    gpadl_ = handle;
    pages_held_ = true;
    asked_back_ = false;
  }
  control_message m(message_type::gpadl_header);
  m.set(field::relid, offer_.relid).set(field::gpadl, handle);
  m.set(field::gpadl_range_length, static_cast<std::uint16_t>(8 + 8 * count));
  m.set(field::gpadl_range_count, std::uint16_t{1});
  m.set(field::gpadl_byte_count, count * page_size);
  const std::uint32_t first = count < header_pfn_limit ? count : header_pfn_limit;
  append_pfns(m, pfns, first);

  expect(message_type::gpadl_created, handle);
  status code = send(m);
  if (code != status::ok) return forget_pages(code);  // the host knows nothing of them
  code = send_bodies(pfns + first, count - first);
  std::uint32_t refused = 0;
  if (code == status::ok) code = await_answer(refused);
  if (code == status::no_device) return forget_pages(code);  // rescinded: it has let go
  if (code != status::ok) return code;
  return refused != 0 ? forget_pages(status::quota) : status::ok;
}

template <platform P>
status channel_control<P>::send_bodies(const std::uint64_t* pfns, std::uint32_t count) noexcept {
  for (std::uint32_t sent = 0; sent < count;) {
    const std::uint32_t left = count - sent;
    const std::uint32_t now = left < body_pfn_limit ? left : body_pfn_limit;
    control_message m(message_type::gpadl_body);
    m.set(field::gpadl, gpadl_);
    append_pfns(m, pfns + sent, now);
    if (const status code = send(m); code != status::ok) return code;
    sent += now;
  }
  return status::ok;
}

template <platform P>
status channel_control<P>::request_open(std::uint32_t second_ring, std::uint32_t target_vp,
                                        const void* userdata,
                                        std::uint32_t userdata_size) noexcept {
  control_message m(message_type::open);
  m.set(field::relid, offer_.relid).set(field::open_id, offer_.relid);
  m.set(field::open_gpadl, gpadl_).set(field::open_target_vp, target_vp);
  m.set(field::open_second_ring, second_ring);
  detail::copy_bytes(m.bytes + field::open_userdata, userdata, userdata_size);
  expect(message_type::open_result, offer_.relid);
  status code = send(m);
  std::uint32_t refused = 0;
  if (code == status::ok) code = await_answer(refused);
  if (code == status::ok && refused == 0) return status::ok;

  // Where no answer came, the host may have opened the channel all the same.
  const bool unknown = code == status::timed_out;
  static_cast<void>(unknown ? request_close() : take_pages_back());  // see pages_released()
  return code == status::ok ? status::again : code;
}

template <platform P>
status channel_control<P>::request_close() noexcept {
  const status code = send(control_message(message_type::close).set(field::relid, offer_.relid));
  // Without CLOSE the host goes on using the rings: it keeps the pages.
  return code == status::ok || is_rescinded() ? take_pages_back() : code;
}

template <platform P>
status channel_control<P>::take_pages_back() noexcept {
  expect(message_type::gpadl_torndown, gpadl_);
  {
    const lock guard(mutex_);
    asked_back_ = true;  // from here on an answer counts even if nobody waits any more
  }
  control_message m(message_type::gpadl_teardown);
  status code = send(m.set(field::relid, offer_.relid).set(field::gpadl, gpadl_));
  std::uint32_t unused = 0;
  if (code == status::ok) code = await_answer(unused);
  if (is_rescinded()) code = status::ok;  // the host has let go of everything
  return code == status::ok ? forget_pages(code) : code;
}

template <platform P>
status channel_control<P>::forget_pages(status code) noexcept {
  const lock guard(mutex_);
  pages_held_ = false;
  return code;
}

template <platform P>
void channel_control<P>::rebind(const channel_offer& offer) noexcept {
  const lock guard(mutex_);
  offer_ = offer;
  // [rebind.clear] release: pairs with [rescinded.read]; the new offer is in place.
  rescinded_.store(0, std::memory_order_release);
}

// ---- Answers ---------------------------------------------------------------

// Before the question is sent: the answer may be faster than we are.
template <platform P>
void channel_control<P>::expect(message_type type, std::uint32_t id) noexcept {
  const lock guard(mutex_);
  answer_ = {type, id, false, 0};
}

template <platform P>
status channel_control<P>::await_answer(std::uint32_t& result) noexcept {
  const auto deadline = P::now() + timeout_;
  for (bool late = false;;) {
    // [await.seen] acquire: pairs with [announce.count]; taken before the look, so
    // that whatever comes after the look ends the wait.
    const std::uint32_t seen = events_.load(std::memory_order_acquire);
    {
      const lock guard(mutex_);
      result = answer_.result;
      if (answer_.arrived) return status::ok;
    }
    if (is_rescinded()) return status::no_device;
    if (late) break;
    if constexpr (P::can_block) {
      late = !events_.wait_until(seen, deadline) || P::now() >= deadline;
    } else {
      late = true;  // nobody else runs: the answer came while the question was sent, or never
    }
  }
  expect(message_type::invalid, 0);  // whatever comes now is too late
  return status::timed_out;
}

template <platform P>
status channel_control<P>::on_message(const control_message& m) noexcept {
  if (!m.intact()) return status::invalid;
  const message_type type = m.type();
  const bool torndown = type == message_type::gpadl_torndown;
  const bool answers =
      torndown || type == message_type::gpadl_created || type == message_type::open_result;
  if (!answers && type != message_type::rescind) return status::invalid;

  const lock guard(mutex_);
  if (m.get(field::relid) != (torndown ? gpadl_ : offer_.relid)) return status::no_device;
  if (type == message_type::rescind) {
    // [rescind.set] release: pairs with [rescinded.read].
    rescinded_.store(1, std::memory_order_release);
    announce();
    return status::ok;
  }
  const std::uint32_t id = torndown ? gpadl_ : m.get(field::gpadl);
  if (answer_.type == type && answer_.id == id && !answer_.arrived) {
    answer_.arrived = true;
    answer_.result = torndown ? 0 : m.get(field::result);
    announce();
    return status::ok;
  }
  // Nobody waits for it; but the host may let go of pages at long last.
  if (!torndown || !asked_back_ || !pages_held_) return status::invalid;
  pages_held_ = false;
  return status::ok;
}

// Under the lock, so that the waiter, who locks as well, has not returned and
// destroyed the channel before it has been woken.
template <platform P>
void channel_control<P>::announce() noexcept {
  // [announce.count] release: pairs with [await.seen].
  events_.fetch_add(1, std::memory_order_release);
  events_.wake_all();
}

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_CHANNEL_CONTROL_HPP
