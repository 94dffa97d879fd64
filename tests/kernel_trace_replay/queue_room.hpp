// SPDX-License-Identifier: MIT
//
// queue_room.hpp - the request queues of a trace, their requests, and the
// operations on them.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_QUEUE_ROOM_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_QUEUE_ROOM_HPP

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/block/request_queue.hpp>
#include <pmgate/block/runtime_pm.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/status.hpp>

#include "recorder.hpp"
#include "trace_file.hpp"
#include "trace_platform.hpp"

namespace replay {

class queue_room {
 public:
  explicit queue_room(recorder& events) : events_(events) {}

  [[nodiscard]] bool has(const std::string& name) const { return queues_.contains(name); }

  /// Performs an operation on the present task.  Returns: its result.
  std::string execute(const operation& op) {
    if (op.name == "new_queue") return make(op);
    const auto rq = requests_.find(op.args[0]);
    if (rq != requests_.end() && !has(op.args[0])) return on_request(*rq->second, op);
    auto& queue = *queues_.at(op.args[0]);
    if (op.args.size() > 1 &&
        (op.name == "blk_mq_alloc_request" || op.name.starts_with("submit"))) {
      return new_request(queue, op);
    }
    const auto found = operations().find(op.name);
    return found != operations().end() ? (this->*found->second)(queue, op) : "unknown";
  }

  /// Lines for the queues whose state is not the one last printed, oldest first.
  void print_changes(std::vector<std::string>& lines) {
    for (traced_queue* queue : in_order_) {
      std::string state = state_of_queue(*queue);
      if (state == queue->printed) continue;
      lines.push_back("~ " + queue->name + " " + state);
      queue->printed = std::move(state);
    }
  }

  /// Ends everything, on a task.
  void clear() {
    in_order_.clear();
    queues_.clear();
    sets_.clear();
    requests_.clear();
    works_.stop();
  }

 private:
  using queue_type = pmgate::basic_request_queue<trace_platform>;
  using request_type = pmgate::basic_request<trace_platform>;
  using set_type = pmgate::basic_tag_set<trace_platform>;

  struct traced_queue : queue_type {
    traced_queue(queue_room& its_room, std::string its_name, set_type& tags,
                 pmgate::gate_start start)
        : queue_type({&queue_rq, this}, its_room.works_, tags, start),
          room(its_room),
          name(std::move(its_name)) {}
    queue_room& room;
    std::string name;
    bool held = false;  // queue_rq sleeps
    sleepers in_driver;
    std::string printed;
    unsigned busy = 0;  // refusals to come
    pmgate::dispatch_status refusal = pmgate::dispatch_status::resource;
    int freeze_debt = 0;   // misuse unfreeze-balanced
    int pm_only_debt = 0;  // misuse pm-only-balanced
    std::optional<pmgate::basic_runtime_pm<trace_platform>> pm;
    std::optional<pmgate::rpm_status> rpm_shadow;  // the kernel's, where the library refused
  };

  struct traced_request : request_type {
    traced_request(traced_queue& its_queue, std::string its_name, bool is_bio)
        : request_type(&on_end), queue(its_queue), name(std::move(its_name)), bio(is_bio) {}
    traced_queue& queue;
    std::string name;
    bool bio;
  };

  using handler = std::string (queue_room::*)(traced_queue&, const operation&);

  // -- callbacks

  static pmgate::dispatch_status queue_rq(queue_type& its_queue,
                                          request_type& its_request) noexcept {
    auto& queue = static_cast<traced_queue&>(its_queue);
    const std::string what =
        "queue_rq " + queue.name + " " + static_cast<traced_request&>(its_request).name;
    if (queue.busy == 0) {
      const std::string name = static_cast<traced_request&>(its_request).name;
      queue.room.events_.event(what);
      if (queue.held) {
        auto& room = queue.room;
        auto& asleep = room.asleep_[&queue.tags()];
        const unsigned number = ++room.sleeps_;
        asleep.insert(number);
        while (queue.held) queue.in_driver.sleep();
        asleep.erase(number);
        room.left_driver_.wake_all();
        queue.room.events_.event("queue_rq_return " + queue.name + " " + name);
      }
      return pmgate::dispatch_status::ok;
    }
    --queue.busy;
    const bool resource = queue.refusal == pmgate::dispatch_status::resource;
    queue.room.events_.event(what + (resource ? " RESOURCE" : " DEV_RESOURCE"));
    return queue.refusal;
  }
  static void on_end(request_type& its_request) noexcept {
    auto& rq = static_cast<traced_request&>(its_request);
    rq.queue.room.events_.event((rq.bio ? "bi_end_io " : "end_io ") + rq.name + " " +
                                name_of(rq.result()));
  }
  static void on_resume(void* context) noexcept {
    auto& queue = *static_cast<traced_queue*>(context);
    queue.room.events_.event_once_per_actor("pm_request_resume " + queue.name);
  }

