"""Every setting of every script that trains: what it may be, checked before any work.

`configs/` has the settings' defaults and what they are for.
"""

from __future__ import annotations

from typing import Any

from rad.data import NAMES
from rad.data.augmentation import AUGMENTATIONS
from rad.models.resnet import DEPTHS
from rad.packing.codes import PLANES
from rad.pde import plan as pde_plan
from rad.planning.probe import KINDS
from rad.planning.spend import ALLOCATIONS
from rad.planning.variants import sketching, variants
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
)
from rad.schema.values import check_budget, choose_device
from rad.training.ranks import PARALLEL
from rad.training.wandb_logger import MODES

FLAG = Flag()
RUNS_PER_PROCESS = Whole(1, 1000)
COUNT = Whole()
SIZE = Whole(most=10**7)
"""Of what lies in memory."""
PERIOD = OrNull(COUNT)
FRACTION = Number(1e-6, 1)
POSITIVE = Number(above=True)
SECONDS = OrNull(POSITIVE)
SEED = Whole(0, 2**63 - 1)
PATH = Text(r"[^\0]{1,4000}", "a path, as a text (a number in quotes: \"'5'\")")
NAME = Text(r"\w[\w.+=,%@-]{0,199}", "a name of letters, digits and _ . - (a number in quotes)")
BUDGET = Parsed(check_budget)
DEVICE = Parsed(choose_device)
BITS = Choice(sorted(PLANES))

INNER = Choice(("inductor", "aot_eager"))
_BLOCK = OrNull(SIZE)
_OPTIONS: dict[str, Rules] = {
    "same_sample": {"replacement": FLAG},
    "different_sample": {"replacement": FLAG},
    "stochastic_rounding": {"block": _BLOCK, "zero_code": FLAG},
    "dithered_rounding": {"block": _BLOCK, "zero_code": FLAG},
    "rotated_rounding": {"block": _BLOCK, "dithered": FLAG},
    "sampled_rounding": {"bits": BITS, "dithered": FLAG},
    "activation_memory_budget": {"inner": INNER},
    "rad_compile": {"inner": INNER, "fewest_bits": Choice((2, 3, 4, 8))},
    "principal_project": {"principal_fraction": Number(0, 1)},
    pde_plan.RESIDUAL: {"bits": BITS, "dithered": FLAG},
}
VARIANT = Named({name: _OPTIONS.get(name, {}) for name in variants()})
PDE_VARIANT = Named({name: _OPTIONS.get(name, {}) for name in pde_plan.variants()})

LOGGER = Named(
    {
        "wandb": {"mode": Choice(MODES), "project": NAME, "directory": PATH},
        "tensorboard": {"directory": PATH},
    }
)
_TUNED = {"learning_rate": POSITIVE, "weight_decay": Number()}
_DATASET: Rules = {
    "iterations": COUNT,
    "decay_factor": POSITIVE,
    "decay_every": PERIOD,
    "tuned": Some(dict.fromkeys(variants(), _TUNED)),
}
_SEQUENCES: Rules = {**_DATASET, "downsample": Choice((1, 2, 4)), "permuted": FLAG}
_AUGMENTED: Rules = {**_DATASET, "augment": OrNull(Choice(AUGMENTATIONS))}
_TEXT: Rules = {**_DATASET, "context": SIZE, "characters": SIZE}
_OPTIMIZER: Rules = {
    "iterations": COUNT,
    "learning_rate": POSITIVE,
    "weight_decay": Number(),
    "decay_factor": POSITIVE,
    "decay_every": PERIOD,
    "clip_norm": OrNull(POSITIVE),
    "fused": FLAG,
}
_RUNTIME: Rules = {
    "checkpoint_every": COUNT,
    "checkpoint_seconds": SECONDS,
    "time_limit": SECONDS,
    "strict_resume": FLAG,
}

