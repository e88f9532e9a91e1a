from pathlib import Path

import pandas as pd
from calling import Call


def test_bad_input_ends_in_one_line(call: Call, tmp_path: Path) -> None:
    for bad in ("networks=[vgg]", "draws.convnet=1", "iterations.convnet=null"):
        done = call("allocation", bad)
        assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert not list(tmp_path.iterdir())


def test_the_figure_shows_both_allocations() -> None:
    from rad.plotting import allocation_figure

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
