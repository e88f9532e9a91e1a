"""Noise on the gradient's path against depth: `python scripts/depth_variance.py`.

E |g_hat - g|^2 / |g|^2 of the whole gradient of residual networks with norms first, whose norms and
activation functions keep a few bits a number, at several depths. Writes depth_variance.csv and its
provenance. Settings: configs/measure/depth_variance.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad.gradient_noise.depth import depth_rows
from rad.results import machine, provenance, write_table

SETTINGS = ("width", "batch_size", "draws", "seed")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each depth and number of bits."""
    origin = provenance()
    settings: dict[str, Any] = {name: config[name] for name in SETTINGS}
    rows = [row for depth in config.depths for row in depth_rows(depth, config.bits, **settings)]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    file = Path(config.output) / "depth_variance.csv"
    summary = {**settings, **machine(torch.device("cpu")), **origin}
    write_table(file, table, summary, float_format="%.4g")
    print(f"wrote {file}")


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "depth_variance", _cli.CONFIGS / "measure")
