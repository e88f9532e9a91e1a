"""Scaled dot product attention that keeps sketches of what it multiplies.

    P = softmax(scale q k^T + mask),   result = P v,
    grad_v = P^T g,   grad_P = g v^T,   grad_S = P (grad_P - rowsum(P grad_P)),
    grad_q = scale grad_S k,   grad_k = scale grad_S^T q,   g = grad_output,

and a mask that is trained has grad_S, summed along the axes along which it broadcasts.

Torch keeps q, k, v and the result. Here one of two things is kept, by default what takes fewer
bytes (`attention_nbytes`):

*probabilities*: sketches of q, k and v, and a dithered copy of P, each with draws of its own, and
strip by strip, so that little of what causality masks is kept. The gradients are read from these,
grad_S with the known mean of the error of P squared subtracted (`rad.functional.softmax`). Every
other product is of independent draws: all three gradients are unbiased. For short sequences: of S
keys in b bits, the probabilities of a query take S b / 8 bytes, where q and k take 8 E in float32.

*inputs*: q and k exactly, and a sketch of v, which may be any: P is formed again from q and k, and
the gradients are linear in what is read of v; that by v is exact. Forward is torch's own kernel,
and backward costs the product q k^T once more.

In both ways P stands in memory a strip at a time, in forward and in backward. Masked probabilities
are known from the mask, which is kept as it was given (of a trained one, beside probabilities, a
bit a number: `rad.functional.attention_mask`), and read as exact zeros. A dropout's mask is drawn
again from the key. Sums run in float32 at least.

On one core of a CPU, 8 examples of 8 heads, 128 queries and keys of width 32, in 4 bits:
probabilities take 0.28 of the bytes that torch's fused kernel keeps (0.23 where causal) and 2.4
times the time of its two passes, inputs 0.54 of the bytes and twice the time.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.draws.dispatch import fold_in
from rad.draws.reference import KEY_BYTES
from rad.dtypes import accumulation_dtype
from rad.errors import UsageError
from rad.functional.apply import apart
from rad.functional.arguments import check_real, product_dtype, without_autocast
from rad.functional.attention_mask import attention_seen, attention_seen_bits, mask_bytes
from rad.functional.attention_passes import KEYS, QUERIES, VALUES, Kept, attend, gradients
from rad.functional.attention_shapes import Arranged, arrange
from rad.functional.attention_tiles import Attention, Sizes, work
from rad.functional.compression import keep as keep_sketch
from rad.functional.dithered import check_quadratic, keep_last_axis
from rad.functional.dropout import LEVELS
from rad.functional.second_order import OF_ATTENTION, refused
from rad.sketches.base import Sketch
from rad.sketches.blockwise import Rounding
from rad.sketches.identity import Identity
from rad.sketches.rounding import DitheredRounding

_EXACTLY = Identity()

Keep = Literal["probabilities", "inputs"]
"""What attention keeps: see the module."""


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    sketch: Sketch,
    key: Tensor,
    keep: Keep | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` that keeps sketches.

    Forward is torch's to rounding (the dropout's mask is a function of the key), the gradients by
    q, k, v and the mask are unbiased. Kept: what the module says under *probabilities* or *inputs*,
    the key and the mask. `keep` chooses; by default it is what takes fewer bytes, and *inputs* for
    sketches other than `DitheredRounding`. Rows of the sketch are the vectors of q, k and v and
    those of P: short ones are kept in fewer bytes with a `block` of, say, 256.
    Shapes: q (*, H, L, E), k (*, K, S, E), v (*, K, S, V) -> (*, H, L, V), K being H unless
    `enable_gqa`, and a mask that broadcasts to (*, H, L, S): of bool (True: seen), or added.
    It is torch's own with `Identity`, where nothing needs a gradient and nothing is dropped, and
    for what torch refuses. Differentiating twice raises RuntimeError.
    Raises UsageError for an unknown `keep` and for the probabilities of another sketch than
    `DitheredRounding`, TypeError for numbers that are not real floating-point ones, ValueError
    unless 0 <= dropout_p <= 1.
    """
    for x in (q, k, v):
        check_real(x)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout probability must lie in [0, 1], got {dropout_p}")
    exact = _keeps_inputs(sketch, keep)
    arranged = None if isinstance(sketch, Identity) else arrange(q, k, v, attn_mask, enable_gqa)
    needed = torch.is_grad_enabled() and any(_wanted(q, k, v, attn_mask))
    two_masks = is_causal and attn_mask is not None
    if arranged is None or two_masks or not (needed or dropout_p):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if exact is None:
        probabilities, inputs = _ways(arranged, is_causal, sketch)
        exact = inputs < probabilities
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    how = Attention(scale, is_causal, round((1 - dropout_p) * LEVELS), exact)
    q, k, v = (x.to(product_dtype(x)) for x in (arranged.q, arranged.k, arranged.v))
    if needed:
        result: Tensor = _Attention.apply(*apart(q, k, v, arranged.mask), key, how, sketch)
    else:
        result = _attended(q, k, v, arranged.mask, key, how, None)[0]
    return result.reshape(*arranged.lead, *result.shape[2:])


