"""Which crossing values are kept as sketches, in how many bits, and what is calculated again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from torch import fx

from rad.errors import UsageError
from rad.partition.bits import Bits
from rad.partition.choices import Choice, Found, saved_bytes
from rad.partition.costs import of_sketches, operations, repeated
from rad.partition.crossings import Crossing, is_short, is_truth
from rad.partition.repetition import repetitions
from rad.partition.sketched_graph import Storage
from rad.sketches import DitheredRounding

BITS = (8, 4, 3, 2)
"""What is tried, the most exact first."""

MEMORY = (0.6, 0.3, 0.1, 0.0)
"""Values of torch's activation_memory_budget for what stays exact, where more must be calculated
again than what cannot be sketched."""

PARTS = (1.0, 0.9, 0.8, 0.6, 0.4, 0.0)
"""Of the budget: torch's activation_memory_budget where nothing is sketched."""

LEAST = 1024
"""Values of fewer numbers stay exact."""

BLOCK = 256
"""Numbers on one grid."""

ATTEMPTS = 3
"""How often what is left is spent: torch divides what is exact anew each time."""

FEWER = 0.2
"""Part of the rounded numbers that may have the next fewer bits, where that is enough to fit."""


Divide = Callable[[Choice | None, float], tuple[fx.GraphModule, fx.GraphModule]]


class BudgetTooSmall(UsageError):
    """No division keeps so little; `least` is the smallest part of the bytes that was found."""

    def __init__(self, text: str, least: float) -> None:
        super().__init__(text, least)
        self.least = least

    def __str__(self) -> str:
        return str(self.args[0])


def choose(
    found: Sequence[Crossing],
    budget: float,
    divide: Divide,
    fixed: Collection[int],
    fewest_bits: int,
) -> Found:
    """What meets the budget in the least time, as predicted, and then in the most bits.

    Torch's own division where that meets it already. `divide` gives the two passes with a choice's
    sketches, at a value of torch's activation_memory_budget; `fixed` are the places of the inputs
    that are parameters. Raises UsageError where nothing fits.
    """
    search = _Search(found, budget, divide, fixed, fewest_bits)
    if search.total <= search.limit:
        return search.plain
    tried = [search.within(sketched) for sketched in search.sets()]
    best = min((e for e in tried if e is not None), key=lambda e: e.choice.time, default=None)
    if best is not None:
        return search.enriched(search.relieved(best))
    least = search.least / search.total
    raise BudgetTooSmall(
        f"budget={budget:g} of {search.total:,} saved bytes cannot be met: the least found is "
        f"{least:.3f} of them; give budget={min(1.0, least + 0.001):.3f}",
        least,
    )


