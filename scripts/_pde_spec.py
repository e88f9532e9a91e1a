"""What one run of scripts/train_pde.py is, read from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _spec import check_settings, config_text, device_of, path_overrides
from omegaconf import DictConfig, OmegaConf

from rad.errors import UsageError
from rad.memory.budget import canonical
from rad.pde import Fourier, ReactionDiffusion
from rad.pde.plan import PlannedAdjoint, plan
from rad.results import run_path
from rad.schema.training import PDE
from rad.training import Settings

RUNTIME = (
    *("device", "results_root", "logger"),
    *("training.time_limit", "training.checkpoint_every", "training.checkpoint_seconds"),
    "training.strict_resume",
)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class PdeSpec:
    """One run; `path` is its folder and `text` its config.yaml, free of runtime settings."""

    config: DictConfig
    experiment: str
    seed: int
    device: torch.device
    problem: ReactionDiffusion
    plan: PlannedAdjoint
    settings: Settings
    path: Path
    text: str


def read(config: DictConfig, overrides: Sequence[str]) -> PdeSpec:
    """Resolve and check a configuration; `overrides` are the command line's, as Hydra lists them.

    Raises:
        UsageError: a value that cannot be used, or an override that adds or removes a key.
    """
    config = config.copy()
    check_settings(config, PDE)
    if config.variant.name == "baseline" or config.budget is None:
        config.budget = "full"
    config.budget = canonical(config.budget)
    OmegaConf.resolve(config)
    kept = path_overrides(config, overrides, RUNTIME, script="train_pde")
    problem = problem_of(config.problem)
    variant = config.variant
    folder = (config.results_root, config.experiment_name, variant.name, config.budget)
    return PdeSpec(
        config=config,
        experiment=str(config.experiment_name),
        seed=config.seed,
        device=device_of(config),
        problem=problem,
        plan=plan(
            problem,
            variant.name,
            config.budget,
            **{str(key): value for key, value in variant.items() if key != "name"},
        ),
        settings=Settings(batch_size=1, optimizer="adam", **config.optimizer, **config.training),
        path=run_path(*folder, kept, config.seed),
        text=config_text(config, RUNTIME),
    )


def problem_of(config: DictConfig) -> ReactionDiffusion:
    """The problem that the configuration's `problem` describes. Raises UsageError."""
    options: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    name, terms = options.pop("dtype"), options.pop("terms")
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    if not isinstance(terms, list) or not all(isinstance(term, list) for term in terms):
        raise UsageError(f"terms is {terms!r}; give a list of pairs, such as [[0,0],[1,2]]")
    return ReactionDiffusion(**options, dtype=DTYPES[name], series=Fourier(tuple(terms)))
