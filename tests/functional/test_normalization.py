from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
)

from rad import backends
from rad.dtypes import accumulation_dtype
from rad.errors import UsageError
from rad.functional import (
    batch_norm,
    batch_norm_grad_variance,
    dithered,
    group_norm,
    instance_norm,
    layer_norm,
    norm_grad_variance,
    rms_norm,
)
from rad.functional.norm_rows import Norm
from rad.memory import saved_bytes
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    Project,
    RotatedRounding,
    SampledRounding,
    Sketch,
    StochasticRounding,
    make_key,
)

KEY = make_key(4)


@dataclass(frozen=True)
class Case:
    """A normalisation of x of some shape, the shape of its weight, and the axes of its rows.

    `together` are the axes that are normalised together once x has the shape `split`.
    """

    kind: str
    shape: tuple[int, ...]
    weight: tuple[int, ...] | None
    split: tuple[int, ...]
    together: tuple[int, ...]
    groups: int = 1
    eps: float = 1e-5

    def ours(self, x: Tensor, w: Tensor | None, b: Tensor | None, sketch: Sketch) -> Tensor:
        how = {"sketch": sketch, "key": KEY}
        if self.kind == "layer":
            return layer_norm(x, self.trailing, w, b, self.eps, **how)
        if self.kind == "rms":
            return rms_norm(x, self.trailing, w, self.eps, **how)
        if self.kind == "group":
            return group_norm(x, self.groups, w, b, self.eps, **how)
        if self.kind == "instance":
            return instance_norm(x, None, None, w, b, eps=self.eps, **how)
        return batch_norm(x, None, None, w, b, eps=self.eps, **how)

    def torchs(self, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, self.trailing, w, b, self.eps)
        if self.kind == "rms":
            return F.rms_norm(x, self.trailing, w, self.eps)
        if self.kind == "group":
            return F.group_norm(x, self.groups, w, b, self.eps)
        if self.kind == "instance":
            return F.instance_norm(x, None, None, w, b, eps=self.eps)
        return F.batch_norm(x, None, None, w, b, True, eps=self.eps)

    @property
    def trailing(self) -> tuple[int, ...]:
        return self.weight or self.shape[-1:]

    @property
    def per_channel(self) -> tuple[int, ...]:
        """The shape in which the weight meets x."""
        if self.kind in ("layer", "rms"):
            return self.trailing
        return (1, self.shape[1], *[1] * (len(self.shape) - 2))

    def rows(self) -> tuple[int, int]:
        """The rows of the sketch."""
        if self.kind == "batch":
            batch, channels, *space = self.shape
            return (batch * channels, torch.Size(space).numel()) if space else (batch, channels)
        d = torch.Size(self.split[axis] for axis in self.together).numel()
        return torch.Size(self.shape).numel() // d, d

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None, ...]:
        torch.manual_seed(0)
        x = (torch.randn(self.shape, dtype=dtype) * 2 + 1).requires_grad_()
        if self.weight is None:
            return x, None, None
        w = torch.rand(self.weight, dtype=dtype).add(0.5).requires_grad_()
        has_bias = self.kind != "rms"
        return x, w, torch.randn(self.weight, dtype=dtype).requires_grad_() if has_bias else None

    def naive(
        self, x: Tensor, w: Tensor | None, grad_output: Tensor, sketch: DitheredRounding
    ) -> tuple[Tensor, Tensor]:
        """The formulas with everything dense: the gradients by x (wide), and by the weight."""
        wide = accumulation_dtype(x.dtype)
        x, g = x.detach().to(wide), grad_output.to(wide)
        parts = x.view(self.split)
        variance, mean = torch.var_mean(parts, self.together, correction=0, keepdim=True)
        if self.kind == "rms":
            mean, variance = 0 * mean, parts.square().mean(self.together, keepdim=True)
        r = (variance + self.eps).rsqrt()
        x_hat = ((parts - mean) * r).reshape(self.rows())
        kept = sketch.compress(x_hat, KEY)
        q = sketch.decompress(kept, self.rows(), wide, KEY).view(self.shape)
        v = sketch.element_variance(x_hat).view(self.split)
        by_weight = (g * q).view(self.shape)
        if w is not None:
            g = g * w.detach().to(wide).view(self.per_channel)
            drop = [a for a in range(len(self.shape)) if self.is_summed(a)]
            by_weight = by_weight.sum(drop).view(w.shape)
        g, q = g.view(self.split), q.view(self.split)
        n = x_hat.numel() // r.numel()
        mean_g = 0 if self.kind == "rms" else g.mean(self.together, keepdim=True)
        product = (g * q).mean(self.together, keepdim=True)
        return (r * (g - mean_g - q * product + g * v / n)).view(self.shape), by_weight

    def is_summed(self, axis: int) -> bool:
        """Whether the weight's gradient is a sum over that axis of x."""
        if self.kind in ("layer", "rms"):
            return axis < len(self.shape) - len(self.trailing)
        return axis != 1


