// SPDX-License-Identifier: MIT
//
// grammar.hpp - which operations there are, and what they look like. A trace is
// checked as a whole before it is replayed.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_GRAMMAR_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_GRAMMAR_HPP

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "scsi_grammar.hpp"
#include "trace_file.hpp"

namespace replay {

/// Checks the operations of one trace.
class grammar {
 public:
  /// Throws: unreadable, naming the line.
  static void check(const std::string& file, const std::vector<window>& windows) {
    grammar self;
    for (const window& w : windows) {
      const std::string problem = self.problem_with(w.op);
      if (!problem.empty()) {
        throw unreadable(file, w.issue.number, problem + ": \"" + w.issue.text + "\"");
      }
    }
  }

 private:
  /// One letter for each argument: R a ref, r one that is made, Q a queue, q one that is
  /// made, X a ref or queue, N a request, n one that is made, I a number, E an errno
  /// or 0, S a status, B a busy status, C `confirm`. Those behind a ? may be missing. Then the options;
  /// those with a ! must be there.
  struct shape {
    std::string_view args;
    std::string_view options = "";
  };

  static const std::map<std::string_view, shape>& shapes() {
    static const std::map<std::string_view, shape> table = {
        {"rcu_read_lock", {""}},
        {"rcu_read_unlock", {""}},
        {"synchronize_rcu", {""}},
        {"percpu_ref_init", {"r", "flags! on_release"}},
        {"percpu_ref_exit", {"R"}},
        {"percpu_ref_get", {"R"}},
        {"percpu_ref_get_many", {"RI"}},
        {"percpu_ref_tryget", {"R"}},
        {"percpu_ref_tryget_many", {"RI"}},
        {"percpu_ref_tryget_live", {"R"}},
        {"percpu_ref_put", {"R"}},
        {"percpu_ref_put_many", {"RI"}},
        {"percpu_ref_kill", {"R"}},
        {"percpu_ref_kill_and_confirm", {"R"}},
        {"percpu_ref_switch_to_atomic", {"R?C"}},
        {"percpu_ref_switch_to_atomic_sync", {"R"}},
        {"percpu_ref_switch_to_percpu", {"R"}},
        {"percpu_ref_resurrect", {"R"}},
        {"percpu_ref_reinit", {"R"}},
        {"percpu_ref_is_dying", {"X"}},
        {"percpu_ref_is_zero", {"X"}},
        {"new_queue", {"q", "kind! pm depth blocking share"}},
        {"blk_queue_enter", {"Q", "flags!"}},
        {"blk_try_enter_queue", {"Q", "pm!"}},
        {"blk_queue_exit", {"Q"}},
        {"blk_freeze_queue_start", {"Q"}},
        {"blk_freeze_queue_start_non_owner", {"Q"}},
        {"blk_mq_freeze_queue", {"Q"}},
        {"blk_mq_freeze_queue_wait", {"Q"}},
        {"blk_mq_freeze_queue_wait_timeout", {"QI"}},
        {"blk_mq_unfreeze_queue", {"Q"}},
        {"blk_mq_unfreeze_queue_non_owner", {"Q"}},
        {"__blk_mq_unfreeze_queue", {"Q", "force_atomic!"}},
        {"blk_queue_start_drain", {"Q"}},
        {"blk_mark_disk_dead", {"Q"}},
        {"del_gendisk", {"Q"}},
        {"blk_mq_destroy_queue", {"Q"}},
        {"hold_dispatch", {"Q"}},
        {"release_dispatch", {"Q"}},
        {"blk_set_pm_only", {"Q"}},
        {"blk_clear_pm_only", {"Q"}},
        {"blk_pre_runtime_suspend", {"Q"}},
        {"blk_post_runtime_suspend", {"QE"}},
        {"blk_pre_runtime_resume", {"Q"}},
        {"blk_post_runtime_resume", {"Q"}},
        {"blk_mq_quiesce_queue", {"Q"}},
        {"blk_mq_quiesce_queue_nowait", {"Q"}},
        {"blk_mq_wait_quiesce_done", {"Q"}},
        {"blk_mq_unquiesce_queue", {"Q"}},
        {"blk_mq_quiesce_tagset", {"Q"}},
        {"blk_mq_unquiesce_tagset", {"Q"}},
        {"blk_mq_run_hw_queues", {"Q", "async!"}},
        {"blk_mq_stop_hw_queues", {"Q"}},
        {"blk_mq_start_stopped_hw_queues", {"Q"}},
        {"set_busy", {"QI?B"}},
        {"blk_queue_dying", {"Q"}},
        {"blk_queue_quiesced", {"Q"}},
        {"blk_queue_pm_only", {"Q"}},
        {"blk_mq_alloc_request", {"Qn", "flags"}},
        {"submit", {"Qn", "flags at_head"}},
        {"submit_bio", {"Qn", "flags"}},
        {"blk_mq_free_request", {"N"}},
        {"blk_execute_rq_nowait", {"N", "at_head"}},
        {"blk_execute_rq", {"N", "at_head"}},
        {"complete", {"N?S"}},
        {"blk_mq_requeue_request", {"N"}},
    };
    return table;
  }

