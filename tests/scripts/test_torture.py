"""The script, of which the attacks themselves are `make torture`."""

import os
from pathlib import Path

import pandas as pd
import pytest
from calling import Call

from rad.results import locked, origin, read_table
from rad.torture import nonsense
from rad.torture.outcomes import LOST, Outcome

NONE = "kill:0,disk:0,damage:0,fault:0"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def test_a_table_of_what_was_tried(call: Call, tmp_path: Path) -> None:
    for count in (2, 3):
        done = call("torture", f"cases={{{NONE},nonsense:{count}}}", "output=mine")
        assert done.status == 0, done.err
    found = read_table(tmp_path / "mine" / "torture.csv")
    assert list(found) == ["attack", "kind", "tried", "survived", "refused", "lost"]
    assert set(found["attack"]) == {"nonsense"}
    assert found["tried"].sum() == 3
    stopped = call("torture", f"cases={{{NONE},nonsense:9}}", "output=mine", "time_limit=1e-9")
    assert "stopped by the time limit" in stopped.out
    assert len((tmp_path / "outputs/torture/cases.jsonl").read_text().splitlines()) == 1 + 3


def test_cases_of_other_scripts_or_of_another_program_are_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is attacked is more than what a training run's numbers depend on."""
    few = ("torture", f"cases={{{NONE},nonsense:1}}", "output=mine")
    assert call(*few).status == 0
    with locked(tmp_path / "outputs" / "torture" / ".lock"):
        beside = call(*few)
    assert (beside.status, "another process is working on" in beside.err) == (2, True)
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    monkeypatch.setattr(origin, "REPOSITORY", project)
    digests = []
    for text in ("a", "b"):
        (project / "scripts" / "train.py").write_text(text)
        digests.append(origin.whole_code.__wrapped__())
    assert digests[0] != digests[1]
    monkeypatch.setattr("torture.whole_code", lambda: digests[1])
    changed = call(*few)
    assert (changed.status, "other code or another seed" in changed.err) == (2, True)


def test_what_was_lost_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonsense.Nonsense, "attempt", lambda *_: Outcome(LOST, "all is gone"))
    done = call("torture", f"cases={{{NONE},nonsense:1}}", "output=mine")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "1 cases were lost: nonsense" in done.err
    assert isinstance(pd.read_csv("mine/torture.csv")["lost"].sum().item(), int)
