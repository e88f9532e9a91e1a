"""What RAD would do with a model too large for this machine: `python scripts/plan.py`.

    python scripts/plan.py model=llama_7b batch=1 budget='24 GB'

Bytes by kind and by block, what `auto` would do with the budget, and what 1, 8 and 64 devices hold
with DDP and FSDP, beside plain torch and every block recomputed. The model has shapes and no
numbers; noise is measured on a small model of its family; times are a roofline's estimates, without
communication. `check=true` holds predictions against measurements. Settings:
configs/measure/plan.yaml.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from omegaconf import DictConfig

from rad.benchmarks.dry_run import BATCH, DryRun, Estimate, statistics_of, without_numbers
from rad.benchmarks.dry_run_tables import check_rows, device_rows, kept_rows
from rad.benchmarks.large import LARGE, checked_length, family, large
from rad.memory.budget import parse_budget
from rad.pages.words import cell
from rad.planning.repeated import DEEP
from rad.planning.roofline import Accelerator, this_processor
from rad.results import machine, provenance, write_table

EXACT = "checkpointing"

STATES = {"adamw": 2, "sgd": 1}
"""Numbers that an optimizer keeps for each parameter."""


def check(config: DictConfig, overrides: list[str]) -> None:
    """Raises UsageError for a length too short."""
    checked_length(config.model, config.length)


def accelerator(config: DictConfig) -> Accelerator:
    """The one that the times and the memory are of."""
    row = config.accelerators[config.accelerator]
    memory, flops = int(parse_budget(row.memory).value), row.flops[config.dtype]
    return Accelerator(config.accelerator, memory, row.bandwidth, flops, row.source)


def main(config: DictConfig, overrides: list[str]) -> None:
    """Plan or check, print, and write tables with their provenance."""
    check(config, overrides)
    summary = {**machine(torch.device("cpu")), **provenance()}
    output = Path(config.output)
    if config.check:
        processor = this_processor()
        rows = [
            row
            for name in LARGE
            for row in check_rows(name, config.check_batch, config.rounds, processor, config.seed)
        ]
        fitted = {key: value for key, value in vars(processor).items() if key != "memory"}
        table = pd.DataFrame(rows)
        print(table.drop(columns="about").to_string(index=False))
        print(f"wrote {write_table(output / 'check.csv', table, {**summary, 'roofline': fitted})}")
        return
    _plan(config, summary, output)


def _plan(config: DictConfig, summary: dict[str, Any], output: Path) -> None:
    start, device, dtype = time.perf_counter(), accelerator(config), getattr(torch, config.dtype)
    limit = int(parse_budget(config.budget).value)
    statistics = statistics_of(config.model, config.seed)
    made = partial(large, config.model, config.batch, config.length)
    with without_numbers(dtype):
        plan = DryRun(made, family(config.model).repeats, device)
        ways = [plain := plan.plain(), *(found := plan.automatic(limit, statistics))]
        ways += [] if EXACT in {way.program for way in found} else [plan.checkpointing()]
        state = _state_bytes(plan.model.parameter_bytes, dtype, config)
        devices = pd.DataFrame(device_rows(plan, ways, list(config.devices), state))
        shown = [plain, *(way for way in ways if way.sketches is not None)]
        kept = pd.DataFrame([row for way in shown for row in kept_rows(plan, way)])
    sketched = next((way for way in found if isinstance(way.sketches, Mapping)), None)
    facts = {
        "auto": found[0].program,
        "sketches": {} if sketched is None else described(sketched, plan),
        "accelerator": {key: value for key, value in vars(device).items() if value},
        "noise": f"measured on {DEEP} repeated blocks, {family(config.model).about}, batch {BATCH}",
        "planning_seconds": round(time.perf_counter() - start, 1),
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    for table in (kept, devices):
        print(f"{_readable(table).to_string(index=False)}\n")
    print("".join(f"{key}: {value}\n" for key, value in facts.items()), end="")
    for name, table in ((f"{config.model}_kept", kept), (config.model, devices)):
        print(f"wrote {write_table(output / f'{name}.csv', table, {**summary, **facts})}")


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The same, with numbers as the documents print them, and short names."""
    words = {"fits": table["fits"].map({True: "yes", False: "no"})} if "fits" in table else {}
    worded = table.assign(**words)
    shown = pd.DataFrame({name: [cell(str(name), v) for v in worded[name]] for name in worded})
    return shown.rename(columns=lambda name: str(name).removesuffix("_bytes"))


def described(way: Estimate, plan: DryRun) -> dict[str, str]:
    """The sketch of each layer of the whole model and of the path, in words."""
    layers = way.sketches if isinstance(way.sketches, Mapping) else {}
    named = {plan.model.in_whole(name): str(sketch) for name, sketch in layers.items()}
    return {**named, "path": str(way.path)}


def _state_bytes(parameters: int, dtype: torch.dtype, config: DictConfig) -> int:
    """Of the optimizer, with the copy of the parameters that it keeps in a longer type."""
    of_state = getattr(torch, config.state)
    numbers = STATES[config.optimizer] + (of_state != dtype)
    return parameters // dtype.itemsize * numbers * of_state.itemsize


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "plan", _cli.CONFIGS / "measure")
