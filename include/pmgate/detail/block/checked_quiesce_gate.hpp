// SPDX-License-Identifier: MIT
//
// pmgate/detail/block/checked_quiesce_gate.hpp - the quiesce gate over checked_platform.
//
// As in checked_freeze_gate.hpp: given back is booked before, taken after.
//
// Hosted: <mutex> <string>, by way of platform/checked.hpp
#ifndef PMGATE_DETAIL_BLOCK_CHECKED_QUIESCE_GATE_HPP
#define PMGATE_DETAIL_BLOCK_CHECKED_QUIESCE_GATE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/detail/block/checked_waiter.hpp>
#include <pmgate/platform/checked.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// basic_quiesce_gate with checks; see there for what is not said here.
///
/// Refused:  with a report and status::deadlock, nothing changed: waiting for the sections
///           from inside one.
/// Misuse:   also an end_dispatch() without a section, and destruction while in use.
template <platform Base>
class basic_quiesce_gate<checked_platform<Base>> {
  using core = detail::checked_core<Base>;
  using inner = basic_quiesce_gate<core>;
  using trust = detail::hold_trust;

 public:
  using waiter = basic_gate_waiter<checked_platform<Base>>;
  using ticket = detail::checked_ticket<basic_quiesce_gate>;

  /// name: for reports, not copied; null: it is known by its address.
  explicit basic_quiesce_gate(const char* name = nullptr) noexcept
      : life_("quiesce_gate", this, name) {}
  ~basic_quiesce_gate() { life_.end(); }
  basic_quiesce_gate(const basic_quiesce_gate&) = delete;
  basic_quiesce_gate& operator=(const basic_quiesce_gate&) = delete;

  void set_name(const char* name) noexcept { core::registry().name_object(life_.id, name); }

  [[nodiscard]] bool try_dispatch(call_site where = call_site::current()) noexcept {
    const bool started = start_section();
    if (started) (void)note_section(where, trust::likely, false);
    return started;
  }
  void end_dispatch(call_site where = call_site::current()) noexcept {
    if (core::registry().give_back(core::here(), section(), 1) == 0) {
      const call under_way(life_.id, where);
      core::misuse("end_dispatch() without a section");
      return;
    }
    inner_.end_dispatch();
  }
  [[nodiscard]] ticket dispatch(call_site where = call_site::current()) noexcept {
    if (!start_section()) return ticket();
    return ticket(this, note_section(where, trust::certain, true));
  }
  /// hand_over() of this gate.
  void note_hand_over(std::intptr_t n = 1) noexcept {
    core::registry().let_go(core::here(), section(), n);
  }

  status quiesce(call_site where = call_site::current()) noexcept {
    if (would_wait_for_itself(where)) return status::deadlock;
    quiesce_nowait(where);
    return wait_quiesced(where);
  }
  void quiesce_nowait(call_site where = call_site::current()) noexcept {
    inner_.quiesce_nowait();
    (void)core::registry().hold(core::here(), {.node = closing(), .where = where, .pending = {}});
  }
  status wait_quiesced(call_site where = call_site::current()) noexcept {
    if (would_wait_for_itself(where)) return status::deadlock;
    core::registry().before_wait(core::here(), section(), where);
    const call under_way(life_.id, where);
    sleeper self;
    bool asked = false;
    return detail::checked_wait<Base>(
        section(), "wait_quiesced()", where,
        [&](auto deadline, status& result) noexcept {
          if (!asked) {
            asked = true;
            result = inner_.quiesced_or_wait(self);
            if (result != status::in_progress) return true;
          }
          return self.sleep_until(deadline, result);
        },
        [&]() noexcept { return inner_.wait_quiesced(); });
  }
  [[nodiscard]] status wait_quiesced_until(typename Base::time_point deadline,
                                           call_site where = call_site::current()) noexcept {
    if (would_wait_for_itself(where)) return status::deadlock;
    core::registry().before_wait(core::here(), section(), where);
    const call under_way(life_.id, where);
    return inner_.wait_quiesced_until(deadline);
  }
  [[nodiscard]] status quiesce_or_wait(waiter& queued,
                                       call_site where = call_site::current()) noexcept {
    quiesce_nowait(where);
    return quiesced_or_wait(queued, where);
  }
  [[nodiscard]] status quiesced_or_wait(waiter& queued,
                                        call_site where = call_site::current()) noexcept {
    return queued.queue(life_.id, 0, "quiesced_or_wait()", where,
                        [&](auto& inside) noexcept { return inner_.quiesced_or_wait(inside); });
  }
  [[nodiscard]] bool cancel(waiter& queued) noexcept {
    const bool cancelled = inner_.cancel(queued.shell_);
    if (cancelled) queued.forget();
    return cancelled;
  }
  [[nodiscard]] basic_quiesced<checked_platform<Base>> quiesced() noexcept {
    return basic_quiesced<checked_platform<Base>>(*this);
  }
  bool unquiesce(call_site where = call_site::current()) noexcept {
    const call under_way(life_.id, where);
    const detail::checked_id id = life_.id;
    (void)core::registry().give_back(core::here(), closing(), 1);
    const bool last = inner_.unquiesce();
    if (last) core::registry().forget_parked(id);
    return last;
  }

