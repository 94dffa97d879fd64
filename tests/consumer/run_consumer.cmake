# SPDX-License-Identifier: MIT
#
# Builds and runs the project in this folder as a consumer of pmgate.
#
#   cmake -D WAY=<find_package|add_subdirectory|fetch_content|pkg_config>
#         -D PMGATE_SOURCE_DIR=<dir> -D PMGATE_BINARY_DIR=<dir> -D WORK_DIR=<dir>
#         -D CXX=<compiler> -D GENERATOR=<name> -P run_consumer.cmake
cmake_minimum_required(VERSION 3.24...4.0)

set(prefix ${WORK_DIR}/prefix)
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "exit status ${result}: ${command}")
  endif()
endfunction()

function(install_pmgate)
  run(${CMAKE_COMMAND} --install ${PMGATE_BINARY_DIR} --prefix ${prefix})
  # Moved afterwards: a package must not remember where it was installed.
  file(RENAME ${prefix} ${prefix}_moved)
endfunction()

if(WAY STREQUAL "pkg_config")
  find_program(pkg_config NAMES pkg-config pkgconf)
  if(NOT pkg_config)
    message("SKIPPED: pkg-config is not installed")
    return()
  endif()
  install_pmgate()
  set(ENV{PKG_CONFIG_PATH} ${prefix}_moved/share/pkgconfig)
  execute_process(
    COMMAND ${pkg_config} --cflags --libs pmgate
    OUTPUT_VARIABLE flags
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  run(${CXX} -std=c++20 ${CMAKE_CURRENT_LIST_DIR}/main.cpp ${flags} -o ${WORK_DIR}/consumer)
  run(${WORK_DIR}/consumer)
  return()
endif()

if(WAY STREQUAL "find_package")
  install_pmgate()
  set(where -D CMAKE_PREFIX_PATH=${prefix}_moved)
elseif(WAY STREQUAL "fetch_content")
  set(where -D FETCHCONTENT_SOURCE_DIR_PMGATE=${PMGATE_SOURCE_DIR})
endif()

set(build ${WORK_DIR}/build)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${build} -G ${GENERATOR}
    -D CMAKE_CXX_COMPILER=${CXX} -D WAY=${WAY} -D PMGATE_SOURCE_DIR=${PMGATE_SOURCE_DIR} ${where})
run(${CMAKE_COMMAND} --build ${build})
run(${build}/consumer)
run(${build}/consumer_core)

# Installing the consumer installs the consumer, not pmgate.
run(${CMAKE_COMMAND} --install ${build} --prefix ${WORK_DIR}/stage)
file(GLOB_RECURSE installed RELATIVE ${WORK_DIR}/stage ${WORK_DIR}/stage/*)
if(NOT "${installed}" STREQUAL "bin/consumer")
  message(FATAL_ERROR "the consumer installs more than itself: ${installed}")
endif()
