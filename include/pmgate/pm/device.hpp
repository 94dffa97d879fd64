// SPDX-License-Identifier: MIT
//
// pmgate/pm/device.hpp - a device, what is called when it sleeps, and whom it needs.
//
// Devices and links lie in their owners and are linked through themselves: nothing
// is allocated. The one rule to know: a device goes down before its parent and its
// suppliers, and comes up after them. Who does it is in pm/device_tree.hpp, which a
// program that has devices includes.
//
// Counterpart: struct device, struct dev_pm_ops and struct device_link of Linux
// (semantics only).
#ifndef PMGATE_PM_DEVICE_HPP
#define PMGATE_PM_DEVICE_HPP

#include <atomic>
#include <cstdint>

#include <pmgate/detail/pm/hooked_list.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/pm/work.hpp>
#include <pmgate/status.hpp>

namespace pmgate {
namespace detail {

template <platform Platform>
class device_graph;
template <platform Platform>
class callback_watch;
template <platform Platform>
class device_walk;

}  // namespace detail

namespace pm {

/// What happens to memory that belongs to a device but lies with its owner.
enum class image_move : std::uint8_t {
  save,      ///< it is as the image has it
  put_back,  ///< it is to be as the image has it
  vanish,    ///< it is overwritten: nothing has to be undone any more
};

template <platform Platform>
class basic_device;
template <platform Platform>
class basic_device_link;
template <platform Platform>
class basic_device_registry;
template <platform Platform>
class basic_device_tree;

/// What prepare says of a device that may stay runtime-suspended throughout a suspend.
///
/// Kernel: a positive value from ->prepare().
inline constexpr status may_stay_suspended = static_cast<status>(1);

/// The callbacks of a driver, a type, a bus: any of them may be missing.
///
/// A missing callback counts as success. A callback that fails has undone what it did:
/// its counterpart on the way up is not called.
/// Threads:  one callback of a device at a time; of an asynchronous device on a worker.
/// Blocking: they may.  Kernel: struct dev_pm_ops.
template <platform Platform>
struct basic_callbacks {
  using function = status (*)(basic_device<Platform>&) noexcept;

  /// May return `again`, to be asked once more, or `may_stay_suspended`.
  function prepare = nullptr;
  function suspend = nullptr, suspend_late = nullptr, suspend_noirq = nullptr;
  function freeze = nullptr, freeze_late = nullptr, freeze_noirq = nullptr;
  function poweroff = nullptr, poweroff_late = nullptr, poweroff_noirq = nullptr;
  function resume_noirq = nullptr, resume_early = nullptr, resume = nullptr;
  function thaw_noirq = nullptr, thaw_early = nullptr, thaw = nullptr;
  function restore_noirq = nullptr, restore_early = nullptr, restore = nullptr;
  void (*complete)(basic_device<Platform>&) noexcept = nullptr;

  /// The callback that the event selects between prepare and complete; null if none.
  [[nodiscard]] constexpr function find(event what, phase at) const noexcept {
    switch (group_of(what)) {
      case callback_group::suspend: return down(at, suspend, suspend_late, suspend_noirq);
      case callback_group::freeze: return down(at, freeze, freeze_late, freeze_noirq);
      case callback_group::poweroff: return down(at, poweroff, poweroff_late, poweroff_noirq);
      case callback_group::resume: return up(at, resume_noirq, resume_early, resume);
      case callback_group::thaw: return up(at, thaw_noirq, thaw_early, thaw);
      case callback_group::restore: return up(at, restore_noirq, restore_early, restore);
    }
    return nullptr;
  }
  /// True if there is no callback at all.
  [[nodiscard]] constexpr bool is_empty() const noexcept {
    for (const event what : {event::suspend, event::freeze, event::hibernate, event::resume,
                             event::thaw, event::restore}) {
      for (unsigned at = 0; at < phase_count; ++at) {
        if (find(what, static_cast<phase>(at)) != nullptr) return false;
      }
    }
    return prepare == nullptr && complete == nullptr;
  }

