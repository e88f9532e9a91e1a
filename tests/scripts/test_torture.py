"""The script, of which the attacks themselves are `make torture`."""

import os
from pathlib import Path

import pandas as pd
import pytest
from calling import Call

from rad.results import read_table
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


def test_what_was_lost_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonsense.Nonsense, "attempt", lambda *_: Outcome(LOST, "all is gone"))
    done = call("torture", f"cases={{{NONE},nonsense:1}}", "output=mine")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "1 cases were lost: nonsense" in done.err
    assert isinstance(pd.read_csv("mine/torture.csv")["lost"].sum().item(), int)
