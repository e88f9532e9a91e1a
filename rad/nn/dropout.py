"""Dropout."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.functional.dropout import random_key


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that keeps a key only (`rad.functional.dropout`). Any shape.

    Same distribution as torch's, other masks. The key is one draw from torch's global
    generator, so that seeds, checkpoints of its state and activation checkpointing
    do what they do for torch's dropout.
    """

    keeps = "its key"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return functional.dropout(x, self.p, key=random_key(x))
