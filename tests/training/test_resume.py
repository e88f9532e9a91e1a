"""An interrupted run ends as the unbroken one does."""

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import tiny_run

from rad.errors import UsageError
from rad.results import RunFolder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken")
    assert tiny_run.run(path).finished
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with RunFolder(path).metrics_file.open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        assert float(row.pop("seconds")) >= 0
    return rows


def state_of(path: Path) -> dict[str, Any]:
    state = torch.load(RunFolder(path).checkpoint_file, weights_only=True)
    assert isinstance(state, dict)
    return state


def assert_same_end(one: Path, other: Path) -> None:
    assert rows_of(one) == rows_of(other)
    first, second = state_of(one), state_of(other)
    assert first["iteration"] == second["iteration"]
    for part in ("model", "generators"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name
    for number, moments in first["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, second["optimizer"]["state"][number][name])


def start(path: Path) -> subprocess.Popen[str]:
    """Start or resume the run; return once it is about to take its first update."""
    command = [sys.executable, tiny_run.__file__, str(path), "0.01"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    return process


def test_sigkill_at_a_random_moment(tmp_path: Path, unbroken: Path) -> None:
    killed = 0
    for _ in range(3):
        delay = random.uniform(0, 0.8)
        print(f"killed {delay:.3f} s after the first update")
        with start(tmp_path) as process:
            time.sleep(delay)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed > 0
    with start(tmp_path) as process:
        pass
    assert process.returncode == 0
    assert_same_end(tmp_path, unbroken)


@pytest.mark.parametrize("fused", [False, True])
def test_time_limit_stops_and_resumes(tmp_path: Path, unbroken: Path, fused: bool) -> None:
    if fused:
        unbroken = tmp_path / "unbroken"
        assert tiny_run.run(unbroken, replace(tiny_run.SETTINGS, fused=True)).finished
        tmp_path /= "limited"
    limited = replace(tiny_run.SETTINGS, time_limit=1e-3, fused=fused)
    results = [tiny_run.run(tmp_path, limited)]
    assert not results[0].finished
    while not results[-1].finished:
        results.append(tiny_run.run(tmp_path, limited))
        assert results[-1].iterations > results[-2].iterations
    assert_same_end(tmp_path, unbroken)
    seconds = [float(row["seconds"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert seconds == sorted(seconds)
    assert results[-1].seconds_per_iteration > 0


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    settings = replace(tiny_run.SETTINGS, iterations=20)
    first = tiny_run.run(tmp_path, settings)
    before = RunFolder(tmp_path).metrics_file.read_bytes()
    RunFolder(tmp_path).metrics_file.unlink()
    again = tiny_run.run(tmp_path, settings)
    assert again == first
    assert RunFolder(tmp_path).metrics_file.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_checkpoint(tmp_path: Path, kept: int) -> None:
    settings = replace(tiny_run.SETTINGS, iterations=1)
    tiny_run.run(tmp_path, settings)
    file = RunFolder(tmp_path).checkpoint_file
    file.write_bytes(file.read_bytes()[:kept])
    assert_refused(tmp_path, r"checkpoint\.pt is damaged")


def test_checkpoint_of_something_else(tmp_path: Path) -> None:
    tiny_run.run(tmp_path, replace(tiny_run.SETTINGS, iterations=1))
    file = RunFolder(tmp_path).checkpoint_file
    state = state_of(tmp_path)

    torch.save({"weights": torch.zeros(2)}, file)
    assert_refused(tmp_path, "not a checkpoint of this program")
    torch.save(state | {"config": "experiment: other\n"}, file)
    assert_refused(tmp_path, "another configuration")
    torch.save(state | {"model": state["model"] | {"more": torch.zeros(1)}}, file)
    assert_refused(tmp_path, "another model .more is unknown.")
    torch.save(state | {"model": state["model"] | {"1.bias": torch.zeros(3)}}, file)
    assert_refused(tmp_path, r"1\.bias is torch.float32 \(3,\) there, torch.float32 \(24,\) here")


def assert_refused(path: Path, words: str) -> None:
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(UsageError, match=words) as raised:
        tiny_run.run(path)
    assert "delete" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
