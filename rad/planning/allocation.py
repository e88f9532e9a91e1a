"""One kind of sketch with a keep fraction for each layer (`allocation=optimal`).

The sketches of different layers are drawn independently, and the gradient of a layer's weight
depends on its own sketch only, so that the variance of the whole gradient is the sum of the layers'
closed forms. A layer that keeps k of the d numbers of each of its n rows has the variance a r(k),
r being the sketch's relative variance, and keeps n k numbers. The sum is convex in the k: greedy
steps, each with the largest fall of variance per byte, reach its minimum to within one step per
layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rad.errors import UsageError
from rad.planning.greedy import Curves, Option, at, divide, total_bytes
from rad.planning.limits import cheapest_within
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
        """The variance of the weight gradient with k numbers kept per row; 0 where all are."""
        if k >= self.width:
            return 0.0
        return self.coefficient * make(keep_fraction(k, self.width)).relative_variance(self.width)

    def curve(self, make: MakeSketch) -> list[Option]:
        """What the layer may keep: 1 to `width` numbers per row, all of them exactly."""
        return [
            Option(
                Identity() if k == self.width else make(keep_fraction(k, self.width)),
                self.rows * k * self.itemsize,
                self.variance(make, k),
            )
            for k in range(1, self.width + 1)
        ]


def keep_fraction(k: int, d: int) -> float:
    """The smallest keep fraction f that keeps k of d numbers, as k = int(d f + 0.999)."""
    return math.nextafter((k - 0.999) / d, 1.0)


def allocate(
    trial: Trial, make: MakeSketch, uniform: float, limit: int, variant: str
) -> tuple[dict[str, Sketch], dict[str, float]]:
    """Sketches of the layers that minimise the predicted variance and fit `limit`, as measured.

    `make` gives the variant's sketch at a keep fraction; statistics are those of the trial's
    example. A layer that gets all of its numbers keeps its input exactly. `uniform` is a keep
    fraction with which all layers fit, returned where no division that is found does. Returns the
    sketches and the keep fractions, by layer.
    Raises UsageError where a layer's variance has no closed form, and where the gradient is zero
    or not finite.
    """
    layers = layer_costs(trial, make, variant)
    curves = {layer.name: layer.curve(make) for layer in layers}

    def find(available: int) -> dict[str, Option] | None:
        return divide(curves, available, alike(curves, layers, make, available))

    chosen = cheapest_within(trial, curves, limit, find)
    if chosen is None:
        names = [layer.name for layer in layers]
        return dict.fromkeys(names, make(uniform)), dict.fromkeys(names, uniform)
    kept = {name: curves[name].index(option) + 1 for name, option in chosen.items()}
    fractions = {layer.name: keep_fraction(kept[layer.name], layer.width) for layer in layers}
    return {name: option.sketch for name, option in chosen.items()}, fractions


def alike(
    curves: Curves, layers: list[LayerCost], make: MakeSketch, limit: int
) -> dict[str, int] | None:
    """Places on the curves at one keep fraction, the largest that fits; None if none does."""
    fractions = {keep_fraction(k, c.width) for c in layers for k in range(1, c.width + 1)}
    for fraction in sorted(fractions, reverse=True):
        places = {layer.name: make(fraction).kept(layer.width) - 1 for layer in layers}
        if total_bytes(at(curves, places)) <= limit:
            return places
    return None


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
