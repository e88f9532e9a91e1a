"""The exact rivals: the batch in parts, and every block recomputed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from planning.test_ways import Block, Random, loss, model
from torch import Tensor, nn

import rad
from rad import models
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes
from rad.planning.exact import blocks
from rad.planning.variants import build

X = torch.randn(10, 16)
NETS = {
    "gpt": {"vocabulary": 9, "context": 8, "blocks": 3, "width": 8, "heads": 2},
    "vit": {"input_shape": (1, 8, 8), "classes": 3, "blocks": 3, "width": 8, "heads": 2},
    "resnet": {"input_shape": (1, 8, 8), "classes": 3},
}
BLOCKS = {
    "gpt": [f"blocks.{n}" for n in range(3)],
    "vit": [f"encoder.layers.encoder_layer_{n}" for n in range(3)],
    "resnet": [f"layer{n}.{m}" for n in range(1, 5) for m in range(2)],
}


@pytest.mark.parametrize("name", NETS)
def test_the_blocks_of_our_models(name: str) -> None:
    assert list(blocks(models.build(name, seed=0, **NETS[name]))) == BLOCKS[name]


def gradient(net: nn.Module, value: Callable[[nn.Module], Tensor]) -> Tensor:
    net.zero_grad(set_to_none=True)
    value(net).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def budget(fraction: float, net: nn.Module) -> int:
    saved = build(net, X, loss, "baseline").plan.memory.saved_bytes
    return parameter_bytes(net) + int(fraction * saved)


def test_checkpointing_is_exact_and_saves_what_it_says() -> None:
    net = model()
    built = build(net, X, loss, "checkpointing", budget(0.6, net), path="auto")
    memory, full = built.plan.memory, build(net, X, loss, "baseline").plan.memory
    assert built.plan.recomputed == tuple(str(n) for n in range(1, 7))
    assert (built.plan.path, built.batch_size) == (None, 10)
    assert saved_bytes(lambda: loss(built.model(X.clone()))) == memory.saved_bytes
    assert memory.saved_bytes < 0.6 * full.saved_bytes
    found, expected = (gradient(each, lambda m: loss(m(X))) for each in (built.model, net))
    torch.testing.assert_close(found, expected)
    many = torch.randn(1000, 16)
    peaks = [
        build(net, many, loss, v).plan.memory.peak_bytes for v in ("checkpointing", "baseline")
    ]
    assert peaks[0] < 0.5 * peaks[1]
    least = parameter_bytes(net) + memory.saved_bytes
    with pytest.raises(UsageError, match=rf"checkpointing needs .* give at least {least} "):
        build(net, X, loss, "checkpointing", least - 1)


def test_checkpointing_is_refused_where_it_would_not_be_right() -> None:
    flat = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    for without in (flat, model(Block())):
        with pytest.raises(UsageError, match=r"of which this model has none: .*accumulation"):
            build(without, X, loss, "checkpointing", 0.5)
    with pytest.raises(UsageError, match="runs for the second time"):
        build(model(Random(), Random()), X, loss, "checkpointing", 0.9)


@pytest.mark.parametrize("fraction", [0.75, 0.45, 0.2])
def test_accumulation_takes_the_fewest_parts_that_fit(fraction: float) -> None:
    net = model()
    limit = budget(fraction, net)
    plan = build(net, X, loss, "accumulation", limit, path="auto").plan
    assert (plan.batch_size, plan.path) == (10, None)
    assert plan.micro_batch is not None
    count = -(-10 // plan.micro_batch)
    assert 1 < count == -(-10 // build(net, X, loss, "reduced_batch", limit).plan.batch_size)
    assert plan.micro_batch == -(-10 // count)  # as even as can be
    assert plan.memory.parameter_bytes + plan.memory.saved_bytes <= limit


def test_at_its_peak_a_part_has_the_gradients_of_those_before_it() -> None:
    net, many = model(), torch.randn(300, 16)
    full = build(net, many, loss, "baseline").plan.memory
    limit = full.parameter_bytes + full.peak_bytes // 2
    plan = build(net, many, loss, "accumulation", limit, kind="peak").plan
    part = plan.micro_batch
    assert part is not None
    assert part < 300
    assert full.parameter_bytes + plan.memory.peak_bytes <= limit
    alone = build(net, many[:part], loss, "baseline").plan.memory
    assert alone.saved_bytes == plan.memory.saved_bytes
    more = plan.memory.peak_bytes - alone.peak_bytes
    assert 0.5 * full.parameter_bytes < more <= full.parameter_bytes


def test_a_part_saves_what_the_plan_says_and_all_parts_give_the_gradient() -> None:
    net = model()
    built = build(net, X, loss, "accumulation", budget(0.4, net))
    part = built.plan.micro_batch
    assert part == 3
    assert saved_bytes(lambda: loss(built.model(X[:part].clone()))) == built.plan.memory.saved_bytes

    def summed(net: nn.Module) -> Tensor:
        parts = X.tensor_split(-(-10 // part))
        return torch.stack([loss(net(x)) * (len(x) / 10) for x in parts]).sum()

    torch.testing.assert_close(gradient(built.model, summed), gradient(net, lambda m: loss(m(X))))


def test_a_full_budget_needs_no_parts() -> None:
    plan = build(model(), X, loss, "accumulation", "full").plan
    assert (plan.micro_batch, plan.batch_size) == (None, 10)
    assert plan.memory == build(model(), X, loss, "baseline").plan.memory


def test_parts_on_which_the_model_does_not_run_are_refused() -> None:
    net = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 3))

    def of(out: Tensor) -> Tensor:
        return F.cross_entropy(out, torch.zeros(len(out), dtype=torch.int64))

    x = X[:3]
    limit = (
        sum(
            getattr(build(net, x, of, "reduced_batch", "full").plan.memory, name)
            for name in ("parameter_bytes", "saved_bytes")
        )
        - 1
    )
    with pytest.raises(UsageError, match=r"a batch of 3 in 2 parts has one of 1, .* multiple of 2"):
        build(net, x, of, "accumulation", limit)


def test_a_conversion_carries_out_checkpointing_and_no_parts() -> None:
    net = model()
    converted = rad.convert(
        net, budget=budget(0.6, net), example=X, loss=loss, variant="checkpointing"
    )
    torch.testing.assert_close(converted(X), net(X))
    with pytest.raises(UsageError, match="variant=accumulation keeps everything"):
        rad.convert(net, budget=0.6, example=X, loss=loss, variant="accumulation")
