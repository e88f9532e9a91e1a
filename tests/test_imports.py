"""Who imports whom: the rules of the house hold, and each of them can be broken."""

import subprocess
import sys
from pathlib import Path

import imports
import pytest

import rad

ROOT = Path(__file__).resolve().parents[1]


def test_the_rules_hold() -> None:
    assert imports.violations(imports.sources(ROOT)) == []


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("rad.kernels.rounding", "from rad.sketches.rounding import Rounding", "earlier ones only"),
        ("rad.draws.kernels", "from rad.sketches import SameSample", "earlier ones only"),
        ("rad.packing.codes", "from rad.draws.dispatch import words", "earlier ones only"),
        ("rad.functional.linear", "from rad.nn import Linear", "earlier ones only"),
        ("rad.conversion.modules", "from rad.planning.plan import Plan", "earlier ones only"),
        ("rad.planning.auto", "from rad.training import train", "no laboratory"),
        ("rad.memory.budget", "import pandas", "torch, numpy and numba"),
        ("rad.training.loop", "from rad.nn import Sketching", "does not know that RAD exists"),
        ("rad.plotting.style", "import torch", "no torch"),
        ("rad.results.tables", "from rad.memory import saved_bytes", "no torch"),
        ("rad.results.tables", "def f():\n    from rad.memory import saved_bytes", "no torch"),
        ("rad.tuning.space", "from omegaconf import DictConfig", "Hydra"),
        ("rad.training.loop", "from rad.pde import ReactionDiffusion", "earlier ones only"),
        ("rad.models.irnn", "from rad.data import Dataset", "earlier ones only"),
        ("rad.pde.plan", "from rad.benchmarks.capture import captured", "earlier ones only"),
        ("rad.graph.tracing", "from rad.gradient_noise import measure", "earlier ones only"),
        ("rad.benchmarks.capture", "import _programs", "scripts"),
        ("rad.functional.relu", "import triton", "only kernels"),
        ("rad.sketches.noise", "def f():\n    from rad.sketches.base import Sketch", "circle"),
    ],
)
def test_a_planted_import_is_found(module: str, line: str, rule: str) -> None:
    modules = dict(imports.sources(ROOT))
    modules[module] = f"{modules[module]}\n{line}\n"
    assert any(module in found and rule in found for found in imports.violations(modules))


def test_a_package_without_a_place_is_found() -> None:
    modules = {**imports.sources(ROOT), "rad.attic.things": "from rad.errors import UsageError\n"}
    assert any("rad.attic.things" in found for found in imports.violations(modules))


def test_the_house_has_few_floors_and_loose_modules() -> None:
    modules = imports.sources(ROOT)
    assert imports.depth(imports.imports(modules)) <= 12
    loose = [file.name for file in (ROOT / "rad").glob("*.py") if file.name != "__init__.py"]
    assert len(loose) <= 3
    assert max(len(text.splitlines()) for text in modules.values()) <= 330


def _run(program: str, *absent: str) -> tuple[str, set[str]]:
    """What a fresh process, in which those packages cannot be loaded, prints; the packages that it
    has loaded."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    show = "\nprint(*{name.partition('.')[0] for name, m in sys.modules.items() if m})"
    done = subprocess.run(
        [sys.executable, "-c", hide + program + show], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    *printed, loaded = done.stdout.splitlines()
    return "\n".join(printed), set(loaded.split())


def test_plotting_and_results_load_no_torch() -> None:
    assert "torch" not in _run("import rad.plotting, rad.results")[1]
    assert "torch" in _run("import rad; rad.convert")[1]  # the control


TRAIN = """
import rad, torch
from torch import nn
torch.manual_seed(3)

layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)
model = nn.Sequential(*layers, nn.Unflatten(1, (1, 2)), nn.RNN(2, 3, batch_first=True))
x = torch.rand(4, 1, 8, 8)
for sketch in (rad.DifferentSample(0.5), rad.Project(0.5), rad.StochasticRounding(2)):
    torch.manual_seed(0)
    converted = rad.convert(model, sketch, seed=1)
    converted(x)[0].square().mean().backward()
    print(repr(sum(p.grad.double().abs().sum().item() for p in converted.parameters())))
rad.fit(model, x, lambda out: out[0].sum(), 0.5)
"""


def test_the_library_needs_torch_numpy_and_numba_only_and_draws_the_same_without_numba() -> None:
    others = (*imports.EXPERIMENTS, "yaml", "sklearn", "tqdm", "networkx", "scipy")
    gradients, loaded = _run(TRAIN, *others)
    assert "numba" in loaded
    without, loaded = _run(TRAIN, "numba")
    assert "numba" not in loaded
    assert gradients
    assert gradients == without


def test_public_names_are_there() -> None:
    assert all(getattr(rad, name) is not None for name in rad.__all__)
    assert set(rad.__all__) <= set(dir(rad))
    assert (ROOT / "rad" / "py.typed").exists()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = rad.no_such_thing  # type: ignore[attr-defined]
