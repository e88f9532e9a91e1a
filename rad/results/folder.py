"""The folder of a run: its path, its lock and its files.

A run's folder is a function of its configuration. Files in it are written whole or not at all,
and a lock that the operating system drops with the process keeps a second one out.
"""

import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rad.errors import UsageError, first_line
from rad.results.files import digest, write_atomic
from rad.results.locks import locked
from rad.results.summary import disagreement, parse, signed

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
        self.previous_checkpoint_file = self.path / "checkpoint.previous.pt"

    def finished(self) -> bool:
        """Whether the run has left a summary that is whole, and the files that it vouches for."""
        return self.summary_file.exists() and self._examine()[1] is None

    def summary(self) -> dict[str, Any]:
        """The fields of summary.json, once it and what it vouches for are found to be whole.

        Raises:
            UsageError: there is no summary, or one of the run's files is damaged.
        """
        if not self.summary_file.exists():
            raise UsageError(
                f"{self.path} holds no finished run (there is no summary.json): finish it, or "
                "choose another folder"
            )
        found, problem = self._examine()
        if problem is not None:
            raise UsageError(f"{problem}; {self._remedy()}")
        return found

    def config_text(self) -> str:
        """What config.yaml of a finished run holds, once it is found to be whole.

        Raises:
            UsageError: as `summary`, or the configuration is damaged.
        """
        found, text = self.summary(), ""
        try:
            data = self.config_file.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            cause = first_line(error)
            raise UsageError(
                f"cannot read {self.config_file} ({cause}); {self._remedy()}"
            ) from error
        if not _matches(found, self.config_file, lambda: data):
            raise UsageError(
                f"{self.config_file} does not match its digest in summary.json; {self._remedy()}"
            )
        return text

    def _remedy(self) -> str:
        return f"restore that file, or delete {self.path} and run it again"

    def _examine(self) -> tuple[dict[str, Any], str | None]:
        """What summary.json holds, and what is wrong with the files of the finished run."""
        try:
            found, problem = parse(self.summary_file.read_bytes())
            if problem is not None:
                return found, f"{self.summary_file} {problem}"
            if "sha256" not in found:
                problem = disagreement(found, self.metrics_file.read_bytes())
                return found, None if problem is None else f"{self.metrics_file} {problem}"
            if not _matches(found, self.metrics_file, self.metrics_file.read_bytes):
                return found, f"{self.metrics_file} does not match its digest in summary.json"
        except OSError as error:
            return {}, f"{error.filename} cannot be read ({error.strerror})"
        return found, None

    @contextmanager
    def open(self, config_text: str) -> Iterator["RunFolder"]:
        """Hold the folder for the run that `config_text` (YAML) describes; write it if absent.

        Raises:
            UsageError: the folder cannot be written, another process holds it (`Held`), it belongs
                to another configuration, or it holds a finished run that is damaged and that no
                checkpoint brings back. Files of runs that stand there are untouched.
        """
        self._make()
        with locked(self.path / ".lock"):
            self._claim(config_text)
            yield self

    def write_metrics(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Write metrics.csv: None and absent values are empty, floats round-trip exactly."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.metrics_file, text.getvalue().encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which marks the run as finished, with the digests of its files.

        The older checkpoint is of no use from then on, and goes.

        Raises:
            ValueError: a value is NaN or infinite, which JSON cannot hold.
        """
        files = (self.metrics_file, self.config_file)
        own = {file.name: digest(file.read_bytes()) for file in files if file.exists()}
        fields = {**summary, "digests": {**summary.get("digests", {}), **own}}
        text = json.dumps(signed(fields), indent=2, allow_nan=False)
        write_atomic(self.summary_file, f"{text}\n".encode())
        self.previous_checkpoint_file.unlink(missing_ok=True)

    def _make(self) -> None:
        """Make the folder if need be, and see that it can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UsageError(
                f"cannot write to the results folder {self.path} ({error.strerror}); "
                "make it writable or choose another results folder"
            ) from error

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
        self._check_end()

    def _check_end(self) -> None:
        """A damaged end of the run is made again from a checkpoint, or else refused."""
        if not self.summary_file.exists():
            return
        problem = self._examine()[1]
        if problem is None:
            return
        if not self.checkpoint_file.exists():
            raise UsageError(f"{problem}; {self._remedy()}")
        print(f"{problem}; the run ends again from its checkpoint", file=sys.stderr)


def _matches(summary: Mapping[str, Any], file: Path, read: Callable[[], bytes]) -> bool:
    """Whether a file is the one whose digest the summary holds, if it holds one."""
    recorded = summary.get("digests", {}).get(file.name)
    return recorded is None or digest(read()) == recorded


def difference(there: str, here: str, defaults: Mapping[str, Any] | None = None) -> str:
    """The top-level keys in which two YAML texts differ, with both values where scalar.

    What they mean is compared, comments and layout aside. A key that is absent there, where there
    was no such setting yet, is no difference if it has its default here.

    Raises:
        UsageError: a text that is no YAML mapping.
    """
    old, new = _parsed(there), _parsed(here)
    words = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if before is ABSENT and key in (defaults or {}) and after == (defaults or {})[key]:
            continue
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
