"""The forward and the backward pass of attention, one strip of probabilities at a time.

Axes, tiles and strips: `rad.functional.attention_tiles`; formulas: `rad.functional.attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rad.draws.casts import cast
from rad.draws.dispatch import fold_in
from rad.draws.reference import READ
from rad.dtypes import accumulation_dtype
from rad.functional.attention_mask import add_gradient, in_type
from rad.functional.attention_tiles import (
    Attention,
    Hidden,
    Sizes,
    Strip,
    Tile,
    by_key_heads,
    hidden_of,
    mask_of,
    probabilities,
    work,
)
from rad.functional.dithered import error_variances, of_rows
from rad.functional.dropout import LEVELS, drop
from rad.functional.softmax import rows_gradient
from rad.packing.codes import PLANES
from rad.sketches.base import Sketch
from rad.sketches.rounding import DitheredRounding

QUERIES, KEYS, VALUES, PROBABILITIES, DROPOUT, MASK = range(6)
"""The sub-keys of what is kept, dropped or rounded: no two of them share a draw."""

Gradients = tuple[Tensor, Tensor, Tensor]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    key: Tensor,
    how: Attention,
    sketch: DitheredRounding | None,
) -> list[Tensor]:
    """The result (B, H, L, V), and what a sketch keeps of the probabilities, strip by strip.

    q (B, H, L, E), k (B, K, S, E), v (B, K, S, V); a mask broadcasts to (B, H, L, S).
    """
    sizes, wide = Sizes.of(q, k, v), accumulation_dtype(q.dtype)
    result = q.new_empty(sizes.B, sizes.L, sizes.H, sizes.V).transpose(1, 2)
    kept: list[Tensor] = []
    parts = work(sizes, how.causal, q.is_cpu)
    keys = _strip_keys(key, PROBABILITIES, parts) if sketch is not None else ()
    drops = _strip_keys(key, DROPOUT, parts) if how.kept_levels < LEVELS else ()
    for tile, strips in parts:
        left, target = tile.of(q, sizes).to(wide), tile.of(result, sizes)
        right, values = (tile.of(x, sizes).to(wide).flatten(0, 1) for x in (k, v))
        for strip in strips:
            seen = slice(strip.keys)
            hidden = hidden_of(mask, how.causal, tile, strip, sizes, q.device)
            bias = _bias(mask, tile, strip, sizes)
            p = probabilities(strip.of(left), right[:, seen], how.scale, bias, hidden)
            if sketch is not None:
                kept += sketch.compress(p.view(-1, strip.keys), keys[strip.number])
            p = _dropped(p, how, drops, strip)
            found = torch.bmm(by_key_heads(p, len(values)), values[:, seen])
            strip.of(target).copy_(found.view(strip.of(target).shape))
    return [result, *kept]


@dataclass(frozen=True)
class Kept:
    """What is kept of attention, and what it takes to read it.

    `queries` and `keys` hold q and k where `how.exact`, else their sketches; `values` that of v;
    `strips` those of the probabilities, one strip's after the other.
    """

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    strips: list[Tensor]
    mask: Tensor | None
    key: Tensor
    sizes: Sizes
    how: Attention
    sketch: Sketch
    dtype: torch.dtype  # of q, k and v

    @property
    def wide(self) -> torch.dtype:
        """The type that all is read and calculated in."""
        return accumulation_dtype(self.dtype)

    @cached_property
    def parts(self) -> list[tuple[Tile, list[Strip]]]:
        """All tiles and strips."""
        return work(self.sizes, self.how.causal, self.key.is_cpu)

    @cached_property
    def sub_keys(self) -> tuple[Tensor, ...]:
        """Those of the sketches of q, k and v."""
        return tuple(fold_in(self.key, use) for use in (QUERIES, KEYS, VALUES))

    @cached_property
    def strip_keys(self) -> tuple[Tensor, ...]:
        """Those of the sketches of the strips."""
        return _strip_keys(self.key, PROBABILITIES, self.parts)

    @cached_property
    def drop_keys(self) -> tuple[Tensor, ...]:
        """Those of what is dropped in the strips."""
        return _strip_keys(self.key, DROPOUT, self.parts)

    def read(self, kept: list[Tensor], use: int, tile: Tile) -> Tensor:
        """What a tile holds of q, k or v: (b, h, L or S, E or V)."""
        if self.how.exact and use != VALUES:
            return tile.of(kept[0], self.sizes).to(self.wide)
        shape = self.sizes.shapes[use]
        rows, flat = tile.rows(shape, self.sizes), (math.prod(shape[:3]), shape[3])
        x_hat = self.sketch.decompress(tuple(kept), flat, self.wide, self.sub_keys[use], rows)
        return x_hat.view(len(tile.batch), -1, *shape[2:])

    def probabilities(
        self, q: Tensor | None, k: Tensor | None, tile: Tile, strip: Strip, hidden: Hidden | None
    ) -> tuple[Tensor, Tensor]:
        """p of a strip (b, h, l, s), exact or read; the variance of each number of its rows.

        From q (b, h, L, E) and k (n, S, E), where these are exact.
        """
        if self.how.exact:
            assert q is not None
            assert k is not None
            bias = _bias(self.mask, tile, strip, self.sizes)
            p = probabilities(strip.of(q), k[:, : strip.keys], self.how.scale, bias, hidden)
            return p, p.new_zeros(1, 1).expand(p.shape[:3].numel(), 1)
        assert isinstance(self.sketch, DitheredRounding)
        tensors = len(PLANES[self.sketch.bits]) + 1
        kept = tuple(self.strips[strip.number * tensors : (strip.number + 1) * tensors])
        heads = len(tile.heads) * (self.sizes.H // self.sizes.K)
        rows = range(len(tile.batch) * heads * len(strip.queries))
        shape = (len(rows), strip.keys)
        p = self.sketch.decompress(kept, shape, self.wide, self.strip_keys[strip.number])
        extra = of_rows(self.sketch, error_variances(kept, self.wide), p, rows)
        p = p.view(len(tile.batch), heads, len(strip.queries), strip.keys)
        if hidden is not None:
            hidden.fill(p)
        return p, extra


def gradients(grad_output: Tensor, kept: Kept, wanted: list[bool]) -> list[Tensor]:
    """The gradients by q, k, v and the mask, of their type; empty where one is not `wanted`."""
    sizes, by_mask = kept.sizes, None
    results = [
        grad_output.new_empty(shape if is_wanted else 0, dtype=kept.dtype)
        for shape, is_wanted in zip(sizes.shapes, wanted[:3], strict=True)
    ]
    if wanted[3] and kept.mask is not None:
        by_mask = grad_output.new_zeros(kept.mask.shape, dtype=kept.wide)
    for tile, strips in kept.parts:
        grad = tile.of(grad_output, sizes).to(kept.wide)
        found = _of_tile(grad, kept, wanted, by_mask, tile, strips)
        for use, (result, total) in enumerate(zip(results, found, strict=True)):
            if wanted[use]:
                rows = tile.rows(sizes.shapes[use], sizes)
                flat, key = total.view(len(rows), -1), kept.sub_keys[use]
                target = tile.of(result, sizes)
                target.copy_(cast(flat, kept.dtype, key, READ, rows).view(target.shape))
    if by_mask is None:
        return [*results, grad_output.new_empty(0, dtype=kept.dtype)]
    return [*results, in_type(by_mask, kept.dtype, fold_in(kept.key, MASK))]


def _of_tile(
    grad: Tensor,
    kept: Kept,
    wanted: list[bool],
    by_mask: Tensor | None,
    tile: Tile,
    strips: list[Strip],
) -> Gradients:
    """The gradients of a tile, from the one by its result (b, h, L, V); zeros if not `wanted`.

    Adds that by the scores to `by_mask`.
    """
    by_q, by_k, by_v, _ = wanted
    how, sizes, n = kept.how, kept.sizes, len(tile.batch) * len(tile.heads)
    drops = kept.drop_keys if how.kept_levels < LEVELS else ()
    q = kept.read(kept.queries, QUERIES, tile) if by_k or how.exact else None
    k = kept.read(kept.keys, KEYS, tile).flatten(0, 1) if by_q or how.exact else None
    needs_v = by_q or by_k or by_mask is not None
    v = kept.read(kept.values, VALUES, tile).flatten(0, 1) if needs_v else None
    of_q = grad.new_empty(*grad.shape[:3], sizes.E if by_q else 0)
    of_k, of_v = (
        grad.new_zeros(n, sizes.S, width if is_wanted else 0)
        for width, is_wanted in ((sizes.E, by_k), (sizes.V, by_v))
    )
    for strip in strips:
        hidden = hidden_of(kept.mask, how.causal, tile, strip, sizes, grad.device)
        p, variances = kept.probabilities(q, k, tile, strip, hidden)
        g, seen = by_key_heads(strip.of(grad), n), slice(strip.keys)
        if by_v:
            of_v[:, seen].baddbmm_(by_key_heads(_dropped(p, how, drops, strip), n).mT, g)
        if v is None:
            continue
        by_p = _dropped(torch.bmm(g, v[:, seen].mT).view(p.shape), how, drops, strip)
        g_rows, rows = (x.view(-1, strip.keys) for x in (by_p, p))
        by_scores = rows_gradient(g_rows, rows, variances, rows).view(p.shape)
        if hidden is not None:
            hidden.fill(by_scores)
        if by_mask is not None:
            add_gradient(by_mask, by_scores, tile, strip, sizes)
        left = by_key_heads(by_scores, n)
        if by_q and k is not None:
            target = strip.of(of_q)
            target.copy_(torch.bmm(left, k[:, seen]).mul_(how.scale).view(target.shape))
        if by_k and q is not None:
            of_k[:, seen].baddbmm_(left.mT, by_key_heads(strip.of(q), n), alpha=how.scale)
    return of_q, of_k, of_v


def _bias(mask: Tensor | None, tile: Tile, strip: Strip, sizes: Sizes) -> Tensor | None:
    """What a mask adds to the scores of a strip."""
    if mask is None or mask.dtype == torch.bool:
        return None
    return mask_of(mask, tile, strip, sizes)


def _dropped(x: Tensor, how: Attention, keys: tuple[Tensor, ...], strip: Strip) -> Tensor:
    """x (b, h, l, s) with the same numbers dropped in both passes; no keys: none are."""
    return drop(x, how.kept_levels, keys[strip.number]) if keys else x


def _strip_keys(key: Tensor, use: int, parts: list[tuple[Tile, list[Strip]]]) -> tuple[Tensor, ...]:
    """A sub-key for each strip, by its number."""
    count = sum(len(strips) for _, strips in parts)
    return fold_in(fold_in(key, use), torch.arange(count, device=key.device)).unbind()
