"""Embedding."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.nn.base import TORCHS, Exact, keeps_now
from rad.packing.bits import index_width, packed_bytes


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` that keeps its indices packed (`rad.functional.embedding`).

    Torch's layer with `sparse=True` or a `max_norm`. Shapes: (...) -> (..., embedding_dim).
    """

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        bits = index_width(self.num_embeddings)
        return TORCHS if self._is_torchs else f"{bits} bits per index"

    @property
    def _is_torchs(self) -> bool:
        return self.sparse or self.max_norm is not None

    def forward(self, input: Tensor) -> Tensor:
        if self._is_torchs or not keeps_now(self):
            return super().forward(input)
        options = (self.padding_idx, self.scale_grad_by_freq)
        return functional.embedding(input, self.weight, *options)

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        if self._is_torchs:
            return 0  # what torch's layer keeps is beyond RAD's account
        return packed_bytes(x.numel() * index_width(self.num_embeddings))
