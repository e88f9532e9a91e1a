"""What `auto` would do with a model too large for this machine, and what that takes.

Bytes are those of the model on tensors without numbers (`rad.planning.repeated`), noise is that of
a small model of the same family under the same plan, times are a roofline's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from rad.benchmarks.large import small
from rad.benchmarks.zoo import Specimen
from rad.errors import UsageError
from rad.nn.layer_io import watching
from rad.planning.auto import FEW, layer_options, menu, within
from rad.planning.exact import blocks
from rad.planning.fake import SKETCH, FakeTrial, KeptBytes
from rad.planning.greedy import Option, simplest
from rad.planning.limits import measured
from rad.planning.path import PATHS
from rad.planning.probe import Sketches, Trial
from rad.planning.repeated import DEEP, SHALLOW, Repeated
from rad.planning.roofline import Accelerator, Work, work_of
from rad.sketches import Identity, Sketch
from rad.sketches.blockwise import Rounding

BATCH = 8
"""Examples of which the small model's statistics are."""


@dataclass(frozen=True)
class Costs:
    """Of a pass of the whole model, plain: seconds in all, of the forward pass of its blocks and of
    one in the middle; `largest` is what its largest operator reads and writes, in bytes."""

    seconds: float
    blocks: float
    middle: float
    largest: int


@dataclass(frozen=True)
class Estimate:
    """A way to train: what it saves, in how many times plain torch's time, with which noise.

    `error` is E |g_hat - g|^2 / |g|^2 of the small model's whole gradient, NaN where it is not
    known. `again`: what stands a second time while a block is recomputed.
    """

    program: str
    saved_bytes: int
    time_ratio: float
    error: float = 0.0
    again: int = 0
    sketches: Sketches | None = None
    path: Sketch | None = None
    recomputed: int = 0


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """torch's default type inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_numbers(dtype: torch.dtype) -> Iterator[None]:
    """Models made inside have parameters of that type, and no numbers."""
    with default_type(dtype), FakeTensorMode():
        yield


class DryRun:
    """What is known of a model with `repeats` repeated blocks; used inside `without_numbers`.

    `make` gives the model and its batch with so many of them.
    """

    def __init__(self, make: Callable[[int], Specimen], repeats: int, device: Accelerator) -> None:
        self._made = [make(n) for n in (SHALLOW, DEEP)]
        shallow, deep = (FakeTrial(m.model, m.inputs, m.loss_of_output) for m in self._made)
        self.model = Repeated(shallow, deep, repeats)
        self.device = device
        self.costs = self._costs()

    def plain(self) -> Estimate:
        """What torch does."""
        return Estimate("torch", self.model.plain_bytes(), 1.0)

    def checkpointing(self) -> Estimate:
        """Every block is recomputed."""
        all_blocks = blocks(self.model.deep.model)
        saved = self._saved(self.model.recomputing(all_blocks), Identity())
        ratio = 1 + self.costs.blocks / self.costs.seconds
        count = sum(map(self.model.copies, all_blocks))
        return Estimate("checkpointing", saved, ratio, again=self._of_block(), recomputed=count)

    def some_recomputed(self, limit: int) -> Estimate | None:
        """As few of the blocks in the middle as meet the limit, all else exact; None if not all."""
        exact = self._saved(self.model, Identity())
        less = exact - self._saved(self.model.recomputing((self.model.middle,)), Identity())
        missing = exact + self.model.parameter_bytes - limit
        most = self.model.copies(self.model.middle)
        if missing > max(less, 0):
            return None
        count = -(-missing * most // less) if missing > 0 else 0
        ratio = 1 + count * self.costs.middle / self.costs.seconds
        saved = exact - count * less // most
        again = self._of_block() if count else 0
        program = "auto: recomputation" if count else "auto: everything kept"
        return Estimate(program, saved, ratio, again=again, recomputed=count)

    def given(self, program: str, sketch: Sketch, path: Sketch | None) -> Estimate:
        """One sketch in all layers, and that path; its error is not known."""
        with self.model.on_path(path):
            saved = self._saved(self.model, sketch)
            extra = self._sketching(self.model.plain_bytes(), saved, sketch)
        ratio = 1 + extra / self.costs.seconds
        return Estimate(program, saved, ratio, math.nan, sketches=sketch, path=path)

    def sketched(self, limit: int, statistics: Trial) -> Estimate | None:
        """Sketches of the layers and of the path, of least error on the small model."""
        options = self._options(statistics)
        plain = self.model.plain_bytes()
        found: list[Estimate] = []
        for path in PATHS:
            with self.model.on_path(path):
                chosen = within(self.model, options, limit, simplest(options, FEW))
                if chosen is None:
                    break
                own: Sketches = {name: option.sketch for name, option in chosen.items()}
                saved = self._saved(self.model, own)
                ratio = 1 + self._sketching(plain, saved, own) / self.costs.seconds
            with unset_fake_temporarily(), default_type(torch.float32):
                error = statistics.with_path(path, partial(statistics.gradient_error, own))
            found.append(Estimate("auto: sketches", saved, ratio, error, sketches=own, path=path))
        return min(reversed(found), key=lambda way: way.error, default=None)

    def least(self, statistics: Trial) -> int:
        """Bytes of parameters and of what the smallest sketches save."""
        with self.model.on_path(PATHS[0]):
            options = self._options(statistics)
            return min(measured(self.model, each) for each in simplest(options, 2))

    def automatic(self, limit: int, statistics: Trial) -> list[Estimate]:
        """The ways that fit, the one of least promised time to a loss first, as of `auto`.

        Where everything may be kept, that alone. `auto` would also try to sketch and recompute at
        once, and to recompute parts of blocks, which may meet smaller budgets.

        Raises UsageError where none does, naming the smallest budget.
        """
        every, parameters = self.checkpointing(), self.model.parameter_bytes
        exact = self.some_recomputed(limit)
        if exact is not None and not exact.recomputed:
            return [exact]
        found = [way for way in (self.sketched(limit, statistics), exact) if way is not None]
        if parameters + every.saved_bytes <= limit:
            found.append(every)
        if not found:
            least = min(parameters + every.saved_bytes, self.least(statistics))
            raise UsageError(
                f"the budget of {limit:,} bytes is too small: parameters take {parameters:,}; "
                f"give at least {least}, or a smaller batch"
            )
        return sorted(found, key=lambda way: way.time_ratio * (1 + way.error))

    def kept(self, way: Estimate) -> tuple[KeptBytes, ...]:
        """What a way keeps of the deep model, recomputation aside."""
        with self.model.on_path(way.path):
            return self.model.kept(way.sketches)

    def gathered_bytes(self) -> int:
        """Of parameters that stand whole at once under FSDP: of the largest block, and of all that
        is in none, which is gathered for the whole pass. Blocks gathered ahead are not counted."""
        model = self.model.deep.model
        of_blocks = [_bytes_of(model.get_submodule(name)) for name in blocks(model)]
        return max(of_blocks) + _bytes_of(model) - sum(of_blocks)

    def _options(self, statistics: Trial) -> dict[str, list[Option]]:
        """What layers may keep: bytes of all copies here, and the small model's noise."""
        with unset_fake_temporarily(), default_type(torch.float32):
            known = statistics.once(_known_options)
        dtype = next(self._made[1].model.parameters()).dtype
        options = {}
        for name, shapes in self.model.deep.shapes().items():
            copies = self.model.copies(name)
            options[name] = [
                Option(
                    each.sketch,
                    copies * sum(each.sketch.nbytes(shape, dtype) for shape in shapes),
                    copies * each.variance,
                )
                for each in known[name]
            ]
        return options

    def _saved(self, model: Repeated, sketches: Sketches) -> int:
        return model.total_bytes(sketches, model.full_batch) - model.parameter_bytes

    def _sketching(self, plain: int, saved: int, sketches: Sketches) -> float:
        kept = sum(
            each.nbytes * self.model.copies(each.block)
            for each in self.model.kept(sketches)
            if each.by == SKETCH
        )
        return self.device.sketch_seconds(plain - saved + kept, kept)

    def _of_block(self) -> int:
        """What the block that keeps most saves when it runs again."""
        found: dict[str, int] = {}
        for each in self.model.kept(Identity()):
            found[each.block] = found.get(each.block, 0) + each.nbytes
        return max(size for name, size in found.items() if name in blocks(self.model.deep.model))

    def _costs(self) -> Costs:
        works = [_works(made) for made in self._made]
        shallow, deep = (
            [work.seconds(self.device) for work in (step, *of_blocks.values())]
            for step, of_blocks in works
        )
        step, of_blocks = works[1]
        return Costs(
            self.model.extrapolated(shallow[0], deep[0]),
            self.model.extrapolated(sum(shallow[1:]), sum(deep[1:])),
            of_blocks[self.model.middle].seconds(self.device),
            step.largest,
        )


