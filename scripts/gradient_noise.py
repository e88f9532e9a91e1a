"""Gradient noise at points of training: `python scripts/gradient_noise.py`.

Trains the baseline, resuming from its checkpoints, and measures how far the gradients of sketches
and of smaller batches lie from the full training-set gradient. Writes a table and its provenance
at the end (after each point to <name>.partial.csv), and two figures. Settings:
configs/train/gradient_noise.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
from _run_spec import RunSpec, read
from omegaconf import DictConfig, OmegaConf
from torch import nn

from rad.data import Dataset
from rad.errors import UsageError
from rad.gradient_noise import Sampling, full_gradient, measure
from rad.planning.variants import Built, build
from rad.plotting import save
from rad.plotting.gradient_noise import noise_figure, ratio_figure
from rad.results import (
    RunFolder,
    machine,
    make_folder,
    provenance,
    read_summary,
    read_table,
    write_partial,
    write_whole,
)
from rad.training import NullLogger, RunInfo, follow, train
from rad.training.task import task_of


def main(config: DictConfig, overrides: list[str]) -> None:
    """Train, measure, write and draw."""
    check(config, overrides)
    file = Path(config.noise.output) / f"{config.experiment_name}.csv"
    if config.noise.measure:
        _measure(config, overrides, file)
    elif not file.exists():
        raise UsageError(f"{file} is missing; set noise.measure=true to measure first")
    table = read_table(file, "set noise.measure=true to measure again")
    words = conditions(read_summary(file))
    png, _ = save(ratio_figure(table, words), config.noise.figure)
    layers = png.with_name(f"{png.stem}_layers{png.suffix}")
    save(noise_figure(table, words), layers)
    logger = follow(config.logger, _info(config))
    logger.figure("gradient noise", png)
    logger.finish()
    print(f"{file} is drawn in {png} and {layers}")


def conditions(summary: Mapping[str, Any]) -> str:
    """In words for the figures: net, data, batch, and of how much each point is the mean."""
    if "minibatches" not in summary:
        return ""
    return (
        f"{summary['model']} on {summary['dataset']}, batch {summary['batch_size']}\n"
        f"{summary['minibatches']} minibatches, {summary['draws']} draws of each"
    )


def _info(config: DictConfig) -> RunInfo:
    """What dashboards get of a measurement."""
    noise: Any = OmegaConf.to_container(config.noise, resolve=True)
    return RunInfo(
        path=f"gradient_noise/{config.experiment_name}",
        title=str(config.experiment_name),
        group="gradient_noise",
        job="measurement",
        tags=(str(config.model.name), str(config.dataset.name), str(config.scale)),
        config={"noise": noise, "seed": config.seed},
        root=str(config.results_root),
    )


def _measure(config: DictConfig, overrides: list[str], file: Path) -> None:
    """Train and measure at each point; write all points so far."""
    spec, noise, origin = read(config, overrides), config.noise, provenance()
    dataset = spec.images()
    make_folder(file.parent, "noise.output")
    points: list[dict[str, Any]] = []
    tables: list[pd.DataFrame] = []
    for iteration in sorted(noise.iterations):
        model = _trained(spec, dataset, iteration, Path(noise.checkpoints), origin["commit"])
        full = full_gradient(model, dataset, spec.settings.evaluation_batch)
        estimators = _estimators(spec, noise, model, dataset)
        table = measure(model, dataset, full, estimators, _sampling(config))
        table.insert(0, "iteration", iteration)
        tables.append(table)
        points.append({"iteration": iteration, "train_loss": full.loss})
        print(f"iteration {iteration}: training loss {full.loss:.4g}", flush=True)
        summary = {**_summary(spec, config), "points": points, **origin}
        write_partial(file, pd.concat(tables), summary, setting="noise.output")
    write_whole(file, pd.concat(tables), summary, setting="noise.output")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong without data."""
    if config.variant.name != "baseline":
        raise UsageError("the baseline is trained; give what is compared as noise.variants=[...]")
    if config.slices is not None:
        raise UsageError("the noise is predicted for whole batches: leave slices at null")
    if config.path is not None:
        raise UsageError(
            "the noise of sketches of the weights' inputs alone is measured: leave path at null"
        )
    if (config.kind, config.allocation) != ("saved", "uniform"):
        raise UsageError("sketches are compared at keep fractions: leave kind and allocation out")
    _sampling(config)
    read(config, overrides)


def _sampling(config: DictConfig) -> Sampling:
    noise = config.noise
    return Sampling(noise.minibatches, noise.draws, noise.predictions, config.seed)


def _model(spec: RunSpec, dataset: Dataset) -> nn.Module:
    return spec.model(dataset).to(spec.device)


def _trained(
    spec: RunSpec, dataset: Dataset, iteration: int, checkpoints: Path, commit: str
) -> nn.Module:
    """The plain model after so many updates, each point a run of its own."""
    model = _model(spec, dataset)
    if iteration == 0:
        return model
    settings = replace(
        spec.settings,
        iterations=iteration,
        evaluate_every=iteration,
        train_loss_every=None,
        time_limit=None,
    )
    unused = ("checkpoint_seconds", "strict_resume")
    kept = {key: value for key, value in asdict(settings).items() if key not in unused}
    used = {"dataset": dataset.name, "seed": spec.seed, "settings": kept}
    used |= {"dataset_options": spec.dataset_options} if spec.dataset_options else {}
    model_options = OmegaConf.to_container(spec.config.model)
    text = OmegaConf.to_yaml(OmegaConf.create({**used, "model": model_options}))
    folder = RunFolder(checkpoints / spec.experiment / f"iteration={iteration}")
    with folder.open(text):
        train(model, dataset, settings, spec.seed, folder, NullLogger(), commit=commit)
    return model


def _estimators(
    spec: RunSpec, noise: DictConfig, model: nn.Module, dataset: Dataset
) -> list[Built]:
    """The baseline; at each keep fraction every variant, and the batch of equal memory."""
    task = task_of(dataset)
    batch = task.first(spec.settings.batch_size)
    loss = task.loss_on(batch.targets)
    pairs: list[tuple[str, str | float]] = [("baseline", "full")]
    pairs += [(v, f) for v in ("reduced_batch", *noise.variants) for f in noise.keep_fractions]
    return [build(model, batch.inputs, loss, v, budget, spec.seed) for v, budget in pairs]


def _summary(spec: RunSpec, config: DictConfig) -> dict[str, Any]:
    return {
        "experiment": spec.experiment,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "scale": config.scale,
        "batch_size": spec.settings.batch_size,
        **asdict(_sampling(config)),
        **machine(spec.device),
    }


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "gradient_noise", _cli.CONFIGS / "train")
