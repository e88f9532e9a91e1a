"""What reports and audits print: the parts of a model by kind, the largest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rad.conversion.reasons import UNCONVERTED, Reason
from rad.nn.base import TORCHS

LINES = 20
"""The most lines of a summary that is not asked for in full."""

LOSS = "(loss)"
"""The kind of what is kept outside the model."""

_NAMED = 3
"""Names up to this many are all shown; of more, the first and the last."""


@dataclass(frozen=True)
class Row:
    """What one part of a model keeps, in words: a module, or the calls of a function in one.

    `nbytes` is what was measured, None where nothing was; `remedy` what would keep less, empty
    where the part is converted.
    """

    name: str
    kind: str
    keeps: str
    remedy: str = ""
    nbytes: int | None = None

    @classmethod
    def of_torch(cls, name: str, kind: str, reason: Reason, nbytes: int | None = None) -> Row:
        """Of what keeps what torch keeps."""
        return cls(name, kind, reason.keeps, reason.remedy, nbytes)


@dataclass(frozen=True)
class Group:
    """Rows of one kind that keep the same."""

    rows: tuple[Row, ...]

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes or 0 for row in self.rows)

    @property
    def remedy(self) -> str:
        return self.rows[0].remedy

    @property
    def what(self) -> str:
        """`24 x Linear`."""
        return f"{self.count} x {self.rows[0].kind}"

    def __str__(self) -> str:
        row = self.rows[0]
        if row.kind == LOSS:
            return f"{LOSS}: {row.keeps}"
        return f"{self.what}, {_names([row.name or '(model)' for row in self.rows])}: {row.keeps}"


def grouped(rows: Iterable[Row]) -> list[Group]:
    """Rows by kind and by what they keep: by bytes, then by number, the largest group first."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.kind, row.keeps].append(row)
    groups = [Group(tuple(each)) for each in found.values()]
    return sorted(groups, key=lambda g: (-g.nbytes, _keeps_nothing(g), -g.count))


def lines(rows: Sequence[Row], full: bool, others: int) -> list[str]:
    """A line for each group, beside `others` lines at most `LINES`; or in full, one for each row.

    Bytes, where any were measured, stand before them.
    """
    groups = [Group((row,)) for row in rows] if full else grouped(rows)
    with_bytes = any(row.nbytes is not None for row in rows)
    if with_bytes:
        groups.sort(key=lambda group: -group.nbytes)
    width = len(f"{sum(group.nbytes for group in groups):,}")

    def line(group: Group) -> str:
        text = f"{group}".removeprefix("1 x ") if full else f"{group}"
        return f"{group.nbytes:>{width},}  {text}" if with_bytes else text

    room = LINES - others
    if full or len(groups) <= room:
        return [line(group) for group in groups]
    shown, left = groups[: room - 1], groups[room - 1 :]
    count = sum(group.count for group in left)
    kept = f", {sum(group.nbytes for group in left):,} bytes" if with_bytes else ""
    return [*map(line, shown), f"and {len(left)} more kinds ({count} parts{kept}): full=True"]


def next_step(rows: Sequence[Row]) -> str:
    """The last line: what holds most of what torch keeps, and what to do about it."""
    with_bytes = any(row.nbytes is not None for row in rows)
    groups = [g for g in grouped(rows) if not with_bytes or g.nbytes]
    if with_bytes and not groups:
        return "next: nothing is kept"
    rest = [group for group in groups if group.remedy]
    if rest:
        # One remedy may be that of several kinds; without conversion no other helps.
        rest = [group for group in rest if group.remedy == UNCONVERTED.remedy] or rest
        remedies: dict[str, list[Row]] = defaultdict(list)
        for group in rest:
            remedies[group.remedy] += [replace(row, kind="", keeps="") for row in group.rows]
        most = max((Group(tuple(each)) for each in remedies.values()), key=_size)
        of = " and ".join(group.what for group in rest if group.remedy == most.remedy)
        of = of if of.count(" and ") < _NAMED else f"{most.count} parts"
        share = f", {most.nbytes:,} of {sum(g.nbytes for g in rest):,} bytes" if with_bytes else ""
        return f"next: most of {TORCHS} is in {of}{share}: {most.remedy}"
    if not with_bytes:
        return "next: nothing is left to convert; rad.audit(model, forward) counts the bytes"
    largest = groups[0]
    if largest.rows[0].kind == LOSS:
        return (
            f"next: most, {largest.nbytes:,} bytes, is the loss's own; where a linear layer leads "
            "to a cross entropy, rad.functional.linear_cross_entropy keeps less"
        )
    return (
        f"next: most, {largest.nbytes:,} bytes, is in {largest.what}: a sketch that keeps less, or "
        "rad.fit, which finds one for a budget"
    )


def _size(group: Group) -> tuple[int, int]:
    return group.nbytes, group.count


def _keeps_nothing(group: Group) -> bool:
    return group.rows[0].keeps.startswith("nothing")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{names[0]} .. {names[-1]}"
