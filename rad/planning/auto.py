"""The sketches with the least predicted gradient variance in a number of bytes (`variant=auto`).

Layers draw independently, so that the variance of the whole gradient is the sum of the
layers' closed forms (`weight_grad_variance`), here with the activations and gradients of an
example batch. Each layer chooses among rounding (stochastic, dithered, with a code for
zeros or without, on grids of a row or of a longer or shorter block; rotated, where all numbers of
a row count alike), sampling and rounding, plain sampling, and keeping everything. The best
combination on the lower convex hulls of bytes and variance is found greedily, and compared with
one option in all layers; what is left of the bytes goes to single better options.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.errors import UsageError
from rad.nn import Sketching
from rad.planning.probe import Trial
from rad.sketches import Identity, Sketch
from rad.sketches.noise import Numbers
from rad.sketches.registry import kinds


@dataclass(frozen=True)
class Option:
    """What a layer may keep: its bytes, and the variance that it adds."""

    sketch: Sketch
    nbytes: int
    variance: float


@dataclass(frozen=True)
class Choice:
    """The sketch of each layer, and why: the predicted variance with it and with others."""

    sketches: dict[str, Sketch]
    reason: str


def choose(trial: Trial, limit: int) -> Choice | None:
    """The sketches of the layers that fit into `limit` bytes, as measured.

    None where neither the division found fits, nor the smallest options, nor one sketch in all.
    Raises UsageError where a layer's variance has no closed form, and where the gradient is zero
    or not finite.
    """
    options = layer_options(trial)
    available = limit - _beside(trial, _smallest(options))
    while (chosen := cheapest_variance(options, available)) is not None:
        over = _measured(trial, chosen) - limit
        if over <= 0:
            return Choice(_sketches_of(chosen), _reason(options, chosen))
        available = min(available, _bytes(chosen)) - over
    fitting = [c for c in _simple(options) if _measured(trial, c) <= limit]
    if not fitting:
        return None
    chosen = min(fitting, key=_rank)
    return Choice(_sketches_of(chosen), _reason(options, chosen))


def fewest_bytes(trial: Trial) -> int:
    """A limit with which `choose` finds something: the least that one of `_simple` takes."""
    return min(_measured(trial, chosen) for chosen in _simple(layer_options(trial)))


def layer_options(trial: Trial) -> dict[str, list[Option]]:
    """What each layer may keep, of the trial's example batch."""
    shapes = trial.shapes()
    options: dict[str, list[Option]] = {}
    for name, calls in trial.inputs_and_gradients().items():
        if not shapes[name]:  # a frozen layer keeps nothing
            continue
        try:
            variance = _Variance(trial.layers[name], calls)
        except TypeError as error:
            raise _unpredictable(name, str(error)) from error
        dtype = calls[0][1].dtype if calls else torch.get_default_dtype()
        options[name] = [
            Option(sketch, sum(sketch.nbytes(shape, dtype) for shape in shapes[name]), value)
            for sketch in _sketches()
            if variance.is_cheap(sketch)
            for value in [variance(sketch)]
        ]
    for name in {name for name, found in shapes.items() if found} - set(options):
        raise _unpredictable(name, "no gradient reaches it as one tensor")
    return options


class _Variance:
    """The variance of a layer's weight gradient with any sketch, summed over its calls."""

    def __init__(self, layer: Sketching, calls: list[tuple[Tensor, Tensor]]) -> None:
        self._responses = [layer.noise_response(x, grad) for x, grad in calls]

    def is_cheap(self, sketch: Sketch) -> bool:
        """Whether the sketch's noise can be told without a pass over the layer for each option."""
        parts = (part for each in self._responses for part in sketch.noise(each.rows.shape[1]))
        rotated = any(isinstance(part, Numbers) and part.rotation for part in parts)
        return not rotated or all(response.rotates_freely for response in self._responses)

    def __call__(self, sketch: Sketch) -> float:
        return sum(response.to_sketch(sketch).item() for response in self._responses)


def cheapest_variance(options: dict[str, list[Option]], limit: int) -> dict[str, Option] | None:
    """The option of each layer with the least total variance in `limit` bytes; None if none fit.

    As found from the best steps along the layers' hulls, and from each option in all layers.
    """
    starts = [_along_hulls(options, limit), *_alike(options)]
    fitting = [start for start in starts if start is not None and _bytes(start) <= limit]
    finished = [_filled(options, start, limit - _bytes(start)) for start in fitting]
    return min(finished, key=_rank, default=None)


def _rank(chosen: dict[str, Option]) -> tuple[float, int]:
    """The less variance the better, and of equals the one that keeps more."""
    return _variance(chosen), -_bytes(chosen)


def _bytes(chosen: dict[str, Option]) -> int:
    return sum(option.nbytes for option in chosen.values())


