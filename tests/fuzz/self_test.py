# SPDX-License-Identifier: MIT
"""Does fuzzing find faults, and does it shrink them? Plants faults in the models."""
import glob
import os
import subprocess

from faults import FAULTS
from generator import generate
from replayer import Replayer, ReplayerError
from script import predict
from shrinker import Shrinker

MOST_SCRIPTS = 2000                     # until a fault is found
BLOCK = 100


def self_test(replayer, seed):
    """Returns: the exit status."""
    problems = []
    for fault in FAULTS:
        problem = look_for(fault, replayer, seed)
        if problem:
            problems.append(f"{fault.name}: {problem}")
    problems += [problem for problem in (deaths_are_found(seed), absence_is_told()) if problem]
    for problem in problems:
        print(f"self-test: FAILED: {problem}")
    print(f"self-test: {len(FAULTS)} planted faults, {len(problems)} problems")
    return 1 if problems else 0


def look_for(fault, replayer, seed):
    """Returns: what is wrong, or None."""
    with fault.planted():
        number, script, difference = first_difference(fault.room, replayer, seed)
        if script is None:
            return f"not found in {MOST_SCRIPTS} scripts"
        shrinker = Shrinker(replayer)
        small, _ = shrinker.shrink(script, difference)
    print(f"self-test: {fault.name}: script {number}, shrunk from {len(script.ops)} to "
          f"{len(small.ops)} operations")
    print("    " + "; ".join(f"{actor}> {text}" for actor, text in small.ops))
    if len(small.ops) > fault.most:
        return f"shrunk to {len(small.ops)} operations, {fault.most} are enough"
    right = predict(small.ops)
    if right.ops != small.ops or replayer.replay([right]):
        return "what was found differs without the fault, too"
    return None


def first_difference(room, replayer, seed):
    for first in range(0, MOST_SCRIPTS, BLOCK):
        scripts = [generate(room, seed, number) for number in range(first, first + BLOCK)]
        found = replayer.replay(scripts)
        if found:
            at = min(found)
            return first + at, scripts[at], found[at]
    return None, None, None


# --- the replayer itself -----------------------------------------------------------------------

class Dying(Replayer):
    """Dies of a script that has a certain line."""

    def __init__(self, line):
        super().__init__("")
        self.line = line

    def _run(self, words):
        text = "".join(open(name, encoding="utf-8").read()
                       for name in glob.glob(os.path.join(words[-1], "*.trace")))
        dies = self.line in text
        return subprocess.CompletedProcess(words, -11 if dies else 0,
                                           "" if dies else "7 passed, 0 failed\n", "")


def deaths_are_found(seed):
    scripts = [generate("percpu_ref", seed, number) for number in range(40)]
    line = scripts[17].ops[-1][1] + "\n"
    deadly = {at for at, script in enumerate(scripts) if line in script.trace("")}
    found = Dying(line).replay(scripts)
    return None if set(found) == deadly else "the script of which a process died was not found"


def absence_is_told():
    try:
        Replayer("no/such/program").check()
    except ReplayerError:
        return None
    return "a missing kernel_trace_replay was not noticed"
