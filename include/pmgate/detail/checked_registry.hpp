// SPDX-License-Identifier: MIT
//
// pmgate/detail/checked_registry.hpp - what checked.hpp knows: who holds what since when,
// who waits, in which orders.
//
// The one rule to know: the registry's lock is held for look-ups only, never across a
// call of the platform below or of the sink; so it is the same for threads and for
// the fibers of a simulation.
//
// Hosted: <algorithm> <deque> <map> <memory> <mutex> <string> <vector>
#ifndef PMGATE_DETAIL_CHECKED_REGISTRY_HPP
#define PMGATE_DETAIL_CHECKED_REGISTRY_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/detail/checked_graph.hpp>
#include <pmgate/platform/checked_report.hpp>

namespace pmgate::detail {

/// How sure it is that the thread that took something is the one that gives it back.
enum class hold_trust : std::uint8_t {
  certain,  ///< a mutex, a freeze, a ticket that stayed where it was made
  likely,   ///< entered by hand; somebody else may leave
  loose,    ///< given away: held, but not by its thread
};

/// Something a thread has taken and nobody has given back.
struct checked_hold {
  std::uint64_t serial = 0;
  checked_node node;
  call_site where;
  std::int64_t since = 0;  // ms
  std::intptr_t n = 1;
  hold_trust trust = hold_trust::certain;
  bool ticket = false;   // left by its ticket, not by exit()
  bool drained = false;  // a freeze whose thread has seen it drained
  checked_id parked = 0;  // an entry whose work this quiesced gate turned away
  std::vector<checked_edge> pending;  // of a likely one: true once its thread gives it back
};

/// Who acts, and when.
struct checked_caller {
  unsigned thread = 0;
  std::int64_t now = 0;  // ms
};

/// The registry of one checked platform.
///
/// Threads: every public member from any thread. Blocking: its lock, for short.
class checked_registry {
 public:
  using text = std::string;

  explicit checked_registry(void (*fallback)(const char*) noexcept) noexcept
      : fallback_(fallback) {}

  // -- settings and reports

  void set_options(const checked_options& options);
  checked_options options();
  /// Forgets everything but the options.
  void reset();
  unsigned long long reports();
  void report(check_kind kind, const text& what);
  /// A broken precondition: with the gate and the place of the call under way.
  void misuse(const checked_caller& me, const char* what);

  // -- objects, threads and calls

  checked_id add_object(const char* kind, const void* address, const char* name);
  void name_object(checked_id id, const char* name);
  void drop_object(const checked_caller& me, checked_id id);
  void name_thread(const checked_caller& me, const char* name);

  struct call {
    checked_id object = 0;
    call_site where;
    bool ends = false;  // the object is being destroyed
  };
  /// Returns: the call it nests in, for end_call().
  call begin_call(const checked_caller& me, const call& what);
  void end_call(const checked_caller& me, const call& outer);
  /// The place that stands for the calls of this thread; no file: their own places.
  call_site exchange_place(const checked_caller& me, const call_site& place);

  // -- holding

  std::uint64_t hold(const checked_caller& me, checked_hold what);
  /// Books n given back: by this thread's own, newest first; then by what was given
  /// away, then by others', oldest first. Returns: how many there were.
  std::intptr_t give_back(const checked_caller& me, checked_node node, std::intptr_t n);
  void give_back(const checked_caller& me, std::uint64_t serial);
  /// From now on these belong to no thread.
  void let_go(const checked_caller& me, checked_node node, std::intptr_t n);
  void let_go(std::uint64_t serial, bool still_ticket);
  bool holds(const checked_caller& me, checked_node node);
  void note_drained(const checked_caller& me, checked_id gate);
  void note_parked(const checked_caller& me, checked_id quiesced_gate);
  void forget_parked(checked_id quiesced_gate);

  // -- waiting