TRAIN: Rules = {
    "model": Named(
        {
            "feedforward": {"hidden": ListOf(SIZE, least=0)},
            "convnet": {"channels": ListOf(SIZE)},
            "irnn": {"hidden": SIZE, "std": Number()},
            "gpt": {"blocks": SIZE, "width": SIZE, "heads": SIZE},
            "resnet": {"depth": Choice(DEPTHS), "width": SIZE},
            "vit": {"patch": SIZE, "blocks": SIZE, "width": SIZE, "heads": SIZE},
        },
        own={},
        filled=("input_shape", "classes", "vocabulary", "context"),
    ),
    "dataset": Named(
        dict.fromkeys(NAMES, _DATASET)
        | {"cifar10": _AUGMENTED, "sequential_mnist": _SEQUENCES, "python_sources": _TEXT},
        own=_DATASET,
        filled=("root", "device"),
    ),
    "variant": VARIANT,
    "optimizer": Named({"adam": _OPTIMIZER, "sgd": _OPTIMIZER}),
    "logger": LOGGER,
    "experiment_name": NAME,
    "seed": SEED,
    "budget": OrNull(BUDGET),
    "kind": Choice(KINDS),
    "allocation": Choice(ALLOCATIONS),
    "path": Choice((None, "auto")),
    "slices": OrNull(SIZE),
    "batch_size": SIZE,
    "scale": OrNull(NAME),
    "training": {
        "bootstrap": FLAG,
        "evaluate_every": COUNT,
        "train_loss_every": PERIOD,
        "evaluation_batch": SIZE,
        "cuda_graph": FLAG,
        "parallel": Choice((None, *PARALLEL)),
        **_RUNTIME,
    },
    "device": DEVICE,
    "data_root": OrNull(PATH),
    "results_root": PATH,
    "runs_per_process": RUNS_PER_PROCESS,
}

_RANGE = ListOf(POSITIVE, length=2)
_ALONE: Rules = {
    **TRAIN,
    "training": {**TRAIN["training"], "parallel": Choice((None,))},
    "runs_per_process": Choice((1,)),
}
"""For what one process does, one job at a time."""

TUNE: Rules = {
    **_ALONE,
    "tuning": {
        "trials": COUNT,
        "held_out": COUNT,
        "sampler": Choice(("random", "tpe")),
        "learning_rate": _RANGE,
        "weight_decay": _RANGE,
        "scratch": PATH,
    },
}

GRADIENT_NOISE: Rules = {
    **_ALONE,
    "noise": {
        "measure": FLAG,
        "iterations": ListOf(Whole(0), distinct=True),
        "minibatches": Whole(2),
        "draws": COUNT,
        "predictions": COUNT,
        "variants": ListOf(Choice(sketching()), distinct=True),
        "keep_fractions": ListOf(FRACTION, distinct=True),
        "checkpoints": PATH,
        "output": PATH,
        "figure": PATH,
    },
}

_MODE = Whole(0, 10**6)
PROBLEM: dict[str, Any] = {
    "points": Whole(3, 10**5),
    "steps": Whole(1, 10**9),
    "dt": POSITIVE,
    "diffusion": POSITIVE,
    "amplitude": Number(-1e30),
    "dtype": Choice(("float32", "float64")),
    "terms": ListOf(ListOf(_MODE, length=2), distinct=True),
}
PDE: Rules = {
    "variant": PDE_VARIANT,
    "experiment_name": NAME,
    "seed": SEED,
    "budget": OrNull(BUDGET),
    "scale": NAME,
    "problem": PROBLEM,
    "optimizer": {"iterations": COUNT, "learning_rate": POSITIVE},
    "training": {"evaluate_every": COUNT, **_RUNTIME},
    "device": DEVICE,
    "results_root": PATH,
    "logger": LOGGER,
}

GPU: Rules = {
    "time_limit": Number(1),
    "margin": Number(),
    "workers": Whole(1, 1000),
    "slice": Number(1),
    "cuda_graph": FLAG,
    "device": Text(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:<n>"),
    "data_root": OrNull(PATH),
    "results_root": PATH,
    "plots_root": PATH,
    "scale": Choice(("paper", "cpu", "smoke")),
    "tests_seconds": Number(),
}
