"""What the functional calls of a module keep, and what a server of them is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rad.sketches import DitheredRounding, Identity, Sketch, StochasticRounding
from rad.sketches.blockwise import Rounding


@dataclass(frozen=True)
class Calls:
    """What the functional calls of a module keep, and where their draws start.

    `path` is for what they keep that is not exact: factors of products, derivatives, normalised
    inputs. Without a path, derivatives take `sketch` where it is a rounding, as in layers, and the
    others are torch's.
    """

    sketch: Sketch
    path: Sketch | None = None
    seed: int = 0
    place: int = 0
    replica: int | None = None

    of_derivatives: Sketch = field(init=False, compare=False)
    """For the derivatives of activation functions: a rounding, or `Identity` for torch's."""

    of_two_values: Sketch = field(init=False, compare=False)
    """The same for derivatives of two values, of which a bit tells which, exactly."""

    of_probabilities: Sketch | None = field(init=False, compare=False)
    """For the probabilities of a loss, which its gradient is linear in; None for torch's."""

    def __post_init__(self) -> None:
        # made here once: torch.compile does not trace how sketches are made
        wanted = self.sketch if self.path is None else self.path
        rounding = wanted if isinstance(wanted, Rounding) else Identity()
        two = StochasticRounding(1, wanted.block) if isinstance(wanted, Rounding) else rounding
        of_loss = None
        if isinstance(self.path, DitheredRounding):
            of_loss = StochasticRounding(self.path.bits, self.path.block)
        object.__setattr__(self, "of_derivatives", rounding)
        object.__setattr__(self, "of_two_values", two)
        object.__setattr__(self, "of_probabilities", of_loss)


class Pass(Protocol):
    """A pass of a module, for which a call is served."""

    @property
    def calls(self) -> Calls: ...

    def next_key(self, device: torch.device) -> Tensor:
        """The key of the next call that draws, there."""

    def layer_of(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        """The linear layer right below the module with this weight and bias, if there is one."""

    def serving(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function gives, whose own calls are served, too."""
