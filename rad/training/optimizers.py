"""The optimizer of a run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from rad.errors import UsageError
from rad.training.settings import Settings

FUSED_DEVICES = ("cpu", "cuda")


def make_optimizer(
    parameters: Sequence[nn.Parameter], settings: Settings, *, capturable: bool
) -> Optimizer:
    """Adam or SGD at the first learning rate.

    A `capturable` one has its learning rate and its counts of steps in tensors beside the
    parameters, in fused kernels: a step is the same work on the same memory every time, and never
    waits. A CUDA graph needs that. With `settings.fused` they are fused in any case. Results
    of fused kernels equal those of the others to rounding.

    Raises:
        UsageError: `settings.fused`, and a parameter that torch's fused kernels do not take.
    """
    kind = {"adam": Adam, "sgd": SGD}[settings.optimizer]
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if capturable:
        options["lr"] = torch.full((), settings.learning_rate, device=parameters[0].device)
        options |= {"capturable": True} if kind is Adam else {}
    if settings.fused:
        _check_fused(kind.__name__, parameters)
    if capturable or settings.fused:
        options["fused"] = True
    return kind(parameters, **options)


def _check_fused(optimizer: str, parameters: Sequence[nn.Parameter]) -> None:
    """What torch says at the first step only."""
    for parameter in parameters:
        dtype, device = parameter.dtype, parameter.device.type
        if not dtype.is_floating_point or device not in FUSED_DEVICES:
            raise UsageError(
                f"torch's fused {optimizer} takes real numbers on {' or '.join(FUSED_DEVICES)}, no "
                f"parameter of {dtype} on {device}: leave optimizer.fused at false"
            )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` from the next step on; one that lies in a tensor is changed in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
