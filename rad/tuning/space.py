"""What is searched, and how the values of a trial are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from rad.draws.reference import words
from rad.errors import UsageError
from rad.sketches import fold_in, make_key

SAMPLERS = ("random", "tpe")
PARAMETERS = ("learning_rate", "weight_decay")

# Sub-key of the search, far from those of layers.
SEARCH = 1 << 34

Range = tuple[float, float]


@dataclass(frozen=True)
class Space:
    """Ranges (low, high) of the learning rate and of the weight decay, both log-uniform.

    Raises:
        UsageError: a range that is not 0 < low < high.
    """

    learning_rate: Range
    weight_decay: Range

    def __post_init__(self) -> None:
        for name in PARAMETERS:
            values = getattr(self, name)
            numbers = len(values) == 2 and all(_is_number(value) for value in values)
            if not numbers or not 0 < values[0] < values[1]:
                raise UsageError(
                    f"the range of {name} is {list(values)}; give [low, high] with 0 < low < high"
                )

    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna takes them."""
        ranges = {name: getattr(self, name) for name in PARAMETERS}
        return {n: FloatDistribution(low, high, log=True) for n, (low, high) in ranges.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class KeyedSampler(BaseSampler):
    """Random search, or the tree-structured Parzen estimator (Bergstra et al., 2011).

    A random trial's values depend on the seed and the trial's number only, whoever asks, and after
    whatever interruption. TPE learns from the trials that are there when it is asked; its draws
    depend on seed and number too, so that one worker alone repeats itself exactly.

    Raises:
        UsageError: another kind of sampler.
    """

    def __init__(self, kind: str, seed: int) -> None:
        if kind not in SAMPLERS:
            raise UsageError(f"unknown sampler {kind!r}; choose one of {', '.join(SAMPLERS)}")
        self.kind, self.seed = kind, seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is sampled jointly."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is sampled jointly."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """One value of one trial."""
        key = fold_in(fold_in(make_key(self.seed), SEARCH), trial.number)
        place = PARAMETERS.index(param_name)
        word = words(key, range(1), len(PARAMETERS))[0, place].item()
        if self.kind == "tpe":
            tpe = TPESampler(seed=int(word) % 2**32, constant_liar=True)
            return tpe.sample_independent(study, trial, param_name, param_distribution)
        assert isinstance(param_distribution, FloatDistribution)
        low, high = param_distribution.low, param_distribution.high
        return low * (high / low) ** (int(word) % 2**53 / 2**53)
