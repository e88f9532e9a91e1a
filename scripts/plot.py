"""Draw an experiment's curves and print its table: `python scripts/plot.py experiment=quickstart`.

The settings are those of configs/plot/plot.yaml.
"""

from _cli import CONFIGS, Task, run
from omegaconf import DictConfig

from rad.errors import UsageError
from rad.plotting import convergence, save, select, summary_table
from rad.results import metrics, summaries


def main(config: DictConfig, overrides: list[str]) -> None:
    """Write the figure as PNG and PDF."""
    if config.experiment is None:
        raise UsageError("no experiment: name a folder of results, such as experiment=quickstart")
    chosen = (config.budget, config.overrides)
    runs = select(summaries(config.results_root, config.experiment), *chosen)
    rows = select(metrics(config.results_root, config.experiment), *chosen)
    figure = convergence(rows, runs, config.column, x=config.x, second=config.second)
    written = save(figure, config.output)
    print(summary_table(runs))
    print(f"wrote {' and '.join(str(path) for path in written)}")


if __name__ == "__main__":
    run(Task(main), "plot", CONFIGS / "plot")
