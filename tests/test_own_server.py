"""A server of a user's own serves calls, and changes no file."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from unbiased import check_unbiased

import rad
from rad.nn.functions import registry

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "tests" / "own_server.py"


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    """Registered for these tests alone."""
    before = dict(registry.SERVERS), dict(registry._WORDS)
    runpy.run_path(str(FILE))
    yield
    for table, contents in zip((registry.SERVERS, registry._WORDS), before, strict=True):
        table.clear()
        table.update(contents)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.layer(x)).sin()


def gradient(model: nn.Module, x: Tensor, grad_output: Tensor) -> Tensor:
    found = torch.autograd.grad(model(x), [x, *model.parameters()], grad_output)
    return torch.cat([grad.flatten() for grad in found])


def test_it_keeps_less_and_stays_unbiased() -> None:
    torch.manual_seed(0)
    plain, x = Waves().double(), torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    grad_output = torch.randn(4, 8, dtype=torch.float64)
    converted = rad.convert(plain, rad.StochasticRounding(3))
    wide = torch.randn(256, 8, dtype=torch.float64, requires_grad=True)
    # Of input and two derivatives, 64 bits a number each, 3 bits, and 16 bytes for each row of 8.
    kept, before = (rad.memory.saved_bytes(lambda m=m: m(wide * 1.0)) for m in (converted, plain))
    assert kept < 0.4 * before
    assert torch.equal(converted(x), plain(x))
    samples = torch.stack([gradient(converted, x, grad_output) for _ in range(4000)])
    assert samples[:, : x.numel()].std(0).min() > 0
    check_unbiased(samples, gradient(plain, x, grad_output))


def test_without_a_rounding_the_call_is_torchs() -> None:
    torch.manual_seed(0)
    plain, x = Waves(), torch.randn(4, 8, requires_grad=True)
    grad_output = torch.randn(4, 8)
    converted = rad.convert(plain, rad.Identity())
    got, want = (gradient(model, x, grad_output) for model in (converted, plain))
    assert torch.equal(got, want)


def test_reports_name_it() -> None:
    report = str(rad.report(rad.convert(Waves(), rad.StochasticRounding(3)), full=True))
    assert "StochasticRounding(bits=3" in next(
        line for line in report.splitlines() if "sin" in line
    )


def test_the_guide_shows_it() -> None:
    """docs/extending.md holds the server, word for word."""
    assert FILE.read_text().strip() in (ROOT / "docs" / "extending.md").read_text()
