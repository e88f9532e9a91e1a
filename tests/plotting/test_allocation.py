"""The gain of divided budgets."""

import pandas as pd

from rad.plotting import allocation_figure


def test_the_figure_shows_both_allocations() -> None:
    rows = [
        {"network": "feedforward", "iteration": i, "variant": "project", "allocation": allocation}
        | {"measured": 1.0 + i, "standard_error": 0.1}
        for i in (0, 50)
        for allocation in ("uniform", "optimal")
    ]
    figure = allocation_figure(pd.DataFrame(rows))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["iteration 0", "iteration 50"]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(shown) == ["project, optimal", "project, uniform"]
