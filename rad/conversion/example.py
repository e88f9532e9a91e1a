"""A batch of a model's inputs, as users pass them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rad.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """The number of examples, and the axis that holds them of each leaf of an example's nest.

    None stands for a leaf that has no such axis, such as a flag, a mask or a table.
    """

    size: int
    axes: tuple[int | None, ...]


@dataclass(frozen=True)
class Example:
    """Positional and keyword arguments of a model, in nests of tensors and anything else."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """What the nests hold, in order."""
        return tree_leaves((self.positional, self.keywords))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def call(self, model: nn.Module, batch: Batch | None = None, size: int = 0) -> Any:
        """The model's output for the first `size` examples of the batch, or without one for all.

        The model gets copies.
        """
        leaves, nest = tree_flatten((self.positional, self.keywords))
        axes = (None,) * len(leaves) if batch is None else batch.axes

        def part(leaf: Any, axis: int | None) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            cut = leaf.detach() if axis is None else leaf.detach().narrow(axis, 0, size)
            return cut.clone().requires_grad_(leaf.requires_grad)

        parts = [part(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True)]
        positional, keywords = tree_unflatten(parts, nest)
        return model(*positional, **keywords)


def read_example(inputs: Any) -> Example:
    """A tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

    Raises UsageError where there is no tensor with a batch axis, or the batch is empty.
    """
    positional: tuple[Any, ...] = (inputs,)
    keywords: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        positional, keywords = (), dict(inputs)
    elif isinstance(inputs, tuple | list) and not hasattr(inputs, "_fields"):
        positional = tuple(inputs)
    example = Example(positional, keywords)
    with_axes = [tensor for tensor in example.tensors if tensor.dim()]
    if not with_axes:
        raise UsageError(
            "the example has no tensor with a batch axis: give the model's input, a tuple of "
            "inputs or a dict of keyword arguments"
        )
    if not any(tensor.numel() for tensor in with_axes):
        raise empty_batch()
    return example


def empty_batch() -> UsageError:
    """The error that refuses an example without examples."""
    return UsageError("the example batch is empty: give at least one example")


def check_model(model: Any) -> None:
    """Raise UsageError unless this is an instance of `nn.Module` that has all of its parameters."""
    if isinstance(model, type):
        name = model.__name__
        raise UsageError(f"model is the class {name}: give an instance, such as {name}(...)")
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, module in model.named_modules():
        if any(map(is_lazy, (*module.parameters(False), *module.buffers(False)))):
            raise UsageError(
                f"layer {name!r} ({type(module).__name__}) is lazy and has no shape yet: call the "
                "model on an example once first"
            )


def check_real_memory(model: nn.Module, tensors: Iterable[Tensor] = ()) -> None:
    """Raise UsageError where tensors have no numbers, so that nothing could be measured."""
    for t in (*model.parameters(), *model.buffers(), *tensors, torch.empty(0)):
        if isinstance(t, FakeTensor) or t.device.type == "meta":
            raise UsageError(
                "model or example are on the meta device or under FakeTensorMode, where there are "
                "no numbers to measure with: give both on a real device, outside that mode"
            )


def own_loss(output: Any) -> Any:
    """The loss that a model returns: its output, or what that holds as attribute or key `loss`.

    Raises UsageError where there is none.
    """
    found = output
    if not isinstance(output, Tensor):
        keyed = output.get("loss") if isinstance(output, Mapping) else None
        found = getattr(output, "loss", keyed)
    elif output.numel() != 1:
        raise UsageError(
            f"the model returns a tensor of shape {tuple(output.shape)} and no loss: give loss=, a "
            "function of that tensor, such as loss=lambda out: F.cross_entropy(out, y[: len(out)])"
        )
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise UsageError(
            f"the model's output ({type(output).__name__}) is no loss and has none: give loss=, a "
            "function of the output, or inputs with the labels that make the model return one"
        )
    return found


def check_loss(loss: Any) -> None:
    """Raise UsageError unless this is a scalar tensor with a gradient."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"the loss is {given}, no scalar tensor: give its mean or sum")
    if not loss.requires_grad:
        raise UsageError(
            "no gradient is needed: the loss depends on no parameter that requires one; call "
            "requires_grad_() on what is to be trained"
        )
