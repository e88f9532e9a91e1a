"""Gradient noise: closed forms against enumeration, and measurement against closed forms."""

from dataclasses import replace
from itertools import product
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import LEVEL, check_mean_square, draws

from rad import data, models
from rad.data import characters
from rad.draws.reference import integers
from rad.errors import UsageError
from rad.gradient_noise import Sampling, Trace, full_gradient, measure, trace, weight_layers
from rad.gradient_noise.layers import loss_and_gradient, weight_gradients
from rad.gradient_noise.measure import ALL, MINIBATCHES, PARTS, _squares
from rad.nn import Conv2d, Linear, Sketching
from rad.planning.variants import Built, build
from rad.plotting.gradient_noise import noise_figure, ratio_figure
from rad.sketches import Sketch, fold_in, make_key
from rad.training import Batch, Classification, NextToken

SKETCHED = ("same_sample", "different_sample", "project")
BEYOND = ("stochastic_rounding", "sampled_rounding", "auto")
BATCH = 6
WEIGHTS = (("rnn", "_ih_l0"), ("rnn", "_hh_l0"), ("output", ""))


def digits(count: int) -> Classification:
    whole = data.load("digits")
    images, labels = whole.train_images[:count], whole.train_labels[:count]
    return Classification(replace(whole, train_images=images, train_labels=labels))


def network(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "linear":
            layers = [nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 10)]
            return nn.Sequential(*layers)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


both = pytest.mark.parametrize("kind", ["linear", "conv"])


def built(model: nn.Module, task: Classification, variant: str, budget: float, size: int) -> Built:
    (images,), labels = task.batch(torch.arange(size))
    return build(
        model, (images,), lambda out: F.cross_entropy(out, labels[: len(out)]), variant, budget
    )


@both
def test_squared_norms_of_the_examples_gradients(kind: str) -> None:
    model, task = network(kind), digits(5)
    batch = task.batch(torch.arange(5))
    traces, loss = trace(model, task, batch)
    assert loss == pytest.approx(F.cross_entropy(model(*batch.inputs), batch.targets).item())
    squares = {name: t.example_squares() for name, t in traces.items()}
    for n in range(5):
        loss_and_gradient(model, task, task.batch(torch.tensor([n])))
        for name, gradient in weight_gradients(model).items():
            expected = gradient.square().sum().item()
            assert squares[name][n].item() == pytest.approx(expected, rel=1e-5)


def test_a_sequence_adds_up_within_its_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Flatten(), nn.Linear(20, 10))
    task, images, labels = digits(1), torch.randn(3, 5, 6), torch.tensor([1, 2, 3])
    squares = trace(model, task, Batch((images,), labels))[0]["0.weight"].example_squares()
    for n in range(3):
        loss_and_gradient(model, task, Batch((images[n : n + 1],), labels[n : n + 1]))
        expected = weight_gradients(model)["0.weight"].square().sum().item()
        assert squares[n].item() == pytest.approx(expected, rel=1e-5)


@both
@pytest.mark.parametrize("chunk", [2, 100])
def test_the_full_gradient_is_that_of_the_whole_set(kind: str, chunk: int) -> None:
    model, task = network(kind), digits(7)
    full = full_gradient(model, task, chunk)
    loss = loss_and_gradient(model, task, task.batch(torch.arange(7)))
    assert full.loss == pytest.approx(loss)
    for name, gradient in weight_gradients(model).items():
        torch.testing.assert_close(full.gradients[name], gradient)


@both
def test_minibatch_noise_over_all_minibatches(kind: str) -> None:
    model, task = network(kind), digits(4)
    full = full_gradient(model, task)
    for size in (1, 2, 3):
        squares: dict[str, list[float]] = {name: [] for name in full.gradients}
        for chosen in product(range(4), repeat=size):
            loss_and_gradient(model, task, task.batch(torch.tensor(chosen)))
            for name, gradient in weight_gradients(model).items():
                squares[name].append((gradient - full.gradients[name]).square().sum().item())
        for name, values in squares.items():
            exact = sum(values) / len(values)
            assert full.minibatch_variance(name, size) == pytest.approx(exact, rel=1e-4)


class OneHot(nn.Module):
    """Tokens (B, T) as numbers (B, T, vocabulary), for layers that have a closed form."""

    def forward(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, 5).float()


