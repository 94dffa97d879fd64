// SPDX-License-Identifier: MIT
//
// pmgate/detail/ref_word.hpp - the shared word of a percpu_ref: a count, a bias,
// and whether the ref is dying.
//
// All three live in one word, so that "alive, and one more" is decided by one
// operation, and so is "no bias any more, and this is the sum". While part of
// the count may be elsewhere the bias keeps the word far from zero.
#ifndef PMGATE_DETAIL_REF_WORD_HPP
#define PMGATE_DETAIL_REF_WORD_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/platform/concept.hpp>

namespace pmgate::detail {

/// Count, bias and dying bit of a percpu_ref.
///
/// Threads: every member from any thread; mark_dying(), mark_dying_and_get(), revive(),
///          add_bias() and fold() are serialised by the ref's lock.
/// Blocking: never.
template <platform Platform>
class ref_word {
 public:
  explicit ref_word(std::uint64_t count, bool biased, bool dying) noexcept
      : word_(count * one + (biased ? bias : 0) + (dying ? dying_bit : 0)) {}

  /// Precondition: the count is not zero, or the word is biased.
  void get(std::intptr_t n) noexcept {
    // [get.shared] relaxed: the caller's own reference keeps the count from zero.
    (void)word_.fetch_add(units(n), std::memory_order_relaxed);
  }

  /// Returns: false, and nothing changed, at zero or, if `live` is asked for, dying.
  [[nodiscard]] bool try_get(std::intptr_t n, bool live) noexcept {
    // [try_get.guess] relaxed: a guess; [try_get.commit] decides.
    std::uint64_t seen = word_.load(std::memory_order_relaxed);
    do {
      if (at_zero(seen) || (live && (seen & dying_bit) != 0)) return false;
      // [try_get.commit] acquire: pairs with [revive.word]: what was done before the ref
      // came back is visible. What is done from here on, [put.shared] hands on.
    } while (!word_.compare_exchange_weak(seen, seen + units(n), std::memory_order_acquire,
                                          std::memory_order_relaxed));
    return true;
  }

  /// Returns: true if these were the last; the word may be gone if they were not.
  [[nodiscard]] bool put(std::intptr_t n) noexcept {
    // [put.shared] acq_rel: release pairs with the acquire of whichever put comes
    // last, and with [zero.read]: all puts happen-before release and is_zero().
    const std::uint64_t old = word_.fetch_sub(units(n), std::memory_order_acq_rel);
    return n != 0 && at_zero(old - units(n));
  }

  /// put() of one reference that is known to be there, unless somebody put one too many.
  /// Returns: false, and nothing changed, if none is left; last: as put().
  [[nodiscard]] bool try_put(bool& last) noexcept {
    // [held.guess] relaxed: a guess; [held.put] decides.
    std::uint64_t seen = word_.load(std::memory_order_relaxed);
    do {
      if (at_zero(seen)) return false;
      // [held.put] acquire: pairs with [put.shared], for who is the last. What the caller did
      // is handed on by the lock under which he killed.
    } while (!word_.compare_exchange_weak(seen, seen - one, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    last = at_zero(seen - one);
    return true;
  }

  void mark_dying() noexcept {
    // [kill.mark] relaxed: nobody is told anything by it. Who comes later on the word finds
    // it there ([try_get.commit] compares the word as it is); what the killer did before is
    // handed on by his own [put.shared], or by [fold.word], which comes later under the
    // ref's lock and puts his reference, and by [revive.word].
    (void)word_.fetch_or(dying_bit, std::memory_order_relaxed);
  }

  /// Dying, and one reference more.  Precondition: not dying, not zero.
  void mark_dying_and_get() noexcept {
    // [kill.get] relaxed: as [kill.mark]. Adding sets the bit, which is clear.
    (void)word_.fetch_add(one + dying_bit, std::memory_order_relaxed);
  }

  /// Not dying, and one reference more.  Precondition: dying.
  /// Returns: true if the count was zero.
  bool revive() noexcept {
    // [revive.word] acq_rel: release pairs with [try_get.commit]; acquire pairs with
    // [put.shared], for who is told that the count was zero. Adding one to the word clears
    // the dying bit, which is set, and carries into the count: both in one step.
    return at_zero(word_.fetch_add(one - dying_bit, std::memory_order_acq_rel));
  }

  void add_bias() noexcept {
    // [bias.add] relaxed: published by the counter's open(); who sees it open may count
    // there, and the word cannot be taken for zero any more.
    (void)word_.fetch_add(bias, std::memory_order_relaxed);
  }

  /// Takes the bias off and adds what was counted elsewhere; may be what makes it zero.
  /// Returns: the count then.
  std::int64_t fold(std::intptr_t elsewhere) noexcept {
    const std::uint64_t change = units(elsewhere) - bias;
    // [fold.word] acq_rel: as [put.shared]: release hands on what came before the puts
    // elsewhere to whichever put comes last, acquire is for being the last. One operation:
    // adding the counters one by one, or taking the bias off first, could make the word
    // zero while references exist.
    return count_of(word_.fetch_add(change, std::memory_order_acq_rel) + change);
  }

  [[nodiscard]] bool is_dying() const noexcept {
    // [dying.read] relaxed: a hint, or read under the ref's lock; [try_get.commit] decides.
    return (word_.load(std::memory_order_relaxed) & dying_bit) != 0;
  }

  [[nodiscard]] bool is_zero() const noexcept {
    // [zero.read] acquire: pairs with [put.shared].
    return at_zero(word_.load(std::memory_order_acquire));
  }

  /// Returns: the count, without the bias if it is on.
  [[nodiscard]] std::int64_t count(bool biased) const noexcept {
    // [count.read] relaxed: for diagnostics; exact while nothing moves.
    return count_of(word_.load(std::memory_order_relaxed) - (biased ? bias : 0));
  }

 private:
  static constexpr std::uint64_t dying_bit = 1;
  static constexpr std::uint64_t one = 2;
  static constexpr std::uint64_t bias = std::uint64_t{1} << 63;

  static constexpr std::uint64_t units(std::intptr_t n) noexcept {
    return static_cast<std::uint64_t>(n) * one;
  }
  static constexpr bool at_zero(std::uint64_t word) noexcept { return word < one; }
  static constexpr std::int64_t count_of(std::uint64_t word) noexcept {
    return static_cast<std::int64_t>(word) >> 1;
  }

  typename Platform::template atomic<std::uint64_t> word_;
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_REF_WORD_HPP
