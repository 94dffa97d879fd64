// SPDX-License-Identifier: MIT
//
// two_units_other.cpp - the other of two units that use the same inline functions.
#include "two_units.hpp"

int use_pmgate_elsewhere();

int use_pmgate_elsewhere() { return use_pmgate(); }
