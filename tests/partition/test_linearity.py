"""Degrees of operators: where one is claimed, the operator is linear, as numbers show."""

import re
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from rad.partition.linearity import _RULES, NONE, degree

aten = torch.ops.aten
M, N = torch.randn(4, 6), torch.randn(6, 4)
IMAGE, KERNEL = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
HEADS = [torch.randn(2, 2, 5, 8) for _ in range(4)]
PLACES = torch.tensor([0, 2, 1])
MASK = torch.rand(4, 6) > 0.5

POOLED, WHERE = torch.nn.functional.max_pool2d(IMAGE, 2, return_indices=True)

CASES: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = [
    (aten.add.Tensor, (M, M), (0, 1)),
    (aten.sub.Tensor, (M, M), (0, 1)),
    (aten.mul.Tensor, (M, M), (0, 1)),
    (aten.div.Tensor, (M, M.exp()), (0,)),
    (aten.mm.default, (M, N), (0, 1)),
    (aten.bmm.default, (M[None], N[None]), (0, 1)),
    (aten.addmm.default, (torch.randn(4), M, N), (0, 1, 2)),
    (torch.ops.prims.fma.default, (M, M, M), (0, 1, 2)),
    (aten.sum.dim_IntList, (M, [0]), (0,)),
    (aten.where.self, (MASK, M, -M), (1, 2)),
    (aten.index.Tensor, (M, [PLACES]), (0,)),
    (aten.gather.default, (M, 0, PLACES[:, None]), (0,)),
    (aten.select_scatter.default, (M, torch.randn(6), 0, 1), (0, 1)),
    (aten.embedding_dense_backward.default, (torch.randn(3, 6), PLACES, 4, -1, False), (0,)),
    (
        aten.convolution.default,
        (IMAGE, KERNEL, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        (0, 1),
    ),
    (
        aten.convolution_backward.default,
        (
            *(torch.randn(2, 4, 5, 5), IMAGE, KERNEL, [4], [1, 1], [1, 1], [1, 1], False),
            *([0, 0], 1, [True, True, True]),
        ),
        (0, 1, 2),
    ),
    (
        aten.max_pool2d_with_indices_backward.default,
        (torch.randn_like(POOLED), IMAGE, [2, 2], [2, 2], [0, 0], [1, 1], False, WHERE),
        (0, 1),
    ),
    (aten.native_dropout_backward.default, (M, MASK, 2.0), (0,)),
    (aten.reflection_pad2d_backward.default, (torch.randn(2, 3, 7, 7), IMAGE, [1] * 4), (0, 1)),
    (
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        (*HEADS[:4], torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5), 0.0, False),
        (0, 3, 4),
    ),
    (
        aten.avg_pool2d_backward.default,
        (torch.randn(2, 3, 2, 2), IMAGE, [2, 2], [2, 2], [0, 0], False, True, None),
        (0, 1),
    ),
]
VOLUME, SQUARE = torch.randn(2, 3, 4, 4, 4), torch.randn(4, 4)
POOLED_3, WHERE_3 = torch.nn.functional.max_pool3d(VOLUME, 2, return_indices=True)
CASES += [
    *(
        (target, (M, *rest), (0,))
        for target, rest in (
            *((aten.neg.default, ()), (aten.mean.dim, ([0],)), (aten.view.default, ([6, 4],))),
            *((aten._unsafe_view.default, ([24],)), (aten.reshape.default, ([24],))),
            *((aten.permute.default, ([1, 0],)), (aten.t.default, ()), (aten.squeeze.dim, (0,))),
            *((aten.transpose.int, (0, 1)), (aten.expand.default, ([2, 4, 6],))),
            *((aten.unsqueeze.default, (0,)), (aten.slice.Tensor, (0, 1, 3))),
            *((aten.select.int, (0, 1)), (aten.clone.default, ()), (aten.alias.default, ())),
            *((aten.detach.default, ()), (aten.flip.default, ([0],))),
            *((aten.repeat.default, ([2, 1],)), (aten.split.Tensor, (2,))),
            *((aten.split_with_sizes.default, ([1, 3],)), (aten.diagonal.default, ())),
            *((aten.constant_pad_nd.default, ([1, 1], 0.0)), (aten.cumsum.default, (0,))),
            *((aten.as_strided.default, ([2, 2], [1, 2])), (aten.roll.default, ([1],))),
            *((aten.contiguous.default, ()), (aten.unbind.int, (0,))),
            *((aten.masked_fill.Scalar, (MASK, 0.0)), (aten.index_select.default, (0, PLACES))),
            *((aten.slice_backward.default, ([8, 6], 0, 0, 4, 1)),),
            *((aten.select_backward.default, ([4, 6, 2], 2, 1)),),
            *((torch.ops.prims.convert_element_type.default, (torch.float64,)),),
            *((aten._to_copy.default, ()),),
        )
    ),
    (aten.slice_scatter.default, (M, torch.randn(2, 6), 0, 1, 3), (0, 1)),
    (aten.copy.default, (M, M), (0, 1)),
    (aten.dot.default, (torch.randn(5), torch.randn(5)), (0, 1)),
    (aten.mv.default, (M, torch.randn(6)), (0, 1)),
    (aten.addmv.default, (torch.randn(4), M, torch.randn(6)), (0, 1, 2)),
    (aten.baddbmm.default, (SQUARE[None], M[None], N[None]), (0, 1, 2)),
    (aten.scatter_add.default, (M, 0, PLACES[:, None], torch.randn(3, 1)), (0, 3)),
    (aten.index_add.default, (M, 0, PLACES, torch.randn(3, 6)), (0, 3)),
    (aten.index_put.default, (M, [PLACES], torch.randn(3, 6)), (0, 2)),
    (aten._unsafe_index_put.default, (M, [PLACES], torch.randn(3, 6)), (0, 2)),
    (aten._adaptive_avg_pool2d_backward.default, (torch.randn(2, 3, 1, 1), IMAGE), (0, 1)),
    (aten._adaptive_avg_pool3d_backward.default, (torch.randn(2, 3, 1, 1, 1), VOLUME), (0, 1)),
    (
        aten.avg_pool3d_backward.default,
        (POOLED_3, VOLUME, [2] * 3, [2] * 3, [0] * 3, False, True, None),
        (0, 1),
    ),
    (
        aten.max_pool3d_with_indices_backward.default,
        (POOLED_3, VOLUME, [2] * 3, [2] * 3, [0] * 3, [1] * 3, False, WHERE_3),
        (0, 1),
    ),
]
IDS = [str(target) for target, _, _ in CASES]


