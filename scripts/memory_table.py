"""Table 1 of the paper, by hand and measured: `python scripts/memory_table.py`.

Batch 150, `different_sample`, the lean exact layers at keep fraction 1. Writes table1.csv, its
provenance and a figure. Every column but the peak includes the parameters; the peak is that of a
forward and backward pass beyond what is allocated before it. MB are 1e6 bytes.
Settings: configs/measure/memory_table.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

import rad
from rad.benchmarks.networks import NETWORKS
from rad.memory import parameter_bytes, peak_bytes, saved_bytes
from rad.memory.paper import KEEP_FRACTIONS, PRINTED_MB, paper_bytes
from rad.plotting import memory_figure, save
from rad.results import as_written, machine, provenance, write_table
from rad.schema.values import choose_device

BATCH = 150


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write the 18 cells."""
    device, origin = choose_device(config.device), provenance()
    cells = [
        {"model": model, "keep_fraction": keep, "printed_mb": PRINTED_MB[model][keep]}
        | {key: f"{count / 1e6:.6f}" for key, count in bytes_of(model, keep, device).items()}
        for model in PRINTED_MB
        for keep in KEEP_FRACTIONS
    ]
    table = pd.DataFrame(cells)
    print(table.to_string(index=False))
    file, figure = Path(config.output) / "table1.csv", memory_figure(as_written(table))
    write_table(file, table, {**machine(device), **origin})
    print(f"wrote {file} and {save(figure, config.figure)[0]}")


def bytes_of(name: str, keep: float, device: torch.device) -> dict[str, Any]:
    """One cell: the two readings of the hand calculation, and what is measured."""
    network = NETWORKS[name]
    model = network.build()
    sketch = rad.Identity() if keep == 1 else rad.DifferentSample(keep)
    converted = rad.convert(model.to(device), sketch)
    x, y = network.batch(BATCH, device)

    def loss() -> torch.Tensor:
        return network.loss(converted(x.clone()), y)

    saved = saved_bytes(loss)
    loss().backward()
    converted.zero_grad(set_to_none=True)
    return {
        "paper_mb": paper_bytes(name, keep),
        "honest_mb": paper_bytes(name, keep, reading="honest"),
        "saved_mb": parameter_bytes(model) + saved,
        "peak_mb": parameter_bytes(model) + peak_bytes(lambda: loss().backward()),
    }


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "memory_table", _cli.CONFIGS / "measure")
