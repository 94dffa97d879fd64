// SPDX-License-Identifier: MIT
//
// pmgate/detail/checked_registry_impl.hpp - the bodies of checked_registry.hpp.
//
// Hosted: <algorithm> <cstdio> <iterator> <memory> <string> <vector>
#ifndef PMGATE_DETAIL_CHECKED_REGISTRY_IMPL_HPP
#define PMGATE_DETAIL_CHECKED_REGISTRY_IMPL_HPP

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/detail/checked_registry.hpp>

namespace pmgate::detail {

// -- words

inline const char* checked_registry::held_words(hold_class what) {
  switch (what) {
    case hold_class::mutex: return "held ";
    case hold_class::entry: return "was inside ";
    case hold_class::frozen: return "had frozen ";
    case hold_class::dispatch: return "was in a section of ";
    case hold_class::quiesced: return "had quiesced ";
    case hold_class::order: return "had frozen ";
  }
  return "";
}

inline const char* checked_registry::wait_words(hold_class what) {
  switch (what) {
    case hold_class::mutex: return "locked ";
    case hold_class::entry: return "waited until nobody is inside ";
    case hold_class::frozen: return "entered ";
    case hold_class::dispatch: return "waited for the sections of ";
    case hold_class::quiesced: return "was turned away by ";
    case hold_class::order: return "froze ";
  }
  return "";
}

inline auto checked_registry::object_text(checked_id id) -> text {
  const auto found = objects_.find(id);
  if (found == objects_.end()) return "an object that is gone";
  const known_object& it = found->second;
  if (it.name != nullptr) return text(it.kind) + " \"" + it.name + "\"";
  char address[32];
  std::snprintf(address, sizeof address, " %p", it.address);
  return text(it.kind) + address;
}

inline auto checked_registry::thread_text(unsigned number) -> text {
  const text plain = "thread " + std::to_string(number);
  const auto found = threads_.find(number);
  if (found == threads_.end() || found->second.name == nullptr) return plain;
  return plain + " \"" + found->second.name + "\"";
}

inline auto checked_registry::hold_text(const checked_caller& me, unsigned holder,
                                        const checked_hold& held) -> text {
  text line = thread_text(holder) + ", " + at(held.where) + ", " +
              std::to_string(me.now - held.since) + " ms ago";
  if (held.n != 1) line += ", " + std::to_string(held.n) + " times";
  if (held.trust == hold_trust::loose) {
    line += ", handed over since";
  } else {
    for (const waiting& wait : waits_) {
      if (wait.thread != holder) continue;
      line += ", now in " + text(wait.what) + " of " + object_text(wait.object) + " at " +
              at(wait.where);
    }
  }
  return line;
}

inline auto checked_registry::holders_text(const checked_caller& me, checked_node node) -> text {
  constexpr int most = 32;
  text all;
  int count = 0;
  for (const auto& [number, each] : threads_) {
    for (const checked_hold& held : each.holds) {
      if (held.node != node || ++count > most) continue;
      all += "\n  held by " + hold_text(me, number, held);
    }
  }
  if (count > most) all += "\n  and " + std::to_string(count - most) + " more";
  return all;
}

inline auto checked_registry::cycle_text(const checked_graph::path& cycle) -> text {
  const bool order = cycle.front().from.what == hold_class::order;
  text all = order ? "gates are frozen in different orders"
                   : "these orders can deadlock, although they need not have this time";
  for (const checked_edge& edge : cycle) {
    all += "\n  " + thread_text(edge.thread) + " " + held_words(edge.from.what) +
           object_text(edge.from.object) + " since " + at(edge.held) + "\n    and " +
           wait_words(edge.to.what) + object_text(edge.to.object) + " at " + at(edge.waited);
  }
  return all;
}

// -- settings and reports

inline void checked_registry::set_options(const checked_options& options) {
  const session open(*this);
  options_ = options;
}

inline checked_options checked_registry::options() {
  const session open(*this);
  return options_;
}

inline void checked_registry::reset() {
  const session open(*this);
  reports_ = 0;
  objects_.clear();
  threads_.clear();
  waits_.clear();
  orders_.clear();
}

inline unsigned long long checked_registry::reports() {
  const session open(*this);
  return reports_;
}

inline void checked_registry::tell(check_kind kind, text what) {
  ++reports_;
  history_.push_back(std::make_shared<const text>(std::move(what)));
  found_.push_back({kind, history_.back()});
  if (history_.size() > kept_reports) history_.pop_front();
}

inline void checked_registry::report(check_kind kind, const text& what) {
  const session open(*this);
  tell(kind, what);
}

inline void checked_registry::misuse(const checked_caller& me, const char* what) {
  const session open(*this);
  const call& now = threads_[me.thread].under_way;
  text line = what;
  if (now.object != 0) line += ": " + object_text(now.object);
  line += ", by " + thread_text(me.thread);
  if (now.where.file != nullptr) line += " at " + at(now.where);
  if (now.ends) {
    line += holders_text(me, {now.object, hold_class::entry}) +
            holders_text(me, {now.object, hold_class::dispatch});
  }
  tell(check_kind::misuse, line);
}

// -- objects, threads and calls

inline checked_id checked_registry::add_object(const char* kind, const void* address,
                                               const char* name) {
  const session open(*this);
  objects_[++last_object_] = {kind, address, name};
  return last_object_;
}

inline void checked_registry::name_object(checked_id id, const char* name) {
  const session open(*this);
  objects_[id].name = name;
}

inline void checked_registry::drop_object(const checked_caller& me, checked_id id) {
  const session open(*this);
  for (const waiting& wait : waits_) {
    if (wait.object != id || wait.thread == me.thread) continue;
    tell(check_kind::misuse, object_text(id) + " destroyed while " + thread_text(wait.thread) +
                                 " is in " + wait.what + " at " + at(wait.where));
  }
  for (const auto& [number, each] : threads_) {
    for (const checked_hold& held : each.holds) {
      if (held.node != checked_node{id, hold_class::mutex}) continue;
      tell(check_kind::misuse,
           object_text(id) + " destroyed while locked\n  held by " + hold_text(me, number, held));
    }
  }
  std::erase_if(waits_, [&](const waiting& wait) { return wait.object == id; });
  for (auto& [number, each] : threads_) {
    std::erase_if(each.holds, [&](const checked_hold& h) { return h.node.object == id; });
    for (checked_hold& held : each.holds) {
      std::erase_if(held.pending, [&](const checked_edge& e) { return e.to.object == id; });
    }
  }
  orders_.drop(id);
  objects_.erase(id);
}

inline void checked_registry::name_thread(const checked_caller& me, const char* name) {
  const session open(*this);
  threads_[me.thread].name = name;
}

inline auto checked_registry::begin_call(const checked_caller& me, const call& what) -> call {
  const session open(*this);
  call inner = what;
  inner.where = place_of(me, what.where);
  return std::exchange(threads_[me.thread].under_way, inner);
}

inline void checked_registry::end_call(const checked_caller& me, const call& outer) {
  const session open(*this);
  threads_[me.thread].under_way = outer;
}

inline call_site checked_registry::exchange_place(const checked_caller& me,
                                                  const call_site& place) {
  const session open(*this);
  return std::exchange(threads_[me.thread].place, place);
}

// -- holding

inline std::uint64_t checked_registry::hold(const checked_caller& me, checked_hold what) {
  const session open(*this);
  what.where = place_of(me, what.where);
  what.serial = ++last_serial_;
  what.since = me.now;
  threads_[me.thread].holds.push_back(std::move(what));
  return last_serial_;
}

/// Takes up to n out of `from`: its thread's own, newest first, or, oldest first, those
/// that were given away, or whichever there are.
inline std::intptr_t checked_registry::take(std::vector<checked_hold>& from, checked_node node,
                                            std::intptr_t n, bool own, bool loose) {
  std::intptr_t taken = 0;
  for (std::size_t i = 0; i < from.size() && taken < n;) {
    checked_hold& held = from[own ? from.size() - 1 - i : i];
    const bool given = held.trust == hold_trust::loose;
    if (held.node != node || held.ticket || given != loose) {
      ++i;
      continue;
    }
    if (own) {
      for (const checked_edge& edge : std::exchange(held.pending, {})) insert(edge);
    } else if (!given && held.trust == hold_trust::likely) {
      objects_[node.object].hands_over = true;
    }
    const std::intptr_t some = (std::min)(n - taken, held.n);
    taken += some;
    held.n -= some;
    if (held.n == 0) from.erase(from.begin() + (&held - from.data()));
  }
  return taken;
}

inline std::intptr_t checked_registry::give_back(const checked_caller& me, checked_node node,
                                                 std::intptr_t n) {
  const session open(*this);
  auto& mine = threads_[me.thread].holds;
  std::intptr_t taken = take(mine, node, n, true, false);
  taken += take(mine, node, n - taken, false, true);
  for (const bool loose : {true, false}) {
    for (auto& [number, each] : threads_) {
      if (taken < n) taken += take(each.holds, node, n - taken, false, loose);
    }
  }
  return taken;
}

inline void checked_registry::give_back(const checked_caller&, std::uint64_t serial) {
  const session open(*this);
  for (auto& [number, each] : threads_) {
    std::erase_if(each.holds, [&](const checked_hold& held) { return held.serial == serial; });
  }
}

inline void checked_registry::let_go(const checked_caller& me, checked_node node,
                                     std::intptr_t n) {
  const session open(*this);
  auto& mine = threads_[me.thread].holds;
  std::vector<checked_hold> given;
  for (auto at = mine.rbegin(); at != mine.rend() && n > 0; ++at) {
    if (at->node != node || at->ticket || at->trust == hold_trust::loose) continue;
    const std::intptr_t some = (std::min)(n, at->n);
    n -= some;
    at->n -= some;
    given.push_back(*at);
    given.back().n = some;
    given.back().serial = ++last_serial_;
    given.back().trust = hold_trust::loose;
    given.back().pending.clear();
  }
  std::erase_if(mine, [](const checked_hold& held) { return held.n == 0; });
  mine.insert(mine.end(), given.rbegin(), given.rend());
}

inline void checked_registry::let_go(std::uint64_t serial, bool still_ticket) {
  const session open(*this);
  for (auto& [number, each] : threads_) {
    for (checked_hold& held : each.holds) {
      if (held.serial != serial) continue;
      held.trust = hold_trust::loose;
      held.ticket = still_ticket;
    }
  }
}

inline bool checked_registry::holds(const checked_caller& me, checked_node node) {
  const session open(*this);
  const auto& mine = threads_[me.thread].holds;
  return std::any_of(mine.begin(), mine.end(), [&](const checked_hold& held) {
    return held.node == node && is_certain(held);
  });
}

inline void checked_registry::note_drained(const checked_caller& me, checked_id gate) {
  const session open(*this);
  for (checked_hold& held : threads_[me.thread].holds) {
    if (held.node == checked_node{gate, hold_class::frozen}) held.drained = true;
  }
}

/// The entry last made is taken for that of the work that was turned away.
inline void checked_registry::note_parked(const checked_caller& me, checked_id quiesced_gate) {
  const session open(*this);
  auto& mine = threads_[me.thread].holds;
  const auto newest = std::find_if(mine.rbegin(), mine.rend(), [](const checked_hold& held) {
    return held.node.what == hold_class::entry;
  });
  if (newest != mine.rend()) newest->parked = quiesced_gate;
}

inline void checked_registry::forget_parked(checked_id quiesced_gate) {
  const session open(*this);
  for (auto& [number, each] : threads_) {
    for (checked_hold& held : each.holds) {
      if (held.parked == quiesced_gate) held.parked = 0;
    }
  }
}

// -- waiting

inline void checked_registry::insert(const checked_edge& edge) {
  const checked_graph::path cycle = orders_.add(edge);
  if (!cycle.empty()) tell(check_kind::lock_order, cycle_text(cycle));
}

inline void checked_registry::before_wait(const checked_caller& me, checked_node node,
                                          const call_site& where) {
  const session open(*this);
  if (node.what == hold_class::entry && has_drained(me, node.object)) return;
  const call_site place = place_of(me, where);
  for (checked_hold& held : threads_[me.thread].holds) {
    if (held.trust == hold_trust::loose || held.node == node ||
        held.node.what == hold_class::quiesced) {
      continue;
    }
    const checked_edge edge{held.node, node, held.where, place, me.thread};
    if (held.trust == hold_trust::certain) {
      insert(edge);
    } else {
      const auto known = [&](const checked_edge& other) { return other.to == node; };
      if (std::none_of(held.pending.begin(), held.pending.end(), known)) {
        held.pending.push_back(edge);
      }
    }
  }
}

inline void checked_registry::before_freeze(const checked_caller& me, checked_id gate,
                                            const call_site& where) {
  const session open(*this);
  if (!options_.freeze_order || has_drained(me, gate)) return;
  const call_site place = place_of(me, where);
  for (const checked_hold& held : threads_[me.thread].holds) {
    if (held.node.what != hold_class::frozen || held.trust == hold_trust::loose ||
        !held.drained || held.node.object == gate) {
      continue;
    }
    insert({{held.node.object, hold_class::order}, {gate, hold_class::order}, held.where, place,
            me.thread});
  }
}

inline bool checked_registry::refuse_wait(const checked_caller& me, checked_node mine,
                                          const call_site& where, const char* what) {
  const session open(*this);
  for (const checked_hold& held : threads_[me.thread].holds) {
    if (held.node != mine || !is_certain(held)) continue;
    tell(check_kind::deadlock, text(what) + ": " + object_text(mine.object) + ", by " +
                                   thread_text(me.thread) + " at " + at(place_of(me, where)) +
                                   "\n  held by " + hold_text(me, me.thread, held));
    return true;
  }
  return false;
}

inline bool checked_registry::refuse_parked(const checked_caller& me, checked_id gate,
                                            const call_site& where) {
  const session open(*this);
  for (const checked_hold& own : threads_[me.thread].holds) {
    if (own.node.what != hold_class::quiesced || own.trust == hold_trust::loose) continue;
    for (const auto& [number, each] : threads_) {
      for (const checked_hold& held : each.holds) {
        if (held.node != checked_node{gate, hold_class::entry}) continue;
        if (held.parked != own.node.object) continue;
        tell(check_kind::deadlock,
             "a freeze would wait for work that this thread keeps parked: " + object_text(gate) +
                 ", by " + thread_text(me.thread) + " at " + at(place_of(me, where)) +
                 "\n  parked by " + object_text(own.node.object) + ", quiesced at " +
                 at(own.where) + "\n  held by " + hold_text(me, number, held));
        return true;
      }
    }
  }
  return false;
}

inline std::uint64_t checked_registry::begin_wait(const checked_caller& me, checked_id id,
                                                  const char* what, const call_site& where) {
  const session open(*this);
  waits_.push_back({++last_serial_, me.thread, id, what, place_of(me, where), me.now});
  return last_serial_;
}

inline void checked_registry::end_wait(std::uint64_t serial) {
  const session open(*this);
  std::erase_if(waits_, [&](const waiting& wait) { return wait.serial == serial; });
}

inline void checked_registry::long_wait(const checked_caller& me, checked_node node,
                                        std::uint64_t wait, const char* what) {
  const session open(*this);
  const auto found = std::find_if(waits_.begin(), waits_.end(),
                                  [&](const waiting& each) { return each.serial == wait; });
  if (found == waits_.end()) return;
  tell(check_kind::long_wait, text(what) + " has waited for " +
                                  std::to_string(me.now - found->since) + " ms: " +
                                  object_text(node.object) + ", by " + thread_text(me.thread) +
                                  " at " + at(found->where) + holders_text(me, node));
}

// -- for dump()

inline auto checked_registry::describe(checked_id id) -> text {
  const session open(*this);
  return object_text(id);
}

inline auto checked_registry::holders(const checked_caller& me, checked_node node) -> text {
  const session open(*this);
  return holders_text(me, node);
}

inline auto checked_registry::waiters(const checked_caller& me, checked_id id) -> text {
  const session open(*this);
  text all;
  for (const waiting& wait : waits_) {
    if (wait.object != id) continue;
    all += "\n  waiting: " + thread_text(wait.thread) + " in " + wait.what + ", " +
           at(wait.where) + ", " + std::to_string(me.now - wait.since) + " ms ago";
  }
  return all;
}

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_CHECKED_REGISTRY_IMPL_HPP
