"""`rad.compile` and `rad.backend`: torch.compile, with sketches where they leave no bias."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_compiler
from torch._functorch.compile_utils import fx_graph_cse
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table

from rad.errors import UsageError
from rad.nn.base import advance, start_draws
from rad.partition.calls import strict
from rad.partition.choices import Choice
from rad.partition.crossings import crossings
from rad.partition.repetition import with_repetition
from rad.partition.search import BITS, choose
from rad.partition.sketched_graph import copied, with_copies, with_sketches

Inner = Literal["inductor", "aot_eager"]

KEY = "rad_key"
"""Name of the input that holds the key of a call."""


CALLS = "rad_calls"
"""Name of the buffer that counts the calls."""


class Backend:
    """What `rad.backend` returns: compiles graphs, and says what it decided for each.

    The t-th call of a graph with a backward pass, of all graphs together, draws as a layer does
    (`rad.nn.Sketching`): among several processes each draws for itself. The count is a buffer
    `rad_calls` of `counter`.

    `choices` has an entry for each graph with a backward pass, in the order in which they were
    compiled; printing the backend prints them. `graphs` counts all graphs.
    """

    def __init__(
        self, budget: float, seed: int = 0, inner: Inner = "inductor", fewest_bits: int = 3
    ) -> None:
        is_number = isinstance(budget, Real) and not isinstance(budget, bool)
        if not is_number or not 0 < budget <= 1:
            raise UsageError(
                f"budget={budget!r} is no fraction: give the part of the saved bytes of "
                "torch.compile that may be kept, such as budget=0.2"
            )
        if inner not in _INNER:
            raise UsageError(f"inner={inner!r} is unknown: choose one of {', '.join(_INNER)}")
        if fewest_bits not in BITS:
            raise UsageError(
                f"fewest_bits={fewest_bits!r} is none: choose one of {', '.join(map(str, BITS))}"
            )
        self.budget, self.seed, self._inner = float(budget), seed, _INNER[inner]
        self._fewest_bits = fewest_bits
        self.choices: list[Choice] = []
        self.graphs = 0
        self.counter = nn.Module()
        self._count_from(torch.zeros((), dtype=torch.int64))

    def count_in(self, model: nn.Module) -> None:
        """Count in a buffer of the model from now on, not persistent as those of layers are not."""
        self.counter, calls = model, self.counter.get_buffer(CALLS)
        self._count_from(calls.to(next((p.device for p in model.parameters()), calls.device)))

    def _count_from(self, calls: Tensor) -> None:
        self.counter.register_buffer(CALLS, calls, persistent=False)

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile a graph as torch.compile hands it over."""
        if any(map(_has_symbols, inputs)):
            raise UsageError(
                "sizes that may change cannot be planned for: compile with dynamic=False, as "
                "rad.compile does, which compiles anew for each size"
            )
        self.graphs += 1
        device = next((x.device for x in inputs if isinstance(x, Tensor)), torch.device("cpu"))
        key, _ = start_draws(self.seed, 0, device)
        given = copy.copy(graph)
        given.graph = copied(graph.graph)
        _add_key(given.graph)
        given.recompile()
        fixed = {place for place, x in enumerate(inputs) if _is_of_the_model(x)}
        partition = _Partition(self.budget, fixed, self._fewest_bits, self.choices)
        before = len(self.choices)
        compiled = self._inner(given, [*inputs, key], partition)
        if len(self.choices) == before:
            return lambda *args: compiled(*args, key)

        def run(*args: Any) -> Any:
            calls = self.counter.get_buffer(CALLS)
            if calls.device != key.device:
                self._count_from(calls := calls.to(key.device))
            return compiled(*args, advance(key, calls, None))

        return run

    def describe(self) -> str:
        """What was decided for all graphs, in a line."""
        sketches = sum(len(s.crossing.groups or []) for c in self.choices for s in c.stored)
        recompute = min((choice.memory for choice in self.choices), default=1.0)
        again = sum(len(choice.repeated) for choice in self.choices)
        time = max((choice.time for choice in self.choices), default=1.0)
        return (
            f"{sketches} sketches, {again} nodes and what activation_memory_budget={recompute:g} "
            f"leaves calculated again, {time:.2f} of torch.compile's time as predicted"
        )

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.choices))


def layout_patches(inputs: Sequence[Any]) -> dict[str, Any]:
    """Options with which inductor saves what the partitioner has decided, and no more.

    On the CPU it would keep each convolution's weight in a second layout.
    """
    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    return {"layout_optimization": False} if on_cpu else {}


def _by_inductor(graph: fx.GraphModule, inputs: Sequence[Any], partition: _Partition) -> Any:
    patches = {**layout_patches(inputs), "custom_partitioner_fn": partition}
    patches["fx_graph_cache"] = False
    with functorch_config.patch(enable_autograd_cache=False):
        return compile_fx(graph, inputs, config_patches=patches)


