import pytest
import torch
from kernels.running import HERE, cuda, program
from torch import nn

from rad.functional import recurrent
from rad.functional.recurrent import rnn
from rad.functional.recurrent_fused import can_fuse
from rad.memory import peak_bytes
from rad.sketches import DifferentSample, Identity, make_key


def test_the_kernels_compile_for_a_gpu() -> None:
    program(False, str(HERE / "compile_checks.py"), "5")


def test_a_cpu_runs_the_eager_operator() -> None:
    x = torch.randn(3, 2, 1)
    assert not can_fuse(x, 5, "relu", DifferentSample(0.3), torch.float32)


@pytest.mark.cuda
@cuda
def test_a_gpu_runs_the_kernels_where_it_can() -> None:
    pytest.importorskip("triton")
    x, sketch = torch.randn(3, 2, 1, device="cuda"), DifferentSample(0.3)
    assert can_fuse(x, 100, "relu", sketch, torch.float32)
    assert can_fuse(x, 100, "relu", Identity(), torch.bfloat16)
    assert not can_fuse(x, 100, "tanh", sketch, torch.float32)
    assert not can_fuse(x, 129, "relu", sketch, torch.float32)
    assert not can_fuse(x, 100, "relu", sketch, torch.float64)
    assert not can_fuse(x.expand(3, 2, 4), 100, "relu", sketch, torch.float32)
    distinct = DifferentSample(0.3, replacement=False)
    assert not can_fuse(x, 100, "relu", distinct, torch.float32)


@pytest.mark.cuda
@cuda
def test_784_steps_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the eager loop, in less than a quarter of cuDNN's peak memory at keep 0.1."""
    pytest.importorskip("triton")
    peer = nn.RNN(1, 100, nonlinearity="relu", device="cuda")
    nn.init.eye_(peer.weight_hh_l0)
    weights = list(peer.parameters())
    x, h0 = torch.rand(784, 150, 1, device="cuda"), torch.zeros(150, 100, device="cuda")
    key, sketch = make_key(0, "cuda"), DifferentSample(0.1)

    def grads() -> tuple[torch.Tensor, ...]:
        last = rnn(x, h0, *weights, sketch=sketch, key=key, return_sequence=False)[1]
        return torch.autograd.grad(last.square().mean(), weights)

    fused = grads()
    peak = peak_bytes(grads)
    cudnn = peak_bytes(lambda: torch.autograd.grad(peer(x)[1].square().mean(), weights))
    assert 4 * peak < cudnn
    monkeypatch.setattr(recurrent, "can_fuse", lambda *_: False)
    for got, want in zip(fused, grads(), strict=True):
        assert (got - want).norm() <= 1e-3 * want.norm()
