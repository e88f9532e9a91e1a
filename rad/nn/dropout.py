"""Dropout."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.draws.reference import KEY_BYTES
from rad.functional.dropout import random_key
from rad.functional.in_place import overwrite
from rad.nn.base import Exact


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that keeps a key only (`rad.functional.dropout`). Any shape.

    Same distribution as torch's, other masks. The key is one draw from torch's global
    generator, so that seeds, checkpoints of its state and activation checkpointing
    do what they do for torch's dropout. Training mode draws so under `torch.no_grad()`, too.
    """

    keeps = "its key"

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output = functional.dropout(input, self.p, key=random_key(input.device))
        return overwrite(input, output) if self.inplace else output

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        return KEY_BYTES if self.p else 0
