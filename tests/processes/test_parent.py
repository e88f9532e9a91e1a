"""A process whose parent is killed ends, once it has been told to by SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import signal, sys, time
from pathlib import Path
from rad.processes import parent
parent.POLL_SECONDS, parent.GRACE_SECONDS = 0.05, float(sys.argv[2])
out = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: out.with_name("told").touch())
with parent.ending_with_parent():
    out.touch()
    time.sleep(0.3 if sys.argv[3] == "ends" else 60)
out.with_name("through").touch()
"""
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]]).wait()
"""


def wait_for(file: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert file.exists()


@pytest.mark.parametrize("grace", ["0.2", "50"])
def test_it_is_told_and_then_ended(grace: str, tmp_path: Path) -> None:
    words = [CHILD, str(tmp_path / "started"), grace, "sleeps" if grace == "0.2" else "ends"]
    started = subprocess.Popen([sys.executable, "-c", PARENT, *words], start_new_session=True)
    wait_for(tmp_path / "started")
    started.send_signal(signal.SIGKILL)
    started.wait()
    wait_for(tmp_path / "told")
    if grace == "50":
        return wait_for(tmp_path / "through")
    end = time.monotonic() + 30
    while any(_session(entry) == started.pid for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < end, "it goes on without its parent"
        time.sleep(0.05)
    assert not (tmp_path / "through").exists()
    return None


def _session(process: Path) -> int | None:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[3])


def test_a_parent_that_stays_changes_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CHILD, str(tmp_path / "started"), "1", "ends"]
    assert subprocess.run(words, check=False).returncode == 0
    assert os.listdir(tmp_path).count("told") == 0
    assert (tmp_path / "through").exists()
