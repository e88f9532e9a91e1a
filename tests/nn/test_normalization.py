"""Norms that keep their rounded input, as modules and in conversions."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.nn import NORMS, Sketching
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    StochasticRounding,
    fold_in,
    make_key,
)

ROUNDED = DitheredRounding(4)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm((5, 3)), (4, 2, 5, 3)),
    "layer_without_bias": (lambda: nn.LayerNorm(9, eps=0.1, bias=False), (4, 9)),
    "layer_plain": (lambda: nn.LayerNorm(9, elementwise_affine=False), (4, 9)),
    "rms": (lambda: nn.RMSNorm(9), (4, 5, 9)),
    "rms_plain": (lambda: nn.RMSNorm((5, 3), eps=0.1, elementwise_affine=False), (4, 5, 3)),
    "group": (lambda: nn.GroupNorm(2, 6), (4, 6, 5, 3)),
    "batch1d": (lambda: nn.BatchNorm1d(6), (4, 6)),
    "batch1d_of_sequences": (lambda: nn.BatchNorm1d(6, momentum=None), (4, 6, 7)),
    "batch2d": (lambda: nn.BatchNorm2d(6, eps=0.1, momentum=0.3), (4, 6, 5, 3)),
    "batch2d_without_statistics": (
        lambda: nn.BatchNorm2d(6, track_running_stats=False),
        (4, 6, 5, 3),
    ),
    "instance1d": (lambda: nn.InstanceNorm1d(6, affine=True), (4, 6, 7)),
    "instance1d_without_batch": (lambda: nn.InstanceNorm1d(6, eps=0.1), (6, 7)),
    "instance2d": (lambda: nn.InstanceNorm2d(6, affine=True), (4, 6, 5, 3)),
    "instance2d_with_statistics": (
        lambda: nn.InstanceNorm2d(6, momentum=0.3, affine=True, track_running_stats=True),
        (4, 6, 5, 3),
    ),
    "instance3d": (lambda: nn.InstanceNorm3d(6, track_running_stats=True), (4, 6, 2, 3, 2)),
    "batch3d_plain": (lambda: nn.BatchNorm3d(6, affine=False), (4, 6, 2, 3, 2)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str, sketch: rad.Sketch = ROUNDED) -> tuple[nn.Module, nn.Module, Tensor]:
    """torch's layer, its conversion, and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer, rad.convert(layer, Identity(), path=sketch), torch.randn(shape)


@every_layer
def test_training_is_torchs_up_to_the_noise(name: str) -> None:
    theirs, ours, x = made(name, DitheredRounding(8))
    for step in range(3):
        x = (x + step).detach().requires_grad_()
        want, got = theirs(x), ours(x)
        assert torch.equal(got, want)
        grad_output = torch.randn_like(want)
        for e, a in zip(
            torch.autograd.grad(want, [x, *theirs.parameters()], grad_output),
            torch.autograd.grad(got, [x, *ours.parameters()], grad_output),
            strict=True,
        ):
            assert (a - e).norm() <= 0.03 * e.norm()
        for mine, statistic in zip(_statistics(ours), _statistics(theirs), strict=True):
            torch.testing.assert_close(mine, statistic)
            assert torch.equal(mine, statistic) or name.startswith("instance")
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def _statistics(layer: nn.Module) -> list[Tensor]:
    return [b for n, b in layer.named_buffers() if n not in ("key", "calls")]


@every_layer
def test_evaluation_and_identity_are_torchs(name: str) -> None:
    for sketch, training in ((ROUNDED, False), (Identity(), True)):
        theirs, ours, x = made(name, sketch)
        results = []
        for layer in (theirs.train(training), ours.train(training)):
            given = x.clone().requires_grad_()
            output = layer(given)
            grads = torch.autograd.grad(output.square().sum(), [given, *layer.parameters()])
            results.append((output, *grads, *_statistics(layer)))
        for a, e in zip(*results, strict=True):
            assert torch.equal(a, e)
    with torch.no_grad():
        assert torch.equal(ours.train()(x), theirs.train()(x))


@every_layer
def test_forward_takes_the_arguments_that_torch_names(name: str) -> None:
    theirs, ours, x = made(name)
    names = list(inspect.signature(type(theirs).forward).parameters)
    assert list(inspect.signature(type(ours).forward).parameters) == names
    assert ours(**{names[1]: x}).shape == x.shape
    again = type(ours)(*_arguments(theirs), sketch=ROUNDED, seed=2)
    assert str(ROUNDED) in repr(again)
    assert again.keeps == f"{ROUNDED} of its normalised input, and the scales"


def _arguments(layer: nn.Module) -> tuple[Any, ...]:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups, layer.num_channels
    first = "num_features" if hasattr(layer, "num_features") else "normalized_shape"
    return (getattr(layer, first),)


@every_layer
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_audit_predicts_and_measures_the_same(
    name: str, frozen: bool, dtype: torch.dtype
) -> None:
    _, ours, x = made(name)
    ours.to(dtype).requires_grad_(not frozen)
    x = x.to(dtype).requires_grad_()
    audit = rad.audit(nn.Sequential(ours), lambda: ours(x).sum())
    assert audit.unexpected == ()
    assert audit.predicted["0"] == audit.saved["0"] == audit.saved_bytes > 8
    assert {entry.kind for entry in audit.entries} == {"sketch"}


