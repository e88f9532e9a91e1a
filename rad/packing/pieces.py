"""Work that is done some rows at a time, so that no second copy of a tensor stands in memory."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def pieces(rows: range, step: int) -> list[range]:
    """Those rows, at most `step` of them at a time; one piece where there are none."""
    step, stop = max(1, step), max(rows.stop, rows.start + 1)
    return [range(i, min(i + step, rows.stop)) for i in range(rows.start, stop, step)]


def joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Those parts (n, ...) one below the other: (rows, ...), without a second copy of them all."""
    whole, place = None, 0
    for part in parts:
        if len(part) == rows:
            return part
        whole = part.new_empty(rows, *part.shape[1:]) if whole is None else whole
        whole[place : place + len(part)] = part
        place += len(part)
    assert whole is not None
    return whole
