"""The small GPT: what it sees, how it starts, and that it learns through every sketch's layers."""

import math

import pytest
import torch
import torch.nn.functional as F

import rad
from rad import data, models
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.sketches import DifferentSample, DitheredRounding
from rad.training.task import NextToken, task_of

SIZES = {"vocabulary": 20, "context": 12, "blocks": 2, "width": 16, "heads": 4}


def test_a_token_depends_on_those_before_it_alone() -> None:
    model = models.build("gpt", seed=0, **SIZES)
    tokens = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert (after[:, 7:] - before[:, 7:]).abs().amax((0, 2)).min() > 1e-3


def test_it_starts_near_chance_and_blocks_add_little() -> None:
    model = models.build("gpt", seed=0, **SIZES)
    tokens = torch.randint(20, (8, 12), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(20), abs=0.05)
    into_stream = [model.blocks[0].out.weight, model.blocks[1].mlp[2].weight]
    for weight in into_stream:
        assert weight.std().item() == pytest.approx(0.01, rel=0.15)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UsageError, match="width 16 is no multiple of 5 heads"):
        models.build("gpt", seed=0, **SIZES | {"heads": 5})
    with pytest.raises(UsageError, match="choose a model for such data"):
        models.build("gpt", seed=0, **data.model_arguments("digits"))


def test_it_learns_a_text_on_sketches_of_everything_with_a_third_of_the_bytes() -> None:
    text = data.load("python_sources", characters=20_000, context=12)
    task = task_of(text)
    assert isinstance(task, NextToken)
    arguments = text.model_arguments | {"blocks": 2, "width": 32, "heads": 2}
    plain = models.build("gpt", seed=0, **arguments)
    model = rad.convert(plain, DifferentSample(0.3), path=DitheredRounding(3))
    batch = task.first(32)
    kept = [
        saved_bytes(lambda m=m: task.loss(m(*batch.inputs), batch.targets)) for m in (plain, model)
    ]  # type: ignore[misc]
    assert kept[1] < kept[0] / 3
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        inputs, targets = task.batch(torch.arange(32) + 32 * (step % 40))
        loss = task.loss(model(*inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 3.2 < losses[0]
