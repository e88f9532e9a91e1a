"""Faults that are planted in a copy of the project, to see whether its tests notice.

A fault is a text in one file, replaced by another, and the tests that must then fail. A fault that
no longer has its place in the file is an error: the list would else shrink unseen.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rad.errors import UsageError

COPIED = ("rad", "scripts", "configs", "tests", "docs", "examples", "results")
"""Folders that tests read, beside the files of the project's own folder."""

SECONDS = 300.0
"""After which tests that should fail, and have not, are given up."""

UNHARMED = 900.0
"""After which tests that should pass, and have not, are given up."""

CAUGHT, PASSED = 1, 0
"""Exit statuses of pytest: a test has failed, all have passed."""

OPTIONS = ("-x", "-q", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Fault:
    """`old` in `file` becomes `new`; `tests` are the arguments of pytest that must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def read(file: Path) -> list[Fault]:
    """The faults of a TOML file. Raises UsageError for a field that is missing or unknown."""
    try:
        entries = tomllib.loads(file.read_text())["fault"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise UsageError(f"{file} is no list of [[fault]] ({error}); mend it") from error
    try:
        faults = [Fault(**entry) for entry in entries]
    except TypeError as error:
        raise UsageError(f"{file}: {error}; give {', '.join(Fault.__annotations__)}") from error
    twice = {fault.name for fault in faults if [f.name for f in faults].count(fault.name) > 1}
    if twice:
        names = ", ".join(sorted(twice))
        raise UsageError(f"{file}: several faults are called {names}; give each its own name")
    return faults


def problem(fault: Fault, root: Path) -> str | None:
    """Why a fault cannot be planted below `root`, in words; None where it can."""
    file = root / fault.file
    if not file.is_file():
        return f"there is no {fault.file}"
    count = file.read_text().count(fault.old)
    if count != 1:
        return f"{fault.file} has its old text {count} times, not once"
    if fault.old == fault.new:
        return "it changes nothing"
    words = shlex.split(fault.tests)
    places = words[: words.index("-k")] if "-k" in words else words
    missing = [place for place in places if not (root / place.partition("::")[0]).exists()]
    return f"there is no {missing[0]}" if missing else None


def planted(fault: Fault, text: str) -> str:
    """The text of its file with the fault in it."""
    return text.replace(fault.old, fault.new)


def copy(root: Path, to: Path) -> Path:
    """What the tests of the project at `root` need, in a folder of its own."""
    for name in COPIED:
        shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("*.pt", ".lock"))
    for file in root.iterdir():
        if file.is_file():
            shutil.copy2(file, to)
    if (root / "data").exists():
        (to / "data").symlink_to((root / "data").resolve())
    subprocess.run(["git", "init", "--quiet"], cwd=to, check=False)
    return to


class Copy:
    """A copy of the project in which one fault at a time is planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def verdict(self, fault: Fault) -> int | None:
        """Pytest's exit status with the fault in place; None where it did not end in time."""
        file = self.folder / fault.file
        before = file.read_bytes()
        compiled = "njit" in before.decode()
        try:
            file.write_text(planted(fault, before.decode()))
            with tempfile.TemporaryDirectory() as cache:
                own = {"NUMBA_CACHE_DIR": cache} if compiled else {}
                return self.run(shlex.split(fault.tests), own)
        finally:
            file.write_bytes(before)

    def run(
        self, tests: Sequence[str], environment: Mapping[str, str], seconds: float = SECONDS
    ) -> int | None:
        """Pytest's exit status of those tests, stopped at the first failure; None out of time."""
        with tempfile.TemporaryDirectory() as scratch:
            words = ["-m", "pytest", *OPTIONS, f"--basetemp={scratch}/tests", *tests]
            return self._python(words, environment, seconds)

    def _python(
        self, words: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> int | None:
        own = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=self.folder,
                env={**os.environ, **own, **environment},
                capture_output=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return None
        return done.returncode
