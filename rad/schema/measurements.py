"""Every setting of the scripts that measure, draw or attack; `rad.schema.training` has the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rad import data
from rad.benchmarks.large import LARGE
from rad.benchmarks.largest_batch import FIXED
from rad.benchmarks.networks import NETWORKS
from rad.benchmarks.partition_networks import NETWORKS as PARTITIONED
from rad.benchmarks.programs import PRECISIONS, PROGRAMS
from rad.benchmarks.zoo import ZOO
from rad.benchmarks.zoo_programs import PLANNED
from rad.benchmarks.zoo_programs import PROGRAMS as ZOO_PROGRAMS
from rad.errors import UsageError
from rad.memory.budget import parse_budget
from rad.schema.rules import (
    Choice,
    Flag,
    ListOf,
    Named,
    Number,
    OrNull,
    Parsed,
    Rules,
    Some,
    Text,
    Whole,
    shown,
)
from rad.schema.training import (
    BITS,
    BUDGET,
    COUNT,
    DEVICE,
    FRACTION,
    NAME,
    PATH,
    PDE_VARIANT,
    POSITIVE,
    PROBLEM,
    SECONDS,
    SEED,
    SIZE,
)
from rad.sketches.registry import kinds

FLAG = Flag()
FRACTIONS = ListOf(FRACTION, distinct=True)
ROUNDS = Whole(1, 10**6)
DRAWS = Whole(2)
PRECISION = Choice(tuple(PRECISIONS))
TEXT = Text()
_EITHER: Rules = {"output": PATH, "figure": PATH}
_PAPERS = [kind.name for kind in kinds().values() if kind.of_paper]
_ALLOCATED = ("feedforward", "convnet")


def some(names: Iterable[str]) -> ListOf:
    """A list of some of those names, none twice."""
    return ListOf(Choice(tuple(names)), distinct=True)


def _check_bytes(size: Any) -> None:
    read = parse_budget(size) if isinstance(size, str | int | float) else None
    if read is None or read.kind != "bytes":
        raise UsageError(f"{shown(size)} is no size: give bytes above 1, or such as '4 GB'")


_BYTES = Parsed(_check_bytes)
_COMPARED_PDE = ListOf(Named(PDE_VARIANT.rules, partial=True))

BENCHMARK: Rules = {
    "networks": some((*NETWORKS, "pde")),
    "programs": some(PROGRAMS),
    "keep_fraction": FRACTION,
    "batch_size": OrNull(SIZE),
    "precision": PRECISION,
    "pde": {
        **{name: PROBLEM[name] for name in ("points", "steps", "dt")},
        "simulations": Whole(1, 10**5),
        "fractions": FRACTIONS,
    },
    "high_water": FLAG,
    "rounds": Some(dict.fromkeys((*NETWORKS, "pde"), ROUNDS)),
    "device": DEVICE,
    "measure": FLAG,
    **_EITHER,
}

LARGEST_BATCH: Rules = {
    "networks": some(NETWORKS),
    "programs": some(name for name in PROGRAMS if name not in FIXED),
    "keep_fraction": FRACTION,
    "precision": PRECISION,
    "limit": Some(dict.fromkeys(("cpu", "cuda"), _BYTES)),
    "step": SIZE,
    "example": SIZE,
    "rounds": ROUNDS,
    "device": DEVICE,
    "output": PATH,
}

ALLOCATION: Rules = {
    "networks": some(_ALLOCATED),
    "variants": some(_PAPERS),
    "budget": BUDGET,
    "iterations": Some(dict.fromkeys(_ALLOCATED, ListOf(Whole(0), distinct=True))),
    "draws": Some(dict.fromkeys(_ALLOCATED, DRAWS)),
    "seed": SEED,
    "device": DEVICE,
    "data_root": OrNull(PATH),
    **_EITHER,
}

PATH_SAMPLING: Rules = {
    "settings": ListOf(ListOf(Whole(1, 4096), length=2), distinct=True),
    "depths": ListOf(Whole(1, 1000), distinct=True),
    "draws": DRAWS,
    "measured_depths": ListOf(Whole(1, 1000), least=0, distinct=True),
    "seed": SEED,
    "output": PATH,
    "figures": PATH,
}

MODEL_ZOO: Rules = {
    "models": some(ZOO),
    "programs": some((*ZOO_PROGRAMS, *PLANNED)),
    "fraction": FRACTION,
    "batch_size": Whole(2, 10**5),
    "rounds": ROUNDS,
    "seed": SEED,
    "output": PATH,
}

_ACCELERATOR: Rules = {
    "memory": _BYTES,
    "bandwidth": POSITIVE,
    "flops": dict.fromkeys(("bfloat16", "float32"), POSITIVE),
    "source": TEXT,
}
_ACCELERATORS = ("a100_80gb", "h100_sxm", "rtx_4090", "mi300x")
_REAL = Choice(("bfloat16", "float32"))
PLAN: Rules = {
    "model": Choice(tuple(LARGE)),
    "batch": SIZE,
    "length": OrNull(SIZE),
    "budget": _BYTES,
    "dtype": _REAL,
    "optimizer": Choice(("adamw", "sgd")),
    "state": _REAL,
    "accelerator": Choice(_ACCELERATORS),
    "devices": ListOf(Whole(1, 10**6), distinct=True),
    "accelerators": dict.fromkeys(_ACCELERATORS, _ACCELERATOR),
    "check": FLAG,
    "check_batch": Whole(2, 10**5),
    "rounds": ROUNDS,
    "seed": SEED,
    "output": PATH,
}

PARTITION_BENCHMARK: Rules = {
    "networks": some(PARTITIONED),
    "memory_budgets": ListOf(Number(0, 1), distinct=True),
    "budgets": FRACTIONS,
    "inner": Choice(("inductor", "aot_eager")),
    "batch_size": OrNull(Whole(2, 10**5)),
    "rounds": ROUNDS,
    "seed": SEED,
    **_EITHER,
}

DEPTH_VARIANCE: Rules = {
    "depths": ListOf(Whole(1, 1000), distinct=True),
    "width": SIZE,
    "bits": ListOf(BITS, distinct=True),
    "batch_size": SIZE,
    "draws": DRAWS,
    "seed": SEED,
    "output": PATH,
}

TORTURE: Rules = {
    "cases": dict.fromkeys(("kill", "disk", "damage", "nonsense", "fault"), Whole(0, 10**6)),
    "seed": SEED,
    "time_limit": SECONDS,
    "workers": Whole(1, 1000),
    "scratch": PATH,
    "output": PATH,
}

MEMORY_TABLE: Rules = {"device": DEVICE, **_EITHER}

SKETCH_VARIANCE: Rules = {
    "rows": ListOf(SIZE, distinct=True),
    "features": SIZE,
    "outputs": SIZE,
    "fractions": FRACTIONS,
    "decay": Number(0, 100),
    "dataset": Choice(data.NAMES),
    "iterations": Whole(0),
    "batch_size": SIZE,
    "variants": some(kinds()),
    "draws": DRAWS,
    "seed": SEED,
    "data_root": OrNull(PATH),
    "output": PATH,
}

RECURRENT_VARIANCE: Rules = {
    "downsample": ListOf(Choice((1, 2, 4)), distinct=True),
    "hidden": SIZE,
    "keep_fraction": FRACTION,
    "batch_size": SIZE,
    "draws": DRAWS,
    "seed": SEED,
    "device": DEVICE,
    "data_root": OrNull(PATH),
    **_EITHER,
}

PDE_VARIANCE: Rules = {
    "trained": PATH,
    "variants": _COMPARED_PDE,
    "fractions": FRACTIONS,
    "draws": COUNT,
    "rounds": ROUNDS,
    "output": PATH,
}

_COMPARED: Rules = {
    "keep_fraction": FRACTION,
    "rounds": ROUNDS,
    "experiments": ListOf(NAME, distinct=True),
    "scale": OrNull(NAME),
    "loss": NAME,
    "noise": OrNull(NAME),
}
_NETWORK: Rules = {"shape": ListOf(SIZE, length=3), "point": OrNull(Whole(0)), **_COMPARED}
_PDE: Rules = {
    "problem": {name: PROBLEM[name] for name in ("points", "steps", "dt")},
    "variants": _COMPARED_PDE,
    "point": OrNull(NAME),
    **_COMPARED,
}
PARETO: Rules = {
    "measure": FLAG,
    "batch_size": SIZE,
    "networks": Some(dict.fromkeys(("feedforward", "convnet", "irnn"), _NETWORK) | {"pde": _PDE}),
    "device": DEVICE,
    "results_root": PATH,
    **_EITHER,
}

PLOT: Rules = {
    "experiment": OrNull(NAME),
    "beside": ListOf(NAME, least=0, distinct=True),
    "figure": Choice(("curves", "panels", "budgets", "front")),
    "budget": OrNull(BUDGET),
    "overrides": OrNull(TEXT),
    "x": Choice(("iteration", "seconds")),
    "column": NAME,
    "second": OrNull(NAME),
    "output": PATH,
    "results_root": PATH,
}

REPORT: Rules = {
    "experiments": OrNull(ListOf(NAME, distinct=True)),
    "output": PATH,
    "results_root": PATH,
}

PDE_PLOT: Rules = {
    "experiment": NAME,
    "overrides": OrNull(TEXT),
    "shown": {"budget": BUDGET, "seed": SEED},
    "film_times": ListOf(Number()),
    "sample_time": Number(),
    "sample_fractions": FRACTIONS,
    "variance": OrNull(PATH),
    "output": PATH,
    "results_root": PATH,
}
