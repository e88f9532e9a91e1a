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
from rad.training import Interruption, checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _ctrl_c_is_python_s() -> Iterator[None]:
    """Also where a shell that runs the tests in its background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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

    tiny_run.save_edited({"weights": torch.zeros(2)}, file)
    assert_refused(tmp_path, "not a checkpoint of this program")
    tiny_run.save_edited(state | {"config": "experiment: other\n"}, file)
    assert_refused(tmp_path, "another configuration")
    tiny_run.save_edited(state | {"model": state["model"] | {"more": torch.zeros(1)}}, file)
    assert_refused(tmp_path, "another model .more is unknown.")
    tiny_run.save_edited(state | {"model": state["model"] | {"1.bias": torch.zeros(3)}}, file)
    assert_refused(tmp_path, r"1\.bias is torch.float32 \(3,\) there, torch.float32 \(24,\) here")


def test_comments_and_layout_make_no_other_configuration(tmp_path: Path) -> None:
    settings = replace(tiny_run.SETTINGS, iterations=1)
    tiny_run.run(tmp_path, settings)
    config = RunFolder(tmp_path).config_file
    config.write_text("# mine\nseed: 5 # as usual\n\nexperiment:   'tiny'\n")
    assert tiny_run.run(tmp_path, settings).finished
    config.write_text("experiment: tiny\nseed: 5.0\n")
    assert_refused(tmp_path, r"another configuration .*seed \(5.0 there, 5 here\)")


def test_checkpoints_are_due_after_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Path
) -> None:
    written: list[int] = []
    save = checkpoint.save

    def spy(folder: RunFolder, *state: Any) -> None:
        *_, progress, _ = state
        written.append(progress.iteration)
        save(folder, *state)

    monkeypatch.setattr(checkpoint, "save", spy)
    rarely = replace(tiny_run.SETTINGS, checkpoint_every=10**6)
    for seconds, count in ((1e-9, 18), (None, 1), (1e6, 1)):
        written.clear()
        path = tmp_path / str(seconds)
        assert tiny_run.run(path, replace(rarely, checkpoint_seconds=seconds)).finished
        assert len(written) == count
        assert rows_of(path) == rows_of(unbroken)


class Left(Exception):
    """What the handler of a test raises."""


def test_a_signal_waits_for_a_checkpoint_and_its_handler_decides(
    tmp_path: Path, unbroken: Path
) -> None:
    """A handler that returns lets training go on; one that raises leaves what resumes."""
    handled: list[int] = []
    rarely = replace(tiny_run.SETTINGS, checkpoint_every=10**6, checkpoint_seconds=None)

    def handle(number: int, frame: object) -> None:
        handled.append(state_of(tmp_path)["iteration"])
        if len(handled) == 2:
            raise Left

    def kill(update: int) -> None:
        if update in (33, 77):
            signal.raise_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        with pytest.raises(Left):
            tiny_run.run(tmp_path, rarely, on_backward=kill)
        assert signal.getsignal(signal.SIGUSR2) is handle
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert handled == [40, 80]
    assert tiny_run.run(tmp_path, rarely).finished
    assert_same_end(tmp_path, unbroken)


@pytest.mark.usefixtures("_ctrl_c_is_python_s")
def test_a_second_interrupt_waits_for_nobody() -> None:
    with Interruption() as interruption:
        interruption.running.add("a loop")
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_ctrl_c_is_python_s")
def test_a_signal_waits_for_all_that_take_turns() -> None:
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # no loop runs
        interruption.running |= {"one", "other"}
        signal.raise_signal(signal.SIGINT)
        interruption.saved("one")
        assert interruption.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interruption.saved("other")


def assert_refused(path: Path, words: str) -> None:
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(UsageError, match=words) as raised:
        tiny_run.run(path)
    assert "delete" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
