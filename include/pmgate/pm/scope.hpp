// SPDX-License-Identifier: MIT
//
// pmgate/pm/scope.hpp - a device whose sleep is a list of gates: these go down in this
// phase, in this order.
//
// Each gate is one line. They go down in the order in which they are declared and up in
// the opposite one; if one refuses, those of this phase that are down go up again, and the
// device says no. The one rule to know: the class gate belongs into the main phase and
// comes first, drain and teardown into noirq and come last; on the way up the driver is
// open before its class is, because the tree takes the phases that way.
//
// Counterpart: none in the kernel; what each driver writes by hand there.
#ifndef PMGATE_PM_SCOPE_HPP
#define PMGATE_PM_SCOPE_HPP

#include <cstdint>

#include <pmgate/detail/pm/gate_calls.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/pm/device.hpp>
#include <pmgate/pm/device_tree.hpp>
#include <pmgate/pm/event.hpp>
#include <pmgate/status.hpp>

namespace pmgate::pm {

/// The transitions that a gate takes part in; combine with |.
enum class sleep_kinds : std::uint8_t {
  suspend = 1,    ///< event::suspend
  freeze = 2,     ///< event::freeze and event::quiesce
  poweroff = 4,   ///< event::hibernate
  hibernate = 6,  ///< the last two
  all = 7,
};
[[nodiscard]] constexpr sleep_kinds operator|(sleep_kinds a, sleep_kinds b) noexcept {
  return static_cast<sleep_kinds>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}

/// A device of a tree, and the gates that it closes.
///
/// Lifetime: neither copyable nor movable. In the tree from construction to destruction;
///           its gates are destroyed before it, parents after their children.
/// Threads:  gates are declared before a transition; the rest as basic_device.
/// Blocking: construction no; its callbacks, as long as its gates do.
/// Images:   gates are memory. With the image each is as down as it was, without a wait and
///           without a call of suspend(), resume(), quiesce() of a device, or a function:
///           no driver reaches the hardware between the jump and RESTORE. Something with
///           suspend() or quiesce() that has to put back memory of its own, as scsi::device
///           has, has a `void keep_image(image_move) noexcept`.
///           Whoever waits at a gate of a kernel that vanished gets no_device.
/// Misuse:   goes to Platform::misuse() and has no effect.
template <platform Platform>
class basic_scope {
 public:
  class gate;
  using tree = basic_device_tree<Platform>;
  using duration = typename Platform::duration;

  /// The name is for reports and is not copied.
  explicit basic_scope(tree& where, const char* name, basic_scope* parent = nullptr) noexcept;
  ~basic_scope();
  basic_scope(const basic_scope&) = delete;
  basic_scope& operator=(const basic_scope&) = delete;

  /// Whether it came into the tree: what basic_device_tree::add() said.
  [[nodiscard]] status registration() const noexcept { return registered_; }

  /// Gates that have a deadline form give up after that time each, and the device refuses
  /// with timed_out; none at first. Without one: gate_group, suspend(), the two functions.
  void set_drain_limit(duration limit) noexcept { limit_ = limit; }

  /// A suspend may leave its gates alone while its runtime PM sleeps; false at first.
  ///
  /// Kernel: a positive value from ->prepare(). See basic_device::is_direct_complete().
  void set_may_stay_suspended(bool on) noexcept { may_stay_ = on; }

  /// For links and settings; its image function is the scope's.
  [[nodiscard]] basic_device<Platform>& device() noexcept { return device_; }

 private:
  using device_type = basic_device<Platform>;

  static basic_scope& of(device_type& item) noexcept {
    return *static_cast<basic_scope*>(item.context());
  }
  template <phase At, sleep_kinds Kind>
  static status go_down(device_type& item) noexcept {
    return of(item).close_gates(At, Kind);
  }
  template <phase Opposite>
  static status come_up(device_type& item) noexcept {
    return of(item).open_gates(Opposite, nullptr);
  }
  static status prepare(device_type& item) noexcept {
    return of(item).may_stay_ ? may_stay_suspended : status::ok;
  }
  static void keep_image(device_type& item, image_move what) noexcept;

  status close_gates(phase at, sleep_kinds kind) noexcept;
  status open_gates(phase at, gate* up_to) noexcept;

