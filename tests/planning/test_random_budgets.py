"""A hundred random budgets of small models of several kinds: each is met, to the byte promised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes

BATCH, LENGTH, WIDTH = 4, 6, 16
EACH = 24
"""Budgets of a model, beside the smallest two."""


class Residual(nn.Module):
    """A block of a residual network, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class Block(nn.Module):
    """A block of a GPT, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm1, self.norm2 = (
            nn.Embedding(20, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.LayerNorm(WIDTH),
        )
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        q, k, v = (
            part.unflatten(-1, (2, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        output: Tensor = self.head(x[:, -1])
        return output


class Gated(nn.Module):
    """A gated MLP with an RMS norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24)
        self.down, self.head = nn.Linear(24, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        x = x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))
        output: Tensor = self.head(x.mean(1))
        return output


class Recurrent(nn.Module):
    """An LSTM, and a head on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, WIDTH, batch_first=True), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.layer(x)[0][:, -1])
        return output


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet": (Residual, lambda: torch.randn(BATCH, 3, 8, 8)),
    "gpt": (Block, lambda: torch.randint(20, (BATCH, LENGTH))),
    "gated": (Gated, lambda: torch.randn(BATCH, LENGTH, WIDTH)),
    "lstm": (Recurrent, lambda: torch.randn(BATCH, LENGTH, 8)),
}


@dataclass(frozen=True)
class Case:
    model: nn.Module
    x: Tensor
    labels: Tensor

    def loss(self, output: Tensor) -> Tensor:
        return F.cross_entropy(output, self.labels[: len(output)].clone())

    def used(self, model: nn.Module) -> int:
        return parameter_bytes(model) + saved_bytes(lambda: self.loss(model(self.x.clone())))

    def fit(self, budget: int, path: rad.Sketch | str) -> rad.Plan:
        return rad.fit(self.model, self.x, self.loss, budget, "auto", path=path)

    def least(self, path: rad.Sketch | str) -> int:
        """The smallest budget, as a refusal names it."""
        with pytest.raises(UsageError) as refused:
            self.fit(parameter_bytes(self.model) + 1, path)
        found = re.search(r"give at least (\d+)", str(refused.value))
        assert found is not None
        return int(found[1])


@pytest.mark.parametrize("name", MODELS)
def test_random_budgets_are_met_and_what_is_predicted_is_measured(name: str) -> None:
    """The smallest that is named by a refusal, too. Three in four have their path given."""
    torch.manual_seed(0)
    make, example = MODELS[name]
    case = Case(make(), example(), torch.randint(10, (BATCH,)))
    generator = torch.Generator().manual_seed(1)
    most = case.used(case.model)
    for path, count in (("auto", EACH // 4), (rad.DitheredRounding(4, block=256), EACH * 3 // 4)):
        least = case.least(path)
        assert least - parameter_bytes(case.model) < 0.4 * (most - parameter_bytes(case.model))
        budgets = torch.randint(least, most + 1, (count,), generator=generator).tolist()
        for budget in [least, *budgets]:
            plan = case.fit(budget, path)
            promised = plan.memory.parameter_bytes + plan.memory.saved_bytes
            measured = case.used(rad.convert(case.model, plan))
            assert measured <= budget
            assert abs(measured - promised) <= 0.02 * plan.memory.saved_bytes
