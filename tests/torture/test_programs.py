"""Programs that hang, and programs that crash."""

import signal
from pathlib import Path

import pytest

from rad.torture import programs
from rad.torture.programs import Program


@pytest.mark.parametrize("fresh", [False, True])
def test_a_program_that_never_minds_signals_is_killed_in_the_end(
    fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "SECONDS", 1.0)
    script = tmp_path / "hangs.py"
    script.write_text("import time\ntime.sleep(600)\n")
    running = Program(script, (), tmp_path, fresh).start()
    assert not running.strike(signal.SIGTERM, after=0.0)
    assert running.wait().status == -signal.SIGKILL


def test_a_crash_tells_where(tmp_path: Path) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(
        "import os, signal\n\ndef fall(depth):\n"
        "    fall(depth - 1) if depth else os.kill(os.getpid(), signal.SIGSEGV)\n\nfall(30)\n"
    )
    ended = Program(script, (), tmp_path).run()
    assert ended.status == -signal.SIGSEGV
    for word in ("Segmentation fault", "crashes.py", "in fall"):
        assert word in ended.words
