// SPDX-License-Identifier: MIT
//
// pmgate/platform/rseq_counter.hpp - the Linux counter engine.
//
// The slot of the CPU one runs on, changed inside a restartable sequence: load the CPU
// number, compare it with a limit, add. No lock prefix, no fence, nothing shared is
// written. Closing sets the limit to 0; the grace period is one membarrier, which
// aborts every sequence that might not have seen it.
//
// Slots lie in an arena laid out like the kernel's percpu area: 8 bytes per CPU
// and counter. Threads or machines without rseq use a sharded counter inside.
//
// Counterpart: this_cpu_add() and the per-CPU half of Linux percpu_ref.
#ifndef PMGATE_PLATFORM_RSEQ_COUNTER_HPP
#define PMGATE_PLATFORM_RSEQ_COUNTER_HPP

#if !defined(__linux__)
#error "pmgate/platform/rseq_counter.hpp is for Linux only"
#endif

#include <atomic>
#include <cstddef>
#include <cstdint>

#include <sys/mman.h>
#include <unistd.h>

#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif

#include <pmgate/platform/sharded_counter.hpp>

// The sequence is assembly, which ThreadSanitizer cannot see: there, and on
// machines for which no sequence is written, the sharded engine is used. There is one
// for x86-64 and one for little-endian AArch64.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PMGATE_DETAIL_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define PMGATE_DETAIL_TSAN 1
#endif
#if defined(__LP64__) && defined(RSEQ_SIG) && !defined(PMGATE_DETAIL_TSAN) && \
    (defined(__x86_64__) || (defined(__aarch64__) && !defined(__AARCH64EB__)))
#define PMGATE_DETAIL_RSEQ 1
#else
#define PMGATE_DETAIL_RSEQ 0
#endif

namespace pmgate {
namespace detail {

/// CPU-local words: slot i of CPU c lies at `block + c * stride + i * 8`.
///
/// Lifetime: a block is never given back, so counters of any shared object may
///           outlive any other; freed slots are used again.
/// Threads:  all members from any thread. Blocking: a mapping call now and then.
class slot_arena {
 public:
  static constexpr std::size_t stride = 32768;  ///< bytes per CPU in a block
  static constexpr std::size_t shift = 15;      ///< stride as a shift
  static constexpr std::uint32_t most_cpus = 65536;  ///< more are not believed in

  /// A block: its slots in use, and the words of all CPUs behind it.
  struct block {
    static constexpr std::size_t slots = stride / sizeof(std::intptr_t);
    std::atomic<std::uint64_t> used[slots / 64];
    block* next;
    std::uint32_t cpus;
    std::byte* words;
  };

  /// What a block takes: a page, and 8 bytes per CPU for each of its slots.
  static constexpr std::size_t block_size(std::uint32_t cpus) noexcept {
    return head_size + cpus * stride;
  }

  /// Where a counter's words are; `words` is null when there was no memory.
  struct slot {
    block* owner = nullptr;
    std::byte* words = nullptr;  // the word of CPU 0
  };

  /// Returns: one zeroed word per CPU number below `cpus`; none for more than most_cpus,
  ///          which address spaces larger than x86-64's would have room for.
  [[nodiscard]] static slot take(std::uint32_t cpus) noexcept;
  static void give_back(slot which) noexcept;

 private:
  static constexpr std::size_t head_size = 4096;
  static_assert(sizeof(block) <= head_size, "the head of a block is one page");

