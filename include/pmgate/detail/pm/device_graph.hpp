// SPDX-License-Identifier: MIT
//
// pmgate/detail/pm/device_graph.hpp - who is below whom, who needs whom, and the
// order that follows.
//
// The one rule to know: every device stands behind its parent and behind all its
// suppliers. A link moves the consumer, and everybody who depends on it, to the end.
//
// Counterpart: dpm_list, device_link_add(), device_is_dependent() and
// device_reorder_to_tail() of Linux (semantics only).
#ifndef PMGATE_DETAIL_PM_DEVICE_GRAPH_HPP
#define PMGATE_DETAIL_PM_DEVICE_GRAPH_HPP

#include <cstdint>

#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/status.hpp>

namespace pmgate::detail {

/// The lists of a tree: how far down each device is.
enum class power_list : std::uint8_t { active, prepared, suspended, late_early, noirq };
inline constexpr unsigned power_list_count = 5;

/// Devices on five lists, links between them.
///
/// Threads:  as a plain object; the lock of the tree guards it.
/// Blocking: no. Cost of a link: the devices and links below its consumer.
template <platform Platform>
class device_graph {
 public:
  using device = pm::basic_device<Platform>;
  using link = pm::basic_device_link<Platform>;

  void insert(device& item) noexcept;
  void erase(device& item) noexcept;
  /// False if the device has children or links.
  bool is_leaf(const device& item) const noexcept;

  /// False, and changes nothing, if the supplier needs the consumer in some way; a link
  /// that orders nothing closes no circle.
  bool connect(link& entry, device& consumer, device& supplier) noexcept;
  void disconnect(link& entry) noexcept;

  device* first(power_list where) const noexcept { return at(where).first(); }
  device* last(power_list where) const noexcept { return at(where).last(); }
  static device* next(const device& item) noexcept { return list::next(item); }
  static device* previous(const device& item) noexcept { return list::previous(item); }
  static power_list list_of(const device& item) noexcept {
    return static_cast<power_list>(item.list_);
  }
  void move_front(device& item, power_list to) noexcept;
  void move_back(device& item, power_list to) noexcept;
  /// Puts the whole of one list before the whole of another.
  void splice_front(power_list from, power_list to) noexcept;

 private:
  using list = hooked_list<device, &device::entry_>;
  using siblings = hooked_list<device, &device::sibling_>;

  list& at(power_list where) noexcept { return lists_[static_cast<unsigned>(where)]; }
  const list& at(power_list where) const noexcept { return lists_[static_cast<unsigned>(where)]; }
  void take(device& item) noexcept { at(list_of(item)).remove(item); }
  void enter(device& item, device* from) noexcept;
  device* step(device& item) noexcept;
  device* walk_dependents(device& root) noexcept;

  list lists_[power_list_count];
  std::uint32_t walks_ = 0;
};

template <platform Platform>
void device_graph<Platform>::insert(device& item) noexcept {
  item.list_ = static_cast<std::uint8_t>(power_list::active);
  at(power_list::active).push_back(item);
  if (item.parent_ != nullptr) item.parent_->children_.push_back(item);
}

template <platform Platform>
void device_graph<Platform>::erase(device& item) noexcept {
  take(item);
  if (item.parent_ != nullptr) item.parent_->children_.remove(item);
}

template <platform Platform>
bool device_graph<Platform>::is_leaf(const device& item) const noexcept {
  return item.children_.is_empty() && item.consumers_ == nullptr && item.suppliers_ == nullptr;
}

template <platform Platform>
void device_graph<Platform>::move_front(device& item, power_list to) noexcept {
  take(item);
  item.list_ = static_cast<std::uint8_t>(to);
  at(to).push_front(item);
}

template <platform Platform>
void device_graph<Platform>::move_back(device& item, power_list to) noexcept {
  take(item);
  item.list_ = static_cast<std::uint8_t>(to);
  at(to).push_back(item);
}

template <platform Platform>
void device_graph<Platform>::splice_front(power_list from, power_list to) noexcept {
  while (device* const item = last(from)) move_front(*item, to);
}

template <platform Platform>
void device_graph<Platform>::enter(device& item, device* from) noexcept {
  item.walk_ = walks_;
  item.walk_from_ = from;
  item.walk_link_ = item.consumers_;
  item.walk_child_ = item.children_.last();
}

/// The next device that depends on this one and was not entered yet; null: none is left.
template <platform Platform>
typename device_graph<Platform>::device* device_graph<Platform>::step(device& item) noexcept {
  while (link* const entry = item.walk_link_) {
    item.walk_link_ = entry->next_consumer_;
    if (entry->orders() && entry->consumer_->walk_ != walks_) return entry->consumer_;
  }
  while (device* const child = item.walk_child_) {
    item.walk_child_ = siblings::previous(*child);
    if (child->walk_ != walks_) return child;
  }
  return nullptr;
}

/// Chains the root and all who depend on it through walk_next_.
///
/// The kernel moves each to the end as it meets it: the device, its children, then
/// its consumers, again and again those whom several paths lead to. What stands in the
/// end is the order of the last moves. Walking everything backwards, the last moves
/// come first: one visit each is enough, and there is no recursion.
template <platform Platform>
typename device_graph<Platform>::device* device_graph<Platform>::walk_dependents(
    device& root) noexcept {
  ++walks_;
  enter(root, nullptr);
  device* chain = nullptr;
  for (device* current = &root; current != nullptr;) {
    if (device* const below = step(*current)) {
      enter(*below, current);
      current = below;
    } else {
      current->walk_next_ = chain;
      chain = current;
      current = current->walk_from_;
    }
  }
  return chain;
}

template <platform Platform>
bool device_graph<Platform>::connect(link& entry, device& consumer, device& supplier) noexcept {
  device* const chain = entry.orders() ? walk_dependents(consumer) : nullptr;
  if (&consumer == &supplier || (entry.orders() && supplier.walk_ == walks_)) return false;
  entry.consumer_ = &consumer;
  entry.supplier_ = &supplier;
  entry.next_consumer_ = supplier.consumers_;
  supplier.consumers_ = &entry;
  entry.next_supplier_ = consumer.suppliers_;
  consumer.suppliers_ = &entry;
  for (device* item = chain; item != nullptr; item = item->walk_next_) {
    move_back(*item, list_of(*item));
  }
  return true;
}

template <platform Platform>
void device_graph<Platform>::disconnect(link& entry) noexcept {
  link** place = &entry.supplier_->consumers_;
  while (*place != &entry) place = &(*place)->next_consumer_;
  *place = entry.next_consumer_;
  place = &entry.consumer_->suppliers_;
  while (*place != &entry) place = &(*place)->next_supplier_;
  *place = entry.next_supplier_;
  entry.consumer_ = entry.supplier_ = nullptr;
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_PM_DEVICE_GRAPH_HPP