def attention_nbytes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool = False,
    enable_gqa: bool = False,
    *,
    sketch: Sketch,
    keep: Keep | None = None,
    attn_mask: Tensor | None = None,
) -> int:
    """Bytes that a call of `scaled_dot_product_attention` keeps, a mask that is not trained aside.

    They depend on which of the tensors require gradients. 0 for what is torch's own: what its
    kernels keep is beyond this account.
    """
    exact = _keeps_inputs(sketch, keep)
    arranged = None if isinstance(sketch, Identity) else arrange(q, k, v, attn_mask, enable_gqa)
    if arranged is None:
        return 0
    probabilities, inputs = _ways(arranged, is_causal, sketch)
    if exact is None:
        return min(inputs, probabilities)
    return inputs if exact else probabilities


def _keeps_inputs(sketch: Sketch, keep: Keep | None) -> bool | None:
    """Whether q and k are kept; None where the bytes decide."""
    if keep is not None and keep not in get_args(Keep):
        raise UsageError(f"unknown keep {keep!r}: choose 'probabilities' or 'inputs'")
    if keep == "probabilities":
        check_quadratic(sketch)
    if keep is None and isinstance(sketch, DitheredRounding):
        return None
    return keep != "probabilities"


def _wanted(*tensors: Tensor | None) -> list[bool]:
    return [x is not None and x.requires_grad for x in tensors]


def _ways(arranged: Arranged, causal: bool, sketch: Sketch) -> tuple[int, int]:
    """The bytes kept as probabilities, and as inputs."""
    q, k, v, mask, _ = arranged
    by_q, by_k, by_mask = _wanted(q, k, mask)
    sizes, dtype = Sizes.of(q, k, v), product_dtype(q)
    values = _vector_bytes(sketch, v, dtype) if by_q or by_k or by_mask else 0
    inputs = sum(x.numel() for x in (q, k)) * dtype.itemsize
    rounded = sum(
        _vector_bytes(sketch, x, dtype) for x, is_read in ((q, by_k), (k, by_q)) if is_read
    )
    for (rows, keys), count in _strips(sizes, causal, q.is_cpu).items():
        rounded += count * sketch.nbytes((rows, keys), accumulation_dtype(dtype))
    both = KEY_BYTES + values
    of_mask = mask_bytes(mask)
    return both + rounded + of_mask[0], both + inputs + of_mask[1]


def _vector_bytes(sketch: Sketch, x: Tensor, dtype: torch.dtype) -> int:
    kind = accumulation_dtype(dtype) if isinstance(sketch, Rounding) else dtype
    return sketch.nbytes(tuple(x.shape), kind)


