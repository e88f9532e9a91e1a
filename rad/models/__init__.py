"""Plain torch.nn models, which know nothing of RAD: each a file here and a row of `MODELS`."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rad.errors import UsageError
from rad.models.convnet import convnet
from rad.models.feedforward import feedforward
from rad.models.gpt import gpt
from rad.models.irnn import irnn
from rad.models.resnet import resnet
from rad.models.vit import vit

MODELS: dict[str, Callable[..., nn.Module]] = {
    "feedforward": feedforward,
    "convnet": convnet,
    "irnn": irnn,
    "gpt": gpt,
    "resnet": resnet,
    "vit": vit,
}

__all__ = ["MODELS", "build", "convnet", "feedforward", "gpt", "irnn", "resnet", "vit"]


def build(name: str | Callable[..., Any], *data: Any, seed: int, **options: Any) -> nn.Module:
    """The model `name`, on the CPU, with initial weights that depend on the seed only.

    In place of a name, a class or function of one's own may make it.
    `data` and `options` are its arguments. What it has to know of its data comes first, or by name
    from the `model_arguments` of a data set: `input_shape` and `classes` for images, where it maps
    inputs (B, *input_shape) to scores (B, classes), or `vocabulary` and `context` for a text. The
    global generators stay untouched.

    Raises:
        UsageError: unknown model, data that it is not for, options that it cannot use, or what is
            made is no module.
    """
    if isinstance(name, str) and name not in MODELS:
        raise UsageError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    maker = MODELS[name] if isinstance(name, str) else name
    label = name if isinstance(name, str) else getattr(name, "__name__", name)
    try:
        inspect.signature(maker).bind(*data, **options)
    except TypeError as error:
        takes = ", ".join(inspect.signature(maker).parameters)
        raise UsageError(
            f"model {label!r} takes {takes} ({error}): choose a model for such data, and options "
            "that it has"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        model = maker(*data, **options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {label!r} is a {type(model).__name__}; give a torch.nn.Module")
    return model