def test_the_noise_of_a_language_model() -> None:
    task = NextToken(characters("cycle", "abcde" * 7 + "edcba" * 5, 0.3), 4)
    torch.manual_seed(0)
    model = nn.Sequential(OneHot(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5))
    full = full_gradient(model, task, chunk=3)
    whole = task.first(task.size())
    assert full.loss == pytest.approx(loss_and_gradient(model, task, whole))
    gradients = weight_gradients(model)
    for name, gradient in gradients.items():
        torch.testing.assert_close(full.gradients[name], gradient)
    for name, square in full.example_squares.items():
        own = []
        for block in range(task.size()):
            loss_and_gradient(model, task, task.batch(torch.tensor([block])))
            own.append(weight_gradients(model)[name].square().sum().item())
        assert square == pytest.approx(sum(own) / len(own), rel=1e-5)
    (tokens,), following = task.first(3)
    estimators = [
        build(model, (tokens,), task.loss_on(following), variant, budget)
        for variant, budget in (("baseline", "full"), ("different_sample", 0.4))
    ]
    table = measure(model, task, full, estimators, Sampling(100, 1, 100))
    rows = table[table["weight"] == ALL].set_index("variant")
    assert rows["sketch"]["baseline"] == 0
    for part in PARTS:
        low = rows[part] - 6 * rows[f"{part}_error"]
        high = rows[part] + 6 * rows[f"{part}_error"]
        assert ((low <= rows[f"{part}_predicted"]) & (rows[f"{part}_predicted"] <= high)).all()


def given_the_minibatch(kind: str, variant: str) -> tuple[Built, Trace, Batch]:
    """An estimator, the first layer's trace on six digits, and those digits."""
    model, task = network(kind), digits(BATCH)
    batch = task.batch(torch.arange(BATCH))
    traces, _ = trace(model, task, batch)
    return built(model, task, variant, 0.3, BATCH), next(iter(traces.values())), batch


def sketch_of(estimator: Built) -> Sketch:
    return next(m.sketch for m in estimator.model.modules() if isinstance(m, Sketching))


def weight_gradient(of: Trace, x_hat: Tensor) -> Tensor:
    """The weight gradient from an estimate of the layer's input, by torch alone."""
    if isinstance(of.layer, nn.Linear):
        return of.grad_output.t() @ x_hat
    x = x_hat.view(of.x.shape)
    options = (of.layer.stride, of.layer.padding)
    return torch.nn.grad.conv2d_weight(x, of.layer.weight.shape, of.grad_output, *options)


def estimate(of: Trace, sketch: Sketch, key: Tensor) -> Tensor:
    rows = of.x if of.x.dim() == 2 else of.x.flatten(2).flatten(0, 1)
    x_hat = sketch.decompress(sketch.compress(rows, key), rows.shape, rows.dtype, key)
    return weight_gradient(of, x_hat)


@both
@pytest.mark.parametrize("variant", SKETCHED)
def test_sketch_noise_has_the_closed_form_and_anothers_is_caught(kind: str, variant: str) -> None:
    estimator, of, _ = given_the_minibatch(kind, variant)
    sketch = sketch_of(estimator)
    samples = draws(lambda key: estimate(of, sketch, key), 8000)
    truth = weight_gradient(of, of.x)
    check_mean_square(samples, truth, of.noise_response().to_sketch(sketch))
    shared = variant != "different_sample"
    other = sketch_of(given_the_minibatch(kind, "different_sample" if shared else "project")[0])
    with pytest.raises(AssertionError, match="expected"):
        check_mean_square(samples, truth, of.noise_response().to_sketch(other))


