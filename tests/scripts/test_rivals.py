"""The exact rivals in training: what they leave in summary.json, and that they resume."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calling import Call

GPT = ("+experiment=gpt_char", "scale=smoke", "path=null", "device=cpu", "logger.mode=disabled")


def run(call: Call, root: Path, *words: str) -> tuple[dict[str, Any], pd.DataFrame]:
    done = call("train", *GPT, *words, f"results_root={root}")
    assert done.status == 0, done.err
    (file,) = root.rglob("summary.json")
    return json.loads(file.read_text()), pd.read_csv(file.with_name("metrics.csv"))


def test_exact_rivals_train_as_full_memory_in_fewer_bytes(call: Call, tmp_path: Path) -> None:
    full, expected = run(call, tmp_path / "full", "variant=baseline")
    for variant in ("accumulation", "checkpointing"):
        found, rows = run(call, tmp_path / variant, f"variant={variant}")
        assert found["batch_size"] == full["batch_size"] == 4
        assert found["memory"]["saved_bytes"] < 0.7 * full["memory"]["saved_bytes"]
        assert found["seconds_per_iteration"] > 0
        columns = ["batch_loss", "train_loss", "test_loss"]
        pd.testing.assert_frame_equal(rows[columns], expected[columns], rtol=1e-5)
        assert ("micro_batch" in found, "recomputed" in found) == (
            variant == "accumulation",
            variant == "checkpointing",
        )
    assert found["recomputed"] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize("variant", ["accumulation", "checkpointing"])
def test_a_rival_resumes_as_if_unbroken(variant: str, call: Call, tmp_path: Path) -> None:
    whole, expected = run(call, tmp_path / "whole", f"variant={variant}")
    broken = tmp_path / "broken"
    limit = (f"results_root={broken}", "training.time_limit=1e-6", "training.evaluate_every=1")
    assert call("train", *GPT, f"variant={variant}", *limit).status == 0
    assert not list(broken.rglob("summary.json"))
    found, rows = run(call, broken, f"variant={variant}", "training.evaluate_every=1")
    assert len(found["segments"]) > 1
    rows = rows[rows["iteration"].isin(expected["iteration"])].reset_index(drop=True)
    columns = ["iteration", "batch_loss", "test_loss"]
    pd.testing.assert_frame_equal(rows[columns], expected[columns])
    assert found["memory"] == whole["memory"]


def test_what_has_no_blocks_is_refused_in_a_line(call: Call, tmp_path: Path) -> None:
    done = call("train", "variant=checkpointing", "device=cpu", "logger.mode=disabled")
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert "choose variant=accumulation" in line
    assert not list(tmp_path.rglob("summary.json"))
