// SPDX-License-Identifier: MIT
//
// kernel_trace_replay.cpp - replays what a running Linux kernel did, operation by
// operation, through the types that users of the library include.
//
//   kernel_trace_replay [--order FILE]... PATH...   PATH: a trace, or a folder of traces
//   kernel_trace_replay --departures                where the library departs, and why
//
// Prints the first difference of each trace that differs; the last line is
// "N passed, M failed". Exit status: 0; 1 if any failed; 2 if one cannot be read,
// or has an operation that nothing here performs.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernel_trace_replay/departures.hpp"
#include "kernel_trace_replay/grammar.hpp"
#include "kernel_trace_replay/queue_room.hpp"
#include "kernel_trace_replay/recorder.hpp"
#include "kernel_trace_replay/ref_room.hpp"
#include "kernel_trace_replay/scheduler.hpp"
#include "kernel_trace_replay/scsi_room.hpp"
#include "kernel_trace_replay/trace_file.hpp"
#include "kernel_trace_replay/trace_platform.hpp"

namespace {

namespace fs = std::filesystem;
using namespace replay;
using text_lines = std::vector<std::string>;

// Its EVENT_ORDER.txt also serves traces that were taken out of their tree.
#if defined(PMGATE_TRACE_DIR)
constexpr const char* trace_folder = PMGATE_TRACE_DIR;
#else
constexpr const char* trace_folder = "tests/kernel_traces";
#endif

constexpr std::string_view usage =
    "usage: kernel_trace_replay [--order FILE]... PATH...\n"
    "       kernel_trace_replay --departures | --help\n"
    "PATH is a trace, or a folder whose *.trace files are replayed. The windows whose\n"
    "events have no order are listed in EVENT_ORDER.txt in a folder above the trace, or\n"
    "in FILE.\n";

/// What the library did in a window.
struct outcome {
  text_lines events;
  text_lines results;
  text_lines states;
};

/// The objects of one trace.
class world {
 public:
  explicit world(const std::string& file) : file_(file) {
    trace_platform::on_misuse() = [this](const char* text) { recorder_.report(text); };
    trace_platform::on_trace() = [this](const char* text) { recorder_.notice(text); };
  }

  outcome replay(const window& w) {
    scheduler_.where = file_ + ":" + std::to_string(w.issue.number);
    recorder_.begin_window();
    task& actor = scheduler_.find(w.op.actor);
    std::string& result = pending_[w.op.actor];
    result.clear();
    scheduler_.start(actor, [this, &w, &result] { result = execute(w.op); });
    scheduler_.settle();
    return collect(w.op.actor);
  }

  /// True while somebody is blocked in an operation.
  [[nodiscard]] bool is_blocked(const std::string& actor) const { return pending_.contains(actor); }
  /// True if somebody never slept.
  [[nodiscard]] bool spins() const { return scheduler_.spins(); }
  [[nodiscard]] const ref_room& refs() const { return refs_; }

  /// Destroys the objects.  Returns: false if somebody still uses them.
  bool finish() {
    trace_platform::on_misuse() = nullptr;
    trace_platform::on_trace() = nullptr;
    if (!pending_.empty() || !scheduler_.rcu.idle() || spins()) return false;
    bool done = false;
    scheduler_.start(scheduler_.find("(end)"), [this, &done] {
      scsi_.clear();
      queues_.clear();
      refs_.clear();
      done = true;
    });
    scheduler_.settle();
    return done;
  }

 private:
  std::string execute(const operation& op) {
    if (op.name == "rcu_read_lock") {
      scheduler_.rcu.lock(op.actor);
    } else if (op.name == "rcu_read_unlock") {
      if (!scheduler_.rcu.unlock(op.actor)) recorder_.event("rcu_read_unlock without a lock");
    } else if (op.name == "synchronize_rcu") {
      (void)trace_platform::synchronize();
    } else if (scsi_.handles(op)) {
      return scsi_.execute(op);
    } else if (op.name.starts_with("percpu_ref_") && !queues_.has(op.args[0])) {
      return refs_.execute(op);
    } else {
      return queues_.execute(op);
    }
    return "void";
  }

