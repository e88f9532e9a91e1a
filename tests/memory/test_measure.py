import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rad
from rad.memory import parameter_bytes, peak_bytes, saved_bytes
from rad.memory.graph import holdings


def test_plain_linear_and_relu() -> None:
    x, layer = torch.randn(6, 20), nn.Linear(20, 3)
    assert saved_bytes(lambda: layer(x)) == x.nbytes
    assert saved_bytes(lambda: layer(x).relu()) == x.nbytes + 6 * 3 * 4


def test_a_tensor_saved_twice_counts_once() -> None:
    x, one, other = torch.randn(6, 20), nn.Linear(20, 3), nn.Linear(20, 5)
    assert saved_bytes(lambda: (one(x), {"b": other(x.view(6, 20))})) == x.nbytes


def test_a_slice_counts_with_its_whole_storage() -> None:
    x, layer = torch.randn(60, 20), nn.Linear(20, 3)
    assert saved_bytes(lambda: layer(x[:6])) == x.nbytes


def test_parameters_are_excluded_frozen_ones_too() -> None:
    x, layer = torch.randn(6, 20, requires_grad=True), nn.Linear(20, 3)
    layer.weight.requires_grad_(False)
    assert saved_bytes(lambda: layer(x)) == 0


def test_a_dead_branch_is_not_counted() -> None:
    x, layer = torch.randn(6, 20), nn.Linear(20, 3)

    def forward() -> Tensor:
        layer(torch.randn(1000, 20))
        return layer(x)

    assert saved_bytes(forward) == x.nbytes


def test_tensors_on_the_context_are_seen() -> None:
    class Hoarder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            ctx.hidden = [torch.zeros(100)]
            return x * 2

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return grad * 2

    x = torch.randn(3, requires_grad=True)
    assert saved_bytes(lambda: Hoarder.apply(x)) == 400


def test_checkpointing_keeps_the_input_only() -> None:
    from torch.utils.checkpoint import checkpoint

    net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())
    x = torch.randn(6, 20)
    plain = saved_bytes(lambda: net(x))
    assert saved_bytes(lambda: checkpoint(net, x, use_reentrant=False)) < plain / 2


def test_cross_entropy_keeps_log_probabilities_and_labels() -> None:
    logits, y = torch.randn(150, 10, requires_grad=True), torch.randint(10, (150,))
    kept = saved_bytes(lambda: F.cross_entropy(logits * 1, y))
    assert kept == pytest.approx(150 * 10 * 4 + 150 * 8, abs=8)


def test_gradients_are_not_disturbed() -> None:
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    outputs: list[Tensor] = []
    saved_bytes(lambda: outputs.append(layer(x).square().sum()) or outputs[0])
    outputs[0].backward()
    assert layer.weight.grad is not None


def test_parameter_bytes_counts_shared_weights_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    assert parameter_bytes(nn.Sequential(shared, shared, nn.Linear(4, 2))) == 4 * (16 + 8 + 2)


def test_peak_of_a_known_program() -> None:
    def step() -> Tensor:
        a = torch.empty(1000, 1000)
        b = torch.empty(1000, 500)
        del a
        return torch.empty(1000, 100).add_(b.sum())

    assert peak_bytes(step) == pytest.approx(6_000_000, abs=1000)


def test_peak_sees_the_working_memory_within_operators() -> None:
    x = torch.randn(1000, 500)
    assert peak_bytes(lambda: torch.nn.functional.gelu(x).sum()) >= x.nbytes
    assert peak_bytes(lambda: x.add_(1)) < 1000


def living_tensors() -> int:
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def measurings() -> dict[str, Callable[[], object]]:
    x, y = torch.randn(6, 20), torch.randint(3, (6,))
    layers = [nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 9), nn.Sigmoid(), nn.Linear(9, 3)]
    model = nn.Sequential(*layers)
    converted = rad.convert(model, rad.SameSample(0.5))

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out.softmax(1), y[: len(out)])

    def differentiated() -> Tensor:
        out = loss(model(x))
        (grad,) = torch.autograd.grad(out, model[0].weight, create_graph=True)
        return out + grad.square().sum()

    return {
        "saved": lambda: saved_bytes(lambda: loss(model(x).relu())),
        "differentiated": lambda: saved_bytes(differentiated),
        "fit": lambda: rad.fit(model, (x,), loss, 0.5),
        "auto": lambda: rad.fit(model, (x,), loss, 0.5, "auto"),
        "peak": lambda: rad.fit(model, (x,), loss, 0.5, kind="peak"),
        "audit": lambda: rad.audit(converted, lambda: loss(converted(x))),
    }


