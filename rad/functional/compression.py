"""What an operator keeps of a tensor: its sketch, or the tensor itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.functional.arguments import without_autocast
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity


def keep(sketch: Sketch, x: Tensor, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`sketch.compress` of x in that dtype.

    `Identity` keeps x, or a copy of a part or of another type, within its graph: so a gradient that
    is read from it can be differentiated.
    """
    if isinstance(sketch, Identity):
        if torch.compiler.is_compiling():
            return (x.detach().to(dtype),)
        kept = x.to(dtype)
        return (kept if x.dtype != dtype or sketch.owns(kept) else kept.clone(),)
    x = x.detach()
    if torch.is_autocast_enabled(x.device.type):
        with without_autocast(x):
            return _kept(sketch, x.to(dtype), key)
    return _kept(sketch, x if x.dtype == dtype else x.to(dtype), key)


def _kept(sketch: Sketch, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():
        return tuple(_compress(x, key, as_text(sketch)))
    return sketch.compress(x, key)


@opaque()
def _compress(x: Tensor, key: Tensor, sketch: str) -> list[Tensor]:
    return list(from_text(sketch).compress(x, key))


def read(
    sketch: Sketch, kept: list[Tensor], shape: tuple[int, ...], like: Tensor, key: Tensor
) -> Tensor:
    """`sketch.decompress` of all of a tensor of that shape, in the dtype and place of `like`."""
    if torch.compiler.is_compiling():
        return _decompress(like, kept, list(shape), key, as_text(sketch))
    return sketch.decompress(tuple(kept), tuple(shape), like.dtype, key)


@opaque()
def _decompress(
    like: Tensor, kept: list[Tensor], shape: list[int], key: Tensor, sketch: str
) -> Tensor:
    return from_text(sketch).decompress(tuple(kept), tuple(shape), like.dtype, key)
