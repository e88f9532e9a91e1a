import json
from pathlib import Path

import pandas as pd
import pytest
from calling import Call

TINY = (
    "dataset=digits",
    "rows=[40]",
    "features=20",
    "outputs=5",
    "fractions=[0.3]",
    "iterations=2",
)


def test_a_row_for_each_input_and_sketch(tmp_path: Path, call: Call) -> None:
    variants = "variants=[project,principal_project,dithered_rounding]"
    assert call("sketch_variance", *TINY, "draws=200", variants).status == 0
    table = pd.read_csv(tmp_path / "results/sketch_variance/sketch_variance.csv")
    assert table["input"].unique().tolist() == ["normal", "decaying", "activations"]
    assert len(table) == 9
    assert ((table["measured"] - table["predicted"]).abs() < 5.5 * table["standard_error"]).all()
    assert (table["standard_error"] < 0.1 * table["predicted"]).all()
    noise = table.pivot_table(index="input", columns="variant", values="predicted")
    assert noise.loc["decaying", "principal_project"] < 0.5 * noise.loc["decaying", "project"]
    assert "commit" in json.loads(
        (tmp_path / "results/sketch_variance/sketch_variance.json").read_text()
    )


@pytest.mark.parametrize("bad", ["variants=[none]", "draws=1", "fractions=[2]", "features=0"])
def test_bad_input_ends_in_one_line(bad: str, tmp_path: Path, call: Call) -> None:
    outcome = call("sketch_variance", *TINY, bad)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
