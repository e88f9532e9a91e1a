"""Attention of several shapes, and its formulas with everything dense."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.functional.attention_passes import DROPOUT, KEYS, PROBABILITIES, QUERIES, VALUES
from rad.functional.attention_tiles import Sizes, work
from rad.functional.dropout import LEVELS, drop
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)

KEY = make_key(7)


@dataclass(frozen=True)
class Case:
    """Attention of some shapes; `mask` is the shape of one."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    mask: tuple[int, ...] | None = None
    causal: bool = False
    gqa: bool = False
    scale: float | None = None

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        torch.manual_seed(0)
        return [torch.randn(s, dtype=dtype).requires_grad_() for s in (self.q, self.k, self.v)]

    def hidden(self, kind: str, dtype: torch.dtype) -> Tensor | None:
        """A mask of bool, or one that is added."""
        if self.mask is None:
            return None
        torch.manual_seed(1)
        seen = torch.rand(self.mask) < 0.7
        seen[..., 0] = True
        if kind == "bool":
            return seen
        return torch.randn(self.mask, dtype=dtype).masked_fill(~seen, -math.inf)

    @property
    def options(self) -> dict[str, object]:
        return {"is_causal": self.causal, "scale": self.scale, "enable_gqa": self.gqa}

    def naive(
        self,
        tensors: list[Tensor],
        mask: Tensor | None,
        grad_output: Tensor,
        sketch: Sketch,
        keep: str,
        dropout_p: float = 0.0,
        corrected: bool = True,
    ) -> tuple[Tensor, list[Tensor]]:
        """The formulas with everything dense, float32 at least: the result, and the gradients.

        Those by q, k and v, and by an added mask.
        """
        wide = accumulation_dtype(tensors[0].dtype)
        exact = [x.detach().to(wide) for x in tensors]
        q, k, v = (x[(None,) * (4 - x.dim())] for x in exact)
        sizes = Sizes.of(q, k, v)
        each = sizes.H // sizes.K
        scale = 1 / math.sqrt(sizes.E) if self.scale is None else self.scale
        seen = torch.ones(sizes.L, sizes.S, dtype=torch.bool)
        seen, bias = (seen.tril() if self.causal else seen), torch.zeros((), dtype=wide)
        if mask is not None and mask.dtype == torch.bool:
            seen = seen & mask
        elif mask is not None:
            seen, bias = mask > -math.inf, mask.to(wide)

        def spread(x: Tensor) -> Tensor:
            return x.repeat_interleave(each, 1)

        def gathered(x: Tensor) -> Tensor:
            return x.unflatten(1, (sizes.K, each)).sum(2)

        scores = scale * q @ spread(k).mT + bias
        p = scores.masked_fill(~seen, -math.inf).softmax(-1)
        variance, dropped, read = (torch.zeros_like(p) for _ in range(3))
        levels = round((1 - dropout_p) * LEVELS)
        for tile, strips in work(sizes, self.causal, True):
            for strip in strips:
                here = (slice(None), slice(None), slice(None), slice(strip.keys))

                def of(x: Tensor) -> Tensor:
                    return strip.of(tile.of(x, sizes))[here]  # noqa: B023

                rows, keys = of(p), [fold_in(fold_in(KEY, u), strip.number) for u in range(5)]
                dropped_now = drop(torch.ones_like(rows), levels, keys[DROPOUT])
                of(dropped).copy_(dropped_now if dropout_p else torch.ones_like(rows))
                if keep == "probabilities":
                    assert isinstance(sketch, DitheredRounding)
                    flat = rows.reshape(-1, strip.keys)
                    kept = sketch.compress(flat, keys[PROBABILITIES])
                    q_hat = sketch.decompress(kept, flat.shape, wide, keys[PROBABILITIES])
                    of(read).copy_(q_hat.view(rows.shape))
                    of(variance).copy_(sketch.element_variance(flat).view(rows.shape))
        read = (read if keep == "probabilities" else p) * seen
        found = []
        for use, x in ((QUERIES, q), (KEYS, k), (VALUES, v)):
            key = fold_in(KEY, use)
            is_read = keep == "probabilities" or use == VALUES
            kept = sketch.compress(x, key) if is_read else ()
            found.append(sketch.decompress(kept, x.shape, wide, key) if is_read else x)
        q_hat, k_hat, v_hat = found
        g = grad_output.to(wide)
        g = g[(None,) * (4 - g.dim())]
        by_p = dropped * (g @ spread(v_hat).mT)
        by_scores = read * (by_p - (read * by_p).sum(-1, keepdim=True))
        if corrected:
            by_scores = by_scores + by_p * variance * seen
        by_q = scale * by_scores @ spread(k_hat)
        by_k = gathered(scale * by_scores.mT @ q_hat)
        by_v = gathered((read * dropped).mT @ g)
        grads = [d.view(x.shape) for d, x in zip((by_q, by_k, by_v), tensors, strict=True)]
        if mask is not None and mask.dtype != torch.bool:
            grads.append(by_scores.sum_to_size(mask.shape))
        return ((p * dropped) @ spread(v)).view(grad_output.shape), grads


CASES = {
    "four_axes": Case((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    "two_axes": Case((5, 4), (7, 4), (7, 4), scale=0.3),
    "three_axes": Case((3, 5, 4), (3, 5, 4), (3, 5, 4), mask=(5, 5)),
    "causal": Case((2, 2, 37, 4), (2, 2, 37, 4), (2, 2, 37, 4), causal=True),
    "causal_more_keys": Case((1, 2, 20, 4), (1, 2, 37, 4), (1, 2, 37, 4), causal=True),
    "causal_fewer_keys": Case((1, 2, 37, 4), (1, 2, 20, 4), (1, 2, 20, 4), causal=True),
    "masked": Case((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), mask=(2, 1, 1, 7)),
    "masked_each": Case((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), mask=(2, 3, 5, 7)),
    "grouped": Case((2, 6, 5, 4), (2, 2, 7, 4), (2, 2, 7, 6), gqa=True, mask=(6, 5, 7)),
    "grouped_causal": Case((2, 4, 33, 4), (2, 2, 33, 4), (2, 2, 33, 6), gqa=True, causal=True),
}
SKETCHES: list[tuple[Sketch, str]] = [
    (DitheredRounding(2), "probabilities"),
    (DitheredRounding(3, block=4), "probabilities"),
    (DitheredRounding(2, zero_code=True), "probabilities"),
    (DitheredRounding(2), "inputs"),
    (StochasticRounding(3), "inputs"),
    (DifferentSample(0.5), "inputs"),
]
SMALL = 300
"""Numbers of a piece for which the cases have several tiles and strips."""
