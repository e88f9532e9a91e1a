"""The settings of a script against its schema, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import _schema
from _rules import Anything, Choice, Named, Rules, check, shown
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rad.errors import UsageError, first_line


def rules_of(config_name: str | None) -> Rules:
    """The schema of `configs/*/<config_name>.yaml`."""
    name = str(config_name).upper()
    if not hasattr(_schema, name):
        import _schema_of_measurements as measurements

        return getattr(measurements, name)
    return getattr(_schema, name)


def check_settings(config: DictConfig, rules: Rules, *, others: bool = False) -> None:
    """Refuse settings that are not as the rules say; `others` without rules may be there.

    Raises:
        UsageError: the first of them, in one line.
    """
    if others:
        found = {str(key): Anything() for key in config if key != "scales"}
        rules = found | dict(rules)
    _check_mappings(config, rules)
    _check_scale(config)
    tree = _resolved(config)
    tree.pop("scales", None)
    check("", tree, rules)


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


def _check_scale(config: DictConfig) -> None:
    scales = config.get("scales")
    if isinstance(scales, DictConfig):
        check("scale", config.get("scale"), Choice([str(name) for name in scales]))


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        tree: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a setting"
        raise UsageError(f"{key} refers to what is not there ({first_line(error)})") from error
    return {str(key): value for key, value in tree.items()}
