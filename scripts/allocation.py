"""What dividing a budget among the layers gains: `python scripts/allocation.py`.

Plans both allocations on one batch and measures E |g_hat - g|^2 over all weights on another, at
equal saved bytes. Writes allocation.csv, its provenance and a figure. Settings:
configs/measure/allocation.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
from omegaconf import DictConfig

from rad import data, models
from rad.gradient_noise.allocation import compare, train
from rad.plotting import allocation_figure, save
from rad.results import as_written, machine, provenance, write_table
from rad.schema.values import choose_device

DATASETS = {"feedforward": ("mnist", 1.350e-3), "convnet": ("cifar10", 1.240e-3)}
"""Network -> data set and the paper's learning rate for full memory."""


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each network, moment, variant and allocation."""
    device, origin = choose_device(config.device), provenance()
    rows: list[dict[str, Any]] = []
    for network in config.networks:
        name, rate = DATASETS[network]
        dataset = data.load_images(name, config.data_root, device)
        model = models.build(network, **dataset.model_arguments, seed=config.seed).to(device)
        done = 0
        for iterations in sorted(config.iterations[network]):
            train(model, dataset, range(done, iterations), rate)
            done = iterations
            for variant in config.variants:
                label = {"network": network, "iteration": iterations, "variant": variant}
                found = compare(model, dataset, variant, config.budget, config.draws[network])
                rows += [{**label, **row} for row in found]
                print(
                    f"{label}: gain {found[0]['measured'] / found[1]['measured']:.2f}", flush=True
                )
    file = Path(config.output) / "allocation.csv"
    table, summary = pd.DataFrame(rows), {**machine(device), **origin}
    figure = allocation_figure(as_written(table, "%.6g"), conditions(table, config.budget))
    write_table(file, table, summary, float_format="%.6g")
    print(f"wrote {file} and {save(figure, config.figure)[0]}")


def conditions(table: pd.DataFrame, budget: float) -> str:
    """In words for the figure: each net's data and draws, and the budget."""
    draws = table.groupby("network", sort=False)["draws"].first()
    nets = [f"{net} on {DATASETS[str(net)][0]}: {count:,} draws" for net, count in draws.items()]
    return "\n".join([*nets, f"budget {budget:g}; bars: 2 standard errors"])


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "allocation", _cli.CONFIGS / "measure")
