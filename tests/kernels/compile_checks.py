"""Compiles both kernels for an NVIDIA H100: needs no GPU, and finds what interpreting does not."""

import itertools
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rad.kernels.recurrent import OPTIONS, ROWS, _backward, _forward

POINTERS = {"key": "*i64", "bits": "*u8"}
NUMBERS = {"steps": "i32", "batch": "i32", "x_step": "i32", "x_row": "i32"}
NUMBERS |= {"encode": "fp32", "decode": "fp32"}


def compiled(kernel: Any, number: str, absent: set[str], **constants: Any) -> None:
    """Compile a kernel for floating-point pointers of that type, some of them None."""
    constants |= dict.fromkeys(absent)
    signature = {
        name: "constexpr"
        if name in constants
        else NUMBERS.get(name)
        or POINTERS.get(name)
        or ("*fp32" if kernel is _backward and name.startswith("grad_w") else f"*{number}")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=OPTIONS)
    assert binary.asm["cubin"]


def main(hidden: int) -> None:
    sizes = {"hidden": hidden, "units": max(16, triton.next_power_of_2(hidden)), "rows": ROWS}
    drawn = {"kept": 3, "signs": False, "different": True}
    for number, signs in itertools.product(("fp32", "bf16"), (False, True)):
        options = {**sizes, **drawn, "signs": signs, "different": not signs}
        compiled(_forward, number, {"sequence"}, **options)
        compiled(_backward, number, {"h0", "sequence"}, **options)
    options = {**sizes, **drawn, "kept": 0}
    compiled(_forward, "fp32", {"sketch", "bits"}, **options)
    compiled(_backward, "fp32", {"sketch", "bits", "grad_output", "grad_x", "weight_ih"}, **options)


if __name__ == "__main__":
    main(int(sys.argv[1]))
