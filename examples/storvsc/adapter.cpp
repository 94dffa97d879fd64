// SPDX-License-Identifier: MIT
//
// storvsc/adapter.cpp - commands on their way to the host. The steps are numbered as
// in the specification of the submit path.
#include "storvsc/adapter.hpp"

#include <algorithm>

#include <sched.h>
#include <unistd.h>

namespace storvsc {

namespace vmbus = pmgate::vmbus;

namespace {

std::uint32_t table_size(std::uint32_t wanted) noexcept {
  if (wanted != 0) return wanted;
  const long configured = ::sysconf(_SC_NPROCESSORS_CONF);
  return configured < 1 ? 1 : static_cast<std::uint32_t>(configured);
}

std::uint32_t flags_of(const command& c) noexcept {
  std::uint32_t flags = srb_flags::disable_synch_transfer;
  if (c.tagged) flags |= srb_flags::queue_action_enable | srb_flags::no_queue_freeze;
  if (c.direction == data_direction::from_device) flags |= srb_flags::data_in;
  if (c.direction == data_direction::to_device) flags |= srb_flags::data_out;
  return flags;
}

vstor_bytes encode_command(const command& c, std::uint8_t port) noexcept {
  srb request;
  request.port_number = port;
  request.path_id = c.path;
  request.target_id = c.target;
  request.lun = c.lun;
  request.cdb_length = c.cdb_length;
  request.data_in = static_cast<std::uint8_t>(c.direction);
  request.data_transfer_length = c.length;
  std::copy_n(c.cdb.begin(), c.cdb_length, request.cdb_or_sense.begin());
  request.queue_tag = c.tagged ? tagged_queue_tag : std::uint8_t{0};
  request.queue_action = c.tagged ? simple_queue_action : std::uint8_t{0};
  request.srb_flags = flags_of(c);
  request.time_out_value = srb_timeout_seconds;

  vstor_packet packet;
  packet.op = operation::execute_srb;
  packet.flags = vstor_completion_requested;
  encode(vstor_body(packet.body), request);
  return encode(packet);
}

}  // namespace

adapter::adapter(const adapter_config& config)
    : config_(config),
      channel_(config.transport, config.offer, config.init_timeout),
      in_flight_(config.hardware_queues, config.tags),
      work_(config.work),
      cpus_(table_size(config.cpus)),
      ring_pfns_(std::size_t{2} * (config.ring_size / vmbus::page_size)) {
  static_cast<void>(gate_.freeze());  // there is no table yet
}

adapter::~adapter() { disconnect(); }

adapter_statistics adapter::statistics() const noexcept {
  return {count(completed_), count(turned_away_), count(ring_full_),  count(violations_),
          count(lost_),      count(dropped_),     count(leaked_runs_)};
}

// ---- Submitting ------------------------------------------------------------

int adapter::submit(command& c) noexcept {
  if (config_.pausable && !enter_unless_paused()) {
    bump(turned_away_);
    return host_busy;
  }
  const verdict v = try_submit(c);
  if (config_.pausable) leave_pausable();
  if (v.finished) finish(c, v.host);
  return v.code;
}

// Everything that touches the table or the rings happens between entering the gate
// and leaving it; the table goes away only when nobody is in there.
adapter::verdict adapter::try_submit(command& c) noexcept {
  if (!gate_.try_enter()) return turn_away();
  // The state is looked at again inside: it may have changed before the gate closed.
  const bool refused = config_.gate == gating::own && state() != adapter_state::running;
  if (!refused && config_.hooks.entered != nullptr) config_.hooks.entered(config_.hooks.context);
  const verdict v = refused ? turn_away() : send(c);
  gate_.exit();
  return v;
}

// Nothing of a torn-down adapter is touched here. With gating::none this is where the
// kernel would have looked up its channel in a table that is not there.
adapter::verdict adapter::turn_away() noexcept {
  if (config_.gate == gating::none) {
    bump(violations_);
    // [turn_away.address] relaxed: as [counter.read].
    last_fault_.store(8 * std::uint64_t{this_cpu()}, std::memory_order_relaxed);
  }
  if (state() == adapter_state::failed) return {0, true, host_byte::no_connect};
  bump(turned_away_);
  return {host_busy};
}

adapter::verdict adapter::send(command& c) noexcept {
  const bool filtered = protocol_version() <= version::win8 &&
                        (c.cdb[0] == opcode::write_same_10 || c.cdb[0] == opcode::set_window);
  in_flight_table::reservation mine;
  if (filtered || !well_formed(c) || !in_flight_.reserve(c, mine)) {
    return {0, true, host_byte::error};
  }
  // [send.count] relaxed: before the packet is published, which orders it: its
  // completion, by whatever thread, finds it counted.
  outstanding_.fetch_add(1, std::memory_order_relaxed);

  const vstor_bytes payload = encode_command(c, config_.port);
  const vmbus::gpa_range range{c.length, c.offset, c.pfns};
  vmbus::packet p;
  p.type = c.length != 0 ? vmbus::packet_type::gpa_direct : vmbus::packet_type::in_band;
  p.flags = vmbus::flag_completion_requested;
  p.trans_id = in_flight_table::id_of(c.hw_queue, c.tag);
  p.payload = payload.data();
  p.payload_size = vstor_size;
  p.ranges = c.length != 0 ? &range : nullptr;
  p.range_count = c.length != 0 ? 1 : 0;

  // From here on the command may be completed, and gone, at any time.
  const status code = choose_channel()->write(p).code;
  if (config_.hooks.published != nullptr) config_.hooks.published(config_.hooks.context);
  if (code == status::ok) return {};
  if (!in_flight_.cancel(mine)) return {};  // answered all the same
  retire();
  if (code == status::again) {
    bump(ring_full_);
    return {device_busy};
  }
  return {0, true, code == status::no_device ? host_byte::no_connect : host_byte::error};
}

vmbus::channel* adapter::choose_channel() noexcept {
  // [choose.table] acquire: pairs with [table.publish]; the table is complete.
  channel* const* const table = published_table_.load(std::memory_order_acquire);
  return table[this_cpu() % cpus_];
}

bool adapter::well_formed(const command& c) const noexcept {
  if (c.cdb_length == 0 || c.cdb_length > cdb_size) return false;
  if (c.direction == data_direction::none && c.length != 0) return false;
  return c.length == 0 || (c.pfns != nullptr && c.offset < vmbus::page_size);
}

unsigned adapter::this_cpu() const noexcept {
  if (config_.hooks.cpu != nullptr) return config_.hooks.cpu(config_.hooks.context);
  const int cpu = ::sched_getcpu();
  return cpu < 0 ? 0 : static_cast<unsigned>(cpu);
}

void adapter::finish(command& c, std::uint32_t host) noexcept {
  c.result = host << 16;
  c.transferred = 0;
  c.resid = c.length;
  c.sense = {};
  c.sense_length = 0;
  c.done(c);
}

// ---- Counting those who are out, and waiting for them ----------------------

void adapter::retire() noexcept {
  // [retire.count] seq_cst: as a release: what the completion did is visible to the
  // drainer. And first half of the store-load pair with [drain.announce]
  // and [drain.look]: either the drainer sees zero, or we see the drainer.
  if (outstanding_.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
  // [retire.drainers] seq_cst: second half of that pair.
  if (drainers_.load(std::memory_order_seq_cst) == 0) return;
  // [retire.event] release: pairs with [drain.seen].
  drained_.fetch_add(1, std::memory_order_release);
  drained_.wake_all();
}

// Momentary: a moment with nothing outstanding is enough, whatever comes after it.
bool adapter::await_drain(clock::time_point deadline, bool momentary) noexcept {
  // [drain.announce] seq_cst: first half of the store-load pair with [retire.count].
  drainers_.fetch_add(1, std::memory_order_seq_cst);
  // [drain.first] relaxed: only compared with later values of the same word.
  const std::uint32_t first = drained_.load(std::memory_order_relaxed);
  bool drained = false;
  for (bool late = false;;) {
    // [drain.seen] acquire: pairs with [retire.event]; taken before the look.
    const std::uint32_t seen = drained_.load(std::memory_order_acquire);
    // [drain.look] seq_cst: second half of the pair with [retire.count]; as an acquire:
    // the last completion is over.
    drained = outstanding_.load(std::memory_order_seq_cst) == 0 || (momentary && seen != first);
    if (drained || late) break;
    late = !sleep(drained_, seen, deadline);
  }
  // [drain.over] relaxed: a completion that still sees us does no harm.
  drainers_.fetch_sub(1, std::memory_order_relaxed);
  return drained;
}

/// Returns: false if the time is up.
bool adapter::sleep(platform::wait_word& word, std::uint32_t seen,
                    clock::time_point deadline) noexcept {
  if (config_.hooks.wait != nullptr) return config_.hooks.wait(config_.hooks.context);
  return word.wait_until(seen, deadline) && clock::now() < deadline;
}

// ---- The busy flag ---------------------------------------------------------

bool adapter::enter_unless_paused() noexcept {
  const lock guard(pause_mutex_);
  if (paused_) return false;
  ++callers_;
  return true;
}

void adapter::leave_pausable() noexcept {
  const lock guard(pause_mutex_);
  if (--callers_ != 0 || !paused_) return;
  // [pause.left] release: pairs with [pause.seen].
  callers_left_.fetch_add(1, std::memory_order_release);
  callers_left_.wake_all();
}

status adapter::set_paused(bool paused) noexcept {
  if (!config_.pausable) return status::not_supported;
  for (;;) {
    // [pause.seen] acquire: pairs with [pause.left]; taken before the look.
    const std::uint32_t seen = callers_left_.load(std::memory_order_acquire);
    {
      const lock guard(pause_mutex_);
      paused_ = paused;
      if (!paused || callers_ == 0) return status::ok;
    }
    callers_left_.wait(seen);
  }
}

}  // namespace storvsc
