"""How a script is called, and how it ended."""

import importlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CONFIG_OF = {
    "gradient_noise": "gradient_noise/gradient_noise",
    "train_pde": "pde",
    "plot_pde": "pde_plot",
}
"""The configuration of a script that has not its name."""


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
    from _cli import CONFIGS, Task, run

    monkeypatch.chdir(folder)

    def call(name: str, *arguments: str) -> Outcome:
        quiet = [] if any(a.startswith("logger.") for a in arguments) else ["logger.mode=disabled"]
        extra = quiet if name in ("train", "train_pde") else []
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *arguments, *extra])
        capsys.readouterr()
        status = 0
        try:
            script = importlib.import_module(name)
            config = CONFIG_OF.get(name, name)
            own = CONFIGS / config
            parts = (getattr(script, part, None) for part in ("check", "together"))
            task = Task(script.main, *parts)
            run(task, config, own if (own / f"{config}.yaml").exists() else CONFIGS)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call
