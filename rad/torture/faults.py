"""Planted faults as an attack: a fault survives in no project whose tests notice it."""

from __future__ import annotations

import random
import shlex
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from rad.errors import UsageError
from rad.torture.outcomes import LOST, SURVIVED, Outcome
from rad.torture.planted_faults import CAUGHT, PASSED, UNHARMED, Copy, Fault, copy, problem


class Faults:
    """Each kind is one fault; the project survives it where the fault's tests fail.

    These tests pass without the fault, which is looked at first, and not again for faults that
    share them. Each thread that plants faults has a copy of its own.
    """

    name = "fault"

    def __init__(self, faults: Sequence[Fault], root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch / "copies"
        self._faults = {fault.name: fault for fault in faults}
        self._own, self._lock = threading.local(), threading.Lock()
        self._statuses: dict[str, int | None] = {}
        self.kinds = tuple(self._faults)

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        """Plant the fault, and run its tests with it and without."""
        fault = self._faults[kind]
        wrong = problem(fault, self.root)
        if wrong is not None:
            raise UsageError(f"the fault {kind!r} has lost its place ({wrong}); give it another")
        mine = self._copy()
        unharmed = self._without(mine, fault.tests)
        if unharmed != PASSED:
            word = "fail" if unharmed is not None else f"take more than {UNHARMED:g} s"
            return Outcome(LOST, f"its tests {word} without it: {fault.tests}")
        if mine.verdict(fault) == CAUGHT:
            return Outcome(SURVIVED, fault.tests)
        return Outcome(LOST, f"not noticed by {fault.tests}")

    def _without(self, copy: Copy, tests: str) -> int | None:
        with self._lock:
            known = tests in self._statuses
        if not known:
            status = copy.run(shlex.split(tests), {}, UNHARMED)
            with self._lock:
                self._statuses[tests] = status
        return self._statuses[tests]

    def close(self) -> None:
        """Remove the copies."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _copy(self) -> Copy:
        if not hasattr(self._own, "copy"):
            folder = self.scratch / str(threading.get_ident())
            shutil.rmtree(folder, ignore_errors=True)
            self._own.copy = Copy(copy(self.root, folder))
        found: Copy = self._own.copy
        return found
