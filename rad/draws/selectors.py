"""Sketches that are linear in random vectors: how a kernel reads them without knowing them.

A sketch that keeps k numbers of a row of d is read as k *selectors*, vectors of d numbers: the
s-th number kept is the row's product with selector s, times `encode`, and the estimate is the sum
of what is kept times its selectors, times `decode`. Sampling with replacement selects one column
(one-hot; 1 and d/k), projection all of them with random signs (1/sqrt(k) both times).
"""

from typing import NamedTuple


class Selectors(NamedTuple):
    """The k = `kept` selectors of each row: random signs, or else one-hot."""

    kept: int
    signs: bool
    different: bool  # each row has draws of its own
    encode: float
    decode: float
