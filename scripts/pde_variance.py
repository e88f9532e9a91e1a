"""Error of the sampled gradient, memory and time: `python scripts/pde_variance.py`.

The error is the root of the mean of |estimate - gradient|^2 over independent draws, at a
run's start and where it ended. Time is a ratio of medians against the exact adjoint, programs
taking turns; checkpointing gets the bytes of each fraction. Settings:
configs/measure/pde_variance.yaml.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from _pde_spec import problem_of
from _spec import saved_config
from omegaconf import DictConfig
from torch import Tensor

from rad.errors import UsageError
from rad.gradient_noise.pde import error, gradients
from rad.memory import peak_bytes, saved_bytes
from rad.pde import Adjoint, ReactionDiffusion, control_loss
from rad.pde.plan import plan
from rad.pde.training import initial_theta
from rad.planning.timing import alternate, ratio_of_medians
from rad.results import RunFolder, machine, provenance, write_table
from rad.sketches import Identity, make_key

LABELS = ("variant", "budget", "replacement", "bits")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, and write a table with its provenance."""
    check(config, overrides)
    folder, origin = RunFolder(config.trained), provenance()
    recorded = folder.summary()
    problem = problem_of(saved_config(folder).problem)
    trained = [recorded["final"][f"theta_{i}"] for i in range(len(problem.series))]
    thetas = {
        "start": initial_theta(problem.series, recorded["seed"]),
        "trained": torch.tensor(trained, dtype=torch.float64),
    }
    programs = _programs(problem, config)
    exact = {at: gradients(problem, theta, Identity())[0] for at, theta in thetas.items()}
    steps = {
        name: partial(gradients, problem, thetas["start"], adjoint)
        for name, (_, adjoint) in programs.items()
    }
    seconds = alternate(steps, config.rounds, warmup=1)
    rows = []
    for name, (labels, adjoint) in programs.items():
        row = labels | _memory(problem, thetas["start"], adjoint)
        row["time_ratio"] = round(ratio_of_medians(seconds[name], seconds["exact"]), 3)
        for at, theta in thetas.items():
            row[f"noise_{at}"] = error(problem, theta, adjoint, exact[at], config.draws)
            row[f"norm_{at}"] = exact[at].norm().item()
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    size = {"points": problem.points, "steps": problem.steps}
    counts = {**size, "draws": config.draws, "rounds": config.rounds}
    summary = {**counts, **machine(torch.device("cpu")), **origin}
    print(f"wrote {write_table(Path(config.output) / 'cpu.csv', table, summary)}")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything is measured."""
    folder = RunFolder(config.trained)
    if not folder.summary_file.exists():
        raise UsageError(f"no finished run in {folder.path}; run scripts/train_pde.py first")
    if folder.summary()["model"] != "reaction_diffusion":
        raise UsageError(f"{folder.path} is no run of scripts/train_pde.py; give one as trained=")


def _programs(
    problem: ReactionDiffusion, config: DictConfig
) -> dict[str, tuple[dict[str, Any], Adjoint]]:
    """What is compared, with its labels in the table."""
    found: dict[str, tuple[dict[str, Any], Adjoint]] = {
        "exact": (dict.fromkeys(LABELS) | {"variant": "baseline", "budget": "full"}, Identity())
    }
    for fraction in config.fractions:
        for entry in config.variants:
            options = {str(key): value for key, value in entry.items() if key != "name"}
            labels = dict.fromkeys(LABELS) | {"variant": entry.name, "budget": fraction} | options
            adjoint = plan(problem, entry.name, fraction, **options).adjoint
            found[" ".join(map(str, labels.values()))] = (labels, adjoint)
    return found


def _memory(problem: ReactionDiffusion, theta: Tensor, adjoint: Adjoint) -> dict[str, int]:
    parameter = torch.nn.Parameter(theta.clone())
    key = make_key(0)
    return {
        "saved_bytes": saved_bytes(lambda: control_loss(problem, parameter, adjoint, key)),
        "peak_bytes": peak_bytes(lambda: control_loss(problem, parameter, adjoint, key).backward()),
    }


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "pde_variance", _cli.CONFIGS / "measure")