def _by_operators(graph: fx.GraphModule, inputs: Sequence[Any], partition: _Partition) -> Any:
    """The same graphs, run operator by operator."""
    return aot_module_simplified(
        graph,
        inputs,
        fw_compiler=make_boxed_compiler(lambda each, _: each),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )


_INNER = {"inductor": _by_inductor, "aot_eager": _by_operators}
"""What compiles the two passes."""


def _is_of_the_model(x: Any) -> bool:
    """Whether an input is a parameter or a buffer, which Dynamo marks as staying in its place."""
    return isinstance(x, nn.Parameter) or hasattr(x, "_dynamo_static_input_type")


def _has_symbols(x: Any) -> bool:
    """Whether an input is a size that may change, or a tensor with one."""
    sizes = x.shape if isinstance(x, Tensor) else (x,)
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _add_key(graph: fx.Graph) -> None:
    placeholders = graph.find_nodes(op="placeholder")
    with graph.inserting_after(placeholders[-1]):
        graph.placeholder(KEY)


class _Partition(CustomPartitionerFn):
    """Divides a joint graph as torch does, after sketches have been written into it."""

    def __init__(
        self, budget: float, fixed: Collection[int], fewest_bits: int, choices: list[Choice]
    ) -> None:
        self._budget, self._fixed, self._choices = budget, fixed, choices
        self._fewest_bits = fewest_bits

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **options: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        graph = fx_graph_cse(gm.graph)  # as torch does: what is one value crosses once

        def divided(choice: Choice | None, memory: float) -> tuple[Any, Any]:
            own = fx.GraphModule(gm, copied(graph))
            if choice is not None:
                names = {node.name: node for node in own.graph.nodes}
                with_sketches(own.graph, choice.within(names), _key_of(own.graph))
                if memory == 1.0:  # or torch would not be free to calculate them again
                    with_copies(own.graph, choice.exact_within(names))
                with_repetition(own.graph, choice.repeated)
                own.recompile()
            with functorch_config.patch(activation_memory_budget=memory):
                return min_cut_rematerialization_partition(own, joint_inputs, **options)

        crossing = crossings(graph, self._fixed)
        found = choose(crossing, self._budget, divided, self._fixed, self._fewest_bits)
        self._choices.append(found.choice)
        return found.forward, found.backward

    def __deepcopy__(self, memo: dict[int, Any]) -> _Partition:
        """Itself: torch copies its options, and what was found is for the backend alone."""
        return self

    def uuid(self) -> None:
        """No cache: what is chosen depends on more than the graph."""
        return


def _key_of(graph: fx.Graph) -> fx.Node:
    """The last input of the forward pass."""
    primals = [n for n in graph.find_nodes(op="placeholder") if "primals" in str(n.target)]
    key = primals[-1]
    value = key.meta["val"]
    assert value.dtype == torch.int64
    assert value.dim() == 0
    return key


def compile(
    model: nn.Module, budget: float, seed: int = 0, *, fewest_bits: int = 3, **options: Any
) -> Any:
    """`torch.compile(model)` that keeps `budget` of what torch.compile would save for backward.

    What crosses from the forward to the backward pass is rounded where every gradient is linear in
    it (`rad.partition.linearity`), so that gradients are estimated without bias; or kept exactly,
    or calculated again: whatever is predicted to take the least time (`rad.partition.costs`).
    Rounded numbers have `fewest_bits` or more, one of 2, 3, 4 and 8 (a fifth of them may have the
    next fewer): a linear layer's weight gradient errs by about 0.30, 0.055, 0.012 or 4e-5 of the
    sum of its squares over the examples. The model is not converted, and stays as it is. Draws
    depend on `seed` and the number of the call. `options` are those of torch.compile, but for
    `backend`; sizes are fixed (`dynamic=False`).
    `compiled.rad` says what was decided, once the model has been compiled in its first call.
    Raises UsageError where the budget is no fraction, and in that call where it cannot be met; and
    in a call for which torch would compile no more.
    """
    if "backend" in options or options.get("dynamic"):
        raise UsageError(
            "rad.compile is a backend of its own and fixes sizes: leave out backend= and dynamic=, "
            "or use torch.compile(model, backend=rad.backend(budget))"
        )
    own = backend(budget, seed, fewest_bits=fewest_bits)
    compiled: Any = torch.compile(model, backend=own, **{**options, "dynamic": False})
    compiled.forward = strict(compiled.forward, own)
    vars(compiled)["rad"] = own
    return compiled


def backend(
    budget: float, seed: int = 0, inner: Inner = "inductor", *, fewest_bits: int = 3
) -> Backend:
    """A backend of torch.compile that keeps `budget` of what torch.compile would save.

    `torch.compile(model, backend=rad.backend(0.2))`. What compiles the two passes is `inner`:
    torch's inductor, or "aot_eager", which runs them operator by operator. The rest is as in
    `rad.compile`. Raises UsageError where the budget is no fraction, and while compiling where it
    cannot be met.
    """
    return Backend(budget, seed, inner, fewest_bits)
