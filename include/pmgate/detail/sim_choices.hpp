// SPDX-License-Identifier: MIT
//
// pmgate/detail/sim_choices.hpp - the choices that make up a schedule, and which
// schedule comes next.
//
// A schedule is the list of its choices; choices that have one outcome are not in
// it. Depth first: run to the end, then change the last choice that has something
// left. Runs are deterministic, so the choices before it come out as they did.
//
// Hosted: <random> <string> <string_view> <vector>
#ifndef PMGATE_DETAIL_SIM_CHOICES_HPP
#define PMGATE_DETAIL_SIM_CHOICES_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace pmgate::detail {

/// The choices of the schedule that runs now, and of those to come.
class sim_choices {
public:
  /// Outcomes are numbered below this.
  static constexpr int outcomes = 52;

  /// Forgets everything; `by_chance`: next() is not used.
  void reset(bool by_chance, std::uint64_t seed) {
    taken_.clear();
    at_ = replay_end_ = 0;
    by_chance_ = by_chance;
    random_.seed(seed);
  }

  /// Before each schedule.
  void rewind() noexcept {
    at_ = 0;
    if (by_chance_ && replay_end_ == 0) taken_.clear();
  }

  /// Returns: one of the outcomes in `mask`, which has two at least; `first` if
  /// nothing speaks for another one.
  int pick(std::uint64_t mask, int first) {
    if (at_ < taken_.size()) return taken_[at_++].outcome;
    if (by_chance_) first = any_of(mask);
    taken_.push_back({mask & ~bit(first), first});
    ++at_;
    return first;
  }

  /// Notes an outcome that was chosen elsewhere, by chance.
  void note(int outcome) {
    taken_.push_back({0, outcome});
    ++at_;
  }

  /// True while a given schedule is being followed.
  [[nodiscard]] bool replaying() const noexcept { return at_ < replay_end_; }

  /// Turns to the next schedule; false: there is none.
  bool next() {
    taken_.resize(at_);  // nothing behind the end of this schedule counts
    while (!taken_.empty() && taken_.back().rest == 0) taken_.pop_back();
    if (taken_.empty()) return false;
    node& last = taken_.back();
    last.outcome = std::countr_zero(last.rest);
    last.rest &= last.rest - 1;
    return true;
  }

  /// Returns: a random number below n.
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  /// The schedule so far: a letter per choice, a number for how often it repeats.
  [[nodiscard]] std::string text() const {
    std::string out;
    for (std::size_t i = 0; i < at_;) {
      std::size_t end = i + 1;
      while (end < at_ && taken_[end].outcome == taken_[i].outcome) ++end;
      out += letter(taken_[i].outcome);
      if (end - i > 1) out += std::to_string(end - i);
      i = end;
    }
    return out;
  }

  /// Follows a schedule that text() gave, and its first choices after that.
  void replay(std::string_view text) {
    taken_.clear();
    for (std::size_t i = 0; i < text.size();) {
      const int outcome = number(text[i++]);
      std::size_t times = 0;
      while (i < text.size() && text[i] >= '0' && text[i] <= '9') {
        times = times * 10 + static_cast<std::size_t>(text[i++] - '0');
      }
      if (outcome >= 0) taken_.insert(taken_.end(), times == 0 ? 1 : times, node{0, outcome});
    }
    at_ = 0;
    by_chance_ = false;
    replay_end_ = taken_.size();
  }

private:
  struct node {
    std::uint64_t rest;  // outcomes still to be tried
    int outcome;
  };

  static constexpr std::uint64_t bit(int n) noexcept { return std::uint64_t{1} << n; }
  static constexpr char letter(int n) noexcept {
    return static_cast<char>(n < 26 ? 'A' + n : 'a' + (n - 26));
  }
  static constexpr int number(char c) noexcept {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    return c >= 'a' && c <= 'z' ? c - 'a' + 26 : -1;
  }

  int any_of(std::uint64_t mask) {
    for (auto skip = below(static_cast<std::uint64_t>(std::popcount(mask))); skip > 0; --skip) {
      mask &= mask - 1;
    }
    return std::countr_zero(mask);
  }

  std::vector<node> taken_;
  std::size_t at_ = 0;          // choices made in this schedule
  std::size_t replay_end_ = 0;  // so many of them are given
  bool by_chance_ = false;
  std::mt19937_64 random_;
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_SIM_CHOICES_HPP
