"""The linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rad import functional
from rad.functional.linear_noise import LinearResponse
from rad.functional.noise_response import NoiseResponse
from rad.nn.base import Exact, Sketching
from rad.nn.serving import as_torch
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
            return as_torch(super().forward, input)
        key, kept = self.key_and_kept(input, self.weight, functional.keep_for_linear)
        return functional.linear(
            input, self.weight, self.bias, sketch=self.sketch, key=key, kept=kept
        )

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        rows = (x.shape[:-1].numel(), x.shape[-1])
        return self.kept_of_input(x, rows, output, exact)

    def noise_response(self, x: Tensor, grad_output: Tensor) -> NoiseResponse:
        return LinearResponse(x, grad_output)
