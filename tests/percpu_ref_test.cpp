// SPDX-License-Identifier: MIT
//
// percpu_ref_test.cpp - the killable reference count; the numbers are those of the
// scenarios in the specification of percpu_ref.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/percpu_ref.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

using pmgate::basic_percpu_ref;
using pmgate::portable_platform;
using pmgate::ref_init;
using pmgate::single_platform;
using testing::deferred_platform;
using testing::grace;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;
using default_platform = pmgate::default_platform;
using ref = pmgate::percpu_ref;

static_assert(!std::is_copy_constructible_v<ref> && !std::is_copy_assignable_v<ref>);
static_assert(!std::is_move_constructible_v<ref> && !std::is_move_assignable_v<ref>);
static_assert(!std::is_default_constructible_v<ref>);
static_assert(std::is_nothrow_constructible_v<ref, ref::release_fn, ref_init>);
static_assert(std::is_nothrow_destructible_v<ref>);
static_assert(noexcept(std::declval<ref&>().get()) && noexcept(std::declval<ref&>().put()));
static_assert(noexcept(std::declval<ref&>().try_get_live()));
static_assert(noexcept(std::declval<ref&>().kill()) && noexcept(std::declval<ref&>().resurrect()));
static_assert(sizeof(ref) <= 192);
static_assert(sizeof(basic_percpu_ref<single_platform>) <= 128);

namespace {

/// A ref that counts what happens to it and notices a release before its confirm.
template <class P>
struct probe : basic_percpu_ref<P> {
  using base = basic_percpu_ref<P>;
  explicit probe(ref_init flags = ref_init::none) : base(&on_release, flags) {}
  ~probe() { this->exit(); }
  static probe& of(base& r) { return static_cast<probe&>(r); }
  static void on_release(base& r) noexcept {
    probe& self = of(r);
    self.releaser = std::this_thread::get_id();
    if (self.then != nullptr) self.then(self);
    self.released.fetch_add(1);
  }
  static void on_confirm(base& r) noexcept {
    probe& self = of(r);
    if (self.released.load() != 0) self.confirm_was_late = true;
    self.confirmer = std::this_thread::get_id();
    self.confirmed.fetch_add(1);
  }
  bool kill_confirmed() { return this->kill(&on_confirm); }
  /// References, as far as anybody can tell; not counting the switch's own.
  [[nodiscard]] std::int64_t count() const {
    const auto now = this->snapshot();
    return now.shared + (now.biased ? now.per_cpu : 0) - (now.switching ? 1 : 0);
  }
  void (*then)(probe&) noexcept = nullptr;  // runs in the release callback
  std::atomic<int> released{0};
  std::atomic<int> confirmed{0};
  std::atomic<bool> confirm_was_late{false};
  std::thread::id releaser;
  std::thread::id confirmer;
};

using deferred = probe<deferred_platform>;

constexpr ref_init reinit_allowed = ref_init::allow_reinit;

// Memory for shards can be made to run out.
std::atomic<bool> no_memory{false};

}  // namespace

void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  if (no_memory.load()) return nullptr;
  const auto boundary = static_cast<std::size_t>(alignment);
  return std::aligned_alloc(boundary, (size + boundary - 1) / boundary * boundary);
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
  std::free(memory);
}

#define ALL_PLATFORMS default_platform, portable_platform, single_platform
#define THREADED_PLATFORMS default_platform, portable_platform

