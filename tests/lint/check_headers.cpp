// SPDX-License-Identifier: MIT
//
// check_headers.cpp - the rules for headers that a look at their text can check.
//
//   check_headers <include folder>     lists every breach; exit status 1 if any
//   check_headers --self-test          breaks each rule and expects the breach
//
// The rules: the licence line comes first, the guard is named after the path and
// encloses the rest, a header has at most 500 lines, the core includes only what
// the allow-list holds, and no header includes one from a higher floor, or itself
// in a circle.
#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using std::string;
using std::string_view;

constexpr std::size_t max_lines = 500;
constexpr string_view licence = "// SPDX-License-Identifier: MIT";

// What a core header may include besides the library itself.
constexpr std::array<string_view, 9> core_allow_list = {
    "atomic", "bit", "concepts", "cstddef", "cstdint", "limits", "new", "type_traits", "utility"};

// Headers that need an operating system; they include what they like. Another one
// says so in its opening comment, and names what it needs:  // Hosted: <thread> <mutex>
bool is_hosted(string_view name) {
  return name.starts_with("platform/linux") || name.starts_with("detail/hosted_") ||
         name == "platform/rseq_counter.hpp" || name == "platform/portable.hpp" ||
         name == "platform/sim.hpp";
}

// The floor of a header, from the ground up; -1 if the house has no such room.
int floor_of(string_view name) {
  static const std::map<string_view, int> files = {
      {"version.hpp", 0},    {"status.hpp", 0},           {"platform.hpp", 0},
      {"percpu_ref.hpp", 1}, {"percpu_ref_types.hpp", 0}, {"pmgate.hpp", 4},
  };
  static const std::map<string_view, int> folders = {
      {"platform", 0}, {"pm", 1}, {"vmbus", 1}, {"block", 2}, {"scsi", 3},
  };
  // Internals live on the ground, unless they lie in a room of their own there:
  // detail/block/ is on the floor of block/.
  if (name.starts_with("detail/")) {
    name.remove_prefix(7);
    const std::size_t end = name.find('/');
    const auto room = folders.find(name.substr(0, end));
    return end != string_view::npos && room != folders.end() ? room->second : 0;
  }
  const std::size_t end = name.find('/');
  const auto& table = end == string_view::npos ? files : folders;
  const auto found = table.find(name.substr(0, end));
  return found != table.end() ? found->second : -1;
}

// The name of each header below pmgate/, and its text.
using tree = std::map<string, string>;

struct include_line {
  std::size_t number;
  string target;  // as written, between the brackets or quotes
};

struct header {
  std::vector<string> lines;
  std::vector<include_line> includes;
};

string_view trim(string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) {
    text.remove_prefix(1);
  }
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) {
    text.remove_suffix(1);
  }
  return text;
}

// The rest of a preprocessor line after `#directive`, or an empty view.
string_view after_directive(string_view line, string_view directive) {
  line = trim(line);
  if (!line.starts_with('#')) return {};
  line = trim(line.substr(1));
  if (!line.starts_with(directive)) return {};
  return trim(line.substr(directive.size()));
}

header parse(const string& text) {
  header result;
  std::istringstream in(text);
  for (string line; std::getline(in, line);) {
    const string_view rest = after_directive(line, "include");
    if (!rest.empty() && (rest.front() == '<' || rest.front() == '"')) {
      const char close = rest.front() == '<' ? '>' : '"';
      const string_view target = rest.substr(1, rest.find(close, 1) - 1);
      result.includes.push_back({result.lines.size() + 1, string(target)});
    }
    result.lines.push_back(std::move(line));
  }
  return result;
}

string guard_for(const string& name) {
  string guard = "PMGATE_";
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    guard += std::isalnum(byte) != 0 ? static_cast<char>(std::toupper(byte)) : '_';
  }
  return guard;
}

class checker {
public:
  explicit checker(const tree& headers) {
    for (const auto& [name, text] : headers) headers_.emplace(name, parse(text));
  }

  std::vector<string> run() {
    for (const auto& [name, parsed] : headers_) {
      check_frame(name, parsed);
      check_includes(name, parsed);
    }
    for (const auto& [name, parsed] : headers_) check_circles(name);
    return std::move(breaches_);
  }

private:
  void report(const string& name, std::size_t line, const string& text) {
    breaches_.push_back("pmgate/" + name + ":" + std::to_string(line) + ": " + text);
  }

