"""Which numbers a layer, RMS, group or instance norm normalises together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.functional.dithered import piece_of
from rad.packing.pieces import pieces

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Norm:
    """Which numbers are normalised together, and which weight each has.

    `shape` holds the trailing axes of a layer or RMS norm, or the number of channels. A tensor is
    taken as (batch, groups, channels of a group, space): `view`.
    """

    kind: Literal["layer", "rms", "group", "instance"]
    shape: Shape
    eps: float
    groups: int = 1

    def view(self, x: Tensor) -> Tensor:
        """x as (B, G, K, L): rows (b, g) are normalised, weights belong to (g, k)."""
        channels = math.prod(self.shape)
        width = channels if self.kind in ("layer", "rms") else math.prod(x.shape[1:])
        batch = x.numel() // width if width else 0
        return x.reshape(batch, self.groups, channels // self.groups, width // max(1, channels))

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """torch's result, and of each row the mean (RMS: None) and r: (rows, 1)."""
        wide = accumulation_dtype(x.dtype)
        plain = x.dtype == wide and not torch.is_autocast_enabled(x.device.type)
        mean = None
        if self.kind == "rms":
            output = F.rms_norm(x, self.shape, weight, self.eps)
        elif self.kind == "layer" and plain:
            output, mean, r = torch.native_layer_norm(x, self.shape, weight, bias, self.eps)
        elif self.kind == "layer":
            output = F.layer_norm(x, self.shape, weight, bias, self.eps)
        elif self.kind == "instance" and plain and x.numel():
            output, mean, r = self._instances(x, weight, bias)
        elif self.kind == "instance":
            output = F.instance_norm(x, None, None, weight, bias, eps=self.eps)
        elif plain and x.numel():
            sizes = x.shape[0], x.shape[1], x[0, 0].numel()
            output, mean, r = torch.native_group_norm(
                x.contiguous(), weight, bias, *sizes, self.groups, self.eps
            )
        else:
            output = F.group_norm(x, self.groups, weight, bias, self.eps)
        if mean is not None:
            return output, mean.reshape(-1, 1), r.reshape(-1, 1)
        return output, *self._statistics(x, wide)

    def _instances(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An instance norm as torch calculates it: as the batch norm of one example."""
        batch = len(x)
        w, b = (None if p is None else p.repeat(batch) for p in (weight, bias))
        one = x.contiguous().view(1, -1, *x.shape[2:])
        output, mean, r = torch.native_batch_norm(one, w, b, None, None, True, 0.0, self.eps)
        return output.view(x.shape), mean, r

    def _statistics(self, x: Tensor, wide: torch.dtype) -> tuple[Tensor | None, Tensor]:
        rows = self.rows(x)
        if not x.numel():
            none = x.new_empty(len(rows), 1, dtype=wide)
            return none, none
        step = piece_of(x) // rows.shape[1]
        cut = [rows[p.start : p.stop].to(wide) for p in pieces(range(len(rows)), step)]
        if self.kind == "rms":
            square = torch.cat([part.square().mean(1, keepdim=True) for part in cut])
            return None, square.add_(self.eps).rsqrt_()
        found = [torch.var_mean(part, 1, correction=0, keepdim=True) for part in cut]
        variance, mean = (torch.cat(each) for each in zip(*found, strict=True))
        return mean, variance.add_(self.eps).rsqrt_()

    def rows(self, x: Tensor) -> Tensor:
        """x as the rows that are normalised, which its sketch acts on: (B G, K L)."""
        return self.view(x).flatten(2).flatten(0, 1)
