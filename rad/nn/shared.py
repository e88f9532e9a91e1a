"""One sketch for all the layers of a model that read a tensor, such as those of Q, K and V."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Kept = tuple[Tensor, tuple[Tensor, ...]]
"""A key, and what was kept with it."""


class _Reference(weakref.ref[Tensor]):
    """A weak reference that knows the place of its entry when the tensor is gone."""

    __slots__ = ("place",)
    place: int


@dataclass(slots=True)
class _Entry:
    tensor: _Reference
    version: int
    manner: Hashable
    key: weakref.ref[Tensor]
    parts: list[weakref.ref[Tensor]]
    readers: list[weakref.ref[nn.Module]]

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
        me = weakref.ref(self)

        def forget(reference: weakref.ref[Tensor]) -> None:
            assert isinstance(reference, _Reference)
            if (shared := me()) is not None:
                shared._entries.pop(reference.place, None)

        self._entries: dict[int, _Entry] = {}
        self._forget = forget

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return Shared()

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()

    def taken(self, x: Tensor, reader: nn.Module, manner: Hashable) -> Kept | None:
        """What another reader keeps of x in that manner, and its key; None where `reader` draws."""
        entry = self._entries.get(id(x))
        if (
            entry is None
            or entry.tensor() is not x
            or entry.version != x._version
            or entry.manner != manner
            or _have_met([reader, *(each() for each in entry.readers)])
            or (kept := entry.living()) is None
        ):
            return None
        entry.readers.append(weakref.ref(reader))
        return kept

    def give(
        self, x: Tensor, reader: nn.Module, manner: Hashable, key: Tensor, parts: tuple[Tensor, ...]
    ) -> None:
        """What `reader` keeps of x, for others to take. x is no inference tensor."""
        tensor = _Reference(x, self._forget)
        tensor.place = id(x)
        refs = [weakref.ref(part) for part in parts]
        me = [weakref.ref(reader)]
        self._entries[id(x)] = _Entry(tensor, x._version, manner, weakref.ref(key), refs, me)


def _have_met(readers: list[nn.Module | None]) -> bool:
    """Whether two are one layer, or have a parameter in common, those of parametrizations too."""
    own = [{id(layer), *map(id, layer.parameters())} for layer in readers if layer is not None]
    return len(set().union(*own)) < sum(map(len, own))
