"""Time and memory of a forward and backward pass: `python scripts/benchmark.py`.

For each network, ratios of medians against the first program (plain torch, or the exact adjoint of
the PDE), programs taking turns; saved and peak bytes; examples a second. On a GPU every program of
a network runs as a CUDA graph, too, against the first one's graph; where it cannot be captured,
the reason is printed. Settings: configs/benchmark/benchmark.yaml.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from _cli import CONFIGS, Task, run
from _device import choose, name_of
from _networks import NETWORKS
from _pde_programs import adjoints_by_fraction, pde_programs
from _programs import programs
from _tables import write
from omegaconf import DictConfig

from rad.benchmarks.timing import alternate, captured, ratio_of_medians
from rad.errors import UsageError
from rad.memory import peak_bytes, saved_bytes
from rad.pde import ReactionDiffusion
from rad.plotting import benchmark_figure, save
from rad.results import provenance

PDE = "pde"


class Compared(Protocol):
    """A forward and backward pass."""

    @property
    def batch_size(self) -> int: ...
    def loss(self) -> torch.Tensor: ...
    def step(self) -> None: ...
    def clear(self) -> None: ...


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, and write a table, its provenance and a figure."""
    known = (*NETWORKS, PDE)
    unknown = [network for network in config.networks if network not in known]
    if unknown:
        raise UsageError(f"unknown network {unknown[0]!r}: choose among {', '.join(known)}")
    device, origin = choose(config.device), provenance()
    rows = [row for network in config.networks for row in _measured(network, config, device)]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    summary = {"threads": torch.get_num_threads(), "device": name_of(device), **origin}
    file = write(Path(config.output) / f"{device.type}.csv", table, summary)
    print(f"wrote {file} and {save(benchmark_figure(table), config.figure)[0]}")


def _measured(network: str, config: DictConfig, device: torch.device) -> list[dict[str, Any]]:
    """The rows of a network."""
    compared, rounds = _programs(network, config, device), config.rounds[network]
    seconds = alternate({name: p.step for name, p in compared.items()}, rounds)
    rows = [
        {"network": network, "program": name, **_memory(program)}
        | {"time_ratio": ratio, "rounds": rounds}
        | {"precision": "" if network == PDE else config.precision, "samples_per_second": rate}
        for (name, program), (ratio, rate) in zip(
            compared.items(), _speed(compared, seconds), strict=True
        )
    ]
    steps = _graphs(compared) if device.type == "cuda" and network != PDE else {}
    graphs = alternate(steps, rounds)
    for row, (ratio, rate) in zip(rows, _speed(compared, graphs), strict=True):
        row |= {"graph_time_ratio": ratio, "graph_samples_per_second": rate}
    return rows


def _programs(network: str, config: DictConfig, device: torch.device) -> Mapping[str, Compared]:
    if network == PDE:
        pde = config.pde
        problem = ReactionDiffusion(pde.points, pde.steps, pde.dt)
        adjoints = adjoints_by_fraction(problem, pde.fractions, device)
        return pde_programs(problem, adjoints, pde.simulations, device)
    return programs(
        network,
        config.keep_fraction,
        config.batch_size,
        device,
        names=config.programs,
        precision=config.precision,
    )


def _speed(
    compared: Mapping[str, Compared], seconds: Mapping[str, Sequence[float]]
) -> list[tuple[float | None, float | None]]:
    """Of each program: time against the first program's, and examples a second."""
    first = seconds.get(next(iter(compared)))
    found: list[tuple[float | None, float | None]] = []
    for name, program in compared.items():
        own = seconds.get(name)
        ratio = None if own is None or first is None else round(ratio_of_medians(own, first), 3)
        rate = None if own is None else float(f"{program.batch_size / statistics.median(own):.4g}")
        found.append((ratio, rate))
    return found


def _memory(program: Compared) -> dict[str, int]:
    program.clear()
    return {
        "batch_size": program.batch_size,
        "saved_bytes": saved_bytes(program.loss),
        "peak_bytes": peak_bytes(program.step),
    }


def _graphs(compared: Mapping[str, Compared]) -> dict[str, Callable[[], object]]:
    """The programs as CUDA graphs, those that can be."""
    found = {}
    for name, program in compared.items():
        program.clear()
        try:
            found[name] = captured(program.step)
        except RuntimeError as error:
            print(f"{name} is no CUDA graph: {str(error).splitlines()[0]}", flush=True)
    return found


if __name__ == "__main__":
    run(Task(main), "benchmark", CONFIGS / "benchmark")