@pytest.mark.parametrize("name", measurings())
def test_what_was_measured_is_let_go(name: str) -> None:
    """Operators that save their own output would otherwise keep it in a circle for good."""
    measuring = measurings()[name]
    measuring()
    gc.collect()
    before = living_tensors()
    for _ in range(3):
        measuring()
    gc.collect()
    assert living_tensors() == before


def test_what_saved_bytes_measured_needs_no_garbage_collector() -> None:
    outputs: list[weakref.ref[Tensor]] = []

    def forward() -> Tensor:
        hidden = torch.randn(6, 20, requires_grad=True).mul(2).tanh()
        outputs.append(weakref.ref(hidden))
        return hidden.softmax(1).relu().sum()

    gc.disable()
    try:
        saved_bytes(forward)
        assert [output() for output in outputs] == [None]
    finally:
        gc.enable()


RESIDENT = """
import torch
from torch import nn
from rad.memory import saved_bytes

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

x = torch.randn(250, 1000, requires_grad=True)
for call in range(205):
    saved_bytes(lambda: (x * 2).tanh())
    before = resident() if call == 4 else before if call else 0
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is Linux's")
def test_resident_memory_stays_as_it_is() -> None:
    """200 calls, each with 1 MB of output."""
    run = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, check=True)
    assert int(run.stdout) < 20e6


FITS = """
import torch
from torch import nn
import rad

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

x = torch.randn(1000, 8)
model = nn.Sequential(nn.Linear(8, 250), nn.Tanh(), nn.Softmax(1), nn.Linear(250, 2))
for call in range(53):
    rad.fit(model, x, lambda out: out.tanh().square().sum(), variant="baseline")
    before = resident() if call == 2 else before if call > 2 else 0
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is Linux's")
def test_fits_leave_resident_memory_as_it_is() -> None:
    """50 fits of a net whose functions keep 2 MB of output."""
    run = subprocess.run([sys.executable, "-c", FITS], capture_output=True, check=True)
    assert int(run.stdout) < 20e6


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "exp", "cos", "sqrt"])
def test_measuring_twice_differentiated_programs_gives_their_gradients(name: str) -> None:
    """What is unpacked in the measurement leads on to the graph that it was part of."""
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    measured: list[Tensor] = []

    def second() -> Tensor:
        out: Tensor = getattr(x, name)()
        (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        measured.append(torch.autograd.grad(first.sum(), x, create_graph=True)[0])
        return measured[-1]

    saved_bytes(second)
    assert torch.equal(measured[0], second())


def test_parameters_are_known_through_views_and_subclasses() -> None:
    class Marked(nn.Parameter):
        pass

    class Named(Tensor):
        pass

    x, weight = torch.randn(6, 20), Marked(torch.randn(20, 3))
    assert saved_bytes(lambda: x @ weight.t().t()) == x.nbytes
    assert saved_bytes(lambda: x.as_subclass(Named) @ weight[:, 1:]) == x.nbytes
    with FakeTensorMode():
        layer = nn.Linear(20, 3)
        assert saved_bytes(lambda: layer(torch.randn(6, 20)).tanh()) == x.nbytes + 6 * 3 * 4
    assert saved_bytes(lambda: torch.vmap(lambda row: (row @ weight).tanh())(x)) == (
        x.nbytes + 6 * 3 * 4
    )


def test_a_peak_leaves_no_profiler_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        peak_bytes(lambda: torch.randn(100).sum())
        left = [o for o in gc.get_objects() if type(o) is torch.profiler.profile]
    finally:
        gc.enable()
    assert not left


def test_an_output_of_a_python_function_is_named() -> None:
    x = torch.randn(6, 20, requires_grad=True)
    (holding,) = holdings(lambda: rad.functional.relu(x), lambda: None)
    assert (holding.operator, holding.nbytes) == ("packed_relu", 15)


def test_a_peak_does_not_depend_on_the_garbage_that_others_left() -> None:
    """Which Python would collect at some allocation of the step, and so hide as many bytes."""
    size = 1 << 20

    def step() -> tuple[object, ...]:
        first = torch.empty(size, dtype=torch.uint8)
        containers = [[i] for i in range(10_000)]  # some of these start a collection
        return first, containers, torch.empty(size, dtype=torch.uint8)

    def leave(circles: int) -> None:
        for _ in range(circles):
            circle: list[object] = [torch.empty(size, dtype=torch.uint8)]
            circle.append(circle)

    for circles in (0, 1, 3):
        leave(circles)
        assert peak_bytes(step) == 2 * size
    assert gc.isenabled()
