"""The linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rad import functional
from rad.nn.base import Sketching
from rad.sketches import Identity, Sketch


class Linear(Sketching, nn.Linear):
    """`torch.nn.Linear` that keeps a sketch of its input (`rad.functional.linear`).

    Shapes: (..., in_features) -> (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sketch: Sketch | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.set_sketch(sketch or Identity(), seed)

    def forward(self, input: Tensor) -> Tensor:
        if not self.sketches_now():
            return super().forward(input)
        key, kept = self.key_and_kept(input, self.weight, functional.keep_for_linear)
        return functional.linear(
            input, self.weight, self.bias, sketch=self.sketch, key=key, kept=kept
        )

    def weight_grad_variance(self, x: Tensor, grad_output: Tensor, sketch: Sketch) -> Tensor:
        return functional.linear_weight_grad_variance(x, grad_output, sketch)

    def rows_and_noise_weights(self, x: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(-1, x.shape[-1]), functional.linear_noise_weights(x, grad_output)
