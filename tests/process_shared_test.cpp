// SPDX-License-Identifier: MIT
//
// process_shared_test.cpp - two processes at one piece of memory.
//
// The other process is this program again, started by exec, with the memory at another
// address and, where addresses are random, the code at others too. What it does there
// is a test case of its own, skipped unless asked for by name; its exit status tells.
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/platform/linux_shared.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

using P = pmgate::linux_shared_platform;
using pmgate::status;

namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;

using gate = pmgate::basic_freeze_gate<P>;
using dispatch_gate = pmgate::basic_quiesce_gate<P>;

static_assert(P::process_shared);
static_assert(std::is_trivially_destructible_v<P::cpu_counter>);
static_assert(std::is_trivially_destructible_v<P::wait_word>);
static_assert(std::is_trivially_destructible_v<P::mutex>);
static_assert(sizeof(P::cpu_counter) == 8 * 64);
static_assert(sizeof(P::wait_word) == 4 && sizeof(P::mutex) == 4);

/// What the processes share. All zero but for the counter and the gate at first.
struct shared_memory {
  std::uintptr_t first_address = 0;  // where the first process has it
  std::atomic<bool> started{false};
  std::atomic<bool> stop{false};

  P::mutex mutex;
  long plain = 0;  // under the mutex
  P::wait_word ping{0};
  P::wait_word pong{0};
  P::cpu_counter counter{true};
  std::atomic<std::intptr_t> counted{0};

  gate door;
  dispatch_gate dispatching;
  // Accesses of these order nothing, so that nothing but the gate keeps them in order.
  // (Plain words would do, but ThreadSanitizer does not see what the other process does.)
  std::atomic<int> inside{0};
  std::atomic<std::uint64_t> guarded[2] = {0, 0};  // written while frozen; the same from inside
  std::atomic<std::uint64_t> entries{0};
  std::atomic<int> wrong{0};
};

