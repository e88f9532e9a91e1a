"""What layers of other libraries compute, in torch: what their RAD layers are subclasses of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainTransposedLinear(nn.Module):
    """x @ weight + bias: what `Conv1D` of the transformers library computes, in torch.

    Shapes: (..., in_features) -> (..., out_features), weight (in_features, out_features).
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            nn.init.normal_(torch.empty(in_features, out_features), std=0.02)
        )
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        return torch.addmm(self.bias, rows, self.weight).view(*input.shape[:-1], len(self.bias))
