"""Gradient noise against the number of steps: `python scripts/recurrent_variance.py`.

E |dW_hat - dW|^2 / |dW|^2 for W_hh of the IRNN at its initial weights, on the first examples of
Sequential-MNIST: measured over independent keys, and in closed form (`rnn_weight_grad_variance`).
Writes recurrent_variance.csv, its provenance and a figure. Settings:
configs/measure/recurrent_variance.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
from omegaconf import DictConfig

from rad import data
from rad.gradient_noise.recurrent import rows_of
from rad.plotting import recurrent_figure, save
from rad.results import as_written, machine, provenance, write_table
from rad.schema.values import choose_device

SETTINGS = ("hidden", "keep_fraction", "batch_size", "draws", "seed")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each sketch and number of steps."""
    device, origin = choose_device(config.device), provenance()
    settings: dict[str, Any] = {name: config[name] for name in SETTINGS}
    rows = []
    for downsample in config.downsample:
        options = {"downsample": downsample}
        dataset = data.load_images("sequential_mnist", config.data_root, device, **options)
        rows += rows_of(dataset, **settings)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    figure = recurrent_figure(as_written(table), conditions(settings))
    file = Path(config.output) / "recurrent_variance.csv"
    write_table(file, table, {**settings, **machine(device), **origin})
    print(f"wrote {file} and {save(figure, config.figure)[0]}")


def conditions(settings: Mapping[str, Any]) -> str:
    """In words for the figure: net, data, what is kept, and from how many draws."""
    return (
        f"irnn at initialization, sequential mnist, hidden {settings['hidden']}\n"
        f"keep fraction {settings['keep_fraction']:g}, batch {settings['batch_size']}, "
        f"{settings['draws']} draws"
    )


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "recurrent_variance", _cli.CONFIGS / "measure")
