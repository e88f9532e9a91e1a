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
    name = signal.Signals(number).name
    line = f"stopped by {name}; the same command goes on with what is unfinished"
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stopping() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped`, where they are not ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


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
    for ending in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(ending) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(ending, _leave)
