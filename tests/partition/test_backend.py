"""`rad.compile`: gradients without bias, bytes within the budget, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.memory import saved_bytes
from rad.partition import choices, crossings
from rad.partition.backend import Backend

X = torch.randn(64, 32)


class Attention(nn.Module):
    """A block of a transformer, of width 32 on 4 sequences of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(4, 32, 3, 2, 16).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(4, 32, 32))
        return x + self.down(F.gelu(self.up(x)))


def perceptron() -> nn.Module:
    layers = (nn.Linear(32, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(64, 8))


def convnet() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2))
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 8))


def gated() -> nn.Module:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(32)
            self.gate, self.up = nn.Linear(32, 64), nn.Linear(32, 64)
            self.down = nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.down(F.silu(self.gate(x)) * self.up(x)).softmax(-1)

    return Gated()


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, float]] = {
    "perceptron": (perceptron, X, 0.25),
    "attention": (Attention, torch.randn(4, 32, 32), 0.5),
    "convnet": (convnet, torch.randn(16, 3, 12, 12), 0.5),
    "gated": (gated, X, 0.3),
}


def made(name: str) -> tuple[nn.Module, Callable[[Any], Tensor], float]:
    make, x, budget = MODELS[name]
    torch.manual_seed(0)
    model = make()
    weights = torch.randn_like(model(x))
    return model, lambda each: (each(x) * weights).mean(), budget


def gradient(model: Any, loss: Callable[[Any], Tensor], of: nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss(model), list(of.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def compiled(model: nn.Module, budget: float, seed: int = 0) -> tuple[Any, Backend]:
    backend = rad.backend(budget, seed, inner="aot_eager")
    return torch.compile(model, backend=backend, dynamic=False), backend


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_unbiased_and_bytes_within_the_budget(name: str) -> None:
    model, loss, budget = made(name)
    estimating, backend = compiled(model, budget)
    samples = torch.stack([gradient(estimating, loss, model) for _ in range(100)])
    truth = gradient(model, loss, model)
    assert (samples[0] - truth).norm() > 1e-4 * truth.norm()
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    (choice,) = backend.choices
    assert choice.stored
    assert choice.saved_bytes <= budget * choice.plain_bytes
    plain = torch.compile(model, backend="aot_eager", dynamic=False)
    kept, whole = (saved_bytes(lambda each=each: loss(each)) for each in (estimating, plain))
    assert kept <= 1.1 * budget * whole


def test_outputs_are_exact() -> None:
    model, loss, budget = made("perceptron")
    torch.testing.assert_close(loss(compiled(model, budget)[0]), loss(model))


def test_a_quadratic_use_takes_two_draws_and_one_would_be_biased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choices, "BITS", (1,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 8), nn.LayerNorm(8))
    x, weights = torch.randn(256, 32), torch.randn(256, 8)

    def loss(each: Any) -> Tensor:
        return (each(x) * weights).sum()

    truth = gradient(model, loss, model)

    def samples() -> tuple[Tensor, Backend]:
        torch._dynamo.reset()
        estimating, backend = compiled(model, 0.4)
        return torch.stack([gradient(estimating, loss, model) for _ in range(1000)]), backend

    found, backend = samples()
    groups = [storage.crossing.groups or [] for storage in backend.choices[0].stored]
    assert max(map(len, groups)) == 2
    check_unbiased(found, truth)
    monkeypatch.setattr(crossings, "_first_above", lambda *_: None)  # a proof of anything
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(samples()[0], truth)


def test_what_is_used_in_other_ways_stays_exact_and_is_told() -> None:
    model, loss, budget = made("attention")
    estimating, backend = compiled(model, budget)
    loss(estimating).backward()
    exact = [each for each in backend.choices[0].crossings if each.groups is None]
    assert any("flash_attention" in each.reason for each in exact)
    assert "is not linear in it" in str(backend)
    assert "bytes saved" in str(backend)


def test_a_cubic_use_stays_exact() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**5

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 5 * (x * (x * (x * (x * grad))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 64)

        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(self.layer(x))

    model = Model()
    estimating, backend = compiled(model, 0.7)
    estimating(X).sum().backward()
    reasons = [each.reason for each in backend.choices[0].crossings]
    assert any("4 independent sketches" in reason for reason in reasons)


def test_draws_are_by_seed_and_call() -> None:
    model, loss, budget = made("perceptron")

    def two(seed: int) -> list[Tensor]:
        torch._dynamo.reset()
        estimating, _ = compiled(model, budget, seed)
        return [gradient(estimating, loss, model) for _ in range(2)]

    first, again, other = two(3), two(3), two(4)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], other[0])


def test_the_whole_budget_is_torchs_own() -> None:
    model, loss, _ = made("attention")
    estimating, backend = compiled(model, 1.0)
    torch.testing.assert_close(gradient(estimating, loss, model), gradient(model, loss, model))
    assert not backend.choices[0].stored


def test_inductor_draws_what_operators_draw() -> None:
    model, loss, budget = made("perceptron")
    by_operators = gradient(compiled(model, budget)[0], loss, model)
    torch._dynamo.reset()
    by_inductor = rad.compile(model, budget)
    torch.testing.assert_close(gradient(by_inductor, loss, model), by_operators)
    assert by_inductor.rad.choices[0].stored
    with torch.no_grad():
        torch.testing.assert_close(by_inductor(X), model(X))


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, True, float("nan"), "3 MB", None])
def test_budgets_that_are_no_fractions_are_refused(budget: Any) -> None:
    with pytest.raises(rad.errors.UsageError, match="is no fraction"):
        rad.backend(budget)


def test_what_cannot_be_is_refused() -> None:
    model, loss, _ = made("perceptron")
    with pytest.raises(Exception, match=r"cannot be met: the least found is 0\.\d+ of them"):
        loss(compiled(model, 0.001)[0])
    with pytest.raises(rad.errors.UsageError, match="leave out backend= and dynamic="):
        rad.compile(model, 0.5, backend="eager")
    with pytest.raises(rad.errors.UsageError, match="inner='triton' is unknown"):
        rad.backend(0.5, inner="triton")  # type: ignore[arg-type]
    torch._dynamo.reset()
    changing = torch.compile(model, backend=rad.backend(0.5, inner="aot_eager"), dynamic=True)
    with pytest.raises(Exception, match="compile with dynamic=False"):
        changing(X)
