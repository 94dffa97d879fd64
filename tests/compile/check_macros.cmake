# SPDX-License-Identifier: MIT
#
# Fails when <pmgate/pmgate.hpp> defines a macro that neither starts with PMGATE_
# nor comes from the standard headers it includes.
#
#   cmake -D CXX=<compiler> -D INCLUDE_DIR=<dir> -D WORK_DIR=<dir> -P check_macros.cmake
cmake_minimum_required(VERSION 3.24...4.0)

file(MAKE_DIRECTORY ${WORK_DIR})
set(OUTPUT ${WORK_DIR}/std_includes.hpp)
include(${CMAKE_CURRENT_LIST_DIR}/collect_std_includes.cmake)
file(WRITE ${WORK_DIR}/pmgate_includes.hpp "#include <pmgate/pmgate.hpp>\n")

# Sets <out> to the names of the macros that are defined after <header>.
function(read_macros header out)
  execute_process(
    COMMAND ${CXX} -std=c++20 -x c++ -dM -E -I ${INCLUDE_DIR} ${WORK_DIR}/${header}
    OUTPUT_FILE ${WORK_DIR}/${header}.macros
    ERROR_VARIABLE errors
    RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${CXX} cannot preprocess ${header}:\n${errors}")
  endif()
  file(STRINGS ${WORK_DIR}/${header}.macros lines REGEX "^#define ")
  set(names "")
  foreach(line IN LISTS lines)
    if(line MATCHES "^#define ([A-Za-z0-9_]+)")
      list(APPEND names ${CMAKE_MATCH_1})
    endif()
  endforeach()
  set(${out} ${names} PARENT_SCOPE)
endfunction()

read_macros(std_includes.hpp known)
read_macros(pmgate_includes.hpp found)
if(NOT "PMGATE_VERSION" IN_LIST found)
  message(FATAL_ERROR "PMGATE_VERSION is not among the macros: this check is blind")
endif()

set(leaked ${found})
list(REMOVE_ITEM leaked ${known})
list(FILTER leaked EXCLUDE REGEX "^PMGATE_")
if(leaked)
  list(JOIN leaked "\n  " leaked)
  message(FATAL_ERROR "pmgate.hpp leaks macros:\n  ${leaked}")
endif()
message(STATUS "pmgate.hpp adds only PMGATE_* macros")
