"""RAD beside what else saves memory, at equal memory and equal time: `python scripts/pareto.py`.

Memory and the time of a step are measured here (programs take turns); losses and gradient noise are
those of finished runs and of scripts/gradient_noise.py, or scripts/pde_variance.py. Gradient
accumulation, checkpointing and the compiled network have the exact gradient, hence the baseline's
noise and losses by iteration.
Settings: configs/measure/pareto.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad.benchmarks.comparison import Compared, memory_of, speed_of
from rad.benchmarks.pareto import (
    Known,
    joined,
    known_losses,
    known_noise,
    known_pde_noise,
    seeds_of,
)
from rad.benchmarks.pde_programs import adjoints_by_variant, pde_programs
from rad.benchmarks.programs import PROGRAMS, programs
from rad.errors import UsageError
from rad.pde import ReactionDiffusion
from rad.planning.timing import alternate
from rad.plotting import pareto_figure, save
from rad.results import (
    machine,
    make_folder,
    on_device,
    provenance,
    read_summary,
    read_table,
    write_table,
)
from rad.schema.values import choose_device

PDE = "pde"


def main(config: DictConfig, overrides: list[str]) -> None:
    """Look up, measure, print, and write a table, its provenance and a figure."""
    file, networks = Path(config.output) / "pareto.csv", list(config.networks)
    if not config.measure and not file.exists():
        raise UsageError(f"{file} is missing; set measure=true to measure first")
    if not networks:
        raise UsageError("there are no networks to compare; leave one or more in networks")
    make_folder(file.parent)
    known = {name: _known(name, config) for name in networks}
    summary = None
    if config.measure:
        device, origin = choose_device(config.device), provenance()
        measured = pd.concat([_measured(name, config, device) for name in networks])
        summary = {**machine(device), **origin}
    else:
        measured = read_table(file, "set measure=true to measure again")
    tables = [joined(name, measured, *known[name]) for name in networks]
    if not config.measure:
        tables.append(measured[~measured["network"].isin(networks)])
    table = pd.concat(tables)
    write_table(file, table, summary)
    figure = pareto_figure(table, conditions(table, read_summary(file), config))
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print(f"wrote {file} and {save(figure, config.figure)[0]}")


def conditions(table: pd.DataFrame, noted: Mapping[str, Any], config: DictConfig) -> str:
    """In words for the figure: seeds behind the losses, how often programs ran, on what."""
    networks = set(table["network"]) & set(config.networks)
    counts = [seeds_of(config.results_root, _settings(network, config)) for network in networks]
    seeds = sorted(set().union(*counts))
    losses = [f"losses: means of {_between(seeds)} seeds"] if seeds else []
    passes = f"equal time: by medians of {_between(sorted(set(table['rounds'])))} passes"
    return (
        f"{', '.join([*losses, 'lines join what no other beats'])}\n"
        f"{', '.join([passes, *on_device(noted)])}"
    )


def _between(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def _settings(network: str, config: DictConfig) -> Known:
    settings = config.networks[network]
    return Known(**{f.name: settings[f.name] for f in fields(Known) if f.name in settings})


def _known(network: str, config: DictConfig) -> tuple[dict[str, pd.Series], dict[str, float]]:
    """The losses and the gradient noise that there are, by variant."""
    known, root = _settings(network, config), config.results_root
    noise = known_pde_noise if network == PDE else known_noise
    return known_losses(root, known), noise(root, known)


def _measured(network: str, config: DictConfig, device: torch.device) -> pd.DataFrame:
    """Bytes and time of each method; time against the first one's."""
    compared, rounds = _programs(network, config, device), config.networks[network].rounds
    seconds = alternate({name: p.step for name, p in compared.items()}, rounds)
    rows = [
        {"network": network, "method": name, **memory_of(program)}
        | {"time_ratio": ratio, "rounds": rounds}
        for (name, program), (ratio, _) in zip(
            compared.items(), speed_of(compared, seconds), strict=True
        )
    ]
    return pd.DataFrame(rows)


def _programs(network: str, config: DictConfig, device: torch.device) -> Mapping[str, Compared]:
    settings = config.networks[network]
    if network == PDE:
        problem = ReactionDiffusion(**settings.problem)
        adjoints = adjoints_by_variant(problem, settings.keep_fraction, settings.variants, device)
        return pde_programs(problem, adjoints, 1, device)
    options = (network, settings.keep_fraction, config.batch_size, device)
    names = [name for name in PROGRAMS if name != "dense_reference"]
    return programs(*options, names=names, shape=tuple(settings.shape))


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "pareto", _cli.CONFIGS / "measure")
