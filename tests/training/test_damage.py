"""Damage at random places never gives other numbers without a word."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import tiny_run

from rad import results
from rad.data import files as data_files
from rad.errors import UsageError
from rad.results import RunFolder, read_table, seal, write_table
from rad.training import TrainResult, saved_state

FLIPS = 200
SETTINGS = replace(tiny_run.SETTINGS, iterations=12, evaluate_every=4, train_loss_every=4)
STOPPED = replace(SETTINGS, checkpoint_every=2, time_limit=1e-9)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def damaged(whole: bytes, count: int = FLIPS) -> Iterator[bytes]:
    """With one bit flipped, or cut off, at random places that are the same every time."""
    draw = random.Random(0)
    for number in range(count):
        place = draw.randrange(len(whole))
        if number % 5 == 4:
            yield whole[:place]
        else:
            yield (
                whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
            )


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in one line."""
    words = ""
    try:
        return read()
    except UsageError as error:
        words = str(error)
    assert "\n" not in words
    return None


def rows_of(path: Path) -> list[dict[str, str]]:
    with RunFolder(path).metrics_file.open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        del row["seconds"]
    return rows


@pytest.fixture
def stopped(tmp_path: Path) -> RunFolder:
    """A run with two checkpoints, stopped before its end."""
    for limit in (STOPPED, STOPPED):
        assert not tiny_run.run(tmp_path / "run", limit).finished
    folder = RunFolder(tmp_path / "run")
    assert folder.previous_checkpoint_file.exists()
    return folder


def test_a_damaged_checkpoint_is_known_wherever_the_damage(stopped: RunFolder) -> None:
    file = stopped.checkpoint_file
    whole = file.read_bytes()
    assert seal.damage(whole) is None
    assert all(seal.damage(each) is not None for each in damaged(whole, 10 * FLIPS))
    torch.save(torch.load(file, weights_only=True), file)  # whatever may have been edited
    assert seal.damage(file.read_bytes()) == "it has no digest: something else has written it"


