import pytest
import torch

from rad import data
from rad.data import Text, characters
from rad.data.sources import CHARACTERS, python_sources
from rad.errors import UsageError


def test_each_token_but_the_first_is_predicted_once() -> None:
    text = characters("abc", "abcabdabcabe" * 3, test_fraction=0.25)
    assert text.vocabulary == 5
    for split, tokens in (("train", text.train_tokens), ("test", text.test_tokens)):
        for length in (1, 2, 4):
            count = text.count(length, split)
            assert count == (len(tokens) - 1) // length
            read, following = text.blocks(torch.arange(count), length, split)
            assert read.shape == following.shape == (count, length)
            assert read.dtype == following.dtype == torch.int64
            assert torch.equal(read.flatten(), tokens[: count * length].long())
            assert torch.equal(following.flatten(), tokens[1 : count * length + 1].long())


def test_blocks_in_any_order() -> None:
    text = Text("count", torch.arange(20), torch.arange(5), 20)
    read, following = text.blocks(torch.tensor([2, 0, 2]), 5)
    assert read.tolist() == [[10, 11, 12, 13, 14], [0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert torch.equal(following, read + 1)


def test_characters_are_numbered_by_code_point_and_the_last_are_the_test_set() -> None:
    text = characters("small", "bacab", test_fraction=0.4)
    assert text.train_tokens.tolist() == [1, 0, 2]
    assert text.test_tokens.tolist() == [0, 1]
    assert text.vocabulary == 3


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9, 1.0, -1.0])
def test_a_side_with_nothing_to_predict_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="leave at least 2 on each side"):
        characters("small", "bacab", test_fraction=fraction)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown split 'validation'"):
        characters("small", "bacab", 0.4).count(1, "validation")


def test_python_sources_are_one_text_of_known_characters() -> None:
    text = data.load("python_sources", characters=30_000, context=64)
    assert isinstance(text, data.Text)
    assert (len(text.train_tokens), len(text.test_tokens)) == (27_000, 3_000)
    shown = "".join(CHARACTERS[token] for token in text.train_tokens[:2000].tolist())
    assert shown == python_sources(2000)
    assert "def " in python_sources(30_000)
    assert text.digest == data.load("python_sources", characters=30_000, context=64).digest


def test_more_characters_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match="choose fewer"):
        python_sources(10**9)


def test_a_character_outside_the_alphabet_is_refused() -> None:
    with pytest.raises(UsageError, match="'c', which is not in its alphabet"):
        data.characters("abc", "abcabcabc", alphabet="ab")
