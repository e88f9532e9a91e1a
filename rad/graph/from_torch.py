"""The linearized graph of a toy-size torch function or module, by way of `torch.fx`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from rad.errors import UsageError
from rad.graph.linearized import Edge, LinearizedGraph

MOST_ENTRIES = 1 << 20
"""The largest Jacobian of an operation, in entries."""


def linearize_torch(
    function: nn.Module | Callable[..., Tensor], *arguments: Tensor
) -> LinearizedGraph:
    """The linearized graph of a torch function or module, at `arguments` and its parameters.

    A vertex is an element of a tensor: of an argument, of a parameter, or of what an operation of
    the traced program returns (linear, relu, ...; modules are traced through). Inputs are the
    elements of the arguments and then of the parameters, in the order of `named_parameters`;
    outputs those of the result; all row-major. Local derivatives are autograd's. An edge with
    derivative 0 is left out: no path through it counts.

    Raises:
        UsageError: torch.fx cannot trace the function, it takes another number of arguments or
            returns no tensor that it computed, an operation works in place or returns several
            tensors, or a Jacobian has more than `MOST_ENTRIES` entries.
    """
    program = _traced(function)
    taken = sum(node.op == "placeholder" for node in program.graph.nodes)
    if taken != len(arguments):
        raise UsageError(f"the function takes {taken} tensors, got {len(arguments)}; give each")
    linearizer = _Linearizer(program)
    copies = [argument.detach().clone() for argument in arguments]
    for number, argument in enumerate(copies):
        linearizer.add(f"argument{number}", argument)
    module = function if isinstance(function, nn.Module) else nn.Module()
    for name, parameter in module.named_parameters():
        linearizer.add(name, parameter)
    inputs = tuple(range(len(linearizer.names)))
    with torch.enable_grad():
        result = linearizer.run(*copies)
    outputs = linearizer.vertices_of(result)
    if outputs is None:
        raise UsageError(
            "what the function returns is not one floating-point tensor computed from its "
            "inputs: return one that is"
        )
    edges = tuple(sorted(linearizer.edges, key=lambda edge: edge.source))
    return LinearizedGraph(tuple(linearizer.names), edges, inputs, tuple(outputs))


class _ThroughModules(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


def _traced(function: nn.Module | Callable[..., Tensor]) -> fx.GraphModule:
    tracer = _ThroughModules()
    try:
        graph = tracer.trace(function)
    except (fx.proxy.TraceError, TypeError) as error:
        raise UsageError(
            f"torch.fx cannot trace the function ({error}); give one whose operations do not "
            "depend on the values"
        ) from error
    return fx.GraphModule(tracer.root, graph)


class _Linearizer(fx.Interpreter):
    """Runs the program, numbers the elements of every tensor, collects the edges between them."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.names: list[str] = []
        self.edges: list[Edge] = []
        self._vertices: dict[int, tuple[Tensor, range]] = {}  # holds the tensors: ids stay theirs

    def add(self, name: str, x: Tensor) -> range:
        """New vertices for the elements of x, row-major."""
        first = len(self.names)
        places = product(*(range(size) for size in x.shape))
        self.names.extend(f"{name}[{','.join(map(str, place))}]" for place in places)
        self._vertices[id(x)] = (x, range(first, len(self.names)))
        return range(first, len(self.names))

    def vertices_of(self, x: object) -> range | None:
        """The vertices of a tensor; None for what has none."""
        return self._vertices[id(x)][1] if id(x) in self._vertices else None

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_function", "call_method"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        leaves = {
            id(x): x.detach().requires_grad_()
            for x in tree_leaves((args, kwargs))
            if self.vertices_of(x) is not None
        }
        args, kwargs = tree_map_only(Tensor, lambda x: leaves.get(id(x), x), (args, kwargs))
        try:
            result = getattr(self, n.op)(n.target, args, kwargs)
        except RuntimeError as error:
            raise UsageError(f"cannot linearize {n.name} ({error}); replace it") from error
        if not isinstance(result, Tensor):
            if any(isinstance(x, Tensor) for x in tree_leaves(result)):
                raise UsageError(f"{n.name} returns several tensors; use operations with one")
            return result
        if not leaves or not result.is_floating_point():
            return result
        jacobians = {place: _jacobian(n, result, leaf) for place, leaf in leaves.items()}
        value = result.detach()
        vertices = self.add(n.name, value)
        for place, jacobian in jacobians.items():
            self._connect(self._vertices[place][1], vertices, jacobian)
        return value

    def _connect(self, sources: range, targets: range, jacobian: Tensor) -> None:
        for i, j in jacobian.nonzero().tolist():
            self.edges.append(Edge(sources[j], targets[i], jacobian[i, j].item()))


def _jacobian(node: fx.Node, result: Tensor, leaf: Tensor) -> Tensor:
    """(result.numel(), leaf.numel())."""
    entries = result.numel() * leaf.numel()
    if entries > MOST_ENTRIES:
        raise UsageError(
            f"the Jacobian of {node.name} has {entries} entries; take a net with smaller layers"
        )
    if not result.requires_grad or entries == 0:
        return result.new_zeros(result.numel(), leaf.numel())
    units = torch.eye(result.numel(), dtype=result.dtype, device=result.device)
    (rows,) = torch.autograd.grad(
        result,
        leaf,
        units.view(-1, *result.shape),
        retain_graph=True,
        is_grads_batched=True,
        materialize_grads=True,
    )
    return rows.reshape(result.numel(), leaf.numel())
