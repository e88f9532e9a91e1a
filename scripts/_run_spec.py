"""What one training run is, read from its configuration without touching data or results."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _checks import check_budget, check_choice, check_runs_per_process, check_seed
from _device import choose
from omegaconf import DictConfig, ListConfig, OmegaConf

from rad.data import check_options
from rad.errors import UsageError
from rad.planning.probe import KINDS
from rad.planning.variants import ALLOCATIONS
from rad.results import run_path
from rad.training import Settings
from rad.training.loggers import MODES

RUNTIME = (
    "device",
    "data_root",
    "results_root",
    "runs_per_process",
    "logger",
    "training.time_limit",
    "training.checkpoint_every",
    "training.cuda_graph",
)
DATASET_HYPERPARAMETERS = ("iterations", "decay_factor", "decay_every", "tuned")
IN_EVERY_PATH = ("variant", "budget", "seed", "experiment", "experiment_name")


@dataclass(frozen=True)
class RunSpec:
    """One run. `settings` has the full batch size; the plan may cut it.

    `dataset_options` are those of `rad.data.load`. `path` is the run's folder and `text` its
    config.yaml: neither depends on runtime settings.
    """

    config: DictConfig
    experiment: str
    budget: str | float
    seed: int
    device: torch.device
    settings: Settings
    dataset_options: dict[str, Any]
    path: Path
    text: str


def read(config: DictConfig, overrides: Sequence[str]) -> RunSpec:
    """Resolve and check a configuration; `overrides` are the command line's, as Hydra lists them.

    Raises:
        UsageError: a value that cannot be used, or an override that adds or removes a key.
    """
    config = config.copy()
    if config.variant.name == "baseline" or config.budget is None:
        config.budget = "full"
    OmegaConf.resolve(config)
    check_budget(config.budget)
    check_choice("kind", config.kind, KINDS)
    check_choice("allocation", config.allocation, ALLOCATIONS)
    check_choice("logger.mode", config.logger.mode, MODES)
    check_runs_per_process(config.runs_per_process)
    dataset_options = _dataset_options(config)
    check_options(config.dataset.name, dataset_options)
    experiment = str(config.experiment_name)
    kept = _path_overrides(config, overrides)
    return RunSpec(
        config=config,
        experiment=experiment,
        budget=config.budget,
        seed=check_seed(config.seed),
        device=choose(config.device),
        settings=_settings(config),
        dataset_options=dataset_options,
        path=run_path(
            config.results_root, experiment, config.variant.name, config.budget, kept, config.seed
        ),
        text=_text(config),
    )


def _settings(config: DictConfig) -> Settings:
    optimizer = {k: v for k, v in config.optimizer.items() if k != "name"}
    return Settings(
        batch_size=config.batch_size,
        optimizer=config.optimizer.name,
        **optimizer,
        **config.training,
    )


def _dataset_options(config: DictConfig) -> dict[str, Any]:
    """What the data set is told, beside the hyperparameters that its file holds."""
    held = {"name", *DATASET_HYPERPARAMETERS}
    return {str(key): value for key, value in config.dataset.items() if key not in held}


def _path_overrides(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """`key=value` of the overrides that change the outcome and that the path does not name.

    Values stand as resolved, so that 1e-3 and 0.001 name one path.
    """
    dropped = {*RUNTIME, *IN_EVERY_PATH}
    if config.experiment_name == f"{config.model.name}_{config.dataset.name}":
        dropped |= {"model", "dataset"}
    kept = set()
    for override in overrides:
        key = override.split("=", 1)[0]
        if key.startswith(("+", "~")) and key != "+experiment":
            raise UsageError(
                f"{override!r} adds or removes a setting, which has no effect on training; write "
                "key=value with a known setting (python scripts/train.py --cfg job shows them)"
            )
        key = key.lstrip("+")
        if key not in dropped and key.split(".")[0] not in RUNTIME:
            kept.add(_canonical(config, key, override))
    return sorted(kept)


def _canonical(config: DictConfig, key: str, override: str) -> str:
    value = OmegaConf.select(config, key)
    if isinstance(value, DictConfig):
        return override
    if isinstance(value, ListConfig):
        value = OmegaConf.to_container(value)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"{key}={text}"


def _text(config: DictConfig) -> str:
    """The configuration as YAML, with what the run uses and without runtime settings."""
    tree: Any = OmegaConf.to_container(config)
    tree["dataset"] = {"name": config.dataset.name, **_dataset_options(config)}
    tree.pop("scales", None)
    for name in RUNTIME:
        *parents, key = name.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[key]
    return OmegaConf.to_yaml(OmegaConf.create(tree))