  static std::string name_of(pmgate::status result) {
    return result == pmgate::status::ok          ? "OK"
           : result == pmgate::status::timed_out ? "TIMEOUT"
           : result == pmgate::status::again     ? "AGAIN"
                                                 : "IOERR";
  }
  static pmgate::status status_of(const std::string& name) {
    return name == "OK"        ? pmgate::status::ok
           : name == "TIMEOUT" ? pmgate::status::timed_out
           : name == "AGAIN"   ? pmgate::status::again
                               : pmgate::status::io_error;
  }
  static pmgate::enter_flags flags_of(const operation& op) {
    pmgate::enter_flags flags{};
    for (const auto& flag : split(op.option("flags", "0"), '|')) {
      if (flag == "NOWAIT") flags = flags | pmgate::enter_flags::nowait;
      if (flag == "PM") flags = flags | pmgate::enter_flags::pm;
    }
    return flags;
  }

  // -- objects

  std::string make(const operation& op) {
    const auto start =
        op.option("kind", "") == "disk" ? pmgate::gate_start::percpu : pmgate::gate_start::atomic;
    auto queue = std::make_unique<traced_queue>(*this, op.args[0], tags_of(op), start);
    while (queue->quiesce_depth() > 0) queue->unquiesce();  // departure born-quiesced
    if (op.option("pm", "0") == "1") {
      queue->pm.emplace(*queue, pmgate::runtime_pm_ops{&on_resume, nullptr, nullptr, queue.get()});
    }
    in_order_.push_back(queue.get());
    queues_[op.args[0]] = std::move(queue);
    start_works();
    return "0";
  }

  set_type& tags_of(const operation& op) {
    const std::string shared = op.option("share", "");
    if (!shared.empty()) return queues_.at(shared)->tags();
    const auto driver = op.option("blocking", "0") == "1" ? pmgate::driver_kind::blocking
                                                          : pmgate::driver_kind::nonblocking;
    const auto depth = static_cast<unsigned>(std::stoul(op.option("depth", "8")));
    return *sets_.emplace_back(std::make_unique<set_type>(depth, driver));
  }

  // Several workers: one may sleep in a driver.
  void start_works() {
    auto& world = scheduler::get();
    for (; workers_ < most_runs; ++workers_) {
      world.start(world.find("(kblockd " + std::to_string(workers_) + ")"),
                  [this] { works_.run(); });
    }
  }

  std::string new_request(traced_queue& queue, const operation& op) {
    const bool bio = op.name == "submit_bio";
    auto& slot = requests_[op.args[1]];
    slot = std::make_unique<traced_request>(queue, op.args[1], bio);
    traced_request& rq = *slot;
    if (bio) {
      queue.submit_bio(rq, flags_of(op));
      return "void";
    }
    const bool at_head = op.option("at_head", "0") == "1";
    return to_string(op.name == "submit" ? queue.submit(rq, flags_of(op), at_head)
                                         : queue.alloc(rq, flags_of(op)));
  }

  std::string on_request(traced_request& rq, const operation& op) {
    const bool at_head = op.option("at_head", "0") == "1";
    if (op.name == "blk_execute_rq") return to_string(rq.queue.execute(rq, at_head));
    if (op.name == "complete") {
      rq.queue.complete(rq, status_of(op.args.size() > 1 ? op.args[1] : "OK"));
    } else if (op.name == "blk_mq_free_request") {
      rq.queue.free(rq);
    } else if (op.name == "blk_mq_requeue_request") {
      rq.queue.requeue(rq);
    } else {
      rq.queue.execute_nowait(rq, at_head);
    }
    return "void";
  }

