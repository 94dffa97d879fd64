// SPDX-License-Identifier: MIT
//
// pmgate/platform.hpp - picks the platform that plain names use.
//
// `default_platform` is Linux where it is Linux, the single-threaded one where there
// is no hosted library (-ffreestanding), else the portable one. Every type `x`
// is `basic_x<default_platform>`; name another platform to get another.
#ifndef PMGATE_PLATFORM_HPP
#define PMGATE_PLATFORM_HPP

#if !__STDC_HOSTED__
#include <pmgate/platform/single.hpp>
#elif defined(__linux__)
#include <pmgate/platform/linux.hpp>
#else
#include <pmgate/platform/portable.hpp>
#endif

namespace pmgate {

#if !__STDC_HOSTED__
using default_platform = single_platform;
#elif defined(__linux__)
using default_platform = linux_platform;
#else
using default_platform = portable_platform;
#endif

}  // namespace pmgate

#endif  // PMGATE_PLATFORM_HPP
