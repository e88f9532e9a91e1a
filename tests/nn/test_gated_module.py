import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.functional import gated_kept, gru, lstm
from rad.memory import saved_bytes
from rad.nn import GRU, LSTM
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    SameSample,
    Sketch,
    StochasticRounding,
    fold_in,
)

KINDS: dict[type[nn.RNNBase], type[nn.RNNBase]] = {nn.LSTM: LSTM, nn.GRU: GRU}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
sketches = pytest.mark.parametrize(
    "sketch", [Identity(), SameSample(0.3), StochasticRounding(4), DitheredRounding(2)], ids=str
)
options = pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"batch_first": True},
        {"bidirectional": True},
        {"num_layers": 2},
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    ],
    ids=str,
)
HIDDEN = 32
"""Enough for a rounded layer to keep less than an exact one."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_kept, "CHUNK_BYTES", 10_000)


def pair(kind: type[nn.RNNBase], sketch: Sketch, **options: Any) -> tuple[Any, Any]:
    """torch's module and ours, with equal parameters."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64, **options}
    theirs, ours = kind(3, HIDDEN, **options), KINDS[kind](3, HIDDEN, **options, sketch=sketch)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states_of(module: nn.RNNBase, *batch: int) -> Any:
    """Random ones, as `module` takes them: a tensor, or a pair."""
    places = module.num_layers * (2 if module.bidirectional else 1)
    shape = (places, *batch, HIDDEN)
    drawn = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return tuple(drawn) if isinstance(module, nn.LSTM) else drawn[0]


def flat(outputs: Any) -> list[Tensor]:
    return [outputs[0], *(outputs[1] if isinstance(outputs[1], tuple) else outputs[1:])]


@every_kind
@sketches
@options
def test_equals_torch(kind: Any, sketch: Sketch, options: dict[str, Any]) -> None:
    theirs, ours = pair(kind, sketch, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    rounds = ours.sketches_now()
    for hx in (states_of(theirs, 5 if theirs.batch_first else 4), None):
        expected, actual = flat(theirs(x, hx)), flat(ours(x, hx))
        torch.testing.assert_close(actual, expected)
        cotangents = [torch.randn_like(t) for t in expected]
        leaves = [x, *((hx,) if isinstance(hx, Tensor) else hx or ())]
        got = torch.autograd.grad(actual, [*leaves, *ours.parameters()], cotangents)
        want = torch.autograd.grad(expected, [*leaves, *theirs.parameters()], cotangents)
        if not rounds:
            torch.testing.assert_close(got, want)
        else:
            for mine, exact in zip(got, want, strict=True):
                assert 0 < (mine - exact).norm() < 0.9 * exact.norm()
    assert ours.calls == 2 * rounds


@every_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input(kind: Any, batch_first: bool) -> None:
    theirs, ours = pair(kind, DitheredRounding(4), batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 3, dtype=torch.float64)
    for hx in (states_of(theirs), None):
        torch.testing.assert_close(flat(ours(x, hx)), flat(theirs(x, hx)))


@every_kind
def test_each_layer_and_direction_draws_with_its_own_key(kind: Any) -> None:
    sketch = StochasticRounding(2)
    _, ours = pair(kind, sketch, num_layers=2, bidirectional=True)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    outputs = flat(ours(x))
    cotangents = [torch.randn_like(output) for output in outputs]
    names, leaves = list(ours.state_dict()), list(ours.parameters())
    actual = torch.autograd.grad(outputs, leaves, cotangents)

    key = fold_in(ours.key, 0)
    function: Any = lstm if kind is nn.LSTM else gru
    before = [x.new_zeros(4, HIDDEN)] * (2 if kind is nn.LSTM else 1)
    inputs, last = x, []
    for layer in range(2):
        sides: list[Tensor] = []
        for direction in range(2):
            place = 2 * layer + direction
            seen = inputs.flip(0) if direction else inputs
            weights = leaves[4 * place : 4 * place + 4]
            options = {"sketch": sketch, "key": fold_in(key, place)}
            states, *after = function(seen, *before, *weights, **options)
            sides.append(states.flip(0) if direction else states)
            last.append(after)
        inputs = torch.cat(sides, 2)
    stacked = [torch.stack(each) for each in zip(*last, strict=True)]
    expected = torch.autograd.grad([inputs, *stacked], leaves, cotangents)
    for name, got, want in zip(names, actual, expected, strict=True):
        assert torch.equal(got, want), name
    again = torch.autograd.grad(flat(ours(x)), leaves, cotangents)
    assert not torch.equal(again[1], actual[1])
    assert ours.calls == 2


@every_kind
@sketches
def test_dropout_between_the_layers_is_torchs(kind: Any, sketch: Sketch) -> None:
    theirs, ours = pair(kind, sketch, num_layers=3, dropout=0.4)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.manual_seed(7)
    expected = theirs(x)
    torch.manual_seed(7)
    torch.testing.assert_close(ours(x), expected)


@every_kind
@pytest.mark.parametrize("frozen", ["eval", "no_grad"])
def test_nothing_is_sketched_in_evaluation(kind: Any, frozen: str) -> None:
    theirs, ours = pair(kind, DitheredRounding(2), num_layers=2)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    if frozen == "eval":
        ours.eval()
        (got,) = torch.autograd.grad(ours(x)[0].sum(), ours.weight_hh_l0)
        (want,) = torch.autograd.grad(theirs(x)[0].sum(), theirs.weight_hh_l0)
        assert torch.equal(got, want)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], theirs(x)[0])
    assert ours.calls == 0


