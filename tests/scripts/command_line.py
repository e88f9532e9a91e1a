"""All words of the command lines: `python tests/scripts/command_line.py` prints them.

A line for each key that `--cfg job` shows (`<script> <key>`), for each choice of a group with the
keys that only it has (`<script> <group>=<choice> <key>`), and for each option of the scripts that
do without Hydra. What a data set has been tuned to are values, and experiments sets of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from calling import CONFIGS, SCRIPTS, home_of
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

VALUES = ("dataset.tuned",)


def words() -> list[str]:
    """Sorted lines."""
    lines: set[str] = set()
    for file in SCRIPTS.glob("*.py"):
        if file.stem.startswith("_"):
            continue
        parser = getattr(importlib.import_module(file.stem), "_parser", None)
        found = _options(file.stem, parser()) if parser else _keys(file.stem)
        lines |= {f"{file.stem} {word}" for word in found}
    return sorted(lines)


def _options(script: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """What the parser knows, and the settings of a file that has the script's name."""
    for action in parser._actions:
        yield from action.option_strings or [action.dest]
    settings = CONFIGS / f"{script}.yaml"
    if settings.exists():
        yield from _mapping(OmegaConf.load(settings))


def _keys(script: str) -> Iterator[str]:
    folder, name = home_of(script)
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = _mapping(compose(name))
    always = set(_leaves(config))
    yield from always
    for group in folder.iterdir():
        if not group.is_dir() or group.name not in config:
            continue
        for choice in group.glob("*.yaml"):
            yield f"{group.name}={choice.stem}"
            keys = _leaves(_mapping(OmegaConf.load(choice)), f"{group.name}.")
            yield from (f"{group.name}={choice.stem} {key}" for key in set(keys) - always)


def _mapping(config: Any) -> dict[str, Any]:
    tree = OmegaConf.to_container(config)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _leaves(tree: Any, above: str = "") -> Iterator[str]:
    """Dotted keys of what is no mapping, and of empty ones."""
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value and name not in VALUES:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPTS))
    print("\n".join(words()))