@both
@pytest.mark.parametrize("variant", SKETCHED)
def test_a_converted_models_gradient_is_that_estimate(kind: str, variant: str) -> None:
    estimator, of, batch = given_the_minibatch(kind, variant)
    layer = next(m for m in estimator.model.modules() if isinstance(m, Sketching))
    for call in range(3):
        key = fold_in(layer.key, call)
        loss_and_gradient(estimator.model, digits(BATCH), batch)
        gradient = next(iter(weight_gradients(estimator.model).values()))
        torch.testing.assert_close(gradient, estimate(of, layer.sketch, key), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    model, task = network("linear"), digits(40)
    estimators = [
        built(model, task, "baseline", 1, BATCH),
        built(model, task, "reduced_batch", 0.3, BATCH),
        *(built(model, task, variant, 0.3, BATCH) for variant in SKETCHED),
    ]
    sampling = Sampling(minibatches=250, draws=1, predictions=250, seed=1)
    return measure(model, task, full_gradient(model, task), estimators, sampling)


@pytest.mark.parametrize("part", PARTS)
def test_measurement_and_closed_form_agree(table: pd.DataFrame, part: str) -> None:
    critical = NormalDist().inv_cdf(1 - LEVEL / 2)
    exact = table[f"{part}_predicted"] == 0
    assert (table.loc[exact, part] == 0).all()
    rows = table[~exact]
    assert (critical * rows[f"{part}_error"] <= 0.6 * rows[f"{part}_predicted"]).all()
    away = (rows[part] - rows[f"{part}_predicted"]).abs()
    assert (away <= critical * rows[f"{part}_error"]).all()


def test_a_total_without_one_of_its_parts_is_caught(table: pd.DataFrame) -> None:
    critical = NormalDist().inv_cdf(1 - LEVEL / 2)
    rows = table[table["variant"].isin(SKETCHED)]
    for part in ("minibatch", "sketch"):
        away = (rows["total"] - rows[f"{part}_predicted"]).abs()
        assert (away > critical * rows["total_error"]).any()


def test_all_weights_together_are_the_sum(table: pd.DataFrame) -> None:
    for _, rows in table.groupby("variant"):
        whole, single = rows["weight"] == ALL, rows["weight"] != ALL
        for column in ("squared_norm", *PARTS, *(f"{part}_predicted" for part in PARTS)):
            assert rows.loc[single, column].sum() == pytest.approx(rows.loc[whole, column].item())


def test_only_the_exact_estimators_have_no_sketch_noise(table: pd.DataFrame) -> None:
    noisy = set(table.loc[table["sketch"] > 0, "variant"])
    assert noisy == set(SKETCHED)
    reduced = table[table["variant"] == "reduced_batch"]
    assert (reduced["batch_size"] < BATCH).all()
    assert (reduced["total"] == reduced["minibatch"]).all()


@both
@pytest.mark.parametrize("keep", [0.05, 0.3])
@pytest.mark.parametrize("replacement", [True, False])
def test_predictions_at_any_keep_fraction_are_the_closed_form(
    kind: str, keep: float, replacement: bool
) -> None:
    model, task = network(kind), digits(BATCH)
    (images,), labels = task.batch(torch.arange(BATCH))
    full, sampling = full_gradient(model, task), Sampling(2, 1, 1, seed=2)

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output, labels[: len(output)])

    for variant in (*SKETCHED, *(BEYOND if keep == 0.3 else ())):
        options = {"replacement": replacement} if variant.endswith("sample") else {}
        estimator = build(model, (images,), loss, variant, keep, **options)
        predicted = measure(model, task, full, [estimator], sampling)["sketch_predicted"]
        unscaled = measure_directly(model, task, estimator, sampling)
        assert list(predicted) == pytest.approx([*unscaled, sum(unscaled)], rel=1e-4, abs=1e-9)


def measure_directly(
    model: nn.Module, task: Classification, estimator: Built, sampling: Sampling
) -> list[float]:
    """The sketch's own closed form on the first minibatch."""
    key = fold_in(fold_in(make_key(sampling.seed), MINIBATCHES), BATCH)
    indices = integers(fold_in(key, 0), range(1), BATCH, task.size())[0]
    traces, _ = trace(model, task, task.batch(indices))
    sketches = [m.sketch for m in estimator.model.modules() if isinstance(m, Linear | Conv2d)]
    return [t.noise_response().to_sketch(s) for t, s in zip(traces.values(), sketches, strict=True)]


