// SPDX-License-Identifier: MIT
//
// plot_benchmarks.cpp - draws what a benchmark program measured.
//
//   plot_benchmarks <report.json> <picture.svg>
//
// Reads a report of Google Benchmark and draws one bar per benchmark: dark up to
// the minimum of real time, light from there to the median. Benchmarks that share
// the first part of their name (up to the first '/') share a panel and a linear
// scale from zero, so lengths may be compared within a panel and only there.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace {

using std::string;
using std::string_view;

// --- JSON --------------------------------------------------------------------

struct json;
using json_array = std::vector<json>;
using json_object = std::map<string, json>;

struct json {
  std::variant<std::nullptr_t, bool, double, string, json_array, json_object> value;

  // The member called `key`, or null when this is no object or has none.
  const json* find(const string& key) const {
    const auto* object = std::get_if<json_object>(&value);
    if (object == nullptr) return nullptr;
    const auto found = object->find(key);
    return found != object->end() ? &found->second : nullptr;
  }

  string text(const string& key, const string& otherwise = {}) const {
    const json* member = find(key);
    const auto* found = member != nullptr ? std::get_if<string>(&member->value) : nullptr;
    return found != nullptr ? *found : otherwise;
  }

  const double* number(const string& key) const {
    const json* member = find(key);
    return member != nullptr ? std::get_if<double>(&member->value) : nullptr;
  }

  bool flag(const string& key) const {
    const json* member = find(key);
    const auto* found = member != nullptr ? std::get_if<bool>(&member->value) : nullptr;
    return found != nullptr && *found;
  }
};

// Reads one JSON text; throws std::runtime_error that names the line.
class json_reader {
public:
  explicit json_reader(string_view text) : text_(text) {}

  json read() {
    json result = read_value(0);
    skip_space();
    if (at_ != text_.size()) fail("something follows the end of the report");
    return result;
  }

private:
  static constexpr int max_depth = 64;

  [[noreturn]] void fail(const string& what) const {
    const auto line =
        1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n');
    throw std::runtime_error("line " + std::to_string(line) + ": " + what);
  }

