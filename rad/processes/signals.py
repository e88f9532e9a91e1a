"""Ctrl-C and SIGTERM end a program with one line and status 128 + signal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rad.errors import UsageError
from rad.processes import launched

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals with which users end programs."""


class Stopped(BaseException):
    """A signal that ends the program."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def leave(number: int) -> NoReturn:
    """Print the one line about a program that a signal ends, and end it."""
    _tell(number)
    sys.exit(128 + number)


def _tell(number: int) -> None:
    if launched.rank() > 0:  # another process of the run tells it
        return
    name = signal.Signals(number).name
    line = f"stopped by {name}; the same command goes on with what is unfinished"
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stopping() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped`, where they are not ignored."""
    before = {number: signal.getsignal(number) for number in ENDING}
    raising = _Raising()
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, raising)
    try:
        with stopped_first():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Raising:
    """A handler of signals; it remembers the one that it has raised as `Stopped`."""

    number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        self.number = number
        raise Stopped(number)


@contextmanager
def stopped_first() -> Iterator[None]:
    """Where `stopping` has raised `Stopped`, it leaves, and no library's error in its place.

    A signal can come between any two lines of a library, whose `finally` may then fail, so that
    its own error hides the signal. A UsageError stays: what the program saves at a signal may not
    be writable.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception:
        for handler in map(signal.getsignal, ENDING):
            if isinstance(handler, _Raising) and handler.number is not None:
                raise Stopped(handler.number) from None
        raise


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """For while modules load: some of them would swallow an exception."""
    _tell(number)
    os._exit(128 + number)


def end_while_loading(folder: Path) -> None:
    """Let signals end this process so while it loads modules, if it is a script of that folder.

    Tests and workers that load such a script are left as they are.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or Path(file).resolve().parent != folder:
        return
    for ending in ENDING:
        if signal.getsignal(ending) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(ending, _leave)
