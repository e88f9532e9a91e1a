"""Which axis of which tensor of an example holds the examples of the batch.

The inputs alone do not tell: beside a batch there may be masks, tables and states, and a sequence
may come before the batch or after it. What tells is how the model treats them. Recurrent and
attention layers say which axis is theirs (`batch_first`), and so does the size that leads in the
output. Where that leaves more than one way to cut the inputs, each is tried on a smaller batch: in
the right one the model and its loss run, and these sizes follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product, zip_longest
from math import prod
from typing import Any

from torch import Tensor, nn

from rad.conversion.example import Batch, Example, empty_batch
from rad.errors import UsageError
from rad.memory.graph import tensors_in
from rad.nn.layer_io import first_argument

TRIES = 256
"""Ways to cut the inputs that are tried at most."""


@dataclass(frozen=True)
class Sizes:
    """Sizes in a forward pass that tell how many examples it had.

    `layers` are those of the batch axis of what recurrent and attention layers were given,
    `outputs` the leading ones of the output's tensors, both in order.
    """

    layers: tuple[int, ...]
    outputs: tuple[int, ...]

    def follow(self, cut: Sizes, batch: int, size: int) -> bool:
        """Whether every size that was `batch` is `size` in `cut`, a pass on so many examples.

        The layers' sizes decide; the outputs' only where no layer has that size.
        """
        for whole, part in ((self.layers, cut.layers), (self.outputs, cut.outputs)):
            if batch in whole:
                pairs = zip(whole, part, strict=False)
                return len(whole) == len(part) and all(b == size for a, b in pairs if a == batch)
        return True


Attempt = Callable[[Batch, int], tuple[Sizes, int] | None]
"""Runs `size` examples: the sizes of that pass and the bytes it saves; None where it fails."""


@contextmanager
def batch_sizes(model: nn.Module) -> Iterator[list[int]]:
    """A list that gets the batch size of each recurrent and attention layer that is called."""
    sizes: list[int] = []

    def watch(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x = first_argument(layer, args, keywords)
        if isinstance(x, Tensor) and x.dim() == 3:
            sizes.append(x.shape[0 if layer.batch_first else 1])

    layers = [m for m in model.modules() if isinstance(getattr(m, "batch_first", None), bool)]
    hooks = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in layers]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def leading_sizes(output: Any) -> tuple[int, ...]:
    """Of the tensors in a model's output that have axes."""
    return tuple(len(tensor) for tensor in tensors_in(output) if tensor.dim())


def likely_batch(example: Example, seen: Sizes) -> int:
    """The most likely number of examples, after a pass on all of them.

    Raises UsageError where that is 0.
    """
    size = next(n for sizes in _groups(example, seen) for n in sizes)
    if size == 0:
        raise empty_batch()
    return size


def find_batch(example: Example, seen: Sizes, attempt: Attempt) -> Batch:
    """The batch that a smaller one is cut from; `seen` are the sizes of a pass on all of it.

    Where nothing runs on fewer examples, it is the one that `likely_batch` gives the size of.
    Raises UsageError where several ways to cut the inputs run, and save different bytes.
    """
    leaves = example.leaves
    for sizes in _groups(example, seen):
        ways = [way for size in sizes for way in _ways(leaves, size)]
        if len(ways) == 1 and _leads(ways[0]):
            return ways[0]
        running = _running(ways, seen, attempt)
        if len({nbytes for _, nbytes in running}) > 1:
            raise _ambiguous(leaves, [way for way, _ in running])
        if running:
            return running[0][0]
    return next(way for n in [likely_batch(example, seen)] for way in _ways(leaves, n))


def given_batch(example: Example, axis: Any) -> Batch:
    """The batch whose axes the user gives, as the `in_dims` of `torch.func.vmap`.

    Raises UsageError for axes that do not match the arguments, axes of different sizes, and an
    empty batch.
    """
    nest = example.keywords if example.keywords else example.positional
    if not example.keywords and len(nest) == 1 and isinstance(axis, Mapping):
        axis = (axis,)
    axes = tuple(_spread(axis, nest))
    leaves = example.leaves
    held = {
        leaf.shape[axis]
        for leaf, axis in zip(leaves, axes, strict=True)
        if isinstance(leaf, Tensor) and axis is not None
    }
    if len(held) != 1:
        found = f"sizes {sorted(held)}" if held else "no tensor"
        raise UsageError(
            f"batch_axis={axis!r} gives {found} to the batch: give an axis of one size, and None "
            "for what has no batch, argument by argument, such as batch_axis=(0, None)"
        )
    (size,) = held
    if size == 0:
        raise empty_batch()
    return Batch(size, axes)


