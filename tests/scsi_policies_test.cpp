// SPDX-License-Identifier: MIT
//
// scsi_policies_test.cpp - one workload through every answer of the thread, and what
// each of them lets through; then each by itself. The numbers are those of the
// scenarios in the specification of SCSI.
#include <array>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/scsi/pause.hpp>
#include <pmgate/scsi/policies.hpp>

#include "support/scsi_rig.hpp"

using pmgate::status;
using pmgate::scsi::adapter_ops;
using pmgate::scsi::command_flags;
using pmgate::scsi::did_no_connect;
using pmgate::scsi::did_reset;
using testing::command;
using testing::device;
using testing::device_state;
using testing::host;
using testing::scsi_generation;
using testing::target;
using testing::virtual_platform;
using testing::worker;
using enum device_state;

using no_gating = pmgate::scsi::basic_no_gating<virtual_platform>;
using unheeded_block = pmgate::scsi::basic_unheeded_block<virtual_platform>;
using heeded_block = pmgate::scsi::basic_heeded_block<virtual_platform>;
using safe_block = pmgate::scsi::basic_safe_block<virtual_platform>;
using pause_policy = pmgate::scsi::basic_pause<virtual_platform>;

namespace {

struct counted_command {
  static void on_done(command& item) noexcept {
    ++static_cast<counted_command*>(item.context())->ends;
  }
  int result() const { return item.result_word(); }
  std::atomic<int> ends{0};
  command item{&on_done, this};
};

/// A driver with a policy, over hardware that can be there or not.
template <class Policy>
struct machine {
  explicit machine(scsi_generation generation = scsi_generation::v6_12)
      : adapter({&queuecommand, this, generation}) {
    testing::virtual_clock::reset();
    for (auto& each : devices) each.emplace(adapter, where, works);
    for (auto& each : devices) (void)each->set_state(running);
  }

  static int queuecommand(host& adapter, command& item) noexcept {
    auto& self = *static_cast<machine*>(adapter.context());
    const int refusal = self.policy.admit(item);
    if (refusal != 0) {
      ++self.bounced;
      return refusal;
    }
    if (!self.up) ++self.violations;  // where the kernel took a page fault
    {
      const std::scoped_lock guard(self.mutex);
      self.taken.push_back(&item);
    }
    self.policy.leave();
    return 0;
  }
  static machine& of(void* context) { return *static_cast<machine*>(context); }
  static void shut_down(void* context) noexcept { of(context).up = false; }
  static status bring_up(void* context) noexcept {
    of(context).up = of(context).comes_back;
    return of(context).comes_back ? status::ok : status::io_error;
  }
  static status reset(void* context) noexcept { return of(context).reset_answer; }
  static void complete_all(void* context, int result_word) noexcept {
    std::vector<command*> all;
    {
      const std::scoped_lock guard(of(context).mutex);
      all.swap(of(context).taken);
    }
    for (command* const item : all) item->device().complete(*item, result_word);
  }

  void settle() {
    for (int round = 0; round < 34; ++round) {
      while (works.run_pending()) {
      }
      testing::virtual_clock::advance(3);
    }
  }
  void finish_all() {
    for (settle(); !taken.empty(); settle()) complete_all(this, 0);
  }
  /// What has ended, and each once.
  static int ends(const std::vector<const counted_command*>& items) {
    int total = 0;
    for (const counted_command* each : items) {
      CHECK(each->ends <= 1);
      total += each->ends;
    }
    return total;
  }

  testing::misuse_log misuse;
  pmgate::pm::basic_work_queue<virtual_platform> works{"kblockd",
                                                       pmgate::pm::work_queue_flags::none, 0};
  bool up = true;
  bool comes_back = true;
  status reset_answer = status::ok;
  int violations = 0;
  int bounced = 0;
  std::mutex mutex;
  std::vector<command*> taken;
  host adapter;
  target where;
  Policy policy{adapter, adapter_ops{&shut_down, &bring_up, &reset, &complete_all, this}};
  std::array<std::optional<device>, 2> devices;
};

/// What the workload met.
struct outcome {
  status suspended = status::ok;
  status resumed = status::ok;
  int refused = 0;     // at the entry
  int held = 0;        // entered, neither sent nor ended
  int bounced = 0;     // the driver said "host busy"
  int violations = 0;  // reached hardware that was gone
  int completed = 0;   // of four, when all is over

