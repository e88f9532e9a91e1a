"""What the functional calls of a module keep, and what a server of them is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rad.sketches import Identity, Sketch
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

    @property
    def of_derivatives(self) -> Sketch:
        """For the derivatives of activation functions: a rounding, or `Identity` for torch's."""
        wanted = self.sketch if self.path is None else self.path
        return wanted if isinstance(wanted, Rounding) else Identity()


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
