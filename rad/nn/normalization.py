"""Normalisation layers that keep their normalised input in a few bits, without bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rad import functional
from rad.draws.reference import KEY_BYTES
from rad.dtypes import accumulation_dtype
from rad.functional.batch_normalization import rows_shape
from rad.nn.base import TORCHS, Exact
from rad.nn.quadratic import Quadratic
from rad.nn.serving import as_torch
from rad.sketches import Identity


class _Norm(Quadratic):
    """A normalisation that keeps `DitheredRounding` of its normalised input, and its scales.

    The gradients by the input and the weight are unbiased, that by the bias is exact.
    """

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        if isinstance(self.sketch, Identity):
            return TORCHS
        return f"{self.sketch} of its normalised input, and the scales"

    def _rows(self, x: Tensor) -> tuple[tuple[int, int], int]:
        """The shape that the sketch acts on, and how many scales there are."""
        raise NotImplementedError

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        if isinstance(self.sketch, Identity):
            return 0  # it is torch's layer then, and what that keeps is beyond RAD's account
        weight: Tensor | None = self.weight  # type: ignore[assignment]
        trained = weight is not None and weight.requires_grad
        if not (x.requires_grad or trained):
            return KEY_BYTES
        wide = accumulation_dtype(x.dtype)
        shape, scales = self._rows(x)
        scale_bytes = scales * wide.itemsize if x.requires_grad else 0
        return KEY_BYTES + scale_bytes + self.sketch.nbytes(shape, wide)


class LayerNorm(_Norm, nn.LayerNorm):
    """`torch.nn.LayerNorm` that keeps its rounded input (`rad.functional.normalization`)."""

    def _sketched(self, x: Tensor, how: dict[str, Any]) -> Tensor:
        parameters = self.weight, self.bias, self.eps
        return functional.layer_norm(x, self.normalized_shape, *parameters, **how)

    def _rows(self, x: Tensor) -> tuple[tuple[int, int], int]:
        return _trailing(x, self.normalized_shape)


class RMSNorm(_Norm, nn.RMSNorm):
    """`torch.nn.RMSNorm` that keeps its rounded input (`rad.functional.normalization`)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def _sketched(self, x: Tensor, how: dict[str, Any]) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps, **how)

    def _rows(self, x: Tensor) -> tuple[tuple[int, int], int]:
        return _trailing(x, self.normalized_shape)


class GroupNorm(_Norm, nn.GroupNorm):
    """`torch.nn.GroupNorm` that keeps its rounded input (`rad.functional.normalization`)."""

    def _sketched(self, x: Tensor, how: dict[str, Any]) -> Tensor:
        parameters = self.weight, self.bias, self.eps
        return functional.group_norm(x, self.num_groups, *parameters, **how)

    def _rows(self, x: Tensor) -> tuple[tuple[int, int], int]:
        rows = len(x) * self.num_groups
        return (rows, x.numel() // max(1, rows)), rows


class _BatchNorm(_Norm, nn.modules.batchnorm._BatchNorm):
    """Batch normalisation, with running statistics as torch's."""

    def _sketched(self, x: Tensor, how: dict[str, Any]) -> Tensor:
        self._check_input_dim(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        tracks = self.track_running_stats
        statistics = (self.running_mean, self.running_var) if tracks else (None, None)
        parameters = self.weight, self.bias
        return functional.batch_norm(x, *statistics, *parameters, True, momentum, self.eps, **how)

    def _rows(self, x: Tensor) -> tuple[tuple[int, int], int]:
        return rows_shape(x.shape), x.shape[1]


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` that keeps its rounded input (`rad.functional.batch_norm`)."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that keeps its rounded input (`rad.functional.batch_norm`)."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` that keeps its rounded input (`rad.functional.batch_norm`)."""


class _InstanceNorm(_Norm, nn.modules.instancenorm._InstanceNorm):
    """Instance normalisation, with running statistics as torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return as_torch(nn.modules.instancenorm._InstanceNorm.forward, self, input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        """What torch's layer does with a batch, once it has looked at the shape."""
        if not self.sketches_now():
            exact: Tensor = super()._apply_instance_norm(input)
            return exact
        self.place_draws(input.device)
        return functional.instance_norm(
            input,
            *(self.running_mean, self.running_var, self.weight, self.bias),
            momentum=0.0 if self.momentum is None else self.momentum,
            eps=self.eps,
            sketch=self.sketch,
            key=self.next_key(),
        )

    def _rows(self, x: Tensor) -> tuple[tuple[int, int], int]:
        is_batch = x.dim() > self._get_no_batch_dim()
        rows = x.shape[: 2 if is_batch else 1].numel()
        return (rows, x.numel() // max(1, rows)), rows


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` that keeps its rounded input (`rad.functional.instance_norm`)."""


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` that keeps its rounded input (`rad.functional.instance_norm`)."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` that keeps its rounded input (`rad.functional.instance_norm`)."""


WITH_STATISTICS = (
    *(BatchNorm1d, BatchNorm2d, BatchNorm3d),
    *(InstanceNorm1d, InstanceNorm2d, InstanceNorm3d),
)
"""Norms that mix the examples of a batch, or may in running statistics."""


def _trailing(x: Tensor, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """The rows of a normalisation over trailing axes of that shape."""
    d = torch.Size(shape).numel()
    rows = x.numel() // max(1, d)
    return (rows, d), rows
