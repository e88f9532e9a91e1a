"""What one training run is, read from its configuration without touching data or results."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _spec import check_fits, check_settings, config_text, device_of, path_overrides
from omegaconf import DictConfig, OmegaConf
from torch import nn

from rad import data, models
from rad.data import Dataset, Text
from rad.errors import UsageError
from rad.memory.budget import canonical
from rad.planning.compiled import COMPILED
from rad.results import run_path
from rad.schema.own import TARGET, call_own
from rad.schema.training import TRAIN
from rad.training import Settings, Task

RUNTIME = (
    "device",
    "data_root",
    "results_root",
    "runs_per_process",
    "logger",
    "training.time_limit",
    "training.checkpoint_every",
    "training.checkpoint_seconds",
    "training.strict_resume",
    "training.cuda_graph",
)
DATASET_HYPERPARAMETERS = ("iterations", "decay_factor", "decay_every", "tuned")


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

    def load(self) -> Dataset | Text | Task:
        """The data, on the run's device. Raises UsageError."""
        options, name = dict(self.dataset_options), self.config.dataset.name
        target = options.pop(TARGET, None)
        root, device = self.config.data_root, self.device
        if target is None:
            return data.load(name, root, device, **options)
        found = call_own(target, options, {"root": root, "device": device})
        if isinstance(found, Dataset | Text):
            fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
            tensors: dict[str, Any] = {
                k: v.to(device) for k, v in fields.items() if isinstance(v, torch.Tensor)
            }
            return dataclasses.replace(found, **tensors)
        if not isinstance(found, Task):
            wanted = "a rad.data.Dataset, a rad.data.Text or a rad.training.Task"
            raise UsageError(f"{target} returns a {type(found).__name__}; let it return {wanted}")
        return found

    def images(self) -> Dataset:
        """The data, which are labelled images. Raises UsageError for others."""
        dataset = self.load()
        if not isinstance(dataset, Dataset):
            raise UsageError(
                f"dataset={self.config.dataset.name} holds no labelled images: train it"
            )
        return dataset

    def model(self, dataset: Dataset | Text | Task) -> nn.Module:
        """The model for such data, on the CPU, as the seed has it. Raises UsageError."""
        options: dict[str, Any] = OmegaConf.to_container(self.config.model)  # type: ignore[assignment]
        name, target = options.pop("name"), options.pop(TARGET, None)
        given = getattr(dataset, "model_arguments", {})
        if target is None:
            return models.build(name, **given, seed=self.seed, **options)

        def own() -> nn.Module:
            made: nn.Module = call_own(target, options, given)
            return made

        own.__name__ = target
        return models.build(own, seed=self.seed)


def defaults() -> dict[str, Any]:
    """The top-level settings of scripts/train.py that need no group, as they are by themselves."""
    file = Path(__file__).resolve().parents[1] / "configs" / "train" / "train.yaml"
    plain = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in ("defaults", "hydra")}


def read(config: DictConfig, overrides: Sequence[str]) -> RunSpec:
    """Resolve and check a configuration; `overrides` are the command line's, as Hydra lists them.

    Raises:
        UsageError: a value that cannot be used, or an override that adds or removes a key.
    """
    config = config.copy()
    check_settings(config, TRAIN, others=True)
    if config.variant.name == "baseline" or config.budget is None:
        config.budget = "full"
    config.budget = canonical(config.budget)
    OmegaConf.resolve(config)
    dataset_options = _dataset_options(config)
    check_fits(config, dataset_options)
    _check_compiled(config)
    experiment = str(config.experiment_name)
    usual = experiment == f"{config.model.name}_{config.dataset.name}"
    kept = path_overrides(
        config,
        overrides,
        RUNTIME,
        named=("model", "dataset") if usual else (),
        script="train",
        no_effect="no effect on training",
    )
    return RunSpec(
        config=config,
        experiment=experiment,
        budget=config.budget,
        seed=config.seed,
        device=device_of(config),
        settings=_settings(config),
        dataset_options=dataset_options,
        path=run_path(
            config.results_root, experiment, config.variant.name, config.budget, kept, config.seed
        ),
        text=config_text(config, RUNTIME, dataset={"name": config.dataset.name, **dataset_options}),
    )


def _check_compiled(config: DictConfig) -> None:
    """Refuse what torch.compile has not been tried with. Raises UsageError."""
    others = {
        "slices": config.slices is not None,
        "training.cuda_graph": config.training.cuda_graph,
        "training.parallel": config.training.parallel == "fsdp",
    }
    name = config.variant.name
    for key, is_given in others.items():
        if name in COMPILED and is_given:
            raise UsageError(
                f"variant={name} compiles the model, which does not go with {key}="
                f"{OmegaConf.select(config, key)}: leave it out, or choose variant=auto"
            )


def _settings(config: DictConfig) -> Settings:
    optimizer = {k: v for k, v in config.optimizer.items() if k != "name"}
    training = {k: v for k, v in config.training.items() if k != "parallel"}
    return Settings(
        batch_size=config.batch_size,
        optimizer=config.optimizer.name,
        **optimizer,
        **training,
    )


def _dataset_options(config: DictConfig) -> dict[str, Any]:
    """The options of the data set, without the hyperparameters that its file holds, too."""
    held = {"name", *DATASET_HYPERPARAMETERS}
    return {str(key): value for key, value in config.dataset.items() if key not in held}
