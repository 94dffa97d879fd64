// SPDX-License-Identifier: MIT
//
// trace_file.hpp - the text of a trace, cut into windows: an operation and all
// that the kernel did until nothing moved any more.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_TRACE_FILE_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_TRACE_FILE_HPP

#include <cctype>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace replay {

/// What cannot be replayed: a malformed line, or an operation for which there is no
/// room. The text says where and what.
class unreadable : public std::runtime_error {
 public:
  unreadable(const std::string& file, std::size_t line, const std::string& text)
      : std::runtime_error(file + ":" + std::to_string(line) + ": " + text) {}
};

struct trace_line {
  std::size_t number;
  std::string text;
};

/// An operation: its name, its arguments in order, and those of the form KEY=VALUE.
struct operation {
  std::string actor;
  std::string name;
  std::vector<std::string> args;
  std::map<std::string, std::string> options;

  [[nodiscard]] std::string option(const std::string& key, const std::string& otherwise) const {
    const auto found = options.find(key);
    return found != options.end() ? found->second : otherwise;
  }
};

struct window {
  trace_line issue;
  operation op;
  std::vector<trace_line> events;
  std::vector<trace_line> results;
  std::vector<trace_line> states;
  std::size_t end;  // number of the first line behind it
};

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

inline bool is_word(std::string_view text) {
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_') return false;
  }
  return !text.empty();
}

/// Cuts a trace into windows.  Throws: unreadable.
class trace_reader {
 public:
  explicit trace_reader(std::string file) : file_(std::move(file)) {}

  std::vector<window> read() {
    std::ifstream in(file_, std::ios::binary);
    std::size_t number = 0;
    for (std::string line; std::getline(in, line);) {
      ++number;
      if (!line.empty() && line.front() != '#') take({number, line});
    }
    if (in.bad() || number == 0) fail({number, ""}, "cannot be read, or is empty");
    finish_window(number + 1);
    if (windows_.empty()) fail({number, ""}, "no operation in it");
    return std::move(windows_);
  }

 private:
  [[noreturn]] void fail(const trace_line& line, const std::string& text) const {
    throw unreadable(file_, line.number,
                     text + (line.text.empty() ? "" : ": \"" + line.text + "\""));
  }

  void take(const trace_line& line) {
    const std::string& text = line.text;
    if (text.starts_with("! ") || text.starts_with("~ ")) {
      if (windows_.empty()) fail(line, "malformed: comes before every operation");
      const bool event = text.front() == '!';
      if (text.size() < 3) fail(line, "malformed");
      enter_part(line, event ? 1 : 3);
      (event ? windows_.back().events : windows_.back().states).push_back(line);
      return;
    }
    const std::size_t mark = text.find_first_of(">=");
    const bool framed = mark != std::string::npos &&
                        is_word(std::string_view(text).substr(0, mark)) && text.size() > mark + 2 &&
                        text[mark + 1] == ' ';
    if (!framed) fail(line, "malformed");
    if (text[mark] == '>') {
      finish_window(line.number);
      windows_.push_back({line, parse(line, mark), {}, {}, {}, 0});
      part_ = 0;
      return;
    }
    if (windows_.empty()) fail(line, "malformed: comes before every operation");
    enter_part(line, 2);
    windows_.back().results.push_back(line);
  }

  // Issue, events, results, states: in this order.
  void enter_part(const trace_line& line, int part) {
    if (part < part_) fail(line, "malformed: out of order in its window");
    part_ = part;
  }

  void finish_window(std::size_t end) {
    if (!windows_.empty()) windows_.back().end = end;
  }

  operation parse(const trace_line& line, std::size_t mark) const {
    operation op;
    op.actor = line.text.substr(0, mark);
    for (const std::string& word : split(line.text.substr(mark + 2), ' ')) {
      if (word.empty()) fail(line, "malformed: two spaces");
      if (op.name.empty()) {
        if (!is_word(word)) fail(line, "malformed: no operation");
        op.name = word;
        continue;
      }
      const std::size_t equals = word.find('=');
      if (equals == std::string::npos) {
        op.args.push_back(word);
      } else if (equals == 0 || equals + 1 == word.size() ||
                 !op.options.emplace(word.substr(0, equals), word.substr(equals + 1)).second) {
        fail(line, "malformed option");
      }
    }
    return op;
  }

  std::string file_;
  std::vector<window> windows_;
  int part_ = 0;
};

/// The windows whose events are compared without regard to order: EVENT_ORDER.txt.
///
/// A line FILE:LINE names the window of every file whose path ends with FILE.
class order_exceptions {
 public:
  /// Returns: false if the list cannot be read.
  bool add(const std::filesystem::path& list) {
    std::ifstream in(list);
    if (!in) return false;
    for (std::string line; std::getline(in, line);) {
      const std::size_t colon = line.rfind(':');
      if (line.empty() || line.front() == '#' || colon == std::string::npos) continue;
      std::istringstream number(line.substr(colon + 1));
      std::size_t value = 0;
      if (number >> value) lines_[line.substr(0, colon)].insert(value);
    }
    return true;
  }
  /// Adds the nearest list in the folders above the file, if there is one.
  void add_nearest(const std::filesystem::path& file) {
    for (auto folder = std::filesystem::weakly_canonical(file).parent_path();;
         folder = folder.parent_path()) {
      if (!looked_.insert(folder.string()).second || add(folder / "EVENT_ORDER.txt") ||
          folder == folder.parent_path()) {
        return;
      }
    }
  }
  [[nodiscard]] std::set<std::size_t> of(const std::filesystem::path& file) const {
    const std::string full = std::filesystem::weakly_canonical(file).generic_string();
    for (const auto& [name, lines] : lines_) {
      if (full.ends_with("/" + name)) return lines;
    }
    return {};
  }

 private:
  std::map<std::string, std::set<std::size_t>> lines_;
  std::set<std::string> looked_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_TRACE_FILE_HPP
