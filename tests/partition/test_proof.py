"""The proof as a text, and the page that shows it."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rad
from rad.partition.backend import Backend

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_it_proves_linearity.md"
X = torch.randn(64, 256)


class Quotient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(256, 256), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Any:
        return self.a(x) / (1 + self.b(x) ** 2)


def planned(model: nn.Module, budget: float) -> Backend:
    backend = rad.backend(budget, inner="aot_eager")
    torch.compile(model, backend=backend, dynamic=False)(X).sum().backward()
    return backend


@pytest.fixture(scope="module")
def norm() -> Backend:
    layers = (nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 8))
    return planned(nn.Sequential(*layers), 0.3)


def on_page(text: str) -> bool:
    return textwrap.dedent(text).strip() in PAGE.read_text()


def degrees_of(text: str) -> dict[str, list[str]]:
    """By node, what stands in its columns."""
    return {line.split()[0]: line.split(")")[-1].split() for line in text.splitlines()[1:]}


def test_two_sketches_where_one_would_be_squared(norm: Backend) -> None:
    (choice,) = norm.choices
    (twice,) = (each for each in choice.crossings if len(each.groups or []) == 2)
    found = degrees_of(choice.proof(twice.node.name)).values()
    assert any(degree[-3:] == ["2", "1", "1"] for degree in found)
    assert all(set(degree[-2:]) <= {"1", "-"} for degree in found)
    assert on_page(choice.proof(twice.node.name))


def test_the_page_shows_what_the_code_decides(norm: Backend) -> None:
    assert on_page(str(norm))
    assert on_page(norm.choices[0].proof("add_4"))
    refused = planned(Quotient(), 0.9)
    assert "not linear" in refused.choices[0].proof("add")
    assert on_page(str(refused))
    assert on_page(refused.choices[0].proof("add"))


def test_a_value_that_does_not_cross_has_no_proof(norm: Backend) -> None:
    with pytest.raises(rad.errors.UsageError, match="no value 'relu' crosses: choose one of pri"):
        norm.choices[0].proof("relu")
