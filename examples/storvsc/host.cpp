// SPDX-License-Identifier: MIT
//
// storvsc/host.cpp - control messages, pages lent and given back, and the thread.
#include "storvsc/host.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace storvsc {
namespace {

using vmbus::control_message;
using vmbus::message_type;
namespace field = vmbus::field;

constexpr std::size_t most_messages = 1000;
constexpr std::size_t most_gpadls = 256;

vmbus::channel_offer as_storage(vmbus::channel_offer offer) noexcept {
  std::copy(scsi_interface_type.begin(), scsi_interface_type.end(), offer.interface_type);
  offer.sub_channel_index = 0;
  return offer;
}

}  // namespace

storage_host::storage_host(const pmgate::guest_memory& memory, scsi_target& target,
                           guest_port& port, const host_identity& identity)
    : offer_(as_storage(identity.primary)),
      next_sub_relid_(identity.first_sub_relid),
      bell_state_(bell_.create()),
      context_{memory, target, port} {
  channels_.push_back(std::make_unique<host_channel>(context_, offer_));
}

// ---- The thread, and what others may do meanwhile --------------------------

pmgate::status storage_host::start() {
  if (thread_.joinable()) return pmgate::status::busy;
  if (bell_state_ != pmgate::status::ok) return bell_state_;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = false;
  }
  thread_ = std::thread([this] { run(); });
  return pmgate::status::ok;
}

void storage_host::stop() noexcept {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  bell_.ring();
  thread_.join();
}

void storage_host::run() noexcept {
  constexpr auto long_time = std::chrono::hours(1);
  for (;;) {
    const bool more = poll();
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    if (!more) (void)bell_.wait_until(std::min(next_due_, host_clock::now() + long_time));
  }
}

pmgate::status storage_host::on_message(const control_message& message) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (inbox_.size() >= most_messages) return pmgate::status::again;
    inbox_.push_back(message);
  }
  bell_.ring();
  return pmgate::status::ok;
}

void storage_host::set_behaviour(const host_behaviour& behaviour) noexcept {
  {
    const std::lock_guard lock(mutex_);
    wanted_ = behaviour;
  }
  bell_.ring();
}

host_behaviour storage_host::behaviour() const {
  const std::lock_guard lock(mutex_);
  return wanted_;
}

void storage_host::bus_changed() noexcept {
  {
    const std::lock_guard lock(mutex_);
    bus_changed_ = true;
  }
  bell_.ring();
}

host_statistics storage_host::statistics() const {
  const std::lock_guard lock(mutex_);
  return seen_.statistics;
}
protocol_phase storage_host::phase() const {
  const std::lock_guard lock(mutex_);
  return seen_.phase;
}
std::uint16_t storage_host::protocol_version() const {
  const std::lock_guard lock(mutex_);
  return seen_.protocol_version;
}
std::string storage_host::last_error() const {
  const std::lock_guard lock(mutex_);
  return seen_.last_error;
}
std::size_t storage_host::lent_pages() const {
  const std::lock_guard lock(mutex_);
  return seen_.lent_pages;
}

std::vector<control_message> storage_host::take_inbox() noexcept {
  const std::lock_guard lock(mutex_);
  if (wanted_.seed != context_.behaviour.seed) context_.random_state = wanted_.seed;
  context_.behaviour = wanted_;
  if (std::exchange(bus_changed_, false)) context_.bus_changed = true;
  return std::exchange(inbox_, {});
}

void storage_host::publish_snapshot() noexcept {
  std::size_t pages = 0;
  for (const auto& [handle, lent] : gpadls_) pages += lent.pages.size();
  const std::lock_guard lock(mutex_);
  seen_.statistics = context_.statistics;
  seen_.phase = context_.phase;
  seen_.protocol_version = context_.protocol_version;
  seen_.lent_pages = pages;
  if (seen_.last_error != context_.last_error) seen_.last_error = context_.last_error;
}

// ---- One round -------------------------------------------------------------

bool storage_host::poll(host_clock::time_point now) noexcept {
  for (const control_message& m : take_inbox()) handle(m);

  const protocol_phase before = context_.phase;
  bool more = false;
  next_due_ = (host_clock::time_point::max)();
  for (const auto& channel : channels_) {
    const service_result result = channel->service(now);
    more = more || result.again;
    next_due_ = std::min(next_due_, result.due);
  }
  if (context_.sub_channels_to_offer != 0) offer_sub_channels();
  publish_snapshot();
  return more || context_.phase != before;  // sub-channels wait for the primary's last step
}

