// SPDX-License-Identifier: MIT
//
// storvsc_hibernate.cpp - hibernate a guest again and again under load, once for each
// way in which I/O was, or was to be, kept away from a driver without rings.
//
// Shows:  what each cure of the mail thread is worth, with real I/O on a real file.
// Prints: the log of the first cycle of each policy, then a table.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "storvsc/guest.hpp"
#include "storvsc/ledger.hpp"
#include "storvsc/load.hpp"
#include "storvsc/options.hpp"
#include "storvsc/report.hpp"

namespace {

using namespace storvsc;
using clock_type = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::uint64_t working_set = 64 << 20;  // bytes that are written at most
constexpr std::uint64_t least_disk = 1 << 20;
constexpr int bad_usage = 2;

/// Tells on a terminal how far it is.
class progress_line {
 public:
  ~progress_line() { clear(); }
  void show(policy which, unsigned cycle, unsigned cycles) {
    if (!shown_) return;
    std::fprintf(stderr, "\r%-16s cycle %u of %u ", to_string(which), cycle, cycles);
    dirty_ = true;
  }
  void clear() {
    if (dirty_) std::fprintf(stderr, "\r%60s\r", "");
    dirty_ = false;
  }

 private:
  const bool shown_ = ::isatty(STDERR_FILENO) != 0;
  bool dirty_ = false;
};

/// The submitters of a run, each with a part of the working set.
std::vector<std::unique_ptr<submitter>> start_load(guest& machine, ledger& book, const options& o) {
  const std::uint64_t blocks = std::min(book.blocks(), working_set / block_size);
  const std::uint64_t share = blocks / o.submitters;
  std::vector<std::unique_ptr<submitter>> all;
  for (unsigned i = 0; i < o.submitters; ++i) {
    all.push_back(std::make_unique<submitter>(machine, book, i * share, share,
                                              o.seed * 1000003 + i, i % 2 == 0));
  }
  return all;
}

/// Lets the load run for a while between two cycles: in any case until something was done.
void let_run(const std::vector<std::unique_ptr<submitter>>& load, milliseconds least) {
  const auto done = [&] {
    std::uint64_t sum = 0;
    for (const auto& s : load) sum += s->progress();
    return sum;
  };
  const std::uint64_t before = done();
  std::this_thread::sleep_for(least);
  const auto deadline = clock_type::now() + std::chrono::seconds(5);
  while (done() < before + load.size() && clock_type::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(1));
  }
}

/// All cycles under one policy. Returns: false if there was no guest to run.
bool run_policy(policy which, const options& o, const std::shared_ptr<disk_image>& disk,
                ledger& book, policy_result& result) {
  result.which = which;
  guest machine(which, disk, milliseconds(2 * o.poll_ms + 2));
  if (const pmgate::status s = machine.boot(); s != pmgate::status::ok) {
    std::fprintf(stderr, "storvsc_hibernate: no guest: %s\n", to_string(s));
    return false;
  }
  auto load = start_load(machine, book, o);
  event_poller poller(machine, milliseconds(o.poll_ms));

  progress_line progress;
  kernel_log log;
  std::printf("\n--- %s\n", to_string(which));
  for (unsigned cycle = 1; cycle <= o.cycles; ++cycle) {
    let_run(load, milliseconds(o.poll_ms + 2));
    progress.show(which, cycle, o.cycles);
    log.start(cycle == 1);
    result.errors += machine.hibernate(log);
    if (cycle % 10 == 5) machine.change_medium(false);
    if (cycle % 10 == 0) machine.change_medium(true);
    ++result.cycles;
  }
  progress.clear();

  for (auto& s : load) s->stop();
  poller.stop();
  for (const auto& s : load) {
    const load_counts& c = s->counts();
    result.ios += c.ios;
    result.errors += c.errors;
    result.lost += c.lost;
    result.corrupted += c.corrupted;
    const auto longest = std::chrono::duration_cast<std::chrono::microseconds>(c.longest).count();
    result.max_stall_us = std::max(result.max_stall_us, static_cast<std::uint64_t>(longest));
  }
  result.polls = poller.polls();
  result.errors += poller.errors();
  result.violations = machine.hba().violations();
  result.lost += machine.hba().lost();
  if (result.violations != 0) result.fault_address = machine.hba().last_fault_address();
  machine.shutdown();

  const ledger::audit audit = book.check_file(disk->path());
  result.lost += audit.lost;
  result.corrupted += audit.corrupted;
  if (!audit.error.empty()) {
    std::fprintf(stderr, "storvsc_hibernate: %s: %s\n", disk->path().c_str(), audit.error.c_str());
    ++result.errors;
  }
  return true;
}

/// Returns: the disk to use, or null; then it has said why.
std::shared_ptr<disk_image> open_disk(const options& o) {
  auto disk = std::make_shared<disk_image>();
  const image_error error = o.disk.empty() ? disk->create_temporary(working_set)
                                           : disk->open(o.disk, least_disk);
  if (error == image_error::none) return disk;
  std::fprintf(stderr, "storvsc_hibernate: %s%s%s\n", o.disk.c_str(), o.disk.empty() ? "" : ": ",
               to_string(error));
  return nullptr;
}

/// The report file. Opened first, so that a name one cannot write to is no waste of time.
class json_file {
 public:
  explicit json_file(const std::string& path) : path_(path) {
    if (!path.empty()) file_ = std::fopen(path.c_str(), "w");
    if (!path.empty() && file_ == nullptr) complain();
  }
  ~json_file() {
    if (file_ != nullptr) std::fclose(file_);
  }
  json_file(const json_file&) = delete;
  json_file& operator=(const json_file&) = delete;

  [[nodiscard]] bool usable() const { return path_.empty() || file_ != nullptr; }
  /// Returns: true if it is written, or none was asked for.
  [[nodiscard]] bool write(const std::string& text) {
    if (file_ == nullptr) return true;
    const bool written = std::fwrite(text.data(), 1, text.size(), file_) == text.size();
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    if (!written || !closed) complain();
    return written && closed;
  }

 private:
  void complain() const {
    std::fprintf(stderr, "storvsc_hibernate: %s: %s\n", path_.c_str(), std::strerror(errno));
  }

  const std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  std::string error;
  const auto parsed = parse_options({argv + 1, static_cast<std::size_t>(argc - 1)}, error);
  if (!parsed) {
    std::fprintf(stderr, "storvsc_hibernate: %s\n", error.c_str());
    return bad_usage;
  }
  const options& o = *parsed;
  if (o.help) {
    std::fwrite(help_text().data(), 1, help_text().size(), stdout);
    return 0;
  }
  const auto disk = open_disk(o);
  json_file report(o.json);
  if (!disk || !report.usable()) return bad_usage;
  ledger book(o.seed);
  if (const std::string why = book.open(disk->path()); !why.empty()) {
    std::fprintf(stderr, "storvsc_hibernate: %s: %s\n", disk->path().c_str(), why.c_str());
    return bad_usage;
  }

  std::vector<policy_result> results;
  for (const policy which : o.policies) {
    policy_result result;
    if (!run_policy(which, o, disk, book, result)) return 1;
    results.push_back(result);
  }

  std::printf("\n%s", table(results).c_str());
  if (!report.write(json(results))) return 1;
  return exit_status(results, o.all);
}
