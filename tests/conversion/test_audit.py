from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import SKETCHES
from torch import Tensor, nn

import rad
from rad import models
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.sketches import Sketch

BATCH = 6
NETWORKS = {"feedforward": (1, 28, 28), "convnet": (3, 32, 32), "irnn": (1, 5, 4)}
every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())


def loss_of(model: nn.Module, *shape: int) -> tuple[nn.Module, "rad.Audit"]:
    x, y = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))

    def forward() -> Tensor:
        return F.cross_entropy(model(x), y.clone())

    audit = rad.audit(model, forward)
    assert audit.saved_bytes == saved_bytes(forward)
    return model, audit


@every_sketch
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_kept_that_is_not_predicted(name: str, sketch: Sketch) -> None:
    model = rad.convert(models.build(name, NETWORKS[name], 10, seed=0), sketch)
    _, audit = loss_of(model, *NETWORKS[name])
    assert audit.unexpected == ()
    assert audit.predicted_bytes == audit.saved_bytes
    assert audit.peak_bytes > audit.saved_bytes - BATCH * 3 * 32 * 32 * 4  # the caller holds x
    assert all(parameter.grad is None for parameter in model.parameters())


def test_buffers_are_as_before() -> None:
    """Running statistics, their counters and the counters of draws, in place or put in anew."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Buffer(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return x

    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), Counting(), nn.Linear(8, 10))
    model = rad.convert(model, rad.SameSample(0.5))
    buffers = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    x = torch.randn(BATCH, 12)
    rad.audit(model, lambda: model(x).square().mean())
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, before[name])


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.act, self.head = nn.GELU(), nn.Linear(8 * 36, 10)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.pool(self.conv2(x)))
        logits: Tensor = self.head(self.act(x).flatten(1))
        return logits


def test_whatever_is_kept_unexpectedly_is_named() -> None:
    model = rad.convert(Functional(), rad.SameSample(0.1), functions=False)
    _, audit = loss_of(model, 3, 16, 16)
    words = "\n".join(audit.unexpected)
    kept = BATCH * 8 * 14 * 14 * 4
    assert f"`relu1` is functional, in the model, and keeps {kept:,} bytes" in words
    assert "make it a torch.nn.ReLU module" in words
    assert "`relu2` is functional" in words
    missing = audit.saved_bytes - audit.predicted_bytes
    unconverted = [e for e in audit.entries if e.module in ("", "act") and e.kind == "exact"]
    named = sum(entry.saved_bytes for entry in unconverted)
    assert missing == named > kept
    text = str(audit)
    assert f"{audit.saved_bytes:,}" in text
    assert "(loss)" in text


def test_what_served_calls_keep_is_measured() -> None:
    _, audit = loss_of(rad.convert(Functional(), rad.StochasticRounding(4)), 3, 16, 16)
    assert not audit.unexpected
    served = audit.saved_bytes - audit.predicted_bytes
    assert served == sum(row.nbytes or 0 for row in audit.rows if "served" in row.keeps) > 0
    assert f"predicted and {served:,} of functional calls, measured only" in str(audit)


def test_a_layer_without_a_rad_layer_is_named() -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.Softmax(1), nn.Linear(40, 10))
    _, audit = loss_of(rad.convert(model, rad.Project(0.1)), 30)
    assert any("`1` (Softmax) keeps" in words for words in audit.unexpected)


@pytest.mark.parametrize("sketch", [rad.StochasticRounding(3), rad.Project(0.3)], ids=str)
def test_smooth_activations(sketch: Sketch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 10))
    _, audit = loss_of(rad.convert(model, sketch), 3, 8, 8)
    if isinstance(sketch, rad.StochasticRounding):
        assert audit.predicted_bytes == audit.saved_bytes
    else:
        assert ["`1` (GELU) keeps" in words for words in audit.unexpected] == [True]


def test_kinds() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )
    _, audit = loss_of(rad.convert(model, rad.DifferentSample(0.1)), 3, 8, 8)
    kinds = {(entry.module, entry.kind) for entry in audit.entries}
    assert kinds == {
        ("0", "sketch"),
        ("1", "mask"),
        ("2", "mask"),
        ("3", "mask"),
        ("5", "sketch"),
        ("", "output"),
    }
    assert audit.predicted_bytes == audit.saved_bytes
    _, exact = loss_of(rad.convert(model, rad.Identity()), 3, 8, 8)
    assert ("0", "exact") in {(entry.module, entry.kind) for entry in exact.entries}


@pytest.mark.parametrize("bits", [1, 3])
def test_codes_are_a_sketch_and_large_offsets_a_mask(bits: int) -> None:
    layers = nn.Conv2d(1, 2, 3), nn.MaxPool2d(20), nn.GELU(), nn.Flatten(), nn.Linear(8, 10)
    _, audit = loss_of(rad.convert(nn.Sequential(*layers), rad.StochasticRounding(bits)), 1, 42, 42)
    kinds = {entry.module: entry.kind for entry in audit.entries}
    assert kinds == {"0": "sketch", "1": "mask", "2": "sketch", "4": "sketch", "": "output"}
    _, sampled = loss_of(rad.convert(nn.Sequential(*layers), rad.SameSample(0.5)), 1, 42, 42)
    assert ("2", "exact") in {(entry.module, entry.kind) for entry in sampled.entries}


def test_kinds_of_a_recurrent_layer() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 10, nonlinearity="relu", batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[1][0]

    _, audit = loss_of(rad.convert(Last(), rad.DitheredRounding(1)), 5, 3)
    assert {e.kind for e in audit.entries if e.module == "rnn"} == {"sketch", "mask"}
    mask = sum(e.saved_bytes for e in audit.entries if e.kind == "mask")
    assert mask == -(-BATCH * 5 * 10 // 8)


def test_dropout_of_nothing_keeps_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 10), nn.Dropout(0.0))
    _, audit = loss_of(rad.convert(model, rad.SameSample(0.5)), 8)
    assert audit.predicted_bytes == audit.saved_bytes


def test_max_pooling_with_indices_is_torchs() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 20)
            self.pool = nn.MaxPool1d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.layer(x))[0]

    model, audit = loss_of(rad.convert(Pooled(), rad.SameSample(0.5)), 8)
    assert ["`pool` (MaxPool1d) keeps" in words for words in audit.unexpected] == [True]
    assert "what torch keeps" in str(rad.report(model))


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@every_sketch
def test_stacked_recurrent_layers(sketch: Sketch, nonlinearity: str) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(5, 7, 2, nonlinearity=nonlinearity, batch_first=True)
            self.head = nn.Linear(7, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.rnn(x)[1][-1])
            return logits

    _, audit = loss_of(rad.convert(Stacked(), sketch), 9, 5)
    assert audit.unexpected == ()
    assert audit.predicted["rnn"] == audit.saved["rnn"]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_arguments_may_be_given_by_name_in_any_order(kind: type[nn.RNN] | type[nn.LSTM]) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(1, x.shape[1], 7)
            before = (state, state) if kind is nn.LSTM else state
            output: Tensor = self.layer(hx=before, input=x)[0][-1]
            return output

    example, model = torch.randn(9, BATCH, 5), rad.convert(Named(), rad.DitheredRounding(4))
    audit = rad.audit(model, lambda: model(example).square().sum())
    assert audit.predicted["layer"] == audit.saved["layer"] > 0


def test_a_model_that_is_not_converted_is_refused() -> None:
    with pytest.raises(UsageError, match=r"rad\.convert"):
        loss_of(nn.Linear(3, 10), 3)
    with pytest.raises(UsageError, match="evaluation mode"):
        loss_of(rad.convert(nn.Linear(3, 10), rad.Project(0.5)).eval(), 3)


class Masked(nn.Linear):
    """A subclass, which is left alone."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.abs(), self.bias)


