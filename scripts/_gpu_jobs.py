"""What scripts/gpu.py runs, in order, and how far each job has come."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _cli import CONFIGS
from _run_spec import read
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rad.errors import UsageError
from rad.results import RunFolder, name_of, summaries
from rad.schema.values import choose_device

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """One command of the Python interpreter: a training run, or a test or measurement run alone.

    A training run has the `folder` of its results, its number of `iterations`, and how many
    `milliseconds` each takes, as `guessed` or as measured. Any other job has the file `output` for
    what it prints, which is there once it is done, a guess of the `seconds` that it takes, and the
    packages that it `needs`.
    """

    name: str
    command: tuple[str, ...]
    output: Path | None = None
    seconds: float = 0.0
    needs: tuple[str, ...] = ()
    folder: Path | None = None
    iterations: int = 0
    milliseconds: float = 0.0
    guessed: bool = True

    def finished(self) -> bool:
        """Whether nothing is left of it."""
        if self.folder is not None:
            return RunFolder(self.folder).finished()
        return self.output is not None and self.output.exists()

    def lacking(self) -> str | None:
        """A package that it needs and that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)

    def iterations_done(self) -> int:
        """Those of a training run, as its metrics.csv says."""
        try:
            with (self.folder or Path()).joinpath("metrics.csv").open(newline="") as file:
                return max((int(row["iteration"]) for row in csv.DictReader(file)), default=0)
        except (OSError, ValueError, KeyError):
            return 0

    def seconds_left(self) -> float:
        """For a training run, those of the iterations left; for any other job, all of them."""
        if self.folder is None:
            return self.seconds
        return (self.iterations - self.iterations_done()) * self.milliseconds / 1000


def jobs(config: DictConfig, device: str) -> list[Job]:
    """All jobs of the configuration, finished or not. Raises UsageError for an unknown step."""
    steps = ("tests", *config.measurements, "runs")
    found: list[Job] = []
    for step in config.steps:
        if step not in steps:
            raise UsageError(f"unknown step {step!r}; choose among {', '.join(steps)}")
        if step == "runs":
            found += _runs(config, device)
        elif step == "tests":
            found.append(_tests(config))
        else:
            found += [_measurement(config, entry, device) for entry in config.measurements[step]]
    return found


def _tests(config: DictConfig) -> Job:
    """The tests marked `cuda`. Only their files: others may import what the machine lacks."""
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    marked = [str(file.relative_to(REPOSITORY)) for file in files if _is_marked(file)]
    return Job(
        "tests",
        ("-m", "pytest", "-m", "cuda", *marked),
        _output(config, "tests"),
        seconds=config.tests_seconds,
        needs=("pytest",),
    )


def _is_marked(file: Path) -> bool:
    return "pytest.mark.cuda" in file.read_text(encoding="utf-8")


def _measurement(config: DictConfig, entry: Any, device: str) -> Job:
    command = (f"scripts/{entry.script}.py", f"device={device}", *entry.arguments)
    return Job(entry.name, command, _output(config, entry.name), seconds=entry.seconds)


def _output(config: DictConfig, name: str) -> Path:
    return Path(config.results_root) / "gpu" / f"{name}.txt"


def _runs(config: DictConfig, device: str) -> Iterator[Job]:
    for entry in config.runs:
        measured = _measured(Path(config.results_root), entry.experiment, device)
        for seed in entry.seeds:
            for variant in entry.variants:
                for budget in ["full"] if variant == "baseline" else entry.budgets:
                    yield _run(config, entry, variant, budget, seed, device, measured)


def _run(
    config: DictConfig,
    entry: Any,
    variant: str,
    budget: Any,
    seed: int,
    device: str,
    measured: dict[str, float],
) -> Job:
    kind = [f"+experiment={entry.experiment}", f"variant={variant}"]
    scaled = config.scale != "paper" and "scales" in _composed(kind[0])
    kind += [f"scale={config.scale}"] if scaled else []
    runtime = [f"results_root={config.results_root}", f"device={device}", "logger.mode=disabled"]
    runtime += ["training.cuda_graph=true"] if config.cuda_graph else []
    composed = _composed(*kind, *runtime).copy()
    composed.seed = seed
    overrides = [*kind, f"seed={seed}"]
    if budget != "full":
        composed.budget = budget
        overrides.append(f"budget={budget}")
    spec = read(composed, overrides + runtime)
    return Job(
        f"{entry.experiment} {variant} {budget} seed {seed}",
        ("scripts/train.py", *overrides, *runtime),
        folder=spec.path,
        iterations=spec.settings.iterations,
        milliseconds=1000 * measured[variant] if variant in measured else entry.guess,
        guessed=variant not in measured,
    )


@cache
def _composed(*overrides: str) -> DictConfig:
    """The configuration of a training run, for many seeds and budgets: composing takes long."""
    with initialize_config_dir(str(CONFIGS / "train"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def _measured(root: Path, experiment: str, device: str) -> dict[str, float]:
    """Mean seconds per iteration of finished runs on a device of that model, by variant."""
    try:
        table = summaries(root, experiment)
    except UsageError:
        return {}
    same = table[table["device"] == name_of(choose_device(device))]
    return dict(same.groupby("variant")["seconds_per_iteration"].mean())
