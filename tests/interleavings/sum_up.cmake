# SPDX-License-Identifier: MIT
#
# sum_up.cmake - what all programs of this folder have explored together.
#
#   cmake -D tallies=<folder> -D "programs=<name>;..." -D least=<schedules> -P sum_up.cmake
#
# Fails if a program has left no tally, if a bound was not complete, or if there were
# fewer schedules than `least`.
set(schedules 0)
set(tests 0)
foreach(program IN LISTS programs)
  if(NOT EXISTS ${tallies}/${program})
    message(FATAL_ERROR "interleavings: ${program} has left no tally in ${tallies}")
  endif()
  file(READ ${tallies}/${program} tally)
  if(NOT tally MATCHES "^([0-9]+) ([0-9]+) ([0-9]+)")
    message(FATAL_ERROR "interleavings: the tally of ${program} is not one: ${tally}")
  endif()
  math(EXPR schedules "${schedules} + ${CMAKE_MATCH_1}")
  math(EXPR tests "${tests} + ${CMAKE_MATCH_2}")
  if(NOT CMAKE_MATCH_3 EQUAL 0)
    message(FATAL_ERROR "interleavings: ${CMAKE_MATCH_3} bounds of ${program} are not complete")
  endif()
endforeach()
if(schedules LESS least)
  message(FATAL_ERROR "interleavings: ${schedules} schedules only, where ${least} are promised")
endif()
message("interleavings: ${schedules} schedules, ${tests} tests, all bounds complete")