 private:
  static constexpr function down(phase at, function main, function late, function noirq) noexcept {
    return at == phase::suspend         ? main
           : at == phase::suspend_late  ? late
           : at == phase::suspend_noirq ? noirq
                                        : nullptr;
  }
  static constexpr function up(phase at, function noirq, function early, function main) noexcept {
    return at == phase::resume_noirq   ? noirq
           : at == phase::resume_early ? early
           : at == phase::resume       ? main
                                       : nullptr;
  }
};

/// Who may supply the callbacks of a device.
///
/// The first of domain, type, class and bus that is there is asked; what it lacks the
/// driver is asked for. One is called: a bus calls the driver's callback itself.
template <platform Platform>
struct basic_callback_sources {
  using table = const basic_callbacks<Platform>*;
  table driver = nullptr;
  table domain = nullptr;
  table type = nullptr;
  table device_class = nullptr;
  table bus = nullptr;

  [[nodiscard]] constexpr table first() const noexcept {
    return domain != nullptr         ? domain
           : type != nullptr         ? type
           : device_class != nullptr ? device_class
                                     : bus;
  }
  /// What of(table) says of that one, else of the driver; null if neither has it.
  template <class Of>
  [[nodiscard]] constexpr auto find(Of of) const noexcept {
    const table chosen = first();
    const auto found = chosen != nullptr ? of(*chosen) : decltype(of(*chosen)){};
    return found != nullptr || driver == nullptr ? found : of(*driver);
  }
  /// True if nothing is ever called.
  [[nodiscard]] constexpr bool is_empty() const noexcept {
    for (const table each : {domain, type, device_class, bus, driver}) {
      if (each != nullptr && !each->is_empty()) return false;
    }
    return true;
  }
};

/// What system sleep tells the runtime PM of a device. All five are there.
///
/// Each hold is released once, each disable enabled once.
/// Threads:  of one device one at a time; on a worker if the device is asynchronous.
/// Blocking: hold and disable, for a step of runtime PM that is under way.
struct runtime_hooks {
  /// prepare: from now on no runtime suspend begins.  Kernel: pm_runtime_get_noresume() and
  /// pm_runtime_barrier().
  void (*hold)(void* context) noexcept;
  void (*release)(void* context) noexcept;  ///< behind complete.  Kernel: pm_runtime_put()
  /// suspend_late: nor does a runtime resume.  Kernel: __pm_runtime_disable().
  void (*disable)(void* context) noexcept;
  void (*enable)(void* context) noexcept;  ///< resume_early.  Kernel: pm_runtime_enable()
  /// Asked while disabled.  Kernel: pm_runtime_status_suspended().
  bool (*is_suspended)(void* context) noexcept;
};

/// A device: a place in the tree, its callbacks, and how far down it is.
///
/// Lifetime: neither copyable nor movable; outlives its children. To be taken out of
///           the tree before it is destroyed.
/// Threads:  settings before a transition; queries from any thread.
/// Blocking: no.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_device {
 public:
  using callbacks = basic_callbacks<Platform>;
  using sources = basic_callback_sources<Platform>;
  /// Saves the memory of the device's owner for an image, or puts it back from there.
  using image_fn = void (*)(basic_device&, image_move) noexcept;

  /// The name is for reports and is not copied; neither are the tables.
  explicit basic_device(const char* name, basic_device* parent = nullptr, sources from = {},
                        void* context = nullptr) noexcept
      : name_(name), parent_(parent), sources_(from), context_(context) {}
  ~basic_device() {
    if (registry_ != nullptr) Platform::misuse("device destroyed while in a tree");
  }
  basic_device(const basic_device&) = delete;
  basic_device& operator=(const basic_device&) = delete;

  [[nodiscard]] const char* name() const noexcept { return name_; }
  [[nodiscard]] basic_device* parent() const noexcept { return parent_; }
  [[nodiscard]] void* context() const noexcept { return context_; }

  // -- settings

