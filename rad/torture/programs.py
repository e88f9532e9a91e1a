"""Programs that are started, signalled and waited for.

Most are forked from a process that has loaded what they need, which takes a tenth of a start;
launchers of several processes are started as users do.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 240.0
"""After which a program counts as hanging; those of torture take some ten at most."""

PRELOADED = ("torch._dynamo", "rad.torture.language_model", "rad.torture.warm")
"""What training loads when it begins."""


_ENDS = threading.Lock()
"""Held where forked programs are asked how they ended, as each is whenever another one starts: that
can be read once, and a second thread that reads it, too, finds status 255."""


@dataclass(frozen=True)
class Ended:
    """How a program ended: exit status, negative for a signal that killed it; what it printed."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str | None:
        """The one line with which it refused its work, if that is how it ended."""
        lines = self.err.splitlines()
        one = len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0] if self.status == 2 and one else None

    @property
    def words(self) -> str:
        """What there is to say of a bad end."""
        _, fatal, where = self.err.partition("Fatal Python error")
        if fatal:  # the most recent call stands first
            words = " | ".join((fatal + where).splitlines())[:800]
        else:
            words = " | ".join(self.err.strip().splitlines()[-4:])[-800:]
        return f"status {self.status}: {words}"


@dataclass(frozen=True)
class Program:
    """`python <script> <arguments>` in `folder`; `fresh`: in an interpreter of its own."""

    script: Path
    arguments: tuple[str, ...]
    folder: Path
    fresh: bool = False
    size_limit: int | None = None
    """The largest file, in bytes, that it may write."""
    launched: int = 0
    """How many processes torchrun starts of it; 0: started without it, as one."""

    def start(self) -> Running:
        """Started, in a session of its own."""
        return Running(self)

    def run(self) -> Ended:
        """Started and waited for."""
        return self.start().wait()


class Running:
    """A program that has been started."""

    def __init__(self, program: Program) -> None:
        self._printed = tempfile.TemporaryDirectory(prefix="rad-torture-")
        folder = Path(self._printed.name)
        self._files = folder / "out", folder / "err"
        self._shared = program.folder if program.launched else None
        self._process: Any
        if program.fresh:
            words = [sys.executable, *_launcher(program), str(program.script), *program.arguments]
            out, err = (file.open("wb") for file in self._files)
            with out, err:
                self._process = subprocess.Popen(
                    words,
                    cwd=program.folder,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=_as_by_a_user,
                )
        else:
            context = multiprocessing.get_context("forkserver")
            self._process = context.Process(target=_run, args=(program, *self._files))
            with _ENDS:
                self._process.start()
        self._started = time.monotonic()  # once what it is forked from has loaded its modules
        self.pid: int = self._process.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._status() is None

    def _status(self) -> int | None:
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        with _ENDS:
            status: int | None = self._process.exitcode
        return status

    def minds_signals(self) -> bool:
        """Wait until it does; False where it ends or hangs before."""
        while not _minds_signals(self.pid):
            if not self.running() or self.seconds > SECONDS:
                return False
            time.sleep(0.001)
        return True

    def strike(self, number: signal.Signals, after: float) -> bool:
        """Send a signal so many seconds after it minds signals; False where it had ended before.

        Before that, in the first moments of an interpreter, any program ends as Python has it.
        One that never comes so far is left to `wait`, which kills it.
        """
        if not self.minds_signals():
            return False
        minds = time.monotonic()
        while time.monotonic() - minds < after:
            if not self.running():
                return False
            time.sleep(0.001)
        if not self.running():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:  # it has ended since, and who started it knows first
            return False
        return True

    def wait(self) -> Ended:
        """Its end; one that hangs is killed, and its status is -9."""
        while self.running():
            if self.seconds > SECONDS:
                self._kill()
            time.sleep(0.002)
        status = self._status()
        assert status is not None
        out, err = (
            file.read_text(errors="replace") if file.exists() else "" for file in self._files
        )
        self._printed.cleanup()
        return Ended(status, out, err)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no session of its own yet
                os.kill(self.pid, signal.SIGKILL)

    def settle(self) -> None:
        """Wait until all that it has started has ended, too."""
        end = time.monotonic() + SECONDS
        while (_members(self.pid) or _working_in(self._shared)) and time.monotonic() < end:
            time.sleep(0.05)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._started


def preload(scripts: Path, modules: Sequence[str]) -> None:
    """Let programs be forked from a process that has loaded these modules of that folder."""
    places = [str(scripts), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *modules])


def _minds_signals(process: int) -> bool:
    """Whether it has a handler of SIGTERM."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def _members(session: int) -> list[int]:
    """Processes of a session that work: joblib's tracker of resources is none."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z" and "tracker" not in command:
            found.append(int(entry.name))
    return found


def _working_in(folder: Path | None) -> bool:
    """Whether a process works there: those of torchrun have a session of their own."""
    if folder is None:
        return False
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink() == folder.resolve():
                return True
    return False


def _launcher(program: Program) -> list[str]:
    if not program.launched:
        return []
    count = str(program.launched)
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]


def _as_by_a_user() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(program: Program, out: Path, err: Path) -> None:
    """In the forked process: the script as the main program."""
    os.setsid()
    _as_by_a_user()
    faulthandler.enable(2)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(program.folder)
    if program.size_limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (program.size_limit, program.size_limit))
    sys.argv = [str(program.script), *program.arguments]
    sys.path.insert(0, str(program.script.parent))
    runpy.run_path(str(program.script), run_name="__main__")
