// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/tag_allocator.hpp - the tags of a tag set: who gets the free
// ones, and who waits for the next.
//
// The one rule to know: a tag that becomes free is given to the longest waiter that may
// have one, not put up for whoever comes first. So nobody is overtaken, and nobody is
// woken in vain. Those who are called are called by one thread at a time: what they do may
// free tags again, and would nest for ever.
//
// Counterpart: struct sbitmap_queue and hctx_may_queue() of blk-mq (semantics only).
#ifndef PMGATE_DETAIL_BLOCK_TAG_ALLOCATOR_HPP
#define PMGATE_DETAIL_BLOCK_TAG_ALLOCATOR_HPP

#include <atomic>
#include <bit>
#include <cstdint>
#include <utility>

#include <pmgate/block/request.hpp>
#include <pmgate/detail/pm/hooked_list.hpp>

namespace pmgate::detail {

/// The numbers that are free.
class tag_pool {
 public:
  static constexpr unsigned max_depth = 1024;

  /// Numbers from 0 to depth - 1.
  explicit constexpr tag_pool(unsigned depth) noexcept {
    for (unsigned tag = 0; tag < depth && tag < max_depth; ++tag) give(tag);
  }
  [[nodiscard]] bool empty() const noexcept { return words_ == 0; }
  /// Takes the lowest free number.  Precondition: not empty.
  [[nodiscard]] std::uint16_t take() noexcept {
    const auto word = static_cast<unsigned>(std::countr_zero(words_));
    const auto bit = static_cast<unsigned>(std::countr_zero(free_[word]));
    free_[word] &= free_[word] - 1;
    if (free_[word] == 0) words_ &= words_ - 1;
    return static_cast<std::uint16_t>(word * 64 + bit);
  }
  constexpr void give(unsigned tag) noexcept {
    free_[tag / 64] |= std::uint64_t{1} << tag % 64;
    words_ |= std::uint32_t{1} << tag / 64;
  }

 private:
  std::uint64_t free_[max_depth / 64] = {};
  std::uint32_t words_ = 0;  // which words have a free number
};

/// One queue's part of the tags.
struct tag_share {
  unsigned held = 0;
};

/// Tags, waiters, and a fair share for each queue.
///
/// Threads: belongs to a lock of its owner.
template <platform Platform>
class tag_allocator {
 public:
  using request_type = basic_request<Platform>;

  /// Somebody who waits for a tag, asleep on his own stack or to be called.
  struct waiter {
    request_type* rq = nullptr;
    tag_share* share = nullptr;
    void (*call)(waiter&) noexcept = nullptr;  // instead of `given`
    void* context = nullptr;                   // for call
    bool waits = false;                        // no tag yet
    list_hook<waiter> hook;
    typename Platform::wait_word given{0};  // 1: rq has its tag
  };
  using line = hooked_list<waiter, &waiter::hook>;

  explicit constexpr tag_allocator(unsigned depth) noexcept : free_(depth), depth_(depth) {}

  /// Takes a tag, if one is free and the queue has not got its share.
  [[nodiscard]] bool take(request_type& rq, tag_share& share) noexcept {
    if (free_.empty() || share.held >= limit(share)) return false;
    rq.tag_ = free_.take();
    if (share.held++ == 0) ++users_;
    return true;
  }
  void give(std::uint16_t tag, tag_share& share) noexcept {
    free_.give(tag);
    if (--share.held == 0) --users_;
  }

  void wait(waiter& self) noexcept {
    self.waits = true;
    waiting_.push_back(self);
  }
  /// Returns: false if he does not wait: he has been given a tag, or has not come yet.
  bool remove(waiter& self) noexcept {
    if (!self.waits) return false;
    self.waits = false;
    waiting_.remove(self);
    return true;
  }
  /// Gives what is free to those who wait and may have it, oldest first; to be called
  /// after give(). Those who sleep are to be woken with wake().
  void serve(line& sleepers) noexcept {
    for (waiter* each = waiting_.first(); each != nullptr && !free_.empty();) {
      waiter* const next = line::next(*each);
      if (take(*each->rq, *each->share)) {
        (void)remove(*each);
        (each->call != nullptr ? called_ : sleepers).push_back(*each);
      }
      each = next;
    }
  }
  /// Without the lock. The last touch of each: he may be gone.
  static void wake(line& sleepers) noexcept {
    while (!sleepers.is_empty()) {
      waiter& next = *sleepers.first();
      sleepers.remove(next);
      next.given.publish_add(1);
    }
  }

  /// Returns: whether the caller is to call those who have been given tags to be called.
  [[nodiscard]] bool begin_calls() noexcept {
    return !called_.is_empty() && !std::exchange(calling_, true);
  }
  /// Returns: who is to be called next, without the lock; null: that was the last one.
  [[nodiscard]] waiter* next_to_call() noexcept {
    waiter* const next = called_.first();
    if (next != nullptr) {
      called_.remove(*next);
    } else {
      calling_ = false;
    }
    return next;
  }

 private:
  static constexpr unsigned least_share = 4;

  /// What a queue may hold: all it can get, unless others hold some; then an equal part
  /// for each that holds any, but not too few.
  [[nodiscard]] unsigned limit(const tag_share& share) const noexcept {
    const unsigned users = users_ + (share.held == 0 ? 1 : 0);
    const unsigned part = (depth_ + users - 1) / users;
    return part > least_share ? part : least_share;
  }

  tag_pool free_;
  unsigned depth_;
  unsigned users_ = 0;  // queues that hold tags
  bool calling_ = false;
  line waiting_;
  line called_;  // have their tags
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_BLOCK_TAG_ALLOCATOR_HPP
