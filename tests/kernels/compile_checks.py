"""Compiles all kernels for an NVIDIA H100: needs no GPU, and finds what interpreting does not."""

import itertools
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rad.draws import kernels as draws
from rad.kernels import relu, rounding, sampling, weight_grad
from rad.kernels.recurrent import OPTIONS, ROWS, _backward, _forward

POINTERS = {"key": "*i64", "bits": "*u8"}
NUMBERS = {"steps": "i32", "batch": "i32", "x_step": "i32", "x_row": "i32"}
NUMBERS |= {"encode": "fp32", "decode": "fp32"}
TILES = ("ROWS", "SLOTS", "COLUMNS", "OUTPUTS")


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
    build(kernel, signature, constants, OPTIONS)


def build(kernel: Any, signature: dict[str, str], constants: dict[str, Any], options: Any) -> None:
    source = ASTSource(kernel, signature, constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert binary.asm["cubin"]


def elementwise(kernel: Any, number: str, types: dict[str, str], **constants: Any) -> None:
    """Compile a kernel whose arguments are of those types, pointers to `number`, or integers."""
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    typed = {name: kind.replace("number", number) for name, kind in signature.items()}
    build(kernel, typed, constants, {})


def pointwise() -> None:
    tile = {"tile_rows": 8, "tile_slots": 128}
    for kind, number in enumerate(("i64", "i64", "bf16")):
        types = {"key": "*i64", "out": "*number", "first": "i64"}
        elementwise(draws._draw, number, types, kind=kind, **tile)
    for number, different in itertools.product(("fp64", "fp32", "bf16"), (False, True)):
        names = ("x", "output", "grad_output", "grad_input", "kept", "out")
        types = {**dict.fromkeys(names, "*number"), "bits": "*u8", "key": "*i64"}
        elementwise(sampling._sample, number, types, different=different, **tile)
        wide = triton.language.float64 if number == "fp64" else triton.language.float32
        pairs = {"tile_rows": 4, "tile_slots": 32, "wide": wide}
        elementwise(sampling._spread, number, types, different=different, **pairs)
        if different:
            elementwise(relu._forward, number, types, octets=relu.OCTETS)
            elementwise(relu._backward, number, types, octets=relu.OCTETS)
            pooling = {"wide": wide, "tile": relu.OCTETS}
            elementwise(relu._pool, number, types, **pooling)
            elementwise(relu._pool_backward, number, types, **pooling)


def products() -> None:
    tile = {f"tile_{name.lower()}": getattr(weight_grad, name) for name in TILES}
    types = {**dict.fromkeys(("grad", "kept", "out"), "*number"), "key": "*i64"}
    for number, precision in (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "ieee")):
        elementwise(weight_grad._sampled, number, types, precision=precision, **tile)


def roundings() -> None:
    planes = {1: ("u8", "u8"), 2: ("i16", "i16"), 3: ("i16", "u8"), 4: ("i32", "i32")}
    planes[8] = ("i64", "i64")
    places = dict.fromkeys(("count", "start", "stop"), "i64")
    wide, names = triton.language.float32, ("x", "out", "scales", "grad")
    for number, bits in (("fp32", 1), ("bf16", 2), ("fp32", 3), ("fp64", 4), ("fp32", 8)):
        low, high = planes[bits]
        types = {**dict.fromkeys(names, "*number"), **places, "key": "*i64"}
        types |= {"low_plane": f"*{low}", "high_plane": f"*{high}"}
        made = {"zero_code": bits == 8, "wide": wide}
        if number == "fp64":
            made["wide"] = triton.language.float64
        fitted = {"skip_zeros": bits == 8, "wide": made["wide"], "tile": rounding.TILE}
        elementwise(rounding._fit, number, types, **fitted)
        encoded = made | {"near": (float("inf"), 4096.0, 0.0)[bits % 3], "octets": rounding.OCTETS}
        elementwise(rounding._encode, number, types, **encoded, bits=bits)
        made |= {"bits": bits, "dithered": bits in (3, 4)}
        elementwise(rounding._decode, number, types, **made, tile=rounding.TILE)
        if number != "fp64":
            tile = {f"tile_{n.lower()}": getattr(weight_grad, n) for n in TILES if n != "SLOTS"}
            made.pop("wide")
            elementwise(weight_grad._rounded, number, types, **made, **tile, precision="ieee")


def main(hidden: int) -> None:
    products()
    roundings()
    pointwise()
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
