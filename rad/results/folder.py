"""The folder of a run: its path, its lock and its files.

A run's folder is a function of its configuration. Files in it are written whole or not at all,
and a lock that the operating system drops with the process keeps a second one out.
"""

import csv
import fcntl
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rad.errors import UsageError
from rad.results.files import write_atomic

ABSENT = "absent"


def run_path(
    root: str | Path,
    experiment: str,
    variant: str,
    budget: float | str | None,
    overrides: Sequence[str],
    seed: int,
) -> Path:
    """`<root>/<experiment>/<variant>/budget=<b>[,<key>=<value>...]/seed=<n>`.

    `overrides` are the `key=value` settings that change the outcome and that the path does not
    hold otherwise; their order and Hydra's leading `+` do not matter. `baseline` spends no
    budget, so its budget is always `full`. Spaces become `_`, slashes `%2F`.
    """
    spent = "full" if variant == "baseline" or budget is None else _number(budget)
    settings = [f"budget={spent}", *sorted(override.lstrip("+") for override in overrides)]
    names = (experiment, variant, ",".join(settings), f"seed={seed}")
    return Path(root).joinpath(*(component(name) for name in names))


def _number(budget: float | str) -> str:
    whole = isinstance(budget, float) and budget.is_integer()
    return str(int(budget) if whole else budget)


def component(name: str) -> str:
    """A name as one part of a path. Raises UsageError for one that leaves nothing, or a dot."""
    safe = re.sub(r"\s", "_", name.strip()).replace("/", "%2F").replace("\0", "")
    if safe in ("", ".", ".."):
        raise UsageError(f"{name!r} cannot name a results folder; choose a name with letters")
    return safe


class RunFolder:
    """The folder of one run. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.summary_file = self.path / "summary.json"
        self.checkpoint_file = self.path / "checkpoint.pt"

    def finished(self) -> bool:
        """Whether the run has left a readable summary."""
        try:
            return isinstance(json.loads(self.summary_file.read_bytes()), dict)
        except (OSError, ValueError):
            return False

    @contextmanager
    def open(self, config_text: str) -> Iterator["RunFolder"]:
        """Hold the folder for the run that `config_text` (YAML) describes; write it if absent.

        Raises:
            UsageError: the folder cannot be written, another process holds it, or it belongs to
                another configuration. Files of runs that stand there are untouched.
        """
        lock = self._lock()
        try:
            self._claim(config_text)
            yield self
        finally:
            os.close(lock)

    def write_metrics(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Write metrics.csv: None and absent values are empty, floats round-trip exactly."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.metrics_file, text.getvalue().encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which marks the run as finished.

        Raises:
            ValueError: a value is NaN or infinite, which JSON cannot hold.
        """
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_atomic(self.summary_file, f"{text}\n".encode())

    def _lock(self) -> int:
        """Lock the folder, made if need be; closing the descriptor unlocks it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(
                f"cannot write to the results folder {self.path} ({error.strerror}); "
                "make it writable or choose another results folder"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                message = f"another process is working on {self.path}; wait until it has ended"
            else:
                message = (
                    f"cannot lock {self.path} ({error.strerror}); "
                    "choose a results folder on a file system with locks"
                )
            raise UsageError(message) from error
        return descriptor

    def _claim(self, config_text: str) -> None:
        if not self.config_file.exists():
            write_atomic(self.config_file, config_text.encode())
            return
        try:
            there = self.config_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read {self.config_file} ({error}); delete {self.path} to run afresh"
            ) from error
        differing = difference(there, config_text)
        if differing:
            raise UsageError(
                f"{self.path} holds a run of another configuration (differing: {differing}); "
                "delete that folder, or choose another experiment name or results folder"
            )


def difference(there: str, here: str) -> str:
    """The top-level keys in which two YAML texts differ, with both values where scalar.

    What they mean is compared, comments and layout aside.

    Raises:
        UsageError: a text that is no YAML mapping.
    """
    old, new = _parsed(there), _parsed(here)
    words = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if before != after or str(before) != str(after):
            scalars = not any(isinstance(value, dict | list) for value in (before, after))
            values = f" ({_shown(before)} there, {_shown(after)} here)" if scalars else ""
            words.append(f"{key}{values}")
    return ", ".join(words)


def _parsed(text: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        cause = " ".join(str(error).split())[:200]
        raise UsageError(f"a configuration is no YAML ({cause}); restore it") from error
    if not isinstance(tree, dict):
        raise UsageError(f"a configuration is no mapping, but {tree!r:.60}; restore it")
    return {str(key): value for key, value in tree.items()}


def _shown(value: Any) -> str:
    """As YAML has it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
