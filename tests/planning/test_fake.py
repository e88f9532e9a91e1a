"""Dry runs: what models without numbers save is what models with numbers do."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import rad
from rad.benchmarks.dry_run import DryRun, without_numbers
from rad.benchmarks.large import large, small
from rad.benchmarks.zoo import Specimen
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.models import gpt
from rad.planning.exact import blocks
from rad.planning.fake import RAD, SKETCH, FakeTrial, without_draws
from rad.planning.probe import Trial
from rad.planning.repeated import Repeated
from rad.planning.roofline import Accelerator, work_of
from rad.sketches import DitheredRounding, Identity, Sketch, StochasticRounding

ROUNDED, PATH = StochasticRounding(2, block=256), DitheredRounding(4, block=256)
DEVICE = Accelerator("toy", 10**9, 1e9, 1e12, "made up")


def _gpt(count: int) -> tuple[torch.nn.Module, torch.Tensor]:
    return gpt(50, 16, blocks=count, width=32, heads=2), torch.zeros(3, 16, dtype=torch.int64)


def _loss(output: torch.Tensor) -> torch.Tensor:
    tokens = torch.zeros(len(output) * 16, dtype=torch.int64)
    return torch.nn.functional.cross_entropy(output.flatten(0, 1), tokens)


@pytest.mark.parametrize("path", [None, PATH], ids=["exact_path", "rounded_path"])
@pytest.mark.parametrize("sketch", [Identity(), ROUNDED, rad.DifferentSample(0.1)], ids=str)
def test_bytes_without_numbers_are_those_measured(sketch: Sketch, path: Sketch | None) -> None:
    trial = Trial(*_gpt(2), _loss)
    trial.path = path
    measured = trial.total_bytes(sketch, 3)
    with FakeTensorMode():
        fake = FakeTrial(*_gpt(2), _loss)
        fake.path = path
        assert fake.total_bytes(sketch, 3) == measured


def test_layers_without_numbers_sketch_tensors_of_the_same_shapes() -> None:
    shapes = Trial(*_gpt(2), _loss).shapes()
    assert all(shapes.values())
    with FakeTensorMode():
        assert FakeTrial(*_gpt(2), _loss).shapes() == shapes


def test_kept_adds_up_by_block_and_kind() -> None:
    with FakeTensorMode():
        fake = FakeTrial(*_gpt(2), _loss)
        for sketch in (None, ROUNDED):
            total = fake.plain_bytes() if sketch is None else fake.total_bytes(sketch, 3)
            kept = fake.kept(sketch)
            parameters = 0 if sketch is None else fake.parameter_bytes
            assert sum(each.nbytes for each in kept) + parameters == total
            assert {each.block for each in kept} > set(blocks(fake.model))
        keepers = {(each.kind, each.by) for each in kept if each.kind == "Linear"}
        assert keepers == {("Linear", SKETCH)}
        whole = fake.kept(Identity())
        kept = {each.by: each.nbytes for each in whole if each.kind == "Linear"}
        assert kept[RAD] > 100 * kept[SKETCH]  # the keys alone


@pytest.mark.parametrize("name", ["gpt2_xl", "llama_7b"])
def test_more_blocks_are_extrapolated_exactly(name: str) -> None:
    pytest.importorskip("transformers")
    with without_numbers(torch.float32):
        plan = DryRun(partial(small, name, 2), 5, DEVICE)
        plain, every = plan.plain(), plan.checkpointing()
        rounded = plan.given("rounded", ROUNDED, PATH)
    made = small(name, 2, 5)
    assert plain.saved_bytes == saved_bytes(partial(made.loss_of, made.model))
    models: list[tuple[int, Callable[[], torch.nn.Module]]] = [
        (rounded.saved_bytes, lambda: rad.convert(made.model, ROUNDED, path=PATH)),
        (every.saved_bytes, lambda: rad.convert(made.model, {}, recomputed=blocks(made.model))),
    ]
    for predicted, convert in models:
        measured = saved_bytes(partial(made.loss_of, convert()))
        assert predicted == pytest.approx(measured, rel=0.02)
    assert every.recomputed == 5
    assert every.time_ratio > 1


def test_the_ways_of_a_plan_fit_its_budget_and_no_block_is_recomputed_in_vain() -> None:
    statistics = Trial(*_gpt(3), _loss)
    with without_numbers(torch.float32):
        plan = DryRun(_specimen, 6, DEVICE)
        exact, every = plan.some_recomputed(10**12), plan.checkpointing()
        assert exact is not None
        parameters = plan.model.parameter_bytes
        limit = parameters + exact.saved_bytes // 2
        found = {way.program: way for way in plan.automatic(limit, statistics)}
        assert list(found) != [exact.program]
        assert all(parameters + way.saved_bytes <= limit for way in found.values())
        assert found["auto: sketches"].error > 0
        again = found["auto: recomputation"]
        step = (exact.saved_bytes - again.saved_bytes) / again.recomputed
        assert again.saved_bytes + step > limit - parameters
        assert 1 < again.time_ratio < every.time_ratio
        assert plan.automatic(10**12, statistics) == [exact]
        with pytest.raises(UsageError, match="give at least") as refused:
            plan.automatic(parameters, statistics)
        least = int(str(refused.value).partition("at least ")[2].partition(",")[0])
        assert plan.automatic(least, statistics)
        with pytest.raises(UsageError, match="give at least"):
            plan.automatic(least - 1, statistics)


def test_names_of_the_deep_model_are_those_of_the_whole() -> None:
    with without_numbers(torch.float32):
        plan = DryRun(_specimen, 6, DEVICE)
        named = {each: plan.model.in_whole(f"{plan.model.stem}.{each}.norm") for each in range(3)}
        assert named == {0: "blocks.0.norm", 1: "blocks.1..4.norm", 2: "blocks.5.norm"}
        assert plan.model.in_whole("head") == "head"


def test_what_is_in_no_block_is_gathered_whole() -> None:
    with without_numbers(torch.float32):
        plan = DryRun(_specimen, 6, DEVICE)
    model, _ = _gpt(1)
    block = sum(p.numel() for p in model.get_submodule(f"{plan.model.stem}.0").parameters())
    assert plan.gathered_bytes() == 4 * sum(p.numel() for p in model.parameters())
    assert plan.gathered_bytes() > 4 * block


class TwoStacks(torch.nn.Module):
    """As many blocks of each of two kinds."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.gpt = _gpt(count)[0]
        self.wrapped = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(8, 2) for _ in range(count)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.gpt(tokens)
        return output


