"""Several processes train one run: as one does, each with its own draws, written once."""

from __future__ import annotations

import csv
import json
import os
import shutil
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
from unbiased import check_biased_is_caught, check_unbiased

from rad.errors import Diverged, UsageError
from rad.results import RunFolder
from rad.training import Ranks
from rad.training.ranks import PARALLEL

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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
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


def check_close(one: list[dict[str, str]], two: list[dict[str, str]]) -> None:
    """The same columns are filled in each row, with the same numbers to rounding."""
    for row, other in zip(one, two, strict=True):
        assert {k for k, v in row.items() if v} == {k for k, v in other.items() if v}
        for name in (name for name, value in row.items() if value):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-5)


def saved(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(RunFolder(folder).checkpoint_file, weights_only=True)
    return state


LAST = {
    "ddp": "the model has parameters without a gradient, which training.parallel=ddp",
    "fsdp": "the model uses parameters of a block outside of that block's forward pass",
}


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes_follow_the_curve_of_one(
    parallel: str, ended: Any, folder: Path, tmp_path: Path
) -> None:
    """Gradients, draws, shards and refusals of a pair are checked in together.py, the last here."""
    (status, line), silent = ended[f"everything {parallel}"]
    assert (status, silent) == (2, [2, ""]), ended[f"everything {parallel}"]
    assert line.startswith(f"error: {LAST[parallel]}")
    together.run(Ranks(), tmp_path, together.exact())
    one, two = rows(tmp_path), rows(folder / parallel / "exact")
    assert [row["iteration"] for row in two] == [str(n) for n in range(0, 61, 10)]
    check_close(one, two)
    assert float(two[-1]["train_loss"]) < 0.9 * float(two[0]["train_loss"])
    assert [each["processes"] for each in saved(folder / parallel / "exact")["segments"]] == [2]


@pytest.mark.parametrize("parallel", PARALLEL)
def test_gradients_of_two_processes_are_unbiased(parallel: str, ended: Any, folder: Path) -> None:
    assert ended[f"everything {parallel}"]
    samples, truth = torch.load(folder / parallel / "draws.pt")
    assert len(samples) == together.DRAWS
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_run_that_has_lost_a_process_ends_in_a_line_and_goes_on(
    parallel: str, ended: Any, folder: Path
) -> None:
    (status, output), (killed, _) = ended[f"lost {parallel}"]
    assert (status, killed) == (2, -9)
    (line,) = output.splitlines()
    assert line.startswith("error: another process of this run is lost")
    assert line.endswith("the same command goes on from the last checkpoint")
    own = folder / parallel
    assert len(saved(own / "lost")["segments"]) == 2
    assert rows(own / "lost") == rows(own / "unbroken")


@pytest.mark.parametrize("parallel", PARALLEL)
def test_one_process_goes_on_with_what_two_began(
    parallel: str, ended: Any, folder: Path, tmp_path: Path
) -> None:
    """Checkpoints hold the whole, however the processes have shared it out."""
    assert ended[f"everything {parallel}"]
    shutil.copytree(folder / parallel / "cut", tmp_path / "cut")
    assert saved(tmp_path / "cut")["iteration"] == 1
    together.run(Ranks(), tmp_path / "cut", together.exact())
    assert [each.get("processes") for each in saved(tmp_path / "cut")["segments"]] == [2, 1]
    check_close(rows(tmp_path / "cut"), rows(folder / parallel / "exact"))


def test_shards_go_on_with_what_whole_models_began(ended: Any, folder: Path) -> None:
    assert ended["everything fsdp"]
    assert len(saved(folder / "fsdp" / "crossed")["segments"]) == 2
    check_close(rows(folder / "fsdp" / "crossed"), rows(folder / "ddp" / "unbroken"))


def test_a_signal_to_one_stops_all_with_a_checkpoint(ended: Any, folder: Path) -> None:
    """And the run goes on as the unbroken one, whose model draws in every way."""
    (status, output), (other, silent) = ended["asked"]
    assert (status, other) == (143, 143)
    assert output == "stopped by SIGTERM; the same command goes on with what is unfinished\n"
    assert silent == ""
    assert saved(folder / "ddp" / "asked")["segments"][1]["from"] >= 20
    assert rows(folder / "ddp" / "asked") == rows(folder / "ddp" / "unbroken")
    assert len(rows(folder / "ddp" / "unbroken")) == 7


@pytest.mark.parametrize("parallel", PARALLEL)
def test_the_first_process_alone_prints_and_writes(parallel: str, ended: Any, folder: Path) -> None:
    """`reduced_batch`, trained by whole models, takes the largest part that fits, in each."""
    (status, told), (other, silent) = ended[f"script {parallel}"]
    assert (status, other) == (0, 0), told + silent
    assert "in each of 2 processes" in told
    assert silent == ""
    found = (folder / "script").rglob("summary.json")
    (file,) = (each for each in found if f"training.parallel={parallel}" in str(each))
    summary = json.loads(file.read_text())
    assert summary["processes"] == 2
    if parallel == "ddp":
        assert 2 <= summary["batch_size"] < 15
        assert summary["batch_size"] % 2 == 0
    assert f"batch {-(-summary['batch_size'] // 2)}," in told


def test_joined_is_left_with_the_error_of_a_run(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a loss that is not finite, which all processes see, said by the first alone."""
    raised: list[Diverged] = []

    @contextmanager
    def joined(*given: object) -> Iterator[Ranks]:
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
    "null": "torchrun has started 2 processes: set training.parallel=ddp or fsdp",
    "sweep": "torchrun's processes train one run",
    "graph": "training.cuda_graph=true",
    "fused": "training.parallel=fsdp cuts parameters",
    "refused by one": "unknown setting 'nonsense'",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_once(name: str, ended: Any) -> None:
    """Before the processes meet: by both, told by the first, or by the second alone."""
    statuses, outputs = zip(*ended[name], strict=True)
    assert statuses == (2, 2)
    first = int(name == "refused by one")
    assert outputs[1 - first] == ""
    (line,) = outputs[first].splitlines()
    assert line.startswith(f"error: {REFUSALS[name]}")


def test_one_process_is_sent_to_torchrun(call: Call) -> None:
    refused = call("train", "training.parallel=ddp")
    assert refused.status == 2
    assert refused.err.startswith(
        "error: training.parallel=ddp needs torchrun: start torchrun --nproc"
    )
    refused = call("tune", "training.parallel=ddp")
    assert refused.status == 2
    assert refused.err.startswith("error: unknown training.parallel 'ddp'; choose one of None")
