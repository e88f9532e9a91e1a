"""Dividing a memory budget among the layers of a network.

The sketches of different layers are drawn independently and each is met once by the gradient, so
that the variance of the whole gradient is the sum of the layers' closed forms. A layer whose
rows keep k of d numbers has the variance a r(k), r being the sketch's relative variance, and takes
n k numbers. The sum is convex in the k: greedy steps by the best fall of variance for a byte
reach its minimum, up to one step a layer.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rad.errors import UsageError
from rad.planning.probe import Trial
from rad.sketches import Identity, Sketch
from rad.sketches.base import ReducingSketch

MakeSketch = Callable[[float], ReducingSketch]


@dataclass(frozen=True)
class LayerCost:
    """One layer: its rows of `width` numbers of `itemsize` bytes, and the a of its variance."""

    name: str
    rows: int
    width: int
    itemsize: int
    coefficient: float

    def variance(self, make: MakeSketch, k: int) -> float:
        """The variance of the weight gradient at k numbers a row; 0 where all are kept."""
        if k >= self.width:
            return 0.0
        return self.coefficient * make(keep_fraction(k, self.width)).relative_variance(self.width)


def keep_fraction(k: int, d: int) -> float:
    """The smallest keep fraction at which k of d numbers are kept: k = int(d f + 0.999)."""
    return math.nextafter((k - 0.999) / d, 1.0)


def allocate(
    trial: Trial, make: MakeSketch, uniform: float, limit: int, variant: str
) -> tuple[dict[str, Sketch], dict[str, float]]:
    """Sketches of the layers that minimise the predicted variance and fit `limit`, as measured.

    `make` gives the variant's sketch at a keep fraction; statistics are those of the trial's
    example. A layer that gets all of its numbers keeps its input exactly. `uniform` is a keep
    fraction with which all layers fit, returned where nothing better does. Returns the
    sketches and the keep fractions, by layer.
    Raises UsageError where a layer's variance has no closed form, and where the gradient is zero
    or not finite.
    """
    layers = layer_costs(trial, make, variant)
    least = {layer.name: 1 for layer in layers}
    fixed = trial.total_bytes(_sketches(layers, make, least), trial.full_batch) - sum(
        layer.rows * layer.itemsize for layer in layers
    )
    available = limit - fixed
    while (kept := _with_exact_layers(layers, make, available)) is not None:
        sketches = _sketches(layers, make, kept)
        over = trial.total_bytes(sketches, trial.full_batch) - limit
        if over <= 0:
            return sketches, {c.name: keep_fraction(kept[c.name], c.width) for c in layers}
        available = min(available, _nbytes(layers, kept)) - over
    names = [layer.name for layer in layers]
    return dict.fromkeys(names, make(uniform)), dict.fromkeys(names, uniform)


def layer_costs(trial: Trial, make: MakeSketch, variant: str) -> list[LayerCost]:
    """What each layer costs and adds to the variance, on the trial's example."""
    probe, widths_of, calls_of = make(1e-9), trial.widths(), trial.inputs_and_gradients()
    costs = []
    for name, calls in calls_of.items():
        layer, widths = trial.layers[name], widths_of[name]
        if not calls or not widths:  # a frozen layer keeps nothing
            continue
        if len(widths) != 1:
            raise UsageError(
                f"layer {name!r} meets inputs of several sizes {sorted(widths)}, which cannot "
                "share one keep fraction: use allocation=uniform"
            )
        (width,) = widths
        try:
            total = sum(layer.weight_grad_variance(x, g, probe).item() for x, g in calls)
        except TypeError as error:
            raise UsageError(
                f"allocation=optimal cannot predict layer {name!r} with {variant} ({error}): use "
                "allocation=uniform"
            ) from error
        relative = probe.relative_variance(width)
        rows = sum(x.numel() // width for x, _ in calls)
        itemsize = max(g.element_size() for _, g in calls)
        costs.append(LayerCost(name, rows, width, itemsize, total / relative if relative else 0.0))
    for name in {name for name, widths in widths_of.items() if widths} - set(calls_of):
        raise UsageError(f"allocation=optimal cannot predict layer {name!r}: use uniform")
    return costs


def _with_exact_layers(
    layers: list[LayerCost], make: MakeSketch, limit: int
) -> dict[str, int] | None:
    """`_greedy` from one number a row, or from the best uniform division where that ends lower.

    Layers are kept exactly whose removal from the sum pays for their bytes: with replacement the
    variance jumps to 0 where all is kept, which greedy steps do not see.
    """
    widths = {layer.name: layer.width for layer in layers}
    starts = [dict.fromkeys(widths, 1), *_uniform(layers, make, limit)]
    found = [kept for start in starts if (kept := _greedy(layers, make, limit, start))]
    if not found:
        return None
    best = min(found, key=lambda kept: total(layers, make, kept))
    exact: dict[str, int] = {}
    while True:
        trials = [exact | {name: widths[name]} for name in widths if name not in exact]
        options = [(whole, _greedy(layers, make, limit, starts[0] | whole)) for whole in trials]
        better = [(total(layers, make, kept), whole, kept) for whole, kept in options if kept]
        if not better:
            return best
        variance, whole, kept = min(better, key=lambda option: option[0])
        if variance >= total(layers, make, best):
            return best
        exact, best = whole, kept


def _uniform(layers: list[LayerCost], make: MakeSketch, limit: int) -> list[dict[str, int]]:
    """The division by one keep fraction, the largest that fits; none where none does."""
    fractions = {keep_fraction(k, c.width) for c in layers for k in range(1, c.width + 1)}
    for fraction in sorted(fractions, reverse=True):
        kept = {layer.name: make(fraction).kept(layer.width) for layer in layers}
        if _nbytes(layers, kept) <= limit:
            return [kept]
    return []


def _nbytes(layers: list[LayerCost], kept: Mapping[str, int]) -> int:
    return sum(layer.rows * kept[layer.name] * layer.itemsize for layer in layers)


def _greedy(
    layers: list[LayerCost], make: MakeSketch, limit: int, start: Mapping[str, int]
) -> dict[str, int] | None:
    """The numbers kept a row, by layer, from `start`; None where that does not fit."""
    kept = dict(start)
    left = limit - _nbytes(layers, kept)
    if left < 0:
        return None

    def step(place: int) -> tuple[float, int]:
        layer = layers[place]
        k, size = kept[layer.name], layer.rows * layer.itemsize
        fall = layer.variance(make, k) - layer.variance(make, k + 1)
        return -fall / size, place

    steps = [step(i) for i, layer in enumerate(layers) if kept[layer.name] < layer.width]
    heapq.heapify(steps)
    while steps:
        _, place = heapq.heappop(steps)
        layer = layers[place]
        if layer.rows * layer.itemsize > left:
            continue
        kept[layer.name] += 1
        left -= layer.rows * layer.itemsize
        if kept[layer.name] < layer.width:
            heapq.heappush(steps, step(place))
    return kept


def total(layers: list[LayerCost], make: MakeSketch, kept: Mapping[str, int]) -> float:
    """The predicted variance of the whole gradient."""
    return sum(layer.variance(make, kept[layer.name]) for layer in layers)


def _sketches(
    layers: list[LayerCost], make: MakeSketch, kept: Mapping[str, int]
) -> dict[str, Sketch]:
    return {
        layer.name: Identity()
        if kept[layer.name] >= layer.width
        else make(keep_fraction(kept[layer.name], layer.width))
        for layer in layers
    }
