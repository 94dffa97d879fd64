// SPDX-License-Identifier: MIT
//
// ref_room.hpp - the percpu_refs of a trace and the operations on them.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_REF_ROOM_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_REF_ROOM_HPP

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/percpu_ref.hpp>

#include "recorder.hpp"
#include "trace_file.hpp"
#include "trace_platform.hpp"

namespace replay {

class ref_room {
 public:
  explicit ref_room(recorder& events) : events_(events) {}

  [[nodiscard]] bool has(const std::string& name) const { return refs_.contains(name); }
  /// True if the ref is not compared any more, see misuse no-reinit-no-return.
  [[nodiscard]] bool departed(const std::string& name) const {
    const auto found = refs_.find(name);
    return found != refs_.end() && found->second->departed;
  }

  /// Performs an operation on the present task.  Returns: its result.
  std::string execute(const operation& op) {
    const std::string name = op.name.substr(std::string("percpu_ref_").size());
    if (name == "init") return init(op);
    auto& ref = *refs_.at(op.args[0]);
    events_.percpu = ref.snapshot().percpu;
    if (name == "exit") {
      ref.exit();
      ref.exited = true;
      return "void";
    }
    if (ref.departed) return "departed";
    const std::intptr_t n = name.ends_with("_many") ? std::stol(op.args[1]) : 1;
    if (name.starts_with("tryget")) {
      return text_of(name == "tryget_live" ? ref.try_get_live() : ref.try_get(n));
    }
    if (name == "is_dying") return text_of(ref.is_dying());
    if (name == "is_zero") return text_of(ref.is_zero());
    if (name.starts_with("get")) {
      ref.get(n);
    } else if (name.starts_with("put")) {
      put(ref, n);
    } else {
      switch_mode(ref, name, op.args.size() > 1);
    }
    return "void";
  }

  /// Lines for the refs whose state is not the one last printed.
  void print_changes(std::vector<std::string>& lines) {
    for (auto& [name, ref] : refs_) {
      if (ref->departed) continue;
      std::string state = ref->exited ? "exited" : state_of(ref->snapshot());
      if (state == ref->printed) continue;
      lines.push_back("~ " + name + " " + state);
      ref->printed = std::move(state);
    }
  }

  void clear() { refs_.clear(); }

 private:
  using base = pmgate::basic_percpu_ref<trace_platform>;

  struct traced_ref : base {
    traced_ref(ref_room& its_room, std::string its_name, pmgate::ref_init flags, bool exits)
        : base(&on_release, flags),
          room(its_room),
          name(std::move(its_name)),
          exit_in_release(exits) {}
    ref_room& room;
    std::string name;
    bool exit_in_release;
    bool exited = false;
    bool departed = false;
    std::string printed;
  };

  static void on_release(base& ref) noexcept {
    auto& self = static_cast<traced_ref&>(ref);
    self.room.events_.event("release " + self.name);
    if (!self.exit_in_release) return;
    self.exit();
    self.exited = true;
  }
  static void on_confirm(base& ref) noexcept {
    auto& self = static_cast<traced_ref&>(ref);
    self.room.events_.event("confirm " + self.name);
  }

  std::string init(const operation& op) {
    pmgate::ref_init flags{};
    for (const auto& flag : split(op.option("flags", "0"), '|')) {
      flags = flags | (flag == "ATOMIC"         ? pmgate::ref_init::atomic
                       : flag == "DEAD"         ? pmgate::ref_init::dead
                       : flag == "ALLOW_REINIT" ? pmgate::ref_init::allow_reinit
                                                : pmgate::ref_init::none);
    }
    auto& slot = refs_[op.args[0]];
    const std::string printed = slot != nullptr ? slot->printed : "";
    slot.reset();
    slot = std::make_unique<traced_ref>(*this, op.args[0], flags,
                                        op.option("on_release", "") == "exit");
    slot->printed = printed;
    return "0";
  }

  // Misuse put-nothing.
  void put(traced_ref& ref, std::intptr_t n) {
    const bool released_again = n == 0 && ref.is_zero();
    ref.put(n);
    if (released_again) on_release(ref);
  }

  void switch_mode(traced_ref& ref, const std::string& name, bool with_confirm) {
    const int reports = events_.reports();
    const bool live = !ref.is_dying();
    const bool departs = leaves_the_kernel(ref, name);
    if (departs) ref.departed = true;
    if (name.starts_with("kill")) {
      const auto confirm = name == "kill_and_confirm" ? &on_confirm : nullptr;
      ref.kill(confirm);
      if (events_.reports() != reports) kill_again(ref, confirm);
    } else if (name == "resurrect") {
      ref.resurrect();
      if (live && events_.reports() != reports) take_again(ref);
    } else if (name == "reinit") {
      ref.reinit();
      if (live && events_.reports() != reports) take_again(ref);
    } else if (name == "switch_to_percpu") {
      ref.switch_to_percpu();
    } else if (name == "switch_to_atomic") {
      ref.switch_to_atomic(with_confirm ? &on_confirm : nullptr);
    } else {
      ref.switch_to_atomic_sync();
    }
    if (!departs) return;
    if (events_.reports() == reports) events_.event("no report of " + name);
  }

  // Misuse no-reinit-no-return.
  static bool leaves_the_kernel(const traced_ref& ref, const std::string& name) {
    const bool comes_back = (name == "resurrect" || name == "reinit") && ref.is_dying();
    return !ref.snapshot().allow_reinit && !ref.exited &&
           (comes_back || name.starts_with("switch_to_atomic"));
  }

  // Misuse second-kill: what the kernel does after its warning.
  static void kill_again(traced_ref& ref, base::confirm_fn confirm) {
    while (ref.snapshot().switching) scheduler::get().sleep_until_grace();
    const auto now = ref.snapshot();
    if (confirm != nullptr && (now.dying || now.force_atomic)) confirm(ref);
    ref.put();
  }

  // Misuse resurrect-live.
  static void take_again(traced_ref& ref) {
    ref.get();
    while (ref.snapshot().switching) scheduler::get().sleep_until_grace();
  }

  recorder& events_;
  std::map<std::string, std::unique_ptr<traced_ref>> refs_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_REF_ROOM_HPP
