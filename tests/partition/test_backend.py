"""`rad.compile`: gradients without bias, bytes within the budget, and what is refused."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.memory import saved_bytes
from rad.partition import costs, crossings, search
from rad.partition.backend import Backend
from rad.partition.bits import Bits
from rad.partition.repetition import repetitions

X = torch.randn(64, 32)


@pytest.fixture(autouse=True)
def sketches_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as small as these would rather be calculated again."""
    monkeypatch.setattr(costs, "OF_A_SKETCH", 0)
    monkeypatch.setattr(costs, "OF_A_BIT", 0)


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


def compiled(model: nn.Module, budget: float, seed: int = 0, bits: int = 3) -> tuple[Any, Backend]:
    backend = rad.backend(budget, seed, inner="aot_eager", fewest_bits=bits)
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


def test_one_sketch_serves_what_is_affine_in_a_value() -> None:
    model = nn.Sequential(nn.Linear(32, 32), Attention())
    estimating, backend = compiled(model, 0.4)
    estimating(torch.randn(4, 32, 32)).square().mean().backward()
    (choice,) = backend.choices
    normalised = next(each for each in choice.crossings if len(each.groups or []) == 2)
    (scaled,) = normalised.affine  # by the norm's weight and bias
    assert f"{scaled.name}: from" in str(choice)
    assert re.search(rf"\b{scaled.name}\.[12]\)", choice.proof(normalised.node.name))
    attended = [each for each in choice.crossings if "flash" in str(each.node.all_input_nodes)]
    assert [len(each.groups) for each in attended if each.groups] == [1]


def test_what_cannot_be_sketched_is_calculated_again_and_spares_sketches() -> None:
    model, loss, _ = made("attention")
    least, backend = compiled(model, 0.22)
    samples = torch.stack([gradient(least, loss, model) for _ in range(100)])
    (choice,) = backend.choices
    assert choice.repeated
    assert choice.memory == 1
    check_unbiased(samples, gradient(model, loss, model))
    rest = {each.crossing.node.name for each in choice.stored}
    assert not rest & choice.repeated
    assert "calculated again" in str(choice)


@pytest.mark.parametrize("is_changed", [False, True])
def test_what_the_forward_pass_changes_is_not_calculated_again(is_changed: bool) -> None:
    graph = fx.Graph()
    x, weight, mean, tangent = map(graph.placeholder, ("x", "weight", "mean", "tangents_1"))
    product = graph.call_function(torch.ops.aten.mm.default, (x, weight))
    centred = graph.call_function(torch.ops.aten.sub.Tensor, (product, mean))
    quotient = graph.call_function(torch.ops.aten.div.Tensor, (tangent, centred))
    if is_changed:
        graph.call_function(torch.ops.aten.copy_.default, (mean, product))
    graph.output((centred, quotient))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(64, 64)
    (found,) = crossings.crossings(graph, fixed=(1, 2))
    assert found.groups is None
    assert [each.nodes for each in repetitions([found])] == (
        [] if is_changed else [{"mm_default", "sub_tensor"}]
    )


