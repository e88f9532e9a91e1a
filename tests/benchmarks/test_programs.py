"""The programs that are compared."""

import pytest
import torch

import rad
from rad.benchmarks import networks
from rad.benchmarks.capture import captured
from rad.benchmarks.networks import Network
from rad.benchmarks.programs import COMPARED, PROGRAMS, programs
from rad.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks at a size for tests."""
    small = Network("convnet", (3, 8, 8), {"channels": (4, 5)})
    monkeypatch.setitem(networks.NETWORKS, "convnet", small)
    small = Network("feedforward", (1, 5, 5), {"hidden": (20, 21)})
    monkeypatch.setitem(networks.NETWORKS, "feedforward", small)


def gradients(name: str, precision: str = "float32") -> list[torch.Tensor]:
    options = {"names": [name], "precision": precision}
    (program,) = programs("convnet", 0.3, 6, CPU, **options).values()
    program.step()
    return [p.grad for p in program.model.parameters() if p.grad is not None]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["lean_exact", "reduced_batch", "checkpointing", "accumulation"])
def test_bf16_is_autocast_for_every_program(name: str) -> None:
    for lower, reference in zip(gradients(name, "bf16"), gradients(name), strict=True):
        assert lower.dtype == reference.dtype == torch.float32
        assert not torch.equal(lower, reference)
        assert (lower - reference).norm() < 0.1 * reference.norm()


@pytest.mark.usefixtures("tiny")
def test_exact_programs_have_torchs_gradient_and_others_not() -> None:
    exact = gradients("torch")
    for name in ("lean_exact", "checkpointing", "accumulation", "different_sample"):
        same = [
            torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(name), exact, strict=True)
        ]
        assert all(same) == (name != "different_sample"), name


def test_accumulated_and_compiled_gradients_are_exact() -> None:
    names = ("torch", "accumulation", "compiled", "checkpointing")
    options = ("feedforward", 0.1, 30, torch.device("cpu"))
    compared = programs(*options, names=names, shape=(1, 6, 6))
    assert compared["accumulation"].batch_size == 30
    gradients = {}
    for name in names:
        compared[name].step()
        gradients[name] = [p.grad for p in compared[name].model.parameters()]
    for name in ("accumulation", "compiled", "checkpointing"):
        for one, other in zip(gradients[name], gradients["torch"], strict=True):
            assert one is not None
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("tiny")
def test_a_model_says_how_it_falls_into_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = torch.nn.Linear(25, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scores(x.flatten(1))

    class Segmented(Other):
        def segmented(self, x: torch.Tensor, run: object) -> torch.Tensor:
            return run(self.scores, x.flatten(1))  # type: ignore[operator]

    names = ("torch", "checkpointing")
    for model in (Other, Segmented):
        monkeypatch.setitem(networks.models.MODELS, "feedforward", lambda *_, m=model, **__: m())
        if model is Other:
            with pytest.raises(UsageError, match=r"Other has no segments.*leave out checkpointing"):
                programs("feedforward", 0.1, 4, CPU, names=names)
            continue
        plain, checkpointed = programs("feedforward", 0.1, 4, CPU, names=names).values()
        torch.testing.assert_close(checkpointed.loss(), plain.loss())


@pytest.mark.usefixtures("tiny")
def test_accumulation_saves_what_a_reduced_batch_does() -> None:
    names = ["reduced_batch", "accumulation", "lean_exact"]
    compared = programs("convnet", 0.1, 20, CPU, names=names)
    saved = {name: rad.memory.saved_bytes(program.loss) for name, program in compared.items()}
    other_labels = 8 * (20 - compared["reduced_batch"].batch_size)
    assert saved["accumulation"] == saved["reduced_batch"] + other_labels
    assert saved["reduced_batch"] < 0.3 * saved["lean_exact"]


@pytest.mark.usefixtures("tiny")
def test_slices_are_of_the_reduced_batchs_size_and_save_the_same() -> None:
    names = ["reduced_batch", "different_sample", "different_sample_in_slices"]
    compared = programs("convnet", 0.1, 20, CPU, names=names)
    sliced = compared["different_sample_in_slices"]
    assert sliced.batch_size == 20
    size = compared["reduced_batch"].batch_size
    assert sliced.model.size == size
    saved = {name: rad.memory.saved_bytes(program.loss) for name, program in compared.items()}
    keys = 3 * 8 * (-(-20 // size) - 1)  # a key for each layer and slice
    assert saved["different_sample_in_slices"] == saved["different_sample"] + keys


@pytest.mark.usefixtures("tiny")
def test_what_is_left_out() -> None:
    assert set(COMPARED) < set(PROGRAMS)
    found = programs("convnet", 0.5, 4, CPU, names=("torch", "dense_reference"), precision="bf16")
    assert list(found) == ["torch"]
    for name in ("irnn", "irnn_wide"):
        asked = ("torch", "compiled", "same_sample_in_slices")
        irnn = programs(name, 0.5, 2, CPU, names=asked, shape=(1, 2, 2))
        assert list(irnn) == ["torch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "unknown network 'resnet'"),
        ({"names": ["torch", "jax"]}, "unknown program 'jax'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_what_is_unknown_is_refused(options: dict[str, object], message: str) -> None:
    given = {"network": "feedforward", "keep": 0.1, "batch": 3, "device": CPU, **options}
    with pytest.raises(UsageError, match=message):
        programs(**given)  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("network", ["feedforward", "convnet"])
def test_graphs_compute_what_the_programs_do(network: str) -> None:
    names = ("torch", "lean_exact", "checkpointing", "accumulation")
    compared = programs(network, 0.1, 30, torch.device("cuda"), names=names)
    for name, program in compared.items():
        program.step()
        eager = [p.grad.clone() for p in program.model.parameters() if p.grad is not None]
        program.clear()
        replay = captured(program.step)
        for parameter in program.model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        replay()
        for got, want in zip(program.model.parameters(), eager, strict=True):
            torch.testing.assert_close(got.grad, want, rtol=1e-3, atol=1e-5, msg=name)
