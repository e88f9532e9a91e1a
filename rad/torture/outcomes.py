"""How cases ended: written down one by one, so that a run of them goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from rad.errors import UsageError, first_line
from rad.results import write_atomic

SURVIVED, REFUSED, LOST = "survived", "refused", "lost"
VERDICTS = (SURVIVED, REFUSED, LOST)


@dataclass(frozen=True)
class Case:
    """The `number`-th case of a kind of attack."""

    attack: str
    kind: str
    number: int

    def draw(self, seed: int) -> random.Random:
        """The random numbers of this case."""
        return random.Random(f"{seed}/{self.attack}/{self.kind}/{self.number}")


@dataclass(frozen=True)
class Outcome:
    """How a case ended, and what there is to say of it."""

    verdict: str
    note: str = ""


class Attack(Protocol):
    """A way to harm a run, in several kinds."""

    name: str

    @property
    def kinds(self) -> Sequence[str]:
        """Which kinds there are."""

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        """Harm a fresh run as the random numbers say."""


def cases(attack: Attack, count: int) -> list[Case]:
    """So many cases, the kinds taking turns."""
    kinds = attack.kinds
    return [Case(attack.name, kinds[n % len(kinds)], n // len(kinds)) for n in range(count)]


class Record:
    """Outcomes in a file, a line each, after one of the `conditions` under which they came about.

    A file of other conditions is refused. A last line that was cut off while it was written is
    dropped: its case is done again.
    """

    def __init__(self, file: Path, conditions: dict[str, object]) -> None:
        self.file = file
        self.done: dict[Case, Outcome] = {}
        head = json.dumps(conditions, sort_keys=True)
        *whole, cut_off = file.read_text().split("\n") if file.exists() else [""]
        if not whole:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{head}\n")
            return
        first, *lines = whole
        if first != head:
            raise UsageError(
                f"{file} holds cases of other code or another seed ({first}); delete it to begin "
                "again"
            )
        if cut_off:
            write_atomic(file, "".join(f"{line}\n" for line in whole).encode())
        for number, line in enumerate(lines, start=2):
            try:
                case, outcome = _read(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"line {number} of {file} is damaged ({first_line(error)}); delete the file to "
                    "begin again"
                ) from None
            self.done[case] = outcome

    def add(self, case: Case, outcome: Outcome) -> None:
        """Write it down."""
        self.done[case] = outcome
        with self.file.open("a") as stream:
            stream.write(json.dumps({**asdict(case), **asdict(outcome)}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _read(line: str) -> tuple[Case, Outcome]:
    """The case and the outcome of a line of a record; ValueError and others for what is none."""
    fields = json.loads(line)
    verdict, note = fields.pop("verdict"), fields.pop("note")
    if verdict not in VERDICTS:
        raise ValueError(f"unknown verdict {verdict!r}")
    return Case(**fields), Outcome(verdict, note)


def table(done: Iterable[tuple[Case, Outcome]]) -> pd.DataFrame:
    """A row for each kind of each attack: how many cases were tried, and how they ended."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for case, outcome in done:
        row = rows.setdefault((case.attack, case.kind), dict.fromkeys(("tried", *VERDICTS), 0))
        row["tried"] += 1
        row[outcome.verdict] += 1
    return pd.DataFrame(
        [{"attack": attack, "kind": kind, **row} for (attack, kind), row in sorted(rows.items())]
    )
