"""What specifications of runs have in common: checks, their paths, the text of config.yaml."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from io import StringIO
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from rad.errors import UsageError, first_line
from rad.memory.budget import parse_budget
from rad.results import RunFolder

IN_EVERY_PATH = ("variant", "budget", "seed", "experiment", "experiment_name")

LATER = (("slices", None), ("optimizer.fused", False))
"""Settings that came after the first results, and what they are where they are off."""


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` prefers CUDA. Raises UsageError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:<n>") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:<n>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"device {name!r} is not there ({count} CUDA devices); use device=auto")
    return device


def check_budget(budget: Any) -> None:
    """Raises UsageError for what is no memory budget."""
    if not isinstance(budget, str | int | float):
        raise UsageError(f"budget {budget} is not a memory budget: give one number or size")
    parse_budget(budget)


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raises UsageError for a value that is none of the choices."""
    if value not in choices:
        raise UsageError(f"unknown {key} {value!r}; choose one of {', '.join(choices)}")


def check_listed(config: DictConfig, *names: str) -> None:
    """Raises UsageError for a setting that is no list, or an empty one."""
    for name in names:
        value = OmegaConf.select(config, name)
        if not isinstance(value, ListConfig) or len(value) == 0:
            raise UsageError(f"{name} is {value}; give a list of one or more: {name}=[<a>,<b>]")


def saved_config(folder: RunFolder) -> DictConfig:
    """The configuration of a finished run. Raises UsageError."""
    file, text = folder.config_file, folder.config_text()
    try:
        saved = OmegaConf.load(StringIO(text))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"cannot read {file} ({first_line(error)}); restore that file") from error
    if not isinstance(saved, DictConfig):
        raise UsageError(f"{file} holds no settings; restore that file")
    return saved


def check_seed(seed: Any) -> int:
    """The seed. Raises UsageError for what is none."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UsageError(f"seed is {seed!r}; give a whole number of at least 0")
    return seed


def check_slices(size: Any) -> None:
    """Raises UsageError for what is no number of examples to work on at a time, or null."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise UsageError(f"slices is {size!r}; give a whole number of at least 1, or null")


def check_runs_per_process(count: Any) -> int:
    """The number of runs that train in one process. Raises UsageError for what is none."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"runs_per_process is {count!r}; give a whole number of at least 1")
    return count


def path_overrides(
    config: DictConfig,
    overrides: Sequence[str],
    runtime: Collection[str],
    *,
    named: Collection[str] = (),
    script: str,
    no_effect: str = "no effect",
) -> list[str]:
    """`key=value` of the overrides that change the outcome and that the path does not name.

    `runtime` are keys, or first words of keys, that change no outcome; `named` are keys that this
    path names, beside those in every path. Values stand as resolved, so that 1e-3 and 0.001 name
    one path.

    Raises:
        UsageError: an override adds or removes a key; the message says that it has `no_effect`,
            and names the script that shows the known keys.
    """
    dropped = {*runtime, *IN_EVERY_PATH, *named}
    kept = set()
    for override in overrides:
        key = override.split("=", 1)[0]
        if key.startswith(("+", "~")) and key != "+experiment":
            raise UsageError(
                f"{override!r} adds or removes a setting, which has {no_effect}; write key=value "
                f"with a known setting (python scripts/{script}.py --cfg job shows them)"
            )
        key = key.lstrip("+")
        if key not in dropped and key.split(".")[0] not in runtime:
            kept.add(_canonical(config, key, override))
    return sorted(kept)


def _canonical(config: DictConfig, key: str, override: str) -> str:
    value = OmegaConf.select(config, key)
    if isinstance(value, DictConfig):
        return override
    if isinstance(value, ListConfig):
        value = OmegaConf.to_container(value)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"{key}={text}"


def config_text(config: DictConfig, runtime: Sequence[str], **replaced: Any) -> str:
    """The configuration as YAML, with what the run uses: neither `scales` nor runtime settings.

    `replaced` are values that stand in place of the configuration's. Settings of `LATER` are left
    out where they are off, so that folders from before still fit.
    """
    tree: Any = OmegaConf.to_container(config)
    tree |= replaced
    off = [name for name, value in LATER if OmegaConf.select(config, name) == value]
    for name in ("scales", *runtime, *off):
        *parents, key = name.split(".")
        node = tree
        for parent in parents:
            node = node.get(parent, {})
        node.pop(key, None)
    return OmegaConf.to_yaml(OmegaConf.create(tree))
