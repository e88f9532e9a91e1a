"""Drawings of linearized graphs, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from rad.graph.linearized import Edge, LinearizedGraph

INK, FAINT, INPUT, OUTPUT = "#333333", "#d4d4d4", "#bfe1f6", "#f7dc9f"

Point = tuple[float, float]


def layered_positions(graph: LinearizedGraph) -> dict[int, Point]:
    """Layers from top to bottom by the longest path that leads to a vertex.

    Within a layer, vertices stand in the order of the mean place of those that feed them.
    """
    layer = dict.fromkeys(range(len(graph.names)), 0)
    feeding: dict[int, list[int]] = {}
    for edge in graph.edges:
        layer[edge.target] = max(layer[edge.target], layer[edge.source] + 1)
        feeding.setdefault(edge.target, []).append(edge.source)
    positions: dict[int, Point] = {}
    for depth in sorted(set(layer.values())):
        wanted = {}
        for vertex in (v for v in layer if layer[v] == depth):
            places = [positions[source][0] for source in feeding.get(vertex, ())]
            wanted[vertex] = sum(places) / max(1, len(places))
        for place, vertex in enumerate(sorted(wanted, key=wanted.__getitem__)):
            positions[vertex] = (place - (len(wanted) - 1) / 2, -float(depth))
    return positions


def draw(
    axes: Axes,
    graph: LinearizedGraph,
    positions: Mapping[int, Point] | None = None,
    *,
    edge_labels: Sequence[str] | None = None,
    path: Sequence[Edge] | None = None,
    colour: str = INK,
    radius: float = 7.0,
) -> None:
    """Draw vertices with their names and edges as arrows: inputs blue, outputs yellow.

    `edge_labels` has a label for each edge. With `path`, that path of the graph has the colour and
    all else is faint. `radius` is that of a vertex, in points.
    """
    places = layered_positions(graph) if positions is None else positions
    strong = {id(edge) for edge in (graph.edges if path is None else path)}
    ends: list[tuple[int, int]] = []
    for number, edge in enumerate(graph.edges):
        start, end = places[edge.source], places[edge.target]
        between = (edge.source, edge.target)
        behind = any(_lies_between(p, start, end) for v, p in places.items() if v not in between)
        bend = 0.25 * (ends.count(between) + behind)
        ends.append(between)
        visible = id(edge) in strong
        arrow = {
            "arrowstyle": "-|>,head_width=0.16,head_length=0.32",
            "shrinkA": radius,
            "shrinkB": radius,
            "connectionstyle": f"arc3,rad={bend}",
            "color": colour if visible else FAINT,
            "linewidth": 0.8 if path is None or not visible else 1.4,
        }
        axes.annotate("", end, start, arrowprops=arrow, zorder=1 + visible)
        if edge_labels is not None:
            _label(axes, start, end, bend, edge_labels[number])
    shown = {v for edge in graph.edges if id(edge) in strong for v in (edge.source, edge.target)}
    for vertex, name in enumerate(graph.names):
        visible = path is None or vertex in shown
        fill = INPUT if vertex in graph.inputs else OUTPUT if vertex in graph.outputs else "white"
        style: dict[str, Any] = {
            "mec": INK if visible else FAINT,
            "mfc": fill if visible else "white",
            "mew": 0.7,
        }
        axes.plot(*places[vertex], "o", markersize=2 * radius, zorder=3, **style)
        ink = INK if visible else FAINT
        centred: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": radius,
            "color": ink,
            "zorder": 4,
        }
        axes.annotate(name, places[vertex], **centred)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    axes.margins(0.12)


def _lies_between(point: Point, start: Point, end: Point) -> bool:
    """Whether a vertex would hide the straight edge."""
    (px, py), (ax, ay), (bx, by) = point, start, end
    dx, dy = bx - ax, by - ay
    length = dx * dx + dy * dy
    along = ((px - ax) * dx + (py - ay) * dy) / length
    across = (px - ax) * dy - (py - ay) * dx
    return 0 < along < 1 and across * across < 0.02 * length


def _label(axes: Axes, start: Point, end: Point, bend: float, text: str) -> None:
    """On the middle of the (quadratic) curve, on a white ground."""
    (ax, ay), (bx, by) = start, end
    x = (ax + bx) / 2 + bend / 2 * (by - ay)
    y = (ay + by) / 2 - bend / 2 * (bx - ax)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.annotate(text, (x, y), ha="center", va="center", fontsize=6, bbox=ground, zorder=2.5)
