"""Ways to meet a budget that are measured against each other: by their noise and by their time.

Sketches cost noise, recomputation costs time, and which is dearer depends on the model and on the
machine. So what sketches alone would do, what recomputation alone would do, and where it is not
enough both together, are tried: each one's mean squared error of the whole gradient, and its time
in turns with the model as it was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from rad.errors import UsageError
from rad.planning.limits import TooSmall
from rad.planning.path import Path, on_best_path
from rad.planning.probe import Trial
from rad.planning.recomputation import all_units, fewest_within, is_faithful
from rad.planning.spend import Spent, sampled
from rad.planning.timing import alternate, ratio_of_medians
from rad.sketches import Identity, Sketch

SECONDS = 2.0
"""What timing all ways takes, about."""

ROUNDS = (3, 15)
"""The fewest and the most rounds of timing."""

QUICK = ("same_sample", "different_sample")
"""What is tried beside `auto` where there is a limit of time: their products are the smallest."""

_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*x?\s*")


@dataclass
class Way:
    """What a budget is spent on: sketches, a path and recomputed modules.

    `error` is E |g_hat - g|^2 / |g|^2 of the whole gradient, and `ratio` the time of a forward and
    backward pass over that of the model as it was given; both as measured.
    """

    trial: Trial
    path: Sketch | None
    spent: Spent
    error: float = 0.0
    ratio: float = 0.0

    @property
    def cost(self) -> float:
        """The time to a loss: where noise decides, as many more steps as there is more of it."""
        return self.ratio * (1 + self.error)

    def __str__(self) -> str:
        count = len(self.trial.recomputed)
        parts = [f"{count} modules recomputed"] if count else []
        parts += [] if isinstance(self.spent.sketch, Identity) else ["sketches"]
        what = " and ".join(parts) or "everything kept"
        return f"{what}: {self.ratio:.3g} times plain torch's time, gradient error {self.error:.2g}"


def read_time(limit: str | float | None) -> float | None:
    """How many times plain torch's time: 1.3 of "1.3x" and of 1.3. Raises UsageError for others."""
    if limit is None:
        return None
    match = _TIME.fullmatch(str(limit))
    if isinstance(limit, bool) or match is None or not float(match[1]):
        raise UsageError(
            f"time={limit!r} is no limit: give how many times plain torch's time a step may take, "
            "such as time='1.3x'"
        )
    return float(match[1])


def best_way(
    trial: Trial,
    path: Path,
    limit: int,
    most: float | None,
    spend: Callable[[Trial], Spent | TooSmall],
) -> Way | TooSmall:
    """The way of least cost that fits `limit` bytes; within a time, `most`, that of least error.

    `spend` is what sketches alone do with the bytes. What is needed at least comes back where
    nothing fits.
    Raises UsageError where nothing that fits takes so little time.
    """
    found: list[Way] = []
    alone = on_best_path(trial, path, lambda: spend(trial))
    least = _add(found, trial, alone)
    if most is not None:
        for variant in QUICK:
            quick = trial.recomputing(())
            quick.path = trial.path
            _add(found, quick, sampled(quick, limit, variant))
    names = fewest_within(trial, limit)
    together = all_units(trial) if names is None or most is not None else ()
    if names:
        exact = trial.recomputing(names)
        if exact.exact_bytes() <= limit and is_faithful(exact):
            _add(found, exact, Spent(Identity(), exact.full_batch))
    if together and together != names:
        both = trial.recomputing(together)
        if is_faithful(both):
            of_both = path if isinstance(alone, TooSmall) else trial.path
            needs = _add(found, both, on_best_path(both, of_both, lambda: spend(both)))
            least = min((each for each in (least, needs) if each), key=_needed, default=None)
    if not found:
        assert least is not None
        return least
    _measure(found)
    within = [way for way in found if most is None or way.ratio <= most]
    if not within:
        fastest = min(found, key=lambda way: way.ratio)
        raise UsageError(
            f"nothing found in this budget takes at most {most:g} times plain torch's time, but "
            f"{fastest.ratio:.3g} at least: give time='{fastest.ratio * 1.05:.2f}x' or more bytes"
        )
    key = _cost if most is None else _error_and_ratio
    best, *others = sorted(within, key=key)
    beside = f" (beside it: {'; '.join(map(str, others))})" if others else ""
    reasons = [f"{best}{beside}", best.spent.reason]
    best.spent = replace(best.spent, reason="\n".join(filter(None, reasons)))
    return best


def _cost(way: Way) -> float:
    return way.cost


def _error_and_ratio(way: Way) -> tuple[float, float]:
    return way.error, way.ratio


def _needed(least: TooSmall) -> int:
    return least.needed


def _add(found: list[Way], trial: Trial, spent: Spent | TooSmall) -> TooSmall | None:
    if isinstance(spent, TooSmall):
        return spent
    found.append(Way(trial, trial.path, spent))
    return None


def _measure(ways: list[Way]) -> None:
    steps = {"torch": ways[0].trial.plain_step()}
    for number, way in enumerate(ways):
        way.trial.path = way.path
        way.error = way.trial.gradient_error(way.spent.sketch)
        steps[str(number)] = way.trial.step(way.spent.sketch)
    once = alternate(steps, 1, warmup=1).values()
    fewest, most = ROUNDS
    rounds = max(fewest, min(most, int(SECONDS / sum(seconds for (seconds,) in once))))
    seconds = alternate(steps, rounds, warmup=0)
    for number, way in enumerate(ways):
        way.ratio = ratio_of_medians(seconds[str(number)], seconds["torch"])
