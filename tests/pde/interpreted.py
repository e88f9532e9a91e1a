"""Compares the Triton kernels, under Triton's interpreter, with what the compiled loops gave.

`python interpreted.py FILE`: a program of its own, since the interpreter is chosen when Triton
is imported.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

from dataclasses import replace

import torch
from pde.kernel_case import ADJOINTS, PROBLEM, inputs

from rad.pde.cuda import engine as gpu


def main() -> None:
    losses, kept, gradients = torch.load(sys.argv[1])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        problem = replace(PROBLEM, dtype=dtype)
        coefficients, keys = inputs()
        arguments = (problem, coefficients, ADJOINTS, keys)
        without, nothing = gpu.forward(*arguments, False)
        ours, there = gpu.forward(*arguments, True)
        found = gpu.backward(*arguments, there)
        assert torch.equal(without, ours)
        assert not any(nothing)
        parts = [part.double() for parts in there for part in parts]
        scale = gradients.abs().max()
        torch.testing.assert_close(
            (ours, parts, found / scale), (losses, kept, gradients / scale), rtol=0, atol=tolerance
        )
    print("the kernels agree")


if __name__ == "__main__":
    main()
