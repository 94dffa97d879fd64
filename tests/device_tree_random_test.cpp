// SPDX-License-Identifier: MIT
//
// device_tree_random_test.cpp - random trees of devices, with links of all kinds,
// asynchronous devices, wakeups, failures and late comers, go down and up; each callback
// looks at its neighbours.
//
// PMGATE_RANDOM_TREES=n makes it n trees instead of 1000.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/pm/device_tree.hpp>

namespace {

using pmgate::status;
using pmgate::pm::callbacks;
using pmgate::pm::device;
using pmgate::pm::device_link;
using pmgate::pm::device_tree;
using pmgate::pm::event;
using pmgate::pm::link_kind;
using pmgate::pm::may_stay_suspended;
using pmgate::pm::phase;
using pmgate::pm::wakeup;
using pmgate::pm::work_queue;

/// What went wrong, counted over all threads.
struct faults {
  std::atomic<int> below_not_down{0};  ///< called before somebody who depends on it
  std::atomic<int> above_not_up{0};    ///< called before somebody it depends on
  std::atomic<int> overlap{0};         ///< two callbacks of one device at a time
  std::atomic<int> not_down{0};        ///< brought up without having gone down
  std::atomic<int> twice{0};           ///< taken down twice
  int total() const { return below_not_down + above_not_up + overlap + not_down + twice; }
};

/// A device that knows its neighbours, and whether it is down in each of the phases.
struct random_device {
  static constexpr int phases = 3;  // main, late, noirq

  explicit random_device(random_device* above, faults& into)
      : wrong(into),
        parent(above),
        self("device", above != nullptr ? &above->self : nullptr, {.driver = &table}, this) {
    if (above == nullptr) return;
    above->below.push_back(this);
    above->ordered_below.push_back(this);
  }

  status go_down(int at) {
    enter();
    for (const random_device* each : below) {
      if (!each->down[at] && !each->is_left_alone()) ++wrong.below_not_down;
    }
    if (down[at]) ++wrong.twice;
    if (wakes_up_at == at) wakeups->abort();
    if (signals_at == at) wakeups->signal();
    const bool fails = fails_down_at == at;
    if (!fails) down[at] = true;
    leave();
    return fails ? status::io_error : status::ok;
  }
  status come_up(int at) {
    enter();
    if (parent != nullptr && parent->down[at]) ++wrong.above_not_up;
    for (const random_device* each : suppliers) {
      if (each->down[at]) ++wrong.above_not_up;
    }
    if (!down[at]) ++wrong.not_down;
    down[at] = false;
    leave();
    return fails_up_at == at ? status::io_error : status::ok;
  }
  /// A consumer that nobody waits for may take the mark from one that stays up already.
  bool is_left_alone() const {
    return self.is_direct_complete() || (has_unawaited && may_be_left_alone());
  }
  bool may_be_left_alone() const { return self.is_runtime_suspended() && !may_wakeup; }
  void enter() {
    if (inside.exchange(true)) ++wrong.overlap;
    if (++calls % 5 == 0) std::this_thread::yield();
  }
  void leave() { inside = false; }