  void skip_space() {
    while (at_ < text_.size() && string_view(" \t\r\n").find(text_[at_]) != string_view::npos)
      ++at_;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  bool take_word(string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  json read_value(int depth) {
    if (depth > max_depth) fail("nested too deeply");
    skip_space();
    if (at_ == text_.size()) fail("the report ends too early");
    if (take('{')) return read_object(depth);
    if (take('[')) return read_array(depth);
    if (take('"')) return {read_string()};
    if (take_word("true")) return {true};
    if (take_word("false")) return {false};
    if (take_word("null")) return {nullptr};
    return {read_number()};
  }

  json read_object(int depth) {
    json_object object;
    skip_space();
    if (take('}')) return {std::move(object)};
    do {
      skip_space();
      if (!take('"')) fail("expected a name in quotes");
      string key = read_string();
      skip_space();
      if (!take(':')) fail("expected ':' after \"" + key + "\"");
      object.insert_or_assign(std::move(key), read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take('}')) fail("expected ',' or '}'");
    return {std::move(object)};
  }

  json read_array(int depth) {
    json_array array;
    skip_space();
    if (take(']')) return {std::move(array)};
    do {
      array.push_back(read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("expected ',' or ']'");
    return {std::move(array)};
  }

  double read_number() {
    // Google Benchmark writes these three although JSON has no word for them.
    if (take_word("NaN")) return std::nan("");
    if (take_word("Infinity")) return HUGE_VAL;
    if (take_word("-Infinity")) return -HUGE_VAL;
    const std::size_t start = at_;
    while (at_ < text_.size() &&
           string_view("+-.0123456789eE").find(text_[at_]) != string_view::npos) {
      ++at_;
    }
    const string digits(text_.substr(start, at_ - start));
    char* end = nullptr;
    const double number = std::strtod(digits.c_str(), &end);
    if (digits.empty() || *end != '\0') fail("expected a value");
    return number;
  }

  string read_string() {
    string result;
    while (true) {
      if (at_ == text_.size()) fail("a text in quotes does not end");
      const char c = text_[at_++];
      if (c == '"') return result;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a text");
      if (c != '\\') {
        result += c;
        continue;
      }
      read_escape(result);
    }
  }

  void read_escape(string& result) {
    static constexpr string_view names = "\"\\/bfnrt";
    static constexpr string_view meanings = "\"\\/\b\f\n\r\t";
    const char c = peek();
    ++at_;
    if (c == 'u') {
      append_utf8(result, read_code_point());
      return;
    }
    const std::size_t which = c != '\0' ? names.find(c) : string_view::npos;
    if (which == string_view::npos) fail("an unknown escape in a text");
    result += meanings[which];
  }

  std::uint32_t read_code_point() {
    const std::uint32_t first = read_hex();
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first > 0xdbff || !take_word("\\u")) fail("half a surrogate pair");
    const std::uint32_t second = read_hex();
    if (second < 0xdc00 || second > 0xdfff) fail("half a surrogate pair");
    return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
  }

  std::uint32_t read_hex() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const std::size_t digit = string_view("0123456789abcdef").find(lower(peek()));
      if (digit == string_view::npos) fail("expected four hexadecimal digits");
      value = value * 16 + static_cast<std::uint32_t>(digit);
      ++at_;
    }
    return value;
  }

  static char lower(char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c; }

  static void append_utf8(string& result, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { result += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xc0 | code >> 6);
      put(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      put(0xe0 | code >> 12);
      put(0x80 | (code >> 6 & 0x3f));
      put(0x80 | (code & 0x3f));
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
      put(0x80 | (code >> 6 & 0x3f));
      put(0x80 | (code & 0x3f));
    }
  }

  string_view text_;
  std::size_t at_ = 0;
};

// --- what the report says ----------------------------------------------------

// One benchmark; times in nanoseconds.
struct measurement {
  string name;
  double minimum = 0;
  double median = 0;
};

double nanoseconds_per(const string& unit) {
  if (unit == "ns") return 1;
  if (unit == "us") return 1e3;
  if (unit == "ms") return 1e6;
  if (unit == "s") return 1e9;
  throw std::runtime_error("unknown time unit \"" + unit + "\"");
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Where a benchmark stands in its program; interleaved runs report in any order.
using place = std::pair<double, double>;

place place_of(const json& entry) {
  const double* family = entry.number("family_index");
  const double* instance = entry.number("per_family_instance_index");
  return {family != nullptr ? *family : 0, instance != nullptr ? *instance : 0};
}

// All that the report says about one benchmark: each run, and the aggregates.
struct runs {
  string name;
  place at;
  std::vector<double> times;
  std::map<string, double> aggregates;

  // The runs themselves are preferred; a report may hold aggregates only.
  measurement summary() const {
    if (!times.empty())
      return {name, *std::min_element(times.begin(), times.end()), median_of(times)};
    const auto median = aggregates.find("median");
    if (median == aggregates.end()) {
      throw std::runtime_error("\"" + name + "\" has neither runs nor a median");
    }
    const auto minimum = aggregates.find("min");
    return {name, minimum != aggregates.end() ? minimum->second : median->second, median->second};
  }
};

std::vector<measurement> measurements_in(const json& report) {
  const json* list = report.find("benchmarks");
  const auto* entries = list != nullptr ? std::get_if<json_array>(&list->value) : nullptr;
  if (entries == nullptr)
    throw std::runtime_error("no list \"benchmarks\": not a benchmark report");

  std::vector<runs> all;
  for (const json& entry : *entries) {
    if (entry.flag("error_occurred")) continue;
    const string name = entry.text("run_name", entry.text("name"));
    const double* time = entry.number("real_time");
    if (name.empty() || time == nullptr)
      throw std::runtime_error("an entry without name or real_time");
    // An aggregate such as the coefficient of variation is a ratio, not a time.
    if (entry.text("aggregate_unit", "time") != "time") continue;
    const double nanoseconds = *time * nanoseconds_per(entry.text("time_unit", "ns"));
    if (!std::isfinite(nanoseconds) || nanoseconds < 0) {
      throw std::runtime_error("\"" + name + "\" has a time that is no time");
    }

    auto found =
        std::find_if(all.begin(), all.end(), [&](const runs& r) { return r.name == name; });
    if (found == all.end()) found = all.insert(all.end(), runs{name, place_of(entry), {}, {}});
    if (entry.text("run_type", "iteration") == "aggregate") {
      found->aggregates[entry.text("aggregate_name")] = nanoseconds;
    } else {
      found->times.push_back(nanoseconds);
    }
  }

  std::stable_sort(all.begin(), all.end(),
                   [](const runs& a, const runs& b) { return a.at < b.at; });
  std::vector<measurement> result;
  for (const runs& r : all) result.push_back(r.summary());
  if (result.empty()) throw std::runtime_error("the report holds no measurement");
  return result;
}

// --- the picture -------------------------------------------------------------

// Benchmarks that are drawn to one scale.
struct panel {
  string title;
  std::vector<measurement> rows;
};

// "a/b/c" is "b/c" of panel "a"; a name without a slash is a panel of its own.
std::vector<panel> panels_of(const std::vector<measurement>& measurements) {
  std::vector<panel> panels;
  for (measurement m : measurements) {
    const std::size_t slash = m.name.find('/');
    const string title = m.name.substr(0, slash);
    if (slash != string::npos) m.name.erase(0, slash + 1);
    // Every bar is real time: the name need not say so.
    const std::size_t clock = m.name.find("/real_time");
    if (clock != string::npos) m.name.erase(clock, string_view("/real_time").size());
    auto found = std::find_if(panels.begin(), panels.end(),
                              [&](const panel& p) { return p.title == title; });
    if (found == panels.end()) found = panels.insert(panels.end(), panel{title, {}});
    found->rows.push_back(std::move(m));
  }
  return panels;
}

string escaped(string_view text) {
  string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20)
          result += c;  // XML has no other control characters
    }
  }
  return result;
}

string fixed(double number, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, number);
  return text;
}

