import numpy as np
import pandas as pd
import pytest

from rad.plotting.pde import filmstrip, loss_figure, samples_figure, variance_figure


def test_each_fraction_has_its_mean_and_the_ratio_to_the_exact_run() -> None:
    rows, runs = [], []
    for budget, factor in (("0.001", 1.2), ("full", 1.0), ("0.1", 1.1)):
        runs.append({"budget": budget, "memory.saved_bytes": 1000 * factor})
        for seed in (0, 1):
            labels = {"budget": budget, "seed": seed}
            rows += [{"iteration": i, "train_loss": factor * 2**-i, **labels} for i in range(4)]
    above, below = loss_figure(pd.DataFrame(rows), pd.DataFrame(runs)).axes
    labels = [line.get_label() for line in above.lines]
    assert labels == ["exact, 1 kB", "0.1, 1.1 kB", "0.001, 1.2 kB"]
    assert list(np.asarray(above.lines[2].get_ydata())) == pytest.approx([1.2, 0.6, 0.3, 0.15])
    ratios = [set(np.asarray(line.get_ydata()).round(9)) for line in below.lines]
    assert ratios == [{1.0}, {1.1}, {1.2}]
    looks = {(line.get_color(), line.get_marker()) for line in above.lines}
    assert len(looks) == 3


def test_all_figures_name_the_problem() -> None:
    state, said = np.zeros((3, 3)), "9 x 9 points"
    film = filmstrip([0.0], state[None], state[None], state[None], said)
    samples = samples_figure(state, {"0.1": np.zeros((1, 2))}, 0.5, said)
    for figure in (film, samples):
        assert figure.get_suptitle() == said


def test_states_lie_as_on_the_grid() -> None:
    state = np.arange(9.0).reshape(3, 3)
    figure = samples_figure(state, {"0.1": np.array([[0.5, 0.5]])}, 2.0)
    assert np.array_equal(np.asarray(figure.axes[0].images[0].get_array()), state.T)
    film = filmstrip([0, 1], np.stack([state] * 2), np.stack([state + 1] * 2), np.zeros((2, 3, 3)))
    shown = [axes.images[0] for axes in film.axes if len(axes.images)]
    assert len(shown) == 10
    assert np.array_equal(np.asarray(shown[6].get_array()), np.ones((3, 3)))
    assert shown[6].get_clim() == (-8, 8)


def test_checkpointing_stands_beside_the_samples() -> None:
    labels = ("variant", "replacement", "saved_bytes", "time_ratio")
    rows = [
        ("baseline", None, 1e8, 1.0),
        ("different_sample", True, 1e6, 0.5),
        ("different_sample", False, 1e6, 0.6),
        ("checkpointing", None, 1e6, 1.7),
    ]
    table = pd.DataFrame([dict(zip(labels, row, strict=True)) for row in rows])
    for column in ("noise_start", "noise_trained", "norm_start", "norm_trained"):
        table[column] = 0.1
    _, below = variance_figure(table).axes
    points = {line.get_label(): line.get_xydata().tolist() for line in below.lines[:3]}
    assert points == {
        "exact": [[100, 1]],
        "checkpointing": [[1, 1.7]],
        "different sample": [[1, 0.5]],
    }