  static random_device& of(device& it) { return *static_cast<random_device*>(it.context()); }
  static status prepare(device& it) noexcept {
    random_device& self = of(it);
    if (self.fails_prepare) return status::io_error;
    if (self.brings != nullptr) {
      const auto bring = std::exchange(self.brings, nullptr);
      bring(self.brings_to);
    }
    self.prepared = true;
    return self.self.is_runtime_suspended() ? may_stay_suspended : status::ok;
  }
  template <int At>
  static status call_down(device& it) noexcept {
    return of(it).go_down(At);
  }
  template <int At>
  static status call_up(device& it) noexcept {
    return of(it).come_up(At);
  }
  static void complete(device& it) noexcept {
    random_device& self = of(it);
    if (!self.prepared.exchange(false)) ++self.wrong.not_down;
    for (int at = 0; at < phases; ++at) {
      if (self.down[at]) ++self.wrong.above_not_up;
    }
  }
  static constexpr callbacks table = {
      .prepare = &prepare,
      .suspend = &call_down<0>,
      .suspend_late = &call_down<1>,
      .suspend_noirq = &call_down<2>,
      .freeze = &call_down<0>,
      .freeze_late = &call_down<1>,
      .freeze_noirq = &call_down<2>,
      .poweroff = &call_down<0>,
      .poweroff_late = &call_down<1>,
      .poweroff_noirq = &call_down<2>,
      .resume_noirq = &call_up<2>,
      .resume_early = &call_up<1>,
      .resume = &call_up<0>,
      .thaw_noirq = &call_up<2>,
      .thaw_early = &call_up<1>,
      .thaw = &call_up<0>,
      .restore_noirq = &call_up<2>,
      .restore_early = &call_up<1>,
      .restore = &call_up<0>,
      .complete = &complete,
  };

  faults& wrong;
  random_device* parent;
  std::vector<random_device*> below;  // children and consumers that are waited for
  std::vector<random_device*> suppliers;
  std::vector<random_device*> ordered_below;  // the same, and those of dormant links
  std::vector<random_device*> ordered_suppliers;
  std::atomic<bool> down[phases] = {};
  std::atomic<bool> prepared{false};
  std::atomic<bool> inside{false};
  int calls = 0;
  bool fails_prepare = false;
  int fails_down_at = -1;
  int fails_up_at = -1;
  int wakes_up_at = -1;
  int signals_at = -1;
  bool may_wakeup = false;
  bool has_unawaited = false;       // a consumer over a dormant link
  void (*brings)(void*) = nullptr;  // another device, when it is prepared
  void* brings_to = nullptr;
  wakeup* wakeups = nullptr;
  device self;
};

/// True if the second depends on the first in some way.
bool depends(const random_device* on, const random_device* what) {
  std::vector<const random_device*> open{on};
  std::set<const random_device*> seen{on};
  while (!open.empty()) {
    const random_device* current = open.back();
    open.pop_back();
    if (current == what) return true;
    for (const random_device* each : current->ordered_below) {
      if (seen.insert(each).second) open.push_back(each);
    }
  }
  return false;
}

/// One random tree.
class forest {
 public:
  forest(unsigned seed, work_queue& workers, std::size_t most = 200) : random_(seed) {
    tree_.set_async_queue(&workers);
    tree_.set_wakeup(&wakeup_);
    grow(most);
    connect();
  }
  ~forest() {
    for (auto& link : links_) {
      if (link.consumer() != nullptr) CHECK(tree_.remove_link(link) == status::ok);
    }
    while (!devices_.empty()) {
      CHECK(tree_.remove(devices_.back().self) == status::ok);
      devices_.pop_back();
    }
  }

  /// One transition with random failures.
  void cycle() {
    clear_failures();
    plant_failures();
    if (one_in(3)) {
      random_device& chosen = any();
      chosen.brings = [](void* to) { (void)static_cast<forest*>(to)->add(nullptr); };
      chosen.brings_to = this;
    }
    adds_between_ = one_in(3);
    arms_ = one_in(2);
    (void)transition(std::vector<event>{event::suspend, event::freeze, event::quiesce,
                                        event::hibernate}[random_() % 4]);
  }
  /// One transition for each callback of each device: that one fails, and no other.
  unsigned fail_each_callback() {
    unsigned planted = 0;
    for (random_device& each : devices_) {
      for (int at = -1; at < random_device::phases; ++at) {
        clear_failures();
        each.fails_prepare = at < 0;
        each.fails_down_at = at;
        REQUIRE(transition(event::freeze) == status::io_error);
        clear_failures();
        each.fails_up_at = at;
        REQUIRE(transition(event::hibernate) == status::ok);
        planted += at < 0 ? 1 : 2;
      }
    }
    return planted;
  }

