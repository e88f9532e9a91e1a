"""The search for the largest batch, on a tiny network."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from calling import Call

from rad.benchmarks import networks
from rad.benchmarks.networks import Network
from rad.benchmarks.programs import programs
from rad.memory import peak_bytes

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep and narrow: much is saved, and parameters are few."""
    net = Network("convnet", SHAPE, {"channels": (6,) * 6, "pool_every": 6})
    monkeypatch.setitem(networks.NETWORKS, "convnet", net)


def test_the_batch_found_fits_and_the_next_does_not(call: Call, tmp_path: Path) -> None:
    limit, chosen = 150_000, "programs=[torch,different_sample]"
    options = ("networks=[convnet]", chosen, f"limit.cpu={limit}", "rounds=1", "step=2")
    done = call("largest_batch", *options, "device=cpu")
    assert done.status == 0, done.err
    table = pd.read_csv(tmp_path / "results/largest_batch/cpu.csv").set_index("program")
    assert (table["peak_bytes"] <= limit).all()
    assert (table["next_peak_bytes"] > limit).all()
    assert list(table.loc["torch", ["batch_ratio", "throughput_ratio"]]) == [1, 1]
    names = ("torch", "different_sample")
    for name, program in programs("convnet", 0.1, 16, CPU, names=names).items():
        for further, column in ((0, "peak_bytes"), (2, "next_peak_bytes")):
            batch = table.loc[name, "batch_size"] + further
            program.clear()
            measured = peak_bytes(
                replace(program, data=networks.NETWORKS["convnet"].batch(batch, CPU)).step
            )
            assert measured == pytest.approx(table.loc[name, column], rel=0.01)
    assert table.loc["different_sample", "batch_ratio"] > 1.3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("limit.cpu=20", "raise limit.cpu"),
        ("limit.cpu=0.5", "limit.cpu: 0.5 is no size: give bytes"),
        ("programs=[torch,accumulation]", "programs is ['torch', 'accumulation']; give a list"),
        ("step=0", "step is 0; give a whole number"),
        ("networks=[resnet]", "networks is ['resnet']; give a list"),
    ],
)
def test_bad_settings_are_refused(call: Call, argument: str, message: str) -> None:
    done = call("largest_batch", "networks=[convnet]", "device=cpu", argument)
    assert done.status == 2
    assert message in done.err
