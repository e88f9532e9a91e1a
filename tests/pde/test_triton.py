import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pde.kernel_case import ADJOINTS, PROBLEM, inputs

from rad.errors import UsageError
from rad.pde import Checkpointing, ReactionDiffusion, control_loss
from rad.pde.cpu import engine as host
from rad.sketches import DifferentSample, Identity, make_key

pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_the_kernels_agree_with_the_compiled_loops_draw_for_draw(tmp_path: Path) -> None:
    coefficients, keys = inputs()
    arguments = (PROBLEM, coefficients, ADJOINTS, keys)
    losses, kept = host.forward(*arguments, True)
    (first,), (exact,), (third,) = kept
    parts = [torch.cat([first.flatten(), third.flatten()]), exact.flatten()]
    torch.save((losses, parts, host.backward(*arguments, kept)), tmp_path / "cpu.pt")
    assert _run("interpreted.py", str(tmp_path / "cpu.pt")) == "the kernels agree\n"


def test_the_kernels_compile_for_a_gpu() -> None:
    assert _run("compile_checks.py") == "the kernels compile\n"


def _run(program: str, *arguments: str) -> str:
    """What a program of this folder prints, in a process in which Triton is imported anew."""
    search = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("adjoint", [Checkpointing(3), DifferentSample(0.1, False)])
def test_what_a_gpu_cannot_do_is_refused(adjoint: object) -> None:
    from rad.pde.cuda import engine as gpu

    problem = ReactionDiffusion(points=5, steps=3)
    coefficients = problem.series.matrix(torch.zeros(1, 7))
    with pytest.raises(UsageError, match="device=cpu"):
        gpu.forward(problem, coefficients, [adjoint], make_key(0)[None], True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_cpus_gradient() -> None:
    problem = ReactionDiffusion(steps=2000, dtype=torch.float64)
    found = {}
    for device in ("cpu", "cuda"):
        theta = torch.linspace(-1, 4, 14, dtype=torch.float64, device=device).view(2, 7)
        theta.requires_grad_()
        keys = torch.stack([make_key(0, device), make_key(1, device)])
        loss = control_loss(problem, theta, [Identity(), DifferentSample(0.1)], keys)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        found[device] = loss.detach().cpu(), gradient.cpu()
    for here, there in zip(*found.values(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-12)
