"""Keys and counters keep their numbers wherever a model goes, and get them where it had none."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rad
from rad.sketches import SameSample, StochasticRounding, fold_in, make_key

Moves = Callable[[nn.Module], nn.Module]


def model(device: str = "cpu") -> nn.Module:
    with torch.device(device):
        layers = [nn.Conv1d(1, 2, 3), nn.GELU(), nn.Linear(6, 6), nn.RNN(6, 3)]
        return rad.convert(nn.Sequential(*layers), StochasticRounding(4), seed=5)


def draws(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.key, m.calls) for m in module.modules() if isinstance(m, rad.nn.Sketching)]


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def assigned(module: nn.Module) -> nn.Module:
    module.load_state_dict(model().state_dict(), assign=True)
    return module


MOVES: dict[str, Moves] = {
    "to a device": lambda m: m.to("cpu"),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "to a dtype": lambda m: m.to(torch.float64),
    "half": lambda m: m.half(),
    "type": lambda m: m.type(torch.bfloat16),
    "assign": assigned,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "save": saved_and_loaded,
    "share_memory": lambda m: m.share_memory(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_numbers_stay(move: Moves) -> None:
    original = model()
    for _, calls in draws(original):
        calls += 3
    for place, (key, calls) in enumerate(draws(move(original))):
        assert key.dtype == calls.dtype == torch.int64
        assert int(key) == int(fold_in(make_key(5), place))
        assert int(calls) == 3


def test_a_key_of_ones_own_stays() -> None:
    layer = rad.nn.Linear(3, 3, sketch=SameSample(0.5))
    layer.key.copy_(make_key(77))
    assert int(layer.to(torch.float64).to_empty(device="cpu").key) == int(make_key(77))


@pytest.mark.parametrize("move", ["to_empty", "assign"])
def test_numbers_start_where_there_were_none(move: str) -> None:
    moved = MOVES[move](model("meta"))
    for place, (key, calls) in enumerate(draws(moved)):
        if key.is_meta:  # of a layer without parameters, until it sees an input
            moved[place](torch.randn(3, requires_grad=True))
            key, calls = draws(moved)[place][0], draws(moved)[place][1] - 1
        assert int(key) == int(fold_in(make_key(5), place))
        assert int(calls) == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: rad.nn.Linear(6, 5, sketch=SameSample(0.5), seed=3, device="meta"),
        lambda: rad.nn.Conv1d(6, 5, 1, sketch=SameSample(0.5), seed=3, device="meta"),
        lambda: rad.nn.RNN(6, 5, sketch=SameSample(0.5), seed=3, device="meta"),
    ],
    ids=["Linear", "Conv1d", "RNN"],
)
def test_layers_built_without_memory(build: Callable[[], rad.nn.Sketching]) -> None:
    layer = build().to_empty(device="cpu")
    assert int(layer.next_key()) == int(fold_in(fold_in(make_key(3), 0), 0))
    assert build().to("meta").next_key().is_meta
    skipped = nn.utils.skip_init(rad.nn.Linear, 6, 5, sketch=SameSample(0.5), seed=3)
    assert torch.equal(skipped.key, layer.key)


def test_draws_in_memory_that_is_shared_count_together() -> None:
    layer = rad.nn.Linear(3, 3, sketch=SameSample(0.5)).share_memory()
    assert layer.calls.is_shared()
    assert layer.key.is_shared()


@pytest.mark.parametrize("seed", [-1, 1 << 70, (1 << 64) - 1])
def test_any_integer_is_a_seed(seed: int) -> None:
    converted = rad.convert(nn.Linear(3, 3), SameSample(0.5), seed=seed)
    assert int(converted.key) == int(fold_in(make_key(seed), 0))
    assert torch.equal(copy.deepcopy(converted).to(torch.float64).key, converted.key)


@pytest.mark.parametrize("replica", [None, 0, 3])
def test_calls_draw_with_the_keys_that_are_documented(replica: int | None) -> None:
    layer = rad.nn.Linear(3, 3, sketch=SameSample(0.5), seed=7)
    layer.replica = replica
    base = layer.key.clone() if replica is None else fold_in(layer.key, replica)
    for call in (0, 1, (1 << 63) - 1, -(1 << 63)):
        layer.calls.fill_(call)
        counter = layer.calls
        assert torch.equal(layer.next_key(), fold_in(base, torch.tensor(call)))
        assert layer.calls is counter
        assert torch.equal(counter, torch.tensor(call) + 1)
