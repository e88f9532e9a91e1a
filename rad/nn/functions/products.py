"""Products, by weights and of activations, which keep their factors where there is a path.

A weight of a layer right below, with its bias, is used as that layer, with its sketch.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad import functional
from rad.nn.calls import Pass
from rad.nn.functions.registry import has_gradient, on_path, serves

T = Tensor


@serves(F.linear, keeps=on_path("its input"))
def _linear(run: Pass, input: Any, weight: Any, bias: Any = None) -> Any:
    layer = run.layer_of(weight, bias)
    if layer is not None:
        return layer(input)
    path = run.calls.path
    if path is None or not _is_trained(input, weight):
        return NotImplemented
    key = run.next_key(input.device)
    return functional.linear(input, weight, bias, sketch=path, key=key)


def _is_trained(x: Any, weight: Any) -> bool:
    """Whether a layer with that weight would keep its input, which is no weight itself."""
    return has_gradient(weight) and weight.dim() == 2 and not _is_weight(x)


def _is_weight(x: Any) -> bool:
    """Whether this is a parameter, or a view of one."""
    base = x._base if isinstance(x, Tensor) and x._base is not None else x
    return isinstance(base, nn.Parameter)


@serves(torch.addmm, keeps=on_path("its input"))
def _addmm(run: Pass, input: Any, mat1: Any, mat2: Any, **others: Any) -> Any:
    """bias + x @ weight, as transposed linear layers call it."""
    if others or not _is_weight(mat2) or input.dim() != 1:
        return NotImplemented
    return _linear(run, mat1, mat2.t(), input)


@serves(torch.matmul, T.matmul, T.__matmul__, torch.mm, T.mm, keeps=on_path("its factors"))
def _matmul(run: Pass, input: Any, other: Any, **others: Any) -> Any:
    if others or not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return NotImplemented
    if _is_weight(other) and other.dim() == 2 and input.dim() > 1:
        return _linear(run, input, other.t())
    return _product(run, input, other)


@serves(torch.bmm, T.bmm, keeps=on_path("its factors"))
def _bmm(run: Pass, input: Any, mat2: Any, **others: Any) -> Any:
    return NotImplemented if others else _product(run, input, mat2)


def _product(run: Pass, a: Tensor, b: Tensor) -> Any:
    """A product of two matrices of activations."""
    path = run.calls.path
    trained = a.requires_grad or b.requires_grad
    if path is None or not trained or min(a.dim(), b.dim()) < 2 or not a.is_floating_point():
        return NotImplemented
    return functional.matmul(a, b, sketch=path, key=run.next_key(a.device))


@serves(F.multi_head_attention_forward, keeps=on_path("its input"))
def _multi_head_attention(run: Pass, *arguments: Any, **options: Any) -> Any:
    """Its own calls are served: projections, products and softmax. Not in compiled programs."""
    if torch.compiler.is_compiling():
        return NotImplemented
    return run.serving(_unchecked(F.multi_head_attention_forward), *arguments, **options)


def _unchecked(function: Any) -> Any:
    """The same function, without its look for overrides first, which would lead back here."""
    names = vars(F) | {"has_torch_function": lambda tensors: False}
    return FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )


@serves(torch.mul, T.mul, torch.multiply, T.multiply, keeps=on_path("its factors"))
def _multiply(run: Pass, input: Any, other: Any, **others: Any) -> Any:
    path = run.calls.path
    if path is None or others or not (has_gradient(input) and has_gradient(other)):
        return NotImplemented
    return functional.multiply(input, other, sketch=path, key=run.next_key(input.device))
