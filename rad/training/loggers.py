"""Where rows go beside metrics.csv."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rad.errors import UsageError

MODES = ("online", "offline", "disabled")


class Logger(Protocol):
    """Takes the rows of metrics.csv as they come; None stands for a value not evaluated."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Record one row; its `iteration` counts the updates done."""

    def finish(self) -> None:
        """Close the record. A second call does nothing."""


class NullLogger:
    """Records nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Ignore the row."""

    def finish(self) -> None:
        """Nothing to close."""


class WandbLogger:
    """Weights & Biases.

    `name` is the run's path below the results root. Its hash is the run's id, so that a resumed
    run continues its record. `mode` is online, offline (records lie in `<directory>/wandb`, for
    `wandb sync`) or disabled (wandb is not even imported).

    Raises:
        UsageError: unknown mode, wandb not installed, or no access to the server.
    """

    def __init__(
        self,
        project: str,
        name: str,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: str = "offline",
        directory: str | Path = ".",
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"unknown logger mode {mode!r}; choose one of {', '.join(MODES)}")
        self._run: Any = None
        if mode == "disabled":
            return
        remedy = "set logger.mode to offline or disabled"
        try:
            import wandb
        except ImportError as error:
            raise UsageError(f"wandb is not installed; install it, or {remedy}") from error
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=project,
                name=name,
                group=group,
                config=dict(config or {}),
                id=hashlib.sha256(f"{project}/{name}".encode()).hexdigest()[:16],
                resume="allow",
                mode="online" if mode == "online" else "offline",
                dir=str(Path(directory).resolve()),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
            )
        except (wandb.Error, OSError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"wandb cannot start ({cause}); log in with it, or {remedy}"
            ) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Record what was evaluated, at step `iteration`."""
        if self._run is not None:
            values = {key: value for key, value in row.items() if value is not None}
            self._run.log(values, step=row["iteration"])

    def finish(self) -> None:
        """Close the record. A second call does nothing."""
        if self._run is not None:
            self._run.finish()
            self._run = None
