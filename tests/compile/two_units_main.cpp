// SPDX-License-Identifier: MIT
//
// two_units_main.cpp - one of two units that use the same inline functions.
#include "two_units.hpp"

int use_pmgate_elsewhere();

int main() { return use_pmgate() == use_pmgate_elsewhere() ? 0 : 1; }
