import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import SKETCHES
from gated_reference import unrolled
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_one_biased_is_caught, check_unbiased

from rad import backends
from rad.functional import gated_kept, gru, lstm
from rad.functional.gated_kept import Plan
from rad.functional.gru import GRU_CELL
from rad.functional.lstm import LSTM_CELL
from rad.memory import peak_bytes, saved_bytes
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    SameSample,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)
from rad.sketches.blockwise import Rounding

ROUNDINGS = {name: sketch for name, sketch in SKETCHES.items() if isinstance(sketch, Rounding)}
OTHERS = {name: sketch for name, sketch in SKETCHES.items() if name not in ROUNDINGS}
KINDS = {
    "lstm": (lstm, LSTM_CELL, nn.LSTM, torch._VF.lstm),  # type: ignore[attr-defined]
    "gru": (gru, GRU_CELL, nn.GRU, torch._VF.gru),  # type: ignore[attr-defined]
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_rounding = pytest.mark.parametrize("sketch", ROUNDINGS.values(), ids=ROUNDINGS.keys())
every_other = pytest.mark.parametrize("sketch", OTHERS.values(), ids=OTHERS.keys())
sizes = pytest.mark.parametrize(
    ("steps", "batch", "features", "hidden"),
    [(1, 3, 4, 5), (11, 3, 1, 7), (13, 2, 11, 10), (5, 1, 3, 1), (9, 4, 2, 20)],
    ids=str,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few steps, so that sequences of some ten steps are cut, and unevenly."""
    monkeypatch.setattr(gated_kept, "CHUNK_BYTES", 2000)


def leaves(
    kind: str,
    steps: int,
    batch: int,
    features: int,
    hidden: int,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """x, the states before, the weights and the biases."""
    torch.manual_seed(0)
    gates = 4 if kind == "lstm" else 3
    shapes: list[tuple[int, ...]] = [(steps, batch, features)]
    shapes += [(batch, hidden)] * (2 if kind == "lstm" else 1)
    scales = [1.0] * len(shapes)
    shapes += [(gates * hidden, features), (gates * hidden, hidden)]
    scales += [features**-0.5, hidden**-0.5]
    if bias:
        shapes, scales = shapes + [(gates * hidden,)] * 2, [*scales, 0.3, 0.3]
    drawn = [torch.randn(s, dtype=dtype) * c for s, c in zip(shapes, scales, strict=True)]
    return [t.requires_grad_() for t in drawn]


def torchs(kind: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """torch's kernel on the same leaves: the sequence and the last states."""
    count = 2 if kind == "lstm" else 1
    x, states, weights = inputs[0], inputs[1 : 1 + count], inputs[1 + count :]
    given = [state[None] for state in states] if count > 1 else states[0][None]
    results = KINDS[kind][3](x, given, weights, len(weights) > 2, 1, 0.0, True, False, False)
    return results[0], *(state[0] for state in results[1:])


def run(kind: str, inputs: list[Tensor], sketch: Sketch, key: Tensor, **options: Any) -> Any:
    return KINDS[kind][0](*inputs, sketch=sketch, key=key, **options)  # type: ignore[operator]


def naive(kind: str, inputs: list[Tensor], sketch: Sketch, key: Tensor) -> tuple[Tensor, ...]:
    count = 2 if kind == "lstm" else 1
    states, weights = inputs[1 : 1 + count], inputs[1 + count :]
    return unrolled(inputs[0], states, list(weights), sketch, key)


def gradients(outputs: Any, cotangents: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True))


@every_kind
@every_rounding
@sizes
def test_rounded_equals_torch_and_the_naive_program(
    kind: str, sketch: Sketch, steps: int, batch: int, features: int, hidden: int
) -> None:
    inputs = leaves(kind, steps, batch, features, hidden, bias=batch > 2)
    key = make_key(4)
    actual, exact = run(kind, inputs, sketch, key), torchs(kind, inputs)
    torch.testing.assert_close(actual, exact)
    cotangents = [torch.randn_like(t) for t in exact]
    expected = gradients(naive(kind, inputs, sketch, key), cotangents, inputs)
    torch.testing.assert_close(gradients(actual, cotangents, inputs), expected)
    other = gradients(run(kind, inputs, sketch, make_key(5)), cotangents, inputs)
    if hidden > 2:
        assert not torch.allclose(other[0], expected[0], rtol=1e-3)

    none, *last = run(kind, inputs, sketch, key, return_sequence=False)
    assert none is None
    assert all(map(torch.equal, last, actual[1:]))


@every_kind
@every_other
@sizes
def test_every_other_sketch_is_exact(
    kind: str, sketch: Sketch, steps: int, batch: int, features: int, hidden: int
) -> None:
    inputs = leaves(kind, steps, batch, features, hidden, bias=batch > 2)
    exact = torchs(kind, inputs)
    cotangents = [torch.randn_like(t) for t in exact]
    expected = gradients(exact, cotangents, inputs)
    actual = run(kind, inputs, sketch, make_key(4))
    torch.testing.assert_close(actual, exact)
    torch.testing.assert_close(gradients(actual, cotangents, inputs), expected)
    last = run(kind, inputs, sketch, make_key(4), return_sequence=False)[1:]
    expected = gradients(exact[1:], cotangents[1:], inputs)
    torch.testing.assert_close(gradients(last, cotangents[1:], inputs), expected)


@every_kind
@pytest.mark.parametrize("sketch", [Identity(), StochasticRounding(3)], ids=str)
def test_a_gradient_of_one_output_alone(kind: str, sketch: Sketch) -> None:
    inputs, key = leaves(kind, 11, 3, 4, 7), make_key(0)
    outputs = run(kind, inputs, sketch, key)
    reference = torchs(kind, inputs) if sketch == Identity() else naive(kind, inputs, sketch, key)
    for output, expected in zip(outputs, reference, strict=True):
        cotangent = [torch.randn_like(expected)]
        wanted = inputs[3 if kind == "lstm" else 2 :]  # those that reach every output
        actual = gradients(output, cotangent, wanted)
        torch.testing.assert_close(actual, gradients(expected, cotangent, wanted))


@every_kind
@pytest.mark.parametrize("sketch", [Identity(), StochasticRounding(8)], ids=str)
@pytest.mark.parametrize("in_loops", [True, False], ids=["loops", "torch"])
def test_float32(
    kind: str, sketch: Sketch, in_loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_loops:
        monkeypatch.setattr(backends, "in_loops", lambda x: False)
    inputs = leaves(kind, 11, 3, 4, 20, dtype=torch.float32)
    exact, actual = torchs(kind, inputs), run(kind, inputs, sketch, make_key(0))
    torch.testing.assert_close(actual, exact)
    cotangents = [torch.randn_like(t) for t in exact]
    double = [t.detach().double().requires_grad_() for t in inputs]
    if sketch == Identity():
        reference = torchs(kind, double)
    else:
        reference = naive(kind, double, sketch, make_key(0))
    expected = gradients(reference, [c.double() for c in cotangents], double)
    for got, want in zip(gradients(actual, cotangents, inputs), expected, strict=True):
        assert (got - want).norm() < (1e-5 if sketch == Identity() else 1e-3) * want.norm()


@every_kind
def test_extreme_gates_are_torchs(kind: str) -> None:
    inputs = leaves(kind, 4, 3, 5, 8, dtype=torch.float32)
    with torch.no_grad():
        inputs[0][:, 0] *= 1e4
        inputs[0][1, 1, 2] = torch.inf
        inputs[0][2, 2, 3] = torch.nan
    actual, expected = run(kind, inputs, Identity(), make_key(0)), torchs(kind, inputs)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@every_kind
@pytest.mark.parametrize("sketch", [Identity(), StochasticRounding(8)], ids=str)
def test_bfloat16_and_autocast(kind: str, sketch: Sketch) -> None:
    inputs = leaves(kind, 11, 3, 4, 20, dtype=torch.float32)
    reference = torchs(kind, inputs)
    cotangents = [torch.randn_like(t) for t in reference]
    expected = gradients(reference, cotangents, inputs)
    halves = [t.detach().bfloat16().requires_grad_() for t in inputs]
    for given, autocast in ((halves, False), (inputs, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = run(kind, given, sketch, make_key(0))
        assert {output.dtype for output in outputs} == {torch.bfloat16}
        actual = gradients(outputs, [c.bfloat16() for c in cotangents], given)
        for got, want, leaf in zip(actual, expected, given, strict=True):
            assert got.dtype == leaf.dtype
            assert (got.float() - want).norm() <= 0.05 * want.norm()


@every_kind
def test_gradients_under_autocast_in_the_backward_pass(kind: str) -> None:
    inputs = leaves(kind, 5, 3, 4, 7, dtype=torch.float32)
    for sketch in (Identity(), DitheredRounding(4)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run(kind, inputs, sketch, make_key(0))[1].sum().backward()


@every_kind
def test_gradcheck_passes_where_it_is_exact_only(kind: str) -> None:
    inputs = leaves(kind, 3, 2, 3, 4)

    def check(sketch: Sketch) -> bool:
        def function(*given: Tensor) -> Any:
            return run(kind, list(given), sketch, make_key(0))

        return torch.autograd.gradcheck(function, inputs, raise_exception=False)

    assert check(Identity())
    assert check(SameSample(0.3))
    assert not check(StochasticRounding(3))
    assert not check(DitheredRounding(2))


@every_kind
@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
@sizes
def test_predicted_bytes_are_measured(
    kind: str, sketch: Sketch, steps: int, batch: int, features: int, hidden: int
) -> None:
    inputs = leaves(kind, steps, batch, features, hidden, dtype=torch.float32)
    first = 3 if kind == "lstm" else 2
    given = [t.detach() for t in inputs[:first]] + [nn.Parameter(w) for w in inputs[first:]]
    plan = Plan(KINDS[kind][1], steps, batch, features, hidden, torch.float32, sketch)
    expected = plan.nbytes() + 8 * plan.rounds + given[0].nbytes * plan.keeps_input()
    for sequence in (True, False):
        call = functools.partial(run, kind, given, sketch, make_key(0), return_sequence=sequence)
        assert saved_bytes(call) == expected
    cells = len(plan.chunks()) if kind == "lstm" else 0
    state = batch * hidden * 4
    if not plan.rounds:
        assert expected == given[0].nbytes + (steps + 1 + cells) * state


@every_kind
@pytest.mark.parametrize("sketch", [Identity(), DitheredRounding(4)], ids=str)
def test_frozen_weights_keep_less(kind: str, sketch: Sketch) -> None:
    inputs = leaves(kind, 11, 3, 64, 20, dtype=torch.float32)
    first = 3 if kind == "lstm" else 2

    def kept(trained: set[int]) -> int:
        weights = enumerate(inputs[first:])
        parameters = [nn.Parameter(w.detach(), requires_grad=i in trained) for i, w in weights]
        given = [t.detach() for t in inputs[:first]] + parameters
        return saved_bytes(lambda: run(kind, given, sketch, make_key(0)))

    plan = Plan(KINDS[kind][1], 11, 3, 64, 20, torch.float32, sketch)
    of_bias = 2
    assert kept(set()) == 0
    for trained in ({of_bias}, {of_bias, 0}, {1}, {0, 1}):
        expected = plan.nbytes(0 in trained, 1 in trained) + 8 * plan.rounds
        expected += inputs[0].nbytes * plan.keeps_input(0 in trained)
        assert kept(trained) == expected
    assert plan.nbytes(False, False) < plan.nbytes() or sketch == Identity()


@every_kind
@pytest.mark.parametrize("sketch", [Identity(), DitheredRounding(2)], ids=str)
def test_two_backwards_agree_and_a_second_derivative_is_refused(kind: str, sketch: Sketch) -> None:
    inputs = leaves(kind, 11, 3, 4, 7)
    weight = inputs[-3]
    output, *last = run(kind, inputs, sketch, make_key(0))
    loss = output.sum() + sum(state.sum() for state in last)
    loss.backward(retain_graph=True)
    assert weight.grad is not None
    first = weight.grad.clone()
    loss.backward()
    assert torch.equal(weight.grad, 2 * first)

    h_n = run(kind, inputs, sketch, make_key(0))[1]
    (grad,) = torch.autograd.grad(h_n.square().sum(), [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@every_kind
def test_modifying_a_kept_output_is_noticed(kind: str) -> None:
    inputs = leaves(kind, 11, 3, 4, 7)
    for sketch in (Identity(), DitheredRounding(2)):
        output, h_n, *_ = run(kind, inputs, sketch, make_key(0))
        output.detach().zero_()
        if sketch == Identity():
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                h_n.sum().backward()
        else:
            h_n.sum().backward()


COPIES, EXAMPLES = 32, 4


@dataclass(frozen=True)
class SameDraws(StochasticRounding):
    """The control: unbiased number by number, but all factors of an example share their draws."""

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        steps, rows, d = x.shape
        of_rows = fold_in(keys[:, None], torch.arange(rows) % (COPIES * EXAMPLES)).flatten()
        kept = super().compress_steps(x.reshape(steps * rows, 1, d), of_rows)
        return tuple(part.view(steps, -1, *part.shape[2:]) for part in kept)


def samples_of(kind: str, sketch: Sketch, n: int) -> tuple[Tensor, Tensor]:
    """n draws of all gradients of a small layer, each a mean over COPIES, and the exact ones."""
    inputs = leaves(kind, 3, EXAMPLES, 8, 8)
    count = 2 if kind == "lstm" else 1
    exact = torchs(kind, inputs)
    cotangents = [torch.randn_like(t) for t in exact]
    truth = torch.cat([g.flatten() for g in gradients(exact, cotangents, inputs)])

    def copies(t: Tensor, axis: int) -> Tensor:
        return torch.cat([t.detach()] * COPIES, axis)

    def mean(t: Tensor, axis: int) -> Tensor:
        return torch.stack(t.chunk(COPIES, axis)).mean(0).flatten()

    before = [copies(state, 0).requires_grad_() for state in inputs[1 : 1 + count]]
    many = [copies(inputs[0], 1).requires_grad_(), *before, *inputs[1 + count :]]
    of_many = [copies(cotangents[0], 1), *(copies(c, 0) for c in cotangents[1:])]
    samples = []
    for i in range(n):
        outputs = run(kind, many, sketch, fold_in(make_key(2), i))
        of_x, *grads = torch.autograd.grad(outputs, many, of_many)
        parts = [mean(of_x, 1), *(mean(g, 0) for g in grads[:count])]
        parts += [g.flatten() / COPIES for g in grads[count:]]
        samples.append(torch.cat(parts))
    return torch.stack(samples), truth


@every_kind
@pytest.mark.parametrize("sketch", [StochasticRounding(2), DitheredRounding(2)], ids=str)
def test_all_gradients_are_unbiased(kind: str, sketch: Sketch) -> None:
    samples, truth = samples_of(kind, sketch, 400)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    check_one_biased_is_caught(samples, truth)


def test_shared_draws_are_caught() -> None:
    """Factors that are multiplied with each other must be drawn independently."""
    samples, truth = samples_of("lstm", SameDraws(1), 300)
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(samples, truth)
    check_unbiased(*samples_of("lstm", StochasticRounding(1), 300))


@every_kind
def test_saved_and_peak_bytes_of_a_long_sequence(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated_kept, "CHUNK_BYTES", 1 << 16)
    steps, batch, features, hidden = 60, 16, 32, 64
    inputs = leaves(kind, steps, batch, features, hidden, dtype=torch.float32)
    first = 3 if kind == "lstm" else 2
    given = [t.detach() for t in inputs[:first]] + [nn.Parameter(w) for w in inputs[first:]]

    def step(forward: Any) -> None:
        torch.autograd.grad(forward()[1].sum(), given[first:])

    plain = lambda: torchs(kind, given)  # noqa: E731
    saved, peak = saved_bytes(plain), peak_bytes(lambda: step(plain))
    for sketch in (StochasticRounding(4), DitheredRounding(4)):
        call = functools.partial(run, kind, given, sketch, make_key(0), return_sequence=False)
        assert 5 * saved_bytes(call) < saved
        assert 3 * peak_bytes(functools.partial(step, call)) < peak


def test_what_does_not_fit_is_refused() -> None:
    x, h0, c0, w_ih, w_hh, *_ = leaves("lstm", 3, 2, 4, 5)
    for arguments, message in [
        ((x[0], h0, c0, w_ih, w_hh), "x must be"),
        ((x[:0], h0, c0, w_ih, w_hh), "T > 0"),
        ((x, h0[:1], c0, w_ih, w_hh), "h0 must be"),
        ((x, h0, c0[:, :3], w_ih, w_hh), "c0 must be"),
        ((x, h0, c0, w_ih, w_hh[:5]), "weight_hh must be"),
        ((x, h0, c0, w_ih[:-1], w_hh), "weight_ih has 19 rows"),
        ((x, h0, c0, w_ih, w_hh, None, w_hh[0, :1]), "biases must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            lstm(*arguments, sketch=Identity(), key=make_key(0))


@every_kind
def test_sampling_needs_no_draws(kind: str) -> None:
    inputs = leaves(kind, 5, 3, 4, 7)
    sketch, both = DifferentSample(0.2), []
    for seed in (0, 1):
        outputs = run(kind, inputs, sketch, make_key(seed))
        both.append(torch.autograd.grad(outputs[1].sum(), inputs))
    assert all(map(torch.equal, *both))
