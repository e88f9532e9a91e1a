"""What the comments of configuration files say of the settings below them.

A comment explains the key that follows it, or on whose line it stands. Settings in braces, on one
line, are explained together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OTHERS = ("defaults", "hydra")
"""Keys of a configuration file that are no settings of a script."""

COMMON = {
    "seed": "Of everything random: the same seed gives the same numbers.",
    "device": "auto (CUDA where there is one), cpu, cuda or cuda:<n>.",
    "data_root": "The folder of the data sets; null: $RAD_DATA, or data.",
    "results_root": "The folder of finished runs.",
    "output": "Where the results are written.",
    "figure": "The file of the figure (PNG); a PDF is written beside it.",
    "batch_size": "Examples in a batch.",
    "keep_fraction": "The fraction of each layer's input that sampling and projection keep.",
    "fractions": "Fractions that are kept.",
    "networks": "What is measured.",
    "variants": "What is compared.",
    "budget": "A fraction in (0, 1], whole bytes above 1, or a size such as '3.3 MB'.",
    "iterations": "Updates; the data set's, unless given.",
    "learning_rate": "Of the first updates.",
    "weight_decay": "Weight of the squared weights in the loss, halved.",
    "decay_factor": "What the learning rate is multiplied by, every decay_every updates.",
    "decay_every": "Updates between two decays of the learning rate; null: it stays.",
    "clip_norm": "The most that the gradient's norm may be; null: any.",
    "overrides": "Overrides of the runs, as in the results path; null where there is only one set.",
}
"""What a setting means in every script whose file says nothing else of it."""

_KEY = re.compile(r"( *)(\w+):(.*)")


def explanations(folder: Path, name: str) -> dict[str, str]:
    """By dotted key, what `<folder>/<name>.yaml` and the files that it builds on say of it."""
    text = (folder / f"{name}.yaml").read_text()
    found: dict[str, str] = {}
    for entry in (yaml.safe_load(text) or {}).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found |= explanations(folder, entry)
    settings = (each for each in entries(text) if each.key.split(".")[0] not in OTHERS)
    own = {each.key: each.comment for each in settings}
    new = {key: words for key, words in own.items() if words or key not in found}
    return {key: words or COMMON.get(key, "") for key, words in {**found, **new}.items()}


def of_choice(folder: Path, group: str, choice: str) -> tuple[str, dict[str, str]]:
    """What the file of a group's choice says of it, and by dotted key of its settings."""
    text = (folder / group / f"{choice}.yaml").read_text()
    explained = {each.key: each.comment for each in entries(text)}
    about = explained.pop("name", "")
    settings = {f"{group}.{key}": each or COMMON.get(key, "") for key, each in explained.items()}
    return about, settings


@dataclass(frozen=True)
class Entry:
    """A line of a configuration file: its dotted key, its value as written, what is said of it.

    The value is empty where other entries stand below.
    """

    key: str
    value: str
    comment: str


def entries(text: str) -> Iterator[Entry]:
    """Every key of a file, with the comment above it and the one behind it."""
    above: list[str] = []
    inside: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _KEY.match(line)
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("#").strip())
        elif found is None:
            above = []
        else:
            indent = len(found[1])
            inside = [*(each for each in inside if each[0] < indent), (indent, found[2])]
            value, _, behind = found[3].partition(" #")
            words = [each for each in (*above, behind.strip()) if each]
            yield Entry(".".join(key for _, key in inside), value.strip(), " ".join(words))
            above = []


def leaves(
    tree: Mapping[str, Any], known: Mapping[str, str], above: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, as deep as the files write them on lines of their own."""
    for key, value in tree.items():
        name = f"{above}{key}"
        deeper = any(each.startswith(f"{name}.") for each in known)
        if isinstance(value, Mapping) and deeper:
            yield from leaves(value, known, f"{name}.")
        else:
            yield name, value
