"""Parts of a tensor in the order of its numbers, whatever its strides, without a copy of it all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def numbers(x: Tensor, part: slice) -> Tensor:
    """Those of the numbers of x, which count as in a contiguous tensor: flat."""
    parts = [view.reshape(-1) for view in _views(x, part.start, part.stop)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _views(x: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Views of x that hold those of its numbers, in order."""
    if x.is_contiguous():
        yield x.view(-1)[start:stop]
        return
    each = x[0].numel()
    first, last = -(-start // each), stop // each  # the entries that are wanted whole
    if first > last:
        yield from _views(x[last], start - last * each, stop - last * each)
        return
    if start < first * each:
        yield from _views(x[first - 1], start - (first - 1) * each, each)
    if first < last:
        yield x[first:last]
    if last * each < stop:
        yield from _views(x[last], 0, stop - last * each)
