"""A softmax that keeps its result in a few bits, without bias."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rad import functional
from rad.nn.base import TORCHS, Exact
from rad.nn.quadratic import Quadratic
from rad.sketches import Identity


class Softmax(Quadratic, nn.Softmax):
    """`torch.nn.Softmax` that keeps its rounded result (`rad.functional.softmax`).

    Without a `dim`, which torch advises against, it is torch's layer.
    """

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        is_torchs = isinstance(self.sketch, Identity) or self.dim is None
        return TORCHS if is_torchs else f"{self.sketch} of its result"

    def sketches_now(self) -> bool:
        """Whether a call would sketch: `Quadratic.sketches_now`, along a given axis."""
        return super().sketches_now() and self.dim is not None

    def _sketched(self, x: Tensor, how: dict[str, Any]) -> Tensor:
        assert self.dim is not None
        return functional.softmax(x, self.dim, **how)

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        if isinstance(self.sketch, Identity) or self.dim is None or not x.requires_grad:
            return 0  # it is torch's layer then, and what that keeps is beyond RAD's account
        return functional.softmax_nbytes(output, self.dim, self.sketch)
