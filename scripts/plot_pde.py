"""Figure 6: `python scripts/plot_pde.py`, from the runs of scripts/train_pde.py.

The settings are those of configs/plot/pde_plot.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from _pde_spec import problem_of
from _spec import saved_config
from matplotlib.figure import Figure
from omegaconf import DictConfig

from rad.errors import UsageError
from rad.pde import ReactionDiffusion
from rad.pde.cpu.sketches import sampled_points
from rad.pde.cpu.trajectory import trajectory
from rad.pde.training import initial_theta
from rad.plotting import save
from rad.plotting.pde import filmstrip, loss_figure, samples_figure, variance_figure
from rad.results import RunFolder, metrics, read_summary, read_table, summaries
from rad.sketches import DifferentSample, make_key


def main(config: DictConfig, overrides: list[str]) -> None:
    """Draw and write the figures, and print a table of the runs."""
    runs = _select(summaries(config.results_root, config.experiment), config.overrides)
    if set(runs["model"]) != {"reaction_diffusion"}:
        raise UsageError(f"{config.experiment} has runs of another model; give one of train_pde.py")
    rows = _select(metrics(config.results_root, config.experiment), config.overrides)
    shown = _shown(runs, config.shown)
    problem = problem_of(saved_config(RunFolder(shown["path"])).problem)
    theta = torch.tensor(
        [shown[f"final.theta_{i}"] for i in range(len(problem.series))], dtype=torch.float64
    )
    words = conditions(problem.points, problem.steps)
    figures = {
        "a": _samples(problem, theta, config),
        "b": loss_figure(rows, runs, words),
        "_filmstrip": _film(problem, theta, shown, list(config.film_times)),
    }
    if config.variance is not None:
        remedy = "run scripts/pde_variance.py, or set variance=null"
        file = Path(config.variance)
        figures["_variance"] = variance_figure(
            read_table(file, remedy), _of_variance(read_summary(file))
        )
    written = [save(figure, f"{config.output}{name}.png")[0] for name, figure in figures.items()]
    print(_final_losses(runs))
    print(f"wrote {', '.join(map(str, written))}")


def conditions(points: int, steps: int) -> str:
    """The problem in words."""
    return f"control of reaction-diffusion, {points} x {points} points, {steps:,} steps"


def _of_variance(noted: Mapping[str, Any]) -> str:
    """The problem, and of how many draws and passes the numbers are, where that is noted."""
    if "points" not in noted:
        return "control of reaction-diffusion"
    counts = f"means of {noted['draws']} draws, medians of {noted['rounds']} passes"
    return f"{conditions(noted['points'], noted['steps'])}\n{counts}"


def _select(frame: pd.DataFrame, overrides: str | None) -> pd.DataFrame:
    """The rows with one set of overrides, without checkpointing, which is the baseline again."""
    extra = frame["path"].map(lambda path: Path(path).parent.name.partition(",")[2])
    choices = sorted(set(extra))
    if overrides is None and len(choices) > 1:
        raise UsageError(f"there are runs with several overrides: choose one of {choices}")
    chosen = choices[0] if overrides is None else overrides
    found = frame[(extra == chosen) & (frame["variant"] != "checkpointing")]
    if "baseline" not in set(found["variant"]):
        raise UsageError(f"no baseline with overrides={chosen!r}; run it, or choose of {choices}")
    return found


def _shown(runs: pd.DataFrame, wanted: DictConfig) -> pd.Series:
    found = runs[(runs["budget"].astype(str) == str(wanted.budget)) & (runs["seed"] == wanted.seed)]
    if found.empty:
        raise UsageError(
            f"no run with budget={wanted.budget} and seed={wanted.seed} to be shown: make it, or "
            "choose shown.budget= and shown.seed="
        )
    return found.iloc[0]


def _samples(problem: ReactionDiffusion, theta: torch.Tensor, config: DictConfig) -> Figure:
    step = _steps(problem, [config.sample_time])[0]
    inner = problem.inner
    places = {}
    for fraction in config.sample_fractions:
        points = sampled_points(DifferentSample(fraction), 1, inner**2, step, make_key(0))[0]
        xy = torch.tensor([divmod(int(point), inner) for point in points]) + 1
        places[f"{fraction:g}: {len(set(points.tolist()))} points"] = (
            xy / (problem.points - 1)
        ).numpy()
    state = trajectory(problem, theta, [step])[0]
    return samples_figure(
        state.numpy(), places, step * problem.dt, conditions(problem.points, problem.steps)
    )


def _film(
    problem: ReactionDiffusion, theta: torch.Tensor, shown: pd.Series, times: list[float]
) -> Figure:
    steps = _steps(problem, times)
    before = trajectory(problem, initial_theta(problem.series, int(shown["seed"])), steps)
    after = trajectory(problem, theta, steps)
    inside = torch.stack([problem.target(step) for step in steps])
    target = torch.nn.functional.pad(inside, (1, 1, 1, 1))
    budget = "exact" if str(shown["budget"]) == "full" else f"fraction {shown['budget']}"
    run = f"{budget}, seed {shown['seed']}, {shown['iterations']:,} iterations"
    words = f"{conditions(problem.points, problem.steps)}\n{run}"
    return filmstrip(times, target.numpy(), before.numpy(), after.numpy(), words)


def _steps(problem: ReactionDiffusion, times: list[float]) -> list[int]:
    steps = [round(time / problem.dt) for time in times]
    if not all(0 <= step <= problem.steps for step in steps):
        raise UsageError(f"times {times} leave 0..{problem.steps * problem.dt:g}; choose others")
    return steps


def _final_losses(runs: pd.DataFrame) -> str:
    """A Markdown table: a row for each budget."""
    exact = runs.loc[runs["variant"] == "baseline", "final.train_loss"].mean()
    lines = [
        "| fraction | saved bytes | final loss | / exact | seeds |",
        "|---|---|---|---|---|",
    ]
    kept = runs["keep_fraction"].astype(float).fillna(math.inf)
    for _, group in sorted(runs.groupby(kept), key=lambda pair: -pair[0]):
        losses, saved = group["final.train_loss"], int(group["memory.saved_bytes"].iloc[0])
        spread = f" ± {losses.std():.7f}" if len(losses) > 1 else ""
        lines.append(
            f"| {group['budget'].iloc[0]} | {saved:,} | {losses.mean():.7f}{spread} "
            f"| {losses.mean() / exact:.5f} | {len(losses)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "pde_plot", _cli.CONFIGS / "plot")
