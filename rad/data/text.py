"""A text as integers on the training device, read in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rad.data.digests import digest_of
from rad.errors import UsageError


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens of a text, (N,) and (M,) integers below `vocabulary`, both on one device.

    A block is `length` tokens and the one after each: block i has tokens i length, ..., and its
    last next token is the first of block i + 1. So each token but the first is predicted once,
    except those at the end that do not fill a block, which are not used. `context` is the length of
    the blocks that a model is to be trained on, where that is known.
    """

    name: str
    train_tokens: Tensor
    test_tokens: Tensor
    vocabulary: int
    context: int | None = None

    @property
    def model_arguments(self) -> dict[str, int]:
        """What a model has to know of it (`rad.models.build`)."""
        known = {"vocabulary": self.vocabulary}
        return known if self.context is None else known | {"context": self.context}

    @cached_property
    def digest(self) -> str:
        """Of the tokens of both splits, in hexadecimal digits."""
        return digest_of([self.train_tokens, self.test_tokens])

    def count(self, length: int, split: str = "train") -> int:
        """How many whole blocks of that length `split` has."""
        return (len(self._tokens(split)) - 1) // length

    def blocks(self, indices: Tensor, length: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """The tokens of those blocks (B, length), and the next one of each: int64."""
        places = indices[:, None] * length + torch.arange(length, device=indices.device)
        tokens = self._tokens(split)
        return tokens[places].long(), tokens[places + 1].long()

    def _tokens(self, split: str) -> Tensor:
        if split not in ("train", "test"):
            raise UsageError(f"unknown split {split!r}; choose 'train' or 'test'")
        return self.train_tokens if split == "train" else self.test_tokens


def characters(
    name: str,
    text: str,
    test_fraction: float = 0.1,
    device: torch.device | str = "cpu",
    *,
    alphabet: str | None = None,
    context: int | None = None,
) -> Text:
    """`text` as one token per character, numbered as in `alphabet`.

    Left out, that is the characters of the text in the order of their code points. The last
    characters, `test_fraction` of all, are the test set.

    Raises:
        UsageError: a fraction that leaves one side with fewer than 2 characters, or a character
            that is not in the alphabet.
    """
    letters = "".join(sorted(set(text))) if alphabet is None else alphabet
    if strange := sorted(set(text) - set(letters)):
        raise UsageError(f"the text has {strange[0]!r}, which is not in its alphabet; add it")
    known = {character: token for token, character in enumerate(letters)}
    tokens = torch.tensor([known[character] for character in text], dtype=torch.int32)
    test = round(len(text) * test_fraction)
    if not 2 <= test <= len(text) - 2:
        raise UsageError(
            f"test_fraction {test_fraction!r} makes {test} of {len(text)} characters the test set; "
            "leave at least 2 on each side"
        )
    train, held = (part.to(device) for part in tokens.split([len(text) - test, test]))
    return Text(name, train, held, len(known), context)
