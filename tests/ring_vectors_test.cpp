// SPDX-License-Identifier: MIT
//
// ring_vectors_test.cpp - replays what an independent implementation of the ring
// did, byte for byte, through both memory backends.
//
// Reads tests/kernel_traces/ring/hand, and every folder named in the environment
// variable PMGATE_RING_VECTORS (separated by colons). The lines are described in
// tests/kernel_traces/ring/VECTORS.md.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#if defined(__linux__)
#include <pmgate/platform/linux_memory.hpp>
#endif
#include <pmgate/vmbus/ring.hpp>

namespace {

namespace vmbus = pmgate::vmbus;
using pmgate::status;
using bytes = std::vector<unsigned char>;

// ---- Both backends, with the control page and the data where the replayer can look

struct flat_ring {
  using memory = vmbus::flat_memory;
  std::vector<std::uint64_t> control = std::vector<std::uint64_t>(vmbus::control_page_size / 8);
  std::vector<std::uint64_t> data;
  explicit flat_ring(std::uint32_t size) : data(size / 8) {}
  unsigned char* control_bytes() { return reinterpret_cast<unsigned char*>(control.data()); }
  unsigned char* data_bytes() { return reinterpret_cast<unsigned char*>(data.data()); }
  memory view() {
    return {control_bytes(), data_bytes(), static_cast<std::uint32_t>(data.size() * 8)};
  }
};

#if defined(__linux__)
struct mirrored_ring {
  using memory = vmbus::mirrored_memory;
  pmgate::guest_memory file;
  pmgate::ring_mapping mapping;
  explicit mirrored_ring(std::uint32_t size) {
    const std::size_t pages = size / vmbus::page_size;
    REQUIRE(file.create(pages + 1, 1) == status::ok);
    REQUIRE(mapping.map(file.fd(), 0, pages) == status::ok);
  }
  unsigned char* control_bytes() { return static_cast<unsigned char*>(mapping.address()); }
  unsigned char* data_bytes() { return control_bytes() + vmbus::control_page_size; }
  memory view() { return {mapping.address(), mapping.data_size()}; }
};
#endif

// ---- The notation of the files

std::uint64_t fnv1a(const unsigned char* at, std::size_t count) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < count; ++i) hash = (hash ^ at[i]) * 0x100000001b3u;
  return hash;
}

bytes generated(std::uint64_t state, std::size_t count) {
  bytes out;
  while (out.size() < count) {
    state += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    for (int i = 0; i < 8; ++i) out.push_back(static_cast<unsigned char>(z >> (8 * i)));
  }
  out.resize(count);
  return out;
}

std::uint64_t number(const std::string& text, int base = 0) {
  return std::strtoull(text.c_str(), nullptr, base);
}

std::string hex(const unsigned char* at, std::size_t count) {
  static const char digits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < count; ++i) {
    out += digits[at[i] >> 4];
    out += digits[at[i] & 15];
  }
  return out;
}

bytes unhex(const std::string& text) {
  bytes out;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    out.push_back(static_cast<unsigned char>(number(text.substr(i, 2), 16)));
  }
  return out;
}

bytes payload_of(const std::string& text) {
  if (text == "-") return {};
  if (text[0] != '@') return unhex(text);
  const auto colon = text.find(':');
  return generated(number(text.substr(1, colon - 1), 16), number(text.substr(colon + 1)));
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, separator);) out.push_back(word);
  return out;
}

// One line, "OP [WORD] [KEY=VALUE...] -> EXPECTED".
struct line {
  std::vector<std::string> words;
  std::map<std::string, std::string> fields;
  std::string expected;

