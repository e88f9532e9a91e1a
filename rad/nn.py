"""Modules over `rad.functional`, under torch.nn's names.

Each is a subclass of torch's module with the same parameters and the same
`state_dict`. In training mode with gradients enabled it sketches; under `eval()`
or `torch.no_grad()` it is torch's module.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rad import functional
from rad.sketches import Identity, Sketch, fold_in, make_key


class Sketching(nn.Module):
    """Mixin of the layers that sketch: the sketch, and a fresh key for every call.

    The t-th call draws with `fold_in(key, t)`, `key` being derived from the seed and
    the layer's place. Key and counter are non-persistent buffers, advanced in place
    on the device.
    """

    sketch: Sketch
    key: Tensor
    calls: Tensor

    def set_sketch(self, sketch: Sketch, seed: int = 0, place: int = 0) -> None:
        """Sketch with `sketch` from now on, with the draws of (seed, place) from the start."""
        device = next((p.device for p in self.parameters()), None)
        self.sketch = sketch
        self.register_buffer("key", fold_in(make_key(seed, device), place), persistent=False)
        self.register_buffer("calls", torch.zeros_like(self.key), persistent=False)

    def next_key(self) -> Tensor:
        """The key of this call; advances the counter."""
        key = fold_in(self.key, self.calls)
        self.calls += 1
        return key

    def sketches_now(self) -> bool:
        return self.training and torch.is_grad_enabled()


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

    def forward(self, x: Tensor) -> Tensor:
        if not self.sketches_now():
            return super().forward(x)
        return functional.linear(x, self.weight, self.bias, sketch=self.sketch, key=self.next_key())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sketch={self.sketch}"


class ReLU(nn.ReLU):
    """`torch.nn.ReLU` that keeps one bit per unit (`rad.functional.relu`). Any shape."""

    def __init__(self, inplace: bool = False, mask: Literal["packed", "output"] = "packed") -> None:
        super().__init__(inplace)
        self.mask: Literal["packed", "output"] = mask

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return functional.relu(x, self.mask, inplace=self.inplace)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), f"mask={self.mask}"]))