  std::string problem_with(const operation& op) {
    if (scsi_.knows(op)) return scsi_.problem_with(op);
    const auto found = shapes().find(op.name);
    if (found == shapes().end()) return "unknown operation " + op.name;
    const auto& [args, options] = found->second;
    std::size_t given = 0;
    bool optional = false;
    for (const char kind : args) {
      if (kind == '?') {
        optional = true;
      } else if (given < op.args.size()) {
        const std::string problem = problem_with_argument(kind, op.args[given++]);
        if (!problem.empty()) return problem;
      } else if (!optional) {
        return "malformed: too few arguments";
      }
    }
    if (given != op.args.size()) return "malformed: too many arguments";
    return problem_with_options(op, options);
  }

  std::string problem_with_argument(char kind, const std::string& text) {
    const auto one_of = [&](const std::set<std::string>& words) {
      return words.contains(text) ? "" : "malformed: \"" + text + "\" is not expected here";
    };
    const auto known = [&](const std::set<std::string>& names) {
      return names.contains(text) ? "" : "malformed: there is no " + text;
    };
    const auto make = [&](std::set<std::string>& names, bool again) {
      if (!is_word(text)) return "malformed name " + text;
      const bool is_new = names.insert(text).second;
      return is_new || again ? std::string() : "malformed: a second " + text;
    };
    switch (kind) {
      case 'R': return known(refs_);
      case 'r': return queues_.contains(text) ? "malformed: a second " + text : make(refs_, true);
      case 'Q': return known(queues_);
      case 'q': return refs_.contains(text) ? "malformed: a second " + text : make(queues_, false);
      case 'X': return refs_.contains(text) ? "" : known(queues_);
      case 'N': return known(requests_);
      case 'n': return make(requests_, false);
      case 'I': return is_number(text) ? "" : "malformed number " + text;
      case 'E':
        return is_number(text.starts_with('-') ? text.substr(1) : text)
                   ? ""
                   : "malformed number " + text;
      case 'S': return one_of({"OK", "IOERR", "TIMEOUT", "AGAIN"});
      case 'B': return one_of({"RESOURCE", "DEV_RESOURCE"});
      default: return one_of({"confirm"});
    }
  }

  std::string problem_with_options(const operation& op, std::string_view allowed) {
    std::set<std::string> names;
    for (std::string name : split(std::string(allowed), ' ')) {
      const bool needed = name.ends_with('!');
      if (needed) name.pop_back();
      if (needed && !op.options.contains(name)) return "malformed: " + name + "= is missing";
      names.insert(name);
    }
    for (const auto& [name, value] : op.options) {
      if (!names.contains(name)) return "malformed: unknown option " + name + "=";
      const std::string problem = problem_with_option(op, name, value);
      if (!problem.empty()) return problem;
    }
    return "";
  }

  std::string problem_with_option(const operation& op, const std::string& name,
                                  const std::string& value) {
    const std::string wrong = "malformed: " + name + "=" + value;
    if (name == "flags") {
      static const std::set<std::string> of_refs = {"0", "ATOMIC", "DEAD", "ALLOW_REINIT"};
      static const std::set<std::string> of_queues = {"0", "NOWAIT", "PM"};
      const auto& words = op.name == "percpu_ref_init" ? of_refs : of_queues;
      const auto flags = split(value, '|');
      return std::all_of(flags.begin(), flags.end(),
                         [&](const auto& flag) { return words.contains(flag); })
                 ? ""
                 : wrong;
    }
    if (name == "kind") return value == "disk" || value == "mq" ? "" : wrong;
    if (name == "on_release") return value == "exit" ? "" : wrong;
    if (name == "depth") return is_number(value) && value != "0" ? "" : wrong;
    if (name == "share") return queues_.contains(value) ? "" : "malformed: there is no " + value;
    if (value != "0" && value != "1") return wrong;
    return "";
  }

  static bool is_number(std::string_view text) {
    return !text.empty() && text.size() < 16 &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  }

  std::set<std::string> refs_;
  std::set<std::string> queues_;
  std::set<std::string> requests_;
  scsi_grammar scsi_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_GRAMMAR_HPP
