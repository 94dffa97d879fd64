# SPDX-License-Identifier: MIT
#
# Compiles and runs every ```cpp block of the README; each must be a program.
#
#   cmake -D CXX=<compiler> -D README=<file> -D INCLUDE_DIR=<dir> -D WORK_DIR=<dir>
#         -P check_snippet.cmake
cmake_minimum_required(VERSION 3.24...4.0)

file(READ ${README} text)
set(fence "\n```cpp\n")
string(LENGTH "${fence}" fence_length)
set(count 0)
string(FIND "${text}" "${fence}" start)
while(NOT start EQUAL -1)
  math(EXPR count "${count} + 1")
  math(EXPR start "${start} + ${fence_length}")
  string(SUBSTRING "${text}" ${start} -1 text)
  string(FIND "${text}" "\n```" end)
  if(end EQUAL -1)
    message(FATAL_ERROR "```cpp block ${count} of ${README} does not end")
  endif()
  string(SUBSTRING "${text}" 0 ${end} snippet)
  file(WRITE ${WORK_DIR}/snippet.cpp "${snippet}\n")
  execute_process(
    COMMAND ${CXX} -std=c++20 -Wall -Wextra -Werror -pthread -I ${INCLUDE_DIR}
            ${WORK_DIR}/snippet.cpp -o ${WORK_DIR}/snippet
    RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "```cpp block ${count} of ${README} does not compile")
  endif()
  execute_process(COMMAND ${WORK_DIR}/snippet RESULT_VARIABLE result TIMEOUT 60)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "```cpp block ${count} of ${README} ends with ${result}")
  endif()
  string(SUBSTRING "${text}" ${end} -1 text)
  string(FIND "${text}" "${fence}" start)
endwhile()
if(count EQUAL 0)
  message(FATAL_ERROR "${README} has no ```cpp block")
endif()
message("${count} programs of ${README} compile and run")