TEST_SUITE("percpu_ref") {

TEST_CASE_TEMPLATE("1: a fresh ref is live, per-CPU, and holds the initial reference", P,
                   ALL_PLATFORMS, deferred_platform) {
  const misuse_log log;
  const probe<P> r;

  const auto now = r.snapshot();

  CHECK(now.percpu);
  CHECK(now.biased);
  CHECK_FALSE(now.dying);
  CHECK_FALSE(now.zero);
  CHECK_FALSE(now.switching);
  CHECK_FALSE(now.allow_reinit);
  CHECK(now.shared == 1);
  CHECK(now.per_cpu == 0);
}

TEST_CASE_TEMPLATE("2: a ref made atomic reaches zero without ever being killed", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(ref_init::atomic);
  CHECK(r.snapshot().shared == 1);
  CHECK_FALSE(r.is_dying());

  r.get();
  CHECK(r.snapshot().shared == 2);
  r.put();
  CHECK(r.released == 0);
  r.put();

  CHECK(r.released == 1);
  CHECK_FALSE(r.is_dying());
  CHECK(r.is_zero());
  CHECK_FALSE(r.try_get());
  CHECK_FALSE(r.try_get_live());
}

TEST_CASE_TEMPLATE("3: a ref made dead is at zero and comes back per-CPU", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(ref_init::dead);
  CHECK(r.is_dying());
  CHECK(r.is_zero());
  CHECK_FALSE(r.try_get());
  CHECK_FALSE(r.try_get_live());

  r.reinit();

  CHECK(log.count() == 0);
  CHECK(r.snapshot().percpu);
  CHECK(r.snapshot().shared == 1);
  REQUIRE(r.try_get_live());
  r.put();
}

TEST_CASE_TEMPLATE("4: a ref made dead and atomic comes back atomic, until told otherwise", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(ref_init::dead | ref_init::atomic);

  r.reinit();
  CHECK_FALSE(r.snapshot().percpu);
  CHECK(r.snapshot().force_atomic);
  CHECK(r.snapshot().shared == 1);
  r.switch_to_percpu();

  CHECK(r.snapshot().percpu);
  CHECK(r.snapshot().shared == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("5: an idle ref is released after the grace period, not in kill; confirm comes first") {
  const misuse_log log;
  deferred r;

  REQUIRE(r.kill_confirmed());
  CHECK(r.released == 0);
  CHECK(r.confirmed == 0);
  CHECK(r.is_dying());
  CHECK_FALSE(r.is_zero());
  CHECK(r.snapshot().shared == 1);  // the switch's own
  CHECK(r.snapshot().switching);
  CHECK(grace().run() == 1);

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK_FALSE(r.confirm_was_late);
  CHECK(r.is_zero());
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("5b: where the grace period is instant, a kill is confirmed when it returns", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r;

  REQUIRE(r.kill_confirmed());

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK_FALSE(r.confirm_was_late);
  CHECK(r.is_dying());
  CHECK(r.is_zero());
  CHECK_FALSE(r.try_get_live());
}

TEST_CASE_TEMPLATE("6: the last of the users releases a killed ref, in its own thread", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r;
  r.get(2);

  REQUIRE(r.kill_confirmed());
  CHECK(r.confirmed == 1);
  CHECK(r.snapshot().shared == 2);
  r.put();
  CHECK(r.released == 0);
  r.put();

  CHECK(r.released == 1);
  CHECK(r.releaser == std::this_thread::get_id());
  CHECK(log.count() == 0);
}

TEST_CASE("7: users who leave before the grace period is over release nothing") {
  const misuse_log log;
  deferred r;
  r.get(2);
  REQUIRE(r.kill_confirmed());

  r.put();
  r.put();
  CHECK(r.released == 0);
  CHECK(r.snapshot().shared == -1);  // their gets are still in the counter
  CHECK(r.snapshot().per_cpu == 2);
  grace().run();

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK_FALSE(r.confirm_was_late);
  CHECK(log.count() == 0);
}

TEST_CASE("7b: who was under way when the ref was killed is counted all the same") {
  const misuse_log log;
  deferred r;
  REQUIRE(r.kill_confirmed());

  testing::straggling() = true;
  REQUIRE(r.try_get_live());
  testing::straggling() = false;
  grace().run();
  CHECK(r.released == 0);
  r.put();

  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("8: before the grace period is over try_get says yes and try_get_live says no") {
  const misuse_log log;
  deferred r;
  REQUIRE(r.kill());

  CHECK_FALSE(r.try_get_live());
  REQUIRE(r.try_get());
  grace().run();
  CHECK(r.released == 0);
  CHECK_FALSE(r.try_get_live());
  r.put();

  CHECK(r.released == 1);
  CHECK_FALSE(r.try_get());
}

TEST_CASE_TEMPLATE("9: references taken on one thread may be put on another", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  probe<P> r;
  for (int i = 0; i < 1000; ++i) r.get();

  std::thread([&] {
    for (int i = 0; i < 1000; ++i) r.put();
  }).join();
  REQUIRE(r.kill());

  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("10: putting more than was taken surfaces in kill and releases nothing", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  probe<P> r;
  r.get(3);
  r.put(4);
  CHECK(log.count() == 0);

  REQUIRE(r.kill());

  CHECK(log.take() == 1);
  CHECK(log.last() == "percpu_ref: more references were put than taken");
  CHECK(r.released == 0);
  CHECK_FALSE(r.is_zero());
  CHECK(r.try_get());
  CHECK(r.released == 0);
}

TEST_CASE("11: killing an atomic ref confirms, then releases, before it returns") {
  const misuse_log log;
  deferred r(ref_init::atomic);

  REQUIRE(r.kill_confirmed());

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK_FALSE(r.confirm_was_late);
  CHECK(grace().requested() == 0);
}

TEST_CASE("12: killing an atomic ref with a user confirms and leaves the release to the user") {
  const misuse_log log;
  deferred r(ref_init::atomic);
  r.get();

  REQUIRE(r.kill_confirmed());
  CHECK(r.confirmed == 1);
  CHECK(r.released == 0);
  r.put();

  CHECK(r.released == 1);
  CHECK(grace().requested() == 0);
}

TEST_CASE_TEMPLATE("13: exit and queries from the release callback do not deadlock", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  const auto exit_there = [](probe<P>& r) noexcept {
    if (r.is_zero() && r.is_dying() && r.snapshot().zero) r.exit();
  };
  SUBCASE("release in the grace-period callback") {
    probe<P> r;
    r.then = exit_there;
    REQUIRE(r.kill());
    CHECK(r.released == 1);
    CHECK(r.is_zero());
    CHECK_FALSE(r.try_get_live());
  }
  SUBCASE("release in a put") {
    probe<P> r;
    r.then = exit_there;
    r.get();
    REQUIRE(r.kill());
    r.put();
    CHECK(r.released == 1);
    CHECK(r.is_zero());
    CHECK(r.is_dying());
  }
  SUBCASE("release in kill itself") {
    probe<P> r(ref_init::atomic);
    r.then = exit_there;
    REQUIRE(r.kill());
    CHECK(r.released == 1);
    CHECK(r.is_zero());
  }
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("14: a second kill is reported and drops nothing", P, ALL_PLATFORMS) {
  misuse_log log;
  probe<P> r(reinit_allowed);
  r.get(2);
  REQUIRE(r.kill());

  (void)r.kill();
  CHECK(log.take() == 1);
  CHECK(r.snapshot().shared == 2);
  r.put();
  CHECK(r.released == 0);
  r.put();

  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("15: a second kill during the grace period is reported at once and confirms nothing") {
  misuse_log log;
  deferred r(reinit_allowed);
  REQUIRE(r.kill_confirmed());

  (void)r.kill_confirmed();
  CHECK(log.take() == 1);
  grace().run();

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("15b: a kill that meets a switch under way waits for it and then confirms itself") {
  const misuse_log log;
  deferred r(reinit_allowed);
  REQUIRE(r.switch_to_atomic());
  std::atomic<bool> killed{false};

  worker killer([&] { killed = r.kill_confirmed(); });
  while (!r.is_dying()) std::this_thread::yield();
  CHECK_FALSE(r.try_get_live());
  CHECK(killer.is_blocked());
  CHECK(r.confirmed == 0);
  grace().run();
  killer.join();

  CHECK(killed);
  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK(r.confirmer != std::this_thread::get_id());
  CHECK(grace().requested() == 1);
}

TEST_CASE("16: a live ref can be moved to its shared word; again, it confirms at once") {
  const misuse_log log;
  deferred r(reinit_allowed);

  REQUIRE(r.switch_to_atomic(&deferred::on_confirm));
  CHECK(r.confirmed == 0);
  REQUIRE(r.try_get_live());
  grace().run();
  CHECK(r.confirmed == 1);
  r.put();
  CHECK(r.snapshot().shared == 1);
  CHECK_FALSE(r.is_dying());
  REQUIRE(r.switch_to_atomic(&deferred::on_confirm));

  CHECK(r.confirmed == 2);
  CHECK(grace().requested() == 1);
  CHECK(r.released == 0);
}

TEST_CASE_TEMPLATE("17: a switch to atomic outlives kill and reinit", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  REQUIRE(r.switch_to_atomic_sync());
  REQUIRE(r.kill());
  CHECK(r.released == 1);

  r.reinit();
  CHECK_FALSE(r.snapshot().percpu);
  CHECK(r.snapshot().force_atomic);
  r.switch_to_percpu();

  CHECK(r.snapshot().percpu);
  CHECK(r.count() == 1);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("18: a dead ref switched to per-CPU moves when it comes back", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  REQUIRE(r.switch_to_atomic_sync());
  REQUIRE(r.kill());

  r.switch_to_percpu();
  CHECK_FALSE(r.snapshot().percpu);
  CHECK(r.is_dying());
  r.reinit();

  CHECK(r.snapshot().percpu);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("18b: keep_atomic moves nothing now and keeps the ref atomic when it comes back",
                   P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);

  r.keep_atomic();
  CHECK(r.snapshot().percpu);
  REQUIRE(r.kill());
  CHECK(r.resurrect());

  CHECK_FALSE(r.snapshot().percpu);
  CHECK(r.count() == 1);
}

TEST_CASE_TEMPLATE("19: mode switches of a ref made without allow_reinit are reported, no more", P,
                   ALL_PLATFORMS) {
  misuse_log log;
  probe<P> r;

  (void)r.switch_to_atomic();
  CHECK(log.take() == 1);
  r.keep_atomic();
  CHECK(log.take() == 1);
  r.switch_to_percpu();  // it is
  CHECK(log.take() == 0);
  CHECK(r.snapshot().percpu);
  CHECK_FALSE(r.is_dying());
  REQUIRE(r.kill());
  CHECK(r.released == 1);
  CHECK_FALSE(r.resurrect());
  CHECK(log.take() == 1);
  r.switch_to_percpu();  // of a dying ref: nothing to do

  CHECK(log.take() == 0);
  CHECK(r.is_dying());
  CHECK(r.released == 1);
}

TEST_CASE_TEMPLATE("20: a ref can be resurrected with users inside", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  r.get();
  REQUIRE(r.kill());
  CHECK(r.snapshot().shared == 1);

  CHECK_FALSE(r.resurrect());
  CHECK(r.snapshot().percpu);
  CHECK(r.snapshot().shared == 2);
  r.put();
  CHECK(r.count() == 1);
  REQUIRE(r.kill());

  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("20b: resurrect tells whether the count had been at zero", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  REQUIRE(r.kill());

  CHECK(r.resurrect());
  r.get();
  REQUIRE(r.kill());
  CHECK_FALSE(r.resurrect());
  r.put();

  CHECK(r.released == 1);
  CHECK(r.count() == 1);
}

TEST_CASE("21: resurrect during the grace period is live at once and returns when it is over") {
  const misuse_log log;
  deferred r(reinit_allowed);
  REQUIRE(r.kill());
  std::atomic<bool> was_zero{true};

  worker reviver([&] { was_zero = r.resurrect(); });
  while (r.is_dying()) std::this_thread::yield();
  REQUIRE(r.try_get_live());
  CHECK(reviver.is_blocked());
  grace().run();
  reviver.join();

  CHECK_FALSE(was_zero);
  CHECK(r.released == 0);
  CHECK(r.snapshot().percpu);
  CHECK(r.count() == 2);
  r.put();
  CHECK(r.count() == 1);
  CHECK(grace().broken_contracts() == 0);
}

TEST_CASE("21b: a ref resurrected and killed again within one grace period ends dead") {
  const misuse_log log;
  deferred r(reinit_allowed);
  REQUIRE(r.kill());

  worker reviver([&] { (void)r.resurrect(); });
  while (r.is_dying()) std::this_thread::yield();
  worker killer([&] { (void)r.kill_confirmed(); });
  while (!r.is_dying()) std::this_thread::yield();
  CHECK(reviver.is_blocked());
  CHECK(killer.is_blocked());
  grace().run();
  reviver.join();
  killer.join();

  CHECK(r.is_dying());
  CHECK(r.is_zero());
  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK(grace().requested() == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("21c: switch_to_percpu during a switch to atomic waits for it and undoes it") {
  const misuse_log log;
  deferred r(reinit_allowed);
  REQUIRE(r.switch_to_atomic(&deferred::on_confirm));

  worker back([&] { r.switch_to_percpu(); });
  while (r.snapshot().force_atomic) std::this_thread::yield();
  CHECK(back.is_blocked());
  grace().run();
  back.join();

  CHECK(r.snapshot().percpu);
  CHECK(r.confirmed == 1);
  CHECK(r.count() == 1);
}

TEST_CASE("21d: switch_to_percpu of a dying ref made without allow_reinit waits for the switch") {
  const misuse_log log;
  deferred r;
  REQUIRE(r.kill());

  worker back([&] { r.switch_to_percpu(); });
  CHECK(back.is_blocked());
  grace().run();
  back.join();

  CHECK_FALSE(r.snapshot().percpu);
  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("21e: a kill undone while it waited puts its reference where a per-CPU ref has it put") {
  deferred r(reinit_allowed);
  REQUIRE(r.switch_to_atomic());
  worker killer([&] { (void)r.kill(); });
  while (!r.is_dying()) std::this_thread::yield();
  CHECK(killer.is_blocked());
  worker back([&] { r.switch_to_percpu(); });
  while (r.snapshot().force_atomic) std::this_thread::yield();
  CHECK(back.is_blocked());
  worker undone([&] { (void)r.resurrect(); });
  while (r.is_dying()) std::this_thread::yield();
  CHECK(undone.is_blocked());

  grace().run();
  killer.join();
  back.join();
  undone.join();

  CHECK(r.snapshot().percpu);
  CHECK(r.snapshot().shared == 2);
  CHECK(r.snapshot().per_cpu == -1);
  CHECK(r.count() == 1);
}

TEST_CASE_TEMPLATE("22: resurrecting a live ref is reported and takes nothing", P, ALL_PLATFORMS) {
  misuse_log log;
  probe<P> r(reinit_allowed);

  CHECK_FALSE(r.resurrect());
  CHECK(log.take() == 1);
  CHECK(r.count() == 1);
  REQUIRE(r.kill());

  CHECK(r.released == 1);
}

TEST_CASE_TEMPLATE("23: reinit of a ref not at zero is reported, and done", P, ALL_PLATFORMS) {
  misuse_log log;
  probe<P> r(reinit_allowed);
  r.get();
  REQUIRE(r.kill());

  r.reinit();

  CHECK(log.take() == 1);
  CHECK(r.snapshot().percpu);
  CHECK(r.count() == 2);
  r.put();
  REQUIRE(r.kill());
  CHECK(r.released == 1);
}

TEST_CASE("29: exit during a switch is reported and waits for it") {
  misuse_log log;
  deferred r;
  REQUIRE(r.kill());

  worker leaver([&] { r.exit(); });
  while (log.count() == 0) std::this_thread::yield();
  CHECK(leaver.is_blocked());
  grace().run();
  leaver.join();

  CHECK(log.take() == 1);
  CHECK(r.released == 1);
  CHECK(r.is_zero());
}

TEST_CASE_TEMPLATE("30: after exit the ref is dying and remembers whether it was at zero", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> unused;
  probe<P> finished;
  REQUIRE(finished.kill());

  unused.exit();
  finished.exit();
  finished.exit();

  CHECK(unused.is_dying());
  CHECK_FALSE(unused.is_zero());
  CHECK_FALSE(unused.try_get_live());
  CHECK(finished.is_dying());
  CHECK(finished.is_zero());
  CHECK_FALSE(finished.try_get_live());
  CHECK(finished.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("31: put releases at zero exactly, not below", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> even(ref_init::atomic);
  probe<P> over(ref_init::atomic);
  even.get(4);
  over.get(4);
  CHECK(even.snapshot().shared == 5);

  even.put(5);
  over.put(7);

  CHECK(even.released == 1);
  CHECK(over.released == 0);
  CHECK(over.snapshot().shared == -2);
}

TEST_CASE_TEMPLATE("31b: zero references taken or put change nothing", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(ref_init::atomic);
  REQUIRE(r.try_get(0));
  r.put();

  r.put(0);
  r.get(0);

  CHECK(r.released == 1);
  CHECK_FALSE(r.try_get(0));
}

TEST_CASE_TEMPLATE("32: a reference taken at zero makes a zombie that is released again", P,
                   ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  REQUIRE(r.kill());
  CHECK(r.released == 1);

  r.get();
  CHECK_FALSE(r.is_zero());
  r.put();

  CHECK(r.released == 2);
}

TEST_CASE_TEMPLATE("33: the release callback may reinit", P, ALL_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  r.then = [](probe<P>& self) noexcept {
    if (self.released == 0) self.reinit();
  };
  r.get();
  REQUIRE(r.kill());

  r.put();
  CHECK(r.released == 1);
  CHECK(r.snapshot().percpu);
  CHECK_FALSE(r.is_dying());
  REQUIRE(r.try_get_live());
  r.put();
  REQUIRE(r.kill());

  CHECK(r.released == 2);
  CHECK(log.count() == 0);
}

TEST_CASE("34: who waits for one ref is not let go by the grace period of another") {
  const misuse_log log;
  deferred first(reinit_allowed);
  deferred second(reinit_allowed);
  second.get();
  std::thread reviver;
  std::atomic<bool> revived{false};
  REQUIRE(first.kill());

  reviver = std::thread([&] {
    (void)first.resurrect();
    revived = true;
  });
  while (first.is_dying()) std::this_thread::yield();
  // The other's switch ends; its waiters, had it any, are woken.
  probe<portable_platform> other(reinit_allowed);
  REQUIRE(other.kill());
  CHECK(other.released == 1);
  CHECK_FALSE(revived);
  CHECK(first.snapshot().switching);
  grace().run();
  reviver.join();

  CHECK(revived);
  CHECK(second.count() == 2);
}

TEST_CASE("34b: two switches may share one grace period") {
  const misuse_log log;
  deferred first(reinit_allowed);
  deferred second(reinit_allowed);
  second.get();

  REQUIRE(first.kill_confirmed());
  REQUIRE(second.kill_confirmed());
  CHECK(grace().pending() == 2);
  CHECK(grace().run() == 2);

  CHECK(grace().begun() == 1);
  CHECK(first.released == 1);
  CHECK(second.confirmed == 1);
  CHECK(second.released == 0);
  second.put();
  CHECK(second.released == 1);
  CHECK(grace().broken_contracts() == 0);
}

TEST_CASE("35: is_zero is exact once switch_to_atomic_sync has returned") {
  const misuse_log log;
  deferred r(reinit_allowed);
  REQUIRE(r.kill());
  std::atomic<bool> zero{false};

  worker switcher([&] {
    if (r.switch_to_atomic_sync()) zero = r.is_zero();
  });
  CHECK(switcher.is_blocked());
  grace().run();
  switcher.join();

  CHECK(zero);
}

TEST_CASE_TEMPLATE("36: a ref that gets no memory for its counters works without", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  no_memory = true;
  probe<P> r(reinit_allowed);
  no_memory = false;

  r.get(3);
  r.put(2);
  REQUIRE(r.kill());
  CHECK(r.released == 0);
  CHECK_FALSE(r.try_get_live());
  r.put();

  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

// -- refused grace periods

TEST_CASE("a refused kill is told, leaves the ref dying, and resurrect undoes it") {
  const misuse_log log;
  deferred r(reinit_allowed);
  r.get();
  grace().refuse(1);

  CHECK_FALSE(r.kill_confirmed());
  CHECK(r.is_dying());
  CHECK_FALSE(r.is_zero());
  CHECK(r.confirmed == 0);
  CHECK_FALSE(r.try_get_live());
  CHECK_FALSE(r.resurrect());
  CHECK(r.snapshot().percpu);
  CHECK_FALSE(r.snapshot().switching);
  CHECK(r.count() == 2);
  REQUIRE(r.try_get_live());
  r.put(2);

  CHECK(r.count() == 1);
  CHECK(r.released == 0);
  CHECK(grace().pending() == 0);
  CHECK(grace().broken_contracts() == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("references taken and put while a kill is refused are counted") {
  const misuse_log log;
  deferred r(reinit_allowed);
  r.get(5);
  grace().refuse(1);
  REQUIRE_FALSE(r.kill());

  r.put(3);
  REQUIRE(r.try_get(2));
  testing::straggling() = true;  // nobody has waited for those under way
  r.get(7);
  testing::straggling() = false;
  (void)r.resurrect();
  CHECK(r.count() == 12);
  r.put(11);
  CHECK(r.released == 0);
  REQUIRE(r.kill());
  grace().run();

  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("after a refused kill a switch to atomic tries again and confirms the kill") {
  const misuse_log log;
  deferred r(reinit_allowed);
  grace().refuse(2);
  REQUIRE_FALSE(r.kill_confirmed());
  CHECK_FALSE(r.switch_to_atomic_sync());
  CHECK(r.confirmed == 0);
  grace().serve_at_once(true);

  CHECK(r.switch_to_atomic_sync());

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK(r.is_zero());
  CHECK(grace().requested() == 3);
  CHECK(grace().broken_contracts() == 0);
}

TEST_CASE("a refused switch to atomic leaves a live ref that counts, and a later kill succeeds") {
  misuse_log log;
  deferred r(reinit_allowed);
  r.get();
  grace().refuse(2);
  CHECK_FALSE(r.switch_to_atomic());
  CHECK_FALSE(r.is_dying());
  REQUIRE(r.try_get_live());
  CHECK_FALSE(r.kill());
  grace().serve_at_once(true);

  CHECK_FALSE(r.resurrect());
  CHECK_FALSE(r.snapshot().percpu);
  CHECK_FALSE(r.snapshot().switching);
  CHECK(r.count() == 3);
  r.put(2);
  REQUIRE(r.kill_confirmed());

  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("a refused switch to atomic is undone by switch_to_percpu") {
  const misuse_log log;
  deferred r(reinit_allowed);
  grace().refuse(1);
  CHECK_FALSE(r.switch_to_atomic());

  r.switch_to_percpu();

  CHECK(r.snapshot().percpu);
  CHECK(r.count() == 1);
  CHECK(grace().requested() == 1);
}

TEST_CASE("a resurrect that waits for a grace period is let go when it is refused") {
  const misuse_log log;
  deferred r(reinit_allowed);
  // Refused, but asked again: the request is made by another thread, which the
  // grace period is refused while we wait for it.
  grace().refuse(1);
  std::thread reviver;
  testing::after_unlock() = {1, [&] {  // kill() has left its lock, not yet asked
                               reviver = std::thread([&] { (void)r.resurrect(); });
                               while (r.is_dying()) std::this_thread::yield();
                             }};

  CHECK_FALSE(r.kill());
  reviver.join();

  CHECK_FALSE(r.is_dying());
  CHECK(r.snapshot().percpu);
  CHECK(r.count() == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("a ref whose kill was refused may be exited and destroyed without a report") {
  const misuse_log log;
  {
    deferred r(reinit_allowed);
    grace().refuse(1);
    REQUIRE_FALSE(r.kill());
    r.exit();
    CHECK_FALSE(r.is_zero());
  }

  CHECK(log.count() == 0);
}

TEST_CASE("a ref freed by the release that a second try brings about is not touched afterwards") {
  const misuse_log log;
  static int freed;
  freed = 0;
  struct own : basic_percpu_ref<deferred_platform> {
    own() : basic_percpu_ref(&drop, reinit_allowed) {}
    static void drop(basic_percpu_ref& r) noexcept {
      ++freed;
      delete &static_cast<own&>(r);
    }
  };
  auto* const r = new own;
  grace().refuse(1);
  REQUIRE_FALSE(r->kill());
  grace().serve_at_once(true);

  CHECK(r->switch_to_atomic());  // the address sanitizer is the judge

  CHECK(freed == 1);
  CHECK(log.count() == 0);
}

TEST_CASE("the second kill of a ref made without allow_reinit retries a refused one") {
  misuse_log log;
  deferred r;
  grace().refuse(1);
  REQUIRE_FALSE(r.kill_confirmed());
  grace().serve_at_once(true);

  const bool killed = r.kill_confirmed();

  CHECK(killed);
  CHECK(log.count() == 0);
  CHECK(r.confirmed == 1);
  CHECK(r.released == 1);
}

// -- destruction

TEST_CASE_TEMPLATE("destroying a referenced ref is reported", P, ALL_PLATFORMS) {
  misuse_log log;
  { const basic_percpu_ref<P> r([](basic_percpu_ref<P>&) noexcept {}); }

  CHECK(log.take() == 1);
  CHECK(log.last() == "percpu_ref destroyed while referenced");
}

TEST_CASE_TEMPLATE("the release callback may destroy the ref", P, ALL_PLATFORMS) {
  const misuse_log log;
  static int destroyed;
  destroyed = 0;
  struct own : basic_percpu_ref<P> {
    explicit own(ref_init flags) : basic_percpu_ref<P>(&drop, flags) {}
    ~own() { ++destroyed; }
    static void drop(basic_percpu_ref<P>& r) noexcept { delete &static_cast<own&>(r); }
  };

  auto* const in_callback = new own(ref_init::none);
  CHECK(in_callback->kill());
  auto* const in_kill = new own(ref_init::atomic);
  CHECK(in_kill->kill());
  auto* const in_put = new own(ref_init::none);
  in_put->get();
  CHECK(in_put->kill());
  in_put->put();

  CHECK(destroyed == 3);
  CHECK(log.count() == 0);
}

// -- races, with real threads and for a short time

TEST_CASE_TEMPLATE("24: mode switches under load lose no reference", P, THREADED_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  std::atomic<bool> stop{false};
  std::vector<std::thread> users;
  for (int i = 0; i < 2; ++i) {
    users.emplace_back([&] {
      while (!stop) {
        r.get(3);
        r.put();
        r.put(2);
      }
    });
  }

  int rounds = 0;
  for (time_limit limit(250); limit && rounds < 10000; ++rounds) {
    (void)r.switch_to_atomic_sync();
    r.switch_to_percpu();
  }
  stop = true;
  for (auto& user : users) user.join();
  REQUIRE(r.kill());

  CHECK(rounds > 0);
  CHECK(r.released == 1);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("25: no try_get_live that starts after confirm succeeds", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  int rounds = 0;
  int wrong = 0;
  for (time_limit limit(300); limit; ++rounds) {
    probe<P> r(rounds % 2 == 0 ? ref_init::none : ref_init::atomic);
    std::atomic<bool> stop{false};
    std::atomic<int> late{0};
    std::atomic<int> ready{0};
    std::vector<std::thread> users;
    for (int i = 0; i < 3; ++i) {
      users.emplace_back([&] {
        ready.fetch_add(1);
        while (!stop) {
          const bool confirmed = r.confirmed.load() != 0;
          if (!r.try_get_live()) continue;
          if (confirmed) late.fetch_add(1);
          r.put();
        }
      });
    }
    while (ready < 3) std::this_thread::yield();
    (void)r.kill_confirmed();
    stop = true;
    for (auto& user : users) user.join();
    if (late != 0 || r.released != 1 || r.confirm_was_late) ++wrong;
  }

  CHECK(rounds > 0);
  CHECK(wrong == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("26: between release and reinit nobody gets in", P, THREADED_PLATFORMS) {
  const misuse_log log;
  probe<P> r(reinit_allowed);
  std::atomic<bool> stop{false};
  std::atomic<bool> closed{false};
  std::atomic<int> inside{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> users;
  for (int i = 0; i < 3; ++i) {
    users.emplace_back([&] {
      while (!stop) {
        if (!r.try_get_live()) continue;
        inside.fetch_add(1);
        if (closed) wrong.fetch_add(1);
        inside.fetch_sub(1);
        r.put();
      }
    });
  }

  int rounds = 0;
  for (time_limit limit(400); limit && rounds < 1000; ++rounds) {
    (void)r.kill();
    while (r.released.load() == rounds) std::this_thread::yield();
    closed = true;
    if (inside != 0 || !r.is_zero()) wrong.fetch_add(1);
    closed = false;
    r.reinit();
  }
  stop = true;
  for (auto& user : users) user.join();

  CHECK(wrong == 0);
  CHECK(r.released == rounds);
  CHECK(r.count() == 1);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("27: what was written before a put is seen by release", P, THREADED_PLATFORMS) {
  const misuse_log log;
  struct written : probe<P> {
    explicit written(ref_init flags) : probe<P>(flags) {
      this->then = [](probe<P>& self) noexcept {
        auto& all = static_cast<written&>(self);
        for (const int value : all.values) all.sum += value;
      };
    }
    std::array<int, 4> values{};
    int sum = 0;
  };
  int wrong = 0;
  for (int round = 0; round < 60; ++round) {
    written r(round % 3 == 0 ? ref_init::atomic : ref_init::none);
    const bool kill_first = round % 3 == 1;
    r.get(4);
    std::vector<std::thread> writers;
    if (kill_first) (void)r.kill();
    for (std::size_t i = 0; i < r.values.size(); ++i) {
      writers.emplace_back([&r, i] {
        r.values[i] = 1;
        r.put();
      });
    }
    if (!kill_first) (void)r.kill();  // beside the puts
    for (auto& writer : writers) writer.join();
    if (r.sum != 4 || r.released != 1) ++wrong;
  }

  CHECK(wrong == 0);
  CHECK(log.count() == 0);
}

TEST_CASE("28: the last put and the end of the grace period at the same time release once") {
  const misuse_log log;
  int rounds = 0;
  int wrong = 0;
  std::unique_ptr<deferred> shared;
  std::atomic<int> turn{0};
  std::atomic<bool> stop{false};
  std::thread putter([&] {
    for (int mine = 1; !stop; ) {
      if (turn.load(std::memory_order_acquire) != mine) {
        std::this_thread::yield();
        continue;
      }
      shared->put();
      turn.store(mine + 1, std::memory_order_release);
      mine += 2;
    }
  });

  for (time_limit limit(300); limit; ++rounds) {
    shared = std::make_unique<deferred>();
    shared->get();
    (void)shared->kill_confirmed();
    const int go = 2 * rounds + 1;
    turn.store(go, std::memory_order_release);
    grace().run();
    while (turn.load(std::memory_order_acquire) != go + 1) std::this_thread::yield();
    if (shared->released != 1 || shared->confirmed != 1 || shared->confirm_was_late) ++wrong;
  }
  stop = true;
  putter.join();

  CHECK(rounds > 0);
  CHECK(wrong == 0);
  CHECK(log.count() == 0);
}

TEST_CASE_TEMPLATE("a ref freed by its release callback is not touched afterwards", P,
                   THREADED_PLATFORMS) {
  const misuse_log log;
  struct own : basic_percpu_ref<P> {
    explicit own(std::atomic<int>& n) : basic_percpu_ref<P>(&drop), dropped(n) {}
    static void drop(basic_percpu_ref<P>& r) noexcept {
      auto& self = static_cast<own&>(r);
      std::atomic<int>& n = self.dropped;
      delete &self;
      n.fetch_add(1);
    }
    std::atomic<int>& dropped;
  };
  std::atomic<int> dropped{0};
  std::atomic<own*> next{nullptr};
  std::atomic<bool> stop{false};
  std::thread putter([&] {
    while (!stop) {
      if (own* const mine = next.exchange(nullptr)) mine->put();
      std::this_thread::yield();
    }
  });

  int rounds = 0;
  for (time_limit limit(250); limit; ++rounds) {
    auto* const r = new own(dropped);
    r->get();
    next = r;
    (void)r->kill();
    while (dropped.load() == rounds) std::this_thread::yield();
  }
  stop = true;
  putter.join();

  CHECK(rounds > 0);
  CHECK(dropped == rounds);
  CHECK(log.count() == 0);
}

}  // TEST_SUITE("percpu_ref")
