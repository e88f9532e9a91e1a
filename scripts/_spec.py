"""What specifications of runs have in common: settings against their schema, paths, texts."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from io import StringIO
from typing import Any

import torch
from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rad import models
from rad.data import model_arguments
from rad.errors import UsageError, first_line
from rad.processes import launched
from rad.processes.signals import stopped_first
from rad.results import RunFolder
from rad.schema import training
from rad.schema.own import TARGET
from rad.schema.rules import Anything, Choice, Named, OrNull, Rules, check, shown
from rad.schema.values import own_device

FLOATS_A_PARAMETER = 4
"""Of Adam: weight, gradient, two moments."""

IN_EVERY_PATH = ("variant", "budget", "seed", "experiment", "experiment_name")

LATER = (
    ("slices", None),
    ("path", None),
    ("dataset.augment", None),
    ("optimizer.fused", False),
    ("training.parallel", None),
)
"""Settings that came after the first results, and what they are where they are off."""


def rules_of(config_name: str | None) -> Rules:
    """The schema of `configs/*/<config_name>.yaml`."""
    name = str(config_name).upper()
    if not hasattr(training, name):
        from rad.schema import measurements

        return getattr(measurements, name)
    return getattr(training, name)


def check_settings(config: DictConfig, rules: Rules, *, others: bool = False) -> None:
    """Refuse settings that are not as the rules say; `others` without rules may be there.

    Raises:
        UsageError: the first of them, in one line.
    """
    if others:
        found = {str(key): Anything() for key in config if key != "scales"}
        rules = found | dict(rules)
    _check_mappings(config, rules)
    _check_scale(config, rules)
    tree = _resolved(config)
    tree.pop("scales", None)
    check("", tree, rules)
    names = ("training.parallel", "training.cuda_graph", "optimizer.name", "optimizer.fused")
    launched.check(*(OmegaConf.select(config, name) for name in names))


def device_of(config: DictConfig) -> torch.device:
    """The device of a run, as `rad.schema.values.own_device`; jobs of a parallel sweep take turns.

    Raises UsageError.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return own_device(config.device)
    hydra = HydraConfig.get()
    one_by_one = hydra.launcher._target_.endswith("BasicLauncher")
    job = 0 if one_by_one or OmegaConf.is_missing(hydra.job, "num") else hydra.job.num
    return own_device(config.device, job)


def _check_mappings(config: DictConfig, rules: Rules) -> None:
    """Others refer to what is in them."""
    for key, rule in rules.items():
        if not isinstance(rule, Mapping | Named) or OmegaConf.is_interpolation(config, key):
            continue
        value = config.get(key)
        if not isinstance(value, DictConfig):
            possible = "its entries"
            if isinstance(rule, Named):
                possible = f"one of {', '.join(rule.rules)}"
            raise UsageError(f"{key} is {shown(value)}; give {possible}")


def _check_scale(config: DictConfig, rules: Rules) -> None:
    scales, scale = config.get("scales"), config.get("scale")
    if isinstance(scales, DictConfig):
        check("scale", scale, Choice([str(name) for name in scales]))
    elif scale is not None and isinstance(rules.get("scale"), OrNull):
        raise UsageError(
            f"scale is {shown(scale)}, and there are no scales here: name an experiment that has "
            f"some, such as experiment=fig5b_mnist scale={scale}, or leave scale out"
        )


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        with stopped_first():
            tree: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a setting"
        raise UsageError(
            f"{key} refers to what is not there ({first_line(error)}); name what is there"
        ) from error
    return {str(key): value for key, value in tree.items()}


