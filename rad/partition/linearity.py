"""The degree of operators in their arguments: where a sketch of an argument leaves no bias.

A gradient is a polynomial in what crosses from the forward to the backward pass. Where its degree
in a value is one, an unbiased estimate of the value makes an unbiased gradient. Degrees here are
upper bounds: an operator that is not known has none, and whatever reaches it stays exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor import inductor_prims

aten = torch.ops.aten

NONE = 1 << 20
"""The degree where there is none: more than any budget of degrees."""

Degrees = Mapping[fx.Node, int]
Rule = Callable[[fx.Node, Callable[[Any], int]], int]


def degree(node: fx.Node, degrees: Degrees) -> int:
    """An upper bound of a node's degree, from those of the nodes that it reads; `NONE` for none.

    None where the result is rounded to whole numbers, by a mode of division or by its type.
    """

    def of(argument: Any) -> int:
        if isinstance(argument, fx.Node):
            return degrees.get(argument, 0)
        if isinstance(argument, list | tuple):
            return max(map(of, argument), default=0)
        return 0

    if not of([*node.args, *node.kwargs.values()]):
        return 0
    rule = _RULES.get(_packet(node.target))
    if rule is None or node.kwargs.get("rounding_mode") is not None or _is_whole(node):
        return NONE
    return min(NONE, rule(node, of))


def _is_whole(node: fx.Node) -> bool:
    """Whether a node gives integers or booleans."""
    value = node.meta.get("val")
    is_number = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return isinstance(value, Tensor) and not is_number


def _packet(target: Any) -> Any:
    return getattr(target, "overloadpacket", target)


def _additive(node: fx.Node, of: Callable[[Any], int]) -> int:
    """Linear in all tensors together."""
    return of([*node.args, *node.kwargs.values()])


def _linear_in(*places: int) -> Rule:
    """Linear in those arguments together, at any values of the others."""

    def rule(node: fx.Node, of: Callable[[Any], int]) -> int:
        others = [arg for place, arg in enumerate(node.args) if place not in places]
        if of([*others, *node.kwargs.values()]):
            return NONE
        return of([node.args[place] for place in places if place < len(node.args)])

    return rule


def _product(*factors: int, plus: tuple[int, ...] = ()) -> Rule:
    """Linear in each of the factors, and in what is added to their product."""

    def rule(node: fx.Node, of: Callable[[Any], int]) -> int:
        known = {*factors, *plus}
        others = [arg for place, arg in enumerate(node.args) if place not in known]
        if of(others):
            return NONE
        product = sum(of(node.args[place]) for place in factors if place < len(node.args))
        return max([product, *(of(node.args[place]) for place in plus)])

    return rule


def _convolution_backward(node: fx.Node, of: Callable[[Any], int]) -> int:
    """The gradients are products of the output's with the weight, with the input, or neither."""
    grad, x, weight = node.args[:3]
    return NONE if of(node.args[3:]) else of(grad) + max(of(x), of(weight))


def _attention_backward(node: fx.Node, of: Callable[[Any], int]) -> int:
    """dS = P * (dO V^T - rowsum(dO * O)): linear in V and O, and P depends on neither."""
    grad, query, key, value, out, *rest = node.args
    exact = [query, key, *rest, *node.kwargs.values()]
    return NONE if of(exact) else of(grad) + max(of(value), of(out))


def _shape_of_second(node: fx.Node, of: Callable[[Any], int]) -> int:
    """Linear in the first argument; of the second only the shape is read."""
    others = [*node.args[2:], *node.kwargs.values()]
    return NONE if of(others) else of(node.args[0])


_FMA = _packet(getattr(inductor_prims, "fma", None))
"""A fused product and sum, which not every release of torch has."""

_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            *(aten.add, aten.sub, aten.neg, aten.sum, aten.mean, aten.view, aten._unsafe_view),
            *(aten.reshape, aten.permute, aten.t, aten.transpose, aten.expand, aten.squeeze),
            *(aten.unsqueeze, aten.slice, aten.select, aten.cat, aten.clone, aten._to_copy),
            *(aten.alias, aten.detach, aten.flip, aten.repeat, aten.split, aten.split_with_sizes),
            *(aten.slice_scatter, aten.select_scatter, aten.slice_backward, aten.diagonal),
            *(aten.select_backward, aten.constant_pad_nd, aten.cumsum, aten.as_strided, aten.roll),
            *(aten.expand_as, aten.view_as, aten.contiguous, aten.unbind, aten.copy, aten.stack),
            *(operator.getitem, torch.ops.prims.convert_element_type),
        ),
        _additive,
    ),
    **dict.fromkeys((aten.mul, aten.mm, aten.bmm, aten.dot, aten.mv), _product(0, 1)),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv), _product(1, 2, plus=(0,))),
    aten.convolution: _product(0, 1, plus=(2,)),
    **({_FMA: _product(0, 1, plus=(2,))} if _FMA is not None else {}),
    aten.div: _linear_in(0),
    aten.where: _linear_in(1, 2),
    aten.masked_fill: _linear_in(0, 2),
    aten.index: _linear_in(0),
    aten.gather: _linear_in(0),
    aten.index_select: _linear_in(0),
    aten.scatter_add: _linear_in(0, 3),
    aten.index_put: _linear_in(0, 2),
    aten._unsafe_index_put: _linear_in(0, 2),
    aten.index_add: _linear_in(0, 3),
    aten.embedding_dense_backward: _linear_in(0),
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    **dict.fromkeys(
        (
            *(aten.avg_pool2d_backward, aten.avg_pool3d_backward, aten.reflection_pad2d_backward),
            *(aten._adaptive_avg_pool2d_backward, aten._adaptive_avg_pool3d_backward),
            *(aten.max_pool2d_with_indices_backward, aten.max_pool3d_with_indices_backward),
        ),
        _shape_of_second,
    ),
    aten.native_dropout_backward: _linear_in(0),
}
"""By operator, whichever overload: its degree from those of its arguments."""