  /// About to wait, or to take what others may have: the orders it makes.
  void before_wait(const checked_caller& me, checked_node node, const call_site& where);
  void before_freeze(const checked_caller& me, checked_id gate, const call_site& where);
  /// Returns: true, and reported, if this thread waits for itself.
  bool refuse_wait(const checked_caller& me, checked_node mine, const call_site& where,
                   const char* what);
  /// Returns: true, and reported, if what is inside waits for this thread's unquiesce().
  bool refuse_parked(const checked_caller& me, checked_id gate, const call_site& where);
  std::uint64_t begin_wait(const checked_caller& me, checked_id object, const char* what,
                           const call_site& where);
  void end_wait(std::uint64_t serial);
  void long_wait(const checked_caller& me, checked_node node, std::uint64_t wait,
                 const char* what);

  // -- for dump()

  text describe(checked_id object);
  text holders(const checked_caller& me, checked_node node);
  text waiters(const checked_caller& me, checked_id object);

 private:
  struct known_object {
    const char* kind = "";
    const void* address = nullptr;
    const char* name = nullptr;
    bool hands_over = false;  // somebody left for another thread, without saying so before
  };
  struct thread {
    const char* name = nullptr;
    call under_way;
    call_site place;
    std::vector<checked_hold> holds;
  };
  struct waiting {
    std::uint64_t serial;
    unsigned thread;
    checked_id object;
    const char* what;
    call_site where;
    std::int64_t since;
  };
  struct finding {
    check_kind kind;
    std::shared_ptr<const text> what;
  };

  /// Holds the lock; tells what was found after it has been left.
  class session {
   public:
    explicit session(checked_registry& of) : of_(of), lock_(of.lock_) {}
    ~session() {
      const std::vector<finding> told = std::exchange(of_.found_, {});
      const check_sink sink = of_.options_.sink;
      lock_.unlock();
      for (const finding& each : told) {
        if (sink != nullptr) {
          sink({each.kind, each.what->c_str()});
        } else {
          of_.fallback_(each.what->c_str());
        }
      }
    }
    session(const session&) = delete;
    session& operator=(const session&) = delete;

   private:
    checked_registry& of_;
    std::unique_lock<std::mutex> lock_;
  };

  static text at(const call_site& where) {
    if (where.file == nullptr) return "?";
    return text(where.file) + ":" + std::to_string(where.line) + " (" + where.function + ")";
  }
  static const char* held_words(hold_class what);
  static const char* wait_words(hold_class what);

  call_site place_of(const checked_caller& me, const call_site& given) {
    const call_site& set = threads_[me.thread].place;
    return set.file != nullptr ? set : given;
  }
  text object_text(checked_id id);
  text thread_text(unsigned number);
  text hold_text(const checked_caller& me, unsigned holder, const checked_hold& held);
  text holders_text(const checked_caller& me, checked_node node);
  text cycle_text(const checked_graph::path& cycle);
  bool is_certain(const checked_hold& held) {
    if (held.trust != hold_trust::likely) return held.trust == hold_trust::certain;
    return !objects_[held.node.object].hands_over;
  }
  /// A drained freeze of one's own: freezing again waits for nobody.
  bool has_drained(const checked_caller& me, checked_id gate) {
    const auto& mine = threads_[me.thread].holds;
    return std::any_of(mine.begin(), mine.end(), [&](const checked_hold& held) {
      return held.node == checked_node{gate, hold_class::frozen} && held.drained &&
             held.trust == hold_trust::certain;
    });
  }
  void tell(check_kind kind, text what);
  void insert(const checked_edge& edge);
  std::intptr_t take(std::vector<checked_hold>& from, checked_node node, std::intptr_t n,
                     bool own, bool loose);

  static constexpr std::size_t kept_reports = 256;  // their texts outlive the sink's call

  std::mutex lock_;
  void (*const fallback_)(const char*) noexcept;
  checked_options options_;
  std::uint64_t last_serial_ = 0;
  checked_id last_object_ = 0;
  unsigned long long reports_ = 0;
  std::map<checked_id, known_object> objects_;
  std::map<unsigned, thread> threads_;
  std::vector<waiting> waits_;
  checked_graph orders_;
  std::vector<finding> found_;
  std::deque<std::shared_ptr<const text>> history_;
};

}  // namespace pmgate::detail

#include <pmgate/detail/checked_registry_impl.hpp>

#endif  // PMGATE_DETAIL_CHECKED_REGISTRY_HPP
