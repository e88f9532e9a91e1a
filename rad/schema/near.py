"""The setting that somebody meant by a name that is abbreviated, misspelt or not whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from rad.schema.rules import Named, Rules, Some

SYNONYMS = {
    "epochs": "iterations",
    "steps": "iterations",
    "keep": "budget",
    "memory": "budget",
    "keep_fraction": "budget",
    "sketch": "variant",
    "data": "dataset",
    "network": "model",
    "output": "results_root",
}
"""What other programs call a setting."""


def keys_of(rules: Rules) -> list[str]:
    """The dotted names of all settings that have a rule, each once."""
    return list(dict.fromkeys(_keys(rules, "")))


def _keys(rules: Rules, above: str) -> Iterator[str]:
    for name, rule in rules.items():
        key = f"{above}{name}"
        yield key
        for inner in _inner(rule):
            yield from _keys(inner, f"{key}.")


def _inner(rule: Any) -> Collection[Rules]:
    if isinstance(rule, Named):
        return list(rule.rules.values())
    if isinstance(rule, Some):
        return [rule.rules]
    return [rule] if isinstance(rule, Mapping) else []


def nearest(key: str, known: Collection[str]) -> str | None:
    """The one of the `known` settings that `key` most likely means; None where none is like it.

    Its last part alone, its initials (`lr`), what other programs call it, or a few letters amiss;
    of several the one with the fewest parts, and data sets, on which others build, last.
    """
    by_depth = sorted(known, key=lambda name: (name.count("."), name.startswith("dataset."), name))
    word = key.rpartition(".")[2].lower().replace("-", "_")
    for wanted in (word, SYNONYMS.get(word, word)):
        for name in by_depth:
            last = name.rpartition(".")[2]
            if name != key and wanted in (last, "".join(part[0] for part in last.split("_"))):
                return name
    whole = get_close_matches(key.lower(), by_depth, 1, cutoff=0.75)
    if whole:
        return whole[0]
    last_parts = {name.rpartition(".")[2]: name for name in reversed(by_depth)}
    close = get_close_matches(word, last_parts, 1, cutoff=0.75)
    return last_parts[close[0]] if close else None
