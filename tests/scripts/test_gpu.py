"""scripts/gpu.py, rehearsed on the CPU in processes of its own."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu
import pandas as pd
import pytest
from calling import SCRIPTS, interruptible

RUNS = (
    "runs=[{experiment: quickstart, variants: [baseline, same_sample], budgets: [0.1],"
    " seeds: [0, 1], guess: 1}]"
)
REHEARSAL = ("device=cpu", "steps=[runs]", RUNS, "workers=2", "margin=0")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "gpu.py"), *REHEARSAL, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
        env=os.environ | {"RAD_COMMIT": "abc"},
    )


def rows(folder: Path) -> dict[str, pd.DataFrame]:
    return {
        str(file.relative_to(folder)): pd.read_csv(file).drop(columns="seconds")
        for file in sorted(folder.rglob("metrics.csv"))
    }


def wait_for(folder: Path, pattern: str, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(folder.rglob(pattern))) < count and process.poll() is None:
        time.sleep(0.05)


def test_interrupted_twice_it_ends_with_the_rows_of_an_unbroken_run(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", "time_limit=300", "--archive", "new.tar.gz")
    out, err = whole.communicate()
    assert whole.returncode == 0, err
    assert "4 of 4 jobs are finished" in out
    with tarfile.open(tmp_path / "whole" / "new.tar.gz") as tar:
        names = tar.getnames()
    assert sum(name.endswith("summary.json") for name in names) == 4
    assert not any("checkpoint" in name or ".lock" in name for name in names)

    broken = tmp_path / "broken"
    for pattern, count, signum in (
        ("config.yaml", 1, signal.SIGINT),
        ("summary.json", 1, signal.SIGTERM),
    ):
        process = start(broken, "time_limit=300", "--archive", "part.tar.gz")
        wait_for(broken, pattern, count, process)
        process.send_signal(signum)
        process.communicate()
        assert process.returncode == 130
        assert (broken / "part.tar.gz").exists()
    assert 0 < len(list(broken.rglob("summary.json"))) < 4
    last = start(broken, "time_limit=300")
    out, err = last.communicate()
    assert last.returncode == 0, err
    found, expected = rows(broken), rows(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name])


def test_at_the_time_limit_it_stops_with_runs_left(tmp_path: Path) -> None:
    process = start(tmp_path / "short", "slice=1", "time_limit=8", "workers=1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert re.search(r"[0-3] of 4 jobs are finished; the same command goes on", out)


def test_a_listing_needs_no_gpu_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for line in ("to do             tests", "(guess) fig5a_cifar10 project 0.1 seed 2, 0/100000"):
        assert line in out
    assert "540 s, 8 side by side" in out.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed=3"], "'speed=3' is no setting.*time_limit"),
        (["workers"], "'workers' is no setting"),
        (["workers=0"], "workers is 0; give a number of at least 1"),
        (["steps=[dance]"], "unknown step 'dance'; choose among tests"),
        (["device=tpu"], "unknown device"),
    ],
)
def test_bad_settings_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(gpu.UsageError, match=message):
        gpu.main([*arguments, *(["device=cpu"] if "device" not in arguments[0] else [])])
