import pandas as pd
import pytest
from graph.dags import dags, few
from hypothesis import given
from matplotlib.figure import Figure

import rad.graph as rg
from rad.errors import UsageError
from rad.graph import LinearizedGraph
from rad.graph.drawing import draw, layered_positions
from rad.graph.figures import figure1, figure2
from rad.graph.relative_variance import COLUMNS, Place, rows_at
from rad.sketches import make_key


@few
@given(graph=dags())
def test_positions_are_distinct_and_edges_lead_down(graph: LinearizedGraph) -> None:
    places = layered_positions(graph)
    assert len(set(places.values())) == len(graph.names)
    assert all(places[edge.source][1] > places[edge.target][1] for edge in graph.edges)


def test_a_drawing_names_every_vertex_and_has_an_arrow_for_every_edge() -> None:
    graph = rg.trace(lambda x, y: rg.exp(x * x) * y).linearize([1.0, 2.0])
    axes = Figure().subplots()
    draw(axes, graph, edge_labels=[f"{edge.derivative:.1f}" for edge in graph.edges])
    texts = [text.get_text() for text in axes.texts]
    assert sorted(text for text in texts if text in graph.names) == sorted(graph.names)
    assert texts.count("") == len(graph.edges)
    assert [texts.count(label) for label in ("1.0", "2.0", "2.7")] == [2, 1, 2]


def test_figure_1_shows_the_code_and_the_four_products() -> None:
    figure = figure1()
    axes = [axes for part in figure.subfigs for axes in part.axes]
    assert len(axes) == 3 + 4
    assert "return a * d" in axes[0].texts[0].get_text()
    products = [float(panel.get_title().rpartition("= ")[2]) for panel in axes[3:]]
    title = figure.subfigs[3]._suptitle.get_text()
    gradient = [float(word) for word in title[title.index("(", 4) + 1 : -1].split(", ")]
    assert sum(products[:2]) == pytest.approx(gradient[0], abs=0.02)
    assert sum(products[2:]) == pytest.approx(gradient[1], abs=0.02)


def test_figure_2_is_drawn_with_and_without_monte_carlo() -> None:
    for draws in (0, 3):
        rows = rows_at(Place(4, 2, 2, draws), make_key(0), make_key(1))
        table = pd.DataFrame(rows, columns=COLUMNS)
        assert len(figure2(table).axes) == 3
        assert table["monte_carlo"].isna().all() == (draws == 0)
        flat = table[table["graph"] == "independent_paths"]
        assert flat["exact"].item() == pytest.approx(flat["theory"].item())


@pytest.mark.parametrize("numbers", [(6, 2, 1, 0), (4, 5, 1, 0), (4, 0, 1, 0), (4, 2, 0, 0)])
def test_numbers_that_make_no_graph_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        Place(*numbers)
    with pytest.raises(UsageError, match="draws"):
        Place(4, 2, 1, 1)