def degrees_of(target: Any, arguments: tuple[Any, ...], place: int, own: int = 1) -> int:
    """The degree of a call in its argument at a place, of that degree itself."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    args = [node if number == place else None for number in range(len(arguments))]
    return degree(graph.call_function(target, tuple(args)), {node: own})


def joint_degree(target: Any, arguments: tuple[Any, ...], places: tuple[int, ...]) -> int:
    """The degree of a call in its arguments at several places, which are one value."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    args = [node if number in places else None for number in range(len(arguments))]
    return degree(graph.call_function(target, tuple(args)), {node: 1})


def flat(value: Any) -> Tensor:
    parts = value if isinstance(value, tuple | list) else (value,)
    return torch.cat([part.flatten().double() for part in parts if part is not None])


@pytest.mark.parametrize(("target", "arguments", "places"), CASES, ids=IDS)
def test_claimed_degrees_are_true(
    target: Any, arguments: tuple[Any, ...], places: tuple[int, ...]
) -> None:
    tensors = [place for place, arg in enumerate(arguments) if isinstance(arg, Tensor)]
    for place in tensors:
        claimed = degrees_of(target, arguments, place)
        if not arguments[place].is_floating_point():
            assert claimed in (1, NONE)
            continue
        assert (claimed <= 1) == (place in places)
        if claimed > 1:
            continue
        step = torch.randn_like(arguments[place])

        def at(times: float, place: int = place, step: Tensor = step) -> Tensor:
            given = list(arguments)
            given[place] = given[place] + times * step
            return flat(target(*given))

        bend = at(2.0) - 2 * at(1.0) + at(0.0)
        assert bend.abs().max() <= 1e-4 * at(1.0).abs().max()