  static std::atomic<block*>& blocks() noexcept {
    static std::atomic<block*> head{nullptr};
    return head;
  }
  static block* add_block(std::uint32_t cpus) noexcept;
  static bool take_from(block& from, slot& out) noexcept;
};

inline slot_arena::slot slot_arena::take(std::uint32_t cpus) noexcept {
  slot found;
  // [arena.walk] acquire: pairs with [arena.publish]; the block is set up.
  for (block* b = blocks().load(std::memory_order_acquire); b != nullptr; b = b->next) {
    if (b->cpus == cpus && take_from(*b, found)) return found;
  }
  block* const fresh = add_block(cpus);
  if (fresh != nullptr && !take_from(*fresh, found)) return take(cpus);  // others were quicker
  return found;
}

inline bool slot_arena::take_from(block& from, slot& out) noexcept {
  for (std::size_t i = 0; i < block::slots / 64; ++i) {
    // [arena.look] relaxed: a guess; [arena.claim] decides.
    std::uint64_t bits = from.used[i].load(std::memory_order_relaxed);
    while (~bits != 0) {
      const auto bit = static_cast<std::size_t>(__builtin_ctzll(~bits));
      // [arena.claim] acquire: pairs with [arena.free]; the last owner is done.
      if (!from.used[i].compare_exchange_weak(bits, bits | (std::uint64_t{1} << bit),
                                              std::memory_order_acquire,
                                              std::memory_order_relaxed)) {
        continue;
      }
      out.owner = &from;
      out.words = from.words + (i * 64 + bit) * sizeof(std::intptr_t);
      for (std::uint32_t cpu = 0; cpu < from.cpus; ++cpu) {
        __builtin_memset(out.words + cpu * stride, 0, sizeof(std::intptr_t));
      }
      return true;
    }
  }
  return false;
}

inline void slot_arena::give_back(slot which) noexcept {
  const auto index =
      static_cast<std::size_t>(which.words - which.owner->words) / sizeof(std::intptr_t);
  // [arena.free] release: pairs with [arena.claim].
  (void)which.owner->used[index / 64].fetch_and(~(std::uint64_t{1} << (index % 64)),
                                                std::memory_order_release);
}

inline slot_arena::block* slot_arena::add_block(std::uint32_t cpus) noexcept {
  if (cpus > most_cpus) return nullptr;
  void* const memory = ::mmap(nullptr, block_size(cpus), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* const fresh = ::new (memory) block{};
  fresh->cpus = cpus;
  fresh->words = static_cast<std::byte*>(memory) + head_size;
  // [arena.head] relaxed: a guess; [arena.publish] decides.
  fresh->next = blocks().load(std::memory_order_relaxed);
  // [arena.publish] release: pairs with [arena.walk].
  while (!blocks().compare_exchange_weak(fresh->next, fresh, std::memory_order_release,
                                         std::memory_order_relaxed)) {
  }
  return fresh;
}

}  // namespace detail

/// Counter engine on restartable sequences, with a sharded counter behind it.
///
/// `Machine` supplies what sharded_counter asks for, `restartable()`: whether
/// sequences and their membarrier work in this process (decided once), and
/// `cpu_limit()`: CPU numbers are below it.
///
/// Lifetime: neither copyable nor movable. Takes 8 bytes per CPU from an arena;
///           works on the sharded counter alone if there is no memory for it.
/// Threads:  try_add() and peek() from any thread and from signal handlers;
///           the others one at a time.
/// Blocking: never.
/// Limits:   a shared object that instantiates this must not be unloaded while
///           threads that used it live: the kernel may still look at the
///           descriptor of their last sequence. g++ 12 for AArch64 breaks down (an internal
///           error) over asm goto with -freorder-blocks-and-partition.
template <class Machine>
class rseq_counter {
 public:
  explicit rseq_counter(bool starts_open) noexcept;
  ~rseq_counter();
  rseq_counter(const rseq_counter&) = delete;
  rseq_counter& operator=(const rseq_counter&) = delete;

  /// Counts n unless closed. Cost: 7 instructions (AArch64: 13), none of them locked.
  [[nodiscard, gnu::always_inline]] bool try_add(std::intptr_t n) noexcept;
  /// From now on try_add() fails, except where it is under way already.
  void begin_close() noexcept;
  /// Precondition: a grace period began after begin_close() and has ended.
  [[nodiscard]] std::intptr_t finish_close() noexcept { return peek(); }
  void open() noexcept;
  void reopen() noexcept;
  [[nodiscard]] std::intptr_t peek() const noexcept;

  /// False: this counter works on shared cache lines.
  [[nodiscard]] bool is_cpu_local() const noexcept { return slot_.words != nullptr; }

 private:
  using fallback = sharded_counter<Machine>;

  static detail::slot_arena::slot take_slot() noexcept {
    return Machine::restartable() ? detail::slot_arena::take(Machine::cpu_limit())
                                  : detail::slot_arena::slot{};
  }
  void set_open() noexcept;
  [[nodiscard, gnu::noinline, gnu::cold]] bool add_elsewhere(std::intptr_t n) noexcept;

