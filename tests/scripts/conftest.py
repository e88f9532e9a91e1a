import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "scripts"), str(HERE)]

from calling import Call, caller  # noqa: E402


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs `python scripts/<name>.py <arguments>` in this process, in an empty folder.

    Results lie in tmp_path/results; Weights & Biases is disabled unless an argument says otherwise.
    """
    return caller(tmp_path, monkeypatch, capsys)
