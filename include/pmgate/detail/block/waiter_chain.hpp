// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/waiter_chain.hpp - the lists in which gates keep waiters.
#ifndef PMGATE_DETAIL_BLOCK_WAITER_CHAIN_HPP
#define PMGATE_DETAIL_BLOCK_WAITER_CHAIN_HPP

#include <atomic>
#include <cstdint>
#include <utility>

#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/platform/concept.hpp>

namespace pmgate::detail {

/// A list of waiters, first come first.
///
/// Threads: as a plain object; the gate's lock guards the queue of a gate.
template <platform Platform>
class waiter_chain {
 public:
  using waiter = basic_gate_waiter<Platform>;

  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }
  [[nodiscard]] waiter* first() const noexcept { return first_; }
  static waiter* next(const waiter& of) noexcept { return of.next_; }

  [[nodiscard]] bool contains(const waiter& which) const noexcept {
    for (const waiter* at = first_; at != nullptr; at = at->next_) {
      if (at == &which) return true;
    }
    return false;
  }
  void push_back(waiter& which) noexcept {
    which.next_ = nullptr;
    which.previous_ = last_;
    (last_ != nullptr ? last_->next_ : first_) = &which;
    last_ = &which;
  }
  void push_front(waiter& which) noexcept {
    which.next_ = first_;
    which.previous_ = nullptr;
    (first_ != nullptr ? first_->previous_ : last_) = &which;
    first_ = &which;
  }
  void remove(waiter& which) noexcept {
    (which.previous_ != nullptr ? which.previous_->next_ : first_) = which.next_;
    (which.next_ != nullptr ? which.next_->previous_ : last_) = which.previous_;
  }
  /// Takes one out, to be resumed with this result by resume_all() of `ready`.
  void make_ready(waiter& which, status result, waiter_chain& ready) noexcept {
    remove(which);
    which.result_ = result;
    ready.push_back(which);
  }
  /// Calls them in order; to be called outside every lock.
  void resume_all() noexcept {
    waiter* at = std::exchange(first_, nullptr);
    last_ = nullptr;
    while (at != nullptr) std::exchange(at, at->next_)->resume();  // and it may be gone
  }

 private:
  waiter* first_ = nullptr;
  waiter* last_ = nullptr;
};

/// Those who wait for a drain: added and taken without a lock, since the one who
/// takes them is the last exit(), which may run anywhere.
///
/// Threads: add() and close() from any thread; cancel() and reopen() under a lock.
template <platform Platform>
class drain_waiters {
 public:
  using waiter = basic_gate_waiter<Platform>;
  using chain = waiter_chain<Platform>;

  [[nodiscard]] bool empty() const noexcept {
    // [drain.peek] relaxed: for the destructor of the gate, when nobody else is there.
    return !holds_waiters(head_.load(std::memory_order_relaxed));
  }

  /// True from close() to reopen().
  [[nodiscard]] bool is_closed() const noexcept {
    // [drain.shut] relaxed: a look; who acts on it waits for the drain to be told of.
    return head_.load(std::memory_order_relaxed) == closed;
  }

  /// Returns: false, and nothing is kept, while is_closed().
  [[nodiscard]] bool add(waiter& which) noexcept { return splice(which, which); }

  /// Takes everybody, and nobody is added any more.
  [[nodiscard]] chain close() noexcept {
    // [drain.close] acquire: pairs with [drain.add]. Whoever finds it closed waits for
    // the drain itself before he acts on that.
    return unstack(head_.exchange(closed, std::memory_order_acquire));
  }

  /// Whoever is added from now on waits for the next drain.
  void reopen() noexcept {
    // [drain.reopen] relaxed: whoever finds it closed takes the gate's lock and looks again.
    head_.store(nobody, std::memory_order_relaxed);
  }

  /// Takes one out.
  ///
  /// Returns: true if it was here. If the drain came meanwhile, those that were here
  /// with it are in `late` for the caller to resume.
  [[nodiscard]] bool cancel(waiter& which, chain& late) noexcept {
    // [drain.cancel] relaxed: a guess; [drain.take] decides.
    std::uintptr_t seen = head_.load(std::memory_order_relaxed);
    do {
      if (!holds_waiters(seen)) return false;
      // [drain.take] acquire: pairs with [drain.add].
    } while (!head_.compare_exchange_weak(seen, nobody, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    chain others = unstack(seen);
    const bool found = others.contains(which);
    if (found) others.remove(which);
    late = restack(others);
    return found;
  }

 private:
  static constexpr std::uintptr_t nobody = 0;
  static constexpr std::uintptr_t closed = 1;  // no waiter lies at an odd address

  static bool holds_waiters(std::uintptr_t head) noexcept { return head > closed; }
  static waiter* waiter_at(std::uintptr_t head) noexcept {
    return holds_waiters(head) ? reinterpret_cast<waiter*>(head) : nullptr;
  }

  /// Puts a stack of waiters, top to bottom, onto the head.
  bool splice(waiter& top, waiter& bottom) noexcept {
    // [drain.look] relaxed: a guess; [drain.add] decides. The waiter below is not touched.
    std::uintptr_t seen = head_.load(std::memory_order_relaxed);
    do {
      if (seen == closed) return false;
      bottom.next_ = waiter_at(seen);
      // [drain.add] release: pairs with [drain.close] and [drain.take].
    } while (!head_.compare_exchange_weak(seen, reinterpret_cast<std::uintptr_t>(&top),
                                          std::memory_order_release,
                                          std::memory_order_relaxed));
    return true;
  }
  /// Returns: those that the drain has overtaken.
  chain restack(const chain& waiters) noexcept {
    waiter* const bottom = waiters.first();
    waiter* top = nullptr;
    for (waiter* at = bottom; at != nullptr;) {
      waiter* const next = at->next_;
      at->next_ = top;
      top = std::exchange(at, next);
    }
    if (top == nullptr || splice(*top, *bottom)) return {};
    bottom->next_ = nullptr;
    return unstack(reinterpret_cast<std::uintptr_t>(top));
  }
  static chain unstack(std::uintptr_t head) noexcept {
    chain waiters;
    for (waiter* at = waiter_at(head); at != nullptr;) {
      waiters.push_front(*std::exchange(at, at->next_));
    }
    return waiters;
  }

  typename Platform::template atomic<std::uintptr_t> head_{nobody};
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_BLOCK_WAITER_CHAIN_HPP