  friend bool operator==(const outcome&, const outcome&) = default;
};

/// Quiesce, suspend, and then the poll of the thread and three more; resume, and finish.
template <class Policy>
outcome run_workload(scsi_generation generation) {
  machine<Policy> m(generation);
  outcome seen;
  for (auto& each : m.devices) REQUIRE(each->quiesce() == status::ok);
  seen.suspended = m.policy.suspend();

  counted_command poll, ordinary, sync_cache, start_unit;
  const auto send = [&](counted_command& which, device& where, command_flags flags) {
    const bool entered = where.submit(which.item, flags | command_flags::nowait) == status::ok;
    if (!entered) ++seen.refused;
    return entered;
  };
  const bool polled = send(poll, *m.devices[0], command_flags::special);
  const bool written = send(ordinary, *m.devices[0], command_flags::none);
  const bool synced = send(sync_cache, *m.devices[1], command_flags::pm);
  const bool started = send(start_unit, *m.devices[1], command_flags::pm);
  if (m.up) {
    seen.held = 4 - seen.refused - static_cast<int>(m.taken.size());
  } else {
    m.settle();
    seen.held = 4 - seen.refused - static_cast<int>(m.taken.size());
    seen.violations = m.violations;
    seen.bounced = m.bounced > 0 ? seen.held : 0;
    seen.held -= seen.bounced;
  }

  if (seen.suspended == status::ok) seen.resumed = m.policy.resume();
  if constexpr (requires { m.policy.connected(); }) m.policy.connected();
  (void)m.adapter.try_unblock(running);
  for (auto& each : m.devices) each->resume();
  const auto again = [&](bool entered, counted_command& which, device& where) {
    if (!entered) CHECK(where.submit(which.item) == status::ok);
  };
  again(polled, poll, *m.devices[0]);
  again(written, ordinary, *m.devices[0]);
  again(synced, sync_cache, *m.devices[1]);
  again(started, start_unit, *m.devices[1]);
  m.finish_all();
  seen.completed = m.ends({&poll, &ordinary, &sync_cache, &start_unit});
  CHECK(m.misuse.take() == 0);
  return seen;
}

template <class Policy>
void show(const char* generation, const outcome& seen) {
  std::printf("  %-22s %-8s %-8s %-8s %7d %5d %8d %11d %10d\n", Policy::name, generation,
              to_string(seen.suspended), to_string(seen.resumed), seen.refused, seen.held,
              seen.bounced, seen.violations, seen.completed);
}

/// The same under the three rules.
template <class Policy>
void compare(const outcome& v5_7_rc3, const outcome& v5_7, const outcome& v6_12) {
  const struct {
    const char* name;
    scsi_generation generation;
    const outcome& expected;
  } rules[] = {{"5.7-rc3", scsi_generation::v5_7_rc3, v5_7_rc3},
               {"5.7", scsi_generation::v5_7, v5_7},
               {"6.12", scsi_generation::v6_12, v6_12}};
  for (const auto& each : rules) {
    const outcome seen = run_workload<Policy>(each.generation);
    show<Policy>(each.name, seen);
    CHECK_MESSAGE(seen == each.expected, Policy::name, " under the rules of ", each.name);
  }
}

}  // namespace