  std::string state_of_queue(const traced_queue& queue) const {
    const auto& gate = queue.gate();
    const int pm_only = queue.pm_only_debt != 0 ? -queue.pm_only_debt : gate.pm_only();
    const auto rpm = queue.rpm_shadow ? *queue.rpm_shadow
                     : queue.pm       ? queue.pm->runtime_status()
                                      : pmgate::rpm_status::active;
    return "freeze_depth=" + std::to_string(gate.depth() - queue.freeze_debt) +
           " pm_only=" + std::to_string(pm_only) +
           " quiesce_depth=" + std::to_string(queue.quiesce_depth()) +
           " dying=" + text_of(gate.is_dying()) + " rpm=" + to_string(rpm) +
           " usage: " + state_of(gate.usage().snapshot());
  }

  // -- operations on queues

  std::string enter(traced_queue& queue, const operation& op) {
    return to_string(queue.enter(flags_of(op)));
  }
  std::string try_enter(traced_queue& queue, const operation& op) {
    return text_of(queue.try_enter(op.option("pm", "0") == "1" ? pmgate::enter_flags::pm
                                                               : pmgate::enter_flags::none));
  }
  std::string exit(traced_queue& queue, const operation&) {
    queue.exit();
    return "void";
  }

  std::string freeze_start(traced_queue& queue, const operation&) {
    if (queue.freeze_debt != 0) {
      --queue.freeze_debt;
    } else {
      queue.freeze_start();
    }
    return "void";
  }
  std::string freeze(traced_queue& queue, const operation& op) {
    if (queue.freeze_debt != 0) {
      (void)freeze_start(queue, op);
      queue.freeze_wait();
    } else {
      queue.freeze();
    }
    return "void";
  }
  std::string freeze_wait(traced_queue& queue, const operation&) {
    queue.freeze_wait();
    return "void";
  }
  std::string freeze_wait_timeout(traced_queue& queue, const operation& op) {
    const std::int64_t deadline = trace_platform::now() + std::stol(op.args[1]);
    return queue.freeze_wait_until(deadline) ? ">0" : "0";
  }
  std::string unfreeze(traced_queue& queue, const operation& op) {
    const int reports = events_.reports();
    if (op.option("force_atomic", "0") == "1") {
      queue.unfreeze_to_atomic();
    } else {
      queue.unfreeze();
    }
    if (events_.reports() != reports) ++queue.freeze_debt;
    return "void";
  }
  std::string start_drain(traced_queue& queue, const operation& op) {
    if (queue.freeze_debt != 0) return freeze_start(queue, op);
    queue.start_drain();
    return "void";
  }
  std::string mark_disk_dead(traced_queue& queue, const operation&) {
    queue.mark_disk_dead();
    return "void";
  }

  std::string del_gendisk(traced_queue& queue, const operation&) {
    const grace_without_readers departure(queue.tags().is_blocking());
    queue.del_gendisk();
    return "void";
  }
  std::string destroy(traced_queue& queue, const operation&) {
    queue.destroy();
    return "void";
  }

  std::string set_pm_only(traced_queue& queue, const operation&) {
    if (queue.pm_only_debt == 0) {
      queue.set_pm_only();
    } else if (--queue.pm_only_debt == 0) {
      const withheld_wakes departure;  // raising it to 0 wakes nobody
      queue.clear_pm_only();
    }
    return "void";
  }
  std::string clear_pm_only(traced_queue& queue, const operation&) {
    if (queue.pm_only_debt != 0) {
      ++queue.pm_only_debt;
      return "void";
    }
    const int reports = events_.reports();
    queue.clear_pm_only();
    if (events_.reports() == reports) return "void";
    queue.pm_only_debt = 1;
    queue.set_pm_only();
    return "void";
  }

