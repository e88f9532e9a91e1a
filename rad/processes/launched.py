"""Processes that torchrun has started to work together, as their environment tells."""

from __future__ import annotations

import os

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def count() -> int:
    """How many have been started; 1 where there is none but this one."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """This one's number among them."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This one's number among those on this machine."""
    return _number("LOCAL_RANK", 0)


def is_launched() -> bool:
    """Whether all that they need to meet is there."""
    return all(os.environ.get(name) for name in NAMES)


def _number(name: str, alone: int) -> int:
    word = os.environ.get(name, "")
    return int(word) if is_launched() and word.isdigit() else alone
