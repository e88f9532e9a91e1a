"""Sketch noise of a recurrent layer against its number of steps, measured and in closed form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import models
from rad.data import Dataset
from rad.draws.reference import fold_in, make_key
from rad.functional.recurrent import rnn, rnn_weight_grad_variance
from rad.models.irnn import IRNN
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
    model = models.build("irnn", dataset.image_shape, dataset.classes, seed, hidden=hidden)
    model.to(device)
    assert isinstance(model, IRNN)
    x, y = dataset.batch(torch.arange(batch_size, device=device))
    x = x.transpose(0, 1)
    base = make_key(seed, device)
    exact = gradient(model, x, y, Identity(), base)
    states, delta = backward_signals(model, x, y)
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


def backward_signals(model: IRNN, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each step, and the gradients of what enters the ReLU: each (T, B, H).

    The layer is run on what its input and biases add to a state, through the identity, so that
    the gradient of that input is the one looked for.
    """
    w_ih, w_hh, b_ih, b_hh = model.rnn.parameters()
    added = (x @ w_ih.t() + b_ih + b_hh).detach().requires_grad_()
    h0 = x.new_zeros(x.shape[1], len(w_hh))
    through = torch.eye(len(w_hh), device=x.device)
    sequence, last = rnn(added, h0, through, w_hh, sketch=Identity(), key=make_key(0, x.device))
    assert sequence is not None
    (delta,) = torch.autograd.grad(F.cross_entropy(model.output(last), y), added)
    return torch.cat([h0[None], sequence.detach()[:-1]]), delta
