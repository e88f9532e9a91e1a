"""Several processes train one run: as one does, each with its own draws, written once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "together.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("metrics.csv")
    with file.open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def summary(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("summary.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def statuses(processes: list[tuple[int, str]]) -> list[int]:
    return [status for status, _ in processes]


def test_two_processes_follow_the_curve_of_one(ended: Any, folder: Path) -> None:
    """In parts of 7 and 8 examples, with clipping and a bootstrap sample."""
    assert statuses(ended["one"] + ended["two"]) == [0, 0, 0]
    one, two = rows(folder / "one"), rows(folder / "two")
    assert len(one) == len(two) == 4
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"batch_loss"} if row["iteration"] == "0" else row.keys():
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-5)


def test_the_first_process_alone_prints_and_writes(ended: Any, folder: Path) -> None:
    told, silent = (output for _, output in ended["two"])
    assert "in each of 2 processes" in told
    assert silent == ""
    found = summary(folder / "two")
    assert found["processes"] == 2
    assert found["batch_size"] == 15
    assert "processes" not in summary(folder / "one")
    again, silent = (output for _, output in ended["again"])
    assert statuses(ended["again"]) == [0, 0]
    assert "finished already, skipped" in again
    assert silent == ""


def test_gradients_are_the_weighed_mean_of_those_of_each_process(ended: Any) -> None:
    assert ended["gradient"] == [[0, ""], [0, ""]]


def test_a_run_that_has_lost_a_process_ends_in_a_line_and_goes_on(ended: Any, folder: Path) -> None:
    (status, output), (killed, _) = ended["lost"]
    assert (status, killed) == (2, -9)
    line = output.splitlines()[-1]
    assert line.startswith("error: another process of this run is lost")
    assert line.endswith("the same command goes on from the last checkpoint")
    assert statuses(ended["lost, again"]) == [0, 0]
    assert len(summary(folder / "lost")["segments"]) == 2
    assert rows(folder / "lost") == rows(folder / "unbroken")


def test_a_signal_to_one_stops_all_with_a_checkpoint(ended: Any, folder: Path) -> None:
    assert statuses(ended["asked"]) == [143, 143]
    assert ended["asked"][0][1].count("stopped by SIGTERM") == 1
    assert "stopped" not in ended["asked"][1][1]
    assert statuses(ended["asked, again"]) == [0, 0]
    assert summary(folder / "asked")["segments"][1]["from"] > 0
    assert rows(folder / "asked") == rows(folder / "unbroken")


def test_another_number_of_processes_goes_on_or_is_refused(ended: Any) -> None:
    ((status, output),) = ended["asked, by one"]
    assert status == 2
    assert "with other processes (2 there, 1 here)" in output.splitlines()[-1]
    assert statuses(ended["smaller"]) == [0, 0]
    ((status, output),) = ended["smaller, by one"]
    assert status == 2
    assert "with another batch" in output.splitlines()[-1]


REFUSALS = {
    "null": "set training.parallel=ddp",
    "no torchrun": "training.parallel=ddp needs torchrun",
    "sweep": "torchrun's processes train one run",
    "tiny batch": "the batch has 1 examples for 2 processes",
    "tiny budget": "too small",
}


@pytest.mark.parametrize(("name", "words"), REFUSALS.items(), ids=REFUSALS.keys())
def test_what_cannot_be_is_refused_once(ended: Any, folder: Path, name: str, words: str) -> None:
    assert set(statuses(ended[name])) == {2}
    lines = [line for _, output in ended[name] for line in output.splitlines()]
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert words in line
    assert lines[-1] == line
    assert not list((folder / "refused").rglob("summary.json"))


def test_any_model_resumes_as_if_unbroken(ended: Any, folder: Path) -> None:
    """Batch normalisation, dropout and a counter of its own."""
    assert set(statuses(ended["any"] + ended["any, resumed"])) == {0}
    assert len(rows(folder / "any")) == 7
    assert rows(folder / "any") == rows(folder / "any, resumed")