def check_fits(config: DictConfig, dataset_options: dict[str, Any]) -> None:
    """Raises UsageError for a model that is not for the data set, or too large for this machine.

    Neither data are read nor weights made. Nothing is said of models and data of one's own.
    """
    options: Any = OmegaConf.to_container(config.model)
    if TARGET in options or TARGET in dataset_options:
        return
    name = options.pop("name")
    about = model_arguments(config.dataset.name, **dataset_options)
    with torch.device("meta"):
        try:
            model = models.build(name, seed=0, **about, **options)
            needed = FLOATS_A_PARAMETER * sum(4 * each.numel() for each in model.parameters())
        except (RuntimeError, OverflowError) as error:
            raise UsageError(
                f"model {options} is not possible ({first_line(error)}): choose other sizes"
            ) from error
    there = memory_of_machine()
    if needed > there:
        raise UsageError(
            f"model={name} with {options} takes {needed / 1e9:,.0f} GB for parameters, gradients "
            f"and moments, and this machine has {there / 1e9:,.0f} GB: choose smaller ones"
        )


def without_defaults(config: DictConfig, overrides: Sequence[str], name: str) -> list[str]:
    """The overrides without those that say what would be so anyway.

    `config` is what Hydra has composed of them and `<name>.yaml`; a number that equals the default
    but for its type, 1 for 1.0, becomes that.
    """
    loader = GlobalHydra.instance().config_loader()
    parsed = [override_of(word) for word in overrides]
    own = [each for each in parsed if not each.get_key_element().startswith("hydra")]
    groups = [each for each in own if is_group(loader, each.key_or_group)]
    values = [each for each in own if each not in groups and each.type == OverrideType.CHANGE]
    said = {id(each) for each in groups if _is_default_choice(each, groups, name, loader)}
    if any(_may_be_default(each) for each in values):
        base, _ = _composed(loader, name, tuple(str(each.input_line) for each in groups))
        for each in filter(_may_be_default, values):
            others = pickle.loads(base)  # a seventh of what a copy takes
            for other in values:
                if other is not each:
                    OmegaConf.update(others, other.key_or_group, other.value(), merge=True)
            usual, now = (_at(tree, each.key_or_group) for tree in (others, config))
            if usual == now and isinstance(usual, bool) == isinstance(now, bool):
                said.add(id(each))
                OmegaConf.update(config, each.key_or_group, usual, merge=False)
    return [str(each.input_line) for each in parsed if id(each) not in said]


def _may_be_default(override: Override) -> bool:
    """Whether it is worth asking: neither in every path nor a runtime setting of all scripts."""
    key = override.key_or_group
    runtime = ("results_root", "data_root", "device", "logger")
    return key not in IN_EVERY_PATH and key.partition(".")[0] not in runtime


def _is_default_choice(
    group: Override, groups: Sequence[Override], name: str, loader: ConfigLoader
) -> bool:
    if not _may_be_default(group) or group.type != OverrideType.CHANGE:
        return False
    others = tuple(str(each.input_line) for each in groups if each is not group)
    _, choices = _composed(loader, name, others)
    return bool(choices.get(group.key_or_group) == group.value())


@lru_cache(maxsize=4096)
def override_of(word: str) -> Override:
    """A word of a command line as Hydra reads it; to be read only."""
    (override,) = OverridesParser.create().parse_overrides([word])
    return override


@lru_cache(maxsize=256)
def is_group(loader: ConfigLoader, key: str) -> bool:
    """Whether the setting is a group, whose choices are files of settings."""
    return bool(loader.get_group_options(key))


@lru_cache(maxsize=32)
def _composed(
    loader: ConfigLoader, name: str, groups: tuple[str, ...]
) -> tuple[bytes, dict[str, str]]:
    """What choices of groups make of `<name>.yaml`, pickled, and all choices, to be read only.

    All jobs of a sweep, which share a loader, ask for the same few, each of which takes longer
    than a tiny run.
    """
    config = compose(name, list(groups), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return pickle.dumps(config), choices


def _at(config: DictConfig, key: str) -> Any:
    """The resolved value; no value that any other equals where it refers to what is not there."""
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return object()


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


def memory_of_machine() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
