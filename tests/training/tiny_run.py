"""A tiny training run as a program of its own: `python tiny_run.py FOLDER SECONDS_PER_STEP`.

The model draws from the global generator (dropout) and from a counter in a non-persistent buffer:
both must survive an interruption.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rad import data
from rad.results import RunFolder, seal
from rad.training import NullLogger, Settings, TrainResult, train

CONFIG = "experiment: tiny\nseed: 5\n"
SETTINGS = Settings(
    iterations=150,
    batch_size=16,
    optimizer="adam",
    learning_rate=3e-3,
    weight_decay=1e-4,
    decay_factor=0.6,
    decay_every=40,
    clip_norm=1.0,
    bootstrap=True,
    evaluate_every=10,
    train_loss_every=20,
    checkpoint_every=15,
)


class Noise(nn.Module):
    """Noise that is a function of a counter."""

    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.counter += 1
            return x + 0.1 * torch.sin(self.counter * 12.9898)
        return x


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        Noise(),
        nn.Dropout(0.2),
        nn.Linear(24, 10),
    )


def run(
    path: Path,
    settings: Settings = SETTINGS,
    on_backward: Callable[[int], None] | None = None,
) -> TrainResult:
    torch.set_num_threads(1)
    folder, digits = RunFolder(path), data.load("digits")
    with folder.open(CONFIG):
        return train(network(), digits, settings, 5, folder, NullLogger(), on_backward=on_backward)


def main() -> None:
    path, pause = Path(sys.argv[1]), float(sys.argv[2])
    announced = False

    def slow(_: int) -> None:
        nonlocal announced
        if not announced:
            announced = True
            print("training", flush=True)
        time.sleep(pause)

    run(path, on_backward=slow)


def save_edited(state: Any, file: Path) -> None:
    """Write a checkpoint that carries its digest, whatever it holds."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file.write_bytes(seal.seal(buffer))


if __name__ == "__main__":
    main()
