"""Time and memory of a forward and backward pass: `python scripts/benchmark.py`.

With `measure=false` it draws the table that is there.

For each network, ratios of medians against the first program (plain torch, or the exact adjoint of
the PDE), programs taking turns, and their relative standard errors; saved and peak bytes; on the
CPU the high-water mark of a process that runs the program alone; examples a second. On a GPU every
program of a network runs as a CUDA graph, too, against the first one's graph; where it cannot be
captured, the reason is printed. Settings: configs/measure/benchmark.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad.benchmarks.comparison import Compared, graphs_of, memory_of, speed_of
from rad.benchmarks.high_water import high_water
from rad.benchmarks.networks import NETWORKS
from rad.benchmarks.pde_programs import adjoints_by_fraction, pde_programs
from rad.benchmarks.programs import programs
from rad.pde import ReactionDiffusion
from rad.planning.timing import alternate, error_of_ratio
from rad.plotting import benchmark_figure, save
from rad.results import machine, on_device, provenance, read_summary, read_table, write_table
from rad.schema.values import choose_device

PDE = "pde"


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure and write a table with its provenance, or read it; print and draw it."""
    check(config, overrides)
    device = choose_device(config.device)
    file = Path(config.output) / f"{device.type}.csv"
    if config.measure:
        known = {"keep_fraction": config.keep_fraction, **machine(device), **provenance()}
        rows = [row for network in config.networks for row in _measured(network, config, device)]
        write_table(file, pd.DataFrame(rows), known)
    table = read_table(file, "set measure=true to measure again")
    print(table.to_string(index=False))
    figure = benchmark_figure(table, conditions(read_summary(file)))
    print(f"{file} is drawn in {save(figure, config.figure)[0]}")


def conditions(known: Mapping[str, Any]) -> str:
    """In words for the figure, as far as they are known: inputs, device, threads, what is kept."""
    words = ["random inputs", *on_device(known)]
    words += [f"keep fraction {known['keep_fraction']:g}"] if "keep_fraction" in known else []
    return ", ".join(words)


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything is measured."""
    if PDE in config.networks:
        ReactionDiffusion(config.pde.points, config.pde.steps, config.pde.dt)


def _measured(network: str, config: DictConfig, device: torch.device) -> list[dict[str, Any]]:
    """The rows of a network."""
    build = partial(_builder, network, config, device)
    compared, rounds = build(config.programs)(), config.rounds[network]
    in_processes = config.high_water and device.type == "cpu"
    seconds = alternate({name: p.step for name, p in compared.items()}, rounds)
    first = seconds[next(iter(compared))]
    rows = [
        {"network": network, "program": name, **memory_of(program)}
        | ({"high_water_bytes": high_water(build([name]), name)} if in_processes else {})
        | {"time_ratio": ratio, "rounds": rounds}
        | {"time_ratio_error": round(error_of_ratio(seconds[name], first), 4)}
        | {"precision": "" if network == PDE else config.precision, "samples_per_second": rate}
        for (name, program), (ratio, rate) in zip(
            compared.items(), speed_of(compared, seconds), strict=True
        )
    ]
    steps = graphs_of(compared) if device.type == "cuda" and network != PDE else {}
    graphs = alternate(steps, rounds)
    for row, (ratio, rate) in zip(rows, speed_of(compared, graphs), strict=True):
        row |= {"graph_time_ratio": ratio, "graph_samples_per_second": rate}
    return rows


def _builder(
    network: str, config: DictConfig, device: torch.device, names: Sequence[str]
) -> Callable[[], Mapping[str, Compared]]:
    """What makes the programs of those names; of the PDE all there are."""
    if network == PDE:
        pde = config.pde
        problem = ReactionDiffusion(pde.points, pde.steps, pde.dt)
        adjoints = adjoints_by_fraction(problem, pde.fractions, device)
        return partial(pde_programs, problem, adjoints, pde.simulations, device)
    examples = NETWORKS[network].examples if config.batch_size is None else config.batch_size
    return partial(
        programs,
        network,
        config.keep_fraction,
        examples,
        device,
        names=list(names),
        precision=config.precision,
    )


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "benchmark", _cli.CONFIGS / "measure")
