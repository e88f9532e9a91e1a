"""Sketch noise of a recurrent layer against its number of steps, measured and in closed form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import models
from rad.data import Dataset
from rad.draws.reference import fold_in, make_key
from rad.errors import UsageError
from rad.functional.recurrent import rnn, rnn_weight_grad_variance
from rad.models.irnn import IRNN
from rad.nn.layer_io import Recording
from rad.sketches import Identity, Sketch
from rad.sketches.registry import kinds

SKETCHES = ("same_sample", "different_sample", "project")
"""Kinds that are measured."""


def rows_of(
    dataset: Dataset, *, hidden: int, keep_fraction: float, batch_size: int, draws: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each sketch: E |dW_hat - dW|^2 / |dW|^2 for W_hh of the IRNN at initial weights.

    The batch are the first examples; the error is measured over so many keys, and predicted by
    `rnn_weight_grad_variance`.
    """
    device = dataset.train_images.device
    model = models.build("irnn", **dataset.model_arguments, seed=seed, hidden=hidden)
    model.to(device)
    assert isinstance(model, IRNN)
    x, y = dataset.batch(torch.arange(batch_size, device=device))
    x = x.transpose(0, 1)
    base = make_key(seed, device)
    exact = gradient(model, x, y, Identity(), base)
    states, delta = steps_of(model, x, y, exact, base)
    rows = []
    for name in SKETCHES:
        sketch = kinds()[name].make(keep_fraction)
        keys = (fold_in(base, i) for i in range(draws))
        noise = torch.stack(
            [(gradient(model, x, y, sketch, key) - exact).square().sum() for key in keys]
        )
        scale = exact.square().sum()
        predicted = rnn_weight_grad_variance(states, delta, sketch) / scale
        rows.append(
            {
                "sketch": name,
                "steps": len(x),
                "measured": f"{(noise.mean() / scale).item():.6g}",
                "standard_error": f"{(noise.std() / scale / draws**0.5).item():.3g}",
                "predicted": f"{predicted.item():.6g}",
            }
        )
    return rows


def gradient(model: IRNN, x: Tensor, y: Tensor, sketch: Sketch, key: Tensor) -> Tensor:
    """The estimate of W_hh's gradient that the key draws: (H, H)."""
    h0 = x.new_zeros(x.shape[1], model.rnn.hidden_size)
    weights = list(model.rnn.parameters())
    _, last = rnn(x, h0, *weights, sketch=sketch, key=key, return_sequence=False)
    (grad,) = torch.autograd.grad(F.cross_entropy(model.output(last), y), weights[1])
    return grad


def steps_of(
    model: IRNN, x: Tensor, y: Tensor, exact: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """The states that W_hh meets, and the gradients of what enters the ReLU: each (T, B, H).

    In the order of the backward pass. Raises UsageError where they do not add up to the `exact`
    gradient of W_hh: it is then used elsewhere, too.
    """
    seen = Recording()
    gradient(model, x, y, seen, key)
    states, delta = map(torch.stack, zip(*seen.products, strict=True))
    own = torch.einsum("tbo,tbi->oi", delta, states)
    if (own - exact).norm() > 1e-2 * exact.norm():
        raise UsageError(
            "rnn.weight_hh_l0 is also used past the recurrent layer, which gradient noise does not "
            "see: give the layer a weight of its own"
        )
    return states, delta