class Table(nn.Module):
    """A table of numbers multiplies what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(32, 64), nn.Linear(64, 64)
        self.register_buffer("table", torch.randn(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).tanh() * self.table)


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_buffers_are_kept_already(inner: Any) -> None:
    model = Table()
    backend = rad.backend(0.5, inner=inner)
    torch.compile(model, backend=backend, dynamic=False)(X).sum().backward()
    names = [each.node.name for each in backend.choices[0].crossings]
    kept = [each for each in backend.choices[0].crossings if each.value.shape == (64, 64)]
    assert len(kept) < 4, names
    assert not any(each.node.op == "placeholder" for each in kept)


def test_whole_numbers_and_views_of_few_are_not_what_is_rounded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 64)

        def forward(self, x: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
            y, p = labels.float(), self.layer(x).sigmoid()
            losses = y * p.log() + (1 - y) * (1 - p).log()
            return (losses * scale[:, None].expand(-1, 64)).mean()

    estimating, backend = compiled(Model(), 0.5)
    estimating(X, torch.randint(2, (64, 64)), torch.randn(64)).backward()
    values = [each.value for each in backend.choices[0].crossings]
    assert all(value.is_floating_point() or value.dtype == torch.bool for value in values)
    assert all(value.numel() <= value.untyped_storage().nbytes() for value in values)


def test_draws_of_weights_count_and_are_not_made_again() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(256, 256, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, F.dropout(self.layer.weight, 0.5)).tanh()

    _, backend = estimating = compiled(Model(), 1.0)
    estimating[0](torch.randn(16, 256, requires_grad=True)).sum().backward()
    assert backend.choices[0].plain_bytes >= 256 * 256  # what dropout kept, a byte each at least


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Dropout(0.5)])
def test_truth_values_are_kept_in_bits(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), layer, nn.Linear(64, 64))
    weights = torch.randn(64, 64)
    of_bias = [model[0].bias, model[2].bias]  # which no rounded value touches

    def gradients(budget: float) -> tuple[tuple[Tensor, ...], Backend]:
        torch._dynamo.reset()
        estimating, backend = compiled(model, budget)
        estimating(X)
        torch.manual_seed(0)
        return torch.autograd.grad((estimating(X) * weights).sum(), of_bias), backend

    found, backend = gradients(0.25)
    assert any(isinstance(each.sketch, Bits) for each in backend.choices[0].stored)
    exact, _ = gradients(1.0)
    torch.testing.assert_close(found, exact)


def test_the_fewest_bits_are_kept_but_for_a_fifth_of_the_numbers() -> None:
    model, loss, _ = made("attention")
    estimating, backend = compiled(model, 0.5, bits=4)
    loss(estimating).backward()
    stored = backend.choices[0].stored
    fewer = sum(each.crossing.value.numel() for each in stored if each.sketch.bits < 4)
    assert stored
    assert fewer <= 0.2 * sum(each.crossing.value.numel() for each in stored)
    with pytest.raises(rad.errors.UsageError, match="fewest_bits=5 is none: choose one of 8, 4"):
        rad.backend(0.5, fewest_bits=5)


def test_the_count_of_calls_can_lie_in_a_model() -> None:
    model, loss, budget = made("perceptron")
    estimating, backend = compiled(model, budget)
    backend.count_in(model)
    first = [gradient(estimating, loss, model) for _ in range(3)]
    with torch.no_grad():
        estimating(X)
    assert dict(model.named_buffers())["rad_calls"] == 3
    model.get_buffer("rad_calls").fill_(1)
    assert torch.equal(gradient(estimating, loss, model), first[1])
    assert "rad_calls" not in model.state_dict()


def test_outputs_are_exact() -> None:
    model, loss, budget = made("perceptron")
    torch.testing.assert_close(loss(compiled(model, budget)[0]), loss(model))


def test_a_quadratic_use_takes_two_draws_and_one_would_be_biased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "BITS", (2,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 8), nn.LayerNorm(8))
    x, weights = torch.randn(256, 32), torch.randn(256, 8)

    def loss(each: Any) -> Tensor:
        return (each(x) * weights).sum()

    truth = gradient(model, loss, model)

    def samples() -> tuple[Tensor, Backend]:
        torch._dynamo.reset()
        estimating, backend = compiled(model, 0.4, bits=2)
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
    found = gradient(by_inductor, loss, model)
    # A number that fusion changes in its last digit may be rounded to the next code.
    assert torch.isclose(found, by_operators, atol=1e-5).double().mean() > 0.98
    assert by_inductor.rad.choices[0].stored
    with torch.no_grad():
        torch.testing.assert_close(by_inductor(X), model(X))


def test_a_model_that_torch_leaves_uncompiled_is_refused() -> None:
    model = rad.compile(nn.Linear(32, 8), 0.5)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(rad.errors.UsageError, match="torch has left the model uncompiled"),
    ):
        model(X)


def test_a_refusal_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(search.BudgetTooSmall("too small", 0.25)))
    assert (str(error), error.least) == ("too small", 0.25)


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