def test_the_older_checkpoint_stands_in_and_the_run_ends_the_same(
    stopped: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_run.run(tmp_path / "unbroken", SETTINGS).finished
    older = torch.load(stopped.previous_checkpoint_file, weights_only=True)["iteration"]
    whole = {file: file.read_bytes() for file in stopped.path.iterdir()}
    for each in damaged(whole[stopped.checkpoint_file], 10):
        for file, text in whole.items():
            file.write_bytes(text)
        stopped.checkpoint_file.write_bytes(each)
        capsys.readouterr()
        assert tiny_run.run(stopped.path, SETTINGS).finished
        (line,) = capsys.readouterr().err.splitlines()
        assert "checkpoint.pt is damaged" in line
        assert line.endswith(f"the run goes on from the one before, at iteration {older}")
        assert rows_of(stopped.path) == rows_of(tmp_path / "unbroken")


def test_two_damaged_checkpoints_are_refused_and_a_missing_one_is_said(
    stopped: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    newer, older = stopped.checkpoint_file, stopped.previous_checkpoint_file
    kept = older.read_bytes()
    for file in (newer, older):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"checkpoint.pt is .*checkpoint.previous.pt is damaged"):
        tiny_run.run(stopped.path, SETTINGS)
    newer.unlink()  # as where a process was killed between two renamings
    older.write_bytes(kept)
    assert tiny_run.run(stopped.path, SETTINGS).finished
    assert "checkpoint.pt is missing; the run goes on from" in capsys.readouterr().err


def edits(state: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Name of an edit -> the edited state, and what is said of it."""
    rows, moments = state["rows"], state["optimizer"]["state"]
    groups = state["optimizer"]["param_groups"]

    def row(**changes: Any) -> list[Any]:
        return [*rows[:-1], {**rows[-1], **changes}]

    def optimizer(states: Any) -> dict[str, Any]:
        return {"optimizer": {"state": states, "param_groups": groups}}

    fewer = {key: value for key, value in rows[-1].items() if key != "test_loss"}
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "negative iteration": ({"iteration": -1}, "iteration is -1"),
        "late iteration": ({"iteration": 13}, "iteration is 13, of 12"),
        "fractional iteration": ({"iteration": 6.0}, r"iteration is 6\.0"),
        "true iteration": ({"iteration": True}, "iteration is True"),
        "other iteration": ({"iteration": 10}, "rows, where 10 updates leave"),
        "NaN seconds": ({"seconds": float("nan")}, "seconds is nan"),
        "negative seconds": ({"seconds": -1.0}, r"seconds is -1\.0"),
        "no seconds": ({"seconds": "long"}, "seconds is 'long'"),
        "no rows": ({"rows": []}, "there are 0 rows"),
        "rows of another kind": ({"rows": {}}, "rows is no list"),
        "a missing row": ({"rows": rows[:-1]}, "rows, where"),
        "a second row": ({"rows": [*rows, rows[-1]]}, "rows, where"),
        "turned rows": ({"rows": rows[::-1]}, "do not rise"),
        "a row of text": ({"rows": [*rows[:-1], "row"]}, "other columns"),
        "a row without a column": ({"rows": [*rows[:-1], fewer]}, "other columns"),
        "a text in a row": ({"rows": row(test_loss="0.5")}, "what is no number"),
        "NaN in a row": ({"rows": row(test_loss=float("nan"))}, "what is no number"),
        "an empty cell": ({"rows": row(test_loss=None)}, "lacks values"),
        "a late row": ({"rows": row(iteration=9)}, "do not rise"),
        "generators": ({"generators": {}}, "another kind of device"),
        "no generators": ({"generators": 3}, "another kind of device"),
        "a generator": (
            {"generators": {**state["generators"], "cpu": torch.zeros(3)}},
            "generator 'cpu' is none",
        ),
        "no model": ({"model": None}, "another model"),
        "no optimizer": ({"optimizer": []}, "optimizer's state is none"),
        "no moments": (optimizer({}), "no state of 1.weight"),
        "a parameter's moments": (optimizer(dict(list(moments.items())[1:])), "no state of"),
        "another parameter's": (optimizer({**moments, 99: moments[0]}), "other parameters"),
        "a moment's shape": (
            optimizer({**moments, 0: {**moments[0], "exp_avg": torch.zeros(2)}}),
            "state of 1.weight is none",
        ),
        "a late step": (
            optimizer({**moments, 0: {**moments[0], "step": torch.tensor(100.0)}}),
            "state of 1.weight is none",
        ),
        "no segments": ({"segments": []}, "segments are none"),
        "segments of another kind": ({"segments": [{"from": "x"}]}, "segments are none"),
    }
    return {name: ({**state, **change}, words) for name, (change, words) in changes.items()}


def test_edited_fields_are_refused_in_one_line(stopped: RunFolder) -> None:
    file = stopped.checkpoint_file
    state = torch.load(file, weights_only=True)
    assert len(state["rows"]) > 1
    before = stopped.metrics_file.read_bytes()
    for name, (edited, words) in edits(state).items():
        tiny_run.save_edited(edited, file)
        with pytest.raises(UsageError, match=words) as raised:
            tiny_run.run(stopped.path, SETTINGS)
        assert "\n" not in str(raised.value), name
        assert "checkpoint*.pt to start" in str(raised.value), name
        assert stopped.metrics_file.read_bytes() == before
    for key in saved_state.KEYS:
        tiny_run.save_edited({k: v for k, v in state.items() if k != key}, file)
        with pytest.raises(UsageError, match="not a checkpoint of this program"):
            tiny_run.run(stopped.path, SETTINGS)


SUMMARY = {"variant": "project", "budget": "0.1", "seed": 0, "final": {"train_loss": 0.25}}


def test_damaged_results_are_refused_or_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "toy/project/budget=0.1/seed=0")
    with folder.open("experiment: toy\nseed: 0\n"):
        rows = [{"iteration": n, "train_loss": 1 / (2 + n)} for n in range(5)]
        folder.write_metrics(rows, ["iteration", "train_loss"])
        folder.write_summary(SUMMARY)

    def read() -> tuple[Any, ...]:
        runs, rows = results.summaries(tmp_path, "toy"), results.metrics(tmp_path, "toy")
        return runs.to_dict(), rows.to_dict(), folder.config_text()

    first, refused = read(), 0
    for file in (folder.summary_file, folder.metrics_file, folder.config_file):
        whole = file.read_bytes()
        for each in damaged(whole):
            file.write_bytes(each)
            found = outcome(read)
            refused += found is None
            assert found in (None, first), each
        file.write_bytes(whole)
    assert refused > 2.5 * FLIPS


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    table = results.as_written(pd_table())
    file = write_table(tmp_path / "table.csv", table, {"device": "x"})
    whole = file.read_bytes()
    for each in damaged(whole):
        file.write_bytes(each)
        assert outcome(lambda: read_table(file)) is None
    file.write_bytes(whole)
    beside = file.with_suffix(".json")
    for each in damaged(beside.read_bytes()):
        beside.write_bytes(each)
        found = outcome(lambda: read_table(file))
        assert found is None or found.equals(table)


def pd_table() -> Any:
    import pandas as pd

    return pd.DataFrame({"name": ["a", "b"], "value": [1 / 3, 2.0]})


def test_damaged_data_are_refused_or_the_same(tmp_path: Path) -> None:
    spec = data_files.Spec("tiny", "", 12, 5, (1, 3, 3), (0.5,), (0.5,))
    file, draw = tmp_path / "tiny.npz", np.random.default_rng(0)
    arrays = {
        key: draw.integers(0, 10, shape, dtype=np.uint8)
        for key, shape in data_files._shapes(spec).items()
    }
    np.savez_compressed(file, **arrays)
    whole, refused = file.read_bytes(), 0
    for each in damaged(whole):
        file.write_bytes(each)
        found = outcome(lambda: data_files.read(file, spec))
        refused += found is None
        if found is not None:
            assert all(np.array_equal(found[key], array) for key, array in arrays.items())
    assert refused > FLIPS // 2


def test_a_finished_run_that_is_damaged_ends_again_as_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def go() -> TrainResult:
        result = tiny_run.run(tmp_path, SETTINGS)
        RunFolder(tmp_path).write_summary(SUMMARY)
        return result

    first, folder = go(), RunFolder(tmp_path)
    whole = folder.metrics_file.read_bytes()
    folder.metrics_file.write_bytes(whole[:-20])
    assert not folder.finished()
    assert go() == first
    assert "the run ends again from its checkpoint" in capsys.readouterr().err
    assert folder.metrics_file.read_bytes() == whole
