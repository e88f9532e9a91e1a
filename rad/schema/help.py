"""What `--help` prints: a title, the groups of choices, every setting with what it is for."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rad.schema.explained import explanations, leaves, of_choice

WIDTH = 100
_CONSTANTS = {None: "null", True: "true", False: "false"}


def help_text(script: str, title: str, folder: Path, name: str, settings: Mapping[str, Any]) -> str:
    """The help of `scripts/<script>.py`, which runs on `<folder>/<name>.yaml`.

    `title` is the script's docstring, `settings` what the command line and the files come to.
    """
    groups = groups_of(folder, settings)
    words = explanations(folder, name)
    for group in groups:
        chosen = settings.get(group)
        choice = chosen.get("name") if isinstance(chosen, Mapping) else None
        if choice is not None and (folder / group / f"{choice}.yaml").exists():
            words |= of_choice(folder, group, choice)[1]
    parts = [title.strip(), _usage(script, groups)]
    parts += [_group(folder, group, settings.get(group)) for group in groups]
    rows = [(key, value) for key, value in leaves(settings, words) if not _is_name(key, groups)]
    listed = "\n".join(_setting(key, value, words) for key, value in rows if key != "scales")
    parts.append(f"Settings, and what they are here:\n{listed}")
    return "\n\n".join(part for part in parts if part) + "\n"


def groups_of(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """The folders of choices that a script on `folder` has: its settings', and experiments."""
    there = sorted(each.name for each in folder.iterdir() if each.is_dir())
    return [group for group in there if group == "experiment" or group in settings]


def _usage(script: str, groups: Sequence[str]) -> str:
    lines = [f"usage: python scripts/{script}.py [-m] [<setting>=<value> ...]"]
    lines.append("  -m         sweep: each setting may have several values, <setting>=<a>,<b>,...")
    lines.append("  --cfg job  print all settings, as they are with those given, and do nothing")
    if groups:
        lines.append("  --help     with the groups' choices given, explains the settings of those")
    return "\n".join(lines)


def _group(folder: Path, group: str, chosen: Any) -> str:
    """One group: its choices, and what the files say of them."""
    choices = sorted(file.stem for file in (folder / group).glob("*.yaml"))
    here = chosen.get("name") if isinstance(chosen, Mapping) else None
    explained = {each: _about(folder, group, each) for each in choices}
    width = max(map(len, choices)) + 2
    lines = [
        _wrapped(
            f"  {each:{width}}{explained[each]}{' (chosen)' if each == here else ''}", width + 2
        )
        for each in choices
    ]
    return "\n".join([f"{group}=<one of>", *lines])


def _about(folder: Path, group: str, choice: str) -> str:
    if group != "experiment":
        return of_choice(folder, group, choice)[0]
    lines = (folder / group / f"{choice}.yaml").read_text().splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    return next((line for line in comments if not line.startswith("@package")), "")


def _is_name(key: str, groups: Sequence[str]) -> bool:
    group, _, rest = key.partition(".")
    return group in groups and rest == "name"


def _setting(key: str, value: Any, words: Mapping[str, str]) -> str:
    head = f"  {key}={typed(value)}"
    return "\n".join([head, _wrapped(f"      {words[key]}", 6)]) if words.get(key) else head


def _wrapped(line: str, indent: int) -> str:
    return textwrap.fill(
        line, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True
    )


def typed(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return _CONSTANTS[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{typed(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(typed, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
