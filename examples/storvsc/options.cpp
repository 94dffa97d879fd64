// SPDX-License-Identifier: MIT
#include "storvsc/options.hpp"

#include <charconv>

namespace storvsc {
namespace {

/// Reads a whole number between two bounds, all of the text.
template <class Number>
bool parse_number(std::string_view name, std::string_view text, std::uint64_t least,
                  std::uint64_t most, Number& out, std::string& error) {
  std::uint64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size() || value < least || value > most) {
    error = std::string(name) + " takes a whole number from " + std::to_string(least) + " to " +
            std::to_string(most) + ", not '" + std::string(text) + "'.";
    return false;
  }
  out = static_cast<Number>(value);
  return true;
}

bool parse_policy(std::string_view text, options& out, std::string& error) {
  out.all = text == "all";
  out.policies.clear();
  for (const policy p : all_policies) {
    if (out.all || text == to_string(p)) out.policies.push_back(p);
  }
  if (!out.policies.empty()) return true;
  error = "Unknown policy '" + std::string(text) + "'; known are all";
  for (const policy p : all_policies) error += std::string(", ") + to_string(p);
  error += ".";
  return false;
}

bool parse_one(std::string_view name, std::string_view value, options& out, std::string& error) {
  if (name == "--disk" || name == "--json") {
    if (value.empty()) {
      error = std::string(name) + " takes the name of a file.";
      return false;
    }
    (name == "--disk" ? out.disk : out.json) = value;
    return true;
  }
  if (name == "--policy") return parse_policy(value, out, error);
  if (name == "--cycles") return parse_number(name, value, 1, 1000000, out.cycles, error);
  if (name == "--submitters") return parse_number(name, value, 1, 64, out.submitters, error);
  if (name == "--poll-ms") return parse_number(name, value, 1, 1000, out.poll_ms, error);
  return parse_number(name, value, 0, UINT64_MAX, out.seed, error);
}

bool takes_value(std::string_view name) {
  for (const std::string_view known :
       {"--disk", "--policy", "--cycles", "--submitters", "--poll-ms", "--seed", "--json"}) {
    if (name == known) return true;
  }
  return false;
}

}  // namespace

std::optional<options> parse_options(std::span<char* const> arguments, std::string& error) {
  options out;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string_view name = arguments[i];
    if (name == "--help" || name == "-h") {
      out.help = true;
      return out;
    }
    const std::size_t equals = name.find('=');
    std::optional<std::string_view> value;
    if (name.starts_with("--") && equals != std::string_view::npos) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    }
    if (!takes_value(name)) {
      error = "Unknown option '" + std::string(arguments[i]) + "'; --help lists what there is.";
      return std::nullopt;
    }
    if (!value) {
      if (i + 1 == arguments.size()) {
        error = std::string(name) + " needs a value.";
        return std::nullopt;
      }
      value = arguments[++i];
    }
    if (!parse_one(name, *value, out, error)) return std::nullopt;
  }
  return out;
}

std::string_view help_text() {
  return R"(storvsc_hibernate - hibernates a guest with a disk and a CD-ROM, again and again, under load

Several threads write and read the disk through request queue, SCSI device, adapter,
VMBus ring and storage host, while a work item polls the CD-ROM. In each cycle the
adapter gives up its rings, the host fills the old pages with 0xFF, and new ones are
set up. The policies are those of a mail thread of April 2020 about a driver that
crashed in just this place; a submission that reaches the adapter without its rings
is counted here instead of suffered.

  --disk FILE       disk image to use; written only within its first 64 MiB, never
                    resized (default: a temporary image of 64 MiB)
  --policy NAME     all, none, quiesce-5.7, busy-flag, host-block, freeze-kthreads or
                    quiesce-6.12 (default: all)
  --cycles N        hibernation cycles per policy (default: 50)
  --submitters N    threads that write and read the disk (default: 4)
  --poll-ms N       time between two polls of the CD-ROM, in milliseconds (default: 3)
  --seed N          seed of the random extents and contents (default: 1)
  --json FILE       also write the results as JSON
  --help            this text

Exit status: 0 if none and quiesce-5.7 were caught, every other policy showed no
violation, and those lost and corrupted nothing; for a single policy, if it showed no
violation and lost nothing. 1 otherwise. 2 for bad usage or an unusable disk.
)";
}

}  // namespace storvsc