  static constexpr basic_callbacks<Platform> table = {
      .prepare = &prepare,
      .suspend = &go_down<phase::suspend, sleep_kinds::suspend>,
      .suspend_late = &go_down<phase::suspend_late, sleep_kinds::suspend>,
      .suspend_noirq = &go_down<phase::suspend_noirq, sleep_kinds::suspend>,
      .freeze = &go_down<phase::suspend, sleep_kinds::freeze>,
      .freeze_late = &go_down<phase::suspend_late, sleep_kinds::freeze>,
      .freeze_noirq = &go_down<phase::suspend_noirq, sleep_kinds::freeze>,
      .poweroff = &go_down<phase::suspend, sleep_kinds::poweroff>,
      .poweroff_late = &go_down<phase::suspend_late, sleep_kinds::poweroff>,
      .poweroff_noirq = &go_down<phase::suspend_noirq, sleep_kinds::poweroff>,
      .resume_noirq = &come_up<phase::suspend_noirq>,
      .resume_early = &come_up<phase::suspend_late>,
      .resume = &come_up<phase::suspend>,
      .thaw_noirq = &come_up<phase::suspend_noirq>,
      .thaw_early = &come_up<phase::suspend_late>,
      .thaw = &come_up<phase::suspend>,
      .restore_noirq = &come_up<phase::suspend_noirq>,
      .restore_early = &come_up<phase::suspend_late>,
      .restore = &come_up<phase::suspend>,
  };

  tree& tree_;
  device_type device_;
  status registered_ = status::ok;
  duration limit_{};
  bool may_stay_ = false;
  gate* first_ = nullptr;
  gate* last_ = nullptr;
};

/// One gate of a scope.
///
/// What it stands for is a gate that freezes (freeze_start, freeze_wait, unfreeze), one
/// that quiesces (quiesce_nowait, wait_quiesced, unquiesce), something with quiesce() and
/// resume(), or suspend() and resume(): the first of these that fits. Or pm_only(gate),
/// for an entry that power management passes; dispatch_of(queue), for the dispatch of
/// something that freezes as well; or two functions.
///
/// Lifetime: neither copyable nor movable; not destroyed while it is down.
template <platform Platform>
class basic_scope<Platform>::gate {
 public:
  /// A function that takes it down, and one that takes it up again; see above.
  using move_fn = status (*)(void* context) noexcept;

  template <class Gate>
  requires detail::gate_like<Gate> gate(basic_scope& owner, phase at, Gate& behind,
                                        sleep_kinds kinds = sleep_kinds::all)
  noexcept : gate(owner, at, kinds, &behind, &detail::gate_calls_of<Gate, Platform>) {}
  template <class Gate>
  gate(basic_scope& owner, phase at, pm_only<Gate> behind,
       sleep_kinds kinds = sleep_kinds::all) noexcept
      : gate(owner, at, kinds, &behind.gate, &detail::gate_calls_of<pm_only<Gate>, Platform>) {}
  template <class Gate>
  gate(basic_scope& owner, phase at, dispatch_of<Gate> behind,
       sleep_kinds kinds = sleep_kinds::all) noexcept
      : gate(owner, at, kinds, &behind.gate, &detail::gate_calls_of<dispatch_of<Gate>, Platform>) {}
  gate(basic_scope& owner, phase at, move_fn down, move_fn up, void* context,
       sleep_kinds kinds = sleep_kinds::all) noexcept
      : gate(owner, at, kinds, context, nullptr) {
    down_ = down;
    up_ = up;
  }
  ~gate();
  gate(const gate&) = delete;
  gate& operator=(const gate&) = delete;

  [[nodiscard]] bool is_down() const noexcept { return is_down_; }

 private:
  friend class basic_scope;
  using calls_type = detail::gate_calls<Platform>;

  gate(basic_scope& owner, phase at, sleep_kinds kinds, void* behind,
       const calls_type* calls) noexcept;
  bool takes_part(phase at, sleep_kinds kind) const noexcept {
    return at == at_ && (static_cast<unsigned>(kinds_) & static_cast<unsigned>(kind)) != 0;
  }
  status close() noexcept;
  status open() noexcept;
  void keep_image(image_move what) noexcept;