  // Licence, size and guard.
  void check_frame(const string& name, const header& parsed) {
    const auto& lines = parsed.lines;
    if (lines.empty() || lines.front() != licence) {
      report(name, 1, "the first line must be: " + string(licence));
    }
    if (lines.size() > max_lines) {
      report(name, lines.size(), "more than " + std::to_string(max_lines) + " lines: split it");
    }

    const string guard = guard_for(name);
    const auto is_code = [](const string& line) {
      const string_view text = trim(line);
      return !text.empty() && !text.starts_with("//");
    };
    const auto first = std::find_if(lines.begin(), lines.end(), is_code);
    const auto at = static_cast<std::size_t>(first - lines.begin()) + 1;
    if (first == lines.end() || after_directive(*first, "ifndef") != guard ||
        std::next(first) == lines.end() || after_directive(*std::next(first), "define") != guard) {
      report(name, at, "the first code must be the guard " + guard);
    }
    if (lines.empty() || lines.back() != "#endif  // " + guard) {
      report(name, lines.size(), "the last line must be: #endif  // " + guard);
    }
  }

  void check_includes(const string& name, const header& parsed) {
    const int floor = floor_of(name);
    if (floor < 0) {
      report(name, 1,
             "no floor is known for it: add it to floor_of() in tests/lint/check_headers.cpp");
    }
    for (const auto& [line, target] : parsed.includes) {
      if (!target.starts_with("pmgate/")) {
        check_foreign_include(name, parsed, line, target);
        continue;
      }
      const string own = target.substr(7);
      if (!headers_.contains(own)) {
        report(name, line, "<" + target + "> does not exist");
      } else if (floor >= 0 && floor_of(own) > floor) {
        report(name, line, "<" + target + "> lives on a higher floor");
      }
    }
  }

  void check_foreign_include(const string& name, const header& parsed, std::size_t line,
                             const string& target) {
    const bool allowed =
        is_hosted(name) ||
        std::find(core_allow_list.begin(), core_allow_list.end(), target) != core_allow_list.end();
    if (!allowed && !says_it_needs(parsed, target)) {
      report(name, line, "<" + target + "> is not on the allow-list of core headers");
    }
  }

  // Whether the opening comment has a line `// Hosted: ... <target> ...`.
  static bool says_it_needs(const header& parsed, const string& target) {
    const auto says = [&](const string& line) {
      return line.starts_with("// Hosted:") && line.find("<" + target + ">") != string::npos;
    };
    const auto end = std::find_if(parsed.lines.begin(), parsed.lines.end(),
                                  [](const string& line) { return !line.starts_with("//"); });
    return std::any_of(parsed.lines.begin(), end, says);
  }

  // detail/x_impl.hpp or x_part_impl.hpp holds bodies of x.hpp: each includes the other, so
  // that either may be included first.
  static bool is_own_interface(const string& name, const string& included) {
    const auto stem = [](const string& path) {
      return std::filesystem::path(path).stem().generic_string();
    };
    const string bodies = stem(name);
    return bodies.starts_with(stem(included) + "_") && bodies.ends_with("_impl");
  }

  // Depth first; a header met again while it is still open closes a circle.
  void check_circles(const string& name) {
    if (done_.contains(name)) return;
    open_.insert(name);
    for (const auto& [line, target] : headers_.at(name).includes) {
      const string own = target.starts_with("pmgate/") ? target.substr(7) : string();
      if (!headers_.contains(own) || is_own_interface(name, own)) continue;
      if (open_.contains(own)) {
        report(name, line, "<" + target + "> closes a circle of includes");
      } else {
        check_circles(own);
      }
    }
    open_.erase(name);
    done_.insert(name);
  }

  std::map<string, header> headers_;
  std::set<string> open_;
  std::set<string> done_;
  std::vector<string> breaches_;
};

tree read_tree(const std::filesystem::path& include_dir) {
  tree headers;
  const auto root = include_dir / "pmgate";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".hpp") continue;
    std::ifstream file(entry.path(), std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    headers.emplace(std::filesystem::relative(entry.path(), root).generic_string(), text.str());
  }
  return headers;
}

// --- the self-test -----------------------------------------------------------

string framed(const string& name, const string& body, const string& comment = {}) {
  const string guard = guard_for(name);
  return string(licence) + "\n//\n" + comment + "#ifndef " + guard + "\n#define " + guard + "\n\n" +
         body + "\n#endif  // " + guard + "\n";
}

