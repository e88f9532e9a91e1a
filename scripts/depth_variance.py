"""Noise on the gradient's path against depth: `python scripts/depth_variance.py`.

E |g_hat - g|^2 / |g|^2 of the whole gradient of residual networks with norms first, whose norms and
activation functions keep a few bits a number, at several depths. Writes depth_variance.csv and its
provenance. Settings: configs/measure/depth_variance.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _cli import CONFIGS, Script, run
from _spec import check_seed
from omegaconf import DictConfig

from rad.errors import UsageError
from rad.gradient_noise.depth import depth_rows
from rad.results import machine, provenance, write_table

SETTINGS = ("width", "batch_size", "draws", "seed")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each depth and number of bits."""
    check(config, overrides)
    origin = provenance()
    settings: dict[str, Any] = {name: config[name] for name in SETTINGS}
    rows = [row for depth in config.depths for row in depth_rows(depth, config.bits, **settings)]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    file = Path(config.output) / "depth_variance.csv"
    summary = {**settings, **machine(torch.device("cpu")), **origin}
    write_table(file, table, summary, float_format="%.4g")
    print(f"wrote {file}")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything is measured."""
    check_seed(config.seed)
    numbers = [(name, config[name], 2 if name == "draws" else 1) for name in SETTINGS[:3]]
    numbers += [(name, each, 1) for name in ("depths", "bits") for each in config[name]]
    for name, value, least in numbers:
        if not isinstance(value, int) or value < least:
            raise UsageError(f"{name} has {value!r}; give whole numbers of at least {least}")


if __name__ == "__main__":
    run(Script(main, check), "depth_variance", CONFIGS / "measure")
