"""Layers and served functions on the samples that torch tests its own with.

The databases are internal to torch, and need `expecttest`: without either the tests are skipped.
Some samples of each are taken, since there may be a thousand: of modules, spread over them all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

import rad
from rad.nn import LAYERS, NORMS, Sketching
from rad.nn.calls import Calls
from rad.nn.functions import SERVERS
from rad.nn.plain import PlainTransposedLinear
from rad.nn.serving import serve
from rad.sketches import DitheredRounding, Identity, StochasticRounding

ROUNDED, PATH = StochasticRounding(4), DitheredRounding(4)
COMPARED, DRAWN = 6, 3
"""Samples that are compared with torch, and those whose mean is."""

DRAWS = 150

WITHOUT_DROPOUT = {"training": False, "dropout_p": 0.0}
"""Options of functions that may drop numbers with masks of their own."""

LEFT_OUT = (nn.Dropout, nn.Hardsigmoid, PlainTransposedLinear)
"""What draws masks of its own, what torch has no samples of, and what is no module of torch."""

KINDS = [kind for kind in LAYERS | NORMS if kind not in LEFT_OUT]

TWO_VALUED = {"leaky_relu", "hardsigmoid", "hardtanh", "relu6", "softshrink", "hardshrink"}
"""Functions whose derivative is kept in a bit, exactly."""

EXACT = (nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Softshrink, nn.Hardshrink, nn.LSTM, nn.GRU)
"""Layers of such functions, and those that keep what is exact where a rounding is no shorter."""

DRAWN_LAYERS = [k for k in KINDS if issubclass((LAYERS | NORMS)[k], Sketching)]
OPERATORS = [server for server in dict.fromkeys(SERVERS.values()) if "dropout" not in str(server)]
INEXACT = [server for server in OPERATORS if not server.__module__.endswith("exact")]


def imported(module: str, name: str) -> Any:
    """A database of torch; the test is skipped where there is none."""
    reason = "torch's own test databases cannot be imported"
    return getattr(pytest.importorskip(module, reason=reason, exc_type=ImportError), name)


@cache
def module_samples(kind: type[nn.Module]) -> list[Any]:
    """Some of torch's samples for that module, in float64."""
    rows = imported("torch.testing._internal.common_modules", "module_db")
    info = next(row for row in rows if row.module_cls is kind)
    torch.manual_seed(0)
    samples = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=True
    )
    return samples[:: math.ceil(len(samples) / COMPARED)]


class Functional(nn.Module):
    """A module that calls a function, and nothing else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)


def function_samples(server: Any) -> Iterator[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """A module that calls a function that is served by that, and what torch tests it with."""
    rows = imported("torch.testing._internal.common_methods_invocations", "op_db")
    functions = {function for function, by in SERVERS.items() if by is server}
    names = {f"{space}{f.__name__}" for f in functions for space in ("", "nn.functional.")}
    for row in rows:
        if row.variant_test_name == "complex" or not (row.op in functions or row.name in names):
            continue
        torch.manual_seed(0)
        samples = row.sample_inputs("cpu", torch.float64, requires_grad=True)
        for sample in islice(samples, 10 * COMPARED):
            options = {name: WITHOUT_DROPOUT.get(name, x) for name, x in sample.kwargs.items()}
            yield Functional(row.op), (sample.input, *sample.args), options


def tensors(results: Any) -> list[Tensor]:
    """The tensors of a result."""
    leaves = tree_leaves(results)
    return [x.data if isinstance(x, PackedSequence) else x for x in leaves if x is not None]


def gradients(
    model: nn.Module, arguments: Sequence[Any], options: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """What a call gives, and the gradients of its product with fixed numbers."""
    outputs = tensors(model(*arguments, **options))
    given = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
    wanted = [x for x in (*given, *model.parameters()) if x.requires_grad]
    generator = torch.Generator().manual_seed(3)
    products = [
        (x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum()
        for x in outputs
        if x.requires_grad
    ]
    if not products:
        return outputs, []
    loss = torch.stack(products).sum()
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return outputs, [x for x in found if x is not None]


def check_equal(model: nn.Module, converted: nn.Module, *sample: Any) -> None:
    want, got = gradients(model, *sample), gradients(converted, *sample)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)


def check_mean(samples: Tensor, truth: Tensor, errors: float = 6) -> None:
    """Fail unless the mean of the samples (n, ...) is within so many standard errors of the truth.

    Those of a number whose draws are rare, at least, are those of the tensor's other numbers.
    """
    deviation, spread = (samples.mean(0) - truth).abs(), samples.std(0)
    spread = spread.maximum(spread.square().mean().sqrt())
    allowed = errors * spread / math.sqrt(len(samples)) + 1e-9 * (1 + truth.abs().max())
    assert (deviation <= allowed).all(), f"the mean is off by {(deviation / allowed).max():.2f}"


def check_draws(model: nn.Module, converted: nn.Module, *sample: Any) -> bool:
    """Compare the mean of some gradients with torch's; whether they are random at all."""
    outputs, truths = gradients(model, *sample)
    torch.testing.assert_close(gradients(converted, *sample)[0], outputs, rtol=1e-9, atol=1e-9)
    if not truths:
        return False
    draws = [gradients(converted, *sample)[1] for _ in range(DRAWS)]
    is_random = False
    for truth, *samples in zip(truths, *draws, strict=True):
        if truth.numel():
            check_mean(torch.stack(samples), truth)
            is_random |= bool((torch.stack(samples).std(0) > 1e-12).any())
    return is_random


