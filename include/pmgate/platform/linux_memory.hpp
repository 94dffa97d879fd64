// SPDX-License-Identifier: MIT
//
// pmgate/platform/linux_memory.hpp - guest memory, ring mappings and doorbells
// out of what Linux has: memfd, mmap, eventfd.
//
// Guest memory is a file in memory whose pages are known by page frame number,
// so two sides can share it by number or by file descriptor. A ring is mapped
// with its data twice in a row, so that packets that wrap are contiguous.
//
// Counterpart: the kernel's page allocator, vmap of a ring, and event channels.
#ifndef PMGATE_PLATFORM_LINUX_MEMORY_HPP
#define PMGATE_PLATFORM_LINUX_MEMORY_HPP

#if !defined(__linux__)
#error "pmgate/platform/linux_memory.hpp is for Linux only"
#endif

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <pmgate/status.hpp>

namespace pmgate {
namespace detail {

/// Owns a file descriptor, or none.
class unique_fd {
public:
  unique_fd() = default;
  explicit unique_fd(int fd) noexcept : fd_(fd) {}
  unique_fd(unique_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  unique_fd& operator=(unique_fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~unique_fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const noexcept { return fd_; }

private:
  int fd_ = -1;
};

/// Owns a range of addresses.
class unique_mapping {
public:
  unique_mapping() = default;
  unique_mapping(void* at, std::size_t size) noexcept : at_(at), size_(size) {}
  unique_mapping(unique_mapping&& other) noexcept
      : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  unique_mapping& operator=(unique_mapping&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~unique_mapping() {
    if (at_ != nullptr) ::munmap(at_, size_);
  }
  [[nodiscard]] unsigned char* get() const noexcept { return static_cast<unsigned char*>(at_); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
  void* at_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace detail

inline constexpr std::size_t guest_page_size = 4096;  ///< the unit of page frame numbers

/// Memory of a simulated guest: pages with consecutive page frame numbers.
///
/// Lifetime: movable; pointers stay valid until it is destroyed. Mappings made
/// of its file live on without it.  Threads: reading members from any thread.
class guest_memory {
public:
  /// Makes `pages` zeroed pages, numbered from `first_pfn`.
  /// Returns: `ok`; `invalid` for no pages; `no_memory`. On failure nothing changed.
  [[nodiscard]] status create(std::size_t pages, std::uint64_t first_pfn) noexcept {
    if (pages == 0 || pages > SIZE_MAX / guest_page_size) return status::invalid;
    const std::size_t size = pages * guest_page_size;
    detail::unique_fd file(::memfd_create("pmgate guest memory", MFD_CLOEXEC));
    if (file.get() < 0 || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) {
      return status::no_memory;
    }
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (at == MAP_FAILED) return status::no_memory;
    file_ = std::move(file);
    mapping_ = detail::unique_mapping(at, size);
    first_pfn_ = first_pfn;
    return status::ok;
  }

  /// Returns: where `pages` pages from `pfn` on lie; null unless all are this guest's.
  [[nodiscard]] void* translate(std::uint64_t pfn, std::size_t pages = 1) const noexcept {
    const std::size_t all = page_count();
    if (pfn < first_pfn_ || pfn - first_pfn_ >= all) return nullptr;
    const auto page = static_cast<std::size_t>(pfn - first_pfn_);
    return pages <= all - page ? mapping_.get() + page * guest_page_size : nullptr;
  }

  [[nodiscard]] int fd() const noexcept { return file_.get(); }
  [[nodiscard]] std::uint64_t first_pfn() const noexcept { return first_pfn_; }
  [[nodiscard]] std::size_t page_count() const noexcept {
    return mapping_.size() / guest_page_size;
  }

private:
  detail::unique_fd file_;
  detail::unique_mapping mapping_;
  std::uint64_t first_pfn_ = 0;
};

/// One ring, mapped as control page, data, data.  Lifetime: movable; unmaps.
class ring_mapping {
public:
  /// Maps a ring whose control page is page `first_page` of the file `fd` and
  /// whose `data_pages` data pages follow it.
  /// Returns: `ok`; `invalid` for no or too much data, or if this machine's pages are
  /// not of 4096 bytes; `no_memory`. On failure nothing changed.
  [[nodiscard]] status map(int fd, std::size_t first_page, std::size_t data_pages) noexcept {
    constexpr std::size_t page = guest_page_size;
    const bool same_pages = ::sysconf(_SC_PAGESIZE) == static_cast<long>(page);
    if (!same_pages || data_pages == 0 || data_pages >= 0x80000) return status::invalid;
    const std::size_t data = data_pages * page;
    void* const at = ::mmap(nullptr, page + 2 * data, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return status::no_memory;
    detail::unique_mapping reserved(at, page + 2 * data);

    const auto put = [fd](void* where, std::size_t size, std::size_t from) noexcept {
      return ::mmap(where, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                    static_cast<off_t>(from)) != MAP_FAILED;
    };
    unsigned char* const to = reserved.get();
    const bool mapped = put(to, page + data, first_page * page) &&
                        put(to + page + data, data, (first_page + 1) * page);
    if (!mapped) return status::no_memory;
    mapping_ = std::move(reserved);
    data_size_ = static_cast<std::uint32_t>(data);
    return status::ok;
  }

  /// The control page; the data follows it, twice.
  [[nodiscard]] void* address() const noexcept { return mapping_.get(); }
  [[nodiscard]] std::uint32_t data_size() const noexcept { return data_size_; }

private:
  detail::unique_mapping mapping_;
  std::uint32_t data_size_ = 0;
};

/// An event that one side rings and the other waits for. Rings may coalesce.
///
/// Threads: any.  Blocking: wait_until() only.
class doorbell {
public:
  /// Returns: `ok`, or `no_memory`.
  [[nodiscard]] status create() noexcept {
    fd_ = detail::unique_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    return fd_.get() >= 0 ? status::ok : status::no_memory;
  }

  /// Wakes whoever waits, or the next one who does.
  void ring() const noexcept { static_cast<void>(::eventfd_write(fd_.get(), 1)); }

  /// Waits until it has been rung since the last wait.
  /// Returns: false if the deadline passed first.
  [[nodiscard]] bool wait_until(std::chrono::steady_clock::time_point deadline) const noexcept {
    for (;;) {
      eventfd_t rung = 0;
      if (::eventfd_read(fd_.get(), &rung) == 0) return true;
      const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
          deadline - std::chrono::steady_clock::now());
      if (errno != EAGAIN || left.count() <= 0) return false;
      const timespec timeout{static_cast<time_t>(left.count() / 1'000'000'000),
                             static_cast<long>(left.count() % 1'000'000'000)};
      pollfd wanted{fd_.get(), POLLIN, 0};
      static_cast<void>(::ppoll(&wanted, 1, &timeout, nullptr));  // then look again
    }
  }

private:
  detail::unique_fd fd_;
};

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_LINUX_MEMORY_HPP
