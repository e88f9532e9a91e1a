"""What is chosen within a limit fits it to the byte, as measured."""

from typing import Any

import pytest

from rad.planning.greedy import Option
from rad.planning.limits import cheapest_within, measured
from rad.sketches import DitheredRounding

SMALL, LARGE = Option(DitheredRounding(1), 10, 1.0), Option(DitheredRounding(2), 14, 0.5)


class Surprising:
    """Takes 100 bytes beside the options', and with the large one more than it says."""

    full_batch = 3

    def __init__(self, surprise: int) -> None:
        self.surprise = surprise

    def total_bytes(self, sketches: dict[str, Any], batch: int) -> int:
        large = sketches["a"] == LARGE.sketch
        return 100 + (LARGE.nbytes + self.surprise if large else SMALL.nbytes)


def find(available: int) -> dict[str, Option] | None:
    fitting = [option for option in (SMALL, LARGE) if option.nbytes <= available]
    return {"a": fitting[-1]} if fitting else None


@pytest.mark.parametrize(
    ("surprise", "limit", "expected"),
    [(0, 114, LARGE), (0, 113, SMALL), (1, 114, SMALL), (4, 114, SMALL), (0, 109, None)],
)
def test_nothing_over_the_limit_is_chosen(
    surprise: int, limit: int, expected: Option | None
) -> None:
    trial: Any = Surprising(surprise)
    chosen = cheapest_within(trial, {"a": [SMALL, LARGE]}, limit, find)
    assert chosen == (None if expected is None else {"a": expected})
    assert chosen is None or measured(trial, chosen) <= limit
