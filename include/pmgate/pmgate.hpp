// SPDX-License-Identifier: MIT
//
// pmgate/pmgate.hpp - everything but the simulator and the checked platform, for those who
// want one include.
//
// No room needs it: include the header of what you use.
#ifndef PMGATE_PMGATE_HPP
#define PMGATE_PMGATE_HPP

#include <pmgate/block/awaitable.hpp>
#include <pmgate/block/dump.hpp>
#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/gate_group.hpp>
#include <pmgate/block/gate_hints.hpp>
#include <pmgate/block/gate_waiter.hpp>
#include <pmgate/block/many_gates.hpp>
#include <pmgate/block/queue_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/block/request.hpp>
#include <pmgate/block/request_queue.hpp>
#include <pmgate/block/request_waiter.hpp>
#include <pmgate/block/runtime_pm.hpp>
#include <pmgate/block/runtime_pm_binding.hpp>
#include <pmgate/block/tag_set.hpp>
#include <pmgate/percpu_ref.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>
#include <pmgate/pm/device_tree.hpp>
#include <pmgate/pm/disk_events.hpp>
#include <pmgate/pm/freezer.hpp>
#include <pmgate/pm/hibernation.hpp>
#include <pmgate/pm/scope.hpp>
#include <pmgate/pm/suspend.hpp>
#include <pmgate/pm/work_queue.hpp>
#include <pmgate/scsi/bus_pm.hpp>
#include <pmgate/scsi/device.hpp>
#include <pmgate/scsi/eh.hpp>
#include <pmgate/scsi/host.hpp>
#include <pmgate/scsi/pause.hpp>
#include <pmgate/scsi/policies.hpp>
#include <pmgate/scsi/state.hpp>
#include <pmgate/scsi/sysfs.hpp>
#include <pmgate/status.hpp>
#include <pmgate/version.hpp>
#include <pmgate/vmbus/channel.hpp>
#include <pmgate/vmbus/request_ids.hpp>
#include <pmgate/vmbus/ring.hpp>

#endif  // PMGATE_PMGATE_HPP
