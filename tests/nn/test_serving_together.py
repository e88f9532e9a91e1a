"""What people train with, on one model that is served throughout: layers, calls and path.

What a pass should give is what a copy gives that has drawn as often.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rad
from rad.memory import saved_bytes
from rad.nn.serving import is_served
from rad.sketches import DitheredRounding, Sketch, StochasticRounding

ROUNDED, PATH = StochasticRounding(4), DitheredRounding(4)


class Net(nn.Module):
    """A residual block with squeeze and excitation, and attention over its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.squeeze, self.qkv = nn.Linear(8, 8), nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) -> (B, 5)."""
        x = F.relu(self.stem(x))
        x = x + F.silu(self.norm(self.conv(x)))
        x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1).flatten(1)))[..., None, None]
        tokens = self.last(x.flatten(2).mT)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        tokens = tokens + F.scaled_dot_product_attention(q, k, v)
        weights = F.softmax(tokens @ tokens.mT / 8, -1)
        output: Tensor = self.head((weights @ tokens).mean(1))
        return output


def made(
    sketch: Sketch = ROUNDED, path: Sketch = PATH
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """torch's model, its conversion, images, and labels."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3, 6, 6)
    converted = rad.convert(model, sketch, path=path)
    assert is_served(converted)
    return model, converted, x, torch.arange(4)


Forward = Callable[[nn.Module, Tensor], Tensor]


def gradients(
    model: nn.Module, x: Tensor, y: Tensor, forward: Forward = lambda model, x: model(x)
) -> list[Tensor]:
    """By the images and all parameters."""
    given = x.detach().requires_grad_()
    model.zero_grad()
    F.cross_entropy(forward(model, given).float(), y).backward()
    return [given.grad, *(p.grad.clone() for p in model.parameters())]


def together(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def functional(model: nn.Module, x: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())
    return torch.func.functional_call(model, parameters, (x,))


def second_of_two(model: nn.Module, x: Tensor) -> Tensor:
    model(x)
    output: Tensor = model(x)
    return output


WAYS: dict[str, tuple[Forward, int]] = {
    "a copy": (lambda model, x: copy.copy(model)(x), 0),
    "functional_call": (functional, 0),
    "after another pass": (second_of_two, 1),
    "checkpoint": (lambda model, x: checkpoint(model, x, use_reentrant=False), 1),
    "reentrant checkpoint": (lambda model, x: checkpoint(model, x, use_reentrant=True), 0),
}
"""Ways to run it, each with the passes before that whose draws the gradient has."""


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_run_it_give_the_gradients_of_its_draws(way: str) -> None:
    """Non-reentrant checkpointing runs a pass twice, reentrant once with gradients."""
    _, model, x, y = made()
    forward, passes = WAYS[way]
    reference = copy.deepcopy(model)
    for _ in range(passes):
        reference(x)
    want = gradients(reference, x, y)
    got = gradients(model, x, y, forward)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)
    other = gradients(reference, x, y)
    assert not torch.allclose(together(other), together(want))  # other draws: the control


def test_copies_and_what_was_saved_draw_alike() -> None:
    _, model, x, y = made()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [model, copy.deepcopy(model), torch.load(file, weights_only=False)]
    first, *others = (gradients(each, x, y) for each in copies)
    for other in others:
        assert all(map(torch.equal, first, other))


def test_two_passes_before_one_backward_pass() -> None:
    _, model, x, y = made()
    reference = copy.deepcopy(model)
    xs = [x, x + 1]
    alone = [gradients(reference, each, y) for each in xs]
    losses = [F.cross_entropy(model(each), y) for each in xs]
    torch.stack(losses).sum().backward()
    for parameter, *parts in zip(model.parameters(), *(each[1:] for each in alone), strict=True):
        torch.testing.assert_close(parameter.grad, sum(parts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_a_gradient_scaler(dtype: torch.dtype) -> None:
    plain, model, x, y = made(StochasticRounding(8), DitheredRounding(8))

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            output: Tensor = model(x)
            return output

    reference = copy.deepcopy(model)
    exact, unscaled = gradients(plain, x, y, forward), gradients(reference, x, y, forward)
    assert all(a.dtype == e.dtype for a, e in zip(unscaled, exact, strict=True))
    difference = (together(unscaled) - together(exact)).norm() / together(exact).norm()
    assert difference < 0.05
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    output = forward(model, x)
    assert output.dtype == dtype
    scaler.scale(F.cross_entropy(output.float(), y)).backward()
    scaler.unscale_(optimizer)
    scaled = together([p.grad for p in model.parameters()])
    difference = (scaled - together(unscaled[1:])).norm() / together(unscaled[1:]).norm()
    assert difference < 0.02  # numbers of the type are rounded elsewhere, at random
    before = copy.deepcopy(model.state_dict())
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_channels_last() -> None:
    plain, model, x, y = made(StochasticRounding(8), DitheredRounding(8))
    last = x.to(memory_format=torch.channels_last)
    models = [each.to(memory_format=torch.channels_last) for each in (plain, model)]
    torch.testing.assert_close(models[1](last), models[0](last))
    exact, got = (together(gradients(each, last, y)) for each in models)
    assert (got - exact).norm() < 0.02 * exact.norm()
    _, rounded, *_ = made()
    kept = [saved_bytes(lambda given=given: rounded(given * 1)) for given in (x, last)]
    assert kept[1] <= 1.02 * kept[0]


def test_it_keeps_a_third_of_torchs_bytes() -> None:
    plain, model, x, _ = made()
    assert saved_bytes(lambda: model(x * 1)) < saved_bytes(lambda: plain(x * 1)) / 3
