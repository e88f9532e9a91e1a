"""Which function of torch is served by what, and what the call then keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rad.nn.calls import Calls, Pass
from rad.sketches import DitheredRounding, Identity

Server = Callable[..., Any]

Words = Callable[[Calls], str | None]
"""What a call keeps, in words; None where it is torch's."""

SERVERS: dict[Any, Server] = {}
"""Functions and methods of torch -> what serves them."""

_WORDS: dict[str, Words] = {}


def serves(*functions: Any, keeps: Words) -> Callable[[Server], Server]:
    """Registers a server for those functions of torch, and what it keeps."""

    def register(server: Server) -> Server:
        SERVERS.update(dict.fromkeys(functions, server))
        _WORDS.update({function.__name__: keeps for function in functions})
        return server

    return register


def kept_by(function: str, calls: Calls) -> str | None:
    """What a call of the function of that name keeps, in words; None where it is torch's."""
    words = _WORDS.get(function)
    return None if words is None else words(calls)


def exactly(what: str) -> Words:
    """Of what keeps that whichever sketches there are."""
    return lambda calls: what


def of_derivative(calls: Calls) -> str | None:
    """Of activation functions."""
    rounded = not isinstance(calls.of_derivatives, Identity)
    return f"{calls.of_derivatives} of its derivative" if rounded else None


def on_path(what: str) -> Words:
    """Of what keeps the path's sketch of that, and without a path is torch's."""
    return lambda calls: None if calls.path is None else f"{calls.path} of {what}"


def has_gradient(x: Any) -> bool:
    """Whether this is a tensor of real numbers that requires a gradient."""
    return isinstance(x, Tensor) and x.requires_grad and x.is_floating_point()


def key_on_path(run: Pass, x: Any) -> Tensor | None:
    """A key for a call with that tensor, where the path rounds; None where it is torch's."""
    rounded = isinstance(run.calls.path, DitheredRounding) and isinstance(x, Tensor)
    return run.next_key(x.device) if rounded else None
