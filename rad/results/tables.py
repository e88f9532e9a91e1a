"""Runs read back from disk as data frames, and tables written with their provenance."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rad.errors import UsageError
from rad.results.files import write_atomic
from rad.results.folder import RunFolder, component


def write_table(
    file: Path,
    table: pd.DataFrame,
    summary: Mapping[str, Any] | None,
    *,
    setting: str = "output",
    float_format: str | None = None,
) -> Path:
    """Write `file` (CSV) and the summary beside it (JSON), each whole or not at all.

    Without a summary the one that lies there stays. `float_format` is that of
    `DataFrame.to_csv`. Errors are those of `make_folder` and `write_atomic`.
    """
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n", float_format=float_format)
    make_folder(file.parent, setting)
    write_atomic(file, text.getvalue().encode())
    if summary is not None:
        write_atomic(file.with_suffix(".json"), (json.dumps(summary, indent=2) + "\n").encode())
    return file


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
        UsageError: the experiment has no finished run.
    """
    folder = Path(root) / component(experiment)
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
