"""What is measured on a GPU is what its allocator says."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad import models
from rad.memory import peak_bytes, saved_bytes
from rad.memory.graph import kept_storages
from rad.sketches import DifferentSample, DitheredRounding, Identity, Project, SameSample, Sketch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = {"feedforward": (1, 28, 28), "convnet": (3, 32, 32), "irnn": (784, 1)}
SKETCHES: list[Sketch] = [
    Identity(),
    SameSample(0.1),
    DifferentSample(0.1),
    Project(0.1),
    DitheredRounding(4),
]
SPARE = 1024
"""Bytes: numbers such as the loss itself."""


def program(name: str, sketch: Sketch) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A converted model, and its loss on a batch that only the graph keeps."""
    model = rad.convert(models.build(name, SHAPES[name], 10, seed=0).cuda(), sketch)
    x = torch.rand(150, *SHAPES[name], device="cuda")
    y = torch.randint(10, (150,), device="cuda")
    return model, lambda: F.cross_entropy(model(x.clone()), y)


def requested() -> int:
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


@pytest.mark.parametrize("sketch", SKETCHES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_saved_bytes_are_what_stays_allocated_after_forward(name: str, sketch: Sketch) -> None:
    model, loss = program(name, sketch)
    loss().backward()
    model.zero_grad(set_to_none=True)
    saved = saved_bytes(loss)
    kept, _, _ = kept_storages(loss)
    # Blocks are multiples of 512 bytes; a large one may stay up to 1 MiB too large.
    sizes = [tensor.untyped_storage().nbytes() for tensor, _ in kept.values()]
    rounding = sum(512 if size <= 1 << 20 else (1 << 20) + 512 for size in sizes)
    del kept
    asked, allocated = requested(), torch.cuda.memory_allocated()
    value = loss()
    asked, allocated = requested() - asked, torch.cuda.memory_allocated() - allocated
    assert value.grad_fn is not None
    assert abs(asked - saved) <= SPARE
    assert -SPARE <= allocated - saved <= rounding + SPARE


@pytest.mark.parametrize("sketch", SKETCHES[:3], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_peak_bytes_are_the_allocators(name: str, sketch: Sketch) -> None:
    model, loss = program(name, sketch)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    step()
    model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    expected = torch.cuda.max_memory_allocated() - before
    model.zero_grad(set_to_none=True)
    assert peak_bytes(step) == pytest.approx(expected, rel=0.01, abs=1 << 20)
    assert expected > saved_bytes(loss)


def test_workspaces_are_not_the_steps() -> None:
    model, loss = program("feedforward", DifferentSample(0.1))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    step()
    model.zero_grad(set_to_none=True)
    warm = peak_bytes(step)
    model.zero_grad(set_to_none=True)
    torch._C._cuda_clearCublasWorkspaces()
    assert peak_bytes(step) == pytest.approx(warm, rel=0.01, abs=1 << 20)


@pytest.mark.parametrize("sketch", SKETCHES[:3], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_saved_bytes_equal_those_on_a_cpu(name: str, sketch: Sketch) -> None:
    """But for the bits of the fused recurrent layer, which are packed over the batch."""
    model, loss = program(name, sketch)
    on_gpu = saved_bytes(loss)
    model = model.cpu()
    x, y = torch.rand(150, *SHAPES[name]), torch.randint(10, (150,))
    on_cpu = saved_bytes(lambda: F.cross_entropy(model(x.clone()), y))
    fused = name == "irnn" and not isinstance(sketch, Identity)
    more = 784 * (-(-150 // 8) * 100 - 150 * 100 // 8) if fused else 0
    assert abs(on_gpu - on_cpu - more) <= SPARE
