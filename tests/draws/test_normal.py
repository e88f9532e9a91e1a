"""Normal draws: their distribution, and that they are functions of (key, row, slot)."""

import math

import pytest
import torch

from rad.draws import normal
from rad.draws.normal import normals
from rad.sketches import fold_in, make_key

N = 200_000
LEVEL = 1e-7


def drawn() -> torch.Tensor:
    """Two slots of one word for each row."""
    return normals(make_key(3), range(N), 2, torch.float64)


def test_they_are_normally_distributed() -> None:
    """Kolmogorov's test of each slot and of both together, on which a row's halves may differ."""
    critical = math.sqrt(-math.log(LEVEL / 2) / 2)
    one, other = drawn().unbind(1)
    for x in (one, other, (one + other) / math.sqrt(2), (one - 2 * other) / math.sqrt(5)):
        expected = torch.special.ndtr(x.sort().values)
        found = torch.arange(1, N + 1) / N
        assert ((expected - found).abs().max() * math.sqrt(N)).item() < critical
        assert (expected * 0.98 + 0.01 - found).abs().max() * math.sqrt(N) > critical


def test_slots_and_rows_are_independent() -> None:
    x = drawn()
    pairs = [(x[:, 0], x[:, 1]), (x[1:, 0], x[:-1, 0]), (x[1:, 1], x[:-1, 0])]
    for one, other in pairs:
        for power in (1, 2):
            a, b = ((t**power - (t**power).mean()) / (t**power).std() for t in (one, other))
            assert (a * b).mean().abs() * math.sqrt(N) < 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("slots", [1, 5, 8])
def test_any_part_of_the_rows_draws_the_same(
    slots: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(1)
    whole = normals(key, range(3, 30), slots, dtype)
    assert whole.shape == (27, slots)
    assert whole.dtype == dtype
    assert torch.equal(normals(key, range(10, 17), slots, dtype), whole[7:14])
    assert torch.equal(normals(key.expand(27), range(3, 30), slots, dtype), whole)
    monkeypatch.setattr(normal, "PIECE", 40)
    assert torch.equal(normals(key, range(3, 30), slots, dtype), whole)
    assert normals(key, range(0), slots, dtype).shape == (0, slots)


def test_under_vmap_too() -> None:
    keys = fold_in(make_key(0), torch.arange(4))
    together = torch.vmap(lambda key: normals(key, range(6), 3, torch.float64))(keys)
    apart = torch.stack([normals(key, range(6), 3, torch.float64) for key in keys])
    torch.testing.assert_close(together, apart)
