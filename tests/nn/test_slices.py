"""`rad.nn.Slices` and `rad.slice_batches`: which layers run in slices, and what that changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import peak_bytes, saved_bytes
from rad.nn.slices import Slices, runs
from tests.unbiased import check_unbiased


def convnet(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *extra, nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*first, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 5))


def images(batch: int = 12) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(x), torch.arange(len(x)) % 5)
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("extra", [[], [nn.BatchNorm2d(8), nn.ReLU(inplace=True)]])
@pytest.mark.parametrize("convert", [False, True])
def test_exact_layers_have_the_gradients_of_the_batch(
    extra: list[nn.Module], convert: bool
) -> None:
    model = convnet(*extra)
    sliced = rad.convert(model, rad.Identity()) if convert else copy.deepcopy(model)
    assert rad.slice_batches(sliced, 5) is sliced
    for mine, whole in zip(gradients(sliced, images()), gradients(model, images()), strict=True):
        torch.testing.assert_close(mine, whole)


def test_names_of_parameters_stay_and_slices_can_be_taken_away() -> None:
    model = convnet()
    names = list(model.state_dict())
    rad.slice_batches(model, 5)
    assert isinstance(model, Slices)
    assert list(model.state_dict()) == names
    assert "size=5" in repr(model)
    rad.slice_batches(model, None)
    assert model.size is None


def test_layers_that_mix_examples_run_on_the_batch() -> None:
    model = convnet(nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    cut = [(len(run), sliced) for run, sliced in runs(model)]
    assert cut == [(2, True), (1, False), (1, False), (5, True)]
    x, seen = images(), list[int]()
    model[2].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    rad.slice_batches(model, 5)(x)
    assert seen == [12]


def test_hooks_see_the_batch() -> None:
    model, seen = rad.slice_batches(convnet(), 5), list[int]()
    model[0].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    model(images())
    assert seen == [12]


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(3, 8, 8)),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU()), torch.randn(3, 8, 8)),
        (nn.Sequential(nn.ReLU(), nn.MaxPool1d(2)), torch.randn(6, 8)),
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh()), torch.randn(6)),
        (nn.Sequential(nn.Flatten(0), nn.Linear(6, 4)), torch.randn(3, 2)),
    ],
)
def test_inputs_without_a_batch_axis_are_not_cut(model: nn.Module, x: Tensor) -> None:
    expected = model(x)
    torch.testing.assert_close(rad.slice_batches(model, 1)(x), expected)


def test_sketching_layers_draw_for_each_slice_and_stay_unbiased() -> None:
    model, x = convnet(), images(6)
    exact = torch.cat([g.flatten() for g in gradients(model, x)])
    converted = rad.slice_batches(rad.convert(model, rad.DifferentSample(0.4)), 2)
    calls = int(converted[0].calls)

    def estimate() -> Tensor:
        return torch.cat([g.flatten() for g in gradients(converted, x)])

    estimate()
    assert int(converted[0].calls) == calls + 3
    check_unbiased(torch.stack([estimate() for _ in range(600)]), exact)


def test_saved_bytes_stay_and_the_peak_falls() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
    model = rad.convert(nn.Sequential(*layers, nn.AvgPool2d(16)), rad.SameSample(0.1))
    x = torch.randn(32, 3, 32, 32)

    def loss() -> Tensor:
        return model(x).square().sum()

    saved, peak = saved_bytes(loss), peak_bytes(lambda: loss().backward())
    rad.slice_batches(model, 4)
    keys = 2 * 8 * (8 - 1)  # two layers, eight slices in place of one
    assert saved_bytes(loss) == saved + keys
    assert peak_bytes(lambda: loss().backward()) < 0.5 * peak


def test_plans_count_slices() -> None:
    model, x = convnet(), images()

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out, torch.arange(len(out)) % 5)

    for variant in ("different_sample", "auto", "reduced_batch"):
        whole = rad.fit(model, x, loss, 0.5, variant)
        sliced = rad.fit(rad.slice_batches(copy.deepcopy(model), 4), x, loss, 0.5, variant)
        assert sliced.sketch == whole.sketch
        assert sliced.batch_size == whole.batch_size
        assert sliced.memory.peak_bytes < whole.memory.peak_bytes


def test_a_compiled_model_runs_on_the_batch() -> None:
    model = rad.slice_batches(rad.convert(convnet(), rad.Identity()), 5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for mine, whole in zip(gradients(compiled, images()), gradients(model, images()), strict=True):
        torch.testing.assert_close(mine, whole)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_sizes_that_are_none_are_refused(size: object) -> None:
    model = convnet()
    with pytest.raises(UsageError, match="whole number of at least 1"):
        rad.slice_batches(model, size)  # type: ignore[arg-type]
    assert type(model) is nn.Sequential


def test_models_without_a_sequence_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no torch\.nn\.Sequential"):
        rad.slice_batches(nn.Linear(3, 2), 4)
