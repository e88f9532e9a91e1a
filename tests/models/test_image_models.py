"""torchvision's networks for small images: shapes, gradients, bytes with sketches of everything."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rad
from rad import models
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.sketches import DitheredRounding, StochasticRounding

SMALL = {"resnet": {"depth": 18}, "vit": {"blocks": 2, "width": 32, "heads": 2}}
every_model = pytest.mark.parametrize("name", SMALL)


def made(name: str, size: int = 16) -> nn.Module:
    return models.build(name, seed=0, input_shape=(3, size, size), classes=10, **SMALL[name])


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@every_model
def test_shapes_and_a_gradient_everywhere(name: str) -> None:
    model, labels = made(name), torch.tensor([1, 2, 3])
    scores = model(images(3))
    assert scores.shape == (3, 10)
    F.cross_entropy(scores, labels).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert not torch.equal(made(name)(images(3)), scores[[1, 2, 0]])


def test_small_images_keep_their_size_at_first() -> None:
    model = made("resnet")
    first = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    assert first(images(2)).shape == (2, 64, 16, 16)
    one = models.build("resnet", seed=0, input_shape=(1, 8, 8), classes=10)
    assert one(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_narrow_resnet_has_as_many_layers_and_starts_as_torchvisions(depth: int) -> None:
    wide, narrow = (
        models.build(
            "resnet", seed=0, input_shape=(3, 16, 16), classes=10, depth=depth, width=width
        )
        for width in (64, 16)
    )
    assert narrow.state_dict().keys() == wide.state_dict().keys()
    sizes = zip(wide.named_parameters(), narrow.named_parameters(), strict=True)
    for (name, before), (_, after) in sizes:
        inputs, outputs = ("conv1.weight", "fc.weight"), ("fc.weight", "fc.bias")
        shape = [*before.shape[:2]]
        shape[:1] = shape[:1] if name in outputs else [shape[0] // 4]
        shape[1:] = shape[1:] if name == inputs[0] else [size // 4 for size in shape[1:]]
        assert [*after.shape[:2]] == shape, name
        if before.dim() == 4:
            ratio = (after.std() / before.std()).item()
            assert ratio == pytest.approx(2, rel=0.25), name
    assert narrow(images(2)).shape == (2, 10)


@every_model
def test_kept_in_few_bits_it_takes_a_quarter_of_the_bytes(name: str) -> None:
    plain = made(name)
    kept = rad.convert(plain, StochasticRounding(2), path=DitheredRounding(4))
    x, labels = images(8), torch.arange(8)
    saved = [saved_bytes(lambda m=m: F.cross_entropy(m(x), labels)) for m in (plain, kept)]  # type: ignore[misc]
    assert saved[1] < saved[0] / 4
    F.cross_entropy(kept(x), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in kept.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet", (49, 1), {}, "takes images"),
        ("resnet", (3, 8, 8), {"depth": 19}, "unknown depth 19"),
        ("vit", (3, 30, 30), {}, "whole patches of 4 x 4"),
        ("vit", (49, 1), {}, "takes images"),
        ("vit", (3, 32, 32), {"heads": 5}, "no multiple of 5 heads"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, seed=0, input_shape=shape, classes=10, **options)