host_channel* storage_host::find(std::uint32_t relid) const noexcept {
  for (const auto& channel : channels_) {
    if (channel->offer().relid == relid) return channel.get();
  }
  return nullptr;
}

void storage_host::handle(const control_message& m) noexcept {
  if (!m.intact()) return context_.report_error(0, "a malformed control message");
  switch (m.type()) {
    case message_type::gpadl_header: return create_gpadl(m);
    case message_type::gpadl_body: return extend_gpadl(m);
    case message_type::gpadl_teardown: return teardown_gpadl(m);
    case message_type::open: return open(m);
    case message_type::close: return close(m);
    case message_type::relid_released: return forget_channel(m.get(field::relid));
    case message_type::request_offers: return offer_primary();
    case message_type::unload: return unload();
    default: return context_.report_error(0, "a control message that is not for hosts");
  }
}

// ---- Pages -----------------------------------------------------------------

void storage_host::create_gpadl(const control_message& m) noexcept {
  const std::uint32_t relid = m.get(field::relid);
  const std::uint32_t handle = m.get(field::gpadl);
  const std::uint16_t length = m.get<std::uint16_t>(field::gpadl_range_length);
  const std::uint32_t bytes = m.get(field::gpadl_byte_count);
  const bool whole_pages = m.get<std::uint16_t>(field::gpadl_range_count) == 1 &&
                           m.get(field::gpadl_byte_offset) == 0 && bytes != 0 &&
                           bytes % vmbus::page_size == 0 &&
                           length == 8 + std::uint64_t{bytes / vmbus::page_size} * 8;
  const host_channel* const channel = find(relid);
  const bool possible = whole_pages && channel != nullptr && !channel->is_withdrawn() &&
                        gpadls_.size() < most_gpadls && gpadls_.count(handle) == 0;
  if (!possible) context_.report_error(relid, "pages that cannot be lent");
  if (!possible || !context_.behaviour.accept_gpadl) {
    return answer_gpadl(relid, handle, nt_status::invalid_parameter);
  }
  gpadl lent;
  lent.relid = relid;
  lent.expected = bytes / vmbus::page_size;
  gpadls_.emplace(handle, std::move(lent));
  add_pages(handle, m, field::header_pfns);
}

// A body for a list that was refused, or is complete, is not worth an answer.
void storage_host::extend_gpadl(const control_message& m) noexcept {
  const auto found = gpadls_.find(m.get(field::gpadl));
  if (found == gpadls_.end() || found->second.is_complete()) {
    if (context_.behaviour.accept_gpadl) context_.report_error(0, "pages that nobody waits for");
    return;
  }
  add_pages(found->first, m, field::body_pfns);
}

void storage_host::add_pages(std::uint32_t handle, const control_message& m,
                             std::uint32_t offset) noexcept {
  gpadl& lent = gpadls_.at(handle);
  const std::uint32_t relid = lent.relid;
  bool fits = true;
  for (; fits && offset + 8 <= m.size; offset += 8) {
    const std::uint64_t pfn = m.get<std::uint64_t>(offset);
    void* const page = context_.memory.translate(pfn);
    fits = page != nullptr && !lent.is_complete();
    if (!fits) break;
    lent.pfns.push_back(pfn);
    lent.pages.push_back(static_cast<unsigned char*>(page));
  }
  if (!fits) {
    gpadls_.erase(handle);
    context_.report_error(relid, "a page that the guest does not have, or too many");
    return answer_gpadl(relid, handle, nt_status::invalid_parameter);
  }
  if (lent.is_complete()) answer_gpadl(relid, handle, nt_status::success);
}

void storage_host::answer_gpadl(std::uint32_t relid, std::uint32_t handle,
                                std::uint32_t result) noexcept {
  control_message reply(message_type::gpadl_created);
  reply.set(field::relid, relid).set(field::gpadl, handle).set(field::result, result);
  context_.port.deliver(reply);
}

