"""An embedding with packed indices against torch's, in values, gradients and bytes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.functional import embedding
from rad.memory import saved_bytes

BITS = {1: 1, 2: 1, 4: 2, 9: 4, 256: 8, 257: 16, 40_000: 16, 65_536: 16, 65_537: 32}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"padding_idx": 0},
    {"padding_idx": -1},
    {"scale_grad_by_freq": True},
    {"scale_grad_by_freq": True, "padding_idx": 2},
]


def pair(rows: int, **options: Any) -> tuple[nn.Embedding, nn.Module]:
    """torch's layer and its conversion."""
    torch.manual_seed(0)
    layer = nn.Embedding(rows, 3, **options)
    return layer, rad.convert(layer, rad.DifferentSample(0.1))


def check_equal(layer: nn.Module, converted: nn.Module, indices: Tensor) -> None:
    expected, actual = layer(indices), converted(indices)
    assert torch.equal(actual, expected)
    grad_output = torch.randn_like(expected)
    (want,) = torch.autograd.grad(expected, layer.weight, grad_output)
    (got,) = torch.autograd.grad(actual, converted.weight, grad_output)
    assert torch.equal(got, want)


@pytest.mark.parametrize(("rows", "bits"), BITS.items())
def test_indices_are_kept_in_as_few_bits_as_tell_rows_apart(rows: int, bits: int) -> None:
    layer, converted = pair(rows)
    indices = torch.randint(rows, (5, 7))
    indices[0, :2] = torch.tensor([0, rows - 1])
    check_equal(layer, converted, indices)
    assert saved_bytes(lambda: converted(indices)) == -(-35 * bits // 8)
    assert converted.keeps == f"{bits} bits per index"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(), (6,), (4, 5), (2, 3, 4), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_gradients_are_torchs(
    dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    check_equal(*pair(9, **options), torch.randint(9, shape).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    layer, converted = pair(9)
    check_equal(layer.to(dtype), converted.to(dtype), torch.randint(9, (4, 5)))


def test_indices_that_are_a_view_or_change_later() -> None:
    layer, converted = pair(9)
    tokens = torch.randint(9, (4, 6))
    check_equal(layer, converted, tokens.t()[1:])
    before = tokens.clone()
    output = converted(tokens)
    tokens.zero_()
    (got,) = torch.autograd.grad(output.square().sum(), converted.weight)
    (want,) = torch.autograd.grad(layer(before).square().sum(), layer.weight)
    assert torch.equal(got, want)


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 1.0}], ids=str)
def test_what_is_left_to_torch(options: dict[str, Any]) -> None:
    layer, converted = pair(9, **options)
    indices = torch.randint(9, (4, 5))
    outputs = [each(indices) for each in (layer, converted)]
    assert torch.equal(outputs[1], outputs[0])
    assert outputs[1].grad_fn.name() == outputs[0].grad_fn.name()
    assert converted.keeps == "what torch keeps"
    for output in outputs:
        output.square().sum().backward()
    assert converted.weight.grad.is_sparse == layer.weight.grad.is_sparse
    assert torch.equal(converted.weight.grad.to_dense(), layer.weight.grad.to_dense())


def test_frozen_weights_keep_nothing() -> None:
    _, converted = pair(9)
    converted.weight.requires_grad_(False)
    output = converted(torch.randint(9, (4, 5)))
    assert output.grad_fn is None


def test_second_derivatives_are_torchs() -> None:
    weight, indices = torch.randn(9, 3, dtype=torch.float64), torch.randint(9, (4, 5))
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: embedding(indices, w), weight)
    assert torch.autograd.gradgradcheck(lambda w: embedding(indices, w, 2), weight)


def test_compiled_in_one_graph() -> None:
    torch.compiler.reset()
    _, layer = pair(300, padding_idx=1)
    compiled, indices = torch.compile(layer, backend="aot_eager", fullgraph=True), torch.arange(50)
    grads = [
        torch.autograd.grad(each(indices).square().sum(), layer.weight)
        for each in (layer, compiled)
    ]
    assert torch.equal(grads[0][0], grads[1][0])
    assert saved_bytes(lambda: compiled(indices)) == 100


def test_a_language_model_keeps_what_is_predicted() -> None:
    layers = [nn.Embedding(300, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 300)]
    model = rad.convert(nn.Sequential(*layers), rad.SameSample(0.5))
    tokens = torch.randint(300, (4, 6))
    audit = rad.audit(model, lambda: model(tokens).square().mean())
    assert audit.predicted["0"] == audit.saved["0"] == 48
    assert ("0", "mask") in {(entry.module, entry.kind) for entry in audit.entries}
    assert audit.unexpected == ()
    assert rad.report(model).replaced[0].kind == "Embedding"
    plan = rad.fit(model, tokens, lambda out: out.square().mean(), 0.5)
    assert plan.memory.saved_bytes > 48


def test_an_index_that_is_no_row_is_refused() -> None:
    with pytest.raises(IndexError):
        embedding(torch.tensor([9]), torch.ones(9, 3))
    with pytest.raises(UsageError, match="9 rows"):
        embedding(torch.tensor([0]), torch.ones(9, 3), padding_idx=9)