  /// Its callbacks may run beside those of its siblings.  Kernel: device_enable_async_suspend().
  void set_async(bool on) noexcept { set(async_bit, on); }
  /// Its runtime PM, which is told, and asked whether the device sleeps; null: there is
  /// none. See block/runtime_pm_binding.hpp.
  void set_runtime_hooks(const runtime_hooks* hooks, void* context) noexcept {
    if (is(runtime_held_bit | runtime_off_bit)) {
      Platform::misuse("runtime PM of a device exchanged while system sleep holds it");
      if (hooks != nullptr) return;
    }
    runtime_ = hooks;
    runtime_context_ = context;
  }
  /// Without hooks: it sleeps already, a suspend may leave it alone.
  ///
  /// Kernel: pm_runtime_set_suspended().
  void set_runtime_suspended(bool on) noexcept { set(runtime_suspended_bit, on); }
  /// It may wake the system, so a suspend never leaves it alone.  Kernel: device_may_wakeup().
  void set_may_wakeup(bool on) noexcept { set(may_wakeup_bit, on); }
  /// For hibernation: what else in memory belongs to the device, such as its gates. It
  /// waits for nobody and leaves the hardware alone; children are told before parents.
  void set_image_function(image_fn mover) noexcept { image_ = mover; }

  // -- queries; what they say may be over when they return

  [[nodiscard]] bool is_async() const noexcept { return is(async_bit); }
  [[nodiscard]] bool is_runtime_suspended() const noexcept {
    return runtime_ != nullptr ? runtime_->is_suspended(runtime_context_)
                               : is(runtime_suspended_bit);
  }
  /// From its prepare to its resume, or to its complete if it had no turn in the main phase:
  /// nothing may be registered below it.
  [[nodiscard]] bool is_prepared() const noexcept { return is(prepared_bit); }
  /// Its callback of that phase, or none, has succeeded and is not undone yet.
  [[nodiscard]] bool is_suspended() const noexcept { return is(suspended_bit); }
  [[nodiscard]] bool is_late_suspended() const noexcept { return is(late_bit); }
  [[nodiscard]] bool is_noirq_suspended() const noexcept { return is(noirq_bit); }
  /// A suspend leaves it alone, unless somebody below it does suspend.
  [[nodiscard]] bool is_direct_complete() const noexcept { return is(direct_bit); }
  /// Runtime PM may not suspend it: from prepare to complete.
  [[nodiscard]] bool holds_runtime_pm() const noexcept { return is(runtime_held_bit); }
  /// Runtime PM is off altogether: from its late phase to its early phase; if it is left
  /// alone, from its main phase to its main phase.
  [[nodiscard]] bool is_runtime_disabled() const noexcept { return is(runtime_off_bit); }

 private:
  friend class detail::device_graph<Platform>;
  friend class detail::callback_watch<Platform>;
  friend class detail::device_walk<Platform>;
  friend class basic_device_registry<Platform>;
  friend class basic_device_tree<Platform>;
  friend class basic_device_link<Platform>;
  using link = basic_device_link<Platform>;

  static constexpr std::uint32_t async_bit = 1;
  static constexpr std::uint32_t runtime_suspended_bit = 2;
  static constexpr std::uint32_t may_wakeup_bit = 4;
  static constexpr std::uint32_t settings = 7;
  static constexpr std::uint32_t prepared_bit = 8;
  static constexpr std::uint32_t suspended_bit = 16;
  static constexpr std::uint32_t late_bit = 32;
  static constexpr std::uint32_t noirq_bit = 64;
  static constexpr std::uint32_t direct_bit = 128;
  static constexpr std::uint32_t runtime_held_bit = 256;
  static constexpr std::uint32_t runtime_off_bit = 512;
  static constexpr std::uint32_t started_bit = 1024;  // asynchronously, in this phase

  bool is(std::uint32_t bit) const noexcept {
    // [power.read] acquire: pairs with [power.set] and [power.clear]; the handlers of a
    // phase are ordered by who waits for whom, others get a hint.
    return (power_.load(std::memory_order_acquire) & bit) != 0;
  }
  void set(std::uint32_t bit, bool on) noexcept {
    if (on) {
      // [power.set] release: pairs with [power.read].
      (void)power_.fetch_or(bit, std::memory_order_release);
    } else {
      // [power.clear] release: as [power.set].
      (void)power_.fetch_and(~bit, std::memory_order_release);
    }
  }

