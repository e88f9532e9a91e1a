"""torch.compile with sketches beside exact ways to keep less: bytes, time, and noise."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from rad.benchmarks.zoo import Specimen, checkpointed
from rad.benchmarks.zoo_measures import measured, step_of
from rad.errors import UsageError, first_line
from rad.partition.backend import Backend, Inner, backend
from rad.partition.memory_budget import memory_budget
from rad.sketches import DitheredRounding

EXACT = ("torch", "checkpointing", "compiled")
"""Methods whose gradient is exact. `compiled` is torch.compile, at a value of torch's
activation_memory_budget; the others have no budget."""

SKETCHED = "rad_compile"
"""`rad.compile`, whose budget is a fraction of what torch.compile keeps."""

Row = dict[str, Any]


def partition_rows(
    made: Specimen,
    memory: Sequence[float],
    budgets: Sequence[float],
    inner: Inner,
    rounds: int,
    seed: int = 0,
) -> list[Row]:
    """A row for each method and budget, together a program, as `measured` has it.

    Times are against plain torch's.

    `memory` are the budgets of torch.compile, `budgets` those of rad.compile, both of which compile
    by `inner`. `graphs`, `sketches`, `fewest_bits` and `recompute` say what rad.compile has chosen:
    the latter is the activation_memory_budget of what stays exact; `predicted_time` is over
    torch.compile's. `first_step_seconds` has what planning and compiling take. A method that cannot
    be has a `note` in place of numbers. `exact_time_ratio` is the least time of an exact method
    that keeps no more bytes, where there is one.
    """
    torch.compiler.reset()
    most = 1 + len(memory) + len(budgets)
    limits: Any = {"recompile_limit": most, "fail_on_recompile_limit_hit": True}
    rows: dict[str, Row] = {}
    models: dict[str, nn.Module] = {}
    with torch._dynamo.config.patch(limits):
        for name, row, make in _programs(made, memory, budgets, inner, seed):
            try:
                models[name] = make(copy.deepcopy(made.model))
                start = time.perf_counter()
                step_of(made, models[name])()  # which compiles it
                row["first_step_seconds"] = round(time.perf_counter() - start, 2)
            except (UsageError, BackendCompilerFailed) as error:
                models.pop(name, None)
                row["note"] = first_line(_cause(error))
            rows[name] = {"program": name, **row}
        found = measured(made, models, "torch", rounds)
    for name, model in models.items():
        rows[name] |= found[name] | _chosen(model)
    return _beside_exact(list(rows.values()))


def _cause(error: UsageError | BackendCompilerFailed) -> Exception:
    """Raises the error where it is no refusal."""
    if isinstance(error, UsageError):
        return error
    if not isinstance(error.inner_exception, UsageError):
        raise error
    return error.inner_exception


Make = Callable[[nn.Module], Any]


def _programs(
    made: Specimen, memory: Sequence[float], budgets: Sequence[float], inner: Inner, seed: int
) -> Iterator[tuple[str, Row, Make]]:
    """Name, first columns, and what makes it of a copy of the model."""
    yield "torch", {"method": "torch"}, lambda model: model
    yield "checkpointing", {"method": "checkpointing"}, checkpointed
    for each in memory:
        yield (
            f"compiled {each:g}",
            {"method": "compiled", "budget": each},
            _by(memory_budget(each, inner)),
        )
    for each in budgets:
        own = backend(each, seed, inner)
        yield f"{SKETCHED} {each:g}", {"method": SKETCHED, "budget": each}, _by(own)


def _by(own: Any) -> Make:
    def make(model: nn.Module) -> Any:
        compiled = torch.compile(model, backend=own, dynamic=False)
        if isinstance(own, Backend):
            vars(compiled)["rad"] = own
        return compiled

    return make


def _chosen(model: nn.Module) -> Row:
    own = vars(model).get("rad")
    if not isinstance(own, Backend):
        return {}
    stored = [storage for choice in own.choices for storage in choice.stored]
    return {
        "graphs": len(own.choices),
        "sketches": sum(len(each.crossing.groups or []) for each in stored),
        "fewest_bits": min(
            (e.sketch.bits for e in stored if isinstance(e.sketch, DitheredRounding)), default=None
        ),
        "predicted_time": max((choice.time for choice in own.choices), default=None),
        "recompute": min((choice.memory for choice in own.choices), default=None),
    }


def _beside_exact(rows: list[Row]) -> list[Row]:
    """The rows, with `exact_time_ratio` in those of rad.compile."""
    exact = [row for row in rows if row["method"] in EXACT and "time_ratio" in row]
    for row in rows:
        if row["method"] != SKETCHED or "saved_bytes" not in row:
            continue
        times = [e["time_ratio"] for e in exact if e["saved_bytes"] <= row["saved_bytes"]]
        row["exact_time_ratio"] = min(times, default=None)
    return rows
