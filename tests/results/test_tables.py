"""Tables with their provenance beside them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from rad.errors import UsageError
from rad.results import (
    RunFolder,
    as_written,
    machine,
    make_folder,
    metrics,
    name_of,
    read_table,
    write_table,
)

TABLE = pd.DataFrame({"name": ["a", None], "value": [1 / 3, 2.0]})


def test_a_table_and_what_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new/folder/table.csv"
    assert write_table(file, TABLE, {"device": "x"}) == file
    assert file.read_text() == "name,value\na,0.3333333333333333\n,2.0\n"
    record = json.loads(file.with_suffix(".json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record == {"device": "x", "digests": {"table.csv": digest}}
    write_table(file, TABLE, None, float_format="%.3g")
    assert file.read_text() == "name,value\na,0.333\n,2\n"
    record = json.loads(file.with_suffix(".json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record == {"device": "x", "digests": {"table.csv": digest}}
    assert sorted(f.name for f in file.parent.iterdir()) == ["table.csv", "table.json"]


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = write_table(tmp_path / "table.csv", TABLE, {}, float_format="%.3g")
    pd.testing.assert_frame_equal(read_table(file), as_written(TABLE, "%.3g"))
    assert read_table(file)["value"].tolist() == [0.333, 2.0]


def test_a_table_without_a_digest_is_read_if_it_is_whole(tmp_path: Path) -> None:
    file = write_table(tmp_path / "table.csv", TABLE, {"device": "x"})
    file.with_suffix(".json").write_text('{"device": "x"}')
    assert len(read_table(file)) == 2
    file.with_suffix(".json").unlink()
    assert len(read_table(file)) == 2
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UsageError, match=r"table\.csv is cut off; restore it, or call again"):
        read_table(file, "call again")


def test_rows_of_several_runs_are_told_apart(tmp_path: Path) -> None:
    for seed in (3, 4):
        folder = RunFolder(tmp_path / f"toy/project/budget=0.1/seed={seed}")
        with folder.open(f"seed: {seed}\n"):
            rows = [{"iteration": n, "train_loss": seed + n} for n in range(2)]
            folder.write_metrics(rows, ("iteration", "train_loss"))
            folder.write_summary({"variant": "project", "budget": "0.1", "seed": seed})
    found = metrics(tmp_path, "toy")
    assert found["seed"].tolist() == [3, 3, 4, 4]
    assert (found["train_loss"] - found["iteration"] == found["seed"]).all()
    assert [path[-1] for path in found["path"]] == ["3", "3", "4", "4"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("table.csv", "name,value\na,0.25\n,2.0\n", r"table\.csv does not match its digest"),
        ("table.csv", None, r"cannot read .*table\.csv \(No such file"),
        ("table.json", "{", r"table\.json is damaged"),
        ("table.json", "[]", r"table\.json is damaged"),
    ],
)
def test_a_damaged_table_is_refused(
    name: str, text: str | None, words: str, tmp_path: Path
) -> None:
    file = write_table(tmp_path / "table.csv", TABLE, {"device": "x"})
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        read_table(file)


def test_nothing_is_replaced_before_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_table(tmp_path / "table.csv", TABLE, {"device": "x"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"nothing to write to .*table\.csv"):
        write_table(file, TABLE[:0], {})
    calls = iter([None, OSError(28, "No space left on device")])

    def second_fails(descriptor: int) -> None:
        if error := next(calls):
            raise error

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(UsageError, match=r"table\.json \(No space left"):
        write_table(file, TABLE[1:], {"device": "y"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot make .*file/x \(.+\); choose output=$"):
        write_table(tmp_path / "file/x/table.csv", TABLE, {})
    with pytest.raises(UsageError, match=r"choose noise\.output=$"):
        write_table(tmp_path / "file/x/table.csv", TABLE, {}, setting="noise.output")
    with pytest.raises(UsageError, match=r"choose root=$"):
        make_folder(tmp_path / "file/x", "root")


def test_the_machine_is_named() -> None:
    cpu = torch.device("cpu")
    found = machine(cpu)
    assert (found["device"], found["threads"]) == (name_of(cpu), torch.get_num_threads())
    assert name_of(cpu)
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize("text", ["cpu family : 6\nmodel : 143\n\ncpu family : 7\n", "", None])
def test_a_processor_as_linux_tells_of_it(
    text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path) -> str:
        if text is None:
            raise OSError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert machine(torch.device("cpu"))["processor"] == ("cpu family 6, model 143" if text else "")


def test_no_module_of_it_imports_torch() -> None:
    """Of its files alone: what `rad` itself loads is not theirs."""
    code = (
        "import sys, types, pathlib\n"
        "package = types.ModuleType('rad'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['rad'] = package\n"
        "import rad.results\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2] / "rad"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=60)
