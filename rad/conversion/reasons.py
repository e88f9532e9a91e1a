"""Why a part of a model keeps what torch keeps, and what to do about it.

Reports and audits say it in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rad.conversion.subclasses import can_become_rad, taken_name
from rad.nn import LAYERS, NORMS, RAD_LAYERS, Sketching
from rad.nn.base import TORCHS
from rad.nn.kinds import kind_of, overridden
from rad.nn.registry import MODULE_OF_FUNCTION, MODULE_OF_NODE, OPERATORS

RECOMPUTED = "its inputs; it runs again in the backward pass"
"""What a recomputed module keeps (`rad.nn.recomputing`), in words."""

_NORM_FUNCTIONS = {
    name: row.torch.__name__
    for row in OPERATORS
    if row.norm
    for name in (row.function, f"native_{row.function}")
}


@dataclass(frozen=True)
class Reason:
    """Why torch's tensors are kept, and what would keep less; in words."""

    why: str
    remedy: str

    @property
    def keeps(self) -> str:
        """What is kept, in words."""
        return f"{TORCHS}: {self.why}"


UNCONVERTED = Reason("convert the model", "model = rad.convert(model, sketch)")
EVALUATED = Reason("in evaluation mode", "call train() on what is to be trained")

_NORMS = "rad.convert(..., path=rad.DitheredRounding(4)) rounds what norms keep"
_OF_NORM = Reason("a norm, rounded where rad.convert is given path=", _NORMS)
_RECOMPUTE = "recompute around it (torch.utils.checkpoint), or write it with rad.functional"
_PLAIN = "a plain torch layer in its place is converted"
_OWN_FORWARD = Reason("a forward pass of its own may compute something else", _PLAIN)
_UNKNOWN = Reason("no RAD layer for this type", _RECOMPUTE)
_SMOOTH = Reason(
    "only StochasticRounding and DitheredRounding keep less of a derivative",
    "give it a rounding by name: rad.convert(model, {..., name: rad.StochasticRounding(4)})",
)
_PROJECTED = Reason("no RAD layer projects its states (proj_size)", _RECOMPUTE)
_OPTIONS = Reason("its options are torch's own", "leave out return_indices, sparse and max_norm")


def reason_of(module: nn.Module) -> Reason | None:
    """Why a module keeps what torch keeps, in training; None for a RAD layer that does not."""
    kind = kind_of(module)
    if kind in RAD_LAYERS:
        return _of_rad_layer(module) if module.keeps == TORCHS else None
    if kind in LAYERS | NORMS and "forward" in vars(module):
        return _OWN_FORWARD
    if kind in LAYERS | NORMS and not can_become_rad(module):
        return Reason(
            f"its attribute {taken_name(module)!r} has a name that its RAD layer needs",
            "rename the attribute",
        )
    if kind in LAYERS:
        return UNCONVERTED
    if kind in NORMS:
        return _OF_NORM
    return _of_subclass(kind) if issubclass(kind, (*LAYERS, *NORMS)) else _UNKNOWN


def _of_subclass(kind: type[nn.Module]) -> Reason:
    layer = next(each for each in kind.__mro__ if each in LAYERS or each in NORMS)
    name = overridden(kind, layer)
    own = "" if name is None else f" with {name} of its own"
    return Reason(f"a subclass of a torch layer{own} may compute something else", _PLAIN)


def _of_rad_layer(module: nn.Module) -> Reason:
    if kind_of(module) in NORMS.values():
        return _OF_NORM
    if isinstance(module, nn.RNNBase):
        return _PROJECTED
    return _SMOOTH if isinstance(module, Sketching) else _OPTIONS


def reason_of_call(function: str) -> Reason:
    """Why a function called without a module keeps what torch keeps.

    By its name in torch, or by that of its node in an autograd graph.
    """
    remedy = remedy_of_call(function)
    if remedy is None:
        return Reason("a functional call, for which there is no RAD layer", _RECOMPUTE)
    return Reason(f"a functional call; {remedy}", remedy)


def remedy_of_call(function: str) -> str | None:
    """The module that does what a function or a node does, and keeps less; None without one."""
    name = function.strip("_")
    if (norm := _NORM_FUNCTIONS.get(name)) is not None:
        return f"make it a torch.nn.{norm} module, and convert with path=rad.DitheredRounding(4)"
    layer = MODULE_OF_NODE.get(name) or MODULE_OF_FUNCTION.get(name)
    return None if layer is None else f"make it a torch.nn.{layer} module"
