"""Modules whose own calls of torch's functions (`F.relu(x)`, `x * y`) are served as layers are.

`serve` gives a module a class over its own, whose `forward` runs the module's inside a
`TorchFunctionMode`: that sees the calls of torch's functions, whoever makes them, and hands those
that `rad.nn.functions` knows to RAD's. A module inside that is served, too, has its calls for
itself; RAD layers inside compute as they do elsewhere. Draws are functions of (seed, place of the
module, number of its pass, number of the call in that pass).

In evaluation mode, without gradients and under torch.func's transforms a module runs as it is.
torch.compile traces the mode and the servers, so that a compiled program has their operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from rad.nn.base import Sketching, advance, keeps_now, start_draws
from rad.nn.calls import Calls
from rad.nn.functions import SERVERS
from rad.nn.kinds import SERVES
from rad.nn.overlay import class_over, take_off
from rad.sketches import fold_in

CALLS, KEY, COUNT = "rad_calls", "rad_key", "rad_count"
"""Names in a served module: what its calls keep, and the buffers of its draws."""

_PLAIN = frozenset((Tensor, nn.Parameter))
"""Types of tensors that compute as torch does; subclasses may not."""


def serve(module: nn.Module, calls: Calls) -> None:
    """Serve the functional calls of a module's forward pass from now on, drawing from the start."""
    if not is_served(module):
        kind: Any = type(module)
        module.__class__ = _over(kind)
    vars(module)[CALLS] = calls
    _start(module, next((p.device for p in module.parameters()), None))


def stop_serving(module: nn.Module) -> None:
    """Give a served module its own class again, and take away what serving gave it.

    Raises UsageError where torch has made a class over that which serves.
    """
    take_off(module, SERVES, "functional calls cannot be left to torch again (functions=False)")
    del vars(module)[CALLS], module._buffers[KEY], module._buffers[COUNT]
    module._non_persistent_buffers_set.difference_update((KEY, COUNT))


def is_served(module: nn.Module) -> bool:
    """Whether `serve` gave the module its class."""
    return hasattr(type(module), SERVES)


def calls_of(module: nn.Module) -> Calls:
    """What a served module's calls keep."""
    calls: Calls = vars(module)[CALLS]
    return calls


class _Pass:
    """A pass of a served module: what its calls are served with (`rad.nn.calls.Pass`)."""

    def __init__(self, module: nn.Module, mode: _Interception) -> None:
        self.calls = calls_of(module)
        self._module, self._mode = module, mode
        self._key: Tensor | None = None
        self._number = 0

    def next_key(self, device: torch.device) -> Tensor:
        if self._key is None:
            self._key = _next_key(self._module, device)
        self._number += 1
        return fold_in(self._key, self._number)

    def layer_of(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        for layer in self._module.children():
            is_linear = isinstance(layer, nn.Linear) and isinstance(layer, Sketching)
            if is_linear and layer.weight is weight and layer.bias is bias:
                return layer
        return None

    def serving(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self._mode:
            return function(*arguments, **options)


class _Interception(TorchFunctionMode):
    """Hands calls of torch's functions to their servers, for the current pass."""

    def __init__(self) -> None:
        super().__init__()
        self.current: _Pass | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        server = SERVERS.get(function)
        current = self.current
        if server and current and _PLAIN.issuperset(types) and _records_plainly():
            result = server(current, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return function(*args, **kwargs)


def _records_plainly() -> bool:
    """Whether autograd records, and none of torch.func's transforms is at work."""
    return torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()


def _run(module: nn.Module | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(...)`, whose calls are served for the module; for none, they are torch's."""
    modes = _get_current_function_mode_stack()
    found = next((mode for mode in modes if isinstance(mode, _Interception)), None)
    if found is None:
        if module is None:
            return function(*args, **kwargs)
        mode = _Interception()
        mode.current = _Pass(module, mode)
        with mode:
            return function(*args, **kwargs)
    outer = found.current
    found.current = None if module is None else _Pass(module, found)
    try:
        return function(*args, **kwargs)
    finally:
        found.current = outer


def as_torch(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, in which no call of torch's functions is served."""
    if not torch._C._len_torch_function_stack():
        return function(*arguments)
    return _run(None, function, *arguments)


@cache
def _over(base: Any) -> Any:
    """A subclass under the same name, whose `forward` serves the calls of that of `base`."""
    return class_over(base, SERVES, _serving, _new)


def _serving(forward_of_base: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _run(self if keeps_now(self) else None, forward_of_base, self, *args, **kwargs)

    return forward


def _new(base: Any) -> nn.Module:
    """An instance without contents of the class over `base`, as pickling and copying make it."""
    served = _over(base)
    return served.__new__(served)


def _start(module: nn.Module, device: torch.device | None) -> None:
    calls = calls_of(module)
    key, count = start_draws(calls.seed, calls.place, device)
    module.register_buffer(KEY, key, persistent=False)
    module.register_buffer(COUNT, count, persistent=False)


def _next_key(module: nn.Module, device: torch.device) -> Tensor:
    """The key of this pass, there; advances the count."""
    buffers: dict[str, Any] = module._buffers
    if buffers[KEY].is_meta:
        _start(module, device)
    key, count = buffers[KEY], buffers[COUNT]
    if key.device != device:
        key, count = key.to(device), count.to(device)
        buffers[KEY], buffers[COUNT] = key, count
    return advance(key, count, calls_of(module).replica)
