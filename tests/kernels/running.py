"""Kernels in processes of their own, in which Triton is imported anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def program(interpreted: bool, *arguments: str) -> None:
    """Run python in a fresh process, in which Triton is imported anew."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = [str(HERE.parents[1]), str(HERE.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check(*names: str) -> None:
    """Run the checks in those files: interpreted, or on the GPU where there is one."""
    files = [str(HERE / f"{name}_checks.py") for name in names]
    program(not torch.cuda.is_available(), "-m", "pytest", "-x", *files)
