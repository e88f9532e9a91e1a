"""Sketch noise of a recurrent layer against its number of steps."""

import pytest
import torch

from rad import data, models
from rad.errors import UsageError
from rad.gradient_noise.recurrent import gradient, rows_of, steps_of
from rad.models.irnn import IRNN
from rad.sketches import Identity, make_key


def fake(downsample: int) -> data.Dataset:
    """Random sequences of 28 / downsample steps."""
    generator = torch.Generator().manual_seed(0)
    shape = (30, 28 // downsample, 1)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (30,), generator=generator, dtype=torch.uint8)
    return data.Dataset("fake", images, labels, images, labels, (0.5,), (0.3,), 10)


def network() -> IRNN:
    model = models.build("irnn", (7, 1), 10, seed=0, hidden=10, std=0.5)
    assert isinstance(model, IRNN)
    return model


def test_the_steps_give_the_gradient() -> None:
    model = network()
    x, y = fake(4).batch(torch.arange(6))
    x = x.transpose(0, 1)
    exact = gradient(model, x, y, Identity(), make_key(0))
    states, delta = steps_of(model, x, y, exact, make_key(0))
    assert states.shape == delta.shape == (7, 6, 10)
    torch.testing.assert_close(torch.einsum("tbo,tbi->oi", delta, states), exact)


def test_a_use_of_the_weight_past_the_layer_is_refused() -> None:
    model = network()
    model.output.weight = model.rnn.weight_hh_l0
    x, y = fake(4).batch(torch.arange(6))
    x = x.transpose(0, 1)
    exact = gradient(model, x, y, Identity(), make_key(0))
    with pytest.raises(UsageError, match=r"rnn\.weight_hh_l0 is also used past"):
        steps_of(model, x, y, exact, make_key(0))


@pytest.mark.parametrize("downsample", [4, 2])
def test_what_is_measured_is_what_is_predicted(downsample: int) -> None:
    settings = {"hidden": 9, "keep_fraction": 0.1, "batch_size": 20, "draws": 64, "seed": 0}
    rows = rows_of(fake(downsample), **settings)  # type: ignore[arg-type]
    assert [row["sketch"] for row in rows] == ["same_sample", "different_sample", "project"]
    for row in rows:
        assert row["steps"] == 28 // downsample
        measured, error, predicted = (
            float(row[name]) for name in ("measured", "standard_error", "predicted")
        )
        assert abs(measured - predicted) < 5 * error
