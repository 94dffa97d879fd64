// SPDX-License-Identifier: MIT
//
// storvsc/disk_image.hpp - a file that stands for a disk.
//
// An image that exists is used as it is: it is never created, truncated or
// resized, and only whole sectors of it count. A temporary image is removed with
// the object that made it.
//
// Counterpart: the backing file of a virtual disk.
#ifndef STORVSC_DISK_IMAGE_HPP
#define STORVSC_DISK_IMAGE_HPP

#include <cstdint>
#include <span>
#include <string>

namespace storvsc {

inline constexpr std::uint32_t sector_size = 512;

/// Memory that a transfer fills or empties, piece by piece.
using data_buffer = std::span<const std::span<unsigned char>>;

/// Why there is no image.
enum class image_error : std::uint8_t {
  none,
  not_found,         ///< there is no such file
  not_permitted,     ///< it exists, and may not be opened this way
  not_regular_file,  ///< a directory, a device, a pipe
  too_small,         ///< fewer whole sectors than asked for
  no_space,          ///< a temporary image could not be made that large
  failed,            ///< something else; system_error() tells
};

/// A sentence for people, without the name of the file.
[[nodiscard]] const char* to_string(image_error error) noexcept;

enum class image_access : std::uint8_t { read_write, read_only };

/// An open image: a row of sectors of 512 bytes.
///
/// Lifetime: neither copyable nor movable; closes the file when destroyed.
/// Threads:  read(), write() and flush() from any thread, once it is open.
/// Blocking: every transfer, for as long as the file system takes.
class disk_image {
public:
  disk_image() = default;
  ~disk_image();
  disk_image(const disk_image&) = delete;
  disk_image& operator=(const disk_image&) = delete;

  /// Opens an image that exists.
  /// Returns: `none`; unless so, nothing is open. `too_small` if it has fewer than
  /// `least_bytes`, or not one sector.
  [[nodiscard]] image_error open(const std::string& path, std::uint64_t least_bytes,
                                 image_access access = image_access::read_write);

  /// Makes an image of `bytes` zeros, rounded down to sectors, under a name of its
  /// own; the destructor removes it. An empty `folder` is $TMPDIR, or else /tmp.
  [[nodiscard]] image_error create_temporary(std::uint64_t bytes, const std::string& folder = {});

  /// Fills the first `bytes` of `to` from `offset` on.
  /// Returns: false if not everything could be read.
  [[nodiscard]] bool read(std::uint64_t offset, data_buffer to, std::uint64_t bytes) noexcept;

  /// Writes the first `bytes` of `from` from `offset` on.
  /// Returns: false if not everything could be written, and always if read-only.
  [[nodiscard]] bool write(std::uint64_t offset, data_buffer from, std::uint64_t bytes) noexcept;

  /// Returns once everything written is on stable storage; false if it is not.
  [[nodiscard]] bool flush() noexcept;

  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] bool read_only() const noexcept { return read_only_; }
  /// Whole sectors; what is left behind them is not touched.
  [[nodiscard]] std::uint64_t sector_count() const noexcept { return sectors_; }
  /// The name it was opened by, or the one a temporary image got.
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// errno of the last failure to open.
  [[nodiscard]] int system_error() const noexcept { return system_error_; }

private:
  image_error fail(image_error error) noexcept;
  image_error fail_with_errno() noexcept;
  void close() noexcept;
  template <class Transfer>
  [[nodiscard]] bool transfer(std::uint64_t offset, data_buffer data, std::uint64_t bytes,
                              Transfer move) noexcept;

  int fd_ = -1;
  bool read_only_ = false;
  bool temporary_ = false;
  std::uint64_t sectors_ = 0;
  std::string path_;
  int system_error_ = 0;
};

}  // namespace storvsc

#endif  // STORVSC_DISK_IMAGE_HPP
