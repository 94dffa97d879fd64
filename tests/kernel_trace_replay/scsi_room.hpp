// SPDX-License-Identifier: MIT
//
// scsi_room.hpp - the SCSI host of a trace, its devices, their commands, and the
// operations on them.
#ifndef PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCSI_ROOM_HPP
#define PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCSI_ROOM_HPP

#include <cstddef>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/status.hpp>

#include "recorder.hpp"
#include "trace_file.hpp"
#include "trace_platform.hpp"

namespace replay {

class scsi_room {
 public:
  explicit scsi_room(recorder& events) : events_(events) {}

  /// True if the operation is one of this room.
  [[nodiscard]] bool handles(const operation& op) const {
    if (op.name == "new_host") return true;
    if (host_ == nullptr || op.args.empty()) return false;
    const std::string& name = op.args[0];
    return name == host_->name || devices_.contains(name) || commands_.contains(name);
  }

  /// Performs an operation on the present task.  Returns: its result.
  std::string execute(const operation& op) {
    if (op.name == "new_host") return make(op);
    const std::string& name = op.args[0];
    if (const auto item = commands_.find(name); item != commands_.end()) {
      host_->complete(*item->second, static_cast<int>(std::stol(op.args[1], nullptr, 0)));
      return "void";
    }
    if (name == host_->name) {
      const auto found = of_hosts().find(op.name);
      return found != of_hosts().end() ? (this->*found->second)(op) : "unknown";
    }
    const auto found = of_devices().find(op.name);
    return found != of_devices().end() ? (this->*found->second)(*devices_.at(name), op) : "unknown";
  }

  /// Lines for the devices and the host whose state is not the one last printed.
  void print_changes(std::vector<std::string>& lines) {
    if (host_ == nullptr) return;
    for (traced_device* each : in_order_) {
      std::string state = state_of_device(*each);
      if (state == each->printed) continue;
      lines.push_back("~ " + each->name + " " + state);
      each->printed = std::move(state);
    }
    std::string state = std::string("state=") + pmgate::scsi::kernel_name(host_->state()) +
                        " self_blocked=" + (host_->is_self_blocked() ? "1" : "0");
    if (state == host_->printed) return;
    lines.push_back("~ " + host_->name + " " + state);
    host_->printed = std::move(state);
  }

  /// Ends everything, on a task.
  void clear() {
    in_order_.clear();
    devices_.clear();
    host_.reset();
    targets_.clear();
    commands_.clear();
    works_.stop();
  }

 private:
  using device_type = pmgate::scsi::basic_device<trace_platform>;
  using host_type = pmgate::scsi::basic_host<trace_platform>;
  using target_type = pmgate::scsi::basic_target<trace_platform>;
  using command_type = pmgate::scsi::basic_command<trace_platform>;
  using device_state = pmgate::scsi::device_state;
  using host_state = pmgate::scsi::host_state;

  struct traced_host : host_type {
    traced_host(scsi_room& its_room, std::string its_name)
        : host_type({&scsi_room::queuecommand, this}), room(its_room), name(std::move(its_name)) {}
    scsi_room& room;
    std::string name;
    std::string printed;
    unsigned busy = 0;  // refusals to come
  };

  struct traced_device : device_type {
    traced_device(scsi_room& its_room, target_type& where, std::string its_name, int depth)
        : device_type(*its_room.host_, where, its_room.works_, {depth, host_can_queue},
                      pmgate::gate_start::atomic),
          room(its_room),
          name(std::move(its_name)) {}
    scsi_room& room;
    std::string name;
    std::string printed;
  };

  struct traced_command : command_type {
    explicit traced_command(std::string its_name) : name(std::move(its_name)) {}
    std::string name;
  };

  using host_handler = std::string (scsi_room::*)(const operation&);
  using device_handler = std::string (scsi_room::*)(traced_device&, const operation&);

  static constexpr unsigned host_can_queue = 32;

  // -- callbacks

  static int queuecommand(host_type& its_host, command_type& its_command) noexcept {
    auto& adapter = static_cast<traced_host&>(its_host);
    const std::string what = "queuecommand " +
                             static_cast<traced_device&>(its_command.device()).name + " " +
                             static_cast<traced_command&>(its_command).name;
    if (adapter.busy == 0) {
      adapter.room.events_.event(what);
      return 0;
    }
    --adapter.busy;
    adapter.room.events_.event(what + " SCSI_MLQUEUE_HOST_BUSY");
    return pmgate::scsi::host_busy;
  }
  static void on_resume(void* context) noexcept {
    auto& which = *static_cast<traced_device*>(context);
    which.room.events_.event_once_per_actor("pm_request_resume " + which.name);
  }

