"""trials.csv and best.yaml: what the journal holds, for readers."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from rad.results import write_together
from rad.tuning.space import PARAMETERS

COLUMNS = ("study", "trial", *PARAMETERS, "held_out_loss", "commit")
HEADER = (
    "# The best trial of each study; train with it by adding its overrides to scripts/train.py.\n"
)


def export(folder: Path, storage: BaseStorage) -> None:
    """Write both files from all finished trials; the caller holds the folder's lock.

    A trial that diverged has the held-out loss `inf`, and no study without another has a winner.
    """
    rows: list[dict[str, Any]] = []
    winners: dict[str, Any] = {}
    for name in sorted(optuna.get_all_study_names(storage)):
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rows += [_row(name, trial) for trial in trials]
        valid = [trial for trial in trials if math.isfinite(_loss(trial))]
        if valid:
            notes = study.user_attrs.get("notes", {})  # of another study, killed as it began
            winners[name] = _winner(min(valid, key=_loss), len(trials), notes)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    best = HEADER + yaml.safe_dump(winners, sort_keys=False, width=1000)
    files = {"trials.csv": text.getvalue(), "best.yaml": best}
    write_together({folder / name: data.encode() for name, data in files.items()})


def _loss(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _row(study: str, trial: FrozenTrial) -> dict[str, Any]:
    values = {name: repr(trial.params[name]) for name in PARAMETERS}
    fields = {"study": study, "trial": trial.number, "held_out_loss": repr(_loss(trial))}
    return {**fields, **values, "commit": trial.user_attrs.get("commit", "unknown")}


def _winner(trial: FrozenTrial, trials: int, notes: dict[str, Any]) -> dict[str, Any]:
    values = {name: trial.params[name] for name in PARAMETERS}
    overrides = " ".join(f"optimizer.{name}={value!r}" for name, value in values.items())
    fields = {"trial": trial.number, "trials": trials, "held_out_loss": _loss(trial)}
    return {**fields, **values, "overrides": overrides, **notes}
