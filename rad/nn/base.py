"""What layers with draws have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rad.operators import opaque
from rad.sketches import Identity, Sketch, fold_in, make_key


@opaque()
def _fold_in_and_count(key: Tensor, calls: Tensor) -> tuple[Tensor, Tensor]:
    """The key of this call, and the next count.

    One operator, since a compiled program may leave to its backward pass whatever its forward pass
    does not need for its results: there a key of its own would be folded from the next count.
    """
    return fold_in(key, calls), calls + 1


def keeps_now(module: nn.Module) -> bool:
    """Whether a call keeps something for backward: in training mode, with gradients enabled."""
    return module.training and torch.is_grad_enabled()


class Sketching(nn.Module):
    """Mixin of the layers that keep a sketch of their input, with a fresh key for every call.

    The t-th call draws with `fold_in(key, t)`, `key` being derived from the seed and
    the layer's place. Key and counter are non-persistent buffers, advanced in place
    on the device.
    """

    sketch: Sketch
    key: Tensor
    calls: Tensor

    def set_sketch(self, sketch: Sketch, seed: int = 0, place: int = 0) -> None:
        """Sketch with `sketch` and the draws of (seed, place) from now on, from the start."""
        device = next(self.parameters()).device
        self.sketch = sketch
        self.register_buffer("key", fold_in(make_key(seed, device), place), persistent=False)
        self.register_buffer("calls", torch.zeros_like(self.key), persistent=False)

    def next_key(self) -> Tensor:
        """The key of this call; advances the counter."""
        key, calls = _fold_in_and_count(self.key, self.calls)
        self.calls.copy_(calls)
        return key

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        return str(self.sketch)

    def weight_grad_variance(self, x: Tensor, grad_output: Tensor, sketch: Sketch) -> Tensor:
        """E |dW_hat - dW|^2 of a call with this input, in closed form: shape ().

        Raises TypeError for a layer or a sketch without a closed form.
        """
        raise TypeError(f"no closed-form weight gradient variance for {type(self).__name__}")

    def rows_and_noise_weights(self, x: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of a sketch of this input, and by what the variance of each number counts.

        Uncorrelated errors of variance s in the rows (n, d) give the weight's gradient the
        variance <weights, s>; the weights are (n, d) or (n, 1). Raises TypeError for a layer
        without a closed form.
        """
        raise TypeError(f"no closed-form weight gradient variance for {type(self).__name__}")

    def draw_key(self) -> Tensor:
        """The key of this call; `Identity` draws nothing and counts no calls."""
        return self.key if isinstance(self.sketch, Identity) else self.next_key()

    def sketches_now(self) -> bool:
        """Whether a call would sketch: in training mode, with gradients enabled."""
        return keeps_now(self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sketch={self.sketch}"
