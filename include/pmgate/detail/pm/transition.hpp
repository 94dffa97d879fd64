// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/transition.hpp - how far a system sleep has come, and whose it is.
//
// One place for both, and one table for what may follow. The one rule to know: going down
// takes one phase after another, with one event, and whatever was begun is undone from where
// it came to.
//
// Counterpart: none in the kernel, whose callers are trusted to keep the order.
#ifndef PMGATE_DETAIL_PM_TRANSITION_HPP
#define PMGATE_DETAIL_PM_TRANSITION_HPP

#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/status.hpp>

namespace pmgate::detail {

/// How far down; the order counts.
enum class progress : std::uint8_t {
  awake,       // no transition goes on
  completing,  // prepare() runs or has failed, or resume() was called: complete() is left
  prepared,
  resuming,  // suspend() runs or has failed: resume() is left
  suspended,
  late,
  noirq,
};

/// The transition of a tree.
///
/// Threads:  as a plain object; the lock of the tree guards it.
/// Blocking: no.
/// Misuse:   a phase that does not follow, begins within another one, goes down with another
///           event than the others, or comes from somebody else, is reported.
template <platform Platform>
class transition {
 public:
  [[nodiscard]] bool is_on() const noexcept { return at_ != progress::awake; }

  /// Returns: ok: the phase may run, until end_phase(); busy, invalid: it may not, and
  /// nothing has changed.
  [[nodiscard]] status begin(pm::phase next, pm::event what) noexcept;
  void end_phase() noexcept { runs_ = false; }
  /// The same for a prepare() or suspend() that has done all it had to.
  void end_phase(progress where) noexcept {
    at_ = where;
    runs_ = false;
  }
  void end() noexcept { end_phase(progress::awake); }

  void save_image() noexcept {
    image_at_ = at_;
    image_event_ = event_;
  }
  /// Whoever puts it back goes on with it.
  void put_back_image() noexcept {
    at_ = image_at_;
    event_ = image_event_;
    owner_ = Platform::this_thread();
  }

 private:
  /// A phase, from where to where it is legal, and what is reached by beginning it.
  struct rule {
    progress from, to, then;
  };
  static constexpr rule rules[pm::phase_count] = {
      {progress::awake, progress::awake, progress::completing},           // prepare
      {progress::prepared, progress::prepared, progress::resuming},       // suspend
      {progress::suspended, progress::suspended, progress::late},         // suspend_late
      {progress::late, progress::late, progress::noirq},                  // suspend_noirq
      {progress::noirq, progress::noirq, progress::late},                 // resume_noirq
      {progress::late, progress::late, progress::suspended},              // resume_early
      {progress::completing, progress::suspended, progress::completing},  // resume
      {progress::completing, progress::prepared, progress::completing},   // complete
  };

  bool runs_ = false;  // a phase does
  progress at_ = progress::awake;
  pm::event event_ = pm::event::suspend;  // of prepare()
  progress image_at_ = progress::awake;
  pm::event image_event_ = pm::event::suspend;
  typename Platform::thread_id owner_{};  // who called prepare(), or put back the image
};

template <platform Platform>
status transition<Platform>::begin(pm::phase next, pm::event what) noexcept {
  const rule& legal = rules[static_cast<unsigned>(next)];
  const bool is_mine = owner_ == Platform::this_thread();
  if (is_on() && (next == pm::phase::prepare || !is_mine)) {
    Platform::misuse(next == pm::phase::prepare ? "prepare() during a transition"
                                                : "a phase of somebody else's transition");
    return status::busy;
  }
  if (runs_) {
    Platform::misuse("a phase of system sleep from within another one");
    return status::busy;
  }
  if (at_ < legal.from || legal.to < at_) {
    Platform::misuse("a phase of system sleep out of order");
    return status::invalid;
  }
  if (next == pm::phase::prepare) event_ = what;
  if (goes_down(next) && what != event_) {
    Platform::misuse("devices go down with another event than they were prepared for");
    return status::invalid;
  }
  runs_ = true;
  at_ = legal.then;
  owner_ = Platform::this_thread();
  return status::ok;
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_PM_TRANSITION_HPP
