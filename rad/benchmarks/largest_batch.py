"""The largest batch whose forward and backward pass fits into a memory, and how fast it is.

The peak of whole passes is measured, first of doubling batches, then by bisection; a batch for
which the device has no memory is too large.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rad.benchmarks.networks import NETWORKS
from rad.benchmarks.programs import PROGRAMS, Program, programs
from rad.errors import UsageError
from rad.memory import peak_bytes
from rad.memory.budget import largest_multiple
from rad.planning.timing import alternate

OfSize = Callable[[int], tuple[Tensor, Tensor]]
"""Inputs and targets of so many examples."""

FIXED = ("reduced_batch", "accumulation", "compiled")
"""Programs that choose their batch themselves, or are compiled for one."""


def check_programs(names: Sequence[str]) -> None:
    """Raises UsageError for a program whose batch cannot be of any size."""
    fixed = [name for name in names if name in FIXED]
    if fixed:
        free = [name for name in PROGRAMS if name not in FIXED]
        raise UsageError(f"{fixed[0]} has no batch of any size: choose among {', '.join(free)}")


def largest_batches(
    network: str,
    limit: int,
    device: torch.device,
    *,
    names: Sequence[str],
    keep: float,
    precision: str,
    step: int,
    example: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """A row for each program: its largest batch within `limit` bytes, a multiple of `step`.

    `next_peak_bytes` is that of the next larger batch, None where memory ran out. Examples a second
    are relative to the first program's at its own largest batch, programs taking turns for so many
    rounds. `example` is the batch on which a budget's bits are chosen.

    Raises:
        UsageError: what `programs` refuses, or a limit that is too small for `step` examples.
    """
    compared = programs(network, keep, example, device, names=names, precision=precision)
    of_size = partial(NETWORKS[network].batch, device=device)
    largest: dict[str, Program] = {}
    rows: list[dict[str, Any]] = []
    for name, program in compared.items():
        program.step()  # what libraries allocate once is no step's
        peaks: dict[int, int | None] = {}
        batch = largest_within(program, of_size, limit, step, peaks)
        if batch is None:
            raise UsageError(
                f"{network} as {name} does not fit {limit:,} bytes: a batch of {step} needs "
                f"{peaks[step] or 'more than there is'}; raise limit.{device.type}"
            )
        largest[name] = replace(program, data=of_size(batch))
        program.clear()
        rows.append(
            {"network": network, "program": name, "precision": precision}
            | {"limit_bytes": limit, "batch_size": batch, "peak_bytes": peaks[batch]}
            | {"next_peak_bytes": peaks[batch + step]}
        )
    seconds = alternate({name: p.step for name, p in largest.items()}, rounds)
    rates = {n: p.batch_size / statistics.median(seconds[n]) for n, p in largest.items()}
    first = next(iter(largest))
    for row in rows:
        rate, batch = rates[row["program"]], row["batch_size"]
        row["batch_ratio"] = round(batch / largest[first].batch_size, 3)
        row["throughput_ratio"] = round(rate / rates[first], 3)
        row["samples_per_second"] = float(f"{rate:.4g}")
        row["rounds"] = rounds
    return rows


def largest_within(
    program: Program,
    of_size: OfSize,
    limit: int,
    step: int,
    peaks: dict[int, int | None],
) -> int | None:
    """The largest batch that fits, as `of_size` makes them.

    `peaks` takes what was measured, None where memory ran out.
    """

    def cost(batch: int) -> int:
        if batch not in peaks:
            peaks[batch] = _peak(program, of_size, batch)
        peak = peaks[batch]
        return limit + 1 if peak is None else peak

    return largest_multiple(step, cost, limit)


def _peak(program: Program, of_size: OfSize, batch: int) -> int | None:
    """Peak bytes of a pass over so many examples; None where memory runs out."""
    device = program.data[0].device
    program.clear()
    try:
        return peak_bytes(replace(program, data=of_size(batch)).step)
    except torch.OutOfMemoryError:
        return None
    finally:
        program.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
