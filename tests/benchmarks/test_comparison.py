"""Memory and speed of compared programs."""

import pytest
import torch

from rad.benchmarks import comparison
from rad.benchmarks.comparison import graphs_of, memory_of, speed_of


class Fixed:
    """The sum of a product with a weight, over so many rows of five."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.weight = torch.nn.Parameter(torch.ones(5))

    def loss(self) -> torch.Tensor:
        return (torch.ones(self.batch_size, 5) * self.weight).sum()

    def step(self) -> None:
        self.clear()
        self.loss().backward()

    def clear(self) -> None:
        self.weight.grad = None


def test_what_cannot_be_captured_has_no_graph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = {"torch": Fixed(2), "lean_exact": Fixed(2)}

    def refuse(step: object) -> None:
        if step == compared["lean_exact"].step:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(comparison, "captured", refuse)
    assert list(graphs_of(compared)) == ["torch"]
    assert "lean_exact is no CUDA graph: operation not permitted" in capsys.readouterr().out


def test_speed_is_against_the_first_program() -> None:
    compared = {"torch": Fixed(4), "lean_exact": Fixed(6)}
    assert speed_of(compared, {"torch": [2.0], "lean_exact": [3.0]}) == [(1, 2), (1.5, 2)]
    assert speed_of(compared, {"torch": [2.0]}) == [(1.0, 2.0), (None, None)]
    assert speed_of(compared, {"lean_exact": [2.0]}) == [(None, None), (None, 3.0)]


def test_memory_is_that_of_a_step_without_gradients_left_over() -> None:
    program = Fixed(3)
    program.step()
    found = memory_of(program)
    assert found["batch_size"] == 3
    assert found["saved_bytes"] == 3 * 5 * 4
    assert found["peak_bytes"] >= found["saved_bytes"]