def statistics_of(name: str, seed: int = 0) -> Trial:
    """A trial of the family's small model, with numbers, in float32."""
    made = small(name, BATCH, DEEP, seed)
    return Trial(made.model, made.inputs, made.loss_of_output)


def _bytes_of(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _known_options(statistics: Trial) -> dict[str, list[Option]]:
    """Of the small model; not of grids that span a row, since rows are longer in the large one."""
    return layer_options(statistics, filter(_knows_no_rows, menu()))


def _knows_no_rows(sketch: Sketch) -> bool:
    return isinstance(sketch, Identity) or (
        isinstance(sketch, Rounding) and sketch.block is not None and sketch.block <= 256
    )


def _works(made: Specimen) -> tuple[Work, dict[str, Work]]:
    """The operators of a forward and backward pass, and of each block's forward pass."""
    names = {module: name for name, module in made.model.named_modules()}
    of_blocks = {name: Work() for name in blocks(made.model)}

    def enter(module: nn.Module, *_: object) -> None:
        of_blocks[names[module]].__enter__()

    def leave(module: nn.Module, *_: object) -> None:
        of_blocks[names[module]].__exit__(None, None, None)

    inside = [module for module, name in names.items() if name in of_blocks]
    with watching(inside, enter, leave):
        step = work_of(lambda: made.loss_of(made.model).backward())
    made.model.zero_grad(set_to_none=True)
    return step, of_blocks