  /// Down and up again; what had to come of it is checked.
  status transition(event what) {
    wakeup_.clear();
    const std::uint64_t known = wakeup_.count();
    if (arms_) REQUIRE(wakeup_.arm(known));
    status result = tree_.suspend_start(what);
    if (adds_between_) (void)add(nullptr);  // prepared by nobody, left out of it all
    if (result == status::ok) {
      result = tree_.suspend_end(what);
      if (result == status::ok) {
        check_all_down(what == event::suspend);
        tree_.resume_start(undo_of(what));
      }
    }
    if (result != status::ok) ++failed_;
    if (arms_ && wakeup_.count() != known && !wakeup_.pending()) {
      REQUIRE(result != status::ok);  // it was told, and not forgotten
      ++told_;
    }
    tree_.resume_end(undo_of(what));
    check_all_up();
    check_order();
    return result;
  }

  faults wrong;
  int failed_ = 0;
  int told_ = 0;
  unsigned refused_links = 0;
  [[nodiscard]] std::size_t size() const { return devices_.size(); }

 private:
  bool one_in(unsigned n) { return random_() % n == 0; }
  random_device& any() { return devices_[random_() % devices_.size()]; }

  void grow(std::size_t most) {
    const std::size_t count = 1 + random_() % most;
    for (std::size_t n = 0; n < count; ++n) {
      (void)add(devices_.empty() || one_in(20) ? nullptr : &any());
    }
  }
  random_device& add(random_device* parent) {
    random_device& added = devices_.emplace_back(parent, wrong);
    added.wakeups = &wakeup_;
    added.may_wakeup = one_in(10);
    added.self.set_async(one_in(2));
    added.self.set_runtime_suspended(one_in(3));
    added.self.set_may_wakeup(added.may_wakeup);
    CHECK(tree_.add(added.self) == status::ok);
    return added;
  }
  void connect() {
    const std::size_t count = random_() % (devices_.size() / 2 + 1);
    for (std::size_t n = 0; n < count; ++n) {
      random_device& consumer = any();
      random_device& supplier = any();
      const bool orders = !one_in(8);
      const bool circle = orders ? depends(&consumer, &supplier) : &consumer == &supplier;
      device_link& link =
          links_.emplace_back(orders ? link_kind::order : link_kind::sync_state_only);
      link.set_dormant(one_in(6));
      const status added = tree_.add_link(link, consumer.self, supplier.self);
      REQUIRE((added == status::ok) == !circle);
      if (circle) {
        REQUIRE(added == status::deadlock);
        ++refused_links;
        continue;
      }
      if (!orders) continue;
      supplier.ordered_below.push_back(&consumer);
      consumer.ordered_suppliers.push_back(&supplier);
      if (link.is_dormant()) {
        supplier.has_unawaited = true;
        continue;
      }
      supplier.below.push_back(&consumer);
      consumer.suppliers.push_back(&supplier);
    }
    check_order();
  }
  void clear_failures() {
    for (random_device& each : devices_) {
      each.fails_prepare = false;
      each.fails_down_at = each.fails_up_at = each.wakes_up_at = each.signals_at = -1;
    }
  }
  void plant_failures() {
    const unsigned failures = static_cast<unsigned>(random_() % 4);
    for (unsigned n = 0; n < failures; ++n) {
      switch (random_() % 7) {
        case 0: any().fails_prepare = one_in(3); break;
        case 1: any().wakes_up_at = static_cast<int>(random_() % 3); break;
        case 2: any().fails_up_at = static_cast<int>(random_() % 3); break;
        case 3: any().signals_at = static_cast<int>(random_() % 3); break;
        default: any().fails_down_at = static_cast<int>(random_() % 3); break;
      }
    }
  }
  void check_all_down(bool some_may_stay) {
    for (const random_device& each : devices_) {
      if (!each.self.is_prepared()) continue;  // came too late
      const bool stays = !each.self.is_suspended();
      if (stays) REQUIRE((some_may_stay && each.may_be_left_alone()));
      for (const auto& down : each.down) REQUIRE(down == !stays);
      for (const random_device* other : each.below) REQUIRE(!(stays && other->down[0]));
    }
  }
  void check_all_up() {
    for (const random_device& each : devices_) {
      for (const auto& down : each.down) REQUIRE_FALSE(down);
      REQUIRE_FALSE(each.prepared);
      REQUIRE_FALSE(each.inside);
      REQUIRE_FALSE(each.self.is_prepared());
      REQUIRE_FALSE(each.self.is_suspended());
      REQUIRE_FALSE(each.self.is_late_suspended());
      REQUIRE_FALSE(each.self.is_noirq_suspended());
      REQUIRE_FALSE(each.self.holds_runtime_pm());
      REQUIRE_FALSE(each.self.is_runtime_disabled());
    }
  }
  /// Everybody behind his parent and his suppliers.
  void check_order() {
    std::set<const random_device*> seen;
    bool right = true;
    tree_.for_each([&](device& each) {
      const random_device& item = random_device::of(each);
      if (item.parent != nullptr && seen.count(item.parent) == 0) right = false;
      for (const random_device* supplier : item.ordered_suppliers) {
        if (seen.count(supplier) == 0) right = false;
      }
      seen.insert(&item);
    });
    REQUIRE(right);
    REQUIRE(seen.size() == devices_.size());
  }

