"""What methods reach at equal iterations and equal time, and the front."""

import math

import pandas as pd
import pytest

from rad.benchmarks.pareto import loss_after, losses, mean_curve, on_front
from rad.errors import UsageError
from rad.plotting import pareto_figure


def test_the_mean_curve_has_the_points_of_all_seeds() -> None:
    rows = pd.DataFrame(
        {
            "seed": [0, 0, 0, 1, 1, 1],
            "iteration": [0, 10, 20, 0, 10, 20],
            "train_loss": [2.0, 1.0, 0.5, 4.0, None, 1.5],
        }
    )
    assert dict(mean_curve(rows, "train_loss")) == {0: 3.0, 20: 1.0}


def test_losses_at_equal_iterations_and_equal_time() -> None:
    slow = pd.Series({0: 1.0, 100: 1e-4, 200: 1e-6})
    fast = pd.Series({0: 1.0, 100: 1e-1})
    found = losses({"slow": slow, "fast": fast}, {"slow": 2.0, "fast": 0.5})
    assert found["fast"] == pytest.approx((0.1, 0.1))
    assert found["slow"] == pytest.approx((1e-4, 0.1))  # a quarter of 100 iterations
    assert loss_after(slow, 150) == pytest.approx(1e-5)
    with pytest.raises(UsageError, match=r"201 iterations .* only 200"):
        loss_after(slow, 201)


def test_the_front_has_what_nothing_beats() -> None:
    nan = math.nan
    cost = pd.Series([1.0, 2.0, 2.0, 3.0, 0.5, 1.0])
    value = pd.Series([5.0, 4.0, 4.5, 4.0, nan, 5.0])
    assert list(on_front(cost, value)) == [True, True, False, False, False, True]


def test_the_figure_leaves_out_panels_without_values() -> None:
    table = pd.DataFrame(
        {
            "network": ["a", "a", "b"],
            "method": ["torch", "project", "unknown"],
            "saved_bytes": [1e6, 1e5, 1e4],
            "loss": [0.1, 0.2, 0.3],
            "loss_at_equal_time": [0.1, 0.2, 0.3],
            "variance_ratio": [1.0, 9.0, math.nan],
        }
    )
    panels = pareto_figure(table).axes
    assert [axes.axison for axes in panels] == [True] * 5 + [False]
    assert len(panels[0].lines) == 3  # two methods and the front