def test_layers_without_a_closed_form_are_refused() -> None:
    with pytest.raises(UsageError, match="not for RNN"):
        weight_layers(nn.Sequential(nn.Linear(2, 2), nn.RNN(2, 2)))
    with pytest.raises(UsageError, match="no weights"):
        weight_layers(nn.ReLU())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1, 1, 1), "minibatches is 1"),
        ((2, 0, 1), "draws is 0"),
        ((2, 1.5, 1), "draws is 1.5"),
        ((2, 1, 3), "of only 2 minibatches"),
    ],
)
def test_bad_sampling(values: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(*values)


def test_figure_has_a_panel_for_each_weight_and_iteration(table: pd.DataFrame) -> None:
    both_points = pd.concat([table.assign(iteration=i) for i in (0, 500)])
    figure = noise_figure(both_points)
    assert len(figure.axes) == 3 * 2
    assert [axes.get_title() for axes in figure.axes[:2]] == ["iteration 0", "iteration 500"]
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    same = table[(table["weight"] == "1.weight") & (table["variant"] == "same_sample")].iloc[0]
    drawn = {float(line.get_ydata()[0]) for line in lines}  # type: ignore[index]
    assert any(y == pytest.approx(same["total_predicted"] / same["squared_norm"]) for y in drawn)


def test_the_noise_over_the_smaller_batchs_stands_in_one_panel(table: pd.DataFrame) -> None:
    points = pd.concat([table.assign(iteration=i) for i in (0, 500)])
    (axes,) = (figure := ratio_figure(points, "net on data")).axes
    assert figure.legends[0].get_title().get_text().startswith("net on data\niteration 500, all")
    whole = table[table["weight"] == table["weight"].iloc[-1]]
    own = whole[whole["variant"] == "same_sample"].iloc[0]
    smaller = whole[(whole["variant"] == "reduced_batch") & (whole["budget"] == own["budget"])]
    ratio = own["total"] / smaller["total"].iloc[0]
    drawn = [float(y) for line in axes.lines for y in np.atleast_1d(line.get_ydata())]
    assert any(y == pytest.approx(ratio) for y in drawn)


@both
def test_measured_squares_are_those_of_any_size_of_gradient(kind: str) -> None:
    model, task = network(kind), digits(5)
    traces, _ = trace(model, task, task.batch(torch.arange(5)))
    gradients = weight_gradients(model)
    none = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    usual = _squares(gradients, none)
    far = _squares({name: gradient * 2.0**-73 for name, gradient in gradients.items()}, none)
    assert torch.equal(far, usual * 4.0**-73)
    for each in traces.values():
        small = replace(each, grad_output=each.grad_output * 2.0**-73)
        expected = each.example_squares() * 4.0**-73
        torch.testing.assert_close(small.example_squares(), expected, rtol=1e-6, atol=0)


class Twice(nn.Module):
    """Uses a weight again: by another call, or past its layer."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.again, self.flatten, self.layer = again, nn.Flatten(), nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layer(self.flatten(images))
        if self.again == "call":
            hidden = self.layer(hidden)
        elif self.again == "weight":
            hidden = hidden @ self.layer.weight
        return self.head(hidden)


def test_a_missed_use_of_a_weight_is_refused_by_name() -> None:
    task = Classification(data.load("digits"))
    batch = task.first(20)
    trace(Twice("not"), task, batch)
    with pytest.raises(UsageError, match=r"layer\.weight takes part in 2 calls"):
        trace(Twice("call"), task, batch)
    with pytest.raises(UsageError, match=r"layer\.weight is also used past the call"):
        trace(Twice("weight"), task, batch)


def test_without_closed_forms_all_is_measured_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, task = models.irnn((1, 8, 8), 10, hidden=6, std=0.3), digits(40)
    full = full_gradient(model, task, chunk=7)
    loss_and_gradient(model, task, task.batch(torch.arange(40)))
    assert full.gradients.keys() == {f"{n}.weight{m}" for n, m in WEIGHTS}
    for name, gradient in weight_gradients(model).items():
        torch.testing.assert_close(full.gradients[name], gradient)
    estimators = [built(model, task, v, b, BATCH) for v, b in (("baseline", 1), ("project", 0.3))]
    sampling = Sampling(minibatches=250, draws=1, predictions=1, seed=1)
    table = measure(model, task, full, estimators, sampling).set_index(["variant", "weight"])
    assert table[[f"{part}_predicted" for part in PARTS]].isna().all(axis=None)
    assert (table.loc["baseline", "sketch"] == 0).all()
    noisy, critical = table.loc["project"], NormalDist().inv_cdf(1 - LEVEL / 2)
    error = noisy[[f"{part}_error" for part in PARTS]].sum(axis=1)
    away = (noisy["total"] - noisy["minibatch"] - noisy["sketch"]).abs()
    assert (away <= critical * error).all()
    assert (critical * noisy["sketch_error"] <= noisy["sketch"]).all()
