// SPDX-License-Identifier: MIT
//
// pmgate/detail/checked_graph.hpp - who waited for what while holding what, and
// whether that goes round in a circle.
//
// Hosted: <algorithm> <compare> <iterator> <map> <vector>
#ifndef PMGATE_DETAIL_CHECKED_GRAPH_HPP
#define PMGATE_DETAIL_CHECKED_GRAPH_HPP

#include <algorithm>
#include <compare>
#include <cstdint>
#include <iterator>
#include <map>
#include <vector>

#include <pmgate/platform/checked_report.hpp>

namespace pmgate::detail {

/// Each gate and mutex has a number that is not used again.
using checked_id = std::uint32_t;

/// What of an object one can hold, and wait for.
enum class hold_class : std::uint8_t {
  mutex,     ///< held by its owner; lock() waits for it
  entry,     ///< held by who is inside a freeze gate; freeze_wait() waits for it
  frozen,    ///< held by who froze the gate; enter() waits for it
  dispatch,  ///< held by who is in a section; wait_quiesced() waits for it
  quiesced,  ///< held by who quiesced; only work that was parked waits for it
  order,     ///< nobody waits for it: the order in which gates are frozen
};

struct checked_node {
  checked_id object = 0;
  hold_class what = hold_class::mutex;
  friend auto operator<=>(const checked_node&, const checked_node&) = default;
};

/// Somebody held `from` while he waited for `to`.
struct checked_edge {
  checked_node from;
  checked_node to;
  call_site held;    // where `from` was taken
  call_site waited;  // where `to` was waited for
  unsigned thread = 0;
};

/// The orders seen so far.
///
/// Threads: none; the registry's lock guards it.
class checked_graph {
 public:
  using path = std::vector<checked_edge>;

  /// Returns: the cycle that the edge closes, beginning with it; empty if there is none,
  /// or the edge is known.
  [[nodiscard]] path add(const checked_edge& edge) {
    auto& out = edges_[edge.from];
    const auto known = [&](const checked_edge& other) { return other.to == edge.to; };
    if (std::any_of(out.begin(), out.end(), known)) return {};
    out.push_back(edge);
    path cycle{edge};
    std::vector<checked_node> visited;
    return walk(edge.to, edge.from, cycle, visited) ? cycle : path{};
  }

  /// Forgets an object: what had its place in memory is another one.
  void drop(checked_id object) {
    for (auto at = edges_.begin(); at != edges_.end();) {
      std::erase_if(at->second, [&](const checked_edge& e) { return e.to.object == object; });
      at = at->first.object == object || at->second.empty() ? edges_.erase(at) : std::next(at);
    }
  }
  void clear() { edges_.clear(); }

 private:
  /// Depth first, from `at` to `goal`; the way is appended.
  bool walk(checked_node at, checked_node goal, path& way, std::vector<checked_node>& visited) {
    if (at == goal) return true;
    if (std::find(visited.begin(), visited.end(), at) != visited.end()) return false;
    visited.push_back(at);
    const auto found = edges_.find(at);
    if (found == edges_.end()) return false;
    for (const checked_edge& next : found->second) {
      way.push_back(next);
      if (walk(next.to, goal, way, visited)) return true;
      way.pop_back();
    }
    return false;
  }

  std::map<checked_node, std::vector<checked_edge>> edges_;
};

}  // namespace pmgate::detail

#endif  // PMGATE_DETAIL_CHECKED_GRAPH_HPP
