// SPDX-License-Identifier: MIT
#include "storvsc/ledger.hpp"

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

#include <fcntl.h>
#include <unistd.h>

namespace storvsc {
namespace {

constexpr std::uint64_t magic = 0x3174616765746167;  // of a block that was written

struct block_header {
  std::uint64_t magic;
  std::uint64_t seed;
  std::uint64_t block;
  std::uint64_t generation;
};

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9;
  x ^= x >> 27;
  x *= 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t sum = bytes.size();
  std::size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    sum = std::rotl(sum, 5) ^ word;
    sum *= 0x9E3779B97F4A7C15;
  }
  for (; i < bytes.size(); ++i) sum = mix(sum ^ std::to_integer<std::uint64_t>(bytes[i]));
  return mix(sum);
}

/// A file that is read from its beginning to its end, block by block.
class block_reader {
 public:
  explicit block_reader(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) error_ = errno;
  }
  ~block_reader() {
    if (fd_ >= 0) ::close(fd_);
  }
  block_reader(const block_reader&) = delete;
  block_reader& operator=(const block_reader&) = delete;

  /// Returns: how much was read: less than a block at the end, or after an error.
  std::size_t read(block_bytes bytes) {
    std::size_t got = 0;
    while (got < block_size && error_ == 0) {
      const ssize_t n = ::read(fd_, bytes.data() + got, block_size - got);
      if (n == 0) break;
      if (n > 0) {
        got += static_cast<std::size_t>(n);
      } else if (errno != EINTR) {
        error_ = errno;
      }
    }
    return got;
  }
  [[nodiscard]] std::string error() const {
    return error_ == 0 ? "" : std::generic_category().message(error_);
  }

 private:
  int fd_;
  int error_ = 0;
};

}  // namespace

std::string ledger::open(const std::string& path) {
  block_reader file(path);
  std::array<std::byte, block_size> bytes;
  std::size_t got;
  while ((got = file.read(bytes)) == block_size) original_.push_back(checksum(bytes));
  generation_.assign(original_.size(), 0);
  tail_ = checksum(std::span(bytes).first(got));
  return file.error();
}

void ledger::fill(std::uint64_t block, std::uint64_t generation, block_bytes bytes) const {
  const block_header header{magic, seed_, block, generation};
  std::memcpy(bytes.data(), &header, sizeof header);
  std::uint64_t state = mix(seed_ ^ mix(block ^ mix(generation)));
  for (std::size_t i = sizeof header; i < block_size - 8; i += 8) {
    state += 0x9E3779B97F4A7C15;
    const std::uint64_t word = mix(state);
    std::memcpy(bytes.data() + i, &word, 8);
  }
  const std::uint64_t sum = checksum(bytes.first(block_size - 8));
  std::memcpy(bytes.data() + block_size - 8, &sum, 8);
}

void ledger::next(std::uint64_t block, block_bytes bytes) const {
  fill(block, std::uint64_t{generation_[block]} + 1, bytes);
}

verdict ledger::check(std::uint64_t block, block_view bytes) const {
  const std::uint64_t expected = generation_[block];
  const bool untouched = checksum(bytes) == original_[block];
  if (expected == 0) return untouched ? verdict::good : verdict::corrupted;

  block_header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::uint64_t sum;
  std::memcpy(&sum, bytes.data() + block_size - 8, 8);
  const bool intact = header.magic == magic && header.seed == seed_ && header.block == block &&
                      sum == checksum(bytes.first(block_size - 8));
  if (intact && header.generation == expected) return verdict::good;
  const bool older = untouched || (intact && header.generation < expected);
  return older ? verdict::lost : verdict::corrupted;
}

ledger::audit ledger::check_file(const std::string& path) const {
  audit found;
  block_reader file(path);
  std::array<std::byte, block_size> bytes;
  std::uint64_t block = 0;
  std::size_t got;
  while ((got = file.read(bytes)) == block_size) {
    if (block >= blocks()) break;
    const verdict v = check(block, bytes);
    found.lost += v == verdict::lost;
    found.corrupted += v == verdict::corrupted;
    found.written_blocks += generation_[block] != 0;
    ++block;
  }
  found.error = file.error();
  const bool same_size = block == blocks() && got < block_size;
  const bool same_tail = checksum(std::span(bytes).first(got)) == tail_;
  if (found.error.empty() && !(same_size && same_tail)) ++found.corrupted;
  return found;
}

}  // namespace storvsc
