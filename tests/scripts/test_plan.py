import json
from pathlib import Path

import pandas as pd
import plan
import pytest
from calling import Call
from omegaconf import OmegaConf

TINY = ("model=gpt2_xl", "batch=1", "length=32")


def test_a_plan_says_what_fits(tmp_path: Path, call: Call) -> None:
    outcome = call("plan", *TINY, "budget='3.3 GB'", "accelerator=rtx_4090")
    assert outcome.status == 0, outcome.err
    table = pd.read_csv(tmp_path / "results/plan/gpt2_xl.csv")
    parts = table.filter(regex="^(parameter|gradient|optimizer|gathered|saved|working)_bytes$")
    assert (parts.sum(axis=1) == table["total_bytes"]).all()
    assert (table["fits"] == (table["total_bytes"] <= 24e9)).all()
    fully = table[table["parallel"] == "fsdp"].set_index(["program", "devices"])["total_bytes"]
    assert fully["torch", 64] < fully["torch", 8] < table["total_bytes"].max()
    assert set(table["program"]) == {"torch", "auto: everything kept", "checkpointing"}
    assert set(zip(table["devices"], table["parallel"], strict=True)) == {
        (1, "alone"),
        *((count, parallel) for count in (8, 64) for parallel in ("ddp", "fsdp")),
    }
    said = json.loads((tmp_path / "results/plan/gpt2_xl.json").read_text())
    assert said["host_bytes"] < 4e9
    assert "commit" in said


def test_times_are_by_the_peak_of_the_type() -> None:
    config = OmegaConf.create(
        {
            "accelerator": "toy",
            "accelerators": {
                "toy": {
                    "memory": "1 GB",
                    "bandwidth": 1.0,
                    "flops": {"bfloat16": 8.0, "float32": 2.0},
                    "source": "made up",
                }
            },
        }
    )
    for dtype, flops in (("bfloat16", 8.0), ("float32", 2.0)):
        assert plan.accelerator(OmegaConf.merge(config, {"dtype": dtype})).flops == flops


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("accelerator=abacus", "unknown accelerator 'abacus'"),
        ("batch=0", "batch is 0"),
        ("model=gpt5", "unknown model 'gpt5'"),
        ("length=1", "give at least 2"),
        ("devices=[]", "devices is []"),
        ("budget=0.5", "no size"),
    ],
)
def test_bad_input_ends_in_one_line(bad: str, words: str, tmp_path: Path, call: Call) -> None:
    outcome = call("plan", bad)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_budget_below_the_parameters_is_refused(tmp_path: Path, call: Call) -> None:
    outcome = call("plan", *TINY, "budget='1 GB'")
    assert outcome.status == 2
    assert "too small" in outcome.err
    assert "give at least" in outcome.err
    assert not list(tmp_path.iterdir())
