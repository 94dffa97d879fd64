// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/hooked_list.hpp - a list whose links lie in its items.
//
// Nothing is allocated. The one rule to know: a hook is in one list at a time, and
// whoever moves an item takes it off its list first.
//
// Counterpart: struct list_head of Linux (semantics only).
#ifndef PMGATE_DETAIL_PM_HOOKED_LIST_HPP
#define PMGATE_DETAIL_PM_HOOKED_LIST_HPP

namespace pmgate::detail {

/// The place of an item in a list.
template <class T>
struct list_hook {
  T* next = nullptr;
  T* previous = nullptr;
};

/// Items in order, linked through the member that `Hook` names.
///
/// Threads: as a plain object.
template <class T, list_hook<T> T::*Hook>
class hooked_list {
 public:
  [[nodiscard]] T* first() const noexcept { return first_; }
  [[nodiscard]] T* last() const noexcept { return last_; }
  [[nodiscard]] bool is_empty() const noexcept { return first_ == nullptr; }
  [[nodiscard]] static T* next(const T& item) noexcept { return (item.*Hook).next; }
  [[nodiscard]] static T* previous(const T& item) noexcept { return (item.*Hook).previous; }

  /// Puts the item before another one; null: behind all.
  void insert_before(T* where, T& item) noexcept {
    list_hook<T>& hook = item.*Hook;
    hook.next = where;
    hook.previous = where != nullptr ? (where->*Hook).previous : last_;
    (hook.previous != nullptr ? (hook.previous->*Hook).next : first_) = &item;
    (where != nullptr ? (where->*Hook).previous : last_) = &item;
  }
  void push_back(T& item) noexcept { insert_before(nullptr, item); }
  void push_front(T& item) noexcept { insert_before(first_, item); }
  void remove(T& item) noexcept {
    list_hook<T>& hook = item.*Hook;
    (hook.previous != nullptr ? (hook.previous->*Hook).next : first_) = hook.next;
    (hook.next != nullptr ? (hook.next->*Hook).previous : last_) = hook.previous;
    hook = list_hook<T>{};
  }

 private:
  T* first_ = nullptr;
  T* last_ = nullptr;
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_PM_HOOKED_LIST_HPP