  outcome collect(const std::string& issuer) {
    outcome got;
    got.events = recorder_.events();
    for (auto entry = pending_.begin(); entry != pending_.end();) {
      const auto& [name, result] = *entry;
      const bool returned = scheduler_.find(name).idle();
      if (returned) got.results.push_back(name + "= " + result);
      if (!returned && name == issuer) got.results.push_back(name + "= blocked");
      entry = returned ? pending_.erase(entry) : std::next(entry);
    }
    refs_.print_changes(got.states);
    queues_.print_changes(got.states);
    scsi_.print_changes(got.states);
    return got;
  }

  std::string file_;
  scheduler scheduler_;
  recorder recorder_;
  ref_room refs_{recorder_};
  queue_room queues_{recorder_};
  scsi_room scsi_{recorder_};
  std::map<std::string, std::string> pending_;  // the results of those who are in an operation
};

/// Misuse no-reinit-no-return: drops what concerns refs that are not compared.
class filter {
 public:
  void begin(const window& w, const ref_room& refs) {
    refs_ = &refs;
    about_departed_ = !w.op.args.empty() && refs.departed(w.op.args[0]);
    if (about_departed_) actors_.insert(w.op.actor);
  }
  [[nodiscard]] bool keeps(const std::string& line) const {
    if (line.starts_with("! WARN ")) return !about_departed_;
    if (line.starts_with("! ")) return !refs_->departed(line.substr(line.rfind(' ') + 1));
    if (line.starts_with("~ ")) return !refs_->departed(line.substr(2, line.find(' ', 2) - 2));
    return !actors_.contains(line.substr(0, line.find('=')));
  }
  void end(const window& w) {
    for (const auto& line : w.results) {
      if (!line.text.ends_with("= blocked"))
        actors_.erase(line.text.substr(0, line.text.find('=')));
    }
  }

