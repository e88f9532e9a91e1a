"""Weights & Biases: on its server, or in records on this machine that can be sent there later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rad.errors import UsageError
from rad.training.loggers import HIDDEN

MODES = ("online", "offline", "disabled")
BETTER: Mapping[str, Callable[[float, float], float]] = {
    "loss": min,
    "bits_per_token": min,
    "accuracy": max,
}


class WandbLogger:
    """Weights & Biases.

    `name` is the run's path below the results root. Its hash is the run's id, so that a resumed
    run goes on with the run on the server; shown is `title`, where there is one. Configuration and
    summary carry the `plan`, the summary also the best so far of each metric that is, or ends in,
    one of `BETTER`; columns that are `hidden` get no panel of their own. `mode` is online, offline
    (records lie in `<directory>/wandb`; `wandb sync <directory>/wandb` uploads them) or disabled
    (wandb is not even imported).

    Each offline record holds its run from the first row on, as wandb can join no two records: of
    several with one id it uploads the later over the earlier. `wandb sync` passes over what is
    marked as synced: a record until it holds a later row than the earlier ones of its run, and they
    from then on. So a record that ends within its replay takes no place.

    Runs of one path below different roots have different ids.

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
        root: str | Path = "results",
        *,
        title: str = "",
        job: str = "train",
        tags: Sequence[str] = (),
        plan: Mapping[str, Any] | None = None,
        hidden: Sequence[str] = HIDDEN,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"unknown logger mode {mode!r}; choose one of {', '.join(MODES)}")
        self._run: Any = None
        self._own: Path | None = None
        self._others: list[Path] = []
        self._last = -1
        if mode == "disabled":
            return
        self._best: dict[str, float] = {}
        remedy = "set logger.mode=offline or logger.mode=disabled"
        try:
            import wandb
        except ImportError as error:
            raise UsageError(f"wandb is not installed; install it, or {remedy}") from error
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=project,
                name=title or name,
                group=group,
                job_type=job,
                tags=list(tags),
                config={**(config or {}), **({"plan": dict(plan)} if plan else {})},
                id=_run_id(project, name, root),
                resume="allow" if mode == "online" else None,
                mode="online" if mode == "online" else "offline",
                dir=str(Path(directory).resolve()),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
            )
            self._run.summary.update({f"plan.{key}": each for key, each in (plan or {}).items()})
            for column in hidden:
                self._run.define_metric(column, hidden=True)
            if mode == "offline":
                self._stand_behind_earlier()
        except (wandb.Error, OSError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"wandb cannot start ({cause}); log in with it, or {remedy}"
            ) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Record what was evaluated, at step `iteration`, unless the server has that step."""
        if self._run is None:
            return
        self._keep_best(row)
        if row["iteration"] < self._run.starting_step:
            return
        values = {key: value for key, value in row.items() if value is not None}
        self._run.log(values, step=row["iteration"])
        if self._own is not None:
            _last_row(self._own).write_text(str(row["iteration"]))
            if self._others and row["iteration"] >= self._last:
                self._take_the_place()

    def _keep_best(self, row: Mapping[str, Any]) -> None:
        """Note in the summary where a metric is better than before."""
        for name, value in row.items():
            whole, last = name.partition("_")[2], name.rpartition("_")[2]
            metric = whole if whole in BETTER else last
            if value is None or metric not in BETTER or name == "batch_loss":
                continue
            best = BETTER[metric](value, self._best.get(name, value))
            if self._best.get(name) != best:
                self._best[name] = best
                self._run.summary[f"best.{name}"] = best

    def figure(self, name: str, file: Path) -> None:
        """Show the picture in that file (PNG)."""
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Image(str(file))})

    def _stand_behind_earlier(self) -> None:
        """Mark this record as synced where there are earlier ones of its run."""
        self._own = own = Path(self._run.settings.sync_file)
        records = own.parents[1].glob(f"offline-run-*/{own.name}")
        self._others = [record for record in records if record.parent != own.parent]
        rows = [_last_row(record) for record in self._others]
        self._last = max((_number_in(row) for row in rows if row.exists()), default=-1)
        if self._others:
            _marker(own).touch()

    def _take_the_place(self) -> None:
        """Mark the earlier records of this run as synced, and this one no longer."""
        assert self._own is not None
        _marker(self._own).unlink(missing_ok=True)
        for record in self._others:
            _marker(record).touch()
        self._others = []

    def finish(self) -> None:
        """Close the record. A second call does nothing."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _marker(record: Path) -> Path:
    """The file with which `wandb sync` marks a record as synced."""
    return record.with_suffix(".wandb.synced")


def _last_row(record: Path) -> Path:
    """The file beside a record that holds the iteration of its last row."""
    return record.with_suffix(".wandb.last_row")


def _number_in(file: Path) -> int:
    """The number that a file holds; -1 where a crash or damage left none."""
    text = file.read_bytes()
    return int(text) if text.isdigit() else -1


def _run_id(project: str, name: str, root: str | Path) -> str:
    """Runs below the usual root have ids that do not name it."""
    where = "" if Path(root) == Path("results") else f"{Path(root).as_posix()}/"
    return hashlib.sha256(f"{project}/{where}{name}".encode()).hexdigest()[:16]
