#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random scripts of operations, predicted by models of the kernel and replayed by the library.

The models in models/ agree with every trace that was recorded from a running kernel. This
program makes scripts of legal operations: several actors, readers that hold grace periods
open, everything that the table in operations.py names. The models say what each operation
does; kernel_trace_replay has the library do it; every event, result and state is compared.

    fuzz.py                                   10,000 scripts: as many on refs, on queues, on one
                                              SCSI device, and on hosts with several
    fuzz.py --room queue --statistics         on queues alone, and what was in them
    fuzz.py --scripts 1000000 --seed 7        a million others: about a quarter of an hour on
                                              one core; --jobs 2 takes two
    fuzz.py --seed 7 --first 4711 --scripts 1 one of them again

Seed, room and number determine a script. One that differs is shrunk to the fewest and
simplest operations that still differ, printed with both answers, and saved as a trace with
the EVENT_ORDER.txt that belongs to it, so that `kernel_trace_replay FILE` shows it again.

    fuzz.py --self-test                       plants faults in the models, and expects each to
                                              be found and shrunk to a few operations

Exit status: 0 if all agree; 1 if a script differs, or a planted fault is not found; 2 if
the arguments are wrong or kernel_trace_replay cannot be used.

To fuzz a new operation add a row to operations.py or scsi_operations.py, and a line to
models/world.py.
"""
import argparse
import multiprocessing
import os
import sys
import time

if sys.version_info < (3, 8):
    sys.exit("fuzz: Python 3.8 or newer is needed")

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from census import Census               # noqa: E402
from generator import ROOMS, generate   # noqa: E402
from replayer import Replayer, ReplayerError  # noqa: E402
from shrinker import Shrinker           # noqa: E402

BLOCK = 500                             # scripts for one process of the replayer
PROGRESS = 20                           # seconds between two lines on a long run
DEFAULT_REPLAYER = os.path.join(HERE, "..", "..", "build", "test", "tests", "kernel_trace_replay")


class Block:
    """Scripts with numbers in a row, and what came of them."""

    def __init__(self, settings, first, count):
        self.settings, self.first, self.count = settings, first, count
        self.operations = 0
        self.census = None
        self.differing = []             # numbers

    def run(self):
        s = self.settings
        self.census = Census() if s.statistics else None
        numbers = range(self.first, self.first + self.count)
        scripts = [generate(room_of(s, n), s.seed, n, self.census) for n in numbers]
        self.operations = sum(len(script.ops) for script in scripts)
        found = Replayer(s.replayer).replay(scripts)
        self.differing = [n for at, n in enumerate(numbers) if at in found or scripts[at].failure]
        return self


def room_of(settings, number):
    if settings.room != "all":
        return settings.room
    names = list(ROOMS)
    return names[number % len(names)]


def run_block(block):
    return block.run()


def blocks_of(settings):
    end = settings.first + settings.scripts
    return [Block(settings, first, min(BLOCK, end - first))
            for first in range(settings.first, end, BLOCK)]


def finished_blocks(settings):
    blocks = blocks_of(settings)
    if settings.jobs == 1:
        yield from map(run_block, blocks)
        return
    with multiprocessing.Pool(settings.jobs) as pool:
        yield from pool.imap(run_block, blocks)


def fuzz(settings):
    """Returns: the exit status."""
    scripts = operations = 0
    differing = []
    census = Census()
    begun = shown = time.monotonic()
    for block in finished_blocks(settings):
        scripts += block.count
        operations += block.operations
        differing += block.differing
        for number in block.differing:  # at once: a long run may be cut off
            print(f"fuzz: script {number} differs", file=sys.stderr)
        if block.census:
            census.add(block.census)
        if time.monotonic() - shown > PROGRESS:
            shown = time.monotonic()
            print(f"fuzz: {scripts} scripts after {shown - begun:.0f} s", file=sys.stderr)
        if len(differing) >= settings.differences:
            break
    if settings.statistics:
        print(census.text(scripts))
    for number in differing[:settings.differences]:
        explain(settings, number)
    agree = "all agree" if not differing else f"{len(differing)} differ"
    print(f"fuzz: {scripts} scripts, {operations} operations, {agree}")
    return 1 if differing else 0


# --- what differs ------------------------------------------------------------------------------

def explain(settings, number):
    """Shrinks, prints and saves a script that differs."""
    room = room_of(settings, number)
    script = generate(room, settings.seed, number)
    again = f"{sys.argv[0]} --room {room} --seed {settings.seed} --first {number} --scripts 1"
    if settings.replayer != DEFAULT_REPLAYER:
        again += f" --replayer {settings.replayer}"
    print(f"fuzz: {room} script {number} of seed {settings.seed} differs; to see it again:")
    print(f"  {again}")
    if script.failure:
        print(f"  {script.failure}; before that:\n{indented(script.lines[-20:])}\n")
        return
    replayer = Replayer(settings.replayer)
    found = replayer.replay([script])
    if not found:
        print("  but not when it is replayed alone\n")
        return
    before = len(script.ops)
    script, difference = Shrinker(replayer).shrink(script, found[0])
    print(f"shrunk from {before} to {len(script.ops)} operations"
          " (- the model, + the library):\n")
    print(rendered(script, difference))
    print(f"\nsaved: {save(settings.keep, f'{room}-{settings.seed}-{number}', script, again)}\n")


def rendered(script, difference):
    """The script up to the window that differs, with both answers there."""
    first, behind = script.window_of(difference.line)
    window = script.lines[first - 1:behind - 1]
    model, library = difference.model, difference.library
    if model in window:
        at = difference.line - first
        at = at if at < len(window) and window[at] == model else window.index(model)
    else:                               # it belongs before the parts behind its own
        at = 1 + sum(part_of(line) <= part_of(library) for line in window[1:])
    marked = ["  " + line for line in window]
    if model in window and library in window:
        library = None                  # it is the next one; the library leaves the model's out
    marked[at:at + (model in window)] = ([f"- {model}"] if model else []) + \
        ([f"+ {library}"] if library else [])
    return "\n".join(["  " + line for line in script.lines[:first - 1]] + marked)


def part_of(line):
    """Events, results, states: in this order."""
    return {"!": 0, "~": 2}.get((line or "~")[0], 1)


def indented(lines):
    return "\n".join("  " + line for line in lines)


def save(folder, name, script, again):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name + ".trace")
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write(script.trace(again))
    with open(os.path.join(folder, "EVENT_ORDER.txt"), "a", encoding="utf-8") as out:
        out.write("".join(f"{name}.trace:{line + 1}\n" for line in script.unordered))
    return path


# --- arguments ---------------------------------------------------------------------------------

def positive(text):
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be positive")
    return value


def natural(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def parse(words):
    parser = argparse.ArgumentParser(
        description="Fuzzes the library against models of the kernel.",
        epilog="The opening comment of this file says more.")
    parser.add_argument("--scripts", type=positive, default=10000, metavar="N",
                        help="how many scripts (default 10000)")
    parser.add_argument("--seed", type=int, default=1, metavar="S",
                        help="of the scripts (default 1)")
    parser.add_argument("--first", type=natural, default=0, metavar="K",
                        help="number of the first script (default 0)")
    parser.add_argument("--room", choices=["all"] + list(ROOMS), default="all",
                        help="what the scripts operate on (default: each in turn)")
    parser.add_argument("--replayer", default=DEFAULT_REPLAYER, metavar="PATH",
                        help="kernel_trace_replay (default: that of the build folder build/test)")
    parser.add_argument("--keep", default="fuzz-differences", metavar="DIR",
                        help="where shrunk scripts are saved (default fuzz-differences)")
    parser.add_argument("--differences", type=positive, default=3, metavar="N",
                        help="stop after N scripts that differ (default 3)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N",
                        help="processes (default 1)")
    parser.add_argument("--statistics", action="store_true",
                        help="print how often what occurred")
    parser.add_argument("--self-test", action="store_true",
                        help="plant faults in the models and look for them")
    return parser.parse_args(words)


def main(words):
    settings = parse(words)
    try:
        Replayer(settings.replayer).check()
        if settings.self_test:
            from self_test import self_test
            return self_test(Replayer(settings.replayer), settings.seed)
        return fuzz(settings)
    except ReplayerError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