def _spread(axis: Any, nest: Any) -> Iterator[int | None]:
    """The axis of each leaf of a nest, from axes for it or for its parts."""
    is_mapping, is_sequence = isinstance(nest, dict), isinstance(nest, tuple | list)
    if isinstance(axis, Mapping) and is_mapping and set(axis) <= set(nest):
        for name, part in nest.items():
            yield from _spread(axis.get(name), part)
    elif isinstance(axis, tuple | list) and is_sequence and len(axis) == len(nest):
        for each, part in zip(axis, nest, strict=True):
            yield from _spread(each, part)
    elif axis is not None and not isinstance(axis, int):
        raise UsageError(
            f"batch_axis={axis!r} does not match the arguments: give an axis, None, or one of "
            "these for each argument, in a tuple or by name"
        )
    elif is_mapping or is_sequence:
        for part in nest.values() if is_mapping else nest:
            yield from _spread(axis, part)
    else:
        yield _axis_of(nest, axis)


def _axis_of(leaf: Any, axis: int | None) -> int | None:
    if axis is None or not isinstance(leaf, Tensor) or not leaf.dim():
        return None
    if not -leaf.dim() <= axis < leaf.dim():
        raise UsageError(
            f"batch_axis={axis} is no axis of an input of shape {tuple(leaf.shape)}: give one, or "
            "None for what has no batch"
        )
    return axis % leaf.dim()


def _groups(example: Example, seen: Sizes) -> list[list[int]]:
    """The sizes that the batch may have: groups of them, the most reliable first."""
    shapes = [tensor.shape for tensor in example.tensors if tensor.dim()]
    leading = Counter(shape[0] for shape in shapes)
    everywhere = {size for shape in shapes for size in shape}
    return [
        [n for n in dict.fromkeys(seen.layers) if n in everywhere],
        [n for n in dict.fromkeys(seen.outputs) if n in leading],
        [n for n in dict.fromkeys(seen.outputs) if n in everywhere and n > 1],
        [n for n, _ in leading.most_common()],
    ]


def _ways(leaves: list[Any], size: int) -> list[Batch]:
    """All ways to cut a batch of that size: along the leading axes of that size first."""
    held = [
        [axis for axis, n in enumerate(leaf.shape) if n == size] if isinstance(leaf, Tensor) else []
        for leaf in leaves
    ]
    leads = any(0 in axes for axes in held)
    choices: list[list[int | None]] = [
        [None, *axes] if leads and 0 not in axes else [*axes, None] for axes in held
    ]
    if prod(map(len, choices)) > TRIES:
        choices = [axes[:2] if 0 in axes else axes[:1] for axes in choices]
    every = islice(product(*choices), TRIES)
    return [Batch(size, axes) for axes in every if any(axis is not None for axis in axes)]


def _leads(batch: Batch) -> bool:
    """Whether every axis that is cut is the first."""
    return all(axis in (0, None) for axis in batch.axes)


def _running(ways: list[Batch], seen: Sizes, attempt: Attempt) -> list[tuple[Batch, int]]:
    """The ways in which model and loss run on fewer examples, and the bytes that they then save.

    On the first of a few such numbers on which they run at all.
    """
    rounds = zip_longest(*([(way, size) for size in _smaller(way.size)] for way in ways))
    for tried in rounds:
        found = []
        for way, size in filter(None, tried):
            result = attempt(way, size)
            if result is not None and seen.follow(result[0], way.size, size):
                found.append((way, result[1]))
        if found:
            return found
    return []


def _smaller(size: int) -> list[int]:
    """Batches to try: parts of the whole, for models that take groups; one example last."""
    parts = [size // k for k in range(2, size) if size % k == 0]
    return list(dict.fromkeys([*parts[:4], size - 1, 1])) if size > 1 else []


def _ambiguous(leaves: list[Any], ways: list[Batch]) -> UsageError:
    tensors = [isinstance(leaf, Tensor) for leaf in leaves]
    axes = " or ".join(
        str(tuple(axis for axis, is_tensor in zip(way.axes, tensors, strict=True) if is_tensor))
        for way in ways[:3]
    )
    return UsageError(
        f"a smaller batch can be cut from the example in {len(ways)} ways, along the axes {axes} "
        "of its tensors: say which with batch_axis=, an axis or None for each argument"
    )
