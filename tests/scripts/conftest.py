import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "scripts"), str(HERE)]

from calling import SCRIPTS, Call, Outcome  # noqa: E402


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs `python scripts/<name>.py <arguments>` in this process, in an empty folder.

    Results lie in tmp_path/results; Weights & Biases is disabled unless an argument says otherwise.
    """
    from _cli import CONFIGS, Task, run

    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> Outcome:
        quiet = [] if any(a.startswith("logger.") for a in arguments) else ["logger.mode=disabled"]
        extra = quiet if name == "train" else []
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *arguments, *extra])
        capsys.readouterr()
        status = 0
        try:
            script = importlib.import_module(name)
            own = CONFIGS / name
            task = Task(script.main, getattr(script, "check", None))
            run(task, name, own if own.is_dir() else CONFIGS)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call
