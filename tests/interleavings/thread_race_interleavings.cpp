// SPDX-License-Identifier: MIT
//
// thread_race_interleavings.cpp - the race of the mail thread: a kernel that restores an
// image takes the storage driver down while the media poll of a CD-ROM goes on.
//
// Each kernel is explored within a bound: where it had the bug an order is found that
// enters the torn-down driver, where it was cured there is none. Then a thousand
// restores by chance, and how many commands entered.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <string>

#include <doctest/doctest.h>

#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/bus_pm.hpp>
#include <pmgate/scsi/host.hpp>

#include "explore_models.hpp"

namespace {

using namespace interleavings;
using pmgate::status;
namespace pm = pmgate::pm;
namespace scsi = pmgate::scsi;
using scsi::scsi_generation;

/// A kernel, as far as the race is concerned.
struct kernel {
  const char* name;
  scsi_generation generation;
  bool freezes_work_queues;  ///< before the devices, in a restore: 2351f8d295ed
  bool blocks_host;          ///< the patch of the thread: the driver's suspend blocks the host
};

constexpr kernel rc3{"5.7-rc3", scsi_generation::v5_7_rc3, false, false};
constexpr kernel rc3_patched{"5.7-rc3, proposed patch", scsi_generation::v5_7_rc3, false, true};
constexpr kernel rc3_fixed{"5.7-rc3, merged fix", scsi_generation::v5_7_rc3, true, false};
constexpr kernel rc4_unfixed{"5.7-rc4, no fix", scsi_generation::v5_7, false, false};
constexpr kernel rc4_patched{"5.7-rc4, proposed patch", scsi_generation::v5_7, false, true};
constexpr kernel rc4_fixed{"5.7-rc4, merged fix", scsi_generation::v5_7, true, false};
constexpr kernel now_unfrozen{"6.12, restored by user space", scsi_generation::v6_12, false, false};
constexpr kernel now{"6.12", scsi_generation::v6_12, true, false};

/// What came of the restores since it was cleared.
struct score {
  std::uint64_t restores = 0;
  std::uint64_t entries = 0;  ///< of commands into a driver that was down
  std::uint64_t refused = 0;  ///< restores that were called off
};

/// One restore, with a poll that is due.
template <class P, const kernel& Kernel, bool Counts>
struct restore {
  static inline score total;

  // -- the driver: a channel table that can be gone

  static int queuecommand(scsi::basic_host<P>& host, scsi::basic_command<P>& item) noexcept {
    auto& self = *static_cast<restore*>(host.context());
    // [table.read] acquire: pairs with [table.down] and [table.up]. Two looks: the table may
    // go while the driver uses it.
    const bool there = self.table.load(std::memory_order_acquire) != 0 &&
                       self.table.load(std::memory_order_acquire) != 0;
    if (!there) ++self.entries;
    host.complete(item);
    return 0;
  }
  status suspend() {
    if (Kernel.blocks_host) {
      const status blocked = host.block();
      if (blocked != status::ok) return blocked;
    }
    // [table.down] release: pairs with [table.read].
    table.store(0, std::memory_order_release);
    return status::ok;
  }
  void resume() {
    // [table.up] release: pairs with [table.read].
    table.store(1, std::memory_order_release);
    if (Kernel.blocks_host) (void)host.unblock(scsi::device_state::running);
  }

  // -- the poller: disk_events_workfn() on a freezable queue, sr_check_events()

  static void poll(pm::basic_work<P>& work) noexcept {
    auto& self = *static_cast<restore*>(work.context());
    if (self.cdrom.execute(self.test_unit_ready, scsi::command_flags::special) == status::ok) {
      ++self.polls;
    }
  }

  // -- software_resume(), up to where the image takes over, and back

  void run() {
    if (Kernel.freezes_work_queues) freeze_kernel_threads();
    sim::expect(scsi::bus_down(cdrom, upper, &scsi::basic_upper_ops<P>::freeze) == status::ok,
                "the bus does not quiesce");
    const status down = suspend();
    if (down == status::ok) {
      copy_image();
      resume();
    } else {
      ++called_off;
    }
    (void)scsi::bus_up(cdrom, upper, &scsi::basic_upper_ops<P>::thaw);
    events.thaw();
    leave();
  }
  /// Takes its time: the driver is down for a while.
  void copy_image() {
    // [image.page] relaxed: nothing but a step.
    for (int page = 0; page < 10; ++page) (void)image.load(std::memory_order_relaxed);
  }
  /// The last of the two ends kblockd.
  void leave() {
    // [leave.count] acq_rel: the last sees what the other has done.
    if (present.fetch_sub(1, std::memory_order_acq_rel) == 1) works.stop();
  }
  /// As the freezer does it, but without a deadline: here a worker may be slow for ever.
  void freeze_kernel_threads() {
    events.freeze_begin();
    for (;;) {
      // [polled.seen] acquire: pairs with publish_add() in poll_when_due().
      const std::uint32_t seen = polled.load(std::memory_order_acquire);
      if (!events.is_busy()) return;
      polled.wait(seen);
    }
  }
  void poll_when_due() {
    events.queue(work);  // the timer fires
    (void)events.run_pending();
    polled.publish_add(1);
    leave();
  }

