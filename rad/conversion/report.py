"""What a conversion replaced, what it left, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from rad.conversion.readers import RESHAPES, functional_calls, unwrapped
from rad.nn import LAYERS, NORMS, RAD_LAYERS, Sequential
from rad.nn.functions import kept_by
from rad.nn.kinds import kind_of
from rad.nn.registry import MODULE_OF_FUNCTION
from rad.nn.serving import calls_of, is_served

_SHAPES_AND_SUMS = """
add iadd sub isub neg getitem getattr size dim numel shape view reshape flatten unflatten
permute transpose t contiguous to float half bfloat16 double type squeeze unsqueeze expand
expand_as cat stack chunk split unbind mean sum detach clone eq ne lt gt le ge floordiv movedim
swapaxes repeat flip roll narrow select pad zeros ones arange zeros_like ones_like new_zeros
new_ones view_as reshape_as type_as interpolate
"""
KEEP_NOTHING = frozenset(_SHAPES_AND_SUMS.split())
"""Functions that keep no activation for backward."""

TOGETHER = "linear layers and ReLUs run together where nobody looks between them: in "

UNTRACED = "functional calls could not be looked for: this forward pass cannot be traced"


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
    note: str = ""

    def __str__(self) -> str:
        rows = [("replaced", r) for r in self.replaced] + [("left", r) for r in self.left]
        cells = [(r.name or "(model)", r.kind, state, r.keeps) for state, r in rows]
        cells.insert(0, ("module", "type", "", "keeps for backward"))
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3]])
            for row in cells
        ]
        return "\n".join([*lines, *filter(None, [self.note])])


def report(model: nn.Module) -> Report:
    """What was replaced in a converted model, what was not, and why.

    A module with several names has a row for each. Functions that forward passes call by
    themselves (`F.relu`, `x.relu()`, `torch.matmul`) stand among what was left, by the module
    that calls them, as far as the model can be traced. `note` says where it cannot, and which
    sequences run their linear layers and ReLUs together.
    """
    replaced, left, sequences = [], [], []
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = kind_of(module)
        again = f" (the same module as {first[module]!r})" if module in first else ""
        first.setdefault(module, name)
        if kind is Sequential:
            sequences.append(name or "(model)")
        if kind in RAD_LAYERS:
            keeps = f"{module.keeps}{again}"
            replaced.append(Replacement(name, kind.__name__, keeps))
        elif isinstance(module, RESHAPES):
            left.append(Replacement(name, kind.__name__, f"nothing: it only reshapes{again}"))
        elif isinstance(module, parametrize.ParametrizationList):
            continue  # belongs to its layer
        elif not any(module.children()) or list(module.parameters(recurse=False)):
            left.append(Replacement(name, kind.__name__, f"{_why_left(module)}{again}"))
    calls = functional_calls(model)
    notes = [TOGETHER + ", ".join(sequences)] if sequences else []
    notes += [UNTRACED] if calls is None else []
    for (name, function), count in (calls or {}).items():
        if function in KEEP_NOTHING:
            continue
        times = f" ({count} calls)" if count > 1 else ""
        module = unwrapped(model).get_submodule(name)
        kept = kept_by(function, calls_of(module)) if is_served(module) else None
        rows = left if kept is None else replaced
        why = _why_functional(function) if kept is None else kept
        rows.append(Replacement(name, f"{function}(){times}", why))
    return Report(tuple(replaced), tuple(left), "\n".join(notes))


def _why_left(module: nn.Module) -> str:
    kind = kind_of(module)
    if kind in LAYERS | NORMS and "forward" in vars(module):
        return "what torch keeps: a forward pass of its own may compute something else"
    if kind in LAYERS:
        return "what torch keeps: convert the model"
    if kind in NORMS:
        return "what torch keeps: a norm, rounded where rad.convert is given path="
    if issubclass(kind, (*LAYERS, *NORMS)):
        return "what torch keeps: a subclass of a torch layer may compute something else"
    return "what torch keeps: no RAD layer for this type"


def _why_functional(function: str) -> str:
    layer = MODULE_OF_FUNCTION.get(function.rstrip("_"))
    if layer is None:
        return "what torch keeps: a functional call, for which there is no RAD layer"
    return f"what torch keeps: a functional call; make it a torch.nn.{layer} module"