TWO_AXES = (4, 5, 3)
CASES = {
    "layer": Case("layer", (3, 4, 7), (7,), (3, 4, 7), (2,)),
    "layer_of_two_axes": Case("layer", TWO_AXES, (5, 3), TWO_AXES, (1, 2), eps=0.1),
    "layer_plain": Case("layer", (5, 7), None, (5, 7), (1,)),
    "rms": Case("rms", (3, 4, 7), (7,), (3, 4, 7), (2,), eps=1e-3),
    "rms_of_two_axes": Case("rms", TWO_AXES, (5, 3), TWO_AXES, (1, 2)),
    "group": Case("group", (3, 6, 4, 5), (6,), (3, 2, 60), (2,), groups=2),
    "group_plain": Case("group", (3, 6), None, (3, 3, 2), (2,), groups=3),
    "group_of_channels": Case("group", (3, 6, 7), (6,), (3, 6, 7), (2,), groups=6, eps=0.1),
    "instance": Case("instance", (3, 6, 4, 2), (6,), (3, 6, 8), (2,)),
    "instance_of_sequences": Case("instance", (3, 2, 7), (2,), (3, 2, 7), (2,), eps=0.1),
    "instance_plain": Case("instance", (2, 3, 2, 3, 2), None, (2, 3, 12), (2,)),
    "batch": Case("batch", (5, 3, 4, 2), (3,), (5, 3, 8), (0, 2)),
    "batch_of_vectors": Case("batch", (9, 4), (4,), (9, 4), (0,), eps=0.1),
    "batch_of_one_channel": Case("batch", (5, 1, 7), (1,), (5, 1, 7), (0, 2)),
    "batch_plain": Case("batch", (2, 3, 2, 3, 2), None, (2, 3, 12), (0, 2)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SKETCHES = [DitheredRounding(2), DitheredRounding(3, block=4), DitheredRounding(2, zero_code=True)]
every_sketch = pytest.mark.parametrize("sketch", SKETCHES, ids=str)


def given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_identity_is_torchs(case: Case, dtype: torch.dtype) -> None:
    x, w, b = case.inputs(dtype)
    mine, theirs = case.ours(x, w, b, Identity()), case.torchs(x, w, b)
    assert torch.equal(mine, theirs)
    grad_output = torch.randn_like(theirs)
    for a, e in zip(
        torch.autograd.grad(mine, given(x, w, b), grad_output),
        torch.autograd.grad(theirs, given(x, w, b), grad_output),
        strict=True,
    ):
        assert torch.equal(a, e)


@every_case
@every_sketch
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loops", [True, False], ids=["loops", "operators"])
@pytest.mark.parametrize("piece", [dithered.PIECE, 24])
def test_forward_is_torchs_and_gradients_read_the_sketch(
    case: Case,
    sketch: DitheredRounding,
    dtype: torch.dtype,
    piece: int,
    loops: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dithered, "PIECE", piece)
    if not loops:
        monkeypatch.setattr(backends, "in_loops", lambda x: False)
    x, w, b = case.inputs(dtype)
    output = case.ours(x, w, b, sketch)
    if (case.kind, dtype) == ("rms", torch.bfloat16):
        torch.testing.assert_close(output, case.torchs(x, w, b))
    else:
        assert torch.equal(output, case.torchs(x, w, b))
    grad_output = torch.randn_like(output)
    by_x, *others = torch.autograd.grad(output, given(x, w, b), grad_output)
    naive_x, naive_w = case.naive(x, w, grad_output, sketch)
    if dtype == torch.bfloat16:
        assert by_x.dtype == dtype  # rounded at random to one of the two around it
        torch.testing.assert_close(by_x.float(), naive_x, rtol=2**-7, atol=1e-4)
    else:
        torch.testing.assert_close(by_x, naive_x)
    if w is not None:
        torch.testing.assert_close(others[0], naive_w.to(dtype))
    if b is not None:
        drop = [axis for axis in range(x.dim()) if case.is_summed(axis)]
        exact = grad_output.to(accumulation_dtype(dtype)).sum(
            drop
        )  # torch's bfloat16 sum is coarse
        torch.testing.assert_close(others[1], exact.to(dtype))


N = 20_000
"""Samples: normalisations of equal numbers in one call, each with draws of its own."""


def uncorrected(
    case: Case, sketch: DitheredRounding, samples: Tensor, x: Tensor, g: Tensor
) -> Tensor:
    """The same samples without the term that the square of an error brings."""
    parts, grad = x.view(case.split), g.view(case.split)
    deviation = (parts - parts.mean(1, keepdim=True)).square().mean(1, keepdim=True)
    if case.kind == "rms":
        deviation = parts.square().mean(1, keepdim=True)
    r = (deviation + case.eps).rsqrt()
    mean = 0 if case.kind == "rms" else parts.mean(1, keepdim=True)
    v = sketch.element_variance(((parts - mean) * r).view(1, -1)[:, : parts.numel()])
    return samples - (r * grad * v.view(parts.shape) / parts.shape[1]).view(-1)


@pytest.mark.parametrize("kind", ["layer", "rms", "group", "instance"])
def test_gradients_of_rows_are_unbiased_with_the_stated_variance(kind: str) -> None:
    """2 bits a number; without the correction they would not be."""
    torch.manual_seed(1)
    sketch, d, eps = DitheredRounding(2), 6, 1e-5
    channels = {"group": 3, "instance": 1}.get(kind, d)
    shape = (1, channels, d // channels) if kind in ("group", "instance") else (1, d)
    x = torch.randn(shape, dtype=torch.float64)
    w = torch.rand(channels, dtype=torch.float64) + 0.5
    grad = torch.randn(shape, dtype=torch.float64)

    def output(x: Tensor, w: Tensor, norm: Callable[..., Tensor], **how: object) -> Tensor:
        first = 1 if norm.__name__ == "group_norm" else (d,)
        middle = () if norm.__name__ == "rms_norm" else (None,)
        if norm.__name__ == "instance_norm":
            return norm(x, weight=w, eps=eps, **how)
        return norm(x, first, w, *middle, eps, **how)

    ours = {"layer": layer_norm, "rms": rms_norm, "group": group_norm}.get(kind, instance_norm)
    theirs = {"layer": F.layer_norm, "rms": F.rms_norm, "group": F.group_norm}
    theirs = theirs.get(kind, F.instance_norm)
    many, weight = x.repeat(N, *[1] * (x.dim() - 1)).requires_grad_(), w.clone().requires_grad_()
    how = {"sketch": sketch, "key": KEY}
    (samples,) = torch.autograd.grad(
        output(many, weight, ours, **how), many, grad.expand(many.shape)
    )
    x.requires_grad_()
    (truth,) = torch.autograd.grad(output(x, w, theirs), x, grad)
    samples, truth = samples.view(N, -1), truth.view(-1)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    check_one_biased_is_caught(samples, truth)
    g = grad * w.view(1, -1, *[1] * (x.dim() - 2))
    case = Case(kind, (1, d), (d,), (1, d), (1,), eps=eps)
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(
            uncorrected(case, sketch, samples, x.detach().view(1, d), g.view(1, d)), truth
        )
    norm = Norm(kind, (channels,), eps)  # type: ignore[arg-type]
    variance = norm_grad_variance(x, grad, norm, w, sketch)
    check_mean_square(samples, truth, variance.item())


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2)], ids=str)
@pytest.mark.parametrize("block", [None, 3])
def test_gradients_of_channels_are_unbiased_with_the_stated_variance(
    shape: tuple[int, ...], block: int | None
) -> None:
    """Of batch norm, three channels a sample. Grids differ from example to example."""
    torch.manual_seed(2)
    sketch, n = DitheredRounding(2, block), 15_000
    x, grad = torch.randn(2, *shape, dtype=torch.float64)
    w = torch.rand(3, dtype=torch.float64) + 0.5
    exact = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    output = F.batch_norm(exact[0], None, None, exact[1], None, True)
    truth, truth_w = torch.autograd.grad(output, exact, grad)

    def tiled(t: Tensor) -> Tensor:
        return t.repeat(1, n, *[1] * (t.dim() - 2))

    many = [tiled(x).requires_grad_(), w.repeat(n).requires_grad_()]
    output = batch_norm(many[0], None, None, many[1], None, sketch=sketch, key=KEY)
    by_x, by_w = torch.autograd.grad(output, many, tiled(grad))
    samples = by_x.unflatten(1, (n, 3)).transpose(0, 1)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    check_one_biased_is_caught(samples, truth)
    check_unbiased(by_w.view(n, 3), truth_w)
    check_biased_is_caught(by_w.view(n, 3), truth_w)
    variance = batch_norm_grad_variance(x, grad, w, sketch)
    check_mean_square(samples, truth, variance.item())

    axes, channel = [0, *range(2, x.dim())], (3, *[1] * (x.dim() - 2))
    spread, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    r = (spread + 1e-5).rsqrt()
    v = sketch.element_variance(((x - mean) * r).flatten(0, x.dim() - 2)).view(shape)
    term = w.view(channel) * r * grad * v / (x.numel() // 3)
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(samples - term, truth)


def test_weights_gradients_of_rows_are_unbiased() -> None:
    torch.manual_seed(3)
    sketch, n = DitheredRounding(2), 20_000
    x, grad = torch.randn(2, 1, 2, 3, dtype=torch.float64)
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(F.group_norm(x, 1, w), w, grad)
    many = torch.ones(2 * n, dtype=torch.float64, requires_grad=True)
    output = group_norm(x.repeat(1, n, 1), n, many, sketch=sketch, key=KEY)
    (samples,) = torch.autograd.grad(output, many, grad.repeat(1, n, 1))
    check_unbiased(samples.view(n, 2), truth)
    check_biased_is_caught(samples.view(n, 2), truth)


def test_errors_of_two_numbers_and_of_their_squares_are_uncorrelated() -> None:
    """On what the correction rests; the draws of a row share a part."""
    torch.manual_seed(4)
    sketch, n = DitheredRounding(2), 200_000
    x = torch.randn(1, 6, dtype=torch.float64)
    rows = x.repeat(n, 1)
    errors = sketch.decompress(sketch.compress(rows, KEY), rows.shape, x.dtype, KEY) - rows
    v = sketch.element_variance(x)[0, 0]
    for values, variance in ((errors, v), (errors.square() - v, 0.8 * v.square())):
        covariance = values.t() @ values / n
        z = (covariance / variance - torch.eye(6, dtype=x.dtype)) * n**0.5
        assert z.abs().max() < 6


@every_case
def test_bytes(case: Case) -> None:
    x, w, b = case.inputs(torch.float32)
    x, sketch = x.detach(), DitheredRounding(4)
    rows = case.rows()
    scales = case.shape[1] if case.kind == "batch" else rows[0]
    parameters = [] if w is None else [w, b]
    expected = sketch.nbytes(rows, x.dtype) + 8

    def kept() -> int:
        measured = saved_bytes(lambda: case.ours(x, w, b, sketch))
        return measured - (0 if w is None else w.nbytes)

    assert kept() == (0 if w is None else expected)
    x.requires_grad_()
    assert kept() == expected + 4 * scales
    for parameter in given(*parameters):
        parameter.requires_grad_(False)
    assert kept() == expected + 4 * scales


@every_case
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(case: Case, value: float) -> None:
    x, w, b = case.inputs()
    with torch.no_grad():
        x.view(-1)[0] = value
    output = case.ours(x, w, b, DitheredRounding(4))
    (grad,) = torch.autograd.grad(output, x, torch.randn_like(output))
    (exact,) = torch.autograd.grad(case.torchs(x, w, b), x, torch.randn_like(output))
    assert not grad[~exact.isfinite()].isfinite().any()
    assert not grad.view(-1)[0].isfinite()


@pytest.mark.parametrize(
    "sketch",
    [
        StochasticRounding(4),
        DifferentSample(0.5),
        Project(0.5),
        SampledRounding(0.5, 4),
        RotatedRounding(4),
    ],
    ids=str,
)
@every_case
def test_what_would_bias_is_refused(case: Case, sketch: Sketch) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*use DitheredRounding[^\n]*$"):
        case.ours(*case.inputs(), sketch)


@every_case
def test_a_second_derivative_and_complex_numbers_are_refused(case: Case) -> None:
    x, w, b = case.inputs()
    output = case.ours(x, w, b, DitheredRounding(4))
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
    with pytest.raises(TypeError, match="complex"):
        case.ours(x.to(torch.complex64), w, b, Identity())


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3)], ids=str)
def test_empty_batches(shape: tuple[int, ...]) -> None:
    x, how = torch.zeros(shape, requires_grad=True), {"sketch": DitheredRounding(2), "key": KEY}
    for output in (layer_norm(x, shape[1:], **how), rms_norm(x, shape[1:], **how)):
        assert torch.autograd.grad(output.sum(), x)[0].shape == shape
    assert group_norm(x, 2, **how).shape == shape
    if len(shape) > 2:
        assert instance_norm(x, **how).shape == shape
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(x[:0].new_zeros(1, 4), None, None, **how)


