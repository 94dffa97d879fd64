// SPDX-License-Identifier: MIT
//
// scsi_grammar.hpp - the operations on SCSI hosts and devices, and what they look like.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCSI_GRAMMAR_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCSI_GRAMMAR_HPP

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include <pmgate/scsi/state.hpp>

#include "trace_file.hpp"

namespace replay {

/// Checks the operations of one trace that concern SCSI.
class scsi_grammar {
 public:
  /// True if the operation makes a host or concerns one, or what belongs to it.
  [[nodiscard]] bool knows(const operation& op) const {
    if (op.name.starts_with("scsi_") || op.name == "new_host") return true;
    if (op.args.empty()) return false;
    const std::string& name = op.args[0];
    return hosts_.contains(name) || devices_.contains(name) || commands_.contains(name);
  }

  /// Returns: what is wrong with it, or an empty text.
  std::string problem_with(const operation& op) {
    const auto found = shapes().find(op.name);
    if (found == shapes().end()) return "unknown operation " + op.name;
    const auto& [args, options] = found->second;
    if (op.args.size() < args.size()) return "malformed: too few arguments";
    if (op.args.size() > args.size()) return "malformed: too many arguments";
    for (std::size_t i = 0; i < args.size(); ++i) {
      const std::string problem = problem_with_argument(args[i], op.args[i]);
      if (!problem.empty()) return problem;
    }
    const std::string problem = problem_with_options(op, options);
    if (problem.empty() && op.name == "new_host") add_devices(op);
    return problem;
  }

 private:
  /// One letter for each argument: H a host, h one that is made, D a device, T a host
  /// or device, C a command, c one that is made, I a number, S the state of a device,
  /// s that of a host. Then the options; those with a ! must be there.
  struct shape {
    std::string_view args;
    std::string_view options = "";
  };

  static const std::map<std::string_view, shape>& shapes() {
    static const std::map<std::string_view, shape> table = {
        {"new_host", {"h", "devs! luns pm depth"}},
        {"force_state", {"DS"}},
        {"scsi_device_set_state", {"DS"}},
        {"scsi_device_quiesce", {"D"}},
        {"scsi_device_resume", {"D"}},
        {"scsi_target_quiesce", {"D"}},
        {"scsi_target_resume", {"D"}},
        {"scsi_internal_device_block_nowait", {"D"}},
        {"scsi_internal_device_unblock_nowait", {"DS"}},
        {"scsi_host_block", {"H"}},
        {"scsi_host_unblock", {"HS"}},
        {"scsi_block_targets", {"H"}},
        {"scsi_target_unblock", {"TS"}},
        {"scsi_block_requests", {"H"}},
        {"scsi_unblock_requests", {"H"}},
        {"force_host_state", {"Hs"}},
        {"scsi_host_set_state", {"Hs"}},
        {"scsi_host_in_recovery", {"H"}},
        {"scsi_host_scan_allowed", {"H"}},
        {"scsi_device_online", {"D"}},
        {"scsi_device_blocked", {"D"}},
        {"scsi_device_created", {"D"}},
        {"blk_mq_run_hw_queues", {"D"}},
        {"blk_queue_enter", {"D", "flags!"}},
        {"blk_queue_exit", {"D"}},
        {"scsi_remove_device", {"D"}},
        {"scsi_execute_cmd", {"Dc", "flags"}},
        {"complete", {"CI"}},
        {"set_busy", {"HI"}},
    };
    return table;
  }

  std::string problem_with_argument(char kind, const std::string& text) {
    const auto known = [&](bool is_known) {
      return is_known ? std::string() : "malformed: there is no " + text;
    };
    const auto make = [&](std::set<std::string>& names) {
      if (!is_word(text)) return "malformed name " + text;
      return names.insert(text).second ? std::string() : "malformed: a second " + text;
    };
    const auto state = [&](auto value) {
      return pmgate::scsi::parse(text.c_str(), value) ? std::string() : "malformed state " + text;
    };
    switch (kind) {
      case 'H': return known(hosts_.contains(text));
      case 'h': return hosts_.empty() ? make(hosts_) : "malformed: a second host";
      case 'D': return known(devices_.contains(text));
      case 'T': return known(hosts_.contains(text) || devices_.contains(text));
      case 'C': return known(commands_.contains(text));
      case 'c': return make(commands_);
      case 'S': return state(pmgate::scsi::device_state{});
      case 's': return state(pmgate::scsi::host_state{});
      default: return is_number(text) ? "" : "malformed number " + text;
    }
  }

  static std::string problem_with_options(const operation& op, std::string_view allowed) {
    std::set<std::string> names;
    for (std::string name : split(std::string(allowed), ' ')) {
      const bool needed = name.ends_with('!');
      if (needed) name.pop_back();
      if (needed && !op.options.contains(name)) return "malformed: " + name + "= is missing";
      names.insert(name);
    }
    static const std::set<std::string> flag_names = {"0", "NOWAIT", "PM", "FAIL_IF_RECOVERING"};
    for (const auto& [name, value] : op.options) {
      if (!names.contains(name)) return "malformed: unknown option " + name + "=";
      bool fits = is_number(value);
      if (name == "flags") {
        const auto flags = split(value, '|');
        fits = std::all_of(flags.begin(), flags.end(),
                           [](const auto& flag) { return flag_names.contains(flag); });
      } else if (name != "pm") {
        fits = fits && value != "0";
      }
      if (!fits) return "malformed: " + name + "=" + value;
    }
    return "";
  }

  void add_devices(const operation& op) {
    const std::size_t count = std::stoul(op.option("devs", "1"));
    for (std::size_t i = 0; i < count; ++i) {
      devices_.insert(std::string("d").append(std::to_string(i)));
    }
  }

  /// Decimal, or hexadecimal after 0x; short enough for an int.
  static bool is_number(std::string_view text) {
    const bool hexadecimal = text.starts_with("0x");
    if (hexadecimal) text.remove_prefix(2);
    const auto is_digit = [hexadecimal](char c) {
      return (c >= '0' && c <= '9') || (hexadecimal && c >= 'a' && c <= 'f');
    };
    return !text.empty() && text.size() <= (hexadecimal ? 8 : 7) &&
           std::all_of(text.begin(), text.end(), is_digit);
  }

  std::set<std::string> hosts_;
  std::set<std::string> devices_;
  std::set<std::string> commands_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCSI_GRAMMAR_HPP
