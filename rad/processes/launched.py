"""Processes that torchrun has started to work together, as their environment tells."""

from __future__ import annotations

import os

from rad.errors import UsageError

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def count() -> int:
    """How many have been started; 1 where there is none but this one."""
    return _number("WORLD_SIZE", 1)


def local_count() -> int:
    """How many of them are on this machine."""
    return _number("LOCAL_WORLD_SIZE", count())


def rank() -> int:
    """This one's number among them."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This one's number among those on this machine."""
    return _number("LOCAL_RANK", 0)


def is_launched() -> bool:
    """Whether all that they need to meet is there."""
    return all(os.environ.get(name) for name in NAMES)


def check(
    parallel: str | None,
    cuda_graph: bool | None,
    optimizer: str | None = None,
    fused: bool | None = None,
) -> None:
    """Several processes train one run together where that is asked for, and only there.

    The arguments are the settings of those names in `training`, and `optimizer.name` and
    `optimizer.fused`; None where a script has none.

    Raises:
        UsageError: they do not go together, or not with what has been started.
    """
    if count() > 1 and parallel is None:
        raise UsageError(
            f"torchrun has started {count()} processes: set training.parallel=ddp or fsdp, with "
            "which they train one run of scripts/train.py together, or start without torchrun"
        )
    if parallel is not None and not is_launched():
        raise UsageError(
            f"training.parallel={parallel} needs torchrun: start torchrun --nproc-per-node 2 "
            f"scripts/train.py training.parallel={parallel} ..."
        )
    if parallel is not None and cuda_graph:
        raise UsageError(
            "training.cuda_graph=true captures the updates of one process: leave it out, or "
            "training.parallel"
        )
    if parallel == "fsdp" and optimizer == "sgd" and fused:
        raise UsageError(
            "training.parallel=fsdp cuts parameters, of which torch's fused SGD takes no parts: "
            "leave optimizer.fused at false, or set training.parallel=ddp"
        )


def _number(name: str, alone: int) -> int:
    word = os.environ.get(name, "")
    return int(word) if is_launched() and word.isdigit() else alone