struct scenario {
  const char* what;
  tree headers;
  const char* expected;  // part of the only breach; null: none
};

std::vector<scenario> scenarios() {
  const string status = framed("status.hpp", "#include <cstdint>\n");
  const auto one = [](const string& name, const string& body, const string& comment = {}) {
    return tree{{name, framed(name, body, comment)}};
  };
  return {
      {"a good header", {{"status.hpp", status}}, nullptr},
      {"no licence line", {{"status.hpp", status.substr(status.find('\n') + 1)}}, "first line"},
      {"a wrong guard", {{"status.hpp", framed("state.hpp", "")}}, "PMGATE_STATUS_HPP"},
      {"code after the guard", {{"status.hpp", status + "int x;\n"}}, "last line"},
      {"a long header", one("status.hpp", string(max_lines, '\n')), "split it"},
      {"<mutex> in the core", one("status.hpp", "#include <mutex>\n"), "<mutex> is not"},
      {"an indented include", one("status.hpp", "#  include <mutex>\n"), "<mutex> is not"},
      {"<mutex> in a hosted header", one("platform/linux.hpp", "#include <mutex>\n"), nullptr},
      {"a header that says so", one("pm/x.hpp", "#include <mutex>\n", "// Hosted: <mutex>\n"),
       nullptr},
      {"one that says another", one("pm/x.hpp", "#include <mutex>\n", "// Hosted: <thread>\n"),
       "<mutex> is not"},
      {"a missing header", one("pm/x.hpp", "#include <pmgate/status.hpp>\n"), "does not exist"},
      {"a header without a floor", one("attic.hpp", ""), "no floor"},
      {"an include downwards",
       {{"status.hpp", status},
        {"scsi/x.hpp", framed("scsi/x.hpp", "#include <pmgate/status.hpp>\n")}},
       nullptr},
      {"an include upwards",
       {{"status.hpp", framed("status.hpp", "#include <pmgate/pm/x.hpp>\n")},
        {"pm/x.hpp", framed("pm/x.hpp", "")}},
       "higher floor"},
      {"internals of a room",
       {{"status.hpp", framed("status.hpp", "#include <pmgate/detail/block/x.hpp>\n")},
        {"detail/block/x.hpp", framed("detail/block/x.hpp", "")}},
       "higher floor"},
      {"a header and its bodies",
       {{"pm/x.hpp", framed("pm/x.hpp", "#include <pmgate/pm/detail/x_impl.hpp>\n")},
        {"pm/detail/x_impl.hpp", framed("pm/detail/x_impl.hpp", "#include <pmgate/pm/x.hpp>\n")}},
       nullptr},
      {"one part of a header's bodies",
       {{"pm/x.hpp", framed("pm/x.hpp", "#include <pmgate/pm/detail/x_part_impl.hpp>\n")},
        {"pm/detail/x_part_impl.hpp",
         framed("pm/detail/x_part_impl.hpp", "#include <pmgate/pm/x.hpp>\n")}},
       nullptr},
      {"a circle",
       {{"pm/x.hpp", framed("pm/x.hpp", "#include <pmgate/pm/y.hpp>\n")},
        {"pm/y.hpp", framed("pm/y.hpp", "#include <pmgate/pm/x.hpp>\n")}},
       "circle"},
  };
}

int self_test() {
  int failures = 0;
  for (const auto& [what, headers, expected] : scenarios()) {
    const auto breaches = checker(headers).run();
    const bool met =
        expected == nullptr
            ? breaches.empty()
            : !breaches.empty() &&
                  std::all_of(breaches.begin(), breaches.end(), [&](const string& breach) {
                    return breach.find(expected) != string::npos;
                  });
    if (met) continue;
    ++failures;
    std::printf("%s: expected %s, found:\n", what, expected != nullptr ? expected : "nothing");
    for (const auto& breach : breaches) std::printf("  %s\n", breach.c_str());
  }
  std::printf("%zu scenarios, %d failed\n", scenarios().size(), failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: check_headers <include folder> | --self-test\n");
    return 2;
  }
  if (string_view(argv[1]) == "--self-test") return self_test();

  const tree headers = read_tree(argv[1]);
  const auto breaches = checker(headers).run();
  for (const auto& breach : breaches) std::printf("%s\n", breach.c_str());
  std::printf("%zu headers, %zu breaches\n", headers.size(), breaches.size());
  return !headers.empty() && breaches.empty() ? 0 : 1;
}
