"""The optimizer of a run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from rad.training.settings import Settings


def make_optimizer(
    parameters: Sequence[nn.Parameter], settings: Settings, *, capturable: bool
) -> Optimizer:
    """Adam or SGD at the first learning rate.

    A `capturable` one has its learning rate and its counts of steps in tensors beside the
    parameters, in fused kernels: a step is the same work on the same memory every time, and never
    waits. A CUDA graph needs that; numbers equal the other implementation's to rounding.
    """
    kind = {"adam": Adam, "sgd": SGD}[settings.optimizer]
    if not capturable:
        return kind(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    rate = torch.full((), settings.learning_rate, device=parameters[0].device)
    options = {"fused": True, **({"capturable": True} if kind is Adam else {})}
    return kind(parameters, lr=rate, weight_decay=settings.weight_decay, **options)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` from the next step on; one that lies in a tensor is changed in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
