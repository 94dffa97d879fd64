// SPDX-License-Identifier: MIT
//
// scsi_rig.hpp - a SCSI host whose driver does what the test says.
//
// The driver takes commands, or answers what it was told to; the test completes them.
// What the queues do asynchronously, and what they do after a while, happens in settle().
#ifndef PMGATE_TESTS_SUPPORT_SCSI_RIG_HPP
#define PMGATE_TESTS_SUPPORT_SCSI_RIG_HPP

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/host.hpp>

#include "deferred_platform.hpp"
#include "virtual_platform.hpp"

namespace testing {

using device = pmgate::scsi::basic_device<virtual_platform>;
using host = pmgate::scsi::basic_host<virtual_platform>;
using command = pmgate::scsi::basic_command<virtual_platform>;
using target = pmgate::scsi::basic_target<virtual_platform>;
using pmgate::scsi::device_state;
using pmgate::scsi::scsi_generation;

/// The driver: what it has, what it was offered, what it answers next.
class driver {
 public:
  static int queuecommand(host& adapter, command& item) noexcept {
    auto& self = *static_cast<driver*>(adapter.context());
    if (self.on_call) self.on_call(item);
    const std::scoped_lock lock(self.mutex_);
    ++self.calls_;
    if (!self.refusals.empty()) {
      const int refusal = self.refusals.front();
      self.refusals.erase(self.refusals.begin());
      return refusal;
    }
    self.taken_.push_back(&item);
    return 0;
  }
  /// How often queuecommand was called.
  [[nodiscard]] int calls() {
    const std::scoped_lock lock(mutex_);
    return calls_;
  }
  /// Commands it has.
  [[nodiscard]] std::size_t taken() {
    const std::scoped_lock lock(mutex_);
    return taken_.size();
  }
  [[nodiscard]] bool has(const command& item) {
    const std::scoped_lock lock(mutex_);
    return std::find(taken_.begin(), taken_.end(), &item) != taken_.end();
  }
  /// Waits until it has n commands.
  void await_taken(std::size_t n) {
    while (taken() < n) std::this_thread::yield();
  }
  /// The command it took first, which it has no more; null if there is none.
  command* take_one() {
    const std::scoped_lock lock(mutex_);
    if (taken_.empty()) return nullptr;
    command* const item = taken_.front();
    taken_.erase(taken_.begin());
    return item;
  }
  /// Completes the command it took first. Returns: false if it has none.
  bool complete_one(int result_word = 0) {
    command* const item = take_one();
    if (item == nullptr) return false;
    item->device().complete(*item, result_word);
    return true;
  }
  void complete_all() {
    while (complete_one()) {
    }
  }
  void forget(const command& item) {
    const std::scoped_lock lock(mutex_);
    std::erase(taken_, &item);
  }
  /// What it has it has no more: somebody else completes that.
  void forget_all() {
    const std::scoped_lock lock(mutex_);
    taken_.clear();
  }

  std::vector<int> refusals;                  ///< answers of the next calls
  std::function<void(command&)> on_call;      ///< to be set with one thread running

 private:
  std::mutex mutex_;
  std::vector<command*> taken_;
  int calls_ = 0;
};

/// Brings a device that is CREATED into a state, by legal changes.
inline void bring_to(device& which, device_state state) {
  if (state == device_state::created) return;
  if (state != device_state::created_block) (void)which.set_state(device_state::running);
  (void)which.set_state(state);
}

/// A host with devices behind one target.
struct scsi_rig {
  explicit scsi_rig(std::vector<device_state> states = {device_state::running},
                    scsi_generation generation = scsi_generation::v6_12, int can_queue = 0,
                    int host_can_queue = 0, bool single_lun = false)
      : adapter({&driver::queuecommand, &lld, generation, host_can_queue}),
        where(can_queue, single_lun) {
    for (const device_state state : states) {
      devices.push_back(std::make_unique<device>(adapter, where, works,
                                                 pmgate::scsi::device_limits{8, 16}));
      bring_to(*devices.back(), state);
    }
  }
  device& dev(std::size_t n = 0) { return *devices[n]; }
  std::vector<device_state> states() const {
    std::vector<device_state> all;
    for (const auto& each : devices) all.push_back(each->state());
    return all;
  }
  /// Runs what is to be run now.
  void run_works() {
    while (works.run_pending()) {
    }
  }
  /// Runs what is to be run, now and within the next tenth of a second.
  void settle() {
    for (int round = 0; round < 34; ++round) {
      while (works.run_pending()) {
      }
      virtual_clock::advance(3);
    }
  }
  /// Settles and completes until nothing is left.
  void finish_all() {
    do settle();
    while (lld.complete_one());
  }

  struct fresh_clock {
    fresh_clock() { virtual_clock::reset(); }
  } clock;
  misuse_log misuse;
  driver lld;
  pmgate::pm::basic_work_queue<virtual_platform> works{
      "kblockd", pmgate::pm::work_queue_flags::none, 0};
  host adapter;
  target where;
  std::vector<std::unique_ptr<device>> devices;
};

/// execute() on a thread of its own.
class issuer {
 public:
  explicit issuer(device& where,
                  pmgate::scsi::command_flags flags = pmgate::scsi::command_flags::none)
      : worker_([this, &where, flags] { entered_ = where.execute(item, flags); }) {}
  [[nodiscard]] bool done() const { return worker_.done(); }
  [[nodiscard]] bool is_blocked() const { return worker_.is_blocked(); }
  /// Waits for the end. Returns: what execute() returned.
  pmgate::status join() {
    worker_.join();
    return entered_;
  }
  command item;

 private:
  pmgate::status entered_ = pmgate::status::ok;
  worker worker_;
};

}  // namespace testing

#endif  // PMGATE_TESTS_SUPPORT_SCSI_RIG_HPP
