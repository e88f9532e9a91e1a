"""rad.compile beside exact ways to keep less."""

import pytest
import torch
from torch import nn

from rad.benchmarks.partition import EXACT, SKETCHED, partition_rows
from rad.benchmarks.partition_networks import NETWORKS, UNet
from rad.benchmarks.zoo import Specimen, checkpointed, specimen
from rad.memory import saved_bytes
from rad.partition import costs

MAKERS = {name: network.make for name, network in NETWORKS.items()}


def small() -> Specimen:
    torch.manual_seed(0)
    layers = (nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 8))
    weights = torch.randn(128, 8)
    x = torch.randn(128, 64)
    return Specimen(nn.Sequential(*layers), (x,), weights, lambda out, w: (out * w).mean())


def test_rows_of_all_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "OF_A_SKETCH", 0)  # so small a net would rather calculate again
    rows = partition_rows(small(), [1.0, 0.0], [0.4, 0.001], "aot_eager", rounds=1)
    found = {(row["method"], row.get("budget")): row for row in rows}
    whole, least = found["compiled", 1.0], found["compiled", 0.0]
    assert least["saved_bytes"] < whole["saved_bytes"]
    own = found[SKETCHED, 0.4]
    assert own["saved_bytes"] <= 0.4 * whole["saved_bytes"]
    assert own["sketches"] > 0
    assert own["graphs"] == 1
    assert 0 < own["gradient_error"] < 1
    assert own["exact_time_ratio"] == least["time_ratio"]
    assert "cannot be met" in found[SKETCHED, 0.001]["note"]
    assert "no blocks to recompute" in found["checkpointing", None]["note"]
    for method, row in ((key[0], row) for key, row in found.items()):
        assert method not in EXACT or row.get("gradient_error", 0) < 1e-9


@pytest.mark.parametrize("name", sorted({*NETWORKS} - {"gpt_512", "gpt_1024", "gpt2"}))
def test_networks_train_and_their_blocks_are_recomputed(name: str) -> None:
    made = specimen(name, 2, 0, MAKERS)
    made.loss_of(made.model).backward()
    assert all(p.grad is not None and p.grad.any() for p in made.model.parameters())
    before = saved_bytes(lambda: made.loss_of(made.model))
    checkpointed(made.model)
    assert saved_bytes(lambda: made.loss_of(made.model)) < 0.6 * before


def test_a_unet_keeps_the_sides_of_its_image() -> None:
    assert UNet(4)(torch.randn(1, 3, 16, 12)).shape == (1, 2, 16, 12)