/// When a test that waits for the other process has failed.
P::time_point late() { return P::now() + P::milliseconds(20'000); }

constexpr const char* fd_name = "PMGATE_SHARED_FD";

void* map(int fd) {
  void* const at =
      ::mmap(nullptr, sizeof(shared_memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

/// The memory of the first process.
class owned_memory {
 public:
  owned_memory() : fd_(::memfd_create("pmgate process_shared_test", 0)) {
    REQUIRE(fd_ >= 0);
    REQUIRE(::ftruncate(fd_, sizeof(shared_memory)) == 0);
    shared_ = ::new (map(fd_)) shared_memory;
    shared_->first_address = reinterpret_cast<std::uintptr_t>(shared_);
  }
  ~owned_memory() {
    std::destroy_at(shared_);
    ::munmap(shared_, sizeof *shared_);
    ::close(fd_);
  }
  owned_memory(const owned_memory&) = delete;
  owned_memory& operator=(const owned_memory&) = delete;

  shared_memory* operator->() const { return shared_; }
  shared_memory& operator*() const { return *shared_; }
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_;
  shared_memory* shared_ = nullptr;
};

/// The memory of the first process, as the other one sees it: somewhere else.
shared_memory& find_memory() {
  const char* const text = std::getenv(fd_name);
  REQUIRE(text != nullptr);
  const int fd = std::atoi(text);
  auto* found = static_cast<shared_memory*>(map(fd));
  if (reinterpret_cast<std::uintptr_t>(found) == found->first_address) {
    found = static_cast<shared_memory*>(map(fd));  // the first one is in the way
  }
  REQUIRE(reinterpret_cast<std::uintptr_t>(found) != found->first_address);
  found->started.store(true, release);
  return *found;
}

/// A second process that runs one test case of this program.
class other_process {
 public:
  other_process(const owned_memory& memory, const char* test_case) : memory_(memory) {
    memory->started.store(false, relaxed);
    memory->stop.store(false, relaxed);
    const std::string fd = std::string(fd_name) + "=" + std::to_string(memory.fd());
    const std::string filter = std::string("--test-case=") + test_case;
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it does not outlive a test that is killed
      ::putenv(const_cast<char*>(fd.c_str()));
      ::execl("/proc/self/exe", "process_shared_test", "--no-skip=true", "--minimal=true",
              filter.c_str(), nullptr);
      ::_exit(127);
    }
    while (!memory->started.load(acquire) && !ended()) std::this_thread::yield();
  }
  ~other_process() { (void)finish(); }
  other_process(const other_process&) = delete;
  other_process& operator=(const other_process&) = delete;

  /// Tells it to stop, waits for its end, but not for ever. Returns: its exit status.
  int finish() {
    memory_->stop.store(true, release);
    const P::time_point end = late();
    while (!ended()) {
      if (P::now() > end) ::kill(pid_, SIGKILL);
      std::this_thread::yield();
    }
    return WIFEXITED(result_) ? WEXITSTATUS(result_) : 128 + WTERMSIG(result_);
  }
  bool ended() {
    if (!ended_) ended_ = ::waitpid(pid_, &result_, WNOHANG) == pid_;
    return ended_;
  }

 private:
  const owned_memory& memory_;
  pid_t pid_ = -1;
  int result_ = 0;
  bool ended_ = false;
};

constexpr std::uint32_t turns = 5000;
constexpr std::uint64_t rounds = 4000;

void answer_pings(shared_memory& shared) {
  for (std::uint32_t i = 0; i < turns; ++i) {
    while (shared.ping.load(acquire) == i) shared.ping.wait(i);
    shared.pong.publish_add(1);
  }
}

void lock_often(shared_memory& shared) {
  for (int i = 0; i < 100'000; ++i) {
    const pmgate::scoped_lock lock(shared.mutex);
    ++shared.plain;
  }
}

void add_until_stopped(shared_memory& shared) {
  std::intptr_t mine = 0;
  for (std::intptr_t n = 1; !shared.stop.load(relaxed); n = n % 7 + 1) {
    if (shared.counter.try_add(n)) mine += n;
  }
  shared.counted.fetch_add(mine, relaxed);
}

/// Enters and leaves until told to stop; looks at what only freezers write.
void use_gate(shared_memory& shared) {
  std::uint64_t last = 0;
  while (!shared.stop.load(relaxed)) {
    if (shared.door.enter_until(late()) != status::ok) {
      shared.wrong.fetch_add(1, relaxed);
      break;
    }
    shared.inside.fetch_add(1, relaxed);
    const std::uint64_t seen = shared.guarded[0].load(relaxed);
    if (seen < last || shared.guarded[1].load(relaxed) != seen) shared.wrong.fetch_add(1, relaxed);
    last = seen;
    shared.inside.fetch_sub(1, relaxed);
    shared.entries.fetch_add(1, relaxed);
    shared.door.exit();
  }
}

/// Freezes and unfreezes; nobody may be inside in between. Now and then somebody has to
/// enter before the next freeze.
void freeze_gate_often(shared_memory& shared) {
  for (std::uint64_t i = 0; i < rounds; ++i) {
    if (shared.door.freeze_start() != status::ok || !shared.door.freeze_wait_until(late())) {
      shared.wrong.fetch_add(1, relaxed);
      break;
    }
    if (shared.inside.load(relaxed) != 0) shared.wrong.fetch_add(1, relaxed);
    {
      const pmgate::scoped_lock lock(shared.mutex);  // freezes of two processes overlap
      shared.guarded[0].fetch_add(1, relaxed);
      if (i % 64 == 0) std::this_thread::yield();
      shared.guarded[1].fetch_add(1, relaxed);
    }
    if (shared.inside.load(relaxed) != 0) shared.wrong.fetch_add(1, relaxed);
    if (shared.door.try_enter()) shared.wrong.fetch_add(1, relaxed);
    const std::uint64_t before = shared.entries.load(relaxed);
    shared.door.unfreeze();
    const P::time_point end = late();
    while (i % 16 == 0 && shared.entries.load(relaxed) == before && P::now() < end) {
      std::this_thread::yield();
    }
  }
}

void dispatch_until_stopped(shared_memory& shared) {
  while (!shared.stop.load(relaxed)) {
    if (!shared.dispatching.try_dispatch()) continue;
    shared.inside.fetch_add(1, relaxed);
    const std::uint64_t seen = shared.guarded[0].load(relaxed);
    if (shared.guarded[1].load(relaxed) != seen) shared.wrong.fetch_add(1, relaxed);
    shared.inside.fetch_sub(1, relaxed);
    shared.entries.fetch_add(1, relaxed);
    shared.dispatching.end_dispatch();
  }
}

void wait_at_gate(shared_memory& shared) {
  if (shared.door.enter_until(late()) != status::ok || shared.guarded[0].load(relaxed) != 1) {
    shared.wrong.fetch_add(1, relaxed);
  }
  shared.guarded[1].store(1, relaxed);
  shared.door.exit();
}

/// As far as freeze_start_all() gets before it asks for the grace period of all.
void close_and_pause(shared_memory& shared) {
  bool closed_it = false;
  if (pmgate::detail::many_gates::begin_freeze(shared.door, closed_it) != status::ok || !closed_it) {
    shared.wrong.fetch_add(1, relaxed);
  }
  shared.inside.store(1, release);
  while (!shared.stop.load(acquire)) std::this_thread::yield();
  pmgate::detail::many_gates::let_drain(shared.door, false);
  if (!shared.door.freeze_wait_until(late())) shared.wrong.fetch_add(1, relaxed);
  shared.door.unfreeze();
}

void die_inside(shared_memory& shared) {
  if (shared.door.enter() != status::ok) shared.wrong.fetch_add(1, relaxed);
  ::_exit(0);
}

void check_gate(const owned_memory& memory) {
  CHECK(memory->wrong == 0);
  CHECK(memory->inside == 0);
  CHECK(memory->guarded[0] == rounds);
  CHECK(memory->guarded[1] == rounds);
  CHECK(memory->entries >= rounds / 16);
  CHECK(memory->door.depth() == 0);
  CHECK(memory->door.freeze_start() == status::ok);
  CHECK(memory->door.freeze_wait_until(late()));
  CHECK(memory->door.usage().is_zero());
  memory->door.unfreeze();
}

}  // namespace

TEST_SUITE("process_shared") {

// -- what the other process does

TEST_CASE("other: answers" * doctest::skip()) { answer_pings(find_memory()); }
TEST_CASE("other: locks" * doctest::skip()) { lock_often(find_memory()); }
TEST_CASE("other: adds" * doctest::skip()) { add_until_stopped(find_memory()); }
TEST_CASE("other: uses the gate" * doctest::skip()) { use_gate(find_memory()); }
TEST_CASE("other: freezes the gate" * doctest::skip()) { freeze_gate_often(find_memory()); }
TEST_CASE("other: dispatches" * doctest::skip()) { dispatch_until_stopped(find_memory()); }
TEST_CASE("other: waits at the gate" * doctest::skip()) { wait_at_gate(find_memory()); }
TEST_CASE("other: closes and pauses" * doctest::skip()) { close_and_pause(find_memory()); }
TEST_CASE("other: dies inside" * doctest::skip()) { die_inside(find_memory()); }

// -- the parts

TEST_CASE("processes that sleep on words wake each other") {
  const owned_memory memory;
  other_process other(memory, "other: answers");

  bool answered = true;
  for (std::uint32_t i = 0; i < turns && answered; ++i) {
    (void)memory->ping.fetch_add(1, release);
    memory->ping.wake_all();
    const P::time_point end = late();
    while (memory->pong.load(acquire) == i && answered) answered = memory->pong.wait_until(i, end);
  }

  CHECK(other.finish() == 0);
  CHECK(memory->pong.load(relaxed) == turns);
}

TEST_CASE("a mutex lets one process in at a time, and wakes one that sleeps on it") {
  const owned_memory memory;
  memory->mutex.lock();
  other_process other(memory, "other: locks");
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // it sleeps by now, or need not
  CHECK(memory->plain == 0);
  memory->mutex.unlock();

  lock_often(*memory);

  CHECK(other.finish() == 0);
  CHECK(memory->plain == 200'000);
}

TEST_CASE("closing a counter that another process adds to is exact") {
  const owned_memory memory;
  other_process other(memory, "other: adds");
  int wrong = 0;
  std::intptr_t sum = 0;

  for (std::uint64_t i = 0; i < rounds; ++i) {
    memory->counter.begin_close();
    const std::intptr_t closed_with = memory->counter.finish_close();
    if (i % 64 == 0) std::this_thread::yield();
    if (memory->counter.peek() != closed_with) ++wrong;
    if (i % 2 == 0) {
      memory->counter.reopen();
    } else {
      sum += closed_with;
      memory->counter.open();
    }
    if (i % 64 == 0) std::this_thread::yield();
  }

  CHECK(other.finish() == 0);
  CHECK(wrong == 0);
  CHECK(sum + memory->counter.peek() == memory->counted);
  CHECK(memory->counted > 0);
}

TEST_CASE("threads of different processes are told apart") {
  const P::thread_id mine = P::this_thread();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(P::this_thread() == mine ? 1 : 0);
  int result = -1;
  REQUIRE(::waitpid(child, &result, 0) == child);

  CHECK(result == 0);
  CHECK(P::this_thread() == mine);
  CHECK(mine != P::thread_id{});
}

// -- the gate

TEST_CASE("nobody of another process is inside a gate that this one froze") {
  const owned_memory memory;
  other_process other(memory, "other: uses the gate");

  freeze_gate_often(*memory);

  CHECK(other.finish() == 0);
  check_gate(memory);
}

TEST_CASE("nobody of this process is inside a gate that another one froze") {
  const owned_memory memory;
  other_process other(memory, "other: freezes the gate");
  std::thread watch([&] {
    while (!other.ended()) std::this_thread::yield();
    memory->stop.store(true, release);
  });

  use_gate(*memory);
  watch.join();

  CHECK(other.finish() == 0);
  check_gate(memory);
}

TEST_CASE("two processes may use and freeze one gate at a time") {
  const owned_memory memory;
  other_process other(memory, "other: freezes the gate");
  std::thread user([&] { use_gate(*memory); });

  freeze_gate_often(*memory);
  while (!other.ended()) std::this_thread::yield();
  memory->stop.store(true, release);
  user.join();

  CHECK(other.finish() == 0);
  CHECK(memory->wrong == 0);
  CHECK(memory->guarded[0] == 2 * rounds);
  CHECK(memory->guarded[1] == 2 * rounds);
  CHECK(memory->door.depth() == 0);
}

TEST_CASE("nobody of another process dispatches behind a quiesce of this one") {
  const owned_memory memory;
  other_process other(memory, "other: dispatches");
  int wrong = 0;

  for (std::uint64_t i = 0; i < rounds; ++i) {
    if (memory->dispatching.quiesce() != status::ok) ++wrong;
    if (memory->inside.load(relaxed) != 0) ++wrong;
    memory->guarded[0].fetch_add(1, relaxed);
    if (i % 64 == 0) std::this_thread::yield();
    memory->guarded[1].fetch_add(1, relaxed);
    if (memory->inside.load(relaxed) != 0) ++wrong;
    const std::uint64_t before = memory->entries.load(relaxed);
    (void)memory->dispatching.unquiesce();
    const P::time_point end = late();
    while (i % 16 == 0 && memory->entries.load(relaxed) == before && P::now() < end) {
      std::this_thread::yield();
    }
  }

  CHECK(other.finish() == 0);
  CHECK(wrong == 0);
  CHECK(memory->wrong == 0);
  CHECK(memory->entries >= rounds / 16);
}

TEST_CASE("who waits at a gate of another process is let in with what was done before") {
  const owned_memory memory;
  REQUIRE(memory->door.freeze() == status::ok);
  other_process other(memory, "other: waits at the gate");
  memory->guarded[0].store(1, relaxed);

  memory->door.unfreeze();

  CHECK(other.finish() == 0);
  REQUIRE(memory->door.freeze() == status::ok);
  CHECK(memory->guarded[1] == 1);
  CHECK(memory->wrong == 0);
  memory->door.unfreeze();
}

TEST_CASE("a switch that another process has begun is finished by this one") {
  const owned_memory memory;
  other_process other(memory, "other: closes and pauses");
  while (memory->inside.load(acquire) == 0 && !other.ended()) std::this_thread::yield();

  CHECK(memory->door.switch_to_atomic_sync());
  CHECK_FALSE(memory->door.usage().snapshot().switching);

  CHECK(other.finish() == 0);
  CHECK(memory->wrong == 0);
  CHECK(memory->door.depth() == 0);
}

TEST_CASE("a process that dies inside is waited for, until somebody leaves for it") {
  const owned_memory memory;
  other_process other(memory, "other: dies inside");
  REQUIRE(other.finish() == 0);

  CHECK(memory->wrong == 0);
  REQUIRE(memory->door.freeze_start() == status::ok);
  CHECK_FALSE(memory->door.freeze_wait_until(P::now() + P::milliseconds(20)));
  memory->door.exit();

  CHECK(memory->door.freeze_wait() == status::ok);
  memory->door.unfreeze();
}

}  // TEST_SUITE("process_shared")
