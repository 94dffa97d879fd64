// SPDX-License-Identifier: MIT
//
// pmgate/vmbus/ring_memory.hpp - where the bytes of a ring lie and how they
// are reached.
//
// The ring code never touches memory itself: it asks a ring_memory for one
// load, one store, or a copy that wraps at the end of the data. So the same
// code runs over one mapping, over a double mapping, or over a simulator that
// owns every access. All backends leave identical bytes behind.
//
// Counterpart: the double mapping of the kernel's ring buffer (mirrored_memory).
#ifndef PMGATE_VMBUS_RING_MEMORY_HPP
#define PMGATE_VMBUS_RING_MEMORY_HPP

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include <pmgate/vmbus/ring_layout.hpp>

namespace pmgate::vmbus {

namespace detail {

/// memcpy() without its header; `count` may be 0, the pointers then anything.
inline void copy_bytes(void* to, const void* from, std::size_t count) noexcept {
  if (count != 0) __builtin_memcpy(to, from, count);
}

/// One word of memory that somebody else writes at the same time.
using shared_word = std::atomic_ref<std::uint32_t>;
static_assert(shared_word::is_always_lock_free, "a lock cannot be shared with the peer");
static_assert(shared_word::required_alignment <= 4, "control words are aligned to 4 bytes");

}  // namespace detail

/// What a ring needs of its memory. Cheap to copy: a view, never the owner.
///
/// * `data_size()`: D.
/// * `load(word, order)`, `store(word, value, order)`: one access, exactly once,
///   as by std::atomic<uint32_t>; values are in host byte order.
/// * `load_data(index)`: the 32 bits at a data offset that is a multiple of 4;
///   loaded exactly once, so that what is validated is what is used.
/// * `copy_in(index, from, n)`, `copy_out(index, to, n)`: plain copies of n <= D
///   bytes that start at `index` < D and go on at 0 behind D - 1. The peer may
///   change the bytes meanwhile; afterwards the copy is private and stable.
/// * `clear_control()`: zeroes the control page; nobody else may know it yet.
template <class M>
concept ring_memory = std::copyable<M> && std::default_initializable<M> &&
    requires(M& memory, const M& view, std::uint32_t n, const void* from, void* to) {
  { view.data_size() }
  noexcept->std::same_as<std::uint32_t>;
  { view.load(control_word::write_index, std::memory_order_acquire) }
  noexcept->std::same_as<std::uint32_t>;
  { memory.store(control_word::write_index, n, std::memory_order_release) }
  noexcept;
  { view.load_data(n) }
  noexcept->std::same_as<std::uint32_t>;
  { memory.copy_in(n, from, n) }
  noexcept;
  { view.copy_out(n, to, n) }
  noexcept;
  { memory.clear_control() }
  noexcept;
};

/// A control page and data that are mapped once; they need not be neighbours.
///
/// Copies that cross the end are split in two.
/// Lifetime: a view; the pages must outlive it.  Threads: as the ring above it.
class flat_memory {
public:
  flat_memory() = default;

  /// Precondition: both are aligned to 8 bytes and hold 4096 and `size` bytes.
  flat_memory(void* control, void* data, std::uint32_t size) noexcept
      : control_(static_cast<unsigned char*>(control)),
        data_(static_cast<unsigned char*>(data)),
        size_(size) {}

  [[nodiscard]] std::uint32_t data_size() const noexcept { return size_; }

  [[nodiscard]] std::uint32_t load(control_word which, std::memory_order order) const noexcept {
    // [word.load] relaxed to seq_cst: as the ring asks, which labels each call.
    return little_endian(word(which).load(order));
  }

  void store(control_word which, std::uint32_t value, std::memory_order order) noexcept {
    // [word.store] relaxed to seq_cst: as the ring asks, which labels each call.
    word(which).store(little_endian(value), order);
  }

