// SPDX-License-Identifier: MIT
//
// storvsc/adapter_lifecycle.cpp - opening, negotiating, suspending, resuming. The steps
// are numbered as in the specification.
#include <cstring>
#include <new>

#include "storvsc/adapter.hpp"

namespace storvsc {

namespace vmbus = pmgate::vmbus;

namespace {

// Newest first; the first one that the host accepts wins.
constexpr std::array<std::uint16_t, 3> versions = {version::win10, version::win8_1, version::win8};

vstor_packet request(operation op) noexcept {
  vstor_packet p;
  p.op = op;
  p.flags = vstor_completion_requested;
  return p;
}

}  // namespace

// ---- Opening ---------------------------------------------------------------

status adapter::connect() noexcept {
  const lock life(life_mutex_);
  if (state() != adapter_state::closed) return status::invalid;
  return open(adapter_state::closed);
}

status adapter::resume() noexcept {
  const lock life(life_mutex_);
  const adapter_state now = state();
  if (now != adapter_state::closed && now != adapter_state::failed) return status::invalid;
  return open(adapter_state::failed);
}

status adapter::rebind(const vmbus::channel_offer& offer) noexcept {
  const lock life(life_mutex_);
  const adapter_state now = state();
  if (now != adapter_state::closed && now != adapter_state::failed) return status::busy;
  return channel_.rebind(offer);
}

// The gate is closed all the time; it opens when everything behind it is complete.
status adapter::open(adapter_state on_failure) noexcept {
  set_state(adapter_state::opening);
  status code = open_channel();
  if (code == status::ok) {
    code = negotiate();
    if (code == status::ok && !make_table()) code = status::no_memory;
    if (code != status::ok) static_cast<void>(close_channel());
  }
  if (code == status::ok) {
    run_again();
  } else {
    set_state(on_failure);
  }
  return code;
}

status adapter::open_channel() noexcept {
  const auto pages = static_cast<std::uint32_t>(ring_pfns_.size());
  if (pages < 4 || config_.ring_size % vmbus::page_size != 0) return status::invalid;
  std::uint64_t first = 0;
  if (!config_.ring_pages.take(config_.ring_pages.context, pages, first)) return status::no_memory;
  for (std::uint32_t i = 0; i < pages; ++i) ring_pfns_[i] = first + i;
  // [open.pfn] relaxed: as [counter.read].
  ring_pfn_.store(first, std::memory_order_relaxed);

  vmbus::channel_setup<vmbus::flat_memory> setup;
  status code = map_rings(setup.outbound, setup.inbound);
  if (code != status::ok) {
    config_.ring_pages.give_back(config_.ring_pages.context, first, pages);
    return code;
  }
  static constexpr unsigned char userdata[24] = {};
  setup.pfns = ring_pfns_.data();
  setup.pfn_count = pages;
  setup.callback = &on_channel;
  setup.callback_context = this;
  setup.budget = config_.budget;
  setup.buffer = inbound_packet_.data();
  setup.buffer_size = static_cast<std::uint32_t>(inbound_packet_.size());
  setup.max_packet = setup.buffer_size;
  setup.map_request_id = &on_published;
  setup.userdata = userdata;
  setup.userdata_size = sizeof(userdata);
  code = channel_.open(setup);
  if (code != status::ok) release_pages();
  return code;
}

status adapter::map_rings(vmbus::flat_memory& outbound, vmbus::flat_memory& inbound) noexcept {
  const std::size_t each = ring_pfns_.size() / 2;
  vmbus::flat_memory* const views[2] = {&outbound, &inbound};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::uint64_t pfn = ring_pfns_[i * each];
    void* at = config_.memory->translate(pfn, each);
    if (at == nullptr) return status::invalid;
    std::memset(at, 0, each * vmbus::page_size);  // what lay there is none of the host's business
    if (config_.map_rings) {
      const auto page = static_cast<std::size_t>(pfn - config_.memory->first_pfn());
      const status code = ring_maps_[i].map(config_.memory->fd(), page, each - 1);
      if (code != status::ok) return code;
      at = ring_maps_[i].address();
    }
    *views[i] = {at, static_cast<unsigned char*>(at) + vmbus::page_size,
                 static_cast<std::uint32_t>((each - 1) * vmbus::page_size)};
  }
  return status::ok;
}

