import dataclasses
import functools
from typing import Any

import pytest
import torch
from cases import LOSSY, SKETCHES
from modes import Named, Seen
from torch import Tensor, nn
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
    draws,
)

from rad import functional
from rad.draws.reference import step_keys
from rad.functional import linear, recurrent, relu
from rad.functional.recurrent import rnn, rnn_weight_grad_variance
from rad.memory import peak_bytes, saved_bytes
from rad.sketches import (
    DifferentSample,
    Identity,
    Project,
    SameSample,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)
from rad.sketches.blockwise import Rounding

every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
lossy_sketch = pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
both = pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
sizes = pytest.mark.parametrize(
    ("steps", "batch", "features", "hidden"),
    [(1, 3, 4, 5), (11, 3, 1, 7), (13, 2, 11, 10), (5, 1, 3, 1), (9, 4, 2, 20)],
    ids=str,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few steps, so that sequences of some ten steps are cut, and unevenly."""
    monkeypatch.setattr(recurrent, "CHUNK_BYTES", 500)


def leaves(
    steps: int,
    batch: int,
    features: int,
    hidden: int,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor | None]:
    """x, h0, weight_ih, weight_hh, bias_ih, bias_hh."""
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(steps, batch, features), (batch, hidden)]
    shapes += [(hidden, features), (hidden, hidden)] + [(hidden,)] * 2
    scales = [1, 1, features**-0.5, hidden**-0.5, 0.3, 0.3]
    drawn = [torch.randn(s, dtype=dtype) * c for s, c in zip(shapes, scales, strict=True)]
    return [t.requires_grad_() for t in drawn[: 6 if bias else 4]] + [None] * (0 if bias else 2)


def torch_rnn(inputs: list[Tensor | None], nonlinearity: str) -> tuple[Tensor, Tensor]:
    """torch's kernel on the same leaves: output and h_n."""
    x, h0, *weights = inputs
    assert h0 is not None
    given = [w for w in weights if w is not None]
    kernel = torch._VF.rnn_relu if nonlinearity == "relu" else torch._VF.rnn_tanh  # type: ignore[attr-defined]
    output, h_n = kernel(x, h0[None], given, len(given) > 2, 1, 0.0, True, False, False)
    return output, h_n[0]


def unrolled(
    inputs: list[Tensor | None], sketch: Sketch, key: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """The same net of one linear layer for each weight and step, with the same keys."""
    x, h, weight_ih, weight_hh, bias_ih, bias_hh = inputs
    assert x is not None
    assert h is not None
    assert weight_ih is not None
    assert weight_hh is not None
    key_h, key_x = fold_in(key, 0), fold_in(key, 1)
    sketch_x = Identity() if x.shape[2] == 1 else sketch
    sketch_h = Identity() if nonlinearity == "tanh" else sketch
    states = []
    for t, x_t in enumerate(x):
        a = linear(x_t, weight_ih, bias_ih, sketch=sketch_x, key=fold_in(key_x, t))
        a = a + linear(h, weight_hh, bias_hh, sketch=sketch_h, key=fold_in(key_h, t))
        h = relu(a) if nonlinearity == "relu" else torch.tanh(a)
        states.append(h)
    return torch.stack(states), h


def gradients(outputs: Any, cotangents: list[Tensor], inputs: list[Tensor | None]) -> list[Tensor]:
    wanted = [t for t in inputs if t is not None]
    return list(torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True))


@every_sketch
@both
@sizes
def test_equals_torch_and_the_unrolled_net(
    sketch: Sketch,
    nonlinearity: Any,
    steps: int,
    batch: int,
    features: int,
    hidden: int,
) -> None:
    inputs = leaves(steps, batch, features, hidden, bias=batch > 2)
    key = make_key(4)
    output, h_n = rnn(*inputs, nonlinearity=nonlinearity, sketch=sketch, key=key)  # type: ignore[arg-type]
    exact = torch_rnn(inputs, nonlinearity)
    torch.testing.assert_close((output, h_n), exact)
    cotangents = [torch.randn_like(t) for t in exact]
    actual = gradients((output, h_n), cotangents, inputs)
    of_torch = gradients(exact, cotangents, inputs)
    naive = gradients(unrolled(inputs, sketch, key, nonlinearity), cotangents, inputs)
    torch.testing.assert_close(actual, naive)
    torch.testing.assert_close(actual[:2] + actual[4:], of_torch[:2] + of_torch[4:])
    if features == 1:
        torch.testing.assert_close(actual[2], of_torch[2])
    if nonlinearity == "tanh" or sketch == Identity():
        torch.testing.assert_close(actual[3], of_torch[3])

    none, last = rnn(
        *inputs,  # type: ignore[arg-type]
        nonlinearity=nonlinearity,
        sketch=sketch,
        key=key,
        return_sequence=False,
    )
    assert none is None
    assert torch.equal(last, h_n)
    naive = gradients(exact[1], cotangents[1:], inputs)
    torch.testing.assert_close(gradients(last, cotangents[1:], inputs)[:2], naive[:2])


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_of_one_output_alone(which: int) -> None:
    inputs = leaves(11, 3, 4, 7)
    outputs = rnn(*inputs, sketch=SameSample(0.3), key=make_key(0))  # type: ignore[arg-type]
    exact = torch_rnn(inputs, "relu")
    cotangent = [torch.randn_like(exact[which])]
    actual = gradients(outputs[which], cotangent, inputs)
    expected = gradients(exact[which], cotangent, inputs)
    torch.testing.assert_close(actual[:2], expected[:2])


@both
@every_sketch
def test_bfloat16_and_autocast(sketch: Sketch, nonlinearity: Any) -> None:
    if hasattr(sketch, "bits"):  # what is rounded jumps a step where it differs a little
        sketch = dataclasses.replace(sketch, bits=8)
    inputs = leaves(11, 3, 4, 20, dtype=torch.float32)
    reference = unrolled(inputs, sketch, make_key(0), nonlinearity)
    cotangents = [torch.randn_like(t) for t in reference]
    expected = gradients(reference, cotangents, inputs)
    call = functools.partial(rnn, nonlinearity=nonlinearity, sketch=sketch, key=make_key(0))
    halves = [t.detach().bfloat16().requires_grad_() if t is not None else None for t in inputs]
    for given, autocast in ((halves, False), (inputs, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = call(*given)  # type: ignore[arg-type]
            kept = saved_bytes(lambda given=given: call(*given)[1])
        assert outputs[0] is not None
        assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
        actual = gradients(outputs, [c.bfloat16() for c in cotangents], given)
        for got, want, leaf in zip(actual, expected, given, strict=True):
            assert leaf is not None
            assert got.dtype == leaf.dtype
            assert (got.float() - want).norm() <= 0.05 * want.norm()
        weights = sum(w.nbytes for w in given[2:4] if w is not None)
        assert kept - weights == predicted(sketch, nonlinearity, 11, 3, 4, 20, torch.bfloat16)


def test_gradients_under_autocast_in_the_backward_pass() -> None:
    inputs = leaves(5, 3, 4, 7, dtype=torch.float32)
    for sketch in SKETCHES.values():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rnn(*inputs, sketch=sketch, key=make_key(0))[1].sum().backward()  # type: ignore[arg-type]


@both
def test_gradcheck_passes_with_identity_only(nonlinearity: Any) -> None:
    inputs = leaves(2, 2, 5, 5)

    def check(sketch: Sketch) -> bool:
        def function(*given: Tensor) -> Any:
            return rnn(*given, nonlinearity=nonlinearity, sketch=sketch, key=make_key(0))

        return torch.autograd.gradcheck(function, inputs, raise_exception=False)  # type: ignore[arg-type]

    assert check(Identity())
    assert not any(check(sketch) for sketch in LOSSY.values())


def predicted(
    sketch: Sketch,
    nonlinearity: str,
    steps: int,
    batch: int,
    features: int,
    hidden: int,
    dtype: torch.dtype,
) -> int:
    """The bytes that should be kept, key included, weights not."""
    sketch_x = Identity() if features == 1 else sketch
    kept = steps * sketch_x.nbytes((batch, features), dtype) + 8
    if nonlinearity == "tanh" or sketch == Identity():
        return kept + (steps + 1) * batch * hidden * dtype.itemsize
    return kept + steps * sketch.nbytes((batch, hidden), dtype) + -(-steps * batch * hidden // 8)


@every_sketch
@both
@sizes
def test_predicted_bytes_are_measured(
    sketch: Sketch, nonlinearity: Any, steps: int, batch: int, features: int, hidden: int
) -> None:
    x, h0, *weights = leaves(steps, batch, features, hidden, dtype=torch.float32)
    parameters = [nn.Parameter(w) for w in weights if w is not None]
    assert x is not None
    assert h0 is not None
    given = [x.detach(), h0.detach(), *parameters]
    expected = predicted(sketch, nonlinearity, steps, batch, features, hidden, x.dtype)
    for sequence in (True, False):
        call = functools.partial(rnn, nonlinearity=nonlinearity, return_sequence=sequence)
        kept = saved_bytes(lambda call=call: call(*given, sketch=sketch, key=make_key(0)))
        assert kept == expected


def test_frozen_weights_keep_nothing() -> None:
    def kept(trained: set[int], sketch: Sketch) -> int:
        inputs = [t.detach() for t in leaves(11, 3, 4, 20, dtype=torch.float32) if t is not None]
        given = [nn.Parameter(t, requires_grad=i in trained) for i, t in enumerate(inputs)]
        return saved_bytes(lambda: rnn(*given, sketch=sketch, key=make_key(0)))

    bits = -(-11 * 3 * 20 // 8) + 8
    for sketch in (Identity(), DifferentSample(0.3)):
        assert kept(set(), sketch) == 0
        assert kept({0, 1, 4, 5}, sketch) == bits
        assert kept({2}, sketch) == bits + 11 * sketch.nbytes((3, 4), torch.float32)
    assert kept({3}, DifferentSample(0.3)) == bits + 11 * 3 * 6 * 4
    assert kept({3}, Identity()) == 8 + 12 * 3 * 20 * 4


@every_sketch
def test_two_backwards_agree_and_a_second_derivative_is_refused(sketch: Sketch) -> None:
    inputs = leaves(11, 3, 4, 7)
    weight = inputs[3]
    assert weight is not None
    output, h_n = rnn(*inputs, sketch=sketch, key=make_key(0))  # type: ignore[arg-type]
    assert output is not None
    (output.sum() + h_n.sum()).backward(retain_graph=True)
    assert weight.grad is not None
    first = weight.grad.clone()
    (output.sum() + h_n.sum()).backward()
    assert torch.equal(weight.grad, 2 * first)

    _, h_n = rnn(*inputs, sketch=sketch, key=make_key(0))  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(h_n.square().sum(), [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_modifying_a_kept_output_is_noticed() -> None:
    inputs = leaves(11, 3, 4, 7)
    for sketch in (Identity(), SameSample(0.3)):
        output, h_n = rnn(*inputs, sketch=sketch, key=make_key(0))  # type: ignore[arg-type]
        assert output is not None
        output.detach().zero_()
        if sketch == Identity():
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                h_n.sum().backward()
        else:
            h_n.sum().backward()


@lossy_sketch
def test_steps_at_once_are_the_steps_one_by_one(sketch: Sketch) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(6, 5, 11, dtype=torch.float64), torch.randn(6, 5, 3, dtype=torch.float64)
    keys = step_keys(make_key(3), 6)
    assert torch.equal(keys, torch.stack([fold_in(make_key(3), t) for t in range(6)]))
    kept = sketch.compress_steps(x, keys)
    for t, key in enumerate(keys):
        for part, alone in zip(kept, sketch.compress(x[t], key), strict=True):
            torch.testing.assert_close(part[t], alone)
    x_hat = [
        sketch.decompress(tuple(part[t] for part in kept), x[t].shape, x.dtype, key)
        for t, key in enumerate(keys)
    ]
    naive = sum(a.t() @ b for a, b in zip(x_hat, grad, strict=True))
    torch.testing.assert_close(sketch.contract_steps(grad, kept, x.shape, keys), naive)
    read = sketch.decompress_steps(kept, x.shape, x.dtype, keys)
    torch.testing.assert_close(read, torch.stack(x_hat))


FAST = {"same": SameSample(0.5), "different": DifferentSample(0.5), "project": Project(0.5)}


@lossy_sketch
def test_estimator_is_unbiased_with_the_stated_variance(sketch: Sketch) -> None:
    torch.manual_seed(1)
    states = torch.randn(5, 3, 6, dtype=torch.float64)
    delta = torch.randn(5, 3, 4, dtype=torch.float64)

    def estimate(key: Tensor) -> Tensor:
        keys = step_keys(key, 5)
        kept = sketch.compress_steps(states, keys)
        return sketch.contract_steps(delta, kept, states.shape, keys).t()

    exact = torch.einsum("tbo,tbi->oi", delta, states)
    samples = draws(estimate, 12_000)
    check_unbiased(samples, exact)
    check_biased_is_caught(samples, exact)
    if isinstance(sketch, Rounding):
        check_one_biased_is_caught(samples, exact)
    check_mean_square(samples, exact, rnn_weight_grad_variance(states, delta, sketch).item())


def test_gradients_of_the_layer_are_unbiased() -> None:
    sketch, inputs = DifferentSample(0.8), leaves(4, 6, 4, 6)
    output, h_n = torch_rnn(inputs, "relu")
    cotangents = [torch.randn_like(output), torch.randn_like(h_n)]
    truth = torch.cat([g.flatten() for g in gradients((output, h_n), cotangents, inputs)[2:4]])
    samples = []
    for i in range(2000):  # 1,760 are needed
        outputs = rnn(*inputs, sketch=sketch, key=fold_in(make_key(2), i))  # type: ignore[arg-type]
        grads = gradients(outputs, cotangents, inputs[2:4])
        samples.append(torch.cat([g.flatten() for g in grads]))
    check_unbiased(torch.stack(samples), truth)
    check_biased_is_caught(torch.stack(samples), truth)


@pytest.mark.parametrize("sketch", FAST.values(), ids=FAST.keys())
def test_saved_and_peak_bytes_of_a_long_sequence(
    sketch: Sketch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "CHUNK_BYTES", 1 << 15)
    steps, batch, hidden = 300, 32, 64
    sketch = type(sketch)(0.1)
    x, h0 = torch.randn(steps, batch, 1), torch.zeros(batch, hidden)
    torch.manual_seed(0)
    weights = list(nn.RNN(1, hidden, nonlinearity="relu").parameters())

    def step(sketch: Sketch) -> None:
        _, h_n = rnn(x, h0, *weights, sketch=sketch, key=make_key(0), return_sequence=False)
        torch.autograd.grad(h_n.sum(), weights)

    def forward() -> Tensor:
        return rnn(x, h0, *weights, sketch=sketch, key=make_key(0), return_sequence=False)[1]

    honest = steps * batch * (7 * 4 + 4 + hidden / 8)
    assert abs(saved_bytes(forward) / honest - 1) < 0.01
    assert 5 * peak_bytes(lambda: step(sketch)) < peak_bytes(lambda: step(Identity()))


def test_what_does_not_fit_is_refused() -> None:
    x, h0, w_ih, w_hh, *_ = leaves(3, 2, 4, 5)
    for arguments, message in [
        ((x[0], h0, w_ih, w_hh), "x must be"),  # type: ignore[index]
        ((x[:0], h0, w_ih, w_hh), "T > 0"),  # type: ignore[index]
        ((x, h0[:1], w_ih, w_hh), "h0 must be"),  # type: ignore[index]
        ((x, h0, w_ih, w_hh, None, h0[0, :1]), "biases must be"),  # type: ignore[index]
    ]:
        with pytest.raises(ValueError, match=message):
            rnn(*arguments, sketch=Identity(), key=make_key(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonlinearity"):
        rnn(x, h0, w_ih, w_hh, nonlinearity="gelu", sketch=Identity(), key=make_key(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("sketch", [DifferentSample(0.5), StochasticRounding(2)], ids=str)
def test_a_mode_sees_no_call_of_a_step(kind: str, sketch: Sketch) -> None:
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[kind]
    weights = [torch.randn(gates * 5, size).requires_grad_() for size in (3, 5)]
    states = [torch.zeros(4, 5)] * (2 if kind == "lstm" else 1)

    def run(x: Tensor) -> tuple[int, Any]:
        with Seen() as seen:
            output = getattr(functional, kind)(x, *states, *weights, sketch=sketch, key=make_key(0))
        return seen.count, output[0]

    few, _ = run(torch.randn(2, 4, 3))
    x = torch.randn(40, 4, 3)
    many, output = run(x)
    assert few == many
    seen, of_class = run(x.as_subclass(Named))
    assert seen > many
    torch.testing.assert_close(of_class.as_subclass(Tensor), output, rtol=0, atol=0)
