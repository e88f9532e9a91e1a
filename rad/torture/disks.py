"""Disks that fill up or cannot be written: refused in one line, and the same command goes on."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from rad.torture.outcomes import LOST, REFUSED, SURVIVED, Outcome
from rad.torture.programs import Ended
from rad.torture.subjects import SUBJECTS, Stage, Subject

FULL, LARGEST, READ_ONLY = "full disk", "largest file", "read-only disk"
SUBJECT_NAMES = ("feedforward", "reaction-diffusion", "tuning")
PAGE = 4096


class Disks:
    """Each case runs a command on a bad disk, and again once it is a good one."""

    name = "disk"

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """A disk of a small size needs the right to mount one."""
        with self.stage.folder() as name, _disk(Path(name), PAGE) as mounted:
            return (FULL, READ_ONLY) if mounted else (LARGEST,)

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        """Run on the bad disk until the end or the refusal; then on the good one."""
        chosen = draw.choice(SUBJECT_NAMES)
        (subject,) = (each for each in SUBJECTS if each.name == chosen)
        pages = draw.randint(1, 24)
        with self.stage.folder() as name:
            folder = Path(name)
            if kind == LARGEST:
                program = self.stage.program(subject, folder, size_limit=pages * PAGE // 4)
                return self._judged(subject, folder, program.run())
            results = folder / "results"
            results.mkdir()
            with _disk(results, pages * PAGE):
                if kind == READ_ONLY:
                    _remount(results, "ro")
                first = self.stage.program(subject, folder).run()
                _remount(results, f"rw,size={PAGE * 1000}")
                return self._judged(subject, folder, first)

    def _judged(self, subject: Subject, folder: Path, first: Ended) -> Outcome:
        if first.status != 0 and first.refusal is None:
            return Outcome(LOST, f"{subject.name}: {first.words}")
        wrong = self.stage.difference(subject, folder, self.stage.program(subject, folder).run())
        if wrong:
            return Outcome(LOST, f"{subject.name}, then {wrong}")
        note = f"{subject.name}: {first.refusal or 'it had room enough'}"
        return Outcome(REFUSED if first.refusal else SURVIVED, note)


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[bool]:
    """A disk of that many bytes at that folder; whether it could be mounted."""
    options = ["-o", f"size={size}", "-t", "tmpfs", "tmpfs"]
    mounted = os.geteuid() == 0 and _succeeds(["mount", *options, str(folder)])
    try:
        yield mounted
    finally:
        if mounted:
            _succeeds(["umount", "--lazy", str(folder)])


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
