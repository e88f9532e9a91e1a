"""The noise of an estimate, in the terms in which operators carry it to their weight gradients.

The error x_hat - x of a sketch is a sum of parts of four kinds, uncorrelated with each other. An
operator that knows how its weight gradient answers each kind (`rad.functional.noise_response`)
knows the variance with every sketch.

Parts are hashable and hold no tensors. The variance that a part adds is `factor` times that of its
`unit`, so that sketches that differ only in their factor share the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from torch import Tensor

_Part = TypeVar("_Part", bound="_Scaled")


class _Scaled:
    def unit(self: _Part) -> _Part:
        """The same part with a factor of 1."""
        return replace(self, factor=1.0)  # type: ignore[type-var]


@dataclass(frozen=True)
class Columns(_Scaled):
    """Columns of x drawn at random, or mixed by random signs: x_hat = x P with E[P] = I.

    Let A_i be the part of the weight gradient that column i of x contributes. Drawn columns add
    the variance factor * (d sum_i |A_i|^2 - |sum_i A_i|^2), the factor being 1/k for k draws with
    replacement. Mixed columns add factor * (|M|^2 + tr M^2 - 2 sum_i M_ii^2), summed over the
    weights, M_ij being the product of column i with the output gradients that column j is
    multiplied with. With `shared` all rows have one P; else each row has its own, and the
    variances of rows add up.
    """

    mixed: bool
    shared: bool
    factor: float


class ElementVariance(Protocol):
    """A source of errors that are uncorrelated from number to number."""

    def element_variance(self, x: Tensor) -> Tensor:
        """The variance of the error of each number of x (..., d): (..., d)."""


@dataclass(frozen=True)
class Numbers(_Scaled):
    """Errors of single numbers, uncorrelated, of variance factor * source.element_variance(x).

    With `rotation`, an orthogonal map of rows (..., d), they are errors of the rotated rows, and
    `source.element_variance(x)` gives the variances of those.
    """

    source: ElementVariance
    factor: float = 1.0
    rotation: Callable[[Tensor], Tensor] | None = None


class WeightCovariance(Protocol):
    """A source of random factors of mean 1, one for each row."""

    def weight_covariance(self, x: Tensor) -> Tensor:
        """The covariance of the factors of the rows of x (..., d): (rows, rows)."""


@dataclass(frozen=True)
class Rows(_Scaled):
    """Rows kept or dropped as a whole, by random factors of covariance
    factor * source.weight_covariance(x)."""

    source: WeightCovariance
    factor: float = 1.0


class Directions(Protocol):
    """A source of rows' directions that are read exactly, and of noise in what is left of them."""

    def directions(self, x: Tensor) -> Tensor:
        """Orthonormal columns (d, r1) for the rows of x (..., d)."""

    def rest_variance(self, rows: int, d: int) -> float:
        """E |y P - y|^2 / |y|^2 for the rest y of a row, of so many rows of d numbers."""


@dataclass(frozen=True)
class Complement(_Scaled):
    """What is left of the rows beside some directions, projected: x_hat = x - y + y P.

    With Q = source.directions(x), y = x - x Q Q^T is what is left of x. All rows share one P, c
    times the orthogonal projection on a subspace of the directions' complement: of its D = d - r1
    dimensions it has r, drawn uniformly, and c = D/r makes E[y P] = y. A linear function of y with
    the matrix M, tr(M^T P), M within the complement, then has the variance
    source.rest_variance(rows, d) * D / ((D - 1)(D + 2)) * (|M|^2 + tr M^2 - 2 (tr M)^2 / D).
    """

    source: Directions
    factor: float = 1.0


Noise = Columns | Numbers | Rows | Complement
