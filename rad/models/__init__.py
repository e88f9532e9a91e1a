"""Plain torch.nn models, which know nothing of RAD: each a file here and a row of `MODELS`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rad.errors import UsageError
from rad.models.convnet import convnet
from rad.models.feedforward import feedforward
from rad.models.irnn import irnn

MODELS: dict[str, Callable[..., nn.Module]] = {
    "feedforward": feedforward,
    "convnet": convnet,
    "irnn": irnn,
}

__all__ = ["MODELS", "build", "convnet", "feedforward", "irnn"]


def build(
    name: str, input_shape: tuple[int, ...], classes: int, seed: int, **options: Any
) -> nn.Module:
    """The model `name`, on the CPU, with initial weights that depend on the seed only.

    It maps inputs (B, *input_shape) to scores (B, classes). The global generators stay untouched.

    Raises:
        UsageError: unknown model, or options that it cannot use.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return MODELS[name](input_shape, classes, **options)