def module_cases(kind: type[nn.Module]) -> Iterator[tuple[nn.Module, tuple[Any, dict[str, Any]]]]:
    for sample in module_samples(kind):
        made, given = sample.constructor_input, sample.forward_input
        torch.manual_seed(1)
        yield kind(*made.args, **made.kwargs).double(), (given.args, given.kwargs)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_layers_are_torchs(kind: type[nn.Module]) -> None:
    for layer, sample in module_cases(kind):
        check_equal(layer, rad.convert(layer, Identity(), path=Identity()), *sample)


@pytest.mark.parametrize("kind", DRAWN_LAYERS, ids=lambda kind: kind.__name__)
def test_layers_are_unbiased(kind: type[nn.Module]) -> None:
    cases = list(islice(module_cases(kind), DRAWN))
    found = [check_draws(x, rad.convert(x, ROUNDED, path=PATH), *rest) for x, rest in cases]
    assert any(found) != (kind in EXACT)


def is_served(server: Any, model: nn.Module, *sample: Any) -> bool:
    """Whether a call is served, with a path."""
    served = []

    def spy(*arguments: Any, **options: Any) -> Any:
        result = server(*arguments, **options)
        served.append(result is not NotImplemented)
        return result

    functions = [function for function, by in SERVERS.items() if by is server]
    arguments, options = sample
    with pytest.MonkeyPatch.context() as patch:
        for function in functions:
            patch.setitem(SERVERS, function, spy)
        copied = copy.copy(model)
        serve(copied, Calls(ROUNDED, PATH))
        copied(*arguments, **options)
    return any(served)


def served_by(server: Any) -> list[tuple[nn.Module, Any]]:
    """Some calls that are served by that."""
    cases = ((model, rest) for model, *rest in function_samples(server))
    found = list(islice((case for case in cases if is_served(server, case[0], *case[1])), COMPARED))
    if not found:
        pytest.skip("torch has no sample of a call that is served")
    return found


@pytest.mark.parametrize("server", OPERATORS, ids=lambda server: server.__name__[1:])
def test_functions_are_torchs(server: Any) -> None:
    for model, sample in served_by(server):
        converted = copy.copy(model)
        serve(converted, Calls(Identity()))
        check_equal(model, converted, *sample)


@pytest.mark.parametrize("server", INEXACT, ids=lambda server: server.__name__[1:])
def test_functions_are_unbiased(server: Any) -> None:
    found = []
    for model, sample in served_by(server)[:DRAWN]:
        converted = copy.copy(model)
        serve(converted, Calls(ROUNDED, PATH))
        found.append(check_draws(model, converted, *sample))
    assert any(found) != (server.__name__.strip("_") in TWO_VALUED)


def test_a_mean_that_is_off_is_caught() -> None:
    layer = rad.convert(nn.LayerNorm(8).double(), ROUNDED, path=PATH)
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    truth = gradients(nn.LayerNorm(8).double(), [x], {})[1][0]
    samples = torch.stack([gradients(layer, [x], {})[1][0] for _ in range(DRAWS)])
    check_mean(samples, truth)
    with pytest.raises(AssertionError, match="off by"):
        check_mean(1.1 * samples, truth)
