// SPDX-License-Identifier: MIT
//
// pmgate/block/dump.hpp - the state of a gate as text, for a debugger's or an operator's
// eyes.
//
//   pmgate::dump(gate, [](const char* text) { std::fputs(text, stderr); });
//
// What is said may be over by then, and while others enter and leave a count is only
// near the truth. Over checked_platform it also tells who is inside, who closed the gate
// and who waits, by thread, place and age.
//
// Counterpart: /sys/kernel/debug/block/<disk>/state and pm_only.
#ifndef PMGATE_BLOCK_DUMP_HPP
#define PMGATE_BLOCK_DUMP_HPP

#include <cstddef>
#include <cstdint>

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/percpu_ref.hpp>

namespace pmgate {
namespace detail {

/// Gives text to a sink in chunks, each ended by a zero; allocates nothing.
template <class Sink>
class dump_writer {
 public:
  explicit dump_writer(Sink& sink) noexcept : sink_(sink) {}

  dump_writer& operator<<(const char* text) noexcept {
    sink_(text);
    return *this;
  }
  dump_writer& operator<<(std::int64_t number) noexcept {
    char digits[24];
    std::size_t at = sizeof digits;
    digits[--at] = '\0';
    std::uint64_t rest = static_cast<std::uint64_t>(number);
    if (number < 0) rest = 0 - rest;
    do {
      digits[--at] = static_cast<char>('0' + static_cast<int>(rest % 10));
      rest /= 10;
    } while (rest != 0);
    if (number < 0) digits[--at] = '-';
    sink_(static_cast<const char*>(digits + at));
    return *this;
  }
  dump_writer& operator<<(const void* address) noexcept {
    char digits[2 + 2 * sizeof(std::uintptr_t) + 1];
    std::size_t at = sizeof digits;
    digits[--at] = '\0';
    auto rest = reinterpret_cast<std::uintptr_t>(address);
    do {
      digits[--at] = "0123456789abcdef"[rest % 16];
      rest /= 16;
    } while (rest != 0);
    digits[--at] = 'x';
    digits[--at] = '0';
    sink_(static_cast<const char*>(digits + at));
    return *this;
  }
  /// The words whose flag is set, with | between them; "-" if there is none.
  dump_writer& flag(bool set, const char* word) noexcept {
    if (!set) return *this;
    if (flags_++ != 0) sink_("|");
    sink_(word);
    return *this;
  }
  dump_writer& end_flags() noexcept {
    if (flags_ == 0) sink_("-");
    flags_ = 0;
    return *this;
  }

 private:
  Sink& sink_;
  int flags_ = 0;
};

template <class Sink>
void dump_count(dump_writer<Sink>& out, const percpu_ref_snapshot& now) noexcept {
  // Not counted: the owner's own reference, and that of a switch under way.
  const std::int64_t own = (now.dying ? 0 : 1) + (now.switching ? 1 : 0);
  const std::int64_t users = now.shared - own + (now.biased ? now.per_cpu : 0);
  out << "  usage: " << users << " (" << (now.percpu ? "percpu" : "atomic");
  if (now.switching) out << ", switching";
  if (now.force_atomic) out << ", force_atomic";
  if (now.dying) out << ", dying";
  out << ")";
}

/// The first line: what the gate is called.
template <class Gate, class Sink>
void dump_name(const Gate& gate, const char* kind, Sink& sink) noexcept {
  dump_writer<Sink> out(sink);
  if constexpr (requires { gate.describe_to(sink); }) {
    gate.describe_to(sink);
  } else {
    out << kind << " " << static_cast<const void*>(&gate);
  }
  out << "\n";
}

/// The last lines: who holds it.
template <class Gate, class Sink>
void dump_holders(const Gate& gate, Sink& sink) noexcept {
  if constexpr (requires { gate.holders_to(sink); }) gate.holders_to(sink);
  sink("\n");
}

}  // namespace detail

/// Writes the state of a gate; sink(const char*) gets the text in pieces.
///
/// Blocks: on the lock of the gate's slow paths; the sink is called outside of it.
template <platform Platform, class Sink>
void dump(const basic_freeze_gate<Platform>& gate, Sink&& sink) noexcept {
  detail::dump_writer out(sink);
  detail::dump_name(gate, "freeze_gate", sink);
  out << "  state: ";
  out.flag(gate.depth() > 0 && !gate.is_frozen(), "DRAINING").flag(gate.is_frozen(), "FROZEN");
  out.flag(gate.pm_only() > 0, "PM_ONLY").flag(gate.is_dying(), "DYING").end_flags();
  out << "\n  freeze_depth: " << std::int64_t{gate.depth()};
  out << "\n  pm_only: " << std::int64_t{gate.pm_only()} << "\n";
  detail::dump_count(out, gate.usage().snapshot());
  detail::dump_holders(gate, sink);
}

template <platform Platform, class Sink>
void dump(const basic_quiesce_gate<Platform>& gate, Sink&& sink) noexcept {
  detail::dump_writer out(sink);
  detail::dump_name(gate, "quiesce_gate", sink);
  out << "  state: ";
  out.flag(gate.depth() > 0, "QUIESCED").end_flags();
  out << "\n  quiesce_depth: " << std::int64_t{gate.depth()};
  detail::dump_holders(gate, sink);
}

template <platform Platform, class Sink>
void dump(const basic_percpu_ref<Platform>& ref, Sink&& sink) noexcept {
  detail::dump_writer out(sink);
  detail::dump_name(ref, "percpu_ref", sink);
  detail::dump_count(out, ref.snapshot());
  detail::dump_holders(ref, sink);
}

}  // namespace pmgate

#endif  // PMGATE_BLOCK_DUMP_HPP
