"""Signals, the death of a parent and jobs that fail, in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import train
from _run_spec import RunSpec
from calling import SCRIPTS, Call, interruptible

from rad.data import Dataset
from rad.planning.variants import Built
from rad.training import Ranks

TINY = ("model.hidden=[6]", "training.evaluate_every=50", "logger.mode=disabled")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def start(folder: Path, *arguments: str, script: str = "train") -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments],
        cwd=folder,
        text=True,
        stdout=pipe,
        stderr=pipe,
        preexec_fn=interruptible,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait(until: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def progress(folder: Path) -> list[int]:
    """Iterations done, as the metrics.csv of each run tell."""
    found = []
    for file in folder.rglob("metrics.csv"):
        rows = file.read_text().splitlines()
        found.append(int(rows[-1].split(",")[0]))
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("metrics.csv")
    with file.open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def saved(folder: Path) -> list[int]:
    files = folder.rglob("checkpoint.pt")
    return [torch.load(file, weights_only=True)["iteration"] for file in files]


NEVER = ("training.checkpoint_every=1000000", "training.checkpoint_seconds=null")
"""Checkpoints are due at the end alone."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_signal_saves_and_the_run_ends_as_the_unbroken_one(tmp_path: Path, call: Call) -> None:
    command = (*TINY, "variant=same_sample", "optimizer.iterations=1000")
    first = start(tmp_path, *command, *NEVER, "results_root=broken")
    wait(lambda: max(progress(tmp_path), default=0) >= 100, first)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate()
    assert err == "stopped by SIGINT; the same command goes on with what is unfinished\n"
    assert first.returncode == 130
    (done,) = saved(tmp_path)
    assert 100 <= done < 1000
    for root in ("broken", "unbroken"):
        again = call("train", *command, f"results_root={root}")
        assert (again.status, again.err) == (0, "")
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")


def test_a_signal_saves_a_control(tmp_path: Path, call: Call) -> None:
    command = ("scale=smoke", "optimizer.iterations=300", "logger.mode=disabled")
    first = start(tmp_path, *command, *NEVER, "results_root=broken", script="train_pde")
    wait(lambda: max(progress(tmp_path), default=0) >= 20, first)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate()
    assert (first.returncode, len(err.splitlines())) == (143, 1)
    (done,) = saved(tmp_path)
    assert 20 <= done < 300
    for root in ("broken", "unbroken"):
        assert call("train_pde", *command, f"results_root={root}").status == 0
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_save(
    number: signal.Signals, tmp_path: Path, call: Call
) -> None:
    command = (*TINY, "variant=same_sample", "optimizer.iterations=1000000", *NEVER)
    first = start(tmp_path, "-m", *command, *JOBLIB, "seed=0,1,2")
    wait(lambda: sum(done >= 100 for done in progress(tmp_path)) == 2, first)
    first.send_signal(number)
    first.wait()
    wait(lambda: not alive(first.pid))
    _, err = first.communicate()
    if number == signal.SIGTERM:
        assert err == "stopped by SIGTERM; the same command goes on with what is unfinished\n"
        assert first.returncode == 143
    done = saved(tmp_path)
    assert len(done) == 2
    assert min(done) >= 100
    again = call("train", "-m", *command, "seed=0,1", "training.time_limit=1e-9")
    assert (again.status, again.err) == (0, "")
    assert again.out.count("goes on from there") == 2
    assert sum(saved(tmp_path)) > sum(done)


def alive(session: int) -> list[int]:
    """Processes of that session that work: loky's tracker of resources is none."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = command_of(int(entry.name))
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z" and "tracker" not in command:
            found.append(int(entry.name))
    return found


def command_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()


FEW = (*TINY, "variant=same_sample", "optimizer.iterations=20", "optimizer=sgd")


def test_a_sweep_goes_on_behind_bad_jobs(tmp_path: Path, call: Call) -> None:
    sweep = ("optimizer.learning_rate=0.001,1e20,0.002", "budget=9kB,0.5")
    for together in (1, 4):
        root = f"results_root=by_{together}"
        done = call("train", "-m", *FEW, *sweep, root, f"runs_per_process={together}")
        assert done.status == 2
        lines = done.err.splitlines()
        assert len(lines) == 4, done.err
        assert all(line.startswith("error: ") for line in lines)
        assert all("learning_rate=" in line.partition(": ")[2] for line in lines)
        assert sum("too small" in line for line in lines) == 3
        (diverged,) = (line for line in lines if "lower the learning rate" in line)
        assert "learning_rate=1e+20" in diverged
        assert len(list((tmp_path / f"by_{together}").rglob("summary.json"))) == 2


def test_under_hydras_own_sweeper_a_bad_job_ends_the_sweep(call: Call, tmp_path: Path) -> None:
    done = call("train", "-m", "hydra/sweeper=basic", *FEW, "budget=9kB,0.5")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert not list(tmp_path.rglob("summary.json"))


def test_a_bug_in_a_job_keeps_its_traceback_and_the_others_go_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = train.plan

    def broken(spec: RunSpec, dataset: Dataset, ranks: Ranks) -> Built:
        return plan(spec, dataset, ranks) if spec.seed else 1 / 0  # type: ignore[return-value]

    monkeypatch.setattr(train, "plan", broken)
    done = call("train", "-m", *FEW, "seed=0,1")
    assert done.status == 2
    assert "Traceback" in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("error: seed=0: ZeroDivisionError: division by zero (a bug")
    assert len(list(tmp_path.rglob("summary.json"))) == 1


def test_a_preempted_job_of_a_cluster_saves_and_is_queued_again(tmp_path: Path, call: Call) -> None:
    options = (*TINY, "variant=same_sample", "optimizer.iterations=1000")
    sweep = start(tmp_path, "-m", "hydra/launcher=submitit_local", *options, *NEVER)
    wait(lambda: max(progress(tmp_path), default=0) >= 100, sweep)
    (task,) = (process for process in alive(sweep.pid) if "_submit" in command_of(process))
    os.kill(task, signal.SIGUSR2)
    _, err = sweep.communicate()
    assert (sweep.returncode, err) == (0, "")
    logs = {file.suffix: file.read_text() for file in tmp_path.rglob("*_log.*")}
    assert "this job is preempted" in logs[".err"]
    assert logs[".out"].count("Starting with") == 2
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["iterations"] == 1000
    preempted = rows(tmp_path / "results")
    assert call("train", *options, "results_root=unbroken").status == 0
    assert preempted == rows(tmp_path / "unbroken")


def test_ctrl_c_while_modules_load(tmp_path: Path) -> None:
    for delay in (0.2, 0.6, 1.2):
        process = start(tmp_path, *FEW)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert err == "stopped by SIGINT; the same command goes on with what is unfinished\n"
        assert process.returncode == 130
