// SPDX-License-Identifier: MIT
//
// platform_test.cpp - what the gates ask of a platform: counters, words to sleep
// on, mutexes, the arena of per-CPU words.
//
// Where rseq is missing or switched off (GLIBC_TUNABLES=glibc.pthread.rseq=0) the
// same tests run on the fallback.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/platform.hpp>
#if defined(__linux__)
#include <pmgate/platform/linux_shared.hpp>
#endif
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/sharded_counter.hpp>
#include <pmgate/platform/single.hpp>

#include "support/deferred_platform.hpp"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

using pmgate::portable_platform;
using pmgate::sharded_counter;
using pmgate::single_platform;
using testing::misuse_log;
using testing::time_limit;
using testing::worker;

namespace {

/// A machine with a fixed number of shards.
template <std::size_t Shards>
struct shards_of {
  template <class T>
  using atomic = std::atomic<T>;
  static std::size_t shard_count() noexcept { return Shards; }
  static std::size_t shard_hint() noexcept { return pmgate::detail::own_thread_number(); }
};

struct embedded_shard : sharded_counter<shards_of<8>> {
  explicit embedded_shard(bool starts_open) noexcept
      : sharded_counter(starts_open, width::one) {}
};

using portable_counter = portable_platform::cpu_counter;
using default_counter = pmgate::default_platform::cpu_counter;
using one_shard = sharded_counter<shards_of<1>>;
using two_shards = sharded_counter<shards_of<2>>;
using many_shards = sharded_counter<shards_of<16>>;
using single_counter = single_platform::cpu_counter;

static_assert(!std::is_copy_constructible_v<default_counter>);
static_assert(!std::is_move_constructible_v<default_counter>);
static_assert(!std::is_copy_constructible_v<portable_counter>);
static_assert(std::is_nothrow_constructible_v<default_counter, bool>);
static_assert(sizeof(portable_counter) <= 24);
static_assert(sizeof(default_counter) <= 64);

bool grace_period() noexcept { return pmgate::default_platform::synchronize(); }

/// Keeps the calling thread on one CPU, if there is that CPU.
void pin_to(unsigned cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu % std::max(1U, std::thread::hardware_concurrency()), &set);
  (void)::sched_setaffinity(0, sizeof set, &set);
#else
  (void)cpu;
#endif
}

#if defined(__linux__)
/// Linux without restartable sequences.
struct no_sequences : pmgate::detail::linux_machine {
  static bool restartable() noexcept { return false; }
};
/// Linux that believes in more CPUs than any memory is for.
struct too_many_cpus : pmgate::detail::linux_machine {
  static std::uint32_t cpu_limit() noexcept { return 0xffffffffU; }
};
/// Linux that knows of no CPU at all: every number is out of bounds.
struct unknown_cpus : pmgate::detail::linux_machine {
  static std::uint32_t cpu_limit() noexcept { return 0; }
};
using shared_platform = pmgate::linux_shared_platform;
/// Linux on a large machine.
struct cpus_128 : pmgate::detail::linux_machine {
  static std::uint32_t cpu_limit() noexcept { return 128; }
};
using no_rseq_counter = pmgate::rseq_counter<no_sequences>;
using no_memory_counter = pmgate::rseq_counter<too_many_cpus>;
using no_cpu_counter = pmgate::rseq_counter<unknown_cpus>;
#define ENGINES                                                                              \
  default_counter, no_rseq_counter, no_memory_counter, no_cpu_counter, portable_counter,     \
      shared_platform::cpu_counter, embedded_shard, one_shard, two_shards, many_shards
#else
using shared_platform = portable_platform;
#define ENGINES \
  default_counter, portable_counter, embedded_shard, one_shard, two_shards, many_shards
#endif

}  // namespace

