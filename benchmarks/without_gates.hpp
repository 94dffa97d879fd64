// SPDX-License-Identifier: MIT
//
// without_gates.hpp - the library with its gates compiled out, for comparison.
//
// Included before everything else, with `pmgate` renamed on the command line: that copy
// of the library shares a program with the real one. Whoever comes gets in, nothing is
// counted, and no state of a device or a host holds a command: nobody can be stopped.
#ifndef PMGATE_BENCHMARKS_WITHOUT_GATES_HPP
#define PMGATE_BENCHMARKS_WITHOUT_GATES_HPP

#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/scsi/host.hpp>

namespace pmgate {

template <>
class basic_freeze_gate<default_platform> {
 public:
  using time_point = default_platform::time_point;
  explicit basic_freeze_gate(gate_start = gate_start::percpu) noexcept {}
  [[nodiscard]] status enter(enter_flags = {}) noexcept { return status::ok; }
  [[nodiscard]] bool try_enter(enter_flags = {}) noexcept { return true; }
  [[nodiscard]] status enter_until(time_point, enter_flags = {}) noexcept { return status::ok; }
  template <class Gone>
  [[nodiscard]] status enter_unless(Gone, enter_flags = {}) noexcept {
    return status::ok;
  }
  void exit(std::intptr_t = 1) noexcept {}
  void get(std::intptr_t) noexcept {}
  void switch_to_percpu() noexcept {}
  void mark_dying() noexcept {}
  status freeze() noexcept { return status::ok; }
  status freeze_start() noexcept { return status::ok; }
  status freeze_start_non_owner() noexcept { return status::ok; }
  status freeze_start(bool& closed_it) noexcept {
    closed_it = false;
    return status::ok;
  }
  status freeze_wait() noexcept { return status::ok; }
  bool freeze_wait_until(time_point) noexcept { return true; }
  void unfreeze() noexcept {}
};

template <>
class basic_quiesce_gate<default_platform> {
 public:
  [[nodiscard]] bool try_dispatch() noexcept { return true; }
  void end_dispatch() noexcept {}
  status quiesce() noexcept { return status::ok; }
  void quiesce_nowait() noexcept {}
  status wait_quiesced() noexcept { return status::ok; }
  bool unquiesce() noexcept { return false; }
  [[nodiscard]] int depth() const noexcept { return 0; }
};

namespace scsi {

template <>
inline dispatch_status basic_device<default_platform>::check_state(
    const basic_command<default_platform>&) noexcept {
  return dispatch_status::ok;
}
template <>
inline device_state basic_device<default_platform>::state() const noexcept {
  return device_state::running;
}
template <>
inline host_state basic_host<default_platform>::state() const noexcept {
  return host_state::running;
}
template <>
inline bool basic_host<default_platform>::is_in_recovery() const noexcept {
  return false;
}
template <>
inline auto basic_host<default_platform>::take() noexcept -> countdown::answer {
  return count_.try_take();
}

}  // namespace scsi
}  // namespace pmgate

#endif  // PMGATE_BENCHMARKS_WITHOUT_GATES_HPP
