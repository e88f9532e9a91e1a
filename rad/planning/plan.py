"""What a variant does with a memory budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rad.conversion.report import Report
from rad.sketches import Sketch


@dataclass(frozen=True)
class Memory:
    """Bytes of parameters, and of one forward and backward pass (`rad.memory`)."""

    parameter_bytes: int
    saved_bytes: int
    peak_bytes: int


Inner = Literal["inductor", "aot_eager"]


@dataclass(frozen=True)
class Division:
    """How torch.compile divides a model: into `fraction` of the bytes that it would save.

    With `sketches` by `rad.compile`, else by torch's activation_memory_budget, which calculates
    again; `inner` compiles the two passes.
    """

    fraction: float
    sketches: bool
    inner: Inner = "inductor"
    fewest_bits: int = 3

    def __str__(self) -> str:
        what = "rad.compile" if self.sketches else "activation_memory_budget"
        return f"{what} {self.fraction:.4g}"


@dataclass(frozen=True)
class Plan:
    """What a variant does with a budget, and the memory it then takes, measured.

    `rad.convert(model, plan)`, trained with batches of `batch_size`, carries it out.
    `micro_batch` is how many of them are worked through at a time where their gradients add up
    (`variant="accumulation"`), None where it is all of them; bytes are then those of a part.
    `keep_fraction` is that of all layers, None where there is none or layers differ; `bits`
    those of a rounding sketch; `path` is the sketch of what lies on the gradient's path
    (`rad.convert`), and `recomputed` names modules that keep their inputs alone and run again in
    the backward pass. `layers` gives each layer's keep fraction or sketch where they differ,
    `reason` why they were chosen.
    Prints as one line and what `rad.report` prints.
    """

    variant: str
    budget: str
    kind: str
    allocation: str
    sketch: Sketch | Mapping[str, Sketch]
    keep_fraction: float | None
    bits: int | None
    batch_size: int
    memory: Memory
    report: Report
    layers: Mapping[str, float | str] | None = None
    reason: str | None = None
    path: Sketch | None = None
    recomputed: tuple[str, ...] = ()
    micro_batch: int | None = None
    division: Division | None = None

    def describe(self) -> str:
        """One line: what the variant does with the budget."""
        memory = self.memory
        path = "" if self.path is None else f", path {self.path}"
        again = f", {len(self.recomputed)} modules recomputed" if self.recomputed else ""
        parts = "" if self.micro_batch is None else f" in parts of {self.micro_batch}"
        return (
            f"{self.variant}, batch {self.batch_size}{parts}, keep {self._kept()}{path}{again}, "
            f"{memory.parameter_bytes:,} parameter + {memory.saved_bytes:,} saved bytes"
        )

    def _kept(self) -> str:
        if self.division is not None:
            return f"as compiled with {self.division}"
        if self.layers is not None:
            kept = (
                (name, f"{v:.3g}" if isinstance(v, float) else v) for name, v in self.layers.items()
            )
            return " ".join(f"{name}:{value}" for name, value in kept)
        parts = [] if self.keep_fraction is None else [f"{self.keep_fraction:.4g}"]
        parts += [] if self.bits is None else [f"{self.bits} bits"]
        return " in ".join(parts) or "everything"

    def __str__(self) -> str:
        peak = f"{self.memory.peak_bytes:,} peak bytes, budget {self.budget} ({self.kind})"
        why = "" if self.reason is None else f"\n{self.reason}"
        return f"{self.describe()}, {peak}{why}\n{self.report}"
