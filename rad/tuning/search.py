"""Trials that any number of processes share, and that survive each of them.

The journal of a folder holds its studies. A worker claims a trial by the lock of the trial's
run folder, which the operating system drops with the process: a trial that is marked as running
but not locked was abandoned, and the next worker resumes it from its checkpoint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from rad.errors import UsageError
from rad.results import Held, RunFolder, difference, locked
from rad.tuning.export import export
from rad.tuning.journal import Journal
from rad.tuning.space import PARAMETERS, KeyedSampler, Space


@dataclass(frozen=True)
class Trial:
    """One pair of hyperparameters to try, in a run folder that this process holds."""

    number: int
    learning_rate: float
    weight_decay: float
    folder: RunFolder


class Search:
    """A study `name` in `folder`, and how it is continued.

    `text` (YAML) is the configuration of its runs, `notes` what best.yaml tells of the study;
    checkpoints of unfinished trials lie below `scratch`. Making the object creates the study
    where it is not there.

    Raises:
        UsageError: unknown sampler, a folder that cannot be written, a journal that is damaged or
            none, or a study of that name with another configuration.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        text: str,
        space: Space,
        sampler: KeyedSampler,
        notes: Mapping[str, Any],
        scratch: Path,
    ) -> None:
        self.folder, self.name, self.text, self.space = folder, name, text, space
        self.scratch = scratch / name
        self.journal = Journal(folder / "journal.log")
        with self._locked():
            try:
                self.storage = JournalStorage(self.journal)
                self.study = optuna.create_study(
                    storage=self.storage, sampler=sampler, study_name=name, load_if_exists=True
                )
            except UsageError:
                raise
            except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
                raise UsageError(
                    f"{self.journal.file} is damaged ({type(error).__name__}); restore it from a "
                    "copy, or go on under another experiment_name"
                ) from error
            there = self.study.user_attrs
            if there.get("config", text) != text:
                raise UsageError(
                    f"{self.journal.file} holds {name} with another configuration (differing: "
                    f"{difference(there['config'], text)}); choose another experiment_name"
                )
            for key, value in (("notes", dict(notes)), ("config", text)):
                if key not in there:
                    self.study.set_user_attr(key, value)

    @contextmanager
    def claim(self, trials: int, notes: Mapping[str, Any]) -> Iterator[Trial | None]:
        """Hold an abandoned trial or a new one; None once `trials` are finished or held.

        `notes` is kept with a new trial.
        """
        with ExitStack() as stack:
            with self._locked():
                claimed = self._abandoned(stack)
                if claimed is None and len(self._trials(running=True)) < trials:
                    asked = self.study.ask(self.space.distributions())
                    for key, value in notes.items():
                        asked.set_user_attr(key, value)
                    claimed = self._hold(asked.number, asked.params, stack)
            yield claimed

    def finish(self, trial: Trial, loss: float) -> None:
        """Record the held-out loss, infinite where training diverged, and write the tables."""
        with self._locked():
            self.study.tell(trial.number, loss if math.isfinite(loss) else math.inf)
            export(self.folder, self.storage)
        shutil.rmtree(trial.folder.path, ignore_errors=True)

    def finished(self) -> int:
        """How many trials have a result."""
        return len(self._trials(running=False))

    def _trials(self, running: bool) -> list[FrozenTrial]:
        states = (TrialState.COMPLETE, *([TrialState.RUNNING] if running else []))
        return self.study.get_trials(deepcopy=False, states=states)

    def _abandoned(self, stack: ExitStack) -> Trial | None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() != set(PARAMETERS):  # killed while it was asked for
                self.study.tell(trial.number, state=TrialState.FAIL)
                continue
            try:
                return self._hold(trial.number, trial.params, stack)
            except Held:
                continue
        return None

    def _hold(self, number: int, values: Mapping[str, float], stack: ExitStack) -> Trial:
        folder = RunFolder(self.scratch / f"trial={number}")
        lines = "".join(f"tried_{name}: {values[name]!r}\n" for name in PARAMETERS)
        stack.enter_context(folder.open(f"{self.text}{lines}"))
        return Trial(number, values["learning_rate"], values["weight_decay"], folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all workers of the folder, with a journal that ends well; waits."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write to {self.folder} ({error.strerror}); choose another results_root"
            ) from error
        with locked(self.folder / ".lock", wait=True):
            self.journal.mend()
            yield
