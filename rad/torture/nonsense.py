"""Command lines of all kinds, from the settings' schema: refused in one line, or making sense."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from rad.schema.rules import Choice, ListOf, Named, Number, OrNull, Rules, Some, Whole
from rad.torture.outcomes import LOST, REFUSED, SURVIVED, Outcome

Tree = Mapping[str, Any]
Settle = Callable[[str, Sequence[str]], Tree]
"""The settings that a script would work with, given such words. Raises what it refuses with."""

WORDS = ("null", "true", "no", "maybe", "x", "''", "'a b'", "'1'", "0.1", "'3 MB'", "auto", "../x")
NUMBERS = (
    *("-1", "0", "1", "2.0", "0.3", "1.5", "1e300", "1e-300", "nan", "inf", "-inf", "1e20"),
    "99999999999999999999",
)
LISTS = ("[]", "[1,1]", "[[1]]", "{}", "{a:1}")
VALUES = (*WORDS, *NUMBERS, *(f"[{each}]" for each in NUMBERS), *LISTS)


class Nonsense:
    """Each case gives one or two settings of a script any values.

    `rules` is the schema of each script; errors of the types `refused` are refusals, of which
    `message` gives the text.
    """

    name = "nonsense"

    def __init__(
        self,
        rules: Mapping[str, Rules],
        settle: Settle,
        refused: tuple[type[Exception], ...],
        message: Callable[[Exception], str],
    ) -> None:
        self.kinds = tuple(rules)
        self._settle, self._refused, self._message = settle, refused, message
        self._defaults = cache(lambda script: settle(script, ()))
        self._settings = cache(
            lambda script: list(_settings(rules[script], self._defaults(script)))
        )

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        """Give a command line to the script's checks."""
        chosen = draw.sample(self._settings(kind), draw.randint(1, 2))
        words = [f"{name}={draw.choice(_values(rule, value))}" for name, rule, value in chosen]
        line = " ".join(words)
        try:
            tree = self._settle(kind, words)
        except self._refused as error:
            text = self._message(error)
            return Outcome(LOST if "\n" in text else REFUSED, f"{line}: {text}"[:400])
        except Exception as error:  # a traceback, to who gave the command
            return Outcome(LOST, f"{line}: {type(error).__name__}: {error}"[:400])
        for name, rule, default in chosen:
            value = _at(tree, name)
            if not (_is_size(name) or sensible(value, default, rule)):
                return Outcome(LOST, f"{line}: {name} is {value!r}")
        return Outcome(SURVIVED, line)


def _is_size(name: str) -> bool:
    """Whether a setting is a text or bytes."""
    return name.endswith(("budget", ".memory")) or name.startswith("limit.")


def sensible(value: Any, default: Any, rule: Any = None) -> bool:
    """Whether a value is of its default's kind, and such as a number of anything can be.

    A default that is a whole number stands for whole numbers, unless the rule is one of others.
    """
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int | float):
        number = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e31
        within = rule.rule if isinstance(rule, OrNull) else rule
        fraction = isinstance(default, float) or isinstance(within, Number)
        return number and (isinstance(value, int) or fraction)
    if isinstance(default, list):
        return isinstance(value, list)
    return type(value) is type(default) and value != ""


def _settings(rules: Any, tree: Tree, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, rule and default of every setting, mappings among them."""
    for key, value in tree.items():
        rule = _inside(rules, tree).get(key)
        if rule is None:
            continue
        name = f"{above}{key}"
        yield name, rule, value
        if isinstance(value, Mapping):
            yield from _settings(rule, value, f"{name}.")


def _inside(rule: Any, tree: Tree) -> Mapping[str, Any]:
    """The rules of what is in a mapping."""
    if isinstance(rule, Named):
        return {"name": Choice(tuple(rule.rules)), **rule.rules[tree["name"]]}
    if isinstance(rule, Some):
        return rule.rules
    return rule if isinstance(rule, Mapping) else {}


def _values(rule: Any, default: Any) -> list[str]:
    """Words for a setting: what may just stand there, what may just not, and anything."""
    usual = json.dumps(default).replace('"', "")
    return [*_edges(rule), usual, *VALUES]


def _edges(rule: Any) -> list[str]:
    if isinstance(rule, Whole):
        return [str(rule.least + by) for by in (-1, 0, 1)] + [str(rule.most + by) for by in (0, 1)]
    if isinstance(rule, Number):
        return [repr(float(each)) for each in (rule.low, rule.high, -rule.high, 2 * rule.high)]
    if isinstance(rule, Choice):
        return [*map(str, rule.choices), f"{rule.choices[0]}x"]
    if isinstance(rule, Named):
        return [*rule.rules]
    if isinstance(rule, OrNull):
        return ["null", *_edges(rule.rule)]
    if isinstance(rule, ListOf):
        return [f"[{','.join(n * [each])}]" for each in _edges(rule.rule) for n in (1, 2, 3)]
    return []


def _at(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree[key]
    return tree
