"""torch.compile's own division of a graph, at a value of its activation_memory_budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx
from torch._dynamo.backends.registry import lookup_backend
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx

from rad.partition.backend import Inner, layout_patches


def memory_budget(memory: float, inner: Inner) -> Callable[[fx.GraphModule, list[Any]], Any]:
    """A backend of torch.compile that calculates again until that part of the bytes is kept.

    A function of its own for each, or graphs of one budget would do for all.
    """
    by_operators = lookup_backend("aot_eager_decomp_partition")

    def compiled(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        with functorch_config.patch(activation_memory_budget=memory):
            if inner == "inductor":
                return compile_fx(graph, inputs, config_patches=layout_patches(inputs))
            return by_operators(graph, inputs)

    return compiled
