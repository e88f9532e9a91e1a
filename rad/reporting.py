"""What a conversion replaced, what it left, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rad.nn import LAYERS, RAD_LAYERS
from rad.readers import RESHAPES


@dataclass(frozen=True)
class Replacement:
    """One module of a converted model: its name, its type, and what it keeps."""

    name: str
    kind: str
    keeps: str


@dataclass(frozen=True)
class Report:
    """What `convert` replaced and what it left, module by module; prints as a table."""

    replaced: tuple[Replacement, ...]
    left: tuple[Replacement, ...]

    def __str__(self) -> str:
        rows = [("replaced", r) for r in self.replaced] + [("left", r) for r in self.left]
        cells = [(r.name or "(model)", r.kind, state, r.keeps) for state, r in rows]
        cells.insert(0, ("module", "type", "", "keeps for backward"))
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3]])
            for row in cells
        )


def report(model: nn.Module) -> Report:
    """What was replaced in a converted model, what was not, and why."""
    replaced, left = [], []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if type(module) in RAD_LAYERS:
            replaced.append(Replacement(name, kind, str(module.keeps)))
        elif isinstance(module, RESHAPES):
            left.append(Replacement(name, kind, "nothing: it only reshapes"))
        elif not any(module.children()) or list(module.parameters(recurse=False)):
            left.append(Replacement(name, kind, _why_left(module)))
    return Report(tuple(replaced), tuple(left))


def _why_left(module: nn.Module) -> str:
    if isinstance(module, tuple(LAYERS)):
        return "what torch keeps: a subclass of a torch layer may compute something else"
    return "what torch keeps: no RAD layer for this type"