  [[nodiscard]] int depth() const noexcept { return inner_.depth(); }

  /// For dump(): what the registry knows.
  template <class Sink>
  void describe_to(Sink& sink) const noexcept {
    sink(core::registry().describe(life_.id).c_str());
  }
  template <class Sink>
  void holders_to(Sink& sink) const noexcept {
    const detail::checked_caller me = core::here();
    sink(core::registry().holders(me, section()).c_str());
    const auto closers = core::registry().holders(me, closing());
    if (!closers.empty()) {
      sink("\n  quiesced:");
      sink(closers.c_str());
    }
    sink(core::registry().waiters(me, life_.id).c_str());
  }

 private:
  friend ticket;
  friend detail::many_gates;
  using call = detail::checked_call<Base>;

  /// Sleeps for a waiter of the gate inside, since that has no wait with a deadline.
  struct sleeper : basic_gate_waiter<core> {
    sleeper() noexcept : basic_gate_waiter<core>(&wake) {}
    static void wake(basic_gate_waiter<core>& self, status result) noexcept {
      auto& me = static_cast<sleeper&>(self);
      me.result = result;
      me.done.publish_add(1);  // the last touch
    }
    bool sleep_until(typename Base::time_point deadline, status& answer) noexcept {
      // [sleeper.done] acquire: pairs with publish_add() in wake(): the result is there.
      while (done.load(std::memory_order_acquire) == 0) {
        if (!done.wait_until(0, deadline) &&
            // [sleeper.last] acquire: as [sleeper.done].
            done.load(std::memory_order_acquire) == 0) {
          return false;
        }
      }
      done.settle();
      answer = result;
      return true;
    }
    typename Base::wait_word done{0};
    status result = status::ok;
  };

  [[nodiscard]] detail::checked_node section() const noexcept {
    return {life_.id, detail::hold_class::dispatch};
  }
  [[nodiscard]] detail::checked_node closing() const noexcept {
    return {life_.id, detail::hold_class::quiesced};
  }
  bool start_section() noexcept {
    const bool started = inner_.try_dispatch();
    if (!started) core::registry().note_parked(core::here(), life_.id);
    return started;
  }
  std::uint64_t note_section(call_site where, trust how_sure, bool by_ticket) noexcept {
    return core::registry().hold(core::here(), {.node = section(),
                                                .where = where,
                                                .trust = how_sure,
                                                .ticket = by_ticket,
                                                .pending = {}});
  }
  bool would_wait_for_itself(call_site where) noexcept {
    return core::registry().refuse_wait(core::here(), section(), where,
                                        "a thread would wait for its own section");
  }
  /// As many_gates uses it: after a grace period.
  bool is_quiet() noexcept { return detail::many_gates::is_quiet(inner_); }
  void leave_ticket(std::uint64_t serial) noexcept {
    core::registry().give_back(core::here(), serial);
    inner_.end_dispatch();
  }
  void let_ticket_go(std::uint64_t serial, bool still_ticket) noexcept {
    core::registry().let_go(serial, still_ticket);
  }

  detail::checked_life<Base> life_;  // destroyed last
  inner inner_;
};

}  // namespace pmgate

#endif  // PMGATE_DETAIL_BLOCK_CHECKED_QUIESCE_GATE_HPP
