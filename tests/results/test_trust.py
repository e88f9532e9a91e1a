"""Damaged results are refused, links are not followed, and locks name who holds them."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from rad import results
from rad.errors import UsageError
from rad.results import Held, RunFolder, locked

CONFIG = "seed: 0\n"
COLUMNS = ("iteration", "train_loss")
WHOLE = {
    "experiment": "toy",
    "model": "feedforward",
    "dataset": "digits",
    "variant": "project",
    "seed": 0,
    "budget": "0.1",
    "scale": None,
    "keep_fraction": 0.1,
    "bits": None,
    "batch_size": 150,
    "memory": {"paper_bytes": None, "parameter_bytes": 4, "saved_bytes": 8, "peak_bytes": 16},
    "final": {"train_loss": 0.25},
    "iterations": 2,
    "seconds_per_iteration": 0.5,
    "device": "x",
    "threads": 1,
    "versions": {"torch": "2"},
    "commit": "abc",
    "command": "python scripts/train.py",
}


def finished(root: Path, *, signed: bool = True) -> RunFolder:
    """A finished run; one that is not signed is as earlier versions left them."""
    folder = RunFolder(root / "toy/project/budget=0.1/seed=0")
    with folder.open(CONFIG):
        rows = [{"iteration": n, "train_loss": 1 / (2 + n)} for n in range(3)]
        folder.write_metrics(rows, COLUMNS)
        folder.write_summary(WHOLE)
    if not signed:
        folder.summary_file.write_text(json.dumps(WHOLE))
    return folder


def read_all(root: Path) -> list[Any]:
    return [results.summaries(root, "toy"), results.metrics(root, "toy")]


def assert_refused(folder: RunFolder, root: Path, words: str) -> None:
    """Neither read nor taken for finished nor trained over, in one line that names the remedy."""
    before = {file.name: file.read_bytes() for file in folder.path.iterdir() if file.is_file()}
    assert not folder.finished()
    for read in (folder.summary, lambda: read_all(root), lambda: folder.open(CONFIG).__enter__()):
        with pytest.raises(UsageError, match=words) as raised:
            read()
        assert re.search(r"restore that file, or delete .* and run it again$", str(raised.value))
        assert "\n" not in str(raised.value)
    del before[".lock"]
    for name, data in before.items():
        assert (folder.path / name).read_bytes() == data


@pytest.mark.parametrize("signed", [True, False])
def test_a_whole_run_is_read(signed: bool, tmp_path: Path) -> None:
    folder = finished(tmp_path, signed=signed)
    assert folder.finished()
    assert folder.summary()["final"] == {"train_loss": 0.25}
    runs, rows = read_all(tmp_path)
    assert runs["final.train_loss"].tolist() == [0.25]
    assert rows["train_loss"].tolist() == [0.5, 1 / 3, 0.25]
    with folder.open(CONFIG):
        pass


def test_what_a_summary_vouches_for(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    summary = folder.summary()
    assert set(summary) == {*WHOLE, "digests", "sha256"}
    assert set(summary["digests"]) == {"metrics.csv", "config.yaml"}
    # The order of fields and white space are nobody's business.
    turned = dict(reversed(summary.items()))
    folder.summary_file.write_text(json.dumps(turned))
    assert folder.finished()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"final": 0', "\0", '{"a": NaN}', "[" * 100_000]
)
def test_what_is_no_summary(text: str, signed: bool, tmp_path: Path) -> None:
    folder = finished(tmp_path, signed=signed)
    folder.summary_file.write_text(text)
    assert_refused(folder, tmp_path, r"summary\.json (is no|has no field 'experiment'|has no)")


BAD_FIELDS = {
    "seed": -1,
    "final": {"train_loss": "0.25"},
    "iterations": 2.5,
    "memory": {"parameter_bytes": 4},
    "keep_fraction": "0.1",
    "batch_size": True,
    "versions": None,
}


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS.items())
def test_edited_fields(name: str, value: Any, tmp_path: Path) -> None:
    folder = finished(tmp_path)
    folder.summary_file.write_text(json.dumps(folder.summary() | {name: value}))
    assert_refused(folder, tmp_path, r"summary\.json does not match its own digest")
    folder.summary_file.write_text(json.dumps(WHOLE | {name: value}))
    assert_refused(folder, tmp_path, rf"summary\.json has a field '{name}' that is none of a run's")
    folder.summary_file.write_text(json.dumps({k: v for k, v in WHOLE.items() if k != name}))
    assert_refused(folder, tmp_path, rf"summary\.json has no field '{name}'")


def test_a_summary_that_lost_its_own_digest(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    summary = folder.summary()
    del summary["sha256"]
    folder.summary_file.write_text(json.dumps(summary))
    assert_refused(folder, tmp_path, "lacks its own digest")


def test_rows_that_are_not_what_the_summary_vouches_for(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    file = folder.metrics_file
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"0", b"1"), b""):
        file.write_bytes(damaged)
        assert_refused(folder, tmp_path, r"metrics\.csv does not match its digest in summary\.json")
    file.unlink()
    assert_refused(folder, tmp_path, r"metrics\.csv cannot be read \(No such file")


def test_a_configuration_is_read_back_if_it_is_the_runs(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert folder.config_text() == CONFIG
    for damaged in (b"seed: 1\n", b"seed: 0", b"\xff"):
        folder.config_file.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"config\.yaml.*; restore that file, or delete"):
            folder.config_text()
    unsigned = finished(tmp_path / "old", signed=False)
    unsigned.config_file.write_text("seed: 1\n")
    assert unsigned.config_text() == "seed: 1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("iteration,train_loss\n0,0.5\n1,0.3\n2,0.25", "is cut off"),
        ("iteration,train_loss\n0,0.5\n1,0.3\n", "does not end with iteration 2"),
        ("iteration,train_loss\n0,0.5\n2,0.26\n", "ends with train_loss 0.26, where .* has 0.25"),
        ("iteration,train_loss\n0,0.5\n0.3\n2,0.25\n", "is no table"),
        ("iteration,train_loss\n", "is no table"),
        ("", "is cut off"),
        ("\udcff\n", "is no table"),
    ],
)
def test_rows_without_a_digest_are_held_to_the_summary(
    text: str, words: str, tmp_path: Path
) -> None:
    folder = finished(tmp_path, signed=False)
    folder.metrics_file.write_bytes(text.encode(errors="surrogateescape"))
    assert_refused(folder, tmp_path, rf"metrics\.csv {words}")


def test_a_damaged_end_is_made_again_where_there_is_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    folder.metrics_file.write_text("")
    folder.checkpoint_file.touch()
    with folder.open(CONFIG):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(
        r"metrics\.csv does not match .*; the run ends again from its checkpoint", line
    )


def test_committed_results_are_whole() -> None:
    root = Path(__file__).resolve().parents[2] / "results"
    found = [file for file in root.rglob("summary.json") if "quickstart" not in file.parts]
    runs = [RunFolder(file.parent) for file in found]
    assert len(runs) >= 207
    for run in runs:
        assert run.summary()["iterations"] > 0


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_temporary_file_that_is_a_link_is_not_written_through(link: Any, tmp_path: Path) -> None:
    other, file = tmp_path / "precious", tmp_path / "metrics.csv"
    other.write_text("mine")
    link(other, tmp_path / "metrics.csv.tmp")
    results.write_atomic(file, b"new")
    assert (other.read_text(), file.read_text()) == ("mine", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "precious"]


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(other)
    with pytest.raises(UsageError, match=r"\.lock is a symbolic link.*remove it"):
        RunFolder(tmp_path / "run").open(CONFIG).__enter__()
    assert other.read_text() == "mine"


def test_a_refusal_names_who_holds_the_lock(tmp_path: Path) -> None:
    name = f"(process {os.getpid()} on {socket.gethostname()})"
    for _ in range(2):
        with locked(tmp_path / ".lock"):
            with pytest.raises(Held) as raised, locked(tmp_path / ".lock"):
                pytest.fail("two hold one lock")
            assert str(raised.value) == (
                f"another process is working on {tmp_path} {name}; wait until it has ended"
            )
        (tmp_path / ".lock").write_text("process 123456789012345678901234567890 of yesterday\n")