@every_kind
@sketches
def test_a_packed_sequence_is_left_to_torch(kind: Any, sketch: Sketch) -> None:
    theirs, ours = pair(kind, sketch)
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in (4, 2)])
    losses = []
    for module in (theirs, ours):
        output, _ = module(packed)
        losses.append(torch.autograd.grad(output.data.square().sum(), module.weight_hh_l0))
    assert torch.equal(losses[0][0], losses[1][0])
    assert ours.calls == 0
    assert "PackedSequence: as torch" in ours.keeps


def test_a_projection_is_left_to_torch() -> None:
    theirs, ours = pair(nn.LSTM, DitheredRounding(2), proj_size=5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    grads = [torch.autograd.grad(m(x)[0].sum(), m.weight_hr_l0)[0] for m in (theirs, ours)]
    assert torch.equal(*grads)
    assert ours.keeps.startswith("what torch keeps")
    assert ours.calls == 0
    model = nn.Sequential(rad.convert(nn.Sequential(nn.LSTM(3, 8, proj_size=5)), Identity()))
    inputs = torch.randn(5, 4, 3)
    audit = rad.audit(model, lambda: model(inputs)[0].sum())
    assert "keeps" in audit.unexpected[0]


@every_kind
def test_wrong_sizes_get_torchs_error(kind: Any) -> None:
    _, ours = pair(kind, DitheredRounding(2))
    with pytest.raises(RuntimeError, match="input_size"):
        ours(torch.randn(5, 4, 2, dtype=torch.float64))
    x, states = (torch.randn(*size, dtype=torch.float64) for size in ((5, 4, 3), (2, 4, HIDDEN)))
    with pytest.raises(RuntimeError, match=r"[Ee]xpected hidden"):
        ours(x, (states, states) if kind is nn.LSTM else states)


@every_kind
def test_a_copy_draws_the_same(kind: Any) -> None:
    _, ours = pair(kind, DitheredRounding(2))
    twin = copy.deepcopy(ours)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    both = [torch.autograd.grad(m(x)[0].sum(), m.weight_hh_l0)[0] for m in (ours, twin)]
    assert torch.equal(*both)
    assert "sketch=DitheredRounding" in repr(ours)
    assert ours.keeps.startswith("DitheredRounding")
    assert "calculated again" in pair(kind, SameSample(0.5))[1].keeps


@every_kind
@sketches
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_an_empty_batch(kind: Any, sketch: Sketch, options: dict[str, Any]) -> None:
    theirs, ours = pair(kind, sketch, **options)
    x = torch.randn(5, 0, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        outputs = flat(module(x))
        torch.stack([output.sum() for output in outputs]).sum().backward()
        found.append((outputs, [p.grad for p in module.parameters()]))
    torch.testing.assert_close(found[1], found[0])


class Classifier(nn.Module):
    """A recurrent layer, and a linear one on its last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(12, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.rnn(x)
        result: Tensor = self.head((last[0] if isinstance(last, tuple) else last)[-1])
        return result


def classifier(kind: type[nn.RNNBase], **options: Any) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Classifier(kind, **options), torch.randn(6, 12, 12), torch.randint(5, (6,))


@every_kind
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 2, "dropout": 0.3},
        {"bias": False, "num_layers": 2, "dropout": 0.3, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "sketch",
    [Identity(), DifferentSample(0.2), StochasticRounding(4), DitheredRounding(8)],
    ids=str,
)
def test_an_audit_finds_what_is_predicted(
    kind: Any, sketch: Sketch, options: dict[str, Any]
) -> None:
    model, x, y = classifier(kind, **options)
    check_audit(rad.convert(model, sketch), x, y)


@every_kind
@pytest.mark.parametrize("sketch", [Identity(), DitheredRounding(4)], ids=str)
@pytest.mark.parametrize("frozen", ["rnn.weight_ih_l0", "rnn.weight_hh_l0"])
def test_an_audit_knows_frozen_weights(kind: Any, sketch: Sketch, frozen: str) -> None:
    model, x, y = classifier(kind)
    converted = rad.convert(model, sketch)
    converted.get_parameter(frozen).requires_grad_(False)
    check_audit(converted, x, y)


def check_audit(model: nn.Module, x: Tensor, y: Tensor) -> None:
    audit = rad.audit(model, lambda: F.cross_entropy(model(x), y))
    assert audit.unexpected == ()
    assert audit.saved["rnn"] == audit.predicted["rnn"]
    assert audit.saved_bytes == audit.predicted_bytes


@every_kind
def test_the_output_may_be_kept_by_who_reads_it(kind: Any) -> None:
    """Nothing is counted twice where a layer above keeps the states of one below, too."""
    torch.manual_seed(0)
    one, two, x = kind(3, HIDDEN), kind(HIDDEN, HIDDEN), torch.randn(9, 4, 3)

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = one, two

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.two(self.one(x)[0])[0]
            return result

    model = rad.convert(Stacked(), Identity())
    audit = rad.audit(model, lambda: model(x).square().sum())
    assert audit.saved_bytes <= audit.predicted_bytes
    assert saved_bytes(lambda: model(x)) < saved_bytes(lambda: Stacked()(x)) / 2


@every_kind
def test_a_fifth_of_what_torch_keeps(kind: Any) -> None:
    model, x, y = classifier(kind)
    plain = saved_bytes(lambda: F.cross_entropy(model(x), y))
    for sketch in (StochasticRounding(4), DitheredRounding(4)):
        converted = rad.convert(model, sketch)
        assert saved_bytes(lambda m=converted: F.cross_entropy(m(x), y)) < plain / 5


@every_kind
def test_conversion_and_report(kind: Any) -> None:
    model, x, _ = classifier(kind)
    converted = rad.convert(model, StochasticRounding(4))
    assert type(converted.rnn) is KINDS[kind]
    assert converted.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(converted(x), model(x))
    words = str(rad.report(converted))
    assert "of input, states and derivatives" in words
    again = rad.convert(converted, Identity())
    assert "calculated again" in str(rad.report(again))
    exact = torch.autograd.grad(model(x).square().sum(), model.rnn.weight_hh_l0)
    same = torch.autograd.grad(again(x).square().sum(), again.rnn.weight_hh_l0)
    torch.testing.assert_close(same, exact)


@every_kind
def test_a_sequence_that_nobody_reads_is_not_made(kind: Any) -> None:
    model, x, _ = classifier(kind)
    converted = rad.convert(model, DitheredRounding(4))
    assert not converted.rnn.sequence_read
    with pytest.raises(RuntimeError, match="sequence_read"):
        converted.rnn(x)[0].sum()


@every_kind
def test_it_can_be_planned_for(kind: Any) -> None:
    model, x, y = classifier(kind)
    loss = lambda out: F.cross_entropy(out, y[: len(out)])  # noqa: E731
    plan = rad.fit(model, (x,), loss, budget="60 kB", variant="stochastic_rounding")
    assert plan.memory.parameter_bytes + plan.memory.saved_bytes <= 60_000
    converted = rad.convert(model, plan)
    assert saved_bytes(lambda: loss(converted(x))) == plan.memory.saved_bytes
    for variant in ("different_sample", "auto"):
        plan = rad.fit(model, (x,), loss, budget="90 kB", variant=variant)
        assert plan.memory.parameter_bytes + plan.memory.saved_bytes <= 90_000
        with pytest.raises(UsageError, match="give at least"):
            rad.fit(model, (x,), loss, budget="30 kB", variant=variant)