  restore() { (void)cdrom.set_state(scsi::device_state::running); }
  void check() {
    while (events.run_pending() || works.run_pending()) {
    }
    sim::expect(polls == 1, "the poll is lost");
    if (!Counts) sim::expect(entries == 0, "a command entered the torn-down driver");
    ++total.restores;
    total.entries += entries;
    total.refused += called_off;
  }

  typename P::template atomic<int> table{1};
  typename P::template atomic<int> image{0};
  typename P::template atomic<int> present{2};
  unsigned entries = 0;
  unsigned polls = 0;
  unsigned called_off = 0;
  typename P::wait_word polled{0};
  pm::basic_work_queue<P> events{"events_freezable_power_", pm::work_queue_flags::freezable};
  pm::basic_work<P> work{&poll, this};
  pm::basic_work_queue<P> works{"kblockd", pm::work_queue_flags::none, 0};
  scsi::basic_host<P> host{
      {.queuecommand = &queuecommand, .context = this, .generation = Kernel.generation}};
  scsi::basic_target<P> target;
  scsi::basic_upper_ops<P> upper;  // the driver of CD-ROMs has no callbacks
  scsi::basic_command<P> test_unit_ready;
  scsi::basic_device<P> cdrom{host, target, works, {2, 2}, pmgate::gate_start::atomic};
};

constexpr auto run_restore = [](auto& s) { s.run(); };
constexpr auto run_poller = [](auto& s) { s.poll_when_due(); };
constexpr auto run_kblockd = [](auto& s) { s.works.run(); };  // what was held goes out here

template <const kernel& Kernel>
struct hunted {
  template <class P>
  using in_restore = restore<P, Kernel, false>;
};

/// A thousand restores, every choice by chance.
template <const kernel& Kernel>
score try_a_thousand() {
  using counted = restore<pmgate::sim_platform, Kernel, true>;
  counted::total = {};
  sim::options how{.name = Kernel.name};
  how.preemptions = how.delayed_stores = sim::unbounded;
  how.how = sim::search::random;
  how.schedules = 1000;
  const sim::result found = sim::explore<counted>(how, run_restore, run_poller, run_kblockd);
  found.print();
  CHECK(found.failure.empty());
  return counted::total;
}

/// The rows of the table, printed when the program ends.
class table {
 public:
  static void add(const char* name, const std::string& explored, const score& chance) {
    static table rows;
    char text[160];
    (void)std::snprintf(text, sizeof text, "  %-30s %-36s %8llu %8llu %8llu\n", name,
                        explored.c_str(), static_cast<unsigned long long>(chance.restores),
                        static_cast<unsigned long long>(chance.entries),
                        static_cast<unsigned long long>(chance.refused));
    rows.text_ += text;
  }

 private:
  table() = default;
  ~table() {
    std::printf("\n  %-30s %-36s %8s %8s %8s\n%s\n", "kernel", "entries into the torn-down driver",
                "restores", "entries", "refused", text_.c_str());
  }
  std::string text_;
};

/// The bug is there: an order is found, and chance finds it as well.
template <const kernel& Kernel>
void has_the_bug() {
  sim::options how{.name = Kernel.name, .preemptions = 2};
  const sim::result found = sim::explore<restore<pmgate::sim_platform, Kernel, false>>(
      how, run_restore, run_poller, run_kblockd);
  ++tally::all().tests;
  tally::all().schedules += found.schedules;
  CHECK(found.failure == "a command entered the torn-down driver");
  const score chance = try_a_thousand<Kernel>();
  CHECK(chance.restores == 1000);
  CHECK(chance.entries > 0);
  CHECK(chance.refused == 0);
  table::add(Kernel.name, "found in schedule " + std::to_string(found.schedules), chance);
}

/// It is not: no order within the bound under any model, and none by chance.
template <const kernel& Kernel>
void is_cured(std::uint64_t refused = 0) {
  const unsigned long long before = tally::all().schedules;
  hold_on_all_models<hunted<Kernel>::template in_restore>(Kernel.name, {.preemptions = 2},
                                                          run_restore, run_poller, run_kblockd);
  const score chance = try_a_thousand<Kernel>();
  CHECK(chance.restores == 1000);
  CHECK(chance.entries == 0);
  CHECK(chance.refused == refused);
  const unsigned long long explored = tally::all().schedules - before;
  table::add(Kernel.name, "none in " + std::to_string(explored) + " schedules", chance);
}

TEST_SUITE("the race of the thread") {

TEST_CASE("5.7-rc3: the poll enters the torn-down driver") { has_the_bug<rc3>(); }

TEST_CASE("5.7-rc3 with the proposed patch: nothing enters, and nothing is restored either") {
  is_cured<rc3_patched>(1000);
}

TEST_CASE("5.7-rc3 with the fix that was merged: it does without the block") {
  is_cured<rc3_fixed>();
}

TEST_CASE("5.7-rc4 without a fix: a device that may be blocked does not help by itself") {
  has_the_bug<rc4_unfixed>();
}

TEST_CASE("5.7-rc4 with the proposed patch: the poll enters the queue and is held") {
  is_cured<rc4_patched>();
}

TEST_CASE("5.7-rc4 as merged: the poll is frozen before the devices") { is_cured<rc4_fixed>(); }

TEST_CASE("6.12, restored by user space, which freezes no work queues: it sleeps at the entry") {
  is_cured<now_unfrozen>();
}

TEST_CASE("6.12: both") { is_cured<now>(); }

}  // TEST_SUITE
}  // namespace
