"""Time and memory of a forward and backward pass: `python scripts/benchmark.py`.

Ratios of medians against plain torch at the same batch size, programs taking turns; saved and
peak bytes. Settings: configs/benchmark/benchmark.yaml.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _cli import CONFIGS, Task, run
from _device import choose, name_of
from _programs import SHAPES, Program, programs
from omegaconf import DictConfig

from rad.benchmarking import alternate, ratio_of_medians
from rad.errors import UsageError
from rad.memory import peak_bytes, saved_bytes
from rad.plotting import benchmark_figure, save
from rad.results import provenance, write_atomic


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, and write a table, its provenance and a figure."""
    unknown = set(config.networks) - set(SHAPES)
    if unknown:
        raise UsageError(f"unknown network {min(unknown)!r}: choose among {', '.join(SHAPES)}")
    device, origin = choose(config.device), provenance()
    rows: list[dict[str, Any]] = []
    for network in config.networks:
        compared = programs(network, config.keep_fraction, config.batch_size, device)
        rounds = config.rounds[network]
        seconds = alternate({name: p.step for name, p in compared.items()}, rounds)
        for name, program in compared.items():
            ratio = ratio_of_medians(seconds[name], seconds["torch"])
            rows.append({"network": network, "program": name, **_memory(program)})
            rows[-1] |= {"time_ratio": round(ratio, 3), "rounds": rounds}
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    _write(Path(config.output), table, {"device": name_of(device), **origin})
    print(f"wrote {config.output} and {save(benchmark_figure(table), config.figure)[0]}")


def _memory(program: Program) -> dict[str, int]:
    program.model.zero_grad(set_to_none=True)
    return {
        "batch_size": program.batch_size,
        "saved_bytes": saved_bytes(program.loss),
        "peak_bytes": peak_bytes(program.step),
    }


def _write(folder: Path, table: pd.DataFrame, summary: dict[str, Any]) -> None:
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder} ({error.strerror}); choose output=") from error
    summary = {"threads": torch.get_num_threads(), **summary}
    write_atomic(folder / f"{kind}.csv", text.getvalue().encode())
    write_atomic(folder / f"{kind}.json", (json.dumps(summary, indent=2) + "\n").encode())


if __name__ == "__main__":
    run(Task(main), "benchmark", CONFIGS / "benchmark")
