"""Conversion of the very object, and of models that cannot be copied."""

import copy
import gc
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.errors import UsageError
from rad.sketches import DifferentSample, Identity, SameSample, fold_in


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu, self.lock = nn.Linear(6, 5), nn.ReLU(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.relu(self.linear(x))


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(0)


def with_hooks(hook: Callable[[nn.Module], object]) -> nn.Sequential:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hook(model[0])
    return model


REWEIGHTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "prune": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
    "parametrizations": parametrizations.weight_norm,
}
reweighted = pytest.mark.parametrize("hook", REWEIGHTED.values(), ids=REWEIGHTED)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_same_model_and_parameters_come_back_and_an_optimizer_trains_them() -> None:
    model = network()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert rad.convert(model, SameSample(0.5), inplace=True) is model
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    before = copy.deepcopy(model.state_dict())
    gradients(model, torch.randn(3, 6, dtype=torch.float64))
    optimizer.step()
    assert not torch.equal(model[0].weight, before["0.weight"])
    again = rad.convert(model, DifferentSample(0.5), seed=1, inplace=True)
    assert again is model
    assert again[0].sketch == DifferentSample(0.5)


def test_in_place_and_copy_draw_alike() -> None:
    model, x = network(), torch.randn(3, 6, dtype=torch.float64)
    copied = rad.convert(model, SameSample(0.5), seed=2)
    for _ in range(2):
        copied = rad.convert(copied, SameSample(0.5), seed=2)
    expected, actual = (
        gradients(m, x) for m in (copied, rad.convert(model, SameSample(0.5), 2, inplace=True))
    )
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_copy_warns_of_an_optimizer() -> None:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = list(model.parameters())
        rad.convert(model, Identity())
        alone = torch.optim.SGD(network().parameters(), 0.1)
        rad.convert(model, Identity())
        optimizer = torch.optim.Adam(kept[1:2], 0.1)
        rad.convert(model, Identity(), inplace=True)
    with pytest.warns(UserWarning, match="inplace=True"):
        rad.convert(model, Identity())
    assert optimizer is not alone


@pytest.mark.parametrize("kind", [nn.Linear, nn.RNN])
def test_nothing_is_searched_where_only_the_model_holds_its_parameters(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(kind(3, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="inplace=True"):
        rad.convert(model, Identity())
    del optimizer
    monkeypatch.delattr(gc, "get_referrers")
    rad.convert(model, Identity())


@pytest.mark.parametrize(
    "model",
    [Locked(), with_hooks(nn.utils.weight_norm), with_hooks(REWEIGHTED["prune"])],
    ids=["lock", "weight_norm", "prune"],
)
def test_what_cannot_be_copied_is_refused_whole_and_converts_in_place(model: nn.Module) -> None:
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(UsageError, match="inplace=True"):
        rad.convert(model, Identity())
    assert [type(m) for m in model.modules()] == kinds
    assert rad.convert(model, Identity(), inplace=True) is model
    assert any(isinstance(m, rad.nn.Linear) for m in model.modules())
    model(torch.randn(2, 6, dtype=next(model.parameters()).dtype)).sum().backward()


@pytest.mark.parametrize(
    ("sketch", "seed", "error"),
    [
        (0.1, 0, TypeError),
        ({"0": SameSample(0.5), "2": 0.1}, 0, TypeError),
        ({"0": SameSample(0.5), "7": SameSample(0.5)}, 0, UsageError),
        (SameSample(0.5), 0.5, TypeError),
    ],
)
def test_nothing_is_converted_when_an_error_is_raised(
    sketch: object, seed: int, error: type[Exception]
) -> None:
    model = network()
    with pytest.raises(error):
        rad.convert(model, sketch, seed, inplace=True)  # type: ignore[arg-type]
    assert type(model[0]) is nn.Linear
    assert not dict(model.named_buffers())


@reweighted
def test_recomputed_weights_get_torchs_gradients_with_identity(
    hook: Callable[[nn.Module], object],
) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 6, dtype=torch.float64)
    results = []
    for sketch in (None, Identity()):
        torch.manual_seed(2)
        model = with_hooks(hook)
        if sketch is not None:
            rad.convert(model, sketch, inplace=True)
            assert isinstance(model[0], rad.nn.Linear)
        results.append(gradients(model, x))
        modes = [m.training for m in model.modules()]
        assert all(modes)
    assert results[1].keys() == results[0].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient)


