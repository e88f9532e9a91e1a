"""Which parts of a model work through their batches in slices."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from rad.conversion.example import check_model
from rad.errors import UsageError
from rad.nn.kinds import become, kind_of
from rad.nn.slices import SEQUENCES, Slices, is_apart


def slice_batches(model: nn.Module, size: int | None) -> nn.Module:
    """The same model, whose sequences of layers work on `size` examples at a time.

    In place: every outermost `torch.nn.Sequential` that holds a layer which treats each example by
    itself becomes a `rad.nn.Slices`; parameters, their names and the results stay, up to the order
    of sums and to draws, which sketching layers take for each slice. The peak of memory falls to
    what is kept, what enters and leaves the sequences, and the work on a slice; best after
    `rad.convert`, since plain layers keep their inputs anyway. None takes slices away again.
    What is not in a sequence is not sliced: write `rad.nn.Slices(*layers, size=size)` there.

    Raises UsageError for another size than None or a whole number of at least 1, and for a model
    without a sequence to slice. Nothing has changed then.
    """
    check_model(model)
    Slices(size=size)
    found = list(_sequences(model))
    if not found and size is not None:
        raise UsageError(
            "nothing to work on in slices: the model has no torch.nn.Sequential of layers that "
            "treat each example by itself; put such layers into one, or into rad.nn.Slices"
        )
    for sequence in found:
        become(sequence, Slices)
        sequence.set_size(size)
    return model


def _sequences(module: nn.Module) -> Iterator[Slices]:
    """The outermost sequences in a module, itself among them, that can be sliced."""
    if kind_of(module) in SEQUENCES and any(map(is_apart, module.children())):
        yield module  # type: ignore[misc]
        return
    for child in module.children():
        yield from _sequences(child)