string readable(double nanoseconds) {
  static constexpr const char* units[] = {"ns", "us", "ms", "s"};
  std::size_t unit = 0;
  while (nanoseconds >= 1000 && unit + 1 < std::size(units)) {
    nanoseconds /= 1000;
    ++unit;
  }
  const int digits = nanoseconds < 10 ? 2 : nanoseconds < 100 ? 1 : 0;
  return fixed(nanoseconds, digits) + ' ' + units[unit];
}

class picture {
public:
  picture(string caption, const std::vector<panel>& panels) {
    std::size_t longest = 0;
    for (const panel& p : panels) {
      for (const measurement& m : p.rows) longest = std::max(longest, m.name.size());
    }
    left_ = margin + char_width * static_cast<double>(longest) + 12;

    draw_head(caption);
    for (const panel& p : panels) draw_panel(p);
  }

  string str() const {
    const string width = fixed(left_ + bar_width + label_width + margin, 0);
    const string height = fixed(y_ + margin, 0);
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + width + "\" height=\"" + height +
           "\" viewBox=\"0 0 " + width + ' ' + height +
           "\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"12\">\n"
           "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n" +
           body_.str() + "</svg>\n";
  }

private:
  static constexpr double margin = 20;
  static constexpr double char_width = 7.5;
  static constexpr double bar_width = 480;
  static constexpr double label_width = 180;
  static constexpr double row_height = 22;
  static constexpr double bar_height = 14;
  static constexpr const char* dark = "#1f5f8b";
  static constexpr const char* light = "#a9cce3";
  static constexpr const char* grey = "#555555";

  void text(double x, double y, const string& what, const string& attributes = {}) {
    body_ << "<text x=\"" << fixed(x, 1) << "\" y=\"" << fixed(y, 1) << "\" " << attributes << '>'
          << escaped(what) << "</text>\n";
  }

  void bar(double x, double y, double width, const char* colour) {
    body_ << "<rect x=\"" << fixed(x, 1) << "\" y=\"" << fixed(y, 1) << "\" width=\""
          << fixed(width, 2) << "\" height=\"" << fixed(bar_height, 0) << "\" fill=\"" << colour
          << "\"/>\n";
  }

  void draw_head(const string& caption) {
    const string attributes = string("fill=\"") + grey + '"';
    text(margin, y_, caption, attributes);
    y_ += row_height;
    bar(margin, y_ - bar_height + 2, 24, dark);
    text(margin + 30, y_, "minimum", attributes);
    bar(margin + 110, y_ - bar_height + 2, 24, light);
    text(margin + 140, y_, "median of real time; one linear scale per panel", attributes);
    y_ += row_height / 2;
  }

  void draw_panel(const panel& p) {
    y_ += row_height * 1.25;
    text(margin, y_, p.title, "font-size=\"14\" font-weight=\"bold\"");
    y_ += row_height / 2;

    double longest = 0;
    for (const measurement& m : p.rows) longest = std::max(longest, m.median);
    const double scale = longest > 0 ? bar_width / longest : 0;
    for (const measurement& m : p.rows) {
      const double middle = y_ + bar_height - 3;
      // A panel of one bare name has its name in the title already.
      if (m.name != p.title) text(left_ - 12, middle, m.name, "text-anchor=\"end\"");
      bar(left_, y_, m.median * scale, light);
      bar(left_, y_, std::min(m.minimum, m.median) * scale, dark);
      text(left_ + m.median * scale + 8, middle, readable(m.minimum) + " / " + readable(m.median),
           string("fill=\"") + grey + '"');
      y_ += row_height;
    }
  }

  std::ostringstream body_;
  double left_ = 0;
  double y_ = margin + 8;
};

// Where and when it was measured, as far as the report says.
string caption_of(const json& report) {
  const json* context = report.find("context");
  if (context == nullptr) return "benchmark";
  string caption = context->text("host_name", "unknown host");
  if (const double* cpus = context->number("num_cpus")) caption += ", " + fixed(*cpus, 0) + " CPUs";
  if (const double* mhz = context->number("mhz_per_cpu"))
    caption += " at " + fixed(*mhz, 0) + " MHz";
  const string date = context->text("date");
  return date.empty() ? caption : caption + ", " + date;
}

string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be read");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const char* path, const string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) throw std::runtime_error("cannot be written");
}

// Runs `step`; an error it throws is printed with the file it is about.
template <class Step>
bool succeeds(const char* path, Step step) {
  try {
    step();
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "plot_benchmarks: %s: %s\n", path, error.what());
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: plot_benchmarks <report.json> <picture.svg>\n");
    return 2;
  }

  string svg;
  std::size_t bars = 0;
  const bool drawn = succeeds(argv[1], [&] {
    const string text = read_file(argv[1]);
    const json report = json_reader(text).read();
    const auto measurements = measurements_in(report);
    bars = measurements.size();
    svg = picture(caption_of(report), panels_of(measurements)).str();
  });
  if (!drawn || !succeeds(argv[2], [&] { write_file(argv[2], svg); })) return 1;
  std::printf("%s: %zu bars\n", argv[2], bars);
  return 0;
}
