// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/ring.hpp - the two ends of one VMBus ring.
//
// A channel has two rings and each endpoint holds one end of each; the ends
// here know one ring only. Both keep private copies of the index they own and
// never read it back, load every word of the peer exactly once, and check it
// before use. A peer that lies makes the ring corrupt for good, which is told
// apart from "try later". Calls never ring a doorbell: they return whether to.
//
// Counterpart: Linux hv_ringbuffer_write() and hv_pkt_iter_*(), made strict.
#ifndef PMGATE_VMBUS_RING_HPP
#define PMGATE_VMBUS_RING_HPP

#include <atomic>
#include <concepts>
#include <cstdint>

#include <pmgate/status.hpp>
#include <pmgate/vmbus/packet.hpp>
#include <pmgate/vmbus/ring_layout.hpp>
#include <pmgate/vmbus/ring_memory.hpp>

namespace pmgate::vmbus {

/// What an operation that publishes an index returns.
struct [[nodiscard]] ring_result {
  status code = status::ok;
  bool signal = false;  ///< the peer waits for this: ring its doorbell, once, now
};

/// What an endpoint finds when it stops polling.
struct [[nodiscard]] end_read_result {
  status code = status::ok;
  bool signal = false;      ///< the peer waits for space: ring its doorbell
  std::uint32_t bytes = 0;  ///< not 0: more has come; call begin_read() and drain again
};

/// How large a packet may be; peers differ.
struct producer_options {
  /// Bytes, trailer included; 0: D - 8, the most a ring can hold. A peer that
  /// writes with OpenVMM's limit refuses the last 8 bytes: D - 16.
  std::uint32_t largest_total = 0;
};

/// Which packets an end accepts; every other one makes the ring corrupt.
struct consumer_options {
  packet_types accepted = guest_accepts;
  /// Bytes without the trailer; 0: no limit but the ring. A legal packet must
  /// never be larger, or an honest peer is taken for a liar.
  std::uint32_t max_packet = 0;
};

/// The end of a ring that writes.
///
/// Lifetime: detached until attach(); the memory must stay until detach().
/// Threads:  one at a time; lock around it where there are more.
/// Blocking: never.
/// Misuse:   using a detached end returns `no_device`; packets that contradict
///           themselves return `invalid`. Neither touches the ring.
template <ring_memory Memory>
class ring_producer {
public:
  ring_producer() = default;
  ring_producer(const ring_producer&) = delete;
  ring_producer& operator=(const ring_producer&) = delete;

  /// Takes over the writing end of a ring, with the indices found in it.
  ///
  /// Returns: `ok`; `invalid` if the memory has no legal size; `io_error` if
  /// the indices are not legal. Only in the first case the end is usable.
  [[nodiscard]] status attach(Memory memory, producer_options options = {}) noexcept;

  /// Lets go of the memory: it is not touched again.
  void detach() noexcept { fault_ = ring_fault::detached; }

  /// Declares that this endpoint uses pending_send_size here, and honours it in
  /// the ring it reads. To be done once, before the peer starts.
  void announce_pending_send() noexcept;

  /// Writes one packet and publishes it, with all that was put() before.
  ///
  /// Returns: as put(), plus whether to signal. `io_error` with the packet
  /// published is possible: the peer was caught lying just afterwards.
  /// Kernel: vmbus_sendpacket().
  ring_result write(const packet& p) noexcept { return write(p, verbatim); }
  template <std::predicate<std::uint64_t&> NextId>
  ring_result write(const packet& p, NextId&& next_id) noexcept;

  /// Writes one packet that the peer does not see before flush(), however late.
  ///
  /// Returns: `ok`; `again` if there is no room now; `message_size` if there
  /// never is; `invalid`; `io_error` once the peer has lied; `no_device`.
  /// Unless `ok`, nothing has changed that the peer may look at.
  [[nodiscard]] status put(const packet& p) noexcept { return put(p, verbatim); }

  /// As put(), but if a completion is requested, `next_id(id)` fills in the
  /// trans_id. It is called when nothing else can fail any more: as soon as an ID
  /// exists, a rogue completion may look it up.
  /// Returns: `again` also if next_id() returns false.
  template <std::predicate<std::uint64_t&> NextId>
  [[nodiscard]] status put(const packet& p, NextId&& next_id) noexcept;

  /// Publishes all that was put().
  ///
  /// Returns: whether to signal: only if the ring was empty before, as far as
  /// can be seen, and the peer has not masked signals.
  /// Cost: one store-load barrier, however many packets.
  /// Orders: everything before it happens-before the peer takes the packets.
  ring_result flush() noexcept;

