"""What was decided for a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from rad.errors import UsageError
from rad.partition.crossings import Crossing
from rad.partition.proof import proof
from rad.partition.sketched_graph import Storage


@dataclass(frozen=True)
class Choice:
    """What was decided for a graph: the sketches, and every crossing with the reason where it is
    none. Bytes are what is saved, without parameters; `time` is predicted, over torch.compile's
    (`rad.partition.costs`). Nodes in `repeated` are calculated again, whatever `memory` is."""

    stored: tuple[Storage, ...]
    crossings: tuple[Crossing, ...]
    memory: float
    plain_bytes: int
    saved_bytes: int
    time: float = 1.0
    repeated: frozenset[str] = frozenset()

    def within(self, nodes: Mapping[str, fx.Node]) -> list[Storage]:
        """The same in a copy of the graph, by the names of its nodes."""
        return [Storage(_moved(each.crossing, nodes), each.sketch) for each in self.stored]

    def exact_within(self, nodes: Mapping[str, fx.Node]) -> list[Crossing]:
        """The crossings that are kept exactly, in a copy of the graph."""
        sketched = {id(each.crossing) for each in self.stored}
        return [
            _moved(each, nodes)
            for each in self.crossings
            if id(each) not in sketched and each.node.name not in self.repeated
        ]

    def proof(self, name: str) -> str:
        """Why the value of that name may be kept as a sketch, or not (`rad.partition.proof`).

        Raises UsageError for a name that no value has that crosses.
        """
        found = {crossing.node.name: crossing for crossing in self.crossings}
        if name not in found:
            raise UsageError(f"no value {name!r} crosses: choose one of {', '.join(found)}")
        return proof(found[name])

    def __str__(self) -> str:
        sketched = {id(each.crossing): each for each in self.stored}
        lines = []
        for crossing in self.crossings:
            storage = sketched.get(id(crossing))
            shape = "x".join(map(str, crossing.value.shape))
            what = f"{crossing.node.name} ({shape}, {crossing.nbytes:,} bytes)"
            if storage is None:
                how = "calculated again" if crossing.node.name in self.repeated else "exact"
                lines.append(f"{what}: {how}, {crossing.reason or 'as torch decides'}")
            else:
                draws = len(crossing.groups or [])
                times = f"{draws} times " if draws > 1 else ""
                lines.append(f"{what}: {times}{storage.sketch}, {storage.nbytes:,} bytes")
            own = "" if storage is None else "its sketch"
            lines += [
                f"{value.name}: from {own or crossing.node.name}" for value in crossing.affine
            ]
        total = (
            f"{self.saved_bytes:,} of torch.compile's {self.plain_bytes:,} bytes saved, at "
            f"{self.time:.2f} of its time as predicted"
        )
        return "\n".join([*lines, total])


def _moved(crossing: Crossing, nodes: Mapping[str, fx.Node]) -> Crossing:
    def moved(given: Iterable[fx.Node]) -> list[fx.Node]:
        return [nodes[node.name] for node in given]

    return replace(
        crossing,
        node=nodes[crossing.node.name],
        groups=list(map(moved, crossing.groups or [])),
        users=moved(crossing.users),
        affine={nodes[v.name]: tuple(moved(chain)) for v, chain in crossing.affine.items()},
    )


@dataclass(frozen=True)
class Found:
    """A choice, and the two passes that carry it out."""

    choice: Choice
    forward: fx.GraphModule
    backward: fx.GraphModule


def saved_bytes(forward: fx.GraphModule, backward: fx.GraphModule, fixed: Collection[int]) -> int:
    """Bytes of the tensors that the backward graph is given, but for the `fixed` inputs' own."""
    inputs = forward.graph.find_nodes(op="placeholder")
    own = {_storage(node) for place, node in enumerate(inputs) if place in fixed}
    sizes = {}
    for node in backward.graph.find_nodes(op="placeholder"):
        storage = _storage(node)
        if storage is not None and "tangents" not in node.name and storage not in own:
            sizes[storage] = node.meta["val"].untyped_storage().nbytes()
    return sum(sizes.values())


def _storage(node: fx.Node) -> int | None:
    value: Any = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None
