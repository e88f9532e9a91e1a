"""Resumption under other circumstances: noticed, said, listed, refused where asked."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import tiny_run

from rad import data
from rad.errors import UsageError
from rad.results import RunFolder, code
from rad.training import NullLogger, TrainResult, segments, train

SETTINGS = replace(tiny_run.SETTINGS, iterations=30, checkpoint_every=10)
SHORT = replace(SETTINGS, time_limit=1e-9)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def resumed(path: Path, **changes: Any) -> TrainResult:
    return tiny_run.run(path, replace(SETTINGS, **changes))


def test_the_same_circumstances_are_no_news(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tiny_run.run(tmp_path, SHORT)
    assert len(first.segments) == 1
    assert first.provenance() == {"digests": {"data": data.load("digits").digest}}
    done = resumed(tmp_path, strict_resume=True)
    assert capsys.readouterr().err == ""
    whole, later = done.provenance()["segments"]
    assert whole.keys() == segments.TYPES.keys()
    assert (whole["from"], whole["code"], whole["threads"]) == (0, code(), 1)
    assert later == {"from": first.iterations}
    assert resumed(tmp_path).segments == done.segments  # nothing was left to do


CHANGES = {
    "code": ("code", "f" * 64, r"other code: its"),
    "versions": (
        "versions",
        {"torch": "1.0"},
        r"other numba \(none .*torch \(\S+ there, 1\.0 here",
    ),
    "device": ("device", "an abacus", r"other device \(.* there, an abacus here\): its"),
    "threads": ("threads", 7, r"other threads \(1 there, 7 here\): its"),
    "kernels": ("kernels", "off", r"other kernels \(None there, off here\): its"),
    "processes": ("processes", 3, r"other processes \(1 there, 3 here\): its"),
}


@pytest.mark.parametrize(("name", "value", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_what_can_change_numbers_is_said_listed_or_refused(
    name: str,
    value: Any,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = tiny_run.run(tmp_path, SHORT).iterations
    real = segments.here

    def elsewhere(*arguments: Any) -> segments.Segment:
        return {**real(*arguments), name: value}

    monkeypatch.setattr(segments, "here", elsewhere)
    if name == "versions":
        words = words.replace("none ", r"\S+ there, none here\), ")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"training\.strict_resume=false$") as raised:
        resumed(tmp_path, strict_resume=True)
    assert re.search(words.replace(": its", ";"), str(raised.value))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    done = resumed(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"goes on from iteration {started} with {words}", line)
    assert done.segments[1] == {"from": started, name: value}


def test_both_commits_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    there = segments.here(torch.device("cpu"), None, "abc", 1, 16)
    here = {**there, "code": "other", "commit": "def"}
    assert segments.differences(there, here) == ["code (abc there, def here)"]
    assert segments.differences(there, {**there, "commit": "def"}) == []


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    tiny_run.run(tmp_path, SHORT)
    digits, folder = data.load("digits"), RunFolder(tmp_path)
    changed = digits.train_images.clone()
    changed[5, 0, 3, 3] ^= 1
    other = replace(digits, train_images=changed)
    with (
        folder.open(tiny_run.CONFIG),
        pytest.raises(UsageError, match="with another data set; bring back the one it began with"),
    ):
        train(tiny_run.network(), other, SETTINGS, 5, folder, NullLogger())


def test_a_checkpoint_of_an_earlier_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no segments."""
    tiny_run.run(tmp_path, SHORT)
    file = RunFolder(tmp_path).checkpoint_file
    state = torch.load(file, weights_only=True)
    del state["segments"]
    tiny_run.save_edited(state, file)
    with pytest.raises(UsageError, match="the checkpoint does not name them"):
        resumed(tmp_path, strict_resume=True)
    done = resumed(tmp_path)
    assert "code, versions, device or threads" in capsys.readouterr().err
    assert done.finished
    assert done.segments[0] == {"from": 0}
    assert done.segments[1].keys() == segments.TYPES.keys()
