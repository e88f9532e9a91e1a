"""Write one page that shows runs in a browser: `python scripts/report.py`.

It needs no network: choose experiments, axes, variants, budgets and seeds in it. The settings are
those of configs/plot/report.yaml.
"""

from pathlib import Path

import _cli  # first: see there
from omegaconf import DictConfig

from rad.plotting.report import collect, page
from rad.results import make_folder, write_atomic


def main(config: DictConfig, overrides: list[str]) -> None:
    """Write the page and print where it is."""
    print(f"wrote {write(config.results_root, config.experiments, Path(config.output))}")


def write(root: str, experiments: list[str] | None, output: Path) -> Path:
    """Write the page of all runs of `experiments` (None: of all there are)."""
    text = page(collect(root, experiments), "Randomized automatic differentiation: runs")
    make_folder(output.parent)
    write_atomic(output, text.encode())
    return output


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "report", _cli.CONFIGS / "plot")