  explicit line(const std::string& text) {
    const auto arrow = text.find(" -> ");
    words = split(text.substr(0, arrow), ' ');
    if (arrow != std::string::npos) expected = text.substr(arrow + 4);
    for (const auto& word : words) {
      const auto equals = word.find('=');
      if (equals != std::string::npos) fields[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  std::uint64_t value(const char* key, int base = 0) const { return number(fields.at(key), base); }
};

// ---- One ring with both its ends

template <class Ring>
class replayer {
public:
  // Runs one line. Returns what was expected to be seen and what was.
  std::pair<std::string, std::string> run(const line& l) {
    const std::string& op = l.words[0];
    if (op == "ring") return start(l), same();
    if (op == "write" || op == "put") return {l.expected, write(l, op == "put")};
    if (op == "flush") return {l.expected, after(producer_->flush()).substr(1)};
    if (op == "read" || op == "take") return {l.expected, read(l, op == "take")};
    if (op == "commit") return {l.expected, after(consumer_->commit()).substr(1)};
    if (op == "mask") return poke_word(vmbus::control_word::interrupt_mask, l), same();
    if (op == "pending") return poke_word(vmbus::control_word::pending_send_size, l), same();
    if (op == "feature") return poke_word(vmbus::control_word::feature_bits, l), same();
    if (op == "poke") return poke(l), same();
    if (op == "dump") return dump(l);
    if (op == "hash") return hash(l);
    if (op == "control") return {l.words[1], hex(ring_->control_bytes(), 68)};
    return {"an operation that exists", op};
  }

private:
  using memory = typename Ring::memory;

  static std::pair<std::string, std::string> same() { return {}; }

  void start(const line& l) {
    const auto size = static_cast<std::uint32_t>(l.value("D"));
    ring_ = std::make_unique<Ring>(size);
    memory view = ring_->view();
    view.clear_control();
    std::memset(ring_->data_bytes(), static_cast<int>(l.value("fill", 16)), size);
    view.store(vmbus::control_word::write_index, static_cast<std::uint32_t>(l.value("W")),
               std::memory_order_relaxed);
    view.store(vmbus::control_word::read_index, static_cast<std::uint32_t>(l.value("R")),
               std::memory_order_relaxed);
    view.store(vmbus::control_word::feature_bits, static_cast<std::uint32_t>(l.value("feature")),
               std::memory_order_relaxed);

    const auto accepted = l.fields.at("role") == "g2h" ? vmbus::packet_types{}
                                                             .with(vmbus::packet_type::in_band)
                                                             .with(vmbus::packet_type::gpa_direct)
                                                       : vmbus::guest_accepts;
    producer_ = std::make_unique<vmbus::ring_producer<memory>>();
    consumer_ = std::make_unique<vmbus::ring_consumer<memory>>();
    REQUIRE(producer_->attach(view) == status::ok);
    REQUIRE(consumer_->attach(view, {accepted, 0}) == status::ok);
    buffer_.resize(size);
  }

  std::string write(const line& l, bool only_put) {
    const bytes payload = payload_of(l.fields.at("payload"));
    std::vector<std::vector<std::uint64_t>> pfns;
    std::vector<vmbus::gpa_range> ranges;
    if (l.fields.count("gpa") != 0) read_ranges(l.fields.at("gpa"), pfns, ranges);

    vmbus::packet p;
    p.type = static_cast<vmbus::packet_type>(l.value("type"));
    p.flags = static_cast<std::uint16_t>(l.value("flags"));
    p.trans_id = l.value("trans_id");
    p.payload = payload.data();
    p.payload_size = static_cast<std::uint32_t>(payload.size());
    p.ranges = ranges.data();
    p.range_count = static_cast<std::uint32_t>(ranges.size());
    if (only_put) return code(producer_->put(p), l);
    const vmbus::ring_result done = producer_->write(p);
    return code(done.code, l) + after({status::ok, done.signal});
  }

  static void read_ranges(const std::string& text, std::vector<std::vector<std::uint64_t>>& pfns,
                          std::vector<vmbus::gpa_range>& ranges) {
    for (const auto& range : split(text, ';')) {
      const auto parts = split(range, ':');
      pfns.emplace_back();
      for (const auto& pfn : split(parts[2], ',')) pfns.back().push_back(number(pfn, 16));
      ranges.push_back({static_cast<std::uint32_t>(number(parts[0])),
                        static_cast<std::uint32_t>(number(parts[1])), nullptr});
    }
    for (std::size_t i = 0; i < ranges.size(); ++i) ranges[i].pfns = pfns[i].data();
  }

  // What can never fit is recorded as -EAGAIN; here it has a name of its own.
  static std::string code(status value, const line& l) {
    if (value == status::message_size && l.expected.rfind("-11", 0) == 0) value = status::again;
    return std::to_string(static_cast<int>(value));
  }

  std::string read(const line& l, bool only_take) {
    vmbus::received_packet p;
    auto capacity = static_cast<std::uint32_t>(buffer_.size());
    if (l.fields.count("max") != 0) {  // only the payload counts there
      capacity = vmbus::descriptor_size + static_cast<std::uint32_t>(l.value("max"));
    }
    const status got = consumer_->take(buffer_.data(), capacity, p);
    std::string text = to_text(got, p, l.expected);
    if (only_take) return text;
    return text + after(got == status::ok ? consumer_->commit() : vmbus::ring_result{});
  }

  static std::string to_text(status got, const vmbus::received_packet& p,
                             const std::string& expected) {
    if (got == status::again) return "empty";
    std::string text;
    if (got != status::ok) text = std::to_string(static_cast<int>(got)) + " ";
    text += "len=" + std::to_string(p.payload_size);
    if (got != status::ok) return text;
    char id[32];
    std::snprintf(id, sizeof id, "0x%llx", static_cast<unsigned long long>(p.trans_id));
    text += " type=" + std::to_string(static_cast<unsigned>(p.type)) +
            " flags=" + std::to_string(p.flags) + " trans_id=" + id;
    if (p.extension_size != 0) text += " ext=" + hex(p.extension, p.extension_size);
    text += " payload=";
    if (p.payload_size == 0) return text + "-";
    if (expected.find("payload=#") == std::string::npos) {
      return text + hex(p.payload, p.payload_size);
    }
    char digest[32];
    std::snprintf(digest, sizeof digest, "#%016llx",
                  static_cast<unsigned long long>(fnv1a(p.payload, p.payload_size)));
    return text + digest;
  }

  // " signal=S W=N R=N", with the indices as the memory has them.
  std::string after(vmbus::ring_result result) {
    CHECK(result.code == status::ok);
    const memory view = ring_->view();
    const auto load = [&view](vmbus::control_word word) {
      return std::to_string(view.load(word, std::memory_order_relaxed));
    };
    return std::string(" signal=") + (result.signal ? '1' : '0') +
           " W=" + load(vmbus::control_word::write_index) +
           " R=" + load(vmbus::control_word::read_index);
  }

  void poke_word(vmbus::control_word word, const line& l) {
    ring_->view().store(word, static_cast<std::uint32_t>(number(l.words[1])),
                        std::memory_order_relaxed);
  }
  void poke(const line& l) {
    const bytes from = unhex(l.words[2]);
    std::memcpy(ring_->data_bytes() + number(l.words[1]), from.data(), from.size());
  }
  std::pair<std::string, std::string> dump(const line& l) {
    return {l.words[2], hex(ring_->data_bytes() + number(l.words[1]), l.words[2].size() / 2)};
  }
  std::pair<std::string, std::string> hash(const line& l) {
    char digest[32];
    std::snprintf(digest, sizeof digest, "%016llx",
                  static_cast<unsigned long long>(
                      fnv1a(ring_->data_bytes() + number(l.words[1]), number(l.words[2]))));
    return {l.words[3], digest};
  }

  std::unique_ptr<Ring> ring_;
  std::unique_ptr<vmbus::ring_producer<memory>> producer_;
  std::unique_ptr<vmbus::ring_consumer<memory>> consumer_;
  bytes buffer_;
};

template <class Ring>
void replay(const std::filesystem::path& path) {
  std::ifstream in(path);
  REQUIRE_MESSAGE(in.good(), path.string());
  replayer<Ring> player;
  std::size_t at = 0;
  int differences = 0;
  for (std::string text; std::getline(in, text) && differences < 4;) {
    ++at;
    if (text.empty() || text[0] == '#') continue;
    const auto [expected, seen] = player.run(line(text));
    if (expected == seen) continue;
    ++differences;
    FAIL_CHECK(path.string(), ":", at, ": recorded '", expected, "', seen '", seen, "'");
  }
  CHECK(at > 0);
}

std::vector<std::filesystem::path> vector_files() {
  std::vector<std::string> folders = {std::string(PMGATE_TRACE_DIR) + "/ring/hand"};
  if (const char* more = std::getenv("PMGATE_RING_VECTORS")) {
    for (const auto& folder : split(more, ':')) folders.push_back(folder);
  }
  std::vector<std::filesystem::path> files;
  for (const auto& folder : folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".vec") files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

TEST_SUITE("ring_vectors") {

TEST_CASE("generator and hash agree with the published samples") {
  CHECK(hex(generated(1, 8).data(), 8) == "c15c0289ec2d0a91");
  CHECK(fnv1a(nullptr, 0) == 0xcbf29ce484222325u);
  CHECK(fnv1a(generated(0xdf015041, 20).data(), 20) == 0x7a9268737389f18au);
}

TEST_CASE("no recorded sequence is missing") { CHECK(vector_files().size() >= 34); }

TEST_CASE("every recorded sequence gives the same results, signals and bytes over one mapping") {
  for (const auto& file : vector_files()) replay<flat_ring>(file);
}

#if defined(__linux__)
TEST_CASE("every recorded sequence gives the same results, signals and bytes over two mappings") {
  for (const auto& file : vector_files()) replay<mirrored_ring>(file);
}
#endif

}  // TEST_SUITE
