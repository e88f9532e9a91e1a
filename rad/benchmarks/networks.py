"""The networks that are benchmarked: the paper's, and the same ones 8 times as wide and as deep.

The IRNN has one layer, and its depth is the steps': it is 8 times as wide only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rad import models

CLASSES = 10
TIMES = 8


@dataclass(frozen=True)
class Network:
    """A model of `rad.models` with its options, for images of a shape."""

    model: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, shape: tuple[int, ...] | None = None) -> nn.Module:
        """On the CPU, for images of that or the usual shape, with the weights of seed 0."""
        return models.build(self.model, shape or self.shape, CLASSES, seed=0, **self.options)


def _deeper(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(TIMES * width for width in widths for _ in range(TIMES))


NETWORKS = {
    "feedforward": Network("feedforward", (1, 28, 28)),
    "convnet": Network("convnet", (3, 32, 32)),
    "irnn": Network("irnn", (1, 28, 28)),
    "feedforward_wide": Network("feedforward", (1, 28, 28), {"hidden": _deeper((300, 300, 300))}),
    "convnet_wide": Network(
        "convnet",
        (3, 32, 32),
        {"channels": _deeper((16, 32, 32, 32)), "pool_every": 2 * TIMES},
    ),
    "irnn_wide": Network("irnn", (1, 28, 28), {"hidden": 100 * TIMES}),
}