def test_layouts_and_autocast() -> None:
    """Channels last, transposed and expanded inputs; bfloat16 where torch takes it."""
    sketch = DitheredRounding(8)
    x = torch.randn(4, 6, 5, 3).to(memory_format=torch.channels_last).requires_grad_()
    y = torch.randn(7, 4).t().requires_grad_()
    how = {"sketch": sketch, "key": KEY}
    pairs: list[tuple[Tensor, Callable[..., Tensor], Callable[..., Tensor]]] = [
        (x, lambda x: group_norm(x, 3, **how), lambda x: F.group_norm(x, 3)),
        (x, lambda x: instance_norm(x, **how), lambda x: F.instance_norm(x)),
        (
            x,
            lambda x: batch_norm(x, None, None, **how),
            lambda x: F.batch_norm(x, None, None, training=True),
        ),
        (y, lambda y: layer_norm(y, (7,), **how), lambda y: F.layer_norm(y, (7,))),
        (y, lambda y: rms_norm(y, (7,), **how), lambda y: F.rms_norm(y, (7,))),
    ]
    for given_x, ours, theirs in pairs:
        for autocast in (False, True):
            with torch.autocast("cpu", enabled=autocast):
                mine, exact = ours(given_x), theirs(given_x)
            assert mine.dtype == exact.dtype
            torch.testing.assert_close(mine, exact)
            grad_output = (
                torch.randn(1, dtype=exact.dtype).expand(exact.shape) * exact.detach().cos()
            )
            (a,) = torch.autograd.grad(mine, given_x, grad_output)
            (e,) = torch.autograd.grad(exact, given_x, grad_output)
            assert (a - e).norm() < 0.02 * e.norm()
