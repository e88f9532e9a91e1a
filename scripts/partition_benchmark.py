"""torch.compile with sketches beside exact recomputation: `python scripts/partition_benchmark.py`.

For each network of rad/benchmarks/partition_networks.py: bytes and time of plain torch, of
checkpointing each block, of torch.compile at values of its activation_memory_budget, and of
rad.compile at several budgets (programs taking turns); and the noise of the gradient over the
minibatch's. Settings: configs/measure/partition_benchmark.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad.benchmarks.partition import partition_rows
from rad.benchmarks.partition_networks import NETWORKS
from rad.benchmarks.zoo import specimen
from rad.plotting import partition_figure, save
from rad.results import (
    as_written,
    machine,
    make_folder,
    provenance,
    read_partial,
    write_partial,
    write_whole,
)


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, and write a row for each network, method and budget, and a figure.

    What is there after each network lies in cpu.partial.csv, and is not measured again by the same
    command on the same commit; cpu.csv is replaced by the whole.
    """
    summary = {**machine(torch.device("cpu")), **provenance()}
    file, table = Path(config.output) / "cpu.csv", pd.DataFrame()
    make_folder(file.parent)
    if (before := read_partial(file, summary)) is not None:
        table = before
        print(f"measured before: {', '.join(table['network'].unique())}", flush=True)
    for name in config.networks:
        if table.empty or name not in set(table["network"]):
            rows = _measured(name, config)
            print(rows.to_string(index=False, float_format="{:.4g}".format), flush=True)
            table = pd.concat([table, rows], ignore_index=True)
            write_partial(file, table, summary)
    figure = partition_figure(as_written(table), conditions(summary, config.inner))
    write_whole(file, table, summary)
    print(f"wrote {file} and {save(figure, config.figure)[0]}")


def conditions(known: Mapping[str, Any], inner: str) -> str:
    """In words for the figure: device, threads, and what compiles."""
    threads = "1 thread" if known["threads"] == 1 else f"{known['threads']} threads"
    return f"{known['device']}, {threads}, graphs run by {inner}"


def _measured(name: str, config: DictConfig) -> pd.DataFrame:
    batch = config.batch_size or NETWORKS[name].batch
    makers = {each: network.make for each, network in NETWORKS.items()}
    rows = partition_rows(
        specimen(name, batch, config.seed, makers),
        list(config.memory_budgets),
        list(config.budgets),
        config.inner,
        config.rounds,
        config.seed,
    )
    return pd.DataFrame([{"network": name, "batch_size": batch, **row} for row in rows])


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "partition_benchmark", _cli.CONFIGS / "measure")
