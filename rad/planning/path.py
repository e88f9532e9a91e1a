"""The sketch of what lies on the gradient's path, chosen by the whole gradient's measured error.

Closed forms give the variance of a weight's gradient with exact gradients of outputs. A path in few
bits makes these random, too, and its noise reaches every weight before it: that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from rad.errors import UsageError
from rad.functional.dithered import check_quadratic
from rad.planning.limits import TooSmall
from rad.planning.probe import Trial
from rad.planning.spend import Spent
from rad.sketches import DitheredRounding, Sketch

Path = Sketch | Literal["auto"] | None

PATHS: tuple[DitheredRounding | None, ...] = (
    *(DitheredRounding(bits, block=256) for bits in (3, 4, 8)),
    None,
)
"""What is tried, from what keeps least to what keeps most."""


def on_best_path(
    trial: Trial, path: Path, spend: Callable[[], Spent | TooSmall]
) -> Spent | TooSmall:
    """What is spent with that path, which the trial then has; with "auto", with the best.

    The best has the least mean squared error of the gradient. Where nothing fits, the least that is
    needed. Raises UsageError for a path that would bias, or is none.
    """
    if path != "auto":
        if path is not None and not isinstance(path, Sketch):
            raise UsageError(f"path is {path!r}: give a rad.DitheredRounding, None or 'auto'")
        if path is not None:
            check_quadratic(path)
        trial.path = path
        return spend()
    found: list[tuple[float, DitheredRounding | None, Spent]] = []
    for each in PATHS:
        trial.path = each
        spent = spend()
        if isinstance(spent, TooSmall):
            if not found:
                return spent
            break
        found.append((trial.gradient_error(spent.sketch), each, spent))
    _, trial.path, best = min(reversed(found), key=lambda tried: tried[0])  # of equals the exactest
    return best