  /// Asks for a signal when a packet of `total` bytes fits (see shape_of()).
  ///
  /// Returns: `ok` if it fits already: write now, do not sleep. `again`: sleep;
  /// the peer signals when there is room. The next put() takes the wish back.
  [[nodiscard]] status request_space(std::uint32_t total) noexcept;

  /// Bytes free now; a packet fits if its total is less. 0 if there is no
  /// ring or a broken one.
  [[nodiscard]] std::uint32_t writable() noexcept;

  /// Free space in percent, as storage drivers choose their channel by it.
  [[nodiscard]] std::uint32_t percent_free() noexcept {
    return size_ == 0 ? 0 : vmbus::percent_free(writable(), size_);
  }

  /// What is wrong with this ring, if anything.
  [[nodiscard]] ring_fault fault() const noexcept { return fault_; }

private:
  static bool verbatim(std::uint64_t&) noexcept { return true; }  // the packet's own trans_id
  [[nodiscard]] bool accept_read_index(std::uint32_t index) noexcept;
  [[nodiscard]] status make_room(std::uint32_t total) noexcept;

  Memory memory_{};
  std::uint32_t size_ = 0;  // D
  std::uint32_t largest_total_ = 0;
  std::uint32_t next_ = 0;       // where the next put() goes
  std::uint32_t published_ = 0;  // the write index the peer sees
  std::uint32_t read_ = 0;       // the peer's index, as last accepted
  std::uint32_t pending_ = 0;    // the pending_send_size the peer sees
  ring_fault fault_ = ring_fault::detached;
};

/// The end of a ring that reads.
///
/// Lifetime: detached until attach(); the memory must stay until detach().
/// Threads:  one at a time; lock around it where there are more.
/// Blocking: never.
/// Misuse:   using a detached end returns `no_device` and touches nothing.
/// Limits:   packets are copied out; there is no reading in place, because
///           the peer could change a packet after it was checked.
template <ring_memory Memory>
class ring_consumer {
public:
  ring_consumer() = default;
  ring_consumer(const ring_consumer&) = delete;
  ring_consumer& operator=(const ring_consumer&) = delete;

  /// Takes over the reading end of a ring, with the indices found in it.
  /// Returns: as ring_producer::attach().
  [[nodiscard]] status attach(Memory memory, consumer_options options = {}) noexcept;

  /// Lets go of the memory: it is not touched again.
  void detach() noexcept { fault_ = ring_fault::detached; }

  /// Copies the next packet into `buffer`; its room is not given back yet.
  ///
  /// Returns: `ok`, with `out` pointing into `buffer`; `again` if there is none;
  /// `no_buffer_space` if it is larger than `capacity`, with the sizes in `out`
  /// and nothing consumed; `io_error` once the peer has lied; `no_device`.
  /// Orders: what the peer did before it published happens-before this.
  [[nodiscard]] status take(void* buffer, std::uint32_t capacity, received_packet& out) noexcept;

  /// Gives the room of all that was taken back to the peer.
  ///
  /// Returns: whether to signal: only if the peer waits for space, had not
  /// enough before and has now. `io_error`: corrupt, and nothing was given back.
  /// Cost: one store-load barrier, however many packets.
  /// Kernel: hv_pkt_iter_close().
  ring_result commit() noexcept;

  /// take() and commit() in one.
  ring_result read(void* buffer, std::uint32_t capacity, received_packet& out) noexcept;

  /// Asks the peer not to signal arriving packets: they are being polled for.
  /// Kernel: hv_begin_read().
  void begin_read() noexcept;

  /// Gives back what was taken, asks for signals again, and looks once more.
  ///
  /// Returns: bytes 0: sleep, the next packet signals. Bytes not 0: they came too
  /// early for a signal; call begin_read() and drain again.
  /// Kernel: hv_end_read().
  end_read_result end_read() noexcept;

  /// What is wrong with this ring, if anything.
  [[nodiscard]] ring_fault fault() const noexcept { return fault_; }

private:
  [[nodiscard]] bool accept_write_index(std::uint32_t index) noexcept;
  [[nodiscard]] status fail(ring_fault fault) noexcept;

