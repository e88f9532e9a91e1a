"""Locks that the operating system drops with the process that holds them.

The file of a lock stays where it is, and names its last holder. Links are not followed.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rad.errors import UsageError


class Held(UsageError):
    """Another process, or another part of this one, holds the lock."""


@contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Alone among all that lock `file`, which is made if need be; its folder must be there.

    Raises:
        Held: another has it, and this one is not to `wait`; the message names it.
        UsageError: `file` cannot be written or locked, or is a link.
    """
    if file.is_symlink():
        raise UsageError(f"{file} is a symbolic link, where a lock is to be; remove it")
    lock = FileLock(str(file), timeout=-1 if wait else 0, thread_local=False)
    try:
        lock.acquire(poll_interval=0.005)
    except Timeout as error:
        raise Held(
            f"another process is working on {file.parent}{_holder(file)}; wait until it has ended"
        ) from error
    except (OSError, NotImplementedError) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(
            f"cannot lock {file} ({cause}); make it writable, "
            "or choose a results folder on a file system with locks"
        ) from error
    try:
        _sign(file)
        yield
    finally:
        lock.release()


def _sign(file: Path) -> None:
    """Leave the holder's name in the file, for those who wait; a full disk is no hindrance."""
    try:
        with open(os.open(file, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)), "wb") as stream:
            stream.truncate()
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError:
        return


def _holder(file: Path) -> str:
    try:
        name = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({name.splitlines()[0]})" if name else ""