TEST_SUITE("scsi_policies") {

TEST_CASE("one workload through every policy, under the rules of three kernels") {
  std::printf("  %-22s %-8s %-8s %-8s %7s %5s %8s %11s %10s\n", "policy", "rules", "suspend",
              "resume", "refused", "held", "bounced", "violations", "completed");
  // Nothing: whatever passes the entry reaches hardware that is gone.
  compare<no_gating>({.refused = 1, .violations = 3, .completed = 4},
                     {.refused = 1, .violations = 3, .completed = 4},
                     {.refused = 2, .violations = 2, .completed = 4});
  // Before 5.7-rc4 a quiesced device is not blocked, and nobody notices.
  compare<unheeded_block>(
      {.resumed = status::invalid, .refused = 1, .violations = 3, .completed = 4},
      {.refused = 1, .held = 3, .completed = 4}, {.refused = 2, .held = 2, .completed = 4});
  // Here somebody does: the suspend fails, and the hardware stays.
  compare<heeded_block>({.suspended = status::invalid, .refused = 1, .completed = 4},
                        {.refused = 1, .held = 3, .completed = 4},
                        {.refused = 2, .held = 2, .completed = 4});
  compare<safe_block>({.suspended = status::invalid, .refused = 1, .completed = 4},
                      {.refused = 1, .held = 3, .completed = 4},
                      {.refused = 2, .held = 2, .completed = 4});
  compare<pause_policy>({.refused = 1, .bounced = 3, .completed = 4},
                        {.refused = 1, .bounced = 3, .completed = 4},
                        {.refused = 2, .bounced = 2, .completed = 4});
}

// -- the thread

TEST_CASE("scenario 34: the poll of the thread, under the old rules and the new") {
  machine<no_gating> before(scsi_generation::v5_7), since;
  counted_command poll;
  REQUIRE(before.devices[0]->quiesce() == status::ok);
  REQUIRE(before.policy.suspend() == status::ok);
  CHECK(before.devices[0]->submit(poll.item, command_flags::special) == status::ok);
  CHECK(before.violations == 1);
  before.complete_all(&before, did_no_connect);
  CHECK(before.policy.resume() == status::ok);
  before.devices[0]->resume();

  REQUIRE(since.devices[0]->quiesce() == status::ok);
  REQUIRE(since.policy.suspend() == status::ok);
  command sleeping;
  status entered = status::busy;
  worker poller([&] { entered = since.devices[0]->execute(sleeping, command_flags::special); });
  CHECK(poller.is_blocked());
  CHECK(since.policy.resume() == status::ok);
  since.devices[0]->resume();
  while (!poller.done()) {
    since.complete_all(&since, 0);
    std::this_thread::yield();
  }
  poller.join();
  CHECK(entered == status::ok);
  CHECK(since.violations == 0);
}

TEST_CASE("scenario 34: under the old rules a host block before the teardown holds the poll") {
  machine<heeded_block> m(scsi_generation::v5_7);
  counted_command poll;
  REQUIRE(m.devices[0]->quiesce() == status::ok);
  REQUIRE(m.policy.suspend() == status::ok);
  CHECK(m.devices[0]->submit(poll.item, command_flags::special) == status::ok);
  m.settle();
  CHECK(m.taken.empty());

  CHECK(m.policy.resume() == status::ok);
  m.settle();
  CHECK(m.taken.size() == 1);
  CHECK(m.violations == 0);
  m.devices[0]->resume();
  m.finish_all();
  CHECK(poll.ends == 1);
}

// -- aacraid

TEST_CASE("hardware that does not come back leaves the devices blocked") {
  machine<unheeded_block> m;
  REQUIRE(m.policy.suspend() == status::ok);
  m.comes_back = false;

  CHECK(m.policy.resume() == status::no_device);
  CHECK(m.devices[0]->state() == block);

  m.comes_back = true;
  CHECK(m.policy.pci_resume() == status::ok);
  CHECK(m.devices[0]->state() == running);
}

TEST_CASE("a reset ends what was sent with DID_RESET, and unblocks also if it fails") {
  machine<unheeded_block> m;
  counted_command read, passed;
  REQUIRE(m.devices[0]->submit(read.item, command_flags::retry_after_reset) == status::ok);
  REQUIRE(m.devices[1]->submit(passed.item) == status::ok);

  m.reset_answer = status::io_error;
  CHECK(m.policy.reset() == status::io_error);
  CHECK(m.devices[0]->state() == running);
  CHECK(m.taken.size() == 2);

  m.reset_answer = status::ok;
  CHECK(m.policy.reset() == status::ok);
  CHECK(passed.result() == did_reset);
  m.finish_all();
  CHECK(read.result() == 0);
  CHECK(read.ends + passed.ends == 2);
}

TEST_CASE("a second reset is refused while one is under way") {
  machine<unheeded_block> m;
  m.adapter.begin_recovery();
  struct nested {
    static status reset(void* context) noexcept {
      auto& self = *static_cast<nested*>(context);
      self.second = self.policy->reset();
      return status::ok;
    }
    unheeded_block* policy = nullptr;
    status second = status::ok;
  } inner;
  unheeded_block policy(m.adapter, adapter_ops{nullptr, nullptr, &nested::reset, nullptr, &inner});
  inner.policy = &policy;

  CHECK(policy.reset() == status::ok);

  CHECK(inner.second == status::busy);
  CHECK(policy.reset() == status::ok);
}

TEST_CASE("a PCI error ends what was sent, holds what comes, and a lasting one holds nothing") {
  machine<unheeded_block> m;
  counted_command sent, held, late;
  REQUIRE(m.devices[0]->submit(sent.item) == status::ok);

  m.policy.pci_frozen();
  CHECK(sent.result() == did_no_connect);
  CHECK(m.devices[0]->submit(held.item) == status::ok);
  m.settle();
  CHECK(m.taken.empty());
  CHECK(m.policy.pci_resume() == status::ok);
  m.settle();
  CHECK(m.taken.size() == 1);

  m.policy.pci_permanent_failure();
  CHECK(held.result() == did_no_connect);
  CHECK(m.devices[0]->submit(late.item) == status::ok);
  CHECK(m.taken.size() == 1);
  m.finish_all();

  m.policy.shutdown();
  CHECK(m.devices[1]->state() == block);
  (void)m.adapter.try_unblock(running);
}

// -- xen-scsifront

TEST_CASE("scenario 35: a pause waits for a handler, bounces commands, and outlasts the resume") {
  machine<pause_policy> m;
  counted_command read, passed, late;
  REQUIRE(m.devices[0]->submit(read.item, command_flags::retry_after_reset) == status::ok);
  REQUIRE(m.devices[0]->submit(passed.item) == status::ok);
  REQUIRE(m.policy.enter_handler());
  status suspended = status::busy;
  worker suspender([&] { suspended = m.policy.suspend(); });
  while (!m.policy.is_paused()) std::this_thread::yield();
  CHECK(suspender.is_blocked());
  CHECK(m.devices[1]->submit(late.item) == status::ok);
  CHECK(m.bounced == 1);
  CHECK_FALSE(m.policy.enter_handler());

  m.policy.leave_handler();
  suspender.join();
  CHECK(suspended == status::ok);
  CHECK(m.taken.size() == 2);  // nobody drains what the hardware has
  CHECK_FALSE(m.up);

  CHECK(m.policy.resume() == status::ok);
  CHECK(passed.result() == did_reset);
  CHECK(passed.item.result() == status::io_error);  // what its issuer is told
  CHECK(read.ends == 0);
  m.settle();
  CHECK(m.taken.empty());  // both bounce until the other side is there
  m.policy.connected();
  m.settle();
  CHECK(m.taken.size() == 2);
  m.finish_all();
  CHECK(m.violations == 0);
  CHECK(read.result() == 0);
  CHECK(m.ends({&read, &passed, &late}) == 3);
}

TEST_CASE("scenario 35: an interrupted suspend fails, and the pause stays") {
  machine<pause_policy> m;
  REQUIRE(m.policy.enter_handler());
  status suspended = status::ok;
  worker suspender([&] { suspended = m.policy.suspend(); });
  CHECK(suspender.is_blocked());

  m.policy.interrupt();
  suspender.join();

  CHECK(suspended == status::again);
  CHECK(m.policy.is_paused());
  CHECK(m.up);
  m.policy.leave_handler();
  m.policy.thaw();
  CHECK(m.policy.is_paused());
  m.policy.connected();
}

TEST_CASE("a handler that waits for room in the ring is woken by the pause, and leaves") {
  machine<pause_policy> m;
  REQUIRE(m.policy.enter_handler());
  std::atomic<int> rounds{0};
  worker handler([&] {
    do ++rounds;
    while (m.policy.await_room(m.policy.room_count()));
    m.policy.leave_handler();
  });
  while (rounds == 0) std::this_thread::yield();
  m.policy.note_room();

  CHECK(m.policy.suspend() == status::ok);

  handler.join();
  CHECK(m.policy.callers() == 0);
  m.policy.connected();
}

TEST_CASE("a driver in error bounces every command until it is not") {
  machine<pause_policy> m;
  counted_command item;
  m.policy.set_error(true);
  REQUIRE(m.devices[0]->submit(item.item) == status::ok);
  m.settle();
  CHECK(item.ends == 0);

  m.policy.set_error(false);
  m.finish_all();

  CHECK(item.ends == 1);
}

TEST_CASE("leaving a pause without having entered is reported") {
  machine<pause_policy> m;
  m.policy.leave_handler();
  CHECK(m.misuse.take() == 1);
}

}  // TEST_SUITE
