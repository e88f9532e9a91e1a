"""Bytes of models that need not exist: the machinery of `Trial`, on tensors without numbers.

Under torch's `FakeTensorMode` a model of any size has shapes, types and an autograd graph, and
takes no memory. What its graph keeps is counted as of any other (`rad.memory.graph`); sketches
keep tensors of the size that they say (`Sketch.nbytes`), without drawing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rad.errors import UsageError
from rad.memory.graph import Holding, holdings
from rad.memory.measure import saved_bytes
from rad.nn.kinds import kind_of
from rad.nn.layer_io import Recording, watching
from rad.nn.serving import calls_of, is_served
from rad.planning.exact import blocks
from rad.planning.probe import Sketches, Trial
from rad.sketches import Identity, Sketch

OUTSIDE = "outside blocks"
"""Where bytes are kept that no block keeps."""

SKETCH, RAD, TORCH = "sketch", "rad", "torch"


@dataclass(frozen=True)
class KeptBytes:
    """Bytes that a block (its dotted name, or `OUTSIDE`) keeps in modules of a class.

    `by`: `SKETCH` for sketches, their keys and packed masks, `RAD` for what its operators keep as
    it is, or `TORCH`. What the loss keeps, and what a Python function puts on its context, is of no
    class.
    """

    block: str
    kind: str
    by: str
    nbytes: int


class FakeTrial(Trial):
    """A `Trial` whose model and example are fake tensors: made and used in one `FakeTensorMode`.

    It knows shapes and saved bytes; what needs numbers (gradients, errors, times, peaks) it has
    not. Raises UsageError for `kind="peak"`, and as `Trial` does.
    """

    def _check_memory(self, model: nn.Module) -> None:
        if self.kind != "saved":
            raise UsageError(
                "without numbers saved bytes are known, peaks are not: leave out kind=peak"
            )

    def _forward(self, sketch: Sketches, batch: int, seed: int = 0) -> Callable[[], Tensor]:
        own: Sketches = (
            without_draws(sketch)
            if isinstance(sketch, Sketch)
            else {name: without_draws(each) for name, each in sketch.items()}
        )
        path = None if self.path is None else without_draws(self.path)
        forward = self.with_path(path, lambda: super(FakeTrial, self)._forward(own, batch, seed))
        for module in filter(is_served, self.model.modules()):
            calls = calls_of(module)
            for name in ("of_two_values", "of_probabilities"):
                sketched: Sketch | None = getattr(calls, name)
                object.__setattr__(
                    calls, name, None if sketched is None else without_draws(sketched)
                )
        return forward

    def plain_bytes(self) -> int:
        """What torch saves of the model as it was given."""
        forward, _ = self._plain()
        return saved_bytes(forward)

    def kept(self, sketch: Sketches | None) -> tuple[KeptBytes, ...]:
        """What the graph keeps with those sketches, or without RAD (None), by block and kind."""
        if sketch is None:
            forward, model = self._plain()
        else:
            forward, model = self._forward(sketch, self.full_batch), self.model
        names = {module: name for name, module in model.named_modules()}
        around = blocks(model)
        found: dict[tuple[str, str, str], int] = defaultdict(int)
        with _innermost(model) as stack:
            held = holdings(forward, lambda: stack[-1] if stack else None)
        for each in held:
            name = names.get(each.place, "")
            inside = (b for b in around if name == b or name.startswith(f"{b}."))
            kind = "loss, contexts" if each.place is None else kind_of(each.place).__name__
            found[next(inside, OUTSIDE), kind, _keeper(each)] += each.nbytes
        return tuple(KeptBytes(*where, size) for where, size in found.items())

    def _plain(self) -> tuple[Callable[[], Tensor], nn.Module]:
        model = self._copy()
        return (lambda: self.loss(self.example.call(model))), model


@contextmanager
def _innermost(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that run, innermost last, while it is entered."""
    stack: list[nn.Module] = []

    def leave(*_: object) -> None:
        stack.pop()

    with watching(model.modules(), lambda module, *_: stack.append(module), leave):
        yield stack


def _keeper(kept: Holding) -> str:
    if not kept.source.startswith("rad."):
        return TORCH
    is_key = not kept.shape
    return SKETCH if is_key or kept.dtype == torch.uint8 else RAD


def without_draws(sketch: Sketch) -> Sketch:
    """The same sketch, whose `compress` allocates what it keeps and draws nothing.

    What keeps everything draws nothing as it is: an `Identity`, and a `Recording`, which is to see
    what it is given.
    """
    if isinstance(sketch, Identity | Recording):
        return sketch
    kind = _over(type(sketch))
    made: Sketch = kind(**{each.name: getattr(sketch, each.name) for each in fields(sketch)})  # type: ignore[arg-type]
    return made


@cache
def _over(kind: Any) -> Any:
    def compress(self: Sketch, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(self.nbytes(tuple(x.shape), x.dtype), dtype=torch.uint8),)

    contents = {"compress": compress, "__module__": kind.__module__, "__doc__": kind.__doc__}
    if hasattr(kind, "in_kernels"):  # at once, as in kernels, and not in pieces
        contents["in_kernels"] = lambda *_: True
    return type(kind.__name__, (kind,), contents)
