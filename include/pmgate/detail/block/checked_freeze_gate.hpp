// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/checked_freeze_gate.hpp - the freeze gate over checked_platform: a
// freeze gate, and a registry that is told before and after.
//
// The order matters. What is given back is booked before the gate inside learns of it:
// afterwards the gate may be gone. What is taken is booked once it has been taken.
//
// Hosted: <mutex> <string>, by way of platform/checked.hpp
#ifndef PMGATE_DETAIL_BLOCK_CHECKED_FREEZE_GATE_HPP
#define PMGATE_DETAIL_BLOCK_CHECKED_FREEZE_GATE_HPP

#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/detail/block/checked_waiter.hpp>
#include <pmgate/platform/checked.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// basic_freeze_gate with checks; see there for what is not said here.
///
/// Lifetime, Threads, Blocking, Orders: as there, but for signal handlers: in none.
/// Refused:  with a report and status::deadlock, nothing changed: entering without nowait a
///           gate one froze; waiting without a deadline for a drain while one is inside, or
///           while one quiesced what the work inside waits for.
/// Misuse:   also an exit() without an entry, and the destruction of a gate in use.
template <platform Base>
class basic_freeze_gate<checked_platform<Base>> {
  using core = detail::checked_core<Base>;
  using inner = basic_freeze_gate<core>;
  using trust = detail::hold_trust;

 public:
  using count_type = typename inner::count_type;
  using waiter = basic_gate_waiter<checked_platform<Base>>;
  using time_point = typename Base::time_point;
  using resume_fn = typename inner::resume_fn;
  using ticket = detail::checked_ticket<basic_freeze_gate>;

  /// name: for reports, not copied; null: it is known by its address.
  explicit basic_freeze_gate(gate_start start = gate_start::percpu,
                             const char* name = nullptr) noexcept
      : life_("freeze_gate", this, name), inner_(start) {}
  ~basic_freeze_gate() { life_.end(); }
  basic_freeze_gate(const basic_freeze_gate&) = delete;
  basic_freeze_gate& operator=(const basic_freeze_gate&) = delete;

  void set_name(const char* name) noexcept { core::registry().name_object(life_.id, name); }

  // -- entering and leaving

  [[nodiscard]] status enter(enter_flags flags = {},
                             call_site where = call_site::current()) noexcept {
    return enter_unless(never, flags, where);
  }
  template <class Gone>
  [[nodiscard]] status enter_unless(Gone gone, enter_flags flags = {},
                                    call_site where = call_site::current()) noexcept {
    const status entered = wait_to_enter(gone, flags, where);
    if (entered == status::ok) note_entry(where, trust::likely);
    return entered;
  }
  [[nodiscard]] status enter_until(time_point deadline, enter_flags flags = {},
                                   call_site where = call_site::current()) noexcept {
    return enter_unless_until(never, deadline, flags, where);
  }
  template <class Gone>
  [[nodiscard]] status enter_unless_until(Gone gone, time_point deadline, enter_flags flags = {},
                                          call_site where = call_site::current()) noexcept {
    const std::uint64_t wait =
        core::registry().begin_wait(core::here(), life_.id, "enter_until()", where);
    const status entered = inner_.enter_unless_until(gone, deadline, flags);
    core::registry().end_wait(wait);
    if (entered == status::ok) note_entry(where, trust::likely);
    return entered;
  }
  [[nodiscard]] bool try_enter(enter_flags flags = {},
                               call_site where = call_site::current()) noexcept {
    const bool entered = inner_.try_enter(flags);
    if (entered) note_entry(where, trust::likely);
    return entered;
  }
  void exit(std::intptr_t n = 1, call_site where = call_site::current()) noexcept {
    const std::intptr_t there = core::registry().give_back(core::here(), entry(), n);
    if (there < n) {
      const call under_way(life_.id, where);
      core::misuse("exit() of a gate that was not entered as often");
    }
    if (there > 0) inner_.exit(there);  // the last touch
  }
  [[nodiscard]] ticket hold(enter_flags flags = {},
                            call_site where = call_site::current()) noexcept {
    if (wait_to_enter(never, flags, where) != status::ok) return ticket();
    return ticket(
        this, core::registry().hold(
                  core::here(), {.node = entry(), .where = where, .ticket = true, .pending = {}}));
  }
  void get(std::intptr_t n = 1, call_site where = call_site::current()) noexcept {
    note_entry(where, trust::loose, n);
    inner_.get(n);
  }
  [[nodiscard]] bool try_get(call_site where = call_site::current()) noexcept {
    const bool got = inner_.try_get();
    if (got) note_entry(where, trust::loose);
    return got;
  }
  [[nodiscard]] status enter_or_wait(waiter& queued, enter_flags flags = {},
                                     call_site where = call_site::current()) noexcept {
    const status entered = queued.queue(
        life_.id, life_.id, "enter_or_wait()", where,
        [&](auto& inside) noexcept { return inner_.enter_or_wait(inside, flags); });
    if (entered == status::ok) note_entry(where, trust::loose);
    return entered;
  }
  [[nodiscard]] bool cancel(waiter& queued) noexcept {
    const bool cancelled = inner_.cancel(queued.shell_);
    if (cancelled) queued.forget();
    return cancelled;
  }
  [[nodiscard]] basic_entered<checked_platform<Base>> entered(enter_flags flags = {}) noexcept {
    return basic_entered<checked_platform<Base>>(*this, flags);
  }
  /// hand_over() of this gate.
  void note_hand_over(std::intptr_t n = 1) noexcept {
    core::registry().let_go(core::here(), entry(), n);
  }

