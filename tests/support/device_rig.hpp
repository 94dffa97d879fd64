// SPDX-License-Identifier: MIT
//
// device_rig.hpp - devices that write down what is called, and fail when told to.
//
// The tree of most tests is T: R, V below R, N and S below V, h below S, t below h,
// d and r below t: a host bus with two adapters, and a disk and a CD-ROM on one of them.
#ifndef PMGATE_TESTS_SUPPORT_DEVICE_RIG_HPP
#define PMGATE_TESTS_SUPPORT_DEVICE_RIG_HPP

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <pmgate/pm/device_tree.hpp>

namespace testing {

using pmgate::pm::event;
using pmgate::pm::phase;

/// What was called, in order: "d:suspend".
class call_log {
 public:
  void add(const std::string& entry) {
    const std::scoped_lock lock(mutex_);
    entries_.push_back(entry);
  }
  /// The devices whose callback of that name was called: "r d t".
  std::string of(const std::string& callback) {
    const std::scoped_lock lock(mutex_);
    std::string found;
    for (const std::string& entry : entries_) {
      const auto colon = entry.find(':');
      if (entry.substr(colon + 1) != callback) continue;
      found += (found.empty() ? "" : " ") + entry.substr(0, colon);
    }
    return found;
  }
  /// The callbacks of a device: "prepare suspend complete".
  std::string on(const std::string& device) {
    const std::scoped_lock lock(mutex_);
    std::string found;
    for (const std::string& entry : entries_) {
      const auto colon = entry.find(':');
      if (entry.substr(0, colon) != device) continue;
      found += (found.empty() ? "" : " ") + entry.substr(colon + 1);
    }
    return found;
  }
  std::size_t size() {
    const std::scoped_lock lock(mutex_);
    return entries_.size();
  }
  void clear() {
    const std::scoped_lock lock(mutex_);
    entries_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> entries_;
};

/// A device whose callbacks are logged. Each does what `then` says, by name, first.
template <class P>
class logged_device {
 public:
  using device_type = pmgate::pm::basic_device<P>;
  using action = std::function<pmgate::status()>;

  logged_device(const char* name, logged_device* parent, call_log& log, bool with_callbacks = true)
      : log_(log),
        device(name, parent != nullptr ? &parent->device : nullptr,
               {.driver = with_callbacks ? &table : nullptr}, this) {}

  /// The next and all later calls of that callback fail with -EIO.
  void fail(const char* callback, pmgate::status with = pmgate::status::io_error) {
    then[callback] = [with] { return with; };
  }

 private:
  call_log& log_;

 public:
  device_type device;
  std::map<std::string, action> then;

 private:
  pmgate::status called(const char* callback) {
    log_.add(std::string(device.name()) + ":" + callback);
    const auto found = then.find(callback);
    return found != then.end() ? found->second() : pmgate::status::ok;
  }
  template <event What, phase At>
  static pmgate::status hit(device_type& it) noexcept {
    return static_cast<logged_device*>(it.context())->called(callback_name(What, At));
  }
  static void completed(device_type& it) noexcept {
    (void)static_cast<logged_device*>(it.context())->called("complete");
  }

 public:
  static constexpr pmgate::pm::basic_callbacks<P> table = {
      .prepare = &hit<event::suspend, phase::prepare>,
      .suspend = &hit<event::suspend, phase::suspend>,
      .suspend_late = &hit<event::suspend, phase::suspend_late>,
      .suspend_noirq = &hit<event::suspend, phase::suspend_noirq>,
      .freeze = &hit<event::freeze, phase::suspend>,
      .freeze_late = &hit<event::freeze, phase::suspend_late>,
      .freeze_noirq = &hit<event::freeze, phase::suspend_noirq>,
      .poweroff = &hit<event::hibernate, phase::suspend>,
      .poweroff_late = &hit<event::hibernate, phase::suspend_late>,
      .poweroff_noirq = &hit<event::hibernate, phase::suspend_noirq>,
      .resume_noirq = &hit<event::resume, phase::resume_noirq>,
      .resume_early = &hit<event::resume, phase::resume_early>,
      .resume = &hit<event::resume, phase::resume>,
      .thaw_noirq = &hit<event::thaw, phase::resume_noirq>,
      .thaw_early = &hit<event::thaw, phase::resume_early>,
      .thaw = &hit<event::thaw, phase::resume>,
      .restore_noirq = &hit<event::restore, phase::resume_noirq>,
      .restore_early = &hit<event::restore, phase::resume_early>,
      .restore = &hit<event::restore, phase::resume>,
      .complete = &completed,
  };
};

/// The tree T. The registry it is added to is the caller's.
template <class P>
struct tree_of_eight {
  using node = logged_device<P>;
  explicit tree_of_eight(call_log& log)
      : R("R", nullptr, log),
        V("V", &R, log),
        N("N", &V, log),
        S("S", &V, log),
        h("h", &S, log),
        t("t", &h, log),
        d("d", &t, log),
        r("r", &t, log) {}
  std::vector<node*> all() { return {&R, &V, &N, &S, &h, &t, &d, &r}; }
  void add_to(pmgate::pm::basic_device_tree<P>& tree) {
    for (node* each : all()) REQUIRE(tree.add(each->device) == pmgate::status::ok);
  }
  void remove_from(pmgate::pm::basic_device_tree<P>& tree) {
    for (node* each : {&r, &d, &t, &h, &S, &N, &V, &R}) {
      REQUIRE(tree.remove(each->device) == pmgate::status::ok);
    }
  }
  node R, V, N, S, h, t, d, r;
};

/// All phases down; on failure what the caller has to undo is undone.
template <class P>
pmgate::status go_down(pmgate::pm::basic_device_tree<P>& tree, event what) {
  pmgate::status result = tree.suspend_start(what);
  if (result == pmgate::status::ok) result = tree.suspend_end(what);
  if (result != pmgate::status::ok) tree.resume_end(undo_of(what));
  return result;
}
template <class P>
void come_up(pmgate::pm::basic_device_tree<P>& tree, event what) {
  tree.resume_start(what);
  tree.resume_end(what);
}

}  // namespace testing

#endif  // PMGATE_TESTS_SUPPORT_DEVICE_RIG_HPP
