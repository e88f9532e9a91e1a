"""The operators that compiled programs call: true schemas, fakes of the right shapes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import LOSSY
from torch._subclasses.fake_tensor import FakeTensorMode

import rad.functional
import rad.nn
from rad.backends.operators import as_text, from_text
from rad.functional.activation import Activation
from rad.functional.geometry import Geometry
from rad.sketches import SameSample, Sketch, StochasticRounding, make_key

KEY = make_key(1)
X, GRAD = torch.randn(6, 9), torch.randn(6, 4)
IMAGE, POOLED = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 3, 2)
BITS = torch.randint(0, 256, (18,), dtype=torch.uint8)
WINDOW = [2, 2, 2, 2, 0, 0, 1, 1]

PLAIN: dict[str, tuple[Any, ...]] = {
    "key_and_next_count": (KEY, torch.tensor(3), 2),
    "fold_in_integer": (KEY, 5),
    "active_bits": (IMAGE.relu(),),
    "relu_backward": (BITS, IMAGE),
    "pooled_and_bits": (IMAGE,),
    "relu_avg_pool2d_backward": (BITS, POOLED, [2, 3, 6, 4]),
    "max_pool_offsets": (torch.zeros(2, 3, 3, 2, dtype=torch.int64), [6, 4], WINDOW),
    "max_pool_backward": (POOLED, BITS[:9], [2, 3, 6, 4], 2, WINDOW),
    "drop": (IMAGE, 1 << 15, KEY),
    "random_like": (torch.zeros((), dtype=torch.int64),),
    "elementwise": (X, KEY, as_text(Activation("tanh")), as_text(StochasticRounding(3))),
}


def check(name: str, arguments: tuple[Any, ...]) -> None:
    operator = getattr(torch.ops.rad, name).default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", PLAIN)
def test_of_plain_tensors(name: str) -> None:
    if name == "random_like":  # its result is never the same twice
        operator = torch.ops.rad.random_like.default
        torch.library.opcheck(operator, PLAIN[name], test_utils="test_faketensor")
    else:
        check(name, PLAIN[name])


@pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
def test_of_sketches(sketch: Sketch) -> None:
    text = as_text(sketch)
    check("compress", (X, KEY, text))
    kept = list(sketch.compress(X, KEY))
    check("linear_weight_grad", (GRAD, kept, 9, KEY, text))
    rows = list(sketch.compress(IMAGE.flatten(2).flatten(0, 1), KEY))
    geometry = as_text(Geometry((1, 1), (1, 1), (1, 1), 1))
    needs = [True, True, True]
    weight, grad = torch.randn(5, 3, 3, 3), torch.randn(2, 5, 6, 4)
    check("conv_gradients", (grad, rows, weight, [2, 3, 6, 4], KEY, needs, geometry, text))
    check("elementwise_backward", (X, kept, KEY, text))


def test_results_have_the_strides_of_the_fakes() -> None:
    sketch = SameSample(0.2)  # read by loops, whose sums of a weight are laid out by themselves
    rows = list(sketch.compress(IMAGE.flatten(2).flatten(0, 1), KEY))
    weight, grad = torch.randn(8, 3, 3, 3), torch.randn(2, 8, 6, 4)
    geometry, needs = as_text(Geometry((1, 1), (1, 1), (1, 1), 1)), [True, True, True]
    rest = ([2, 3, 6, 4], KEY, needs, geometry, as_text(sketch))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(grad), [mode.from_tensor(row) for row in rows]]
        found = torch.ops.rad.conv_gradients(*fakes, mode.from_tensor(weight), *rest)
    real = torch.ops.rad.conv_gradients(grad, rows, weight, *rest)
    assert [r.stride() for r in real] == [fake.stride() for fake in found]


@dataclass(frozen=True)
class Field:
    value: Any


PARTS = (1, -0.0, math.inf, -math.inf, math.nan, None, True, "inf", np.float32(0.1), np.int8(-3))


@pytest.mark.parametrize("value", [*PARTS, PARTS, (), (1e-320,), [np.bool_(True)], {"a": PARTS}])
def test_texts_of_plain_values_are_exact(value: Any) -> None:
    read = from_text(as_text(Field(value))).value
    assert type(read) is type(value)
    assert repr(read) == repr(value)


def test_no_text_is_made_of_what_could_not_be_read() -> None:
    with pytest.raises(TypeError, match=r"cannot take a field torch\.float32"):
        as_text(Field(torch.float32))


def test_numbers_of_numpy_in_a_sketch_compile() -> None:
    for sketch in (SameSample(np.float32(0.3)), StochasticRounding(np.int64(4), np.int32(8))):
        layer = rad.nn.Linear(16, 3, sketch=sketch)
        x, grads = torch.randn(5, 16), []
        for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
            layer.set_sketch(sketch, 0, 0)
            layer.zero_grad()
            forward(x).square().sum().backward()
            grads.append(layer.weight.grad.clone())
        assert torch.equal(*grads)
        assert not any(isinstance(value, np.generic) for value in vars(layer.sketch).values())
