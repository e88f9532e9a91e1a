"""Figures 1 and 2 of the paper, from this package's graphs and measurements."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rad.graph.drawing import INK, Point, draw
from rad.graph.exact import bauer_paths, reverse_accumulation
from rad.graph.linearized import LinearizedGraph
from rad.graph.primal import PrimalGraph
from rad.graph.tracing import Scalar, exp, sin, trace
from rad.plotting import RC

PAGE_WIDTH = 6.9  # inches
PATH_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
SERIES = (("#0072B2", "o"), ("#56B4E9", "D"), ("#D55E00", "^"), ("#E69F00", "v"), ("#777777", "s"))
PLACES: dict[int, Point] = dict(
    enumerate([(0, 4), (1.5, 4), (0, 2.75), (2.1, 3), (1.5, 2), (1.0, 1), (0.3, 0)])
)
PANELS = {
    "independent_paths": "(a) independent paths",
    "interleaved": "(b) fully interleaved",
    "relu_network": "(c) ReLU network",
}


def example(x1: Scalar, x2: Scalar) -> Scalar:
    """The function of the paper's Figure 1."""
    a = exp(x1)
    b = sin(x2)
    c = b * x2
    d = a * c
    return a * d


def figure1(point: Sequence[float] = (0.5, 1.2)) -> Figure:
    """Function, primal graph, linearized graph at a point and its four Bauer paths."""
    primal = trace(example, names="abcdf")
    graph = primal.linearize(point)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(PAGE_WIDTH, 2.5), layout="constrained")
        parts: Any = figure.subfigures(1, 4, width_ratios=[1.0, 1.1, 1.1, 1.6])
        text, operations, derivatives, paths = parts
        _show_function(text.subplots())
        operation_axes = operations.subplots()
        draw(operation_axes, _with_operations(primal, graph), PLACES, radius=9)
        derivative_axes = derivatives.subplots()
        labels = [f"{edge.derivative:.2f}" for edge in graph.edges]
        draw(derivative_axes, graph, PLACES, edge_labels=labels, radius=7)
        _show_paths(list(paths.subplots(2, 2).flat), graph)
        at = ", ".join(f"{value:g}" for value in point)
        gradient = ", ".join(f"{value:.2f}" for value in reverse_accumulation(graph)[0])
        text.suptitle("(a) function", fontsize=8)
        operations.suptitle("(b) primal graph", fontsize=8)
        derivatives.suptitle(f"(c) linearized at ({at})", fontsize=8)
        paths.suptitle(f"(d) Bauer paths; gradient ({gradient})", fontsize=8)
    return figure


def _show_function(axes: Axes) -> None:
    body = inspect.getsource(example).splitlines()[2:]
    lines = [f"def f({', '.join(inspect.signature(example).parameters)}):", *body]
    code = "\n".join(lines)
    axes.text(0.05, 0.5, code, family="monospace", fontsize=7, va="center", linespacing=1.6)
    axes.set_axis_off()


def _with_operations(primal: PrimalGraph, graph: LinearizedGraph) -> LinearizedGraph:
    """The same graph, its vertices named by what they compute."""
    names = tuple(
        vertex.name if vertex.operation is None else vertex.operation.name.replace("*", "×")
        for vertex in primal.vertices
    )
    return LinearizedGraph(names, graph.edges, graph.inputs, graph.outputs)


def _show_paths(panels: list[Axes], graph: LinearizedGraph) -> None:
    """One panel for each path, with the product of its derivatives below."""
    (output,) = graph.outputs
    paths = [path for vertex in graph.inputs for path in bauer_paths(graph, vertex, output)]
    for axes, path, colour in zip(panels, paths, PATH_COLOURS, strict=True):
        draw(axes, graph, PLACES, path=path, colour=colour, radius=3.5)
        factors = [f"{edge.derivative:.2f}" for edge in path]
        product = math.prod(edge.derivative for edge in path)
        axes.set_title(
            f"{' · '.join(factors)}\n= {product:.2f}", fontsize=6, color=colour, pad=1, y=-0.2
        )


def figure2(table: pd.DataFrame) -> Figure:
    """Relative variance against depth; a panel for each kind of graph, one scale for all.

    `table` has the columns of `rad.graph.relative_variance`. Lines are the theory for orthogonal
    layers, empty markers exact variances, full ones Monte Carlo with two standard errors either
    way.
    """
    settings = list(dict.fromkeys(zip(table["width"], table["kept"], strict=True)))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(PAGE_WIDTH, 3.0), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (kind, title) in zip(panels, PANELS.items(), strict=True):
            for (width, kept), style in zip(settings, SERIES, strict=False):
                chosen = (table["width"] == width) & (table["kept"] == kept)
                for _, rows in table[chosen & (table["graph"] == kind)].groupby("injected"):
                    _series(axes, rows, *style)
            axes.set(xlabel="layers", yscale="log", xlim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 10]))
            axes.set_title(title, fontsize=8)
            axes.grid(color="0.9", linewidth=0.5)
        note: dict[str, Any] = {"fontsize": 7, "transform": panels[2].transAxes, "color": INK}
        panels[2].text(0.05, 0.93, "into every Jacobian", **note)
        panels[2].text(0.97, 0.16, "into weight Jacobians: RAD", ha="right", **note)
        panels[0].set_ylabel("relative variance of the gradient")
        figure.legend(handles=_legend(settings), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _series(axes: Axes, rows: pd.DataFrame, colour: str, marker: str) -> None:
    axes.plot(rows["depth"], rows["theory"], color=colour, linewidth=0.9)
    empty: dict[str, Any] = {"mfc": "white", "mec": colour, "mew": 0.8, "markersize": 5}
    axes.plot(rows["depth"], rows["exact"], marker, zorder=3, **empty)
    measured = rows.dropna(subset=["monte_carlo"])
    axes.errorbar(
        measured["depth"],
        measured["monte_carlo"],
        2 * measured["standard_error"],
        fmt=".",
        color=INK,
        markersize=2.5,
        capsize=1.5,
        elinewidth=0.8,
        zorder=4,
    )


def _legend(settings: list[tuple[int, int]]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, mfc="white", label=f"keep {kept} of {width}")
        for (width, kept), (colour, marker) in zip(settings, SERIES, strict=False)
    ]
    plain: dict[str, Any] = {"color": INK, "linestyle": "none"}
    return [
        *handles,
        Line2D([], [], color=INK, label="theory, orthogonal layers"),
        Line2D([], [], marker="o", mfc="white", label="exact, these graphs", **plain),
        Line2D([], [], marker=".", markersize=2.5, label="Monte Carlo, ± 2 s.e.", **plain),
    ]