// The pages are poisoned while they are still the host's: the guest may use them
// for something else as soon as it has the answer. If the channel was withdrawn
// it does not even wait for that.
void storage_host::teardown_gpadl(const control_message& m) noexcept {
  const std::uint32_t relid = m.get(field::relid);
  const std::uint32_t handle = m.get(field::gpadl);
  host_channel* const channel = find(relid);
  gpadl released;
  if (const auto found = gpadls_.find(handle); found != gpadls_.end()) {
    if (found->second.relid != relid) {
      return context_.report_error(relid, "a teardown of another channel's pages");
    }
    released = std::move(found->second);
    gpadls_.erase(found);
    if (channel != nullptr && channel->is_open() && channel->gpadl() == handle) {
      context_.report_error(relid, "a teardown of the pages of an open channel");
      channel->close();
    }
  }
  const bool still_lent = channel != nullptr && !channel->is_withdrawn();
  if (still_lent && context_.behaviour.poison_released_pages) {
    for (unsigned char* const page : released.pages) std::memset(page, 0xFF, vmbus::page_size);
  }
  control_message reply(message_type::gpadl_torndown);
  reply.set(field::torndown_gpadl, handle);
  context_.port.deliver(reply);
  if (!released.pfns.empty()) context_.port.pages_released(relid, released.pfns);
}

// ---- Channels --------------------------------------------------------------

void storage_host::open(const control_message& m) noexcept {
  const std::uint32_t relid = m.get(field::relid);
  const std::uint32_t handle = m.get(field::open_gpadl);
  host_channel* const channel = find(relid);
  const auto lent = gpadls_.find(handle);
  const bool known = channel != nullptr && lent != gpadls_.end() && lent->second.relid == relid &&
                     lent->second.is_complete();
  const bool wanted = context_.behaviour.accept_open;
  const bool opened =
      known && wanted && channel->open(lent->second.pages, m.get(field::open_second_ring), handle);
  if (wanted && !opened) context_.report_error(relid, "a channel that cannot be opened");

  control_message reply(message_type::open_result);
  reply.set(field::relid, relid).set(field::open_id, m.get(field::open_id));
  reply.set(field::result, opened ? nt_status::success : nt_status::unsuccessful);
  context_.port.deliver(reply);
}

void storage_host::close(const control_message& m) noexcept {
  const std::uint32_t relid = m.get(field::relid);
  host_channel* const channel = find(relid);
  if (channel != nullptr && channel->is_withdrawn()) return;
  if (channel == nullptr || !channel->is_open()) {
    return context_.report_error(relid, "a channel that is not open is closed");
  }
  channel->close();
  if (channel != channels_.front().get()) return;
  context_.restart_protocol();
  withdraw_sub_channels();
}

void storage_host::withdraw_sub_channels() noexcept {
  for (const auto& channel : channels_) {
    if (channel->offer().sub_channel_index == 0 || channel->is_withdrawn()) continue;
    channel->withdraw();
    control_message rescind(message_type::rescind);
    context_.port.deliver(rescind.set(field::relid, channel->offer().relid));
  }
}

void storage_host::offer_sub_channels() noexcept {
  const std::uint16_t count = std::exchange(context_.sub_channels_to_offer, std::uint16_t{0});
  for (std::uint16_t i = 1; i <= count; ++i) {
    vmbus::channel_offer sub = offer_;
    sub.sub_channel_index = i;
    sub.relid = next_sub_relid_++;
    sub.connection_id = sub.relid;
    channels_.push_back(std::make_unique<host_channel>(context_, sub));
    context_.port.deliver(vmbus::encode(sub));
  }
}

void storage_host::offer_primary() noexcept {
  context_.port.deliver(vmbus::encode(offer_));
  context_.port.deliver(control_message(message_type::offers_delivered));
}

// The guest has no use for a withdrawn channel any more; its pages are its own.
void storage_host::forget_channel(std::uint32_t relid) noexcept {
  const host_channel* const channel = find(relid);
  if (channel == nullptr || !channel->is_withdrawn()) {
    return context_.report_error(relid, "a channel that was not withdrawn is released");
  }
  std::erase_if(gpadls_, [relid](const auto& entry) { return entry.second.relid == relid; });
  std::erase_if(channels_, [channel](const auto& entry) { return entry.get() == channel; });
}

void storage_host::unload() noexcept {
  context_.restart_protocol();
  channels_.front()->close();
  channels_.erase(channels_.begin() + 1, channels_.end());
  gpadls_.clear();
  context_.port.deliver(control_message(message_type::unload_response));
}

}  // namespace storvsc
