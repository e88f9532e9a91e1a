"""The probabilities of attention, formed one strip at a time: no more of them stand in memory.

Axes, by their letters: B batch; H heads of queries, K heads of keys and values, each of which
serves H / K heads of queries; L queries and S keys, of width E; values of width V. A *tile* is some
heads of some examples; its *strips* are some queries each, and the keys that they may see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rad.functional.dithered import DEVICE_PIECE, PIECE
from rad.packing.pieces import pieces

CAUSAL_STRIPS = 8
"""Into how many strips causal queries are cut: 1/16 more than the half that is seen is computed,
and kept."""

FEWEST_QUERIES = 32
"""Queries of a causal strip, at least."""


@dataclass(frozen=True)
class Attention:
    """What attention is, apart from its tensors, and what it keeps.

    Of the probabilities, `kept_levels` / 2**16 survive a dropout. With `exact`, q and k are kept as
    they are, and no probabilities.
    """

    scale: float
    causal: bool
    kept_levels: int
    exact: bool


class Sizes(NamedTuple):
    """The axes of attention."""

    B: int
    H: int
    K: int
    L: int
    S: int
    E: int
    V: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> Sizes:
        """Of q (B, H, L, E), k (B, K, S, E) and v (B, K, S, V)."""
        batch, heads, queries, width = q.shape
        return cls(batch, heads, k.shape[1], queries, k.shape[2], width, v.shape[3])

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Those of q, k and v."""
        B, H, K, L, S, E, V = self
        return (B, H, L, E), (B, K, S, E), (B, K, S, V)


class Strip(NamedTuple):
    """Some queries, and how many keys, from the first on, they may see. `number` counts strips."""

    number: int
    queries: range
    keys: int

    def of(self, x: Tensor) -> Tensor:
        """Its queries of x (b, h, L, d): a view."""
        return x[:, :, self.queries.start : self.queries.stop]


class Tile(NamedTuple):
    """Some heads of keys in some examples: all heads, or one example."""

    batch: range
    heads: range

    def of(self, x: Tensor, sizes: Sizes) -> Tensor:
        """What it holds of x (B, H or K, ...): a view."""
        each = x.shape[1] // sizes.K
        heads = slice(self.heads.start * each, self.heads.stop * each)
        return x[self.batch.start : self.batch.stop, heads]

    def rows(self, shape: tuple[int, ...], sizes: Sizes) -> range:
        """The rows of length d that it holds of a tensor of that shape (B, H or K, n, d)."""
        each = shape[1] // sizes.K * shape[2]
        first = (self.batch.start * sizes.K + self.heads.start) * each
        return range(first, first + len(self.batch) * len(self.heads) * each)


def work(sizes: Sizes, causal: bool, on_cpu: bool) -> list[tuple[Tile, list[Strip]]]:
    """All tiles, each with its strips, of which each is no more than a piece, or one query."""
    piece, each = PIECE if on_cpu else DEVICE_PIECE, sizes.H // sizes.K
    most = piece // (each * sizes.S)
    if causal:
        most = min(most, max(FEWEST_QUERIES, -(-sizes.L // CAUSAL_STRIPS)))
    cut = pieces(range(sizes.L), most)
    room = max(1, piece // (each * len(cut[0]) * sizes.S))  # heads of a tile
    examples = pieces(range(sizes.B), room // sizes.K)
    heads = pieces(range(sizes.K), room)
    seen = [min(part.stop, sizes.S) if causal else sizes.S for part in cut]
    tiles = [Tile(batch, some) for batch in examples for some in heads]
    return [
        (tile, [Strip(i * len(cut) + j, part, seen[j]) for j, part in enumerate(cut)])
        for i, tile in enumerate(tiles)
    ]


class Hidden(NamedTuple):
    """Which probabilities of a strip are masked, of the columns from `first` on."""

    first: int
    mask: Tensor  # broadcasts to (b, h, l, s - first)

    def fill(self, x: Tensor, value: float = 0.0) -> None:
        """Set them to that value, in x (b, h, l, s)."""
        x[..., self.first :].masked_fill_(self.mask, value)


def hidden_of(
    mask: Tensor | None, causal: bool, tile: Tile, strip: Strip, sizes: Sizes, device: torch.device
) -> Hidden | None:
    """What a mask (B or 1, H or 1, L or 1, S or 1), or causality, hides of a strip."""
    if causal:
        first = strip.queries.start
        shape = len(strip.queries), strip.keys - first
        if shape[1] <= 1:
            return None
        return Hidden(first, torch.ones(shape, dtype=torch.bool, device=device).triu_(1))
    if mask is None:
        return None
    part = mask_of(mask, tile, strip, sizes)
    return Hidden(0, part.logical_not() if part.dtype == torch.bool else part == -math.inf)


def mask_of(mask: Tensor, tile: Tile, strip: Strip, sizes: Sizes) -> Tensor:
    """What a strip meets of a mask (B or 1, H or 1, L or 1, S or 1): a view."""
    each = sizes.H // sizes.K
    heads = range(tile.heads.start * each, tile.heads.stop * each)
    for axis, wanted in enumerate((tile.batch, heads, strip.queries)):
        if mask.shape[axis] > 1:
            mask = mask.narrow(axis, wanted.start, len(wanted))
    return mask


def probabilities(
    q: Tensor, k: Tensor, scale: float, bias: Tensor | None, hidden: Hidden | None
) -> Tensor:
    """softmax(scale q k^T + bias) of a strip, 0 where it is hidden: (b, h, l, s).

    q (b, h, l, E) and k (n, s, E), n being b times the heads of k; float32 at least.
    """
    scores = torch.bmm(by_key_heads(q * scale, len(k)), k.mT)
    scores = scores.view(*q.shape[:3], k.shape[1])
    if bias is not None:
        scores += bias
    if hidden is not None:
        hidden.fill(scores, -math.inf)
    found = torch.softmax(scores, -1)
    if hidden is not None:
        hidden.fill(found)  # of a query that sees no key, zeros, as torch's
    return found


def by_key_heads(x: Tensor, n: int) -> Tensor:
    """x (b, h, l, d) as factors of products with n heads of keys or values: (n, h l / n, d)."""
    return x.reshape(n, -1, x.shape[-1])
