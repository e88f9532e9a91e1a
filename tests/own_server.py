"""A server of `torch.sin`, which keeps a rounding of the derivative where there is one to keep."""

from typing import Any

import torch
from torch import Tensor

from rad import functional
from rad.nn.calls import Pass
from rad.nn.functions.registry import has_gradient, of_derivative, serves
from rad.sketches import Identity


@serves(torch.sin, Tensor.sin, keeps=of_derivative)
def _sin(run: Pass, input: Any, **others: Any) -> Any:
    sketch = run.calls.of_derivatives
    if others or isinstance(sketch, Identity) or not has_gradient(input):
        return NotImplemented
    key = run.next_key(input.device)
    return functional.elementwise(input, torch.sin, sketch=sketch, key=key)
