"""The journal: torn records, full disks, foreign files, damage."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from tuning.test_tuning import exported, search, work

from rad.errors import UsageError
from rad.tuning import journal as journals

OLD = Path(__file__).resolve().parents[2] / "results/tuning/fig5c_seqmnist/journal.log"


def journal_of(root: Path) -> Path:
    return root / "results/journal.log"


@pytest.mark.parametrize("kept", [1, 3, 11, 12, 60, -2, -1])
def test_a_torn_record_is_cut_and_the_study_goes_on_as_if_it_had_not_begun(
    kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = work(search(tmp_path / "unbroken"), 4)
    work(search(tmp_path), 2)
    file = journal_of(tmp_path)
    whole = file.read_bytes()
    record = whole.splitlines(keepends=True)[-1]
    file.write_bytes(whole + record[:kept])
    assert work(search(tmp_path), 4) == unbroken[2:]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{file}: its last record was cut off, by a full disk or a crash, and is left out"
    )
    assert file.read_bytes().startswith(whole)
    assert exported(tmp_path) == exported(tmp_path / "unbroken")


def test_a_study_goes_on_from_any_record_on(tmp_path: Path) -> None:
    """Whoever was killed there has left what stands before it."""
    work(search(tmp_path / "whole"), 2)
    records = journal_of(tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in range(len(records) + 1):
        root = tmp_path / str(kept)
        journal_of(root).parent.mkdir(parents=True)
        journal_of(root).write_bytes(b"".join(records[:kept]))
        work(search(root, name="beside it"), 1)
        work(search(root), 2)
        best = yaml.safe_load((root / "results/best.yaml").read_text())
        assert [each["commit"] for each in best.values()] == ["abc", "abc"]
        assert len(exported(root)) == 3


@pytest.mark.parametrize("kept", [1, 60])
def test_the_very_first_record_is_torn(kept: int, tmp_path: Path) -> None:
    search(tmp_path)
    file = journal_of(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    assert len(work(search(tmp_path), 2)) == 2


def test_a_record_that_was_glued_to_a_torn_one_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions left it."""
    done = work(search(tmp_path), 3)
    file = journal_of(tmp_path)
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines, lines[-1][:30], last]))
    assert work(search(tmp_path), 3) == []
    assert f"line {len(lines) + 1} begins with a record that was cut off" in capsys.readouterr().err
    assert search(tmp_path).finished() == len(done)


def test_a_full_disk_is_no_foreign_file_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = work(search(tmp_path / "unbroken"), 3)
    work(search(tmp_path), 1)
    before, write = journal_of(tmp_path).read_bytes(), os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return write(descriptor, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journals.os, "write", full)
        with pytest.raises(UsageError, match=r"No space left on device\); what is in it is whole"):
            work(search(tmp_path), 3)
    assert journal_of(tmp_path).read_bytes() == before
    assert work(search(tmp_path), 3) == unbroken[1:]


@pytest.mark.parametrize(
    "text", ["no journal\n", "no journal", '{"a": 1}\n', '[1]\n{"op_code":0', "\0\n"]
)
def test_a_foreign_file_is_refused_and_untouched(text: str, tmp_path: Path) -> None:
    file = journal_of(tmp_path)
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(
        UsageError, match=r"journal\.log is no journal of trials; move it"
    ) as raised:
        search(tmp_path)
    assert "delete" not in str(raised.value)
    assert file.read_text() == text


def test_flips_are_refused_or_change_nothing(tmp_path: Path) -> None:
    work(search(tmp_path), 3)
    file, draw, refused = journal_of(tmp_path), random.Random(0), 0
    whole, table = file.read_bytes(), trials(tmp_path)
    for _ in range(200):
        place = draw.randrange(len(whole))
        flipped = bytes([whole[place] ^ 1 << draw.randrange(8)])
        file.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            found = trials(tmp_path)
        except UsageError as error:
            refused += "\n" not in str(error) and "delete" not in str(error)
        else:
            assert len(found) < 3 or found == table  # cut as torn, with a word
    assert refused > 190


def trials(root: Path) -> list[tuple[Any, ...]]:
    of = search(root).study.get_trials(deepcopy=False)
    return [(trial.number, trial.params, trial.values, trial.state) for trial in of]


def test_journals_of_earlier_versions_are_read(tmp_path: Path) -> None:
    journal = journals.Journal(OLD)
    records = list(journal.read_logs(0))
    assert records == [json.loads(line) for line in OLD.read_text().splitlines()]
    assert list(journal.read_logs(len(records))) == []
    assert list(journals.Journal(OLD).read_logs(5)) == records[5:]


def test_two_whole_records_on_one_line_are_damage(tmp_path: Path) -> None:
    work(search(tmp_path), 1)
    file = journal_of(tmp_path)
    first, second, *others = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([first + b"x" + second, *others]))
    with pytest.raises(UsageError, match="no journal of trials"):
        search(tmp_path)
    file.write_bytes(b"\n".join([first, second + b"x" + others[0], *others[1:]]))
    with pytest.raises(UsageError, match=r"line 2 of .* is damaged; restore"):
        search(tmp_path)


def test_a_record_without_a_digest_behind_one_that_has_one(tmp_path: Path) -> None:
    work(search(tmp_path), 1)
    file = journal_of(tmp_path)
    *lines, last = file.read_text().splitlines()
    record = json.loads(last)
    del record["digest"]
    file.write_text("\n".join([*lines, json.dumps(record)]) + "\n")
    with pytest.raises(UsageError, match=rf"line {len(lines) + 1} of .* is damaged; restore"):
        search(tmp_path)
