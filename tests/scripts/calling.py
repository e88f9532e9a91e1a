"""How a script is called, and how it ended."""

import importlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CONFIGS = SCRIPTS.parent / "configs"


def home_of(script: str) -> tuple[Path, str]:
    """The folder and the name of the configuration that the script runs on."""
    import _cli

    return _cli.home_of(script)


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Call = Callable[..., Outcome]


def interruptible() -> None:
    """For Popen's preexec_fn: Ctrl-C interrupts the child, also where a shell that runs the
    tests in its background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def caller(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs `python scripts/<name>.py <arguments>` in this process, in that folder."""
    from _cli import Script, run

    monkeypatch.chdir(folder)

    def call(name: str, *arguments: str) -> Outcome:
        quiet = [] if any(a.startswith("logger.") for a in arguments) else ["logger.mode=disabled"]
        extra = quiet if name in ("train", "train_pde", "gradient_noise") else []
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *arguments, *extra])
        capsys.readouterr()
        status = 0
        try:
            script = importlib.import_module(name)
            parts = (getattr(script, part, None) for part in ("check", "together", "after"))
            folder, config = home_of(name)
            run(Script(script.main, *parts), config, folder)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call
