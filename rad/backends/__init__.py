"""Which form of a primitive takes a tensor: Triton kernels, compiled loops, or torch's operators.

Every primitive has a form in torch's operators, which is its specification. What is drawn, packed
or kept is the same to the bit in every form; sums may round differently.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Keys = np.ndarray[Any, np.dtype[np.uint64]]


def use_kernels(*tensors: Tensor) -> bool:
    """Whether kernels take tensors: on CUDA, where Triton is, in none of torch's transforms.

    The environment variable RAD_KERNELS=off leaves everything to torch's operators. What runs
    as a kernel in forward runs as one in backward: leave it as it is while a program runs.
    """
    if not all(x.is_cuda for x in tensors) or os.environ.get("RAD_KERNELS") == "off":
        return False
    return all(map(is_readable, tensors)) and _is_installed("triton")


def in_loops(x: Tensor) -> bool:
    """Whether compiled loops take a tensor: on the CPU, where numba is, in no torch transform."""
    return x.is_cpu and is_readable(x) and _is_installed("numba")


def host_keys(key: Tensor) -> Keys | None:
    """Keys (int64, any shape) as compiled loops take them: uint64, (n,); None where they cannot."""
    return key.numpy().view(np.uint64).reshape(-1) if in_loops(key) else None


def is_readable(x: Tensor) -> bool:
    """Whether a tensor has memory to read: not under torch.vmap or torch.compile, nor a fake."""
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        return False
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None
