"""The exact rivals in training: what they leave in summary.json, and that they resume."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calling import Call

from rad.planning.compiled import COMPILED

COMPILING = ("variant=rad_compile", "variant.inner=aot_eager")
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


def test_compiled_rivals_train_and_tell_how_they_are_divided(call: Call, tmp_path: Path) -> None:
    small = ("model.blocks=1", "budget=250000")
    _, expected = run(call, tmp_path / "full", "variant=baseline", *small)
    for variant in COMPILED:
        words = (f"variant={variant}", "variant.inner=aot_eager", *small)
        found, rows = run(call, tmp_path / variant, *words)
        assert found["division"]["sketches"] == (variant == "rad_compile")
        assert 0 <= found["division"]["fraction"] < 1
        memory = found["memory"]
        assert memory["parameter_bytes"] + memory["saved_bytes"] <= 250_000
        columns = ["batch_loss", "train_loss", "test_loss"]
        rtol = 0.05 if variant == "rad_compile" else 1e-5
        pd.testing.assert_frame_equal(rows[columns], expected[columns], rtol=rtol)


@pytest.mark.parametrize(
    "words",
    [
        ("variant=accumulation",),
        ("variant=checkpointing",),
        (*COMPILING, "budget=22000000", "model.width=512", "model.heads=8", "model.blocks=1"),
    ],
)
def test_a_rival_resumes_as_if_unbroken(words: tuple[str, ...], call: Call, tmp_path: Path) -> None:
    whole, expected = run(call, tmp_path / "whole", *words)
    broken = tmp_path / "broken"
    limit = (f"results_root={broken}", "training.time_limit=1e-6", "training.evaluate_every=1")
    assert call("train", *GPT, *words, *limit).status == 0
    assert not list(broken.rglob("summary.json"))
    found, rows = run(call, broken, *words, "training.evaluate_every=1")
    assert len(found["segments"]) > 1
    rows = rows[rows["iteration"].isin(expected["iteration"])].reset_index(drop=True)
    columns = ["iteration", "batch_loss", "test_loss"]
    pd.testing.assert_frame_equal(rows[columns], expected[columns])
    assert found["memory"] == whole["memory"]
    assert not whole.get("reason", "").startswith("0 sketches")


@pytest.mark.parametrize("word", ["slices=2", "training.cuda_graph=true"])
@pytest.mark.parametrize("variant", COMPILED)
def test_what_is_not_tried_with_the_compiler_is_refused(
    variant: str, word: str, call: Call, tmp_path: Path
) -> None:
    done = call("train", *GPT, f"variant={variant}", word, f"results_root={tmp_path}")
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert f"which does not go with {word}: leave it out" in line.lower()


def test_what_has_no_blocks_is_refused_in_a_line(call: Call, tmp_path: Path) -> None:
    done = call("train", "variant=checkpointing", "device=cpu", "logger.mode=disabled")
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert "choose variant=accumulation" in line
    assert not list(tmp_path.rglob("summary.json"))