  Memory memory_{};
  consumer_options options_{};
  std::uint32_t size_ = 0;       // D
  std::uint32_t next_ = 0;       // where the next take() reads
  std::uint32_t published_ = 0;  // the read index the peer sees
  std::uint32_t write_ = 0;      // the peer's index, as last accepted
  ring_fault fault_ = ring_fault::detached;
};

// ---- ring_producer ---------------------------------------------------------

template <ring_memory Memory>
status ring_producer<Memory>::attach(Memory memory, producer_options options) noexcept {
  memory_ = memory;
  size_ = memory.data_size();
  fault_ = valid_data_size(size_) ? ring_fault::none : ring_fault::bad_geometry;
  if (fault_ != ring_fault::none) return status_of(fault_);

  const std::uint32_t most = size_ - data_alignment;
  const std::uint32_t wanted = options.largest_total;
  largest_total_ = wanted != 0 && wanted < most ? wanted : most;
  pending_ = 0;
  // [producer.own] relaxed: our own word, looked at once; only we store it, and
  // whoever handed this ring over ordered that hand-over.
  published_ = memory_.load(control_word::write_index, std::memory_order_relaxed);
  // [producer.peer] acquire: pairs with [commit.publish]; what lies before this
  // index has been read and may be overwritten.
  read_ = memory_.load(control_word::read_index, std::memory_order_acquire);
  next_ = published_;
  if (!valid_index(published_, size_) || !valid_index(read_, size_)) {
    fault_ = ring_fault::index_range;
  }
  return status_of(fault_);
}

template <ring_memory Memory>
void ring_producer<Memory>::announce_pending_send() noexcept {
  if (fault_ != ring_fault::none) return;
  // [announce.feature] release: pairs with [commit.feature]; a consumer that sees
  // the bit sees the cleared page below it.
  memory_.store(control_word::feature_bits, feature_pending_send_size, std::memory_order_release);
}

template <ring_memory Memory>
template <std::predicate<std::uint64_t&> NextId>
ring_result ring_producer<Memory>::write(const packet& p, NextId&& next_id) noexcept {
  const status code = put(p, next_id);
  return code == status::ok ? flush() : ring_result{code, false};
}

template <ring_memory Memory>
template <std::predicate<std::uint64_t&> NextId>
status ring_producer<Memory>::put(const packet& p, NextId&& next_id) noexcept {
  if (fault_ != ring_fault::none) return status_of(fault_);
  const packet_shape shape = shape_of(p);
  if (shape.code != status::ok) return shape.code;
  if (const status room = make_room(shape.total); room != status::ok) return room;

  // Behind the write index the peer does not look, so failing after the copy is
  // harmless. The descriptor comes last, and with it the ID.
  detail::write_body(memory_, next_, p);
  std::uint64_t id = p.trans_id;
  if (p.flags == flag_completion_requested && !next_id(id)) return status::again;
  unsigned char head[descriptor_size];
  encode(head, {p.type, shape.offset8, shape.len8, p.flags, id});
  memory_.copy_in(next_, head, descriptor_size);

  if (pending_ != 0) {
    // [put.clear] relaxed: published by [flush.publish]; until then a signal too
    // many is possible, and harmless.
    memory_.store(control_word::pending_send_size, 0, std::memory_order_relaxed);
    pending_ = 0;
  }
  next_ = advance(next_, shape.total, size_);
  return status::ok;
}

template <ring_memory Memory>
ring_result ring_producer<Memory>::flush() noexcept {
  if (fault_ != ring_fault::none) return {status_of(fault_), false};
  const std::uint32_t old = published_;
  if (next_ == old) return {status::ok, false};

  published_ = next_;
  // [flush.publish] seq_cst: pairs with [take.peer] as a release: the packets are
  // complete. And first half of the store-load pair with [end_read.unmask] and
  // [end_read.look]: either the consumer sees this index before it sleeps, or
  // [flush.mask] sees its mask cleared. Likewise with [commit.publish] and [take.peer].
  memory_.store(control_word::write_index, next_, std::memory_order_seq_cst);
  // [flush.mask] seq_cst: second half of that pair. As an acquire it also keeps
  // [flush.peer] behind it: having seen the mask cleared by [end_read.unmask], we
  // see the read index that was published before it.
  if (memory_.load(control_word::interrupt_mask, std::memory_order_seq_cst) != 0) {
    return {status::ok, false};
  }
  // [flush.peer] seq_cst: pairs with [commit.publish]; for a consumer that never
  // masks, either it sees our index at [take.peer], or we see here that it drained.
  const std::uint32_t read = memory_.load(control_word::read_index, std::memory_order_seq_cst);
  if (!accept_read_index(read)) return {status::io_error, false};
  return {status::ok, read == old};
}

template <ring_memory Memory>
status ring_producer<Memory>::request_space(std::uint32_t total) noexcept {
  if (fault_ != ring_fault::none) return status_of(fault_);
  if (total > largest_total_) return status::message_size;
  pending_ = static_cast<std::uint32_t>(padded(total));
  // [space.ask] seq_cst: first half of the store-load pair with [commit.publish]
  // and [commit.pending]: either the consumer sees our wish, or [space.look] sees
  // the room that it gave back.
  memory_.store(control_word::pending_send_size, pending_, std::memory_order_seq_cst);
  // [space.look] seq_cst: second half of that pair; as an acquire as [room.peer].
  const std::uint32_t read = memory_.load(control_word::read_index, std::memory_order_seq_cst);
  if (!accept_read_index(read)) return status::io_error;
  return free_bytes(next_, read_, size_) > pending_ ? status::ok : status::again;
}

template <ring_memory Memory>
std::uint32_t ring_producer<Memory>::writable() noexcept {
  if (fault_ != ring_fault::none) return 0;
  // [writable.peer] acquire: pairs with [commit.publish], as [room.peer].
  const std::uint32_t read = memory_.load(control_word::read_index, std::memory_order_acquire);
  return accept_read_index(read) ? free_bytes(next_, read_, size_) : 0;
}

// The consumer can only move from where it was seen to what we published.
template <ring_memory Memory>
bool ring_producer<Memory>::accept_read_index(std::uint32_t index) noexcept {
  if (!valid_index(index, size_)) {
    fault_ = ring_fault::index_range;
  } else if (used_bytes(index, read_, size_) > used_bytes(published_, read_, size_)) {
    fault_ = ring_fault::index_order;
  } else {
    read_ = index;
  }
  return fault_ == ring_fault::none;
}

template <ring_memory Memory>
status ring_producer<Memory>::make_room(std::uint32_t total) noexcept {
  if (total > largest_total_) return status::message_size;
  // Inside a batch the index seen last will do: it can only be too careful. At
  // the start of one it is loaded, so that a lie is found before the ring changes.
  if (next_ == published_ || free_bytes(next_, read_, size_) <= total) {
    // [room.peer] acquire: pairs with [commit.publish]; the consumer has finished
    // reading the bytes that we are about to overwrite.
    const std::uint32_t read = memory_.load(control_word::read_index, std::memory_order_acquire);
    if (!accept_read_index(read)) return status::io_error;
  }
  return free_bytes(next_, read_, size_) > total ? status::ok : status::again;
}

// ---- ring_consumer ---------------------------------------------------------

template <ring_memory Memory>
status ring_consumer<Memory>::attach(Memory memory, consumer_options options) noexcept {
  memory_ = memory;
  options_ = options;
  size_ = memory.data_size();
  fault_ = valid_data_size(size_) ? ring_fault::none : ring_fault::bad_geometry;
  if (fault_ != ring_fault::none) return status_of(fault_);

  if (options_.max_packet == 0) options_.max_packet = size_;
  // [consumer.own] relaxed: our own word, looked at once; as [producer.own].
  published_ = memory_.load(control_word::read_index, std::memory_order_relaxed);
  next_ = published_;
  write_ = published_;  // nothing is known of the peer's index yet: [take.peer] loads it
  if (!valid_index(published_, size_)) fault_ = ring_fault::index_range;
  return status_of(fault_);
}

template <ring_memory Memory>
status ring_consumer<Memory>::take(void* buffer, std::uint32_t capacity,
                                   received_packet& out) noexcept {
  if (fault_ != ring_fault::none) return status_of(fault_);
  if (write_ == next_) {
    // [take.peer] seq_cst: pairs with [flush.publish]; as an acquire: the packets
    // before this index are complete. As the look after [commit.publish] it is the
    // second half of a store-load pair, see [flush.peer].
    const auto write = memory_.load(control_word::write_index, std::memory_order_seq_cst);
    if (!accept_write_index(write)) return status::io_error;
    if (write_ == next_) return status::again;
  }
  const std::uint32_t unread = used_bytes(write_, next_, size_);
  if (unread < smallest_packet) return fail(ring_fault::short_packet);

  const packet_descriptor head = detail::load_descriptor(memory_, next_);
  const ring_fault bad = check_descriptor(head, unread, options_.max_packet, options_.accepted);
  if (bad != ring_fault::none) return fail(bad);
  const std::uint32_t length = std::uint32_t{head.len8} * 8;
  const std::uint32_t offset = std::uint32_t{head.offset8} * 8;
  out = {head.type, head.flags,      head.trans_id, nullptr, offset - descriptor_size,
         nullptr,   length - offset, length};
  if (capacity < length) return status::no_buffer_space;

  auto* const copy = static_cast<unsigned char*>(buffer);
  encode(copy, head);  // the header that was checked, not the one that may be there now
  memory_.copy_out(advance(next_, descriptor_size, size_), copy + descriptor_size,
                   length - descriptor_size);
  out.extension = copy + descriptor_size;
  out.payload = copy + offset;
  if (head.type == packet_type::gpa_direct && !intact_ranges(out.extension, out.extension_size)) {
    return fail(ring_fault::bad_ranges);
  }
  next_ = advance(next_, length + trailer_size, size_);
  return status::ok;
}

template <ring_memory Memory>
ring_result ring_consumer<Memory>::commit() noexcept {
  if (fault_ != ring_fault::none) return {status_of(fault_), false};
  if (next_ == published_) return {status::ok, false};
  const std::uint32_t freed = used_bytes(next_, published_, size_);

  published_ = next_;
  // [commit.publish] seq_cst: pairs with [room.peer] as a release: our reads are
  // done. And first half of the store-load pair with [space.ask] and [space.look]:
  // either [commit.pending] sees the producer's wish, or it sees our room.
  memory_.store(control_word::read_index, next_, std::memory_order_seq_cst);
  // [commit.feature] acquire: pairs with [announce.feature]; stored once, before
  // the producer ever waits.
  const auto features = memory_.load(control_word::feature_bits, std::memory_order_acquire);
  if ((features & feature_pending_send_size) == 0) return {status::ok, false};
  // [commit.pending] seq_cst: second half of that pair. As an acquire it keeps
  // [commit.peer] behind it, which then sees the write that led the producer to wait.
  const auto pending = memory_.load(control_word::pending_send_size, std::memory_order_seq_cst);
  if (pending == 0) return {status::ok, false};
  // [commit.peer] acquire: pairs with [flush.publish], as [take.peer].
  const auto write = memory_.load(control_word::write_index, std::memory_order_acquire);
  if (!accept_write_index(write)) return {status::io_error, false};

  // Unsigned on purpose: a producer that has refilled more than we freed has seen
  // our index and is not asleep; the difference wraps and says "had room before".
  const std::uint32_t free = free_bytes(write, next_, size_);
  const bool had_room = free - freed > pending;
  return {status::ok, !had_room && free > pending};
}

template <ring_memory Memory>
ring_result ring_consumer<Memory>::read(void* buffer, std::uint32_t capacity,
                                        received_packet& out) noexcept {
  const status code = take(buffer, capacity, out);
  return code == status::ok ? commit() : ring_result{code, false};
}

template <ring_memory Memory>
void ring_consumer<Memory>::begin_read() noexcept {
  if (fault_ != ring_fault::none) return;
  // [begin_read.mask] seq_cst: visible before we start to drain: either [flush.mask] sees
  // it, or the producer signals. Were it late, signals would come for nothing.
  memory_.store(control_word::interrupt_mask, 1, std::memory_order_seq_cst);
}

template <ring_memory Memory>
end_read_result ring_consumer<Memory>::end_read() noexcept {
  const ring_result given = commit();
  if (given.code != status::ok) return {given.code, false, 0};
  // [end_read.unmask] seq_cst: first half of the store-load pair with
  // [flush.publish] and [flush.mask]: either the producer sees the mask cleared and
  // signals, or [end_read.look] sees its packet.
  memory_.store(control_word::interrupt_mask, 0, std::memory_order_seq_cst);
  // [end_read.look] seq_cst: second half of that pair; as an acquire as [take.peer].
  const auto write = memory_.load(control_word::write_index, std::memory_order_seq_cst);
  if (!accept_write_index(write)) return {status::io_error, given.signal, 0};
  return {status::ok, given.signal, used_bytes(write_, next_, size_)};
}

// The producer can only move on from where it was seen, and never past what we
// have given back; so everything is measured from the published index.
template <ring_memory Memory>
bool ring_consumer<Memory>::accept_write_index(std::uint32_t index) noexcept {
  if (!valid_index(index, size_)) {
    fault_ = ring_fault::index_range;
  } else if (used_bytes(index, published_, size_) < used_bytes(write_, published_, size_)) {
    fault_ = ring_fault::index_order;
  } else {
    write_ = index;
  }
  return fault_ == ring_fault::none;
}

template <ring_memory Memory>
status ring_consumer<Memory>::fail(ring_fault fault) noexcept {
  fault_ = fault;
  return status_of(fault);
}

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_RING_HPP
