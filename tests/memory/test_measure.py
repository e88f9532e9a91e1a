import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.memory import parameter_bytes, peak_bytes, saved_bytes


def test_plain_linear_and_relu() -> None:
    x, layer = torch.randn(6, 20), nn.Linear(20, 3)
    assert saved_bytes(lambda: layer(x)) == x.nbytes
    assert saved_bytes(lambda: layer(x).relu()) == x.nbytes + 6 * 3 * 4


def test_a_tensor_saved_twice_counts_once() -> None:
    x, one, other = torch.randn(6, 20), nn.Linear(20, 3), nn.Linear(20, 5)
    assert saved_bytes(lambda: (one(x), {"b": other(x.view(6, 20))})) == x.nbytes


def test_a_slice_counts_with_its_whole_storage() -> None:
    x, layer = torch.randn(60, 20), nn.Linear(20, 3)
    assert saved_bytes(lambda: layer(x[:6])) == x.nbytes


def test_parameters_are_excluded_frozen_ones_too() -> None:
    x, layer = torch.randn(6, 20, requires_grad=True), nn.Linear(20, 3)
    layer.weight.requires_grad_(False)
    assert saved_bytes(lambda: layer(x)) == 0


def test_a_dead_branch_is_not_counted() -> None:
    x, layer = torch.randn(6, 20), nn.Linear(20, 3)

    def forward() -> Tensor:
        layer(torch.randn(1000, 20))
        return layer(x)

    assert saved_bytes(forward) == x.nbytes


def test_tensors_on_the_context_are_seen() -> None:
    class Hoarder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            ctx.hidden = [torch.zeros(100)]
            return x * 2

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return grad * 2

    x = torch.randn(3, requires_grad=True)
    assert saved_bytes(lambda: Hoarder.apply(x)) == 400


def test_checkpointing_keeps_the_input_only() -> None:
    from torch.utils.checkpoint import checkpoint

    net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())
    x = torch.randn(6, 20)
    plain = saved_bytes(lambda: net(x))
    assert saved_bytes(lambda: checkpoint(net, x, use_reentrant=False)) < plain / 2


def test_cross_entropy_keeps_log_probabilities_and_labels() -> None:
    logits, y = torch.randn(150, 10, requires_grad=True), torch.randint(10, (150,))
    kept = saved_bytes(lambda: F.cross_entropy(logits * 1, y))
    assert kept == pytest.approx(150 * 10 * 4 + 150 * 8, abs=8)


def test_gradients_are_not_disturbed() -> None:
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    outputs: list[Tensor] = []
    saved_bytes(lambda: outputs.append(layer(x).square().sum()) or outputs[0])
    outputs[0].backward()
    assert layer.weight.grad is not None


def test_parameter_bytes_counts_shared_weights_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    assert parameter_bytes(nn.Sequential(shared, shared, nn.Linear(4, 2))) == 4 * (16 + 8 + 2)


def test_peak_of_a_known_program() -> None:
    def step() -> Tensor:
        a = torch.empty(1000, 1000)
        b = torch.empty(1000, 500)
        del a
        return torch.empty(1000, 100).add_(b.sum())

    assert peak_bytes(step) == pytest.approx(6_000_000, abs=1000)


def test_peak_sees_the_working_memory_within_operators() -> None:
    x = torch.randn(1000, 500)
    assert peak_bytes(lambda: torch.nn.functional.gelu(x).sum()) >= x.nbytes
    assert peak_bytes(lambda: x.add_(1)) < 1000
