"""Which axis of which input `reduced_batch` cuts, and which batches a model runs on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import parse_budget
from rad.planning.probe import Trial
from rad.planning.uniform import largest_batch

N, T, C = 6, 5, 4


class Masked(nn.Module):
    """Attention with a mask of the steps and a table of their positions, before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(C, C), nn.Linear(C, 3)
        self.attention = nn.MultiheadAttention(C, 2, batch_first=True)

    def forward(self, mask: Tensor, positions: Tensor, x: Tensor) -> Tensor:
        x = self.lift(x + positions)
        out, _ = self.attention(x, x, x, attn_mask=mask)
        return self.head(out.mean(1))


class Recurrent(nn.Module):
    """A recurrent layer of torch on time-first sequences, with the state that it starts from."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, batch_first: bool = False) -> None:
        super().__init__()
        self.layer, self.head = kind(C, 7, batch_first=batch_first), nn.Linear(7, 3)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        return self.head(self.layer(x, state)[0])


class Loop(nn.Module):
    """Time comes first, in a loop that no layer tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(C, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], 7)
        for step in x:
            state = self.cell(step, state)
        return self.head(state)


class Prototypes(nn.Module):
    """Scores of a batch by rows of a table that may be as many."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(C, C)

    def forward(self, x: Tensor, table: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.lift(x) @ table.t()


def images() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def mask(steps: int) -> Tensor:
    return torch.zeros(steps, steps)


FOUND: dict[str, tuple[Callable[[], nn.Module], Any, tuple[int | None, ...]]] = {
    "mask and table first": (
        Masked,
        {"mask": mask(T), "positions": torch.rand(T, C), "x": torch.rand(N, T, C)},
        (None, None, 0),
    ),
    "as many steps as examples": (
        Masked,
        (mask(N), torch.rand(N, C), torch.rand(N, N, C)),
        (None, None, 0),
    ),
    "time first": (Recurrent, torch.rand(T, N, C), (1,)),
    "time first, as many steps": (Recurrent, torch.rand(N, N, C), (1,)),
    "time first, a state": (Recurrent, (torch.rand(T, N, C), torch.rand(1, N, 7)), (1, 1)),
    "batch first, a state": (
        lambda: Recurrent(nn.RNN, batch_first=True),
        {"x": torch.rand(N, T, C), "state": torch.rand(1, N, 7)},
        (0, 1),
    ),
    "a loop over time": (Loop, torch.rand(T, N, C), (1,)),
    "as many rows as examples": (images, torch.rand(N, 1, N, N), (0,)),
}


def loss(out: Tensor) -> Tensor:
    return out.square().mean()


@pytest.mark.parametrize(("make", "example", "axes"), FOUND.values(), ids=FOUND)
def test_a_smaller_batch_is_cut_where_the_examples_are(
    make: Callable[[], nn.Module], example: Any, axes: tuple[int | None, ...]
) -> None:
    torch.manual_seed(0)
    model = make()
    trial = Trial(model, example, loss)
    assert (trial.batch.size, trial.batch.axes) == (N, axes)
    half = trial.total_bytes(rad.Identity(), N // 2)
    assert half < trial.total_bytes(rad.Identity(), N)
    for variant in ("baseline", "different_sample"):
        assert rad.fit(model, example, loss, 1.0, variant).batch_size == N
    plan = rad.fit(model, example, loss, half, "reduced_batch")
    assert plan.batch_size == N // 2
    given: Any = dict(zip(example, axes, strict=True)) if isinstance(example, dict) else axes
    assert plan == rad.fit(model, example, loss, half, "reduced_batch", batch_axis=given)


def test_what_is_ambiguous_is_refused_only_where_a_batch_is_cut() -> None:
    model, example = Prototypes(), (torch.rand(N, C), torch.rand(N, C))
    assert rad.fit(model, example, loss, 0.5).batch_size == N
    with pytest.raises(UsageError, match=r"2 ways, along the axes \(0, 0\).*batch_axis="):
        rad.fit(model, example, loss, 0.5, "reduced_batch")
    named = dict(zip(("x", "table"), example, strict=True))
    for given, axis in ((example, (0, None)), (named, {"x": 0}), (named, {"x": -2})):
        full = rad.fit(model, given, loss, variant="baseline").memory
        budget = full.parameter_bytes + full.saved_bytes - 1
        plan = rad.fit(model, given, loss, budget, "reduced_batch", batch_axis=axis)
        assert plan.batch_size == N - 1
    unread = (torch.rand(N, C), torch.rand(3, C), torch.rand(N))  # cut or not, it is the same
    assert Trial(model, unread, loss).batch.size == N


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        (0, r"sizes \[3, 6\]"),
        ((None, None), "no tensor"),
        ((0,), "does not match"),
        ("first", "does not match"),
        ((2, None), "no axis of an input"),
        ({"x": 0}, "does not match"),
    ],
)
def test_axes_that_do_not_match_are_refused(axis: Any, words: str) -> None:
    example = (torch.rand(N, C), torch.rand(3, C))
    with pytest.raises(UsageError, match=words):
        rad.fit(Prototypes(), example, loss, 0.5, batch_axis=axis)


class Grouped(nn.Module):
    """Takes whole groups of examples only."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group, self.lift, self.head = group, nn.Linear(C, 30), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lift(x).view(-1, self.group, 30)
        return self.head(hidden - hidden.mean(1, keepdim=True)).flatten(0, 1)


@pytest.mark.parametrize("group", [2, 3, 8])
@pytest.mark.parametrize("pairs", [False, True])
def test_batches_that_the_model_cannot_take_are_passed_over(group: int, pairs: bool) -> None:
    """By the model or, of as many pairs, by the loss."""

    def of_pairs(out: Tensor) -> Tensor:
        return out.view(-1, group, 3).diff(dim=1).square().mean()

    model = nn.Linear(C, 3) if pairs else Grouped(group)
    x = torch.rand(24, C)
    trial = Trial(model, x, of_pairs if pairs else loss)
    runs = range(group, 25, group)
    bytes_ = {batch: trial.total_bytes(rad.Identity(), batch) for batch in runs}
    for batch in runs:
        for bytes_in in (bytes_[batch], bytes_.get(batch + group, bytes_[batch] + 2) - 1):
            assert largest_batch(trial, int(parse_budget(bytes_in).value)) == batch
    with pytest.raises(UsageError, match=rf"a batch of {group} needs {bytes_[group]:,}"):
        rad.fit(model, x, trial.loss, bytes_[group] - 1, "reduced_batch")


def test_a_model_that_takes_no_smaller_batch_is_refused_in_its_own_words() -> None:
    with pytest.raises(UsageError, match=r"24 examples \(on 12: shape .* is invalid") as refused:
        rad.fit(Grouped(24), torch.rand(24, C), loss, 0.5, "reduced_batch")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_plan_is_the_same_in_every_mode_of_gradients(mode: Callable[[], Any]) -> None:
    model, x = Grouped(2), torch.rand(24, C)
    plans = [rad.fit(model, x, loss, 0.5, variant) for variant in ("auto", "reduced_batch")]
    with mode():
        for plan in plans:
            for each in (x, x.clone()):
                assert str(rad.fit(model, each, loss, 0.5, plan.variant)) == str(plan)
        converted = rad.convert(model, rad.SameSample(0.5))
        report = rad.audit(converted, lambda: loss(converted(x)))
        assert report.saved_bytes == rad.memory.saved_bytes(lambda: loss(converted(x))) > 0
    loss(converted(x)).backward()