  std::mt19937 random_;
  wakeup wakeup_;
  device_tree tree_;
  std::deque<random_device> devices_;
  std::deque<device_link> links_;
  bool adds_between_ = false;
  bool arms_ = false;
};

/// Threads that run asynchronous devices.
struct pool {
  pool() {
    for (int n = 0; n < 3; ++n) threads.emplace_back([this] { workers.run(); });
  }
  ~pool() {
    workers.stop();
    for (std::thread& thread : threads) thread.join();
  }
  work_queue workers{"async", pmgate::pm::work_queue_flags::none, 0};
  std::vector<std::thread> threads;
};

}  // namespace

TEST_SUITE("device_tree, random") {

TEST_CASE("random trees with random failures: no order is violated, every undoing is exact") {
  const char* const given = std::getenv("PMGATE_RANDOM_TREES");
  const unsigned trees = given != nullptr ? static_cast<unsigned>(std::atoi(given)) : 1000;
  pool threads;
  int failed = 0;
  int told = 0;
  unsigned refused = 0;
  std::size_t devices = 0;
  for (unsigned seed = 1; seed <= trees; ++seed) {
    INFO("seed ", seed);
    forest wood(seed, threads.workers);
    for (int turn = 0; turn < 3; ++turn) wood.cycle();
    REQUIRE(wood.wrong.below_not_down == 0);
    REQUIRE(wood.wrong.above_not_up == 0);
    REQUIRE(wood.wrong.total() == 0);
    failed += wood.failed_;
    told += wood.told_;
    refused += wood.refused_links;
    devices += wood.size();
  }
  MESSAGE(trees, " trees, ", devices, " devices, ", refused, " links refused, ", failed,
          " transitions failed of ", 3 * trees, ", ", told, " on a counted wakeup");
  CHECK(failed > static_cast<int>(trees) / 2);
  CHECK(refused > 0);
  CHECK(told > 0);
}

TEST_CASE("a failure in each callback of random trees: those resumed are those suspended") {
  pool threads;
  unsigned planted = 0;
  for (unsigned seed = 1; seed <= 12; ++seed) {
    INFO("seed ", seed);
    forest wood(seed, threads.workers, 40);
    planted += wood.fail_each_callback();
    REQUIRE(wood.wrong.total() == 0);
    REQUIRE(static_cast<std::size_t>(wood.failed_) == 4 * wood.size());
  }
  MESSAGE(planted, " failures");
  CHECK(planted > 0);
}

}  // TEST_SUITE
