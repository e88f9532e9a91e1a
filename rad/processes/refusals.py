"""Processes that torchrun has started, and that refuse before they work together: told once.

Each says whether it refuses, in the store by which they meet, and hears it of all the others. The
first that refuses has the words for the user, and none ends before they are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
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
        store = _store(PATIENCE)
        tells = _first_refusal(store, PATIENCE) == launched.rank()
    except RuntimeError:
        yield True
        return
    try:
        yield tells
    finally:
        _leave(store)


def met() -> tuple[Store, int, int]:
    """The store of all processes, this one's rank and their count, once none of them refuses.

    Raises:
        ReportedElsewhere: another one refuses, and has told it.
        RuntimeError: they do not find each other.
    """
    store = _store()
    if launched.count() > 1:
        first = _first_refusal(store)
        if first is not None:
            _leave(store)
            raise ReportedElsewhere(f"process {first} refuses what is asked")
    return store, launched.rank(), launched.count()


def _work_together() -> bool:
    from torch import distributed

    return distributed.is_initialized()


def _first_refusal(store: Store, patience: timedelta | None = None) -> int | None:
    """The first process that refuses, once all have said whether they do.

    One that refuses waits only so long for what the others say.
    """
    names = _names("refuses")
    store.set(names[launched.rank()], str(int(patience is not None)))
    if patience is None:
        store.wait(names)
    else:
        store.wait(names, patience)
    return next((rank for rank, name in enumerate(names) if store.get(name) == b"1"), None)


def _leave(store: Store) -> None:
    """Wait until all leave; the first, which holds the store, until the others have."""
    with suppress(RuntimeError):
        leaving, gone = _names("leaves"), _names("is gone")
        store.set(leaving[launched.rank()], "")
        store.wait(leaving, PATIENCE)
        store.set(gone[launched.rank()], "")
        if launched.rank() == 0:
            store.wait(gone, PATIENCE)


def _names(what: str) -> list[str]:
    return [f"rad/{what}/{rank}" for rank in range(launched.count())]


def _store(patience: timedelta | None = None) -> Store:
    """Where all processes meet. Without `patience`, it waits for them as long as torch does."""
    from torch.distributed import rendezvous

    meeting = rendezvous("env://") if patience is None else rendezvous("env://", timeout=patience)
    store: Store = next(meeting)[0]
    return store
