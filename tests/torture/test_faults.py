"""The list of faults stays true: each still has its place, and some are planted here."""

import random
from contextlib import closing
from pathlib import Path

import pytest

from rad.errors import UsageError
from rad.torture import planted_faults
from rad.torture.faults import Faults
from rad.torture.outcomes import LOST, SURVIVED

ROOT = Path(__file__).resolve().parents[2]
FAULTS = planted_faults.read(Path(__file__).with_name("faults.toml"))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_each_fault_still_has_its_place(fault: planted_faults.Fault) -> None:
    assert planted_faults.problem(fault, ROOT) is None
    changed = planted_faults.planted(fault, (ROOT / fault.file).read_text())
    compile(changed, fault.file, "exec")


def test_there_are_many() -> None:
    assert len(FAULTS) >= 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file": "rad/absent.py"}, "there is no rad/absent.py"),
        ({"old": "no such line"}, "0 times"),
        ({"old": "parameters"}, "times, not once"),
        ({"new": 'kind = {"adam": Adam, "sgd": SGD}[settings.optimizer]'}, "changes nothing"),
        ({"tests": "tests/absent.py::test_it -k x"}, "there is no tests/absent.py::test_it"),
    ],
)
def test_a_fault_without_a_place_is_found(changes: dict[str, str], words: str) -> None:
    (fault,) = (each for each in FAULTS if "AdamW" in each.name)
    found = planted_faults.problem(planted_faults.Fault(**{**vars(fault), **changes}), ROOT)
    assert found is not None
    assert words in found


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text('[[fault]]\nname = "x"\n')
    with pytest.raises(UsageError, match=r"give name, file, old, new, tests"):
        planted_faults.read(file)
    for text in ("[[fault", "other = 1\n"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"is no list of \[\[fault\]\]"):
            planted_faults.read(file)
    entry = '[[fault]]\nname = "x"\nfile = ""\nold = ""\nnew = ""\ntests = ""\n'
    file.write_text(2 * entry)
    with pytest.raises(UsageError, match="several faults are called x"):
        planted_faults.read(file)


def project(folder: Path) -> None:
    """Two files, of which the second tests the first."""
    (folder / "tests").mkdir(parents=True)
    (folder / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "tests/test_sums.py").write_text(
        "from sums import add\n\n\ndef test_zero():\n    assert add(0, 0) == 0\n\n\n"
        "def test_one():\n    assert add(0, 1) == 1\n\n\n"
        "def test_wrong():\n    assert add(0, 1) == 2\n"
    )


@pytest.mark.parametrize(
    ("test", "verdict", "words"),
    [
        ("one", SURVIVED, "tests/test_sums.py -k one"),
        ("zero", LOST, "not noticed by tests/test_sums.py -k zero"),
        ("wrong", LOST, "its tests fail without it"),
    ],
)
def test_a_fault_is_survived_where_tests_that_pass_notice_it(
    test: str, verdict: str, words: str, tmp_path: Path
) -> None:
    project(tmp_path / "root")
    for name in planted_faults.COPIED:
        (tmp_path / "root" / name).mkdir(exist_ok=True)
    fault = planted_faults.Fault(
        "minus", "sums.py", "a + b", "a - b", f"tests/test_sums.py -k {test}"
    )
    faults = Faults([fault], tmp_path / "root", tmp_path / "scratch")
    with closing(faults):
        outcome = faults.attempt("minus", random.Random(0))
    assert outcome.verdict == verdict
    assert words in outcome.note
    assert not (tmp_path / "scratch" / "copies").exists()


def test_a_fault_is_caught_by_its_test_and_by_no_other(tmp_path: Path) -> None:
    project(tmp_path)
    copy = planted_faults.Copy(tmp_path)
    for test, status in (("zero", planted_faults.PASSED), ("one", planted_faults.CAUGHT)):
        fault = planted_faults.Fault(
            "minus", "sums.py", "a + b", "a - b", f"tests/test_sums.py -k {test}"
        )
        assert copy.verdict(fault) == status
    assert (tmp_path / "sums.py").read_text().endswith("a + b\n")
