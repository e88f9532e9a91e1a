"""Models that people train, unmodified: what is measured of them."""

import pytest
import torch
from torch import nn

import rad
from rad.benchmarks.zoo import ZOO, Specimen, checkpointed, specimen
from rad.benchmarks.zoo_programs import PLANNED, PROGRAMS, zoo_rows
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.sketches import Identity

SMALL = ["vit", "transformer_encoder", "lstm"]


def gradients(made: Specimen, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(made.loss_of(model), list(model.parameters())))


def test_rows_of_a_model() -> None:
    names = ["torch", "rounded_path", "checkpointing", *PLANNED]
    assert set(names) <= {*PROGRAMS, *PLANNED}
    rows = {r["program"]: r for r in zoo_rows(specimen("vit", 2), names, 0.2, 1)}
    assert list(rows) == names
    plain, auto = rows["torch"], rows["auto"]
    assert plain["gradient_error"] == 0
    assert rows["checkpointing"]["gradient_error"] < 1e-9
    assert auto["predicted_bytes"] == auto["saved_bytes"] <= 0.2 * plain["saved_bytes"]
    assert 0 < auto["gradient_error"] < rows["rounded_path"]["gradient_error"]
    ratio = auto["of_minibatch"] / auto["gradient_error"]
    assert ratio == pytest.approx(
        rows["rounded_path"]["of_minibatch"] / rows["rounded_path"]["gradient_error"], rel=0.02
    )


def test_times_are_against_the_first_program_or_left_out() -> None:
    made = specimen("gru", 2)  # whose parts cannot be recomputed
    first, second = zoo_rows(made, ["checkpointing", "torch"], 0.2, 1)
    assert "no blocks to recompute" in first["note"]
    assert "time_ratio" not in second
    assert second["saved_bytes"] > 0


@pytest.mark.parametrize("name", SMALL)
def test_with_identity_everywhere_the_gradient_is_torchs(name: str) -> None:
    made = specimen(name, 2)
    made.model.double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in made.inputs)  # type: ignore[union-attr]
    made = Specimen(made.model, inputs, made.labels, made.loss)
    converted = rad.convert(made.model, Identity(), path=Identity())
    for got, want in zip(gradients(made, converted), gradients(made, made.model), strict=True):
        torch.testing.assert_close(got, want)


def test_blocks_are_recomputed() -> None:
    made = specimen("vit", 2)
    before = saved_bytes(lambda: made.loss_of(made.model))
    want = gradients(made, made.model)
    model = checkpointed(made.model)
    assert saved_bytes(lambda: made.loss_of(model)) < 0.3 * before
    assert all(map(torch.equal, gradients(made, model), want))
    with pytest.raises(UsageError, match="no blocks to recompute"):
        checkpointed(nn.Linear(2, 2))


def test_a_specimen_is_a_function_of_its_seed_and_unknown_ones_are_refused() -> None:
    one, again, other = specimen("gru", 2), specimen("gru", 2), specimen("gru", 2, seed=1)
    assert torch.equal(one.loss_of(one.model), again.loss_of(again.model))
    assert not torch.equal(one.loss_of(one.model), other.loss_of(other.model))
    with pytest.raises(UsageError, match="unknown model 'alexnet'"):
        specimen("alexnet", 2)
    assert {"resnet18", "gpt2", "t5"} <= set(ZOO)
