from functools import cache

import pytest

from rad.errors import UsageError
from rad.pde import Checkpointing
from rad.pde.cpu.checkpointing import places, split


@cache
def fewest(length: int, snapshots: int) -> int:
    """The fewest units done again to reverse `length`, by trying all places."""
    if length == 1:
        return 0
    if snapshots == 0:
        return length * (length - 1) // 2
    return min(
        middle + fewest(length - middle, snapshots - 1) + fewest(middle, snapshots)
        for middle in range(1, length)
    )


def done(length: int, snapshots: int) -> int:
    """The units done again by the schedule."""
    if length == 1:
        return 0
    middle = split(length, snapshots)
    after = done(length - middle, max(0, snapshots - 1))
    return middle + after + done(middle, snapshots)


def test_the_schedule_is_the_best_there_is() -> None:
    for snapshots in range(7):
        for length in range(1, 60):
            assert done(length, snapshots) == fewest(length, snapshots), (length, snapshots)


def test_snapshots_of_the_first_sweep() -> None:
    assert places(10, 0) == []
    assert places(4, 9) == [1, 2, 3]
    taken = places(661, 42)
    assert len(taken) == 42
    assert taken == sorted(set(taken))


def test_a_number_of_snapshots_that_is_none() -> None:
    for snapshots in (-1, 1.5, True):
        with pytest.raises(UsageError, match="whole number"):
            Checkpointing(snapshots)  # type: ignore[arg-type]
