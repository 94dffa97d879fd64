# SPDX-License-Identifier: MIT
"""Has kernel_trace_replay replay scripts through the library."""
import os
import re
import shutil
import subprocess
import tempfile

DIFFERENCE = re.compile(r"(?:.*[/\\])?s(\d+)\.trace:(\d+): (.*)")
SUMMARY = re.compile(r"^\d+ passed, \d+ failed$", re.MULTILINE)


class ReplayerError(Exception):
    """The replayer cannot be used; there is nothing to compare."""


class Difference:
    """Where the library did not do what the model says. None: there is no such line."""

    def __init__(self, line, model, library):
        self.line, self.model, self.library = line, model, library


class Replayer:
    def __init__(self, program, seconds=300):
        self.program, self.seconds = program, seconds

    def check(self):
        """Raises: ReplayerError, unless the program is there and answers."""
        if not os.path.isfile(self.program):
            raise ReplayerError(f"{self.program}: no such program; build kernel_trace_replay, or "
                                "say where it is with --replayer")
        try:
            done = self._run(["--help"])
        except OSError as error:
            raise ReplayerError(f"{self.program}: {error.strerror}")
        if done is None or done.returncode != 0 or "kernel_trace_replay" not in done.stdout:
            raise ReplayerError(f"{self.program} does not answer as kernel_trace_replay does")

    def _run(self, words):
        """Returns: None if it did not end in time."""
        try:
            return subprocess.run([self.program] + words, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, universal_newlines=True,
                                  timeout=self.seconds)
        except subprocess.TimeoutExpired:
            return None

    def replay(self, scripts):
        """Replays scripts in one process.  Returns: the differences, by index of the script.

        Where the process dies, halves of the scripts are tried, down to those that kill it.
        """
        if not scripts:
            return {}
        folder = tempfile.mkdtemp(prefix="pmgate-fuzz-", dir=scratch())
        try:
            write_traces(folder, scripts)
            done = self._run(["--order", os.path.join(folder, "EVENT_ORDER.txt"), folder])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if done is not None and done.returncode in (0, 1) and SUMMARY.search(done.stdout):
            return differences(done.stdout)
        if done is not None and done.returncode == 2:
            raise ReplayerError("kernel_trace_replay cannot replay what was generated:\n"
                                + done.stderr[:2000])
        if len(scripts) == 1:
            return {0: death(done, len(scripts[0].lines))}
        half = len(scripts) // 2
        found = self.replay(scripts[:half])
        found.update((half + at, what) for at, what in self.replay(scripts[half:]).items())
        return found


def scratch():
    """A folder in memory, if there is one: on a disk the files cost as much as all the rest."""
    memory = "/dev/shm"
    return memory if "TMPDIR" not in os.environ and os.access(memory, os.W_OK) else None


def write_traces(folder, scripts):
    order = []
    for at, script in enumerate(scripts):
        name = f"s{at:06}.trace"
        order += [f"{name}:{line + 1}" for line in script.unordered]
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as out:
            out.write(script.trace("fuzz"))
    with open(os.path.join(folder, "EVENT_ORDER.txt"), "w", encoding="utf-8") as out:
        out.write("# windows in which several actors could run\n" + "\n".join(order) + "\n")


def differences(output):
    found = {}
    lines = output.splitlines()
    for at, text in enumerate(lines):
        match = DIFFERENCE.match(text)
        if not match:
            continue
        expected = got = None
        if at + 2 < len(lines) and lines[at + 1].startswith("  expected: "):
            expected = unless(lines[at + 1][len("  expected: "):], "nothing more")
            got = unless(lines[at + 2][len("  got:      "):], "nothing")
        else:
            got = match.group(3)
        found[int(match.group(1))] = Difference(int(match.group(2)) - 1, expected, got)
    return found


def unless(text, nothing):
    return None if text == nothing else text


def death(done, last_line):
    if done is None:
        return Difference(last_line, None, "kernel_trace_replay does not end")
    said = done.stderr.strip().splitlines() or ["without a word"]
    where = DIFFERENCE.match(said[-1].replace("kernel_trace_replay: ", ""))
    line = int(where.group(2)) - 1 if where else last_line
    return Difference(line, None,
                      f"kernel_trace_replay ends with status {done.returncode}: {said[0]}")
