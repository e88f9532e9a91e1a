"""How the noise of a sketch of the input carries over to a weight gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from rad.sketches.base import Sketch
from rad.sketches.noise import Columns, Complement, Noise, Numbers, Rows


class NoiseResponse(ABC):
    """The variance that each part of a sketch's noise adds to one weight gradient.

    Made of one input and one gradient of the output, whose sizes are brought into range first.
    What several sketches need is calculated once.
    """

    def __init__(self, rows: Tensor, scale: float) -> None:
        """`rows` (n, d) is what a sketch acts on; variances are those of it times `scale`."""
        self.rows, self.scale = rows, scale
        self._units: dict[Noise, float] = {}
        self._weights: Tensor | None = None

    def to_sketch(self, sketch: Sketch) -> float:
        """E |dW_hat - dW|^2 over the keys, in closed form.

        Raises TypeError for a sketch without a closed form (`Sketch.noise`).
        """
        parts = sketch.noise(self.rows.shape[1])
        return sum(part.factor * self.to_unit(part.unit()) for part in parts)

    def to_unit(self, part: Noise) -> float:
        """The variance that a part with a factor of 1 adds."""
        if part not in self._units:
            self._units[part] = self._of_unit(part).item() * self.scale
        return self._units[part]

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
            case Complement():
                relative = part.source.rest_variance(*self.rows.shape)
                return relative * self._complement(part.source.directions(self.rows))

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

    @abstractmethod
    def _complement(self, directions: Tensor) -> Tensor:
        """The variance that what is left beside those directions (d, r1) adds when it is projected,
        with a relative variance of 1 (`rad.sketches.noise.Complement`): shape ()."""
