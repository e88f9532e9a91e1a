"""Runs read back from disk as data frames, and tables written with their provenance."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rad.errors import UsageError
from rad.results.files import digest, write_together
from rad.results.folder import RunFolder, component


class NoRuns(UsageError):
    """An experiment without a finished run."""


def write_table(
    file: Path,
    table: pd.DataFrame,
    summary: Mapping[str, Any] | None,
    *,
    setting: str = "output",
    float_format: str | None = None,
) -> Path:
    """Write `file` (CSV) and the summary beside it (JSON), with the table's digest.

    Neither is touched before both have been written. Without a summary the one that lies there
    stays, but for the digest. `float_format` is that of `DataFrame.to_csv`. Errors are those of
    `make_folder` and `write_together`.

    Raises:
        UsageError: a table without rows.
    """
    if table.empty:
        raise UsageError(f"there is nothing to write to {file}, which stays as it is: measure more")
    make_folder(file.parent, setting)
    beside, data = file.with_suffix(".json"), _text(table, float_format).encode()
    files = {file: data}
    if summary is None and beside.exists():
        summary = _read_json(beside)
    if summary is not None:
        digests = {"digests": {file.name: digest(data)}}
        files[beside] = (json.dumps({**summary, **digests}, indent=2) + "\n").encode()
    write_together(files)
    return file


def write_partial(
    file: Path, table: pd.DataFrame, summary: Mapping[str, Any], *, setting: str = "output"
) -> Path:
    """Write what there is so far of a table to `<name>.partial.csv`, as `write_table` does."""
    return write_table(_partial(file), table, summary, setting=setting)


def read_partial(file: Path, summary: Mapping[str, Any]) -> pd.DataFrame | None:
    """What `write_partial` has left for that table and a summary equal to this one; else None.

    None, too, where the commit has changes that are in no commit, so that code may differ.
    Raises UsageError where what is left is damaged.
    """
    part = _partial(file)
    beside = part.with_suffix(".json")
    if not (part.exists() and beside.exists()) or str(summary["commit"]).endswith("-dirty"):
        return None
    left = {key: value for key, value in _read_json(beside).items() if key != "digests"}
    if left != dict(summary):
        return None
    return read_table(part, f"delete it and {beside.name}")


def write_whole(
    file: Path, table: pd.DataFrame, summary: Mapping[str, Any], *, setting: str = "output"
) -> Path:
    """`write_table`, at the end of which what `write_partial` left is removed."""
    write_table(file, table, summary, setting=setting)
    for part in (_partial(file), _partial(file).with_suffix(".json")):
        part.unlink(missing_ok=True)
    return file


def _partial(file: Path) -> Path:
    return file.with_suffix(f".partial{file.suffix}")


def as_written(table: pd.DataFrame, float_format: str | None = None) -> pd.DataFrame:
    """The table as `read_table` gives it back once it has been written."""
    return pd.read_csv(io.StringIO(_text(table, float_format)))


def _text(table: pd.DataFrame, float_format: str | None) -> str:
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n", float_format=float_format)
    return text.getvalue()


def read_table(file: Path, remedy: str = "make it again") -> pd.DataFrame:
    """What `write_table` has written, held against its digest where one stands beside it.

    Raises:
        UsageError: it is missing or damaged; the message ends in the remedy.
    """
    try:
        data, beside = file.read_bytes(), file.with_suffix(".json")
        recorded = _read_json(beside).get("digests", {}) if beside.exists() else {}
        if file.name in recorded and digest(data) != recorded[file.name]:
            raise UsageError(
                f"{file} does not match its digest in {beside.name}; restore it, or {remedy}"
            )
        if not data.endswith(b"\n"):
            raise UsageError(f"{file} is cut off; restore it, or {remedy}")
        table: pd.DataFrame = pd.read_csv(io.BytesIO(data))
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror}); {remedy}") from error
    except UsageError:
        raise
    except ValueError as error:
        cause = " ".join(str(error).split())
        raise UsageError(f"{file} is no table ({cause}); restore it, or {remedy}") from error
    return table


def read_summary(file: Path) -> dict[str, Any]:
    """The summary that `write_table` has written beside a table; empty where there is none."""
    beside = file.with_suffix(".json")
    return _read_json(beside) if beside.exists() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("digests", {}), dict):
        raise UsageError(f"{file} is damaged; restore it, or delete it and the table beside it")
    return found


def make_folder(folder: Path, setting: str = "output") -> None:
    """Make the folder where it is not there.

    Raises:
        UsageError: it cannot be made; the message names the setting that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder} ({error.strerror}); choose {setting}=") from error


def summaries(root: str | Path, experiment: str) -> pd.DataFrame:
    """One row for each finished run of `experiment`, in the order of the paths.

    Nested fields have dotted names (`memory.saved_bytes`, `final.train_loss`); `path` is the
    run's folder.

    Raises:
        UsageError: the experiment has no finished run (`NoRuns`), or one that is damaged.
    """
    folder = Path(root) / component(experiment)
    files = sorted(folder.glob("*/budget=*/seed=*/summary.json"))
    records = [{**RunFolder(file.parent).summary(), "path": str(file.parent)} for file in files]
    if not records:
        raise NoRuns(
            f"no finished run in {folder}; make some first, for example "
            f"python scripts/train.py +experiment={experiment}"
        )
    return pd.json_normalize(records, sep=".")


def metrics(root: str | Path, experiment: str) -> pd.DataFrame:
    """The rows of metrics.csv of every finished run, with `variant, budget, seed, path`.

    Raises:
        UsageError: as `summaries`; or a run without readable metrics.
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
