"""Loggers and the progress bar."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from PIL import Image
from training import tiny_run
from wandb.cli.beta_sync import _find_wandb_files
from wandb.proto.wandb_internal_pb2 import Record

from rad import data
from rad.errors import UsageError
from rad.results import RunFolder
from rad.training import RunInfo, Shown, WandbLogger, follow, train
from rad.training.progress_bar import ProgressBar
from rad.training.task import Classification, NextToken


def test_disabled_does_not_import_wandb() -> None:
    program = (
        "import sys; from rad.training import WandbLogger\n"
        "logger = WandbLogger('p', 'n', mode='disabled')\n"
        "logger.log({'iteration': 0}); logger.finish(); sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_unknown_mode() -> None:
    with pytest.raises(UsageError, match="online, offline, disabled"):
        WandbLogger("p", "n", mode="loud")


def record(directory: Path, name: str, iterations: Iterable[int]) -> None:
    logger = WandbLogger("rad", name, "fig5b", {"seed": 0}, "offline", directory)
    for iteration in iterations:
        logger.log({"iteration": iteration, "train_loss": iteration / 2, "batch_loss": None})
    logger.finish()
    logger.finish()


def test_a_later_offline_record_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    name = "fig5b/project/budget=0.1/seed=0"
    record(tmp_path, name, range(3))
    record(tmp_path, f"{name}0", range(2))
    record(tmp_path, name, range(5))
    record(tmp_path, name, ())  # stopped before its first row: takes no place
    record(tmp_path, name, range(4))  # stopped within its replay
    assert sorted(map(steps, to_sync(tmp_path))) == [[0, 1], [0, 1, 2, 3, 4]]
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 5
    record(tmp_path, name, range(7))
    assert sorted(map(steps, to_sync(tmp_path))) == [[0, 1], [*range(7)]]


def test_a_run_that_resumes_offline_leaves_one_whole_curve_to_sync(tmp_path: Path) -> None:
    """Evaluated after its last checkpoint, when it was interrupted: neither lost nor doubled."""
    folder, digits = RunFolder(tmp_path / "run"), data.load("digits")
    settings = replace(tiny_run.SETTINGS, iterations=40)
    interrupted = replace(settings, iterations=20)  # rows up to 20, the last checkpoint at 15
    for part in (interrupted, settings):
        logger = WandbLogger("rad", "run", None, {}, "offline", tmp_path)
        with folder.open(tiny_run.CONFIG):
            train(tiny_run.network(), digits, part, 5, folder, logger)
        logger.finish()
    (left,) = to_sync(tmp_path)
    assert steps(left) == [0, 10, 20, 30, 40]
    (run,) = (part.run for part in records(left) if part.HasField("run"))
    assert run.starting_step == 0
    assert not run.resume  # `wandb sync` would move its steps behind those of the server


def test_runs_of_one_name_below_two_roots_are_two(tmp_path: Path) -> None:
    for root, rows in (("results", 2), ("elsewhere", 3), (tmp_path, 4)):
        logger = WandbLogger("rad", "run", directory=tmp_path, root=root)
        for iteration in range(rows):
            logger.log({"iteration": iteration})
        logger.finish()
    assert sorted(map(steps, to_sync(tmp_path))) == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_an_offline_record_shows_the_subject(tmp_path: Path) -> None:
    """Configuration, summary, hidden columns and media, as another program reads them."""
    plan = {"batch_size": 18, "keep_fraction": 0.1, "bits": None, "saved_bytes": 1234}
    info = RunInfo(
        path="e/v/budget=0.1/seed=3",
        title="v 0.1 s3",
        group="e",
        tags=("convnet", "v"),
        config={"seed": 3},
        plan=plan,
        constant=("learning_rate",),
    )
    options = {"project": "rad", "mode": "offline", "directory": str(tmp_path)}
    logger = follow(options, info)
    for iteration, loss in enumerate((2.0, 0.5, 0.75)):
        row = {"iteration": iteration, "test_loss": loss, "test_accuracy": 1 - loss}
        logger.log({**row, "seconds": 0.1 * iteration, "learning_rate": 1e-3})
        own = {"train_bits_per_token": 2 * loss, "test_top5_accuracy": 1 - loss / 2}
        logger.log({"iteration": iteration, **own})
    picture = tmp_path / "picture.png"
    Image.new("RGB", (4, 3)).save(picture)
    logger.figure("noise", picture)
    logger.finish()
    (file,) = to_sync(tmp_path)
    parts = list(records(file))
    (run,) = (part.run for part in parts if part.HasField("run"))
    assert (run.display_name, run.run_group, run.job_type) == ("v 0.1 s3", "e", "train")
    assert set(run.tags) == {"convnet", "v"}
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["plan"] == plan
    assert config["seed"] == 3
    summary: dict[str, Any] = {}
    for part in parts:
        for item in part.summary.update:
            summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    assert summary["plan.saved_bytes"] == 1234
    assert (summary["best.test_loss"], summary["best.test_accuracy"]) == (0.5, 0.5)
    assert summary["best.train_bits_per_token"] == 1
    assert summary["best.test_top5_accuracy"] == 0.75
    hidden = {p.metric.name for p in parts if p.HasField("metric") and p.metric.options.hidden}
    assert hidden == {"iteration", "seconds", "learning_rate"}
    pictures = [item for p in parts for item in p.history.item if "image-file" in item.value_json]
    assert len(pictures) == 1


def test_tensorboard_shows_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    info = RunInfo(path="e/v/seed=3", plan={"saved_bytes": 1234}, constant=("learning_rate",))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (4, 3)).save(picture)
    for rows in (3, 5):  # the second time it resumes, and gives the first rows again
        logger = follow({"name": "tensorboard", "directory": str(tmp_path)}, info)
        for iteration in range(rows):
            row = {"iteration": iteration, "test_loss": 1 / (1 + iteration), "bits": None}
            logger.log({**row, "seconds": 0.5, "learning_rate": 1e-3})
        logger.figure("noise", picture)
        logger.finish()
    read = EventAccumulator(str(tmp_path / "e/v/seed=3")).Reload()
    assert [scalar.step for scalar in read.Scalars("loss/test")] == [0, 1, 2, 3, 4]
    assert read.Tags()["scalars"] == ["loss/test"]
    assert "noise" in read.Tags()["images"]
    (text, *_) = read.Tensors("plan/text_summary")
    assert b"1234" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("metric", [*Classification.metrics, *NextToken.metrics, "distance"])
def test_training_and_test_curves_share_a_panel(metric: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = follow({"name": "tensorboard", "directory": str(tmp_path)}, RunInfo("x"))
    logger.log({"iteration": 0, "batch_loss": 3.0, f"train_{metric}": 1.0, f"test_{metric}": 2.0})
    logger.finish()
    tags = EventAccumulator(str(tmp_path / "x")).Reload().Tags()["scalars"]
    assert set(tags) == {"loss/batch", f"{metric}/train", f"{metric}/test"}


def test_an_unknown_dashboard_and_one_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="unknown logger 'paper'; choose one of wandb"):
        follow({"name": "paper"}, RunInfo("x"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="pip install tensorboard, or choose logger=wandb"):
        follow({"name": "tensorboard", "directory": str(tmp_path)}, RunInfo("x"))


def test_rows_that_the_server_has_are_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    options: dict[str, Any] = {}

    def init(**given: Any) -> SimpleNamespace:
        options.update(given)
        unused = {"summary": {}, "define_metric": lambda *_, **__: None}
        return SimpleNamespace(starting_step=3, log=lambda row, step: sent.append(step), **unused)

    monkeypatch.setattr("wandb.init", init)
    logger = WandbLogger("rad", "run", mode="online", directory=".")
    for iteration in range(5):
        logger.log({"iteration": iteration})
    assert (sent, options["resume"]) == ([3, 4], "allow")


def to_sync(directory: Path) -> list[Path]:
    """The records that `wandb sync` does not pass over, all written to their ends."""
    wandb.teardown()
    found = _find_wandb_files(
        [directory / "wandb"], skip_synced=True, skip_online=True, verbose=False
    )
    return sorted(found)


def steps(file: Path) -> list[int]:
    return [part.history.step.num for part in records(file) if part.HasField("history")]


def records(file: Path) -> Iterator[Record]:
    """Of a .wandb file: LevelDB's log format after a header of seven bytes."""
    data, block, start, part = file.read_bytes(), 1 << 15, 7, b""
    while start + 7 <= len(data):
        if block - start % block < 7:
            start += block - start % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, start)
        part += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            whole = Record()
            whole.ParseFromString(part)
            part = b""
            yield whole


