"""Several processes train one run: as one does, each with its own draws, written once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import together
import torch
import train
from calling import Call
from torch import distributed

from rad.errors import Diverged, UsageError
from rad.results import RunFolder
from rad.training import Ranks

HERE = Path(__file__).resolve().parent
PATHS = (HERE.parents[1], HERE.parents[1] / "scripts", HERE.parent, HERE)

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def ended(folder: Path) -> Any:
    """How the processes of each scenario of together.py have ended: status and output."""
    paths = [*map(str, PATHS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(HERE / "together.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(folder: Path) -> list[dict[str, str]]:
    with RunFolder(folder).metrics_file.open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def saved(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(RunFolder(folder).checkpoint_file, weights_only=True)
    return state


def test_two_processes_follow_the_curve_of_one(ended: Any, folder: Path, tmp_path: Path) -> None:
    """Gradients, draws and refusals of a pair are checked in together.py, the last one here."""
    (status, line), silent = ended["everything"]
    assert (status, silent) == (2, [2, ""]), ended["everything"]
    assert line.startswith("error: the model has parameters without a gradient, which training.")
    together.run(Ranks(), tmp_path, together.exact())
    one, two = rows(tmp_path), rows(folder / "exact")
    assert [row["iteration"] for row in two] == [str(n) for n in range(0, 61, 10)]
    for row, other in zip(one, two, strict=True):
        assert {k for k, v in row.items() if v} == {k for k, v in other.items() if v}
        for name in (name for name, value in row.items() if value):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-5)
    assert float(two[-1]["train_loss"]) < 0.9 * float(two[0]["train_loss"])
    assert [each["processes"] for each in saved(folder / "exact")["segments"]] == [2]


def test_a_run_that_has_lost_a_process_ends_in_a_line_and_goes_on(ended: Any, folder: Path) -> None:
    (status, output), (killed, _) = ended["lost"]
    assert (status, killed) == (2, -9)
    (line,) = output.splitlines()
    assert line.startswith("error: another process of this run is lost")
    assert line.endswith("the same command goes on from the last checkpoint")
    assert len(saved(folder / "lost")["segments"]) == 2
    assert rows(folder / "lost") == rows(folder / "unbroken")


def test_a_signal_to_one_stops_all_with_a_checkpoint(ended: Any, folder: Path) -> None:
    """And the run goes on as the unbroken one, whose model draws in every way."""
    (status, output), (other, silent) = ended["asked"]
    assert (status, other) == (143, 143)
    assert output == "stopped by SIGTERM; the same command goes on with what is unfinished\n"
    assert silent == ""
    assert saved(folder / "asked")["segments"][1]["from"] >= 20
    assert rows(folder / "asked") == rows(folder / "unbroken")
    assert len(rows(folder / "unbroken")) == 7


def test_the_first_process_alone_prints_and_writes(ended: Any, folder: Path) -> None:
    """`reduced_batch` takes the largest part that fits, in each."""
    (status, told), (other, silent) = ended["script"]
    assert (status, other) == (0, 0), told + silent
    assert "in each of 2 processes" in told
    assert silent == ""
    (file,) = (folder / "script").rglob("summary.json")
    assert "training.parallel=ddp" in str(file)
    summary = json.loads(file.read_text())
    assert summary["processes"] == 2
    assert 2 <= summary["batch_size"] < 15
    assert summary["batch_size"] % 2 == 0
    assert f"batch {summary['batch_size'] // 2}," in told


def test_joined_is_left_with_the_error_of_a_run(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a loss that is not finite, which all processes see, said by the first alone."""
    raised: list[Diverged] = []

    @contextmanager
    def joined(device: torch.device) -> Iterator[Ranks]:
        try:
            yield Ranks()
        except Diverged as error:
            raised.append(error)
            raise

    monkeypatch.setattr(train, "joined", joined)
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 1}
    for name, value in {**names, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    tiny = ("model.hidden=[6]", "optimizer.iterations=4", "optimizer.learning_rate=1e30")
    assert call("train", "training.parallel=ddp", *tiny).status == 2
    assert len(raised) == 1


def test_another_batch_is_refused(tmp_path: Path) -> None:
    """As `reduced_batch` has it where the number of processes changes."""
    short = replace(together.SETTINGS, time_limit=1e-9)
    together.run(Ranks(), tmp_path, together.exact(), short)
    other = replace(together.SETTINGS, batch_size=18)
    with pytest.raises(UsageError, match=r"another batch \(15 examples there, 18 here; 1 proc"):
        together.run(Ranks(), tmp_path, together.exact(), other)


REFUSALS = {
    "torchrun has started 2 processes: set training.parallel=ddp": (),
    "torchrun's processes train one run": ("-m", "training.parallel=ddp", "seed=0,1"),
    "training.cuda_graph=true": ("training.parallel=ddp", "training.cuda_graph=true"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("words", "given"), REFUSALS.items(), ids=["null", "sweep", "graph"])
def test_what_cannot_be_is_refused_once(
    words: str, given: tuple[str, ...], rank: int, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": 1}
    for name, value in {**names, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    refused = call("train", *given)
    assert refused.status == 2
    lines = refused.err.splitlines()
    assert len(lines) == (1 if rank == 0 else 0)
    assert all(line.startswith(f"error: {words}") for line in lines)


def test_one_process_is_sent_to_torchrun(call: Call) -> None:
    refused = call("train", "training.parallel=ddp")
    assert refused.status == 2
    assert refused.err.startswith(
        "error: training.parallel=ddp needs torchrun: start torchrun --nproc"
    )
    refused = call("tune", "training.parallel=ddp")
    assert refused.status == 2
    assert refused.err.startswith("error: unknown training.parallel 'ddp'; choose one of None")
