"""A tiny language model, trained in ./results: a task that no script has."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rad.conversion.modules import convert
from rad.data import characters
from rad.processes.signals import Stopped, leave, stopping
from rad.results import RunFolder
from rad.sketches import DifferentSample
from rad.training import NextToken, NullLogger, Settings, train

SETTINGS = Settings(
    iterations=400,
    batch_size=8,
    optimizer="adam",
    learning_rate=0.02,
    bootstrap=True,
    evaluate_every=40,
    checkpoint_every=20,
)


def main() -> None:
    """Train it, or go on where it was stopped."""
    task = NextToken(characters("turns", "abacabadabacabae" * 40, test_fraction=0.25), length=12)
    words = task.text.vocabulary
    plain = nn.Sequential(nn.Embedding(words, 8), nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, words))
    for number, parameter in enumerate(plain.parameters()):
        nn.init.constant_(parameter, 0.1)
        parameter.data.flatten()[number :: number + 2] *= -1
    model = convert(plain, DifferentSample(0.3), seed=0)
    with RunFolder(Path("results") / "turns").open("model: turns\n") as folder:
        train(model, task, SETTINGS, 0, folder, NullLogger())


if __name__ == "__main__":
    try:
        with stopping():
            main()
    except Stopped as stopped:
        leave(stopped.number)
