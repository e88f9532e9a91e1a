"""The comparison with what else saves memory."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from calling import Call

from rad.benchmarks import pareto
from rad.benchmarks.pareto import Known
from rad.results import write_table

ONE = (
    "~networks.convnet",
    "~networks.irnn",
    "~networks.pde",
    "networks.feedforward.rounds=1",
    "networks.feedforward.shape=[1,8,8]",
)


def test_memory_and_times_are_measured_and_results_looked_up(call: Call, tmp_path: Path) -> None:
    assert call("pareto", *ONE).status == 0
    table = pd.read_csv(tmp_path / "results/pareto/pareto.csv").set_index("method")
    assert table.loc["torch", "time_ratio"] == 1
    assert table.loc["accumulation", "saved_bytes"] < 0.2 * table.loc["torch", "saved_bytes"]
    assert table[["loss", "variance_ratio"]].isna().all(axis=None)
    record = json.loads((tmp_path / "results/pareto/pareto.json").read_text())
    assert record["device"]

    tiny = ("experiment=fig5b_mnist", "dataset=digits")
    tiny += ("model.hidden=[9]", "optimizer.iterations=6", "training.evaluate_every=3")
    variants = "variant=baseline,different_sample"
    assert call("train", "-m", *tiny, variants).status == 0
    noise = tmp_path / "results/gradient_noise"
    noise.mkdir()
    rows = {
        "weight": "all weights",
        "iteration": 500,
        "budget": ["full", "0.1", "0.3"],
        "variant": ["baseline", "different_sample", "different_sample"],
        "total": [2.0, 8.0, 4.0],
    }
    pd.DataFrame(rows).to_csv(noise / "feedforward_mnist.csv", index=False)
    assert call("pareto", "measure=false", *ONE).status == 0
    again = pd.read_csv(tmp_path / "results/pareto/pareto.csv").set_index("method")
    assert (again["saved_bytes"] == table["saved_bytes"]).all()
    assert again.loc["different_sample", "variance_ratio"] == 4
    assert again.loc["accumulation", "variance_ratio"] == 1
    assert again.loc["compiled", "loss"] == again.loc["torch", "loss"]
    assert again.loc["different_sample", "loss"] > 0
    exact = {"torch", "lean_exact", "checkpointing", "accumulation", "compiled"}
    sampled = {"different_sample", "different_sample_in_slices"}
    assert set(again.index[again["loss"].notna()]) == exact | sampled
    assert (tmp_path / "plots/pareto.png").exists()


def test_seeds_are_counted_of_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {("baseline", "full", 0): 3, ("project", "0.1", 0): 2, ("project", "0.3", 0): 5}
    counts |= {("auto", "0.1", 1): 4, ("auto", "0.1", 3): 6}
    runs = pd.DataFrame(
        {"variant": variant, "budget": budget, "bits": bits, "seed": 10 * bits + n, "scale": "cpu"}
        for (variant, budget, bits), seeds in counts.items()
        for n in range(seeds)
    )
    monkeypatch.setattr(pareto, "summaries", lambda root, experiment: runs)
    chosen = [{"name": "auto", "bits": 3}]
    known = Known(0.1, ["known"], "cpu", "loss", None, None, chosen)
    assert pareto.seeds_of("", known) == {2, 3, 6}
    assert pareto.seeds_of("", Known(0.1, ["known"], "paper", "loss", None, None)) == set()


PDE = (
    *(f"~networks.{network}" for network in ("feedforward", "convnet", "irnn")),
    "networks.pde.rounds=1",
    "networks.pde.problem={points: 9, steps: 512, dt: 0.001}",
    "networks.pde.keep_fraction=0.1",
)


def test_the_pde_at_one_budget(call: Call, tmp_path: Path) -> None:
    runs = ("experiment_name=fig6_pde", "scale=smoke", "optimizer.iterations=4")
    assert call("train_pde", "-m", *runs, "variant=baseline").status == 0
    kept = (*runs, "budget=0.1")
    assert call("train_pde", "-m", *kept, "variant=different_sample,checkpointing").status == 0
    assert call("train_pde", *kept, "variant=sampled_rounding", "variant.bits=3").status == 0
    rows = {
        "variant": ["different_sample", "different_sample", "residual_rounding"],
        "budget": [0.1, 0.3, 0.1],
        "noise_start": [0.2, 0.1, 0.02],
        "norm_start": 0.1,
    }
    noise = tmp_path / "results/residual_pde_variance"
    noise.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(noise / "cpu.csv", index=False)
    done = call("pareto", *PDE, "networks.pde.scale=smoke")
    assert done.status == 0, done.err
    table = pd.read_csv(tmp_path / "results/pareto/pareto.csv").set_index("method")
    assert list(table.index) == [
        "exact",
        "checkpointing",
        "different_sample",
        "sampled_rounding",
        "residual_rounding",
    ]
    assert table.loc["exact", "time_ratio"] == 1
    assert (table["saved_bytes"][1:] <= table.loc["different_sample", "saved_bytes"]).all()
    assert table["saved_bytes"].max() == table.loc["exact", "saved_bytes"]
    assert table.loc["different_sample", "variance_ratio"] == pytest.approx(4)
    assert table.loc["residual_rounding", "variance_ratio"] == pytest.approx(0.04)
    assert table.loc["checkpointing", "loss"] == table.loc["exact", "loss"] > 0
    assert table.loc["sampled_rounding", "loss"] > 0
    assert np.isnan(table.loc["residual_rounding", "loss"])
    assert (tmp_path / "plots/pareto.png").exists()


def noise_table(folder: Path, bits: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = [0.1 * b for b in bits]
    rows = {"variant": "sampled_rounding", "budget": 0.1, "bits": bits, "noise_start": noise}
    pd.DataFrame(rows | {"norm_start": 1.0}).to_csv(folder / "cpu.csv", index=False)


def test_the_noise_of_other_options_is_no_ones(call: Call, tmp_path: Path) -> None:
    noise = tmp_path / "results/residual_pde_variance"
    noise_table(noise, [1, 3])
    assert call("pareto", *PDE).status == 0
    file = tmp_path / "results/pareto/pareto.csv"
    table = pd.read_csv(file).set_index("method")
    assert table.loc["sampled_rounding", "variance_ratio"] == pytest.approx(0.09)
    noise_table(noise, [1])
    assert call("pareto", *PDE, "measure=false").status == 0
    assert pd.read_csv(file)["variance_ratio"].isna().all()
    noise_table(noise, [3, 3])
    before = file.read_bytes()
    done = call("pareto", *PDE, "measure=false")
    assert done.status == 2
    assert "several rows of sampled_rounding" in done.err
    assert file.read_bytes() == before
    assert call("pareto", *PDE, "measure=false", "networks.pde.noise=null").status == 0


def test_looking_up_again_loses_no_network_and_invents_none(call: Call, tmp_path: Path) -> None:
    assert call("pareto", *PDE).status == 0
    file = tmp_path / "results/pareto/pareto.csv"
    other = pd.read_csv(file).assign(network="other")
    write_table(file, pd.concat([pd.read_csv(file), other]), None)
    assert call("pareto", *PDE, "measure=false").status == 0
    assert list(pd.read_csv(file)["network"].unique()) == ["pde", "other"]
    done = call("pareto", "measure=false")
    assert done.status == 2
    assert "no rows of feedforward" in done.err


def test_nothing_to_look_up(call: Call) -> None:
    done = call("pareto", "measure=false")
    assert done.status == 2
    assert "measure=true" in done.err
