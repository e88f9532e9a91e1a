"""What is compared is compared on any task: here, the next character of a text."""

import pytest
import torch
from torch import nn

from rad.benchmarks.programs import programs_of
from rad.data import characters
from rad.memory import saved_bytes
from rad.training import NextToken

EXACT = ("torch", "lean_exact", "checkpointing", "accumulation")


@pytest.fixture
def task() -> NextToken:
    return NextToken(characters("pangram", "pack my box with five dozen jugs; " * 12, 0.2), 6)


def language_model(task: NextToken) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = task.text.vocabulary
        layers = [nn.Embedding(size, 20), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, size)]
    return nn.Sequential(*layers)


def test_exact_programs_of_a_language_model_have_its_gradient(task: NextToken) -> None:
    expected = language_model(task)
    (tokens,), following = task.first(8)
    task.loss(expected(tokens), following).backward()
    for program in programs_of(language_model(task), task, 0.4, 8, EXACT).values():
        program.step()
        pairs = zip(program.model.parameters(), expected.parameters(), strict=True)
        for found, other in pairs:
            torch.testing.assert_close(found.grad, other.grad)


def test_programs_of_a_language_model_keep_less_than_torch(task: NextToken) -> None:
    names = ("different_sample", "stochastic_rounding", "reduced_batch", "auto")
    found = programs_of(language_model(task), task, 0.3, 16, ("torch", *names))
    used = {name: saved_bytes(program.loss) for name, program in found.items()}
    assert all(used[name] < used["torch"] for name in names)
    assert found["reduced_batch"].batch_size < 16
