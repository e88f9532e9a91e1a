"""Bits that flip, files that are cut off, fields that were edited: refused, or nothing changes."""

from __future__ import annotations

import copy
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rad.data import files as data_files
from rad.errors import UsageError
from rad.results import RunFolder, metrics, read_table, summaries, write_table
from rad.torture.outcomes import LOST, REFUSED, SURVIVED, Outcome
from rad.torture.subjects import SUBJECTS, Stage, Subject

DATA = data_files.Spec("tiny", "", 12, 5, (1, 3, 3), (0.5,), (0.5,))


@dataclass(frozen=True)
class Target:
    """A kind of file: which one it is in a folder, and what reads it."""

    folder: Callable[[], Path]
    """A whole one, made once, to be copied."""

    pattern: str
    read: Callable[[Path], Any]
    """What the file's reader makes of the folder. Raises UsageError."""


class Damage:
    """Each case damages one file of a copy, and reads it."""

    name = "damage"

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        run = _Once(lambda: self._made("feedforward", "run"))
        stopped = _Once(lambda: self._made("feedforward", "stopped", "training.time_limit=1e-9"))
        control = _Once(
            lambda: self._made("reaction-diffusion", "control", "training.time_limit=1e-9")
        )
        study = _Once(lambda: self._made("tuning", "study"))
        table, data = _Once(self._table), _Once(self._data)
        self._targets = {
            "checkpoint": Target(stopped, "checkpoint.pt", self._ended("feedforward")),
            "checkpoint, fields edited": Target(
                stopped, "checkpoint.pt", self._ended("feedforward")
            ),
            "checkpoint of a control": Target(
                control, "checkpoint.pt", self._ended("reaction-diffusion")
            ),
            "metrics.csv": Target(run, "metrics.csv", _results),
            "summary.json": Target(run, "summary.json", _results),
            "summary.json, fields edited": Target(run, "summary.json", _results),
            "config.yaml": Target(run, "config.yaml", _results),
            "journal of a study": Target(study, "journal.log", self._ended("tuning")),
            "table": Target(table, "table.csv", lambda at: read_table(at / "table.csv").to_dict()),
            "table's provenance": Target(
                table, "table.json", lambda at: read_table(at / "table.csv").to_dict()
            ),
            "data set": Target(data, "tiny.npz", _arrays),
        }
        self.kinds = tuple(self._targets)
        self._whole: dict[str, Any] = {}

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        """Damage a copy, read it, and compare."""
        target = self._targets[kind]
        if kind not in self._whole:
            with self._copied(target) as folder:
                self._whole[kind] = target.read(folder)
        with self._copied(target) as folder:
            file = next(folder.rglob(target.pattern))
            before = file.read_bytes()
            note = self._edit(file, draw) if kind.endswith("edited") else _spoil(file, draw)
            if file.read_bytes() == before:
                return Outcome(SURVIVED, f"{note}: the same file")
            try:
                found = target.read(folder)
            except UsageError as error:
                verdict = LOST if "\n" in str(error) else REFUSED
                return Outcome(verdict, f"{note}: {error}"[:400])
            except Exception as error:  # whatever a reader may raise is a traceback
                return Outcome(LOST, f"{note}: {type(error).__name__}: {error}"[:400])
            same = found == self._whole[kind]
            return Outcome(SURVIVED if same else LOST, note)

    def _copied(self, target: Target) -> _Copied:
        return _Copied(self.stage, target.folder())

    def _subject(self, name: str) -> Subject:
        return next(subject for subject in SUBJECTS if subject.name == name)

    def _made(self, name: str, called: str, *more: str) -> Path:
        """A folder with what the subject's command leaves, with settings that do not name it."""
        folder = self.stage.scratch / "whole" / called
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for _ in range(3 if more else 1):  # two checkpoints, and rows
            program = self.stage.program(self._subject(name), folder, more=more)
            ended = program.run()
            if ended.status != 0:
                raise UsageError(f"{name} fails even unharmed ({ended.words}); mend it first")
        return folder

    def _ended(self, name: str) -> Callable[[Path], Any]:
        """What comes out where the same command goes on in a folder."""

        def read(folder: Path) -> Any:
            subject = self._subject(name)
            ended = self.stage.program(subject, folder).run()
            if ended.refusal is not None:
                raise UsageError(ended.refusal)
            wrong = self.stage.difference(subject, folder, ended)
            if wrong:
                raise RuntimeError(wrong)
            return None

        return read

    def _table(self) -> Path:
        folder = self.stage.scratch / "whole" / "table"
        rows = pd.DataFrame({"name": ["a", "b"], "value": [1 / 3, 2.0]})
        write_table(folder / "table.csv", rows, {"device": "x"})
        return folder

    def _data(self) -> Path:
        folder, draw = self.stage.scratch / "whole" / "data", np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{split}_{what}": draw.integers(0, 10, shape, dtype=np.uint8)
            for split, count in (("train", DATA.train), ("test", DATA.test))
            for what, shape in (("images", (count, *DATA.shape)), ("labels", (count,)))
        }
        with (folder / "tiny.npz").open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        return folder

    def _edit(self, file: Path, draw: random.Random) -> str:
        """Give one field a value that it cannot have, or take it away; the file is whole."""
        if file.suffix == ".json":
            tree = json.loads(file.read_bytes())
            note = _edited(tree, draw)
            file.write_text(json.dumps(tree, indent=2))
        else:
            tree = torch.load(file, weights_only=True)
            note = _edited(tree, draw)
            torch.save(tree, file)
        return note


