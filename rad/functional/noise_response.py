"""How the noise of a sketch of the input carries over to a weight gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from rad.sketches.base import Sketch
from rad.sketches.noise import Columns, Noise, Numbers, Rows


class NoiseResponse(ABC):
    """The variance that each part of a sketch's noise adds to one weight gradient.

    Made of one input and one gradient of the output, whose sizes are brought into range first.
    What several sketches need is calculated once.
    """

    def __init__(self, rows: Tensor, scale: float) -> None:
        """`rows` (n, d) is what a sketch acts on; variances are those of it times `scale`."""
        self.rows, self.scale = rows, scale
        self._units: dict[Noise, Tensor] = {}
        self._weights: Tensor | None = None

    def to_sketch(self, sketch: Sketch) -> Tensor:
        """E |dW_hat - dW|^2 over the keys, in closed form: float64, shape ().

        Raises TypeError for a sketch without a closed form (`Sketch.noise`).
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        return sum((self.to_part(part) for part in sketch.noise(self.rows.shape[1])), zero)

    def to_part(self, part: Noise) -> Tensor:
        """The share of one part of the noise: float64, shape ()."""
        unit = part.unit()
        if unit not in self._units:
            self._units[unit] = self._of_unit(unit).double() * self.scale
        return self._units[unit] * part.factor

    def _of_unit(self, part: Noise) -> Tensor:
        match part:
            case Columns():
                return self._columns(part.mixed, part.shared)
            case Numbers(rotation=None):
                return (self.noise_weights * part.source.element_variance(self.rows)).sum()
            case Numbers(rotation=rotation):
                assert rotation is not None
                return self._rotated(part.source.element_variance(self.rows), rotation)
            case Rows():
                return self._rows(part.source.weight_covariance(self.rows))

    @property
    def noise_weights(self) -> Tensor:
        """d Var(dW) / d Var(x_ij) of uncorrelated errors: (n, d); (n, 1) where alike in a row."""
        if self._weights is None:
            self._weights = self._noise_weights()
        return self._weights

    @property
    def rotates_freely(self) -> bool:
        """Whether a rotation of the rows leaves the noise weights as they are."""
        return self.noise_weights.shape[1] == 1

    @abstractmethod
    def _noise_weights(self) -> Tensor:
        """`noise_weights`."""

    @abstractmethod
    def _columns(self, mixed: bool, shared: bool) -> Tensor:
        """The variance that columns drawn or mixed add with a factor of 1: shape ()."""

    @abstractmethod
    def _rotated(self, variance: Tensor, rotation: Callable[[Tensor], Tensor]) -> Tensor:
        """The variance that errors of the rotated rows, of that variance (n, d), add: shape ()."""

    @abstractmethod
    def _rows(self, covariance: Tensor) -> Tensor:
        """The variance that random factors of the rows add, of covariance (n, n): shape ()."""
