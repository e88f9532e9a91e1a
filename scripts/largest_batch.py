"""The largest batch whose forward and backward pass fits into a memory, and how fast it is.

    python scripts/largest_batch.py networks=[convnet_wide] limit.cuda='4 GB'

The peak of whole passes is measured, first of doubling batches, then by bisection; a batch for
which the device has no memory is too large. `next_peak_bytes` is that of the next larger batch,
empty where memory ran out. Examples a second are relative to the first program's at its own
largest batch, programs taking turns. Settings: configs/measure/largest_batch.yaml.
"""

from __future__ import annotations

from pathlib import Path

import _cli  # first: see there
import pandas as pd
from omegaconf import DictConfig

from rad.benchmarks.largest_batch import largest_batches
from rad.memory.budget import parse_budget
from rad.results import machine, provenance, write_table
from rad.schema.values import choose_device


def main(config: DictConfig, overrides: list[str]) -> None:
    """Search, measure, print, and write a table with its provenance."""
    device, origin = choose_device(config.device), provenance()
    limit = int(parse_budget(config.limit[device.type]).value)
    rows = [
        row
        for network in config.networks
        for row in largest_batches(
            network,
            limit,
            device,
            names=config.programs,
            keep=config.keep_fraction,
            precision=config.precision,
            step=config.step,
            example=config.example,
            rounds=config.rounds,
        )
    ]
    table = pd.DataFrame(rows).astype({"next_peak_bytes": "Int64"})
    print(table.to_string(index=False))
    file = Path(config.output) / f"{device.type}.csv"
    print(f"wrote {write_table(file, table, {**machine(device), **origin})}")


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "largest_batch", _cli.CONFIGS / "measure")