bool adapter::make_table() noexcept {
  table_.reset(new (std::nothrow) channel*[cpus_]);
  if (table_ == nullptr) return false;
  for (std::uint32_t cpu = 0; cpu < cpus_; ++cpu) table_[cpu] = &channel_;
  // [table.publish] release: pairs with [choose.table]; every entry is in place.
  published_table_.store(table_.get(), std::memory_order_release);
  return true;
}

void adapter::run_again() noexcept {
  set_state(adapter_state::running);
  gate_.unfreeze();
  work_.release();
}

// ---- Negotiating -----------------------------------------------------------

status adapter::negotiate() noexcept {
  // Step 1.
  vstor_packet p = request(operation::begin_initialization);
  if (const status code = exchange(p); code != status::ok) return code;
  if (p.status != nt_status::success) return status::invalid;
  // Step 2.
  if (const status code = negotiate_version(); code != status::ok) return code;
  // Step 3.
  p = request(operation::query_properties);
  if (const status code = exchange(p); code != status::ok) return code;
  if (p.status != nt_status::success) return status::invalid;
  {
    const lock guard(control_mutex_);
    properties_ = decode_properties(const_vstor_body(p.body));
  }
  // Step 4 is for Fibre Channel only. Step 5. Sub-channels, step 6, are not asked for.
  p = request(operation::end_initialization);
  if (const status code = exchange(p); code != status::ok) return code;
  return p.status == nt_status::success ? status::ok : status::invalid;
}

status adapter::negotiate_version() noexcept {
  for (const std::uint16_t wanted : versions) {
    vstor_packet p = request(operation::query_protocol_version);
    encode_word(vstor_body(p.body), wanted);
    if (const status code = exchange(p); code != status::ok) return code;
    if (p.status != nt_status::success) continue;
    // [negotiate.version] relaxed: see [version.read].
    version_.store(wanted, std::memory_order_relaxed);
    return status::ok;
  }
  return status::invalid;  // the host is too old for us
}

/// Sends a step of the negotiation, and replaces it by its answer.
status adapter::exchange(vstor_packet& p) noexcept {
  status code = send_control(init_, init_trans_id, p);
  if (code == status::ok) code = await(init_, p);
  if (code != status::ok) return code;
  return p.op == operation::complete_io ? status::ok : status::invalid;
}

status adapter::send_control(control_slot& slot, std::uint64_t id, const vstor_packet& p) noexcept {
  {
    const lock guard(control_mutex_);
    slot.expected = true;  // before it is sent: the answer may be faster than we are
    slot.arrived = false;
  }
  const vstor_bytes payload = encode(p);
  vmbus::packet packet;
  packet.flags = vmbus::flag_completion_requested;
  packet.trans_id = id;
  packet.payload = payload.data();
  packet.payload_size = vstor_size;
  const status code = channel_.write(packet).code;
  if (code != status::ok) forget(slot);
  return code;
}

status adapter::await(control_slot& slot, vstor_packet& answer) noexcept {
  const clock::time_point deadline = clock::now() + config_.init_timeout;
  for (bool late = false;;) {
    // [await.seen] acquire: pairs with [control.wake]; taken before the look.
    const std::uint32_t seen = control_events_.load(std::memory_order_acquire);
    {
      const lock guard(control_mutex_);
      if (slot.arrived) {
        answer = slot.answer;
        slot = {};
        return status::ok;
      }
      if (!slot.expected) return status::no_device;  // the channel was closed
    }
    if (late || channel_.is_rescinded()) break;
    late = !sleep(control_events_, seen, deadline);
  }
  forget(slot);
  return channel_.is_rescinded() ? status::no_device : status::timed_out;
}

void adapter::forget(control_slot& slot) noexcept {
  const lock guard(control_mutex_);
  slot = {};
}

