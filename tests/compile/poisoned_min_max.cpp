// SPDX-License-Identifier: MIT
//
// poisoned_min_max.cpp - the library under macros such as windows.h defines.
//
// The standard headers are not made for that, so they come first.
#include <std_includes.hpp>

#define min(...) poisoned_min(__VA_ARGS__) is_not_parenthesised
#define max(...) poisoned_max(__VA_ARGS__) is_not_parenthesised

#include <pmgate/pmgate.hpp>

int main() {}
