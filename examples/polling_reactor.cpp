// SPDX-License-Identifier: MIT
//
// polling_reactor.cpp - pause a storage subsystem from threads that never block.
//
// Shows:  a reactor for I/O and one for management, each a loop that polls. Requests that
//         find the gate closed, and pauses that find requests in flight, wait in queues of
//         the gate; what ends a wait tells the reactor that goes on with it.
// Prints: nested:    paused twice; one resume leaves it paused, two open it
//         stuck:     a request hangs, the pause gives up at its deadline, I/O goes on
//         unstuck:   the same pause comes about, and the device is quiet
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include <pmgate/block/freeze_gate.hpp>

namespace {

using namespace std::chrono_literals;
using pmgate::freeze_gate;
using pmgate::gate_waiter;
using pmgate::status;
using clock = std::chrono::steady_clock;
constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;

/// Something to be done by a reactor; lives in what it is about.
struct message {
  void (*run)(message&) noexcept;
  message* next = nullptr;
};

/// A thread that polls: here, its inbox. Anybody may post.
struct reactor {
  std::atomic<message*> inbox{nullptr};

  void post(message& letter) noexcept {
    letter.next = inbox.load(relaxed);
    while (!inbox.compare_exchange_weak(letter.next, &letter, std::memory_order_release, relaxed))
      continue;
  }
  void poll() noexcept {
    message* next = inbox.exchange(nullptr, acquire);
    while (next != nullptr) {
      message& letter = *std::exchange(next, next->next);
      letter.run(letter);
    }
  }
};

/// The device and its gate. Plain integers: only those inside write them, all on the I/O
/// reactor, and who has frozen the gate reads what they wrote.
struct subsystem {
  freeze_gate gate;
  int in_flight = 0;
  std::atomic<bool> stuck{false};  // the device holds back the first request
  std::atomic<int> done{0};
  reactor io;
};

/// A request: idle, in the queue of the gate, or in flight.
class request : private gate_waiter, private message {
 public:
  request() : gate_waiter(&admitted), message{&start} {}

  void submit(subsystem& where) noexcept {
    where_ = &where;
    idle = false;
    if (where.gate.enter_or_wait(*this) == status::ok) start(*this);  // else admitted() comes
  }
  /// One look at the device.
  void poll(bool held_back) noexcept {
    if (left_ == 0 || held_back || --left_ != 0) return;
    --where_->in_flight;
    where_->done.fetch_add(1, relaxed);
    idle = true;
    where_->gate.exit();  // the last touch: the subsystem may be paused now
  }
  bool idle = true;

 private:
  /// In whatever thread opened the gate, and inside already: go on at home.
  static void admitted(gate_waiter& self, status) noexcept {
    auto& r = static_cast<request&>(self);
    r.where_->io.post(r);
  }
  static void start(message& self) noexcept {
    auto& r = static_cast<request&>(self);
    ++r.where_->in_flight;
    r.left_ = 3;  // polls until the device is done
  }
  subsystem* where_ = nullptr;
  int left_ = 0;
};

enum class state { idle, draining, paused, timed_out, refused };

/// A pause of the subsystem: a freeze with a deadline, looked after by a reactor.
class timed_pause : private gate_waiter {
 public:
  state now = state::idle;

  explicit timed_pause(subsystem& where) : gate_waiter(&drained), where_(where) {}

  void begin(clock::time_point deadline) noexcept {
    deadline_ = deadline;
    now = state::draining;
    const status answer = where_.gate.freeze_or_wait(*this);
    if (answer == status::ok) now = state::paused;
    if (answer == status::not_permitted) now = state::refused;
  }
  /// Drained, or time to give up? If cancel() says no, the drain has come after all.
  void poll() noexcept {
    if (now != state::draining) return;
    if (drained_.exchange(false, acquire)) {
      now = state::paused;
    } else if (clock::now() >= deadline_ && where_.gate.cancel(*this)) {
      where_.gate.unfreeze();
      now = state::timed_out;
    }
  }

 private:
  /// In the exit() of the last request. Who polls anyway needs a flag and no message.
  static void drained(gate_waiter& self, status) noexcept {
    static_cast<timed_pause&>(self).drained_.store(true, std::memory_order_release);
  }

  subsystem& where_;
  clock::time_point deadline_;
  std::atomic<bool> drained_{false};
};

bool broken = false;
void expect(bool holds, const char* what) {
  if (!holds) std::printf("BROKEN: %s\n", what);
  broken |= !holds;
}

}  // namespace

int main() {
  subsystem disk;
  std::atomic<bool> stopping{false};
  std::thread io([&] {  // eight requests, again and again
    request requests[8];
    for (bool busy = true; busy || !stopping.load(relaxed);) {
      disk.io.poll();
      busy = false;
      for (request& r : requests) {
        r.poll(&r == &requests[0] && disk.stuck.load(relaxed));
        if (r.idle && !stopping.load(relaxed)) r.submit(disk);
        busy |= !r.idle;
      }
    }
  });
  timed_pause upgrade(disk);
  timed_pause resize(disk);
  const auto poll_until = [&](auto condition) {  // the management reactor
    while (!condition()) upgrade.poll(), resize.poll();
  };
  const auto see_requests_done = [&] {
    poll_until([&, enough = disk.done.load(relaxed) + 100] { return disk.done > enough; });
  };

  // Two pauses nest: whoever comes and goes, the other one is safe.
  see_requests_done();
  upgrade.begin(clock::now() + 60s);
  resize.begin(clock::now() + 60s);
  poll_until([&] { return upgrade.now == state::paused && resize.now == state::paused; });
  expect(disk.in_flight == 0, "a request is in flight in a paused subsystem");
  disk.gate.unfreeze();  // the resize is done
  expect(disk.gate.is_frozen() && disk.in_flight == 0, "the first resume opened the gate");
  disk.gate.unfreeze();
  see_requests_done();
  std::puts("nested:    paused twice; one resume leaves it paused, two open it");

  // The device hangs: the pause gives up and leaves no trace.
  disk.stuck.store(true, relaxed);
  see_requests_done();  // until the first request is on its way
  upgrade.begin(clock::now() + 20ms);
  poll_until([&] { return upgrade.now != state::draining; });
  expect(upgrade.now == state::timed_out, "a pause came about with a request in flight");
  see_requests_done();
  std::puts("stuck:     a request hangs, the pause gives up at its deadline, I/O goes on");

  // The device comes back, and so does the pause.
  upgrade.begin(clock::now() + 60s);
  disk.stuck.store(false, relaxed);
  poll_until([&] { return upgrade.now != state::draining; });
  expect(upgrade.now == state::paused && disk.in_flight == 0, "the pause did not come about");
  disk.gate.unfreeze();
  std::puts("unstuck:   the same pause comes about, and the device is quiet");

  stopping.store(true, relaxed);
  io.join();
  return broken || disk.in_flight != 0 || disk.gate.depth() != 0 ? 1 : 0;
}
