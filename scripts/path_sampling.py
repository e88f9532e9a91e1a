"""Figures 1 and 2 of the paper: `python scripts/path_sampling.py`.

Measures the relative variance of randomized gradients against depth: path sampling on graphs with
independent and with interleaved paths, and random matrix injection into a deep ReLU network, into
every Jacobian or into the weight's alone. Writes variance.csv, its provenance and both figures.
Settings: configs/measure/path_sampling.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from rad.graph.figures import figure1, figure2
from rad.graph.relative_variance import COLUMNS, Place, rows_at
from rad.plotting import save
from rad.results import as_written, machine, make_folder, provenance, write_table
from rad.sketches import fold_in, make_key


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, write the rows and their provenance, draw."""
    work, origin = places(config), provenance()
    file = Path(config.output) / "variance.csv"
    make_folder(file.parent)
    table = pd.DataFrame(measured(work, config.seed), columns=COLUMNS)
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    summary = {**machine(torch.device("cpu")), **origin}
    figures = {"figure1": figure1(), "figure2": figure2(as_written(table, "%.6g"))}
    write_table(file, table, summary, float_format="%.6g")
    drawn = [str(save(figure, Path(config.figures) / name)[0]) for name, figure in figures.items()]
    print(f"wrote {file}, {' and '.join(drawn)}")


def measured(work: list[Place], seed: int) -> list[dict[str, Any]]:
    """The rows of all places; graphs and draws have keys of their own."""
    graph_key, draw_key = (fold_in(make_key(seed), i) for i in range(2))
    shown = enumerate(tqdm(work, unit="point", disable=None))
    return [row for i, place in shown for row in rows_at(place, graph_key, fold_in(draw_key, i))]


def places(config: DictConfig) -> list[Place]:
    """Every combination that is measured. Raises UsageError for one that cannot be."""
    return [
        Place(width, kept, depth, config.draws if depth in config.measured_depths else 0)
        for width, kept in config.settings
        for depth in config.depths
    ]


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong before anything is measured."""
    places(config)


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "path_sampling", _cli.CONFIGS / "measure")