def _strips(sizes: Sizes, causal: bool, on_cpu: bool) -> Counter[tuple[int, int]]:
    """The shapes of all strips of probabilities, and how many have each."""
    each = sizes.H // sizes.K
    return Counter(
        (len(tile.batch) * len(tile.heads) * each * len(strip.queries), strip.keys)
        for tile, strips in work(sizes, causal, on_cpu)
        for strip in strips
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        key: Tensor,
        how: Attention,
        sketch: Sketch,
    ) -> Tensor:
        ctx.how, ctx.sketch, ctx.sizes, ctx.dtype = how, sketch, Sizes.of(q, k, v), q.dtype
        by_q, by_k, _, by_mask = ctx.needs_input_grad[:4]
        of_inputs = _EXACTLY if how.exact else sketch
        kept = [
            _vectors(x, fold_in(key, use), used) if is_read else ()
            for x, use, used, is_read in (
                (q, QUERIES, of_inputs, by_k or how.exact),
                (k, KEYS, of_inputs, by_q or how.exact),
                (v, VALUES, sketch, by_q or by_k or by_mask),
            )
        ]
        strips: list[Tensor] = []
        if how.exact and how.kept_levels == LEVELS:
            gqa, options = q.shape[1] != k.shape[1], (mask, 0.0, how.causal)
            with without_autocast(q):
                result = F.scaled_dot_product_attention(
                    q, k, v, *options, scale=how.scale, enable_gqa=gqa
                )
        else:
            result, *strips = _attended(q, k, v, mask, key, how, None if how.exact else sketch)
        ctx.parts = [len(part) for part in kept]
        ctx.mask_shape = None
        if mask is not None and by_mask and not how.exact:
            ctx.mask_shape, mask = list(mask.shape), attention_seen_bits(mask)
        ctx.save_for_backward(mask, key, *[tensor for part in kept for tensor in part], *strips)
        return result

    @staticmethod
    @refused(OF_ATTENTION)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        mask, key, *saved = ctx.saved_tensors
        parts: list[list[Tensor]] = []
        for count in ctx.parts:
            parts.append(saved[:count])
            saved = saved[count:]
        (queries, keys, values), wanted = parts, list(ctx.needs_input_grad[:4])
        if ctx.mask_shape is not None:
            mask = attention_seen(mask, ctx.mask_shape)
        kept = queries, keys, values, saved, mask, key
        with without_autocast(grad_output):
            if torch.compiler.is_compiling():
                how = list(ctx.sizes), as_text(ctx.how), as_text(ctx.sketch), ctx.dtype
                found = _attention_backward(grad_output, *kept, wanted, *how)
            else:
                all_kept = Kept(*kept, ctx.sizes, ctx.how, ctx.sketch, ctx.dtype)
                found = gradients(grad_output, all_kept, wanted)
        grads = [grad if is_wanted else None for grad, is_wanted in zip(found, wanted, strict=True)]
        return *grads, None, None, None


def _vectors(x: Tensor, key: Tensor, sketch: Sketch) -> tuple[Tensor, ...]:
    """What is kept of the vectors x (B, H, n, d)."""
    if not isinstance(sketch, Rounding):
        return keep_sketch(sketch, x, key, x.dtype)
    if torch.compiler.is_compiling():
        return tuple(_attention_vectors(x, key, as_text(sketch)))
    return keep_last_axis(sketch, x, key)


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    key: Tensor,
    how: Attention,
    sketch: Sketch | None,
) -> list[Tensor]:
    """`attend`, as it can be compiled."""
    with without_autocast(q):
        if torch.compiler.is_compiling():
            text = None if sketch is None else as_text(sketch)
            return _attention(q, k, v, mask, key, as_text(how), text)
        assert sketch is None or isinstance(sketch, DitheredRounding)
        return attend(q, k, v, mask, key, how, sketch)


@opaque()
def _attention_vectors(x: Tensor, key: Tensor, sketch: str) -> list[Tensor]:
    return list(keep_last_axis(from_text(sketch), x, key))


@opaque()
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    key: Tensor,
    how: str,
    sketch: str | None,
) -> list[Tensor]:
    rounding = None if sketch is None else from_text(sketch)
    return attend(q, k, v, mask, key, from_text(how), rounding)


@opaque()
def _attention_backward(
    grad_output: Tensor,
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    strips: list[Tensor],
    mask: Tensor | None,
    key: Tensor,
    wanted: list[bool],
    sizes: list[int],
    how: str,
    sketch: str,
    dtype: torch.dtype,
) -> list[Tensor]:
    kept = queries, keys, values, strips, mask, key
    rest = Sizes(*sizes), from_text(how), from_text(sketch), dtype
    return gradients(grad_output, Kept(*kept, *rest), wanted)