def _variance(chosen: dict[str, Option]) -> float:
    return sum(option.variance for option in chosen.values())


def _alike(options: dict[str, list[Option]]) -> Iterator[dict[str, Option]]:
    """One sketch in all layers, for each that all of them offer."""
    offered = {name: {option.sketch: option for option in found} for name, found in options.items()}
    for sketch in dict.fromkeys(o.sketch for found in options.values() for o in found):
        if all(sketch in of_layer for of_layer in offered.values()):
            yield {name: of_layer[sketch] for name, of_layer in offered.items()}


def _along_hulls(options: dict[str, list[Option]], limit: int) -> dict[str, Option] | None:
    """Greedy steps by the best fall of variance for a byte."""
    hulls = {name: _lower_hull(found) for name, found in options.items()}
    place = dict.fromkeys(hulls, 0)
    left = limit - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        return None
    steps = [step for name in hulls for step in _next_step(hulls, place, name)]
    heapq.heapify(steps)
    while steps:
        _, name, extra = heapq.heappop(steps)
        if extra <= left:
            left -= extra
            place[name] += 1
            for step in _next_step(hulls, place, name):
                heapq.heappush(steps, step)
    return {name: hull[place[name]] for name, hull in hulls.items()}


def _filled(
    options: dict[str, list[Option]], chosen: dict[str, Option], left: int
) -> dict[str, Option]:
    """What is left of the bytes spent on single better options.

    At last on larger ones in layers about which nothing is known: of their options, all have the
    variance 0, as before a branch that starts at zero.
    """
    chosen = dict(chosen)
    while better := _single_gains(options, chosen, left):
        _, name, option = max(better, key=lambda gain: gain[0])
        left -= option.nbytes - chosen[name].nbytes
        chosen[name] = option
    return chosen


def _sketches() -> Iterator[Sketch]:
    yield Identity()
    for kind in kinds().values():
        yield from kind.menu()


def _smallest(options: dict[str, list[Option]]) -> dict[str, Option]:
    """The options that keep the fewest bytes."""
    return {name: min(found, key=lambda o: o.nbytes) for name, found in options.items()}


def _simple(options: dict[str, list[Option]]) -> list[dict[str, Option]]:
    """The smallest options, and one sketch in all layers: where nothing else fits, one of these
    may, since a sketch that keeps less may need more for a moment."""
    return [_smallest(options), *_alike(options)]


def _sketches_of(chosen: dict[str, Option]) -> dict[str, Sketch]:
    return {name: option.sketch for name, option in chosen.items()}


def _measured(trial: Trial, chosen: dict[str, Option]) -> int:
    """All bytes with those options."""
    return trial.total_bytes(_sketches_of(chosen), trial.full_batch)


def _beside(trial: Trial, chosen: dict[str, Option]) -> int:
    """The bytes that are taken beside what the sketches keep, with those options."""
    return _measured(trial, chosen) - _bytes(chosen)


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


def _next_step(
    hulls: dict[str, list[Option]], place: dict[str, int], name: str
) -> list[tuple[float, str, int]]:
    """The layer's next step along its hull, the best fall of variance for a byte first."""
    hull, at = hulls[name], place[name]
    if at + 1 == len(hull):
        return []
    return [(_slope(hull[at], hull[at + 1]), name, hull[at + 1].nbytes - hull[at].nbytes)]


def _single_gains(
    options: dict[str, list[Option]], chosen: dict[str, Option], left: int
) -> list[tuple[float, str, Option]]:
    """The layers' options that lower the variance and fit into what is left."""
    return [
        (chosen[name].variance - option.variance, name, option)
        for name, found in options.items()
        for option in found
        if option.variance < chosen[name].variance and option.nbytes - chosen[name].nbytes <= left
    ] or [
        (option.nbytes, name, option)
        for name, found in options.items()
        if not any(option.variance for option in found)
        for option in found
        if 0 < option.nbytes - chosen[name].nbytes <= left
    ]


def _reason(options: dict[str, list[Option]], chosen: dict[str, Option]) -> str:
    """The predicted variance, and that of one kind of sketch in all layers at no more bytes."""
    total = _bytes(chosen)
    uniform = [
        (_variance(alike), repr(next(iter(alike.values())).sketch))
        for alike in _alike(options)
        if _bytes(alike) <= total
    ]
    variance = _variance(chosen)
    best = min(uniform, default=None)
    beside = f"; {best[1]} in every layer: {best[0]:.3g}" if best else ""
    return f"least predicted gradient variance, {variance:.3g}{beside}"


def _unpredictable(name: str, why: str) -> UsageError:
    return UsageError(
        f"variant=auto cannot predict the variance of layer {name!r} ({why}): choose a sketch, "
        "such as variant=stochastic_rounding"
    )
