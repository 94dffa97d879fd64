// SPDX-License-Identifier: MIT
//
// percpu_ref_interleavings.cpp - the count reaches zero once, when nobody is left, in
// every order.
#include <atomic>
#include <optional>

#include <doctest/doctest.h>

#include <pmgate/percpu_ref.hpp>

#include "explore_models.hpp"

namespace {

using namespace interleavings;
using pmgate::ref_init;

/// A ref, what its users share, and what its callbacks saw.
template <class P>
struct counted {
  struct tagged : pmgate::basic_percpu_ref<P> {
    tagged(counted& of, ref_init flags)
        : pmgate::basic_percpu_ref<P>(&on_release, flags), owner(&of) {}
    counted* owner;
  };
  using ref_type = pmgate::basic_percpu_ref<P>;

  explicit counted(ref_init flags = ref_init::allow_reinit) : ref(*this, flags) {}

  static counted& of(ref_type& which) { return *static_cast<tagged&>(which).owner; }
  static void on_release(ref_type& which) noexcept {
    counted& self = of(which);
    (void)self.data.read();
    self.released.fetch_add(1, std::memory_order_acq_rel);
  }
  static void on_confirm(ref_type& which) noexcept {
    counted& self = of(which);
    sim::expect(self.released.load(std::memory_order_relaxed) == 0, "released before confirmed");
    self.confirmed.fetch_add(1, std::memory_order_acq_rel);
  }
  int count_released() const { return self_load(released); }
  int count_confirmed() const { return self_load(confirmed); }
  static int self_load(const sim::atomic<int>& from) {
    return from.load(std::memory_order_acquire);
  }

