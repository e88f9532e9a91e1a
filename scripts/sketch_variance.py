"""The noise of sketches at equal bytes, by kind of input: `python scripts/sketch_variance.py`.

E |dW_hat - dW|^2 / |dW|^2 of one linear layer's weight gradient, in closed form and measured, for
normal rows, rows whose principal directions decay, and what the feedforward net's second layer
reads after some steps of training. Writes sketch_variance.csv and its provenance. Settings:
configs/measure/sketch_variance.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad import data
from rad.gradient_noise.equal_bytes import Rows, noise_rows, normal_rows, trained_rows
from rad.results import machine, provenance, write_table
from rad.sketches import make_key

SETTINGS = ("features", "outputs", "decay", "dataset", "iterations", "batch_size", "draws", "seed")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each input, fraction and kind of sketch."""
    origin = provenance()
    settings: dict[str, Any] = {name: config[name] for name in SETTINGS}
    rows = [
        {"input": name, "rows": count, "fraction": fraction, **row}
        for count in config.rows
        for name, given in _inputs(config, count).items()
        for fraction in config.fractions
        for row in noise_rows(given, fraction, list(config.variants), config.draws)
    ]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    file = Path(config.output) / "sketch_variance.csv"
    summary = {**settings, **machine(torch.device("cpu")), **origin}
    write_table(file, table, summary, float_format="%.5g")
    print(f"wrote {file}")


def _inputs(config: DictConfig, count: int) -> dict[str, Rows]:
    sizes, key = (count, config.features, config.outputs), make_key(config.seed)
    dataset = data.load_images(config.dataset, config.data_root, torch.device("cpu"))
    training = config.iterations, config.batch_size, config.seed
    return {
        "normal": normal_rows(*sizes, 0.0, key),
        "decaying": normal_rows(*sizes, config.decay, key),
        "activations": trained_rows(dataset, count, *training),
    }


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "sketch_variance", _cli.CONFIGS / "measure")
