// SPDX-License-Identifier: MIT
//
// storvsc/disk_image.cpp - opening image files with care, and moving bytes.
#include "storvsc/disk_image.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <limits>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace storvsc {

const char* to_string(image_error error) noexcept {
  switch (error) {
    case image_error::none: return "no error";
    case image_error::not_found: return "there is no such file";
    case image_error::not_permitted: return "the file may not be opened";
    case image_error::not_regular_file: return "this is not a regular file";
    case image_error::too_small: return "the file is too small";
    case image_error::no_space: return "there is no space for the image";
    case image_error::failed: return "the file could not be opened";
  }
  return "unknown error";
}

disk_image::~disk_image() { close(); }

void disk_image::close() noexcept {
  if (fd_ >= 0) ::close(fd_);
  if (temporary_) (void)::unlink(path_.c_str());
  fd_ = -1;
  temporary_ = false;
  sectors_ = 0;
}

image_error disk_image::fail(image_error error) noexcept {
  close();
  return error;
}

image_error disk_image::fail_with_errno() noexcept {
  system_error_ = errno;
  switch (system_error_) {
    case ENOENT:
    case ENOTDIR: return fail(image_error::not_found);
    case EACCES:
    case EPERM:
    case EROFS: return fail(image_error::not_permitted);
    case EISDIR:
    case ENXIO: return fail(image_error::not_regular_file);
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return fail(image_error::no_space);
    default: return fail(image_error::failed);
  }
}

image_error disk_image::open(const std::string& path, std::uint64_t least_bytes,
                             image_access access) {
  close();
  system_error_ = 0;
  path_ = path;
  read_only_ = access == image_access::read_only;
  // Without O_NONBLOCK a pipe would keep us here before we can see that it is one.
  const int how = (read_only_ ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  fd_ = ::open(path.c_str(), how);
  if (fd_ < 0) return fail_with_errno();

  struct stat found {};
  if (::fstat(fd_, &found) != 0) return fail_with_errno();
  if (!S_ISREG(found.st_mode)) return fail(image_error::not_regular_file);
  const auto bytes = static_cast<std::uint64_t>(found.st_size);
  if (bytes < least_bytes || bytes < sector_size) return fail(image_error::too_small);
  sectors_ = bytes / sector_size;
  return image_error::none;
}

image_error disk_image::create_temporary(std::uint64_t bytes, const std::string& folder) {
  close();
  system_error_ = 0;
  read_only_ = false;
  path_ = folder;
  if (path_.empty()) {
    const char* const wish = std::getenv("TMPDIR");
    path_ = wish != nullptr && *wish != '\0' ? wish : "/tmp";
  }
  path_ += "/storvsc_disk_XXXXXX";

  const std::uint64_t sectors = bytes / sector_size;
  if (sectors == 0) return fail(image_error::too_small);
  constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<off_t>::max)());
  if (bytes > most) return fail(image_error::no_space);
  fd_ = ::mkostemp(path_.data(), O_CLOEXEC);
  if (fd_ < 0) return fail_with_errno();
  temporary_ = true;
  if (::ftruncate(fd_, static_cast<off_t>(sectors * sector_size)) != 0) return fail_with_errno();
  sectors_ = sectors;
  return image_error::none;
}

// Moves `bytes` in as few system calls as the pieces allow; short transfers and
// interruptions go on where they stopped.
template <class Transfer>
bool disk_image::transfer(std::uint64_t offset, data_buffer data, std::uint64_t bytes,
                          Transfer move) noexcept {
  const std::uint64_t size = sectors_ * sector_size;
  if (offset > size || bytes > size - offset) return false;

  std::array<iovec, 64> pieces{};
  std::size_t piece = 0;  // of `data`, and how much of it is done
  std::size_t done = 0;
  while (bytes != 0) {
    std::size_t count = 0;
    std::uint64_t gathered = 0;
    std::size_t skip = done;
    for (std::size_t i = piece; i < data.size() && count < pieces.size() && gathered < bytes; ++i) {
      const auto length = static_cast<std::size_t>(
          std::min<std::uint64_t>(data[i].size() - skip, bytes - gathered));
      pieces[count++] = {data[i].data() + skip, length};
      gathered += length;
      skip = 0;
    }
    if (gathered == 0) return false;  // the buffer is smaller than the transfer

    const ssize_t moved =
        move(fd_, pieces.data(), static_cast<int>(count), static_cast<off_t>(offset));
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return false;
    offset += static_cast<std::uint64_t>(moved);
    bytes -= static_cast<std::uint64_t>(moved);
    done += static_cast<std::size_t>(moved);
    while (piece < data.size() && done >= data[piece].size()) done -= data[piece++].size();
  }
  return true;
}

bool disk_image::read(std::uint64_t offset, data_buffer to, std::uint64_t bytes) noexcept {
  return is_open() && transfer(offset, to, bytes, [](int fd, iovec* at, int count, off_t from) {
           return ::preadv(fd, at, count, from);
         });
}

bool disk_image::write(std::uint64_t offset, data_buffer from, std::uint64_t bytes) noexcept {
  if (!is_open() || read_only_) return false;
  return transfer(offset, from, bytes, [](int fd, iovec* at, int count, off_t to) {
    return ::pwritev(fd, at, count, to);
  });
}

bool disk_image::flush() noexcept {
  if (!is_open()) return false;
  int failed = 0;
  do {
    failed = ::fdatasync(fd_);
  } while (failed != 0 && errno == EINTR);
  return failed == 0;
}

}  // namespace storvsc
