// SPDX-License-Identifier: MIT
//
// pmgate/block/checked_gates.hpp - the freeze gate and the quiesce gate over
// checked_platform.
//
// They have the members of the plain ones; those that matter to a report take the place
// of the call as a last argument, which nobody has to give. What is built on gates, such
// as basic_request_queue<checked_platform<P>>, is checked by its platform alone.
//
// Counterpart: the lockdep maps of struct request_queue.
//
// Hosted: <mutex> <string>, by way of platform/checked.hpp
#ifndef PMGATE_BLOCK_CHECKED_GATES_HPP
#define PMGATE_BLOCK_CHECKED_GATES_HPP

#include <pmgate/block/gate_hints.hpp>
#include <pmgate/detail/block/checked_freeze_gate.hpp>
#include <pmgate/detail/block/checked_quiesce_gate.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/platform/checked.hpp>

namespace pmgate {

using default_checked_platform = checked_platform<default_platform>;
using checked_freeze_gate = basic_freeze_gate<default_checked_platform>;
using checked_quiesce_gate = basic_quiesce_gate<default_checked_platform>;

}  // namespace pmgate

#endif  // PMGATE_BLOCK_CHECKED_GATES_HPP
