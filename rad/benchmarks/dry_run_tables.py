"""Dry runs as tables: what a device holds, what is kept, and the check by measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from rad.benchmarks.dry_run import DryRun, Estimate, without_numbers
from rad.benchmarks.large import family, small
from rad.benchmarks.zoo_measures import step_of
from rad.conversion.modules import convert
from rad.memory import saved_bytes
from rad.planning.exact import blocks
from rad.planning.roofline import Accelerator
from rad.planning.timing import alternate, ratio_of_medians
from rad.sketches import DitheredRounding, StochasticRounding

PARALLEL = ("ddp", "fsdp")

ROUNDED = StochasticRounding(2, block=256)
PATH = DitheredRounding(4, block=256)

REPEATS = 6
"""Repeated blocks of the small models that are measured, where two and three are counted."""


def device_rows(
    plan: DryRun, ways: Sequence[Estimate], counts: Sequence[int], state_bytes: int
) -> Iterator[dict[str, Any]]:
    """Bytes of each of so many devices: a row for each way, count and kind of parallel training.

    Each device has a batch of its own. With `ddp` all of them hold parameters, gradients and the
    optimizer's state, `state_bytes` in all; with `fsdp` a share, and parameters and gradient of the
    block at work and of what is in no block. `working` is what the largest operator reads and
    writes, and what a block that is recomputed saves for its own pass.
    """
    parameters, gathered = plan.model.parameter_bytes, 2 * plan.gathered_bytes()
    for way in ways:
        for count in counts:
            for parallel in PARALLEL if count > 1 else ("alone",):
                shares = count if parallel == "fsdp" else 1
                sizes = {
                    "parameter_bytes": parameters // shares,
                    "gradient_bytes": parameters // shares,
                    "optimizer_bytes": state_bytes // shares,
                    "gathered_bytes": gathered if parallel == "fsdp" else 0,
                    "saved_bytes": way.saved_bytes,
                    "working_bytes": plan.costs.largest + way.again,
                }
                total = sum(sizes.values())
                yield {
                    "program": way.program,
                    "devices": count,
                    "parallel": parallel,
                    **sizes,
                    "total_bytes": total,
                    "fits": total <= plan.device.memory,
                    "time_ratio": round(way.time_ratio, 3),
                    "step_seconds": float(f"{way.time_ratio * plan.costs.seconds:.3g}"),
                    "gradient_error": float(f"{way.error:.3g}"),
                    "recomputed": way.recomputed,
                }


def kept_rows(plan: DryRun, way: Estimate) -> list[dict[str, Any]]:
    """Bytes by block and by class of modules; `copies` is how many blocks are like that one."""
    return [
        {
            "program": way.program,
            "block": plan.model.in_whole(each.block),
            "copies": plan.model.copies(each.block),
            "kind": each.kind,
            "by": each.by,
            "saved_bytes": each.nbytes,
        }
        for each in plan.kept(way)
    ]


def check_rows(
    name: str, batch: int, rounds: int, device: Accelerator, seed: int
) -> Iterator[dict[str, Any]]:
    """The small model with `REPEATS` repeated blocks: predicted as large ones are, and measured."""
    with without_numbers(torch.float32):
        plan = DryRun(partial(small, name, batch), REPEATS, device)
        ways = [
            plan.plain(),
            plan.given("stochastic_rounding", ROUNDED, None),
            plan.given("rounded_path", ROUNDED, PATH),
            plan.checkpointing(),
        ]
    made = small(name, batch, REPEATS, seed)
    model = made.model
    models = {
        "torch": model,
        "stochastic_rounding": convert(model, ROUNDED),
        "rounded_path": convert(model, ROUNDED, path=PATH),
        "checkpointing": convert(model, {}, recomputed=blocks(model)),
    }
    seconds = alternate({key: step_of(made, each) for key, each in models.items()}, rounds)
    for way in ways:
        measured = saved_bytes(partial(made.loss_of, models[way.program]))
        ratio = ratio_of_medians(seconds[way.program], seconds["torch"])
        yield {
            "model": f"small {name}",
            "about": f"{REPEATS} repeated blocks, {family(name).about}",
            "batch_size": batch,
            "program": way.program,
            "predicted_bytes": way.saved_bytes,
            "measured_bytes": measured,
            "bytes_ratio": round(way.saved_bytes / measured, 4),
            "predicted_time": round(way.time_ratio, 3),
            "measured_time": round(ratio, 3),
            "predicted_over_measured": round(way.time_ratio / ratio, 3),
        }
