// SPDX-License-Identifier: MIT
//
// ledger.hpp - what every block of the disk must contain, so that a lost, stale or
// foreign byte is noticed wherever it turns up.
//
// A block that was written carries its number, its generation and a checksum; a
// block that was not must still be what it was when the ledger was opened.
#ifndef STORVSC_LEDGER_HPP
#define STORVSC_LEDGER_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace storvsc {

inline constexpr std::size_t block_size = 4096;
using block_bytes = std::span<std::byte, block_size>;
using block_view = std::span<const std::byte, block_size>;

/// What a block turned out to be.
enum class verdict : std::uint8_t {
  good,
  lost,      ///< an older generation of this block: an acknowledged write is missing
  corrupted  ///< anything else
};

/// The expected content of a disk.
///
/// Threads: different blocks may be used by different threads at the same time;
///          open() and check_file() by one thread while nobody writes.
class ledger {
 public:
  explicit ledger(std::uint64_t seed) : seed_(seed) {}

  /// Notes what the file contains now. Returns: an empty text, or what went wrong.
  [[nodiscard]] std::string open(const std::string& path);

  /// Blocks of the file; a last part that is not a whole block is watched, never written.
  [[nodiscard]] std::uint64_t blocks() const { return generation_.size(); }

  /// Fills `bytes` with the next generation of `block`.
  void next(std::uint64_t block, block_bytes bytes) const;
  /// The write of next() was acknowledged.
  void written(std::uint64_t block) { ++generation_[block]; }
  [[nodiscard]] verdict check(std::uint64_t block, block_view bytes) const;

  /// Result of reading the whole file again.
  struct audit {
    std::uint64_t lost = 0;
    std::uint64_t corrupted = 0;
    std::uint64_t written_blocks = 0;
    std::string error;  ///< why the file could not be read; empty if it was
  };
  [[nodiscard]] audit check_file(const std::string& path) const;

 private:
  void fill(std::uint64_t block, std::uint64_t generation, block_bytes bytes) const;

  std::uint64_t seed_;
  std::vector<std::uint32_t> generation_;  // 0: as it was
  std::vector<std::uint64_t> original_;    // checksum of what it was
  std::uint64_t tail_ = 0;                 // checksum of what is behind the last whole block
};

}  // namespace storvsc

#endif  // STORVSC_LEDGER_HPP
