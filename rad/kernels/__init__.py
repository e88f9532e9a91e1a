"""Triton kernels, each beside the torch operators that do the same, and the one switch to them.

The modules in here are imported where a kernel is to run: Triton may be absent. What is drawn,
packed or kept is the same to the bit as without kernels; sums may round differently.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def use_kernels(*tensors: Tensor) -> bool:
    """Whether kernels take tensors: on CUDA, where Triton is, in none of torch's transforms.

    The environment variable RAD_KERNELS=off leaves everything to torch's operators. What runs
    as a kernel in forward runs as one in backward: leave it as it is while a program runs.
    """
    if not all(x.is_cuda for x in tensors) or os.environ.get("RAD_KERNELS") == "off":
        return False
    return _triton_is_installed() and all(map(is_readable, tensors))


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
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
