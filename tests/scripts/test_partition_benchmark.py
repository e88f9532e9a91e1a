import json
from pathlib import Path
from typing import get_args

import pandas as pd
import partition_benchmark
import pytest
from calling import Call

from rad.errors import UsageError
from rad.partition.backend import Inner
from rad.schema.measurements import PARTITION_BENCHMARK

ROW = {"method": "torch", "saved_bytes": 5, "time_ratio": 1.0}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that are measured; the second call breaks off. All is committed."""
    found: list[str] = []

    def rows(made: str, *_: object) -> list[dict[str, object]]:
        found.append(made)
        if len(found) == 2:
            raise UsageError("out of something")
        return [ROW]

    monkeypatch.setattr(partition_benchmark, "specimen", lambda name, *_: name)
    monkeypatch.setattr(partition_benchmark, "partition_rows", rows)
    monkeypatch.setattr(partition_benchmark, "provenance", lambda: {"commit": "abc"})
    return found


def test_an_interrupted_measurement_goes_on(tmp_path: Path, call: Call, calls: list[str]) -> None:
    arguments = ("networks=[unet,gpt2]", "output=mine", "figure=mine/figure.png")
    assert call("partition_benchmark", *arguments).status == 2
    assert not (tmp_path / "mine/cpu.csv").exists()
    outcome = call("partition_benchmark", *arguments)
    assert outcome.status == 0
    assert "measured before: unet" in outcome.out
    assert calls == ["unet", "gpt2", "gpt2"]
    assert pd.read_csv(tmp_path / "mine/cpu.csv")["network"].tolist() == ["unet", "gpt2"]
    assert "commit" in json.loads((tmp_path / "mine/cpu.json").read_text())
    found = sorted(file.name for file in (tmp_path / "mine").iterdir())
    assert found == ["cpu.csv", "cpu.json", "figure.pdf", "figure.png"]


@pytest.mark.parametrize("commit", ["def", "abc-dirty"])
def test_rows_of_other_code_are_measured_again(
    commit: str, call: Call, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("networks=[unet,gpt2]", "output=mine", "figure=mine/figure.png")
    if commit.endswith("-dirty"):
        monkeypatch.setattr(partition_benchmark, "provenance", lambda: {"commit": commit})
    assert call("partition_benchmark", *arguments).status == 2
    monkeypatch.setattr(partition_benchmark, "provenance", lambda: {"commit": commit})
    assert call("partition_benchmark", *arguments).status == 0
    assert calls == ["unet", "gpt2", "unet", "gpt2"]


@pytest.mark.parametrize(
    "bad",
    [
        *("networks=[alexnet]", "memory_budgets=[2]", "budgets=[0]", "inner=triton"),
        *("rounds=0", "batch_size=1"),
    ],
)
def test_bad_input_ends_in_one_line(bad: str, tmp_path: Path, call: Call) -> None:
    outcome = call("partition_benchmark", bad)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_compiles_is_what_the_backend_knows() -> None:
    inner = PARTITION_BENCHMARK["inner"]
    assert all(map(inner.holds, get_args(Inner)))
