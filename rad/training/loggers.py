"""Where rows go beside metrics.csv."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rad.errors import UsageError

MODES = ("online", "offline", "disabled")


class Logger(Protocol):
    """Takes the rows of metrics.csv as they come; None stands for a value not evaluated.

    A run that resumes gives again all rows from the first on, then goes on.
    """

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
    run goes on with the run on the server. `mode` is online, offline (records lie in
    `<directory>/wandb`; `wandb sync <directory>/wandb` uploads them) or disabled (wandb is not
    even imported).

    Each offline record holds its run from the first row on, as wandb can join no two records: of
    several with one id it uploads the later over the earlier. With the first row of a record the
    earlier ones of its run are marked as synced, so that `wandb sync` passes them over.

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
        self._supersedes = mode == "offline"
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
                resume="allow" if mode == "online" else None,
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
        """Record what was evaluated, at step `iteration`, unless the server has that step."""
        if self._run is None or row["iteration"] < self._run.starting_step:
            return
        values = {key: value for key, value in row.items() if value is not None}
        self._run.log(values, step=row["iteration"])
        if self._supersedes:
            self._pass_over_earlier()
            self._supersedes = False

    def _pass_over_earlier(self) -> None:
        """Mark the earlier records of this run as synced."""
        own = Path(self._run.settings.sync_file)
        for record in own.parents[1].glob(f"offline-run-*/{own.name}"):
            if not record.samefile(own):
                record.with_suffix(".wandb.synced").touch()

    def finish(self) -> None:
        """Close the record. A second call does nothing."""
        if self._run is not None:
            self._run.finish()
            self._run = None
