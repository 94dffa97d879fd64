// SPDX-License-Identifier: MIT
//
// main.cpp - the smallest program that uses the library.
#include <cstdio>

#include <pmgate/pmgate.hpp>

int main() {
  pmgate::freeze_gate gate;
  const bool entered = gate.try_enter();
  if (entered) gate.exit();
  std::printf("pmgate %d: %s\n", PMGATE_VERSION, entered ? "entered" : "refused");
  return entered ? 0 : 1;
}