status adapter::reset_bus(std::uint8_t path) noexcept {
  const lock one(reset_mutex_);
  if (!gate_.try_enter()) return status::no_device;
  vstor_packet p = request(operation::reset_bus);
  p.body[5] = path;  // where an SRB has it
  const status sent = send_control(reset_, reset_trans_id, p);
  gate_.exit();  // a suspend may begin: it ends our wait
  if (sent != status::ok) return sent;
  if (const status code = await(reset_, p); code != status::ok) return code;
  const clock::time_point deadline = clock::now() + config_.init_timeout;
  return await_drain(deadline, false) ? status::ok : status::timed_out;
}

status adapter::on_message(const void* message, std::uint32_t size) noexcept {
  const status code = channel_.on_message(message, size);
  wake_control();  // a rescind ends every wait
  return code;
}

// ---- Suspending ------------------------------------------------------------

status adapter::suspend(clock::time_point deadline) noexcept {
  const lock life(life_mutex_);
  if (state() != adapter_state::running) return status::invalid;
  const bool naive = config_.gate == gating::none;

  // Step 1: work is ended while its commands still flow.
  work_.silence();
  // Step 2: from here on a submitter is turned away, and the last one inside is waited
  // for. The naive adapter leaves this out.
  if (!naive) set_state(adapter_state::blocking);
  bool closed = naive || close_gate(deadline);
  if (!closed) {
    set_state(adapter_state::running);
    work_.release();
    return status::busy;
  }
  // Step 3: the host completes what it has.
  set_state(adapter_state::draining);
  const bool drained = await_drain(deadline, naive);
  if (naive) closed = drained && close_gate(deadline);
  if (!drained || !closed) {
    set_state(adapter_state::running);
    if (closed) gate_.unfreeze();
    work_.release();
    return status::busy;
  }
  // Step 4 is about sub-channels. Step 5.
  return tear_down();
}

/// Returns: false, and the gate is open, if somebody was still inside at the deadline.
bool adapter::close_gate(clock::time_point deadline) noexcept {
  if (gate_.freeze_start() != status::ok) return false;
  if (gate_.freeze_wait_until(deadline)) return true;
  gate_.unfreeze();
  return false;
}

void adapter::disconnect(clock::duration within) noexcept {
  const lock life(life_mutex_);
  if (state() == adapter_state::running) {
    work_.silence();
    set_state(adapter_state::blocking);
    static_cast<void>(gate_.freeze());
    set_state(adapter_state::draining);
    static_cast<void>(await_drain(clock::now() + within, false));
    static_cast<void>(tear_down());
  }
  set_state(adapter_state::closed);
}

// Nobody is inside the gate.
status adapter::tear_down() noexcept {
  const status code = close_channel();
  // [tear_down.table] relaxed: the gate keeps everybody out who would look.
  published_table_.store(nullptr, std::memory_order_relaxed);
  table_.reset();
  // [tear_down.age] release: pairs with [generation.read].
  generation_.fetch_add(1, std::memory_order_release);
  set_state(adapter_state::closed);
  complete_lost();
  return code;
}

// Afterwards no callback runs, and the rings have no address any more.
status adapter::close_channel() noexcept {
  const status code = channel_.close();
  release_pages();
  forget(reset_);
  wake_control();
  return code;
}

void adapter::release_pages() noexcept {
  for (pmgate::ring_mapping& map : ring_maps_) map = {};
  if (channel_.pages_released()) {
    config_.ring_pages.give_back(config_.ring_pages.context, ring_pfns_[0],
                                 static_cast<std::uint32_t>(ring_pfns_.size()));
  } else {
    bump(leaked_runs_);
  }
}

// What got in between the drain and the close, or was given up: the host never answers.
void adapter::complete_lost() noexcept {
  for (std::size_t i = 0; i < in_flight_.size(); ++i) {
    if (command* const c = in_flight_.claim_at(i)) {
      bump(lost_);
      finish(*c, host_byte::reset);
      retire();
    }
  }
}

}  // namespace storvsc
