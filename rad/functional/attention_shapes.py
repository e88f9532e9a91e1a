"""Queries, keys, values and masks of any number of axes, as attention works on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rad.functional.arguments import product_dtype


class Arranged(NamedTuple):
    """q (B, H, L, E), k (B, K, S, E), v (B, K, S, V), a mask that broadcasts to (B, H, L, S).

    `lead` are the axes of the result that B and H stand for.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    lead: tuple[int, ...]


def arrange(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, enable_gqa: bool
) -> Arranged | None:
    """Views of them; None for what is left to torch.

    That is what torch refuses, tensors without numbers, and keys and values of different numbers of
    heads. Of more than four axes some may have to be copied.
    """
    tensors, own = (q, k, v), 3 if enable_gqa else 2  # axes that do not broadcast
    if min(x.dim() for x in tensors) < own or not all(x.numel() for x in tensors):
        return None
    alike = len({product_dtype(x) for x in tensors}) == 1
    if not alike or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        return None
    if enable_gqa and (k.shape[-3] != v.shape[-3] or q.shape[-3] % k.shape[-3]):
        return None
    try:
        shared = torch.broadcast_shapes(*(x.shape[:-own] for x in tensors))
        lead = (*shared, *q.shape[-own:-2])
        scores = (*lead, q.shape[-2], k.shape[-2])
        if mask is not None and torch.broadcast_shapes(mask.shape, scores) != scores:
            return None
    except RuntimeError:
        return None
    four = [_four_axes(x.expand(*shared, *x.shape[-own:])) for x in tensors]
    if mask is not None:
        if not (mask.dtype == torch.bool or mask.is_floating_point()):
            return None
        mask = mask if mask.dtype == torch.bool else mask.to(product_dtype(q))
        mask = _four_axes(mask.expand(scores) if len(lead) > 2 else mask)
    return Arranged(four[0], four[1], four[2], mask, lead)


def _four_axes(x: Tensor) -> Tensor:
    """x (..., n, d) with two axes before these."""
    while x.dim() < 4:
        x = x.unsqueeze(0)
    return x.flatten(0, -4)
