// SPDX-License-Identifier: MIT
//
// pmgate/detail/sim_fiber.hpp - stacks of their own, switched by hand.
//
// On x86-64 a switch is ten instructions: the registers a function call keeps go
// on the old stack, the stack pointers are exchanged. Elsewhere ucontext does it.
// A fiber is never unwound: who does not want it any more prepares it again.
//
// Hosted: <memory> <ucontext.h>
// Hosted: <sanitizer/asan_interface.h> <sanitizer/common_interface_defs.h>
#ifndef PMGATE_DETAIL_SIM_FIBER_HPP
#define PMGATE_DETAIL_SIM_FIBER_HPP

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PMGATE_DETAIL_SIM_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(PMGATE_DETAIL_SIM_ASAN)
#define PMGATE_DETAIL_SIM_ASAN 1
#endif
#if !defined(PMGATE_DETAIL_SIM_ASAN)
#define PMGATE_DETAIL_SIM_ASAN 0
#endif

#if PMGATE_DETAIL_SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The hand-written switch is used where it is known to be right.
#if defined(__x86_64__) && defined(__ELF__) && !defined(PMGATE_SIM_UCONTEXT)
#define PMGATE_DETAIL_SIM_SWITCH 1
#else
#define PMGATE_DETAIL_SIM_SWITCH 0
#include <ucontext.h>
#endif

namespace pmgate::detail {

#if PMGATE_DETAIL_SIM_SWITCH
/// Saves what a call preserves on this stack and its pointer in *save; goes on at `to`.
[[gnu::naked, gnu::noinline]] inline void sim_switch_stack(void** /*save*/, void* /*to*/) noexcept {
  asm volatile(
      "pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}
#endif

/// A stack and where its code stopped; without a stack, the caller's own.
///
/// Lifetime: not copyable or movable; the stack is made once, when first prepared.
/// Threads:  all fibers that switch to each other belong to one thread.
class sim_fiber {
public:
  static constexpr std::size_t stack_size = std::size_t{256} * 1024;

  sim_fiber() noexcept = default;
  sim_fiber(const sim_fiber&) = delete;
  sim_fiber& operator=(const sim_fiber&) = delete;

  /// The next switch to it calls entry(), which must not return.
  void prepare(void (*entry)()) {
    if (stack_ == nullptr) stack_.reset(new std::byte[stack_size]);
#if PMGATE_DETAIL_SIM_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack_.get(), stack_size);  // frames that were never left
    bottom_ = stack_.get();
    size_ = stack_size;
    fake_ = nullptr;
#endif
#if PMGATE_DETAIL_SIM_SWITCH
    const auto end =
        reinterpret_cast<std::uintptr_t>(stack_.get() + stack_size) & ~std::uintptr_t{15};
    auto* top = reinterpret_cast<std::uintptr_t*>(end) - 1;
    *top = 0;                                          // no caller
    *--top = reinterpret_cast<std::uintptr_t>(entry);  // popped by ret
    for (int i = 0; i < 6; ++i) *--top = 0;            // the preserved registers
    pointer_ = top;
#else
    ::getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = stack_size;
    context_.uc_link = nullptr;
    ::makecontext(&context_, entry, 0);
#endif
  }

  /// Stops here and goes on in `to`; returns when somebody switches back.
  void switch_to(sim_fiber& to) noexcept {
#if PMGATE_DETAIL_SIM_ASAN
    __sanitizer_start_switch_fiber(&fake_, to.bottom_, to.size_);
#endif
#if PMGATE_DETAIL_SIM_SWITCH
    sim_switch_stack(&pointer_, to.pointer_);
#else
    ::swapcontext(&context_, &to.context_);
#endif
#if PMGATE_DETAIL_SIM_ASAN
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

  /// To be called first in entry(); `from`: who switched to it for the first time.
  static void arrived([[maybe_unused]] sim_fiber& from) noexcept {
#if PMGATE_DETAIL_SIM_ASAN
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (from.size_ == 0) {  // the first arrival of all: from the thread's own stack
      from.bottom_ = bottom;
      from.size_ = size;
    }
#endif
  }

private:
  std::unique_ptr<std::byte[]> stack_;
#if PMGATE_DETAIL_SIM_SWITCH
  void* pointer_ = nullptr;
#else
  ::ucontext_t context_{};
#endif
#if PMGATE_DETAIL_SIM_ASAN
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
  void* fake_ = nullptr;
#endif
};

}  // namespace pmgate::detail

#undef PMGATE_DETAIL_SIM_ASAN
#undef PMGATE_DETAIL_SIM_SWITCH

#endif  // PMGATE_DETAIL_SIM_FIBER_HPP
