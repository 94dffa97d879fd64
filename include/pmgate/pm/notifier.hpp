// SPDX-License-Identifier: MIT
//
// pmgate/pm/notifier.hpp - who wants to know of a transition, before the first task is
// stopped and after the last one goes on.
//
// The one rule to know: if one of them objects, those asked before it are told that it
// is over, and nobody else is.
//
// Counterpart: register_pm_notifier() and blocking_notifier_call_chain_robust() of Linux
// (semantics only).
#ifndef PMGATE_PM_NOTIFIER_HPP
#define PMGATE_PM_NOTIFIER_HPP

#include <cstdint>

#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// What is told.  Kernel: PM_SUSPEND_PREPARE, PM_POST_SUSPEND, ...
enum class notice : std::uint8_t {
  suspend_prepare,
  post_suspend,
  hibernation_prepare,
  post_hibernation,
  restore_prepare,
  post_restore,
};

/// Somebody who is told.
///
/// Lifetime: neither copyable nor movable; in one chain at most, and not while destroyed.
template <platform Platform>
class basic_notifier {
 public:
  /// What it returns to a prepare notice is its answer, to others nothing.
  using notify_fn = status (*)(basic_notifier&, notice) noexcept;

  /// Those with a higher priority come first, equals in the order of registration.
  explicit basic_notifier(notify_fn notify, void* context = nullptr, int priority = 0) noexcept
      : notify_(notify), context_(context), priority_(priority) {}
  ~basic_notifier() {
    if (registered_) Platform::misuse("notifier destroyed while in a chain");
  }
  basic_notifier(const basic_notifier&) = delete;
  basic_notifier& operator=(const basic_notifier&) = delete;

  [[nodiscard]] void* context() const noexcept { return context_; }

 private:
  template <platform P>
  friend class basic_notifier_chain;

  notify_fn notify_;
  void* context_;
  const int priority_;
  bool registered_ = false;
  detail::list_hook<basic_notifier> entry_;
  using list = detail::hooked_list<basic_notifier, &basic_notifier::entry_>;
};

/// Notifiers in order.
///
/// Threads:  every member from any thread; one transition at a time.
/// Blocking: prepare() and tell(), as long as the notifiers do.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_notifier_chain {
 public:
  using notifier = basic_notifier<Platform>;

  basic_notifier_chain() noexcept = default;
  ~basic_notifier_chain() {
    if (!entries_.is_empty()) Platform::misuse("notifier chain destroyed with notifiers in it");
  }
  basic_notifier_chain(const basic_notifier_chain&) = delete;
  basic_notifier_chain& operator=(const basic_notifier_chain&) = delete;

  /// Returns: ok; invalid if it is in a chain; busy while somebody is being told.
  status add(notifier& entry) noexcept;
  /// Returns: ok; invalid if it is in no chain; busy while somebody is being told.
  status remove(notifier& entry) noexcept;

  /// Asks everybody, up to the first who objects; those before are told `undone`.
  ///
  /// Returns: ok, or the objection.  Kernel: pm_notifier_call_chain_robust().
  [[nodiscard]] status prepare(notice what, notice undone) noexcept;
  /// Tells everybody.  Kernel: pm_notifier_call_chain().
  void tell(notice what) noexcept;

 private:
  using list = typename notifier::list;

  void set_telling(bool on) noexcept {
    const scoped_lock guard(lock_);
    telling_ = on;
  }

  list entries_;  // this and the next: under lock_
  bool telling_ = false;
  typename Platform::mutex lock_;
};

using notifier = basic_notifier<default_platform>;
using notifier_chain = basic_notifier_chain<default_platform>;

template <platform Platform>
status basic_notifier_chain<Platform>::add(notifier& entry) noexcept {
  const scoped_lock guard(lock_);
  if (entry.registered_) return status::invalid;
  if (telling_) return status::busy;
  notifier* where = entries_.first();
  while (where != nullptr && where->priority_ >= entry.priority_) where = list::next(*where);
  entries_.insert_before(where, entry);
  entry.registered_ = true;
  return status::ok;
}

template <platform Platform>
status basic_notifier_chain<Platform>::remove(notifier& entry) noexcept {
  const scoped_lock guard(lock_);
  if (!entry.registered_) return status::invalid;
  if (telling_) return status::busy;
  entries_.remove(entry);
  entry.registered_ = false;
  return status::ok;
}

template <platform Platform>
status basic_notifier_chain<Platform>::prepare(notice what, notice undone) noexcept {
  set_telling(true);
  status result = status::ok;
  notifier* entry = entries_.first();
  for (; entry != nullptr; entry = list::next(*entry)) {
    result = entry->notify_(*entry, what);
    if (result != status::ok) break;
  }
  for (notifier* told = entries_.first(); entry != nullptr && told != entry;
       told = list::next(*told)) {
    (void)told->notify_(*told, undone);
  }
  set_telling(false);
  return result;
}

template <platform Platform>
void basic_notifier_chain<Platform>::tell(notice what) noexcept {
  set_telling(true);
  for (notifier* entry = entries_.first(); entry != nullptr; entry = list::next(*entry)) {
    (void)entry->notify_(*entry, what);
  }
  set_telling(false);
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_NOTIFIER_HPP
