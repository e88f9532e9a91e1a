"""What path sampling keeps at one vertex: samplers of outgoing edges.

A sampler says which outgoing edges of a vertex are kept and with which weights. It is unbiased
where every edge's expected weight is its derivative. A new one needs `outcomes`, from which
expectation and variance are computed exactly; `draw` and `covariance` follow from it, and are
worth writing where there is a faster way. For example, each edge kept by a coin of its own:

    from dataclasses import dataclass
    from itertools import product
    from math import prod

    from rad.graph import Sampler, uniforms

    @dataclass(frozen=True)
    class Coins(Sampler):
        chance: float

        def outcomes(self, derivatives):
            for kept in product((True, False), repeat=len(derivatives)):
                probability = prod(self.chance if k else 1 - self.chance for k in kept)
                weights = enumerate(d / self.chance for d in derivatives)
                yield probability, {slot: weight for slot, weight in weights if kept[slot]}

        def draw(self, derivatives, key):
            coins = uniforms(key, len(derivatives))
            slots = [slot for slot, coin in enumerate(coins) if coin < self.chance]
            return {slot: derivatives[slot] / self.chance for slot in slots}
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, combinations_with_replacement

import torch
from torch import Tensor

from rad.draws.reference import distinct_integers, integers, words
from rad.errors import UsageError

Weights = dict[int, float]
"""The edges kept of a vertex: place among its outgoing edges -> weight for the derivative."""

Outcomes = Iterator[tuple[float, Weights]]
"""Every set of weights that can come out, with its probability."""


class Sampler(ABC):
    """A random choice among the m outgoing edges of one vertex, with local derivatives d_e.

    Unbiased: the weight w_e, 0 for an edge that is not kept, has E[w_e] = d_e.
    """

    @abstractmethod
    def outcomes(self, derivatives: Sequence[float]) -> Outcomes:
        """Every outcome with its probability; the probabilities sum to 1."""

    def draw(self, derivatives: Sequence[float], key: Tensor) -> Weights:
        """One outcome; a function of the key. Here: the first whose cumulative chance exceeds u."""
        left = uniforms(key, 1)[0]
        chosen: Weights = {}
        for probability, weights in self.outcomes(derivatives):
            if left >= 0:
                chosen = weights
            left -= probability
        return chosen

    def covariance(self, derivatives: Sequence[float]) -> Tensor:
        """Cov(w_e, w_f), float64, (m, m). Here: summed over all outcomes."""
        mean = torch.tensor(derivatives, dtype=torch.float64)
        total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for probability, weights in self.outcomes(derivatives):
            noise = -mean
            for slot, weight in weights.items():
                noise[slot] += weight
            total += probability * noise.outer(noise)
        return total


@dataclass(frozen=True)
class _Keeping(Sampler):
    """A sampler that draws k edges. Raises UsageError where k is less than 1."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k must be at least 1, got {self.k}: keep at least one edge")


@dataclass(frozen=True)
class Uniform(_Keeping):
    """k of the m outgoing edges, each as likely as any other (paper, section 3.1).

    With replacement, edge e is drawn N_e times and w_e = (m/k) N_e d_e:
    E[N_e] = k/m; Cov(w_e, w_f) = d_e d_f (m [e = f] - 1)/k.
    Without, min(k, m) edges have w_e = (m/k) d_e: Cov(w_e, w_f) = d_e d_f (m - k)/k where e = f
    and -d_e d_f (m - k)/(k (m - 1)) elsewhere; exact where k >= m.
    """

    replacement: bool = True

    def _drawn(self, m: int) -> int:
        return self.k if self.replacement else min(self.k, m)

    def _weights(self, slots: Sequence[int], derivatives: Sequence[float]) -> Weights:
        scale = len(derivatives) / len(slots)
        return {slot: scale * n * derivatives[slot] for slot, n in Counter(slots).items()}

    def outcomes(self, derivatives: Sequence[float]) -> Outcomes:
        m = len(derivatives)
        drawn = self._drawn(m)
        choose = combinations_with_replacement if self.replacement else combinations
        for slots in choose(range(m), drawn):
            chance = (
                _arrangements(slots) / m**drawn if self.replacement else 1 / math.comb(m, drawn)
            )
            yield chance, self._weights(slots, derivatives)

    def draw(self, derivatives: Sequence[float], key: Tensor) -> Weights:
        m = len(derivatives)
        draw = integers if self.replacement else distinct_integers
        slots = draw(key, range(1), self._drawn(m), m)[0].tolist()
        return self._weights(slots, derivatives)

    def covariance(self, derivatives: Sequence[float]) -> Tensor:
        d = torch.tensor(derivatives, dtype=torch.float64)
        m, k = len(d), self._drawn(len(d))
        noise = m * torch.eye(m, dtype=torch.float64) - 1
        if not self.replacement:
            noise *= (m - k) / max(m - 1, 1)
        return noise / k * d.outer(d)


@dataclass(frozen=True)
class Proportional(_Keeping):
    """k draws with replacement, edge e with probability p_e = |d_e| / A, A = sum |d_e|.

    w_e = N_e d_e / (k p_e), of size A N_e / k. E[N_e] = k p_e, so unbiased; an edge with
    derivative 0 is never kept. Cov(w_e, w_f) = (A |d_e| [e = f] - d_e d_f)/k: the least
    variance of all probabilities where the derivatives beyond the edges are equal in size.
    """

    def _weights(self, slots: Sequence[int], derivatives: Sequence[float], total: float) -> Weights:
        counts = Counter(slots).items()
        return {slot: math.copysign(total * n / self.k, derivatives[slot]) for slot, n in counts}

    def outcomes(self, derivatives: Sequence[float]) -> Outcomes:
        total = math.fsum(map(abs, derivatives))
        possible = [slot for slot, d in enumerate(derivatives) if d != 0]
        if not possible:
            yield 1.0, {}
            return
        for slots in combinations_with_replacement(possible, self.k):
            chance = math.prod(abs(derivatives[slot]) / total for slot in slots)
            yield _arrangements(slots) * chance, self._weights(slots, derivatives, total)

    def draw(self, derivatives: Sequence[float], key: Tensor) -> Weights:
        reached = list(accumulate(map(abs, derivatives)))
        total = reached[-1]
        if total == 0:
            return {}
        slots = [bisect_right(reached, u * total) for u in uniforms(key, self.k)]
        return self._weights(slots, derivatives, total)

    def covariance(self, derivatives: Sequence[float]) -> Tensor:
        d = torch.tensor(derivatives, dtype=torch.float64)
        return (torch.diag(d.abs().sum() * d.abs()) - d.outer(d)) / self.k


def uniforms(key: Tensor, count: int) -> list[float]:
    """Independent draws from [0, 1): the upper 53 bits of each of the key's words."""
    drawn = (words(key, range(1), count)[0] >> 11).bitwise_and_((1 << 53) - 1)
    return (drawn.double() / (1 << 53)).tolist()


def _arrangements(slots: Sequence[int]) -> int:
    """In how many orders a multiset can be drawn."""
    repeats = math.prod(math.factorial(n) for n in Counter(slots).values())
    return math.factorial(len(slots)) // repeats
