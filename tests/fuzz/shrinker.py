# SPDX-License-Identifier: MIT
"""Makes a script that differs as small as it gets.

A candidate has fewer or simpler operations; what is not legal any more is dropped from it,
and the model predicts the rest anew. Candidates of a round are replayed together.
"""
from itertools import combinations

from operations import READERS, TIDIER, WORKERS
from script import predict
from table import row_of

MOST_ROUNDS = 200
FEW = 14                                # operations, of which any three may go at once


class Shrinker:
    def __init__(self, replayer):
        self.replayer = replayer
        self.tried = 0

    def shrink(self, script, difference):
        """Returns: the smallest script found that differs, and its difference."""
        self.best, self.difference = script, difference
        self._cut()
        self.rounds = 0
        while self._round(self._without_names()) or self._round(self._without_parts()) \
                or self._round(self._simpler()):
            pass
        return self.best, self.difference

    def _cut(self):
        """Nothing behind the first difference matters."""
        count = sum(line <= self.difference.line for line in self.best.issue_lines)
        if 0 < count < len(self.best.ops):
            self._try([self.best.ops[:count]])

    def _round(self, candidates):
        """Returns: True if the best got better."""
        self.rounds += 1
        return self.rounds < MOST_ROUNDS and self._try(candidates)

    def _try(self, candidates):
        scripts, seen = [], {tuple(self.best.ops)}
        for ops in candidates:
            script = predict(ops)
            key = tuple(script.ops)
            if (key and key not in seen and not script.failure
                    and cost(script) < cost(self.best)):
                seen.add(key)
                scripts.append(script)
        self.tried += len(scripts)
        found = self.replayer.replay(scripts)
        better = min(found, key=lambda at: cost(scripts[at]), default=None)
        if better is None:
            return False
        self.best, self.difference = scripts[better], found[better]
        self._cut()
        return True

    # -- candidates
    def _without_names(self):
        """Without an actor, or without an object."""
        ops = self.best.ops
        for actor in sorted({actor for actor, _ in ops}):
            yield [op for op in ops if op[0] != actor]
        for name in sorted({text.split()[1] for _, text in ops if " " in text}):
            yield [op for op in ops if name not in op[1].split()[1:2]]

    def _without_parts(self):
        """Delta debugging: without a part of the operations; parts get smaller."""
        ops = self.best.ops
        size = len(ops) // 2
        while size > 0:
            for begin in range(0, len(ops), size):
                yield ops[:begin] + ops[begin + size:]
            size //= 2
        for first in range(len(ops)):   # two that need each other
            for second in range(first + 1, min(len(ops), first + 8)):
                yield ops[:first] + ops[first + 1:second] + ops[second + 1:]
        if 3 < len(ops) <= FEW:
            for kept in combinations(ops, len(ops) - 3):
                yield list(kept)

    def _simpler(self):
        """With a simpler argument, or another actor."""
        ops = self.best.ops
        for at, (actor, text) in enumerate(ops):
            for words in simpler(text.split()):
                yield ops[:at] + [(actor, " ".join(words))] + ops[at + 1:]
        actors = sorted({actor for actor, _ in ops} - set(READERS))
        for actor in actors:
            for other in WORKERS:
                if rank(other) < rank(actor):
                    yield [(other if who == actor else who, text) for who, text in ops]
        for at, (actor, text) in enumerate(ops):
            if actor not in READERS and actor != WORKERS[0]:
                yield ops[:at] + [(WORKERS[0], text)] + ops[at + 1:]


def simpler(words):
    row = row_of(words)
    yield from row.simpler(words)
    if row.plain:
        yield row.plain.split() + words[1:2]


def rank(actor):
    return 9 if actor == TIDIER else int(actor[1:])


def cost(script):
    """Fewer operations before all else; then actors, then shorter texts."""
    ops = script.ops
    return (len(ops), len({actor for actor, _ in ops}), sum(rank(actor) for actor, _ in ops),
            sum(row_of(text.split()).cost(text.split()) for _, text in ops))