  // -- closing and opening

  status freeze(call_site where = call_site::current()) noexcept {
    if (would_wait_for_itself(where)) return status::deadlock;
    const status started = freeze_start(where);
    if (started != status::ok) return started;
    const status drained = freeze_wait(where);
    if (drained == status::deadlock) unfreeze(where);
    return drained;
  }
  status freeze_start(call_site where = call_site::current()) noexcept {
    bool ignored = false;
    return freeze_start(ignored, where);
  }
  status freeze_start(bool& closed_it, call_site where = call_site::current()) noexcept {
    return note_freeze(where, trust::certain,
                       [&]() noexcept { return inner_.freeze_start(closed_it); });
  }
  status freeze_wait(call_site where = call_site::current()) noexcept {
    if (would_wait_for_itself(where)) return status::deadlock;
    core::registry().before_wait(core::here(), entry(), where);
    const call under_way(life_.id, where);
    const status drained = detail::checked_wait<Base>(
        entry(), "freeze_wait()", where,
        [&](time_point deadline, status&) noexcept { return inner_.freeze_wait_until(deadline); },
        [&]() noexcept { return inner_.freeze_wait(); });
    if (drained == status::ok) core::registry().note_drained(core::here(), id_copy());
    return drained;
  }
  [[nodiscard]] bool freeze_wait_until(time_point deadline,
                                       call_site where = call_site::current()) noexcept {
    const detail::checked_id id = life_.id;
    const detail::checked_node what = entry();
    const std::int64_t limit = core::registry().options().limit_ms;
    const std::uint64_t wait =
        core::registry().begin_wait(core::here(), id, "freeze_wait_until()", where);
    bool drained = false;
    for (;;) {
      const time_point turn = Base::now() + Base::milliseconds(limit);
      const bool last = limit <= 0 || !(turn < deadline);
      drained = inner_.freeze_wait_until(last ? deadline : turn);
      if (drained || last) break;
      core::registry().long_wait(core::here(), what, wait, "freeze_wait_until()");
    }
    core::registry().end_wait(wait);
    if (drained) core::registry().note_drained(core::here(), id);
    return drained;
  }
  [[nodiscard]] status freeze_until(time_point deadline,
                                    call_site where = call_site::current()) noexcept {
    const status started = freeze_start(where);
    if (started != status::ok || freeze_wait_until(deadline, where)) return started;
    unfreeze(where);
    return status::timed_out;
  }
  [[nodiscard]] status freeze_or_wait(waiter& queued,
                                      call_site where = call_site::current()) noexcept {
    const status started = freeze_start(where);
    return started == status::ok ? drained_or_wait(queued, where) : started;
  }
  [[nodiscard]] status drained_or_wait(waiter& queued,
                                       call_site where = call_site::current()) noexcept {
    return queued.queue(life_.id, 0, "drained_or_wait()", where,
                        [&](auto& inside) noexcept { return inner_.drained_or_wait(inside); });
  }
  [[nodiscard]] basic_frozen<checked_platform<Base>> frozen() noexcept {
    return basic_frozen<checked_platform<Base>>(*this);
  }
  void unfreeze(call_site where = call_site::current()) noexcept {
    const call under_way(life_.id, where);
    (void)core::registry().give_back(core::here(), freezing(), 1);
    inner_.unfreeze();
  }
  void unfreeze_to_atomic(call_site where = call_site::current()) noexcept {
    const call under_way(life_.id, where);
    (void)core::registry().give_back(core::here(), freezing(), 1);
    inner_.unfreeze_to_atomic();
  }
  status freeze_start_non_owner(call_site where = call_site::current()) noexcept {
    return note_freeze(where, trust::loose, [&]() noexcept { return inner_.freeze_start(); });
  }
  void unfreeze_non_owner(call_site where = call_site::current()) noexcept { unfreeze(where); }

  // -- power management and death

  void set_pm_only() noexcept { inner_.set_pm_only(); }
  void clear_pm_only(call_site where = call_site::current()) noexcept {
    const call under_way(life_.id, where);
    inner_.clear_pm_only();
  }
  void set_runtime_suspended(bool suspended) noexcept { inner_.set_runtime_suspended(suspended); }
  void wake_waiters() noexcept { inner_.wake_waiters(); }
  void set_resume_request(resume_fn ask, void* context) noexcept {
    inner_.set_resume_request(ask, context);
  }
  void mark_dying() noexcept { inner_.mark_dying(); }
  status start_drain(call_site where = call_site::current()) noexcept {
    bool ignored = false;
    return start_drain(ignored, where);
  }
  status start_drain(bool& closed_it, call_site where = call_site::current()) noexcept {
    return note_freeze(where, trust::loose,
                       [&]() noexcept { return inner_.start_drain(closed_it); });
  }
  void switch_to_percpu() noexcept { inner_.switch_to_percpu(); }
  bool switch_to_atomic_sync() noexcept { return inner_.switch_to_atomic_sync(); }

