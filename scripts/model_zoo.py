"""What models that people train keep and take with RAD: `python scripts/model_zoo.py`.

For each model of rad/benchmarks/zoo.py, unmodified: saved and peak bytes of a forward and backward
pass, time against plain torch's (programs taking turns), and the error of the gradient, over its
own square and over the minibatch's variance. Settings: configs/measure/model_zoo.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _signals  # noqa: F401  # first of what takes time to load
import pandas as pd
import torch
from _cli import CONFIGS, Script, run
from _spec import check_choice, check_seed
from omegaconf import DictConfig

from rad.benchmarks.zoo import ZOO, specimen
from rad.benchmarks.zoo_programs import AUTO, PROGRAMS, zoo_rows
from rad.errors import UsageError
from rad.results import machine, provenance, write_table


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each model and program, after each model."""
    check(config, overrides)
    origin, file = provenance(), Path(config.output) / "cpu.csv"
    rows: list[dict[str, Any]] = []
    for name in config.models:
        made = specimen(name, config.batch_size, config.seed)
        found = zoo_rows(made, list(config.programs), config.fraction, config.rounds)
        rows += [{"model": name, "batch_size": config.batch_size, **row} for row in found]
        print(pd.DataFrame(rows[-len(config.programs) :]).to_string(index=False), flush=True)
        write_table(file, pd.DataFrame(rows), {**machine(torch.device("cpu")), **origin})
    print(f"wrote {file}")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything is measured."""
    check_seed(config.seed)
    for name in config.models:
        check_choice("model", name, list(ZOO))
    for name in config.programs:
        check_choice("program", name, [*PROGRAMS, AUTO])
    if not 0 < config.fraction <= 1:
        raise UsageError(f"fraction is {config.fraction}; give a number in (0, 1]")
    for name, least in (("batch_size", 2), ("rounds", 1)):
        if not isinstance(config[name], int) or config[name] < least:
            raise UsageError(f"{name} is {config[name]!r}; give a whole number of at least {least}")


if __name__ == "__main__":
    run(Script(main, check), "model_zoo", CONFIGS / "measure")
