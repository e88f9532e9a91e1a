"""Draw an experiment's curves and print its table: `python scripts/plot.py experiment=quickstart`.

The settings are those of configs/plot/plot.yaml.
"""

from pathlib import Path

import _cli  # first: see there
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from rad.errors import UsageError
from rad.memory.budget import canonical
from rad.plotting import (
    convergence,
    curves_by_budget,
    final_against_memory,
    four_panels,
    front,
    save,
    select,
    select_overrides,
    summary_table,
)
from rad.results import metrics, summaries


def main(config: DictConfig, overrides: list[str]) -> None:
    """Write the figures, each as PNG and PDF."""
    if config.experiment is None:
        raise UsageError("no experiment: name a folder of results, such as experiment=quickstart")
    names = dict.fromkeys([config.experiment, *config.beside])
    runs = pd.concat([summaries(config.results_root, name) for name in names], ignore_index=True)
    rows = pd.concat([metrics(config.results_root, name) for name in names], ignore_index=True)
    budget = None if config.budget is None else canonical(config.budget)
    if config.figure == "budgets":
        runs, rows = (select_overrides(frame, config.overrides) for frame in (runs, rows))
    else:
        runs, rows = (select(frame, budget, config.overrides) for frame in (runs, rows))
    written = [path for name, figure in _figures(config, runs, rows) for path in save(figure, name)]
    print(summary_table(runs))
    print(f"wrote {' and '.join(str(path) for path in written)}")


def _figures(
    config: DictConfig, runs: pd.DataFrame, rows: pd.DataFrame
) -> list[tuple[Path, Figure]]:
    output = Path(config.output)
    if config.figure == "panels":
        return [(output, four_panels(rows, runs, x=config.x))]
    if config.figure == "budgets":
        curves = output.with_name(f"{output.stem}_curves{output.suffix}")
        return [
            (output, final_against_memory(runs, config.column)),
            (curves, curves_by_budget(rows, runs, config.column, x=config.x)),
        ]
    if config.figure == "front":
        return [(output, front(rows, runs, config.column))]
    return [(output, convergence(rows, runs, config.column, x=config.x, second=config.second))]


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "plot", _cli.CONFIGS / "plot")
