"""What a conversion replaced, what it left, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from rad.conversion.readers import RESHAPES, functional_calls, unwrapped
from rad.conversion.reasons import RECOMPUTED, reason_of, reason_of_call
from rad.conversion.summary import Row, lines, next_step
from rad.nn import RAD_LAYERS, Sequential
from rad.nn.functions import kept_by
from rad.nn.kinds import kind_of
from rad.nn.recomputing import is_recomputed, within_recomputed
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

AGAIN = " (the same module as "

UNTRACED = "functional calls could not be looked for: this forward pass cannot be traced"


@dataclass(frozen=True)
class Replacement:
    """One module of a converted model: its name, its type, and what it keeps.

    `remedy`: what would keep less, where it keeps what torch keeps.
    """

    name: str
    kind: str
    keeps: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """What `convert` replaced and what it left, module by module.

    Prints as a line for each kind, or where it is `full` for each module, and what to do next.
    """

    replaced: tuple[Replacement, ...]
    left: tuple[Replacement, ...]
    note: str = ""
    full: bool = False

    def __str__(self) -> str:
        rows = [_row(entry, self.full) for entry in (*self.replaced, *self.left)]
        notes = [self.note] if self.note else []
        last = [next_step(rows)] if rows else []
        others = sum(text.count("\n") + 1 for text in notes) + len(last)
        return "\n".join([*lines(rows, self.full, others), *notes, *last])


def _row(entry: Replacement, full: bool) -> Row:
    """As it is printed: in groups, without the number of calls and the module's other names."""
    kind, keeps = entry.kind, entry.keeps
    if not full:
        kind = kind.partition(" (")[0]
        keeps, again, _ = keeps.partition(AGAIN)
        keeps += " (further names of modules)" if again else ""
    return Row(entry.name, kind, keeps, entry.remedy)


def report(model: nn.Module, *, full: bool = False) -> Report:
    """What was replaced in a converted model, what was not, and why.

    A recomputed module has a row among what was replaced, and what is inside it none.
    A module with several names has a row for each. Functions that forward passes call by
    themselves (`F.relu`, `x.relu()`, `torch.matmul`) stand among what was replaced where they are
    served, and else among what was left, by the module that calls them, as far as the model can be
    traced. `note` says where it cannot, and which sequences run their linear layers and ReLUs
    together. `full` decides how it prints: a line for each module in place of one for each kind.
    """
    replaced, left, sequences = [], [], []
    within = within_recomputed(model)
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = kind_of(module)
        again = f"{AGAIN}{first[module]!r})" if module in first else ""
        first.setdefault(module, name)
        if module in within:
            if is_recomputed(module):
                replaced.append(Replacement(name, kind.__name__, f"{RECOMPUTED}{again}"))
            continue
        if kind is Sequential:
            sequences.append(name or "(model)")
        reason = reason_of(module)
        remedy = "" if reason is None else reason.remedy
        if kind in RAD_LAYERS:
            keeps = module.keeps if reason is None else reason.keeps
            replaced.append(Replacement(name, kind.__name__, f"{keeps}{again}", remedy))
        elif isinstance(module, RESHAPES):
            left.append(Replacement(name, kind.__name__, f"nothing: it only reshapes{again}"))
        elif isinstance(module, parametrize.ParametrizationList):
            continue  # belongs to its layer
        elif not any(module.children()) or list(module.parameters(recurse=False)):
            assert reason is not None
            left.append(Replacement(name, kind.__name__, f"{reason.keeps}{again}", remedy))
    calls = functional_calls(model)
    notes = [TOGETHER + ", ".join(sequences)] if sequences else []
    notes += [UNTRACED] if calls is None else []
    for (name, function), count in (calls or {}).items():
        if function in KEEP_NOTHING:
            continue
        call = f"{function}()" + (f" ({count} calls)" if count > 1 else "")
        module = unwrapped(model).get_submodule(name)
        kept = kept_by(function, calls_of(module)) if is_served(module) else None
        if kept is None:
            reason = reason_of_call(function)
            left.append(Replacement(name, call, reason.keeps, reason.remedy))
        else:
            replaced.append(Replacement(name, call, kept))
    return Report(tuple(replaced), tuple(left), "\n".join(notes), full)
