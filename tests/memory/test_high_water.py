"""The high-water mark of a process, against memory of a known size."""

import sys
from pathlib import Path

import pytest
import torch

from rad.memory import high_water
from rad.memory.high_water import high_water_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the count is Linux's")
SIZE = 1 << 26


def test_what_a_step_takes_counts() -> None:
    found = high_water_bytes(lambda: torch.ones(SIZE, dtype=torch.uint8))
    assert found == pytest.approx(SIZE, rel=0.02)


def test_what_is_held_already_does_not() -> None:
    held = torch.ones(SIZE, dtype=torch.uint8)
    found = high_water_bytes(lambda: held.add_(1))
    assert found is not None
    assert found < SIZE / 50


def test_none_where_the_system_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(high_water, "PROCESS", tmp_path)
    assert high_water_bytes(lambda: None) is None
