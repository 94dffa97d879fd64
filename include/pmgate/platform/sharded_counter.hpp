// SPDX-License-Identifier: MIT
//
// pmgate/platform/sharded_counter.hpp - the portable counter engine.
//
// A count spread over cache lines. Each shard is one word, `count << 1 |
// closed`, changed by compare-and-swap only while it is open. So a closed
// shard never changes, closing it captures its exact count, and no grace
// period is needed.
//
// Counterpart: the per-CPU half of Linux percpu_ref, without RCU.
#ifndef PMGATE_PLATFORM_SHARDED_COUNTER_HPP
#define PMGATE_PLATFORM_SHARDED_COUNTER_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

namespace pmgate {
namespace detail {

/// How many shards to make.
enum class shard_width : std::uint8_t {
  one,      ///< the embedded one: 8 bytes, for rare users
  machine,  ///< Machine::shard_count(), a cache line each
};

/// A shard that shares its cache line with nothing.
template <class Machine>
struct alignas(64) padded_shard {
  typename Machine::template atomic<std::uintptr_t> value{0};
};

/// Shards allocated once; the one inside if one is enough, or if there is no memory.
///
/// The one inside is not used beside others: its line has what all who count read.
template <class Machine>
class allocated_shards {
 public:
  using word = typename Machine::template atomic<std::uintptr_t>;

  allocated_shards(std::uintptr_t first, shard_width shards) noexcept;
  ~allocated_shards();
  allocated_shards(const allocated_shards&) = delete;
  allocated_shards& operator=(const allocated_shards&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }  ///< a power of two
  word& operator[](std::size_t index) noexcept {
    return shards_ == nullptr ? alone_ : shards_[index].value;
  }
  const word& operator[](std::size_t index) const noexcept {
    return shards_ == nullptr ? alone_ : shards_[index].value;
  }

 private:
  padded_shard<Machine>* shards_ = nullptr;
  std::size_t size_ = 1;
  word alone_;
};

/// All shards inside, and no pointer: processes may map them at different addresses.
template <class Machine, std::size_t Size>
class embedded_shards {
 public:
  using word = typename Machine::template atomic<std::uintptr_t>;

  embedded_shards(std::uintptr_t first, shard_width) noexcept {
    // [embed.shard] relaxed: nobody else has the counter yet.
    for (auto& shard : shards_) shard.value.store(first, std::memory_order_relaxed);
  }
  static constexpr std::size_t size() noexcept { return Size; }
  word& operator[](std::size_t index) noexcept { return shards_[index].value; }
  const word& operator[](std::size_t index) const noexcept { return shards_[index].value; }

 private:
  static_assert(Size > 0 && (Size & (Size - 1)) == 0, "the hint is cut to a power of two");
  padded_shard<Machine> shards_[Size];
};

template <class Machine>
allocated_shards<Machine>::allocated_shards(std::uintptr_t first, shard_width shards) noexcept
    : alone_(first) {
  const std::size_t wanted = shards == shard_width::one ? 1 : Machine::shard_count();
  if (wanted < 2) return;
  using padded = padded_shard<Machine>;
  void* const memory =
      ::operator new(sizeof(padded) * wanted, std::align_val_t{alignof(padded)}, std::nothrow);
  if (memory == nullptr) return;  // slower, not wrong
  shards_ = static_cast<padded*>(memory);
  for (std::size_t i = 0; i < wanted; ++i) {
    ::new (static_cast<void*>(shards_ + i)) padded;
    // [construct.shard] relaxed: nobody else has the counter yet.
    shards_[i].value.store(first, std::memory_order_relaxed);
  }
  size_ = wanted;
}

template <class Machine>
allocated_shards<Machine>::~allocated_shards() {
  if (shards_ == nullptr) return;
  for (std::size_t i = 0; i < size_; ++i) shards_[i].~padded_shard();
  ::operator delete(static_cast<void*>(shards_), std::align_val_t{alignof(padded_shard<Machine>)});
}

}  // namespace detail

/// Counter engine that needs nothing but atomics.
///
/// `Machine` supplies `atomic<T>`, `shard_hint()` (any number; threads that run
/// at the same time had better get different ones) and `shard_count()`. `Shards` is where
/// the shards are.
///
/// Lifetime: neither copyable nor movable.
/// Threads:  try_add() and peek() from any thread; the others one at a time.
/// Blocking: never. try_add() is lock-free: it retries only when another
///           thread changed the same shard.
template <class Machine, class Shards = detail::allocated_shards<Machine>>
class sharded_counter {
 public:
  using width = detail::shard_width;