@pytest.mark.parametrize("name", sorted(REWEIGHTED.keys() - {"spectral_norm"}))
def test_recomputed_weights_get_unbiased_gradients(name: str) -> None:
    """Spectral norm apart, whose weight moves in training mode."""
    torch.manual_seed(1)
    x, grad_output = torch.randn(4, 6).double(), torch.randn(4, 5).double()
    layer = with_hooks(REWEIGHTED[name]).eval()[0]
    parameters = [p for name, p in layer.named_parameters() if "bias" not in name]
    truth = torch.autograd.grad(layer(x), parameters, grad_output)
    layer = nn.Sequential(layer)
    rad.convert(layer, SameSample(0.8, replacement=False), inplace=True)
    layer[0].train()
    samples = [torch.autograd.grad(layer(x), parameters, grad_output) for _ in range(2000)]
    flat = torch.stack([torch.cat([g.flatten() for g in each]) for each in samples])
    exact = torch.cat([g.flatten() for g in truth])
    check_unbiased(flat, exact)
    check_biased_is_caught(flat, exact)


def test_parametrizations_survive_and_can_be_removed() -> None:
    original = with_hooks(REWEIGHTED["parametrize"])
    model = rad.convert(original, SameSample(0.5))
    assert not isinstance(original[0], rad.nn.Linear)
    assert parametrize.is_parametrized(model[0])
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(model(x), original(x))
    assert int(copy.deepcopy(model)[0].next_key()) == int(fold_in(model[0].key, 1))
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is rad.nn.Linear
    assert torch.equal(model(x), original(x))


def test_modes_of_parts_stay() -> None:
    model = network()
    model[1].eval()
    for converted in (rad.convert(model, Identity()), rad.convert(model, Identity(), inplace=True)):
        assert [m.training for m in converted.modules()] == [True, True, False, True]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def test_any_name_of_a_layer_names_it() -> None:
    for names in (["first"], ["second"], ["first", "second"]):
        sketched = rad.convert(Twice(), dict.fromkeys(names, SameSample(0.5)))
        assert sketched.get_submodule("first").sketch == SameSample(0.5)
    with pytest.raises(UsageError, match="one layer"):
        rad.convert(Twice(), {"first": SameSample(0.5), "second": SameSample(0.4)})


def test_a_name_that_is_taken_is_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].key = "head"
    with pytest.raises(UsageError, match="rename the attribute"):
        rad.convert(model, rad.DifferentSample(0.5), inplace=True)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.ReLU(), "output_kept"), (nn.RNN(3, 4), "sequence_read")]
)
def test_a_name_that_conversion_answers_under_is_refused(layer: nn.Module, name: str) -> None:
    setattr(layer, name, "mine")
    with pytest.raises(UsageError, match=f"{name}.*rename the attribute"):
        rad.convert(nn.Sequential(layer), rad.DifferentSample(0.5))


def test_a_layer_with_a_forward_of_its_own_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x)
    rad.convert(model, rad.DifferentSample(0.5), inplace=True)
    assert type(model[0]) is nn.Linear
    assert {row.name for row in rad.report(model).replaced} == {"1"}


def test_converting_draws_nothing() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(3)

    model = nn.Sequential(Noisy(), nn.Linear(3, 4))
    state = torch.get_rng_state()
    rad.report(rad.convert(model, rad.DifferentSample(0.5)))
    assert torch.equal(state, torch.get_rng_state())
