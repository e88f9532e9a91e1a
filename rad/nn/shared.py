"""One sketch for all the layers of a model that read a tensor, such as those of Q, K and V."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Kept = tuple[Tensor, tuple[Tensor, ...]]
"""A key, and what was kept with it."""


@dataclass
class _Entry:
    tensor: weakref.ref[Tensor]
    version: int
    manner: Hashable
    kept: Kept
    readers: set[int] = field(default_factory=set)


class Shared:
    """What the layers of one model keep of the tensors that live.

    A layer that reads a tensor of which another keeps a sketch already, taken in the same manner,
    takes that sketch and its key: each weight's gradient is estimated without bias as before, only
    that the errors of such layers are no longer independent. A layer takes a sketch once: when it
    reads the tensor again, in another forward pass, it draws afresh. Entries die with the tensor.
    Copies of a model share nothing with it.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return Shared()

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()

    def keep(self, x: Tensor, reader: object, manner: Hashable, draw: Callable[[], Kept]) -> Kept:
        """What `reader` keeps of x, and the key: another reader's, or what `draw()` gives."""
        place, entry = id(x), self._entries.get(id(x))
        fits = (
            entry is not None
            and entry.tensor() is x
            and entry.version == x._version
            and entry.manner == manner
            and id(reader) not in entry.readers
        )
        if not fits:
            gone = weakref.ref(x, lambda _: self._entries.pop(place, None))
            entry = self._entries[place] = _Entry(gone, x._version, manner, draw())
        assert entry is not None
        entry.readers.add(id(reader))
        return entry.kept
