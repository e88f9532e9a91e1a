"""The programs that are compared, and the tables they leave."""

import json
from pathlib import Path

import _networks
import benchmark
import pandas as pd
import pytest
import torch
from _networks import NETWORKS, Network
from _programs import COMPARED, PROGRAMS, programs
from calling import Call
from torch import nn

import rad
from rad.benchmarks.timing import captured
from rad.errors import UsageError

CPU = torch.device("cpu")
COMMITTED = Path(__file__).resolve().parents[2] / "results/benchmarks/cpu.csv"
NEW = ["precision", "samples_per_second", "graph_time_ratio", "graph_samples_per_second"]
TINY_PDE = ("rounds.pde=1", "pde.points=9", "pde.steps=512", "pde.dt=0.001")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks at a size for tests."""
    small = Network("convnet", (3, 8, 8), {"channels": (4, 5)})
    monkeypatch.setitem(_networks.NETWORKS, "convnet", small)
    small = Network("feedforward", (1, 5, 5), {"hidden": (20, 21)})
    monkeypatch.setitem(_networks.NETWORKS, "feedforward", small)


def gradients(name: str, precision: str = "float32") -> list[torch.Tensor]:
    options = {"names": [name], "precision": precision}
    (program,) = programs("convnet", 0.3, 6, CPU, **options).values()
    program.step()
    return [p.grad for p in program.model.parameters() if p.grad is not None]


def test_the_table_has_the_committed_columns_and_programs(call: Call, tmp_path: Path) -> None:
    done = call("benchmark", "networks=[feedforward]", "rounds.feedforward=1", "device=cpu")
    assert done.status == 0, done.err
    found = pd.read_csv(tmp_path / "results/benchmarks/cpu.csv")
    committed = pd.read_csv(COMMITTED)
    assert list(found.columns) == [*committed.columns, *NEW]
    committed = committed[committed["network"] == "feedforward"]
    for column in ("network", "program", "batch_size", "saved_bytes"):
        assert list(found[column]) == list(committed[column])
    assert found["time_ratio"][0] == 1
    assert (found["samples_per_second"] > 0).all()
    assert found[["graph_time_ratio", "graph_samples_per_second"]].isna().all(axis=None)
    assert json.loads((tmp_path / "results/benchmarks/cpu.json").read_text())["device"]
    assert (tmp_path / "plots/benchmarks.png").exists()


@pytest.mark.usefixtures("tiny")
def test_programs_and_precision_can_be_chosen(call: Call, tmp_path: Path) -> None:
    chosen = "programs=[lean_exact,different_sample,accumulation]"
    bytes_of = {}
    for precision in ("float32", "bf16"):
        options = (f"precision={precision}", f"output={precision}", "batch_size=20")
        rounds = ("rounds.convnet=1", "networks=[convnet]", "device=cpu")
        assert call("benchmark", chosen, *options, *rounds).status == 0
        table = pd.read_csv(tmp_path / precision / "cpu.csv")
        assert list(table["program"]) == ["lean_exact", "different_sample", "accumulation"]
        assert set(table["precision"]) == {precision}
        assert list(table["batch_size"]) == [20] * 3
        assert table["time_ratio"][0] == 1
        bytes_of[precision] = table["saved_bytes"]
    assert (bytes_of["bf16"] < 0.75 * bytes_of["float32"]).all()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["lean_exact", "reduced_batch", "checkpointing", "accumulation"])
def test_bf16_is_autocast_for_every_program(name: str) -> None:
    for lower, reference in zip(gradients(name, "bf16"), gradients(name), strict=True):
        assert lower.dtype == reference.dtype == torch.float32
        assert not torch.equal(lower, reference)
        assert (lower - reference).norm() < 0.1 * reference.norm()


@pytest.mark.usefixtures("tiny")
def test_exact_programs_have_torchs_gradient_and_others_not() -> None:
    exact = gradients("torch")
    for name in ("lean_exact", "checkpointing", "accumulation", "different_sample"):
        same = [
            torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(name), exact, strict=True)
        ]
        assert all(same) == (name != "different_sample"), name


@pytest.mark.usefixtures("tiny")
def test_accumulation_saves_what_a_reduced_batch_does() -> None:
    names = ["reduced_batch", "accumulation", "lean_exact"]
    compared = programs("convnet", 0.1, 20, CPU, names=names)
    saved = {name: rad.memory.saved_bytes(program.loss) for name, program in compared.items()}
    other_labels = 8 * (20 - compared["reduced_batch"].batch_size)
    assert saved["accumulation"] == saved["reduced_batch"] + other_labels
    assert saved["reduced_batch"] < 0.3 * saved["lean_exact"]


@pytest.mark.usefixtures("tiny")
def test_what_is_left_out() -> None:
    assert set(COMPARED) < set(PROGRAMS)
    found = programs("convnet", 0.5, 4, CPU, names=("torch", "dense_reference"), precision="bf16")
    assert list(found) == ["torch"]
    for name in ("irnn", "irnn_wide"):
        irnn = programs(name, 0.5, 2, CPU, names=("torch", "compiled"), shape=(1, 2, 2))
        assert list(irnn) == ["torch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "unknown network 'resnet'"),
        ({"names": ["torch", "jax"]}, "unknown program 'jax'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_what_is_unknown_is_refused(options: dict[str, object], message: str) -> None:
    given = {"network": "feedforward", "keep": 0.1, "batch": 3, "device": CPU, **options}
    with pytest.raises(UsageError, match=message):
        programs(**given)  # type: ignore[arg-type]


def test_wide_networks_are_eight_times_as_wide_and_as_deep() -> None:
    widths = {"feedforward": (nn.Linear, "out_features"), "convnet": (nn.Conv2d, "out_channels")}
    with torch.device("meta"):
        for name, (kind, width) in widths.items():
            models = [NETWORKS[n].build() for n in (name, f"{name}_wide")]
            narrow, wide = (
                [getattr(layer, width) for layer in model.modules() if isinstance(layer, kind)]
                for model in models
            )
            scores = narrow.pop(), wide.pop() if name == "feedforward" else None
            assert scores[1] in (10, None)
            narrow += [] if name == "feedforward" else [scores[0]]
            assert wide == [8 * each for each in narrow for _ in range(8)]
            pools = [sum(isinstance(m, nn.AvgPool2d) for m in model.modules()) for model in models]
            assert pools[0] == pools[1]
            x = torch.empty(2, *NETWORKS[name].shape)
            assert models[1](x).shape == (2, 10)


def test_the_pde_beside_its_exact_adjoint(call: Call, tmp_path: Path) -> None:
    done = call("benchmark", "networks=[pde]", "device=cpu", *TINY_PDE)
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
    assert "on a CPU give 1" in done.err


def test_an_unknown_network_is_refused(call: Call) -> None:
    done = call("benchmark", "networks=[feedforward,resnet]")
    assert done.status == 2
    assert "unknown network 'resnet'" in done.err


@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_captured_has_no_graph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(step: object) -> None:
        if step == compared["lean_exact"].step:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    compared = programs("convnet", 0.5, 4, CPU, names=("torch", "lean_exact"))
    monkeypatch.setattr(benchmark, "captured", refuse)
    assert list(benchmark._graphs(compared)) == ["torch"]
    assert "lean_exact is no CUDA graph: operation not permitted" in capsys.readouterr().out
    assert benchmark._speed(compared, {"torch": [2.0]}) == [(1.0, 2.0), (None, None)]
    assert benchmark._speed(compared, {"lean_exact": [2.0]}) == [(None, None), (None, 2.0)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("network", ["feedforward", "convnet"])
def test_graphs_compute_what_the_programs_do(network: str) -> None:
    names = ("torch", "lean_exact", "checkpointing", "accumulation")
    compared = programs(network, 0.1, 30, torch.device("cuda"), names=names)
    for name, program in compared.items():
        program.step()
        eager = [p.grad.clone() for p in program.model.parameters() if p.grad is not None]
        program.clear()
        replay = captured(program.step)
        for parameter in program.model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        replay()
        for got, want in zip(program.model.parameters(), eager, strict=True):
            torch.testing.assert_close(got.grad, want, rtol=1e-3, atol=1e-5, msg=name)


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
