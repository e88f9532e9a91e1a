"""Runs read back from disk as data frames."""

import json
from pathlib import Path

import pandas as pd

from rad.errors import UsageError
from rad.results.folder import RunFolder, component


def summaries(root: str | Path, experiment: str) -> pd.DataFrame:
    """One row a finished run of `experiment`, in the order of the paths.

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
