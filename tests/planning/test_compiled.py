"""The variants that compile a model: bytes within the budget, gradients, counts, refusals."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad import models
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes
from rad.partition import costs
from rad.partition.calls import strict
from rad.planning.compiled import COMPILED, compile_divided
from rad.planning.variants import build

TOKENS = torch.randint(9, (6, 32))
SIZES = {"vocabulary": 9, "context": 32, "blocks": 1, "width": 64, "heads": 2}


@pytest.fixture(autouse=True)
def sketches_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as small as these would rather be calculated again."""
    monkeypatch.setattr(costs, "OF_A_SKETCH", 0)
    torch._dynamo.reset()


def gpt() -> nn.Module:
    return models.build("gpt", seed=0, **SIZES)


def loss(output: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), TOKENS[: len(output)].flatten())


def gradient(model: nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss(model(TOKENS)), list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def within(fraction: float, model: nn.Module) -> int:
    whole = build(model, TOKENS, loss, "activation_memory_budget", inner="aot_eager").plan.memory
    return parameter_bytes(model) + int(fraction * whole.saved_bytes)


def test_exact_compilation_meets_the_budget_and_has_the_gradient() -> None:
    model = gpt()
    budget = within(0.3, model)
    built = build(model, TOKENS, loss, "activation_memory_budget", budget, inner="aot_eager")
    plan = built.plan
    assert plan.division is not None
    assert 0 < plan.division.fraction < 1
    assert "as compiled with activation_memory_budget 0." in plan.describe()
    assert plan.memory.parameter_bytes + plan.memory.saved_bytes <= budget
    assert saved_bytes(lambda: loss(built.model(TOKENS.clone()))) == plan.memory.saved_bytes
    torch.testing.assert_close(gradient(built.model), gradient(model))
    assert type(built.model) is type(model)


def test_rad_compile_meets_the_budget_without_bias() -> None:
    model = gpt()
    budget = within(0.3, model)
    built = build(model, TOKENS, loss, "rad_compile", budget, path="auto", inner="aot_eager")
    memory, division = built.plan.memory, built.plan.division
    assert division is not None
    assert division.sketches
    assert built.plan.path is None
    assert 0.8 * budget < memory.parameter_bytes + memory.saved_bytes <= budget
    samples = torch.stack([gradient(built.model) for _ in range(100)])
    truth = gradient(model)
    assert (samples[0] - truth).norm() > 1e-3 * truth.norm()
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    assert dict(built.model.named_buffers())["rad_calls"] == 100
    assert built.model.state_dict().keys() == model.state_dict().keys()


def test_a_plan_makes_equal_models_and_evaluation_compiles_nothing() -> None:
    model = gpt()
    plan = rad.fit(model, TOKENS, loss, within(0.4, model), "rad_compile", inner="aot_eager")
    one, other, seeded = (rad.convert(model, plan, seed) for seed in (3, 3, 4))
    first = [gradient(each) for each in (one, other, seeded)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    other.get_buffer("rad_calls").zero_()
    assert torch.equal(gradient(other), first[0])
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(one(TOKENS), model(TOKENS), rtol=0, atol=0)
    one.eval()
    torch.testing.assert_close(one(TOKENS), model(TOKENS), rtol=0, atol=0)
    assert rad.convert(model, plan, inplace=True) is model
    assert "_compiled_call_impl" not in vars(copy.deepcopy(one))


@torch._dynamo.config.patch(recompile_limit=2)
def test_many_models_of_a_class_are_compiled_each_for_itself() -> None:
    plan = rad.fit(gpt(), TOKENS, loss, variant="activation_memory_budget", inner="aot_eager")
    for _ in range(3):
        gradient(rad.convert(gpt(), plan))


@torch._dynamo.config.patch(recompile_limit=2)
def test_sizes_past_torchs_limit_are_refused_and_not_left_uncompiled() -> None:
    model = nn.Linear(4, 4)
    compiled = strict(torch.compile(model.forward, backend="eager", dynamic=False))
    own = rad.compile(nn.Linear(4, 4), 1.0)
    for call in (compiled, own.forward):
        torch._dynamo.reset()
        for size in (2, 3):
            call(torch.randn(size, 4))
        with pytest.raises(UsageError, match=r"compiled for 2 sizes .* pad inputs"):
            call(torch.randn(4, 4))


@pytest.mark.parametrize("variant", COMPILED)
def test_what_cannot_be_is_refused_with_the_smallest_that_can(variant: str) -> None:
    model = gpt()

    def fitted(budget: Any, **options: Any) -> Any:
        return build(model, TOKENS, loss, variant, budget, inner="aot_eager", **options)

    with pytest.raises(UsageError, match=r"needs (\S+) in all; give at least") as refused:
        fitted(parameter_bytes(model) + 1000)
    least = int(str(refused.value).rsplit("give at least ", 1)[1].split()[0])
    fitted(least)
    with pytest.raises(UsageError, match=f"{variant} counts saved bytes: give kind=saved"):
        fitted(0.5, kind="peak")
    with pytest.raises(UsageError, match="has no option 'block': choose among inner"):
        fitted(0.5, block=8)
    plan = fitted("full").plan
    with pytest.raises(UsageError, match=f"a plan of {variant} compiles the model"):
        rad.convert(model, plan, functions=False)
    with pytest.raises(UsageError, match="leave out allocation= and path="):
        fitted(0.5, path=rad.DitheredRounding(4))
    with pytest.raises(UsageError, match="leave out allocation= and path="):
        fitted(0.5, allocation="optimal")


def test_graphs_stay_whole_under_data_parallel_training() -> None:
    wide = nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)])  # buckets begin at 1 MB
    plan = rad.fit(wide, torch.randn(4, 512), torch.sum, variant="rad_compile", inner="aot_eager")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        own = nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)])
        backend = compile_divided(own, plan.division)
        nn.parallel.DistributedDataParallel(own)(torch.randn(4, 512)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert backend.graphs == 1
    assert own.get_buffer("rad_calls") == 1


def test_inductor_keeps_no_second_layout_of_weights() -> None:
    layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2)]
    model, x = nn.Sequential(layers[0], nn.ReLU(), layers[1]), torch.randn(2, 64, 8, 8)
    plan = rad.fit(model, x, torch.sum, variant="activation_memory_budget")
    assert plan.memory.saved_bytes < 1.5 * (2 * x.numel() + x.numel() // 4) * 4
