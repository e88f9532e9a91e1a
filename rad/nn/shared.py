"""One sketch for all the layers of a model that read a tensor, such as those of Q, K and V."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Kept = tuple[Tensor, tuple[Tensor, ...]]
"""A key, and what was kept with it."""


@dataclass
class _Entry:
    tensor: weakref.ref[Tensor]
    version: int
    manner: Hashable
    key: weakref.ref[Tensor]
    parts: list[weakref.ref[Tensor]]
    readers: set[int] = field(default_factory=set)  # layers and their parameters

    def living(self) -> Kept | None:
        """What was kept, while a graph keeps it."""
        key, parts = self.key(), [part() for part in self.parts]
        if key is None or any(part is None for part in parts):
            return None
        return key, tuple(part for part in parts if part is not None)


class Shared:
    """What the layers of one model keep of the tensors that live.

    A layer that reads a tensor of which another keeps a sketch, taken in the same manner, takes
    that sketch and its key: each weight's gradient is estimated without bias as before, only that
    the errors of such layers are no longer independent. A layer takes a sketch once, and so does a
    weight, whichever layers share it: when it meets the tensor again it draws afresh, so that the
    errors of one weight's gradient are independent and their variances add up. Nothing is held
    here: a sketch lives as long as the graph that keeps it. Copies of a model share nothing with
    it.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return Shared()

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()

    def keep(
        self, x: Tensor, reader: nn.Module, manner: Hashable, draw: Callable[[], Kept]
    ) -> Kept:
        """What `reader` keeps of x, and the key: another reader's, or what `draw()` gives."""
        if x.is_inference():
            return draw()
        readers = _with_parameters(reader)
        entry = self._entries.get(id(x))
        if (
            entry is not None
            and entry.tensor() is x
            and entry.version == x._version
            and entry.manner == manner
            and not readers & entry.readers
            and (kept := entry.living()) is not None
        ):
            entry.readers |= readers
            return kept
        key, parts = draw()
        refs = [weakref.ref(part) for part in parts]
        own = _Entry(self._forgotten_with(x), x._version, manner, weakref.ref(key), refs)
        own.readers |= readers
        self._entries[id(x)] = own
        return key, parts

    def _forgotten_with(self, x: Tensor) -> weakref.ref[Tensor]:
        """A reference to x that takes its entry away when x dies."""
        me, place = weakref.ref(self), id(x)

        def forget(_: weakref.ref[Tensor]) -> None:
            if (shared := me()) is not None:
                shared._entries.pop(place, None)

        return weakref.ref(x, forget)


def _with_parameters(reader: nn.Module) -> set[int]:
    """The ids of a layer and its parameters, those of parametrizations too."""
    own = reader.parameters() if reader._modules else reader._parameters.values()
    return {id(reader), *(id(parameter) for parameter in own if parameter is not None)}