class Layers(nn.Module):
    """Layers without a RAD layer, and a calculation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(3), nn.PReLU(3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.masked, self.head = Masked(8, 8), nn.Linear(8, 10)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x)).flatten(1, 2)
        x = self.masked(self.attention(x, x, x)[0]) * self.scale
        out: Tensor = self.head(x.sum(1))
        return out


def test_layers_are_layers_and_only_calls_are_functional() -> None:
    _, audit = loss_of(rad.convert(Layers(), rad.SameSample(0.5)), 3, 8, 8)
    functional = [words for words in audit.unexpected if "functional" in words]
    assert len(functional) == 1
    assert functional[0].startswith("`mul2` is functional, in the model")
    for name, kind in (
        ("norm", "BatchNorm2d"),
        ("act", "PReLU"),
        ("attention", "MultiheadAttention"),
        ("masked", "Masked"),
    ):
        (words,) = (w for w in audit.unexpected if w.startswith(f"`{name}`"))
        kept = audit.saved[name]
        why = "rad.convert(..., path=) rounds it" if name == "norm" else "it has no RAD layer"
        assert words == f"`{name}` ({kind}) keeps {kept:,} bytes: {why}"


def test_a_module_of_two_names_is_told_by_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(10, 10), nn.ReLU()
            self.second, self.again = self.first, self.act

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.again(self.first(x)))
            return out

    _, audit = loss_of(rad.convert(Shared(), rad.SameSample(0.5)), 10)
    assert audit.unexpected == ()
    assert audit.predicted["first"] == audit.saved["first"] > 0
    assert audit.also == {"first": ("second",), "act": ("again",)}
    assert "first = second: " in str(replace(audit, full=True))


@pytest.mark.parametrize(
    ("model", "forward", "words"),
    [
        (nn.Linear, lambda: torch.ones(()), "is the class Linear"),
        (nn.LazyLinear(3), lambda: torch.ones(()), "is lazy"),
        (nn.Linear(3, 3, device="meta"), lambda: torch.ones(()), "meta device"),
        (nn.Linear(3, 3), lambda: torch.ones(3), r"is \(3,\), no scalar tensor"),
        (nn.Linear(3, 3), lambda: torch.ones(()), "requires_grad_"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    model: nn.Module, forward: Callable[[], Tensor], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        rad.audit(model, forward)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def test_gradients_are_what_they_were() -> None:
    model, x = rad.convert(small(), rad.DifferentSample(0.5)), torch.randn(8, 20)
    model(x).square().sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    rad.audit(model, lambda: model(x).square().sum())
    after = [parameter.grad for parameter in model.parameters()]
    assert all(torch.equal(mine, old) for mine, old in zip(after, before, strict=True))


def test_a_layer_in_evaluation_mode_is_named() -> None:
    model, x = rad.convert(small(), rad.DifferentSample(0.5)), torch.randn(8, 20)
    model[0].eval()
    found = rad.audit(model, lambda: model(x).square().sum())
    assert any("`0` is in evaluation mode" in line for line in found.unexpected)


def test_a_parametrized_layer_is_known() -> None:
    model = small()
    nn.utils.parametrizations.weight_norm(model[0])
    model, x = rad.convert(model, rad.DifferentSample(0.5)), torch.randn(8, 20)
    found = rad.audit(model, lambda: model(x).square().sum())
    assert found.predicted["0"] == 8 + 8 * 10 * 4