  [[nodiscard]] std::uint32_t load_data(std::uint32_t index) const noexcept {
    detail::shared_word word(*reinterpret_cast<std::uint32_t*>(data_ + index));
    // [data.load] relaxed: ordered by the acquire load of the write index; it is
    // atomic only so that the compiler loads it once.
    return little_endian(word.load(std::memory_order_relaxed));
  }

  void copy_in(std::uint32_t index, const void* from, std::uint32_t count) noexcept {
    const std::uint32_t head = before_end(index, count);
    detail::copy_bytes(data_ + index, from, head);
    detail::copy_bytes(data_, static_cast<const unsigned char*>(from) + head, count - head);
  }

  void copy_out(std::uint32_t index, void* to, std::uint32_t count) const noexcept {
    const std::uint32_t head = before_end(index, count);
    detail::copy_bytes(to, data_ + index, head);
    detail::copy_bytes(static_cast<unsigned char*>(to) + head, data_, count - head);
    // [data.copied] acq_rel: for the compiler only; it may not read the ring a
    // second time instead of the copy.
    std::atomic_signal_fence(std::memory_order_acq_rel);
  }

  void clear_control() noexcept { __builtin_memset(control_, 0, control_page_size); }

private:
  [[nodiscard]] detail::shared_word word(control_word which) const noexcept {
    return detail::shared_word(
        *reinterpret_cast<std::uint32_t*>(control_ + static_cast<std::uint32_t>(which)));
  }

  [[nodiscard]] std::uint32_t before_end(std::uint32_t index, std::uint32_t count) const noexcept {
    return count <= size_ - index ? count : size_ - index;
  }

  unsigned char* control_ = nullptr;
  unsigned char* data_ = nullptr;
  std::uint32_t size_ = 0;
};

/// A control page, the data, and the data once more, all contiguous.
///
/// The second mapping shows the same pages as the first, so a packet that
/// wraps is contiguous and every copy is one copy.
/// Lifetime: a view; the mapping must outlive it.  Threads: as the ring above it.
class mirrored_memory {
public:
  mirrored_memory() = default;

  /// Precondition: `mapping` holds 4096 + 2 * `size` bytes, mapped as above.
  mirrored_memory(void* mapping, std::uint32_t size) noexcept
      : words_(mapping, static_cast<unsigned char*>(mapping) + control_page_size, size),
        data_(static_cast<unsigned char*>(mapping) + control_page_size) {}

  [[nodiscard]] std::uint32_t data_size() const noexcept { return words_.data_size(); }

  [[nodiscard]] std::uint32_t load(control_word which, std::memory_order order) const noexcept {
    // [mirrored.load] relaxed to seq_cst: as the ring asks, which labels each call.
    return words_.load(which, order);
  }

  void store(control_word which, std::uint32_t value, std::memory_order order) noexcept {
    // [mirrored.store] relaxed to seq_cst: as the ring asks, which labels each call.
    words_.store(which, value, order);
  }

  [[nodiscard]] std::uint32_t load_data(std::uint32_t index) const noexcept {
    return words_.load_data(index);
  }

  void copy_in(std::uint32_t index, const void* from, std::uint32_t count) noexcept {
    detail::copy_bytes(data_ + index, from, count);
    // [mirrored.written] acq_rel: for the compiler only, which does not know that
    // two addresses show the same byte; it may not move later copies up.
    std::atomic_signal_fence(std::memory_order_acq_rel);
  }

  void copy_out(std::uint32_t index, void* to, std::uint32_t count) const noexcept {
    detail::copy_bytes(to, data_ + index, count);
    // [mirrored.copied] acq_rel: for the compiler only, as [data.copied].
    std::atomic_signal_fence(std::memory_order_acq_rel);
  }

  void clear_control() noexcept { words_.clear_control(); }

private:
  flat_memory words_;
  unsigned char* data_ = nullptr;
};

static_assert(ring_memory<flat_memory> && ring_memory<mirrored_memory>);

}  // namespace pmgate::vmbus

#endif  // PMGATE_VMBUS_RING_MEMORY_HPP