  void hold_runtime(bool on) noexcept {
    if (is(runtime_held_bit) == on) return;
    set(runtime_held_bit, on);
    if (runtime_ != nullptr) (on ? runtime_->hold : runtime_->release)(runtime_context_);
  }
  void disable_runtime(bool on) noexcept {
    if (is(runtime_off_bit) == on) return;
    set(runtime_off_bit, on);
    if (runtime_ != nullptr) (on ? runtime_->disable : runtime_->enable)(runtime_context_);
  }

  const char* name_;
  basic_device* parent_;
  sources sources_;
  void* context_;
  image_fn image_ = nullptr;
  const runtime_hooks* runtime_ = nullptr;
  void* runtime_context_ = nullptr;
  typename Platform::template atomic<std::uint32_t> power_{0};
  typename Platform::wait_word done_{1};  // 0 while its handler of this phase has to run

  // The tree's, under its lock.
  basic_device_registry<Platform>* registry_ = nullptr;
  std::uint8_t list_ = 0;
  detail::list_hook<basic_device> entry_;    // in one of the tree's lists
  detail::list_hook<basic_device> sibling_;  // in the parent's list
  detail::hooked_list<basic_device, &basic_device::sibling_> children_;
  detail::list_hook<basic_device> overdue_;  // among those whose callback runs
  typename Platform::time_point began_{};
  event in_event_ = event::suspend;
  phase in_phase_ = phase::prepare;
  bool reported_ = false;

  // Links, and the walk over whoever depends on this device.
  link* consumers_ = nullptr;  // the newest first
  link* suppliers_ = nullptr;
  basic_device* walk_from_ = nullptr;
  basic_device* walk_child_ = nullptr;
  link* walk_link_ = nullptr;
  basic_device* walk_next_ = nullptr;
  std::uint32_t walk_ = 0;

  std::uint32_t image_power_ = 0;  // what the image says
  std::uint8_t image_list_ = 0;
  basic_work<Platform> async_work_{&detail::device_walk<Platform>::run_async, this};
};

/// What a link is for.
enum class link_kind : std::uint8_t {
  order,            ///< the consumer sleeps first and wakes up last
  sync_state_only,  ///< orders nothing
};

/// "The consumer needs the supplier", besides parentage.
///
/// Lifetime: neither copyable nor movable; to be taken out of the tree before it and
///           its two devices are destroyed.
/// Threads:  set_dormant() before a transition.
/// Misuse:   goes to Platform::misuse() and has no effect.
/// Kernel:   struct device_link.
template <platform Platform>
class basic_device_link {
 public:
  using device = basic_device<Platform>;

  explicit basic_device_link(link_kind kind = link_kind::order) noexcept : kind_(kind) {}
  ~basic_device_link() {
    if (consumer_ != nullptr) Platform::misuse("device link destroyed while in a tree");
  }
  basic_device_link(const basic_device_link&) = delete;
  basic_device_link& operator=(const basic_device_link&) = delete;

  /// While dormant nobody waits on account of the link; the order of the list stays.
  ///
  /// Kernel: DL_STATE_DORMANT.
  void set_dormant(bool on) noexcept { dormant_ = on; }
  [[nodiscard]] bool is_dormant() const noexcept { return dormant_; }
  [[nodiscard]] device* consumer() const noexcept { return consumer_; }
  [[nodiscard]] device* supplier() const noexcept { return supplier_; }

 private:
  friend class detail::device_graph<Platform>;
  friend class detail::device_walk<Platform>;
  friend class basic_device_registry<Platform>;
  friend class basic_device_tree<Platform>;

  bool orders() const noexcept { return kind_ == link_kind::order; }
  bool is_waited_for() const noexcept { return orders() && !dormant_; }

  const link_kind kind_;
  bool dormant_ = false;
  device* consumer_ = nullptr;
  device* supplier_ = nullptr;
  basic_device_link* next_consumer_ = nullptr;  // of the same supplier, the next older
  basic_device_link* next_supplier_ = nullptr;  // of the same consumer
};

using callbacks = basic_callbacks<default_platform>;
using callback_sources = basic_callback_sources<default_platform>;
using device = basic_device<default_platform>;
using device_link = basic_device_link<default_platform>;

}  // namespace pm
}  // namespace pmgate

#endif  // PMGATE_PM_DEVICE_HPP
