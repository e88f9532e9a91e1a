"""The control: a Fourier series in x and t."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.errors import UsageError

PAPER_TERMS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2))


@dataclass(frozen=True)
class Fourier:
    """C(x, t) = sum_i theta_i X_m(x) T_n(t), (m, n) = terms[i].

    Mode 0 is 1, mode 2h - 1 is the sine and mode 2h the cosine of h times the base angle:
    2 pi x in space, pi t in time. The default is the paper's series of 7 terms (section 5).
    Raises UsageError for terms that are no distinct pairs of modes.
    """

    terms: tuple[tuple[int, int], ...] = PAPER_TERMS

    def __post_init__(self) -> None:
        pairs = [_pair(term) for term in self.terms]
        if not pairs or len(set(pairs)) < len(pairs):
            raise UsageError(
                f"the series has terms {self.terms!r}; give at least one, and each only once"
            )
        object.__setattr__(self, "terms", tuple(pairs))

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def shape(self) -> tuple[int, int]:
        """How many modes there are in space and in time, (S, Q)."""
        return max(m for m, _ in self.terms) + 1, max(n for _, n in self.terms) + 1

    def matrix(self, theta: Tensor) -> Tensor:
        """The coefficients of all products of modes: theta (..., P) -> (..., S, Q), float64."""
        space, time = self.shape
        place = torch.tensor([m * time + n for m, n in self.terms], device=theta.device)
        flat = theta.new_zeros(*theta.shape[:-1], space * time, dtype=torch.float64)
        return flat.index_add(-1, place, theta.double()).unflatten(-1, (space, time))

    def evaluate(self, theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """C at the points x (W,) and times t (...): (..., W), for one theta (P,)."""
        space = modes(2 * torch.pi * x.double(), self.shape[0])
        time = modes(torch.pi * t.double(), self.shape[1])
        return torch.einsum("wm,mn,...n->...w", space, self.matrix(theta), time)


def modes(angle: Tensor, count: int) -> Tensor:
    """The first `count` modes of an angle (...): (..., count)."""
    number = torch.arange(count, device=angle.device)
    harmonics = angle[..., None] * ((number + 1) // 2)
    return torch.where(number % 2 == 1, harmonics.sin(), harmonics.cos())


def _pair(term: object) -> tuple[int, int]:
    pair = tuple(term) if isinstance(term, Iterable) else ()
    if len(pair) != 2 or not all(type(mode) is int and mode >= 0 for mode in pair):
        raise UsageError(f"{term!r} is no term of the series; give two modes, such as [1, 2]")
    return pair[0], pair[1]
