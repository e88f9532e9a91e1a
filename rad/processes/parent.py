"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.5

GRACE_SECONDS = 60.0
"""To leave a checkpoint: as long as a run may take to come to the end of a stride."""


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Inside, SIGTERM reaches this process once its parent is gone, and later it ends at once.

    torchrun that is killed by SIGKILL leaves its processes training: another start of the same run
    would find it locked.
    """
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            if done.wait(POLL_SECONDS):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not done.wait(GRACE_SECONDS):
            os._exit(128 + signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
