"""Seconds of a step by a roofline: what an accelerator's peaks allow at best, for each operator.

An operator takes the longer of its arithmetic at the peak of matrix products and of its reading and
writing at the memory's bandwidth (Williams et al., 2009), plus a device's own overhead. Nothing
overlaps and nothing is fused. Real programs take longer: an estimate, for ratios above all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from rad.draws.reference import make_key
from rad.sketches import StochasticRounding

_FREE = frozenset(("_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "detach"))
"""Operators that neither read nor write numbers, beside views."""

_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": 0,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 1,
}
"""Attention whose flops torch does not count: where the queries stand among its arguments."""


@dataclass(frozen=True)
class Accelerator:
    """What limits a device: bytes of memory, bytes a second, floating-point operations a second.

    `sketching`: bytes a second of numbers that are sketched and read again, where that was
    measured; None for the bandwidth's. `overhead`: seconds of every operator. `source`: of numbers.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float
    source: str
    sketching: float | None = None
    overhead: float = 0.0

    def seconds(self, flops: float, nbytes: float) -> float:
        """Of one operator."""
        return self.overhead + max(flops / self.flops, nbytes / self.bandwidth)

    def sketch_seconds(self, dense: float, kept: float) -> float:
        """Of reading so many bytes and writing `kept` of them, and of the way back."""
        if self.sketching is not None:
            return dense / self.sketching
        return 2 * (dense + kept) / self.bandwidth


@dataclass
class Work(TorchDispatchMode):
    """Flops and bytes of the operators that run while it is entered, views aside."""

    operators: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not views and name not in _FREE:
            leaves = tree_leaves((args, kwargs, output))
            sizes = {id(t): t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor)}
            self.operators.append((_flops(func, name, args, kwargs, output), sum(sizes.values())))
        return output

    def seconds(self, device: Accelerator) -> float:
        """Of all operators, one after another."""
        return sum(device.seconds(flops, nbytes) for flops, nbytes in self.operators)

    @property
    def largest(self) -> int:
        """Bytes that the largest operator reads and writes."""
        return int(max((nbytes for _, nbytes in self.operators), default=0))


def _flops(func: Any, name: str, args: Any, kwargs: Any, output: Any) -> float:
    if (count := flop_registry.get(func.overloadpacket)) is not None:
        return float(count(*args, **kwargs, out_val=output))
    if (first := _ATTENTION.get(name)) is None:
        return 0.0
    shapes = [tuple(x.shape) for x in args[first : first + 3]]
    if first:
        return float(sdpa_backward_flop_count(tuple(args[0].shape), *shapes))
    return float(sdpa_flop_count(*shapes))


def work_of(run: Callable[[], Any]) -> Work:
    """What `run()` does."""
    with Work() as seen:
        run()
    return seen


def this_processor(rounds: int = 20) -> Accelerator:
    """This machine's processor, its numbers fitted: each the best of so many tries, in float32.

    Products of 512 x 512 matrices, sums of a million numbers, 2-bit stochastic rounding of a
    million, and an operator of eight numbers with a gradient.
    """
    a, x, y = torch.randn(512, 512), torch.randn(1 << 20), torch.randn(1 << 20)
    tiny = torch.randn(8, requires_grad=True)
    sketch, key = StochasticRounding(2, 256), make_key(0)

    def rounded() -> None:
        kept = sketch.compress(x[None], key)
        sketch.decompress(kept, (1, len(x)), x.dtype, key)

    programs: Sequence[Callable[[], Any]] = (
        lambda: a @ a,
        lambda: x + y,
        rounded,
        lambda: tiny + 1,
    )
    product, total, rounding, one = (
        min(_timed(program) for _ in range(rounds)) for program in programs
    )
    return Accelerator(
        name="this processor",
        memory=0,
        bandwidth=3 * 4 * len(x) / total,
        flops=2 * 512**3 / product,
        source="fitted here: products of 512 x 512, sums and 2-bit rounding of a million numbers",
        sketching=4 * len(x) / rounding,
        overhead=one,
    )


def _timed(program: Callable[[], Any]) -> float:
    program()
    start = time.perf_counter()
    program()
    return time.perf_counter() - start
