"""What a setting may be: its type, its range, its choices, in words that a refusal repeats."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rad.errors import UsageError
from rad.schema.own import TARGET, check_own

LARGEST = 10**12
"""Beyond which no count means anything."""

LARGEST_NUMBER = 1e30
"""Within what float32 can hold."""


class Rule(Protocol):
    """One setting's rule."""

    @property
    def words(self) -> str:
        """What may stand there, after "give"."""

    def holds(self, value: Any) -> bool:
        """Whether that may stand there."""


Rules = Mapping[str, Any]
"""The rules of a mapping, by key: a `Rule`, `Named`, `Some`, or again such a mapping."""


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    least: int = 1
    most: int = LARGEST

    @property
    def words(self) -> str:
        """Beyond `LARGEST` nobody asks."""
        above = "" if self.most == LARGEST else f" and at most {self.most}"
        return f"a whole number of at least {self.least}{above}"

    def holds(self, value: Any) -> bool:
        """Neither true nor 1.0 is one."""
        return type(value) is int and self.least <= value <= self.most


@dataclass(frozen=True)
class Number:
    """A finite number; `above`: larger than `low`."""

    low: float = 0.0
    high: float = LARGEST_NUMBER
    above: bool = False

    @property
    def words(self) -> str:
        """As an interval."""
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"

    def holds(self, value: Any) -> bool:
        """Numbers that are no bool."""
        number = type(value) in (int, float) and math.isfinite(value)
        return number and self.low <= value <= self.high and not (self.above and value == self.low)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    words: str = "true or false (no and yes are texts)"

    def holds(self, value: Any) -> bool:
        """Nothing else is one."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """One of some."""

    choices: Sequence[Any]

    @property
    def words(self) -> str:
        """All of them."""
        return f"one of {', '.join(map(str, self.choices))}"

    def holds(self, value: Any) -> bool:
        """Of the same type, too: true is not 1, nor is 1.0."""
        return any(type(value) is type(each) and value == each for each in self.choices)


@dataclass(frozen=True)
class Text:
    """A text."""

    pattern: str = r"[^\0]*"
    words: str = "a text"

    def holds(self, value: Any) -> bool:
        """Texts that the pattern matches as a whole."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True)
class Anything:
    """What is checked elsewhere."""

    words: str = "anything"

    def holds(self, value: Any) -> bool:
        """It does."""
        return True


@dataclass(frozen=True)
class OrNull:
    """Null, or what another rule says."""

    rule: Any

    @property
    def words(self) -> str:
        """The other's, or null."""
        return f"{self.rule.words}, or null"

    def holds(self, value: Any) -> bool:
        """None is null."""
        return value is None or self.rule.holds(value)


@dataclass(frozen=True)
class ListOf:
    """A list of what another rule says, with `least` entries or more, or as many as `length`."""

    rule: Rule
    least: int = 1
    length: int | None = None
    distinct: bool = False

    @property
    def words(self) -> str:
        """Each entry's."""
        count = f"of {self.length}" if self.length else f"of at least {self.least}"
        different = ", none twice" if self.distinct else ""
        return f"a list [a,b,...] {count}, each {self.rule.words}{different}"

    def holds(self, value: Any) -> bool:
        """Lists only."""
        if not isinstance(value, list) or not all(map(self.rule.holds, value)):
            return False
        if self.distinct and len(set(map(str, value))) < len(value):
            return False
        return len(value) == self.length if self.length else len(value) >= self.least


@dataclass(frozen=True)
class Parsed:
    """What a function reads, whose UsageError tells what is possible."""

    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Some:
    """A mapping with some of these entries."""

    rules: Rules


@dataclass(frozen=True)
class Named:
    """A mapping with a `name`, which says what its other entries are, or (`partial`) may be.

    Where `own` is given, a `_target_` may stand beside the name: somebody's own class or function.
    It has the entries of `own`, and others as its signature says, but for what is `filled` in.
    """

    rules: Mapping[str, Rules]
    partial: bool = False
    own: Rules | None = None
    filled: Collection[str] = ()

    @property
    def words(self) -> str:
        """All names."""
        return f"a mapping with a name: one of {', '.join(self.rules)}"

    def holds(self, value: Any) -> bool:
        """Raises UsageError itself, with the name of the entry that is wrong."""
        check("entry", value, self)
        return True


def shown(value: Any) -> str:
    """A value as a refusal names it."""
    words = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return words[value] if is_word else repr(value)


def check(name: str, value: Any, rule: Any) -> None:
    """Raises UsageError, in one line with the setting's name, for what the rule does not allow."""
    if isinstance(rule, Named):
        _check_named(name, value, rule)
    elif isinstance(rule, Some):
        _check_mapping(name, value, list(rule.rules))
        if name and not value:
            raise UsageError(f"{name} is empty; give some of {', '.join(rule.rules)}")
        for key, each in value.items():
            check(f"{name}.{key}", each, rule.rules[key])
    elif isinstance(rule, Mapping):
        _check_entries(name, value, rule)
    elif isinstance(rule, OrNull) and isinstance(rule.rule, Parsed):
        if value is not None:
            check(name, value, rule.rule)
    elif isinstance(rule, Parsed):
        _check_readable(name, value, rule)
    elif not rule.holds(value):
        if isinstance(rule, Choice):
            raise UsageError(f"unknown {name} {shown(value)}; choose {rule.words}")
        raise UsageError(f"{name} is {shown(value)}; give {rule.words}")


def _check_readable(name: str, value: Any, rule: Parsed) -> None:
    try:
        rule.read(value)
    except UsageError as error:
        key = name.rpartition(".")[2]
        raise UsageError(str(error) if key in str(error) else f"{name}: {error}") from error


def _check_named(name: str, value: Any, rule: Named) -> None:
    if not isinstance(value, dict) or "name" not in value:
        raise UsageError(f"{name} is {shown(value)}; choose one of {', '.join(rule.rules)}")
    if rule.own is not None and TARGET in value:
        _check_own(name, value, rule.own, rule.filled)
        return
    check(f"{name}.name", value["name"], Choice(list(rule.rules)))
    rest = {key: each for key, each in value.items() if key != "name"}
    rules = rule.rules[value["name"]]
    given = {key: each for key, each in rules.items() if key in rest} if rule.partial else rules
    _check_mapping(name, rest, list(rules))
    _check_entries(name, rest, given)


def _check_own(name: str, value: dict[str, Any], rules: Rules, filled: Collection[str]) -> None:
    check(f"{name}.name", value["name"], Text(r"\w[\w.-]*", "a name of letters, digits and _ . -"))
    check(f"{name}.{TARGET}", value[TARGET], Text(words="a dotted name"))
    _check_entries(name, {key: each for key, each in value.items() if key in rules}, rules)
    options = {key: v for key, v in value.items() if key not in ("name", TARGET, *rules)}
    check_own(name, value[TARGET], options, filled)


def _check_entries(name: str, value: Any, rules: Rules) -> None:
    _check_mapping(name, value, list(rules))
    above = f"{name}." if name else ""
    for key, rule in rules.items():
        if key not in value:
            raise UsageError(f"{above}{key} is missing; leave settings in")
        check(f"{above}{key}", value[key], rule)


def _check_mapping(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {shown(value)}; give its entries, as {name}.<key>=<value>")
    for key in value:
        if key not in known:
            where = f"{name}." if name else ""
            has = f"choose among {', '.join(known)}" if known else "leave it out"
            raise UsageError(
                f"'{where}{key}' adds or removes a setting: {has} (add --help to see all settings)"
            )
