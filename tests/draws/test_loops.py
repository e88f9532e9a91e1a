import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rad.draws import loops as compiled
from rad.draws.reference import distinct_integers, integers, words
from rad.sketches import fold_in, make_key

WORDS = st.integers(-(1 << 63), (1 << 63) - 1)


@given(WORDS, st.integers(0, 1 << 31), st.integers(0, 1 << 31))
@settings(deadline=None)
def test_words_and_sub_keys(word: int, row: int, i: int) -> None:
    key = torch.tensor(word)
    theirs = compiled.key_word(key)
    here = compiled.word(theirs, np.uint64(row), np.uint64(2))
    assert np.uint64(here) == compiled.key_word(words(key, range(row, row + 1), 3)[0, 2])
    assert np.uint64(compiled.fold_in(theirs, i)) == compiled.key_word(fold_in(key, i))


@given(WORDS, st.integers(0, 5), st.integers(1, 9), st.integers(1, (1 << 31) - 1))
@settings(deadline=None)
def test_integers(word: int, row: int, count: int, high: int) -> None:
    key, out = torch.tensor(word), np.full(count, -1, np.int32)
    compiled.integers(compiled.key_word(key), row, high, out)
    assert out.tolist() == integers(key, range(row, row + 1), count, high)[0].tolist()


@pytest.mark.parametrize(("count", "high"), [(1, 961), (97, 961), (5, 10), (6, 10), (9, 9), (1, 1)])
def test_distinct_integers(count: int, high: int) -> None:
    marks = np.zeros(high, np.bool_)
    for seed in range(20):
        key, out = make_key(seed), np.full(count, -1, np.int32)
        compiled.distinct_integers(compiled.key_word(key), 3, high, out, marks)
        assert out.tolist() == distinct_integers(key, range(3, 4), count, high)[0].tolist()
        assert not marks.any()


def test_the_package_does_not_import_numba() -> None:
    check = "import sys, rad; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