  basic_scope& scope_;
  const phase at_;
  const sleep_kinds kinds_;
  void* behind_;
  const calls_type* calls_;  // null: the two functions
  move_fn down_ = nullptr;
  move_fn up_ = nullptr;
  bool is_down_ = false;
  bool image_down_ = false;
  gate* next_ = nullptr;
  gate* previous_ = nullptr;
};

using scope = basic_scope<default_platform>;

template <platform Platform>
basic_scope<Platform>::basic_scope(tree& where, const char* name, basic_scope* parent) noexcept
    : tree_(where),
      device_(name, parent != nullptr ? &parent->device_ : nullptr, {.driver = &table}, this) {
  device_.set_image_function(&keep_image);
  registered_ = tree_.add(device_);
}

template <platform Platform>
basic_scope<Platform>::~basic_scope() {
  if (first_ != nullptr) Platform::misuse("scope destroyed before its gates");
  if (registered_ == status::ok) (void)tree_.remove(device_);
}

template <platform Platform>
basic_scope<Platform>::gate::gate(basic_scope& owner, phase at, sleep_kinds kinds, void* behind,
                                  const calls_type* calls) noexcept
    : scope_(owner), at_(at), kinds_(kinds), behind_(behind), calls_(calls) {
  if (at != phase::suspend && at != phase::suspend_late && at != phase::suspend_noirq) {
    Platform::misuse("a gate goes down in suspend, suspend_late or suspend_noirq");
  }
  previous_ = owner.last_;
  (previous_ != nullptr ? previous_->next_ : owner.first_) = this;
  owner.last_ = this;
}

template <platform Platform>
basic_scope<Platform>::gate::~gate() {
  if (is_down_) Platform::misuse("gate of a scope destroyed while it is down");
  (previous_ != nullptr ? previous_->next_ : scope_.first_) = next_;
  (next_ != nullptr ? next_->previous_ : scope_.last_) = previous_;
}

template <platform Platform>
status basic_scope<Platform>::gate::close() noexcept {
  const duration* const limit = duration{} < scope_.limit_ ? &scope_.limit_ : nullptr;
  const status result = calls_ != nullptr ? calls_->close(behind_, limit) : down_(behind_);
  is_down_ = result == status::ok;
  return result;
}

template <platform Platform>
status basic_scope<Platform>::gate::open() noexcept {
  is_down_ = false;
  return calls_ != nullptr ? calls_->open(behind_) : up_(behind_);
}

/// As in the image, or gone: no function is called, nobody is waited for.
template <platform Platform>
void basic_scope<Platform>::gate::keep_image(image_move what) noexcept {
  if (what == image_move::save) image_down_ = is_down_;
  const bool to_be = what != image_move::vanish && image_down_;
  is_down_ = calls_ != nullptr ? calls_->keep_image(behind_, what, is_down_, to_be) : to_be;
}

/// The device that refuses has undone itself: whatever went down here is up again.
template <platform Platform>
status basic_scope<Platform>::close_gates(phase at, sleep_kinds kind) noexcept {
  for (gate* each = first_; each != nullptr; each = each->next_) {
    if (each->is_down_ || !each->takes_part(at, kind)) continue;
    const status result = each->close();
    if (result == status::ok) continue;
    (void)open_gates(at, each);
    return result;
  }
  return status::ok;
}

/// From the last one, or the one before `up_to`. An error does not stop it; the first
/// one is what is told.
template <platform Platform>
status basic_scope<Platform>::open_gates(phase at, gate* up_to) noexcept {
  status result = status::ok;
  for (gate* each = up_to != nullptr ? up_to->previous_ : last_; each != nullptr;
       each = each->previous_) {
    if (!each->is_down_ || each->at_ != at) continue;
    const status opened = each->open();
    if (result == status::ok) result = opened;
  }
  return result;
}

template <platform Platform>
void basic_scope<Platform>::keep_image(device_type& item, image_move what) noexcept {
  for (gate* each = of(item).first_; each != nullptr; each = each->next_) each->keep_image(what);
}

}  // namespace pmgate::pm

#endif  // PMGATE_PM_SCOPE_HPP
