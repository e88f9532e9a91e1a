"""The noise of the whole gradient against depth, where sketches lie on the gradient's path.

A path of `DitheredRounding` makes the gradients by inputs random, and so all before them: noise of
a late layer reaches every earlier weight. In a residual network with norms first each block adds to
the gradient that passes by it, so that the relative error adds up, and does not multiply, with
depth.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.conversion.modules import convert
from rad.sketches import DitheredRounding, Identity

CLASSES = 10


class Block(nn.Module):
    """x + down(GELU(up(norm(x)))). Shapes: (B, width) -> as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return result


def residual_network(depth: int, width: int, seed: int) -> nn.Sequential:
    """So many blocks, a norm and a head, with torch's initial weights: (B, width) -> (B, 10)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = [Block(width) for _ in range(depth)]
        return nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, CLASSES))


def depth_rows(
    depth: int, bits: list[int], *, width: int, batch_size: int, draws: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each number of bits: E |g_hat - g|^2 / |g|^2, over so many draws.

    g is the gradient by all parameters (`relative_variance`), or by those of the first or the last
    block. Inputs are normal, labels random, and layers keep their inputs exactly: what is measured
    is the path alone.
    """
    model = residual_network(depth, width, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, width, generator=generator)
    labels = torch.randint(CLASSES, (batch_size,), generator=generator)
    exact = _gradients(model, x, labels)
    rows = []
    for number in bits:
        rounded = convert(model, Identity(), seed, path=DitheredRounding(number))
        squares = torch.stack([_errors(rounded, x, labels, exact) for _ in range(draws)])
        mean = squares.mean(0)
        rows.append(
            {
                "depth": depth,
                "bits": number,
                "relative_variance": mean[0].item(),
                "standard_error": (squares[:, 0].std() / draws**0.5).item(),
                "first_block": mean[1].item(),
                "last_block": mean[2].item(),
            }
        )
    return rows


def _gradients(model: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Of all parameters, of the first block and of the last: flat, float64."""
    grads = torch.autograd.grad(F.cross_entropy(model(x), labels), list(model.parameters()))
    flat = [grad.flatten().double() for grad in grads]
    each, rest = len(list(Block(1).parameters())), 4  # the last norm and the head
    parts = flat, flat[:each], flat[-rest - each : -rest]
    return [torch.cat(part) for part in parts]


def _errors(model: nn.Module, x: Tensor, labels: Tensor, exact: list[Tensor]) -> Tensor:
    found = _gradients(model, x, labels)
    pairs = zip(found, exact, strict=True)
    return torch.stack([(g - e).square().sum() / e.square().sum() for g, e in pairs])