def test_bytes_beside_torchs() -> None:
    for layer, shape, codes, scales, theirs in (
        (nn.LayerNorm(300), (150, 300), 22_500, 150 * 8 + 150 * 4, 180_000 + 150 * 8),
        (nn.BatchNorm2d(16), (8, 16, 32, 32), 65_536, 128 * 8 + 16 * 4, 524_288 + 16 * 8),
    ):
        x, ours = torch.randn(shape, requires_grad=True), rad.convert(layer, ROUNDED, path=ROUNDED)
        weights = sum(p.nbytes for p in layer.parameters())

        def kept(norm: nn.Module, x: Tensor = x) -> int:
            return saved_bytes(lambda: norm(x * 1))

        assert kept(ours) == codes + scales + 8
        assert theirs <= kept(layer) <= theirs + weights


def test_by_default_norms_are_torchs() -> None:
    model = block()
    for sketch in (ROUNDED, DifferentSample(0.3)):
        converted = rad.convert(model, sketch)
        assert not any(isinstance(m, tuple(NORMS.values())) for m in converted.modules())
    left = {row.name: row.keeps for row in rad.report(converted).left}
    assert left["norm1"] == left["norm2"]
    assert "path=" in left["norm1"]
    draws = [layer.place for layer in converted.modules() if isinstance(layer, Sketching)]
    with_norms = rad.convert(model, sketch, path=ROUNDED)
    others = [
        layer.place
        for layer in with_norms.modules()
        if isinstance(layer, Sketching) and not isinstance(layer, tuple(NORMS.values()))
    ]
    assert others == draws  # no layer's draws depend on what norms do


class Block(nn.Module):
    """A small transformer block, norms first."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(8), norm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def block(norm: Callable[[int], nn.Module] = nn.LayerNorm) -> nn.Module:
    torch.manual_seed(0)
    return Block(norm)


class Residual(nn.Module):
    """A small block of a residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transformer": (block, (2, 3, 8)),
    "transformer_rms": (lambda: block(nn.RMSNorm), (2, 3, 8)),
    "residual": (Residual, (4, 3, 4, 4)),
}
every_net = pytest.mark.parametrize("net", NETS)


@every_net
def test_a_block_is_converted_reported_and_audited(net: str) -> None:
    make, shape = NETS[net]
    model = rad.convert(make(), DifferentSample(0.5), path=ROUNDED)
    keeps = {row.name: row.keeps for row in rad.report(model).replaced}
    assert "normalised input" in keeps["norm1"]
    assert "DitheredRounding" in keeps["norm2"]
    x = torch.randn(shape, requires_grad=True)
    audit = rad.audit(model, lambda: model(x).square().sum())
    for name in ("norm1", "norm2"):
        assert audit.predicted[name] == audit.saved[name] > 0
    assert not any("norm" in words for words in audit.unexpected)
    again = rad.convert(model, Identity())
    assert again.norm1.sketch == ROUNDED  # is left as it is
    assert rad.convert(model, Identity(), path=Identity()).norm1.keeps == "what torch keeps"


@pytest.mark.parametrize("net", ["transformer", "residual"])
def test_gradients_through_a_block_are_unbiased(net: str) -> None:
    make, shape = NETS[net]
    torch.manual_seed(1)
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    target = torch.randn(shape, dtype=torch.float64)

    def gradient(model: nn.Module) -> Tensor:
        loss = (model(x) * target).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    converted = rad.convert(model, Identity(), seed=1, path=DitheredRounding(3))
    samples = torch.stack([gradient(converted) for _ in range(400)])
    check_unbiased(samples, gradient(model))
    check_biased_is_caught(samples, gradient(model))


@every_net
@pytest.mark.parametrize("use_reentrant", [True, False, None], ids=["reentrant", "not", "plain"])
def test_the_key_that_decodes_is_the_key_that_encoded(net: str, use_reentrant: bool | None) -> None:
    """Two forward passes before their backward passes, and recomputation between.

    A call of each layer by itself, with the key of that call set by hand, is the reference.
    """
    make, shape = NETS[net]
    torch.manual_seed(2)
    model = rad.convert(make().double(), Identity(), seed=3, path=DitheredRounding(2))
    xs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    plain = copy.deepcopy(model)
    expected = [torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()]) for x in xs]
    repeated = torch.autograd.grad(plain(xs[0]).square().sum(), [xs[0], *plain.parameters()])
    assert not torch.allclose(repeated[0], expected[0][0])  # other draws: the control

    def run(x: Tensor) -> Tensor:
        if use_reentrant is None:
            return model(x)
        return checkpoint(model, x, use_reentrant=use_reentrant)  # type: ignore[return-value]

    outputs = [run(x) for x in xs]
    parameters = list(model.parameters())
    if use_reentrant is None:
        for x, output, want in zip(xs, outputs, expected, strict=True):
            got = torch.autograd.grad(output.square().sum(), [x, *parameters])
            torch.testing.assert_close(got, want)
        return
    for x, output in zip(xs, outputs, strict=True):  # recomputed with keys of its own
        model.zero_grad()
        calls = int(model.norm1.calls)
        draws = copy.deepcopy(model)
        output.square().sum().backward()
        assert int(model.norm1.calls) == calls + 1
        again = x.detach().requires_grad_()
        torch.autograd.backward(draws(again).square().sum())
        torch.testing.assert_close(x.grad, again.grad)
        for mine, reference in zip(parameters, draws.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, reference.grad)