  // Misuse suspend-once: the library's status goes back to active, silently, so that all
  // steps are done once more.
  std::string pre_suspend(traced_queue& queue, const operation& op) {
    if (!queue.pm) return "0";
    queue.rpm_shadow.reset();
    const int reports = events_.reports();
    auto result = queue.pm->pre_runtime_suspend();
    if (events_.reports() != reports) {
      queue.set_pm_only();
      {
        const withheld_wakes departure;
        if (queue.pm->runtime_status() == pmgate::rpm_status::suspending) {
          queue.pm->post_runtime_suspend(pmgate::status::busy);
        } else {
          (void)post_resume(queue, op);
        }
      }
      result = queue.pm->pre_runtime_suspend();
    }
    return to_string(result);
  }
  std::string post_suspend(traced_queue& queue, const operation& op) {
    if (!queue.pm) return "void";
    const auto result = static_cast<pmgate::status>(std::stoi(op.args[1]));
    if (queue.pm->runtime_status() != pmgate::rpm_status::suspending) {
      if (result != pmgate::status::ok) {
        queue.rpm_shadow.reset();
        return clear_pm_only(queue, op);
      }
      queue.rpm_shadow = pmgate::rpm_status::suspended;
      return "void";
    }
    queue.rpm_shadow.reset();
    std::optional<withheld_wakes> departure;
    if (result == pmgate::status::ok) departure.emplace();
    queue.pm->post_runtime_suspend(result);
    return "void";
  }
  std::string pre_resume(traced_queue& queue, const operation&) {
    const withheld_wakes departure;
    if (!queue.pm) return "void";
    const auto before = queue.pm->runtime_status();
    if (before == pmgate::rpm_status::suspended) {
      (void)queue.pm->pre_runtime_resume();
    } else if (before != pmgate::rpm_status::resuming) {
      queue.rpm_shadow = pmgate::rpm_status::resuming;
    }
    return "void";
  }
  std::string post_resume(traced_queue& queue, const operation& op) {
    if (!queue.pm) return "void";
    if (std::exchange(queue.rpm_shadow, std::nullopt) &&
        queue.pm->runtime_status() == pmgate::rpm_status::active) {
      return clear_pm_only(queue, op);
    }
    if (queue.pm->runtime_status() == pmgate::rpm_status::suspended) (void)pre_resume(queue, op);
    queue.pm->post_runtime_resume();
    return "void";
  }

  std::string quiesce(traced_queue& queue, const operation&) {
    const grace_without_readers departure(queue.tags().is_blocking());
    queue.quiesce_nowait();
    const auto asleep = asleep_of(queue);
    queue.wait_quiesced();
    await(queue, asleep);
    return "void";
  }
  // Departure one-grace-period: the kernel waits for the dispatches of all queues of a
  // BLOCKING set that have begun, whatever becomes of the quiesce.
  std::set<unsigned> asleep_of(traced_queue& queue) {
    return queue.tags().is_blocking() ? asleep_[&queue.tags()] : std::set<unsigned>{};
  }
  void await(traced_queue& queue, const std::set<unsigned>& those) {
    const auto any = [&] {
      for (const unsigned each : asleep_[&queue.tags()]) {
        if (those.contains(each)) return true;
      }
      return false;
    };
    while (any()) left_driver_.sleep();
  }
  std::string quiesce_nowait(traced_queue& queue, const operation&) {
    queue.quiesce_nowait();
    return "void";
  }
  std::string wait_quiesced(traced_queue& queue, const operation&) {
    const grace_without_readers departure(queue.tags().is_blocking());
    const auto asleep = asleep_of(queue);
    queue.wait_quiesced();
    await(queue, asleep);
    return "void";
  }
  std::string unquiesce(traced_queue& queue, const operation&) {
    queue.unquiesce();
    return "void";
  }
  std::string quiesce_tagset(traced_queue& queue, const operation&) {
    const grace_without_readers departure(queue.tags().is_blocking());
    const auto asleep = asleep_of(queue);
    queue.tags().quiesce();
    await(queue, asleep);
    return "void";
  }
  std::string unquiesce_tagset(traced_queue& queue, const operation&) {
    queue.tags().unquiesce();
    return "void";
  }
  std::string hold(traced_queue& queue, const operation&) {
    queue.held = true;
    return "void";
  }
  std::string release(traced_queue& queue, const operation&) {
    queue.held = false;
    queue.in_driver.wake_all();
    return "void";
  }
  std::string run(traced_queue& queue, const operation& op) {
    queue.run(op.option("async", "0") == "1");
    return "void";
  }
  std::string stop(traced_queue& queue, const operation&) {
    queue.stop();
    return "void";
  }
  std::string start_stopped(traced_queue& queue, const operation&) {
    queue.start_stopped();
    return "void";
  }
  std::string set_busy(traced_queue& queue, const operation& op) {
    queue.busy = static_cast<unsigned>(std::stoul(op.args[1]));
    queue.refusal = op.args.size() > 2 && op.args[2] == "DEV_RESOURCE"
                        ? pmgate::dispatch_status::dev_resource
                        : pmgate::dispatch_status::resource;
    return "void";
  }

