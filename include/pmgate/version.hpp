// SPDX-License-Identifier: MIT
//
// pmgate/version.hpp - which pmgate this is, and the language it needs.
//
// This header is the one source of the version: the build reads it from here.
// It includes nothing, so preprocessed-only and freestanding code may use it.
#ifndef PMGATE_VERSION_HPP
#define PMGATE_VERSION_HPP

#if defined(_MSVC_LANG)
#if _MSVC_LANG < 202002L
#error "pmgate needs C++20 or later: compile with /std:c++20"
#endif
#elif __cplusplus < 202002L
#error "pmgate needs C++20 or later: compile with -std=c++20"
#endif

#define PMGATE_VERSION_MAJOR 0
#define PMGATE_VERSION_MINOR 1
#define PMGATE_VERSION_PATCH 0

/// The version as one integer that grows with every release: 1.2.3 is 10203.
#define PMGATE_VERSION \
  (PMGATE_VERSION_MAJOR * 10000 + PMGATE_VERSION_MINOR * 100 + PMGATE_VERSION_PATCH)

#endif  // PMGATE_VERSION_HPP
