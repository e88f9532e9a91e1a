"""Tiny runs of all kinds, and what must come out of each whatever happens to it."""

from __future__ import annotations

import csv
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rad.errors import UsageError
from rad.torture.programs import Ended, Program

CIRCUMSTANCES = ("seconds", "commit")
"""Columns that may differ from run to run."""

Table = list[dict[str, str]]
Rows = dict[str, Table]
"""The rows of each table below a results folder, by the table's path."""


def rows(root: Path) -> Rows:
    """All tables that lie there, without what may differ from run to run."""
    found: Rows = {}
    for file in sorted(root.rglob("*.csv")):
        with file.open(newline="") as stream:
            found[file.relative_to(root).as_posix()] = [
                {key: value for key, value in row.items() if key not in CIRCUMSTANCES}
                for row in csv.DictReader(stream)
            ]
    return found


@dataclass(frozen=True)
class Subject:
    """A command, and how it is given its results folder and started."""

    name: str
    script: str
    arguments: tuple[str, ...]
    fresh: bool = False
    together: int = 1
    """How many processes are given the same command at once."""
    launched: int = 0
    """How many processes torchrun starts to train one run; 0: started without it."""


_QUIET = "logger.mode=disabled"
_TINY = (_QUIET, "training.evaluate_every=40", "training.checkpoint_every=20")
_SHORT = (*_TINY, "optimizer.iterations=400")
_SWEEP = ("-m", *_TINY, "optimizer.iterations=120", "model.hidden=[6]", "seed=0,1,2")
_TUNE = (
    *(_QUIET, "tuning.trials=4", "tuning.held_out=200", "optimizer.iterations=60"),
    *("model.hidden=[6]", "training.checkpoint_every=20", "tuning.scratch=scratch"),
)

SUBJECTS = (
    Subject("feedforward", "train", (*_SHORT, "model.hidden=[6]")),
    Subject("feedforward, rounded", "train", (*_SHORT, "model.hidden=[6]", "variant=auto")),
    Subject(
        "feedforward on a bootstrap sample",
        "train",
        (*_SHORT, "model.hidden=[6]", "training.bootstrap=true", "variant=project"),
    ),
    Subject(
        "convnet",
        "train",
        (*_TINY, "model=convnet", "model.channels=[2,2]", "optimizer.iterations=80"),
    ),
    Subject(
        "irnn",
        "train",
        (*_TINY, "model=irnn", "model.hidden=4", "optimizer=sgd", "optimizer.iterations=80"),
    ),
    Subject(
        "reaction-diffusion",
        "train_pde",
        (_QUIET, "scale=smoke", "optimizer.iterations=60", "training.checkpoint_every=5"),
    ),
    Subject("language model", "language_model", ()),
    Subject("tuning", "tune", _TUNE),
    Subject("tuning by two processes", "tune", _TUNE, together=2),
    Subject("sweep", "train", _SWEEP),
    Subject("sweep, runs side by side", "train", (*_SWEEP, "runs_per_process=3")),
    Subject(
        "sweep by joblib",
        "train",
        (*_SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        fresh=True,
    ),
    Subject(
        "two processes by torchrun",
        "train",
        (*_SHORT, "model.hidden=[6]", "training.parallel=ddp", "device=cpu"),
        fresh=True,
        launched=2,
    ),
    Subject("sweep by submitit", "train", (*_SWEEP, "hydra/launcher=submitit_local"), fresh=True),
)


def _agree(found: Table, expected: Table) -> bool:
    """The same rows; of trials as many, since one that was killed while it began has no number."""
    if not expected or "trial" not in expected[0]:
        return found == expected
    known = {row["trial"]: row for row in expected}
    same = all(known.get(row["trial"], row) == row for row in found)
    return same and len(found) == len(expected)


@dataclass
class Stage:
    """Where subjects are run: the scripts, and a folder for all that they leave."""

    scripts: Path
    scratch: Path
    _unbroken: dict[str, tuple[Rows, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """A new one."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True)

    def program(
        self,
        subject: Subject,
        folder: Path,
        *,
        more: tuple[str, ...] = (),
        size_limit: int | None = None,
    ) -> Program:
        """The subject's command, and `more` settings, with its results in `folder`/results."""
        folders = self.scripts, Path(__file__).parent
        script = next(file for each in folders if (file := each / f"{subject.script}.py").exists())
        words = (*subject.arguments, *more)
        return Program(script, words, folder, subject.fresh, size_limit, subject.launched)

    def unbroken(self, subject: Subject) -> tuple[Rows, float]:
        """What the subject leaves where nothing happens, and the seconds in which signals reach it.

        Those of a second run: the first may have to wait until what programs are forked from has
        loaded its modules.
        """
        with self._lock:
            own = self._locks.setdefault(subject.name, threading.Lock())
        with own:
            if subject.name not in self._unbroken:
                first, _ = self._once(subject)
                self._unbroken[subject.name] = self._once(subject)
                if self._unbroken[subject.name][0].keys() != first.keys():
                    raise UsageError(f"{subject.name} leaves other tables when run twice; mend it")
        return self._unbroken[subject.name]

    def _once(self, subject: Subject) -> tuple[Rows, float]:
        with self.folder() as name:
            running = self.program(subject, Path(name)).start()
            running.minds_signals()
            start = time.monotonic()
            ended = running.wait()
            if ended.status != 0:
                raise UsageError(
                    f"{subject.name} fails even unharmed ({ended.words}); mend it first"
                )
            return rows(Path(name) / "results"), time.monotonic() - start

    def difference(self, subject: Subject, folder: Path, ended: Ended) -> str | None:
        """How the end of a harmed run differs from the unbroken one's, in words."""
        if ended.status != 0 or "Traceback" in ended.err:
            return ended.words
        found, expected = rows(folder / "results"), self.unbroken(subject)[0]
        if found.keys() != expected.keys():
            return f"other tables: {sorted(found.keys() ^ expected.keys())}"
        differing = [name for name in expected if not _agree(found[name], expected[name])]
        return f"other rows in {', '.join(differing)}" if differing else None
