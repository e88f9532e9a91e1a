import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes
from rad.planning.compiled import COMPILED
from rad.planning.variants import EXACT, build, variants

PAPER = ["same_sample", "different_sample", "project", "different_project"]
BEYOND = [v for v in variants() if v not in (*EXACT, *COMPILED, *PAPER)]
BATCH = 40


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(30, 17), nn.ReLU(), nn.Linear(17, 11), nn.ReLU(), nn.Linear(11, 4)
    )


X, Y = torch.randn(BATCH, 30), torch.randint(4, (BATCH,))


def loss(out: Tensor) -> Tensor:
    return F.cross_entropy(out, Y[: len(out)].clone())


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(130, 90), nn.ReLU(), nn.Linear(90, 40), nn.ReLU())


WIDE = torch.randn(BATCH, 130)


def total(model: nn.Module, sketch: rad.Sketch, batch: int) -> int:
    converted = rad.convert(model, sketch)
    return parameter_bytes(model) + saved_bytes(lambda: loss(converted(X[:batch].clone())))


def test_reduced_batch_is_the_largest_within_different_samples_bytes() -> None:
    model = network()
    rad_bytes = build(model, (X,), loss, "different_sample", 0.1).plan.memory.saved_bytes
    plan = build(model, (X,), loss, "reduced_batch", 0.1).plan
    assert plan.memory.saved_bytes <= rad_bytes
    limit = parameter_bytes(model) + rad_bytes
    assert total(model, rad.Identity(), plan.batch_size) <= limit
    assert total(model, rad.Identity(), plan.batch_size + 1) > limit


@pytest.mark.parametrize("size", [1, 2, BATCH - 1, BATCH])
def test_reduced_batch_is_found_at_its_very_bytes(size: int) -> None:
    model = network()
    budget = total(model, rad.Identity(), size)
    assert build(model, (X,), loss, "reduced_batch", budget).batch_size == size


@pytest.mark.parametrize("variant", PAPER)
def test_a_fraction_is_the_keep_fraction(variant: str) -> None:
    plan = build(network(), (X,), loss, variant, 0.1).plan
    assert (plan.keep_fraction, plan.batch_size) == (0.1, BATCH)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_bytes_are_met_and_the_next_step_would_not_meet_them(data: st.DataObject) -> None:
    model = network()
    variant = data.draw(st.sampled_from(["same_sample", "reduced_batch"]))
    exact = variant == "reduced_batch"
    least = total(model, rad.Identity(), 1) if exact else total(model, rad.SameSample(1e-9), BATCH)
    most = total(model, rad.Identity() if exact else rad.SameSample(1.0), BATCH)
    budget = data.draw(st.integers(least, most))
    plan = build(model, (X,), loss, variant, budget).plan
    assert plan.memory.parameter_bytes + plan.memory.saved_bytes <= budget
    if exact and plan.batch_size < BATCH:
        assert total(model, rad.Identity(), plan.batch_size + 1) > budget
    if plan.keep_fraction is not None:
        steps = [(j - 0.999) / d + 1e-9 for d in (30, 17, 11) for j in range(1, d + 1)]
        larger = [f for f in steps if f > plan.keep_fraction + 1e-8]
        assert not larger or total(model, rad.SameSample(min(larger)), BATCH) > budget


def test_baseline_ignores_the_budget() -> None:
    plan = build(network(), (X,), loss, "baseline", 0.1).plan
    assert (plan.budget, plan.batch_size, plan.keep_fraction) == ("full", BATCH, None)


