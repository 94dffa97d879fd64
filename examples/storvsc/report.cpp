// SPDX-License-Identifier: MIT
#include "storvsc/report.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>

namespace storvsc {
namespace {

/// Appends formatted text.
[[gnu::format(printf, 2, 3)]] void append(std::string& text, const char* format, ...) {
  char line[512];
  std::va_list arguments;
  va_start(arguments, format);
  const int length = std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (length > 0) text.append(line, std::min(static_cast<std::size_t>(length), sizeof line - 1));
}

std::string remark(const policy_result& r) {
  std::string text;
  if (r.fault_address) {
    append(text, "would fault at 0x%04" PRIx64 " (8 x CPU %" PRIu64 ")", *r.fault_address,
           *r.fault_address / 8);
  } else if (is_cure(r.which) && as_expected(r)) {
    text = "clean";
  }
  return text;
}

}  // namespace

bool as_expected(const policy_result& r) {
  if (!is_cure(r.which)) return r.violations != 0;
  return r.violations == 0 && r.lost == 0 && r.corrupted == 0;
}

int exit_status(std::span<const policy_result> results, bool all) {
  for (const policy_result& r : results) {
    const bool good = all ? as_expected(r) : r.violations == 0 && r.lost == 0 && r.corrupted == 0;
    if (!good) return 1;
  }
  return results.empty() ? 1 : 0;
}

std::string table(std::span<const policy_result> results) {
  std::string text;
  append(text, "%-16s %6s %9s %7s %10s %5s %9s %6s %10s\n", "policy", "cycles", "I/Os", "polls",
         "violations", "lost", "corrupted", "errors", "stall (ms)");
  for (const policy_result& r : results) {
    append(text,
           "%-16s %6" PRIu64 " %9" PRIu64 " %7" PRIu64 " %10" PRIu64 " %5" PRIu64 " %9" PRIu64
           " %6" PRIu64 " %10.1f  %s\n",
           to_string(r.which), r.cycles, r.ios, r.polls, r.violations, r.lost, r.corrupted,
           r.errors, static_cast<double>(r.max_stall_us) / 1000.0, remark(r).c_str());
  }
  return text;
}

std::string json(std::span<const policy_result> results) {
  std::string text = "{\"policies\":[";
  for (std::size_t i = 0; i < results.size(); ++i) {
    const policy_result& r = results[i];
    append(text,
           "%s\n {\"policy\":\"%s\",\"cycles\":%" PRIu64 ",\"ios\":%" PRIu64 ",\"polls\":%" PRIu64
           ",\"violations\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"corrupted\":%" PRIu64
           ",\"errors\":%" PRIu64 ",\"max_stall_us\":%" PRIu64,
           i == 0 ? "" : ",", to_string(r.which), r.cycles, r.ios, r.polls, r.violations, r.lost,
           r.corrupted, r.errors, r.max_stall_us);
    if (r.fault_address) append(text, ",\"fault_address\":%" PRIu64, *r.fault_address);
    text += '}';
  }
  return text + "\n]}\n";
}

void kernel_log::start(bool enabled) {
  const std::scoped_lock lock(mutex_);
  enabled_ = enabled;
  began_ = std::chrono::steady_clock::now();
}

void kernel_log::line(const char* format, ...) {
  const std::scoped_lock lock(mutex_);
  if (!enabled_) return;
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - began_;
  char text[256];
  std::va_list arguments;
  va_start(arguments, format);
  (void)std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::printf("[%12.6f] %s\n", since.count(), text);
  std::fflush(stdout);
}

}  // namespace storvsc
