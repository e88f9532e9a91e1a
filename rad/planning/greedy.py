"""The options of least total variance in a number of bytes: arithmetic alone, no layers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rad.sketches import Sketch


@dataclass(frozen=True)
class Option:
    """What a layer may keep: its bytes, and the variance that it adds."""

    sketch: Sketch
    nbytes: int
    variance: float


Curves = dict[str, list[Option]]
"""For each layer what it may keep, by growing bytes."""

Places = dict[str, int]
"""For each layer the index of an option on its curve."""


def cheapest_variance(options: dict[str, list[Option]], limit: int) -> dict[str, Option] | None:
    """The option of each layer with the least total variance in `limit` bytes; None if none fit.

    As found from the best steps along the layers' hulls, and from each option in all layers.
    """
    starts = [_along_hulls(options, limit), *alike_everywhere(options)]
    fitting = [start for start in starts if start is not None and total_bytes(start) <= limit]
    table = _Table(options)
    finished = [table.filled(start, limit) for start in fitting]
    return min(finished, key=rank, default=None)


def rank(chosen: dict[str, Option]) -> tuple[float, int]:
    """A sort key: less variance is better, and among equals keeping more."""
    return total_variance(chosen), -total_bytes(chosen)


def total_bytes(chosen: dict[str, Option]) -> int:
    return sum(option.nbytes for option in chosen.values())


def total_variance(chosen: dict[str, Option]) -> float:
    return sum(option.variance for option in chosen.values())


def alike_everywhere(options: dict[str, list[Option]]) -> Iterator[dict[str, Option]]:
    """One sketch in all layers, for each that all of them offer."""
    offered = {name: {option.sketch: option for option in found} for name, found in options.items()}
    for sketch in dict.fromkeys(o.sketch for found in options.values() for o in found):
        if all(sketch in of_layer for of_layer in offered.values()):
            yield {name: of_layer[sketch] for name, of_layer in offered.items()}


def along(curves: Curves, limit: int, start: Mapping[str, int] | None = None) -> Places | None:
    """Greedy steps along the layers' curves, each with the largest fall of variance per byte.

    From the places `start`, or from the first of each; None where those take more than `limit`.
    A layer whose next step does not fit is done. Of equals the first layer steps.
    """
    places = dict.fromkeys(curves, 0) if start is None else dict(start)
    left = limit - total_bytes(at(curves, places))
    if left < 0:
        return None
    names = list(curves)

    def step(order: int) -> Iterator[tuple[float, int]]:
        curve, place = curves[names[order]], places[names[order]]
        if place + 1 < len(curve):
            yield _slope(curve[place], curve[place + 1]), order

    steps = [each for order in range(len(names)) for each in step(order)]
    heapq.heapify(steps)
    while steps:
        _, order = heapq.heappop(steps)
        name = names[order]
        curve, place = curves[name], places[name]
        extra = curve[place + 1].nbytes - curve[place].nbytes
        if extra <= left:
            left -= extra
            places[name] += 1
            for each in step(order):
                heapq.heappush(steps, each)
    return places


def divide(
    curves: Curves, limit: int, start: Mapping[str, int] | None = None
) -> dict[str, Option] | None:
    """The option of each layer with the least total variance in `limit` bytes; None if none fit.

    `along` from the first options, or from the places `start` where that ends lower. Layers are
    then kept at the last place of their curve where that pays for its bytes: with replacement the
    variance jumps to 0 where all is kept, which greedy steps do not see.
    """
    first = dict.fromkeys(curves, 0)
    starts = [first] if start is None else [first, start]
    found = [at(curves, places) for each in starts if (places := along(curves, limit, each))]
    if not found:
        return None
    best = min(found, key=total_variance)
    whole: Places = {}
    while True:
        wider = [whole | {name: len(curves[name]) - 1} for name in curves if name not in whole]
        ends = [(each, along(curves, limit, first | each)) for each in wider]
        better = [(each, at(curves, places)) for each, places in ends if places]
        if not better:
            return best
        each, chosen = min(better, key=lambda end: total_variance(end[1]))
        if total_variance(chosen) >= total_variance(best):
            return best
        whole, best = each, chosen


def at(curves: Curves, places: Mapping[str, int]) -> dict[str, Option]:
    """The options at those places of the curves."""
    return {name: curve[places[name]] for name, curve in curves.items()}


def _along_hulls(options: dict[str, list[Option]], limit: int) -> dict[str, Option] | None:
    """`along` the layers' hulls; of equals the layer steps whose name comes first."""
    hulls = {name: _lower_hull(options[name]) for name in sorted(options)}
    places = along(hulls, limit)
    return None if places is None else {name: hulls[name][places[name]] for name in options}


