"""The kernels of `rad.kernels`: what they compute, and where operators take them."""

import subprocess
import sys

import pytest
import torch
from kernels.running import check, cuda
from torch._subclasses.fake_tensor import FakeTensorMode

from rad import backends
from rad.functional import linear, relu
from rad.pde import ReactionDiffusion, control_loss
from rad.sketches import DifferentSample, Identity, SameSample, make_key


@pytest.mark.parametrize("names", ["rounding", "relu sampling recurrent"])
def test_kernels_equal_torchs_operators(names: str) -> None:
    """In two processes, for two cores."""
    check(*names.split())


def test_a_cpu_and_tensors_without_memory_take_none() -> None:
    assert not backends.use_kernels(torch.ones(2))
    assert backends.is_readable(torch.ones(2))
    with FakeTensorMode():
        assert not backends.is_readable(torch.ones(2))
    seen: list[bool] = []
    torch.vmap(lambda x: x * (seen.append(backends.is_readable(x)) or 1))(torch.ones(3))
    assert seen == [False]


def test_importing_rad_does_not_import_triton() -> None:
    program = "import sys, rad, rad.pde; assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.cuda
@cuda
def test_a_gpu_takes_them_unless_they_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    x = torch.randn(3, 5, device="cuda")
    assert backends.use_kernels(x)
    assert not backends.use_kernels(x, x.cpu())
    assert not torch.vmap(lambda row: row * backends.use_kernels(row))(x).any()
    monkeypatch.setenv("RAD_KERNELS", "off")
    assert not backends.use_kernels(x)
    problem = ReactionDiffusion(points=5, steps=3)
    with pytest.raises(ValueError, match="RAD_KERNELS"):
        control_loss(problem, torch.zeros(7, device="cuda"), Identity(), make_key(0, "cuda"))


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("sketch", [SameSample(0.2), DifferentSample(0.2)], ids=str)
def test_on_a_gpu_kernels_and_operators_agree_and_can_be_captured(
    sketch: SameSample | DifferentSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    x = torch.randn(50, 300, device="cuda")
    weights = [torch.randn(n, 300, device="cuda").requires_grad_() for n in (300, 10)]
    key = make_key(0, "cuda")

    def grads() -> tuple[torch.Tensor, ...]:
        hidden = relu(linear(x, weights[0], sketch=sketch, key=key))
        return torch.autograd.grad(
            linear(hidden, weights[1], sketch=sketch, key=key).square().mean(), weights
        )

    by_kernels = grads()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = grads()
    graph.replay()
    monkeypatch.setenv("RAD_KERNELS", "off")
    for got, replayed, want in zip(by_kernels, captured, grads(), strict=True):
        assert torch.equal(got, replayed)
        assert (got - want).norm() <= 1e-4 * want.norm()
