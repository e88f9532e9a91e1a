"""What checks of kernels share. They run in a process of their own, on a GPU where there is one.

On the CPU, Triton interprets kernels only if that is set before it is first imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from rad import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

_convert = interpreter._implicit_cvt


def _scalars_without_axes(argument: Any) -> Any:
    """Triton's interpreter makes an integer an array (1,), which numpy 2.4 takes for no index."""
    converted = _convert(argument)
    if isinstance(argument, int):
        converted.handle.data = converted.handle.data.reshape(())
    return converted


@pytest.fixture(autouse=True)
def integers_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_implicit_cvt", _scalars_without_axes)


@contextmanager
def kernels_on(on: bool) -> Iterator[None]:
    """Operators take the kernels, or torch's operators, whatever the device."""

    def use_kernels(*tensors: Tensor) -> bool:
        return on and all(map(backends.is_readable, tensors))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "use_kernels", use_kernels)
        yield