  // -- words

  template <class State>
  static State state_named(const std::string& name) {
    State state{};
    (void)pmgate::scsi::parse(name.c_str(), state);
    return state;
  }
  static device_state state_of_op(const operation& op) {
    return state_named<device_state>(op.args[1]);
  }
  static bool has_flag(const operation& op, const std::string& wanted) {
    for (const auto& flag : split(op.option("flags", "0"), '|')) {
      if (flag == wanted) return true;
    }
    return false;
  }
  static std::string state_of_device(traced_device& which) {
    const auto& gate = which.queue().gate();
    const task* const by = which.quiesced_by();
    return std::string("state=") + pmgate::scsi::kernel_name(which.state()) +
           " quiesced_by=" + (by == nullptr ? "-" : by->name()) +
           " queue_stopped=" + (which.is_stopped() ? "1" : "0") +
           " freeze_depth=" + std::to_string(gate.depth()) +
           " pm_only=" + std::to_string(gate.pm_only()) +
           " quiesce_depth=" + std::to_string(which.queue().quiesce_depth()) +
           " dying=" + text_of(gate.is_dying());
  }

  // -- objects

  std::string make(const operation& op) {
    const std::size_t devices = std::stoul(op.option("devs", "1"));
    const std::size_t luns = std::stoul(op.option("luns", "1"));
    host_ = std::make_unique<traced_host>(*this, op.args[0]);
    for (std::size_t i = 0; i < devices; ++i) {
      if (i % luns == 0) targets_.push_back(std::make_unique<target_type>());
      const std::string name = std::string("d").append(std::to_string(i));
      auto& slot = devices_[name];
      slot = std::make_unique<traced_device>(*this, *targets_.back(), name,
                                             std::stoi(op.option("depth", "8")));
      if (op.option("pm", "1") == "1") {
        slot->queue().gate().set_resume_request(&on_resume, slot.get());
      }
      (void)slot->set_state(device_state::running);
      in_order_.push_back(slot.get());
    }
    auto& world = scheduler::get();
    world.start(world.find("(kblockd of SCSI)"), [this] { works_.run(); });
    return "0";
  }

  // -- operations on a device

  std::string execute_command(traced_device& which, const operation& op) {
    using pmgate::scsi::command_flags;
    auto& item = commands_[op.args[1]];
    item = std::make_unique<traced_command>(op.args[1]);
    command_flags flags = command_flags::none;
    if (has_flag(op, "NOWAIT")) flags = flags | command_flags::nowait;
    if (has_flag(op, "PM")) flags = flags | command_flags::pm;
    if (has_flag(op, "FAIL_IF_RECOVERING")) flags = flags | command_flags::fail_if_recovering;
    traced_command& mine = *item;
    const pmgate::status entered = which.execute(mine, flags);
    if (entered != pmgate::status::ok) return to_string(entered);
    if (mine.result_word() == 0) return "0";
    char text[16];
    (void)std::snprintf(text, sizeof text, "0x%x", static_cast<unsigned>(mine.result_word()));
    return text;
  }
  std::string enter(traced_device& which, const operation& op) {
    pmgate::enter_flags flags{};
    if (has_flag(op, "NOWAIT")) flags = flags | pmgate::enter_flags::nowait;
    if (has_flag(op, "PM")) flags = flags | pmgate::enter_flags::pm;
    return to_string(which.queue().enter(flags));
  }
  std::string exit(traced_device& which, const operation&) {
    which.queue().exit();
    return "void";
  }
  std::string run(traced_device& which, const operation&) {
    which.queue().run(true);
    return "void";
  }
  std::string force_state(traced_device& which, const operation& op) {
    which.force_state(state_of_op(op));
    return "void";
  }
  std::string set_state(traced_device& which, const operation& op) {
    return to_string(which.set_state(state_of_op(op)));
  }
  std::string quiesce(traced_device& which, const operation&) { return to_string(which.quiesce()); }
  std::string resume(traced_device& which, const operation&) {
    which.resume();
    return "void";
  }
  std::string target_quiesce(traced_device& which, const operation&) {
    host_->target_quiesce(which.target());
    return "void";
  }
  std::string target_resume(traced_device& which, const operation&) {
    host_->target_resume(which.target());
    return "void";
  }
  std::string target_unblock(traced_device& which, const operation& op) {
    host_->target_unblock(which.target(), state_of_op(op));
    return "void";
  }
  std::string block_nowait(traced_device& which, const operation&) {
    return to_string(which.block_nowait());
  }
  std::string unblock_nowait(traced_device& which, const operation& op) {
    return to_string(which.unblock(state_of_op(op)));
  }
  std::string remove(traced_device& which, const operation&) {
    which.remove();
    return "void";
  }
  std::string is_online(traced_device& which, const operation&) {
    return text_of(pmgate::scsi::is_online(which.state()));
  }
  std::string is_blocked(traced_device& which, const operation&) {
    return text_of(pmgate::scsi::is_blocked(which.state()));
  }
  std::string is_created(traced_device& which, const operation&) {
    return text_of(pmgate::scsi::is_created(which.state()));
  }

