"""Layers that read one tensor keep one sketch of it."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.memory import saved_bytes
from rad.sketches import DifferentSample, Identity, Sketch, StochasticRounding


class Attention(nn.Module):
    """One head over queries, keys and values of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class Inception(nn.Module):
    """Convolutions of several sizes over one image, and a linear layer over its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.rows = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.narrow(x) + self.wide(x)).sum() + self.rows(x).sum()


def weight_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The estimate of x that the layer's weight gradient was read from, for grad_output 1."""
    return layer.weight.grad[0].clone()


@pytest.mark.parametrize("sketch", [DifferentSample(0.5), StochasticRounding(3)], ids=str)
def test_queries_keys_and_values_keep_their_input_once(sketch: Sketch) -> None:
    plain, x = Attention(), torch.randn(2, 6, 16)
    model, single = rad.convert(plain, sketch), rad.convert(nn.Linear(16, 16), sketch)
    of_one = saved_bytes(lambda: single(x)) - saved_bytes(
        lambda: rad.convert(single, Identity())(x)
    )
    exact = rad.convert(plain, Identity())
    saved = saved_bytes(lambda: model(x)) - saved_bytes(lambda: exact(x))
    assert saved == of_one - 2 * 8  # and one key instead of three


def test_convolutions_share_with_convolutions_only() -> None:
    x, sketch = torch.randn(2, 3, 8, 8), DifferentSample(0.5)
    model = rad.convert(Inception(), sketch)
    _ = model(x)
    assert [int(layer.calls) for layer in (model.narrow, model.wide, model.rows)] == [1, 0, 1]


def test_the_gradient_stays_unbiased() -> None:
    torch.manual_seed(0)
    plain, x = Attention().double(), torch.randn(2, 3, 16, dtype=torch.float64)
    random = torch.randn(2, 3, 16, dtype=torch.float64)

    def gradient(model: nn.Module) -> Tensor:
        loss = (model(x) * random).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    model = rad.convert(plain, StochasticRounding(2))
    samples = torch.stack([gradient(model) for _ in range(400)])
    check_unbiased(samples, gradient(plain))
    check_biased_is_caught(samples, gradient(plain))


def test_every_forward_pass_draws_afresh() -> None:
    model, x = rad.convert(Attention(), DifferentSample(0.5)), torch.randn(2, 6, 16)
    found = []
    for _ in range(3):
        model.zero_grad()
        model.value(x).sum().backward()
        found.append(weight_of(model.value, x))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_what_was_changed_in_between_is_read_again() -> None:
    model, x = rad.convert(Attention(), DifferentSample(0.5)), torch.ones(2, 6, 16)
    _kept = model.query(x)
    x.mul_(3)
    model.key(x).sum().backward()
    kept = weight_of(model.key, x)
    assert torch.equal(kept[kept != 0].remainder(3), torch.zeros_like(kept[kept != 0]))


def test_layers_with_sketches_of_their_own_keep_their_own() -> None:
    sketches = {"query": DifferentSample(0.5), "key": DifferentSample(0.25)}
    model = rad.convert(Attention(), sketches)
    _ = model(torch.randn(2, 6, 16))
    assert [int(layer.calls) for layer in (model.query, model.key, model.value)] == [1, 1, 0]


def test_nothing_outlives_the_graph() -> None:
    model, x = rad.convert(nn.Linear(100, 3), DifferentSample(0.5)), torch.randn(60, 100)
    output = model(x)
    (entry,) = model.shared._entries.values()
    assert entry.living() is not None
    output.sum().backward()
    assert entry.living() is None


def test_nothing_outlives_the_tensor() -> None:
    model, x = rad.convert(nn.Linear(100, 3), DifferentSample(0.5)), torch.randn(60, 100)
    _ = model(x)
    del x
    assert not model.shared._entries


def test_memory_that_changes_unseen_is_read_again_in_the_next_pass() -> None:
    numbers = np.ones((4, 16), np.float32)
    model, x = rad.convert(Attention(), StochasticRounding(3)), torch.from_numpy(numbers)
    model.query(x).sum().backward()
    numbers[:] = 5
    model.key(x).sum().backward()
    assert torch.equal(weight_of(model.key, x), torch.full((16,), 20.0))


def test_inference_tensors_are_kept_by_each() -> None:
    with torch.inference_mode():
        x = torch.randn(2, 6, 16)
    model = rad.convert(Attention(), DifferentSample(0.5))
    model(x).sum().backward()
    assert [int(layer.calls) for layer in (model.query, model.key, model.value)] == [1, 1, 1]


def test_copies_share_nothing() -> None:
    model = rad.convert(Attention(), DifferentSample(0.5))
    kept = model(torch.randn(2, 6, 16))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.query.shared is other.value.shared is not model.query.shared
        assert other.query.shared is not None
    assert kept.grad_fn is not None


def test_dropout_without_chance_is_torchs() -> None:
    layers = nn.Sequential(nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 3))
    x = torch.randn(5, 16, requires_grad=True)
    model = rad.convert(layers, Identity())
    assert saved_bytes(lambda: model(x)) <= saved_bytes(lambda: layers(x)) + 8 + 10  # a key, bits
