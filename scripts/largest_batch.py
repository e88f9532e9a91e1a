"""The largest batch whose forward and backward pass fits into a memory, and how fast it is.

    python scripts/largest_batch.py networks=[convnet_wide] limit.cuda='4 GB'

The peak of whole passes is measured, first of doubling batches, then by bisection; a batch for
which the device has no memory is too large. `next_peak_bytes` is that of the next larger batch,
empty where memory ran out. Examples a second are relative to the first program's at its own
largest batch, programs taking turns. Settings: configs/largest_batch/largest_batch.yaml.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _cli import CONFIGS, Task, run
from _device import choose, name_of
from _networks import NETWORKS
from _programs import PROGRAMS, Program, programs, random_batch
from _tables import write
from omegaconf import DictConfig

from rad.benchmarks.timing import alternate
from rad.errors import UsageError
from rad.memory import peak_bytes
from rad.memory.budget import largest_multiple, parse_budget
from rad.results import provenance

FIXED = ("reduced_batch", "accumulation", "compiled")
"""Programs that choose their batch themselves, or are compiled for one."""


def main(config: DictConfig, overrides: list[str]) -> None:
    """Search, measure, print, and write a table with its provenance."""
    check(config)
    device, origin = choose(config.device), provenance()
    limit = int(parse_budget(config.limit[device.type]).value)
    rows = [row for network in config.networks for row in _searched(network, limit, config, device)]
    table = pd.DataFrame(rows).astype({"next_peak_bytes": "Int64"})
    print(table.to_string(index=False))
    summary = {"threads": torch.get_num_threads(), "device": name_of(device), **origin}
    print(f"wrote {write(Path(config.output) / f'{device.type}.csv', table, summary)}")


def check(config: DictConfig) -> None:
    """Refuse what can be seen to be wrong before anything is measured. Raises UsageError."""
    for kind, limit in config.limit.items():
        if parse_budget(limit).kind != "bytes":
            raise UsageError(f"limit.{kind} is {limit}; give bytes, such as '4 GB'")
    fixed = [name for name in config.programs if name in FIXED]
    if fixed:
        free = [name for name in PROGRAMS if name not in FIXED]
        raise UsageError(f"{fixed[0]} has no batch of any size: choose among {', '.join(free)}")
    for key in ("step", "example", "rounds"):
        value = config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{key} is {value!r}; give a whole number of at least 1")


def _searched(
    network: str, limit: int, config: DictConfig, device: torch.device
) -> list[dict[str, Any]]:
    """The rows of a network."""
    compared = programs(
        network,
        config.keep_fraction,
        config.example,
        device,
        names=config.programs,
        precision=config.precision,
    )
    largest, rows = {}, []
    for name, program in compared.items():
        program.step()  # what libraries allocate once is no step's
        peaks: dict[int, int | None] = {}
        batch = _largest(program, NETWORKS[network].shape, limit, config.step, peaks)
        if batch is None:
            raise UsageError(
                f"{network} as {name} does not fit {limit:,} bytes: a batch of {config.step} needs "
                f"{peaks[config.step] or 'more than there is'}; raise limit.{device.type}"
            )
        largest[name] = replace(program, data=random_batch(NETWORKS[network].shape, batch, device))
        program.clear()
        rows.append(
            {"network": network, "program": name, "precision": config.precision}
            | {"limit_bytes": limit, "batch_size": batch, "peak_bytes": peaks[batch]}
            | {"next_peak_bytes": peaks[batch + config.step]}
        )
    seconds = alternate({name: p.step for name, p in largest.items()}, config.rounds)
    rates = {n: p.batch_size / statistics.median(seconds[n]) for n, p in largest.items()}
    first = next(iter(largest))
    for row in rows:
        rate, batch = rates[row["program"]], row["batch_size"]
        row["batch_ratio"] = round(batch / largest[first].batch_size, 3)
        row["throughput_ratio"] = round(rate / rates[first], 3)
        row["samples_per_second"] = float(f"{rate:.4g}")
        row["rounds"] = config.rounds
    return rows


def _largest(
    program: Program,
    shape: tuple[int, ...],
    limit: int,
    step: int,
    peaks: dict[int, int | None],
) -> int | None:
    """The largest batch that fits; `peaks` takes what was measured, None where memory ran out."""

    def cost(batch: int) -> int:
        if batch not in peaks:
            peaks[batch] = _peak(program, shape, batch)
        peak = peaks[batch]
        return limit + 1 if peak is None else peak

    return largest_multiple(step, cost, limit)


def _peak(program: Program, shape: tuple[int, ...], batch: int) -> int | None:
    """Peak bytes of a pass over so many examples; None where memory runs out."""
    device = program.data[0].device
    program.clear()
    try:
        return peak_bytes(replace(program, data=random_batch(shape, batch, device)).step)
    except torch.OutOfMemoryError:
        return None
    finally:
        program.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    run(Task(main), "largest_batch", CONFIGS / "largest_batch")
