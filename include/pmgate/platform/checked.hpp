// SPDX-License-Identifier: MIT
//
// pmgate/platform/checked.hpp - a debugging tool: any platform, with reports instead of
// hangs.
//
// basic_freeze_gate<checked_platform<P>> and everything built on it knows who is inside,
// who froze it, and where in the program. It refuses waits that would never end, and
// reports orders of locks, entries and freezes that can deadlock, in runs in which they
// did not. Include block/checked_gates.hpp for the gates. It allocates, and each call
// takes a lock; gates over other platforms carry nothing of it.
//
// Counterpart: lockdep, the hung-task detector.
//
// Hosted: <map> <mutex> <vector>
#ifndef PMGATE_PLATFORM_CHECKED_HPP
#define PMGATE_PLATFORM_CHECKED_HPP

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <pmgate/detail/checked_registry.hpp>
#include <pmgate/detail/hosted_thread.hpp>
#include <pmgate/platform/checked_report.hpp>
#include <pmgate/platform/concept.hpp>

namespace pmgate {
namespace detail {

/// The platform inside a checked one: the same, but misuse goes to the registry.
template <platform Base>
struct checked_core : Base {
  static_assert(!is_process_shared<Base>, "a registry is of one process");

  /// One per program, or per shared object where symbols are hidden; never destroyed,
  /// since gates may outlive whatever is.
  static checked_registry& registry() noexcept {
    static checked_registry& only = *new checked_registry(&Base::misuse);
    return only;
  }
  static checked_caller here() noexcept {
    return {thread_number(), static_cast<std::int64_t>((Base::now() - typename Base::time_point{}) /
                                                       Base::milliseconds(1))};
  }
  static void misuse(const char* text) noexcept { registry().misuse(here(), text); }

 private:
  /// Threads by the platform's identity, which may be used again, and the machine's
  /// thread, which may run many: together they are used once.
  struct thread_numbers {
    std::mutex lock;
    unsigned last = 0;
    std::map<std::size_t, std::vector<std::pair<typename Base::thread_id, unsigned>>> known;
  };
  static unsigned thread_number() noexcept {
    static thread_numbers& all = *new thread_numbers;
    const typename Base::thread_id id = Base::this_thread();
    const std::scoped_lock lock(all.lock);
    auto& here = all.known[own_thread_number()];
    for (const auto& [known, number] : here) {
      if (known == id) return number;
    }
    here.emplace_back(id, ++all.last);
    return all.last;
  }
};

/// A mutex that takes part in the order of locks, entries and freezes.
template <platform Base>
class checked_mutex {
  using core = checked_core<Base>;

 public:
  explicit checked_mutex(const char* name = nullptr) noexcept
      : id_(core::registry().add_object("mutex", this, name)) {}
  ~checked_mutex() { core::registry().drop_object(core::here(), id_); }
  checked_mutex(const checked_mutex&) = delete;
  checked_mutex& operator=(const checked_mutex&) = delete;

  /// Locked twice by one thread: reported, and no effect, nor has the unlock() for it.
  void lock(call_site where = call_site::current()) noexcept {
    checked_registry& registry = core::registry();
    checked_caller me = core::here();
    const checked_node self{id_, hold_class::mutex};
    if (!registry.refuse_wait(me, self, where, "a mutex would be locked twice by one thread")) {
      registry.before_wait(me, self, where);
      const std::uint64_t wait = registry.begin_wait(me, id_, "lock()", where);
      mutex_.lock();
      registry.end_wait(wait);
      me = core::here();
    }
    registry.hold(me, {.node = self, .where = where, .pending = {}});
  }
  void unlock() noexcept {
    checked_registry& registry = core::registry();
    const checked_caller me = core::here();
    const checked_node self{id_, hold_class::mutex};
    if (!registry.holds(me, self)) {
      core::misuse("unlock() of a mutex that this thread has not locked");
      return;
    }
    (void)registry.give_back(me, self, 1);
    if (!registry.holds(me, self)) mutex_.unlock();  // the last touch
  }

 private:
  const checked_id id_;
  typename Base::mutex mutex_;
};

}  // namespace detail

/// Base, with its gates and mutexes checked.
///
/// What is found goes to the sink of the options, else to Base::misuse(). Expected
/// refusals and waits with a deadline make no reports: they end by themselves.
///
/// Ownership: a mutex, a freeze and a quiesce belong to the thread that made them (the
///           _non_owner forms to none), an entry or section to the thread that made it
///           until somebody ends it, or it is given away: by hand_over(), by moving or
///           releasing its ticket, or because it was made by get(), try_get() or a queued
///           waiter. What belongs to no thread is counted and listed, and proves nothing.
///           Whoever gives back, on whatever thread, is taken to give back his own,
///           newest first; then, oldest first, what was given away; then others' own.
/// Orders:   an order counts from the moment it is made, before the wait; that of an
///           entry made by hand once its own thread has left. Each cycle is told once.
/// Threads:  every member from any thread. Not in signal handlers.
/// Blocking: as Base.
/// Limits:   sees gates and mutexes, no other waits; pm_only belongs to nobody; a mutex
///           held around two orders does not excuse them. Names are not copied.
template <platform Base>
struct checked_platform : Base {
  using base = Base;
  using mutex = detail::checked_mutex<Base>;

  static void misuse(const char* text) noexcept { detail::checked_core<Base>::misuse(text); }

  [[nodiscard]] static checked_options options() noexcept { return registry().options(); }
  static void set_options(const checked_options& options) noexcept {
    registry().set_options(options);
  }
  /// The name of the calling thread in reports.
  static void name_thread(const char* name) noexcept {
    registry().name_thread(detail::checked_core<Base>::here(), name);
  }
  /// Reports so far.
  [[nodiscard]] static unsigned long long reports() noexcept { return registry().reports(); }
  /// Forgets orders, holders and names: for tests whose threads or objects do not end as they
  /// have to. Precondition: no gate or mutex of this platform is used afterwards.
  static void reset() noexcept { registry().reset(); }

  /// While it lives, this thread's calls are reported with this place: for functions that
  /// use gates on behalf of their callers, a queue's for instance.
  class place {
   public:
    explicit place(call_site here = call_site::current()) noexcept
        : outer_(registry().exchange_place(detail::checked_core<Base>::here(), here)) {}
    ~place() { (void)registry().exchange_place(detail::checked_core<Base>::here(), outer_); }
    place(const place&) = delete;
    place& operator=(const place&) = delete;

   private:
    call_site outer_;
  };

 private:
  static detail::checked_registry& registry() noexcept {
    return detail::checked_core<Base>::registry();
  }
};

template <class Base>
inline constexpr bool is_checked<checked_platform<Base>> = true;

/// scoped_lock that knows where it stands.
template <platform Base>
class [[nodiscard]] scoped_lock<detail::checked_mutex<Base>> {
 public:
  explicit scoped_lock(detail::checked_mutex<Base>& mutex,
                       call_site where = call_site::current()) noexcept
      : mutex_(mutex) {
    mutex_.lock(where);
  }
  ~scoped_lock() { mutex_.unlock(); }
  scoped_lock(const scoped_lock&) = delete;
  scoped_lock& operator=(const scoped_lock&) = delete;

 private:
  detail::checked_mutex<Base>& mutex_;
};

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_CHECKED_HPP
