"""The exact rivals of sketches: the batch in parts, and every block run again for backward."""

from __future__ import annotations

from collections import Counter

from torch import nn

from rad.errors import UsageError, first_line
from rad.nn.kinds import kind_of
from rad.planning.limits import TooSmall
from rad.planning.probe import Trial
from rad.planning.recomputation import is_faithful
from rad.planning.uniform import largest_batch
from rad.sketches import Identity

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""What holds blocks and is none."""


def blocks(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's blocks: modules made of others, with another one of their class.

    Containers are none, nor is what lies inside a block.
    """
    composed = {n: m for n, m in model.named_modules() if n and any(m.children())}
    inner = {n: m for n, m in composed.items() if not isinstance(m, CONTAINERS)}
    alike = Counter(kind_of(module) for module in inner.values())
    found: list[str] = []
    for name, module in inner.items():  # the outer before the inner
        inside = any(name.startswith(f"{block}.") for block in found)
        if alike[kind_of(module)] > 1 and not inside:
            found.append(name)
    return tuple(found)


def with_blocks_recomputed(trial: Trial) -> Trial:
    """A trial in which every block is recomputed.

    Raises UsageError where there is no block, and where a block that runs twice gives another
    gradient.
    """
    names = blocks(trial.model)
    if not names:
        raise UsageError(
            "checkpointing recomputes blocks, modules made of others and alike, of which this "
            "model has none: choose variant=accumulation, or a model with blocks (gpt, resnet, vit)"
        )
    again = trial.recomputing(names)
    if not is_faithful(again):
        raise UsageError(
            "checkpointing does not give this model's gradient: a block does something else when "
            "it runs for the second time: choose variant=accumulation"
        )
    return again


def largest_part(trial: Trial, bytes_: int | None) -> int | TooSmall:
    """The examples in a part of the full batch, in as few parts, as even as can be, as fit.

    Raises UsageError where the model does not run on the smaller ones of them.
    """
    full = trial.full_batch
    if bytes_ is None or trial.total_bytes(Identity(), full) <= bytes_:
        return full
    fits = largest_batch(trial, bytes_)
    if isinstance(fits, TooSmall):
        return fits
    count = -(-full // fits)
    try:
        trial.total_bytes(Identity(), full // count)
    except Exception as error:  # whatever the user's model and loss may raise
        raise UsageError(
            f"a batch of {full} in {count} parts has one of {full // count}, on which the model "
            f"does not run ({first_line(error)}): choose a batch that is a multiple of {fits}"
        ) from error
    return -(-full // count)
