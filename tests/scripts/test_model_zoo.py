import json
from pathlib import Path

import pandas as pd
import pytest
from calling import Call


def test_a_row_for_each_model_and_program(tmp_path: Path, call: Call) -> None:
    options = ["models=[gru,lstm]", "programs=[torch,stochastic_rounding]", "rounds=1"]
    assert call("model_zoo", *options, "batch_size=2").status == 0
    table = pd.read_csv(tmp_path / "results/model_zoo/cpu.csv")
    assert table["model"].tolist() == ["gru", "gru", "lstm", "lstm"]
    saved = table.pivot_table(index="model", columns="program", values="saved_bytes")
    assert (saved["stochastic_rounding"] < 0.2 * saved["torch"]).all()
    assert "commit" in json.loads((tmp_path / "results/model_zoo/cpu.json").read_text())


@pytest.mark.parametrize(
    "bad", ["models=[alexnet]", "programs=[magic]", "fraction=0", "rounds=0", "batch_size=1"]
)
def test_bad_input_ends_in_one_line(bad: str, tmp_path: Path, call: Call) -> None:
    outcome = call("model_zoo", bad)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
