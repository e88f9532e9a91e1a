"""The networks that are benchmarked: the paper's, wider and deeper ones, and other shapes.

The `_wide` ones are the paper's, 8 times as wide and as deep. The IRNN has one layer, and its depth
is the steps': it is 8 times as wide only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad import models

CLASSES = 10
TIMES = 8


@dataclass(frozen=True)
class Network:
    """A model of `rad.models` with its options, and random images of a shape in `CLASSES` classes.

    A network on other data, such as a text, is a class with the same methods and `examples`.
    """

    model: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 150
    """The size of a batch, unless another is asked for."""

    def build(self) -> nn.Module:
        """On the CPU, with the weights of seed 0."""
        return models.build(self.model, self.shape, CLASSES, seed=0, **self.options)

    def batch(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets that depend on the sizes only."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(count, *self.shape, generator=generator)
        return x.to(device), torch.randint(CLASSES, (count,), generator=generator).to(device)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return F.cross_entropy(output, targets)


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
    "feedforward_deep": Network("feedforward", (64,), {"hidden": [64] * 63}, examples=128),
    "feedforward_1024": Network("feedforward", (1024,), {"hidden": [1024] * 3}, examples=1024),
    "feedforward_tokens": Network("feedforward", (256,), {"hidden": [1024, 256] * 2}, 4096),
    "convnet_pointwise": Network("convnet", (64, 16, 16), {"channels": [64] * 4, "kernel": 1}),
}
"""The last four: 64 narrow layers; 1024 x 4; the linear layers of two blocks of a transformer, on
4,096 tokens; convolutions of 1 x 1."""
