"""What one run of scripts/train_pde.py is, read from its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _checks import check_budget, check_choice, check_seed
from _device import choose
from omegaconf import DictConfig, ListConfig, OmegaConf

from rad.errors import UsageError
from rad.pde import Fourier, ReactionDiffusion
from rad.pde.plan import Plan, plan
from rad.results import run_path
from rad.training import Settings
from rad.training.loggers import MODES

RUNTIME = ("device", "results_root", "logger", "training.time_limit", "training.checkpoint_every")
IN_EVERY_PATH = ("variant", "budget", "seed", "+experiment", "experiment_name")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class PdeSpec:
    """One run; `path` is its folder and `text` its config.yaml, free of runtime settings."""

    config: DictConfig
    experiment: str
    seed: int
    device: torch.device
    problem: ReactionDiffusion
    plan: Plan
    settings: Settings
    path: Path
    text: str


def read(config: DictConfig, overrides: Sequence[str]) -> PdeSpec:
    """Resolve and check a configuration; `overrides` are the command line's, as Hydra lists them.

    Raises:
        UsageError: a value that cannot be used, or an override that adds or removes a key.
    """
    config = config.copy()
    if config.variant.name == "baseline" or config.budget is None:
        config.budget = "full"
    OmegaConf.resolve(config)
    check_budget(config.budget)
    check_choice("logger.mode", config.logger.mode, MODES)
    kept = _path_overrides(config, overrides)
    problem = problem_of(config.problem)
    variant = config.variant
    folder = (config.results_root, config.experiment_name, variant.name, config.budget)
    return PdeSpec(
        config=config,
        experiment=str(config.experiment_name),
        seed=check_seed(config.seed),
        device=choose(config.device),
        problem=problem,
        plan=plan(
            problem,
            variant.name,
            config.budget,
            **{str(key): value for key, value in variant.items() if key != "name"},
        ),
        settings=Settings(batch_size=1, optimizer="adam", **config.optimizer, **config.training),
        path=run_path(*folder, kept, config.seed),
        text=_text(config),
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


def _path_overrides(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """`key=value`, resolved, of the overrides that change the outcome and are not in the path."""
    kept = set()
    for override in overrides:
        key = override.split("=", 1)[0]
        if key.startswith(("+", "~")) and key != "+experiment":
            raise UsageError(
                f"{override!r} adds or removes a setting, which has no effect; write key=value "
                "with a known setting (python scripts/train_pde.py --cfg job shows them)"
            )
        if key not in {*RUNTIME, *IN_EVERY_PATH} and key.split(".")[0] not in RUNTIME:
            value = OmegaConf.select(config, key)
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value)
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            kept.add(f"{key}={text}")
    return sorted(kept)


def _text(config: DictConfig) -> str:
    """The configuration as YAML, with what the run uses and without runtime settings."""
    tree: Any = OmegaConf.to_container(config)
    for name in ("device", "results_root", "logger", "scales"):
        del tree[name]
    for name in ("time_limit", "checkpoint_every"):
        del tree["training"][name]
    return OmegaConf.to_yaml(OmegaConf.create(tree))
