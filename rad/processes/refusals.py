"""Processes that torchrun has started, and that refuse before they work together: told once.

Each says whether it refuses, in the store by which they meet, and hears it of all the others. The
first that refuses has the words for the user, and none ends before they are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from rad.errors import ReportedElsewhere
from rad.processes import launched

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = timedelta(seconds=120)
"""How long one that refuses waits for the others."""


@contextmanager
def telling(error: Exception) -> Iterator[bool]:
    """Whether this process, which ends with that error, tells it to the user, within.

    It leaves with the others, and tells where they do not come.
    """
    if isinstance(error, ReportedElsewhere) or launched.count() == 1 or _work_together():
        yield not isinstance(error, ReportedElsewhere)
        return
    try:
        tells = _first_refusal(refuses=True) == launched.rank()
    except RuntimeError:
        tells = True
    try:
        yield tells
    finally:
        _leave()


def met() -> tuple[Store, int, int]:
    """The store of all processes, this one's rank and their count, once none of them refuses.

    Raises:
        ReportedElsewhere: another one refuses, and has told it.
        RuntimeError: they do not find each other.
    """
    if launched.count() > 1:
        first = _first_refusal(refuses=False)
        if first is not None:
            _leave()
            raise ReportedElsewhere(f"process {first} refuses what is asked")
    return _store(), launched.rank(), launched.count()


def _work_together() -> bool:
    from torch import distributed

    return distributed.is_initialized()


def _first_refusal(refuses: bool) -> int | None:
    """The first process that refuses, once all have said whether they do."""
    names = _names("refuses")
    _store().set(names[launched.rank()], str(int(refuses)))
    if refuses:
        _store().wait(names, PATIENCE)
    else:
        _store().wait(names)
    return next((rank for rank, name in enumerate(names) if _store().get(name) == b"1"), None)


def _leave() -> None:
    """Wait until all leave; the first, which holds the store, until the others have."""
    with suppress(RuntimeError):
        leaving, gone = _names("leaves"), _names("is gone")
        _store().set(leaving[launched.rank()], "")
        _store().wait(leaving, PATIENCE)
        _store().set(gone[launched.rank()], "")
        if launched.rank() == 0:
            _store().wait(gone, PATIENCE)


def _names(what: str) -> list[str]:
    return [f"rad/{what}/{rank}" for rank in range(launched.count())]


@cache
def _store() -> Store:
    from torch.distributed import rendezvous

    store: Store = next(rendezvous("env://"))[0]
    return store
