import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rad import backends
from rad.draws import dispatch as draws
from rad.draws import loops
from rad.draws import reference as random
from rad.sketches import fold_in, make_key

WORDS = st.integers(-(1 << 63), (1 << 63) - 1)
DRAWS = (("words", 9), ("integers", 9, 7), ("integers", 8, (1 << 31) - 1))
DRAWS += (("distinct_integers", 9, 30), ("distinct_integers", 9, 12), ("distinct_integers", 5, 5))
DRAWS += (("signs", 130, torch.float32), ("signs", 64, torch.float64), ("signs", 3, torch.bfloat16))


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@given(WORDS, st.integers(0, 1 << 31), st.integers(0, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_loops_draw_what_torch_draws(
    draw: tuple[object, ...], word: int, first: int, count: int, each: bool
) -> None:
    name, *arguments = draw
    key, rows = torch.tensor(word), range(first, first + count)
    if each:
        key = fold_in(key, torch.arange(count))
    expected = getattr(random, str(name))(key, rows, *arguments)
    got = getattr(draws, str(name))(key, rows, *arguments)
    assert torch.equal(got, expected)
    assert got.dtype == expected.dtype


@given(WORDS, st.integers(-5, 1 << 40), st.none() | st.integers(-5, 1 << 40))
def test_a_layers_next_key_is_folded_as_tensors_are(
    word: int, count: int, replica: int | None
) -> None:
    key, calls = torch.tensor(word), torch.tensor(count)
    drawn = loops.next_key(key.data_ptr(), calls.data_ptr(), replica is not None, replica or 0)
    of_process = key if replica is None else fold_in(key, replica)
    assert drawn == int(fold_in(of_process, count))
    assert (int(key), int(calls)) == (word, count + 1)


@given(WORDS, st.integers(0, 1 << 40), st.integers(0, 4), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_keys_of_steps_and_rows(word: int, first: int, steps: int, rows: int) -> None:
    key = torch.tensor(word)
    keys = draws.step_keys(key, steps, first)
    assert torch.equal(keys, random.step_keys(key, steps, first))
    assert keys.tolist() == [int(fold_in(key, first + s)) for s in range(steps)]
    assert torch.equal(draws.row_keys(keys, rows), random.row_keys(keys, rows))


@pytest.mark.parametrize("word", [0, 1, -1, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 1, -3, 2**40, 2**64 - 1])
def test_sub_keys(word: int, place: int) -> None:
    key = torch.tensor(word)
    assert torch.equal(draws.fold_in(key, place), random.fold_in(key, place))
    several = torch.tensor([word, 5])
    assert torch.equal(draws.fold_in(several, place), random.fold_in(several, place))
    places = torch.arange(3)
    assert torch.equal(draws.fold_in(key, places), random.fold_in(key, places))


def test_under_vmap_torch_draws() -> None:
    keys = fold_in(make_key(0), torch.arange(5))
    together = torch.vmap(lambda key: draws.integers(key, range(3), 4, 10))(keys)
    apart = torch.stack([draws.integers(key, range(3), 4, 10) for key in keys])
    assert torch.equal(together, apart)
    assert not backends.in_loops(torch.empty(2, device="meta"))


def test_bad_counts_are_refused_as_by_torch() -> None:
    key = make_key(0)
    with pytest.raises(ValueError, match="high must lie"):
        draws.integers(key, range(1), 1, 1 << 31)
    with pytest.raises(ValueError, match="cannot draw 4 distinct"):
        draws.distinct_integers(key, range(1), 4, 3)
