"""The gradients of a layer, RMS, group or instance norm, from a dithered copy."""

from __future__ import annotations

import torch
from torch import Tensor

from rad import backends
from rad.draws.casts import cast
from rad.draws.reference import READ
from rad.dtypes import accumulation_dtype
from rad.functional.dithered import error_variances, of_rows, piece_of
from rad.functional.norm_rows import Norm
from rad.packing.pieces import pieces
from rad.sketches.rounding import DitheredRounding


def gradients(
    grad_output: Tensor,
    weight: Tensor | None,
    kept: list[Tensor],
    key: Tensor,
    wanted: list[bool],
    dtype: torch.dtype,
    norm: Norm,
    sketch: DitheredRounding,
) -> list[Tensor]:
    """The gradients by x (of that dtype), weight and bias; empty where one is not `wanted`.

    `kept` holds r where the first is wanted, and the sketch of x_hat. Some rows are read at a time.
    """
    grad = norm.view(grad_output)
    batch, groups, channels, space = grad.shape
    wide, d = accumulation_dtype(dtype), channels * space
    r, sketched = (kept[0] if wanted[0] else None), tuple(kept[1:] if wanted[0] else kept)
    weights = grad.new_ones(groups, channels, dtype=wide)
    if weight is not None:
        weights = weight.detach().to(wide).reshape(groups, channels)
    by_x = grad.new_empty(grad.shape if wanted[0] else 0, dtype=dtype)
    by_weight, by_bias = (grad.new_zeros(groups, channels, dtype=wide) for _ in range(2))
    extras = error_variances(sketched, wide) / max(1, d) if r is not None else by_weight
    for part in pieces(range(batch), piece_of(grad) // max(1, groups * d)):
        rows = range(part.start * groups, part.stop * groups)
        g = grad[part.start : part.stop].to(wide)
        if not sketched:
            by_bias += g.sum((0, 3))
            continue
        q = sketch.decompress(sketched, (batch * groups, d), wide, key, rows).view(g.shape)
        if r is None:
            by_weight += (g * q).sum((0, 3))
            by_bias += g.sum((0, 3))
            continue
        extra = of_rows(sketch, extras, q.view(len(rows), d), rows)
        scales = r[rows.start : rows.stop].view(len(part), groups)
        form = _in_loops if backends.in_loops(q) and q.numel() else _in_operators
        target = by_x[part.start : part.stop]
        out = target if dtype == wide else torch.empty_like(target, dtype=wide)
        sums = form(g, q, weights, scales, extra, norm.kind != "rms", out)
        by_weight += sums[0]
        by_bias += sums[1]
        if out is not target:
            target.copy_(cast(out.view(len(rows), d), dtype, key, READ, rows).view(g.shape))
    kind = wide if weight is None else weight.dtype
    parameters = (each.to(kind).view(norm.shape) for each in (by_weight, by_bias))
    return [by_x.view(grad_output.shape) if wanted[0] else by_x, *parameters]


def _in_operators(
    g: Tensor, q: Tensor, weight: Tensor, r: Tensor, extra: Tensor, centred: bool, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Of g and q (n, G, K, L): the gradients by weight and bias (G, K), and by x into `out`, as g.

    weight (G, K), r (n, G), extra (n G, 1 or K L).
    """
    by_weight, by_bias = (g * q).sum((0, 3)), g.sum((0, 3))
    rows = g.shape[0] * g.shape[1]
    weighted, numbers = (each.flatten(2).flatten(0, 1) for each in (g * weight[:, :, None], q))
    slope = (weighted * numbers).mean(1, keepdim=True)
    found = (weighted + weighted * extra).addcmul_(numbers, slope, value=-1)
    if centred:
        found -= weighted.mean(1, keepdim=True)
    torch.mul(found, r.reshape(rows, 1), out=out.view(found.shape))
    return by_weight, by_bias


def _in_loops(
    g: Tensor, q: Tensor, weight: Tensor, r: Tensor, extra: Tensor, centred: bool, out: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by compiled loops."""
    from rad.functional import norm_loops as loops

    g = g.contiguous()
    n, groups, channels, space = g.shape
    if groups == space == 1:
        by_weight, by_bias = (torch.zeros_like(weight) for _ in range(2))
        left, read, found = (each.view(n, channels).numpy() for each in (g, q, out))
        weights, scales = (each.contiguous().view(-1).numpy() for each in (weight, r))
        sums = by_weight.view(-1).numpy(), by_bias.view(-1).numpy()
        extras = extra.contiguous().numpy()
        loops.layer(left, read, weights, scales, extras, centred, found, sums[0], sums[1])
        return by_weight, by_bias
    total, product = (g.new_empty(n, groups, channels) for _ in range(2))
    left, read, found = (each.view(-1, space).numpy() for each in (g, q, out))
    loops.sums(left, read, total.view(-1).numpy(), product.view(-1).numpy())
    r, d = r[:, :, None], channels * space
    factors = [r * weight, *(r * (s * weight).sum(2, keepdim=True) / d for s in (product, total))]
    scale, slope, constant = (each.expand(total.shape).reshape(-1).numpy() for each in factors)
    extras = (extra if extra.shape[1] == 1 else extra.reshape(-1, space)).contiguous().numpy()
    loops.combine(left, read, scale, slope, constant, extras, found)
    return product.sum(0), total.sum(0)