def test_blocks_that_repeat_in_two_places_are_refused() -> None:
    tokens = torch.zeros(3, 16, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        trials = [FakeTrial(TwoStacks(count), tokens, _loss) for count in (2, 3)]
        with pytest.raises(UsageError, match="give models whose blocks repeat in one place"):
            Repeated(*trials, 6)
        assert Repeated(*(FakeTrial(*_gpt(count), _loss) for count in (2, 3)), 6).stem == "blocks"


def _specimen(count: int) -> Specimen:
    model, tokens = _gpt(count)
    return Specimen(model, (tokens,), tokens, lambda output, _: _loss(output))


def test_a_model_of_billions_of_parameters_takes_no_memory() -> None:
    pytest.importorskip("transformers")
    with without_numbers(torch.bfloat16):
        made = large("llama_7b", 1, 128, 2)
        fake = FakeTrial(made.model, made.inputs, made.loss_of_output)
        parameters = sum(p.numel() for p in made.model.parameters())
        assert fake.parameter_bytes == 2 * parameters > 10**9
        less = fake.total_bytes(ROUNDED, 1)
        assert less < fake.total_bytes(Identity(), 1)


def test_a_fake_model_is_converted_and_shares_its_tensors() -> None:
    with FakeTensorMode():
        model, tokens = _gpt(1)
        converted = rad.convert(model, without_draws(ROUNDED))
        assert converted.head.weight is model.head.weight
        assert converted(tokens).shape == (3, 16, 50)


def test_sketches_without_draws_are_equal_in_bytes() -> None:
    x, key = torch.randn(5, 300), torch.zeros((), dtype=torch.int64)
    (kept,) = without_draws(ROUNDED).compress(x, key)
    assert kept.numel() == ROUNDED.nbytes((5, 300), x.dtype)
    assert without_draws(Identity()) == Identity()


def test_a_roofline_counts_products_and_bytes_and_no_views() -> None:
    a, b = torch.randn(4, 6), torch.randn(6, 8)
    work = work_of(lambda: (a @ b).t())
    assert work.operators == [(2 * 4 * 6 * 8, 4 * (4 * 6 + 6 * 8 + 4 * 8))]
    assert work.seconds(Accelerator("", 0, 1.0, 1e9, "")) == pytest.approx(416)
    assert work.seconds(Accelerator("", 0, 1e9, 1.0, "")) == pytest.approx(384)


def test_what_takes_numbers_is_refused() -> None:
    with FakeTensorMode(), pytest.raises(UsageError, match="peaks are not"):
        FakeTrial(*_gpt(1), _loss, "peak")
    with pytest.raises(UsageError, match="at least 32"):
        large("resnet152", 1, 8, 2)
    with pytest.raises(UsageError, match="choose one of gpt2_xl"):
        large("gpt5", 1, 8, 2)
