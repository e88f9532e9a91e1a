"""Sketches that are linear in random vectors: how a kernel reads them without knowing them.

A sketch that keeps k numbers of a row of d is read as k *selectors*, vectors of d numbers: the
s-th number kept is the row's product with selector s, times `encode`, and the estimate is the sum
of what is kept times its selectors, times `decode`. Sampling selects one column (one-hot; 1 and
d/k), projection all of them with random signs (1/sqrt(k) both times).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rad.draws.dispatch import distinct_integers, integers


class Selectors(NamedTuple):
    """The k = `kept` selectors of each row: random signs, or else one-hot."""

    kept: int
    signs: bool
    different: bool  # each row has draws of its own
    distinct: bool  # no column of a row twice: drawn without replacement
    encode: float
    decode: float

    def columns(self, d: int, key: Tensor, rows: range) -> Tensor:
        """The columns that the one-hot selectors of those rows of d select: int64, (rows, k).

        Of all rows alike where they do not have draws of their own: those of `range(1)`.
        """
        draw = distinct_integers if self.distinct else integers
        return draw(key, rows, self.kept, d)