class _Search:
    """Divisions of one graph, each made once."""

    def __init__(
        self,
        found: Sequence[Crossing],
        budget: float,
        divide: Divide,
        fixed: Collection[int],
        fewest_bits: int,
    ) -> None:
        self._found, self._budget, self._fixed = tuple(found), budget, fixed
        self._bits = fewest_bits
        self._divide, self._repetitions = divide, repetitions(found)
        forward, backward = divide(None, 1.0)
        self.least = self.total = saved_bytes(forward, backward, fixed)
        self.limit = int(budget * self.total)
        counted = sum(operations(each.graph.nodes) for each in (forward, backward))
        self._operations = max(1, counted)
        self._again = operations(repeated(forward, backward))
        plain = Choice((), self._found, 1.0, self.total, self.total)
        self.plain = Found(plain, forward, backward)

    def sets(self) -> list[list[Crossing]]:
        """What might be sketched: nothing, the largest that take one draw, or all that gains."""
        offered = [each for each in self._found if each.groups is not None and _gains(each)]
        once = [each for each in offered if len(each.groups or []) == 1]
        most = max((each.nbytes for each in once), default=0)
        large = [e for e in once if 2 * e.nbytes > most or is_truth(e.value)]
        return [[], large, offered] if 0 < len(large) < len(offered) else [[], offered]

    def within(self, sketched: Sequence[Crossing]) -> Found | None:
        """With the least recomputation that fits; None where nothing does."""
        if not sketched:
            parts = (self._budget * part for part in PARTS)
            return self._first([partial(self._divided, (), memory) for memory in parts])
        stored = tuple(Storage(each, _sketch(each, self._bits)) for each in sketched)
        ways = [self._with_repeated(stored, n) for n in range(len(self._repetitions) + 1)]
        ways += [partial(self._divided, stored, memory) for memory in MEMORY]
        return self._first(ways)

    def _with_repeated(self, stored: Sequence[Storage], count: int) -> Callable[[], Found]:
        """With the first so many values calculated again that cannot be sketched."""
        again = self._repetitions[:count]
        spared = {name for each in again for name in each.spared}
        needed = tuple(each for each in stored if each.crossing.node.name not in spared)
        names = frozenset(name for each in again for name in each.nodes)
        return partial(self._divided, needed, 1.0, names)

    def _first(self, ways: Sequence[Callable[[], Found]]) -> Found | None:
        """The first of ways that fits; most often each takes fewer bytes than those before."""
        best, low, high = None, 0, len(ways)
        while low < high:
            middle = (low + high) // 2 if low else 0
            tried = self._lowered(ways[middle]())
            if tried.choice.saved_bytes <= self.limit:
                best, high = tried, middle
            else:
                low = middle + 1
        return best

    def _lowered(self, found: Found) -> Found:
        """With fewer bits for some of the smallest values, where that is enough to fit."""
        if self._bits == BITS[-1]:
            return found
        fewer = BITS[BITS.index(self._bits) + 1]
        choice, over = found.choice, found.choice.saved_bytes - self.limit
        rounded = [e for e in choice.stored if isinstance(e.sketch, DitheredRounding)]
        left, lowered = FEWER * sum(map(_numbers, rounded)), {}
        for each in sorted(rounded, key=_numbers):
            left -= _numbers(each)
            if over > 0 and left >= 0:
                lowered[each] = Storage(each.crossing, _sketch(each.crossing, fewer))
                over -= each.nbytes - lowered[each].nbytes
        if not lowered or over > 0:
            return found
        stored = tuple(lowered.get(each, each) for each in choice.stored)
        return self._divided(stored, choice.memory, choice.repeated)

    def relieved(self, found: Found) -> Found:
        """With fewer sketches, where values can be kept exactly in the bytes that are left."""
        left = self.limit - found.choice.saved_bytes
        kept = []
        for each in sorted(found.choice.stored, key=lambda e: of_sketches([e]), reverse=True):
            extra = len(each.crossing.values) * each.crossing.nbytes - each.nbytes
            if extra <= left:
                left -= extra
            else:
                kept.append(each)
        stored = tuple(each for each in found.choice.stored if each in kept)
        if stored == found.choice.stored:
            return found
        better = self._divided(stored, found.choice.memory, found.choice.repeated)
        fits = better.choice.saved_bytes <= self.limit
        return better if fits and better.choice.time < found.choice.time else found

    def enriched(self, found: Found) -> Found:
        """With more bits, as long as it stays within the limit, as divided."""
        for _ in range(ATTEMPTS):
            choice = found.choice
            richer = _spent(choice.stored, self.limit - choice.saved_bytes)
            if richer == choice.stored:
                break
            better = self._divided(richer, choice.memory, choice.repeated)
            if better.choice.saved_bytes > self.limit:
                break
            found = better
        return found

    def _divided(
        self, stored: tuple[Storage, ...], memory: float, again: frozenset[str] = frozenset()
    ) -> Found:
        choice = Choice(stored, self._found, memory, self.total, 0, repeated=again)
        forward, backward = self._divide(choice, memory)
        saved = saved_bytes(forward, backward, self._fixed)
        self.least = min(self.least, saved)
        extra = operations(repeated(forward, backward)) + of_sketches(stored) - self._again
        time = 1 + extra / self._operations
        return Found(replace(choice, saved_bytes=saved, time=time), forward, backward)


def _numbers(storage: Storage) -> int:
    """How many numbers are kept, once for each sketch."""
    return storage.crossing.value.numel() * len(storage.crossing.groups or [])


def _gains(crossing: Crossing) -> bool:
    """Whether a sketch of the fewest bits, for each group, is smaller than the value."""
    if is_short(crossing.value, LEAST):
        return False
    return Storage(crossing, _sketch(crossing, BITS[-1])).nbytes < crossing.nbytes


def _sketch(crossing: Crossing, bits: int) -> DitheredRounding | Bits:
    return Bits() if is_truth(crossing.value) else DitheredRounding(bits, block=BLOCK)


def _spent(stored: Sequence[Storage], left: int) -> tuple[Storage, ...]:
    """More bits for each in turn, the fewest first and of equals the smallest, while they fit."""
    chosen = list(stored)
    for bits in BITS[-2::-1]:
        for place in sorted(range(len(chosen)), key=lambda p: chosen[p].nbytes):
            crossing = chosen[place].crossing
            better = Storage(crossing, _sketch(crossing, bits))
            extra = better.nbytes - chosen[place].nbytes
            if 0 < extra <= left and better.nbytes < crossing.nbytes:
                left -= extra
                chosen[place] = better
    return tuple(chosen)
