"""Train a run again from its config.yaml and compare: `python scripts/repeat.py FOLDER`.

At the same commit, on the same kind of processor, with the number of threads that summary.json
records, metrics.csv comes out the same, timing aside. Elsewhere the order of sums may be another,
and training makes more of the difference in the last digits. It says first which of the two holds.
Exit status 1 where the rows differ. An interrupted repetition resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _cli  # first: see there
import pandas as pd
import torch
from _run_spec import RunSpec, defaults, read
from _spec import saved_config
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from train import train_specs

from rad.errors import UsageError
from rad.results import RunFolder, difference, machine, provenance

GROUPS = ("model", "dataset", "variant")


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    options = _parser().parse_args(arguments)
    recorded = RunFolder(options.run)
    if not recorded.summary_file.exists():
        raise UsageError(f"{options.run} holds no finished run; name a folder with summary.json")
    summary = recorded.summary()
    if summary["model"] == "reaction_diffusion":
        raise UsageError(
            f"{options.run} is no run of scripts/train.py; run its own command again: "
            f"{summary['command']} results_root={options.output}"
        )
    spec = spec_of(recorded, options.device, options.data_root, options.output)
    changed = difference(recorded.config_file.read_text(), spec.text, defaults())
    if changed:
        print(f"of another version of this program: its configuration differs in {changed}")
    torch.set_num_threads(summary["threads"])
    print(_promise(summary, spec.device))
    train_specs([spec])
    repeated = RunFolder(spec.path)
    digests = [run.summary().get("digests", {}).get("data") for run in (recorded, repeated)]
    if None not in digests and digests[0] != digests[1]:
        print("the data set is another one than was recorded")
    differing = _differing(recorded, repeated)
    print(f"metrics.csv differs: {differing}" if differing else "metrics.csv is the same")
    return 1 if differing else 0


def spec_of(recorded: RunFolder, device: str, data_root: str | None, output: str) -> RunSpec:
    """The recorded run, with runtime settings of here and a folder below `output`."""
    saved = saved_config(recorded)
    with initialize_config_dir(str(_cli.CONFIGS / "train"), version_base="1.3"):
        config = compose("train", overrides=[f"{group}={saved[group].name}" for group in GROUPS])
    runtime: dict[str, Any] = {
        "device": device,
        "data_root": data_root,
        "results_root": output,
        "logger": {"mode": "disabled"},
    }
    merged = OmegaConf.merge(config, saved, runtime)
    assert isinstance(merged, DictConfig)
    if merged.scale is not None:
        with open_dict(merged):
            merged.scales = {merged.scale: {}}  # what it sets is saved
    names = recorded.path.resolve().parts[-4:]
    return replace(read(merged, []), path=Path(output, *names))


def _promise(summary: dict[str, Any], device: torch.device) -> str:
    """Whether the same rows are to be expected, and why not."""
    here = {**machine(device), "commit": provenance()["commit"]}
    there = {key: summary.get(key, "unknown") for key in here}
    others = [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
    ]
    if not others:
        return "recorded at this commit on such a machine: the rows are to be the same"
    return f"the rows may differ, from the last digits on: {'; '.join(others)}"


def _differing(recorded: RunFolder, repeated: RunFolder) -> str:
    """The first value that differs, timing aside; empty where none does."""
    old, new = (pd.read_csv(run.metrics_file) for run in (recorded, repeated))
    if list(old) != list(new) or len(old) != len(new):
        return f"{len(old)} rows of {list(old)} were recorded, {len(new)} of {list(new)} came out"
    for column in old.columns.drop("seconds"):
        same = (old[column] == new[column]) | (old[column].isna() & new[column].isna())
        if not same.all():
            row = int(same.argmin())
            values = f"{old[column][row]} was recorded, {new[column][row]} came out"
            return f"{column} at iteration {old['iteration'][row]}: {values}; {_ends(old, new)}"
    return ""


def _ends(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """The held-out losses with which two runs end."""
    losses = [rows["test_loss"].dropna().iloc[-1] for rows in (old, new)]
    apart = abs(losses[1] / losses[0] - 1)
    return f"test_loss ends at {losses[0]:.5g} and {losses[1]:.5g}, {apart:.2g} of it apart"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--data-root", default=None, help="where the data lies")
    parser.add_argument("--output", default="outputs/repeat", help="where the repetition goes")
    return parser


if __name__ == "__main__":
    _cli.end(main)