  std::string is_dying(traced_queue& queue, const operation&) {
    return text_of(queue.gate().is_dying());
  }
  std::string is_quiesced(traced_queue& queue, const operation&) {
    return text_of(queue.quiesce_depth() > 0);
  }
  std::string is_pm_only(traced_queue& queue, const operation&) {
    return text_of(queue.gate().pm_only() != 0);
  }
  std::string usage_is_zero(traced_queue& queue, const operation&) {
    return text_of(queue.gate().usage().is_zero());
  }
  std::string usage_is_dying(traced_queue& queue, const operation&) {
    return text_of(queue.gate().usage().is_dying());
  }

  static const std::map<std::string, handler>& operations() {
    using self = queue_room;
    static const std::map<std::string, handler> table = {
        {"blk_queue_enter", &self::enter},
        {"blk_try_enter_queue", &self::try_enter},
        {"blk_queue_exit", &self::exit},
        {"blk_freeze_queue_start", &self::freeze_start},
        {"blk_freeze_queue_start_non_owner", &self::freeze_start},
        {"blk_mq_freeze_queue", &self::freeze},
        {"blk_mq_freeze_queue_wait", &self::freeze_wait},
        {"blk_mq_freeze_queue_wait_timeout", &self::freeze_wait_timeout},
        {"blk_mq_unfreeze_queue", &self::unfreeze},
        {"blk_mq_unfreeze_queue_non_owner", &self::unfreeze},
        {"__blk_mq_unfreeze_queue", &self::unfreeze},
        {"blk_queue_start_drain", &self::start_drain},
        {"blk_mark_disk_dead", &self::mark_disk_dead},
        {"del_gendisk", &self::del_gendisk},
        {"blk_mq_destroy_queue", &self::destroy},
        {"blk_set_pm_only", &self::set_pm_only},
        {"blk_clear_pm_only", &self::clear_pm_only},
        {"blk_pre_runtime_suspend", &self::pre_suspend},
        {"blk_post_runtime_suspend", &self::post_suspend},
        {"blk_pre_runtime_resume", &self::pre_resume},
        {"blk_post_runtime_resume", &self::post_resume},
        {"blk_mq_quiesce_queue", &self::quiesce},
        {"blk_mq_quiesce_queue_nowait", &self::quiesce_nowait},
        {"blk_mq_wait_quiesce_done", &self::wait_quiesced},
        {"blk_mq_unquiesce_queue", &self::unquiesce},
        {"blk_mq_quiesce_tagset", &self::quiesce_tagset},
        {"blk_mq_unquiesce_tagset", &self::unquiesce_tagset},
        {"blk_mq_run_hw_queues", &self::run},
        {"blk_mq_stop_hw_queues", &self::stop},
        {"blk_mq_start_stopped_hw_queues", &self::start_stopped},
        {"hold_dispatch", &self::hold},
        {"release_dispatch", &self::release},
        {"set_busy", &self::set_busy},
        {"blk_queue_dying", &self::is_dying},
        {"blk_queue_quiesced", &self::is_quiesced},
        {"blk_queue_pm_only", &self::is_pm_only},
        {"percpu_ref_is_zero", &self::usage_is_zero},
        {"percpu_ref_is_dying", &self::usage_is_dying},
    };
    return table;
  }

  recorder& events_;
  static constexpr unsigned most_runs = 4;
  pmgate::pm::basic_work_queue<trace_platform> works_{"kblockd", pmgate::pm::work_queue_flags::none,
                                                      most_runs};
  unsigned workers_ = 0;
  std::map<const set_type*, std::set<unsigned>> asleep_;  // queue_rq calls, by number
  unsigned sleeps_ = 0;
  sleepers left_driver_;
  std::vector<std::unique_ptr<set_type>> sets_;
  std::map<std::string, std::unique_ptr<traced_request>> requests_;
  std::map<std::string, std::unique_ptr<traced_queue>> queues_;
  std::vector<traced_queue*> in_order_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_QUEUE_ROOM_HPP
