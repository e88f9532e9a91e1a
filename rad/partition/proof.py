"""Why a sketch of a value leaves no bias, or would: degrees in it, a line for each node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import fx

from rad.partition.crossings import Crossing, degrees, operator_of
from rad.partition.linearity import NONE


def proof(crossing: Crossing) -> str:
    """The nodes of the backward pass that depend on a value, each with its degree in it.

    `degree` is that where all readers read one sketch. Where they are divided into groups, a sketch
    is named by its value and a number, and a column for each has the degree in that sketch. A dash
    stands for a node that does not depend on it. `*` marks what is a gradient.
    """
    groups, values = crossing.groups or [], crossing.values
    columns = {"degree": crossing.users}
    numbers: dict[fx.Node, int] = {}
    if len(groups) > 1:
        for number, group in enumerate(groups, 1):
            columns[f"in {crossing.node.name}.{number}"] = group
            numbers |= dict.fromkeys(group, number)
    found = {label: dict(degrees(values, readers)) for label, readers in columns.items()}
    rows = [["node", *columns]]
    for node in found["degree"]:
        cells = [_degree(of_column.get(node)) for of_column in found.values()]
        rows.append([_line(node, values, numbers.get(node)), *cells])
    return _aligned(rows)


def _line(node: fx.Node, values: Collection[fx.Node], sketch: int | None) -> str:
    """`node = operator(what it reads)`."""

    def name_of(argument: fx.Node) -> str:
        is_read = argument in values and sketch is not None
        return f"{argument.name}.{sketch}" if is_read else argument.name

    read = ", ".join(map(name_of, _nodes([*node.args, *node.kwargs.values()])))
    star = " *" if any(user.op == "output" for user in node.users) else ""
    return f"{node.name} = {operator_of(node)}({read}){star}"


def _nodes(argument: Any) -> list[fx.Node]:
    if isinstance(argument, fx.Node):
        return [argument]
    if isinstance(argument, list | tuple):
        return [node for each in argument for node in _nodes(each)]
    return []


def _degree(found: int | None) -> str:
    if found is None or found == 0:
        return "-"
    return "not linear" if found >= NONE else str(found)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
