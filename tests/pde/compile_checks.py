"""Compiles the kernels for an NVIDIA H100: needs no GPU, and finds what interpreting does not."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rad.pde.cuda.kernels import backward_kernel, forward_kernel

INTEGERS = ("keys", "counts", "offsets")
STATES = ("kept", "frames", "initial", "swing")
SIZES = {"STEPS": 9, "INNER": 6, "TILE": 8, "S": 3, "Q": 3}


def compiled(kernel: Any, states: str, **constants: Any) -> None:
    """Compile a kernel whose states are of that type."""
    constants |= SIZES
    signature = {
        name: "constexpr"
        if name in constants
        else "*i64"
        if name in INTEGERS
        else f"*{states}"
        if name in STATES
        else "*fp64"
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


if __name__ == "__main__":
    for states, exact in (("fp32", False), ("fp64", False), ("fp32", True)):
        slots = 1 if exact else 16
        compiled(forward_kernel, states, EXACT=exact, SLOTS=slots, KEEPS=True)
        compiled(backward_kernel, states, EXACT=exact, SLOTS=slots, MODES=16)
    print("the kernels compile")
