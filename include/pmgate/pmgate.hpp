// SPDX-License-Identifier: MIT
//
// pmgate/pmgate.hpp - everything, for those who want one include.
//
// No room needs it: include the header of what you use.
#ifndef PMGATE_PMGATE_HPP
#define PMGATE_PMGATE_HPP

#include <pmgate/block/freeze_gate.hpp>
#include <pmgate/block/quiesce_gate.hpp>
#include <pmgate/percpu_ref.hpp>
#include <pmgate/platform.hpp>
#include <pmgate/platform/portable.hpp>
#include <pmgate/platform/single.hpp>
#include <pmgate/status.hpp>
#include <pmgate/version.hpp>

#endif  // PMGATE_PMGATE_HPP
