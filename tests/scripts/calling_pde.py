"""How the PDE's scripts are called."""

import sys
from pathlib import Path

import pde_variance
import plot_pde
import pytest
import train_pde
from _cli import CONFIGS, Task, run
from calling import SCRIPTS, Call, Outcome

SCRIPTS_OF_PDE = {
    "train_pde": (Task(train_pde.main, train_pde.check), "pde"),
    "plot_pde": (Task(plot_pde.main), "pde_plot"),
    "pde_variance": (Task(pde_variance.main), "pde_variance"),
}


def caller(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs `python scripts/<name>.py <arguments>` in this process, in that folder."""
    monkeypatch.chdir(folder)

    def call(name: str, *arguments: str) -> Outcome:
        task, root = SCRIPTS_OF_PDE[name]
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *arguments])
        capsys.readouterr()
        status = 0
        try:
            run(task, root, CONFIGS / root)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call
