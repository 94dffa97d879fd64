// SPDX-License-Identifier: MIT
//
// quiesce_gate_interleavings.cpp - no section runs behind a quiesce, and no work is
// lost, in every order.
#include <atomic>
#include <optional>

#include <doctest/doctest.h>

#include <pmgate/block/quiesce_gate.hpp>

#include "explore_models.hpp"

namespace {

using namespace interleavings;
using pmgate::status;

/// A gate, and what sections read and quiescers write.
template <class P>
struct dispatching {
  pmgate::basic_quiesce_gate<P> gate;
  sim::guarded<int> first;   // written by one quiescer
  sim::guarded<int> second;  // ... and by another
  sim::guarded<int> inside;  // written in sections of one thread
  sim::wait_word asked{0};   // for a quiesce that another thread undoes
  void check() {
    sim::expect(gate.depth() == 0, "the depth is not 0 at the end");
    sim::expect(gate.try_dispatch(), "the gate is not open at the end");
    gate.end_dispatch();
  }
};
template <class P>
struct running : dispatching<P> {
  running() { (void)this->gate.try_dispatch(); }
};
template <class P, int Sections>
struct doomed_with {
  std::optional<pmgate::basic_quiesce_gate<P>> gate{std::in_place};
  sim::guarded<int> first;
  doomed_with() {
    for (int i = 0; i < Sections; ++i) (void)gate->try_dispatch();
  }
};
template <class P>
using doomed = doomed_with<P, 1>;
template <class P>
using doubly_doomed = doomed_with<P, 2>;

/// A list with a lock, as a queue has one.
template <class P>
struct listed : dispatching<P> {
  sim::mutex lock;
  int waiting = 0;  // under lock
  int done = 0;     // under lock
  void check() {
    dispatching<P>::check();
    sim::expect(waiting == 0 && done == 1, "a request was lost");
  }
  void run_inside() {
    lock.lock();
    done += waiting;
    waiting = 0;
    lock.unlock();
    this->gate.end_dispatch();
  }
  /// Asks once more under the lock: unquiesce() may just have passed.
  void run() {
    bool goes = this->gate.try_dispatch();
    if (!goes) {
      lock.lock();
      goes = this->gate.try_dispatch();
      lock.unlock();
    }
    if (goes) run_inside();
  }
};

constexpr auto dispatch = [](auto& s) {
  if (!s.gate.try_dispatch()) return;
  (void)s.first.read();
  (void)s.second.read();
  s.inside.write(1);
  s.gate.end_dispatch();
};
constexpr auto look = [](auto& s) {
  if (!s.gate.try_dispatch()) return;
  (void)s.first.read();
  s.gate.end_dispatch();
};
constexpr auto quiesce_first = [](auto& s) {
  sim::expect(s.gate.quiesce() == status::ok, "quiesce() was refused");
  (void)s.inside.read();
  s.first.write(1);
  s.gate.unquiesce();
};
constexpr auto quiesce_second = [](auto& s) {
  sim::expect(s.gate.quiesce() == status::ok, "quiesce() was refused");
  (void)s.inside.read();
  s.second.write(1);
  s.gate.unquiesce();
};

TEST_SUITE("interleavings of quiesce_gate") {

TEST_CASE("no section runs while the gate is quiesced") {
  hold_on_all_models<dispatching>("dispatch x quiesce", {.preemptions = 4}, dispatch,
                                  quiesce_first);
}

TEST_CASE("sections that come again, quiesces that come again") {
  hold_on_all_models<dispatching>(
      "dispatch twice x quiesce twice", {.preemptions = 3},
      [](auto& s) {
        dispatch(s);
        dispatch(s);
      },
      [](auto& s) {
        quiesce_first(s);
        quiesce_first(s);
      });
}

TEST_CASE("two dispatchers") {
  hold_on_all_models<dispatching>("dispatch x dispatch x quiesce", {.preemptions = 3}, look, look,
                                  quiesce_first);
}

TEST_CASE("each of two quiescers has the guarantee for itself") {
  hold_on_all_models<dispatching>("dispatch x quiesce x quiesce", {.preemptions = 3}, dispatch,
                                  quiesce_first, quiesce_second);
}

TEST_CASE("a section ends on another thread than it began") {
  hold_on_all_models<running>(
      "end x dispatch x quiesce", {.preemptions = 3},
      [](auto& s) {
        (void)s.first.read();
        s.gate.end_dispatch();
      },
      look, quiesce_first);
}

TEST_CASE("a quiesce is undone by another thread while it is waited for") {
  hold_on_all_models<running>(
      "quiesce_nowait, wait x unquiesce x end", {.preemptions = 2},
      [](auto& s) {
        s.gate.quiesce_nowait();
        s.asked.publish_add(1);
        (void)s.gate.wait_quiesced();
      },
      [](auto& s) {
        while (s.asked.load(std::memory_order_acquire) == 0) s.asked.wait(0);
        s.gate.unquiesce();
      },
      [](auto& s) {
        (void)s.first.read();
        s.gate.end_dispatch();
      });
}

TEST_CASE("a quiesced gate may be destroyed while the last section returns") {
  hold_on_all_models<doomed>(
      "end x quiesce, destroy", {.preemptions = 4},
      [](auto& s) {
        s.first.write(1);
        s.gate->end_dispatch();
      },
      [](auto& s) {
        (void)s.gate->quiesce();
        (void)s.first.read();
        s.gate.reset();
      });
  hold_on_all_models<doubly_doomed>(
      "end x end x quiesce, destroy", {.preemptions = 3},
      [](auto& s) {
        (void)s.first.read();
        s.gate->end_dispatch();
      },
      [](auto& s) {
        (void)s.first.read();
        s.gate->end_dispatch();
      },
      [](auto& s) {
        (void)s.gate->quiesce();
        s.first.write(1);
        s.gate.reset();
      });
}

TEST_CASE("a request that meets an unquiesce is dispatched by one of them") {
  hold_on_all_models<listed>(
      "submit x quiesce, unquiesce, run", {.preemptions = 3},
      [](auto& s) {
        s.lock.lock();
        ++s.waiting;
        s.lock.unlock();
        s.run();
      },
      [](auto& s) {
        (void)s.gate.quiesce();
        s.first.write(1);
        if (s.gate.unquiesce()) s.run();
      });
}

TEST_CASE("a grace period that is refused leaves the quiesce in force") {
  hold_on_all_models<dispatching>("refused quiesce x dispatch",
                                  {.preemptions = 3, .refused_graces = 1}, dispatch, [](auto& s) {
                                    if (s.gate.quiesce() == status::ok) s.first.write(1);
                                    sim::expect(!s.gate.try_dispatch() || s.gate.depth() == 0,
                                                "a section started while quiesced");
                                    s.gate.unquiesce();
                                  });
}

TEST_CASE("everybody at once") {
  hold_by_chance<dispatching>(
      "storm of five", {.priority_changes = 4},
      [](auto& s) {
        for (int i = 0; i < 3; ++i) dispatch(s);
      },
      [](auto& s) {
        for (int i = 0; i < 3; ++i) look(s);
      },
      [](auto& s) {
        for (int i = 0; i < 2; ++i) quiesce_first(s);
      },
      [](auto& s) {
        for (int i = 0; i < 2; ++i) quiesce_second(s);
      },
      [](auto& s) {
        for (int i = 0; i < 3; ++i) {
          s.gate.quiesce_nowait();
          s.gate.unquiesce();
        }
      });
}

}  // TEST_SUITE

}  // namespace
