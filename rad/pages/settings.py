"""Tables of settings: keys, defaults and comments of `configs/`, and what `rad.schema` allows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rad.errors import UsageError
from rad.pages.words import table
from rad.schema.explained import Entry, entries

SKIPPED = ("defaults", "hydra", "scales", "tuned", "name")
PLACE = "${"
ASIDE = re.compile(r" \((?:a number in quotes|no and yes are texts)[^)]*\)")
"""What only a refusal need say."""


def settings_of(file: Path) -> Iterator[Entry]:
    """The settings of a file of `configs/`, without those of Hydra."""
    for entry in entries(file.read_text()):
        path = entry.key.split(".")
        if entry.value and path[0] not in SKIPPED and path[-1] not in SKIPPED:
            yield entry


def settings_table(file: Path, rules: Mapping[str, Any], groups: tuple[str, ...] = ()) -> str:
    """A row for each setting: the key, its default, what may stand there, what it is for.

    `groups` are folders beside the file, whose own settings follow; `rules` are of `rad.schema`.

    Raises:
        UsageError: a setting of the file has no rule.
    """
    rows = [_row(setting, rules) for setting in settings_of(file)]
    for group in groups:
        files = sorted((file.parent / group).glob("*.yaml"))
        choices = ", ".join(f"`{each.stem}`" for each in files)
        rows.append([f"`{group}`", _default(file, group), choices, "a group: one file of settings"])
        for each in files:
            named = rules[group].rules[each.stem]
            for setting in settings_of(each):
                rows.append(_row(setting, named, f"{group}.", f"`{group}={each.stem}`"))
    return table(["key", "default", "what it may be", "what it is for"], _merged(rows))


def _row(setting: Entry, rules: Mapping[str, Any], prefix: str = "", only: str = "") -> list[str]:
    rule: Any = rules
    for key in setting.key.split("."):
        try:
            rule = (rule if isinstance(rule, Mapping) else rule.rules)[key]
        except (AttributeError, KeyError) as error:
            raise UsageError(f"{setting.key} has no rule in rad.schema: add it") from error
    default = setting.value if PLACE not in setting.value else "of the experiment or data set"
    words = ASIDE.sub("", getattr(rule, "words", "")).replace("|", "\\|")
    comment = setting.comment.replace("<", "&lt;").replace("|", "\\|")
    where = f"with {only}: " if only else ""
    shown = f"`{default}`" if PLACE not in setting.value else default
    return [f"`{prefix}{setting.key}`", shown, words, f"{where}{comment}".rstrip(": ")]


def _merged(rows: list[list[str]]) -> list[list[str]]:
    """Rows that are equal but for where they hold, once."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for key, default, words, comment in rows:
        where, _, said = comment.partition(": ") if comment.startswith("with `") else ("", "", "")
        same = (key, default, words, said if where else comment)
        if same in merged and where:
            merged[same].append(where.removeprefix("with "))
        else:
            merged[same] = [where] if where else []
    return [
        [*same[:3], f"{', '.join(where)}{': ' if same[3] else ''}{same[3]}" if where else same[3]]
        for same, where in merged.items()
    ]


def _default(file: Path, group: str) -> str:
    found = re.search(rf"^  - {group}: (\w+)$", file.read_text(), re.MULTILINE)
    return f"`{found[1]}`" if found else ""


def tables(configs: Path) -> dict[str, Any]:
    """The functions that pages call."""

    def settings(name: str) -> str:
        from rad.schema import measurements, training

        home = training if hasattr(training, name.upper()) else measurements
        (file,) = configs.glob(f"*/{name}.yaml")
        groups = {
            "train": ("model", "dataset", "variant", "optimizer", "logger"),
            "pde": ("variant", "logger"),
        }
        return settings_table(file, getattr(home, name.upper()), groups.get(name, ()))

    return {"settings": settings}
