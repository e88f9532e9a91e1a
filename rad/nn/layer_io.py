"""What layers multiply in a backward pass: their inputs, and the gradients by their outputs.

`Capture` watches layers that are called once for each output; `Recording` a recurrent layer, step
by step. `outside_calls` finds what `Capture` cannot see.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rad.sketches.base import Shape, Sketch
from rad.sketches.identity import Identity


def first_argument(module: nn.Module, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """What a call of a module gives for its first parameter, by place or by name."""
    if args:
        return args[0]
    return keywords[next(iter(inspect.signature(module.forward).parameters))]


class Capture:
    """Watches layers while it is entered: `with Capture(layers) as seen: loss().backward()`.

    `pairs` holds for each layer and call its input and the gradient by its output, in the order of
    the backward pass; `calls` how often each was called. Calls whose output no gradient reaches
    have no pair.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._hooks: list[RemovableHandle] = []
        self.calls: Counter[str] = Counter()
        self.pairs: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def __enter__(self) -> Capture:
        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_hook(self._watch(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, name: str) -> Callable[..., None]:
        def hook(
            layer: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any], output: Any
        ) -> None:
            self.calls[name] += 1
            x = first_argument(layer, args, keywords).detach()
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda grad: self.pairs[name].append((x, grad.detach())))

        return hook


@contextmanager
def watching(
    modules: Iterable[nn.Module],
    enter: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None],
    leave: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None],
) -> Iterator[None]:
    """Inside, `enter(module, args, keywords)` is called before each of them runs, and
    `leave(module, args, keywords, output)` after."""
    hooks = []
    for module in modules:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, eq=False)
class Recording(Sketch):
    """Keeps everything, and remembers what it was given and which products it took part in.

    Not an `Identity`, which operators treat apart. `shapes` are those of the tensors it
    compressed; `products` the pairs of the tensor (rows, d) and the gradient of the layer's
    output (rows, out_features) of each weight gradient calculated by `contract`, which is once a
    step in a recurrent layer.
    """

    shapes: list[Shape] = field(default_factory=list)
    products: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        self.shapes.append(tuple(x.shape))
        return Identity().compress(x.clone(), key)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        return Identity().decompress(saved, shape, dtype, key, rows)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return Identity().nbytes(shape, dtype)

    def variance(self, x: Tensor) -> Tensor:
        return Identity().variance(x)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        (x,) = saved
        self.products.append((x, left.detach().to(x.dtype, copy=True)))
        return Identity().contract(left, (x.to(left.dtype),), shape, key)


@contextmanager
def outside_calls(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While it is entered, layers use their sketch outside their calls only, `Identity` in them.

    With a `Recording` each, its `shapes` are then what a layer sketches where no hook sees it,
    such as in a call of its `forward`.
    """

    def swap(layer: nn.Module, now: object) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            layer.sketch = now  # type: ignore[assignment]

        return hook

    hooks: list[RemovableHandle] = []
    for layer in layers.values():
        hooks.append(layer.register_forward_pre_hook(swap(layer, Identity())))
        hooks.append(layer.register_forward_hook(swap(layer, layer.sketch), always_call=True))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
