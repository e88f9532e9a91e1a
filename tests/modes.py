"""A mode that counts the calls of torch which pass through it, and a class of tensors."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Seen(TorchFunctionMode):
    """Counts the calls that go through a mode, as that which serves functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class Named(Tensor):
    """A class of tensors whose results are of it, too."""