  static const std::map<std::string, device_handler>& of_devices() {
    using self = scsi_room;
    static const std::map<std::string, device_handler> table = {
        {"scsi_execute_cmd", &self::execute_command},
        {"blk_queue_enter", &self::enter},
        {"blk_queue_exit", &self::exit},
        {"blk_mq_run_hw_queues", &self::run},
        {"force_state", &self::force_state},
        {"scsi_device_set_state", &self::set_state},
        {"scsi_device_quiesce", &self::quiesce},
        {"scsi_device_resume", &self::resume},
        {"scsi_target_quiesce", &self::target_quiesce},
        {"scsi_target_resume", &self::target_resume},
        {"scsi_target_unblock", &self::target_unblock},
        {"scsi_internal_device_block_nowait", &self::block_nowait},
        {"scsi_internal_device_unblock_nowait", &self::unblock_nowait},
        {"scsi_remove_device", &self::remove},
        {"scsi_device_online", &self::is_online},
        {"scsi_device_blocked", &self::is_blocked},
        {"scsi_device_created", &self::is_created},
    };
    return table;
  }

  // -- operations on the host

  std::string block(const operation&) { return to_string(host_->block()); }
  std::string unblock(const operation& op) { return to_string(host_->unblock(state_of_op(op))); }
  std::string block_targets(const operation&) {
    (void)host_->block_targets();
    return "void";
  }
  std::string targets_unblock(const operation& op) {
    host_->targets_unblock(state_of_op(op));
    return "void";
  }
  std::string block_requests(const operation&) {
    host_->block_requests();
    return "void";
  }
  std::string unblock_requests(const operation&) {
    host_->unblock_requests();
    return "void";
  }
  std::string force_host_state(const operation& op) {
    host_->force_state(state_named<host_state>(op.args[1]));
    return "void";
  }
  std::string set_host_state(const operation& op) {
    return to_string(host_->set_state(state_named<host_state>(op.args[1])));
  }
  std::string in_recovery(const operation&) { return text_of(host_->is_in_recovery()); }
  std::string scan_allowed(const operation&) {
    return text_of(pmgate::scsi::is_scan_allowed(host_->state()));
  }
  std::string set_busy(const operation& op) {
    host_->busy = static_cast<unsigned>(std::stoul(op.args[1]));
    return "void";
  }

  static const std::map<std::string, host_handler>& of_hosts() {
    using self = scsi_room;
    static const std::map<std::string, host_handler> table = {
        {"scsi_host_block", &self::block},
        {"scsi_host_unblock", &self::unblock},
        {"scsi_block_targets", &self::block_targets},
        {"scsi_target_unblock", &self::targets_unblock},
        {"scsi_block_requests", &self::block_requests},
        {"scsi_unblock_requests", &self::unblock_requests},
        {"force_host_state", &self::force_host_state},
        {"scsi_host_set_state", &self::set_host_state},
        {"scsi_host_in_recovery", &self::in_recovery},
        {"scsi_host_scan_allowed", &self::scan_allowed},
        {"set_busy", &self::set_busy},
    };
    return table;
  }

  recorder& events_;
  pmgate::pm::basic_work_queue<trace_platform> works_{"kblockd", pmgate::pm::work_queue_flags::none,
                                                      0};
  std::map<std::string, std::unique_ptr<traced_command>> commands_;
  std::vector<std::unique_ptr<target_type>> targets_;
  std::unique_ptr<traced_host> host_;
  std::map<std::string, std::unique_ptr<traced_device>> devices_;
  std::vector<traced_device*> in_order_;
};

}  // namespace replay

#endif  // PMGATE_TESTS_KERNEL_TRACE_REPLAY_SCSI_ROOM_HPP