  explicit sharded_counter(bool starts_open, width shards = width::machine) noexcept
      : shards_(starts_open ? 0 : closed, shards) {}
  sharded_counter(const sharded_counter&) = delete;
  sharded_counter& operator=(const sharded_counter&) = delete;

  /// Counts n unless closed. Cost: one compare-and-swap.
  [[nodiscard]] bool try_add(std::intptr_t n) noexcept;
  /// Closes every shard; their counts stay as they are from then on.
  void begin_close() noexcept;
  /// Returns: the sum since open(); no grace period needed.
  [[nodiscard]] std::intptr_t finish_close() noexcept { return peek(); }
  /// Opens again with a sum of 0.
  void open() noexcept;
  /// Opens again with the sum it had.
  void reopen() noexcept;
  /// Returns: the sum as it looks now; exact while closed.
  [[nodiscard]] std::intptr_t peek() const noexcept;

 private:
  static constexpr std::uintptr_t closed = 1;

  /// The sum of a shard; two's complement, so the shift keeps the sign.
  static constexpr std::intptr_t count_of(std::uintptr_t value) noexcept {
    return static_cast<std::intptr_t>(value) >> 1;
  }

  Shards shards_;
};

template <class Machine, class Shards>
bool sharded_counter<Machine, Shards>::try_add(std::intptr_t n) noexcept {
  const std::size_t last = shards_.size() - 1;
  auto& mine = shards_[last == 0 ? 0 : Machine::shard_hint() & last];
  const std::uintptr_t change = static_cast<std::uintptr_t>(n) << 1;
  // [add.guess] relaxed: a guess; [add.commit] decides. A stale "closed" is a
  // value the shard had during this call or before it, which is what a caller
  // racing with open() may see anyway.
  std::uintptr_t seen = mine.load(std::memory_order_relaxed);
  do {
    if ((seen & closed) != 0) return false;
    // [add.commit] acq_rel: release pairs with [peek.shard], whose caller sees all
    // that was done before this add; acquire pairs with [open.shard] and
    // [reopen.shard]. Compare-and-swap, not fetch_add: an add that had to be
    // taken back could be captured by the next close before it is.
  } while (!mine.compare_exchange_weak(seen, seen + change, std::memory_order_acq_rel,
                                       std::memory_order_relaxed));
  return true;
}

template <class Machine, class Shards>
void sharded_counter<Machine, Shards>::begin_close() noexcept {
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    // [close.mark] relaxed: [peek.shard] reads this or a later value, and so acquires every
    // [add.commit] that came before; who is refused is told nothing ([add.guess]).
    (void)shards_[i].fetch_or(closed, std::memory_order_relaxed);
  }
}

template <class Machine, class Shards>
void sharded_counter<Machine, Shards>::open() noexcept {
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    // [open.shard] release: pairs with [add.commit]; a closed shard has no other
    // writer, so a plain store loses nothing.
    shards_[i].store(0, std::memory_order_release);
  }
}

template <class Machine, class Shards>
void sharded_counter<Machine, Shards>::reopen() noexcept {
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    // [reopen.shard] release: pairs with [add.commit]; the count stays.
    (void)shards_[i].fetch_and(~closed, std::memory_order_release);
  }
}

template <class Machine, class Shards>
std::intptr_t sharded_counter<Machine, Shards>::peek() const noexcept {
  std::uintptr_t sum = 0;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    // [peek.shard] acquire: pairs with [add.commit]: what was done before the adds that the
    // sum counts is visible.
    sum += static_cast<std::uintptr_t>(count_of(shards_[i].load(std::memory_order_acquire)));
  }
  return static_cast<std::intptr_t>(sum);
}

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_SHARDED_COUNTER_HPP
