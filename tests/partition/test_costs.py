"""Predicted time: operations of nodes, and what is calculated twice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import rad
from rad.partition import costs
from rad.partition.costs import OF_A_FUNCTION, OF_AN_ELEMENT, is_product, operations
from rad.partition.search import BLOCK

HEADS = torch.randn(2, 4, 16, 8)


def traced(function: Callable[..., Any], *arguments: Tensor) -> list[fx.Node]:
    graph = make_fx(function, tracing_mode="fake")(*arguments).graph
    return [node for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (torch.mm, (torch.randn(3, 5), torch.randn(5, 7)), 2 * 3 * 5 * 7),
        (torch.erf, (torch.randn(3, 5),), OF_A_FUNCTION * 15),
        (torch.neg, (torch.randn(3, 5),), OF_AN_ELEMENT * 15),
        (lambda x: x.view(15), (torch.randn(3, 5),), 0),
        (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
            (HEADS, HEADS, HEADS),
            2 * 2 * 8 * 16 * 16 * 8,
        ),
    ],
)
def test_operations(function: Any, arguments: tuple[Tensor, ...], expected: int) -> None:
    assert operations(traced(function, *arguments)) == expected


def test_attention_is_a_product() -> None:
    (first, *_) = traced(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, *[HEADS] * 3)
    assert is_product(first)
    assert not any(map(is_product, traced(torch.exp, HEADS)))


def test_what_is_calculated_again_is_predicted_to_take_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products of eight, three of them forward."""
    monkeypatch.setattr(costs, "OF_A_SKETCH", 10**9)
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False), nn.Tanh()] * 3)
    times = {}
    for budget in (0.75, 0.5):
        backend = rad.backend(budget, inner="aot_eager")
        torch.compile(model, backend=backend, dynamic=False)(torch.randn(64, 256)).sum().backward()
        (choice,) = backend.choices
        assert not choice.stored
        times[budget] = choice.time
        torch._dynamo.reset()
    assert times == {0.75: pytest.approx(1 + 1 / 8, abs=0.02), 0.5: pytest.approx(1.25, abs=0.04)}


def test_the_noise_of_bits_is_what_the_page_says() -> None:
    x, key = torch.randn(2000, BLOCK), torch.tensor(3)
    for bits, quoted in ((2, 0.30), (3, 0.055), (4, 0.012), (8, 4e-5)):
        sketch = rad.DitheredRounding(bits, block=BLOCK)
        read = sketch.decompress(sketch.compress(x, key), tuple(x.shape), x.dtype, key)
        noise = (read - x).square().sum() / x.square().sum()
        assert noise.item() == pytest.approx(quoted, rel=0.05)