  sim::guarded<int> data;  // written by one user, read when released
  sim::atomic<int> released{0};
  sim::atomic<int> confirmed{0};
  sim::mutex owner;  // of those who kill and resurrect
  tagged ref;
};

/// With two references taken in advance.
template <class P>
struct held : counted<P> {
  held() { this->ref.get(2); }
  void check() {
    sim::expect(this->count_released() == 1, "not released exactly once");
    sim::expect(this->ref.is_zero() && this->ref.is_dying(), "not at zero at the end");
  }
};

/// Alive at the end: one reference, the initial one.
template <class P>
struct revived : counted<P> {
  void check() {
    sim::expect(!this->ref.is_dying() && !this->ref.is_zero(), "not alive at the end");
    this->ref.switch_to_percpu();  // ends a switch that was refused, too
    const auto seen = this->ref.snapshot();
    sim::expect(!seen.switching, "a switch is under way at the end");
    sim::expect(seen.shared + (seen.biased ? seen.per_cpu : 0) == 1,
                "not one reference at the end");
    this->ref.exit();
  }
};

template <class P>
struct shared_word : revived<P> {
  shared_word() { (void)this->ref.switch_to_atomic(); }
};

/// Destroyed by its own release callback.
template <class P>
struct suicidal {
  struct tagged : pmgate::basic_percpu_ref<P> {
    explicit tagged(suicidal& of) : pmgate::basic_percpu_ref<P>(&on_release), owner(&of) {}
    suicidal* owner;
  };
  static void on_release(pmgate::basic_percpu_ref<P>& which) noexcept {
    suicidal& self = *static_cast<tagged&>(which).owner;
    (void)self.data.read();
    self.ref.reset();
  }
  std::optional<tagged> ref{std::in_place, *this};
  sim::guarded<int> data;
  suicidal() { ref->get(); }
  void check() { sim::expect(!ref.has_value(), "never released"); }
};

/// Comes back in its release callback, once.
template <class P>
struct phoenix {
  struct tagged : pmgate::basic_percpu_ref<P> {
    explicit tagged(phoenix& of)
        : pmgate::basic_percpu_ref<P>(&on_release, ref_init::allow_reinit), owner(&of) {}
    phoenix* owner;
  };
  static void on_release(pmgate::basic_percpu_ref<P>& which) noexcept {
    phoenix& self = *static_cast<tagged&>(which).owner;
    (void)self.data.read();
    if (self.released++ == 0) which.reinit();
  }
  sim::guarded<int> data;
  int released = 0;  // by callbacks that follow each other
  tagged ref{*this};
  phoenix() { ref.get(); }
  void check() {
    sim::expect(released == 1 && !ref.is_dying(), "not back at the end");
    (void)ref.kill();
    sim::expect(released == 2 && ref.is_zero(), "not released again");
  }
};

constexpr auto leave = [](auto& s) { s.ref.put(); };
constexpr auto write_and_leave = [](auto& s) {
  s.data.write(1);
  s.ref.put();
};
constexpr auto kill_it = [](auto& s) {
  sim::expect(s.ref.kill(&s.on_confirm), "kill() was refused");
};
constexpr auto come_and_go = [](auto& s) {
  if (s.ref.try_get_live()) s.ref.put();
};

TEST_SUITE("interleavings of percpu_ref") {

TEST_CASE("the last of two puts and a kill releases, once, and sees all that was done") {
  hold_on_all_models<held>("put x put x kill", {.preemptions = 3}, write_and_leave, leave, kill_it);
}

TEST_CASE("no live reference is taken after the kill was confirmed") {
  hold_on_all_models<held>(
      "try_get_live x kill x put", {.preemptions = 3},
      [](auto& s) {
        const bool late = s.count_confirmed() != 0;
        const bool got = s.ref.try_get_live();
        sim::expect(!(late && got), "taken after the confirmation");
        if (got) s.ref.put();
      },
      kill_it,
      [](auto& s) {
        s.data.write(1);
        s.ref.put(2);
      });
}

TEST_CASE("a reference taken while dying keeps it from zero") {
  hold_on_all_models<held>(
      "try_get x kill x put", {.preemptions = 2},
      [](auto& s) {
        if (!s.ref.try_get()) return;
        sim::expect(s.count_released() == 0, "released while referenced");
        s.ref.put();
      },
      kill_it,
      [](auto& s) {
        s.data.write(1);
        s.ref.put(2);
      });
}

TEST_CASE("a ref that comes back has its reference, whoever came meanwhile") {
  hold_on_all_models<revived>(
      "kill, resurrect x try_get_live x try_get_live", {.preemptions = 2},
      [](auto& s) {
        kill_it(s);
        (void)s.ref.resurrect();
      },
      come_and_go, come_and_go);
}

TEST_CASE("kill and resurrect again and again") {
  hold_on_all_models<revived>(
      "kill, resurrect, kill, resurrect x get, put", {.preemptions = 2},
      [](auto& s) {
        (void)s.ref.kill();
        (void)s.ref.resurrect();
        (void)s.ref.kill();
        (void)s.ref.resurrect();
      },
      [](auto& s) {
        come_and_go(s);
        come_and_go(s);
      });
}

TEST_CASE("two owners kill and resurrect in turn") {
  const auto own = [](auto& s) {
    s.owner.lock();
    (void)s.ref.kill();
    (void)s.ref.resurrect();
    s.owner.unlock();
  };
  hold_on_all_models<revived>("two owners x try_get_live", {.preemptions = 2}, own, own,
                              come_and_go);
}

TEST_CASE("the count moves to the shared word and back while it is used") {
  hold_on_all_models<revived>(
      "switch x switch x get, put", {.preemptions = 2},
      [](auto& s) { (void)s.ref.switch_to_atomic(); }, [](auto& s) { s.ref.switch_to_percpu(); },
      [](auto& s) {
        s.ref.get(2);
        s.ref.put(2);
      });
}

TEST_CASE("back from the shared word, while it is used") {
  hold_on_all_models<shared_word>(
      "switch to percpu x kill, resurrect x get, put", {.preemptions = 2},
      [](auto& s) { s.ref.switch_to_percpu(); },
      [](auto& s) {
        (void)s.ref.kill();
        (void)s.ref.resurrect();
      },
      come_and_go);
}

TEST_CASE("a kill that meets a switch") {
  hold_on_all_models<held>(
      "switch x kill x put", {.preemptions = 2}, [](auto& s) { (void)s.ref.switch_to_atomic(); },
      kill_it,
      [](auto& s) {
        s.data.write(1);
        s.ref.put(2);
      });
}

TEST_CASE("after a switch that was waited for, zero is exact") {
  hold_on_all_models<held>(
      "kill, sync, is_zero x put", {.preemptions = 3},
      [](auto& s) {
        kill_it(s);
        (void)s.ref.switch_to_atomic_sync();
        const bool zero = s.ref.is_zero();
        if (zero) (void)s.data.read();
        if (s.ref.is_zero() != zero) sim::expect(!zero, "zero and back");
      },
      [](auto& s) {
        s.data.write(1);
        s.ref.put(2);
      });
}

TEST_CASE("the release callback may destroy the ref") {
  hold_on_all_models<suicidal>(
      "put x kill, destroyed on release", {.preemptions = 3},
      [](auto& s) {
        s.data.write(1);
        s.ref->put();
      },
      [](auto& s) { (void)s.ref->kill(); });
}

TEST_CASE("the release callback may bring the ref back") {
  hold_on_all_models<phoenix>(
      "put x kill x try_get_live, back on release", {.preemptions = 2}, write_and_leave,
      [](auto& s) { (void)s.ref.kill(); }, come_and_go);
}

TEST_CASE("a kill that is refused is undone or tried again") {
  hold_on_all_models<revived>(
      "refused kill, resurrect x get, put", {.preemptions = 3, .refused_graces = 1},
      [](auto& s) {
        (void)s.ref.kill();
        (void)s.ref.resurrect();
      },
      come_and_go);
  hold_on_all_models<held>(
      "refused kill, switch x put", {.preemptions = 3, .refused_graces = 1},
      [](auto& s) {
        if (s.ref.kill()) return;
        sim::expect(s.ref.switch_to_atomic(), "refused once more");
      },
      [](auto& s) {
        s.data.write(1);
        s.ref.put(2);
      });
}

TEST_CASE("others who wait for a switch that is refused") {
  hold_on_all_models<revived>(
      "refused switch x switch x kill, resurrect", {.preemptions = 2, .refused_graces = 2},
      [](auto& s) { (void)s.ref.switch_to_atomic(); }, [](auto& s) { s.ref.switch_to_percpu(); },
      [](auto& s) {
        (void)s.ref.kill();
        (void)s.ref.resurrect();
        s.ref.switch_to_percpu();
      });
}

TEST_CASE("everybody at once") {
  const auto own = [](auto& s) {
    for (int i = 0; i < 3; ++i) {
      s.owner.lock();
      (void)s.ref.kill();
      if (i == 1) (void)s.ref.switch_to_atomic_sync();
      (void)s.ref.resurrect();
      s.owner.unlock();
    }
  };
  hold_by_chance<revived>(
      "storm of five", {.refused_graces = 2, .priority_changes = 4}, own, own,
      [](auto& s) {
        for (int i = 0; i < 4; ++i) come_and_go(s);
      },
      [](auto& s) {
        s.ref.get(3);
        s.ref.put(2);
        if (s.ref.try_get()) s.ref.put();
        s.ref.put();
      },
      [](auto& s) {
        (void)s.ref.switch_to_atomic();
        s.ref.switch_to_percpu();
        s.ref.keep_atomic();
        s.ref.switch_to_percpu();
      });
}

}  // TEST_SUITE

}  // namespace
