"""Tune learning rate and weight decay: `python scripts/tune.py -m variant=baseline,project`.

Trains on the training set less some held-out examples, whose loss is the score; the test set is
never used. The same command in several processes shares one study, and resumes it. Writes
<results_root>/tuning/<experiment>/: journal.log, trials.csv, best.yaml. Settings:
configs/train/tune.yaml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _cli  # first: see there
import optuna
from _run_spec import RunSpec, read
from omegaconf import DictConfig, OmegaConf
from train import plan

from rad.data import Dataset
from rad.errors import Diverged, UsageError
from rad.results import machine, provenance
from rad.training import NullLogger, train
from rad.tuning import Search, Space, Trial, hold_out
from rad.tuning.space import KeyedSampler

# They change neither what a trial is nor its outcome.
FREE = ("tuning.trials", "tuning.scratch")


def main(config: DictConfig, overrides: list[str]) -> None:
    """Finish trials until the study has as many as wanted."""
    check(config, overrides)
    spec = _spec(config, overrides)
    tuning, origin = config.tuning, provenance()
    dataset = hold_out(spec.images(), tuning.held_out, spec.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    results = Path(spec.config.results_root)
    study = spec.path.relative_to(results / spec.experiment).as_posix()
    notes = _notes(spec, tuning, plan(spec, dataset).plan.describe(), origin)
    search = Search(
        results / "tuning" / spec.experiment,
        study,
        _text(spec, tuning),
        _space(tuning),
        KeyedSampler(tuning.sampler, spec.seed),
        notes,
        Path(tuning.scratch) / spec.experiment,
    )
    while True:
        with search.claim(tuning.trials, {"commit": origin["commit"]}) as trial:
            if trial is None:
                break
            loss = held_out_loss(spec, dataset, trial, origin["commit"])
            search.finish(trial, loss)
        print(
            f"{study}, trial {trial.number}: learning rate {trial.learning_rate:.4g}, "
            f"weight decay {trial.weight_decay:.4g}, held-out loss {loss:.5g}",
            flush=True,
        )
    print(f"{study}: {search.finished()} trials; the best is in {search.folder / 'best.yaml'}")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong without data."""
    tuning = config.tuning
    for override in overrides:
        if re.match(r"optimizer\.(learning_rate|weight_decay)=", override):
            raise UsageError(f"{override!r} sets what is tuned; give its range as tuning.<name>=")
    _space(tuning)
    _spec(config, overrides)


def held_out_loss(spec: RunSpec, dataset: Dataset, trial: Trial, commit: str) -> float:
    """Train one trial; the loss on the held-out examples at its end, infinite if it diverged."""
    built = plan(spec, dataset)
    settings = replace(
        spec.settings,
        batch_size=built.batch_size,
        learning_rate=trial.learning_rate,
        weight_decay=trial.weight_decay,
        evaluate_every=spec.settings.iterations,
        train_loss_every=None,
        time_limit=None,
    )
    try:
        run = built.model, dataset, settings, spec.seed, trial.folder, NullLogger()
        result = train(*run, commit=commit)
    except Diverged:
        return math.inf
    return result.final["test_loss"]


def _spec(config: DictConfig, overrides: Sequence[str]) -> RunSpec:
    return read(config, [o for o in overrides if o.split("=", 1)[0] not in FREE])


def _space(tuning: DictConfig) -> Space:
    return Space(tuple(tuning.learning_rate), tuple(tuning.weight_decay))


def _text(spec: RunSpec, tuning: DictConfig) -> str:
    """The configuration of the study's runs, without what is tuned."""
    tree: Any = OmegaConf.to_container(OmegaConf.create(spec.text))
    for name in ("learning_rate", "weight_decay"):
        del tree["optimizer"][name]
    for name in FREE:
        del tree["tuning"][name.split(".")[1]]
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _notes(
    spec: RunSpec, tuning: DictConfig, planned: str, origin: dict[str, Any]
) -> dict[str, Any]:
    used: Any = OmegaConf.to_container(tuning)
    return {
        "run": planned,
        "iterations": spec.settings.iterations,
        "scale": spec.config.scale,
        "tuning": {key: used[key] for key in used if f"tuning.{key}" not in FREE},
        **machine(spec.device),
        **origin,
    }


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "tune", _cli.CONFIGS / "train")
