import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rad.draws.reference import distinct_integers, fold_in, integers, make_key, signs, words

WORD = (1 << 64) - 1
ROW, SLOT, FOLD = 0xD1B54A32D192ED03, 0xABC98388FB8FAC03, 0x8CB92BA72F3D8DD7


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1 << 31), st.integers(0, 1 << 31))
def test_the_hash_is_the_documented_one(key: int, row: int, i: int) -> None:
    tensor = torch.tensor(key)
    word = int(words(tensor, range(row, row + 1), 3)[0, 2]) & WORD
    assert word == mix((key + ROW * row + SLOT * 2) & WORD)
    assert int(fold_in(tensor, i)) & WORD == mix((key + FOLD * (i + 1)) & WORD)
    assert torch.equal(fold_in(tensor, i), fold_in(tensor, torch.tensor(i)))


@given(st.integers(0, (1 << 63) - 1), st.integers(1, (1 << 31) - 1))
def test_integers_take_the_halves_of_words(key: int, high: int) -> None:
    drawn = integers(torch.tensor(key), range(5, 6), 3, high)[0].tolist()
    halves = [mix((key + ROW * 5 + SLOT * (s // 2)) & WORD) >> 32 * (s % 2) for s in range(3)]
    assert drawn == [(half & 0xFFFFFFFF) * high >> 32 for half in halves]


def test_the_steps_are_powers_of_the_generalised_golden_ratio() -> None:
    g = 1.2207440846057596
    assert abs(g**4 - g - 1) < 1e-12
    for power, step in enumerate((ROW, SLOT, FOLD), start=1):
        assert step % 2 == 1
        assert abs(step / 2**64 - g**-power) < 1e-12


def test_the_finaliser_is_that_of_splitmix64() -> None:
    # The published first output of SplitMix64 seeded with 0.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_keys_differ_and_no_generator_is_touched() -> None:
    before = torch.random.get_rng_state()
    keys = [make_key(seed) for seed in (-1, 0, 1, 2**63)]
    keys += [fold_in(keys[0], i) for i in range(1000)]
    assert len({int(key) for key in keys}) == len(keys)
    signs(keys[0], range(3), 5, torch.float32)
    distinct_integers(keys[0], range(3), 2, 5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_can_be_drawn_apart() -> None:
    key = make_key(3)
    for draw in (integers, distinct_integers):
        whole = draw(key, range(10), 4, 9)
        assert torch.equal(draw(key, range(6, 9), 4, 9), whole[6:9])


@given(st.data(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_distinct_integers_are_distinct(data: st.DataObject, high: int) -> None:
    count = data.draw(st.integers(1, high))
    drawn = distinct_integers(make_key(data.draw(st.integers(0, 999))), range(50), count, high)
    assert drawn.shape == (50, count)
    assert drawn.min() >= 0
    assert drawn.max() < high
    assert all(len(set(row)) == count for row in drawn.tolist())


@pytest.mark.parametrize(("count", "high"), [(2, 5), (3, 5), (3, 6), (1, 4)])
def test_every_subset_is_equally_likely(count: int, high: int) -> None:
    n = 60_000
    drawn = distinct_integers(make_key(0), range(n), count, high)
    seen = Counter(tuple(sorted(row)) for row in drawn.tolist())
    subsets = list(itertools.combinations(range(high), count))
    expected = n / len(subsets)
    chi_square = sum((seen[s] - expected) ** 2 / expected for s in subsets)
    degrees = len(subsets) - 1
    # Wilson-Hilferty: the cube root of chi-square over its degrees is nearly normal.
    z = ((chi_square / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5
    assert z < 5.2


def test_integers_and_signs_are_balanced() -> None:
    n = 200_000
    counts = torch.bincount(integers(make_key(1), range(n), 1, 7)[:, 0], minlength=7)
    assert ((counts - n / 7).abs() < 5.5 * (n / 7) ** 0.5).all()
    total = signs(make_key(2), range(n // 70), 70, torch.float64).sum(0)
    assert (total.abs() < 5.5 * (n / 70) ** 0.5).all()
    assert set(signs(make_key(2), range(5), 70, torch.float32).unique().tolist()) == {-1.0, 1.0}


def test_bad_counts_are_refused() -> None:
    key = make_key(0)
    with pytest.raises(ValueError, match="high must lie"):
        integers(key, range(1), 1, 1 << 31)
    with pytest.raises(ValueError, match="cannot draw 4 distinct"):
        distinct_integers(key, range(1), 4, 3)
