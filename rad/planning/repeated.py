"""Bytes of a model whose blocks repeat, from the same model with two and with three of them.

A further block in the middle keeps what the last one added kept, so that every count is a linear
function of the number of blocks: that of n is that of three, and n - 3 times the difference to two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rad.errors import UsageError
from rad.planning.exact import blocks
from rad.planning.fake import FakeTrial, KeptBytes
from rad.planning.probe import Sketches
from rad.sketches import Sketch

SHALLOW, DEEP = 2, 3
"""Repeated blocks of the two models that are counted."""

_Number = TypeVar("_Number", int, float)


@dataclass
class Repeated:
    """Trials of a model with `SHALLOW` and with `DEEP` repeated blocks, for one with `count`.

    Sketches are those of the deep model's layers: the middle block's are used in all blocks between
    the first and the last.
    """

    shallow: FakeTrial
    deep: FakeTrial
    count: int
    stem: str = field(init=False)
    """The dotted name of what holds the repeated blocks, such as `layers`."""

    def __post_init__(self) -> None:
        extra = set(blocks(self.deep.model)) - set(blocks(self.shallow.model))
        if len(extra) != 1:
            raise UsageError(
                "the model with one more repeated block has other blocks besides, so that bytes "
                "cannot be extrapolated: give models whose blocks repeat in one place"
            )
        self.stem = extra.pop().rpartition(".")[0]

    @property
    def full_batch(self) -> int:
        return self.deep.full_batch

    @property
    def middle(self) -> str:
        """The dotted name of the block that stands for all in the middle."""
        return f"{self.stem}.{SHALLOW - 1}"

    def copies(self, name: str) -> int:
        """How many modules of the whole model the deep model's of that name stands for."""
        inside = name == self.middle or name.startswith(f"{self.middle}.")
        return self.count - DEEP + 1 if inside else 1

    def extrapolated(self, shallow: _Number, deep: _Number) -> _Number:
        """A count of the whole model, from those of the two."""
        return deep + (self.count - DEEP) * (deep - shallow)

    def in_whole(self, name: str) -> str:
        """What the deep model's module of that name is called in the whole one.

        Those that the middle block's stands for are a range, such as `layers.1..30.mlp`.
        """
        found = self._repeated(name)
        if found is None or self.count == DEEP or int(found[1]) < SHALLOW - 1:
            return name
        first, last = SHALLOW - 1, self.count - 1
        which = f"{first}..{last - 1}" if int(found[1]) == first else str(last)
        return f"{self.stem}.{which}{found[2] or ''}"

    @contextmanager
    def on_path(self, path: Sketch | None) -> Iterator[None]:
        """Both trials have that path inside."""
        before = self.deep.path
        self.shallow.path = self.deep.path = path
        try:
            yield
        finally:
            self.shallow.path = self.deep.path = before

    def recomputing(self, names: tuple[str, ...]) -> Repeated:
        """The same, in which those blocks of the deep model are recomputed."""
        here = {self._in_shallow(name) for name in names} - {None}
        known = [name for name in blocks(self.shallow.model) if name in here]
        return replace(
            self, shallow=self.shallow.recomputing(known), deep=self.deep.recomputing(names)
        )

    def total_bytes(self, sketch: Sketches, batch: int) -> int:
        """Parameter bytes plus saved bytes of the whole model."""
        return self._both(lambda trial, own: trial.total_bytes(own, batch), sketch)

    @property
    def parameter_bytes(self) -> int:
        return self.extrapolated(self.shallow.parameter_bytes, self.deep.parameter_bytes)

    def kept(self, sketch: Sketches | None) -> tuple[KeptBytes, ...]:
        """What the deep model keeps, the middle block's standing for `copies` of it."""
        return self.deep.kept(sketch)

    def plain_bytes(self) -> int:
        """What torch saves of the whole model as it is."""
        return self.extrapolated(self.shallow.plain_bytes(), self.deep.plain_bytes())

    def _both(self, count: Callable[[FakeTrial, Sketches], int], sketch: Sketches) -> int:
        own: Sketches = sketch
        if isinstance(sketch, Mapping):
            renamed = {self._in_shallow(name): each for name, each in sketch.items()}
            own = {name: each for name, each in renamed.items() if name is not None}
        return self.extrapolated(count(self.shallow, own), count(self.deep, sketch))

    def _in_shallow(self, name: str) -> str | None:
        """The name in the shallow model, whose last block is the deep one's; None in the middle."""
        found = self._repeated(name)
        if found is None:
            return name
        number = int(found[1])
        if number == SHALLOW - 1:
            return None
        moved = number - 1 if number == DEEP - 1 else number
        return f"{self.stem}.{moved}{found[2] or ''}"

    def _repeated(self, name: str) -> re.Match[str] | None:
        """Its number among the repeated blocks, and the rest of a name that begins with one's."""
        return re.match(rf"{re.escape(self.stem)}\.(\d+)(\..*)?$", name)