class _Once:
    """A folder that the first thread to ask for it makes, while others wait."""

    def __init__(self, make: Callable[[], Path]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._folder: Path | None = None

    def __call__(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = self._make()
        return self._folder


class _Copied:
    """A copy of a folder, for the time of a `with` statement."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._temporary, self._folder = stage.folder(), folder

    def __enter__(self) -> Path:
        to = Path(self._temporary.__enter__()) / "copy"
        shutil.copytree(self._folder, to)
        return to

    def __exit__(self, *error: object) -> None:
        self._temporary.cleanup()


def _spoil(file: Path, draw: random.Random) -> str:
    """Flip one bit, or cut the file off."""
    whole = file.read_bytes()
    place = draw.randrange(len(whole))
    if draw.random() < 0.2:
        file.write_bytes(whole[:place])
        return f"cut off after {place} of {len(whole)} bytes"
    bit = draw.randrange(8)
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    return f"bit {bit} of byte {place} of {len(whole)} flipped"


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all that a tree of mappings and lists holds, mappings and lists included."""
    if path:
        yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _leaves(value, (*path, number))


def _edited(tree: Any, draw: random.Random) -> str:
    """Change one field of the tree, in place, to what it cannot be."""
    path = draw.choice(list(_leaves(tree)))
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    value = holder[path[-1]]
    wrong: list[Any] = ["text", {}, [], -1, float("nan")]
    if isinstance(value, torch.Tensor):
        wrong += [value.reshape(-1, 1, 1), value.double() if value.dtype == torch.float32 else 0.5]
    else:
        wrong = [each for each in wrong if each != value]
    choice = draw.randrange(len(wrong) + 1)
    name = ".".join(map(str, path))
    if choice == len(wrong):
        del holder[path[-1]]
        return f"{name} taken away"
    holder[path[-1]] = copy.copy(wrong[choice])
    return f"{name} made {wrong[choice]!r:.40}"


def _results(folder: Path) -> Any:
    """What figures, tables and repetitions read of a finished run."""
    root = folder / "results"
    (experiment,) = (each.name for each in root.iterdir())
    (file,) = root.rglob("summary.json")
    runs, table = summaries(root, experiment), metrics(root, experiment)
    text = RunFolder(file.parent).config_text()
    return *(each.drop(columns="path").to_json() for each in (runs, table)), text


def _arrays(folder: Path) -> Any:
    read = data_files.read(folder / "tiny.npz", DATA)
    return {name: array.tolist() for name, array in read.items()}
