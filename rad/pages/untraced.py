"""Numbers in prose that come from no file of results.

A measured number is generated (`rad.pages.blocks`), or else stands, rounded, in a file of a folder
of results that the page links to: losses and bytes as they are, shares in percent, bytes in kB and
MB. What is not measured (a setting, a figure of the paper, a closed form) the page lists:

    <!-- given: 0.1 1e-3 -->

That a number stands in a file does not prove that it is the one meant. It finds what was typed
wrongly, or has changed since, the surer the more digits a number has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rad.pages.blocks import NUMBER, PHRASE, TABLE

CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
GIVEN = re.compile(r"<!-- given: (.*?) -->", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
TARGET = re.compile(r"\]\([^)]*\)|https?://\S+")
CITED = re.compile(r"\]\((?:\.\./)*results/([\w./=,-]+)\)")
MEASURED = re.compile(
    r"(?<![\w.,/])(?:\d[\d,]*\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d{1,3}(?:,\d{3})+)"
)
SCALES = (1.0, 100.0, 1e-3, 1e-6)


def prose(text: str) -> str:
    """A page without code, generated tables and numbers, comments and targets of links."""
    for pattern in (CODE, TABLE, PHRASE, NUMBER, COMMENT, TARGET):
        text = pattern.sub(" ", text)
    return text


def untraced(text: str, results: Path) -> list[str]:
    """The decimals, powers of ten and numbers with commas (1,797) in prose without an origin."""
    given = set(chain.from_iterable(found.split() for found in GIVEN.findall(text)))
    there = np.array(sorted(set(_values(results, CITED.findall(text)))))
    return [
        number
        for number in MEASURED.findall(prose(text))
        if number not in given and not _stands_in(number, there)
    ]


def _stands_in(number: str, there: np.ndarray) -> bool:
    mantissa, _, power = number.replace(",", "").partition("e")
    places = len(mantissa.partition(".")[2])
    half = 0.5 * 10.0 ** (int(power or 0) - places) * (1 + 1e-9)
    value = float(number.replace(",", ""))
    return any(bool((np.abs(there * scale - value) <= half).any()) for scale in SCALES)


def _values(results: Path, cited: list[str]) -> Iterator[float]:
    for name in dict.fromkeys(cited):
        folder = results / name
        for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            if file.suffix == ".csv" and file.name != "metrics.csv":
                numbers = pd.read_csv(file).select_dtypes("number").to_numpy(float)
                yield from np.abs(numbers[np.isfinite(numbers)])
            elif file.name == "summary.json":
                yield from _leaves(json.loads(file.read_text()))


def _leaves(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)
