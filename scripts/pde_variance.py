"""Error of the sampled gradient, memory and time: `python scripts/pde_variance.py`.

The error is the root of the mean of |estimate - gradient|^2 over independent draws, at a
run's start and where it ended. Time is a ratio of medians against the exact adjoint, programs
taking turns; checkpointing gets the bytes of each fraction. Settings:
configs/pde_variance/pde_variance.yaml.
"""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _cli import CONFIGS, Task, run
from _device import name_of
from _pde_spec import problem_of
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rad.benchmarks.timing import alternate, ratio_of_medians
from rad.errors import UsageError
from rad.memory import peak_bytes, saved_bytes
from rad.pde import Adjoint, Checkpointing, ReactionDiffusion, control_loss
from rad.pde.plan import plan
from rad.pde.training import initial_theta
from rad.results import RunFolder, provenance, write_atomic
from rad.sketches import Identity, fold_in, make_key

LABELS = ("variant", "budget", "replacement", "bits")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, and write a table with its provenance."""
    folder, origin = RunFolder(config.trained), provenance()
    if not folder.finished():
        raise UsageError(f"no finished run in {folder.path}; run scripts/train_pde.py first")
    summary = json.loads(folder.summary_file.read_bytes())
    problem = problem_of(OmegaConf.load(folder.config_file).problem)
    trained = [summary["final"][f"theta_{i}"] for i in range(len(problem.series))]
    thetas = {
        "start": initial_theta(problem.series, summary["seed"]),
        "trained": torch.tensor(trained, dtype=torch.float64),
    }
    programs = _programs(problem, config)
    exact = {at: _gradients(problem, theta, Identity(), 1)[0] for at, theta in thetas.items()}
    steps = {
        name: partial(_gradients, problem, thetas["start"], adjoint, 1)
        for name, (_, adjoint) in programs.items()
    }
    seconds = alternate(steps, config.rounds, warmup=1)
    rows = []
    for name, (labels, adjoint) in programs.items():
        row = labels | _memory(problem, thetas["start"], adjoint)
        row["time_ratio"] = round(ratio_of_medians(seconds[name], seconds["exact"]), 3)
        for at, theta in thetas.items():
            draws = 1 if isinstance(adjoint, Identity | Checkpointing) else config.draws
            off = _gradients(problem, theta, adjoint, draws) - exact[at]
            row[f"noise_{at}"] = off.square().sum(1).mean().sqrt().item()
            row[f"norm_{at}"] = exact[at].norm().item()
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    _write(Path(config.output), table, origin)


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


def _gradients(problem: ReactionDiffusion, theta: Tensor, adjoint: Adjoint, draws: int) -> Tensor:
    """Independent estimates of the gradient: (draws, P)."""
    many = theta.expand(draws, -1).clone().requires_grad_()
    keys = torch.stack([fold_in(make_key(0), i) for i in range(draws)])
    loss = control_loss(problem, many, adjoint, keys).sum()
    return torch.autograd.grad(loss, many)[0]


def _memory(problem: ReactionDiffusion, theta: Tensor, adjoint: Adjoint) -> dict[str, int]:
    parameter = torch.nn.Parameter(theta.clone())
    key = make_key(0)
    return {
        "saved_bytes": saved_bytes(lambda: control_loss(problem, parameter, adjoint, key)),
        "peak_bytes": peak_bytes(lambda: control_loss(problem, parameter, adjoint, key).backward()),
    }


def _write(folder: Path, table: pd.DataFrame, origin: dict[str, Any]) -> None:
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder} ({error.strerror}); choose output=") from error
    device = name_of(torch.device("cpu"))
    summary = {"device": device, "threads": torch.get_num_threads(), **origin}
    write_atomic(folder / "cpu.csv", text.getvalue().encode())
    write_atomic(folder / "cpu.json", (json.dumps(summary, indent=2) + "\n").encode())
    print(f"wrote {folder / 'cpu.csv'}")


if __name__ == "__main__":
    run(Task(main), "pde_variance", CONFIGS / "pde_variance")