def test_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(10, 2, torch.device("cpu"))
    bar.show(5, 0.25)
    bar.close()
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    place = Shown("fig5b project 0.1 s3", 3_200_000, number=4, count=25)
    bar = ProgressBar(10, 2, torch.device("cpu"), place)
    bar.score("test accuracy", 0.973)
    bar.show(10, 0.25)
    bar.close()
    shown = capsys.readouterr().err
    for part in ("fig5b project 0.1 s3 [4/25]", "10/10", "loss=0.2500", "saved=3.2 MB", "it/s"):
        assert part in shown
    assert "test accuracy=97.3 %" in shown
    assert re.search(r"sweep=\d\d:\d\d left", shown)


def test_the_time_that_a_sweep_has_left() -> None:
    assert Shown(number=3, count=7, workers=2).sweep_left(0.5, 0.0, 10.0) == 2.5 * 20
    assert Shown(count=2).sweep_left(0.75, 0.5, 10.0) == (1 + 0.25) * 40
    assert Shown(number=7, count=7).sweep_left(1.0, 0.0, 10.0) == 0
    assert Shown().sweep_left(0.5, 0.0, 10.0) is None
    assert Shown(count=2).sweep_left(0.5, 0.5, 10.0) is None


def test_runs_that_share_a_terminal_write_whole_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = iter((0.0, 1.0, 31.0, 31.0, 32.0))
    monkeypatch.setattr("rad.training.progress_bar.time.monotonic", lambda: next(now))
    bar = ProgressBar(10, 0, torch.device("cpu"), Shown("a 0.1 s0", alone=False))
    for done in (2, 5, 6):
        bar.show(done, 0.25)
    bar.close()
    assert capsys.readouterr().err == "a 0.1 s0: 5/10, loss 0.2500\n"


@pytest.mark.parametrize("installed", [True, False])
def test_a_line_about_a_run_is_told_with_tqdm_and_without(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    bar = ProgressBar(10, 2, torch.device("cpu"))
    bar.tell(Path("results/run"), "no graph")
    bar.close()
    assert capsys.readouterr().err.strip().splitlines()[-1] == "results/run: no graph"