TEST_SUITE("platform") {

// -- counters

TEST_CASE_TEMPLATE("an open counter counts, a closed one refuses and keeps its sum", C, ENGINES,
                   single_counter) {
  C counter(true);
  REQUIRE(counter.try_add(5));
  REQUIRE(counter.try_add(-7));
  CHECK(counter.peek() == -2);

  counter.begin_close();
  CHECK_FALSE(counter.try_add(1));
  REQUIRE(grace_period());

  CHECK(counter.finish_close() == -2);
  CHECK(counter.peek() == -2);
  CHECK_FALSE(counter.try_add(0));
}

TEST_CASE_TEMPLATE("a counter made closed refuses until it is opened", C, ENGINES,
                   single_counter) {
  C counter(false);
  CHECK_FALSE(counter.try_add(1));
  CHECK(counter.peek() == 0);

  counter.open();

  CHECK(counter.try_add(1));
  CHECK(counter.peek() == 1);
}

TEST_CASE_TEMPLATE("open starts again at zero, reopen goes on", C, ENGINES, single_counter) {
  C counter(true);
  REQUIRE(counter.try_add(3));
  counter.begin_close();
  REQUIRE(grace_period());
  CHECK(counter.finish_close() == 3);

  counter.open();
  CHECK(counter.peek() == 0);
  REQUIRE(counter.try_add(4));
  counter.begin_close();
  counter.reopen();
  REQUIRE(counter.try_add(4));
  counter.begin_close();
  REQUIRE(grace_period());

  CHECK(counter.finish_close() == 8);
  counter.reopen();
  REQUIRE(counter.try_add(1));
  CHECK(counter.peek() == 9);
}

TEST_CASE_TEMPLATE("sums may be large and negative", C, ENGINES, single_counter) {
  constexpr auto large = std::intptr_t{1} << 60;
  C counter(true);

  REQUIRE(counter.try_add(-large));
  CHECK(counter.peek() == -large);
  REQUIRE(counter.try_add(large));
  REQUIRE(counter.try_add(large));
  counter.begin_close();
  REQUIRE(grace_period());

  CHECK(counter.finish_close() == large);
}

TEST_CASE_TEMPLATE("what one thread adds another may take back", C, ENGINES) {
  C counter(true);
  std::thread([&] {
    pin_to(0);
    for (int i = 0; i < 1000; ++i) (void)counter.try_add(1);
  }).join();
  std::thread([&] {
    pin_to(1);
    for (int i = 0; i < 1000; ++i) (void)counter.try_add(-1);
  }).join();

  CHECK(counter.peek() == 0);
}

TEST_CASE_TEMPLATE("closing under load is exact: no add is lost, none comes after the sum", C,
                   ENGINES) {
  C counter(true);
  std::atomic<bool> stop{false};
  std::atomic<std::intptr_t> outside{0};  // what was refused
  std::atomic<std::intptr_t> wanted{0};
  std::vector<std::thread> users;
  for (unsigned i = 0; i < 2; ++i) {
    users.emplace_back([&, i] {
      pin_to(i);
      std::intptr_t refused = 0;
      std::intptr_t all = 0;
      for (int step = 0; !stop; ++step) {
        const std::intptr_t n = step % 3 == 0 ? -1 : 2;
        all += n;
        if (!counter.try_add(n)) refused += n;
        if (step % 4096 == 0) std::this_thread::yield();
      }
      outside.fetch_add(refused);
      wanted.fetch_add(all);
    });
  }

  std::intptr_t inside = 0;
  int rounds = 0;
  int wrong = 0;
  for (time_limit limit(150); limit; ++rounds) {
    counter.begin_close();
    if (rounds % 4 == 3) {
      counter.reopen();
      continue;
    }
    if (!grace_period()) ++wrong;
    const std::intptr_t sum = counter.finish_close();
    for (int i = 0; i < 20; ++i) {
      if (counter.peek() != sum) ++wrong;
    }
    if (rounds % 4 == 1) {
      counter.reopen();
    } else {
      inside += sum;
      counter.open();
    }
  }
  stop = true;
  for (auto& user : users) user.join();

  CHECK(rounds > 0);
  CHECK(wrong == 0);
  CHECK(inside + counter.peek() + outside == wanted);
}

TEST_CASE_TEMPLATE("what was done before an add is seen after the close, and before open after it",
                   C, ENGINES) {
  int rounds = 0;
  int wrong = 0;
  C counter(false);
  int data = 0;
  std::atomic<bool> stop{false};
  std::atomic<int> added{0};
  std::thread user([&] {
    while (!stop) {
      if (!counter.try_add(1)) continue;
      ++data;  // ours until the second add is counted
      while (!counter.try_add(1)) {
        if (stop) return;
      }
      added.fetch_add(1, std::memory_order_relaxed);
      while (added.load(std::memory_order_relaxed) % 2 == 1 && !stop) std::this_thread::yield();
    }
  });

  for (time_limit limit(60); limit; ++rounds) {
    ++data;
    counter.open();
    while (counter.peek() < 2) std::this_thread::yield();
    counter.begin_close();
    if (!grace_period() || counter.finish_close() != 2) ++wrong;
    ++data;  // ordered after the user's
    while (added.load(std::memory_order_relaxed) % 2 == 0) std::this_thread::yield();
    added.fetch_add(1, std::memory_order_relaxed);
  }
  stop = true;
  user.join();

  CHECK(wrong == 0);
  CHECK(data == 3 * rounds);
}

TEST_CASE("adding from a signal handler that interrupts adding is exact") {
#if defined(__linux__)
  static default_counter counter(true);
  static std::atomic<long> by_handler{0};
  struct sigaction action {};
  action.sa_handler = [](int) {
    if (counter.try_add(1)) by_handler.fetch_add(1, std::memory_order_relaxed);
  };
  struct sigaction old {};
  ::sigaction(SIGUSR1, &action, &old);
  std::atomic<bool> stop{false};
  std::atomic<bool> started{false};
  long by_thread = 0;
  std::thread user([&] {
    started = true;
    while (!stop) {
      if (counter.try_add(1)) ++by_thread;
    }
  });
  while (!started) std::this_thread::yield();

  for (time_limit limit(100); limit;) ::pthread_kill(user.native_handle(), SIGUSR1);
  stop = true;
  user.join();
  ::sigaction(SIGUSR1, &old, nullptr);

  CHECK(by_handler > 0);
  CHECK(counter.peek() == by_thread + by_handler);
#endif
}

TEST_CASE("the embedded shard takes 8 bytes and many shards a cache line each") {
  CHECK(sizeof(one_shard) == 24);
  const many_shards counter(true);
  CHECK(counter.peek() == 0);
}

#if defined(__linux__)

TEST_CASE("the counter of Linux is CPU-local where sequences work, and only there") {
  const default_counter counter(true);
  const no_rseq_counter without(true);
  const no_memory_counter no_room(true);

  CHECK(counter.is_cpu_local() == pmgate::detail::linux_support::get().restartable);
  CHECK_FALSE(without.is_cpu_local());
  CHECK_FALSE(no_room.is_cpu_local());
}

#if PMGATE_DETAIL_RSEQ

namespace {

/// Takes rseq away from the calling thread, as if it never had it.
bool unregister_rseq() {
  char* const area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  for (const unsigned size : {32U, __rseq_size}) {  // what glibc registers, old and new
    if (::syscall(SYS_rseq, area, size, 1 /* RSEQ_FLAG_UNREGISTER */, RSEQ_SIG) == 0) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("an add tells the kernel where it begins and ends; the signature precedes the abort") {
  if (!pmgate::detail::linux_support::get().restartable) return;
  struct descriptor {
    std::uint32_t version, flags;
    std::uint64_t start, length, abort;
  };
  const char* const area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  default_counter counter(true);
  const descriptor* told = nullptr;
  for (int i = 0; i < 1000 && told == nullptr; ++i) {  // the kernel forgets it now and then
    (void)counter.try_add(1);
    std::memcpy(&told, area + 8, sizeof told);
  }
  REQUIRE(told != nullptr);

  CHECK(told->version == 0);
  CHECK(told->flags == 0);
  CHECK(told->length > 0);
  CHECK(told->abort - told->start > told->length);
  std::uint32_t signature = 0;
  std::memcpy(&signature, reinterpret_cast<const char*>(told->abort - sizeof signature),
              sizeof signature);
  CHECK(signature == RSEQ_SIG);
}

TEST_CASE("a thread without rseq counts beside those that have it, and closes are exact") {
  if (!pmgate::detail::linux_support::get().restartable) return;
  default_counter counter(true);
  std::atomic<bool> stop{false};
  std::atomic<bool> without{false};
  std::atomic<std::intptr_t> refused{0};
  std::atomic<std::intptr_t> wanted{0};
  const auto body = [&](bool unregister) {
    if (unregister) without = unregister_rseq();
    std::intptr_t missed = 0;
    std::intptr_t all = 0;
    while (!stop) {
      ++all;
      if (!counter.try_add(1)) ++missed;
    }
    refused.fetch_add(missed);
    wanted.fetch_add(all);
  };
  std::thread with_rseq(body, false);
  std::thread without_rseq(body, true);

  std::intptr_t inside = 0;
  int wrong = 0;
  for (time_limit limit(150); limit;) {
    counter.begin_close();
    if (!grace_period()) ++wrong;
    const std::intptr_t sum = counter.finish_close();
    std::this_thread::yield();
    if (counter.peek() != sum) ++wrong;
    inside += sum;
    counter.open();
  }
  stop = true;
  with_rseq.join();
  without_rseq.join();

  CHECK(without);
  CHECK(wrong == 0);
  CHECK(inside + counter.peek() + refused == wanted);
}

TEST_CASE("a slot is 8 bytes per CPU beside its neighbours; slots given back are used again") {
  using pmgate::detail::slot_arena;
  constexpr std::uint32_t cpus = 3;  // a block of our own
  std::vector<slot_arena::slot> slots;
  for (std::size_t i = 0; i < slot_arena::block::slots; ++i) slots.push_back(slot_arena::take(cpus));

  std::set<std::byte*> words;
  int wrong = 0;
  for (const auto& slot : slots) {
    if (slot.words == nullptr || slot.owner != slots.front().owner) ++wrong;
    words.insert(slot.words);
  }
  CHECK(wrong == 0);
  CHECK(words.size() == slots.size());
  CHECK(*words.rbegin() - *words.begin() ==
        static_cast<std::ptrdiff_t>(8 * (slot_arena::block::slots - 1)));
  const auto other_block = slot_arena::take(cpus);
  CHECK(other_block.owner != slots.front().owner);
  slot_arena::give_back(other_block);

  const auto freed = slots[77];
  *reinterpret_cast<std::intptr_t*>(freed.words) = 5;
  *reinterpret_cast<std::intptr_t*>(freed.words + 2 * slot_arena::stride) = 6;
  slot_arena::give_back(freed);
  for (const std::size_t i : {std::size_t{0}, std::size_t{4095}}) slot_arena::give_back(slots[i]);
  std::set<std::byte*> again;
  for (int i = 0; i < 3; ++i) {
    auto next = slot_arena::take(cpus);
    while (next.owner != freed.owner) next = slot_arena::take(cpus);
    again.insert(next.words);
    for (std::uint32_t cpu = 0; cpu < cpus; ++cpu) {
      CHECK(*reinterpret_cast<std::intptr_t*>(next.words + cpu * slot_arena::stride) == 0);
    }
  }
  CHECK(again.count(freed.words) == 1);
  CHECK(again.count(slots[0].words) == 1);
  CHECK(again.count(slots[4095].words) == 1);
}

TEST_CASE("there may be many counters, each with a sum of its own") {
  if (!pmgate::detail::linux_support::get().restartable) return;
  std::vector<std::unique_ptr<default_counter>> counters;
  for (std::intptr_t i = 0; i < 10000; ++i) {
    counters.push_back(std::make_unique<default_counter>(true));
    (void)counters.back()->try_add(i);
  }
  int wrong = 0;
  for (std::intptr_t i = 0; i < 10000; ++i) {
    const auto& counter = *counters[static_cast<std::size_t>(i)];
    if (!counter.is_cpu_local() || counter.peek() != i) ++wrong;
  }
  CHECK(wrong == 0);

  counters.clear();
  const default_counter fresh(true);

  CHECK(fresh.peek() == 0);
}

/// Bytes of address space of this process.
std::size_t mapped_bytes() {
  unsigned long pages = 0;
  std::FILE* const statm = std::fopen("/proc/self/statm", "r");
  REQUIRE(statm != nullptr);
  CHECK(std::fscanf(statm, "%lu", &pages) == 1);
  std::fclose(statm);
  return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

TEST_CASE("with 128 possible CPUs a counter takes 8 bytes for each, and no more anywhere") {
  if (!pmgate::detail::linux_support::get().restartable) return;
  using pmgate::detail::slot_arena;
  using counter = pmgate::rseq_counter<cpus_128>;
  static_assert(sizeof(counter) == sizeof(default_counter));
  constexpr std::size_t blocks = 3;
  constexpr std::size_t count = blocks * slot_arena::block::slots;
  static_assert(blocks * slot_arena::block_size(128) == count * 8 * 128 + blocks * 4096);
  const auto counters = std::make_unique<std::optional<counter>[]>(count);
  (void)mapped_bytes();  // which has needs of its own the first time
  const std::size_t before = mapped_bytes();

  for (std::size_t i = 0; i < count; ++i) counters[i].emplace(true);

  const std::size_t grown = mapped_bytes() - before;
  CHECK(grown >= count * 8 * 128);
  CHECK(grown <= count * 8 * 128 + 64 * 1024);

  int wrong = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!counters[i]->is_cpu_local()) ++wrong;
    (void)counters[i]->try_add(static_cast<std::intptr_t>(i));
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (counters[i]->peek() != static_cast<std::intptr_t>(i)) ++wrong;
  }
  CHECK(wrong == 0);

  // The next one needs another block: every slot of the others is in use.
  const slot_arena::slot next = slot_arena::take(128);
  std::size_t full = 0;
  for (const slot_arena::block* other = next.owner->next; other != nullptr; other = other->next) {
    if (other->cpus != 128) continue;
    bool all = true;
    for (const auto& bits : other->used) all = all && ~bits.load() == 0;
    if (all) ++full;
  }
  CHECK(full == blocks);
  slot_arena::give_back(next);
}

TEST_CASE("the words of many CPUs and of neighbouring counters are apart") {
  using pmgate::detail::slot_arena;
  constexpr std::uint32_t cpus = 127;  // a block of our own
  std::vector<slot_arena::slot> slots;
  for (std::size_t i = 0; i < slot_arena::block::slots; ++i) slots.push_back(slot_arena::take(cpus));
  const auto word = [](const slot_arena::slot& of, std::uint32_t cpu) -> std::intptr_t& {
    return *reinterpret_cast<std::intptr_t*>(of.words + cpu * slot_arena::stride);
  };
  std::intptr_t written = 0;
  for (const auto& slot : slots) {
    for (std::uint32_t cpu = 0; cpu < cpus; ++cpu) word(slot, cpu) = ++written;
  }

  std::intptr_t seen = 0;
  int wrong = 0;
  for (const auto& slot : slots) {
    for (std::uint32_t cpu = 0; cpu < cpus; ++cpu) {
      if (word(slot, cpu) != ++seen) ++wrong;
    }
  }
  CHECK(wrong == 0);
  for (const auto& slot : slots) slot_arena::give_back(slot);
}

TEST_CASE("slots may be taken and given back by many threads at a time") {
  using pmgate::detail::slot_arena;
  std::atomic<int> wrong{0};
  std::vector<std::thread> takers;
  for (std::intptr_t id = 1; id <= 3; ++id) {
    takers.emplace_back([&, id] {
      std::vector<slot_arena::slot> mine;
      for (time_limit limit(100); limit;) {
        for (int i = 0; i < 50; ++i) {
          mine.push_back(slot_arena::take(1));
          auto& word = *reinterpret_cast<std::intptr_t*>(mine.back().words);
          if (word != 0) wrong.fetch_add(1);
          word = id;
        }
        for (const auto& slot : mine) {
          if (*reinterpret_cast<std::intptr_t*>(slot.words) != id) wrong.fetch_add(1);
          slot_arena::give_back(slot);
        }
        mine.clear();
      }
    });
  }
  for (auto& taker : takers) taker.join();

  CHECK(wrong == 0);
}

TEST_CASE("a hopeless size of the arena is refused, not met") {
  CHECK(pmgate::detail::slot_arena::take(0xffffffffU).words == nullptr);
}

#endif  // PMGATE_DETAIL_RSEQ
#endif  // __linux__

// -- words to sleep on

using default_word = pmgate::default_platform::wait_word;
using portable_word = portable_platform::wait_word;
using shared_word = shared_platform::wait_word;
using single_word = single_platform::wait_word;

TEST_CASE_TEMPLATE("a word has 31 bits and wraps there", W, default_word, portable_word,
                   shared_word, single_word) {
  constexpr auto relaxed = std::memory_order_relaxed;
  constexpr std::uint32_t top = 0x7fffffffU;
  W word(top);
  CHECK(word.load(relaxed) == top);

  CHECK(word.fetch_add(1, relaxed) == top);
  CHECK(word.load(relaxed) == 0);
  CHECK(word.fetch_sub(1, relaxed) == 0);
  CHECK(word.load(relaxed) == top);
  word.publish_add(3);
  CHECK(word.load(relaxed) == 2);
  CHECK(word.exchange(9, relaxed) == 2);
  word.store(5, relaxed);

  CHECK(word.load(relaxed) == 5);
  word.settle();
  word.wake_all();
  CHECK(word.load(relaxed) == 5);
}

TEST_CASE_TEMPLATE("waiting for another value than the word has returns at once", W, default_word,
                   portable_word, single_word) {
  using P = std::conditional_t<std::is_same_v<W, single_word>, single_platform, portable_platform>;
  W word(3);

  word.wait(2);
  CHECK(word.wait_until(2, P::now() + P::milliseconds(60000)));
  CHECK(word.wait_until(2, {}));

  CHECK(word.load(std::memory_order_relaxed) == 3);
}

TEST_CASE_TEMPLATE("a wait with a deadline ends there, also with one long past", W, default_word,
                   portable_word, shared_word) {
  using P = portable_platform;
  W word(3);
  const auto before = P::now();

  CHECK_FALSE(word.wait_until(3, before + P::milliseconds(15)));
  CHECK(P::now() - before >= P::milliseconds(15));
  CHECK_FALSE(word.wait_until(3, before));
  CHECK_FALSE(word.wait_until(3, {}));
  CHECK_FALSE(word.wait_until(3, P::time_point{} - P::milliseconds(10)));

  CHECK(word.load(std::memory_order_relaxed) == 3);
  CHECK(word.fetch_add(1, std::memory_order_relaxed) == 3);
  CHECK(word.exchange(0, std::memory_order_relaxed) == 4);
}

TEST_CASE_TEMPLATE("who sleeps is woken by a change and a wake, or by publish_add", W,
                   default_word, portable_word, shared_word) {
  W word(0);
  const auto sleep_on = [&word](std::uint32_t value) {
    while (word.load(std::memory_order_acquire) == value) word.wait(value);
  };

  for (std::uint32_t round = 0; round < 4; ++round) {
    worker first([&] { sleep_on(round); });
    worker second([&] {
      while (word.load(std::memory_order_acquire) == round) {
        (void)word.wait_until(round, portable_platform::now() + std::chrono::seconds(60));
      }
    });
    CHECK(first.is_blocked());
    CHECK(second.is_blocked());
    if (round == 0) {
      (void)word.fetch_add(1, std::memory_order_release);
      word.wake_all();
    } else if (round == 1) {
      word.publish_add(1);
    } else if (round == 2) {
      word.store(3, std::memory_order_release);
      word.wake_all();
    } else {
      (void)word.exchange(4, std::memory_order_release);
      word.wake_all();
    }
    first.join();
    second.join();
  }

  CHECK(word.load(std::memory_order_relaxed) == 4);
}

TEST_CASE_TEMPLATE("sleepers and wakers in turn never miss each other", W, default_word,
                   portable_word, shared_word) {
  W ping(0);
  W pong(0);
  constexpr std::uint32_t rounds = 2000;
  std::thread other([&] {
    for (std::uint32_t i = 0; i < rounds; ++i) {
      while (ping.load(std::memory_order_acquire) == i) ping.wait(i);
      pong.publish_add(1);
    }
  });

  for (std::uint32_t i = 0; i < rounds; ++i) {
    (void)ping.fetch_add(1, std::memory_order_release);
    ping.wake_all();
    while (pong.load(std::memory_order_acquire) == i) {
      (void)pong.wait_until(i, portable_platform::now() + std::chrono::seconds(60));
    }
  }
  other.join();

  CHECK(pong.load(std::memory_order_relaxed) == rounds);
}

TEST_CASE_TEMPLATE("sleepers on different values of a word are all woken", W, default_word,
                   portable_word, shared_word) {
  W word(0);
  std::atomic<bool> stop{false};
  std::vector<std::thread> sleepers;
  for (int i = 0; i < 3; ++i) {
    sleepers.emplace_back([&] {
      while (!stop) {
        const std::uint32_t seen = word.load(std::memory_order_acquire);
        if (!stop) word.wait(seen);
      }
    });
  }

  for (time_limit limit(100); limit;) {
    (void)word.fetch_add(1, std::memory_order_release);
    word.wake_all();
  }
  stop = true;
  (void)word.fetch_add(1, std::memory_order_release);
  word.wake_all();
  for (auto& sleeper : sleepers) sleeper.join();

  CHECK(stop);
}

TEST_CASE_TEMPLATE("a word may be destroyed after publish_add was seen and settle returned", W,
                   default_word, portable_word, shared_word) {
  std::atomic<W*> next{nullptr};
  std::atomic<bool> stop{false};
  std::thread publisher([&] {
    while (!stop) {
      if (W* const word = next.exchange(nullptr)) word->publish_add(1);
      std::this_thread::yield();
    }
  });

  int rounds = 0;
  for (time_limit limit(150); limit; ++rounds) {
    const auto word = std::make_unique<W>(0U);
    next = word.get();
    if (rounds % 2 == 0) {
      while (word->load(std::memory_order_acquire) == 0) std::this_thread::yield();
    } else {
      while (word->load(std::memory_order_acquire) == 0) word->wait(0);
    }
    word->settle();
  }
  stop = true;
  publisher.join();

  CHECK(rounds > 0);
}

// -- mutexes

using default_mutex = pmgate::default_platform::mutex;
using portable_mutex = portable_platform::mutex;
using shared_mutex = shared_platform::mutex;

TEST_CASE_TEMPLATE("a mutex lets one in at a time, also when many contend", M, default_mutex,
                   portable_mutex, shared_mutex) {
  M mutex;
  long plain = 0;
  std::atomic<long> all{0};
  std::vector<std::thread> users;
  for (int i = 0; i < 4; ++i) {
    users.emplace_back([&] {
      for (time_limit limit(80); limit;) {
        const pmgate::scoped_lock lock(mutex);
        ++plain;
        all.fetch_add(1, std::memory_order_relaxed);
      }
    });
  }
  for (auto& user : users) user.join();

  CHECK(plain == all);
}

TEST_CASE_TEMPLATE("who sleeps on a mutex gets it when it is free", M, default_mutex,
                   portable_mutex, shared_mutex) {
  M mutex;
  mutex.lock();

  worker first([&] { const pmgate::scoped_lock lock(mutex); });
  worker second([&] { const pmgate::scoped_lock lock(mutex); });
  CHECK(first.is_blocked());
  CHECK(second.is_blocked());
  mutex.unlock();
  first.join();
  second.join();

  const pmgate::scoped_lock lock(mutex);
}

TEST_CASE_TEMPLATE("a mutex may be destroyed as soon as it could be locked", M, default_mutex,
                   portable_mutex, shared_mutex) {
  std::atomic<M*> next{nullptr};
  std::atomic<bool> stop{false};
  std::atomic<bool> locked{false};
  std::thread other([&] {
    while (!stop) {
      if (M* const mutex = next.exchange(nullptr)) {
        mutex->lock();
        locked = true;
        mutex->unlock();
      }
      std::this_thread::yield();
    }
  });

  int rounds = 0;
  for (time_limit limit(100); limit; ++rounds) {
    const auto mutex = std::make_unique<M>();
    locked = false;
    next = mutex.get();
    while (!locked) std::this_thread::yield();
    mutex->lock();
    mutex->unlock();
  }
  stop = true;
  other.join();

  CHECK(rounds > 0);
}

// -- the rest

TEST_CASE_TEMPLATE("threads are told apart", P, pmgate::default_platform, portable_platform,
                   shared_platform) {
  const typename P::thread_id mine = P::this_thread();
  typename P::thread_id other{};
  std::thread([&] { other = P::this_thread(); }).join();

  CHECK(mine == P::this_thread());
  CHECK(other != mine);
  CHECK(mine != typename P::thread_id{});
}

TEST_CASE_TEMPLATE("a chain of callbacks runs in order, after one grace period", P,
                   pmgate::default_platform, portable_platform, shared_platform, single_platform,
                   testing::deferred_platform) {
  const misuse_log log;
  testing::grace().serve_at_once(true);
  struct numbered : pmgate::grace_callback {
    int* last = nullptr;
    int seen = 0;
  };
  int last = 0;
  numbered chain[3];
  for (std::size_t i = 0; i < 3; ++i) {
    chain[i].run = [](pmgate::grace_callback& done) noexcept {
      auto& self = static_cast<numbered&>(done);
      self.seen = ++*self.last;
    };
    chain[i].last = &last;
    chain[i].next = i < 2 ? &chain[i + 1] : nullptr;
  }

  CHECK(P::after_grace_period(chain[0]));

  CHECK(chain[0].seen == 1);
  CHECK(chain[1].seen == 2);
  CHECK(chain[2].seen == 3);
  CHECK(P::synchronize());
}

TEST_CASE("misuse goes to the handler, and to the old one when that is restored") {
  static int first;
  static int second;
  first = second = 0;
  const auto before = pmgate::set_misuse_handler([](const char*) noexcept { ++first; });

  const auto old = pmgate::set_misuse_handler([](const char*) noexcept { ++second; });
  portable_platform::misuse("one");
  pmgate::set_misuse_handler(old);
  portable_platform::misuse("two");
  pmgate::set_misuse_handler(before);

  CHECK(first == 1);
  CHECK(second == 1);
}

}  // TEST_SUITE("platform")
