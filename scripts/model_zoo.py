"""What models that people train keep and take with RAD: `python scripts/model_zoo.py`.

For each model of rad/benchmarks/zoo.py, unmodified: saved and peak bytes of a forward and backward
pass, time against plain torch's (programs taking turns), and the error of the gradient, over its
own square and over the minibatch's variance. Settings: configs/measure/model_zoo.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad.benchmarks.zoo import specimen
from rad.benchmarks.zoo_programs import zoo_rows
from rad.results import machine, provenance, write_partial, write_whole


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each model and program.

    What is there after each model lies in cpu.partial.csv; cpu.csv is replaced by the whole.
    """
    summary = {**machine(torch.device("cpu")), **provenance()}
    file = Path(config.output) / "cpu.csv"
    rows: list[dict[str, Any]] = []
    for name in config.models:
        made = specimen(name, config.batch_size, config.seed)
        found = zoo_rows(made, list(config.programs), config.fraction, config.rounds)
        rows += [{"model": name, "batch_size": config.batch_size, **row} for row in found]
        print(pd.DataFrame(rows[-len(config.programs) :]).to_string(index=False), flush=True)
        write_partial(file, pd.DataFrame(rows), summary)
    print(f"wrote {write_whole(file, pd.DataFrame(rows), summary)}")


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "model_zoo", _cli.CONFIGS / "measure")
