"""The tables that scripts/benchmark.py leaves."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from calling import Call

from rad.benchmarks import networks
from rad.benchmarks.networks import Network

COMMITTED = Path(__file__).resolve().parents[2] / "results/benchmarks/cpu.csv"
TINY_PDE = ("rounds.pde=1", "pde.points=9", "pde.steps=512", "pde.dt=0.001")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolutional network at a size for tests."""
    small = Network("convnet", (3, 8, 8), {"channels": (4, 5)})
    monkeypatch.setitem(networks.NETWORKS, "convnet", small)


def test_the_table_has_the_committed_columns_and_programs(call: Call, tmp_path: Path) -> None:
    chosen = ("networks=[feedforward]", "rounds.feedforward=1", "device=cpu", "high_water=false")
    done = call("benchmark", *chosen)
    assert done.status == 0, done.err
    found = pd.read_csv(tmp_path / "results/benchmarks/cpu.csv")
    committed = pd.read_csv(COMMITTED)
    assert {*found.columns} ^ {*committed.columns} <= {"high_water_bytes", "time_ratio_error"}
    committed = committed[committed["network"] == "feedforward"]
    for column in ("network", "program", "batch_size", "saved_bytes"):
        assert list(found[column]) == list(committed[column])
    assert (found["time_ratio"][0], found["time_ratio_error"][0]) == (1, 0)
    assert (found["samples_per_second"] > 0).all()
    assert found[["graph_time_ratio", "graph_samples_per_second"]].isna().all(axis=None)
    assert json.loads((tmp_path / "results/benchmarks/cpu.json").read_text())["device"]
    assert (tmp_path / "plots/benchmarks.png").exists()


@pytest.mark.usefixtures("tiny")
def test_a_table_is_drawn_again_as_it_is(call: Call, tmp_path: Path) -> None:
    options = ("networks=[convnet]", "programs=[torch,lean_exact]", "rounds.convnet=1")
    options += ("device=cpu", "high_water=false", "batch_size=20")
    missing = call("benchmark", *options, "measure=false")
    assert (missing.status, missing.err.count("set measure=true")) == (2, 1)
    assert call("benchmark", *options).status == 0
    files = [tmp_path / "results/benchmarks" / name for name in ("cpu.csv", "cpu.json")]
    before = [file.read_bytes() for file in files]
    picture = tmp_path / "plots/benchmarks.png"
    drawn = picture.read_bytes()
    picture.unlink()
    assert call("benchmark", *options, "measure=false").status == 0
    assert [file.read_bytes() for file in files] == before
    assert picture.read_bytes() == drawn


@pytest.mark.usefixtures("tiny")
def test_programs_and_precision_can_be_chosen(call: Call, tmp_path: Path) -> None:
    chosen = "programs=[lean_exact,different_sample,accumulation]"
    bytes_of = {}
    for precision in ("float32", "bf16"):
        options = (f"precision={precision}", f"output={precision}", "batch_size=20")
        rounds = ("rounds.convnet=1", "networks=[convnet]", "device=cpu", "high_water=false")
        assert call("benchmark", chosen, *options, *rounds).status == 0
        table = pd.read_csv(tmp_path / precision / "cpu.csv")
        assert list(table["program"]) == ["lean_exact", "different_sample", "accumulation"]
        assert set(table["precision"]) == {precision}
        assert list(table["batch_size"]) == [20] * 3
        assert table["time_ratio"][0] == 1
        bytes_of[precision] = table["saved_bytes"]
    assert (bytes_of["bf16"] < 0.75 * bytes_of["float32"]).all()


def test_the_pde_beside_its_exact_adjoint(call: Call, tmp_path: Path) -> None:
    done = call("benchmark", "networks=[pde]", "device=cpu", "high_water=false", *TINY_PDE)
    assert done.status == 0, done.err
    table = pd.read_csv(tmp_path / "results/benchmarks/cpu.csv").set_index("program")
    kinds = ("different_sample", "checkpointing")
    assert list(table.index) == ["exact", *(f"{k} {f}" for k in kinds for f in (0.1, 0.01, 0.001))]
    exact = 513 * 49 * 4
    assert table.loc["exact", "saved_bytes"] == pytest.approx(exact, rel=0.02)
    assert table.loc["different_sample 0.1", "saved_bytes"] < 0.15 * exact
    assert (
        table.loc["checkpointing 0.1", "saved_bytes"]
        <= table.loc["different_sample 0.1", "saved_bytes"]
    )
    assert table.loc["exact", "peak_bytes"] > exact
    done = call("benchmark", "networks=[pde]", "device=cpu", "pde.simulations=2")
    assert done.status == 2
    assert "give 1 on a CPU" in done.err


def test_processes_of_their_own_tell_high_water_marks(call: Call, tmp_path: Path) -> None:
    chosen = ("networks=[feedforward]", "programs=[torch,same_sample]", "batch_size=4000")
    done = call("benchmark", *chosen, "rounds.feedforward=1", "device=cpu")
    assert done.status == 0, done.err
    table = pd.read_csv(tmp_path / "results/benchmarks/cpu.csv")
    assert (table["high_water_bytes"] > table["saved_bytes"]).all()
    assert (table["high_water_bytes"] < 3 * table["peak_bytes"]).all()


def test_an_unknown_network_is_refused(call: Call) -> None:
    done = call("benchmark", "networks=[feedforward,resnet]")
    assert done.status == 2
    assert "networks is ['feedforward', 'resnet']; give a list" in done.err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_are_timed_on_a_gpu(call: Call, tmp_path: Path) -> None:
    chosen = ("programs=[torch,lean_exact]", "networks=[feedforward,pde]", "pde.simulations=2")
    done = call("benchmark", *chosen, *TINY_PDE, "rounds.feedforward=3", "device=cuda")
    assert done.status == 0, done.err
    table = pd.read_csv(tmp_path / "results/benchmarks/cuda.csv")
    nets = table[table["network"] == "feedforward"]
    assert nets["graph_time_ratio"].notna().all()
    assert table[table["network"] == "pde"]["graph_time_ratio"].isna().all()