 private:
  const ref_room* refs_ = nullptr;
  bool about_departed_ = false;
  std::set<std::string> actors_;  // in an operation on such a ref
};

text_lines texts(const std::vector<trace_line>& lines) {
  text_lines result;
  for (const auto& line : lines) result.push_back(line.text);
  return result;
}

/// The first difference between what was recorded and what was got, or an empty text.
std::string difference(const std::string& file, const window& w,
                       const std::vector<trace_line>& expected, text_lines got, bool ordered) {
  text_lines wanted = texts(expected);
  if (!ordered) {
    std::sort(wanted.begin(), wanted.end());
    std::sort(got.begin(), got.end());
  }
  if (wanted == got || by_device(wanted) == by_device(got)) return "";
  std::size_t at = 0;
  while (at < wanted.size() && at < got.size() && wanted[at] == got[at]) ++at;
  const std::size_t line = ordered && at < expected.size() ? expected[at].number : w.issue.number;
  return file + ":" + std::to_string(line) + ": after " + w.issue.text +
         "\n  expected: " + (at < wanted.size() ? wanted[at] : "nothing more") +
         "\n  got:      " + (at < got.size() ? got[at] : "nothing") + "\n";
}

/// The first difference in a window: events, then results, then states.
std::string compare(const std::string& file, const window& w, const outcome& got, bool ordered,
                    const filter& kept) {
  const auto keep = [&](auto lines) {
    std::erase_if(lines, [&](const auto& line) {
      if constexpr (requires { line.text; })
        return !kept.keeps(line.text);
      else
        return !kept.keeps(line);
    });
    return lines;
  };
  std::string text = difference(file, w, keep(w.events), keep(got.events), ordered);
  if (text.empty()) text = difference(file, w, keep(w.results), keep(got.results), true);
  if (text.empty()) text = difference(file, w, keep(w.states), keep(got.states), true);
  return text;
}

/// Replays one trace.  Returns: the first difference, or an empty text.
/// Throws: unreadable.
std::string replay_file(const std::string& file, const std::set<std::size_t>& unordered,
                        bool& left_over) {
  const std::vector<window> windows = trace_reader(file).read();
  grammar::check(file, windows);
  auto objects = std::make_unique<world>(file);
  filter kept;
  std::string text;
  for (const window& w : windows) {
    if (objects->is_blocked(w.op.actor)) {
      text =
          file + ":" + std::to_string(w.issue.number) + ": " + w.op.actor + " is blocked already\n";
      break;
    }
    const outcome got = objects->replay(w);
    if (objects->spins()) {
      text = file + ":" + std::to_string(w.issue.number) + ": the library spins\n";
      break;
    }
    kept.begin(w, objects->refs());
    text = compare(file, w, got, !unordered.contains(w.issue.number), kept);
    kept.end(w);
    if (!text.empty()) break;
  }
  if (!objects->finish()) {
    left_over = true;
    (void)objects.release();  // somebody sleeps in there, on a stack of his own
  }
  return text;
}

void print(const char* indent, const departure& which) {
  std::printf("%s%.*s: %.*s\n", indent, static_cast<int>(which.name.size()), which.name.data(),
              static_cast<int>(which.reason.size()), which.reason.data());
}

int print_departures() {
  for (const departure& rule : departures) {
    print("", rule);
    if (rule.name != "misuse") continue;
    for (const departure& one : misuses) print("  ", one);
  }
  return 0;
}

int complain(const std::string& text) {
  std::fprintf(stderr, "kernel_trace_replay: %s\n", text.c_str());
  return 2;
}

int print_usage(std::FILE* where, int exit_status) {
  std::fprintf(where, "%.*s", static_cast<int>(usage.size()), usage.data());
  return exit_status;
}

/// The traces that were named, those of a folder in order of their names.
struct arguments {
  std::vector<std::string> files;
  order_exceptions orders;
  bool own_orders = false;
};

/// Returns: 0, or the exit status of a complaint.
int add_path(arguments& args, const std::string& path) {
  if (!fs::is_directory(path)) {
    if (!fs::exists(path)) return complain(path + ": no such file");
    args.files.push_back(path);
    return 0;
  }
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    if (entry.path().extension() == ".trace") found.push_back(entry.path().string());
  }
  if (found.empty()) return complain(path + ": no traces in it");
  std::sort(found.begin(), found.end());
  args.files.insert(args.files.end(), found.begin(), found.end());
  return 0;
}

int read_arguments(arguments& args, const std::vector<std::string>& words) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--order") {
      if (++i == words.size()) return print_usage(stderr, 2);
      if (!args.orders.add(words[i])) return complain(words[i] + ": cannot be read");
      args.own_orders = true;
    } else if (words[i].starts_with("--")) {
      return print_usage(stderr, 2);
    } else if (const int wrong = add_path(args, words[i]); wrong != 0) {
      return wrong;
    }
  }
  return args.files.empty() ? print_usage(stderr, 2) : 0;
}

int run(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words == text_lines{"--departures"}) return print_departures();
  if (words == text_lines{"--help"}) return print_usage(stdout, 0);
  arguments args;
  if (const int wrong = read_arguments(args, words); wrong != 0) return wrong;
  if (!args.own_orders) {
    (void)args.orders.add(fs::path(trace_folder) / "EVENT_ORDER.txt");
    for (const auto& file : args.files) args.orders.add_nearest(file);
  }

  std::size_t passed = 0;
  std::size_t failed = 0;
  bool all_read = true;
  bool left_over = false;
  for (const auto& file : args.files) {
    try {
      const std::string text = replay_file(file, args.orders.of(file), left_over);
      std::printf("%s", text.c_str());
      ++(text.empty() ? passed : failed);
    } catch (const unreadable& error) {
      all_read = false;
      std::fprintf(stderr, "%s\n", error.what());
    }
  }
  std::printf("%zu passed, %zu failed\n", passed, failed);
  std::fflush(stdout);
  const int exit_status = !all_read ? 2 : failed != 0 ? 1 : 0;
  if (left_over) std::_Exit(exit_status);  // tasks sleep for ever in what was replayed
  return exit_status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    return complain(error.what());
  }
}