def test_equal_seeds_equal_weights_and_the_model_given_is_untouched() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    without = {"checkpointing", *COMPILED}  # it has no blocks; tests of their own
    for variant in set(variants()) - without:
        built = build(model, (X,), loss, variant, 0.1, seed=3)
        for name, value in built.model.state_dict().items():
            assert torch.equal(value, before[name])
        assert all(b == 0 for n, b in built.model.named_buffers() if n.endswith("calls"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("budget", [0.3, 0.15])
@pytest.mark.parametrize("variant", BEYOND)
def test_beyond_the_paper_a_fraction_is_what_different_sample_needs(
    variant: str, budget: float
) -> None:
    limit = build(wide(), (WIDE,), loss, "different_sample", budget).plan.memory.saved_bytes
    options = {"bits": 8} if variant == "sampled_rounding" else {}
    plan = build(wide(), (WIDE,), loss, variant, budget, **options).plan
    assert 0.6 * limit < plan.memory.saved_bytes <= limit
    assert plan.batch_size == BATCH


@pytest.mark.parametrize("zero_code", [False, True])
@pytest.mark.parametrize("variant", ["stochastic_rounding", "dithered_rounding"])
def test_rounding_takes_the_most_bits_that_fit(variant: str, zero_code: bool) -> None:
    def used(bits: int, block: int | None = None) -> int:
        sketch = rad.StochasticRounding(bits, block, zero_code)
        converted = rad.convert(wide(), sketch)
        return parameter_bytes(wide()) + saved_bytes(lambda: loss(converted(WIDE)))

    found = [
        build(wide(), (WIDE,), loss, variant, used(bits), zero_code=zero_code).plan
        for bits in (2, 3, 4, 8)
    ]
    assert [plan.bits for plan in found] == [2, 3, 4, 8]
    assert all(plan.sketch.block is None for plan in found)  # type: ignore[union-attr]
    short = build(wide(), (WIDE,), loss, variant, used(4) - 1, zero_code=zero_code).plan
    assert (short.bits, short.sketch.block) == (4, 256)  # type: ignore[union-attr]
    below = build(wide(), (WIDE,), loss, variant, used(4) - 1, block=50, zero_code=zero_code).plan
    assert (below.bits, below.sketch.block) == (3, 50)  # type: ignore[union-attr]


def test_rotated_rounding_keeps_the_bits_of_rounding() -> None:
    plain = build(wide(), (WIDE,), loss, "dithered_rounding", 0.1).plan
    for dithered in (True, False):
        plan = build(wide(), (WIDE,), loss, "rotated_rounding", 0.1, dithered=dithered).plan
        assert plan.sketch == rad.RotatedRounding(plain.bits or 0, plain.sketch.block, dithered)  # type: ignore[union-attr]
        assert plan.memory.saved_bytes == plain.memory.saved_bytes
    blocks = build(wide(), (WIDE,), loss, "rotated_rounding", 0.1, block=50).plan
    assert blocks.sketch.block == 50  # type: ignore[union-attr]


def test_options_are_those_of_the_variant() -> None:
    with pytest.raises(
        UsageError, match="project has no option 'replacement': it has none, leave it out"
    ):
        build(network(), (X,), loss, "project", 0.1, replacement=False)
    with pytest.raises(UsageError, match="choose among block, zero_code"):
        build(network(), (X,), loss, "stochastic_rounding", 0.5, bits=3)
    with pytest.raises(UsageError, match="bits is 5: choose one of"):
        build(network(), (X,), loss, "sampled_rounding", 0.5, bits=5)
    with pytest.raises(UsageError, match="use allocation=uniform, or variant=auto"):
        build(network(), (X,), loss, "stochastic_rounding", 0.5, allocation="optimal")


SMALLEST = (
    *("same_sample", "different_sample", "project", "reduced_batch", "accumulation"),
    *BEYOND,
)


@pytest.mark.parametrize("variant", SMALLEST)
def test_too_small_a_budget_names_the_smallest_that_will_do(variant: str) -> None:
    weights = parameter_bytes(network())
    with pytest.raises(UsageError, match="too small") as error:
        build(network(), (X,), loss, variant, weights)
    least = int(str(error.value).split("at least ")[1].split()[0])
    build(network(), (X,), loss, variant, least)
    with pytest.raises(UsageError):
        build(network(), (X,), loss, variant, least - 1)


@pytest.mark.parametrize("budget", [0, -1, 1.5, "3 apples"])
def test_bad_budget(budget: float | str) -> None:
    with pytest.raises(UsageError):
        build(network(), (X,), loss, "same_sample", budget)


def test_unknown_variant() -> None:
    with pytest.raises(UsageError, match="different_sample"):
        build(network(), (X,), loss, "sparse", 0.1)


def test_replacement_reaches_the_sketch() -> None:
    built = build(network(), (X,), loss, "same_sample", 0.1, replacement=False)
    assert built.model[0].sketch == rad.SameSample(0.1, replacement=False)