@pytest.mark.parametrize(("target", "arguments", "places"), CASES, ids=IDS)
def test_claimed_joint_degrees_are_true(
    target: Any, arguments: tuple[Any, ...], places: tuple[int, ...]
) -> None:
    """Two arguments at once: what follows from one value is counted as one (`Crossing.affine`)."""
    of_numbers = [p for p in places if arguments[p].is_floating_point()]
    for pair in combinations(of_numbers, 2):
        claimed = joint_degree(target, arguments, pair)
        if claimed >= NONE:
            continue
        steps = {place: torch.randn_like(arguments[place]) for place in pair}
        values = []
        for times in range(claimed + 2):
            given = list(arguments)
            for place, step in steps.items():
                given[place] = given[place] + times * step
            values.append(flat(target(*given)).double())
        differences = values
        for _ in range(claimed + 1):
            differences = [b - a for a, b in pairwise(differences)]
        assert differences[0].abs().max() <= 1e-4 * values[-1].abs().max(), pair


def test_degrees_of_products_add_up() -> None:
    graph = fx.Graph()
    x, other = graph.placeholder("x"), graph.placeholder("other")
    square = graph.call_function(aten.mul.Tensor, (x, x))
    cube = graph.call_function(aten.mul.Tensor, (square, x))
    both = graph.call_function(aten.add.Tensor, (cube, other))
    degrees: dict[fx.Node, int] = {x: 1}
    for node in (square, cube, both):
        degrees[node] = degree(node, degrees)
    assert [degrees[node] for node in (square, cube, both)] == [2, 3, 3]
    unrelated = graph.call_function(aten.exp.default, (other,))
    assert degree(unrelated, degrees) == 0


@pytest.mark.parametrize("target", [aten.exp.default, aten.relu.default, aten.pow.Tensor_Scalar])
def test_what_is_not_known_has_no_degree(target: Any) -> None:
    assert degrees_of(target, (M, 2), 0) == NONE


def test_positions_that_must_not_be_sketched_have_none() -> None:
    assert degrees_of(aten.div.Tensor, (M, M), 1) == NONE
    assert degrees_of(aten.where.self, (MASK, M, M), 0) == NONE
    attention = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    (arguments,) = (given for target, given, _ in CASES if target == attention)
    for place in (1, 2, 5):  # queries, keys, log-sum-exp
        assert degrees_of(attention, arguments, place) == NONE


def test_what_is_rounded_to_whole_numbers_has_none() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    cast = torch.ops.prims.convert_element_type.default
    for whole, degree_of_cast in ((torch.int64, NONE), (torch.bool, NONE), (torch.bfloat16, 1)):
        node = graph.call_function(cast, (x, whole))
        node.meta["val"] = cast(M, whole)
        assert degree(node, {x: 1}) == degree_of_cast
        assert degree(node, {}) == 0
    for mode, degree_of_quotient in (("floor", NONE), ("trunc", NONE), (None, 1)):
        node = graph.call_function(aten.div.Tensor_mode, (x, 2.0), {"rounding_mode": mode})
        assert degree(node, {x: 1}) == degree_of_quotient


UNTRIED = {
    *("cat", "stack", "getitem"),  # of lists, and of a tuple
    *("expand_as", "view_as"),  # which torch writes as expand and view
    "_scaled_dot_product_flash_attention_backward",  # on CUDA alone
}


def test_every_rule_has_a_case() -> None:
    tried = {getattr(target, "overloadpacket", target) for target, _, _ in CASES}
    left = {str(rule).rpartition(".")[2] for rule in _RULES if rule not in tried}
    assert {re.sub(r"\W|built-in function ", "", name) for name in left} <= UNTRIED


def test_every_rule_is_of_an_operator_that_exists() -> None:
    rules: list[Callable[..., int]] = list(_RULES.values())
    assert len(rules) > 50
    assert all(callable(packet) for packet in _RULES)