def smallest(options: dict[str, list[Option]]) -> dict[str, Option]:
    """The options that keep the fewest bytes."""
    return {name: min(found, key=lambda o: o.nbytes) for name, found in options.items()}


def simplest(options: dict[str, list[Option]], most: int | None = None) -> list[dict[str, Option]]:
    """The smallest options, and one sketch in all layers: where nothing else fits, one of these
    may, since a sketch that keeps less may need more for a moment, and layers of one sketch share
    what they keep of one input. `most`: only so many of the latter, those that keep least."""
    alike = list(alike_everywhere(options))
    few = alike if most is None else sorted(alike, key=total_bytes)[:most]
    return [smallest(options), *few]


def _lower_hull(options: list[Option]) -> list[Option]:
    """The options on the lower convex hull of variance over bytes, while the variance falls."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.variance)):
        if hull and option.variance >= hull[-1].variance:
            continue
        while len(hull) > 1 and _slope(hull[-2], option) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        if hull and option.nbytes == hull[-1].nbytes:
            continue
        hull.append(option)
    return hull


def _slope(one: Option, other: Option) -> float:
    return (other.variance - one.variance) / max(other.nbytes - one.nbytes, 1)


class _Table:
    """The options as two arrays, bytes and variances (layers, options), for `filled` to look at."""

    def __init__(self, options: dict[str, list[Option]]) -> None:
        self._options = list(options.items())
        shape = len(options), max(map(len, options.values()), default=0)
        self._nbytes = np.zeros(shape, np.int64)
        self._variances = np.full(shape, np.inf)  # beyond a layer's options, where nothing gains
        for row, found in enumerate(options.values()):
            self._nbytes[row, : len(found)] = [option.nbytes for option in found]
            self._variances[row, : len(found)] = [option.variance for option in found]
        unknown = [[not any(option.variance for option in found)] for found in options.values()]
        self._unknown = np.array(unknown, np.bool_)

    def filled(self, chosen: dict[str, Option], limit: int) -> dict[str, Option]:
        """What is left of the bytes spent on single better options; of equals the first layer's.

        Where none gains, on larger ones in layers whose options all have the variance 0, such as
        those behind a branch that starts at zero: their variance is not known yet.
        """
        chosen = dict(chosen)
        left = limit - total_bytes(chosen)
        now = [chosen[name] for name, _ in self._options]
        extra = self._nbytes - np.array([[option.nbytes] for option in now])
        gains = _falls(np.array([[option.variance] for option in now]), self._variances)
        while True:
            fits = extra <= left
            best = _first_largest(gains, fits & (gains > -np.inf))
            best = best or _first_largest(self._nbytes, fits & (extra > 0) & self._unknown)
            if best is None:
                return chosen
            row, column = best
            left -= int(extra[row, column])
            name, found = self._options[row]
            chosen[name] = found[column]
            extra[row] = self._nbytes[row] - found[column].nbytes
            gains[row] = _falls(np.array(found[column].variance), self._variances[row])


def _falls(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By how much the variance falls; -inf where it does not."""
    falls = np.full(after.shape, -np.inf)
    return np.subtract(before, after, out=falls, where=after < before)


def _first_largest(values: np.ndarray, among: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the first of the largest values among those; None if there are none."""
    if not among.any():
        return None
    row, column = divmod(int(np.where(among, values, -np.inf).argmax()), values.shape[1])
    return row, column