  // -- queries

  [[nodiscard]] int depth() const noexcept { return inner_.depth(); }
  [[nodiscard]] int pm_only() const noexcept { return inner_.pm_only(); }
  [[nodiscard]] bool is_frozen() const noexcept { return inner_.is_frozen(); }
  [[nodiscard]] bool is_dying() const noexcept { return inner_.is_dying(); }
  [[nodiscard]] const count_type& usage() const noexcept { return inner_.usage(); }

  /// For dump(): what the registry knows.
  template <class Sink>
  void describe_to(Sink& sink) const noexcept {
    sink(core::registry().describe(life_.id).c_str());
  }
  template <class Sink>
  void holders_to(Sink& sink) const noexcept {
    const detail::checked_caller me = core::here();
    sink(core::registry().holders(me, entry()).c_str());
    const auto freezers = core::registry().holders(me, freezing());
    if (!freezers.empty()) {
      sink("\n  frozen:");
      sink(freezers.c_str());
    }
    sink(core::registry().waiters(me, life_.id).c_str());
  }

 private:
  friend ticket;
  friend detail::many_gates;
  using call = detail::checked_call<Base>;

  /// The count as many_gates uses it.
  struct count_view {
    inner& gate;
    bool collect(detail::grace_batch& batch) noexcept {
      return detail::many_gates::collect(gate, batch);
    }
    [[nodiscard]] bool is_refused() const noexcept { return detail::many_gates::is_refused(gate); }
  };
  count_view count() noexcept { return {inner_}; }
  void let_drain(bool refused) noexcept { detail::many_gates::let_drain(inner_, refused); }
  status start_freeze(bool& closed_it, bool,
                      call_site where = call_site::current()) noexcept {
    return note_freeze(where, trust::certain, [&]() noexcept {
      return detail::many_gates::begin_freeze(inner_, closed_it);
    });
  }

  [[nodiscard]] detail::checked_id id_copy() const noexcept { return life_.id; }
  [[nodiscard]] detail::checked_node entry() const noexcept {
    return {life_.id, detail::hold_class::entry};
  }
  [[nodiscard]] detail::checked_node freezing() const noexcept {
    return {life_.id, detail::hold_class::frozen};
  }

  void note_entry(call_site where, trust how_sure, std::intptr_t n = 1) noexcept {
    (void)core::registry().hold(
        core::here(),
        {.node = entry(), .where = where, .n = n, .trust = how_sure, .pending = {}});
  }
  /// A freeze of a dying gate keeps nobody waiting: enterers are sent away.
  template <class Start>
  status note_freeze(call_site where, trust how_sure, Start start) noexcept {
    core::registry().before_freeze(core::here(), life_.id, where);
    const call under_way(life_.id, where);
    const status started = start();
    if (started == status::ok) {
      (void)core::registry().hold(core::here(),
                                  {.node = freezing(),
                                   .where = where,
                                   .trust = inner_.is_dying() ? trust::loose : how_sure,
                                   .pending = {}});
    }
    return started;
  }
  bool would_wait_for_itself(call_site where) noexcept {
    const detail::checked_caller me = core::here();
    return core::registry().refuse_wait(
               me, entry(), where,
               "a thread would wait for its own entry (is it left by another one? hand_over() "
               "says so)") ||
           core::registry().refuse_parked(me, life_.id, where);
  }
  static bool never() noexcept { return false; }
  template <class Gone>
  status wait_to_enter(Gone gone, enter_flags flags, call_site where) noexcept {
    if (has(flags, enter_flags::nowait)) return inner_.enter(flags);
    if (!inner_.is_dying() && !gone()) {
      const detail::checked_caller me = core::here();
      if (core::registry().refuse_wait(me, freezing(), where,
                                       "a thread would enter a gate that it has frozen itself")) {
        return status::deadlock;
      }
      core::registry().before_wait(me, freezing(), where);
    }
    if (inner_.try_enter(flags)) return status::ok;
    const call under_way(life_.id, where);
    return detail::checked_wait<Base>(
        freezing(), "enter()", where,
        [&](time_point deadline, status& result) noexcept {
          result = inner_.enter_unless_until(gone, deadline, flags);
          return result != status::timed_out;
        },
        [&]() noexcept { return inner_.enter_unless(gone, flags); });
  }
  void leave_ticket(std::uint64_t serial) noexcept {
    core::registry().give_back(core::here(), serial);
    inner_.exit();
  }
  void let_ticket_go(std::uint64_t serial, bool still_ticket) noexcept {
    core::registry().let_go(serial, still_ticket);
  }

  detail::checked_life<Base> life_;  // destroyed last
  inner inner_;
};

}  // namespace pmgate

#endif  // PMGATE_DETAIL_BLOCK_CHECKED_FREEZE_GATE_HPP
