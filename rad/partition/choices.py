"""Which crossing values are kept as sketches, in how many bits, and what is recomputed beside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from rad.errors import UsageError
from rad.partition.crossings import Crossing, is_short, lasting
from rad.partition.proof import proof
from rad.partition.sketched_graph import Storage
from rad.sketches import DitheredRounding

BITS = (8, 4, 3, 2)
"""What is tried, the most exact first."""

MEMORY = (1.0, 0.5, 0.2, 0.0)
"""Values of torch's activation_memory_budget for what stays exact: where recomputing begins."""

LEAST = 1024
"""Values of fewer numbers stay exact."""

BLOCK = 256
"""Numbers on one grid."""

ATTEMPTS = 3
"""How often what is left is spent: torch divides what is exact anew each time."""

ENOUGH = 4
"""Bits with which noise is small, so that no more need be recomputed."""


@dataclass(frozen=True)
class Choice:
    """What was decided for a graph: the sketches, and every crossing with the reason where it is
    none. Bytes are what is saved, without parameters."""

    stored: tuple[Storage, ...]
    crossings: tuple[Crossing, ...]
    memory: float
    plain_bytes: int
    saved_bytes: int

    def within(self, nodes: Mapping[str, fx.Node]) -> list[Storage]:
        """The same in a copy of the graph, by the names of its nodes."""
        return [Storage(_moved(each.crossing, nodes), each.sketch) for each in self.stored]

    def exact_within(self, nodes: Mapping[str, fx.Node]) -> list[Crossing]:
        """The crossings that are kept exactly, in a copy of the graph."""
        sketched = {id(each.crossing) for each in self.stored}
        return [_moved(each, nodes) for each in self.crossings if id(each) not in sketched]

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
                lines.append(f"{what}: exact, {crossing.reason or 'as torch decides'}")
            else:
                draws = len(crossing.groups or [])
                times = f"{draws} times " if draws > 1 else ""
                lines.append(f"{what}: {times}{storage.sketch}, {storage.nbytes:,} bytes")
        total = f"{self.saved_bytes:,} of torch.compile's {self.plain_bytes:,} bytes saved"
        return "\n".join([*lines, total])


def _moved(crossing: Crossing, nodes: Mapping[str, fx.Node]) -> Crossing:
    groups = [[nodes[user.name] for user in group] for group in crossing.groups or []]
    users = [nodes[user.name] for user in crossing.users]
    return replace(crossing, node=nodes[crossing.node.name], groups=groups, users=users)


@dataclass(frozen=True)
class Found:
    """A choice, and the two passes that carry it out."""

    choice: Choice
    forward: fx.GraphModule
    backward: fx.GraphModule


Divide = Callable[[Choice | None, float], tuple[fx.GraphModule, fx.GraphModule]]


def choose(
    found: Sequence[Crossing], budget: float, divide: Divide, fixed: Collection[int]
) -> Found:
    """What meets the budget in `ENOUGH` bits with the least recomputation, or in the most bits.

    Torch's own division where that meets it already. `divide` gives the two passes with a choice's
    sketches, at a value of torch's activation_memory_budget; `fixed` are the places of the inputs
    that are parameters. Raises UsageError where nothing fits.
    """
    plain = divide(None, 1.0)
    total = saved_bytes(*plain, fixed)
    limit = int(budget * total)
    if total <= limit:
        return Found(Choice((), tuple(found), 1.0, total, total), *plain)
    offered = [each for each in found if each.groups is not None and _gains(each)]
    least, best = total, None
    for memory in MEMORY:
        smallest = tuple(Storage(each, _rounding(BITS[-1])) for each in offered)
        choice = Choice(smallest, tuple(found), memory, total, 0)
        parts = divide(choice, memory)
        needed = saved_bytes(*parts, fixed)
        least = min(least, needed)
        if needed > limit:
            continue
        each = _enriched(Found(replace(choice, saved_bytes=needed), *parts), limit, divide, fixed)
        if best is None or _fewest_bits(each.choice) > _fewest_bits(best.choice):
            best = each
        if _fewest_bits(best.choice) >= ENOUGH:
            break
    if best is None:
        raise UsageError(
            f"budget={budget:g} of {total:,} saved bytes cannot be met: the least found is "
            f"{least / total:.3f} of them; give budget={min(1.0, least / total + 0.001):.3f}"
        )
    return best


def _enriched(found: Found, limit: int, divide: Divide, fixed: Collection[int]) -> Found:
    """The same with more bits, as long as it stays within the limit, as divided."""
    for _ in range(ATTEMPTS):
        choice = found.choice
        richer = _spent(choice.stored, limit - choice.saved_bytes)
        if richer == choice.stored:
            break
        better = replace(choice, stored=richer)
        parts = divide(better, choice.memory)
        needed = saved_bytes(*parts, fixed)
        if needed > limit:
            break
        found = Found(replace(better, saved_bytes=needed), *parts)
    return found


def _gains(crossing: Crossing) -> bool:
    """Whether a sketch of the fewest bits, for each group, is smaller than the value."""
    if is_short(crossing.value, LEAST):
        return False
    return Storage(crossing, _rounding(BITS[-1])).nbytes < crossing.nbytes


def _rounding(bits: int) -> DitheredRounding:
    return DitheredRounding(bits, block=BLOCK)


def _fewest_bits(choice: Choice) -> int:
    return min((each.sketch.bits for each in choice.stored), default=max(BITS))


def _spent(stored: Sequence[Storage], left: int) -> tuple[Storage, ...]:
    """More bits for each in turn, the fewest first and of equals the smallest, while they fit."""
    chosen = list(stored)
    for bits in BITS[-2::-1]:
        for place in sorted(range(len(chosen)), key=lambda p: chosen[p].nbytes):
            better = Storage(chosen[place].crossing, _rounding(bits))
            extra = better.nbytes - chosen[place].nbytes
            if extra <= left and better.nbytes < better.crossing.nbytes:
                left -= extra
                chosen[place] = better
    return tuple(chosen)


def saved_bytes(forward: fx.GraphModule, backward: fx.GraphModule, fixed: Collection[int]) -> int:
    """Bytes of the tensors that the backward graph is given and that are no parameters."""
    free = {node.name for node in lasting(forward.graph, fixed)}
    sizes = {}
    for node in backward.graph.find_nodes(op="placeholder"):
        value: Any = node.meta.get("val")
        if isinstance(value, Tensor) and "tangents" not in node.name and node.name not in free:
            storage = value.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())
