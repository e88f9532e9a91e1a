"""The variance of a linear layer's weight gradient, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.functional.noise_response import NoiseResponse
from rad.functional.scaling import normalised
from rad.sketches.base import Sketch, squared_norm


class LinearResponse(NoiseResponse):
    """How noise in x carries over to dW = grad_output^T x.

    With F = |dW|^2 and S = sum over rows of |grad_output_n|^2 |x_n|^2, columns drawn or mixed add
    (d - 1) F where all rows share the draw (their noises add up as the gradient itself does) and
    (d - 1) S where each row has its own. Uncorrelated errors, rotated or not, add the sum over
    rows of |grad_output_n|^2 times their variances. Random factors c_n of the rows add
    sum_nm Cov(c_n, c_m) <grad_output_n, grad_output_m> <x_n, x_m>. A projection of what is left
    beside some directions adds its relative variance times |dW|^2 of that rest.
    Shapes: x (..., d), grad_output (..., out_features).
    """

    def __init__(self, x: Tensor, grad_output: Tensor) -> None:
        wide = accumulation_dtype(x.dtype)
        x, x_scale = normalised(x.reshape(-1, x.shape[-1]).to(wide))
        grad, grad_scale = normalised(grad_output.reshape(-1, grad_output.shape[-1]).to(wide))
        super().__init__(x, x_scale**2 * grad_scale**2)
        self._grad = grad

    def _noise_weights(self) -> Tensor:
        return self._grad.square().sum(1, keepdim=True)

    def _columns(self, mixed: bool, shared: bool) -> Tensor:
        d = self.rows.shape[1]
        if shared:
            return (d - 1) * squared_norm(self._grad.t() @ self.rows)
        return (d - 1) * (self.noise_weights[:, 0] @ self.rows.square().sum(1))

    def _rotated(self, variance: Tensor, rotation: Callable[[Tensor], Tensor]) -> Tensor:
        return (self.noise_weights * variance).sum()

    def _rows(self, covariance: Tensor) -> Tensor:
        products = (self._grad @ self._grad.t()) * (self.rows @ self.rows.t())
        return (covariance * products).sum().to(self.rows.dtype)

    def _complement(self, directions: Tensor) -> Tensor:
        weight = self._grad.t() @ self.rows
        return squared_norm(weight - weight @ directions @ directions.t())


def linear_weight_grad_variance(x: Tensor, grad_output: Tensor, sketch: Sketch) -> Tensor:
    """E |dW_hat - dW|^2 over the keys, dW = grad_output^T x, in closed form: float64, shape ().

    Numbers of any size are brought into range first. Shapes and derivation: `LinearResponse`.
    Raises TypeError for a sketch without a closed form (`Sketch.noise`).
    """
    variance = LinearResponse(x, grad_output).to_sketch(sketch)
    return torch.tensor(variance, dtype=torch.float64, device=x.device)
