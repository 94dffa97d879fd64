// SPDX-License-Identifier: MIT
//
// pmgate/block/request.hpp - what passes through a request queue, and the driver to
// which it is offered.
//
// A request belongs to its user, who embeds or inherits it; the queue links it
// into its lists and allocates nothing. From alloc() to its end it holds one
// entry of the queue's gate and one tag: the number by which the device knows it.
//
// Counterpart: struct request and struct blk_mq_ops of blk-mq (semantics only).
#ifndef PMGATE_BLOCK_REQUEST_HPP
#define PMGATE_BLOCK_REQUEST_HPP

#include <cstdint>

#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate {

/// What the driver says to a request it is offered.
enum class dispatch_status : std::uint8_t {
  ok = 0,        ///< taken; complete() or requeue() follows, or has come already
  resource,      ///< not now; offer it again when a request is freed, or after a delay
  dev_resource,  ///< not now; a request of this queue that is freed will make room
  io_error,      ///< never; the queue completes it with status::io_error
};

/// Where a request comes from, which decides where it is parked.
enum class request_kind : std::uint8_t {
  passthrough,  ///< a command of a driver or user: goes out first, in order
  bio,          ///< file system I/O: goes out behind what is passed through
};

template <platform Platform>
class basic_request;
template <platform Platform>
class basic_request_queue;
namespace detail {
template <platform Platform>
class dispatcher;
template <class Request>
class request_list;
template <platform Platform>
class tag_allocator;
}  // namespace detail

/// The driver of a request queue.
template <platform Platform>
struct basic_queue_ops {
  using queue_type = basic_request_queue<Platform>;
  using request_type = basic_request<Platform>;

  /// Offers a request: the driver takes it (ok), and completes or requeues it once,
  /// here or later, from any thread; or it refuses and forgets it.
  ///
  /// Runs in a dispatch section, outside every lock, also on several threads at
  /// once. Must not quiesce the queue, wait for a freeze, or wait for a tag.
  dispatch_status (*queue_rq)(queue_type& queue, request_type& rq) noexcept;
  void* context = nullptr;  ///< for queue_rq: queue.context()
};

using queue_ops = basic_queue_ops<default_platform>;

/// One I/O request; the base class or a member of what the user wants to remember.
///
/// Lifetime: neither copyable nor movable. May be reused or destroyed from the
///           moment its end callback is called, or when free() or execute()
///           has returned.
/// Threads:  belongs to one side at a time: the user, the queue, the driver.
/// Misuse:   a request that is destroyed while in a queue goes to
///           Platform::misuse().
template <platform Platform>
class basic_request {
 public:
  /// Runs once, when the request has been completed; result() tells how.
  ///
  /// The request is the user's again when this is called. Its tag and its entry
  /// are given back right after, so the callback must not wait for them.
  using end_fn = void (*)(basic_request&) noexcept;

  /// end_io may be null.
  explicit basic_request(end_fn end_io = nullptr, void* context = nullptr) noexcept
      : end_io_(end_io), context_(context) {}
  ~basic_request() {
    if (place_ != place::user) Platform::misuse("request destroyed while in a queue");
  }
  basic_request(const basic_request&) = delete;
  basic_request& operator=(const basic_request&) = delete;

  [[nodiscard]] void* context() const noexcept { return context_; }
  /// The number that no other request of the queue has at this time.
  [[nodiscard]] unsigned tag() const noexcept { return tag_; }
  [[nodiscard]] request_kind kind() const noexcept { return kind_; }
  /// True if it was let in as a power-management request.  Kernel: RQF_PM.
  [[nodiscard]] bool is_pm() const noexcept { return pm_; }
  /// True while it is its user's: neither allocated nor on its way.
  [[nodiscard]] bool is_idle() const noexcept { return place_ == place::user; }
  /// What it was completed with.
  [[nodiscard]] status result() const noexcept { return result_; }

 protected:
  /// The driver has prepared it: requeued, it goes behind what is queued and not before.
  ///
  /// Precondition: the driver has it.  Kernel: RQF_DONTPREP.
  void mark_prepared() noexcept { prepared_ = true; }
  /// True from the moment it is offered to the driver until it is put back or completed.
  [[nodiscard]] bool is_with_driver() const noexcept { return place_ == place::driver; }

 private:
  friend class basic_request_queue<Platform>;
  friend class detail::dispatcher<Platform>;
  friend class detail::request_list<basic_request>;
  friend class detail::tag_allocator<Platform>;

  /// Who has it.
  enum class place : std::uint8_t { user, allocated, queued, driver };

  basic_request* next_ = nullptr;
  typename Platform::wait_word* done_ = nullptr;  // where execute() waits for it
  end_fn end_io_;
  void* context_;
  status result_ = status::ok;
  std::uint16_t tag_ = 0;
  request_kind kind_ = request_kind::passthrough;
  bool pm_ = false;
  bool prepared_ = false;
  place place_ = place::user;
};

using request = basic_request<default_platform>;

}  // namespace pmgate

#endif  // PMGATE_BLOCK_REQUEST_HPP
