"""Where runs live on disk, and how they are read back.

A run's folder is a function of its configuration. Files in it are written whole or not at all,
and a lock that the operating system drops with the process keeps a second one out.
"""

import csv
import fcntl
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from rad.errors import UsageError

PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "numba", "pandas", "scikit-learn"),
    *("hydra-core", "optuna"),
)
REPOSITORY = Path(__file__).resolve().parents[1]


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
    hold otherwise; their order and Hydra's leading `+` are of no account. `baseline` spends no
    budget, so its budget is always `full`. Spaces become `_`, slashes `%2F`.
    """
    spent = "full" if variant == "baseline" or budget is None else _number(budget)
    settings = [f"budget={spent}", *sorted(override.lstrip("+") for override in overrides)]
    names = (experiment, variant, ",".join(settings), f"seed={seed}")
    return Path(root).joinpath(*(_component(name) for name in names))


def _number(budget: float | str) -> str:
    whole = isinstance(budget, float) and budget.is_integer()
    return str(int(budget) if whole else budget)


def _component(name: str) -> str:
    safe = re.sub(r"\s", "_", name.strip()).replace("/", "%2F").replace("\0", "")
    if safe in ("", ".", ".."):
        raise UsageError(f"{name!r} cannot name a results folder; choose a name with letters")
    return safe


def write_atomic(file: Path, data: bytes) -> None:
    """Replace `file` by `data`, whole or not at all.

    The caller holds the folder's lock: the temporary file has a fixed name, so that a killed
    process leaves at most one behind, which the next write overwrites.

    Raises:
        UsageError: the file cannot be written; what stood there before is untouched.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise UsageError(
            f"cannot write {file} ({error.strerror}); free space or choose another results folder"
        ) from error


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
    """The top-level keys in which two YAML texts differ, `key (old, new)` for scalars."""
    old, new = _blocks(there), _blocks(here)
    words = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if before != after:
            scalars = "\n" not in before + after
            words.append(f"{key} ({before} there, {after} here)" if scalars else key)
    return ", ".join(words)


def _blocks(text: str) -> dict[str, str]:
    """Each top-level key of a YAML text with everything below it."""
    blocks: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " -":
            blocks[key] = f"{blocks.get(key, '')}\n{line}"
        else:
            key, _, value = line.partition(":")
            blocks[key] = value.strip()
    return blocks


def provenance() -> dict[str, Any]:
    """Versions, commit and command of this process, without machine paths.

    The commit is git's, with `-dirty` where tracked files are changed; outside of a checkout it
    is $RAD_COMMIT, or `unknown`.
    """
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit() or os.environ.get("RAD_COMMIT") or "unknown"
    return {"versions": versions, "commit": commit, "command": _command(sys.argv)}


def _git_commit() -> str | None:
    """None where `rad` does not lie at the top of a git checkout with a commit."""
    if not (REPOSITORY / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _command(arguments: Sequence[str]) -> str:
    """`python scripts/<name>.py ...`; absolute paths outside of the checkout become PATH."""
    program = Path(arguments[0]).resolve()
    inside = program.is_relative_to(REPOSITORY)
    shown = program.relative_to(REPOSITORY).as_posix() if inside else program.name
    local = (argument.replace(f"{REPOSITORY}/", "") for argument in arguments[1:])
    rest = (re.sub(r"(?<![^=,:\[{'\"\s])~?/[^\s,'\"\]}]*", "PATH", argument) for argument in local)
    return shlex.join(["python", shown, *rest])


def summaries(root: str | Path, experiment: str) -> pd.DataFrame:
    """One row a finished run of `experiment`, in the order of the paths.

    Nested fields have dotted names (`memory.saved_bytes`, `final.train_loss`); `path` is the
    run's folder.

    Raises:
        UsageError: the experiment has no finished run.
    """
    folder = Path(root) / _component(experiment)
    files = sorted(folder.glob("*/budget=*/seed=*/summary.json"))
    runs = [RunFolder(file.parent) for file in files]
    records = [
        {**json.loads(run.summary_file.read_bytes()), "path": str(run.path)}
        for run in runs
        if run.finished()
    ]
    if not records:
        raise UsageError(
            f"no finished run in {folder}; make some first, for example "
            f"python scripts/train.py +experiment={experiment}"
        )
    return pd.json_normalize(records, sep=".")


def metrics(root: str | Path, experiment: str) -> pd.DataFrame:
    """The rows of metrics.csv of every finished run, with `variant, budget, seed, path`.

    Raises:
        UsageError: the experiment has no finished run, or one without readable metrics.
    """
    frames = []
    for _, run in summaries(root, experiment).iterrows():
        file = RunFolder(str(run["path"])).metrics_file
        try:
            frame = pd.read_csv(file)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot read {file} ({str(error).strip()}); delete that folder and run it again"
            ) from error
        labels = {key: run[key] for key in ("variant", "budget", "seed", "path")}
        frames.append(frame.assign(**labels))
    return pd.concat(frames, ignore_index=True)
