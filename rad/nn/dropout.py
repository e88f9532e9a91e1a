"""Dropout."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.nn.base import Keyed


class Dropout(Keyed, nn.Dropout):
    """`torch.nn.Dropout` that keeps its key only (`rad.functional.dropout`). Any shape.

    Same distribution as torch's, with draws of its own: torch's generators stay untouched.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, seed: int = 0) -> None:
        super().__init__(p, inplace)
        self.set_key(seed)

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        return "its key"

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, key=self.next_key()) if self.training else x