def test_the_key_is_that_of_the_call() -> None:
    layer = rad.convert(nn.LayerNorm(7).double(), ROUNDED, seed=5, path=DitheredRounding(2))
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    for call in range(2):
        key = fold_in(fold_in(make_key(5), layer.place), call)
        parameters = (7,), layer.weight, layer.bias
        reference = rad.functional.layer_norm(x, *parameters, sketch=layer.sketch, key=key)
        output = layer(x)
        (want,) = torch.autograd.grad(reference.square().sum(), x)
        assert torch.equal(torch.autograd.grad(output.square().sum(), x)[0], want)


def test_sketches_that_would_bias_are_refused_before_anything_is_converted() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with pytest.raises(UsageError, match="use DitheredRounding"):
        rad.convert(model, ROUNDED, path=StochasticRounding(4), inplace=True)
    with pytest.raises(TypeError, match=r"rad\.sketches\.Sketch"):
        rad.convert(model, ROUNDED, path=4, inplace=True)  # type: ignore[arg-type]
    model[1].key = 3
    with pytest.raises(UsageError, match="'1' has an attribute 'key'"):
        rad.convert(model, ROUNDED, path=ROUNDED, inplace=True)
    assert type(model[0]) is nn.Linear
    with pytest.raises(UsageError, match="use DitheredRounding"):
        rad.nn.RMSNorm(3, sketch=DifferentSample(0.5))


def test_wrong_inputs_are_torchs_errors() -> None:
    norm = rad.convert(nn.BatchNorm2d(3), ROUNDED, path=ROUNDED)
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(torch.randn(3, 4))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 3, 1, 1))
    norm = rad.convert(nn.InstanceNorm2d(3, affine=True), ROUNDED, path=ROUNDED)
    with pytest.raises(ValueError, match="expected 3D or 4D input"):
        norm(torch.randn(3, 4))
    with pytest.raises(ValueError, match="input's size at dim=1 to match num_features"):
        norm(torch.randn(2, 4, 5, 5))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(torch.randn(2, 3, 1, 1))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        rad.convert(nn.LayerNorm(4), ROUNDED, path=ROUNDED)(torch.randn(2, 3))


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled_norms_are_those_of_eager(backend: str) -> None:
    torch.compiler.reset()
    norms = [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(3, 3), nn.BatchNorm1d(3)]
    norms += [nn.InstanceNorm1d(3, affine=True, track_running_stats=True)]
    eager = rad.convert(nn.Sequential(*norms), ROUNDED, path=ROUNDED)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        x = torch.randn(2, 3, 8, requires_grad=True)
        results = []
        for call, layers in ((eager, eager), (compiled, model)):
            output = call(x)
            grads = torch.autograd.grad(output.cos().sum(), [x, *layers.parameters()])
            results.append([output, *grads, *_statistics(layers)])
        for a, e in zip(*results, strict=True):
            assert torch.equal(a, e)


def test_slices_cut_the_batch_around_batch_norms_only() -> None:
    for norm, is_apart in (
        (nn.GroupNorm(2, 4), True),
        (nn.BatchNorm2d(4), False),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
    ):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
        sliced = rad.slice_batches(rad.convert(model, Identity(), path=DitheredRounding(8)), 2)
        x = torch.randn(6, 3, 5, 5, requires_grad=True)
        want, got = model(x), sliced(x)
        torch.testing.assert_close(got, want)
        assert int(sliced[1].calls) == (3 if is_apart else 1)
        grad_output = torch.randn_like(want)
        (e,), (a,) = (torch.autograd.grad(output, x, grad_output) for output in (want, got))
        assert (a - e).norm() < 0.03 * e.norm()


def test_a_model_with_rounded_norms_can_be_planned_for() -> None:
    """Its norms keep what they keep, and are no layers to choose sketches for."""
    model = nn.Sequential(nn.Linear(6, 40), nn.LayerNorm(40), nn.Linear(40, 3))
    converted = rad.convert(model, Identity(), path=ROUNDED)
    x = torch.randn(64, 6)
    plan = rad.fit(converted, x, lambda out: out.square().mean(), 0.5)
    again = rad.convert(converted, plan.sketch, seed=1)
    assert (again[0].sketch, again[1].sketch) == (plan.sketch, ROUNDED)
    audit = rad.audit(again, lambda: again(x).square().mean())
    assert audit.predicted["1"] == audit.saved["1"]
    assert audit.saved_bytes == plan.memory.saved_bytes
