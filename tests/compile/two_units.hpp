// SPDX-License-Identifier: MIT
//
// two_units.hpp - makes the unit that includes it emit the fast path of a gate.
#ifndef PMGATE_TESTS_TWO_UNITS_HPP
#define PMGATE_TESTS_TWO_UNITS_HPP

#include <pmgate/pmgate.hpp>

inline int use_pmgate() {
  pmgate::freeze_gate gate;
  const bool before = gate.try_enter();
  if (before) gate.exit();
  gate.freeze();
  const bool during = gate.try_enter();
  gate.unfreeze();
  return before && !during ? 1 : 0;
}

#endif  // PMGATE_TESTS_TWO_UNITS_HPP
