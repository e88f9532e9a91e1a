"""The sketches with the least predicted gradient variance in a number of bytes (`variant=auto`).

Layers draw independently, so that the variance of the whole gradient is the sum of the
layers' closed forms (`weight_grad_variance`), here with the activations and gradients of an
example batch. Each layer chooses among rounding (stochastic, dithered, with a code for
zeros or without, on grids of a row or of a longer or shorter block; rotated, where all numbers of
a row have one variance), sampling and rounding, plain sampling, and keeping everything. The best
combination on the lower convex hulls of bytes and variance is found greedily, and compared with
one option in all layers; what is left of the bytes goes to single better options.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from rad.errors import UsageError
from rad.functional.noise_response import NoiseResponse
from rad.nn import Sketching
from rad.planning.greedy import (
    Option,
    alike_everywhere,
    cheapest_variance,
    rank,
    simplest,
    total_bytes,
    total_variance,
)
from rad.planning.limits import Measures, cheapest_within, measured
from rad.planning.probe import Trial
from rad.sketches import Identity, Sketch
from rad.sketches.noise import Noise, Numbers
from rad.sketches.registry import kinds

FEW = 4
"""Sketches in all layers alike that are tried where nothing else fits."""


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
    options = trial.once(layer_options)
    chosen = within(trial, options, limit, _fallbacks(trial))
    if chosen is None:
        return None
    sketches = {name: option.sketch for name, option in chosen.items()}
    return Choice(sketches, _reason(options, chosen))


def within(
    trial: Measures,
    options: dict[str, list[Option]],
    limit: int,
    fallbacks: Iterable[dict[str, Option]],
) -> dict[str, Option] | None:
    """The options of least variance that fit, as measured; the best fallback where none do."""
    chosen = cheapest_within(trial, options, limit, partial(cheapest_variance, options))
    if chosen is not None:
        return chosen
    fitting = (each for each in fallbacks if measured(trial, each) <= limit)
    return min(fitting, key=rank, default=None)


def fewest_bytes(trial: Trial) -> int:
    """A limit with which `choose` finds something: the least that one of `_fallbacks` takes."""
    return min(measured(trial, chosen) for chosen in _fallbacks(trial))


def _fallbacks(trial: Trial) -> list[dict[str, Option]]:
    """What is tried where no division fits: of saved bytes, which add up, a few suffice."""
    return simplest(trial.once(layer_options), FEW if trial.kind == "saved" else None)


def layer_options(trial: Trial, among: Iterable[Sketch] | None = None) -> dict[str, list[Option]]:
    """What each layer may keep, of the trial's example batch: of the menu, or `among` others."""
    shapes = trial.shapes()
    options: dict[str, list[Option]] = {}
    offered = list(menu() if among is None else among)
    units = cache(_units)  # for all layers at once
    for name, calls in trial.inputs_and_gradients().items():
        if not shapes[name]:  # a frozen layer keeps nothing
            continue
        try:
            variance = _Variance(trial.layers[name], calls, units)
        except TypeError as error:
            raise _unpredictable(name, str(error)) from error
        dtype = calls[0][1].dtype if calls else torch.get_default_dtype()
        options[name] = [
            Option(sketch, sum(sketch.nbytes(shape, dtype) for shape in shapes[name]), value)
            for sketch in offered
            if variance.is_cheap(sketch)
            for value in [variance(sketch)]
        ]
    for name in {name for name, found in shapes.items() if found} - set(options):
        raise _unpredictable(name, "no gradient reaches it as one tensor")
    return options


_UnitsOf = Callable[[Sketch, int], list[tuple[Noise, float]]]


class _Variance:
    """The variance of a layer's weight gradient with any sketch, summed over its calls."""

    def __init__(
        self, layer: Sketching, calls: list[tuple[Tensor, Tensor]], units: _UnitsOf
    ) -> None:
        self._units_of = units
        self._responses: dict[int, list[NoiseResponse]] = defaultdict(list)
        for x, grad in calls:
            response = layer.noise_response(x, grad)
            self._responses[response.rows.shape[1]].append(response)
        self._found: dict[tuple[int, Noise], float] = {}

    def is_cheap(self, sketch: Sketch) -> bool:
        """Whether the sketch's variance takes no pass over the layer for each option."""
        parts = (part for d in self._responses for part, _ in self._units_of(sketch, d))
        rotated = any(isinstance(part, Numbers) and part.rotation for part in parts)
        every = (each for of_width in self._responses.values() for each in of_width)
        return not rotated or all(response.rotates_freely for response in every)

    def __call__(self, sketch: Sketch) -> float:
        parts = ((d, *each) for d in self._responses for each in self._units_of(sketch, d))
        return sum(factor * self._of_unit(d, unit) for d, unit, factor in parts)

    def _of_unit(self, d: int, part: Noise) -> float:
        """The share of a part with a factor of 1, in all calls on rows of d."""
        if (d, part) not in self._found:
            self._found[d, part] = sum(each.to_unit(part) for each in self._responses[d])
        return self._found[d, part]


def _units(sketch: Sketch, d: int) -> list[tuple[Noise, float]]:
    """The parts of the sketch's noise on rows of d, with a factor of 1, and their factors."""
    return [(part.unit(), part.factor) for part in sketch.noise(d)]


def menu() -> Iterator[Sketch]:
    """What every layer is offered: keeping everything, and what each kind of sketch offers."""
    yield Identity()
    for kind in kinds().values():
        yield from kind.menu()


def _reason(options: dict[str, list[Option]], chosen: dict[str, Option]) -> str:
    """The predicted variance, and that of one kind of sketch in all layers at no more bytes."""
    total = total_bytes(chosen)
    uniform = [
        (total_variance(alike), repr(next(iter(alike.values())).sketch))
        for alike in alike_everywhere(options)
        if total_bytes(alike) <= total
    ]
    variance = total_variance(chosen)
    best = min(uniform, default=None)
    beside = f"; {best[1]} in every layer: {best[0]:.3g}" if best else ""
    return f"least predicted gradient variance, {variance:.3g}{beside}"


def _unpredictable(name: str, why: str) -> UsageError:
    return UsageError(
        f"variant=auto cannot predict the variance of layer {name!r} ({why}): choose a sketch, "
        "such as variant=stochastic_rounding"
    )