  // Numbers of CPUs whose word may be used are below it: cpus_, or 0 while closed or if
  // the sharded counter serves everybody. So one comparison refuses all there is to
  // refuse. What try_add() reads comes first, on one line with its owner's hot words.
  std::atomic<std::uint32_t> limit_{0};
  std::uint32_t cpus_;
  detail::slot_arena::slot slot_;
  fallback fallback_;  // of threads without rseq, or of everybody
};

template <class Machine>
rseq_counter<Machine>::rseq_counter(bool starts_open) noexcept
    : cpus_(Machine::cpu_limit()),
      slot_(take_slot()),
      fallback_(starts_open, slot_.words != nullptr ? fallback::width::one
                                                    : fallback::width::machine) {
  // [construct.open] relaxed: nobody else has the counter yet.
  if (slot_.words != nullptr && starts_open) limit_.store(cpus_, std::memory_order_relaxed);
}

template <class Machine>
rseq_counter<Machine>::~rseq_counter() {
  if (slot_.words != nullptr) detail::slot_arena::give_back(slot_);
}

/// The sequence starts behind the store that announces it and commits with its last
/// instruction; interrupted anywhere between, it starts again. `?` in the section flags
/// ties the descriptor to the COMDAT group of the function it describes; without it two
/// translation units do not link.
///
/// [add.limit] acquire: pairs with [open.limit]; the load of the slot sees it zeroed, and
///   all that follows sees what was done before open(). x86-64: any load is one.
///   AArch64: ldar; behind a mere branch the slot could be loaded before the limit.
/// [add.commit] relaxed: a plain store on either machine. All the order an add owes to
///   those who close is made by their heavy fence.
template <class Machine>
inline bool rseq_counter<Machine>::try_add([[maybe_unused]] std::intptr_t n) noexcept {
#if PMGATE_DETAIL_RSEQ
  static_assert(sizeof(limit_) == 4, "the limit is read as 4 bytes");
#if defined(__x86_64__)
  asm goto(
      ".pushsection __rseq_cs, \"aw?\"\n\t"
      ".balign 32\n\t"
      "3: .long 0, 0\n\t"
      ".quad 1f, 2f - 1f, 4f\n\t"
      ".popsection\n\t"
      "0: leaq 3b(%%rip), %%rax\n\t"
      "movq %%rax, %%fs:8(%[area])\n\t"
      "1:\n\t"
      "movl %%fs:4(%[area]), %%eax\n\t"  // the CPU; beyond every limit if it has no number
      "cmpl %[limit], %%eax\n\t"
      "jae %l[refused]\n\t"
      "shlq %[shift], %%rax\n\t"
      "addq %[n], (%[words], %%rax)\n\t"
      "2:\n\t"
      ".pushsection __rseq_abort, \"ax?\"\n\t"
      ".byte 0x0f, 0xb9, 0x3d\n\t"
      ".long %c[signature]\n\t"
      "4: jmp 0b\n\t"
      ".popsection"
      :
      : [area] "r"(__rseq_offset), [limit] "m"(limit_), [words] "r"(slot_.words), [n] "er"(n),
        [shift] "i"(detail::slot_arena::shift), [signature] "i"(RSEQ_SIG)
      : "memory", "cc", "rax"
      : refused);
#else  // AArch64. It reads the thread pointer itself: a fiber may have changed threads.
  asm goto(
      ".pushsection __rseq_cs, \"aw?\"\n\t"
      ".balign 32\n\t"
      "3: .long 0, 0\n\t"
      ".quad 1f, 2f - 1f, 4f\n\t"
      ".popsection\n\t"
      "0: mrs x16, tpidr_el0\n\t"
      "add x16, x16, %[area]\n\t"
      "adrp x17, 3b\n\t"
      "add x17, x17, :lo12:3b\n\t"
      "str x17, [x16, #8]\n\t"
      "1:\n\t"
      "ldar w17, %[limit]\n\t"   // [add.limit]
      "ldr w16, [x16, #4]\n\t"  // the CPU; beyond every limit if it has no number
      "cmp w16, w17\n\t"
      "b.hs %l[refused]\n\t"
      "add x16, %[words], x16, lsl %[shift]\n\t"
      "ldr x17, [x16]\n\t"
      "add x17, x17, %[n]\n\t"
      "str x17, [x16]\n\t"  // [add.commit]
      "2:\n\t"
      ".pushsection __rseq_abort, \"ax?\"\n\t"
      ".inst %c[signature]\n\t"
      "4: b 0b\n\t"
      ".popsection"
      :
      : [area] "r"(__rseq_offset), [limit] "Q"(limit_), [words] "r"(slot_.words), [n] "rIJ"(n),
        [shift] "i"(detail::slot_arena::shift), [signature] "i"(RSEQ_SIG)
      : "memory", "cc", "x16", "x17"
      : refused);
#endif
  return true;
refused:
#endif
  return add_elsewhere(n);
}

/// Closed, a thread without a CPU number, or no rseq at all. While the limit says closed
/// the fallback is closed too, or counts until begin_close() gets to it.
template <class Machine>
bool rseq_counter<Machine>::add_elsewhere(std::intptr_t n) noexcept {
  return fallback_.try_add(n);
}

/// What follows [close.mark] is the heavy fence of a grace period. It is a
/// full fence here and, at a point of its own, on each CPU that runs a thread of this
/// process, where it aborts a sequence under way; threads that do not run passed one when
/// they left their CPU. A sequence on a CPU whose point is p either
/// * committed before p. Then [peek.slot] sees its add, and the closer all that its thread
///   did before, on whichever CPUs: a thread takes its order along when it moves, and
///   the fence at p passes on what it was told. So nothing done inside before a counted
///   exit is missed, and what is done inside after a counted entry is waited for, even if
///   it became visible before the entry did: nobody looks at slots before the fence.
/// * or is under way at p: it is aborted, and begins again after p,
/// * or begins after p: it finds [close.mark], or a later open(), and has not added.
template <class Machine>
void rseq_counter<Machine>::begin_close() noexcept {
  fallback_.begin_close();
  if (slot_.words == nullptr) return;
  // [close.mark] relaxed: with the heavy fence of the grace period that follows, a
  // sequence either saw it, or was aborted, or its add is visible to [peek.slot]. Who
  // is refused is told nothing.
  limit_.store(0, std::memory_order_relaxed);
}

template <class Machine>
void rseq_counter<Machine>::open() noexcept {
  if (slot_.words != nullptr) {
    for (std::uint32_t cpu = 0; cpu < cpus_; ++cpu) {
      auto* const word = reinterpret_cast<std::intptr_t*>(
          slot_.words + std::size_t{cpu} * detail::slot_arena::stride);
      // [open.slot] relaxed: published by [open.limit]; no sequence runs here.
      std::atomic_ref<std::intptr_t>(*word).store(0, std::memory_order_relaxed);
    }
  }
  fallback_.open();
  set_open();
}

template <class Machine>
void rseq_counter<Machine>::reopen() noexcept {
  fallback_.reopen();
  set_open();
}

template <class Machine>
void rseq_counter<Machine>::set_open() noexcept {
  if (slot_.words == nullptr) return;
  // [open.limit] release: pairs with [add.limit]; who counts from now on sees the slots
  // zeroed, and all that was done before. So opening needs no heavy fence.
  limit_.store(cpus_, std::memory_order_release);
}

template <class Machine>
std::intptr_t rseq_counter<Machine>::peek() const noexcept {
  auto sum = static_cast<std::uintptr_t>(fallback_.peek());
  if (slot_.words == nullptr) return static_cast<std::intptr_t>(sum);
  for (std::uint32_t cpu = 0; cpu < cpus_; ++cpu) {
    auto* const word = reinterpret_cast<std::intptr_t*>(
        slot_.words + std::size_t{cpu} * detail::slot_arena::stride);
    // [peek.slot] relaxed: for finish_close() the heavy fence has made all the order there
    // is to make; otherwise it is a look. Slots wrap; only their sum means anything.
    sum += static_cast<std::uintptr_t>(
        std::atomic_ref<std::intptr_t>(*word).load(std::memory_order_relaxed));
  }
  return static_cast<std::intptr_t>(sum);
}

}  // namespace pmgate

#undef PMGATE_DETAIL_TSAN

#endif  // PMGATE_PLATFORM_RSEQ_COUNTER_HPP
