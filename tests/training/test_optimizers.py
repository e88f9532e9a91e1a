"""Capturable and fused optimizers are the usual ones, to rounding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rad.errors import UsageError
from rad.training import Settings
from rad.training.optimizers import make_optimizer, set_learning_rate


def settings(kind: str) -> Settings:
    return Settings(
        iterations=1, batch_size=1, optimizer=kind, learning_rate=0.03, weight_decay=0.01
    )


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("how", ["capturable", "fused"])
def test_all_take_the_same_steps(kind: str, how: str) -> None:
    ends = []
    for changed in (False, True):
        parameter = nn.Parameter(torch.linspace(-1, 1, 7))
        chosen = replace(settings(kind), fused=changed and how == "fused")
        capturable = changed and how == "capturable"
        optimizer = make_optimizer([parameter], chosen, capturable=capturable)
        assert bool(optimizer.param_groups[0]["fused"]) is changed
        for step in range(20):
            set_learning_rate(optimizer, 0.03 if step < 10 else 0.001)
            parameter.grad = torch.sin(parameter.detach() * 9 + step)
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends[0], torch.linspace(-1, 1, 7), atol=1e-2)


def test_adam_has_its_decay_in_the_gradient_and_the_usual_constants() -> None:
    parameter = nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    optimizer = make_optimizer([parameter], settings("adam"), capturable=False)
    x, first, second = parameter.detach().clone(), 0.0, 0.0
    for step in range(1, 6):
        parameter.grad = torch.sin(9 * x + step)
        gradient = parameter.grad + 0.01 * x
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        x = x - 0.03 * mean / (square.sqrt() + 1e-8)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), x, rtol=1e-12, atol=1e-12)


def test_the_rate_stays_in_its_tensor() -> None:
    optimizer = make_optimizer([nn.Parameter(torch.ones(2))], settings("sgd"), capturable=True)
    before = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is before
    assert before.item() == 0.5


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_step_never_waits_for_its_rate(kind: str) -> None:
    from training.recorded_graph import Recording

    def step(capturable: bool) -> Any:
        parameter = nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        optimizer = make_optimizer([parameter], settings(kind), capturable=capturable)
        optimizer.step()
        with Recording():
            optimizer.step()

    step(capturable=True)
    if kind == "adam":  # whose count of steps is read on the host
        with pytest.raises(RuntimeError, match="capturing"):
            step(capturable=False)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize(
    "numbers", [torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta")]
)
def test_what_fused_kernels_do_not_take_is_refused(kind: str, numbers: Tensor) -> None:
    parameter, chosen = nn.Parameter(numbers), settings(kind)
    make_optimizer([parameter], chosen, capturable=False)
    with pytest.raises(UsageError, match=r"fused .* takes real numbers.*optimizer\.fused"):
        make_optimizer([parameter], replace(chosen, fused=True), capturable=False)
