"""Plans that weigh sketches, recomputation and time."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes
from rad.nn.recomputing import is_recomputed
from rad.planning import ways
from rad.planning.probe import Trial
from rad.planning.recomputation import LARGEST, fewest_within, is_faithful, units
from rad.planning.timing import alternate
from rad.planning.ways import Way, read_time
from rad.sketches import Identity

X = torch.randn(32, 16)


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Random(Block):
    """Draws numbers that no generator of torch knows of, as numpy's users may."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def forward(self, x: Tensor) -> Tensor:
        self.draws += 1
        return super().forward(x) * self.draws


def model(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    inside = blocks or [Block() for _ in range(6)]
    return nn.Sequential(nn.Linear(16, 16), *inside, nn.Linear(16, 2))


def loss(output: Tensor) -> Tensor:
    return output.square().mean()


def share(fraction: float, net: nn.Module) -> str:
    saved = saved_bytes(lambda: loss(net(X)))
    return f"{parameter_bytes(net) + int(fraction * saved)} B"


def test_blocks_may_be_recomputed_and_large_parts_may_not() -> None:
    trial = Trial(model(), X, loss)
    found = units(trial)
    assert sorted(unit.name for unit in found) == [str(number) for number in range(1, 7)]
    total = trial.exact_bytes() - trial.parameter_bytes
    assert all(0 < unit.nbytes <= LARGEST * total for unit in found)
    nested = nn.Sequential(nn.Linear(16, 16), nn.Sequential(*(Block() for _ in range(4))))
    assert sorted(unit.name for unit in units(Trial(nested, X, loss))) == [
        f"1.{n}" for n in range(4)
    ]
    twice = Block()
    assert units(Trial(nn.Sequential(twice, twice, *model()), X, loss))  # but not that one
    assert "0" not in [u.name for u in units(Trial(nn.Sequential(twice, twice, *model()), X, loss))]


@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
def test_as_few_as_needed_are_recomputed(fraction: float) -> None:
    net = model()
    trial = Trial(net, X, loss)
    limit = int(share(fraction, net).split()[0])
    names = fewest_within(trial, limit)
    assert names is not None
    assert 0 < len(names) < 6
    assert trial.recomputing(names).exact_bytes() <= limit
    assert trial.recomputing(names[:-1]).exact_bytes() > limit
    assert fewest_within(trial, trial.parameter_bytes + 100) is None


@pytest.fixture
def slow_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch takes 1 second, what is tried first, sketches alone, 2, and the rest 1.3."""

    def seconds(steps: dict[str, object], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
        return {s: [{"torch": 1.0, "0": 2.0}.get(s, 1.3)] * rounds for s in steps}

    monkeypatch.setattr(ways, "alternate", seconds)


@pytest.mark.usefixtures("slow_sketches")
def test_a_plan_is_carried_out_as_predicted() -> None:
    net = model()
    plan = rad.fit(net, X, loss, share(0.5, net), "auto", path="auto")
    assert plan.recomputed
    assert f"{len(plan.recomputed)} modules recomputed" in plan.describe()
    assert plan.reason is not None
    assert "1.3 times plain torch's time, gradient error 0 (beside it: sketches: 2" in plan.reason
    converted = rad.convert(net, plan)
    assert saved_bytes(lambda: loss(converted(X))) == plan.memory.saved_bytes
    for found, expected in zip(
        *(torch.autograd.grad(loss(m(X)), list(m.parameters())) for m in (converted, net)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_where_neither_is_enough_both_are_taken() -> None:
    net = model()
    fewest = rad.fit(net, X, loss, share(0.16, net), "auto", path=Identity(), recompute=True)
    assert len(fewest.recomputed) == 6
    with pytest.raises(UsageError, match=r"too small.* needs [0-9,]+ in all"):
        rad.fit(net, X, loss, share(0.16, net), "auto", path=Identity(), recompute=False)
    least = trial_least(net)
    assert rad.fit(net, X, loss, f"{least} B", "auto", path="auto").memory.saved_bytes


def trial_least(net: nn.Module) -> int:
    """The bytes that a refusal says are enough."""
    with pytest.raises(UsageError, match="give at least") as error:
        rad.fit(net, X, loss, f"{parameter_bytes(net) + 200} B", "auto", path="auto")
    found = re.search(r"give at least (\d+)", str(error.value))
    assert found is not None
    return int(found[1])


def test_what_cannot_be_run_twice_is_left_alone() -> None:
    net = model(*(Random() for _ in range(6)))
    trial = Trial(net, X, loss).recomputing(("1", "2"))
    assert not is_faithful(trial)
    assert is_faithful(Trial(model(), X, loss).recomputing(("1", "2")))
    plan = rad.fit(net, X, loss, share(0.5, net), "auto", path="auto")
    assert not plan.recomputed


def way(error: float, ratio: float) -> Way:
    return Way(None, None, None, error, ratio)  # type: ignore[arg-type]


def test_time_and_noise_are_weighed() -> None:
    assert way(0.0, 1.3).cost < way(0.5, 1.0).cost
    assert way(0.01, 1.1).cost < way(0.0, 1.3).cost


def test_a_limit_of_time_takes_the_least_error_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"torch": 1.0, "sketches": 2.0, "sampled": 1.1, "again": 1.3}

    def seconds(steps: dict[str, object], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
        names = ["torch", "sketches", "sampled", "sampled", "again", "again"][: len(steps)]
        return {s: [ratios[n]] * rounds for s, n in zip(steps, names, strict=True)}

    monkeypatch.setattr(ways, "alternate", seconds)
    net = model()
    fits = share(0.5, net)
    assert rad.fit(net, X, loss, fits, "auto", path="auto", time="1.4x").recomputed
    quick = rad.fit(net, X, loss, fits, "auto", path="auto", time=1.2)
    assert not quick.recomputed
    assert quick.keep_fraction is not None
    with pytest.raises(UsageError, match=r"at most 1\.05 times plain torch's time, but 1\.1 at"):
        rad.fit(net, X, loss, fits, "auto", path="auto", time="1.05x")


def test_times_are_read() -> None:
    assert read_time("1.3x") == read_time(" 1.3 ") == read_time(1.3) == 1.3
    assert read_time(None) is None
    for nonsense in ("fast", "0x", "-1", True, "1.3s", "inf"):
        with pytest.raises(UsageError, match="is no limit: give how many times"):
            read_time(nonsense)


def test_other_variants_have_no_time() -> None:
    for options in ({"time": "1.3x"}, {"recompute": True}):
        for budget, variant in (
            ("1 MB", "same_sample"),
            (0.1, "same_sample"),
            ("full", "baseline"),
        ):
            with pytest.raises(UsageError, match="go with variant='auto'"):
                rad.fit(model(), X, loss, budget, variant, **options)
    with pytest.raises(UsageError, match="time= and recompute= go with budget="):
        rad.convert(model(), Identity(), time="1.3x")
    with pytest.raises(UsageError, match="recomputed= goes with a sketch"):
        rad.convert(model(), budget="1 MB", example=X, loss=loss, recomputed=("1",))


def test_a_time_is_refused_where_nothing_is_weighed() -> None:
    with pytest.raises(UsageError, match="time= goes with a budget"):
        rad.fit(model(), X, loss, "full", "auto", time="1.3x")
    with pytest.raises(UsageError, match="leave out recompute=False"):
        rad.fit(model(), X, loss, "1 MB", "auto", time="1.3x", recompute=False)


@pytest.mark.usefixtures("slow_sketches")
def test_one_call_weighs_and_converts() -> None:
    net = model()
    budget = share(0.3, net)
    converted = rad.convert(net, budget=budget, example=X, loss=loss)
    assert parameter_bytes(net) + saved_bytes(lambda: loss(converted(X))) <= int(budget.split()[0])
    alone = rad.convert(net, budget=budget, example=X, loss=loss, recompute=False)
    assert any(map(is_recomputed, converted.modules()))
    assert not any(map(is_recomputed, alone.modules()))


def test_a_peak_is_met_with_recomputation() -> None:
    net = model()
    peak = rad.fit(net, X, loss, "full", "baseline").memory.peak_bytes
    budget = parameter_bytes(net) + int(0.75 * peak)
    plan = rad.fit(net, X, loss, f"{budget} B", "auto", kind="peak", path="auto")
    assert plan.memory.parameter_bytes + plan.memory.peak_bytes <= budget


def test_turns_are_taken() -> None:
    order: list[str] = []
    alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, warmup=1)
    assert order == ["a", "b"] * 3
